"""What notices that a tick, or an item of it, takes longer than it may.

A thread of its own looks at the time, and logs the stacks of all threads while
the tick goes on. It is not the background thread, as a log file may block, and
as callbacks of users may hold up that one. While C code holds the interpreter,
no thread can log anything. So a little later an alarm of the kernel sends the
thread of the loop a signal, at which `faulthandler` writes the stacks. They
are logged as soon as Python runs again.

The alarm does not come first: the signal interrupts a system call, and the
stacks are sure only while no Python code runs.
"""

import contextlib
import errno
import faulthandler
import math
import os
import signal
import threading
import weakref
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from time import monotonic
from typing import NoReturn

from gocept.runner import errors
from gocept.runner.boot.current import running
from gocept.runner.boot.texts import name_of
from gocept.runner.events import Loop
from gocept.runner.logs import Log
from gocept.runner.operation import stacks
from gocept.runner.operation.alarm import Alarm
from gocept.runner.process.registry import guarding
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.forks import Lock, tell_forks

log = Log('gocept.runner.operation')

_GRACE = 0.5
"""Seconds in which Python may log the stacks before the alarm comes.

It is so long since `faulthandler` may crash, once in some hundred times, if
the signal comes while the thread runs code of Python.
"""

_AGAIN = 1.0
"""Seconds after which the process ends though nobody reads the stacks."""

_PATIENCE = 5.0
"""Seconds that the loop waits for another thread to log its tick."""

_LONGEST = 1e9  # seconds; what is longer is the same to everybody


class Watchdog(Closing):
    """Sees to `tick_timeout` of a loop, in the thread that makes this.

    A forked child has none: nothing is noticed there.
    """

    def __init__(self, loop: Loop) -> None:
        self._stack = contextlib.ExitStack()
        # Unlike an event, it may be used by a finalizer at any place.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self.is_open = True
        """Whether it was not closed."""
        assert loop.tick_timeout is not None
        self._loop = loop
        self._seconds = min(loop.tick_timeout, _LONGEST)
        self._alarm_after = self._seconds + _GRACE
        self._is_fatal = loop.tick_timeout_action == 'abort'
        self._thread = threading.get_ident()
        self._lock = Lock()
        self.deadline: float | None = None
        """See `IMainLoop`."""
        self._told: float | None = None
        """The deadline that was logged last, by its identity."""
        self._written = threading.Event()
        """Set when this was written to the log."""
        self._is_item = False
        self._overdue: list[float] = []
        self._is_idle = False
        """Whether nobody looks at the time before something is in `_wake`."""
        self._signal: stacks.Signal | None = None
        self._set: Callable[[], object] = _nothing
        self._clear: Callable[[], object] = _nothing
        try:
            self._open(self._stack)
        except BaseException:
            self._stack.close()
            raise
        tell_forks(self)

    def _open(self, stack: contextlib.ExitStack) -> None:
        self._now = stack.enter_context(stacks.Sheet())
        self._then = stack.enter_context(stacks.Sheet())
        self._error = stack.enter_context(stacks.error_output())
        if self._is_fatal:
            stack.enter_context(guarding())
        try:
            self._make_alarm(stack)
        except OSError as error:
            log.warning(
                'While C code holds the interpreter, nobody notices that '
                'a tick of %s takes longer than %s: %s',
                self._worker(), _text(self._seconds), error)
        self._looking = threading.Thread(
            target=_look, args=(weakref.ref(self), self._wake, stack),
            daemon=True, name='gocept.runner.watchdog')
        try:
            self._looking.start()
        except RuntimeError as error:
            raise errors.ShortageError(errno.EAGAIN, str(error)) from error

    def _make_alarm(self, stack: contextlib.ExitStack) -> None:
        self._signal = stack.enter_context(stacks.Signal(
            self._error if self._is_fatal else self._then.fd,
            fatal=self._is_fatal))
        alarm = stack.enter_context(Alarm(
            self._alarm_after, self._signal.number,
            _AGAIN if self._is_fatal else 0))
        self._set, self._clear = alarm.set, alarm.clear

    @property
    def is_of_this_thread(self) -> bool:
        """Whether the thread that calls this has made it."""
        return self._thread == threading.get_ident()

    def begin_tick(self, now: float) -> None:
        """The time of a tick begins, on the monotonic clock."""
        self._is_item = False
        self._begin_time(now)

    def _begin_time(self, now: float) -> None:
        self.deadline = now + self._seconds
        self._set()
        if self._is_idle:
            self._wake.put(None)

    def begin_item(self) -> None:
        """The time of an item of the tick begins, and that before is over."""
        deadline = self.deadline
        if deadline is not None:
            self._begin_time(monotonic())
            self._check(deadline)
            self._is_item = True

    def end_tick(self) -> Sequence[float]:
        """The tick is over; returns how long it has taken if it was too long.

        If its items were too long, the time of each of these.
        """
        deadline = self.deadline
        if deadline is not None:
            self._clear()
            self.deadline = None
            self._check(deadline)
        overdue = self._overdue
        if overdue:
            self._overdue = []
        return overdue

    def _check(self, deadline: float) -> None:
        """What had this deadline is over: log it if it was too long."""
        late = monotonic() - deadline
        if late < 0:
            return
        self._overdue.append(self._seconds + late)
        what = self._what()
        then = self._claim(deadline)
        if then is None:
            self._written.wait(_PATIENCE)
            log.warning('%s, which was too long, is over after %s',
                        what, _text(self._seconds + late))
        else:
            # C code has held the interpreter, or it was over just now.
            log.error(
                '%s has taken %s, longer than the %s that tick_timeout '
                'allows. %s', what, _text(self._seconds + late),
                _text(self._seconds),
                then or 'What it did was not seen')
            self._written.set()
        self._then.clear()

    def _claim(self, deadline: float) -> str | None:
        """The stacks at the alarm; '' if there was none.

        None if another thread logs that this deadline has passed. Who gets
        another answer is to log it.
        """
        with self._lock:
            if self._told is deadline:
                return None
            self._told = deadline
            self._written = threading.Event()
            self._loop.timed_out += 1
            found = stacks.report(self._then, self._thread)
        return found and (f'All threads, after {_text(self._alarm_after)}:'
                          f'\n\n{found}')

    def look(self) -> float | None:
        """Look at the time; called by the thread that does this.

        Returns the seconds until the next look; None: until something is in
        `_wake`. Nothing is put there for each tick, as that takes longer than
        an idle tick. So each look finds the next one.
        """
        if not self.is_open:
            return 0
        self._is_idle = False
        deadline = self.deadline
        if deadline is None:
            self._is_idle = True
            if self.deadline is None:
                return None
            return 0  # a tick has begun just now
        left = deadline - monotonic()
        if left > 0:
            return left
        if self.deadline is deadline:  # else it was over in time
            self._tell(deadline)
        # The next one may have begun meanwhile, else it has all its time.
        return self._seconds if self.deadline is deadline else 0

    def _spare(self, deadline: float) -> None:
        """Have no alarm for what had this deadline: Python code runs."""
        self._clear()
        if self.deadline is not deadline:  # the next tick has begun meanwhile
            self._set()
            if self.deadline is None:  # and has ended
                self._clear()

    def _tell(self, deadline: float) -> None:
        """Log the stacks while the tick goes on, unless it is just over."""
        what, then = self._what(), self._claim(deadline)
        if then is None:
            return
        written = self._written
        if not self._is_fatal:
            self._spare(deadline)
        took = monotonic() - deadline + self._seconds
        goes_on = self.deadline is deadline
        parts = [f'{what} takes longer than the {_text(self._seconds)} that '
                 f'tick_timeout allows: it has taken {_text(took)} up to now']
        if self._is_fatal and goes_on:
            parts[0] += ('. The process ends by SIGABRT, as '
                         'tick_timeout_action says')
        if then:
            parts.append(then)
        if goes_on or not then:
            self._now.clear()
            self._now.write()
            parts.append('All threads, now:')
            parts.append(stacks.report(
                self._now, self._thread, threading.get_ident()))
        try:
            with running(self._loop):
                log.error('%s', '\n\n'.join(parts))
        finally:
            written.set()
        if self._is_fatal and self.deadline is deadline:
            self._abort()

    def _abort(self) -> NoReturn:
        faulthandler.dump_traceback(self._error, all_threads=True)
        if os.getpid() == 1:  # for which the system ignores the signal
            os._exit(errors.SIGNALLED + signal.SIGABRT)
        os.abort()

    def _what(self) -> str:
        """The tick, for a log line."""
        tick = f'tick {self._loop.tick} of {self._worker()}'
        return f'An item in {tick}' if self._is_item else f'T{tick[1:]}'

    def _worker(self) -> str:
        return f'worker {self._loop.name or name_of(self._loop.worker)!r}'

    def after_fork(self) -> None:
        """In a child, which has no alarm of the kernel, and is not watched."""
        self._set = self._clear = _nothing
        self.deadline = None
        self._seconds = math.inf
        self._is_idle = False
        if self._signal is not None:
            self._signal.close()

    def close(self) -> None:
        """See `Closing`."""
        self.deadline = None
        if self.is_open:
            self.is_open = False
            self._wake.put(None)
            self._looking.join(_PATIENCE)  # it may log the last tick
            self._stack.close()

    def __del__(self) -> None:
        # A loop with a `__call__` of its own may be forgotten without an end.
        self._wake.put(None)


def _look(watchdog: 'weakref.ref[Watchdog]', wake: 'SimpleQueue[None]',
          stack: contextlib.ExitStack) -> None:
    """The thread, which ends when the watchdog is closed or forgotten."""
    while (found := watchdog()) is not None:
        if not found.is_open:
            return
        seconds = found.look()
        del found
        with contextlib.suppress(Empty):
            wake.get(timeout=seconds)
    stack.close()


def _nothing() -> None:
    """In place of an alarm."""


def _text(seconds: float) -> str:
    return f'{seconds:.{3 if seconds < 1000 else 9}g} s'
