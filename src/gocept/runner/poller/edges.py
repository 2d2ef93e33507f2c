"""Which descriptors have become ready since they were last asked for.

A readiness that was told once is not told again until more arrives, or some of
it was taken. epoll(7) calls this edge-triggered.
"""

import contextlib
import select
from collections.abc import Iterator

from gocept.runner.waits.deadline import PollReadiness

_ONCE = select.POLLIN | getattr(select, 'EPOLLET', 0)


class EpollEdges:
    """See the module; `always` is a descriptor whose readiness is repeated."""

    def __init__(self, always: int) -> None:
        self._readers = select.epoll()
        # Of its own, as to change what is waited for repeats the readiness.
        self._writers = select.epoll()
        self._readers.register(always, select.EPOLLIN)
        self._readers.register(self._writers.fileno(), select.EPOLLIN)

    def set_reader(self, fd: int, wanted: bool) -> None:
        """Tell when it can be read, or no more."""
        _set(self._readers, fd, wanted and _ONCE)

    def set_writer(self, fd: int, wanted: bool) -> None:
        """Tell, again and again, when it can be written, or no more."""
        _set(self._writers, fd, wanted and select.EPOLLOUT)

    def fetched(self, fd: int) -> None:
        """Tell what is left after something was read."""
        # Closed without a word, or its poller in another thread.
        with contextlib.suppress(OSError, ValueError):
            self._readers.modify(fd, _ONCE)

    def wait(self, seconds: float) -> Iterator[tuple[int, int]]:
        """Pairs of a descriptor and its events, as from ``poll()``."""
        writers = self._writers.fileno()
        for fd, event in self._readers.poll(seconds):
            if fd == writers:
                # An error, too, is the business of who writes.
                for sink, _ in self._writers.poll(0):
                    yield sink, select.EPOLLOUT
            else:
                yield fd, event

    def close(self) -> None:
        """Let go of its descriptors."""
        self._readers.close()
        self._writers.close()


def _set(readiness: select.epoll, fd: int, mask: int) -> None:
    if mask:
        # It may have been closed without a word, and used again.
        try:
            readiness.register(fd, mask)
        except FileExistsError:
            readiness.modify(fd, mask)
    else:
        with contextlib.suppress(OSError):
            readiness.unregister(fd)


class PollEdges:
    """The same where there is no epoll: more than was told is not noticed
    before it was fetched."""

    def __init__(self, always: int) -> None:
        self._always = always
        self._readers: set[int] = set()
        self._writers: set[int] = set()
        self._told: set[int] = set()

    def set_reader(self, fd: int, wanted: bool) -> None:
        """See `EpollEdges`."""
        (self._readers.add if wanted else self._readers.discard)(fd)
        self._told.discard(fd)

    def set_writer(self, fd: int, wanted: bool) -> None:
        """See `EpollEdges`."""
        (self._writers.add if wanted else self._writers.discard)(fd)

    def fetched(self, fd: int) -> None:
        """See `EpollEdges`."""
        self._told.discard(fd)

    def wait(self, seconds: float) -> Iterator[tuple[int, int]]:
        """See `EpollEdges`."""
        readiness = PollReadiness()
        readiness.register(self._always, select.POLLIN)
        readable = self._readers - self._told
        for fd in readable | self._writers:
            readiness.register(
                fd, (select.POLLIN if fd in readable else 0)
                | (select.POLLOUT if fd in self._writers else 0))
        for fd, event in readiness.poll(seconds):
            if fd in self._writers and fd not in readable:
                event = select.POLLOUT
            elif event & ~select.POLLOUT and fd in readable:
                self._told.add(fd)
            yield fd, event

    def close(self) -> None:
        """See `EpollEdges`."""


Edges = EpollEdges if hasattr(select, 'epoll') else PollEdges
