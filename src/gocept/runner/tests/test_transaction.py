import functools
import io
import logging
from unittest import mock

import transaction
from ZODB.POSException import ConflictError

from gocept.runner import appmain, once, transaction_per_item
from gocept.runner.signals import Shutdown
from gocept.runner.tests.boot.test_attempts import LOGGER, Case, DataManager

log = logging.getLogger(__name__)


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
                         "^Error in item <bound method .*failing.*> of "
                         "'steps': ValueError: no good$")
        self.assertEqual(ValueError, record.exc_info[0])

    def test_so_is_a_conflict(self):
        self.assertEqual('steps: 1 done, 0 failed, 1 skipped',
                         self.run_items(self.conflict, self.add('a')))
        self.assertEqual({'a'}, set(self.committed()))
        self.assertRegex(
            self.logs.records[0].getMessage(),
            "^Conflict error in item <bound method .*conflict.*> of 'steps': "
            'ConflictError: in the way$')

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
                yield self.add('a')
            with self.assertRaisesRegex(
                    TypeError, '^steps is a program already: put @tran'):
                transaction_per_item(steps)

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
            "^Partly committed: .* in item <function .*> of 'steps', so it is "
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
            "^The transaction of item <function .*doomed.*> of 'steps' was "
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
