"""The conditions that a TCP port or a Unix socket accepts connections, or that
what is sent there has the right answer."""

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from gocept.runner.executor.conditions import listeners
from gocept.runner.executor.conditions.answer import (
    AnswerCheck,
    ConnectCheck,
    Expectation,
    question,
)
from gocept.runner.executor.conditions.base import Check, Condition, Pauses
from gocept.runner.executor.conditions.threads import in_thread
from gocept.runner.poller import Poller
from gocept.runner.process import descendants, unixsocket
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.deadline import Deadline, wait_for
from gocept.runner.waits.names import look_up

_LONGEST_CONNECT = 1.0
"""Seconds until a new attempt, as a full backlog drops connections."""

Address = tuple[int, tuple[Any, ...]]
"""A family, and an address in it as `socket.socket.connect` takes it."""


def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a name; OSError if there are none."""
    return [(family, address) for family, _, _, _, address
            in look_up(host, port)]


class Connector(Closing):
    """Connects to one of several addresses without waiting."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = addresses
        self.pending: dict[Address, tuple[socket.socket, float]] = {}
        """Attempts that have no answer yet, and when they were begun."""
        self.seen = ''

    def attempt(self) -> socket.socket | None:
        """Return a connected socket; or None, and say why in `seen`."""
        reasons = []
        for address in self._addresses:
            try:
                connected = self._look(address)
            except OSError as error:
                reasons.append(f'{_shown(address)}: {error.strerror or error}')
            else:
                if connected is not None:
                    self.seen = f'connected to {_shown(address)}'
                    return connected
                reasons.append(f'{_shown(address)}: no answer')
        self.seen = ', '.join(dict.fromkeys(reasons))
        return None

    def _look(self, address: Address) -> socket.socket | None:
        if address not in self.pending:
            self._begin(address)
        sock, begun = self.pending[address]
        if wait_for(sock.fileno(), select.POLLOUT, Deadline(0)):
            del self.pending[address]
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not error and not _is_itself(sock):
                return sock
            sock.close()
            raise OSError(error, os.strerror(error) if error else
                          'nobody listens')
        if time.monotonic() - begun > _LONGEST_CONNECT:
            del self.pending[address]
            sock.close()
        return None

    def _begin(self, address: Address) -> None:
        sock = socket.socket(address[0], socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(address[1])
        except BaseException:
            sock.close()
            raise
        self.pending[address] = sock, time.monotonic()

    def close(self) -> None:
        """Give up the attempts."""
        for sock, _ in self.pending.values():
            sock.close()
        self.pending.clear()


def _is_itself(sock: socket.socket) -> bool:
    """Whether a socket is connected with itself.

    The system does that if it chooses the far port for the near end, too.
    """
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # closed already, by the other side
        return False


def _shown(address: Address) -> str:
    host, port = address[1][:2]
    return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


class tcp(Condition):
    """That a port accepts connections, or gives the right answer.

    With port 0 a free one is chosen, and held until the child listens. Its
    number replaces ``{port}`` in the command.
    """

    _reserved: socket.socket | None = None

    looked_up: Future[list[Address]] | None = None
    """What `holds_already` has looked up for the next check."""

    def __init__(self, host: str, port: int, *, send: bytes | None = None,
                 expect: Expectation | None = None) -> None:
        if not isinstance(port, int) or not 0 <= port < 2 ** 16:
            raise ValueError(f'a port is a number up to 65535, not {port!r}')
        self.question = question(send, expect)
        self.host = host
        self._chosen = self._is_in_command = port == 0
        if self._chosen:
            self._reserved = listeners.reserve(host)
            port = self._reserved.getsockname()[1]
        self.port = port

    def replaced(self, text: str) -> str:
        return (text.replace('{port}', str(self.port))
                if self._is_in_command else text)

    def check(self) -> Check:
        check = TCPCheck(self)
        return (check if self.question is None
                else AnswerCheck(check, self.question))

    def take_port(self, other: 'tcp') -> None:
        """Take over a port that `other` has chosen, if it is the same one.

        A command with ``{port}``, which was made for `other`, gets this port.
        """
        self._is_in_command |= other._is_in_command
        if other._chosen and other.port == self.port:
            self._chosen = True
            self._reserved, other._reserved = other._reserved, None

    def hold(self) -> None:
        """Hold a port that was chosen, for the next child."""
        if self._chosen and self._reserved is None:
            # If another process listens there now, `holds_already` has told.
            with contextlib.suppress(OSError):
                self._reserved = listeners.reserve(self.host, self.port)

    def release(self) -> None:
        """Let go of the port, as the child listens."""
        reserved, self._reserved = self._reserved, None
        if reserved is not None:
            reserved.close()

    def __del__(self) -> None:
        self.release()

    def look_up(self, poller: Poller) -> Future[list[Address]]:
        """Look the name up in a thread, as that may take long."""
        return in_thread(lambda: resolve(self.host, self.port), poller)

    def holds_already(self, poller: Poller, deadline: Deadline) -> str:
        looked_up = self.look_up(poller)
        try:
            addresses = looked_up.result(deadline.left())
        except OSError:
            return ''  # the check will look it up again, and tell
        self.looked_up = looked_up
        with Connector(addresses) as connector:
            sock = connector.attempt()
            if sock is not None:
                sock.close()
            # A port of this machine that does not answer has a full backlog.
            elif not connector.pending or not listeners.on_port(self.port):
                return ''
        return (listeners.holder(listeners.on_port(self.port),
                                 f'port {self.port}')
                or f'something listens on {self.host} port {self.port}')

    def servers(self) -> Iterator[int]:
        strangers = list(descendants.strangers())
        if strangers:  # as a rule there are none, and the table is long
            yield from listeners.among(
                strangers, listeners.on_port(self.port))


class TCPCheck(ConnectCheck):

    def __init__(self, condition: tcp) -> None:
        super().__init__(f'{condition.host} port {condition.port}')
        condition.hold()
        self._condition = condition
        self._resolving, condition.looked_up = condition.looked_up, None
        self._connector: Connector | None = None
        self._pauses = Pauses()  # between two failures of the name's look-up

    @property
    def looking(self) -> bool:  # type: ignore[override]
        return (not self._resolving.done() if self._connector is None
                and self._resolving is not None
                else self._connector is not None
                and bool(self._connector.pending))

    def connect(self) -> socket.socket | None:
        if self._connector is None:
            if not self._pauses.over:
                return None
            resolving = self._resolving = (
                self._resolving or self._condition.look_up(self.poller))
            if not resolving.done():
                self.seen = f'the name {self._condition.host!r} is looked up'
                return None
            try:
                self._connector = Connector(resolving.result())
            except OSError as error:
                self.seen = f'{self._condition.host!r}: {error}'
                self._resolving = None
                self._pauses.begin()
                return None
        sock = self._connector.attempt()
        self.seen = self._connector.seen
        if sock is not None:
            self._condition.release()
        return sock

    def close(self) -> None:
        if self._connector is not None:
            self._connector.close()


class unix(Condition):
    """That a Unix socket accepts connections, or gives the right answer."""

    def __init__(self, path: str | os.PathLike[str], *,
                 send: bytes | None = None,
                 expect: Expectation | None = None) -> None:
        self.path = os.fspath(path)
        if not self.path:
            raise ValueError('the path of a Unix socket is needed')
        self.question = question(send, expect)

    def check(self) -> Check:
        check = _UnixCheck(self.path)
        return (check if self.question is None
                else AnswerCheck(check, self.question))

    def holds_already(self, poller: Poller, deadline: Deadline) -> str:
        pid = 0
        try:
            pid = listeners.at(self.path)
        except BlockingIOError:  # its backlog is full
            pass
        except OSError:
            return ''
        return (listeners.holder(self._listeners(), self.path)
                or f'process {pid or "unknown"} listens on {self.path}')

    def servers(self) -> Iterator[int]:
        with contextlib.suppress(OSError):
            yield listeners.at(self.path)  # its path may be a relative one
        yield from listeners.among(descendants.strangers(), self._listeners())

    def _listeners(self) -> list[str]:
        """The inodes of sockets that listen there; relative paths tell none.

        Elsewhere, a socket of somebody else may have the same one.
        """
        return (listeners.on_path(self.path)
                if self.path.startswith(('/', '\0')) else [])


class _UnixCheck(ConnectCheck):

    def __init__(self, path: str) -> None:
        super().__init__(f'the Unix socket {path}')
        self._path = path

    def connect(self) -> socket.socket | None:
        try:
            sock = unixsocket.connect(self._path)
        except OSError as error:
            self.seen = error.strerror or str(error)
            return None
        self.seen = f'connected to {self._path}'
        return sock
