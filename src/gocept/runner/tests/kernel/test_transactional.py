import itertools
import json
from collections.abc import Callable
from unittest import mock

import transaction

from gocept.runner.channel.journal import known_journal
from gocept.runner.errors import KernelError
from gocept.runner.kernel import Watcher
from gocept.runner.kernel.client.text_transport import TextTransport
from gocept.runner.poller import Poller
from gocept.runner.tests.kernel.fakes import FakeProcess
from gocept.runner.tests.kernel.interruption import Interruption
from gocept.runner.tests.kernel.test_watcher import WatcherCase
from gocept.runner.tests.support import DEADLINE


class TransactionCase(WatcherCase):

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(transaction.abort)
        transaction.begin()
        self.made = self.process()

    def write(self, data: bytes) -> None:
        self.change(lambda: self.made.write(data))

    def tail(self) -> Watcher:
        watcher = self.watch(transactional=True)
        # Closed in the end of its transaction.
        self.addCleanup(transaction.abort)
        return watcher

    def begin(self) -> int:
        result: int = self.daemon.call(lambda: self.made.begin)
        return result


class CommitTests(TransactionCase):

    def test_a_commit_acknowledges(self) -> None:
        self.write(b'123')
        watcher = self.tail()
        self.assertTrue(watcher.transactional)
        self.assertEqual(b'123', self.data(watcher))
        watcher.acknowledge()
        self.assertEqual(0, self.begin())
        transaction.commit()
        self.assertEqual(3, self.begin())

    def test_several_reads(self) -> None:
        self.write(b'1')
        watcher = self.tail()
        self.assertEqual(b'1', self.data(watcher))
        self.write(b'2')
        self.assertEqual(b'2', self.data(watcher))
        self.assertEqual(0, self.begin())
        transaction.commit()
        self.assertEqual(2, self.begin())

    def test_an_abort_gives_back(self) -> None:
        self.write(b'1')
        watcher = self.tail()
        before = watcher.position
        self.assertEqual(b'1', self.data(watcher))
        self.write(b'2')
        self.assertEqual(b'2', self.data(watcher))
        self.assertEqual((self.made.life, 2, False), watcher.position['p'])
        transaction.abort()
        self.assertEqual(before, watcher.position)
        self.assertTrue(watcher.ready)
        self.assertEqual(b'1', self.data(watcher))
        self.assertEqual((self.made.life, 1, False), watcher.position['p'])
        self.assertEqual(b'2', self.data(watcher))
        self.assertEqual(0, self.begin())
        self.write(b'3')
        self.assertEqual(b'3', self.data(watcher))
        transaction.commit()
        self.assertEqual(3, self.begin())
        self.assertFalse(watcher.ready)

    def test_a_savepoint(self) -> None:
        self.write(b'1')
        watcher = self.tail()
        self.assertEqual(b'1', self.data(watcher))
        savepoint = transaction.savepoint()
        self.write(b'2')
        self.assertEqual(b'2', self.data(watcher))
        savepoint.rollback()
        self.assertEqual((self.made.life, 1, False), watcher.position['p'])
        transaction.commit()
        self.assertEqual(1, self.begin())
        self.assertEqual(b'2', self.data(watcher))
        transaction.commit()
        self.assertEqual(2, self.begin())

    def test_an_item_that_fails_comes_in_halves(self) -> None:
        watcher = self.tail()
        for data in (b'1', b'2'):
            self.write(data)
            self.data(watcher)
        try:
            raise ValueError
        except ValueError:
            transaction.abort()
        self.assertEqual(b'1', self.data(watcher))
        self.assertEqual(([], [], []), watcher.read())
        self.assertFalse(watcher.ready)
        transaction.commit()
        self.assertEqual(1, self.begin())
        self.assertEqual(b'2', self.data(watcher))
        transaction.commit()
        self.assertEqual(2, self.begin())

    def test_the_end(self) -> None:
        self.change(self.made.exit)
        watcher = self.tail()
        watcher.read()
        self.assertEqual({'p': 0}, watcher.exit_code)
        self.assertTrue(watcher)
        self.assertEqual(([], [], []), watcher.read())
        self.assertFalse(watcher)
        self.assertIsNone(watcher.read())
        transaction.abort()
        self.assertTrue(watcher)
        self.assertEqual({}, watcher.exit_code)
        output = watcher.read()
        assert output is not None
        self.assertEqual(0, output[2][0].data)
        watcher.acknowledge()
        self.assertFalse(watcher)
        self.assertIn('p', self.kernel.list_processes())
        transaction.commit()
        self.assertTrue(watcher.closed)
        self.assertEqual({}, self.kernel.list_processes())

    def test_the_end_without_a_further_read(self) -> None:
        self.change(self.made.exit)
        watcher = self.tail()
        watcher.read()
        transaction.commit()
        self.assertFalse(watcher)
        self.assertEqual({}, self.kernel.list_processes())

    def test_closed_in_the_transaction(self) -> None:
        self.write(b'1')
        with self.tail() as watcher:
            self.data(watcher)
        self.assertFalse(watcher)
        self.assertIsNone(watcher.read())
        transaction.commit()
        self.assertTrue(watcher.closed)
        self.assertEqual(1, self.begin())

    def test_closed_in_a_transaction_that_is_aborted(self) -> None:
        self.write(b'1')
        with self.tail() as watcher:
            self.data(watcher)
        transaction.abort()
        self.assertTrue(watcher.closed)
        self.assertEqual(0, self.begin())
        self.assertEqual(b'1', self.data(self.watch()))

    def test_an_exception_in_the_block(self) -> None:
        self.write(b'1')
        with self.assertRaises(ValueError):
            with self.tail() as watcher:
                self.data(watcher)
                raise ValueError
        transaction.abort()
        self.assertTrue(watcher.closed)
        self.assertEqual(b'1', self.data(self.watch()))

    def test_a_daemon_that_dies_in_the_transaction(self) -> None:
        self.write(b'1')
        watcher = self.tail()
        self.assertEqual(b'1', self.data(watcher))
        self.daemon.die()
        self.write(b'2')
        self.assertEqual(b'2', self.data(watcher))
        transaction.abort()
        self.daemon.die()
        self.assertEqual(b'1', self.data(watcher))
        transaction.commit()
        self.assertEqual(b'2', self.data(watcher))
        self.write(b'3')
        self.assertEqual(b'3', self.data(watcher))
        transaction.commit()
        watcher.close()
        self.assertEqual(3, self.begin())

    def test_a_daemon_that_dies_before_the_last_commit(self) -> None:
        self.write(b'1')
        self.change(self.made.exit)
        watcher = self.tail()
        self.data(watcher)
        self.daemon.die()
        transaction.commit()
        self.assertFalse(watcher)
        self.assertEqual({}, self.kernel.list_processes())

    def test_a_dry_run(self) -> None:
        self.write(b'1')
        watcher = self.tail()
        self.assertEqual(b'1', self.data(watcher))
        journal = known_journal()
        assert journal is not None
        journal.consume()
        self.assertEqual(0, self.begin())
        self.assertFalse(watcher.ready)
        watcher.close()
        self.assertEqual(b'1', self.data(self.watch()))

    def test_outside_of_transactions(self) -> None:
        self.write(b'1')
        watcher = self.tail()
        with mock.patch('gocept.runner.channel.journal.current_journal',
                        return_value=None):
            self.assertEqual(b'1', self.data(watcher))
            watcher.acknowledge()
        self.assertEqual(1, self.begin())

    def test_exactly_once(self) -> None:
        # The worker is killed after each commit, before the acknowledgement.
        position = '{}'
        seen = b''
        for number in range(10):
            self.write(b'%d' % number)
            watcher = self.kernel.watch_processes(
                'p', after=json.loads(position), transactional=True)
            seen += self.data(watcher)
            position = json.dumps(watcher.position)
            with mock.patch.object(watcher, 'acknowledge_fetched'):
                transaction.commit()
            watcher._transport.close()
            watcher.closed = True
        self.assertEqual(b'0123456789', seen)

    def test_an_old_kernel(self) -> None:
        line = mock.Mock(spec=TextTransport, exact=False)
        line.fileno.return_value = -1
        with self.assertRaisesRegex(KernelError, 'transactional'):
            Watcher(self.kernel, line, {'processes': {}, 'count': 1},
                    transactional=True)
        line.close.assert_called_once()


class InterruptionTests(TransactionCase):

    def read_all(self, finish: Callable[[], object]) -> None:
        """Interrupt a read everywhere; the transaction ends by `finish`."""
        watcher = self.tail()
        expected = seen = b''
        for number in itertools.count():
            expected += (data := b'%d,' % number)
            self.write(data)
            with Interruption(number) as interruption:
                seen += self.data(watcher)
            finish()
            while expected != seen:
                seen += self.data(watcher)
                self.assertTrue(expected.startswith(seen), (expected, seen))
            transaction.commit()
            self.assertEqual(len(expected), self.begin(), number)
            if not interruption.done:
                break
        self.assertGreater(number, 40)

    def test_a_commit(self) -> None:
        self.read_all(transaction.commit)

    def test_more_of_the_transaction(self) -> None:
        self.read_all(lambda: None)

    def test_after_an_abort(self) -> None:
        """What was given back is read again, and that is interrupted."""
        watcher = self.tail()
        expected = seen = b''
        for number in itertools.count():
            expected += (data := b'%d,' % number)
            self.write(data)
            self.assertEqual(data, self.data(watcher))
            transaction.abort()
            with Interruption(number) as interruption:
                seen += self.data(watcher)
            if interruption.done:
                self.assertEqual(data, self.data(watcher))
                seen += data
            transaction.commit()
            self.assertEqual(expected, seen)
            self.assertEqual(len(expected), self.begin(), number)
            if not interruption.done:
                break
        self.assertGreater(number, 10)


class PollerTests(TransactionCase):

    def setUp(self) -> None:
        super().setUp()
        self.poller = Poller()
        self.addCleanup(self.poller.close)
        self.watcher = self.tail()
        self.poller.register(self.watcher)

    def poll(self) -> list[bytes]:
        return [b''.join(each.data for each in item[0])
                for item, _ in self.poller.poll(DEADLINE)]

    def test_an_abort(self) -> None:
        self.write(b'1')
        self.assertEqual([b'1'], self.poll())
        self.assertEqual([], self.poller.poll(0))
        transaction.abort()
        self.assertTrue(self.poller.pause(DEADLINE))
        self.assertEqual([b'1'], self.poll())
        transaction.commit()
        self.assertEqual([], self.poller.poll(0))
        self.assertEqual(1, self.begin())

    def test_the_end(self) -> None:
        self.write(b'1')
        self.change(self.made.exit)
        while not self.watcher.exit_code:
            self.poll()
        self.assertEqual([], self.poller.poll(0))
        transaction.abort()
        found = []
        while not self.watcher.exit_code:
            found += self.poll()
        self.assertEqual(b'1', b''.join(found))
        transaction.commit()
        self.assertTrue(self.watcher.closed)
        self.assertEqual([], self.poller.poll(0))

    def test_a_callback_that_fails_in_the_poll(self) -> None:
        self.write(b'1')
        other = self.process('other')
        second = self.watch('other')

        def fail(*_: object) -> None:
            raise KeyboardInterrupt
        self.poller.register(second, fail)
        self.change(lambda: other.write(b'2'))
        with self.assertRaises(KeyboardInterrupt):
            self.poller.poll(DEADLINE)
            self.poller.poll(DEADLINE)
        transaction.abort()
        self.assertEqual([b'1'], self.poll())
        self.assertIsInstance(other, FakeProcess)
