import contextlib
import os
import resource
import socket
import tempfile
from functools import partial

from gocept.runner.channel import SocketChannel
from gocept.runner.poller.server import Server
from gocept.runner.tests.streams import StreamTestCase, listening_tcp


@contextlib.contextmanager
def no_descriptors_left():
    """Open as many as may be open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    fds = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (fds[0] + 50, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                fds.append(os.dup(0))
        yield fds
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in fds:
            os.close(fd)


class ServerTests(StreamTestCase):

    def setUp(self):
        super().setUp()
        self.socket = listening_tcp()
        self.addCleanup(self.socket.close)
        self.server = Server(self.socket, SocketChannel)

    def connect(self):
        client = socket.create_connection(self.socket.getsockname())
        self.addCleanup(client.close)
        return client

    def collect(self):
        clients, over = self.server.collect()
        for _, channel in clients:
            self.addCleanup(channel.close)
        return clients, over

    def test_nobody(self):
        self.assertFalse(self.socket.getblocking())
        self.assertEqual(([], False), self.collect())
        self.assertEqual(self.socket.fileno(), self.server.fileno())

    def test_clients(self):
        expected = [self.connect().getsockname() for _ in range(3)]
        clients, over = self.collect()
        self.assertEqual(expected, [address for address, _ in clients])
        self.assertFalse(over)
        for _, channel in clients:
            self.assertEqual(b'', channel.read())

    def test_so_many_that_others_have_their_turn(self):
        for _ in range(70):
            self.connect()
        self.assertEqual([64, 6, 0],
                         [len(self.collect()[0]) for _ in range(3)])

    def test_the_buffering_of_clients(self):
        self.server = Server(
            self.socket, partial(SocketChannel, buffering='line'))
        self.connect()
        [(_, channel)], _ = self.collect()
        self.assertEqual('line', channel.buffering)

    def test_a_unix_socket(self):
        with tempfile.TemporaryDirectory() as directory, \
                socket.socket(socket.AF_UNIX) as listening, \
                socket.socket(socket.AF_UNIX) as client:
            listening.bind(f'{directory}/socket')
            listening.listen()
            self.server = Server(listening, SocketChannel)
            client.connect(f'{directory}/socket')
            [(address, _)], _ = self.collect()
            self.assertEqual('', address)

    def test_what_listens_no_more(self):
        self.socket.close()
        with self.assertLogs('gocept.runner.poller', 'ERROR'):
            self.assertEqual(([], True), self.collect())
        with socket.socket() as other:
            self.server = Server(other, SocketChannel)
            with self.assertLogs('gocept.runner.poller', 'ERROR'):
                self.assertEqual(([], True), self.collect())

    def test_no_stream_socket(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            with self.assertRaisesRegex(ValueError, 'stream socket'):
                Server(other, SocketChannel)

    def test_no_descriptor_left(self):
        self.connect()
        self.assertEqual(0, self.server.pause)
        pauses = []
        with self.assertLogs('gocept.runner.poller', 'WARNING') as logs:
            with no_descriptors_left():
                for _ in range(7):
                    self.assertEqual(([], False), self.collect())
                    pauses.append(self.server.pause)
        self.assertEqual(1, len(logs.output))
        self.assertIn('Too many open files', logs.output[0])
        self.assertEqual([0.05, 0.1, 0.2, 0.4, 0.8, 1, 1], pauses)
        self.assertEqual(1, len(self.collect()[0]))
        self.assertEqual(0, self.server.pause)
        # It is said again when it happens again.
        self.connect()
        with self.assertLogs('gocept.runner.poller', 'WARNING'):
            with no_descriptors_left():
                self.collect()

    def test_some_before_there_is_no_descriptor_left(self):
        self.connect()
        self.connect()
        with self.assertLogs('gocept.runner.poller', 'WARNING'):
            with no_descriptors_left() as fds:
                os.close(fds.pop())
                clients, _ = self.collect()
        self.assertEqual(1, len(clients))
        self.assertGreater(self.server.pause, 0)
        self.assertEqual(1, len(self.collect()[0]))
