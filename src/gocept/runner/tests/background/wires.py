"""A wire for a test, a thread that is its main thread, and clients by hand."""

import collections
import contextlib
import json
import os
import socket
import ssl
import threading
import unittest
from collections.abc import Callable

from gocept.runner.background.frames import (
    ANSWERS,
    AWAIT,
    EXEC,
    FAILURE,
    Message,
    Opener,
    Piece,
    Sealer,
)
from gocept.runner.background.handshake import (
    ANSWER_SIZE,
    CHALLENGE_SIZE,
    STATUS_KEY,
    TOKEN,
    prove,
)
from gocept.runner.background.limits import Limits
from gocept.runner.background.queue import Request
from gocept.runner.background.wire import Wire
from gocept.runner.tests.support import DEADLINE, open_descriptors
from gocept.runner.waits.deadline import Deadline

KEYS = {TOKEN: b'a token', STATUS_KEY: b'a key for the status'}

HOST = '127.0.0.1'


def joined(message: Message | Request) -> bytes:
    """The payload in one piece."""
    return b''.join(message.pieces)


class RawClient:
    """A client whose every byte the test decides about."""

    def __init__(self, address: tuple[str, int], *,
                 tls: ssl.SSLContext | None = None, buffer: int = 0) -> None:
        """`buffer`: how many bytes the system may keep, if not the usual."""
        self.sock = socket.socket()
        self.sock.settimeout(DEADLINE)
        if buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        try:
            self.sock.connect(address)
            if tls is not None:
                self.sock = tls.wrap_socket(self.sock, server_hostname=HOST)
        except BaseException:
            self.sock.close()
            raise
        self.is_secured = tls is not None
        self.number = 0
        self.heard: collections.deque[Message] = collections.deque()

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the end only."""
        data = b''
        while len(data) < size and (piece := self.sock.recv(
                size - len(data))):
            data += piece
        return data

    def shake_hands(self, key_number: int = TOKEN, key: bytes | None = None,
                    ) -> 'RawClient':
        """Prove to know a key."""
        proof = prove(self.read(CHALLENGE_SIZE), key_number,
                      KEYS[key_number] if key is None else key,
                      tls=self.is_secured)
        self.sock.sendall(proof.data)
        agreed = proof.check(self.read(ANSWER_SIZE))
        self.sealer = Sealer(agreed.send)
        self.opener = Opener(agreed.receive, kinds=ANSWERS)
        return self

    def sealed(self, kind: int = EXEC, flags: int = AWAIT,
               *pieces: Piece) -> bytes:
        """A request, as it is sent."""
        self.number += 1
        return b''.join(self.sealer.pieces(kind, flags, self.number, pieces))

    def send(self, kind: int = EXEC, flags: int = AWAIT,
             *pieces: Piece) -> int:
        """Send a request; returns its number."""
        self.sock.sendall(self.sealed(kind, flags, *pieces))
        return self.number

    def hear(self) -> Message | None:
        """The next message; None at the end."""
        while not self.heard:
            data = self.sock.recv(2 ** 16)
            if not data:
                return None
            self.heard += self.opener.feed(data)
        return self.heard.popleft()

    def ask(self, *pieces: Piece, kind: int = EXEC, flags: int = AWAIT,
            ) -> bytes:
        """Send a request, and return what is answered to it."""
        number = self.send(kind, flags, *pieces)
        answer = self.hear()
        assert answer is not None, 'the connection was closed'
        assert answer.id == number, answer
        return joined(answer)

    def hear_error(self) -> str:
        """The word of the failure that comes next."""
        answer = self.hear()
        assert answer is not None, 'the connection was closed'
        assert answer.kind == FAILURE, answer
        return str(json.loads(joined(answer))['error'])

    def is_closed(self) -> bool:
        """Wait for the end; whether nothing has come before."""
        with contextlib.suppress(ConnectionError):
            return not self.sock.recv(1)
        return True

    def reset(self) -> None:
        """Break the connection."""
        # On, and no seconds: see socket(7).
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                             b'\1\0\0\0\0\0\0\0')
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


class WireTestCase(unittest.TestCase):
    """Leaves no descriptor and no thread behind."""

    limits = Limits()
    tls: ssl.SSLContext | None = None
    client_tls: ssl.SSLContext | None = None

    def setUp(self) -> None:
        descriptors = open_descriptors()
        threads = threading.enumerate()
        self.addCleanup(
            lambda: self.assertEqual(descriptors, open_descriptors()))
        # One of another test may end meanwhile.
        self.addCleanup(lambda: self.assertLessEqual(
            {*threading.enumerate()}, {*threads}))
        self.prepare()
        listener = socket.create_server((HOST, 0))
        self.address: tuple[str, int] = listener.getsockname()
        self.wire = Wire(listener, KEYS, self.limits, self.tls, self.report)
        self.work: Callable[[Request], object] = self.echo
        self.seen: list[bytes] = []
        """What requests have had, in the order in which they had their turn.
        """
        self.clients: list[RawClient] = []
        self.addCleanup(self.close_all)
        self.main = threading.Thread(target=self.serve)
        self.main.start()

    def prepare(self) -> None:
        """Do what has to be done before there is a wire."""

    def report(self) -> dict[str, object]:
        """What the status is."""
        return {'pid': os.getpid()}

    def serve(self) -> None:
        """What a server's main thread does."""
        while (request := self.wire.next()) is not None:
            self.seen.append(joined(request))
            self.work(request)

    @staticmethod
    def echo(request: Request) -> None:
        """A task."""
        request.respond(request.pieces)

    def stop(self) -> None:
        """End the main thread."""
        self.wire.stop()
        self.main.join(DEADLINE)
        self.assertFalse(self.main.is_alive(), 'the main thread goes on')

    def close_all(self) -> None:
        self.stop()
        self.wire.close()
        for client in self.clients:
            client.close()

    def visit(self, **options: int) -> RawClient:
        """Connect, and say nothing."""
        client = RawClient(self.address, tls=self.client_tls, **options)
        self.clients.append(client)
        return client

    def connect(self, **options: int) -> RawClient:
        """A client that is in."""
        return self.visit(**options).shake_hands()

    def busy(self) -> 'Busy':
        """Have the main thread work on a task."""
        return Busy(self)


class Busy:
    """A task that lasts as long as the block."""

    def __init__(self, test: WireTestCase) -> None:
        self._test = test
        self._begun = threading.Event()
        self._over = threading.Event()

    def __enter__(self) -> None:
        self._work, self._test.work = self._test.work, self._wait
        with contextlib.closing(self._test.connect()) as client:
            client.send(EXEC, 0, b'busy')
            assert self._begun.wait(DEADLINE)
        self._test.work = self._work

    def _wait(self, request: Request) -> None:
        self._begun.set()
        assert self._over.wait(DEADLINE)

    def __exit__(self, *error: object) -> None:
        self._over.set()


def until(condition: Callable[[], object]) -> None:
    """Wait for what nothing tells."""
    deadline = Deadline(DEADLINE)
    while not condition():
        if deadline.passed:
            raise AssertionError('that has not come true')
        threading.Event().wait(0.001)
