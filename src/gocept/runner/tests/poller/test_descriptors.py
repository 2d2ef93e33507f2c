import os
import select
import socket
import tempfile
from unittest import mock

from gocept.runner.poller import descriptors
from gocept.runner.poller.descriptors import Descriptors
from gocept.runner.poller.edges import Edges, PollEdges
from gocept.runner.tests.poller.test_server import no_descriptors_left
from gocept.runner.tests.streams import StreamTestCase
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import PollReadiness, Readiness


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

    def test_readers(self):
        self.descriptors.add_reader(self.faucet, 'reader')
        self.assertEqual(set(), self.ready())
        os.write(self.sink, b'x')
        self.assertEqual({self.faucet}, self.ready())
        self.descriptors.remove_reader(self.faucet, 'another')
        self.assertEqual({self.faucet}, self.ready())
        self.descriptors.remove_reader(self.faucet, 'reader')
        self.assertEqual(set(), self.ready())

    def test_writers(self):
        self.descriptors.add_writer(self.sink, 'writer')
        self.descriptors.add_writer(self.sink, 'writer')
        self.assertEqual({self.sink}, self.ready())
        self.descriptors.remove_writer(self.sink, 'another')
        self.assertEqual({self.sink}, self.ready())
        self.descriptors.remove_writer(self.sink, 'writer')
        self.assertEqual(set(), self.ready())

    def test_no_descriptor_is_no_writer(self):
        self.descriptors.add_writer(-1, 'writer')
        self.assertEqual({}, self.descriptors.writers)

    def test_one_that_is_read_and_written(self):
        self.descriptors.add_reader(self.sink, 'reader')
        self.assertEqual(set(), self.ready())
        self.descriptors.add_writer(self.sink, 'writer')
        self.assertEqual({self.sink}, self.ready())
        self.descriptors.remove_writer(self.sink, 'writer')
        self.assertEqual(set(), self.ready())

    def test_what_is_closed_is_forgotten(self):
        self.descriptors.add_reader(self.sink, 'reader')
        self.descriptors.add_writer(self.sink, 'writer')
        self.descriptors.forget(self.sink)
        self.assertEqual(set(), self.ready())
        self.assertEqual({}, self.descriptors.readers)
        self.assertEqual({}, self.descriptors.writers)
        self.descriptors.forget(self.sink)

    def test_closed_without_a_word_and_used_again(self):
        faucet, sink = os.pipe()
        self.descriptors.add_reader(faucet, 'reader')
        os.close(faucet)
        os.close(sink)
        self.assertEqual(faucet, os.dup(self.faucet))
        self.addCleanup(os.close, faucet)
        os.write(self.sink, b'x')
        self.descriptors.add_writer(faucet, 'writer')
        self.assertIn(faucet, self.ready())

    def test_a_descriptor_that_is_not_open(self):
        faucet, sink = os.pipe()
        os.close(faucet)
        os.close(sink)
        with self.assertRaises(OSError):
            self.descriptors.add_reader(faucet, 'reader')
        self.assertEqual({}, self.descriptors.readers)

    def test_a_regular_file_cannot_be_waited_for(self):
        with tempfile.TemporaryFile() as file:
            self.descriptors.add_reader(file.fileno(), 'reader')
            self.assertEqual(
                {file.fileno(): 'reader'}, self.descriptors.files)
            self.descriptors.remove_reader(file.fileno(), 'reader')
            self.assertEqual({}, self.descriptors.files)
            self.descriptors.add_writer(file.fileno(), 'writer')
            self.assertEqual({}, self.descriptors.writers)

    def test_woken(self):
        self.assertFalse(self.descriptors.forget_wakeups())
        self.descriptors.wake()
        self.assertEqual(
            [(self.descriptors.wakeup_read, select.POLLIN)],
            self.descriptors.wait(DEADLINE))
        self.assertTrue(self.descriptors.forget_wakeups())
        self.assertEqual(set(), self.ready())

    def test_a_nudge_is_for_who_waits_and_no_wake_up(self):
        self.descriptors.nudge()
        self.assertEqual(set(), self.ready())
        self.descriptors.waiting = True
        self.descriptors.nudge()
        self.assertEqual({self.descriptors.wakeup_read}, self.ready())
        self.assertFalse(self.descriptors.forget_wakeups())

    def test_what_is_no_news(self):
        self.assertFalse(self.descriptors.forget_wakeups())
        self.descriptors.interrupt()
        self.assertEqual({self.descriptors.wakeup_read}, self.ready())
        self.assertEqual(b'\1', self.descriptors.forget_wakeups())
        self.descriptors.interrupt()
        self.descriptors.wake()
        self.assertEqual(b'\1\0', self.descriptors.forget_wakeups())

    def test_closed_twice(self):
        self.descriptors.close()
        self.descriptors.close()

    def test_nothing_is_left_when_it_cannot_be_made(self):
        with (mock.patch('os.pipe', side_effect=OSError(24, 'full')),
              self.assertRaises(OSError)):
            self.make()


class NewsTests(StreamTestCase):
    """What has become ready since the last look."""

    readiness, edges = Readiness, Edges

    def setUp(self):
        super().setUp()
        for name, value in (('Readiness', self.readiness),
                            ('Edges', self.edges)):
            patch = mock.patch.object(descriptors, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        self.descriptors = Descriptors()
        self.addCleanup(self.descriptors.close)
        self.pipes = [self.open_pipe() for _ in range(2)]

    def open_pipe(self):
        pair = os.pipe()
        for fd in pair:
            self.addCleanup(os.close, fd)
        return pair

    def news(self):
        self.descriptors.begin_edges()
        return {fd for fd, _ in self.descriptors.wait_for_news(0)}

    def test_what_was_there_before_and_what_comes_later(self):
        (first, first_sink), (second, second_sink) = self.pipes
        self.descriptors.add_reader(first, 'first')
        os.write(first_sink, b'x')
        self.assertEqual({first}, self.news())
        self.assertEqual(set(), self.news())
        self.descriptors.add_reader(second, 'second')
        os.write(second_sink, b'x')
        self.assertEqual({second}, self.news())
        self.assertEqual(set(), self.news())
        # It is ready all the same.
        self.assertEqual({first, second}, {
            fd for fd, _ in self.descriptors.wait(0)})

    def test_what_is_read_in_part(self):
        (faucet, sink), (other, _) = self.pipes
        for fd in faucet, other:
            self.descriptors.add_reader(fd, 'reader')
        os.write(sink, b'xyz')
        self.assertEqual({faucet}, self.news())
        os.read(faucet, 1)
        for fd in faucet, other, self.descriptors.wakeup_read, -1:
            self.descriptors.fetched(fd)
        self.assertEqual({faucet}, self.news())
        self.assertEqual(set(), self.news())

    def test_removed(self):
        (faucet, sink), _ = self.pipes
        self.assertEqual(set(), self.news())
        self.descriptors.add_reader(faucet, 'reader')
        self.descriptors.add_writer(sink, 'writer')
        os.write(sink, b'x')
        self.descriptors.remove_reader(faucet, 'another')
        self.descriptors.remove_writer(sink, 'another')
        self.assertEqual({faucet, sink}, self.news())
        self.descriptors.remove_reader(faucet, 'reader')
        self.descriptors.remove_writer(sink, 'writer')
        self.descriptors.fetched(faucet)
        self.assertEqual(set(), self.news())

    def test_forgotten(self):
        (faucet, sink), _ = self.pipes
        self.descriptors.add_reader(faucet, 'reader')
        self.descriptors.add_writer(sink, 'writer')
        self.assertEqual({sink}, self.news())
        self.descriptors.forget(faucet)
        self.descriptors.forget(sink)
        os.write(sink, b'x')
        self.assertEqual(set(), self.news())

    def test_a_writer_beside_the_reader_of_the_same_socket(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            fd = ours.fileno()
            self.descriptors.add_reader(fd, 'reader')
            theirs.send(b'x')
            self.assertEqual({fd}, self.news())
            self.descriptors.add_writer(fd, 'writer')
            for _ in range(2):
                self.assertEqual([(fd, select.POLLOUT)],
                                 self.descriptors.wait_for_news(0))
            self.descriptors.remove_writer(fd, 'writer')
            self.assertEqual(set(), self.news())
            theirs.send(b'x')
            self.descriptors.fetched(fd)
            self.assertEqual({fd}, self.news())
            self.descriptors.forget(fd)

    def test_closed_without_a_word_and_used_again(self):
        (faucet, _), _ = self.pipes
        again = os.dup(faucet)
        self.descriptors.add_reader(again, 'reader')
        self.assertEqual(set(), self.news())
        os.dup2(self.pipes[1][0], again)
        self.addCleanup(os.close, again)
        os.write(self.pipes[1][1], b'x')
        self.descriptors.add_writer(again, 'writer')
        self.assertEqual({again}, self.news())
        self.descriptors.forget(again)

    def test_a_wake_up_is_told_until_it_is_forgotten(self):
        self.descriptors.wake()
        self.assertEqual({self.descriptors.wakeup_read}, self.news())
        self.descriptors.fetched(self.descriptors.wakeup_read)
        for _ in range(2):
            self.assertEqual({self.descriptors.wakeup_read}, self.news())
        self.descriptors.forget_wakeups()
        self.assertEqual(set(), self.news())

    def test_no_descriptors_are_left_for_it(self):
        (faucet, sink), (other, other_sink) = self.pipes
        self.descriptors.add_reader(faucet, 'reader')
        os.write(sink, b'x')
        with no_descriptors_left():
            self.assertEqual({faucet}, self.news())
            self.assertEqual(set(), self.news())
        # Who waits is told of what is added meanwhile.
        self.descriptors.waiting = True
        self.descriptors.add_reader(other, 'reader')
        self.assertEqual({self.descriptors.wakeup_read}, self.news())
        self.descriptors.forget_wakeups()
        os.write(other_sink, b'x')
        self.assertEqual({other}, self.news())
        for fd in faucet, other:
            self.descriptors.fetched(fd)
        self.assertEqual({faucet, other}, self.news())


class PollNewsTests(NewsTests):

    readiness, edges = PollReadiness, PollEdges


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
        self.descriptors.add_reader(faucet, 'reader')
        self.assertEqual([(faucet, select.POLLNVAL)],
                         self.descriptors.wait(DEADLINE))

    def test_a_regular_file_cannot_be_waited_for(self):
        with tempfile.TemporaryFile() as file:
            self.descriptors.add_reader(file.fileno(), 'reader')
            self.assertEqual({file.fileno()}, self.ready())
            self.descriptors.forget(file.fileno())

    def test_changes_are_seen_by_who_waits(self):
        self.descriptors.waiting = True
        self.descriptors.add_reader(self.faucet, 'reader')
        self.assertEqual({self.descriptors.wakeup_read}, self.ready())
