"""The descriptors that a poller waits for, and its own."""

import contextlib
import os
import select
import threading
from collections.abc import Callable

from gocept.runner.waits.deadline import PollReadiness, Readiness
from gocept.runner.waits.identity import NONE, Identity

READABLE = select.POLLIN
WRITABLE = select.POLLOUT

_NUDGE = b'\xff'
_WAKE = b'\0'


class WakeUp:
    """A pipe that ends the wait of a poller.

    Its methods may be called from signal handlers and finalizers.
    """

    def __init__(self) -> None:
        # The only reentrant lock of the package. A handler or a finalizer may
        # interrupt its own thread within `wake`. Without a lock another thread
        # could close the descriptor meanwhile, and somebody else might open
        # one with the same number before it is written to.
        self._lock = threading.RLock()
        self.faucet, self.sink = os.pipe()
        for fd in (self.faucet, self.sink):
            os.set_blocking(fd, False)
        self._identity = Identity.of(self.sink)  # of both ends

    def wake(self, byte: bytes = _WAKE) -> None:
        """End the wait in progress, or the next one."""
        with self._lock:
            if self._identity.has(self.sink):
                # A full pipe wakes as well as one more byte in it.
                with contextlib.suppress(BlockingIOError):
                    os.write(self.sink, byte)

    def nudge(self) -> None:
        """End the system call only: something else is to be waited for."""
        self.wake(_NUDGE)

    def drain(self) -> bool:
        """Read all; whether there was more than nudges."""
        woken = False
        with self._lock, contextlib.suppress(BlockingIOError):
            while self.faucet >= 0:
                data = os.read(self.faucet, 4096)
                woken = woken or bool(data.strip(_NUDGE))
        return woken

    def close(self) -> None:
        """Close both ends; again does nothing."""
        with self._lock:
            fds = {self.faucet, self.sink} - {-1}
            self.faucet = self.sink = -1
            for fd in fds:
                self._identity.close(fd)

    @property
    def is_lost(self) -> bool:
        """Whether others have closed an end by its number."""
        return not (self._identity.has(self.faucet)
                    and self._identity.has(self.sink))

    def close_in_child(self) -> None:
        """Close both ends in a forked child, where a thread that does not
        exist may hold the lock."""
        self._lock = threading.RLock()
        self.close()


_gone: list[object] = []
"""Objects of epoll that others have closed. They would close the number when
they are forgotten, so nobody forgets them."""


class Descriptors:
    """What is waited for; the pipe is one of them.

    All methods but `wait` are called with the lock of the poller held, or when
    nobody else refers to the poller.
    """

    def __init__(self) -> None:
        self.waiting = False
        """Whether `wait` was called, or is about to be."""
        self._masks: dict[int, int] = {}
        self._readiness = Readiness()
        self.wait: Callable[[float], list[tuple[int, int]]] = (
            self._readiness.poll)
        """Pairs of a descriptor and its events, after some seconds at most."""
        try:
            self.pipe = WakeUp()
        except BaseException:
            self._readiness.close()
            raise
        if isinstance(self._readiness, PollReadiness):
            self._identity = NONE
        else:
            self._identity = Identity.of(self._readiness.fileno())
        self._readiness.register(self.pipe.faucet, READABLE)

    def add(self, fd: int, event: int) -> None:
        """Wait for an event.

        PermissionError for a regular file, which cannot be waited for.
        """
        self._set(fd, self._masks.get(fd, 0) | event)

    def drop(self, fd: int, event: int) -> None:
        """Do not wait for an event any more."""
        self._set(fd, self._masks.get(fd, 0) & ~event)

    def forget(self, fd: int) -> None:
        """Wait for no event of a descriptor that is about to be closed."""
        self._set(fd, 0)

    def _set(self, fd: int, mask: int) -> None:
        known = self._masks.pop(fd, 0)
        if not mask:
            if known:
                # Somebody may have closed it without a word.
                with contextlib.suppress(OSError, KeyError):
                    self._readiness.unregister(fd)
            return
        try:
            if known:
                self._readiness.modify(fd, mask)
            else:
                self._readiness.register(fd, mask)
        except FileNotFoundError:  # closed without a word, and used again
            self._readiness.register(fd, mask)
        self._masks[fd] = mask
        if isinstance(self._readiness, PollReadiness):
            self.nudge()

    def nudge(self) -> None:
        """If a thread waits, have it look at what has changed."""
        if self.waiting:
            self.pipe.nudge()

    def close(self) -> None:
        """Close its own; again does nothing."""
        self._close_readiness()
        self.pipe.close()
        self._masks.clear()

    @property
    def are_lost(self) -> bool:
        """Whether others have closed them by their numbers."""
        return self.pipe.is_lost or not self._has_readiness()

    def _has_readiness(self) -> bool:
        readiness = self._readiness
        return (isinstance(readiness, PollReadiness) or readiness.closed
                or self._identity.has(readiness.fileno()))

    def _close_readiness(self) -> None:
        readiness = self._readiness
        if self._has_readiness():
            readiness.close()
        else:
            _gone.append(readiness)
            self._readiness = PollReadiness()
