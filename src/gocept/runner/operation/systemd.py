"""A loop as a service of systemd: how it tells its service manager of itself.

See sd_notify(3) for the protocol. The events of a loop come in its own thread,
which never waits here: a message that cannot be sent is kept, and the
background thread sends it. That thread also sends what is due while the loop
is in a tick or a pause. In a signal handler, `note_request` only wakes it.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator

from gocept.runner import events
from gocept.runner.boot.texts import described
from gocept.runner.errors import AlreadyRun, ShortageError
from gocept.runner.events import Loop, Schedule
from gocept.runner.logs import Log
from gocept.runner.poller import Timer, background
from gocept.runner.poller.thread import hand_over
from gocept.runner.signals import Shutdown, current_shutdown
from gocept.runner.signals.systemd import (
    ServiceManager,
    Wishes,
    taken_variables,
)
from gocept.runner.waits.forks import Lock, tell_forks

log = Log('gocept.runner.systemd')

_LEAST_INTERVAL = 1.0
"""Seconds between two lines for ``systemctl status``, at least.

So long, at most, does it take until a message is sent once more to a manager
that was busy, and until a loop that sends no events is looked at.
"""

_EXTENSION = 30
"""Seconds in which a manager that waits for the end hears from us again."""

_ALLOWANCE = 10.0
"""Seconds that a loop may need between its tick and its pause."""

_FAR = 1e9
"""Seconds. What is later may have no date."""

_LONGEST_STATUS = 400  # characters


@contextlib.contextmanager
def attached(loop: Loop, shutdown_timeout: float) -> Iterator[None]:
    """Tell the service manager, if there is one, of `loop` in this block.

    Children of the block do not get the variables that name the manager.
    """
    with taken_variables(os.environ) as wishes:
        if not wishes.address:
            yield
            return
        try:
            manager = ServiceManager(wishes.address)
        except ValueError as error:
            log.warning('%s', error)
            yield
            return
        service = Service(loop, manager, wishes, shutdown_timeout)
        try:
            with events.hearing(service.hear):
                service.begin()
                yield
        finally:
            service.close()


class Outbox:
    """Messages for the service manager, in their order.

    Those that it cannot take now are kept; of each kind, only the last.
    """

    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager
        self._lock = Lock()
        self._kept: dict[str, str] = {}
        self._is_gone = self._was_there = self._is_closed = False

    def put(self, kind: str, text: str) -> bool:
        """Send `text`, after what was kept; see `send`."""
        with self._lock:
            if self._is_closed:  # by another thread, just now
                return True
            self._kept.pop(kind, None)
            self._kept[kind] = text
        return self.send()

    def send(self) -> bool:
        """Send what was kept; False if the manager is busy."""
        with self._lock:
            was_gone, error = self._is_gone, None
            try:
                self._send()
                self._is_gone = False
            except BlockingIOError:
                return False
            except OSError as failure:
                self._is_gone, error = True, failure
        if error is not None and not was_gone:
            # Who has only waited for READY=1 may listen no more.
            tell = log.info if self._was_there else log.warning
            tell('The service manager cannot be told how the worker fares: '
                 '%s; the worker goes on, and tries it again with the next '
                 'message', error)
        return True

    def _send(self) -> None:
        while self._kept:
            kind, text = next(iter(self._kept.items()))
            self._manager.send(text)
            self._was_there = True
            del self._kept[kind]

    def close(self) -> None:
        """Drop what was kept, and end."""
        with self._lock:
            self._is_closed = True
            self._kept.clear()
            self._manager.close()


class Service:
    """What a service manager is told of a loop, and when."""

    def __init__(self, loop: Loop, manager: ServiceManager, wishes: Wishes,
                 shutdown_timeout: float) -> None:
        self._loop = loop
        self._watchdog = wishes.watchdog
        self._shutdown_timeout = shutdown_timeout
        self._outbox = Outbox(manager)
        self._lock = Lock()
        self._timers: dict[str, Timer] = {}
        self._shutdown: Shutdown | None = None
        self._is_known = self._is_ready = False
        self._is_stopping = self._is_over = self._is_closed = False
        self._changed = self._started = time.monotonic()
        self._ended = self._failed = 0  # ticks
        self._duration: float | None = None  # of the last one
        self._error = ''  # the last one
        self._status = ''
        self._status_sent = self._fed = -math.inf
        tell_forks(self)

    def after_fork(self) -> None:
        # A child that was forked in a tick is not the service.
        self._is_closed = True
        self._timers.clear()  # those of the parent
        self._outbox.close()

    def begin(self) -> None:
        """Tell what is to be told, from now on."""
        if self._watchdog is not None:
            self._start('watchdog', self._watchdog / 2, self._feed, True)
        self._start('look', _LEAST_INTERVAL, self._look, True)

    def close(self) -> None:
        """Tell that the loop has ended, and nothing from now on."""
        if not self._is_over:
            self._tell_end()
        self._is_closed = True
        if self._shutdown is not None and self._shutdown.listener is self:
            self._shutdown.listener = None
        for kind in list(self._timers):
            self._stop(kind)
        self._outbox.close()

    # In the thread of the loop:

    def hear(self, event: object) -> None:
        """Take note of what happens to the loop."""
        if not (isinstance(event, events.LoopEvent)
                and event.loop is self._loop):
            return
        self._changed = now = time.monotonic()
        if not self._is_known:
            self._is_known = True
            self._stop('look')
        if isinstance(event, events.LoopStarted):
            self._listen()
        elif isinstance(event, events.TickStarted):
            self._started = now
            self._tell_ready()
            self._start('status', _LEAST_INTERVAL, self._tell_status)
        elif isinstance(event, events.TickCommitted):
            self._note_end(now)
        elif isinstance(event, (events.TickAborted, events.TickUncertain)):
            self._note_end(now)
            if not isinstance(event.error, AlreadyRun):
                self._failed += 1
                self._error = _one_line(described(event.error))
        elif isinstance(event, events.PauseStarted):
            self._tell_ready()
            self._tell_status()
        elif isinstance(event, events.LoopStopped):
            self._tell_end()
        # A tick that holds the interpreter has all of the time before it.
        if (self._watchdog is not None
                and now > self._fed + min(1.0, self._watchdog / 4)):
            self._feed()

    def _listen(self) -> None:
        with current_shutdown() as shutdown:
            if shutdown.listener is None:
                self._shutdown, shutdown.listener = shutdown, self
        if self._loop.stopping:
            self._tell_stopping()

    def _note_end(self, now: float) -> None:
        self._ended += 1
        self._duration = now - self._started

    def _tell_end(self) -> None:
        was_stopping, self._is_over = self._is_stopping, True
        self._tell_stopping()
        if was_stopping:
            self._tell_status(now=True)
            self._extend()

    @contextlib.contextmanager
    def reopening(self) -> Iterator[None]:
        """See `IShutdown.listener`."""
        micros = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._put('state', f'RELOADING=1\nMONOTONIC_USEC={micros}')
        try:
            yield
        finally:
            self._put('ready', 'READY=1')
            if self._is_stopping:  # which is final
                self._put('state', 'STOPPING=1')

    # In any thread:

    def note_request(self) -> None:
        """See `IShutdown.listener`."""
        hand_over(self._tell_stopping)

    def _look(self) -> None:
        """Look at a loop that sends no events, that of an adopter."""
        if self._loop.tick:
            self._tell_ready()
            self._tell_status()
        if self._loop.stopping:
            self._tell_stopping()

    def _feed(self) -> None:
        """Tell the watchdog that the loop is alive, if it is."""
        if self._is_on_time():
            self._fed = time.monotonic()
            self._put('watchdog', 'WATCHDOG=1')

    def _is_on_time(self) -> bool:
        """Whether the tick in progress, or the end of the pause, is not late.
        """
        loop, now = self._loop, time.monotonic()
        limit = loop.tick_timeout or self._watchdog or math.inf
        started, next_tick = loop.tick_started, loop.next_tick
        if started is not None:
            deadline = loop.deadline  # of the tick, or of an item
            return now <= (started + limit if deadline is None else deadline)
        if next_tick is not None:
            return next_tick.left() >= -_ALLOWANCE
        return not self._is_known or now <= self._changed + max(
            limit, _ALLOWANCE)

    def _tell_ready(self) -> None:
        if not self._is_ready:
            self._is_ready = True
            self._put('ready', 'READY=1')

    def _tell_stopping(self) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            self._put('state', 'STOPPING=1')
            self._tell_status(now=True)
            self._extend()
            self._start('extension', _EXTENSION / 3, self._extend, True)

    def _extend(self) -> None:
        """Ask for the time that a tick may take, or the end of children."""
        seconds = 0.0
        if self._is_over:
            seconds = self._shutdown_timeout + _EXTENSION
        elif self._loop.tick_timeout is not None and self._is_on_time():
            seconds = _EXTENSION
        if seconds:
            self._put('extension',
                      f'EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}')

    def _tell_status(self, *, now: bool = False) -> None:
        left = self._status_sent + _LEAST_INTERVAL - time.monotonic()
        if left > 0 and not now:
            self._start('status', left, self._tell_status)
            return
        status = self._as_text()[:_LONGEST_STATUS]
        if status != self._status:
            self._status, self._status_sent = status, time.monotonic()
            self._put('status', f'STATUS={status}')

    def _as_text(self) -> str:
        ticks = '1 tick' if self._ended == 1 else f'{self._ended} ticks'
        facts = [f'{self._activity()}; {ticks}, {self._failed} with errors']
        if self._duration is not None:
            facts.append(f'the last took {self._duration:.3g} s')
        if self._error:
            facts.append(f'last error: {self._error}')
        return ', '.join(facts)

    def _activity(self) -> str:
        loop = self._loop
        started, next_tick = loop.tick_started, loop.next_tick
        if self._is_over:
            return 'Ended'
        if started is not None:
            began = _local(time.time() + started - time.monotonic())
            return (f'Completing tick {loop.tick}, which began at {began}'
                    if self._is_stopping
                    else f'Running tick {loop.tick} since {began}')
        if self._is_stopping or next_tick is None:
            return 'Ending' if self._is_stopping else 'Beginning'
        if next_tick.left() > _FAR:
            return 'No tick in the next 30 years'
        if next_tick.clock == 'realtime' and loop.schedule is not None:
            return f'Next tick at {_in_zone(loop.schedule, next_tick.at)}'
        return f'Next tick at {_local(time.time() + next_tick.left())}'

    def _put(self, kind: str, text: str) -> None:
        if not self._is_closed and not self._outbox.put(kind, text):
            self._start('retry', _LEAST_INTERVAL, self._try_again)

    def _try_again(self) -> None:
        if not self._outbox.send():
            self._start('retry', _LEAST_INTERVAL, self._try_again)

    def _start(self, kind: str, seconds: float,
               call: Callable[[], object], repeat: bool = False) -> None:
        """Have the background thread call it then, unless one is waited for.
        """
        def act(item: object, source: object) -> None:
            if not repeat:
                self._timers.pop(kind, None)
            if not self._is_closed:
                call()
            elif repeat:  # it was closed while this was registered
                background().unregister(timer)
        with self._lock:
            if kind in self._timers or self._is_closed:
                return
            timer = self._timers[kind] = Timer(
                seconds, seconds if repeat else None)
        try:
            background().register(timer, act)
        except ShortageError as error:
            self._timers.pop(kind, None)
            log.warning('The service manager is told less, as no thread can '
                        'be started: %s', error)

    def _stop(self, kind: str) -> None:
        timer = self._timers.pop(kind, None)
        if timer is not None:
            background().unregister(timer)


def _one_line(text: str) -> str:
    """Without what could change a terminal."""
    return ' '.join(''.join(each if each.isprintable() else ' '
                            for each in text).split())


def _in_zone(schedule: Schedule, instant: float) -> str:
    """What the clock of a schedule shows, if it is not that of the system."""
    there = schedule.clock(instant)
    if there.utcoffset() == there.astimezone().utcoffset():
        return _local(instant)
    return there.isoformat(' ', 'seconds')


def _local(instant: float) -> str:
    """A time of the wall clock, without its date if this is today."""
    then = time.localtime(round(instant))
    today = time.localtime()[:3] == then[:3]
    return time.strftime('%H:%M:%S' if today else '%Y-%m-%d %H:%M:%S', then)
