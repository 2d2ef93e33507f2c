import functools
import math
import os
import signal
import socket
import tempfile
import threading
import time
from unittest import mock

from gocept.runner.channel import LineChannel, PipeChannel
from gocept.runner.errors import PollerInUse
from gocept.runner.poller import Poller, Timer, descriptors
from gocept.runner.poller import server as accepting
from gocept.runner.process import Process
from gocept.runner.tests.poller.test_server import no_descriptors_left
from gocept.runner.tests.streams import (
    Alarms,
    StreamTestCase,
    listening_tcp,
    wait_readable,
)
from gocept.runner.tests.support import DEADLINE, TestCase
from gocept.runner.tests.victims import until
from gocept.runner.waits.deadline import Deadline, PollReadiness

LARGE = bytes(2 ** 22)


class PausingTestCase(StreamTestCase):

    def setUp(self):
        super().setUp()
        self.poller = Poller()
        self.addCleanup(self.poller.close)
        self.addCleanup(self.poller.close_all)

    def assertEnds(self):
        deadline = Deadline(DEADLINE)
        self.assertTrue(self.poller.pause(DEADLINE))
        # What it sees only when the time is over is no end either.
        self.assertFalse(deadline.passed)

    def assertDoesNotEnd(self):
        for _ in range(3):
            self.assertFalse(self.poller.pause(0))

    def meanwhile(self, call, *args):
        """Have another thread call it as soon as this one waits."""
        def run():
            until(lambda: self.poller._descriptors.waiting)
            call(*args)
        return self.start(run)

    def test_two_threads_that_wait(self):
        # The second one would take what is to wake the first one.
        wait = self.start(self.poller.pause)
        until(lambda: self.poller._descriptors.waiting)
        for call in self.poller.poll, self.poller.pause:
            with self.assertRaisesRegex(PollerInUse, 'another thread waits'):
                call(0)
        self.poller.wakeup()
        wait.join(DEADLINE)
        self.assertFalse(wait.is_alive())
        self.assertFalse(self.poller.pause(0))

    def test_a_callback_that_polls(self):
        told = []
        self.poller.register(Timer(0), lambda *result: told.append(
            self.poller.poll(0)))
        self.poller.poll(0)
        self.assertEqual([[]], told)

    def test_a_thread_that_was_interrupted_leaves_its_turn(self):
        def interrupt(*result):
            raise KeyboardInterrupt
        self.poller.register(Timer(0), interrupt)
        self.assertRaises(KeyboardInterrupt, self.poller.poll)
        self.start(self.poller.poll, 0).join(DEADLINE)
        results = []
        self.start(lambda: results.append(self.poller.pause(0))).join(DEADLINE)
        self.assertEqual([False], results)

    def test_a_fork_of_another_thread_may_wait(self):
        wait = self.start(self.poller.pause)
        until(lambda: self.poller._descriptors.waiting)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                self.poller.poll(0)
                status = 0
            finally:
                os._exit(status)
        self.assertEqual((pid, 0), os.waitpid(pid, 0))
        self.poller.wakeup()
        wait.join(DEADLINE)

    # Each of these has a source registered, and returns what makes it ready.

    def piece(self):
        channel, peer = self.open_sockets()
        self.poller.register(channel)
        return functools.partial(peer.send, b'x')

    def text(self):
        channel, peer = self.open_pty(encoding='utf-8')
        self.poller.register(channel)
        return functools.partial(peer.send, b'x')

    def line(self):
        channel, peer = self.open_pipes(buffering='line')
        self.poller.register(channel)
        return functools.partial(peer.send, b'a line\n')

    def line_of_another(self):
        channel, peer = self.open_pipes()
        self.poller.register(LineChannel(channel))
        return functools.partial(peer.send, b'a line\n')

    def end(self):
        channel, peer = self.open_pipes()
        self.poller.register(channel)
        return peer.close

    def reset(self):
        channel, peer = self.open_tcp()
        self.poller.register(channel)
        return peer.reset

    def closed(self):
        channel, _ = self.open_pipes()
        self.poller.register(channel)
        return channel.close

    def another_closed(self):
        channel, _ = self.open_pipes()
        self.poller.register(LineChannel(channel))
        return channel.close

    def server(self):
        server = listening_tcp()
        self.poller.add_server(server)
        return functools.partial(self.connect, server)

    def connect(self, server):
        client = socket.create_connection(server.getsockname())
        self.addCleanup(client.close)
        return client

    def client(self):
        server = listening_tcp()
        self.poller.add_server(server)
        client = self.connect(server)
        self.assertEqual(1, len(self.poller.poll(DEADLINE)))
        return functools.partial(client.sendall, b'x')

    def timer(self):
        return functools.partial(self.poller.register, Timer(0.001))

    def interval(self):
        return functools.partial(self.poller.register, Timer(0.001, 1e6))

    def file(self):
        return functools.partial(self.poller.register, self.open_file(b'x'))

    def open_file(self, content):
        file = tempfile.TemporaryFile()  # noqa: SIM115
        self.addCleanup(file.close)
        file.write(content)
        file.seek(0)
        channel = PipeChannel(os.dup(file.fileno()))
        self.streams.append(channel)
        return channel

    def process(self):
        child = Process('cat', stdin='pipe', poller=self.poller)
        self.addCleanup(child.close)
        return child.channel.write_eof

    ENDLESS = piece, text, line, line_of_another, server, client

    KINDS = (*ENDLESS, end, reset, closed, another_closed, timer, interval,
             file, process)

    def each_kind(self, kinds=KINDS):
        for kind in kinds:
            with self.subTest(kind.__name__):
                try:
                    yield kind(self)
                finally:
                    self.doCleanups()
                    self.setUp()


class PauseTests(PausingTestCase):

    def test_each_kind_of_source_ends_one_pause(self):
        for make_ready in self.each_kind():
            self.assertDoesNotEnd()
            self.meanwhile(make_ready)
            self.assertEnds()
            self.assertDoesNotEnd()

    def test_what_became_ready_before_the_first_pause(self):
        for make_ready in self.each_kind():
            make_ready()
            self.assertEnds()
            self.assertDoesNotEnd()

    def test_what_became_ready_between_two_pauses(self):
        for make_ready in self.each_kind():
            self.assertDoesNotEnd()
            make_ready()
            self.assertEnds()
            self.assertDoesNotEnd()

    def test_what_was_fetched_after_the_pause(self):
        for make_ready in self.each_kind():
            make_ready()
            self.assertEnds()
            self.fetch_all()
            self.assertDoesNotEnd()

    def fetch_all(self):
        self.assertTrue(self.poller.poll(DEADLINE))
        while self.poller.poll(0):
            pass

    def test_what_was_fetched_before_the_pause(self):
        for paused in False, True:
            for make_ready in self.each_kind():
                if paused:
                    self.assertDoesNotEnd()
                make_ready()
                self.fetch_all()
                self.assertDoesNotEnd()

    def test_what_was_not_fetched_does_not_hide_another(self):
        for make_ready in self.each_kind():
            make_other_ready = self.piece()
            make_ready()
            self.assertEnds()
            make_other_ready()
            self.assertEnds()
            self.assertDoesNotEnd()

    def test_more_after_what_was_fetched(self):
        for make_ready in self.each_kind(self.ENDLESS):
            for _ in range(3):
                make_ready()
                self.assertEnds()
                self.fetch_all()
                self.assertDoesNotEnd()

    def test_what_comes_at_once_ends_one_pause(self):
        for make_ready in [each() for each in (
                self.piece, self.line, self.end, self.closed, self.file)]:
            make_ready()
        self.poller.register(Timer(-1))
        self.poller.wakeup()
        self.assertEnds()
        self.assertDoesNotEnd()

    def test_it_fetches_nothing(self):
        channel, peer = self.open_pipes()
        self.poller.register(channel)
        peer.send(b'x')
        self.assertEnds()
        self.assertEqual([(b'x', channel)], self.poller.poll(0))

    def test_a_pause_after_a_poll_that_has_waited(self):
        make_ready = self.line()
        self.meanwhile(make_ready)
        self.assertEqual(1, len(self.poller.poll(DEADLINE)))
        self.assertDoesNotEnd()
        make_ready()
        self.assertEnds()

    def test_unregistered(self):
        for paused in False, True:
            channel, peer = self.open_pipes()
            self.poller.register(channel)
            if paused:
                self.assertDoesNotEnd()
            peer.send(b'x')
            self.poller.unregister(channel)
            self.assertDoesNotEnd()
            self.poller.register(channel)
            self.assertEnds()
            self.poller.unregister(channel)
        timer = Timer(0)
        self.poller.register(timer)
        self.poller.unregister(timer)
        self.assertDoesNotEnd()

    def test_the_end_of_a_process_that_others_have_reaped(self):
        child = Process('cat', stdin='pipe', poller=self.poller)
        self.addCleanup(child.close)
        self.assertDoesNotEnd()
        child.channel.write_eof()
        self.assertEqual(0, child.wait(DEADLINE))
        self.assertEnds()
        self.assertDoesNotEnd()
        self.assertEqual([(0, child)], self.poller.poll(0))

    def test_alarms_are_no_news(self):
        self.poller.register(self.open_pipes()[0])
        with Alarms() as alarms:
            self.assertFalse(self.poller.pause(0.02))
            self.assertTrue(alarms.count)


class LeftTests(PausingTestCase):
    """What is left of what was fetched ends a pause, as if it had just come.
    """

    def assertEndsFor(self, *sizes):
        for size in sizes:
            self.assertEnds()
            self.assertDoesNotEnd()
            results = self.poller.poll(0)
            self.assertEqual(size, sum(
                len(data) if isinstance(data, bytes) else 1
                for data, _ in results))
        self.assertDoesNotEnd()

    def test_bytes(self):
        channel, peer = self.open_pipes()
        self.poller.register(channel)
        peer.send(b'12345')
        with mock.patch('gocept.runner.channel.descriptor._READ_SIZE', 2):
            self.assertEndsFor(2, 2, 1)

    def test_the_end_after_bytes(self):
        channel, peer = self.open_pipes()
        self.poller.register(channel)
        peer.send(b'12345')
        peer.close()
        self.assertEndsFor(5, 0)

    def test_the_end_after_a_rest_of_a_line(self):
        channel, peer = self.open_pipes(buffering='line')
        self.poller.register(channel)
        peer.send(b'a\nb')
        peer.close()
        self.assertEndsFor(2, 1, 0)

    def test_clients(self):
        server = listening_tcp()
        self.poller.add_server(server)
        for _ in range(3):
            self.connect(server)
        with mock.patch.object(accepting.Server, 'in_a_row', 2):
            self.assertEndsFor(2, 1)

    def test_a_regular_file(self):
        self.poller.register(self.open_file(b'12345'))
        with mock.patch('gocept.runner.channel.descriptor._READ_SIZE', 2):
            self.assertEndsFor(2, 2, 1, 0)

    def test_lines_in_a_buffer(self):
        for wrap in False, True:
            channel, peer = self.open_pipes(
                buffering=None if wrap else 'line')
            if wrap:
                channel = LineChannel(channel)
            self.poller.register(channel)
            peer.send(b'a\nb\nc\n')
            self.assertEnds()
            self.assertEqual(b'a\n', channel.read())
            self.assertEndsFor(4)

    def test_lines_in_a_buffer_before_it_is_registered(self):
        channel, peer = self.open_pipes(buffering='line')
        peer.send(b'a\nb\n')
        wait_readable(channel)
        self.assertEqual(b'a\n', channel.read())
        self.assertDoesNotEnd()
        self.meanwhile(self.poller.register, channel)
        self.assertEndsFor(2)

    def test_what_read_until_has_left(self):
        channel, peer = self.open_pipes(buffering='line')
        self.poller.register(channel)
        peer.send(b'login: a\nb')
        channel.read_until(b'login: ', DEADLINE)
        self.assertEndsFor(2)

    def test_lines_that_were_read_meanwhile(self):
        channel, peer = self.open_pipes(buffering='line')
        self.poller.register(channel)
        peer.send(b'a\nb\n')
        wait_readable(channel)
        channel.read()
        self.assertEqual([(b'b\n', channel)], self.poller.poll(0))
        self.assertDoesNotEnd()


class ToldTests(PausingTestCase):
    """What has ended a pause ends another when it was fetched."""

    def test_more_of_what_was_not_fetched_does_not_end_it(self):
        for make_ready in self.each_kind(self.ENDLESS):
            make_ready()
            self.assertEnds()
            for _ in range(3):
                make_ready()
                self.assertDoesNotEnd()
            self.assertTrue(self.poller.poll(0))
            # A terminal passes on later what it was given.
            until(lambda: not (self.poller.poll(0) or self.poller.pause(0)))
            make_ready()
            self.assertEnds()

    def test_the_end_of_what_was_not_fetched_does_not_end_it(self):
        channel, peer = self.open_pipes()
        self.poller.register(channel)
        peer.send(b'x')
        self.assertEnds()
        peer.close()
        self.assertDoesNotEnd()
        self.assertEqual([(b'x', channel)], self.poller.poll(0))
        self.assertEnds()

    def test_closed_here_it_does(self):
        channel, peer = self.open_pipes()
        self.poller.register(channel)
        peer.send(b'x')
        self.assertEnds()
        channel.close()
        self.assertEnds()
        self.assertDoesNotEnd()
        self.assertEqual([(b'', channel)], self.poller.poll(0))

    def test_a_worker_that_polls_in_each_tick_misses_nothing(self):
        channel, peer = self.open_pipes(buffering='line')
        self.poller.register(channel)
        for number in range(100):
            peer.send(b'%d\n' % number)
            self.assertEnds()
            self.assertEqual([(b'%d\n' % number, channel)],
                             self.poller.poll(0))
        self.assertDoesNotEnd()

    def test_a_worker_that_reads_in_each_tick_misses_nothing(self):
        for options in {}, {'buffering': 'line'}, {'encoding': 'utf-8'}:
            for wrap in False, True:
                channel, peer = self.open_pipes(**options)
                if wrap:
                    channel = LineChannel(channel)
                self.poller.register(channel)
                for number in range(100):
                    peer.send(b'%d\n' % number)
                    self.assertEnds()
                    self.assertEqual(number, int(channel.read()))
                self.assertDoesNotEnd()
                self.poller.unregister(channel)

    def test_a_worker_that_reads_what_another_channel_wraps(self):
        inner, peer = self.open_pipes()
        self.poller.register(LineChannel(inner))
        for _ in range(3):
            peer.send(b'x\n')
            self.assertEnds()
            self.assertEqual(b'x\n', inner.read())
        self.assertDoesNotEnd()

    def test_a_worker_that_reads_one_line_in_each_tick(self):
        channel, peer = self.open_pipes(buffering='line')
        self.poller.register(channel)
        peer.send(b'a\nb\nc\n')
        for line in b'a\n', b'b\n', b'c\n':
            self.assertEnds()
            self.assertDoesNotEnd()
            self.assertEqual(line, channel.read())
        self.assertDoesNotEnd()

    def test_a_worker_that_reads_up_to_a_pattern_in_each_tick(self):
        channel, peer = self.open_pipes()
        self.poller.register(channel)
        peer.send(b'1;2;')
        self.assertEnds()
        self.assertEqual((b'1', b';'), channel.read_until(b';', DEADLINE))
        self.assertEnds()  # for the rest
        self.assertDoesNotEnd()
        self.assertEqual((b'2', b';'), channel.read_until(b';', DEADLINE))
        self.assertDoesNotEnd()
        peer.send(b'3;')
        self.assertEnds()

    def test_a_read_that_finds_nothing_is_a_fetch_too(self):
        channel, peer = self.open_pipes(buffering='line')
        self.poller.register(channel)
        peer.send(b'a ')
        self.assertEnds()
        self.assertEqual(b'', channel.read())
        peer.send(b'line\n')
        self.assertEnds()
        self.assertEqual(b'a line\n', channel.read())
        self.assertDoesNotEnd()

    def test_a_worker_that_reads_one_regular_file(self):
        channel = self.open_file(b'12345')
        self.poller.register(channel)
        with mock.patch('gocept.runner.channel.descriptor._READ_SIZE', 2):
            for data in b'12', b'34', b'5':
                self.assertEnds()
                self.assertDoesNotEnd()
                self.assertEqual(data, channel.read())

    def test_told_with_bytes_kept(self):
        channel, peer = self.open_sockets()
        self.poller.register(channel)
        channel.write(LARGE)
        peer.send(b'x')
        self.assertEnds()
        self.meanwhile(lambda: (peer.receive(len(LARGE)),
                                self.poller.wakeup()))
        self.assertEnds()  # and meanwhile it has sent
        self.assertEqual(0, channel.kept)
        self.assertEqual(b'x', channel.read())
        peer.send(b'y')
        self.assertEnds()
        self.assertEqual([(b'y', channel)], self.poller.poll(0))

    def test_told_while_a_handler_raises(self):
        channel, peer = self.open_pipes()
        self.poller.register(channel)
        peer.send(b'x')
        tell = self.poller._tell

        def interrupted(watch):
            tell(watch)
            raise KeyboardInterrupt
        with (mock.patch.object(self.poller, '_tell', interrupted),
              self.assertRaises(KeyboardInterrupt)):
            self.poller.pause(DEADLINE)
        self.assertEnds()
        self.assertDoesNotEnd()

    def test_what_a_poll_could_not_return_ends_it(self):
        def interrupt(data, channel):
            raise KeyboardInterrupt
        streams = [self.open_pipes(buffering='line') for _ in range(2)]
        self.poller.register(streams[0][0], interrupt)
        self.poller.register(streams[1][0])
        for _, peer in reversed(streams):
            peer.send(b'a\nb\n')
        with self.assertRaises(KeyboardInterrupt):
            while True:
                self.poller.poll(0)
        self.assertEnds()
        while self.poller.poll(0):
            pass
        self.assertDoesNotEnd()


class WakeTests(PausingTestCase):

    def test_woken_up_by_another_thread(self):
        self.meanwhile(self.poller.wakeup)
        self.assertTrue(self.poller.pause())
        self.assertDoesNotEnd()

    def test_woken_up_before_the_pause(self):
        for _ in range(3):
            self.poller.wakeup()
        self.assertTrue(self.poller.pause())
        self.assertDoesNotEnd()

    def test_a_wake_up_that_was_fetched(self):
        self.poller.wakeup()
        self.assertEqual([], self.poller.poll())
        self.assertDoesNotEnd()

    def test_a_wake_up_with_what_there_is(self):
        self.piece()()
        self.poller.wakeup()
        self.assertEnds()
        self.assertDoesNotEnd()

    def test_more_interrupts_and_wake_ups_than_a_pipe_holds(self):
        for _ in range(100_000):
            self.poller.interrupt()
            self.poller.wakeup()
        self.assertEnds()
        self.assertDoesNotEnd()

    def test_a_signal_only_asks_whether_it_is_over(self):
        for byte in signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD:
            os.write(self.poller.wakeup_fd, bytes([byte]))
            self.assertFalse(self.poller.pause(0))
            asked = iter([False, True])
            os.write(self.poller.wakeup_fd, bytes([byte]))
            self.assertTrue(self.poller.pause(None, lambda: next(asked)))

    def test_so_does_an_interrupt(self):
        self.poller.interrupt()
        self.assertFalse(self.poller.pause(0))
        over = threading.Event()
        self.meanwhile(lambda: (over.set(), self.poller.interrupt()))
        self.assertTrue(self.poller.pause(None, over.is_set))
        self.assertDoesNotEnd()

    def test_interrupted_again_and_again(self):
        asked = []

        def over():
            asked.append(True)
            self.poller.interrupt()
            return len(asked) > 99
        self.assertTrue(self.poller.pause(None, over))
        self.assertEqual(100, len(asked))

    def test_an_interrupt_does_not_hide_what_there_is(self):
        self.poller.interrupt()
        self.piece()()
        self.assertTrue(self.poller.pause(0))

    def test_an_interrupt_ends_poll(self):
        self.poller.interrupt()
        self.poller.poll()
        self.meanwhile(self.poller.interrupt)
        self.poller.poll()
        self.assertDoesNotEnd()

    def test_it_is_over_before_it_begins(self):
        self.assertTrue(self.poller.pause(None, lambda: True))

    def test_registered_by_another_thread_meanwhile(self):
        for _ in range(20):
            channel, peer = self.open_pipes()
            peer.send(b'x')
            self.meanwhile(self.poller.register, channel)
            self.assertEnds()
            self.assertDoesNotEnd()

    def test_a_timer_registered_by_another_thread_meanwhile(self):
        self.poller.register(Timer(1e6))
        for _ in range(20):
            self.meanwhile(self.poller.register, Timer(0))
            self.assertEnds()
            self.assertDoesNotEnd()


class TimeTests(PausingTestCase):

    def test_the_time_is_over(self):
        started = time.monotonic()
        self.assertFalse(self.poller.pause(0.02))
        self.assertGreaterEqual(time.monotonic() - started, 0.02)
        self.assertFalse(self.poller.pause(0))
        self.assertFalse(self.poller.pause(-1))

    def test_without_an_end(self):
        for timeout in None, math.inf, 1e9:
            self.meanwhile(self.poller.wakeup)
            self.assertTrue(self.poller.pause(timeout))

    def test_interrupts_do_not_make_it_longer_or_shorter(self):
        stop = threading.Event()

        def interrupt():
            while not stop.wait(0.001):
                self.poller.interrupt()
        thread = self.start(interrupt)
        started = time.monotonic()
        self.assertFalse(self.poller.pause(0.03))
        self.assertGreaterEqual(time.monotonic() - started, 0.03)
        stop.set()
        thread.join(DEADLINE)

    def test_a_timer_that_is_not_due(self):
        for timer in Timer(1e6), Timer(1e6, 1e6), Timer(math.inf):
            self.poller.register(timer)
        self.assertDoesNotEnd()
        self.assertFalse(self.poller.pause(0.001))

    def test_due_while_nobody_pauses(self):
        self.assertDoesNotEnd()
        timer = Timer(0.001)
        self.poller.register(timer)
        until(lambda: timer.due < time.monotonic())
        self.assertEnds()
        self.assertDoesNotEnd()

    def test_due_before_it_was_registered(self):
        for interval in None, 1e6:
            self.assertDoesNotEnd()
            timer = Timer(-5, interval)
            self.poller.register(timer)
            self.assertEnds()
            self.assertDoesNotEnd()
            self.assertEqual([(1, timer)], self.poller.poll(0))
            self.assertDoesNotEnd()

    def test_an_interval_ends_one_pause_each_time(self):
        self.poller.register(Timer(0, 0.005))
        started = time.monotonic()
        for _ in range(5):
            self.assertEnds()
        self.assertGreaterEqual(time.monotonic() - started, 0.02)

    def test_so_it_does_when_it_is_fetched(self):
        timer = Timer(0, 0.005)
        self.poller.register(timer)
        started, expirations = time.monotonic(), 0
        for _ in range(5):
            self.assertEnds()
            [(count, source)] = self.poller.poll(0)
            self.assertIs(timer, source)
            expirations += count
        self.assertGreaterEqual(
            time.monotonic() - started, (expirations - 1) * 0.005)

    def test_a_timer_that_is_registered_again(self):
        timer = Timer(0)
        for _ in range(3):
            self.poller.register(timer)
            self.assertEnds()
            self.poller.unregister(timer)
            self.assertDoesNotEnd()

    def test_timers_that_are_removed_by_other_threads(self):
        stop = threading.Event()

        def register():
            while not stop.is_set():
                timer = Timer(1e6)
                self.poller.register(timer)
                self.poller.unregister(timer)
        thread = self.start(register)
        self.addCleanup(stop.set)
        for _ in range(1000):
            self.assertFalse(self.poller.pause(0))
        stop.set()
        thread.join(DEADLINE)


class ClockTests(PausingTestCase):
    """By a clock of their own, so that each instant is looked at."""

    def setUp(self):
        super().setUp()
        self.now = 0.0
        patch = mock.patch('time.monotonic', lambda: self.now)
        patch.start()
        self.addCleanup(patch.stop)

    def begin(self):
        self.began = self.now = self.now + 1

    def ends(self, instants, fetching=False):
        """At which of these a pause is ended; each time it is just one."""
        ends = []
        for instant in instants:
            self.now = self.began + instant
            if self.poller.pause(0):
                ends.append(instant)
            self.assertDoesNotEnd()
            if fetching:
                self.poller.poll(0)
                self.assertDoesNotEnd()
        return ends

    def test_each_of_several_timers_ends_a_pause(self):
        for fetching in False, True:
            self.begin()
            for seconds in 3, 1, 2, 2:
                self.poller.register(Timer(seconds))
            self.assertEqual([1, 2, 3], self.ends(
                (0, .5, 1, 1.5, 2, 2.5, 3, 4, 100), fetching))
        self.assertFalse(self.poller._schedule)

    def test_an_interval_ends_a_pause_each_time(self):
        for fetching in False, True:
            self.begin()
            timer = Timer(1, 2)
            self.poller.register(timer)
            self.assertEqual([1, 3, 5, 8, 9, 100], self.ends(
                (0, .5, 1, 2, 3, 4, 5, 8, 8.5, 9, 100, 100.5), fetching))
            self.poller.unregister(timer)

    def test_intervals_beside_each_other(self):
        for fetching in False, True:
            self.begin()
            timers = Timer(0, 3), Timer(0, 2), Timer(5)
            for timer in timers:
                self.poller.register(timer)
            self.assertEqual([0, 2, 3, 4, 5, 6, 8, 9], self.ends(
                range(10), fetching))
            for timer in timers:
                self.poller.unregister(timer)

    def test_a_timer_that_is_fetched_late(self):
        self.begin()
        timer = Timer(1, 2)
        self.poller.register(timer)
        self.assertEqual([1], self.ends([1, 2]))
        self.now += 4
        self.assertEqual([(3, timer)], self.poller.poll(0))
        self.assertEqual([7, 9], self.ends([6, 7, 8, 9]))


class SendingTests(PausingTestCase):

    def read_all(self, peer):
        """Have the other side read all, and wake the poller then."""
        size = []
        self.start(lambda: (size.append(sum(map(len, peer.pieces()))),
                            self.poller.wakeup()))
        return size

    def test_what_is_kept_is_sent_meanwhile(self):
        for kind in self.open_pipes, self.open_sockets, self.open_tcp:
            for register in Poller.register, Poller.send_for:
                channel, peer = kind()
                register(self.poller, channel)
                channel.write(LARGE)
                channel.write_eof()
                size = self.read_all(peer)
                self.assertEnds()
                self.assertEqual([len(LARGE)], size)
                self.assertEqual(0, channel.kept)
                self.assertDoesNotEnd()
                self.assertEqual({}, self.poller._writers)

    def test_written_by_another_thread_meanwhile(self):
        channel, peer = self.open_sockets(high_water=10 ** 9)
        self.poller.register(channel)

        def write():
            for _ in range(64):
                channel.write(LARGE[:2 ** 16])
            channel.write_eof()
        size = self.read_all(peer)
        self.meanwhile(write)
        self.assertEnds()
        self.assertEqual([len(LARGE)], size)

    def test_who_sends_is_not_told_again_what_it_has_not_fetched(self):
        channel, peer = self.open_sockets()
        self.poller.register(channel)
        peer.send(b'x')
        self.assertEnds()
        channel.write(LARGE)
        self.assertDoesNotEnd()
        self.assertTrue(channel.kept)
        self.start(peer.receive, len(LARGE))
        self.assertFalse(self.poller.pause(0))
        until(lambda: self.poller.pause(0) or not channel.kept)
        self.assertEqual(0, channel.kept)
        self.assertDoesNotEnd()

    def test_one_that_is_gone_ends_one_pause(self):
        for kind in self.open_pipes, self.open_sockets, self.open_tcp:
            with self.subTest(kind.__name__):
                channel, peer = kind()
                self.poller.register(channel)
                channel.write(LARGE)
                self.assertTrue(channel.kept)
                peer.close()
                with self.assertLogs('gocept.runner.channel', 'WARNING'):
                    self.assertEnds()
                    until(lambda: self.poller.pause(0) or not (
                        self.poller._writers))
                self.assertEqual({}, self.poller._writers)
                self.assertEqual(0, channel.kept)
                self.assertDoesNotEnd()


class ClosedTests(PausingTestCase):

    def test_closed(self):
        self.poller.close()
        with self.assertRaisesRegex(RuntimeError, 'closed'):
            self.poller.pause(0)
        self.poller.interrupt()

    def test_closed_after_a_pause(self):
        self.line()
        self.assertDoesNotEnd()
        self.poller.close()
        with self.assertRaisesRegex(RuntimeError, 'closed'):
            self.poller.pause(0)

    def test_closed_by_another_thread_meanwhile(self):
        for paused in False, True:
            with Poller() as self.poller:
                self.line()
                if paused:
                    self.assertDoesNotEnd()
                self.meanwhile(self.poller.close)
                self.assertTrue(self.poller.pause())
                self.assertTrue(self.poller.closed)

    def test_a_late_interrupt_is_written_to_nobody(self):
        self.poller.close()
        read, write = os.pipe()  # gets the descriptors just closed
        with open(read, 'rb') as faucet, open(write, 'wb'):
            os.set_blocking(read, False)
            self.poller.interrupt()
            self.assertIsNone(faucet.read(1))


class FewDescriptorsTests(PausingTestCase):

    def test_no_descriptor_is_left_at_the_first_pause(self):
        channel, peer = self.open_pipes()
        self.poller.register(channel)
        with no_descriptors_left():
            self.assertDoesNotEnd()
            peer.send(b'x')
            self.assertEnds()
            self.assertDoesNotEnd()
        self.assertEqual([(b'x', channel)], self.poller.poll(0))
        self.assertDoesNotEnd()
        self.meanwhile(self.line())
        self.assertEnds()
        other, peer = self.open_pipes()
        peer.send(b'x')
        self.meanwhile(self.poller.register, other)
        self.assertEnds()


class Fallback:
    """Without epoll, as on other systems."""

    def setUp(self):
        patch = mock.patch.object(descriptors, 'Readiness', PollReadiness)
        patch.start()
        self.addCleanup(patch.stop)
        super().setUp()


class FallbackPauseTests(Fallback, PauseTests):
    pass


class FallbackLeftTests(Fallback, LeftTests):
    pass


class FallbackToldTests(Fallback, ToldTests):
    pass


class FallbackWakeTests(Fallback, WakeTests):
    pass


class FallbackTimeTests(Fallback, TimeTests):
    pass


class FallbackSendingTests(Fallback, SendingTests):
    pass


class FallbackClosedTests(Fallback, ClosedTests):
    pass


class FallbackFewDescriptorsTests(Fallback, FewDescriptorsTests):
    pass


class ForkTests(TestCase):

    def test_forked(self):
        program = self.program('''
            import os
            import socket
            from gocept.runner.channel import SocketChannel
            from gocept.runner.poller import Poller, Timer

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

            mine, theirs = socket.socketpair()
            channel = SocketChannel(mine)
            poller = Poller()
            poller.register(channel)
            poller.register(Timer(0))
            assert poller.pause(60)
            theirs.send(b'x')
            poller.wakeup()
            in_child(lambda: not poller.pause(0))

            def registers():
                poller.register(channel)
                return poller.pause(60) and not poller.pause(0)
            in_child(registers)

            def times():
                poller.register(Timer(-5))
                return poller.pause(60) and not poller.pause(0)
            in_child(times)
            # It has taken nothing of the parent's.
            assert poller.pause(60)
            assert not poller.pause(0)
            assert (b'x', channel) in poller.poll(0)
            theirs.send(b'y')
            assert poller.pause(60)
            assert (b'y', channel) in poller.poll(0)
            poller.close()
            channel.close()
            theirs.close()
            print('well')
            ''')
        self.assertEqual(0, program.end(), program.output)
        self.assertEqual('well\n', program.output)
