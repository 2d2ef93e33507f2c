"""What a poller can wait for, and what a poller is told by its sources.

A descriptor says when it is ready, but not that its owner has closed it, that
lines were left in a buffer, or that bytes are to be sent. A source tells its
watchers these.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from gocept.runner.waits.forks import Lock

Item = Any
"""What a source gives: data, a client, a status, a number."""


class Watcher(Protocol):
    """What a source tells. From any thread, but not from finalizers."""

    def source_ready(self, source: 'Source') -> None:
        """`collect` has something, though the descriptor may not say so."""

    def source_fetched(self, source: 'Source') -> None:
        """Somebody has read from `source`; `buffered` says if some is left."""

    def source_returned(self, source: 'Source') -> None:
        """`collect` has again what it had before, or is no more suspended."""

    def source_over(self, source: 'Source') -> None:
        """The end that a suspended source had is not given again."""

    def source_sending(self, source: 'Source') -> None:
        """`send_kept` is to be called when `sink_fd` can be written."""

    def source_closing(self, source: 'Source', fd: int) -> None:
        """A descriptor is about to be closed."""


_attaching = Lock()


class Source:
    """The base of channels, processes and timers."""

    is_stream = False
    """Whether `Poller.close_all` closes it."""

    accepts = False
    """Whether what it collects are clients."""

    sink_fd = -1
    """What is written to; -1 for nothing."""

    transactional = False
    """Whether the end of a transaction decides what was collected."""

    suspended = False
    """Whether there is nothing to collect before the transaction ends."""

    told = False
    """Whether a watcher wants to be told when somebody has read from it."""

    _watchers: tuple[Watcher, ...] = ()

    @property
    def is_watched(self) -> bool:
        """Whether a poller waits for it, or sends what it keeps."""
        return bool(self._watchers)

    def fileno(self) -> int:
        """The descriptor that is readable when `collect` has something.

        -1 when it is closed, and only the end is to be collected.
        """
        raise NotImplementedError(f'{self!r} has no descriptor')

    def collect(self) -> tuple[Sequence[Item], bool]:
        """Return what there is, without waiting, and whether this was the end.
        """
        raise NotImplementedError

    @property
    def buffered(self) -> bool:
        """Whether `collect` has something that no descriptor shows."""
        return False

    @property
    def kept(self) -> int:
        """The number of bytes that are to be written to `sink_fd`."""
        return 0

    def send_kept(self) -> bool:
        """Send what the sink takes, and return whether something is left.

        An error is logged; the caller is not the one who has written.
        """
        return False

    def layers(self) -> Iterator['Source']:
        """Itself, and the sources that it wraps."""
        yield self

    def attach(self, watcher: Watcher) -> bool:
        """Tell `watcher` from now on; return whether it is a new one."""
        with _attaching:
            if watcher in self._watchers:
                return False
            self._watchers += (watcher,)
            return True

    def detach(self, watcher: Watcher) -> None:
        """Tell `watcher` no more."""
        with _attaching:
            self._watchers = tuple(
                other for other in self._watchers if other is not watcher)

    def _tell_ready(self) -> None:
        for watcher in self._watchers:
            watcher.source_ready(self)

    def tell_fetched(self) -> None:
        """Tell the watchers that somebody has read from it."""
        self.told = False
        for watcher in self._watchers:
            watcher.source_fetched(self)

    def _tell_returned(self) -> None:
        for watcher in self._watchers:
            watcher.source_returned(self)

    def _tell_over(self) -> None:
        for watcher in self._watchers:
            watcher.source_over(self)

    def _tell_sending(self) -> None:
        for watcher in self._watchers:
            watcher.source_sending(self)

    def _tell_closing(self, fd: int) -> None:
        for watcher in self._watchers:
            watcher.source_closing(self, fd)
