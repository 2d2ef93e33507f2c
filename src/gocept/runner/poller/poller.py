"""Many streams, processes and timers; one wait.

A poller belongs to the thread that calls `Poller.poll` or `Poller.pause`: that
thread reads the channels, reaps the processes and runs the callbacks. Sources
may be registered, written to and closed by any thread.

When a source has ended a pause, the poller does not wait for its descriptor
until somebody has fetched from the source. So `poll` and `pause` have one
wait, which asks the system only what is ready now.

A source takes its own lock before that of a poller, so no method of a source
that takes one is called with the lock of the poller held.
"""

import collections
import contextlib
import functools
import itertools
import math
import socket
import time
import weakref
from collections.abc import Callable, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    ParamSpec,
    TypeVar,
    cast,
)

from gocept.runner.errors import PollerInUse
from gocept.runner.poller.descriptors import READABLE, WRITABLE, Descriptors
from gocept.runner.poller.timer import Schedule, Timer
from gocept.runner.waits.closing import Owning
from gocept.runner.waits.deadline import NEVER, Deadline
from gocept.runner.waits.forks import Lock, tell_forks
from gocept.runner.waits.source import Item, Source
from gocept.runner.waits.standard import fill_standard
from gocept.runner.waits.threads import survived

if TYPE_CHECKING:
    from gocept.runner.channel import Channel, TransactionalChannel
    from gocept.runner.channel.custom import CustomChannel
    from gocept.runner.poller.server import Server
from gocept.runner.logs import Log

log = Log('gocept.runner.poller')

P = ParamSpec('P')

T = TypeVar('T')

_READ_EVENTS = ~WRITABLE
"""An end, an error and a descriptor that is not open as well."""

Label = Any
"""What was registered: a source, or the socket of a server."""

Pair = tuple[Item, Label]

Callback = Callable[[Item, Label], object]


class Watch:
    """A source as a poller knows it, and who gets what it has."""

    __slots__ = ('always', 'callback', 'fd', 'label', 'source', 'told')

    def __init__(self, source: Source, label: Label,
                 callback: Callback | None) -> None:
        self.source = source
        self.label = label
        self.callback = callback
        self.fd = -1
        self.always = False
        """Whether the source is a regular file, which is always ready."""
        self.told = False
        """Whether it has ended a pause, and nobody has fetched since."""

    def call(self, items: Sequence[Item], results: list[Pair]) -> None:
        """Hand `items` to the callback.

        What is left is added to `results`: if one of the calls has removed
        the callback, or ends the program.
        """
        left = collections.deque(items)
        try:
            while left and self.callback is not None:
                try:
                    self.callback(left.popleft(), self.label)
                except survived():  # the other sources go on
                    log.exception('The callback of %r failed', self.label)
        finally:
            results += zip(left, itertools.repeat(self.label))


def _or_later(method: Callable[Concatenate['Poller', P], None],
              ) -> Callable[Concatenate['Poller', P], None]:
    """Have the thread that polls do it, if this thread holds the lock.

    Then the collector has run a finalizer of a user within a call of ours.
    """
    @functools.wraps(method)
    def call(poller: 'Poller', /, *args: P.args, **keywords: P.kwargs) -> None:
        if poller._lock.held:
            poller._late.append(
                functools.partial(method, poller, *args, **keywords))
            poller._descriptors.pipe.nudge()
        else:
            method(poller, *args, **keywords)
    return call


def _alone(method: Callable[Concatenate['Poller', P], T],
           ) -> Callable[Concatenate['Poller', P], T]:
    """Let one thread at a time wait: two would take news from each other."""
    @functools.wraps(method)
    def call(poller: 'Poller', /, *args: P.args, **keywords: P.kwargs) -> T:
        turn = poller.turn
        if turn._is_owned():  # a callback waits; `held` is slower
            return method(poller, *args, **keywords)
        try:
            if not turn.acquire(blocking=False):
                raise PollerInUse(
                    'another thread waits with this poller: give each thread '
                    'a Poller of its own')
            return method(poller, *args, **keywords)
        finally:
            if turn._is_owned():  # else a signal handler has raised before
                turn.release()
    return call


def _adapted(custom: 'CustomChannel') -> Source:
    # Imported here, as a worker waits without any streams.
    from gocept.runner.channel.custom import as_channel
    try:
        return as_channel(custom)
    except TypeError:
        raise TypeError(
            f'a channel, a process or a timer is needed, not {custom!r}; a '
            'listening socket: add_server()') from None


class Poller(Owning):
    """See `IPoller`, and `contracts`."""

    def __init__(self, *, buffering: str | None = None) -> None:
        if buffering is not None:
            # Imported here, as a worker waits without any streams.
            from gocept.runner.channel.base import checked_buffering
            checked_buffering(buffering)
        self._buffering = buffering
        self._lock = Lock()
        self.turn = Lock()
        """Of the thread that waits. Whoever holds it already may wait."""
        self._open()
        tell_forks(self)

    def _open(self) -> None:
        fill_standard()
        self._watches: dict[int, Watch] = {}  # by id of what it stands for
        self._readers: dict[int, Watch] = {}  # by descriptor
        self._writers: dict[int, Source] = {}
        self._senders: weakref.WeakSet[Source] = weakref.WeakSet()
        self._transactional: dict[Watch, None] = {}
        self._schedule = Schedule()
        # To be collected though no descriptor says so: what sources hold, and
        # what was told.
        self._ready: dict[Watch, None] = {}
        # Of these, what transactions have given back, which comes first.
        self._returned: dict[Watch, None] = {}
        self._late: collections.deque[Callable[[], None]] = collections.deque()
        self._results: list[Pair] = []
        self._news = False  # to end the pause
        self._paused_until = -math.inf
        self._descriptors = Descriptors()
        self.closed = False

    @property
    def wakeup_fd(self) -> int:
        """See `IPoller`."""
        return self._descriptors.pipe.sink

    def register(self, source: 'Source | CustomChannel',
                 callback: Callback | None = None) -> None:
        """See `IPoller`."""
        label = source
        if not isinstance(source, Source):
            source = _adapted(source)
        self._catch_up()  # it may have the number of one that was closed
        with self._lock:
            self._add(Watch(source, label, callback))
        self._send_what_is_kept(source)

    def add_server(self, sock: socket.socket,
                   callback: Callback | None = None) -> None:
        """See `IPoller`."""
        # Imported here, as a worker waits without any streams; and not later,
        # as no descriptor may be left when a client comes.
        from gocept.runner.channel import SocketChannel
        from gocept.runner.poller.server import Server
        server = Server(sock, functools.partial(
            SocketChannel, buffering=self._buffering))
        with self._lock:
            self._add(Watch(server, sock, callback))

    def _add(self, watch: Watch) -> None:
        """With the lock held."""
        if self.closed:
            raise RuntimeError('the poller is closed')
        known = self._watches.get(id(watch.label))
        if known is not None and known.label is watch.label:
            known.callback = watch.callback
            return
        source = watch.source
        attached = [layer for layer in source.layers() if layer.attach(self)]
        try:
            # Asked for after `attach`: from then on, a thread that closes
            # the source tells this poller, and waits for the lock.
            watch.fd = source.fileno()
            self._add_reader(watch)
        except BaseException:
            for layer in attached:
                layer.detach(self)
            raise
        for each in (watch.label, *source.layers()):
            self._watches[id(each)] = watch
        if source.transactional:
            self._transactional[watch] = None
        if isinstance(source, Timer):
            source.start()
            self._schedule.add(source)
        elif watch.fd < 0 or watch.always or source.buffered:
            self._ready[watch] = None
        else:
            return  # the wait in progress has the descriptor already
        self._descriptors.nudge()

    def _add_reader(self, watch: Watch) -> None:
        """With the lock held."""
        fd = watch.fd
        other = self._readers.get(fd)
        if other is not None:
            if other.source.fileno() == fd:
                raise ValueError(f'descriptor {fd} is registered already, for '
                                 f'{other.label!r}')
            self._remove(other)  # it was closed behind our back
        if fd >= 0:
            try:
                self._descriptors.add(fd, READABLE)
            except PermissionError:
                watch.always = True
            self._readers[fd] = watch

    def _remove_reader(self, watch: Watch) -> None:
        """With the lock held."""
        if self._readers.get(watch.fd) is watch:
            del self._readers[watch.fd]
            self._descriptors.drop(watch.fd, READABLE)

    def _remove(self, watch: Watch) -> None:
        """With the lock held."""
        for each in (watch.label, *watch.source.layers()):
            self._watches.pop(id(each), None)
        self._ready.pop(watch, None)
        self._returned.pop(watch, None)
        self._transactional.pop(watch, None)
        self._remove_reader(watch)
        if isinstance(watch.source, Timer):
            self._schedule.drop(watch.source)

    @_or_later
    def unregister(self, source: Label) -> None:
        """See `IPoller`."""
        with self._lock:
            watch = self._watches.get(id(source))
            if watch is not None:
                self._unregister(watch)

    def _unregister(self, watch: Watch) -> None:
        """With the lock held."""
        self._remove(watch)
        for layer in watch.source.layers():
            if layer not in self._senders:
                layer.detach(self)
                self._remove_writer(layer.sink_fd, layer)

    def release(self, source: Source) -> None:
        """Let go of a source without a callback: the caller waits for it.

        So the end of a process does not wake two threads.
        """
        with self._lock:
            watch = self._watches.get(id(source))
            if watch is not None and watch.callback is None:
                self._unregister(watch)

    def regain(self, source: Source) -> None:
        """Wait for a source again that was let go of."""
        with self._lock:
            if not self.closed and id(source) not in self._watches:
                self._add(Watch(source, source, None))

    def send_for(self, channel: 'Channel') -> None:
        """See `IPoller`."""
        for layer in channel.layers():
            self._senders.add(layer)
            layer.attach(self)
        self._send_what_is_kept(channel)

    def _send_what_is_kept(self, source: Source) -> None:
        for layer in source.layers():
            if layer.kept:
                self.source_sending(layer)

    def _remove_writer(self, fd: int, source: Source) -> None:
        """With the lock held."""
        if self._writers.get(fd) is source:
            del self._writers[fd]
            self._descriptors.drop(fd, WRITABLE)

    @_or_later
    def source_ready(self, source: Source) -> None:
        with self._lock:
            watch = self._watches.get(id(source))
            if watch is not None:
                self._settle(watch, True)

    @_or_later
    def source_fetched(self, source: Source) -> None:
        with self._lock:
            watch = self._watches.get(id(source))
            if watch is not None and watch.told:
                self._settle(watch, watch.source.buffered)

    @_or_later
    def source_returned(self, source: Source) -> None:
        with self._lock:
            watch = self._watches.get(id(source))
            if watch is not None:
                fd = watch.fd
                if (self._readers.get(fd) is not watch
                        and 0 <= fd == watch.source.fileno()):
                    with contextlib.suppress(OSError):  # closed meanwhile
                        self._add_reader(watch)
                self._settle(watch, True)
                self._returned[watch] = None

    @_or_later
    def source_over(self, source: Source) -> None:
        with self._lock:
            watch = self._watches.get(id(source))
            if watch is not None:
                self._remove(watch)

    def _suspend(self, watch: Watch) -> None:
        with self._lock:
            if watch.source.suspended and self._is_registered(watch):
                watch.told = False
                self._remove_reader(watch)
                self._ready.pop(watch, None)

    @_or_later
    def source_sending(self, source: Source) -> None:
        with self._lock:
            fd = source.sink_fd
            if not self.closed and fd >= 0 and (
                    self._writers.get(fd) is not source):
                # A regular file, whose disk is full, cannot be waited for.
                with contextlib.suppress(PermissionError):
                    self._descriptors.add(fd, WRITABLE)
                    self._writers[fd] = source

    @_or_later
    def source_closing(self, source: Source, fd: int) -> None:
        with self._lock:
            reader, writer = self._readers.get(fd), self._writers.get(fd)
            # Another source may have a descriptor of this number by now.
            if writer is source or (
                    reader and reader is self._watches.get(id(source))):
                self._readers.pop(fd, None)
                self._writers.pop(fd, None)
                self._descriptors.forget(fd)

    def _settle(self, watch: Watch, buffered: bool) -> None:
        """Wait for the source again: its rest is news. With the lock held."""
        if watch.told:
            watch.told = False
            if self._readers.get(watch.fd) is watch and not watch.always:
                with contextlib.suppress(OSError):  # closed without a word
                    self._descriptors.add(watch.fd, READABLE)
        if buffered or watch.always:
            self._ready[watch] = None
            self._descriptors.nudge()
        else:
            self._ready.pop(watch, None)

    @_alone
    def poll(self, timeout: float | None = None) -> list[Pair]:
        """See `IPoller`."""
        deadline = NEVER if timeout is None else Deadline(timeout)
        if timeout is None:
            for watch in [*self._transactional]:
                cast('TransactionalChannel', watch.source).require_sent()
        while True:
            try:
                if self._returned:
                    self._collect_returned()
                woken = self._wait(deadline, False)
                if self._ready or self._schedule:
                    self._collect_others()
            except BaseException:  # of a callback or a signal handler
                self._news = True  # what there is by now
                self._unfetch()
                raise
            results = self._results
            if (results or woken or self._news or self.closed
                    or (deadline is not NEVER and deadline.passed)):
                self._results, self._news = [], False
                return results

    @_alone
    def pause(self, timeout: float | None = None,
              over: Callable[[], object] = lambda: False) -> bool:
        """See `IPoller`."""
        deadline = NEVER if timeout is None else Deadline(timeout)
        try:
            while not over():
                self._wait(deadline, True)
                # Tell all of them, or the rest would end the next pause.
                for watch in [*self._ready]:
                    if not watch.told:
                        self._tell_rest(watch)
                if self._news or self.closed or not self._timers_left():
                    self._news = False
                    return True
                if deadline.passed:
                    return False
            return True
        finally:
            self._paused_until = time.monotonic()

    def _wait(self, deadline: Deadline, pausing: bool) -> bool:
        """Wait for descriptors, or as long as it is allowed.

        What can be read is told, in a pause, or collected. Returns whether
        there was a wake-up.
        """
        if self._late:
            self._catch_up()
        descriptors = self._descriptors
        descriptors.waiting = True  # from now on nudges are sent
        try:
            if self.closed:
                raise RuntimeError('the poller is closed')
            if pausing:
                seconds = self._left_to_news()
            elif self._ready or self._results or self._news:
                seconds = 0.0
            else:
                seconds = self._schedule.left() if self._schedule else math.inf
            # Without a time the system is asked at less cost.
            events = descriptors.wait(
                -1.0 if deadline is NEVER and seconds == math.inf
                else min(seconds, deadline.left()))
        finally:
            descriptors.waiting = False
            if self.closed:
                with self._lock:
                    self._release()
        woken = False
        for fd, event in events:
            watch = self._readers.get(fd)
            # A source that was told is not read, so its writer learns of an
            # end or an error.
            if watch is None or watch.told:
                woken = self._attend(fd) or woken
                continue
            if event & WRITABLE:
                self._attend(fd)
            if event & _READ_EVENTS:
                if pausing:
                    self._tell(watch)
                else:
                    self._collect(watch)
        return woken

    def _catch_up(self) -> None:
        """Make the calls that came while their thread held the lock."""
        while self._late:
            with contextlib.suppress(IndexError):  # another thread makes it
                self._late.popleft()()

    def _left_to_news(self) -> float:
        if self._news or not all(watch.told for watch in [*self._ready]):
            return 0.0
        return self._timers_left()

    def _timers_left(self) -> float:
        """Seconds until a timer is due that has not ended a pause yet."""
        return self._schedule.left_after(self._paused_until)

    def _attend(self, fd: int) -> bool:
        """Send, or read the wake-ups; whether there was one."""
        if fd == self._descriptors.pipe.faucet:
            return self._descriptors.pipe.drain()
        source = self._writers.get(fd)
        # Without the lock, as the source's own is taken here. When all is
        # sent, the next look finds nothing kept: to wait once too often costs
        # less than to begin and end it for each piece.
        if source is None:
            return False
        try:
            if not (source.kept and (source.send_kept() or not source.kept)):
                with self._lock:
                    self._remove_writer(fd, source)
                # Something may have been kept since it was looked at.
                if source.kept and source.send_kept():
                    self.source_sending(source)
        except survived():  # the other sources go on
            log.exception('%r failed, and nothing more is sent for it',
                          source)
            with self._lock:
                self._remove_writer(fd, source)
        return False

    def _tell(self, watch: Watch) -> None:
        """Let the source end the pause, and do not wait for it any more."""
        with self._lock:
            if not watch.told and self._is_registered(watch):
                watch.told = self._news = True
                self._ready[watch] = None
                for layer in watch.source.layers():
                    layer.told = True
                if self._readers.get(watch.fd) is watch:
                    self._descriptors.drop(watch.fd, READABLE)

    def _tell_rest(self, watch: Watch) -> None:
        """Let it end the pause, unless its owner has read the rest since."""
        source = watch.source
        if watch.always or source.buffered or source.fileno() < 0:
            self._tell(watch)
        else:
            with self._lock:
                self._ready.pop(watch, None)

    def _collect_others(self) -> None:
        for watch in [*self._ready]:
            if self._is_registered(watch):  # after the callbacks before it
                self._collect(watch)
        with self._lock:
            due = [(timer, self._watches[id(timer)])
                   for timer in self._schedule.take_due()]
        try:
            for _, watch in due:
                if self._is_registered(watch):
                    self._collect(watch)
        finally:
            with self._lock:
                for timer, watch in due:
                    if self._is_registered(watch):
                        self._schedule.add(timer)

    def _collect_returned(self) -> None:
        with self._lock:
            returned, self._returned = self._returned, {}
        for watch in returned:
            if self._is_registered(watch):
                self._collect(watch)

    def _unfetch(self) -> None:
        """Let transactional sources have again what nobody has got yet."""
        results, self._results = self._results, []
        items: dict[Label, list[Item]] = {}
        for pair in results:
            if getattr(pair[1], 'transactional', False):
                items.setdefault(pair[1], []).append(pair[0])
            else:
                self._results.append(pair)
        for channel, fetched in items.items():
            channel.unfetch(fetched)

    def _is_registered(self, watch: Watch) -> bool:
        return self._watches.get(id(watch.label)) is watch

    def _collect(self, watch: Watch) -> None:
        source = watch.source
        try:
            items, over = source.collect()
        except survived():  # of a custom channel; the others go on
            if source.transactional:
                raise  # the transaction has failed before
            log.exception('%r failed, and is not polled any more', source)
            over = True
            items = ([] if source.accepts
                     else [getattr(source, '_nothing', b'')])
        if source.suspended:
            self._suspend(watch)
        elif over:
            with self._lock:
                self._remove(watch)
        elif watch.told:
            source.tell_fetched()
        elif watch in self._ready:
            with self._lock:
                if self._is_registered(watch):
                    self._settle(watch, source.buffered)
        if source.accepts:
            items = self._take_in(watch, cast('Server', source), items)
        if watch.callback is not None:
            watch.call(items, self._results)
        elif len(items) == 1:
            self._results.append((items[0], watch.label))
        elif items:
            self._results += zip(items, itertools.repeat(watch.label))

    def _take_in(self, watch: Watch, server: 'Server',
                 clients: Sequence[Item]) -> Sequence[Item]:
        """Wait for the clients as well; returns those that can be waited for.
        """
        refused = []
        with self._lock:
            if self.closed:
                return clients  # whoever gets the clients closes them
            for client in clients:
                try:
                    self._add(Watch(client[1], client[1], None))
                except survived():  # the other clients go on
                    log.exception('%r is closed, as the poller cannot wait '
                                  'for it', client[1])
                    refused.append(client)
            if server.pause:
                self._remove_reader(watch)
                timer = Timer(server.pause)
                self._add(Watch(timer, timer,
                                lambda *result: self._accept_again(watch)))
        for _, channel in refused:
            channel.close()
        return [each for each in clients if each not in refused]

    def _accept_again(self, watch: Watch) -> None:
        with self._lock:
            if self._is_registered(watch):
                self._add_reader(watch)

    def wakeup(self) -> None:
        """See `IPoller`."""
        # Without the lock: a handler or a finalizer may have interrupted this
        # thread with the lock held. Before the byte, so that who has read the
        # byte knows.
        self._news = True
        self._descriptors.pipe.wake()

    def interrupt(self) -> None:
        """See `IPoller`."""
        self._descriptors.pipe.wake()

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
                self._unregister(watch)
            self._writers.clear()
            self.closed = True
            if self._descriptors.waiting:  # and will do it
                self._descriptors.pipe.wake()
            else:
                self._release()

    def _release(self) -> None:
        self._descriptors.close()

    def after_fork(self) -> None:
        """In a child: the registrations are the parent's, and stay so."""
        self._descriptors.pipe.close_in_child()
        self._release()
        if not self.closed:
            self.closed = True  # if there are no descriptors left
            self._open()
