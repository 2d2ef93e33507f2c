import os
import select
import tempfile
import threading
from unittest import mock

from gocept.runner.poller.descriptors import (
    READABLE,
    WRITABLE,
    Descriptors,
    WakeUp,
)
from gocept.runner.tests.streams import StreamTestCase
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import PollReadiness


class WakeUpTests(StreamTestCase):

    def setUp(self):
        super().setUp()
        self.pipe = WakeUp()
        self.addCleanup(self.pipe.close)

    def test_woken(self):
        self.assertFalse(self.pipe.drain())
        for _ in range(3):
            self.pipe.wake()
        self.assertTrue(self.pipe.drain())
        self.assertFalse(self.pipe.drain())

    def test_a_nudge_is_no_wake_up(self):
        self.pipe.nudge()
        self.assertFalse(self.pipe.drain())
        self.pipe.nudge()
        self.pipe.wake()
        self.pipe.nudge()
        self.assertTrue(self.pipe.drain())

    def test_more_than_a_pipe_holds(self):
        for _ in range(100_000):
            self.pipe.wake()
        self.assertTrue(self.pipe.drain())
        self.assertFalse(self.pipe.drain())

    def test_nothing_once_closed(self):
        self.pipe.close()
        self.pipe.close()
        self.pipe.wake()
        self.assertFalse(self.pipe.drain())

    def test_nothing_is_written_to_what_others_have_opened_there(self):
        self.assertFalse(self.pipe.is_lost)
        with tempfile.TemporaryFile() as file:
            for fd in self.pipe.faucet, self.pipe.sink:
                os.dup2(file.fileno(), fd)
                self.addCleanup(os.close, fd)
            self.pipe.wake()
            self.assertTrue(self.pipe.is_lost)
            self.assertEqual(0, os.fstat(file.fileno()).st_size)

    def test_woken_by_who_has_interrupted_its_own_thread(self):
        with self.pipe._lock:  # as if within `wake`
            self.pipe.wake()
        self.assertTrue(self.pipe.drain())

    def test_closed_in_a_child_though_a_thread_of_the_parent_writes(self):
        held, release = threading.Event(), threading.Event()

        def hold():
            with self.pipe._lock:
                held.set()
                release.wait()
        self.start(hold)
        self.addCleanup(release.set)
        held.wait(DEADLINE)
        self.pipe.close_in_child()
        self.assertEqual(-1, self.pipe.sink)


class DescriptorsTests(StreamTestCase):

    def setUp(self):
        super().setUp()
        self.descriptors = self.make()
        self.addCleanup(self.descriptors.close)
        self.faucet, self.sink = self.pipe()

    def make(self):
        return Descriptors()

    def pipe(self):
        pair = os.pipe()
        for fd in pair:
            self.addCleanup(os.close, fd)
        return pair

    def ready(self):
        return {fd for fd, _ in self.descriptors.wait(0)}

    def test_what_can_be_read(self):
        self.descriptors.add(self.faucet, READABLE)
        self.assertEqual(set(), self.ready())
        os.write(self.sink, b'x')
        self.assertEqual({self.faucet}, self.ready())
        self.descriptors.drop(self.faucet, READABLE)
        self.assertEqual(set(), self.ready())
        self.descriptors.add(self.faucet, READABLE)
        self.assertEqual({self.faucet}, self.ready())

    def test_what_can_be_written(self):
        for _ in range(2):
            self.descriptors.add(self.sink, WRITABLE)
            self.assertEqual({self.sink}, self.ready())
        for _ in range(2):
            self.descriptors.drop(self.sink, WRITABLE)
            self.assertEqual(set(), self.ready())

    def test_one_that_is_read_and_written(self):
        self.descriptors.add(self.sink, READABLE)
        self.assertEqual(set(), self.ready())
        self.descriptors.add(self.sink, WRITABLE)
        self.assertEqual({self.sink}, self.ready())
        self.descriptors.drop(self.sink, WRITABLE)
        self.assertEqual(set(), self.ready())

    def test_an_end_of_what_is_not_waited_for_any_more(self):
        self.descriptors.add(self.faucet, READABLE)
        os.write(self.sink, b'x')
        self.descriptors.drop(self.faucet, READABLE)
        os.dup2(self.faucet, self.sink)  # closes the only writer
        self.assertEqual(set(), self.ready())

    def test_what_is_closed_is_forgotten(self):
        self.descriptors.add(self.sink, READABLE)
        self.descriptors.add(self.sink, WRITABLE)
        self.descriptors.forget(self.sink)
        self.assertEqual(set(), self.ready())
        self.descriptors.forget(self.sink)

    def test_closed_without_a_word_and_used_again(self):
        faucet, sink = os.pipe()
        self.descriptors.add(faucet, READABLE)
        os.close(faucet)
        os.close(sink)
        self.assertEqual(faucet, os.dup(self.faucet))
        self.addCleanup(os.close, faucet)
        os.write(self.sink, b'x')
        self.descriptors.add(faucet, READABLE)
        self.assertIn(faucet, self.ready())
        self.descriptors.forget(faucet)

    def test_closed_without_a_word_and_dropped(self):
        faucet, sink = os.pipe()
        self.descriptors.add(faucet, READABLE)
        os.close(faucet)
        os.close(sink)
        self.descriptors.drop(faucet, READABLE)
        self.assertEqual(set(), self.ready())

    def test_a_descriptor_that_is_not_open(self):
        faucet, sink = os.pipe()
        os.close(faucet)
        os.close(sink)
        with self.assertRaises(OSError):
            self.descriptors.add(faucet, READABLE)
        self.descriptors.drop(faucet, READABLE)

    def test_a_regular_file_cannot_be_waited_for(self):
        with tempfile.TemporaryFile() as file:
            for event in READABLE, WRITABLE:
                with self.assertRaises(PermissionError):
                    self.descriptors.add(file.fileno(), event)
        self.assertEqual(set(), self.ready())

    def test_woken(self):
        self.descriptors.pipe.wake()
        self.assertEqual(
            [(self.descriptors.pipe.faucet, select.POLLIN)],
            self.descriptors.wait(DEADLINE))
        self.descriptors.pipe.drain()
        self.assertEqual(set(), self.ready())

    def test_a_nudge_is_for_who_waits(self):
        self.descriptors.nudge()
        self.assertEqual(set(), self.ready())
        self.descriptors.waiting = True
        self.descriptors.nudge()
        self.assertEqual({self.descriptors.pipe.faucet}, self.ready())

    def test_closed_twice(self):
        self.descriptors.close()
        self.descriptors.close()

    def test_nothing_is_left_when_it_cannot_be_made(self):
        with (mock.patch('os.pipe', side_effect=OSError(24, 'full')),
              self.assertRaises(OSError)):
            self.make()


class PollDescriptorsTests(DescriptorsTests):

    def make(self):
        with mock.patch('gocept.runner.poller.descriptors.Readiness',
                        PollReadiness):
            return Descriptors()

    def test_a_descriptor_that_is_not_open(self):
        faucet, sink = os.pipe()
        os.close(faucet)
        os.close(sink)
        # poll() takes it, and says so when it is asked.
        self.descriptors.add(faucet, READABLE)
        self.assertEqual([(faucet, select.POLLNVAL)],
                         self.descriptors.wait(DEADLINE))

    def test_a_regular_file_cannot_be_waited_for(self):
        with tempfile.TemporaryFile() as file:
            self.descriptors.add(file.fileno(), READABLE)
            self.assertEqual({file.fileno()}, self.ready())
            self.descriptors.forget(file.fileno())

    def test_changes_are_seen_by_who_waits(self):
        self.descriptors.waiting = True
        self.descriptors.add(self.faucet, READABLE)
        self.assertEqual({self.descriptors.pipe.faucet}, self.ready())
