import gc
import os
import select
import threading
import unittest

import transaction
import ZODB
import zope.component
import zope.interface.verify
import zope.testing.cleanup
from zope.site.folder import rootFolder
from zope.site.site import LocalSiteManager

from gocept.runner.channel import (
    Channel,
    EndpointClosedException,
    LineChannel,
    TransactionalChannel,
)
from gocept.runner.errors import DeadlineExceeded
from gocept.runner.interfaces import IPoller, IRunner, ITestChannel
from gocept.runner.poller import Poller
from gocept.runner.testing import TestChannel, run_ticks
from gocept.runner.tests.streams import StreamTestCase
from gocept.runner.tests.support import DEADLINE, TestCase


def is_readable(fd):
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


class TestChannelTests(unittest.TestCase):

    def test_keeps_its_contract(self):
        channel = TestChannel()
        zope.interface.verify.verifyObject(ITestChannel, channel)
        self.assertIsInstance(channel, Channel)

    def test_reads_what_was_put(self):
        channel = TestChannel()
        self.assertEqual(b'', channel.read())
        channel.put(b'a', bytearray(b'b'))
        channel.put(b'c')
        self.assertEqual(b'abc', channel.read())
        self.assertEqual(b'', channel.read())

    def test_gets_what_was_written(self):
        channel = TestChannel()
        self.assertEqual(b'', channel.get())
        channel.write(b'a', b'b')
        channel.write(b'c')
        self.assertEqual(b'abc', channel.get())
        self.assertEqual(b'', channel.get())

    def test_lines(self):
        channel = TestChannel(buffering='line', limit=4)
        channel.put(b'a\nb')
        self.assertEqual([b'a\n', b''], [channel.read(), channel.read()])
        channel.put(b'\nabcdefg')
        self.assertEqual(b'b\n', channel.read())
        self.assertEqual(b'abcd', channel.read())
        self.assertTrue(channel.partial)
        channel.put_eof()
        self.assertEqual(b'efg', channel.read())
        self.assertFalse(channel.partial)
        with self.assertRaises(EndpointClosedException):
            channel.read()

    def test_text(self):
        for encoding in ('utf-8', 'utf-16', 'iso2022_jp'):
            with self.subTest(encoding):
                channel = TestChannel(encoding=encoding)
                self.assertEqual(('', ''), (channel.read(), channel.get()))
                for text in ('日', '本'):
                    channel.put(text, '\n')
                    channel.write(text, '\n')
                    self.assertEqual(f'{text}\n', channel.read())
                    self.assertEqual(f'{text}\n', channel.get())

    def test_bytes_in_a_stream_of_text(self):
        channel = TestChannel(encoding='utf-8')
        channel.put('\xe4'.encode()[:1])
        self.assertEqual('', channel.read())
        channel.put('\xe4'.encode()[1:], b'\xff')
        self.assertEqual('\xe4\\xff', channel.read())

    def test_text_needs_an_encoding(self):
        for call in (TestChannel().put, TestChannel().write):
            with self.assertRaises(TypeError):
                call('a')

    def test_closed(self):
        channel = TestChannel()
        channel.put(b'a')
        channel.write(b'b')
        channel.close()
        channel.close()
        self.assertTrue(channel.closed)
        self.assertEqual('<TestChannel: closed>', repr(channel))
        self.assertEqual(b'a', channel.read())
        self.assertEqual(b'b', channel.get())
        for call in (channel.read, lambda: channel.write(b'c'),
                     lambda: channel.put(b'd')):
            with self.assertRaises(EndpointClosedException):
                call()

    def test_ended_by_the_other_side(self):
        channel = TestChannel()
        channel.put(b'a')
        channel.put_eof()
        self.assertEqual(b'a', channel.read())
        with self.assertRaises(EndpointClosedException):
            channel.read()
        with self.assertRaises(EndpointClosedException):
            channel.put(b'b')
        channel.write(b'c')
        self.assertEqual(b'c', channel.get())

    def test_ended_for_the_other_side(self):
        with TestChannel() as channel:
            channel.write(b'a')
            channel.write_eof()
            with self.assertRaises(EndpointClosedException):
                channel.write(b'b')
            self.assertEqual(b'a', channel.get())
            channel.put(b'c')
            self.assertEqual(b'c', channel.read())
        self.assertTrue(channel.closed)

    def test_within_another(self):
        inner = TestChannel()
        channel = LineChannel(inner)
        inner.put(b'a\nb')
        self.assertEqual(b'a\n', channel.read())
        channel.write(b'c')
        self.assertEqual(b'c', inner.get())

    def test_reads_up_to_what_was_put(self):
        channel = TestChannel()
        channel.put(b'login: ')
        self.assertEqual((b'', b'login:'), channel.read_until(b'login:'))
        with self.assertRaises(DeadlineExceeded):
            channel.read_until(b'password:')
        self.assertEqual(b' ', channel.read())

    def test_buffers_nothing_of_what_is_sent(self):
        channel = TestChannel()
        channel.write(b'a')
        channel.flush()
        self.assertEqual(0, channel.kept)


class PolledTests(StreamTestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(transaction.abort)
        self.poller = self.enterContext(Poller())

    def make(self, **options):
        channel = self.enterContext(TestChannel(**options))
        self.poller.register(channel)
        return channel

    def test_is_ready_when_something_was_put(self):
        channel = self.make()
        self.assertEqual([], self.poller.poll(0))
        channel.put()
        channel.put(b'')
        self.assertEqual([], self.poller.poll(0))
        channel.put(b'a')
        channel.put(b'b')
        self.assertEqual([(b'ab', channel)], self.poller.poll(0))
        self.assertEqual([], self.poller.poll(0))
        channel.put(b'c')
        self.assertEqual([(b'c', channel)], self.poller.poll(0))

    def test_what_was_put_before(self):
        channel = self.enterContext(TestChannel(encoding='utf-8'))
        channel.put('ä')
        self.poller.register(channel)
        self.assertEqual([('ä', channel)], self.poller.poll(0))

    def test_lines(self):
        channel = self.make(buffering='line')
        channel.put(b'a\n\nb')
        self.assertEqual([(b'a\n', channel), (b'\n', channel)],
                         self.poller.poll(0))
        self.assertEqual([], self.poller.poll(0))
        channel.put_eof()
        self.assertEqual([(b'b', channel), (b'', channel)],
                         self.poller.poll(0))
        self.assertEqual([], self.poller.poll(0))

    def test_the_end_comes_once(self):
        ends = {'put_eof': TestChannel.put_eof, 'close': TestChannel.close}
        for name, end in ends.items():
            with self.subTest(name):
                channel = self.make()
                channel.put(b'a')
                end(channel)
                self.assertEqual([(b'a', channel)], self.poller.poll(0))
                self.assertEqual([(b'', channel)], self.poller.poll(0))
                self.assertEqual([], self.poller.poll(0))

    def test_another_thread_ends_the_wait(self):
        channel = self.make()
        thread = threading.Thread(target=channel.put, args=(b'a',))
        self.addCleanup(thread.join)
        thread.start()
        self.assertEqual([(b'a', channel)], self.poller.poll(DEADLINE))

    def test_ends_a_pause_until_it_was_read(self):
        channel = self.make()
        self.assertFalse(self.poller.pause(0))
        channel.put(b'a')
        self.assertTrue(self.poller.pause(DEADLINE))
        self.assertFalse(self.poller.pause(0))
        self.assertEqual(b'a', channel.read())
        channel.put(b'b')
        self.assertTrue(self.poller.pause(DEADLINE))
        self.assertEqual([(b'b', channel)], self.poller.poll(0))

    def test_a_callback(self):
        results = []
        with TestChannel() as channel:
            self.poller.register(channel, lambda *pair: results.append(pair))
            channel.put(b'a')
            self.assertEqual([], self.poller.poll(0))
            self.assertEqual([(b'a', channel)], results)

    def test_wrapped(self):
        inner = TestChannel()
        channel = TransactionalChannel(LineChannel(inner))
        with channel:
            self.poller.register(channel)
            inner.put(b'a\nb\n')
            for _ in range(2):
                transaction.abort()
                self.assertEqual([(b'a\n', channel), (b'b\n', channel)],
                                 self.poller.poll(0))
            transaction.commit()
            self.assertEqual([], self.poller.poll(0))

    def test_never_waits_for_what_nobody_puts(self):
        inner = TestChannel()
        for channel in inner, LineChannel(inner), TransactionalChannel(inner):
            with self.assertRaises(DeadlineExceeded):
                channel.read_until(b'x')

    def test_a_wait_of_the_system(self):
        with TestChannel() as channel:
            fd = channel.get_fd()
            self.assertGreater(fd, 2)
            self.assertFalse(os.get_inheritable(fd))
            self.assertEqual(fd, channel.get_fd())
            self.assertFalse(is_readable(fd))
            channel.put(b'a')
            self.assertTrue(is_readable(fd))
            channel.read()
            self.assertFalse(is_readable(fd))
            channel.put_eof()
            for _ in range(2):  # the end stays
                with self.assertRaises(EndpointClosedException):
                    channel.read()
                self.assertTrue(is_readable(fd))
        self.assertEqual(-1, channel.fileno())
        with self.assertRaises(EndpointClosedException):
            channel.get_fd()

    def test_forgotten(self):
        channel = TestChannel()
        channel.put(b'a')
        del channel  # nobody has asked for a descriptor
        channel = TestChannel()
        channel.get_fd()
        with self.assertWarnsRegex(ResourceWarning, 'unclosed <TestChannel>'):
            del channel
            gc.collect()

    def test_a_forked_child_has_a_descriptor_of_its_own(self):
        channel = self.make()
        channel.put(b'a')
        pid = os.fork()
        if not pid:
            try:
                assert is_readable(channel.get_fd())
                assert channel.read() == b'a'
                assert not is_readable(channel.get_fd())
                channel.close()
                os._exit(0)
            finally:
                os._exit(1)
        self.assertEqual(0, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        self.assertEqual([(b'a', channel)], self.poller.poll(0))


class FakeRunner:
    """What a program uses of an `IRunner`: the test is its children."""

    def __init__(self, **channels):
        self.channels = channels

    def get_channel(self, alias):
        return self.channels[alias]


class ProgramTests(TestCase):
    """Programs with a poller, which cannot tell a fake from a child."""

    def setUp(self):
        super().setUp()
        self.feed = self.enterContext(TestChannel(buffering='line'))
        self.printer = self.enterContext(TestChannel())
        self.poller = self.enterContext(Poller())

    def test_with_a_poller_of_its_own(self):
        def answer(runner, poller):
            """Answer each line of the feed in capitals, to the printer."""
            feed = runner.get_channel('feed')
            poller.register(feed)
            lines = 0
            while True:
                for line, channel in poller.poll(timeout=DEADLINE):
                    if channel is feed and not line:
                        return lines
                    lines += 1
                    runner.get_channel('printer').write(line.upper())
        self.feed.put(b'one\n\ntwo')
        self.feed.put_eof()
        self.assertEqual(3, answer(FakeRunner(
            feed=self.feed, printer=self.printer), self.poller))
        self.assertEqual(b'ONE\n\nTWO', self.printer.get())

    def test_a_worker_with_the_utilities(self):
        def work():
            feed = zope.component.getUtility(IRunner).get_channel('feed')
            poller = zope.component.getUtility(IPoller)
            poller.register(feed)
            fetched = [line for line, _ in poller.poll(timeout=0)]
            zope.component.getUtility(IRunner).get_channel(
                'printer').write(*fetched)
            lines.append(fetched)
            if len(lines) == 1:
                raise ValueError('the first time')
            return 3600  # a line ends the pause
        lines = []
        runner = FakeRunner(feed=TransactionalChannel(self.feed),
                            printer=TransactionalChannel(self.printer))
        zope.component.provideUtility(runner, IRunner)
        zope.component.provideUtility(self.poller, IPoller)
        self.addCleanup(zope.testing.cleanup.cleanUp)
        self.feed.put(b'one\ntwo\n')
        ticks = run_ticks(work, self.make_site(),
                          until=lambda: len(lines) == 3)
        self.assertEqual((2, ['the first time']), (
            ticks.committed, [*map(str, ticks.errors)]))
        # They came again, each for a transaction of its own.
        self.assertEqual([[b'one\n', b'two\n'], [b'one\n'], [b'two\n']],
                         lines)
        self.assertEqual(b'one\ntwo\n', self.printer.get())

    def make_site(self):
        database = ZODB.DB(None)
        self.addCleanup(database.close)
        connection = database.open()
        self.addCleanup(connection.close)
        self.addCleanup(transaction.abort)
        site = connection.root()['site'] = rootFolder()
        site.setSiteManager(LocalSiteManager(site))
        transaction.commit()
        return site
