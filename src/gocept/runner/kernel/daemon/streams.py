"""The pipes between the kernel and its processes."""

import contextlib
import fcntl
import os
import struct
import termios
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon.output import PIECE, SMALL_PIECE
from gocept.runner.waits.deadline import is_broken
from gocept.runner.waits.source import Item, Source

if TYPE_CHECKING:
    from gocept.runner.kernel.daemon.process import KernelProcess
    from gocept.runner.kernel.keeper.link import Link

_DISCARD = 2 ** 20  # bytes that are thrown away in one go


class Stream(Source):
    """Standard output or error of a child: 1 or 2."""

    def __init__(self, process: 'KernelProcess', number: int, fd: int) -> None:
        self.process = process
        self.number = number
        self._fd = fd
        self._pipe_size = SMALL_PIECE
        """How many bytes a full pipe has; 0 if it does not matter any more."""

    def fileno(self) -> int:
        return self._fd

    def collect(self) -> tuple[Sequence[Item], bool]:
        process = self.process
        try:
            if process.removed or process.closed:
                count = self._discard()
            else:
                count = self._take_in(process)
        except BlockingIOError:
            count = -1
            if process.rest is not None:
                process.owner_of_all.settle(process, self.number)
        if not count:
            self.close()
            process.owner_of_all.stream_over(process, self.number)
            return (), True
        return (), False

    def _take_in(self, process: 'KernelProcess') -> int:
        output, processes = process.output, process.owner_of_all
        assert output is not None
        if output.fd < 0 and not self.left:
            # One that says nothing needs no memory for it.
            if not is_broken(self._fd) or self.left:
                raise BlockingIOError
            return 0
        if processes.is_full and not processes.make_room(process):
            self.suspend()
            return -1
        try:
            count = output.take_in(self.number, self._fd)
        except KernelError as error:
            processes.shortage(error)
            self.suspend()
            return -1
        if count > 0:
            if count == self._pipe_size:
                self._widen(output.capacity)
            processes.count(process)
            process.wake()
            if process.rest is not None:
                process.rest[self.number] -= count
                if process.rest[self.number] <= 0:
                    processes.settle(process, self.number)
        elif count < 0:
            self.suspend()
        return count

    def _widen(self, capacity: int) -> None:
        """Let the pipe, which was full, have more: a flood then costs less."""
        self._pipe_size = 0
        if capacity >= 2 * PIECE:
            # Where the user has too many of such pipes, it stays as it is.
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, PIECE)

    def _discard(self) -> int:
        return os.splice(self._fd, self.process.owner_of_all.null, _DISCARD,
                         flags=os.SPLICE_F_NONBLOCK)

    @property
    def left(self) -> int:
        """How many bytes the pipe has."""
        data = fcntl.ioctl(self._fd, termios.FIONREAD, b'\0\0\0\0')
        return int(struct.unpack('i', data)[0])

    def suspend(self) -> None:
        """Do not read it until `resume` is called."""
        self.suspended = True
        self.process.owner_of_all.suspended[self] = None

    def resume(self) -> None:
        """Read it again."""
        if self.suspended:
            self.suspended = False
            self.process.owner_of_all.suspended.pop(self, None)
            self._tell_returned()

    def close(self) -> None:
        """Close our end."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self.process.owner_of_all.suspended.pop(self, None)
            self._tell_closing(fd)
            os.close(fd)


class Sink(Source):
    """Standard input of a child."""

    def __init__(self, process: 'KernelProcess', fd: int) -> None:
        self.process = process
        self.sink_fd = fd
        self.closing = False
        """Whether to close it when all is sent."""

    def fileno(self) -> int:
        return -1

    def collect(self) -> tuple[Sequence[Item], bool]:
        return (), False

    @property
    def kept(self) -> int:
        kept = self.process.input
        return 0 if kept is None else kept.pending

    def send_kept(self) -> bool:
        kept = self.process.input
        if kept is None or self.sink_fd < 0:
            return False
        try:
            left = not kept.send(self.sink_fd)
        except BrokenPipeError:
            self.process.owner_of_all.input_over(self.process)
            return False
        if not left or self.process.writes:
            self.process.owner_of_all.input_sent(self.process)
        return self.kept > 0 and self.sink_fd >= 0

    def send(self) -> None:
        """Send what the child takes now, and the rest later."""
        if self.send_kept():
            self.process.owner_of_all.poller.register(self)
            self._tell_sending()

    def close(self) -> None:
        """Close our end."""
        if self.sink_fd >= 0:
            fd, self.sink_fd = self.sink_fd, -1
            self._tell_closing(fd)
            os.close(fd)


class Releases(Source):
    """What the keeper is to close, told once at the end of a round."""

    def __init__(self, link: 'Link') -> None:
        self._link = link
        self._keys: list[str] = []

    def fileno(self) -> int:
        return -1

    @property
    def buffered(self) -> bool:
        return bool(self._keys)

    def add(self, keys: list[str]) -> None:
        """These are closed here."""
        for key in keys:
            self._link.table.pop(key, None)
        if keys and not self._keys:
            self._keys += keys
            self._tell_ready()
        else:
            self._keys += keys

    def collect(self) -> tuple[Sequence[Item], bool]:
        keys, self._keys = self._keys, []
        self._link.release(keys)
        return (), False
