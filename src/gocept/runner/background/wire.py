"""Where clients connect, and what they want.

The main thread looks at the wire whenever it has no task, and the stand-in
(see `gocept.runner.background.standin`) during a long one. All that is ready
is read at each look; then the requests have their turn, in order of receipt.
"""

import collections
import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from gocept.runner.background.connection import Connection
from gocept.runner.background.limits import Account, Complaints, Limits
from gocept.runner.background.queue import ENDED, Queue, Request
from gocept.runner.background.standin import StandIn
from gocept.runner.logs import Log
from gocept.runner.poller.poller import Poller
from gocept.runner.poller.server import Server
from gocept.runner.poller.timer import Timer
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.forks import Lock, end_fork, tell_forks
from gocept.runner.waits.standard import fill_standard
from gocept.runner.waits.threads import survived

if TYPE_CHECKING:
    import ssl

log = Log('gocept.runner.background')

BACKLOG = 512

_OFTEN = 0.01
"""Seconds after which the main thread looks at the wire between two requests,
though some wait."""

_SHORTAGES = errno.EMFILE, errno.ENFILE


class Listener(Server):
    """Accepts strangers."""

    # Few, as each one of a flood may cost an older one its place: a client
    # whose proof is under way is read in between.
    in_a_row = 16

    def __init__(self, sock: socket.socket,
                 welcome: Callable[[socket.socket], Connection | None],
                 evict: Callable[[], bool]) -> None:
        super().__init__(sock, welcome)
        self._evict = evict
        # Those who are accepted have these too.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (('TCP_KEEPIDLE', 30), ('TCP_KEEPINTVL', 10),
                            ('TCP_KEEPCNT', 3)):
            if hasattr(socket, name):
                sock.setsockopt(
                    socket.IPPROTO_TCP, getattr(socket, name), value)
        sock.listen(BACKLOG)

    def _back_off(self, error: OSError) -> None:
        # A stranger has the descriptor that is missing.
        if error.errno not in _SHORTAGES or not self._evict():
            super()._back_off(error)

    def close(self) -> None:
        """Accept nobody any more."""
        self._tell_closing(self.fileno())
        # A child that a task has forked may not have closed its copy yet.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._tell_over()


def _above_standard(sock: socket.socket) -> socket.socket:
    """The same socket where nothing is printed to."""
    with sock:
        fd = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
    fill_standard()
    return socket.socket(fileno=fd)


class _Poller(Poller):

    def after_fork(self) -> None:
        super().after_fork()
        self.close()  # nobody polls it in a child


class Wire(Closing):
    """All clients, strangers and requests of a server.

    All methods but `stop` are for the main thread.
    """

    def __init__(self, listener: socket.socket, keys: Mapping[int, bytes],
                 limits: Limits | None = None,
                 tls: 'ssl.SSLContext | None' = None,
                 report: Callable[[], Mapping[str, object]] = dict) -> None:
        """`listener` is bound, and the wire's from now on.

        `keys` are those that a client may know, by their number (see
        `gocept.runner.background.handshake`). `report` returns what a client
        is told that asks for the status, and is called by any thread.
        """
        self.limits = limits or Limits()
        self.keys = keys
        self.report = report
        self.account = Account(self.limits.queue_bytes)
        self.queue = Queue(self.limits.queue_size, self.account)
        self.complaints = Complaints(log)
        self._ending = False
        self.confirms = True
        self.life = os.urandom(4)
        while not any(self.life):
            self.life = os.urandom(4)
        self._tls = tls
        self._strangers: dict[Connection, Deadline] = {}
        self._clients: set[Connection] = set()
        self._stuck: collections.OrderedDict[Connection, None] = (
            collections.OrderedDict())
        """Those for whom answers are kept. The first has not taken any for the
        longest time."""
        self._stuck_lock = Lock()
        self._timer: Timer | None = None
        """Ends the patience with the oldest stranger."""
        self._look_at = 0.0
        self._stopping = self._forked = False
        self._poller = _Poller()
        self._listener = Listener(
            listener, self._welcome, self._evict)
        self._poller.register(self._listener, lambda *client: None)
        self._standin = StandIn(
            self._poller.poll, self._poller.wakeup, self._poller.turn)
        tell_forks(self)

    def __len__(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    # Requests

    def next(self, wait: bool = True) -> Request | None:
        """The oldest request. None after `stop`, or if there is none to wait
        for.

        The call says that the main thread is done with the request before.
        """
        standin = self._standin
        standin.task_over()
        queue = self.queue
        while not self._stopping:
            if queue and time.monotonic() < self._look_at:
                request = queue.take()
                standin.task_begins()
                return request
            if self._forked:
                end_fork()
            standin.turn.acquire()
            try:
                # The stand-in may have got a request, or the end of its wait
                # that was ours.
                self._poller.poll(
                    None if wait and not (queue or self._stopping) else 0.0)
            finally:
                standin.turn.release()
            standin.looks += 1
            self._look_at = time.monotonic() + _OFTEN
            if not queue and not wait:
                break
        if self._stopping:
            standin.task_begins()  # an exit task, which may be long
        return None

    @property
    def wakeup_fd(self) -> int:
        """See `IPoller`."""
        return self._poller.wakeup_fd

    def stop(self) -> None:
        """Have `next` return None, from now on.

        Any thread and any signal handler may call it.
        """
        self._stopping = True
        self._poller.wakeup()

    # Strangers

    def _welcome(self, sock: socket.socket) -> Connection | None:
        """Take a stranger in, or close it."""
        if sock.fileno() <= 2:  # a task has closed that one
            sock = _above_standard(sock)
        try:
            connection = Connection(sock, self, self._tls, self.life)
        except survived() as error:  # the others come in
            if not isinstance(error, OSError):  # else the peer has gone
                log.exception('A client was not taken in')
            sock.close()
            return None
        while len(self._strangers) >= self.limits.strangers:
            self._evict()
        self._strangers[connection] = Deadline(self.limits.patience)
        if self._timer is None:
            self._be_patient(self.limits.patience)
        return connection

    def _evict(self) -> bool:
        """Close the oldest stranger, unless it proves itself right now.

        False if there is none.
        """
        if not self._strangers:
            return False
        oldest = next(iter(self._strangers))
        oldest.collect()
        if oldest in self._strangers:
            self.complaints.warn(
                'The connection from %s is closed before it has proved that '
                'it knows the token, as too many others connect',
                oldest.address)
            oldest.close()
        return True

    def _be_patient(self, seconds: float) -> None:
        self._timer = Timer(seconds)
        self._poller.register(
            self._timer, lambda *result: self._lose_patience())

    def _lose_patience(self) -> None:
        """Close the strangers who had their time."""
        self._timer = None
        for stranger, deadline in [*self._strangers.items()]:
            if not deadline.passed:
                self._be_patient(deadline.left())
                return
            self.complaints.warn(
                'The connection from %s is closed, as it has not proved in '
                '%g seconds that it knows the token', stranger.address,
                self.limits.patience)
            stranger.close()

    def _forget_stranger(self, connection: Connection) -> None:
        self._strangers.pop(connection, None)
        if not self._strangers and self._timer is not None:
            self._poller.unregister(self._timer)  # it would cost each look
            self._timer = None

    # Clients

    def introduce(self, connection: Connection) -> bool:
        """See `connection.Owner`."""
        self._forget_stranger(connection)
        if len(self) >= self.limits.connections:
            self.complaints.warn(
                'A client from %s was refused: there are %d already, the '
                'limit of connections', connection.address, len(self))
            return False
        self._clients.add(connection)
        return True

    def stuck(self, connection: Connection, moves: bool) -> None:
        """See `connection.Owner`."""
        with self._stuck_lock:
            if not connection.unsent:
                self._stuck.pop(connection, None)
            else:
                self._stuck[connection] = None
                if moves:
                    self._stuck.move_to_end(connection)
            if self.account.has_room() or not self._stuck:
                victim = None
            else:
                victim, _ = self._stuck.popitem(last=False)
        if victim is not None:
            log.warning(
                '%r is closed: it does not read its answers, for which %d '
                'bytes are kept, and for all clients there are more than the '
                'limit of queue_bytes, %d', victim, victim.unsent,
                self.limits.queue_bytes)
            victim.cut_off()
        if self._ending and not connection.unsent:
            self._poller.wakeup()

    def forget(self, connection: Connection) -> None:
        """See `connection.Owner`."""
        self._forget_stranger(connection)
        self._clients.discard(connection)
        with self._stuck_lock:
            self._stuck.pop(connection, None)
        if self._ending:
            self._poller.wakeup()

    # The end

    def refuse_all(self) -> int:
        """Take no more requests, and refuse those that wait; how many."""
        self.queue.close()
        refused = 0
        while self.queue:
            refused += 1
            self.queue.take().fail(*ENDED)
        return refused

    def close_listener(self) -> None:
        """Free the port; whoever is connected stays."""
        self._standin.task_over()
        with self._standin.turn:
            self._listener.close()

    def close(self, deadline: Deadline | None = None) -> None:
        """Refuse what waits, send what is unsent, and close all.

        Without a deadline only that is sent which clients take at once.
        """
        if self._forked or self._poller.closed:
            return
        self._standin.close()
        self.close_listener()
        self._ending = True
        self.refuse_all()
        for stranger in [*self._strangers]:
            stranger.close()
        deadline = deadline or Deadline(0)
        while not deadline.passed and any(
                client.kept for client in self._clients):
            self._poller.poll(deadline.left())
        for client in [*self._clients]:
            client.close_politely()
        self._poller.close()

    def after_fork(self) -> None:
        """In a child, which a task has forked: nothing here is the child's."""
        self._forked = True
        self._listener.socket.close()
        for connection in (*self._strangers, *self._clients):
            connection.close_in_child()
        while self.queue:
            self.queue.take()
