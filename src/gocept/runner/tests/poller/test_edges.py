import contextlib
import os
import select
import socket
import tempfile

from gocept.runner.poller.edges import Edges, EpollEdges, PollEdges
from gocept.runner.tests.streams import StreamTestCase
from gocept.runner.tests.support import DEADLINE

LARGE = bytes(2 ** 22)


class EdgesTestCase(StreamTestCase):
    """What both have in common; `make` says which."""

    def setUp(self):
        super().setUp()
        self.always, self.waker = self.pipe()
        self.edges = self.make(self.always)
        self.addCleanup(self.edges.close)
        self.faucet, self.sink = self.pipe()

    def pipe(self):
        pair = os.pipe()
        for fd in pair:
            self.addCleanup(self.close, fd)
        return pair

    def close(self, fd):
        with contextlib.suppress(OSError):  # the test has closed it
            os.close(fd)

    def sockets(self):
        """One whose peer reads nothing, so that it cannot be written."""
        ours, theirs = socket.socketpair()
        for sock in ours, theirs:
            sock.setblocking(False)
            self.addCleanup(sock.close)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(LARGE)
        return ours, theirs

    def told(self, seconds=0):
        return {fd for fd, _ in self.edges.wait(seconds)}


class EdgesTests(EdgesTestCase):

    def make(self, always):
        return EpollEdges(always)

    def more_arrives(self):
        """After that, it is told once more."""
        os.write(self.sink, b'more')

    def test_the_one_for_this_system(self):
        self.assertIs(
            EpollEdges if hasattr(select, 'epoll') else PollEdges, Edges)

    def test_nothing_to_tell(self):
        self.edges.set_reader(self.faucet, True)
        self.assertEqual([], list(self.edges.wait(0)))
        self.assertEqual([], list(self.edges.wait(0.001)))

    def test_what_is_told_once_is_not_told_again_until_more_arrives(self):
        self.edges.set_reader(self.faucet, True)
        for _ in range(3):
            self.more_arrives()
            self.assertEqual([(self.faucet, select.POLLIN)],
                             list(self.edges.wait(DEADLINE)))
            self.assertEqual(set(), self.told())
            self.assertEqual(set(), self.told(0.001))

    def test_what_was_there_before(self):
        os.write(self.sink, b'x')
        self.edges.set_reader(self.faucet, True)
        self.assertEqual({self.faucet}, self.told(DEADLINE))
        self.assertEqual(set(), self.told())

    def test_one_that_was_told_does_not_hide_another(self):
        other, sink = self.pipe()
        for fd in self.faucet, other:
            self.edges.set_reader(fd, True)
        os.write(self.sink, b'x')
        self.assertEqual({self.faucet}, self.told(DEADLINE))
        os.write(sink, b'x')
        self.assertEqual({other}, self.told(DEADLINE))

    def test_what_was_read_in_part_is_told_once_more(self):
        self.edges.set_reader(self.faucet, True)
        os.write(self.sink, b'xyz')
        for _ in range(3):
            self.assertEqual({self.faucet}, self.told(DEADLINE))
            self.assertEqual(set(), self.told())
            os.read(self.faucet, 1)
            self.edges.fetched(self.faucet)
        self.assertEqual(set(), self.told())

    def test_an_end_is_told_once(self):
        self.edges.set_reader(self.faucet, True)
        os.close(self.sink)
        [(fd, event)] = self.edges.wait(DEADLINE)
        self.assertEqual(self.faucet, fd)
        self.assertTrue(event & ~select.POLLOUT)
        self.assertEqual(set(), self.told())

    def test_the_one_that_is_always_told(self):
        os.write(self.waker, b'x')
        for _ in range(3):
            self.assertEqual([(self.always, select.POLLIN)],
                             list(self.edges.wait(DEADLINE)))
        os.read(self.always, 1)
        self.assertEqual(set(), self.told())

    def test_removed(self):
        self.edges.set_reader(self.faucet, True)
        self.edges.set_writer(self.sink, True)
        self.edges.set_reader(self.faucet, False)
        self.edges.set_writer(self.sink, False)
        os.write(self.sink, b'x')
        self.assertEqual(set(), self.told())
        self.edges.set_reader(self.faucet, False)
        self.edges.set_writer(self.sink, False)

    def test_removed_and_there_again(self):
        self.edges.set_reader(self.faucet, True)
        os.write(self.sink, b'x')
        self.assertEqual({self.faucet}, self.told(DEADLINE))
        self.edges.set_reader(self.faucet, False)
        self.edges.set_reader(self.faucet, True)
        self.assertEqual({self.faucet}, self.told(DEADLINE))

    def test_set_twice(self):
        for _ in range(2):
            self.edges.set_reader(self.faucet, True)
            self.edges.set_writer(self.sink, True)
        os.write(self.sink, b'x')
        self.assertEqual({self.faucet, self.sink}, self.told(DEADLINE))

    def test_a_writer_is_told_again_and_again(self):
        self.edges.set_writer(self.sink, True)
        for _ in range(3):
            self.assertEqual([(self.sink, select.POLLOUT)],
                             list(self.edges.wait(DEADLINE)))

    def test_a_writer_without_space(self):
        ours, theirs = self.sockets()
        self.edges.set_writer(ours.fileno(), True)
        self.assertEqual(set(), self.told())
        while True:
            try:
                theirs.recv(2 ** 20)
            except BlockingIOError:
                break
        for _ in range(2):
            self.assertEqual({ours.fileno()}, self.told(DEADLINE))

    def test_a_writer_that_changes_does_not_repeat_its_reader(self):
        ours, theirs = self.sockets()
        self.edges.set_reader(ours.fileno(), True)
        theirs.send(b'x')
        self.assertEqual({ours.fileno()}, self.told(DEADLINE))
        for wanted in True, False, True:
            self.edges.set_writer(ours.fileno(), wanted)
            self.assertEqual(set(), self.told())

    def test_an_error_is_that_of_the_reader_once_and_of_the_writer(self):
        ours, theirs = self.sockets()
        fd = ours.fileno()
        self.edges.set_reader(fd, True)
        self.edges.set_writer(fd, True)
        theirs.close()
        events = list(self.edges.wait(DEADLINE))
        self.assertEqual({fd}, {fd for fd, _ in events})
        self.assertTrue(any(event & ~select.POLLOUT for _, event in events))
        for _ in range(3):
            self.assertEqual([(fd, select.POLLOUT)],
                             list(self.edges.wait(DEADLINE)))

    def test_closed_without_a_word_and_used_again(self):
        self.edges.set_reader(self.faucet, True)
        self.edges.set_writer(self.sink, True)
        os.write(self.sink, b'x')
        self.assertEqual({self.faucet, self.sink}, self.told(DEADLINE))
        os.close(self.faucet)
        os.close(self.sink)
        self.edges.fetched(self.faucet)
        self.assertEqual((self.faucet, self.sink), self.pipe())
        os.write(self.sink, b'x')
        self.edges.set_reader(self.faucet, True)
        self.edges.set_writer(self.sink, True)
        self.assertEqual({self.faucet, self.sink}, self.told(DEADLINE))
        self.assertEqual({self.sink}, self.told())

    def test_closed_without_a_word_and_removed(self):
        self.edges.set_reader(self.faucet, True)
        self.edges.set_writer(self.sink, True)
        os.close(self.faucet)
        os.close(self.sink)
        self.edges.set_reader(self.faucet, False)
        self.edges.set_writer(self.sink, False)
        self.assertEqual(set(), self.told())

    def test_closed_twice(self):
        self.edges.close()
        self.edges.close()


class EpollTests(EdgesTestCase):
    """What poll() cannot do."""

    def make(self, always):
        return EpollEdges(always)

    def test_what_is_set_meanwhile(self):
        os.write(self.sink, b'x')
        self.start(self.edges.set_reader, self.faucet, True)
        self.assertEqual({self.faucet}, self.told(DEADLINE))
        self.edges.set_reader(self.faucet, False)
        self.start(self.edges.set_writer, self.sink, True)
        self.assertEqual({self.sink}, self.told(DEADLINE))

    def test_a_regular_file_cannot_be_waited_for(self):
        with tempfile.TemporaryFile() as file:
            with self.assertRaises(PermissionError):
                self.edges.set_reader(file.fileno(), True)


class PollEdgesTests(EdgesTests):

    def make(self, always):
        return PollEdges(always)

    def more_arrives(self):
        self.edges.fetched(self.faucet)
        super().more_arrives()

    def test_more_is_not_noticed_before_it_was_fetched(self):
        self.edges.set_reader(self.faucet, True)
        os.write(self.sink, b'x')
        self.assertEqual({self.faucet}, self.told(DEADLINE))
        os.write(self.sink, b'x')
        self.assertEqual(set(), self.told())
        self.edges.fetched(self.faucet)
        self.assertEqual({self.faucet}, self.told(DEADLINE))

    def test_a_regular_file_is_told_once(self):
        with tempfile.TemporaryFile() as file:
            self.edges.set_reader(file.fileno(), True)
            self.assertEqual({file.fileno()}, self.told(DEADLINE))
            self.assertEqual(set(), self.told())
            self.edges.fetched(file.fileno())
            self.assertEqual({file.fileno()}, self.told(DEADLINE))

    def test_one_that_is_not_open_is_told_once(self):
        os.close(self.faucet)
        self.edges.set_reader(self.faucet, True)
        self.assertEqual([(self.faucet, select.POLLNVAL)],
                         list(self.edges.wait(DEADLINE)))
        self.assertEqual(set(), self.told())
