"""Many streams, processes and timers; one wait.

A poller belongs to the thread that calls `Poller.poll`: that thread reads the
channels, reaps the processes and runs the callbacks. Sources may be
registered, written to and closed by any thread.

What nobody else polls is served by one daemon thread in a process, which calls
`Poller.poll` of the poller that `background` returns. It is begun at first
need, and anew in a forked child. So it runs the callbacks of what is
registered there, and sends what channels have kept back; a channel that was
handed out is not read by it.
"""

import contextlib
import itertools
import logging
import os
import select
import socket
import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import zope.interface

from gocept.runner.accepting import Server
from gocept.runner.channel import Channel
from gocept.runner.interfaces import IPoller
from gocept.runner.source import Source, tell_forks
from gocept.runner.timer import Schedule, Timer
from gocept.runner.waiting import Deadline, PollReadiness, Readiness

__all__ = ['Poller', 'Timer', 'background']

log = logging.getLogger(__name__)

# An end, an error and a descriptor that is not open are both.
_READABLE = ~select.POLLOUT
_WRITABLE = ~select.POLLIN

_WAKE = b'\0'
_NUDGE = b'\xff'  # only look again at what is registered

Callback = Callable[[Any, Any], object]
Results = list[tuple[Any, Any]]


class _Watch:
    """One source, as a poller knows it."""

    __slots__ = ('accepts', 'callback', 'fd', 'label', 'source')

    def __init__(self, source: Any, label: Any, callback: Callback | None,
                 ) -> None:
        self.source = source
        self.label = label  # what stands for it in a pair
        self.callback = callback
        self.accepts = isinstance(source, Server)
        self.fd = -1


@zope.interface.implementer(IPoller)
class Poller:
    """See `IPoller`."""

    closed = True

    def __init__(self, *, buffering: str | None = None) -> None:
        self._buffering = buffering
        self._open()
        tell_forks(self)

    def _open(self) -> None:
        # Reentrant, as a signal handler may close a channel.
        self._lock = threading.RLock()
        self._waiting = False
        self._watches: dict[int, _Watch] = {}  # by id of what it stands for
        self._readers: dict[int, _Watch] = {}  # by descriptor
        self._writers: dict[int, Any] = {}  # channels, by descriptor
        self._masks: dict[int, int] = {}  # what readiness waits for
        self._files: dict[int, _Watch] = {}  # for which it cannot
        self._ready: dict[_Watch, None] = {}  # whatever descriptors say
        self._schedule = Schedule()
        self._results: Results = []
        self._readiness = Readiness()
        try:
            self._wakeup_read, self.wakeup_fd = os.pipe()
        except BaseException:
            self._readiness.close()
            raise
        self.closed = False
        for fd in (self._wakeup_read, self.wakeup_fd):
            os.set_blocking(fd, False)
        self._readiness.register(self._wakeup_read, select.POLLIN)

    def register(self, source: Any, callback: Callback | None = None) -> None:
        """See `IPoller`."""
        self._register(_Watch(source, source, callback))

    def add_server(self, sock: socket.socket,
                   callback: Callback | None = None) -> None:
        """See `IPoller`."""
        self._register(_Watch(Server(sock, self._buffering), sock, callback))

    def _register(self, watch: _Watch) -> None:
        source = watch.source
        with self._lock:
            self._require_open()
            known = self._watches.get(id(watch.label))
            if known is not None and known.label is watch.label:
                known.callback = watch.callback
                return
            for layer in source.layers():
                layer.attach(self)
            try:
                # Asked for when it is attached: who closes it from now on
                # will tell, and wait for the lock.
                watch.fd = source.fileno()
                self._add_reader(watch)
            except BaseException:
                for layer in source.layers():
                    layer.detach(self)
                raise
            for each in (watch.label, *source.layers()):
                self._watches[id(each)] = watch
            if isinstance(source, Timer):
                source.start()
                self._schedule.add(source)
                self._nudge()
            elif watch.fd < 0 or source.buffered:
                self.source_ready(source)
        self._send_what_is_kept(source)

    def _add_reader(self, watch: _Watch) -> None:
        fd = watch.fd
        if fd < 0:
            return
        other = self._readers.get(fd)
        if other is not None:
            if other.source.fileno() == fd:
                raise ValueError(f'descriptor {fd} is registered already, for '
                                 f'{other.label!r}')
            self._drop(other)  # it was closed behind our back
        self._readers[fd] = watch
        try:
            self._update(fd)
        except PermissionError:  # a regular file
            self._files[fd] = watch
            self._nudge()
        except BaseException:
            del self._readers[fd]
            raise

    def send_for(self, channel: Channel) -> None:
        """See `IPoller`."""
        for layer in channel.layers():
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
                layer.detach(self)
                fd = getattr(layer, 'sink_fd', -1)
                if fd >= 0 and self._writers.get(fd) is layer:
                    del self._writers[fd]
                    self._update(fd)

    def _drop(self, watch: _Watch) -> None:
        with self._lock:
            for each in (watch.label, *watch.source.layers()):
                self._watches.pop(id(each), None)
            self._ready.pop(watch, None)
            self._remove_reader(watch)
            if isinstance(watch.source, Timer):
                self._schedule.drop(watch.source)

    def _remove_reader(self, watch: _Watch) -> None:
        if self._readers.get(watch.fd) is watch:
            del self._readers[watch.fd]
            self._files.pop(watch.fd, None)
            self._update(watch.fd)

    def _update(self, fd: int) -> None:
        """Have the system wait for what is wanted of a descriptor."""
        mask = ((select.POLLIN if fd in self._readers else 0)
                | (select.POLLOUT if fd in self._writers else 0))
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
            self._nudge()

    # What sources tell.

    def source_ready(self, source: Source) -> None:
        """See `Watcher`."""
        with self._lock:
            watch = self._watches.get(id(source))
            if watch is not None:
                self._ready[watch] = None
                self._nudge()

    def source_sending(self, source: Any) -> None:
        """See `Watcher`."""
        with self._lock:
            fd = source.sink_fd
            if self.closed or fd < 0 or self._writers.get(fd) is source:
                return
            self._writers[fd] = source
            try:
                self._update(fd)
            except PermissionError:  # a regular file, whose disk is full
                del self._writers[fd]

    def source_closing(self, source: Source, fd: int) -> None:
        """See `Watcher`."""
        with self._lock:
            if self._writers.pop(fd, None) is not None:
                self._update(fd)
            watch = self._readers.get(fd)
            if watch is not None:
                self._remove_reader(watch)

    # What waits.

    def wait(self, timeout: float | None = None) -> bool:
        """See `IPoller`."""
        deadline = Deadline(timeout)
        while True:
            found = False
            for fd, event in self._select(deadline):
                if event & _READABLE and fd in self._readers:
                    found = True
                else:
                    found = self._attend(fd, event) or found
            if (found or self.closed or self._results or self._ready
                    or self._files or not self._schedule.left()):
                return True
            if deadline.passed:
                return False

    def poll(self, timeout: float | None = None) -> Results:
        """See `IPoller`."""
        deadline = Deadline(timeout)
        while True:
            woken = False
            for fd, event in self._select(deadline):
                watch = self._readers.get(fd)
                if watch is not None and event & _READABLE:
                    self._collect(watch)
                if watch is None or event & select.POLLOUT:
                    woken = self._attend(fd, event) or woken
            if self._ready or self._files or self._schedule:
                self._collect_others()
            if self._results or woken or self.closed or deadline.passed:
                # Kept in the object meanwhile, as a handler of a signal may
                # raise an exception.
                results, self._results = self._results, []
                return results

    def _select(self, deadline: Deadline) -> list[tuple[int, int]]:
        """Which descriptors are ready, at once if something else is."""
        self._waiting = True  # from now on nudges are sent
        try:
            if self.closed:
                self._require_open()
            seconds = deadline.left()
            if self._ready or self._files or self._results:
                seconds = 0.0
            elif self._schedule:
                seconds = min(seconds, self._schedule.left())
            events: list[tuple[int, int]] = self._readiness.poll(seconds)
            return events
        finally:
            self._waiting = False
            if self.closed:
                self._release()

    def _attend(self, fd: int, event: int) -> bool:
        """Send, or read the wake-ups; whether there were any."""
        if fd == self._wakeup_read:
            return self._forget_wakeups()
        if event & _WRITABLE and fd in self._writers:
            self._send(fd)
        return False

    def _collect_others(self) -> None:
        for watch in dict.fromkeys([*self._files.values(), *self._ready]):
            if self._is_registered(watch):  # after the callbacks before it
                self._collect(watch)
                if not watch.source.buffered:
                    self._ready.pop(watch, None)
        with self._lock:
            due = [self._watches[id(timer)]
                   for timer in self._schedule.take_due()]
        for watch in due:
            if self._is_registered(watch):
                self._collect(watch)
            with self._lock:
                if self._is_registered(watch):
                    self._schedule.add(watch.source)

    def _is_registered(self, watch: _Watch) -> bool:
        return self._watches.get(id(watch.label)) is watch

    def _collect(self, watch: _Watch) -> None:
        source = watch.source
        try:
            items, over = source.collect()
        except Exception:  # a custom channel's own; others go on
            log.exception('%r failed, and is polled no more', source)
            items, over = [getattr(source, '_nothing', b'')], True
        if over:
            self._drop(watch)
        if watch.accepts:
            self._take_in(watch, source, items)
        if watch.callback is not None:
            for item in items:
                self._call(watch, item)
        elif items:
            self._results += zip(items, itertools.repeat(watch.label))

    def _call(self, watch: _Watch, item: Any) -> None:
        callback = watch.callback
        if callback is None:  # since the item before
            self._results.append((item, watch.label))
            return
        try:
            callback(item, watch.label)
        except Exception:  # the other sources go on
            log.exception('The callback of %r failed', watch.label)

    def _take_in(self, watch: _Watch, server: Server, clients: Any) -> None:
        with self._lock:
            if self.closed:
                return  # whoever gets the clients closes them
            for _, channel in clients:
                self.register(channel)
            if server.pause:
                self._remove_reader(watch)
                self.register(Timer(server.pause),
                              lambda *result: self._accept_again(watch))

    def _accept_again(self, watch: _Watch) -> None:
        with self._lock:
            if self._is_registered(watch):
                self._add_reader(watch)

    def _send(self, fd: int) -> None:
        channel: Any = self._writers.get(fd)
        # Without the lock, as the channel's own is taken here.
        if channel is None or channel.send_kept():
            return
        with self._lock:
            if self._writers.get(fd) is channel:
                del self._writers[fd]
                self._update(fd)
        # Something may have been kept since it was looked at.
        if channel.kept and channel.send_kept():
            self.source_sending(channel)

    # Waking and closing.

    def wakeup(self) -> None:
        """See `IPoller`."""
        self._write_wakeup(_WAKE)

    def _nudge(self) -> None:
        if self._waiting:
            self._write_wakeup(_NUDGE)

    def _write_wakeup(self, byte: bytes) -> None:
        with self._lock:
            # A full pipe wakes as well as one more byte in it.
            if not self.closed:
                with contextlib.suppress(BlockingIOError):
                    os.write(self.wakeup_fd, byte)

    def _forget_wakeups(self) -> bool:
        woken = False
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._wakeup_read, 4096):
                woken = woken or bool(data.strip(_NUDGE))
        return woken

    def _require_open(self) -> None:
        if self.closed:
            raise RuntimeError('the poller is closed')

    def close_all(self) -> None:
        """See `IPoller`."""
        with contextlib.ExitStack() as stack:  # all, even if one fails
            for watch in list(dict.fromkeys(self._watches.values())):
                if isinstance(watch.source, Channel | Server):
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
            if self._waiting:  # and will do it
                with contextlib.suppress(BlockingIOError):
                    os.write(self.wakeup_fd, _WAKE)
            else:
                self._release()

    def _release(self) -> None:
        with self._lock:
            if self.wakeup_fd >= 0:
                self._readiness.close()
                os.close(self._wakeup_read)
                os.close(self.wakeup_fd)
                self._wakeup_read = self.wakeup_fd = -1

    def after_fork(self) -> None:
        """In a child: the registrations are the parent's, and stay so."""
        if not self.closed:
            self._lock = threading.RLock()  # another thread may have had it
            self._release()
            self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None,
                 exc: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if not self.closed:
            warnings.warn(f'unclosed {self!r}', ResourceWarning,
                          stacklevel=2, source=self)
            self.close()


class _BackgroundPoller(Poller):

    def after_fork(self) -> None:
        global _lock
        _lock = threading.Lock()
        super().after_fork()
        self.close()  # as nobody polls it here


_lock = threading.Lock()
_background: Poller | None = None


def background() -> Poller:
    """The poller of the daemon thread; begun if there is none.

    Whoever closes it ends the thread, so that the next call begins another.
    """
    global _background
    with _lock:
        if _background is None or _background.closed:
            _background = _BackgroundPoller()
            threading.Thread(target=_serve, args=(_background,), daemon=True,
                             name='gocept.runner.poller').start()
        return _background


def _serve(poller: Poller) -> None:
    try:
        while not poller.closed:
            poller.poll()
    finally:
        poller.close()  # so that there can be another
