import functools
import io
import logging
import random
import threading
from unittest import mock

import transaction
from ZODB.POSException import ConflictError

from gocept.runner import appmain, once, transaction_per_item
from gocept.runner.boot import progress
from gocept.runner.boot.counts import Items, counting
from gocept.runner.channel import TransactionalChannel
from gocept.runner.signals import Shutdown
from gocept.runner.testing import TestChannel
from gocept.runner.tests.boot.test_attempts import LOGGER, Case, DataManager
from gocept.runner.tests.support import DEADLINE

log = logging.getLogger(__name__)


class ItemsCase(Case):

    options = {}

    def run_items(self, *items, **options):
        """Returns the last line of the log."""
        @transaction_per_item(**self.options | options)
        def steps():
            yield from items
        with self.assertLogs(LOGGER, 'DEBUG') as self.logs:
            steps()
        return self.messages[-1]

    @property
    def messages(self):
        return [record.getMessage() for record in self.logs.records]

    def add(self, name):
        def item():
            self.root[name] = self.root.get(name, 0) + 1
            self.calls.append(name)
        return item

    def setUp(self):
        super().setUp()
        self.calls = []

    def failing(self):
        self.root['failed'] = True
        raise ValueError('no good')

    def conflict(self):
        self.root['conflict'] = True
        raise ConflictError('in the way')


class TransactionPerItemTests(ItemsCase):

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
                         "^Error in item <.*>[.]failing of "
                         "'steps': ValueError: no good$")
        self.assertEqual(ValueError, record.exc_info[0])

    def test_so_is_a_conflict(self):
        self.assertEqual('steps: 1 done, 0 failed, 1 skipped',
                         self.run_items(self.conflict, self.add('a')))
        self.assertEqual({'a'}, set(self.committed()))
        self.assertRegex(
            self.logs.records[0].getMessage(),
            "^Conflict error in item <.*>[.]conflict of 'steps': "
            'ConflictError: in the way$')

    def test_an_item_is_shown_as_a_call(self):
        class Order:
            def __repr__(self):
                return 'Order(5)'

            def __call__(self):
                raise ValueError

            def store(self, *args, **keywords):
                raise ValueError

        def store(*args):
            raise ValueError
        for item, expected in (
                (functools.partial(store, 'a.txt', 5), "store('a.txt', 5)"),
                (functools.partial(Order().store, x=None),
                 'Order(5).store(x=None)'),
                (Order().store, 'Order(5).store'),
                (Order(), 'Order(5)'),
                (store, 'store'),
                (functools.partial(store, 'x' * 500),
                 f"store('{'x' * 37}...{'x' * 38}')"),
                (functools.partial(store, *[b'x' * 60] * 6),
                 f'store({"".join([repr(b"x" * 60) + ", "] * 3)[:191]}...')):
            self.run_items(item)
            self.assertEqual(
                f"Error in item {expected} of 'steps': ValueError",
                self.messages[0])

    def test_nothing_to_do_is_worth_a_line_where_it_is_done_once(self):
        for is_once, level in (True, 'INFO'), (False, 'DEBUG'):
            with counting(Items(is_once)):
                self.assertEqual('steps: 0 done, 0 failed, 0 skipped',
                                 self.run_items())
            self.assertEqual(level, self.logs.records[-1].levelname)

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

    def test_a_failure_either_matters_or_not(self):
        with self.assertRaisesRegex(
                ValueError, "'status' or 'ignore', not 'abort'"):
            transaction_per_item(on_failure='abort')

    def test_what_is_no_generator_function(self):
        with self.assertRaisesRegex(
                TypeError, r'^3 is no .*: @transaction_per_item\(attempts='):
            transaction_per_item(3)

    def test_a_function_that_returns_no_items(self):
        @transaction_per_item
        def steps():
            pass
        with self.assertRaisesRegex(
                TypeError, '^steps returned None and no items: .* yield$'):
            steps()

    def test_a_program(self):
        for decorator in once(), appmain():
            @decorator
            def steps():
                return [self.add('a')]
            with self.assertRaisesRegex(
                    TypeError, '^steps is a program already: put @tran'):
                transaction_per_item(steps)

    def test_a_program_of_the_generator_itself(self):
        def steps():
            yield self.add('a')
        for decorator in once(), appmain(), appmain(ticks=5):
            with self.assertRaisesRegex(
                    TypeError, '^steps is a generator function, .* put '
                    '@transaction_per_item above it, and below @appmain'):
                decorator(steps)

    def test_an_async_worker(self):
        async def work():
            """Is no worker."""

        async def steps():
            yield
        for decorator in once(), appmain(ticks=5):
            for worker in work, steps:
                with self.assertRaisesRegex(
                        TypeError, f'^{worker.__name__} is an async function, '
                        r'.*: decorate .* calls asyncio[.]run\(\)$'):
                    decorator(worker)

    def test_a_function_without_a_name(self):
        def steps(item):
            yield item
        with self.assertLogs(LOGGER, 'INFO') as logs:
            transaction_per_item(functools.partial(steps, int))()
        self.assertIn('steps: 1 done', logs.output[0])

    def test_an_item_whose_outcome_is_uncertain(self):
        calls = []

        def item():
            calls.append(self.add('stored')())
            DataManager(tpc_finish=ConflictError('gone'))
        self.assertEqual(
            'steps: 1 done, 0 failed, 0 skipped, 1 uncertain',
            self.run_items(item, self.add('a'), attempts=3))
        self.assertEqual(1, len(calls))
        self.assertEqual({'stored', 'a'}, set(self.committed()))
        self.assertRegex(
            self.logs.records[0].getMessage(),
            "^Partly committed: .* in item item of 'steps', so it is "
            'not known .* ConflictError: gone$')

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

    def test_a_doomed_item_has_failed(self):
        def doomed():
            self.root['doomed'] = True
            transaction.doom()
        self.assertEqual('steps: 1 done, 1 failed, 0 skipped',
                         self.run_items(doomed, self.add('a')))
        self.assertEqual({'a'}, set(self.committed()))
        self.assertRegex(
            self.logs.records[0].getMessage(),
            "^The transaction of item doomed of 'steps' was "
            'doomed')

    def test_an_exit_in_an_item_is_logged(self):
        for error in SystemExit(0), SystemExit(), KeyboardInterrupt():
            with (self.assertLogs(LOGGER, 'INFO') as logs,
                  self.assertRaises(type(error))):
                transaction_per_item(lambda error=error: iter([
                    self.add('a'), mock.Mock(side_effect=error)]))()
            warning, counts = logs.records
            self.assertTrue(warning.getMessage().startswith(
                f'{error!r} raised by item <Mock'), warning.getMessage())
            self.assertIn('no further item is run', warning.getMessage())
            self.assertTrue(counts.getMessage().endswith(
                ': 1 done, 0 failed, 0 skipped, stopped'))

    def test_an_exit_in_the_generator_is_logged(self):
        @transaction_per_item
        def steps():
            yield self.add('a')
            raise SystemExit(0)
        with (self.assertLogs(LOGGER, 'INFO') as logs,
              self.assertRaises(SystemExit)):
            steps()
        self.assertEqual(
            ["SystemExit(0) raised by the generator of 'steps', so no further "
             'item is run', 'steps: 1 done, 0 failed, 0 skipped, stopped'],
            [record.getMessage() for record in logs.records])

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


class BatchTests(ItemsCase):
    """Items that share a transaction end as those that have one of their own.
    """

    options = {'batch': 3}

    def setUp(self):
        super().setUp()
        self.commits = 0
        commit = transaction.Transaction.commit

        def counted(txn):
            self.commits += 1
            commit(txn)
        self.enterContext(mock.patch.object(
            transaction.Transaction, 'commit', counted))

    def test_they_are_committed_together(self):
        self.assertEqual('steps: 7 done, 0 failed, 0 skipped',
                         self.run_items(*map(self.add, 'abcdefg')))
        self.assertEqual(3, self.commits)
        self.assertEqual([*'abcdefg'], self.calls)
        self.assertEqual(dict.fromkeys('abcdefg', 1), self.committed())

    def test_a_failing_one_is_called_again_like_the_others(self):
        self.assertEqual(
            'steps: 4 done, 1 failed, 0 skipped',
            self.run_items(self.add('a'), self.failing, *map(self.add, 'bcd')))
        self.assertEqual([*'aabcd'], self.calls)
        self.assertEqual(dict.fromkeys('abcd', 1), self.committed())
        info, error, _ = self.messages
        self.assertRegex(info, (
            "^Nothing is stored of 2 items of 'steps' in one transaction, the "
            'last of them <.*>[.]failing, so they are called again, one by '
            'one; what the generator has changed for them is undone: '
            'ValueError: no good$'))
        self.assertEqual('INFO', self.logs.records[0].levelname)
        self.assertRegex(error, '^Error in item .*: ValueError: no good$')

    def test_a_conflict(self):
        self.assertEqual('steps: 2 done, 0 failed, 1 skipped',
                         self.run_items(self.add('a'), self.conflict,
                                        self.add('b')))
        self.assertEqual({'a': 1, 'b': 1}, self.committed())

    def test_a_conflict_of_the_commit(self):
        managers = [DataManager, *[lambda **options: None] * 9]
        item = self.add('b')

        def joining():
            item()
            managers.pop(0)(commit=ConflictError('others'))
        self.assertEqual('steps: 3 done, 0 failed, 0 skipped',
                         self.run_items(self.add('a'), joining, self.add('c')))
        self.assertEqual([*'abcabc'], self.calls)
        self.assertEqual(dict.fromkeys('abc', 1), self.committed())

    def test_attempts_of_one_that_conflicts(self):
        numbers = []

        def item():
            numbers.append(self.add('x')())
            if len(numbers) < 4:
                raise ConflictError
        self.assertEqual('steps: 2 done, 0 failed, 0 skipped',
                         self.run_items(self.add('a'), item, attempts=3))
        self.assertEqual({'a': 1, 'x': 1}, self.committed())

    def test_a_doomed_one(self):
        def doomed():
            self.add('doomed')()
            transaction.doom()
        self.assertEqual('steps: 2 done, 1 failed, 0 skipped',
                         self.run_items(self.add('a'), doomed, self.add('b')))
        self.assertEqual({'a': 1, 'b': 1}, self.committed())

    def test_an_uncertain_outcome_is_that_of_all(self):
        def item():
            DataManager(tpc_finish=ConflictError('gone'))
        self.assertEqual(
            'steps: 1 done, 0 failed, 0 skipped, 3 uncertain',
            self.run_items(self.add('a'), item, *map(self.add, 'bc')))
        self.assertEqual([*'abc'], self.calls)
        self.assertRegex(
            self.messages[0], "^Partly committed: .* 3 items of 'steps'")

    def test_a_transactional_channel(self):
        feed = TestChannel(buffering='line')
        feed.put(b'a\nb\nc\nd\ne\nf\n')
        channel = TransactionalChannel(feed)

        def item():
            line = channel.read()
            self.add(line)()
            if line == b'e\n':
                raise ValueError
        # The line of an item that fails comes again, as without a batch.
        self.assertEqual('steps: 4 done, 2 failed, 0 skipped',
                         self.run_items(*[item] * 6))
        self.assertEqual({b'a\n', b'b\n', b'c\n', b'd\n'},
                         set(self.committed()))
        self.assertEqual(b'e\n', channel.read())
        transaction.commit()
        self.assertEqual(b'f\n', channel.read())

    def test_no_callable(self):
        self.assertEqual('steps: 2 done, 1 failed, 0 skipped',
                         self.run_items(self.add('a'), 5, self.add('b')))

    def test_the_generator_belongs_to_the_transaction(self):
        @transaction_per_item(batch=2)
        def steps():
            for name in 'abc':
                self.root['generator'] = name
                yield self.add(name)
            self.root['generator'] = 'end'
        with self.assertLogs(LOGGER, 'INFO'):
            steps()
        self.assertEqual(2, self.commits)
        self.assertEqual({'a': 1, 'b': 1, 'c': 1, 'generator': 'end'},
                         self.committed())

    def run_fetched(self, in_third, **options):
        """Run items whose lines the generator fetches; returns the log."""
        channel = TestChannel(buffering='line', encoding='utf-8')
        channel.put('a\nb\nc\nd\n')
        source, called = TransactionalChannel(channel), []

        @transaction_per_item(**options)
        def steps():
            while line := source.read():
                yield functools.partial(store, line)

        def store(line):
            called.append(line)
            self.add(line.strip())()
            if called.count('c\n') == 1 and line == 'c\n':
                in_third()
        transaction.begin()
        self.root.clear()
        transaction.commit()
        with self.assertLogs(LOGGER, 'INFO') as self.logs:
            for _ in range(4):  # what has failed comes again by halves
                steps()
        self.assertEqual(dict.fromkeys('abcd', 1), self.committed())
        return self.messages

    def test_what_the_generator_fetches_is_not_stored_twice(self):
        for in_third in self.conflict, self.failing, transaction.doom:
            for options in {'batch': 3, 'attempts': 2}, {'batch': 4}:
                messages = self.run_fetched(in_third, **options)
                self.assertEqual(1, sum(
                    'comes again' in message for message in messages))
        messages = self.run_fetched(self.conflict, attempts=3)
        self.assertIn('steps: 4 done, 0 failed, 1 skipped', messages)

    def test_what_was_fetched_before_a_commit_is_no_matter(self):
        messages = self.run_fetched(transaction.commit, batch=3)
        self.assertIn('steps: 4 done, 0 failed, 0 skipped', messages)

    def test_an_abort_of_what_the_generator_has_fetched(self):
        def abort():
            transaction.abort()
            self.root['c'] = 0  # what `store` has set
        messages = self.run_fetched(abort, batch=3)
        self.assertTrue(any('comes again' in each for each in messages))

    def test_an_error_of_the_generator_keeps_the_items_before_it(self):
        @transaction_per_item(batch=3)
        def steps():
            yield self.add('a')
            yield self.add('b')
            self.root['generator'] = 1
            raise KeyError('generator')
        with (self.assertLogs(LOGGER, 'INFO') as logs,
              self.assertRaisesRegex(KeyError, 'generator')):
            steps()
        self.assertEqual({'a': 1, 'b': 1}, self.committed())
        self.assertEqual(2, len(logs.records))
        self.assertEqual('steps: 2 done, 0 failed, 0 skipped',
                         logs.records[-1].getMessage())

    def test_returns_what_the_generator_returns(self):
        @transaction_per_item(batch=3)
        def steps(count):
            for _ in range(count):
                yield self.add('a')
            return count
        for count in range(7):
            self.assertEqual(count, steps(count))

    def test_an_exit_in_an_item(self):
        with self.assertRaises(SystemExit):
            self.run_items(*map(self.add, 'abcd'),
                           lambda: exec('raise SystemExit(3)'), self.add('e'))
        self.assertEqual(dict.fromkeys('abc', 1), self.committed())
        self.assertRegex(
            self.messages[0], r'^SystemExit\(3\) raised by item <')
        self.assertEqual('steps: 3 done, 0 failed, 2 skipped, stopped',
                         self.messages[-1])

    def test_an_exit_in_an_item_that_is_called_again(self):
        exits = [ValueError, SystemExit]
        with self.assertRaises(SystemExit):
            self.run_items(
                self.add('a'), mock.Mock(side_effect=exits), self.add('e'))
        self.assertEqual({'a': 1}, self.committed())
        self.assertEqual('steps: 1 done, 0 failed, 1 skipped, stopped',
                         self.messages[-1])

    def test_an_exit_in_the_generator(self):
        @transaction_per_item(batch=3)
        def steps():
            yield self.add('a')
            raise SystemExit(0)
        with (self.assertLogs(LOGGER, 'INFO') as logs,
              self.assertRaises(SystemExit)):
            steps()
        self.assertEqual({}, self.committed())
        self.assertEqual(
            ["SystemExit(0) raised by the generator of 'steps', so no further "
             'item is run', 'steps: 0 done, 0 failed, 1 skipped, stopped'],
            [record.getMessage() for record in logs.records])

    def test_a_signal_commits_what_was_called(self):
        with Shutdown() as shutdown:
            self.assertEqual('steps: 2 done, 0 failed, 0 skipped, stopped',
                             self.run_items(
                                 self.add('a'),
                                 lambda: (self.add('b')(), shutdown.request()),
                                 self.add('c')))
        self.assertEqual(1, self.commits)
        self.assertEqual({'a': 1, 'b': 1}, self.committed())

    def test_a_signal_before_all_were_called_again(self):
        with Shutdown() as shutdown:
            def failing():
                shutdown.request()
                raise ValueError
            self.assertEqual('steps: 0 done, 0 failed, 2 skipped, stopped',
                             self.run_items(self.add('a'), failing))
        self.assertEqual({}, self.committed())

    def test_an_error_of_the_generator_after_a_signal(self):
        @transaction_per_item(batch=3)
        def steps():
            yield self.add('a')
            shutdown.request()
            raise KeyError('generator')
        with (Shutdown() as shutdown, self.assertLogs(LOGGER, 'INFO'),
              self.assertRaisesRegex(KeyError, 'generator')):
            steps()

    def test_an_item_that_commits_itself(self):
        def item():
            self.add('x')()
            transaction.commit()
            self.add('y')()
        self.assertEqual('steps: 4 done, 1 failed, 0 skipped',
                         self.run_items(self.add('a'), item, self.failing,
                                        *map(self.add, 'bc')))
        self.assertEqual(dict.fromkeys('abcxy', 1), self.committed())
        self.assertEqual([*'axybc'], self.calls)

    def test_an_item_that_commits_itself_and_fails(self):
        def item():
            transaction.commit()
            raise ValueError
        self.assertEqual('steps: 2 done, 1 failed, 0 skipped',
                         self.run_items(self.add('a'), item, self.add('b')))
        self.assertEqual([*'ab'], self.calls)

    def test_an_item_that_aborts_the_transaction(self):
        for abort in transaction.abort, transaction.begin:
            self.calls.clear()
            self.assertEqual('steps: 3 done, 0 failed, 0 skipped',
                             self.run_items(self.add('a'), abort,
                                            self.add('b')))
            self.assertEqual([*'aab'], self.calls)
            self.assertRegex(
                self.messages[0], 'has aborted the transaction, with')
        self.assertEqual({'a': 2, 'b': 2}, self.committed())

    def test_a_generator_that_ends_the_transaction(self):
        for end, calls in ((transaction.commit, 'abcd'),
                           (transaction.abort, 'ababcd')):
            self.calls.clear()

            @transaction_per_item(batch=3)
            def steps(end=end):
                yield self.add('a')
                yield self.add('b')
                end()
                yield self.add('c')
                yield self.add('d')
            with self.assertLogs(LOGGER, 'INFO') as logs:
                steps()
            self.assertEqual('steps: 4 done, 0 failed, 0 skipped',
                             logs.records[-1].getMessage())
            self.assertEqual([*calls], self.calls)
        self.assertEqual(dict.fromkeys('abcd', 2), self.committed())

    def test_a_generator_that_ends_the_transaction_and_fails(self):
        for end, calls in ((transaction.commit, 'a'),
                           (transaction.abort, 'aa')):
            self.calls.clear()

            @transaction_per_item(batch=3)
            def steps(end=end):
                yield self.add('a')
                end()
                self.root['generator'] = True
                raise KeyError('generator')
            with (self.assertLogs(LOGGER, 'INFO') as logs,
                  self.assertRaisesRegex(KeyError, 'generator')):
                steps()
            self.assertEqual('steps: 1 done, 0 failed, 0 skipped',
                             logs.records[-1].getMessage())
            self.assertEqual([*calls], self.calls)
        self.assertEqual({'a': 2}, self.committed())

    def test_what_a_generator_changes_after_its_commit_is_not_forgotten(self):
        @transaction_per_item(batch=3)
        def steps():
            yield self.add('a')
            transaction.commit()
            DataManager(commit=OSError('disk full'))
        with (self.assertLogs(LOGGER, 'INFO') as logs,
              self.assertRaisesRegex(OSError, 'disk full')):
            steps()
        self.assertEqual('steps: 1 done, 0 failed, 0 skipped',
                         logs.records[-1].getMessage())

    def test_a_transaction_that_cannot_be_begun(self):
        with (mock.patch('transaction.begin', side_effect=OSError('lost')),
              self.assertRaisesRegex(OSError, 'lost')):
            self.run_items(self.add('a'), self.failing)
        self.assertEqual('steps: 0 done, 0 failed, 2 skipped, stopped',
                         self.messages[-1])

    def test_explicit_transactions_without_a_loop(self):
        transaction.manager.explicit = True
        self.addCleanup(setattr, transaction.manager, 'explicit', False)
        self.assertEqual('steps: 5 done, 1 failed, 0 skipped',
                         self.run_items(*map(self.add, 'ab'), self.failing,
                                        *map(self.add, 'cd'),
                                        transaction.commit))
        self.assertEqual(dict.fromkeys('abcd', 1), self.committed())

    def test_random_items_end_as_in_transactions_of_their_own(self):
        chance = random.Random(16)

        def plan():
            kinds = ['fine', 'failing', 'conflict', 'doomed', 'once', 'commit']
            return [(number, chance.choice(kinds[:chance.choice([1, 6])]))
                    for number in range(chance.randrange(12))]

        def item(number, kind, seen):
            self.add(number)()
            if kind == 'once' and number not in seen:
                seen.add(number)
                raise ConflictError
            if kind == 'conflict':
                raise ConflictError
            if kind == 'failing':
                raise ValueError
            if kind == 'doomed':
                transaction.doom()
            if kind == 'commit':
                transaction.commit()

        for _ in range(100):
            steps, ends = plan(), []
            for batch in 1, chance.randrange(2, 6):
                self.root.clear()
                transaction.commit()
                seen = set()
                ends.append((self.run_items(*(
                    functools.partial(item, number, kind, seen)
                    for number, kind in steps), batch=batch, attempts=2),
                    self.committed()))
            self.assertEqual(*ends, steps)

    def test_two_threads_with_one_object(self):
        self.root['count'] = 0
        transaction.commit()
        start = threading.Barrier(2)

        def run():
            connection, waits = self.db.open(), [start.wait]

            def count_up():
                connection.root()['count'] += 1
                if waits:  # both have read the same
                    waits.pop()(DEADLINE)

            @transaction_per_item(batch=4, attempts=1000)
            def steps():
                yield from [count_up] * 30
            try:
                steps()
            finally:
                transaction.abort()
                connection.close()
        with self.assertLogs(LOGGER, 'INFO') as logs:
            threads = [threading.Thread(target=run) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual({'count': 60}, self.committed())
        self.assertEqual(
            ['steps: 30 done, 0 failed, 0 skipped'] * 2,
            [message for message in (
                record.getMessage() for record in logs.records)
             if message.startswith('steps: ')])
        self.assertIn('WARNING', {each.levelname for each in logs.records})

    def test_sizes_that_are_none(self):
        for batch in 0, -1, 2.5, None:
            with self.assertRaisesRegex(
                    ValueError, f'at least 1, not {batch}$'):
                transaction_per_item(batch=batch)


class TotalTests(Case):

    def run_items(self, count, stderr, total, *args):
        @transaction_per_item(total=total)
        def steps(*args):
            yield from [lambda: None] * count
        with (mock.patch('sys.stderr', stderr),
              self.assertLogs(LOGGER, 'INFO') as logs):
            steps(*args)
        return [record.getMessage() for record in logs.records]

    @property
    def terminal(self):
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        return terminal

    def test_a_bar_with_an_end(self):
        for total in 2, lambda name, other: len(name) - len(other):
            terminal = self.terminal
            self.assertEqual(1, len(self.run_items(
                2, terminal, total, 'abc', 'd')))
            self.assertRegex(terminal.getvalue(), r'steps: 100%.* 2/2 \[')

    def test_no_number_after_all(self):
        terminal = self.terminal
        self.run_items(2, terminal, lambda: None)
        self.assertRegex(terminal.getvalue(), r'steps: 2 items')

    def test_lines_in_the_log_where_nobody_looks(self):
        with mock.patch.object(progress, 'INTERVAL', 0):
            first, second, end = self.run_items(2, io.StringIO(), 4)
        self.assertRegex(
            first, r'^steps: 1 of 4 items, .* a second, about 0:00:00 left '
            r'\(1 done, 0 failed, 0 skipped\)$')
        self.assertRegex(second, r'^steps: 2 of 4 items, ')
        self.assertEqual('steps: 2 done, 0 failed, 0 skipped', end)

    def test_numbers_that_are_none(self):
        for total in -1, 2.5, 'many':
            with self.assertRaisesRegex(
                    ValueError, rf'^total must be .*, not {total!r}$'):
                transaction_per_item(total=total)
            with self.assertRaisesRegex(
                    ValueError, rf'^total must be .*, not {total!r}$'):
                transaction_per_item(
                    lambda: iter(()), total=lambda total=total: total)()

    def test_an_error_of_the_callable(self):
        with self.assertRaises(ZeroDivisionError):
            transaction_per_item(lambda: iter(()), total=lambda: 1 / 0)()
