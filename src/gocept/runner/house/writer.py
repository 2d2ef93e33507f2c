"""Writes the output of the house, and never has the house wait for it.

A reader of a pipe may stop reading, and a terminal may be stopped with Ctrl-S.
So a thread of its own writes. What it has not written yet is bounded: lines
that come when this is full are left out, and counted, and the output says so
at this place. A reader that has gone ends nothing: all further lines are left
out.
"""

import collections
import contextlib
import errno
import os
import select
import threading

from gocept.runner.waits.deadline import NEVER, Deadline, wait_for

MOST = 4 * 1024 * 1024
"""Bytes that may wait to be written."""

_PIECE = 2 ** 16  # bytes of one call, or one line that is longer

_GONE = errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.EBADF, errno.ENXIO


class Writer:
    """The one who writes to a descriptor, which others own."""

    def __init__(self, fd: int, most: int = MOST) -> None:
        self.lost = 0
        """How many lines were left out, all in all."""
        self.gone = False
        """Whether nobody can read the output any more."""
        self._fd = fd
        self._most = most
        self._changed = threading.Condition()
        self._lines: collections.deque[bytes] = collections.deque()
        self._size = 0  # of what waits, or is being written
        self._skipped = 0  # lines since the last one that was taken
        self._closing = False
        self._thread: threading.Thread | None = None

    def write(self, line: bytes) -> None:
        """Write a whole line, with its newline, when its turn comes."""
        with self._changed:
            if self.gone or self._closing:
                self.lost += 1
                return
            if self._size and self._size + len(line) > self._most:
                self.lost += 1
                self._skipped += 1
                return
            if self._skipped:
                self._put(f'... {self._skipped} lines are left out here, as '
                          'nobody has read the output\n'.encode())
                self._skipped = 0
            self._put(line)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name='output of the house', daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _put(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)

    def flush(self, deadline: Deadline = NEVER) -> bool:
        """Wait until all is written; False if the time is over before."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self.gone or not self._size, deadline.left())

    def close(self, deadline: Deadline) -> None:
        """Write the rest, and end the thread, unless its reader hangs."""
        self.flush(deadline)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(0.0 if deadline.passed else deadline.left())

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closing)
                if not self._lines:
                    return
                piece = self._take()
            failed = self._write_out(piece)
            with self._changed:
                self._size -= len(piece)
                if failed:
                    self.lost += piece.count(b'\n')
                if self.gone:
                    self.lost += len(self._lines)
                    self._lines.clear()
                    self._size = 0
                self._changed.notify_all()

    def _take(self) -> bytes:
        """Some whole lines; with the lock held."""
        taken = [self._lines.popleft()]
        size = len(taken[0])
        while self._lines and size + len(self._lines[0]) <= _PIECE:
            size += len(self._lines[0])
            taken.append(self._lines.popleft())
        return b''.join(taken)

    def _write_out(self, piece: bytes) -> bool:
        """Write all of it; returns whether that has failed.

        Where a disk is full, the piece is lost, and the next one is tried.
        """
        rest = memoryview(piece)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest):]
            except BlockingIOError:  # others have made it non-blocking
                with contextlib.suppress(OSError):
                    wait_for(self._fd, select.POLLOUT, NEVER)
            except OSError as error:
                self.gone = error.errno in _GONE
                return True
        return False
