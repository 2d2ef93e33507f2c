import contextlib
import gc
import math
import os
import signal
import socket
import tempfile
import threading
import time
import unittest
import warnings
from unittest import mock

import zope.interface.verify

from gocept.runner.channel import LineChannel, PipeChannel, SocketChannel
from gocept.runner.errors import EndpointClosedException
from gocept.runner.interfaces import IPoller
from gocept.runner.poller import Poller, Timer, descriptors
from gocept.runner.poller.poller import Watch
from gocept.runner.poller.server import Server
from gocept.runner.tests.channel.test_base import Custom
from gocept.runner.tests.poller.test_server import no_descriptors_left
from gocept.runner.tests.streams import (
    Alarms,
    StreamTestCase,
    listening_tcp,
    wait_readable,
)
from gocept.runner.tests.support import (
    DEADLINE,
    TestCase,
    open_descriptors,
)
from gocept.runner.waits.deadline import Deadline, PollReadiness
from gocept.runner.waits.source import Source

LARGE = bytes(2 ** 22)

LOGGER = 'gocept.runner.poller'


class PollerTests(StreamTestCase):

    descriptors = 3  # of its own

    def setUp(self):
        super().setUp()
        self.before = open_descriptors()
        self.poller = Poller()
        self.addCleanup(self.poller.close)

    def test_time_is_over(self):
        started = time.monotonic()
        self.assertFalse(self.poller.pause(0.02))
        self.assertGreaterEqual(time.monotonic() - started, 0.02)

    def test_no_time_at_all(self):
        self.assertFalse(self.poller.pause(0))
        self.assertFalse(self.poller.pause(-1))

    def test_woken_up_before_the_wait(self):
        self.poller.wakeup()
        self.assertTrue(self.poller.pause())

    def test_one_wake_up_is_one(self):
        for _ in range(3):
            self.poller.wakeup()
        self.assertTrue(self.poller.pause(0))
        self.assertFalse(self.poller.pause(0))

    def test_more_wake_ups_than_a_pipe_holds(self):
        for _ in range(100_000):
            self.poller.wakeup()
        self.assertTrue(self.poller.pause(0))
        self.assertFalse(self.poller.pause(0))

    def test_woken_up_from_another_thread(self):
        thread = threading.Timer(0.01, self.poller.wakeup)
        thread.start()
        self.assertTrue(self.poller.pause(math.inf))
        thread.join()

    def test_woken_up_by_a_signal_handler(self):
        def handler(signum, frame):
            self.poller.wakeup()
        previous = signal.signal(signal.SIGALRM, handler)
        self.addCleanup(signal.signal, signal.SIGALRM, previous)
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        # Again and again, as one may come just before the system call.
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.05)
        self.assertTrue(self.poller.pause(1e9))

    def test_woken_up_through_the_descriptor(self):
        os.write(self.poller.wakeup_fd, b'\0')
        self.assertEqual([], self.poller.poll())

    def test_closes_its_descriptors(self):
        self.assertEqual(self.descriptors,
                         len(open_descriptors()) - len(self.before))
        self.poller.close()
        self.poller.close()
        self.assertEqual(self.before, open_descriptors())

    def test_descriptors_are_not_inherited(self):
        new = open_descriptors().keys() - self.before.keys()
        self.assertEqual([False] * self.descriptors,
                         [os.get_inheritable(int(fd)) for fd in new])

    def test_a_late_wake_up_writes_to_nobody(self):
        self.poller.close()
        read, write = os.pipe()  # gets the descriptors just closed
        with open(read, 'rb') as faucet, open(write, 'wb'):
            os.set_blocking(read, False)
            self.poller.wakeup()
            self.assertIsNone(faucet.read(1))

    def test_left_open_is_a_resource_warning(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            Poller()
            gc.collect()
        self.assertEqual([ResourceWarning], [w.category for w in caught])
        self.assertIn('unclosed <gocept.runner.poller.poller.Poller',
                      str(caught[0].message))

    def test_is_a_context_manager(self):
        with contextlib.closing(self.poller), Poller() as other:
            self.assertFalse(other.pause(0))
        self.assertEqual(self.before, open_descriptors())


class WatchTests(unittest.TestCase):

    def setUp(self):
        self.called = []
        self.results = []
        self.watch = Watch(Source(), 'label', self.call)

    def call(self, item, label):
        self.called.append((item, label))
        if isinstance(item, BaseException):
            raise item

    def test_each_item_is_handed_over(self):
        self.watch.call([1, 2], self.results)
        self.assertEqual([(1, 'label'), (2, 'label')], self.called)
        self.assertEqual([], self.results)

    def test_an_error_is_logged_and_the_others_go_on(self):
        with self.assertLogs('gocept.runner.poller', 'ERROR') as logs:
            self.watch.call([ValueError('no'), 2], self.results)
        self.assertEqual(2, len(self.called))
        self.assertIn("'label' failed", logs.output[0])
        self.assertIn('ValueError: no', logs.output[0])

    def test_what_ends_the_program_leaves_the_others(self):
        with self.assertRaises(SystemExit):
            self.watch.call([1, SystemExit(), 2, 3], self.results)
        self.assertEqual([(2, 'label'), (3, 'label')], self.results)

    def test_a_callback_that_removes_itself(self):
        self.watch.callback = lambda item, label: setattr(
            self.watch, 'callback', None)
        self.watch.call([1, 2], self.results)
        self.assertEqual([(2, 'label')], self.results)


class SourcesTestCase(StreamTestCase):

    def setUp(self):
        super().setUp()
        self.poller = Poller()
        self.addCleanup(self.poller.close)
        self.addCleanup(self.poller.close_all)

    def poll(self, count=1):
        """So many results, one poll after the other."""
        results, deadline = [], Deadline(DEADLINE)
        while len(results) < count:
            if deadline.passed:
                self.fail(f'{results!r} is all that came')
            results += self.poller.poll(DEADLINE)
        return results

    def poll_to_end(self, channel):
        """What a channel gives, without its end."""
        items = []
        while not items or items[-1]:
            for item, source in self.poll():
                self.assertIs(channel, source)
                items.append(item)
        self.assert_nothing_more()
        return items[:-1]

    def poll_while(self, going_on):
        deadline = Deadline(DEADLINE)
        while going_on():
            self.assertFalse(deadline.passed)
            # Not too long, as what is waited for may end no poll.
            self.assertEqual([], self.poller.poll(0.01))

    def assert_nothing_more(self):
        self.assertEqual([], self.poller.poll(0))
        self.assertEqual([], self.poller.poll(0))
        self.assertFalse(self.poller.pause(0))


class ChannelTests(SourcesTestCase):

    def test_keeps_its_contract(self):
        zope.interface.verify.verifyObject(IPoller, self.poller)

    def test_bytes(self):
        for kind in (self.open_pipes, self.open_sockets, self.open_tcp,
                     self.open_pty):
            channel, peer = kind()
            self.poller.register(channel)
            self.assertEqual([], self.poller.poll(0))
            peer.send(b'abc')
            self.assertEqual([(b'abc', channel)], self.poll())
            peer.send(b'def')
            peer.close()
            self.assertEqual(b'def', b''.join(self.poll_to_end(channel)))

    def test_text(self):
        channel, peer = self.open_pipes(encoding='utf-8')
        self.poller.register(channel)
        peer.send('\xe4\xe4'.encode()[:3])
        self.assertEqual([('\xe4', channel)], self.poll())
        peer.send('\xe4'.encode()[1:])
        peer.close()
        self.assertEqual([('\xe4', channel), ('', channel)], self.poll(2))

    def test_all_lines_at_once(self):
        for wrap in (False, True):
            channel, peer = self.open_pipes(
                buffering=None if wrap else 'line')
            if wrap:
                channel = LineChannel(channel)
            self.poller.register(channel)
            peer.send(b'a\nb\nc')
            self.assertEqual([(b'a\n', channel), (b'b\n', channel)],
                             self.poller.poll(DEADLINE))
            self.assert_nothing_more()
            peer.close()
            self.assertEqual([b'c'], self.poll_to_end(channel))

    def test_several(self):
        streams = [self.open_pipes() for _ in range(20)]
        for channel, _ in streams:
            self.poller.register(channel)
        for number, (_, peer) in enumerate(streams):
            peer.send(b'%d' % number)
        results = self.poll(20)
        self.assertEqual(
            {(b'%d' % number, channel)
             for number, (channel, _) in enumerate(streams)}, {*results})

    def test_registered_by_another_thread_meanwhile(self):
        channel, peer = self.open_pipes()
        peer.send(b'x')
        self.start(self.poller.register, channel)
        self.assertEqual([(b'x', channel)], self.poll())

    def test_unregistered(self):
        channel, peer = self.open_pipes()
        self.poller.register(channel)
        peer.send(b'x')
        self.poller.unregister(channel)
        self.poller.unregister(channel)
        self.assert_nothing_more()
        self.assertEqual((), channel._watchers)
        self.poller.register(channel)
        self.assertEqual([(b'x', channel)], self.poll())

    def test_unregistered_by_a_callback_before_its_turn(self):
        streams = [self.open_pipes() for _ in range(5)]
        calls = []

        def callback(data, channel):
            calls.append(channel)
            for other, _ in streams:
                if other is not channel:
                    self.poller.unregister(other)
        for channel, peer in streams:
            self.poller.register(channel, callback)
            peer.send(b'x')
        self.assertTrue(self.poller.pause(DEADLINE))
        self.assertEqual([], self.poller.poll(0))
        self.assertEqual(1, len(calls))

    def test_unregistered_by_a_callback_before_the_turn_of_its_lines(self):
        streams = [self.open_pipes(buffering='line') for _ in range(5)]
        calls = []

        def callback(data, channel):
            calls.append(channel)
            for other, _ in streams:
                if other is not channel:
                    self.poller.unregister(other)
        for channel, peer in streams:
            self.poller.register(channel, callback)
            peer.send(b'a\nb\n')
            wait_readable(channel)
            channel.read()
        self.assertEqual([], self.poller.poll(0))
        self.assertEqual(1, len(calls))
        self.assertEqual(
            4, sum(channel.read() == b'b\n' for channel, _ in streams))

    def test_registered_again(self):
        channel, peer = self.open_pipes()
        calls = []
        self.poller.register(channel)
        self.poller.register(channel, lambda *call: calls.append(call))
        peer.send(b'x')
        self.poll_while(lambda: not calls)
        self.assertEqual([(b'x', channel)], calls)
        self.poller.register(channel)
        peer.send(b'y')
        self.assertEqual([(b'y', channel)], self.poll())

    def test_another_one_with_the_same_descriptor(self):
        channel, peer = self.open_pipes()
        other = LineChannel(channel)
        self.poller.register(channel)
        with self.assertRaisesRegex(ValueError, 'registered already'):
            self.poller.register(other)
        peer.send(b'x\n')
        self.assertEqual([(b'x\n', channel)], self.poll())
        channel.close()
        self.assertEqual([(b'', channel)], self.poll())

    def test_what_another_one_wraps(self):
        channel, peer = self.open_pipes()
        other = LineChannel(channel)
        self.poller.register(other)
        with self.assertRaisesRegex(ValueError, 'registered already'):
            self.poller.register(channel)
        peer.send(b'x\ny')
        self.assertEqual([(b'x\n', other)], self.poll())
        channel.close()
        self.assertEqual([(b'y', other), (b'', other)], self.poll(2))

    def test_without_a_descriptor(self):
        with PipeChannel() as channel:
            with self.assertRaises(NotImplementedError):
                self.poller.register(channel)
        with self.assertRaises(NotImplementedError):
            self.poller.register(Custom())
        self.assert_nothing_more()

    def test_a_descriptor_that_is_not_open(self):
        channel = Polled(os.dup(0))
        os.close(channel.fd)
        if not isinstance(self.poller._descriptors._readiness, PollReadiness):
            with self.assertRaises(OSError):
                self.poller.register(channel)
        self.assert_nothing_more()

    def test_closed_before_it_is_registered(self):
        channel, peer = self.open_pipes(buffering='line')
        peer.send(b'a\nb\n')
        wait_readable(channel)
        channel.read()
        channel.close()
        self.poller.register(channel)
        self.assertEqual([b'b\n'], self.poll_to_end(channel))

    def test_closed_while_registered(self):
        for wrap in (False, True):
            channel, peer = self.open_pipes()
            source = LineChannel(channel) if wrap else channel
            self.poller.register(source)
            channel.close()
            self.assertEqual([], self.poll_to_end(source))
            self.assertEqual(b'', peer.receive(1))

    def test_closed_with_bytes_to_read(self):
        # They are gone, as with every descriptor; lines are not.
        channel, peer = self.open_pipes(buffering='line')
        self.poller.register(channel)
        peer.send(b'a\nb\nc')
        wait_readable(channel)
        channel.read()
        peer.send(b'd\n')
        channel.close()
        self.assertEqual([b'b\n', b'c'], self.poll_to_end(channel))

    def test_closed_by_another_thread_meanwhile(self):
        for _ in range(50):
            channel, _ = self.open_pipes()
            self.poller.register(channel)
            thread = self.start(channel.close)
            self.assertEqual([], self.poll_to_end(channel))
            thread.join()

    def test_closed_by_its_callback(self):
        channel, peer = self.open_pipes(buffering='line')
        calls = []

        def callback(data, channel):
            calls.append(data)
            channel.close()
        self.poller.register(channel, callback)
        peer.send(b'a\nb\nc')
        self.poll_while(lambda: b'' not in calls)
        self.assert_nothing_more()
        self.assertEqual([b'a\n', b'b\n', b'c', b''], calls)

    def test_the_descriptor_is_used_again(self):
        for unregister in (True, False):
            channel, _ = self.open_pipes()
            self.poller.register(channel)
            fd = channel.get_fd()
            if unregister:
                self.poller.unregister(channel)
            self.close_streams()
            other, peer = self.open_pipes()
            self.assertEqual(fd, other.get_fd())
            self.poller.register(other)
            peer.send(b'x')
            results = self.poll(1 if unregister else 2)
            self.assertIn((b'x', other), results)
            self.assertEqual(not unregister, (b'', channel) in results)
            self.poller.unregister(other)
            self.close_streams()

    def test_the_descriptor_was_closed_without_a_word(self):
        streams = [self.open_pipes() for _ in range(2)]
        channel = Polled(os.dup(streams[0][0].get_fd()))
        self.poller.register(channel)
        os.dup2(streams[1][0].get_fd(), channel.fd, inheritable=False)
        channel.closed = True
        again = Polled(channel.fd)
        self.poller.register(again)
        streams[1][1].send(b'x')
        self.assertEqual([(b'x', again)], self.poll())
        again.close()
        self.assertEqual([(b'', again)], self.poll())

    def test_lines_left_by_read(self):
        for wrap in (False, True):
            for registered in (True, False):
                channel, peer = self.open_pipes()
                channel = LineChannel(channel) if wrap else PipeChannel(
                    os.dup(channel.get_fd()), buffering='line')
                self.streams.append(channel)
                if registered:
                    self.poller.register(channel)
                peer.send(b'a\nb\nc\n')
                wait_readable(channel)
                self.assertEqual(b'a\n', channel.read())
                if not registered:
                    self.poller.register(channel)
                self.assertTrue(self.poller.pause())
                self.assertEqual([(b'b\n', channel), (b'c\n', channel)],
                                 self.poller.poll())
                self.assert_nothing_more()
                self.poller.unregister(channel)

    def test_lines_left_by_read_until(self):
        channel, peer = self.open_pipes(buffering='line')
        self.poller.register(channel)
        peer.send(b'login: a\nb\nc')
        channel.read_until(b'login: ')
        self.assertEqual([(b'a\n', channel), (b'b\n', channel)],
                         self.poller.poll())
        self.assert_nothing_more()

    def test_lines_left_by_read_and_read_then(self):
        channel, peer = self.open_pipes(buffering='line')
        self.poller.register(channel)
        peer.send(b'a\nb\n')
        wait_readable(channel)
        channel.read()
        channel.read()
        peer.close()
        self.assertEqual([], self.poll_to_end(channel))

    def test_lines_of_lines(self):
        inner, peer = self.open_pipes(buffering='line')
        channel = LineChannel(inner)
        self.poller.register(channel)
        peer.send(b'a\nb\nc\n')
        self.assertEqual([(line, channel) for line in (b'a\n', b'b\n',
                                                       b'c\n')],
                         self.poll(3))
        self.assert_nothing_more()

    def test_a_regular_file(self):
        with tempfile.TemporaryFile() as file:
            file.write(bytes(100_000) + b'end')
            file.seek(0)
            with PipeChannel(os.dup(file.fileno())) as channel:
                self.poller.register(channel)
                self.assertTrue(self.poller.pause())
                self.assertEqual(bytes(100_000) + b'end',
                                 b''.join(self.poll_to_end(channel)))

    def test_the_lines_of_a_regular_file(self):
        with tempfile.TemporaryFile() as file:
            file.write(b'a\nb\nc\nd')
            file.seek(0)
            with PipeChannel(os.dup(file.fileno()),
                             buffering='line') as channel:
                self.assertEqual(b'a\n', channel.read())
                self.poller.register(channel)
                self.assertEqual([b'b\n', b'c\n', b'd'],
                                 self.poll_to_end(channel))

    def test_a_regular_file_that_was_read_to_its_end(self):
        with tempfile.TemporaryFile() as file:
            file.write(b'a\nb\n')
            file.seek(0)
            with PipeChannel(os.dup(file.fileno()),
                             buffering='line') as channel:
                self.poller.register(channel)
                channel.read()
                channel.read()
                self.assertEqual([], self.poll_to_end(channel))

    def test_an_unregistered_regular_file(self):
        with tempfile.TemporaryFile() as file:
            with PipeChannel(os.dup(file.fileno())) as channel:
                self.poller.register(channel)
                self.poller.unregister(channel)
                self.assert_nothing_more()

    def test_a_reset_connection(self):
        channel, peer = self.open_tcp()
        self.poller.register(channel)
        peer.reset()
        self.assertEqual([], self.poll_to_end(channel))

    def test_the_end_does_not_close_the_channel(self):
        channel, peer = self.open_sockets()
        self.poller.register(channel)
        peer.shut()
        self.assertEqual([], self.poll_to_end(channel))
        channel.write(b'answer')
        self.assertEqual(b'answer', peer.receive(6))
        self.poller.register(channel)
        self.assertEqual([], self.poll_to_end(channel))

    def test_signals_do_not_end_it(self):
        channel, _peer = self.open_pipes()
        self.poller.register(channel)
        with Alarms() as alarms:
            self.assertEqual([], self.poller.poll(0.02))
            self.assertFalse(self.poller.pause(0.02))
            self.assertTrue(alarms.count)

    def test_woken_up(self):
        self.poller.wakeup()
        self.assertEqual([], self.poller.poll())
        self.start(self.poller.wakeup)
        self.assertEqual([], self.poller.poll())

    def test_a_wake_up_does_not_hide_what_there_is(self):
        channel, peer = self.open_pipes()
        self.poller.register(channel)
        peer.send(b'x')
        wait_readable(channel)
        self.poller.wakeup()
        self.assertEqual([(b'x', channel)], self.poller.poll())

    def test_what_it_had_when_a_handler_raised(self):
        channel, peer = self.open_pipes()
        other, other_peer = self.open_pipes()
        self.poller.register(channel)

        def interrupt(data, channel):
            raise KeyboardInterrupt
        self.poller.register(other, interrupt)
        peer.send(b'x')
        wait_readable(channel)
        other_peer.send(b'y')
        wait_readable(other)
        with self.assertRaises(KeyboardInterrupt):
            while True:
                self.poller.poll(DEADLINE)
        self.assertTrue(self.poller.pause())
        self.assertEqual([(b'x', channel)], self.poller.poll())

    def test_a_callback_that_fails(self):
        calls = []

        def fail(data, channel):
            calls.append(data)
            raise ZeroDivisionError
        first, first_peer = self.open_pipes(buffering='line')
        second, second_peer = self.open_pipes()
        self.poller.register(first, fail)
        self.poller.register(second)
        first_peer.send(b'a\nb\n')
        wait_readable(first)
        second_peer.send(b'x')
        wait_readable(second)
        with self.assertLogs('gocept.runner.poller', 'ERROR') as logs:
            self.assertEqual([(b'x', second)], self.poller.poll(DEADLINE))
        self.assertEqual([b'a\n', b'b\n'], calls)
        self.assertEqual(2, len(logs.output))
        self.assertIn('ZeroDivisionError', logs.output[0])
        self.assertIn(repr(first), logs.output[0])

    def test_a_callback_that_gives_its_channel_to_poll(self):
        channel, peer = self.open_pipes(buffering='line')
        calls = []

        def callback(data, channel):
            calls.append(data)
            self.poller.register(channel)
        self.poller.register(channel, callback)
        peer.send(b'a\nb\n')
        self.assertEqual([(b'b\n', channel)], self.poll())
        self.assertEqual([b'a\n'], calls)

    def test_close_all(self):
        channel, _peer = self.open_pipes()
        inner, _other_peer = self.open_sockets()
        line = LineChannel(inner)
        server = listening_tcp()
        timer = Timer(0)
        for source in (channel, line, timer):
            self.poller.register(source)
        self.poller.add_server(server)
        self.poller.close_all()
        for each in (channel, line, inner):
            self.assertTrue(each.closed)
        self.assertEqual(-1, server.fileno())
        self.assertEqual([(1, timer)], self.poll())
        self.assert_nothing_more()
        self.poller.close_all()

    def test_close_all_if_one_cannot(self):
        broken, (channel, _) = Polled(os.dup(0)), self.open_pipes()
        other, _ = self.open_pipes()
        for source in (channel, broken, other):
            self.poller.register(source)
        os.close(broken.fd)
        with self.assertRaises(OSError):
            self.poller.close_all()
        self.assertTrue(channel.closed)
        self.assertTrue(other.closed)

    def test_closed(self):
        channel, peer = self.open_pipes()
        self.poller.register(channel)
        self.poller.close()
        self.assertEqual((), channel._watchers)
        for call in (self.poller.poll, self.poller.pause,
                     lambda: self.poller.register(channel)):
            with self.assertRaisesRegex(RuntimeError, 'closed'):
                call()
        with listening_tcp() as server:
            with self.assertRaisesRegex(RuntimeError, 'closed'):
                self.poller.add_server(server)
        self.poller.unregister(channel)
        self.poller.send_for(channel)
        self.poller.close_all()
        self.assertFalse(channel.closed)
        channel.write(b'x')
        self.assertEqual(b'x', peer.receive(1))

    def test_closed_by_another_thread_while_it_waits(self):
        for wait in (Poller.poll, Poller.pause):
            for _ in range(30):
                with Poller() as other:
                    channel, _ = self.open_pipes()
                    other.register(channel)
                    thread = self.start(other.close)
                    # It depends on which one is first.
                    with contextlib.suppress(RuntimeError):
                        wait(other)
                    thread.join()
                    self.assertTrue(other.closed)

    def test_closed_by_a_callback(self):
        channel, peer = self.open_pipes()
        self.poller.register(channel, lambda *result: self.poller.close())
        peer.send(b'x')
        self.assertEqual([], self.poller.poll(DEADLINE))
        self.assertTrue(self.poller.closed)

    def test_many_threads_register_and_close(self):
        # While one thread polls; each end comes once.
        ends = []
        done = threading.Event()

        def callback(data, channel):
            if not data:
                ends.append(channel)

        def run():
            for _ in range(50):
                ours, theirs = socket.socketpair()
                channel = SocketChannel(ours)
                self.poller.register(channel, callback)
                theirs.send(b'x')
                channel.write(b'y')
                theirs.close()
                channel.close()
        threads = [self.start(run) for _ in range(4)]
        self.start(lambda: (
            [thread.join(DEADLINE) for thread in threads], done.set(),
            self.poller.wakeup()))
        while not done.is_set() or self.poller.pause(0):
            # What calls back ends no poll.
            self.assertEqual([], self.poller.poll(
                0 if done.is_set() else DEADLINE))
        self.assertEqual(200, len(ends))
        self.assertEqual(200, len({*ends}))


class Polled(Custom):
    """A custom channel that can be polled."""

    def __init__(self, fd, *, error=None, **options):
        super().__init__(**options)
        self.fd = fd
        self.error = error

    def _read(self):
        if self.closed:
            raise EndpointClosedException
        if self.error is not None:
            raise self.error
        return os.read(self.fd, 100)

    def get_fd(self):
        return self.fd

    def close(self):
        if not self.closed:
            self.closing()
            os.close(self.fd)


class CustomChannelTests(SourcesTestCase):

    def test_a_callback_that_ends_the_program_loses_no_line(self):
        def end(*result):
            raise SystemExit
        channel, peer = self.open_pipes(buffering='line')
        self.poller.register(channel, end)
        peer.send(b'a\nb\nc\n')
        with self.assertRaises(SystemExit):
            self.poll()
        self.assertEqual([(b'b\n', channel), (b'c\n', channel)], self.poll(2))

    def test_an_unknown_buffering(self):
        with self.assertRaisesRegex(ValueError, "not 'lines'"):
            Poller(buffering='lines')

    def test_what_is_no_source(self):
        with self.assertRaisesRegex(TypeError, 'add_server'):
            self.poller.register(object())

    def open(self, **options):
        faucet, sink = os.pipe()
        channel = Polled(faucet, **options)
        self.addCleanup(channel.close)
        self.addCleanup(os.close, sink)
        return channel, sink

    def test_polled(self):
        channel, sink = self.open(buffering='line')
        self.poller.register(channel)
        os.write(sink, b'a\nb\n')
        self.assertEqual([(b'a\n', channel), (b'b\n', channel)],
                         self.poll())

    def test_closed(self):
        channel, _ = self.open()
        self.poller.register(channel)
        self.assertEqual([], self.poller.poll(0))
        channel.close()
        self.assertTrue(channel.closed)
        self.assertEqual([], self.poll_to_end(channel))

    def test_closed_by_another_thread_meanwhile(self):
        for _ in range(50):
            channel, _ = self.open()
            self.poller.register(channel)
            thread = self.start(channel.close)
            self.assertEqual([], self.poll_to_end(channel))
            thread.join()

    def test_it_fails(self):
        for options in ({}, {'encoding': 'utf-8'}, {'buffering': 'line'}):
            channel, sink = self.open(error=ZeroDivisionError(), **options)
            other, peer = self.open_pipes()
            self.poller.register(channel)
            self.poller.register(other)
            os.write(sink, b'x')
            peer.send(b'y')
            with self.assertLogs(LOGGER, 'ERROR') as logs:
                results = self.poll(2)
            self.assertEqual(
                {('' if 'encoding' in options else b'', channel),
                 (b'y', other)}, {*results})
            self.assertIn('ZeroDivisionError', logs.output[0])
            self.assert_nothing_more()


class SendingTests(SourcesTestCase):

    def read_all(self, peer):
        """Have the other side read all, in a thread of its own."""
        def read():
            size.append(sum(map(len, peer.pieces())))
            self.poller.wakeup()
        size = []
        self.start(read)
        return size

    def test_poll_sends(self):
        for kind in (self.open_pipes, self.open_sockets, self.open_tcp):
            channel, peer = kind()
            self.poller.register(channel)
            channel.write(LARGE)
            channel.write_eof()
            size = self.read_all(peer)
            while not size:
                self.assertEqual([], self.poller.poll(DEADLINE))
            self.assertEqual([len(LARGE)], size)

    def test_what_was_to_be_sent_is_sent_though_unregistered(self):
        channel, peer = self.open_pipes()
        self.poller.send_for(channel)
        self.poller.register(channel)
        channel.write(LARGE)
        self.poller.unregister(channel)
        channel.write_eof()
        size = self.read_all(peer)
        while not size:
            self.assertEqual([], self.poller.poll(DEADLINE))
        self.assertEqual([len(LARGE)], size)

    def test_closed_before_a_channel_that_ended_but_keeps_something(self):
        for kind in (self.open_pipes, self.open_sockets):
            channel, peer = kind()
            with Poller() as poller:
                poller.register(channel)
                channel.write(LARGE)
                peer.shut()
                self.assertEqual([(b'', channel)], poller.poll(DEADLINE))
            channel.close()
            self.assertTrue(channel.closed)

    def test_wait_sends(self):
        channel, peer = self.open_pipes()
        self.poller.register(channel)
        channel.write(LARGE)
        channel.write_eof()
        size = self.read_all(peer)
        while not size:
            self.assertTrue(self.poller.pause(DEADLINE))
        self.assertEqual([len(LARGE)], size)

    def test_kept_before_it_is_registered(self):
        for register in (Poller.register, Poller.send_for):
            for wrap in (False, True):
                channel, peer = self.open_pipes()
                channel.write(LARGE)
                channel.write_eof()
                register(self.poller,
                         LineChannel(channel) if wrap else channel)
                size = self.read_all(peer)
                while not size:
                    self.assertEqual([], self.poller.poll(DEADLINE))
                self.assertEqual([len(LARGE)], size)

    def test_send_for_does_not_read(self):
        channel, peer = self.open_pipes()
        self.poller.send_for(channel)
        peer.send(b'x')
        self.assertFalse(self.poller.pause(0))
        channel.write(LARGE)
        channel.write_eof()
        size = self.read_all(peer)
        while not size:
            self.assertEqual([], self.poller.poll(DEADLINE))
        self.assertEqual(b'x', channel.read())

    def test_written_by_another_thread_meanwhile(self):
        channel, peer = self.open_pipes(high_water=10 ** 9)
        self.poller.register(channel)

        def write():
            for _ in range(64):
                channel.write(LARGE[:2 ** 16])
            channel.write_eof()
        size = self.read_all(peer)
        self.start(write)
        while not size:
            self.assertEqual([], self.poller.poll(DEADLINE))
        self.assertEqual([len(LARGE)], size)

    def test_it_wakes_no_more_when_all_is_sent(self):
        channel, peer = self.open_sockets()
        self.poller.register(channel)
        channel.write(LARGE)
        thread = self.start(peer.receive, len(LARGE))
        self.poll_while(lambda: self.poller._writers)
        thread.join(DEADLINE)
        self.assertEqual(0, channel.kept)
        self.assertFalse(self.poller.pause(0))

    def test_unregistered_with_bytes_kept(self):
        channel, peer = self.open_pipes()
        self.poller.register(channel)
        channel.write(LARGE)
        self.poller.unregister(channel)
        kept = channel.kept
        peer.receive(2 ** 16)
        self.assertFalse(self.poller.pause(0))
        self.assertEqual(kept, channel.kept)
        self.assertEqual({}, self.poller._writers)

    def test_closed_with_bytes_kept(self):
        channel, _peer = self.open_pipes()
        self.poller.register(channel)
        channel.write(LARGE)
        with self.assertLogs('gocept.runner.channel', 'WARNING'):
            channel.close()
        self.assertEqual({}, self.poller._writers)
        self.assertEqual([], self.poll_to_end(channel))

    def test_a_slow_one_and_a_dead_one_do_not_delay_others(self):
        slow, _ = self.open_pipes()
        dead, dead_peer = self.open_pipes()
        lively, peer = self.open_pipes()
        for channel in (slow, dead, lively):
            self.poller.register(channel)
        slow.write(LARGE)
        dead.write(LARGE)
        dead_peer.close()
        with self.assertLogs('gocept.runner.channel', 'WARNING') as logs:
            for _ in range(10):
                peer.send(b'ping')
                results = []
                while (b'ping', lively) not in results:
                    results += self.poller.poll(DEADLINE)
                lively.write(b'pong')
                self.assertEqual(b'pong', peer.receive(4))
        self.assertEqual(1, len(logs.output))
        self.assertRegex(logs.output[0], r'\d+ bytes could not be sent')
        self.assertEqual(0, dead.kept)
        self.assertTrue(slow.kept)
        with self.assertLogs('gocept.runner.channel', 'WARNING'):
            self.poller.close_all()

    def test_a_terminal_that_was_hung_up(self):
        master, slave = os.openpty()
        os.close(os.dup(slave))
        channel = PipeChannel(slave, slave)
        self.streams.append(channel)
        self.poller.send_for(channel)
        channel.write(LARGE)
        os.close(master)
        with self.assertLogs('gocept.runner.channel', 'WARNING') as logs:
            self.poll_while(lambda: channel.kept)
        self.assertEqual(1, len(logs.output))
        self.assert_nothing_more()

    def test_an_error_is_not_said_again_and_again(self):
        # It fails as it does for a disk that is full, but can be polled.
        channel, peer = self.open_pipes()
        self.poller.register(channel)
        channel.write(LARGE)
        full = os.open('/dev/full', os.O_WRONLY)
        peer.receive(2 ** 16)
        before = channel._outgoing._send
        channel._outgoing._send = lambda piece: os.write(full, piece)
        with self.assertLogs('gocept.runner.channel', 'WARNING') as logs:
            while self.poller._writers:
                self.assertEqual([], self.poller.poll(0.01))
        self.assertLess(len(logs.output), 3)
        self.assertIn('No space left', logs.output[0])
        self.assert_nothing_more()
        self.assertTrue(channel.kept)
        channel._outgoing._send = before
        os.close(full)
        channel.write_eof()
        self.start(peer.receive_all)
        channel.flush(DEADLINE)


    def test_one_that_fails_does_not_hinder_the_others(self):
        channel, peer = self.open_pipes()
        other, other_peer = self.open_pipes()
        for each in (channel, other):
            self.poller.register(each)
        channel.write(LARGE)
        other.write(LARGE)
        with mock.patch.object(
                channel, 'send_kept', side_effect=ZeroDivisionError):
            peer.receive(2 ** 16)
            with self.assertLogs(LOGGER, 'ERROR') as logs:
                while len(self.poller._writers) > 1:
                    self.assertEqual([], self.poller.poll(0.01))
        self.assertEqual(1, len(logs.output))
        self.assertIn('nothing more is sent for it', logs.output[0])
        thread = self.start(other_peer.receive_all)
        while other.kept:
            self.assertEqual([], self.poller.poll(0.01))
        other.write_eof()
        thread.join()


class ServerTests(SourcesTestCase):

    def setUp(self):
        super().setUp()
        self.servers = []

    def listen(self, host='127.0.0.1'):
        server = listening_tcp(host)
        self.addCleanup(server.close)
        return server

    def connect(self, server):
        client = socket.socket(server.family)
        self.addCleanup(client.close)
        client.connect(server.getsockname())
        return client

    def test_clients(self):
        with tempfile.TemporaryDirectory() as directory:
            path = f'{directory}/socket'
            unix = socket.socket(socket.AF_UNIX)
            self.addCleanup(unix.close)
            unix.bind(path)
            unix.listen()
            for server in (self.listen(), self.listen('::1'), unix):
                self.poller.add_server(server)
                client = self.connect(server)
                [((address, channel), source)] = self.poll()
                self.assertIs(server, source)
                self.assertEqual(client.getsockname(), address)
                client.sendall(b'there')
                self.assertEqual([(b'there', channel)], self.poll())
                channel.write(b'back')
                self.assertEqual(b'back', client.recv(10))
                client.close()
                self.assertEqual([], self.poll_to_end(channel))
                channel.close()

    def test_the_buffering_of_clients(self):
        with Poller(buffering='line') as self.poller:
            server = self.listen()
            self.poller.add_server(server)
            client = self.connect(server)
            [((_, channel), _)] = self.poll()
            client.sendall(b'a\nb\nc')
            self.assertEqual([(b'a\n', channel), (b'b\n', channel)],
                             self.poll(2))
            self.poller.close_all()

    def test_a_client_that_cannot_be_waited_for(self):
        server = self.listen()
        self.poller.add_server(server)
        clients = [self.connect(server) for _ in range(2)]
        add = self.poller._add
        failures = [OSError(28, 'no watches are left')]

        def fail_once(watch):
            if failures:
                raise failures.pop()
            add(watch)

        with mock.patch.object(
                self.poller, '_add', fail_once), self.assertLogs(
                    LOGGER, 'ERROR') as logs:
            [((address, channel), _)] = self.poll()
        self.assertIn('no watches are left', logs.output[0])
        self.assertEqual(clients[1].getsockname(), address)
        clients[0].settimeout(DEADLINE)
        self.assertEqual(b'', clients[0].recv(1))
        clients[1].sendall(b'x')
        self.assertEqual([(b'x', channel)], self.poll())
        channel.close()

    def test_callback(self):
        server = self.listen()
        calls = []

        def accepted(client, sock):
            calls.append((client, sock))
            self.poller.register(client[1], received)

        def received(data, channel):
            calls.append((data, channel))
        self.poller.add_server(server, accepted)
        client = self.connect(server)
        client.sendall(b'x')
        self.poll_while(lambda: len(calls) < 2)
        ((address, channel), sock), second = calls
        self.assertIs(server, sock)
        self.assertEqual(client.getsockname(), address)
        self.assertEqual((b'x', channel), second)

    def test_unregistered(self):
        server = self.listen()
        self.poller.add_server(server)
        self.poller.unregister(server)
        self.connect(server)
        self.assert_nothing_more()
        self.poller.add_server(server)
        self.assertEqual(1, len(self.poll()))

    def test_added_again(self):
        server, calls = self.listen(), []
        self.poller.add_server(server)
        self.poller.add_server(server, lambda *call: calls.append(call))
        self.connect(server)
        self.poll_while(lambda: not calls)

    def test_closed_behind_its_back(self):
        server = self.listen()
        self.poller.add_server(server)
        server.close()
        if isinstance(self.poller._descriptors._readiness, PollReadiness):
            with self.assertLogs('gocept.runner.poller', 'ERROR'):
                self.poller.poll(0)
        self.assert_nothing_more()

    def test_what_cannot_be_accepted_from(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
            with self.assertRaises(ValueError):
                self.poller.add_server(server)

    def test_a_client_that_is_gone_already(self):
        server = self.listen()
        with self.connect(server) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                              b'\1\0\0\0\0\0\0\0')
        self.poller.add_server(server)
        [((_, channel), _), (data, source)] = self.poll(2)
        self.assertIs(channel, source)
        self.assertEqual(b'', data)
        self.assert_nothing_more()
        channel.close()

    def test_many_clients(self):
        server = self.listen()
        self.poller.add_server(server)
        clients = [self.connect(server) for _ in range(100)]
        for client in clients:
            client.sendall(b'x')
        results = self.poll(200)
        accepted = {pair[0][1] for pair in results if pair[1] is server}
        self.assertEqual(100, len(accepted))
        self.assertEqual(accepted, {source for data, source in results
                                    if data == b'x'})

    def test_no_descriptor_left(self):
        server = self.listen()
        channel, peer = self.open_pipes()
        self.poller.add_server(server)
        self.poller.register(channel)
        # The timer ends polls that would have nothing to return.
        tick = Timer(0, 0.001)
        with mock.patch.multiple(Server, SHORTEST_PAUSE=0.001,
                                 LONGEST_PAUSE=0.002):
            client = self.connect(server)
            with self.assertLogs('gocept.runner.poller',
                                 'WARNING') as logs:
                with no_descriptors_left():
                    self.poller.register(tick)
                    for _ in range(20):
                        peer.send(b'x')
                        results = []
                        while (b'x', channel) not in results:
                            results += self.poller.poll(DEADLINE)
                        self.assertEqual({channel, tick}, {channel, tick} | {
                            source for _, source in results})
                self.poller.unregister(tick)
                [((address, _), _)] = self.poll()
        self.assertEqual(client.getsockname(), address)
        self.assertEqual(1, len(logs.output))
        # And the next one without a pause.
        self.connect(server)
        self.poll()

    def test_unregistered_while_it_pauses(self):
        server = self.listen()
        self.poller.add_server(server)
        self.connect(server)
        with mock.patch.object(Server, 'SHORTEST_PAUSE', 0.001), \
                self.assertLogs('gocept.runner.poller', 'WARNING'), \
                no_descriptors_left():
            self.poll_while(lambda: not self.poller._schedule)
        self.poller.unregister(server)
        with self.assertNoLogs():
            self.poll_while(lambda: self.poller._schedule)
            self.assert_nothing_more()


class TimerTests(SourcesTestCase):

    def test_a_callback_that_ends_the_program_keeps_the_others(self):
        def end(*result):
            raise KeyboardInterrupt
        timers = [Timer(0, 0.001), Timer(0, 0.001)]
        self.poller.register(timers[0], end)
        self.poller.register(timers[1])
        with self.assertRaises(KeyboardInterrupt):
            self.poll()
        self.poller.unregister(timers[0])
        self.assertIs(timers[1], self.poll()[0][1])

    def test_once(self):
        timer = Timer(0.001)
        self.poller.register(timer)
        self.assertEqual([(1, timer)], self.poll())
        self.assert_nothing_more()
        self.poller.register(timer)
        self.assertTrue(self.poller.pause(DEADLINE))
        self.assertEqual([(1, timer)], self.poll())

    def test_again_and_again(self):
        timer = Timer(0, 0.001)
        self.poller.register(timer)
        for _ in range(3):
            [(expirations, source)] = self.poll()
            self.assertGreaterEqual(expirations, 1)
            self.assertIs(timer, source)

    def test_late(self):
        timer = Timer(-2.5e6, 1e6)
        self.poller.register(timer)
        self.assertEqual([(3, timer)], self.poller.poll())
        self.assert_nothing_more()

    def test_in_order(self):
        timers = [Timer(seconds) for seconds in (-1, -3, -2)]
        for timer in timers:
            self.poller.register(timer)
        self.assertEqual([(1, timers[1]), (1, timers[2]), (1, timers[0])],
                         self.poller.poll())

    def test_unregistered(self):
        timer = Timer(-1)
        self.poller.register(timer)
        self.poller.unregister(timer)
        self.assert_nothing_more()

    def test_not_due(self):
        self.poller.register(Timer(1e6))
        self.poller.register(Timer(math.inf))
        self.assertEqual([], self.poller.poll(0.001))
        self.assertFalse(self.poller.pause(0.001))

    def test_registered_by_another_thread_meanwhile(self):
        timer = Timer(0)
        self.start(self.poller.register, timer)
        self.assertEqual([(1, timer)], self.poller.poll())

    def test_unregistered_by_the_callback_of_another(self):
        calls = []

        def callback(expirations, timer):
            calls.append(timer)
            for each in timers:
                self.poller.unregister(each)
        timers = [Timer(-1, 1e6), Timer(-2, 1e6), Timer(-3)]
        for timer in timers:
            self.poller.register(timer, callback)
        self.assertEqual([], self.poller.poll(0))
        self.assertEqual([timers[2]], calls)
        self.assert_nothing_more()

    def test_registered_by_its_own_callback(self):
        calls = []

        def callback(expirations, timer):
            calls.append(timer)
            if len(calls) < 5:
                self.poller.unregister(timer)
                self.poller.register(timer, callback)
            else:
                self.poller.unregister(timer)
        for timer in (Timer(0), Timer(0, 1e6)):
            calls.clear()
            self.poller.register(timer, callback)
            self.poll_while(lambda: len(calls) < 5)
            self.assertEqual([timer] * 5, calls)
            self.assert_nothing_more()
            self.assertEqual([], self.poller._schedule)

    def test_unregistered_by_other_threads_meanwhile(self):
        stop = threading.Event()

        def register():
            while not stop.is_set():
                timer = Timer(1e6)
                self.poller.register(timer)
                self.poller.unregister(timer)
        thread = self.start(register)
        self.addCleanup(stop.set)
        for _ in range(2000):
            self.assertEqual([], self.poller.poll(0))
            self.poller.pause(0)
        stop.set()
        thread.join()


FORK_PROGRAM = '''
    import os
    import socket
    import threading

    from gocept.runner.poller import thread as module
    from gocept.runner.channel import SocketChannel
    from gocept.runner.poller import Poller, Timer, background

    def served():
        """Whether there is a background thread that calls."""
        called = threading.Event()
        background().register(Timer(0), lambda *result: called.set())
        return called.wait(60)

    def in_child(call):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                status = 0 if call() else 2
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        assert status == 0, (call, status)

    def held_by_another_thread(*locks):
        """Returns what has it release them."""
        held, release = threading.Event(), threading.Event()

        def hold():
            for lock in locks:
                lock.acquire()
            held.set()
            release.wait()
            for lock in locks:
                lock.release()
        threading.Thread(target=hold).start()
        held.wait()
        return release

    mine, theirs = socket.socketpair()
    channel = SocketChannel(mine)
    poller = Poller()
    poller.register(channel)
    timer = Timer(0)
    poller.register(timer)
    poller.wakeup()

    def empty():
        theirs.send(b'x')
        return (not poller.pause(0) and poller.poll(0) == []
                and channel.read() == b'x')

    def registers():
        poller.register(channel)
        theirs.send(b'x')
        return poller.poll() == [(b'x', channel)]

    def closes():
        # Nothing of the parent.
        poller.close()
        channel.close()
        return True

    # While another thread begins the one of the parent.
    release = held_by_another_thread(module._lock)
    in_child(served)
    release.set()

    assert served()
    old = background()
    release = held_by_another_thread(old._lock, poller._lock)
    in_child(lambda: background() is not old and served())
    in_child(lambda: old.closed and not poller.closed)
    in_child(empty)
    in_child(registers)
    in_child(closes)
    release.set()
    assert background() is old and served()

    # One child of a child, and a callback that forks.
    in_child(lambda: in_child(served) or served())
    statuses = []

    def fork(data, source):
        pid = os.fork()
        if not pid:
            os._exit(0 if poller.poll(0) == [] else 1)
        statuses.append(os.waitpid(pid, 0)[1])
    poller.register(channel, fork)
    theirs.send(b'x')
    while not statuses:
        poller.poll(60)
    assert statuses == [0], statuses
    poller.close()
    channel.close()
    theirs.close()
    print('well')
'''


class LateTests(StreamTestCase):
    """A finalizer of a user, which is run while a call holds the lock."""

    def setUp(self):
        super().setUp()
        self.poller = self.enterContext(Poller())

    def test_unregisters(self):
        channel, peer = self.open_pipes()
        self.poller.register(channel)
        with self.poller._lock:
            self.poller.unregister(channel)
        peer.send(b'not read')
        self.assertEqual([], self.poller.poll(0))
        self.assertEqual(b'not read', channel.read())

    def test_closes_a_channel_whose_end_is_told(self):
        channel, _ = self.open_pipes()
        self.poller.register(channel)
        with self.poller._lock:
            channel.close()
        self.assertEqual([(b'', channel)], self.poller.poll(DEADLINE))

    def test_the_number_is_used_again_before_that(self):
        channel, _ = self.open_pipes()
        self.poller.register(channel)
        number = channel.get_fd()
        with self.poller._lock:
            channel.close()
        other, peer = self.open_pipes()
        if other.get_fd() != number:
            os.dup2(other.get_fd(), number, inheritable=False)
            other = PipeChannel(number)
            self.addCleanup(other.close)
        self.poller.register(other)
        peer.send(b'new')
        pairs = self.poller.poll(DEADLINE)
        while len(pairs) < 2:
            pairs += self.poller.poll(DEADLINE)
        self.assertCountEqual([(b'new', other), (b'', channel)], pairs)

    def test_ends_a_wait_that_goes_on(self):
        channel, _ = self.open_pipes()
        self.poller.register(channel)
        thread = threading.Thread(target=self.poller.poll)
        thread.start()
        with self.poller._lock:
            channel.close()
        thread.join(DEADLINE)
        self.assertFalse(thread.is_alive())


class ProgramTests(TestCase):

    def test_forked(self):
        program = self.program(FORK_PROGRAM)
        self.assertEqual(0, program.end(), program.output)
        self.assertIn('well', program.output)


class Fallback:
    """Without epoll, as on other systems."""

    descriptors = 2

    def setUp(self):
        patch = mock.patch.object(descriptors, 'Readiness', PollReadiness)
        patch.start()
        self.addCleanup(patch.stop)
        super().setUp()


class FallbackPollerTests(Fallback, PollerTests):
    pass


class FallbackChannelTests(Fallback, ChannelTests):
    pass


class FallbackCustomChannelTests(Fallback, CustomChannelTests):
    pass


class FallbackSendingTests(Fallback, SendingTests):
    pass


class FallbackServerTests(Fallback, ServerTests):
    pass


class FallbackTimerTests(Fallback, TimerTests):
    pass
