import contextlib
import os
import random
import threading
import unittest
from typing import Any
from unittest import mock

import transaction
import zope.interface.verify
from transaction.interfaces import (
    NoTransaction,
    TransactionFailedError,
    TransientError,
)
from ZODB.POSException import ConflictError

from gocept.runner.boot.dryrun import dry_run
from gocept.runner.channel import (
    LineChannel,
    PipeChannel,
    SocketChannel,
    TransactionalChannel,
)
from gocept.runner.errors import (
    DeadlineExceeded,
    EndpointClosedException,
    NotCommitted,
    StillKept,
    WriteBufferFull,
)
from gocept.runner.interfaces import ITransactionalChannel
from gocept.runner.poller import Poller
from gocept.runner.signals import Shutdown
from gocept.runner.testing import TestChannel
from gocept.runner.tests.channel.test_base import Custom
from gocept.runner.tests.streams import Peer, StreamTestCase, wait_readable
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import Deadline


class Manager:
    """A data manager that fails in one of its methods."""

    def __init__(self, fails_in: str = '', key: str = 'm',
                 error: BaseException | None = None) -> None:
        self.fails_in = fails_in
        self.key = key
        self.error = error or ValueError(fails_in)
        self.called: list[str] = []

    def sortKey(self) -> str:
        return self.key

    def _call(self, name: str) -> None:
        self.called.append(name)
        if name == self.fails_in:
            raise self.error

    def __getattr__(self, name: str) -> Any:
        if name in ('abort', 'tpc_begin', 'commit', 'tpc_vote', 'tpc_finish',
                    'tpc_abort'):
            return lambda txn: self._call(name)
        raise AttributeError(name)


@contextlib.contextmanager
def failing(error: BaseException | None = None):
    """A tick that is aborted for an error."""
    try:
        yield
        raise error or ValueError('worker')
    except BaseException as caught:
        transaction.abort()
        if error is not None and caught is not error:
            raise


class TransactionTestCase(unittest.TestCase):

    def setUp(self):
        super().setUp()
        transaction.abort()
        self.addCleanup(transaction.abort)


class FakeTestCase(TransactionTestCase):
    """A channel whose other side is the test."""

    def setUp(self):
        super().setUp()
        self.other = TestChannel(buffering='line', encoding='utf-8')
        self.channel = TransactionalChannel(self.other)

    def read_all(self):
        return [*iter(self.channel.read, '')]


class ReadTests(FakeTestCase):

    def test_it_has_an_interface(self):
        zope.interface.verify.verifyObject(
            ITransactionalChannel, self.channel)

    def test_what_was_read_comes_again_after_an_abort(self):
        self.other.put('1\n2\n')
        self.assertEqual(['1\n', '2\n'], self.read_all())
        transaction.abort()
        self.other.put('3\n')
        self.assertTrue(self.channel.unread)
        self.assertEqual(['1\n', '2\n', '3\n'], self.read_all())

    def test_what_was_read_is_consumed_by_a_commit(self):
        self.other.put('1\n2\n')
        self.read_all()
        transaction.commit()
        transaction.abort()
        self.assertEqual([], self.read_all())
        self.assertFalse(self.channel.unread)

    def test_a_line_belongs_to_the_transaction_that_fetched_it(self):
        self.other.put('1\n2\n3\n')
        self.assertEqual('1\n', self.channel.read())
        transaction.commit()
        self.assertEqual('2\n', self.channel.read())
        transaction.abort()
        self.assertEqual(['2\n', '3\n'], self.read_all())

    def test_begin_gives_back_what_the_transaction_before_has_read(self):
        self.other.put('1\n')
        self.read_all()
        transaction.begin()
        self.assertEqual(['1\n'], self.read_all())

    def test_bytes_come_again(self):
        other = TestChannel()
        channel = TransactionalChannel(other)
        other.put(b'abc')
        self.assertEqual(b'abc', channel.read())
        transaction.abort()
        other.put(b'def')
        self.assertEqual(b'abc', channel.read())
        self.assertEqual(b'def', channel.read())

    def test_pieces_of_a_long_line_stay_pieces(self):
        other = TestChannel(buffering='line', limit=3)
        channel = TransactionalChannel(other)
        other.put(b'abcdefg\n')
        for _ in range(2):
            transaction.abort()
            pieces = []
            while piece := channel.read():
                pieces.append((piece, channel.partial))
            self.assertEqual(
                [(b'abc', True), (b'def', True), (b'g\n', False)], pieces)

    def test_the_last_line_without_a_newline_is_no_piece(self):
        self.other.put('end')
        self.other.put_eof()
        for _ in range(2):
            transaction.abort()
            self.assertEqual('end', self.channel.read())
            self.assertFalse(self.channel.partial)
            with self.assertRaises(EndpointClosedException):
                self.channel.read()

    def test_what_read_until_has_read_comes_again(self):
        self.other.put('1\nname> 2\n')
        for _ in range(2):
            self.assertEqual(
                ('1\nname', '> '), self.channel.read_until('> '))
            transaction.abort()
        self.channel.read_until('> ')
        transaction.commit()
        self.assertEqual(['2\n'], self.read_all())

    def test_lines_are_made_of_what_read_until_has_read(self):
        self.other.put('1\nname> 2\n3\n')
        self.channel.read_until('> ')
        self.assertEqual(['2\n', '3\n'], self.read_all())
        transaction.abort()
        self.assertEqual(['1\n', 'name> 2\n', '3\n'], self.read_all())

    def test_read_until_reads_what_was_given_back(self):
        self.other.put('1\n2\n')
        self.read_all()
        transaction.abort()
        self.assertEqual(('1\n', '2'), self.channel.read_until('2'))

    def test_a_read_until_that_does_not_find_leaves_all(self):
        self.other.put('1\n')
        self.read_all()
        transaction.abort()
        with self.assertRaises(DeadlineExceeded):
            self.channel.read_until('x', timeout=0)
        transaction.commit()
        self.assertEqual(['1\n'], self.read_all())

    def test_threads_have_transactions_of_their_own(self):
        self.other.put('1\n2\n')
        self.assertEqual('1\n', self.channel.read())
        read = []

        def other_thread():
            read.append(self.channel.read())
            transaction.commit()
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
        transaction.abort()
        self.assertEqual(['2\n'], read)
        self.assertEqual(['1\n'], self.read_all())

    def test_outside_of_a_transaction_nothing_is_given_back(self):
        transaction.manager.manager.explicit = True
        self.addCleanup(setattr, transaction.manager.manager, 'explicit',
                        False)
        self.other.put('1\n2\n')
        self.assertEqual('1\n', self.channel.read())
        self.channel.write('sent\n')
        self.assertEqual('sent\n', self.other.get())
        self.channel.write_eof()
        with self.assertRaises(NoTransaction):
            transaction.abort()
        with self.assertRaises(ValueError), transaction.manager:
            self.assertEqual('2\n', self.channel.read())
            raise ValueError
        self.assertEqual(['2\n'], self.read_all())
        with self.assertRaises(EndpointClosedException):
            self.channel.write('more')

    def test_a_transaction_that_has_failed_fetches_nothing(self):
        self.other.put('1\n')
        transaction.get().join(Manager('tpc_vote'))
        with self.assertRaises(ValueError):
            transaction.commit()
        with self.assertRaises(TransactionFailedError):
            self.channel.read()
        transaction.abort()
        self.assertEqual(['1\n'], self.read_all())

    def test_hooks_after_a_commit_are_outside_of_it(self):
        def hook(committed):
            self.channel.write('after\n')
        self.channel.write('in\n')
        transaction.get().addAfterCommitHook(hook)
        transaction.commit()
        self.assertEqual('in\nafter\n', self.other.get())

    def test_hooks_after_a_commit_do_not_undo_it(self):
        self.other.put('1\n')
        self.read_all()
        transaction.get().addAfterCommitHook(lambda committed: None)
        transaction.commit()
        self.assertEqual([], self.read_all())

    def test_it_closes_the_other_channel_and_counts_what_is_left(self):
        self.other.put('1\n2\n')
        self.read_all()
        transaction.abort()
        with self.assertLogs('gocept.runner.channel', 'WARNING') as logs:
            self.channel.close()
        self.assertIn('with 2 items that were given back', logs.output[0])
        self.assertTrue(self.other.closed)
        self.assertTrue(self.channel.closed)
        self.channel.close()
        self.assertEqual('1\n', self.channel.read())

    def test_it_takes_no_transactional_channel(self):
        with self.assertRaisesRegex(ValueError, 'transactional already'):
            TransactionalChannel(self.channel)
        with self.assertRaisesRegex(ValueError, 'of the LineChannel'):
            LineChannel(self.channel)

    def test_redeliveries_are_checked(self):
        for wrong in (-1, 'many', 1.5):
            with self.assertRaisesRegex(ValueError, 'redeliveries must be'):
                TransactionalChannel(self.other, redeliveries=wrong)

    def test_a_line_channel_can_be_transactional(self):
        other = TestChannel()
        channel = TransactionalChannel(LineChannel(other, encoding='utf-8'))
        other.put(b'1\n2\n')
        self.assertEqual(['1\n', '2\n'], [*iter(channel.read, '')])
        transaction.abort()
        self.assertEqual(['1\n', '2\n'], [*iter(channel.read, '')])
        channel.write('\xe4')
        transaction.commit()
        self.assertEqual(b'\xc3\xa4', other.get())


class SavepointTests(FakeTestCase):

    def test_a_rollback_gives_back_what_came_after_the_savepoint(self):
        self.other.put('1\n2\n3\n')
        self.channel.read()
        self.channel.write('a\n')
        savepoint = transaction.savepoint()
        self.channel.read()
        self.channel.write('b\n')
        savepoint.rollback()
        self.assertEqual('2\n', self.channel.read())
        self.channel.write('c\n')
        transaction.commit()
        self.assertEqual('a\nc\n', self.other.get())
        self.assertEqual(['3\n'], self.read_all())

    def test_a_rollback_to_before_the_first_fetch_gives_back_all(self):
        self.other.put('1\n')
        savepoint = transaction.savepoint()
        self.channel.read()
        self.channel.write('a\n')
        savepoint.rollback()
        self.assertEqual('1\n', self.channel.read())
        savepoint.rollback()
        self.channel.write('b\n')
        self.assertEqual('1\n', self.channel.read())
        transaction.commit()
        self.assertEqual('b\n', self.other.get())
        self.assertEqual([], self.read_all())

    def test_a_rollback_forgets_the_end_that_was_written(self):
        self.channel.write('a')
        savepoint = transaction.savepoint()
        self.channel.write_eof()
        with self.assertRaises(EndpointClosedException):
            self.channel.write('b')
        savepoint.rollback()
        self.channel.write('c')
        transaction.commit()
        self.assertEqual('ac', self.other.get())

    def test_an_abort_after_a_rollback_gives_back_in_order(self):
        self.other.put('1\n2\n')
        self.channel.read()
        savepoint = transaction.savepoint()
        self.channel.read()
        savepoint.rollback()
        transaction.abort()
        self.assertEqual(['1\n', '2\n'], self.read_all())


class WriteTests(FakeTestCase):

    def test_what_was_written_leaves_with_the_commit(self):
        self.channel.write('a', 'b')
        self.channel.write(b'c')
        self.assertEqual('', self.other.get())
        self.assertEqual(3, self.channel.kept)
        transaction.commit()
        self.assertEqual('abc', self.other.get())
        self.assertEqual(0, self.channel.kept)

    def test_an_abort_forgets_it(self):
        self.channel.write('a')
        transaction.abort()
        transaction.commit()
        self.assertEqual('', self.other.get())
        self.assertEqual(0, self.channel.kept)

    def test_a_doomed_transaction_sends_nothing(self):
        self.other.put('1\n')
        self.read_all()
        transaction.doom()
        self.channel.write('a')
        transaction.abort()
        self.assertEqual('', self.other.get())
        self.assertEqual(['1\n'], self.read_all())

    def test_the_end_comes_after_what_was_written(self):
        self.channel.write('a')
        self.channel.write_eof()
        transaction.abort()
        self.channel.write('b')
        self.channel.write_eof()
        transaction.commit()
        self.assertEqual('b', self.other.get())
        with self.assertRaises(EndpointClosedException):
            self.other.write('more')

    def test_what_is_written_may_be_changed_afterwards(self):
        channel = TransactionalChannel(other := TestChannel())
        data = bytearray(b'abc')
        channel.write(data)
        data[:] = b'xyz'
        transaction.commit()
        self.assertEqual(b'abc', other.get())

    def test_mistakes_are_told_at_once(self):
        channel = TransactionalChannel(TestChannel())
        with self.assertRaisesRegex(TypeError, 'takes bytes'):
            channel.write('text')
        channel = TransactionalChannel(TestChannel(encoding='ascii'))
        with self.assertRaises(UnicodeError):
            channel.write('\xe4')

    def test_an_encoding_with_a_mark_survives_an_abort(self):
        channel = TransactionalChannel(other := TestChannel(
            encoding='utf-16'))
        channel.write('a')
        transaction.abort()
        channel.write('b')
        transaction.commit()
        self.assertEqual('b', other.get())

    def test_there_is_a_high_water_mark(self):
        self.channel.write('x' * 2 ** 20)
        self.channel.write('x')
        with self.assertRaisesRegex(WriteBufferFull, 'until the transaction'):
            self.channel.write('y')
        transaction.commit()
        self.assertEqual('x' * (2 ** 20 + 1), self.other.get())

    def test_to_wait_for_an_answer_to_what_is_kept_is_an_error(self):
        self.channel.write('question\n')
        for wait in (lambda: self.channel.read_until('\n', DEADLINE),
                     lambda: self.channel.flush(DEADLINE)):
            with self.assertRaisesRegex(
                    StillKept, '9 bytes are kept until the transaction is '
                    'committed'):
                wait()
        transaction.commit()
        self.channel.flush(DEADLINE)
        self.other.put('answer\n')
        self.assertEqual(('answer', '\n'), self.channel.read_until('\n'))

    def test_what_has_come_before_can_be_read_while_something_is_kept(self):
        self.other.put('1\n')
        self.channel.write('question\n')
        self.assertEqual(('1', '\n'), self.channel.read_until('\n'))


class PhaseTests(FakeTestCase):
    """What happens if another data manager fails."""

    def commit_with(self, fails_in, key):
        self.other.put('1\n')
        self.read_all()
        self.channel.write('a\n')
        manager = Manager(fails_in, key)
        transaction.get().join(manager)
        with self.assertRaisesRegex(ValueError, fails_in):
            transaction.commit()
        transaction.abort()
        return manager

    def test_a_failure_in_the_first_phase_gives_back(self):
        for key in ('', 'm', '\U0010ffff~'):
            for fails_in in ('tpc_begin', 'commit', 'tpc_vote'):
                with self.subTest(key=key, fails_in=fails_in):
                    self.commit_with(fails_in, key)
                    self.assertEqual('', self.other.get())
                    self.assertEqual('1\n', self.channel.read())
                    transaction.commit()

    def test_a_failure_in_the_second_phase_does_not(self):
        for key in ('0', 'm', '\U0010ffff~'):
            with self.subTest(key=key):
                self.commit_with('tpc_finish', key)
                self.assertEqual('a\n', self.other.get())
                self.assertEqual('', self.channel.read())

    def test_it_is_sent_after_others_have_finished(self):
        seen = []
        manager = Manager(key='~~~')
        self.other.write = lambda *data: seen.append([*manager.called])
        transaction.get().join(manager)
        self.channel.write('a')
        transaction.commit()
        self.assertIn('tpc_finish', seen[0])

    def test_an_interrupt_of_the_second_phase_is_made_up_for(self):
        others = [self.other, TestChannel()]
        channels = [self.channel, TransactionalChannel(others[1])]
        write = self.other.write

        def interrupted(*data):
            write(*data)
            raise KeyboardInterrupt
        self.other.write = interrupted
        for channel in channels:
            channel.write(b'a')
        with self.assertRaises(KeyboardInterrupt):
            transaction.commit()
        transaction.abort()
        self.assertEqual(['a', b'a'], [other.get() for other in others])

    def test_what_cannot_be_sent_is_an_error_with_the_count(self):
        for error, message in (
                (EndpointClosedException('gone'),
                 r'gone\. A transaction was committed, but 4 bytes '
                 r'\(2 writes\) of it were not sent'),
                (OSError('disk full'), 'disk full; the bytes are kept'),
                (TypeError('bug'), '4 bytes of a committed')):
            with self.subTest(error=error):
                def fail(*data, error=error):
                    raise error
                self.other.write = fail
                self.channel.write('abc')
                self.channel.write('d')
                with self.assertLogs('gocept.runner.channel', 'ERROR') as logs:
                    transaction.commit()
                self.assertRegex(logs.output[0], message)


class RedeliveryTests(FakeTestCase):

    def fail_with(self, error=None, read=None):
        """One transaction that fetches all it can, and fails."""
        with failing(error):
            return (read or self.read_all)()

    def test_an_item_that_fails_alone_is_skipped_in_the_end(self):
        self.other.put('1\n')
        for _ in range(5):
            self.assertEqual(['1\n'], self.fail_with())
        self.other.put('2\n')
        self.assertEqual(0, self.channel.skipped)
        with self.assertLogs('gocept.runner.channel', 'ERROR') as logs:
            self.assertEqual(['1\n'], self.fail_with())
        self.assertIn(r"(1 skipped by now): '1\n'", logs.output[0])
        self.assertEqual(1, self.channel.skipped)
        self.assertEqual(['2\n'], self.read_all())

    def test_of_many_items_only_the_one_to_blame_is_skipped(self):
        self.other.put(''.join(f'{n}\n' for n in range(100)))
        committed = []
        with self.assertLogs('gocept.runner.channel', 'ERROR') as logs:
            for _ in range(200):
                try:
                    lines = self.read_all()
                    if '50\n' in lines:
                        raise ValueError('poison')
                    transaction.commit()
                    committed += lines
                except ValueError:
                    transaction.abort()
        self.assertEqual(
            [f'{n}\n' for n in range(100) if n != 50], committed)
        self.assertEqual(1, len(logs.output))
        self.assertEqual(1, self.channel.skipped)

    def test_an_item_to_blame_costs_few_transactions(self):
        self.other.put(''.join(f'{n}\n' for n in range(1000)))
        sizes, committed = [], []
        with self.assertLogs('gocept.runner.channel', 'ERROR'):
            while lines := self.read_all():
                sizes.append(len(lines))
                try:
                    if '700\n' in lines:
                        raise ValueError('poison')
                    transaction.commit()
                    committed += lines
                except ValueError:
                    transaction.abort()
        self.assertEqual(
            [f'{n}\n' for n in range(1000) if n != 700], committed)
        self.assertEqual([1000, 500, 500, 250, 125, 125], sizes[:6])
        # All, two halves of each half, and five more of that item.
        self.assertLessEqual(len(sizes), 1 + 2 * 10 + 5)

    def test_what_has_failed_comes_alone(self):
        self.other.put('1\n2\n')
        self.fail_with()
        self.other.put('3\n')
        for line in ('1\n', '2\n'):
            self.assertEqual([line], self.read_all())
            transaction.commit()
        self.assertEqual(['3\n'], self.read_all())

    def test_it_comes_alone_among_channels(self):
        second = TransactionalChannel(other := TestChannel())
        self.other.put('1\n')
        self.fail_with()
        other.put(b'x')
        self.assertEqual(['1\n'], self.read_all())
        self.assertEqual(b'', second.read())
        transaction.commit()
        self.assertEqual(b'x', second.read())

    def test_a_conflict_does_not_count(self):
        self.other.put('1\n2\n')
        for error in (ConflictError(), TransientError()):
            for _ in range(20):
                self.assertEqual(['1\n', '2\n'], self.fail_with(error))
        self.assertEqual(0, self.channel.skipped)

    def test_a_data_manager_may_say_that_an_error_passes(self):
        self.other.put('1\n')
        manager = Manager()
        manager.should_retry = lambda error: True
        for _ in range(20):
            with failing():
                transaction.get().join(manager)
                self.read_all()
        self.assertEqual(0, self.channel.skipped)

    def test_a_full_buffer_does_not_count(self):
        self.other.put('1\n2\n')
        self.assertEqual(['1\n', '2\n'], self.fail_with(WriteBufferFull()))
        for _ in range(20):
            self.assertEqual(['1\n'], self.fail_with(WriteBufferFull()))
        self.assertEqual(0, self.channel.skipped)

    def test_a_full_disk_does_not_count(self):
        self.other.put('1\n')
        for _ in range(20):
            self.assertEqual(['1\n'], self.read_all())
            transaction.get().join(Manager('tpc_vote', error=OSError()))
            with self.assertRaises(OSError):
                transaction.commit()
            transaction.abort()
        self.assertEqual(0, self.channel.skipped)

    def test_an_error_of_the_commit_counts(self):
        self.other.put('1\n')
        for _ in range(6):
            self.assertEqual(['1\n'], self.read_all())
            transaction.get().join(Manager('commit'))
            with self.assertRaises(ValueError), self.silence():
                transaction.commit()
            transaction.abort()
        self.assertEqual(1, self.channel.skipped)

    def silence(self):
        return self.assertLogs('gocept.runner.channel') \
            if self.channel._returned else contextlib.nullcontext()

    def test_an_abort_that_is_wanted_does_not_count(self):
        self.other.put('1\n')
        for _ in range(20):
            self.assertEqual(['1\n'], self.read_all())
            transaction.abort()
        for error in (SystemExit(), KeyboardInterrupt(), NotCommitted()):
            for _ in range(20):
                self.assertEqual(['1\n'], self.fail_with(error))
        self.assertEqual(0, self.channel.skipped)

    def test_there_may_be_no_limit(self):
        self.channel.redeliveries = None
        self.other.put('1\n')
        for _ in range(100):
            self.assertEqual(['1\n'], self.fail_with())

    def test_there_may_be_none(self):
        channel = TransactionalChannel(self.other, redeliveries=0)
        self.other.put('1\n')
        with self.assertLogs('gocept.runner.channel', 'ERROR'), failing():
            channel.read()
        self.assertEqual('', channel.read())

    def test_a_rollback_counts(self):
        self.other.put('1\n')
        with self.assertLogs('gocept.runner.channel', 'ERROR'):
            for _ in range(6):
                savepoint = transaction.savepoint()
                try:
                    self.assertEqual(['1\n'], self.read_all())
                    raise ValueError
                except ValueError:
                    savepoint.rollback()
                transaction.commit()
        self.assertEqual([], self.read_all())

    def test_what_read_until_has_read_is_one_item(self):
        self.other.put('1\n2\n3\n')

        def read():
            return [self.channel.read_until('\n')[0] for _ in range(2)]
        for _ in range(5):
            self.assertEqual(['1', '2'], self.fail_with(read=read))
        with self.assertLogs('gocept.runner.channel', 'ERROR') as logs:
            self.assertEqual(['1', '2'], self.fail_with(read=read))
        self.assertEqual(2, len(logs.output))
        self.assertEqual(['3\n'], self.read_all())


class DryRunTests(FakeTestCase):

    def test_what_was_fetched_counts_and_nothing_is_sent(self):
        self.other.put('1\n')
        with dry_run():
            self.read_all()
            self.channel.write('a')
            transaction.commit()
        self.assertEqual([], self.read_all())
        self.assertEqual('', self.other.get())

    def test_an_error_gives_back(self):
        self.other.put('1\n')
        with dry_run(), failing():
            self.read_all()
        self.assertEqual(['1\n'], self.read_all())


class DescriptorTests(TransactionTestCase, StreamTestCase):

    def open(self, open_streams, **options):
        channel, peer = open_streams(**options)
        return TransactionalChannel(channel), peer

    def test_a_dead_reader_is_known_at_the_vote(self):
        for open_streams in (self.open_pipes, self.open_sockets,
                             self.open_pty):
            with self.subTest(open_streams=open_streams.__name__):
                channel, peer = self.open(open_streams)
                channel.write(b'a')
                peer.close()
                with self.assertRaises(EndpointClosedException):
                    transaction.commit()
                transaction.abort()
                with self.assertRaises(EndpointClosedException):
                    channel.write(b'a')
                transaction.commit()

    def test_a_closed_channel_is_known_at_the_vote(self):
        channel, _ = self.open(self.open_pipes)
        channel.write(b'a')
        channel.close()
        with self.assertRaises(EndpointClosedException):
            transaction.commit()

    def test_a_channel_that_cannot_be_written_says_so(self):
        faucet, sink = os.pipe()
        self.addCleanup(os.close, sink)
        with TransactionalChannel(PipeChannel(faucet)) as channel:
            with self.assertRaises(NotImplementedError):
                channel.write(b'a')
        faucet, sink = os.pipe()
        self.addCleanup(os.close, faucet)
        with TransactionalChannel(PipeChannel(sink=sink)) as channel:
            with self.assertRaises(NotImplementedError):
                channel.read()

    def test_a_reader_that_died_after_the_vote_is_an_error(self):
        channel, peer = self.open(self.open_pipes)
        channel.write(b'abc')

        class Late(Manager):
            def tpc_finish(self, txn):
                peer.close()
        transaction.get().join(Late(key='~'))
        with self.assertLogs('gocept.runner.channel', 'ERROR') as logs:
            transaction.commit()
        self.assertIn('3 bytes (1 writes) of it were not sent',
                      logs.output[0])

    def test_a_reader_that_died_later_is_an_error(self):
        size = 2 ** 20  # more than the system takes
        for end, message in (
                (lambda channel, peer: peer.close(), 'bytes could not be sent'
                 ), (lambda channel, peer: channel.close(), 'bytes unsent')):
            for open_streams in self.open_pipes, self.open_sockets:
                channel, peer = self.open(open_streams)
                channel.write(b'a' * size)
                transaction.commit()
                self.assertTrue(channel.kept)
                with self.assertLogs('gocept.runner.channel', 'ERROR') as logs:
                    end(channel, peer)
                    channel.send_kept()
                self.assertIn(message, logs.output[0])

    def test_all_that_was_accepted_is_sent(self):
        channel, peer = self.open(self.open_pipes, high_water=10)
        other = channel._channel
        channel.write(b'a' * 8)
        other.write(b'b' * 2 ** 17)  # more than the pipe takes
        transaction.commit()
        self.start(channel.flush, DEADLINE)
        self.assertEqual(b'b' * 2 ** 17 + b'a' * 8,
                         peer.receive(2 ** 17 + 8))

    def test_what_others_keep_counts(self):
        channel, _peer = self.open(self.open_sockets, high_water=10)
        self.assertEqual(10, channel.high_water)
        channel._channel.write(b'b' * 2 ** 20)
        with self.assertRaises(WriteBufferFull):
            channel.write(b'a')

    def test_it_waits_for_what_was_given_back_no_longer(self):
        channel, peer = self.open(self.open_pipes, buffering='line')
        peer.send(b'1\n')
        self.assertEqual((b'1', b'\n'),
                         channel.read_until(b'\n', timeout=DEADLINE))
        transaction.abort()
        self.assertEqual((b'1', b'\n'),
                         channel.read_until(b'\n', timeout=DEADLINE))


class PollerTests(TransactionTestCase, StreamTestCase):

    def setUp(self):
        super().setUp()
        self.poller = Poller()
        self.streams.append(self.poller)

    def open(self, **options):
        channel, peer = self.open_pipes(
            buffering='line', encoding='utf-8', **options)
        channel = TransactionalChannel(channel)
        self.poller.register(channel)
        return channel, peer

    def poll(self, timeout=DEADLINE):
        return [data for data, _ in self.poller.poll(timeout)]

    def test_lines_and_the_end_come_again_in_order(self):
        _, peer = self.open()
        peer.send(b'1\n2')
        self.assertEqual(['1\n'], self.poll())
        peer.send(b'\n3')
        peer.close()
        lines = self.poll()
        while '' not in lines:
            lines += self.poll()
        self.assertEqual(['2\n', '3', ''], lines)
        self.assertEqual([], self.poll(0))
        for _ in range(3):
            transaction.abort()
            self.assertEqual(['1\n', '2\n', '3', ''], self.poll())
        transaction.commit()
        transaction.abort()
        self.assertEqual([], self.poll(0))
        self.assertFalse(self.poller._watches)

    def test_what_comes_later_comes_later(self):
        channel, peer = self.open()
        old, old_peer = self.open()
        old_peer.send(b'old\n')
        self.poller.poll(DEADLINE)
        peer.send(b'new\n')
        transaction.abort()
        self.assertEqual([('old\n', old), ('new\n', channel)],
                         self.poller.poll(DEADLINE))

    def test_channels_keep_their_order(self):
        pairs = [self.open() for _ in range(5)]
        order = [3, 1, 4, 0, 2]
        for number in order:
            pairs[number][1].send(b'%d\n' % number)
            self.poll()
        expected = [(f'{number}\n', pairs[number][0]) for number in order]
        for _ in range(3):
            transaction.abort()
            self.assertEqual(expected, self.poller.poll(0))

    def test_other_sources_are_not_repeated(self):
        self.open()[1].send(b'1\n')
        plain, peer = self.open_pipes()
        self.poller.register(plain)
        peer.send(b'plain')
        self.assertEqual({'1\n', b'plain'}, {*self.poll()})
        transaction.abort()
        self.assertEqual(['1\n'], self.poll(0))

    def test_what_was_given_back_is_news_once(self):
        _channel, peer = self.open()
        peer.send(b'1\n')
        self.assertTrue(self.poller.pause(DEADLINE))
        self.assertEqual(['1\n'], self.poll(0))
        transaction.abort()
        self.assertTrue(self.poller.pause(DEADLINE))
        self.assertFalse(self.poller.pause(0))
        self.assertEqual(['1\n'], self.poll(0))
        transaction.commit()
        self.assertFalse(self.poller.pause(0))
        peer.send(b'2\n')
        self.assertTrue(self.poller.pause(DEADLINE))

    def test_it_does_not_shorten_the_pause_after_errors(self):
        _, peer = self.open()
        peer.send(b'1\n')
        self.poll()
        transaction.abort()
        deadline = Deadline(0.01)
        with Shutdown() as shutdown:
            shutdown.wait(0.01, self.poller)
        self.assertTrue(deadline.passed)
        self.assertEqual(['1\n'], self.poll(0))

    def test_a_poll_does_not_wait_for_ever_for_an_answer(self):
        channel, peer = self.open()
        channel.write('question\n')
        with self.assertRaisesRegex(StillKept, '9 bytes are kept'):
            self.poller.poll()
        self.assertEqual([], self.poll(0))
        transaction.commit()
        peer.send(b'answer\n')
        self.assertEqual(['answer\n'], self.poll(None))
        self.poller.unregister(channel)
        self.assertFalse(self.poller._transactional)

    def test_a_callback_is_called_again(self):
        channel, peer = self.open_pipes(buffering='line')
        channel = TransactionalChannel(channel)
        called = []
        self.poller.register(channel, lambda *pair: called.append(pair))
        peer.send(b'1\n')
        peer.close()
        while (b'', channel) not in called:
            self.poller.poll(0)
        transaction.abort()
        self.poller.poll(0)
        self.assertEqual(
            [(b'1\n', channel), (b'', channel)] * 2, called)

    def test_a_direct_read_and_a_poll_share_what_was_given_back(self):
        channel, peer = self.open()
        peer.send(b'1\n2\n')
        self.assertEqual(['1\n', '2\n'], self.poll())
        transaction.abort()
        self.assertTrue(self.poller.pause(DEADLINE))
        self.assertEqual('1\n', channel.read())
        self.assertTrue(self.poller.pause(DEADLINE))
        self.assertEqual(['2\n'], self.poll(0))

    def test_what_has_failed_comes_alone(self):
        _, peer = self.open()
        _other, other_peer = self.open()
        peer.send(b'1\n2\n')
        peer.close()
        lines = []
        with failing():
            while '' not in lines:
                lines += self.poll()
        other_peer.send(b'x\n')
        for expected in ['1\n', '2\n'], ['']:
            self.assertEqual(expected, self.poll())
            self.assertEqual([], self.poll(0))
            transaction.commit()
            self.assertTrue(self.poller.pause(DEADLINE))
        self.assertEqual(['x\n'], self.poll())

    def test_an_end_that_always_fails_is_skipped(self):
        _, peer = self.open()
        peer.close()
        for _ in range(5):
            with failing():
                self.assertEqual([''], self.poll())
        with self.assertLogs('gocept.runner.channel', 'ERROR') as logs:
            with failing():
                self.assertEqual([''], self.poll())
        self.assertIn('the end', logs.output[0])
        self.assertEqual([], self.poll(0))
        self.assertFalse(self.poller._watches)

    def test_a_poll_that_is_interrupted_repeats_nothing(self):
        channel, peer = self.open()
        plain, plain_peer = self.open_pipes()

        def interrupt(*pair):
            raise SystemExit
        self.poller.register(plain)
        # Its callback is called when those before it were collected.
        other, other_peer = self.open_pipes()
        self.poller.register(other, interrupt)
        for each in (peer, plain_peer, other_peer):
            each.send(b'1\n')
        with self.assertRaises(SystemExit):
            while True:
                self.poller.poll(DEADLINE)
        transaction.commit()
        transaction.begin()
        seen = []
        while len(seen) < 2:
            seen += self.poller.poll(DEADLINE)
        self.assertCountEqual([('1\n', channel), (b'1\n', plain)], seen)
        transaction.abort()
        self.assertEqual([('1\n', channel)], self.poller.poll(0))

    def test_a_callback_that_is_interrupted_gets_the_rest_later(self):
        channel, peer = self.open()
        seen = []

        def interrupted(line, source):
            seen.append(line)
            if line == '2\n':
                raise SystemExit
        self.poller.register(channel, interrupted)
        peer.send(b'0\n')
        self.poller.poll(0)
        savepoint = transaction.savepoint()
        peer.send(b'1\n2\n3\n')
        with self.assertRaises(SystemExit):
            self.poller.poll(DEADLINE)
        self.assertEqual(['0\n', '1\n', '2\n'], seen)
        self.poller.poll(0)
        self.assertEqual(['0\n', '1\n', '2\n', '3\n'], seen)
        savepoint.rollback()
        seen.clear()
        with self.assertRaises(SystemExit):
            self.poller.poll(0)
        transaction.commit()
        self.poller.poll(0)
        self.assertEqual(['1\n', '2\n', '3\n'], seen)

    def test_a_transaction_that_has_failed_polls_nothing(self):
        _channel, peer = self.open()
        peer.send(b'1\n')
        transaction.get().join(Manager('commit'))
        with self.assertRaises(ValueError):
            transaction.commit()
        with self.assertRaises(TransactionFailedError):
            self.poller.poll(DEADLINE)
        transaction.abort()
        self.assertEqual(['1\n'], self.poll())

    def test_a_custom_channel_that_fails_ends(self):
        class Broken(Custom):
            def get_fd(self):
                return fd

            def _read(self):
                raise ValueError('broken')
        fd, sink = os.pipe()
        os.close(sink)
        self.addCleanup(os.close, fd)
        channel = TransactionalChannel(Broken())
        self.poller.register(channel)
        with self.assertLogs('gocept.runner.channel', 'ERROR'):
            self.assertEqual([b''], self.poll())
        transaction.abort()
        self.assertEqual([b''], self.poll(0))

    def test_a_channel_may_be_registered_in_each_transaction(self):
        channel, peer = self.open()
        peer.send(b'1\n')
        peer.close()
        seen = []
        while '' not in seen:
            self.poller.register(channel)
            seen += self.poll()
        transaction.abort()
        self.poller.register(channel)
        self.assertEqual(['1\n', ''], self.poll())
        self.poller.register(channel)
        self.assertEqual([], self.poll(0))

    def test_a_channel_that_is_unregistered_comes_back_with_its_rest(self):
        channel, peer = self.open()
        peer.send(b'1\n')
        self.assertEqual(['1\n'], self.poll())
        self.poller.unregister(channel)
        transaction.abort()
        self.assertEqual([], self.poll(0))
        self.poller.register(channel)
        self.assertEqual(['1\n'], self.poll())

    def test_the_end_comes_once_in_a_transaction(self):
        channel, peer = self.open()
        peer.send(b'1\n')
        peer.close()
        seen = []
        while '' not in seen:
            seen += self.poll()
        self.poller.unregister(channel)
        self.poller.register(channel)
        self.assertEqual([], self.poll(0))
        channel.close()
        self.assertEqual([], self.poll(0))
        transaction.abort()
        self.assertEqual(['1\n', ''], self.poll())
        transaction.commit()
        self.assertEqual([], self.poll(0))
        self.assertFalse(self.poller._watches)

    def test_what_is_given_back_to_a_closed_channel_is_counted(self):
        channel, peer = self.open_pipes(buffering='line')
        channel = TransactionalChannel(channel)
        peer.send(b'1\n')
        wait_readable(channel)
        self.assertEqual(b'1\n', channel.read())
        channel.close()
        with self.assertLogs('gocept.runner.channel', 'WARNING') as logs:
            transaction.abort()
        self.assertIn('1 items were given back', logs.output[0])
        self.assertEqual(b'1\n', channel.read())

    def test_a_channel_closed_meanwhile_gives_all(self):
        channel, peer = self.open()
        peer.send(b'1\n')
        self.assertEqual(['1\n'], self.poll())
        channel.close()
        transaction.abort()
        for _ in range(2):
            self.assertEqual(['1\n', ''], self.poll())
            transaction.abort()
        self.assertEqual(['1\n', ''], self.poll())
        transaction.commit()
        self.assertEqual([], self.poll(0))

    def test_explicit_mode_outside_of_a_transaction(self):
        transaction.manager.manager.explicit = True
        self.addCleanup(setattr, transaction.manager.manager, 'explicit',
                        False)
        _channel, peer = self.open()
        peer.send(b'1\n')
        peer.close()
        seen = []
        while '' not in seen:
            seen += self.poll()
        self.assertEqual(['1\n', ''], seen)
        self.assertFalse(self.poller._watches)
        transaction.manager.manager.explicit = False

    def test_a_socket(self):
        channel, peer = self.open_sockets(buffering='line')
        self.assertIsInstance(channel, SocketChannel)
        channel = TransactionalChannel(channel)
        self.poller.register(channel)
        peer.send(b'1\n')
        self.assertEqual([b'1\n'], self.poll())
        channel.write(b'2\n')
        transaction.abort()
        self.assertEqual([b'1\n'], self.poll())
        channel.write(b'3\n')
        transaction.commit()
        self.assertEqual(b'3\n', peer.receive(2))


class RandomTests(TransactionTestCase, StreamTestCase):
    """Whatever is done: each line once and in order, to who commits."""

    def setUp(self):
        super().setUp()
        self.poller = Poller()
        self.streams.append(self.poller)

    def run_randomly(self, seed):
        self.random = random.Random(seed)
        self.channels = {}
        self.peers = []
        for _ in range(2):
            channel, peer = self.open_pipes(
                buffering='line', encoding='utf-8')
            channel = TransactionalChannel(channel, redeliveries=None)
            self.poller.register(channel)
            self.channels[channel] = []
            self.peers.append((peer, []))
        self.fetched = []  # in this transaction
        self.written = {channel: [] for channel in self.channels}
        self.sent = dict.fromkeys(self.channels, '')
        actions = [self.say, self.poll, self.poll, self.read, self.read_until,
                   self.write, self.commit, self.abort, self.break_off,
                   self.pause, self.roll_back]
        for _ in range(60):
            self.random.choice(actions)()
        self.abort()
        for peer, _ in self.peers:
            peer.close()
        ended = set()
        while len(ended) < 2:
            for line, channel in self.poller.poll(DEADLINE):
                self.fetched.append((channel, line))
                if not line:
                    ended.add(channel)
            self.commit()

    def say(self):
        peer, said = self.random.choice(self.peers)
        text = ''.join(self.random.choice('ab\n')
                       for _ in range(self.random.randrange(6)))
        said.append(text)
        peer.send(text.encode())

    def note(self, channel, line):
        if line:
            self.fetched.append((channel, line))

    def poll(self):
        for line, channel in self.poller.poll(0):
            self.note(channel, line)

    def read(self):
        channel = self.random.choice([*self.channels])
        self.note(channel, channel.read())

    def read_until(self):
        channel = self.random.choice([*self.channels])
        with contextlib.suppress(DeadlineExceeded, StillKept):
            self.note(channel, ''.join(channel.read_until('a', timeout=0)))

    def write(self):
        channel = self.random.choice([*self.channels])
        channel.write('x')
        self.written[channel].append('x')

    def forget(self):
        self.fetched.clear()
        for written in self.written.values():
            written.clear()

    def commit(self):
        transaction.commit()
        for channel, line in self.fetched:
            self.channels[channel].append(line)
        for channel, written in self.written.items():
            self.sent[channel] += ''.join(written)
        self.forget()

    def abort(self):
        transaction.abort()
        self.forget()

    def break_off(self):
        with failing():
            self.poll()
        self.forget()

    def pause(self):
        self.poller.pause(0)

    def roll_back(self):
        savepoint = transaction.savepoint()
        fetched = [*self.fetched]
        written = {channel: [*each]
                   for channel, each in self.written.items()}
        for _ in range(3):
            self.random.choice(
                [self.say, self.poll, self.read, self.read_until, self.write]
            )()
        savepoint.rollback()
        self.fetched, self.written = fetched, written

    def test_each_line_once(self):
        for seed in range(200):
            with self.subTest(seed=seed):
                self.run_randomly(seed)
                for (channel, lines), (_, said) in zip(
                        self.channels.items(), self.peers):
                    self.assertEqual(''.join(said), ''.join(lines))
                self.assertFalse(self.poller._watches)
                self.close_streams()
                self.poller = Poller()
                self.streams.append(self.poller)

    def test_what_is_sent_is_what_was_committed(self):
        for seed in range(200, 300):
            with self.subTest(seed=seed):
                close = Peer.close
                heard = []

                def listen(peer, heard=heard, close=close):
                    if peer.faucet >= 0:
                        os.set_blocking(peer.faucet, False)
                        with contextlib.suppress(BlockingIOError):
                            heard.append(os.read(peer.faucet, 1000).decode())
                    close(peer)
                with mock.patch.object(Peer, 'close', listen):
                    self.run_randomly(seed)
                self.assertCountEqual(
                    filter(None, self.sent.values()), heard)
                self.close_streams()
                self.poller = Poller()
                self.streams.append(self.poller)
