import contextlib
import io
import logging
import os
import sys
import threading
import unittest
from unittest import mock

import persistent
import transaction
import transaction.interfaces
import ZODB
from ZODB.POSException import ConflictError

from gocept.runner import transaction_per_item
from gocept.runner.boot.attempts import Failure, abort, run_attempts
from gocept.runner.signals import Shutdown

LOGGER = 'gocept.runner.transaction'


class Thing(persistent.Persistent):
    pass


class Case(unittest.TestCase):

    def setUp(self):
        transaction.abort()
        self.addCleanup(transaction.abort)
        self.db = ZODB.DB(None)
        self.addCleanup(self.db.close)
        self.connection = self.db.open()
        self.addCleanup(self.connection.close)
        self.addCleanup(transaction.abort)
        self.root = self.connection.root()
        patch = mock.patch('gocept.runner.boot.attempts.LONGEST_PAUSE', 0.001)
        patch.start()
        self.addCleanup(patch.stop)

    def committed(self):
        with self.db.transaction() as connection:
            return dict(connection.root())


class DataManager:
    """Fails where it is told to."""

    transaction_manager = transaction.manager

    def __init__(self, **errors):
        self.errors = errors
        transaction.get().join(self)

    def sortKey(self):
        return '~'

    def _call(self, name):
        if name in self.errors:
            raise self.errors[name]

    def abort(self, txn):
        self._call('abort')

    def tpc_begin(self, txn):
        self._call('tpc_begin')

    def commit(self, txn):
        self._call('commit')

    def tpc_vote(self, txn):
        self._call('tpc_vote')

    def tpc_finish(self, txn):
        self._call('tpc_finish')

    def tpc_abort(self, txn):
        self._call('tpc_abort')


class Synchronizer:
    """Fails when a transaction has been completed."""

    def newTransaction(self, txn):
        pass

    beforeCompletion = newTransaction

    def afterCompletion(self, txn):
        raise transaction.interfaces.TransientError('server lost')


class RunAttemptsTests(Case):

    def setUp(self):
        super().setUp()
        self.reported = []
        self.shutdown = Shutdown()
        self.shutdown.__enter__()
        self.addCleanup(self.shutdown.__exit__, None, None, None)

    def run_attempts(self, step, attempts=3):
        return run_attempts(
            step, attempts, self.shutdown, lambda: 'this',
            lambda message, error: self.reported.append(error))

    def test_commits_and_returns_the_result(self):
        def step(number):
            self.root['x'] = number
            return 'result'
        self.assertEqual('result', self.run_attempts(step))
        self.assertEqual({'x': 1}, self.committed())

    def test_reports_before_the_abort(self):
        changed = []

        def step(number):
            self.root['x'] = number
            raise ValueError(number)
        result = run_attempts(
            step, 3, self.shutdown, str, lambda message, error: (
                changed.append(self.root['x'])))
        self.assertEqual([1], changed)
        self.assertEqual({}, dict(self.root))
        self.assertEqual(repr(Failure(ValueError(1), False)), repr(result))

    def test_retries_conflicts(self):
        numbers = []

        def step(number):
            numbers.append(number)
            if number < 3:
                raise ConflictError()
            self.root['x'] = number
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            self.assertIsNone(self.run_attempts(step))
        self.assertEqual([1, 2, 3], numbers)
        self.assertEqual({'x': 3}, self.committed())
        self.assertEqual(2, len(logs.records))
        for record in logs.records:
            self.assertRegex(record.getMessage(),
                             'Conflict error in attempt [12] of 3 of this, '
                             'trying again: ConflictError: database conflict')
            self.assertIsNone(record.exc_info)

    def test_a_conflict_in_the_last_attempt(self):
        def step(number):
            raise ConflictError()
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            result = self.run_attempts(step, 2)
        self.assertTrue(result.conflict)
        self.assertEqual([], self.reported)
        last = logs.records[-1]
        self.assertEqual(
            'Conflict error in this: ConflictError: database conflict error',
            last.getMessage())
        self.assertEqual(ConflictError, last.exc_info[0])
        self.assertEqual(2, len(logs.records))

    def test_a_real_conflict_at_commit(self):
        self.root['thing'] = Thing()
        transaction.commit()

        def step(number):
            transaction.begin()
            self.root['thing'].mine = number
            if number == 1:
                with self.db.transaction() as connection:
                    connection.root()['thing'].others = True
        with self.assertLogs(LOGGER, 'WARNING'):
            self.run_attempts(step)
        thing = self.committed()['thing']
        self.assertEqual(2, self.root['thing'].mine)
        self.assertTrue(self.root['thing'].others, thing)

    def test_what_a_data_manager_calls_retryable(self):
        def step(number):
            if number == 1:
                manager = DataManager()
                manager.should_retry = lambda error: True
                raise OSError('passes')
            return number
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            self.assertEqual(2, self.run_attempts(step))
        self.assertIn('Transient error in attempt 1 of 3 of this, trying '
                      'again: OSError: passes', logs.output[0])

    def test_a_transient_error_that_stays_is_reported(self):
        def step(number):
            raise transaction.interfaces.TransientError(number)
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            result = self.run_attempts(step, 2)
        self.assertEqual([result.error], self.reported)
        self.assertFalse(result.conflict)
        self.assertEqual(1, len(logs.records))

    def test_a_request_to_shut_down_ends_the_pause_and_the_attempts(self):
        numbers = []

        def step(number):
            numbers.append(number)
            timer = threading.Timer(0.01, self.shutdown.request)
            timer.start()
            self.addCleanup(timer.join)
            raise ConflictError()
        with (mock.patch('gocept.runner.boot.attempts._pause_after',
                         return_value=3600),
              self.assertLogs(LOGGER, 'WARNING')):
            result = self.run_attempts(step)
        self.assertTrue(result.conflict)
        self.assertEqual([1], numbers)

    def test_pauses_are_random_and_bounded(self):
        with (mock.patch('gocept.runner.boot.attempts.LONGEST_PAUSE', 1.0),
              mock.patch('random.uniform') as uniform):
            from gocept.runner.boot.attempts import _pause_after
            for number in (1, 2, 3, 100):
                _pause_after(number)
        self.assertEqual(
            [(0, 0.02), (0, 0.04), (0, 0.08), (0, 1.0)],
            [call.args for call in uniform.call_args_list])

    def test_system_exit_aborts_and_propagates(self):
        for kind in (SystemExit, KeyboardInterrupt):
            def step(number, kind=kind):
                self.root['x'] = 1
                raise kind()
            with self.assertRaises(kind):
                self.run_attempts(step)
            self.assertEqual({}, dict(self.root))
        self.assertEqual([], self.reported)

    def test_other_base_exceptions_are_failures(self):
        class Cancelled(BaseException):
            pass

        def step(number):
            raise Cancelled()
        self.run_attempts(step)
        self.assertIsInstance(self.reported[0], Cancelled)

    def test_a_commit_that_fails_at_any_step(self):
        for name in ('tpc_begin', 'commit', 'tpc_vote', 'tpc_finish'):
            with self.subTest(name):
                def step(number, name=name):
                    self.root['x'] = name
                    DataManager(**{name: OSError(name),
                                   'abort': OSError('abort'),
                                   'tpc_abort': OSError('tpc_abort')})
                with self.silent():
                    result = self.run_attempts(step)
                self.assertEqual(name, str(result.error))
                self.run_attempts(
                    lambda number: self.root.update(then='works'))
                self.assertEqual('works', self.committed()['then'])
                del self.root['then']
                transaction.commit()

    def silent(self):
        return self.assertLogs(f'txn.{threading.get_ident()}', 'ERROR')

    def test_an_object_that_cannot_be_pickled(self):
        def step(number):
            self.root['x'] = lambda: None
        self.run_attempts(step)
        self.assertEqual(1, len(self.reported))
        self.assertEqual({}, dict(self.root))

    def test_what_is_committed_is_not_done_twice(self):
        numbers = []
        synchronizer = Synchronizer()

        def step(number):
            numbers.append(number)
            self.root['x'] = number
            if number == 1:
                transaction.manager.registerSynch(synchronizer)
                self.addCleanup(abort)
        try:
            with self.assertLogs(LOGGER, 'ERROR') as logs:
                self.assertIsNone(self.run_attempts(step))
        finally:
            transaction.manager.unregisterSynch(synchronizer)
        self.assertEqual([1], numbers)
        self.assertEqual({'x': 1}, self.committed())
        self.assertIn('Committed, but', logs.output[0])

    def test_a_doomed_transaction_is_aborted_with_a_warning(self):
        def step(number):
            self.root['x'] = 1
            transaction.doom()
            return 7
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            self.assertEqual(7, self.run_attempts(step))
        self.assertIn(' was doomed, so it was aborted', logs.output[0])
        self.assertEqual([], self.reported)
        self.assertEqual({}, dict(self.root))

    def test_a_data_manager_that_cannot_tell_whether_to_retry(self):
        def step(number):
            DataManager().should_retry = lambda error: 1 / 0
            raise KeyError('worker')
        with self.assertLogs(LOGGER, 'ERROR') as logs:
            result = self.run_attempts(step)
        self.assertEqual([result.error], self.reported)
        self.assertIsInstance(result.error, KeyError)
        self.assertIn('cannot tell whether to retry', logs.output[0])

    def test_a_step_that_ends_an_explicit_transaction(self):
        transaction.manager.explicit = True
        self.addCleanup(setattr, transaction.manager, 'explicit', False)

        def step(number):
            transaction.begin()
            self.root['x'] = 1
            transaction.commit()
            return 7
        self.assertEqual(7, self.run_attempts(step))
        self.assertEqual({'x': 1}, self.committed())

    def test_explicit_transactions(self):
        transaction.manager.explicit = True
        self.addCleanup(setattr, transaction.manager, 'explicit', False)

        def step(number):
            transaction.begin()
            if number == 1:
                transaction.abort()
                raise ConflictError()
            return number
        with self.assertLogs(LOGGER, 'WARNING'):
            self.assertEqual(2, self.run_attempts(step))


class ObserverCase(Case):

    def setUp(self):
        super().setUp()
        self.told, self.reported = [], []

    def observer(self, error, retried, uncertain):
        what = (['committed'] if error is None
                else ['uncertain', error] if uncertain
                else ['retried', error, retried] if retried
                else ['aborted', error])
        # And what is in the database by then.
        self.told.append((*what, self.committed(), {**self.root}))

    def run_attempts(self, step, attempts=3):
        """What the observer is told."""
        with Shutdown() as self.shutdown:
            self.result = run_attempts(
                step, attempts, self.shutdown, str,
                lambda message, error: self.reported.append(message),
                self.observer)
        return self.told

    def failing(self, *errors):
        """A step that changes something, and raises these in turn."""
        remaining = list(errors)

        def step(number):
            transaction.begin()
            self.root['x'] = number
            if remaining:
                raise remaining.pop(0)
        return step


class ObserverTests(ObserverCase):

    def test_committed(self):
        self.assertEqual([('committed', {'x': 1}, {'x': 1})],
                         self.run_attempts(self.failing()))

    def test_aborted(self):
        error = KeyError()
        self.assertEqual([('aborted', error, {}, {})],
                         self.run_attempts(self.failing(error)))
        self.assertIs(error, self.result.error)

    def test_an_error_of_the_commit(self):
        error = OSError('disk full')

        def step(number):
            self.root['x'] = 1
            DataManager(commit=error)
        self.assertEqual([('aborted', error, {}, {})],
                         self.run_attempts(step))

    def test_retried(self):
        errors = [ConflictError(), transaction.interfaces.TransientError()]
        with self.assertLogs(LOGGER, 'WARNING'):
            self.assertEqual(
                [('retried', errors[0], 1, {}, {}),
                 ('retried', errors[1], 2, {}, {}),
                 ('committed', {'x': 3}, {'x': 3})],
                self.run_attempts(self.failing(*errors)))

    def test_a_conflict_in_the_last_attempt(self):
        errors = [ConflictError(), ConflictError()]
        with self.assertLogs(LOGGER, 'WARNING'):
            self.assertEqual(
                [('retried', errors[0], 1, {}, {}),
                 ('aborted', errors[1], {}, {})],
                self.run_attempts(self.failing(*errors), 2))

    def test_a_conflict_that_a_request_does_not_let_be_retried(self):
        error = ConflictError()

        def step(number):
            self.shutdown.request()
            raise error
        with self.assertLogs(LOGGER, 'WARNING'):
            self.assertEqual([('aborted', error, {}, {})],
                             self.run_attempts(step))

    def test_doomed(self):
        def step(number):
            self.root['x'] = 1
            transaction.doom()
        [(what, error, committed, root)] = self.run_attempts(step)
        self.assertEqual(('aborted', {}, {}), (what, committed, root))
        self.assertIsInstance(error, transaction.interfaces.DoomedTransaction)
        self.assertIsNone(self.result)

    def test_what_ends_the_loop(self):
        for error in SystemExit(3), KeyboardInterrupt():
            self.told = []
            with Shutdown() as shutdown, self.assertRaises(type(error)):
                run_attempts(self.failing(error), 3, shutdown, str,
                             self.fail, self.observer)
            self.assertEqual([('aborted', error, {}, {})], self.told)

    def test_what_fails_after_the_commit_was_committed(self):
        synchronizer = Synchronizer()

        def step(number):
            self.root['x'] = number
            transaction.manager.registerSynch(synchronizer)
        try:
            with self.assertLogs(LOGGER, 'ERROR'):
                told = self.run_attempts(step)
        finally:
            transaction.manager.unregisterSynch(synchronizer)
            abort()
        self.assertEqual([('committed', {'x': 1}, {'x': 1})], told)

    def test_an_error_is_reported_before_it_is_told(self):
        order = []
        with Shutdown() as shutdown:
            run_attempts(self.failing(KeyError()), 3, shutdown, str,
                         lambda message, error: order.append('reported'),
                         lambda *outcome: order.append('told'))
        self.assertEqual(['reported', 'told'], order)

    def test_items_tell_nobody(self):
        @transaction_per_item
        def items():
            yield lambda: self.root.update(a=1)
            yield lambda: 1 / 0

        def step(number):
            items()
        with self.assertLogs(LOGGER, 'INFO'):
            self.assertEqual([('committed', {'a': 1}, {'a': 1})],
                             self.run_attempts(step))


class SecondPhaseTests(ObserverCase):
    """What fails when data managers may have finished is not done again."""

    def transient(self):
        return transaction.interfaces.TransientError('gone')

    def joining(self, change=True, **more):
        """A step that changes the database, and joins a `DataManager`."""
        def step(number):
            transaction.begin()
            self.calls = number
            if change:
                self.root['x'] = number
            return DataManager(**more)
        return step

    def assertUncertain(self, step, committed, error):
        with self.assertLogs(f'txn.{threading.get_ident()}', 'CRITICAL'):
            told = self.run_attempts(step)
        self.assertEqual(
            [('uncertain', error)], [each[:2] for each in told])
        self.assertEqual(1, self.calls)
        self.assertEqual(committed, self.committed())
        self.assertTrue(self.result.uncertain)
        [message] = self.reported
        self.assertRegex(message, '^Partly committed: .*not known.*: '
                         f'{type(error).__name__}: gone$')

    def test_the_storage_has_finished_before(self):
        error = self.transient()
        self.assertUncertain(
            self.joining(tpc_finish=error), {'x': 1}, error)

    def test_the_first_one_fails(self):
        # What it has stored is known to nobody.
        error = self.transient()

        class First(DataManager):
            def sortKey(self):
                return ''

        def step(number):
            self.calls = number
            self.root['x'] = number
            First(tpc_finish=error)
        self.assertUncertain(step, {}, error)

    def test_the_only_one_fails(self):
        error = ConflictError('gone')
        self.assertUncertain(
            self.joining(change=False, tpc_finish=error), {}, error)

    def test_where_the_worker_commits_itself(self):
        error = self.transient()
        join = self.joining(tpc_finish=error)

        def step(number):
            join(number)
            transaction.commit()
        self.assertUncertain(step, {'x': 1}, error)

    def test_of_what_ends_the_loop(self):
        error = SystemExit('gone')
        with self.assertRaises(SystemExit):
            self.assertUncertain(
                self.joining(tpc_finish=error), {'x': 1}, error)
        self.assertEqual('uncertain', self.told[0][0])
        self.assertIn('SystemExit: gone', self.reported[0])

    def test_the_last_vote_is_still_the_first_phase(self):
        error = self.transient()
        with self.assertLogs(LOGGER, 'WARNING'):
            self.run_attempts(self.joining(tpc_vote=error), 2)
        self.assertEqual(['retried', 'aborted'],
                         [each[0] for each in self.told])
        self.assertEqual({}, self.committed())
        self.assertFalse(self.result.uncertain)

    def test_a_savepoint_that_fails(self):
        error = self.transient()

        def step(number):
            transaction.begin()
            self.root['x'] = 1

            def fail():
                raise error
            DataManager().savepoint = fail
            transaction.savepoint()
        with self.assertLogs(LOGGER, 'WARNING'):
            self.run_attempts(step, 2)
        self.assertEqual(['retried', 'aborted'],
                         [each[0] for each in self.told])

    def test_what_ends_the_loop_after_the_commit(self):
        class Synchronizer:
            newTransaction = beforeCompletion = lambda self, txn: None

            def afterCompletion(self, txn):
                transaction.manager.unregisterSynch(self)
                raise KeyboardInterrupt
        synchronizer = Synchronizer()

        def step(number):
            self.root['x'] = 1
            transaction.manager.registerSynch(synchronizer)
        with (self.assertLogs(LOGGER, 'ERROR'),
              self.assertRaises(KeyboardInterrupt)):
            self.run_attempts(step)
        self.assertEqual([('committed', {'x': 1}, {'x': 1})], self.told)

    def test_a_commit_of_the_worker_whose_connection_fails_thereafter(self):
        calls = []

        class Synchronizer:
            newTransaction = beforeCompletion = lambda self, txn: None

            def afterCompletion(self, txn):
                transaction.manager.unregisterSynch(self)
                raise transaction.interfaces.TransientError('gone')
        synchronizer = Synchronizer()

        def step(number):
            calls.append(number)
            self.root['x'] = number
            transaction.manager.registerSynch(synchronizer)
            transaction.commit()
        self.run_attempts(step)
        self.assertEqual([1], calls)
        self.assertTrue(self.result.uncertain)
        self.assertEqual({'x': 1}, self.committed())


class ForkTests(Case):
    """A child that a step forks ends where it comes back."""

    def fork(self, in_child):
        """Fork, and return the status of the child; `in_child` runs there."""
        pid = os.fork()
        if not pid:
            in_child()
            return None
        self.status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return self.status

    def assertEnds(self, status, in_child, when=None):
        statuses, effects = [], []

        def step(number):
            def fork():
                statuses.append(self.fork(in_child))
            if when is None:
                fork()
            else:
                when(fork)
            self.root['x'] = os.getpid()
        with Shutdown() as shutdown:
            run_attempts(
                step, 3, shutdown, str,
                lambda message, error: effects.append(message),
                lambda *outcome: effects.append(outcome))
        self.assertEqual([status], statuses)
        self.assertEqual([(None, 0, False)], effects)
        self.assertEqual({'x': os.getpid()}, self.committed())

    def test_by_coming_back(self):
        self.assertEnds(0, lambda: None)

    def test_by_an_exception(self):
        def fail():
            raise ImportError('no such module')
        self.assertEnds(1, fail)

    def test_by_a_conflict(self):
        def fail():
            raise ConflictError
        self.assertEnds(1, fail)

    def test_by_system_exit(self):
        for code, status in (3, 3), (None, 0), (0, 0), ('text', 1), (256, 0):
            with self.subTest(code):
                with contextlib.redirect_stderr(io.StringIO()):
                    self.assertEnds(status, lambda code=code: sys.exit(code))

    def test_in_a_hook_after_the_commit(self):
        self.assertEnds(0, lambda: None, lambda fork: (
            transaction.get().addAfterCommitHook(lambda ok: fork())))

    def test_in_an_item(self):
        ran = []

        @transaction_per_item
        def items():
            yield lambda: self.fork(lambda: None)
            yield lambda: ran.append(self.root.update(x=os.getpid()))
        items()
        self.assertEqual(0, self.status)
        self.assertEqual({'x': os.getpid()}, self.committed())

    def test_in_the_generator(self):
        closed, pid = [], os.getpid()

        def fail():
            raise ImportError('no such module')
        for status, in_child in (1, fail), (0, lambda: None):
            @transaction_per_item
            def items(in_child=in_child):
                try:
                    self.fork(in_child)
                    yield lambda: self.root.update(x=os.getpid())
                finally:
                    closed.append(os.getpid())
                    if os.getpid() != pid:
                        os._exit(99)
            if status:  # an exception closes the generator by itself
                @transaction_per_item
                def items(in_child=in_child):
                    self.fork(in_child)
                    yield lambda: self.root.update(x=os.getpid())
            items()
            self.assertEqual(status, self.status)
            self.assertEqual({'x': os.getpid()}, self.committed())

    def test_the_line_in_the_log(self):
        read, write = os.pipe()
        self.addCleanup(os.close, read)

        def say(*args):
            os.dup2(write, 2)
            logging.getLogger().addHandler(logging.StreamHandler())
            raise ImportError('no such module')
        self.assertEnds(1, say)
        os.close(write)
        with open(read, closefd=False) as log:
            text = log.read()
        self.assertRegex(
            text, rf'^Process \d+, which was forked from process {os.getpid()}'
            ', came back .* ends here, with status 1; a forked child has to '
            r'end by os\._exit\(\)\nTraceback')
        self.assertIn('ImportError: no such module', text)
