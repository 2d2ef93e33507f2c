import functools
import io
import logging
import threading
import unittest
from unittest import mock

import persistent
import transaction
import transaction.interfaces
import ZODB
from ZODB.POSException import ConflictError

from gocept.runner import transaction_per_item
from gocept.runner.signals import Shutdown
from gocept.runner.transaction import (
    Failure,
    Observer,
    abort,
    dry_run,
    run_attempts,
    text,
)

LOGGER = 'gocept.runner.transaction'

log = logging.getLogger(__name__)


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
        patch = mock.patch('gocept.runner.transaction.LONGEST_PAUSE', 0.001)
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
            step, attempts, self.shutdown, self.reported.append)

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
        result = run_attempts(step, 3, self.shutdown, lambda error: (
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
            self.assertIn('Conflict error in attempt', record.getMessage())
            self.assertIsNone(record.exc_info)

    def test_a_conflict_in_the_last_attempt(self):
        def step(number):
            raise ConflictError()
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            result = self.run_attempts(step, 2)
        self.assertTrue(result.conflict)
        self.assertEqual([], self.reported)
        last = logs.records[-1]
        self.assertEqual('Conflict error', last.getMessage())
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
        self.assertIn('Transient error in attempt 1 of 3, trying again: '
                      'passes', logs.output[0])

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
            threading.Timer(0.01, self.shutdown.request).start()
            raise ConflictError()
        with (mock.patch('gocept.runner.transaction._pause_after',
                         return_value=3600),
              self.assertLogs(LOGGER, 'WARNING')):
            result = self.run_attempts(step)
        self.assertTrue(result.conflict)
        self.assertEqual([1], numbers)

    def test_pauses_are_random_and_bounded(self):
        with (mock.patch('gocept.runner.transaction.LONGEST_PAUSE', 1.0),
              mock.patch('random.uniform') as uniform):
            from gocept.runner.transaction import _pause_after
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

    def test_a_doomed_transaction_is_aborted_in_silence(self):
        def step(number):
            self.root['x'] = 1
            transaction.doom()
            return 7
        self.assertEqual(7, self.run_attempts(step))
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


class Recording(Observer):
    """What it is told, and what is in the database by then."""

    def __init__(self, case):
        self.case = case
        self.told = []

    def tell(self, *what):
        self.told.append((*what, self.case.committed(), {**self.case.root}))

    def committed(self):
        self.tell('committed')

    def aborted(self, error):
        self.tell('aborted', error)

    def retried(self, error, number):
        self.tell('retried', error, number)


class ObserverTests(Case):

    def run_attempts(self, step, attempts=3):
        """What the observer is told."""
        observer = Recording(self)
        with Shutdown() as self.shutdown:
            self.result = run_attempts(
                step, attempts, self.shutdown, lambda error: None, observer)
        return observer.told

    def failing(self, *errors):
        """A step that changes something, and raises these in turn."""
        remaining = list(errors)

        def step(number):
            transaction.begin()
            self.root['x'] = number
            if remaining:
                raise remaining.pop(0)
        return step

    def test_of_nothing_it_does_nothing(self):
        observer = Observer()
        observer.committed()
        observer.aborted(KeyError())
        observer.retried(KeyError(), 1)

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
            observer = Recording(self)
            with Shutdown() as shutdown, self.assertRaises(type(error)):
                run_attempts(self.failing(error), 3, shutdown,
                             lambda error: None, observer)
            self.assertEqual([('aborted', error, {}, {})], observer.told)

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
        observer, order = Recording(self), []
        observer.aborted = lambda error: order.append('told')
        with Shutdown() as shutdown:
            run_attempts(self.failing(KeyError()), 3, shutdown,
                         lambda error: order.append('reported'), observer)
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


class TextTests(unittest.TestCase):

    def test_what_cannot_be_printed(self):
        class Broken(Exception):
            def __str__(self):
                raise ValueError
            __repr__ = __str__
        self.assertEqual('<Broken, unprintable: ValueError>', text(Broken()))
        self.assertEqual('<Broken, unprintable: ValueError>',
                         text(Broken(), repr))
        self.assertEqual('x', text('x'))


class TransactionPerItemTests(Case):

    def run_items(self, *items, **kwargs):
        @transaction_per_item(**kwargs)
        def steps():
            yield from items
        with self.assertLogs(LOGGER, 'INFO') as logs:
            steps()
        self.logs = logs
        return logs.records[-1].getMessage()

    def add(self, name):
        def item():
            self.root[name] = True
        return item

    def failing(self):
        self.root['failed'] = True
        raise ValueError('no good')

    def conflict(self):
        self.root['conflict'] = True
        raise ConflictError('in the way')

    def test_each_item_is_committed(self):
        self.assertEqual('steps: 2 done, 0 failed, 0 skipped',
                         self.run_items(self.add('a'), self.add('b')))
        self.assertEqual({'a', 'b'}, set(self.committed()))

    def test_a_failing_item_is_logged_aborted_and_passed_over(self):
        self.assertEqual('steps: 2 done, 1 failed, 0 skipped',
                         self.run_items(self.add('a'), self.failing,
                                        self.add('b')))
        self.assertEqual({'a', 'b'}, set(self.committed()))
        record = self.logs.records[0]
        self.assertEqual('ERROR', record.levelname)
        self.assertRegex(record.getMessage(),
                         '^Error in item <bound method .*failing.*>: no good$')
        self.assertEqual(ValueError, record.exc_info[0])

    def test_so_is_a_conflict(self):
        self.assertEqual('steps: 1 done, 0 failed, 1 skipped',
                         self.run_items(self.conflict, self.add('a')))
        self.assertEqual({'a'}, set(self.committed()))
        self.assertEqual('Conflict error', self.logs.records[0].getMessage())

    def test_attempts(self):
        numbers = []

        def item():
            numbers.append(len(numbers))
            self.root['x'] = len(numbers)
            if len(numbers) < 3:
                raise ConflictError()
        self.assertEqual('steps: 1 done, 0 failed, 0 skipped',
                         self.run_items(item, attempts=3))
        self.assertEqual({'x': 3}, self.committed())

    def test_attempts_must_be_positive(self):
        with self.assertRaisesRegex(ValueError, 'at least 1, not 0'):
            transaction_per_item(attempts=0)

    def test_a_failing_commit(self):
        self.assertEqual(
            'steps: 1 done, 1 failed, 0 skipped',
            self.run_items(lambda: DataManager(commit=OSError('disk full')),
                           self.add('a')))

    def test_functions_with_arguments_and_methods(self):
        class Importer:
            @transaction_per_item
            def run(importer, prefix, *, names):
                """Import it."""
                for name in names:
                    yield self.add(prefix + name)
        Importer().run('x-', names='ab')
        self.assertEqual({'x-a', 'x-b'}, set(self.committed()))
        self.assertEqual('run', Importer.run.__name__)
        self.assertEqual('Import it.', Importer.run.__doc__)

    def test_returns_what_the_generator_returns(self):
        @transaction_per_item
        def steps():
            yield self.add('a')
            return 'value'
        self.assertEqual('value', steps())

    def test_any_iterable_will_do(self):
        @transaction_per_item
        def listed():
            return [self.add('a')]
        listed()
        self.assertEqual({'a'}, set(self.committed()))

    def test_the_generators_own_changes_belong_to_the_next_item(self):
        @transaction_per_item
        def steps():
            self.root['good'] = 1
            yield lambda: None
            self.root['bad'] = 1
            yield self.failing
            yield lambda: None
        with self.assertLogs(LOGGER):
            steps()
        self.assertEqual({'good'}, set(self.committed()))

    def test_an_exception_in_the_generator_aborts_and_propagates(self):
        @transaction_per_item
        def steps():
            yield self.add('a')
            self.root['b'] = 1
            raise KeyError('generator')
        with (self.assertLogs(LOGGER, 'INFO') as logs,
              self.assertRaisesRegex(KeyError, 'generator')):
            steps()
        self.assertEqual({'a'}, set(self.root))
        self.assertEqual(['steps: 1 done, 0 failed, 0 skipped'],
                         [record.getMessage() for record in logs.records])

    def test_system_exit_aborts_and_propagates(self):
        closed = []

        @transaction_per_item
        def steps():
            try:
                self.root['a'] = 1
                yield lambda: exec('raise SystemExit(3)')
            finally:
                closed.append(True)
        with self.assertRaises(SystemExit):
            steps()
        self.assertEqual({}, dict(self.root))
        self.assertEqual([True], closed)

    def test_stops_between_two_items(self):
        closed = []

        @transaction_per_item
        def steps():
            try:
                yield self.add('a')
                yield lambda: (self.add('b')(), shutdown.request())
                yield self.add('c')
            finally:
                closed.append(True)
        with Shutdown() as shutdown, self.assertLogs(LOGGER, 'INFO') as logs:
            self.assertIsNone(steps())
        self.assertEqual({'a', 'b'}, set(self.committed()))
        self.assertEqual([True], closed)
        self.assertEqual('steps: 2 done, 0 failed, 0 skipped, stopped',
                         logs.records[-1].getMessage())

    def test_unprintable_items_and_errors(self):
        class Item:
            def __call__(self):
                raise self

            def __str__(self):
                raise ValueError
        item = type('Item', (Exception, ), {
            '__call__': Item.__call__, '__str__': Item.__str__})()
        self.run_items(item)
        self.assertIn('<Item, unprintable: ValueError>',
                      self.logs.records[0].getMessage())

    def test_each_item_sees_what_others_have_committed(self):
        seen = []

        @transaction_per_item
        def steps():
            for number in range(3):
                yield functools.partial(look_and_let_others_write, number)

        def look_and_let_others_write(number):
            seen.append(self.root.get('others'))
            with self.db.transaction() as connection:
                connection.root()['others'] = number
        steps()
        self.assertEqual([None, 0, 1], seen)

    def test_explicit_transactions_without_a_loop(self):
        transaction.manager.explicit = True
        self.addCleanup(setattr, transaction.manager, 'explicit', False)
        self.assertEqual('steps: 2 done, 0 failed, 0 skipped',
                         self.run_items(self.add('a'), self.add('b')))
        self.assertEqual({'a', 'b'}, set(self.committed()))

    def test_a_transaction_that_cannot_be_begun(self):
        @transaction_per_item
        def steps():
            yield self.add('a')
            yield self.add('b')
        with (mock.patch('transaction.begin', side_effect=OSError('lost')),
              self.assertRaisesRegex(OSError, 'lost'),
              self.assertLogs(LOGGER, 'INFO') as logs):
            steps()
        self.assertEqual({'a'}, set(self.committed()))
        self.assertEqual('steps: 1 done, 0 failed, 0 skipped',
                         logs.records[-1].getMessage())

    def test_the_bar_leaves_the_logging_as_it_is(self):
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        handler = logging.StreamHandler(terminal)
        handler.setLevel('ERROR')
        logging.getLogger().addHandler(handler)
        self.addCleanup(logging.getLogger().removeHandler, handler)
        with mock.patch('sys.stderr', terminal):
            self.run_items(lambda: log.info('quiet'),
                           lambda: log.error('loud'))
        self.assertIn('loud\n', terminal.getvalue())
        self.assertNotIn('quiet', terminal.getvalue())
        self.assertIs(terminal, handler.stream)

    def test_a_progress_bar_on_a_terminal_only(self):
        stderr = io.StringIO()
        with mock.patch('sys.stderr', stderr):
            self.run_items(self.add('a'))
        self.assertEqual('', stderr.getvalue())
        stderr.isatty = lambda: True
        with mock.patch('sys.stderr', stderr):
            self.run_items(self.add('a'), self.add('b'))
        self.assertRegex(stderr.getvalue(), r'steps: 2 items')


class DryRunTests(unittest.TestCase):

    def setUp(self):
        self.db = ZODB.DB(None, databases={})
        self.addCleanup(self.db.close)
        transaction.abort()

    def test_nothing_is_committed_but_counted(self):
        with dry_run():
            connection = self.db.open()
            root = connection.root()
            with self.assertLogs(LOGGER, 'INFO') as logs:
                root['a'] = Thing()
                root['a'].child = Thing()
                transaction.commit()
            self.assertEqual({}, dict(root))
            connection.close()
        self.assertEqual(
            [f'Dry run: would commit 2 {__name__}.Thing, '
             '1 persistent.mapping.PersistentMapping'],
            [record.getMessage() for record in logs.records])
        with self.db.transaction() as connection:
            self.assertEqual({}, dict(connection.root()))

    def test_whichever_way_it_is_committed(self):
        def by_context():
            with transaction.manager:
                root['a'] = 1

        def by_transaction():
            root['a'] = 1
            transaction.get().commit()

        def by_attempts():
            for attempt in transaction.manager.attempts():
                with attempt:
                    root['a'] = 1

        def by_savepoint():
            root['a'] = Thing()
            transaction.savepoint()
            transaction.begin().commit()
        with dry_run():
            connection = self.db.open()
            root = connection.root()
            for way in (by_context, by_transaction, by_attempts,
                        by_savepoint):
                way()
                self.assertEqual({}, dict(root), way)
            connection.close()

    def test_what_savepoints_have_stored_counts(self):
        with dry_run():
            connection = self.db.open()
            root = connection.root()
            with self.assertLogs(LOGGER, 'INFO') as logs:
                root['a'] = Thing()
                transaction.savepoint()
                root['b'] = 1
                transaction.commit()
            connection.close()
        self.assertIn(f'1 {__name__}.Thing', logs.output[0])

    def test_what_could_not_be_committed_fails(self):
        with dry_run():
            connection = self.db.open()
            connection.root()['a'] = lambda: None
            with self.assertRaises((TypeError, AttributeError)):
                transaction.commit()
            transaction.abort()
            transaction.doom()
            with self.assertRaises(
                    transaction.interfaces.DoomedTransaction):
                transaction.commit()
            transaction.abort()
            connection.close()

    def test_other_managers_and_threads(self):
        def commit():
            with self.db.transaction() as connection:
                connection.root()['a'] = 1
        with dry_run():
            commit()
            thread = threading.Thread(target=commit)
            thread.start()
            thread.join()
        with self.db.transaction() as connection:
            self.assertEqual({}, dict(connection.root()))

    def test_what_hooks_before_the_commit_change(self):
        connection = self.db.open()
        self.addCleanup(connection.close)
        root = connection.root()
        with dry_run(), self.assertLogs(LOGGER, 'INFO') as logs:
            transaction.get().addBeforeCommitHook(
                root.update, (), {'a': Thing()})
            transaction.commit()
        self.assertIn(f'1 {__name__}.Thing', logs.output[0])

    def test_ends(self):
        with self.assertRaises(ZeroDivisionError), dry_run():
            raise ZeroDivisionError
        with self.db.transaction() as connection:
            connection.root()['a'] = 1
        with self.db.transaction() as connection:
            self.assertEqual({'a': 1}, dict(connection.root()))

    def test_an_idle_transaction_is_no_news(self):
        with (dry_run(), self.assertLogs(LOGGER, logging.DEBUG) as logs):
            transaction.commit()
        self.assertEqual(
            [f'DEBUG:{LOGGER}:Dry run: would commit nothing'], logs.output)
