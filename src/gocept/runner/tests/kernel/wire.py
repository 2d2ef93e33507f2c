"""Clients of a kernel that does nothing but to record what it is asked."""

import shutil
import socket
import tempfile
import unittest
from collections.abc import Callable, Iterable
from typing import Any

from gocept.runner.channel import SocketChannel
from gocept.runner.errors import EndpointClosedException, KernelError
from gocept.runner.kernel.wire import frames
from gocept.runner.kernel.wire.clients import Clients, Listener
from gocept.runner.kernel.wire.connection import Connection
from gocept.runner.kernel.wire.conversation import Positions, Request
from gocept.runner.kernel.wire.frames import Frame, OutRecord
from gocept.runner.kernel.wire.limits import Limits
from gocept.runner.kernel.wire.peers import Peers
from gocept.runner.poller import Poller
from gocept.runner.tests.support import DEADLINE, open_descriptors
from gocept.runner.waits.deadline import Deadline

SESSION = '0123456789abcdef' * 2

GREETING = b'Papa is home. Type "help" for commands.\n> '


class FakeWatch:
    """Says what it was told."""

    def __init__(self, request: Request,
                 wakeup: Callable[[], object]) -> None:
        self.connection = request.connection
        self.told: list[Any] = []
        self.wakeup = wakeup
        names = request.params['names']
        request.begin_watch(self, {'processes': dict.fromkeys(names, 'aa')})

    def tell(self, *what: Any) -> None:
        self.told.append(what)
        self.wakeup()

    def acknowledge(self, positions: Positions | None) -> None:
        self.tell('acknowledge', positions)

    def stop(self, positions: Positions | None) -> None:
        self.tell('stop', positions)
        self.connection.finish_watch('Stopped watching')

    def drained(self) -> None:
        self.tell('drained')

    def disconnected(self) -> None:
        self.tell('disconnected')

    def send(self, *records: OutRecord, **missing: int) -> None:
        self.connection.send_output(self, records, missing)


class FakeOperations:
    """Keeps values. What it does not know is kept for the test to answer."""

    def __init__(self, wakeup: Callable[[], object]) -> None:
        self.wakeup = wakeup
        self.values: dict[str, str] = {}
        self.requests: list[Request] = []
        self.watches: list[FakeWatch] = []
        self.handled = 0

    def handle(self, request: Request) -> None:
        self.handled += 1
        params = request.params
        if request.op == 'get':
            request.answer(self.values.get(params['name']))
        elif request.op == 'set':
            self.values[params['name']] = params['value']
            request.answer()
        elif request.op == 'list-values':
            request.answer(self.values)
        elif request.op == 'echo':
            request.answer(params, request.data)
        elif request.op == 'watch':
            self.watches.append(FakeWatch(request, self.wakeup))
        elif request.op == 'remove-sockets':
            raise KernelError('there is no such\nsocket')
        elif request.op == 'remove-values':
            raise ZeroDivisionError('a mistake')
        else:
            self.requests.append(request)
            self.wakeup()


class Client:
    """One who talks to the kernel of the test."""

    def __init__(self, test: 'WireTestCase', sock: socket.socket) -> None:
        self.test = test
        self.sock = sock
        self.data = b''
        self.over = False
        self.channel = SocketChannel(sock)
        self.reader = frames.Reader()
        self.numbers = 0
        test.addCleanup(self.close)
        test.poller.register(self.channel)
        test.talking[self.channel] = self

    def take(self, data: bytes) -> None:
        self.data += data
        self.over = self.over or not data

    def say(self, data: bytes) -> None:
        try:
            self.channel.write(data)
        except EndpointClosedException:
            self.over = True

    def hear(self, end: bytes = b'> ') -> bytes:
        """What comes, up to `end`; all of it if the kernel closes."""
        self.test.wait(lambda: self.over or end in self.data)
        heard, found, rest = self.data.partition(end)
        self.data = rest
        return heard + found

    def ask(self, line: bytes, end: bytes = b'> ') -> bytes:
        self.say(line)
        return self.hear(end)

    def hear_all(self) -> bytes:
        self.test.wait(lambda: self.over)
        data, self.data = self.data, b''
        return data

    def begin_frames(self) -> None:
        self.hear()
        self.say(f'frames 1 {SESSION}\n'.encode())
        self.test.assertEqual(b'frames 1 7.5\n> ', self.hear())

    def send_frame(self, *value: Any, data: bytes = b'',
                   number: int | None = None) -> int:
        if number is None:
            self.numbers += 1
            number = self.numbers
        self.say(frames.frame(number, value, data))
        return number

    def hear_frames(self, count: int) -> list[Frame]:
        came: list[Frame] = []

        def complete() -> bool:
            data, self.data = self.data, b''
            came.extend(self.reader.feed(data))
            return self.over or len(came) >= count

        self.test.wait(complete)
        self.test.assertEqual(count, len(came))
        return came

    def request(self, op: str, data: bytes = b'', **params: Any) -> Any:
        number = self.send_frame(op, params, data=data)
        answer, = self.hear_frames(1)
        self.test.assertEqual(number, answer.number)
        return answer.value

    def shut(self) -> None:
        """Send no more."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.test.poller.unregister(self.channel)
        self.channel.close()


class TellingClients(Clients):
    """Wakes the test when one has come, was refused, or has left."""

    def welcome(self, sock: socket.socket) -> Connection | None:
        self.operations.wakeup()
        return super().welcome(sock)

    def forget(self, connection: Connection) -> None:
        super().forget(connection)
        self.operations.wakeup()


class WireTestCase(unittest.TestCase):
    """A kernel and its clients, served by one thread."""

    limits = Limits()
    family = socket.AF_UNIX

    def setUp(self) -> None:
        before = open_descriptors()
        self.addCleanup(
            lambda: self.assertEqual(before, open_descriptors()))
        self.poller = Poller()
        self.addCleanup(self.poller.close)
        self.talking: dict[SocketChannel, Client] = {}
        self.operations = FakeOperations(self.poller.wakeup)
        self.peers = Peers()
        self.addCleanup(self.peers.close)
        self.clients = TellingClients(
            self.operations, self.limits, self.peers, '7.5')
        self.addCleanup(self.clients.close)
        self.listen()

    def listen(self) -> None:
        if self.family == socket.AF_UNIX:
            directory = tempfile.mkdtemp()
            self.addCleanup(shutil.rmtree, directory)
            server = socket.socket(socket.AF_UNIX)
            server.bind(f'{directory}/kernel')
            server.listen(100)
        else:
            server = socket.create_server(('127.0.0.1', 0))
        self.address = server.getsockname()
        self.listener = Listener(server, self.clients)
        self.addCleanup(self.listener.close)
        self.poller.register(self.listener, lambda *client: None)

    def connect(self) -> Client:
        sock = socket.socket(self.family)
        try:
            sock.connect(self.address)
        except OSError:
            sock.close()
            raise
        return Client(self, sock)

    def connect_framed(self) -> Client:
        client = self.connect()
        client.begin_frames()
        return client

    def wait(self, over: Callable[[], object]) -> None:
        """Serve all until something has happened."""
        deadline = Deadline(DEADLINE)
        while not over():
            self.assertFalse(deadline.passed, 'it has not happened')
            self.serve(deadline.left())

    def serve(self, seconds: float) -> None:
        """Serve all who wait, and hand what came to the clients."""
        for data, channel in self.poller.poll(seconds):
            self.talking[channel].take(data)

    def idle(self) -> None:
        """Serve all until nothing is to be done."""
        for _ in range(20):
            self.serve(0)

    def feed(self, client: Client, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            client.say(piece)
            self.serve(0)
