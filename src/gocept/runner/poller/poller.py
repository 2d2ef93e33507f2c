"""Many streams, processes and timers; one wait.

A poller belongs to the thread that calls `Poller.poll`: that thread reads the
channels, reaps the processes and runs the callbacks. Sources may be
registered, written to and closed by any thread.
"""

import contextlib
import itertools
import logging
import socket
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import zope.interface

from gocept.runner.interfaces import IPoller
from gocept.runner.poller.descriptors import WAKE, Descriptors
from gocept.runner.poller.pausing import READABLE, WRITABLE, Pausing
from gocept.runner.poller.timer import Schedule, Timer
from gocept.runner.poller.watch import Callback, Watch
from gocept.runner.waits.closing import Owning
from gocept.runner.waits.deadline import NEVER, Deadline
from gocept.runner.waits.forks import tell_forks
from gocept.runner.waits.source import Source, checked_buffering

if TYPE_CHECKING:
    from gocept.runner.channel import Channel

log = logging.getLogger('gocept.runner.poller')


@zope.interface.implementer(IPoller)
class Poller(Pausing, Owning):
    """See `IPoller`."""

    def __init__(self, *, buffering: str | None = None) -> None:
        self._buffering = checked_buffering(buffering)
        self._open()
        tell_forks(self)

    def _open(self) -> None:
        # Reentrant, as a signal handler may close a channel.
        self._lock = threading.RLock()
        self._watches: dict[int, Watch] = {}  # by id of what it stands for
        self._ready: dict[Watch, None] = {}  # whatever descriptors say
        self._schedule = Schedule()
        self._senders: weakref.WeakSet[Source] = weakref.WeakSet()
        self._results: list[tuple[Any, Any]] = []
        self._begin_pausing()
        self._descriptors = Descriptors()
        self._readers: dict[int, Watch] = self._descriptors.readers
        self.closed = False

    @property
    def wakeup_fd(self) -> int:
        """See `IPoller`."""
        return self._descriptors.wakeup_fd

    def register(self, source: Any, callback: Callback | None = None) -> None:
        """See `IPoller`."""
        if not isinstance(source, Source):
            raise TypeError(f'a channel, a process or a timer is needed, not '
                            f'{source!r}; a listening socket: add_server()')
        self._register(Watch(source, source, callback))

    def add_server(self, sock: socket.socket,
                   callback: Callback | None = None) -> None:
        """See `IPoller`."""
        # Imported here, as a worker waits without any streams.
        from gocept.runner.poller.server import Server
        self._register(Watch(Server(sock, self._buffering), sock, callback))

    def _register(self, watch: Watch) -> None:
        source = watch.source
        with self._lock:
            if self.closed:
                raise RuntimeError('the poller is closed')
            known = self._watches.get(id(watch.label))
            if known is not None and known.label is watch.label:
                known.callback = watch.callback
                return
            attached = [layer for layer in source.layers()
                        if layer.attach(self)]
            try:
                # Asked for when it is attached: who closes it from now on
                # will tell, and wait for the lock.
                watch.fd = source.fileno()
                self._add_reader(watch)
            except BaseException:
                for layer in attached:
                    layer.detach(self)
                raise
            self._watches |= {id(each): watch
                              for each in (watch.label, *source.layers())}
            if isinstance(source, Timer):
                source.start()
                self._schedule.add(source)
                self._descriptors.nudge()
            elif watch.fd < 0 or source.buffered:
                self.source_ready(source)
        self._send_what_is_kept(source)

    def _add_reader(self, watch: Watch) -> None:
        fd = watch.fd
        other = self._readers.get(fd)
        if other is not None:
            if other.source.fileno() == fd:
                raise ValueError(f'descriptor {fd} is registered already, for '
                                 f'{other.label!r}')
            self._drop(other)  # it was closed behind our back
        if fd >= 0:
            self._descriptors.add_reader(fd, watch)
            self._news = self._news or fd in self._descriptors.files

    def send_for(self, channel: 'Channel') -> None:
        """See `IPoller`."""
        for layer in channel.layers():
            self._senders.add(layer)
            layer.attach(self)
        self._send_what_is_kept(channel)

    def _send_what_is_kept(self, source: Source) -> None:
        for layer in source.layers():
            if getattr(layer, 'kept', 0) and hasattr(layer, 'sink_fd'):
                self.source_sending(layer)

    def unregister(self, source: Any) -> None:
        """See `IPoller`."""
        with self._lock:
            watch = self._watches.get(id(source))
            if watch is None:
                return
            self._drop(watch)
            for layer in watch.source.layers():
                if layer not in self._senders:
                    layer.detach(self)
                    self._descriptors.remove_writer(
                        getattr(layer, 'sink_fd', -1), layer)

    def _drop(self, watch: Watch) -> None:
        with self._lock:
            for each in (watch.label, *watch.source.layers()):
                self._watches.pop(id(each), None)
            self._ready.pop(watch, None)
            self._descriptors.remove_reader(watch.fd, watch)
            if isinstance(watch.source, Timer):
                self._schedule.drop(watch.source)

    def source_ready(self, source: Source) -> None:
        """See `Watcher`."""
        with self._lock:
            watch = self._watches.get(id(source))
            if watch is not None:
                self._ready[watch] = None
                self._news = True
                self._descriptors.nudge()

    def source_sending(self, source: Any) -> None:
        """See `Watcher`."""
        with self._lock:
            if not self.closed:
                self._descriptors.add_writer(source.sink_fd, source)

    def source_closing(self, source: Source, fd: int) -> None:
        """See `Watcher`."""
        with self._lock:
            if not self.closed:
                self._descriptors.forget(fd)

    def wait(self, timeout: float | None = None) -> bool:
        """See `IPoller`."""
        deadline = NEVER if timeout is None else Deadline(timeout)
        while True:
            found = False
            for fd, event in self._select(deadline):
                if event & READABLE and fd in self._readers:
                    found = True
                else:
                    found = bool(self._attend(fd)) or found
            if (found or self.closed or self._results or self._ready
                    or self._descriptors.files or not self._schedule.left()):
                return True
            if deadline.passed:
                return False

    def poll(self, timeout: float | None = None) -> list[tuple[Any, Any]]:
        """See `IPoller`."""
        deadline = NEVER if timeout is None else Deadline(timeout)
        while True:
            woken = False
            for fd, event in self._select(deadline):
                watch = self._readers.get(fd)
                if watch is None or event & WRITABLE:
                    woken = bool(self._attend(fd)) or woken
                if watch is not None and event & READABLE:
                    self._collect(watch)
            if self._ready or self._descriptors.files or self._schedule:
                self._collect_others()
            results = self._results
            if results or woken or self.closed or deadline.passed:
                # They are in the object until here, as a handler of a signal
                # may raise an exception.
                self._results = []
                return results

    def _select(self, deadline: Deadline,
                pausing: bool = False) -> Sequence[tuple[int, int]]:
        """Which descriptors are ready, at once if something else is."""
        descriptors = self._descriptors
        descriptors.waiting = True  # from now on nudges are sent
        try:
            if self.closed:
                raise RuntimeError('the poller is closed')
            if pausing:
                return self._select_news(deadline)
            if self._ready or descriptors.files or self._results:
                return descriptors.wait(0.0)
            # Without a time the system is asked at less cost.
            if deadline is NEVER and not self._schedule:
                return descriptors.wait(-1.0)
            return descriptors.wait(
                min(deadline.left(), self._schedule.left()))
        finally:
            descriptors.waiting = False
            if self.closed:
                self._release()

    def _attend(self, fd: int) -> bytes:
        """Send, or read the wake-ups; returns them."""
        if fd == self._descriptors.wakeup_read:
            with self._lock:
                return (WAKE if self.closed
                        else self._descriptors.forget_wakeups())
        self._send(fd)
        return b''

    def _collect_others(self) -> None:
        for watch in dict.fromkeys(
                [*self._descriptors.files.values(), *self._ready]):
            if self._is_registered(watch):  # after the callbacks before it
                self._collect(watch)
                with self._lock:
                    if not watch.source.buffered:
                        self._ready.pop(watch, None)
                    self._news = self._news or watch in self._ready or (
                        watch.fd in self._descriptors.files)
        with self._lock:
            due = [self._watches[id(timer)]
                   for timer in self._schedule.take_due()]
        try:
            for watch in filter(self._is_registered, due):
                self._collect(watch)
        finally:
            with self._lock:
                for watch in filter(self._is_registered, due):
                    self._schedule.add(watch.source)

    def _is_registered(self, watch: Watch) -> bool:
        return self._watches.get(id(watch.label)) is watch

    def _collect(self, watch: Watch) -> None:
        try:
            items, over = watch.source.collect()
        except Exception:  # a custom channel's own; others go on
            log.exception('%r failed, and is polled no more', watch.source)
            over = True
            items = ([] if watch.accepts
                     else [getattr(watch.source, '_nothing', b'')])
        self._descriptors.fetched(watch.fd)
        if over:
            self._drop(watch)
        if watch.accepts:
            self._take_in(watch, watch.source, items)
        if watch.callback is not None:
            watch.call(items, self._results)
        elif len(items) == 1:
            self._results.append((items[0], watch.label))
        else:
            self._results += zip(items, itertools.repeat(watch.label))

    def _take_in(self, watch: Watch, server: Any, clients: Any) -> None:
        with self._lock:
            if self.closed:
                return  # whoever gets the clients closes them
            for _, channel in clients:
                self.register(channel)
            if server.pause:
                self._descriptors.remove_reader(watch.fd, watch)
                self.register(Timer(server.pause),
                              lambda *result: self._accept_again(watch))

    def _accept_again(self, watch: Watch) -> None:
        with self._lock:
            if self._is_registered(watch):
                self._add_reader(watch)

    def _send(self, fd: int) -> None:
        channel: Any = self._descriptors.writers.get(fd)
        # Without the lock, as the channel's own is taken here. When all is
        # sent, the next look finds nothing kept: to wait once too often costs
        # less than to begin and end it for each piece.
        if channel is None or (
                channel.kept and (channel.send_kept() or not channel.kept)):
            return
        with self._lock:
            self._descriptors.remove_writer(fd, channel)
        # Something may have been kept since it was looked at.
        if channel.kept and channel.send_kept():
            self.source_sending(channel)

    def wakeup(self) -> None:
        """See `IPoller`."""
        with self._lock:
            if not self.closed:
                self._descriptors.wake()

    def interrupt(self) -> None:
        """See `IPoller`."""
        with self._lock:
            if not self.closed:
                self._descriptors.interrupt()

    def close_all(self) -> None:
        """See `IPoller`."""
        with contextlib.ExitStack() as stack:  # all, even if one fails
            for watch in list(dict.fromkeys(self._watches.values())):
                if watch.source.is_stream:
                    self.unregister(watch.label)
                    stack.callback(watch.label.close)

    def close(self) -> None:
        """See `IPoller`."""
        with self._lock:
            if self.closed:
                return
            for watch in list(self._watches.values()):
                self.unregister(watch.label)
            self.closed = True
            if self._descriptors.waiting:  # and will do it
                self._descriptors.wake()
            else:
                self._release()

    def _release(self) -> None:
        with self._lock:
            self._descriptors.close()

    def after_fork(self) -> None:
        """In a child: the registrations are the parent's, and stay so."""
        if not self.closed:
            self._lock = threading.RLock()  # another thread may have had it
            self._release()
            self._open()
