"""All clients of a kernel, and the sockets at which they arrive."""

import collections
import socket
from collections.abc import Callable

from gocept.runner.kernel.wire.connection import Connection
from gocept.runner.kernel.wire.conversation import Operations
from gocept.runner.kernel.wire.limits import Limits
from gocept.runner.kernel.wire.peers import Peers
from gocept.runner.logs import Log
from gocept.runner.poller.server import Server
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.threads import survived

log = Log('gocept.runner.kernel')

_SILENCE = 10.0  # seconds between two lines in the log on refused clients

_TURNED_AWAY = 16  # refused clients that may still read why


class Clients:
    """Those who are connected, and what is kept for them."""

    def __init__(self, operations: Operations, limits: Limits, peers: Peers,
                 version: str) -> None:
        self.operations = operations
        self.limits = limits
        self.peers = peers
        self.version = version
        self.traffic = 0
        """How many bytes are kept for all of them."""
        self.arrived = 0
        """How many were taken in so far."""
        self.refused = 0
        """How many were not."""
        self._next_word = Deadline(0)
        self._turned_away: collections.deque[socket.socket] = (
            collections.deque())
        self.on_empty: Callable[[], object] = lambda: None
        """Is called when the last one has left."""
        self._connections: dict[Connection, None] = {}
        self._sessions: dict[str, set[Connection]] = {}
        self._stuck: dict[Connection, int] = {}
        """Those for whom bytes are kept. The first has not moved for the
        longest time."""

    def __len__(self) -> int:
        return len(self._connections)

    def welcome(self, sock: socket.socket) -> Connection | None:
        """Take a client in, or tell it in a line why not."""
        try:
            return self._welcome(sock)
        except survived():  # a mistake of ours; the other clients come in
            log.exception('A client was not taken in')
            sock.close()
            return None

    def _welcome(self, sock: socket.socket) -> Connection | None:
        reason = self.peers.refusal(sock)
        if not reason and len(self) >= self.limits.connections:
            reason = (f'there are {len(self)} clients already: start the '
                      f'kernel with --limit connections={2 * len(self)}')
        if reason:
            self._refuse(sock, reason)
            return None
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(
            sock, self.operations, self, self.limits, self.version)
        if connection.closed:
            return None
        self.arrived += 1
        self._connections[connection] = None
        return connection

    def _refuse(self, sock: socket.socket, reason: str) -> None:
        self.refused += 1
        # Whoever may not talk to the kernel cannot fill its log either.
        if self._next_word.passed:
            self._next_word = Deadline(_SILENCE)
            log.warning('A client was refused: %s (%d since the start)',
                        reason, self.refused)
        sock.setblocking(False)
        try:
            sock.send(f'Error: {reason}\n'.encode())
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # it is gone
            sock.close()
            return
        # To close it while the client sends would break the connection, and
        # the client might not see the line. Nothing is read from it.
        self._turned_away.append(sock)
        if len(self._turned_away) > _TURNED_AWAY:
            self._turned_away.popleft().close()

    def is_gone(self, sock: socket.socket) -> bool:
        """See `connection.Owner`."""
        return self.peers.is_gone(sock)

    def introduce(self, connection: Connection) -> None:
        """See `connection.Owner`."""
        self._sessions.setdefault(connection.session, set()).add(connection)

    def is_live(self, session: str) -> bool:
        """Whether a client with this session is connected."""
        return session in self._sessions

    def count(self, connection: Connection, added: int) -> None:
        """See `connection.Owner`."""
        self.traffic += added
        kept = self._stuck.pop(connection, 0) + added
        if kept:
            self._stuck[connection] = kept
        while self.traffic > self.limits.traffic and self._stuck:
            self._cut_off(next(iter(self._stuck)))

    def _cut_off(self, connection: Connection) -> None:
        log.warning(
            '%r is closed: %d bytes are kept for it and %d for all clients, '
            'more than the limit of %d', connection,
            self._stuck[connection], self.traffic, self.limits.traffic)
        connection.close()

    def forget(self, connection: Connection) -> None:
        """See `connection.Owner`."""
        connections = self._sessions.get(connection.session)
        if connections is not None:
            connections.discard(connection)
            if not connections:
                del self._sessions[connection.session]
        if self._connections.pop(connection, connection) is None and (
                not self._connections):
            self.on_empty()

    def close(self) -> None:
        """Close all of them."""
        for connection in [*self._connections]:
            connection.close()
        while self._turned_away:
            self._turned_away.popleft().close()


class Listener(Server):
    """A socket at which clients arrive; a poller accepts and serves them."""

    def __init__(self, sock: socket.socket, clients: Clients) -> None:
        super().__init__(sock, clients.welcome)
        self.clients = clients

    def close(self) -> None:
        """Accept nobody any more; those who are in stay."""
        self._tell_closing(self.fileno())
        self.socket.close()
        self._tell_over()
