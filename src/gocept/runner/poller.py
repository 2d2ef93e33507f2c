"""One wait, which other threads and signal handlers can end.

A poller belongs to the thread that waits in it. Only :meth:`Poller.wakeup`
may be called from elsewhere.
"""

import contextlib
import os
import select
import threading
import time
import warnings
from types import TracebackType
from typing import Self

import zope.interface

from gocept.runner.interfaces import IPoller

# The longest wait that the system is asked for in one call, in seconds: its
# own limit is 2**31 milliseconds.
_LONGEST = 1_000_000.0

if hasattr(select, 'epoll'):
    class _Readable:
        """Which descriptors can be read (Linux)."""

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self.register = self._epoll.register
            self.close = self._epoll.close

        def wait(self, seconds: float | None) -> list[tuple[int, int]]:
            return self._epoll.poll(seconds)
else:
    class _Readable:  # type: ignore[no-redef]
        """Which descriptors can be read (POSIX)."""

        def __init__(self) -> None:
            self._poll = select.poll()

        def register(self, fd: int, mask: int) -> None:
            self._poll.register(fd, mask)

        def close(self) -> None:
            pass

        def wait(self, seconds: float | None) -> list[tuple[int, int]]:
            return self._poll.poll(
                None if seconds is None else seconds * 1000)


@zope.interface.implementer(IPoller)
class Poller:
    """See `IPoller`."""

    _closed = True

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may hold it already
        self._readable = _Readable()
        self._wakeup_read, self.wakeup_fd = os.pipe()
        self._closed = False
        for fd in (self._wakeup_read, self.wakeup_fd):
            os.set_blocking(fd, False)
        self._readable.register(self._wakeup_read, select.POLLIN)

    def wait(self, timeout: float | None = None) -> bool:
        """See `IPoller`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _LONGEST
            if deadline is not None:
                left = min(max(0.0, deadline - time.monotonic()), _LONGEST)
            if self._readable.wait(left):
                self._forget_wakeups()
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def _forget_wakeups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wakeup_read, 4096):
                pass

    def wakeup(self) -> None:
        """See `IPoller`."""
        with self._lock:
            # A full pipe wakes as well as one more byte in it.
            if not self._closed:
                with contextlib.suppress(BlockingIOError):
                    os.write(self.wakeup_fd, b'\0')

    def close(self) -> None:
        """See `IPoller`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._readable.close()
            os.close(self._wakeup_read)
            os.close(self.wakeup_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None,
                 exc: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            warnings.warn(f'unclosed {self!r}', ResourceWarning,
                          stacklevel=2, source=self)
            self.close()
