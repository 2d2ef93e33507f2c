"""Clients of the pages of a house, for tests."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from gocept.runner.house import http
from gocept.runner.house.http import Handler, Server
from gocept.runner.poller import Poller
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.names import listening


class Polled:
    """A poller with a thread of its own, as a house has one."""

    def __init__(self) -> None:
        self.poller = Poller()
        self._calls: list[Callable[[], object]] = []
        self._is_over = False
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._is_over:
            self.poller.poll()
            while self._calls:
                self._calls.pop(0)()

    def call(self, function: Callable[[], object]) -> None:
        """Have the thread call it, and wait for that."""
        done = threading.Event()
        self._calls += function, done.set
        self.poller.wakeup()
        assert done.wait(DEADLINE)

    def __enter__(self) -> 'Polled':
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over = True
        self.poller.wakeup()
        self._thread.join(DEADLINE)
        self.poller.close()


class Served:
    """A server on a port of its own, and a way to ask it."""

    def __init__(self, polled: Polled, server: Server) -> None:
        self.polled, self.server = polled, server
        self.port = int(str(server).rpartition(':')[2])

    def connect(self) -> socket.socket:
        """A client."""
        return socket.create_connection(
            ('127.0.0.1', self.port), timeout=DEADLINE)

    def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """The head and the body of the answer to what is sent."""
        with self.connect() as client:
            client.sendall(request)
            return answer_of(client)

    def get(self, path: str, host: str = 'localhost') -> tuple[bytes, bytes]:
        """The head and the body of the answer to a request."""
        return self.ask(
            f'GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n'.encode('latin-1'))


def answer_of(client: socket.socket) -> tuple[bytes, bytes]:
    """The head and the body that a client gets, up to the end."""
    answer = b''
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(65536):
            answer += data
    head, _, body = answer.partition(b'\r\n\r\n')
    return head, body


@contextlib.contextmanager
def serving(handler: Handler, **options: frozenset[str]) -> Iterator[Served]:
    """Serve what `handler` answers."""
    with Polled() as polled:
        sock = listening('127.0.0.1', 0)
        server: list[Server] = []
        polled.call(lambda: server.append(
            http.Server(polled.poller, sock, handler, **options)))
        try:
            yield Served(polled, server[0])
        finally:
            polled.call(server[0].close)
