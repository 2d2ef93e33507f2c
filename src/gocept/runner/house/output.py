"""The output of one worker: whole lines, marked with its name."""

import os
from collections.abc import Callable, Sequence

from gocept.runner.channel.lines import Lines
from gocept.runner.waits.source import Item, Source

LONGEST_LINE = 2 ** 16
"""Bytes. A longer line is written as several."""

_READ_SIZE = 2 ** 16

_MOST_READS = 64  # of the rest, as a descendant may write for ever


class Output(Source):
    """Reads a pipe that a worker, and perhaps its children, write to.

    Each line is handed to `tell`, without its newline. The pipe ends when all
    of those have closed it. This object owns the descriptor.
    """

    def __init__(self, fd: int, tell: Callable[[bytes], object]) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._tell = tell
        self._lines = Lines(LONGEST_LINE)

    def fileno(self) -> int:
        return self._fd

    def collect(self) -> tuple[Sequence[Item], bool]:
        return (), self._read() is None

    def _read(self) -> int | None:
        """Read a piece; returns its size, or None at the end."""
        if self._fd < 0:
            return None
        try:
            data = os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return 0
        if not data:
            self._end()
            return None
        self._tell_all(self._lines.feed(data))
        return len(data)

    def _tell_all(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            self._tell(line.removesuffix(b'\n').removesuffix(b'\r'))

    def read_rest(self) -> None:
        """The worker has ended: read what there is.

        A line without an end is told as well, so that it does not wait for a
        descendant that has the pipe.
        """
        for _ in range(_MOST_READS):
            if not self._read():
                break
        self._tell_rest()

    def _tell_rest(self) -> None:
        rest = self._lines.take_rest()
        if rest:
            self._tell_all([rest])

    def _end(self) -> None:
        self._tell_rest()
        self.close()

    def close(self) -> None:
        """Read no more."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._tell_closing(fd)
            os.close(fd)
            self._tell_ready()
