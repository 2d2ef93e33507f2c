"""The descriptors of a poller: which it waits for, and its own."""

import contextlib
import os
import select
from collections.abc import Callable
from typing import Any

from gocept.runner.poller.edges import Edges, PollEdges
from gocept.runner.waits.deadline import PollReadiness, Readiness

WAKE = b'\0'
INTERRUPT = b'\1'  # as a signal would be written
_NUDGE = b'\xff'  # only to look again at what is registered


class Descriptors:
    """What readiness is asked for, and the pipe that ends the wait.

    Changed with the lock of the poller held.
    """

    def __init__(self) -> None:
        self.readers: dict[int, Any] = {}
        self.writers: dict[int, Any] = {}
        self.files: dict[int, Any] = {}
        """The readers of regular files, for which nothing can be waited."""
        self.waiting = False
        """Whether `wait` was called, or is about to be."""
        self._masks: dict[int, int] = {}
        self._edges: Any = None  # only for who pauses
        self._readiness = Readiness()
        self.wait: Callable[[float], list[tuple[int, int]]] = (
            self._readiness.poll)
        """Pairs of a descriptor and its events, after some seconds at most."""
        try:
            self.wakeup_read, self.wakeup_fd = os.pipe()
        except BaseException:
            self._readiness.close()
            raise
        for fd in (self.wakeup_read, self.wakeup_fd):
            os.set_blocking(fd, False)
        self._readiness.register(self.wakeup_read, select.POLLIN)

    def begin_edges(self) -> None:
        """Let `wait_for_news` be called."""
        if self._edges is None:
            try:
                self._edges = Edges(self.wakeup_read)
            except OSError:  # no descriptors are left; it needs none
                self._edges = PollEdges(self.wakeup_read)
            for fd, mask in self._masks.items():
                self._update_edges(fd, mask, mask)

    def wait_for_news(self, seconds: float) -> list[tuple[int, int]]:
        """The same, but of readers only those that it did not give before."""
        return list(self._edges.wait(seconds))

    def fetched(self, fd: int) -> None:
        """It was read, but perhaps not to the end: the rest is news."""
        if self._edges is not None and fd in self.readers:
            self._edges.fetched(fd)

    def add_reader(self, fd: int, reader: Any) -> None:
        """Wait until `fd` can be read."""
        self.readers[fd] = reader
        try:
            self._update(fd)
        except PermissionError:  # a regular file
            self.files[fd] = reader
            self.nudge()
        except BaseException:
            del self.readers[fd]
            raise

    def remove_reader(self, fd: int, reader: Any) -> None:
        """Wait for it no more, if it is for `reader`."""
        if self.readers.get(fd) is reader:
            del self.readers[fd]
            self.files.pop(fd, None)
            self._update(fd)

    def add_writer(self, fd: int, writer: Any) -> None:
        """Wait until `fd` can be written."""
        if fd < 0 or self.writers.get(fd) is writer:
            return
        self.writers[fd] = writer
        try:
            self._update(fd)
        except PermissionError:  # a regular file, whose disk is full
            del self.writers[fd]

    def remove_writer(self, fd: int, writer: Any) -> None:
        """Wait for it no more, if it is for `writer`."""
        if self.writers.get(fd) is writer:
            del self.writers[fd]
            self._update(fd)

    def forget(self, fd: int) -> None:
        """Wait for nothing of it, as it is being closed."""
        self.readers.pop(fd, None)
        self.files.pop(fd, None)
        self.writers.pop(fd, None)
        self._update(fd)

    def _update(self, fd: int) -> None:
        mask = ((select.POLLIN if fd in self.readers else 0)
                | (select.POLLOUT if fd in self.writers else 0))
        known = self._masks.pop(fd, 0)
        changed = mask ^ known
        if not mask:
            if known:
                # Somebody may have closed it without a word.
                with contextlib.suppress(OSError, KeyError):
                    self._readiness.unregister(fd)
                self._update_edges(fd, mask, changed)
            return
        try:
            if known:
                self._readiness.modify(fd, mask)
            else:
                self._readiness.register(fd, mask)
        except FileNotFoundError:  # closed without a word, and used again
            self._readiness.register(fd, mask)
            changed = mask
        self._masks[fd] = mask
        self._update_edges(fd, mask, changed)
        if (isinstance(self._readiness, PollReadiness)
                or isinstance(self._edges, PollEdges)):
            self.nudge()

    def _update_edges(self, fd: int, mask: int, changed: int) -> None:
        if self._edges is not None:
            if changed & select.POLLIN:
                self._edges.set_reader(fd, bool(mask & select.POLLIN))
            if changed & select.POLLOUT:
                self._edges.set_writer(fd, bool(mask & select.POLLOUT))

    def wake(self) -> None:
        """End the wait."""
        self._write(WAKE)

    def nudge(self) -> None:
        """If somebody waits, have him look at what has changed."""
        if self.waiting:
            self._write(_NUDGE)

    def _write(self, byte: bytes) -> None:
        # A full pipe wakes as well as one more byte in it.
        with contextlib.suppress(BlockingIOError):
            os.write(self.wakeup_fd, byte)

    def interrupt(self) -> None:
        """End the wait as a signal does."""
        self._write(INTERRUPT)

    def forget_wakeups(self) -> bytes:
        """Read them; those that are no nudges."""
        woken = b''
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.wakeup_read, 4096):
                woken += data.strip(_NUDGE)
        return woken

    def close(self) -> None:
        """Close its own; again does nothing."""
        if self.wakeup_fd >= 0:
            self._readiness.close()
            if self._edges is not None:
                self._edges.close()
            os.close(self.wakeup_read)
            os.close(self.wakeup_fd)
            self.wakeup_read = self.wakeup_fd = -1
            for known in (self.readers, self.writers, self.files, self._masks):
                known.clear()
