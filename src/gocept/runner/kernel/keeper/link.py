"""The socket between the keeper and the daemon.

Each message is one packet: JSON, [version, operation, argument], and
descriptors. What the daemon has sent is in the queue of the keeper's socket,
so it outlives the daemon. Neither end ever waits for long: who is stopped
(SIGSTOP) does not stop the other one.
"""

import collections
import contextlib
import fcntl
import json
import os
import select
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from gocept.runner.errors import KernelError
from gocept.runner.waits.closing import Owning
from gocept.runner.waits.deadline import NEVER, Deadline, wait_for
from gocept.runner.waits.packets import LONGEST, MOST_DESCRIPTORS, Packets
from gocept.runner.waits.source import Source

VERSION = 1

Outcome = Literal['ended', 'become keeper']
"""What a daemon returns with; see `Link`."""

_PATIENCE = 1.0  # seconds that the daemon waits once for a busy keeper


class KeeperGone(KernelError):
    """Raised when the keeper has died: this daemon takes its place next."""


class Message:
    """What came through the socket; KernelError for no message."""

    def __init__(self, data: bytes, descriptors: list[int]) -> None:
        try:
            self.version, self.operation, self.argument = json.loads(data)
        except (ValueError, TypeError) as error:
            raise KernelError('something else than a message came between '
                              'the keeper and the daemon') from error
        self.descriptors = descriptors


class End:
    """One end of the socket, which never blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self._packets = Packets(sock)

    @property
    def sock(self) -> socket.socket:
        """The socket."""
        return self._packets.sock

    def send(self, operation: str, argument: object = None,
             descriptors: Sequence[int] = ()) -> None:
        """Put a message into the other end's queue; see `Packets.send`."""
        self.send_data(pack(operation, argument), descriptors)

    def send_data(self, data: bytes, descriptors: Sequence[int]) -> None:
        """The same with a message that `pack` has returned."""
        self._packets.send(data, descriptors)

    def receive(self) -> Message | None:
        """The next message; None if the other end is closed.

        BlockingIOError if there is none now, KernelError for one that cannot
        be read, which is gone then.
        """
        packet = self._packets.receive()
        if packet is None:
            return None
        try:
            # What is cut off by the limit is not JSON either.
            return Message(packet.data, packet.descriptors)
        except KernelError:
            packet.discard()
            raise

    def close(self) -> None:
        """Close it."""
        self._packets.close()


def pack(operation: str, argument: object = None) -> bytes:
    """A message in bytes; KernelError if the other end takes no such one."""
    data = json.dumps([VERSION, operation, argument]).encode()
    if len(data) > LONGEST:
        raise KernelError(
            f'a message of {len(data)} bytes is too long for the keeper, '
            f'which takes {LONGEST}: choose a shorter name')
    return data


class Link(Source, Owning):
    """The daemon's end.

    A poller gets these items from it:

    * ``('status', pid, code)``: a child of a former daemon has ended, as Popen
      tells it. Record it, and call `known`, also for a pid that means nothing
      to you. Until then the number belongs to no other process, and a
      successor is told as well.
    * ``('stop',)``: the keeper was asked to end: call `stop`.
    * ``('keeper died',)``, the last one, unless it was to stop: close what
      clients have, and return 'become keeper' from the daemon's function.
      Descriptors in `table` stay open; all statuses that the keeper had told
      came before.
    """

    def __init__(self, sock: socket.socket, table: dict[str, int],
                 keeper: int, deaths: int = 0, keeper_deaths: int = 0,
                 failed_upgrades: int = 0) -> None:
        self._end = End(sock)
        self.closed = False
        self.table = table
        """What the keeper holds, with our own descriptors. Who gives one of
        them another number changes it here."""
        self.keeper = keeper
        """The keeper's pid."""
        self.deaths = deaths
        """How many daemons have died before this one."""
        self.keeper_deaths = keeper_deaths
        self.failed_upgrades = failed_upgrades
        """How often the keeper went back to old code."""
        self._left: collections.deque[bytes] = collections.deque()
        self._is_patient = True
        self._is_stopping = False
        self.is_upgrading = False
        """Whether `leave` has to be called at the end."""

    def move(self, minimum: int) -> None:
        """Give the socket another number, from `minimum` up.

        For a daemon whose other descriptors need certain numbers. No poller
        may have the link yet.
        """
        old = self._end
        self._end = End(socket.socket(fileno=fcntl.fcntl(
            old.sock.fileno(), fcntl.F_DUPFD_CLOEXEC, minimum)))
        old.close()

    def hold(self, descriptors: Mapping[str, int]) -> None:
        """Let the keeper hold these as well, in place of what it has there.

        When it returns, a successor gets them, whatever happens to this
        process. The caller goes on owning its own. KernelError if the keeper
        does not take them: then it holds a part of them or nothing, and
        `release` is to be called for all.
        """
        keys = list(descriptors)
        for first in range(0, len(keys), MOST_DESCRIPTORS):
            part = keys[first:first + MOST_DESCRIPTORS]
            self._send_now('hold', part, [descriptors[key] for key in part])
        self.table |= descriptors

    def release(self, keys: Iterable[str]) -> None:
        """Let the keeper close these. The caller closes its own."""
        gone = list(keys)
        for first in range(0, len(gone), 1000):
            self._send('release', gone[first:first + 1000])
        for key in gone:
            self.table.pop(key, None)

    def known(self, pid: int) -> None:
        """This status is recorded: the keeper can forget it."""
        self._send('known', pid)

    def ready(self) -> None:
        """This daemon serves. Until it says so, its death counts as a failure
        to start."""
        self._send('ready')

    def stop(self) -> None:
        """No successor: the keeper removes the control socket, and ends.

        The daemon may go on for as long as it likes.
        """
        self._is_stopping = True
        self._send('stop')

    def ask_to_stop(self) -> None:
        """Have the keeper do what a SIGTERM would. For signal handlers."""
        with contextlib.suppress(OSError):
            self._end.send('ask to stop')

    def upgrade(self, config: Mapping[str, object]) -> None:
        """Once this process has ended, the keeper goes on with other code.

        `config` has ``python`` and ``path``; see `Options`. The `Trial` of it
        has to have succeeded.
        """
        fd = os.memfd_create('upgrade', os.MFD_CLOEXEC)
        with open(fd, 'w+b', buffering=0) as file:
            file.write(json.dumps(config).encode())
            self._send_now('upgrade', None, [fd])
        self.is_upgrading = True

    def leave(self) -> bool:
        """At the end of a daemon that is upgraded: let the keeper change its
        code, and wait until it has done so.

        False if the keeper died meanwhile. It would have been alone, so the
        daemon has to become the keeper then, with the code that it has.
        """
        self._left.append(pack('leave'))
        while True:
            is_full = self.send_kept()
            wait_for(self.fileno(), select.POLLIN | (
                select.POLLOUT if is_full else 0), NEVER)
            items, is_over = self.collect()
            if ('go',) in items or (is_over and self._is_stopping):
                return True
            if is_over:
                return False

    def _send_now(self, operation: str, argument: object,
                  descriptors: Sequence[int]) -> None:
        data = pack(operation, argument)
        try:
            while True:
                try:
                    if self.send_kept():
                        raise BlockingIOError
                    self._end.send_data(data, descriptors)
                    self._is_patient = True
                    return
                except BlockingIOError:
                    if not self._is_patient or not self._wait():
                        self._is_patient = False
                        raise
        except BlockingIOError as error:
            raise KernelError(
                f'the keeper, process {self.keeper}, takes nothing: it is '
                'stopped (continue it with SIGCONT, or kill it) or the '
                'machine is too busy') from error
        except ConnectionError as error:
            raise KeeperGone(
                f'the keeper, process {self.keeper}, has died; try again when '
                'the daemon has a new one') from error

    def _wait(self) -> bool:
        return wait_for(self._end.sock.fileno(), select.POLLOUT,
                        Deadline(_PATIENCE))

    def _send(self, operation: str, argument: object = None) -> None:
        """Send it now or later, in order."""
        self._left.append(pack(operation, argument))
        if self.send_kept():
            self._tell_sending()

    @property
    def sink_fd(self) -> int:  # type: ignore[override]
        return self.fileno()

    @property
    def kept(self) -> int:
        return sum(map(len, self._left))

    def send_kept(self) -> bool:
        while self._left:
            try:
                self._end.send_data(self._left[0], ())
            except BlockingIOError:
                return True
            except ConnectionError:  # `collect` tells it
                self._left.clear()
                return False
            self._left.popleft()
        return False

    def fileno(self) -> int:
        return self._end.sock.fileno()

    def collect(self) -> tuple[Sequence[Any], bool]:
        items: list[tuple[Any, ...]] = []
        while True:
            try:
                message = self._end.receive()
            except BlockingIOError:
                return items, False
            if message is None:
                if not self._is_stopping:
                    items.append(('keeper died',))
                return items, True
            self._is_stopping |= message.operation == 'stop'
            items.append((message.operation, *(message.argument or ())))

    def close(self) -> None:
        """Close the socket, and nothing of what the keeper holds."""
        if not self.closed:
            self._tell_closing(self.fileno())
            self._release()

    def _release(self) -> None:
        self.closed = True
        self._end.close()

    def __repr__(self) -> str:
        return f'<Link to the keeper {self.keeper}>'
