import itertools
import os
import re
import signal
import threading
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from gocept.runner.channel import LineChannel, PipeChannel, expect
from gocept.runner.errors import DeadlineExceeded, EndpointClosedException
from gocept.runner.testing import TestChannel
from gocept.runner.tests.channel.test_base import Custom, cut
from gocept.runner.tests.properties import steady
from gocept.runner.tests.streams import (
    Alarms,
    StreamTestCase,
    read_to_end,
    wait_readable,
)
from gocept.runner.tests.support import DEADLINE

quick = steady(max_examples=100)


class ReadUntilTests(StreamTestCase):

    open = StreamTestCase.open_pipes

    def test_bytes(self):
        channel, peer = self.open()
        peer.send(b'Hello\nlogin: and more')
        self.assertEqual((b'Hello\n', b'login: '),
                         channel.read_until(b'login: '))
        self.assertEqual(b'and more', channel.read())

    def test_expression(self):
        channel, peer = self.open()
        peer.send(b'listening on port 8080\nready\n')
        before, match = channel.read_until(re.compile(rb'port (\d+)\n'),
                                           DEADLINE)
        self.assertEqual((b'listening on ', b'8080'), (before, match[1]))
        self.assertEqual((b'', b'ready'), channel.read_until(b'ready'))
        self.assertEqual(b'\n', channel.read())

    def test_several_in_one_piece(self):
        channel, peer = self.open()
        peer.send(b'a.b.c.')
        for letter in (b'a', b'b', b'c'):
            self.assertEqual((letter, b'.'), channel.read_until(b'.'))
        self.assertEqual(b'', channel.read())

    def test_waits(self):
        channel, peer = self.open()

        def send():
            for byte in b'...ready':
                peer.send(bytes([byte]))
        self.start(send)
        self.assertEqual((b'...', b'ready'),
                         channel.read_until(b'ready', DEADLINE))

    def test_after_the_deadline(self):
        channel, peer = self.open()
        peer.send(b'not yet')
        wait_readable(channel)
        for timeout in (0, 0.01):
            with self.assertRaisesRegex(
                    DeadlineExceeded,
                    rf"no b'ready' in {timeout} s; .* b'not yet'") as caught:
                channel.read_until(b'ready', timeout)
            self.assertEqual(b'not yet', caught.exception.seen)
        peer.send(b', ready')
        self.assertEqual((b'not yet, ', b'ready'),
                         channel.read_until(b'ready', DEADLINE))

    def test_after_the_deadline_though_there_is_always_more(self):
        # Without an end: "yes" would go on for ever.
        with open('/dev/zero', 'rb') as file:
            channel = PipeChannel(os.dup(file.fileno()))
        with channel:
            with self.assertRaises(DeadlineExceeded) as caught:
                channel.read_until(b'x', 0.01)
            self.assertEqual(bytes(2000), caught.exception.seen)
            self.assertGreaterEqual(len(channel.read()), 2 ** 16)

    def test_a_search_that_takes_long_waits_for_more_before_the_next(self):
        channel, peer = self.open()
        size = 2 ** 22
        self.start(lambda: (peer.send(b'x' * size + b'ready'), peer.shut()))
        searched = []
        original = expect._searching

        def searching(*args):
            search = original(*args)
            return lambda seen: searched.append(len(seen)) or search(seen)
        clock = mock.Mock(monotonic=itertools.count(0, DEADLINE).__next__)
        with (mock.patch.object(expect, '_searching', searching),
              mock.patch.object(expect, 'time', clock)):
            before, match = channel.read_until(
                re.compile(b'rea[d]y'), DEADLINE)
        self.assertEqual((size, b'ready'), (len(before), match[0]))
        self.assertEqual([0, size + 5], searched)

    def test_the_end_before_the_match(self):
        channel, peer = self.open()
        peer.send(b'x' * 5000 + b'failed')
        peer.close()
        with self.assertRaisesRegex(EndpointClosedException,
                                    "ended before b'ready'.*xxfailed"
                                    ) as caught:
            channel.read_until(b'ready', DEADLINE)
        self.assertEqual(b'x' * 1994 + b'failed', caught.exception.seen)
        self.assertEqual(b'x' * 5000 + b'failed', b''.join(
            read_to_end(channel)))
        with self.assertRaises(EndpointClosedException):
            channel.read_until(b'ready')

    def test_the_match_before_the_end(self):
        channel, peer = self.open()
        peer.send(b'ready')
        peer.close()
        self.assertEqual((b'', b'ready'), channel.read_until(b'ready'))
        with self.assertRaises(EndpointClosedException):
            channel.read()

    def test_lines(self):
        for wrap in (False, True):
            if wrap:
                inner, peer = self.open()
                channel = LineChannel(inner)
            else:
                channel, peer = self.open(buffering='line')
            peer.send(b'a\nb\nlogin: c\nd\ne')
            wait_readable(channel)
            self.assertEqual(b'a\n', channel.read())
            self.assertEqual((b'b\n', b'login: '),
                             channel.read_until(b'login: '))
            self.assertEqual([b'c\n', b'd\n', b''],
                             [channel.read() for _ in range(3)])
            peer.send(b'f\n')
            wait_readable(channel)
            self.assertEqual(b'ef\n', channel.read())

    def test_text(self):
        channel, peer = self.open(encoding='utf-8')
        peer.send('\u20ac 5\xe4\u20ac'.encode()[:-1])
        before, match = channel.read_until('5\xe4', DEADLINE)
        self.assertEqual(('\u20ac ', '5\xe4'), (before, match))
        peer.send('\u20ac!'.encode()[-2:])
        _, match = channel.read_until(re.compile('[!?]'), DEADLINE)
        self.assertEqual('!', match[0])

    def test_text_that_does_not_come(self):
        channel, peer = self.open(encoding='utf-8')
        peer.send('\xe4'.encode())
        wait_readable(channel)
        with self.assertRaises(DeadlineExceeded) as caught:
            channel.read_until('x', 0)
        self.assertEqual('\xe4', caught.exception.seen)
        self.assertEqual('\xe4', channel.read())

    def test_what_is_no_pattern(self):
        channel, peer = self.open()
        peer.send(b'a')
        wait_readable(channel)
        with self.assertRaisesRegex(ValueError, 'no pattern'):
            channel.read_until(b'')
        for pattern in ('', 'a', re.compile('a'), 1):
            with self.assertRaisesRegex(TypeError, 'is bytes, not'):
                channel.read_until(pattern, 0)
        self.assertEqual(b'a', channel.read())

    def test_signals_do_not_end_it(self):
        channel, peer = self.open()
        with Alarms() as alarms:
            def send():
                while not alarms.count:
                    pass
                peer.send(b'ready')
            self.start(send)
            self.assertEqual((b'', b'ready'),
                             channel.read_until(b'ready', DEADLINE))

    def test_a_handler_that_raises_ends_it(self):
        channel, peer = self.open()
        peer.send(b'begin')

        class Interrupted(Exception):
            pass

        def interrupt(*args):
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise Interrupted
        previous = signal.signal(signal.SIGALRM, interrupt)
        self.addCleanup(signal.signal, signal.SIGALRM, previous)
        with self.assertRaises(Interrupted):
            # Again and again, as one may come just before the system call.
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.05)
            channel.read_until(b'ready', DEADLINE)
        peer.send(b', ready')
        self.assertEqual((b'begin, ', b'ready'),
                         channel.read_until(b'ready', DEADLINE))

    def test_what_is_kept_is_sent_meanwhile(self):
        # The other side answers when it has read everything.
        channel, peer = self.open(high_water=0)
        channel.write(bytes(2 ** 22), b'end')

        def serve():
            size = 2 ** 22 + 3
            while size:
                size -= len(os.read(peer.faucet, 2 ** 16))
            peer.send(b'thanks')
        self.start(serve)
        self.assertEqual((b'', b'thanks'),
                         channel.read_until(b'thanks', DEADLINE))

    def test_what_is_put_back_wakes_pollers(self):
        woken = []

        class Watcher:
            def source_ready(self, source):
                woken.append(source)
        channel, peer = self.open()
        channel.attach(Watcher())
        peer.send(b'a b')
        channel.read_until(b'a', DEADLINE)
        self.assertEqual([channel], woken)
        channel.detach(channel._watchers[0])

    def test_while_another_thread_writes(self):
        channel, peer = self.open()

        def echo():
            while data := os.read(peer.faucet, 2 ** 16):
                peer.send(data)
        thread = self.start(echo)
        for number in range(200):
            writer = threading.Thread(target=channel.write,
                                      args=(b'%d;' % number,))
            writer.start()
            self.assertEqual((b'%d' % number, b';'),
                             channel.read_until(b';', DEADLINE))
            writer.join()
        channel.write_eof()
        thread.join(DEADLINE)


class SocketReadUntilTests(ReadUntilTests):
    open = StreamTestCase.open_sockets


class Readable(Custom):
    """Its descriptor always has something."""

    def get_fd(self):
        return self.fd


class PiecesTests(StreamTestCase):

    def setUp(self):
        super().setUp()
        self.fd = os.open('/dev/null', os.O_RDONLY)
        self.addCleanup(os.close, self.fd)

    @quick
    @given(st.text(alphabet='ab\xe4\n', max_size=20),
           st.lists(st.integers(0, 40), max_size=8),
           st.text(alphabet='ab\xe4\n', min_size=1, max_size=3),
           st.sampled_from([None, 'line']), st.booleans(), st.booleans())
    def test_wherever_it_is_split(self, text, places, pattern, buffering,
                                  is_text, compiled):
        encoding = 'utf-8' if is_text else None
        if not is_text:
            text, pattern = text.encode(), pattern.encode()
        channel = Readable(
            *cut(text.encode() if is_text else text, places),
            buffering=buffering, encoding=encoding, limit=4)
        channel.fd = self.fd
        before, found, after = text.partition(pattern)
        expression = re.compile(re.escape(pattern)) if compiled else pattern
        if found:
            got, match = channel.read_until(expression)
            self.assertEqual(before, got)
            self.assertEqual(pattern, match[0] if compiled else match)
        else:
            with self.assertRaises(EndpointClosedException):
                channel.read_until(expression)
            after = text
        self.assertEqual(after, after[:0].join(read_to_end_of(channel)))

    def test_put_after_each_other(self):
        channel = TestChannel()
        channel.put(b'a; b; ')
        self.assertEqual((b'a', b'; '), channel.read_until(b'; '))
        channel.put(b'c')
        self.assertEqual(b'b; ', channel.read())
        self.assertEqual(b'c', channel.read())


def read_to_end_of(channel):
    try:
        while True:
            yield channel.read()
    except EndpointClosedException:
        pass
