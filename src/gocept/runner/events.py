"""What happens to loops and children, told through zope.event."""

import contextlib
import functools
import sys
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Literal, Protocol

import zope.event
import zope.interface
import zope.interface.declarations
from zope.interface.interfaces import IComponents

from gocept.runner import interfaces
from gocept.runner.logs import Log
from gocept.runner.waits.forks import Lock, OneProcess
from gocept.runner.waits.instants import Instant
from gocept.runner.waits.threads import in_background, survived

log = Log(__name__)


Missed = Literal['skip', 'once']
"""What becomes of the runs of a schedule that were missed."""

TimeoutAction = Literal['log', 'abort']
"""What is done about a tick that takes too long."""


class Schedule(Protocol):
    """When a loop runs; see `ISchedule`."""

    def after(self, instant: float) -> float: ...

    def before(self, instant: float) -> float | None: ...

    def delay(self) -> float: ...

    def clock(self, instant: float) -> datetime: ...


class Counts(Protocol):
    """The numbers of items; see `IMainLoop`."""

    done: int
    failed: int
    skipped: int
    uncertain: int


class Loop(Protocol):
    """What events tell of, and what a program runs; see `IMainLoop`."""

    ticks: float
    once: bool
    failed: bool
    status: int
    ended_by: SystemExit | KeyboardInterrupt | None
    announce: Callable[[], object]
    name: str | None
    worker: Callable[[], object]
    tick: int
    attempt: int
    tick_started: float | None
    next_tick: Instant | None
    schedule: Schedule | None
    missed: Missed
    tick_timeout: float | None
    tick_timeout_action: TimeoutAction
    timed_out: int

    @property
    def deadline(self) -> float | None: ...

    @property
    def stopping(self) -> bool: ...

    @property
    def known_principal(self) -> str | None: ...

    @property
    def counts(self) -> Counts: ...

    def __call__(self) -> None: ...

    def stop(self) -> None: ...


class Child(Protocol):
    """What events tell of; see `IProcess`."""

    name: str
    returncode: int | None


class LoopEvent:
    """See `ILoopEvent`."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def __repr__(self) -> str:
        facts = ', '.join(f'{name}={value!r}'
                          for name, value in vars(self).items())
        return f'<{type(self).__name__}: {facts}>'


@zope.interface.implementer(interfaces.ILoopStarted)
class LoopStarted(LoopEvent):
    """See `ILoopStarted`."""


@zope.interface.implementer(interfaces.ILoopStopped)
class LoopStopped(LoopEvent):
    """See `ILoopStopped`."""


@zope.interface.implementer(interfaces.ITickStarted)
class TickStarted(LoopEvent):
    """See `ITickStarted`."""


@zope.interface.implementer(interfaces.ITickCommitted)
class TickCommitted(LoopEvent):
    """See `ITickCommitted`."""


class _TickError(LoopEvent):

    def __init__(self, loop: Loop, error: BaseException) -> None:
        super().__init__(loop)
        self.error = error


@zope.interface.implementer(interfaces.ITickAborted)
class TickAborted(_TickError):
    """See `ITickAborted`."""


@zope.interface.implementer(interfaces.ITickUncertain)
class TickUncertain(_TickError):
    """See `ITickUncertain`."""


@zope.interface.implementer(interfaces.IConflictRetried)
class ConflictRetried(_TickError):
    """See `IConflictRetried`."""

    def __init__(self, loop: Loop, error: BaseException, attempt: int) -> None:
        super().__init__(loop, error)
        self.attempt = attempt


@zope.interface.implementer(interfaces.IPauseStarted)
class PauseStarted(LoopEvent):
    """See `IPauseStarted`."""


@zope.interface.implementer(interfaces.ITickTimedOut)
class TickTimedOut(LoopEvent):
    """See `ITickTimedOut`."""

    def __init__(self, loop: Loop, seconds: float) -> None:
        super().__init__(loop)
        self.seconds = seconds


_ANY_OF_A_TICK = (zope.interface.declarations.Declaration(
    *map(zope.interface.implementedBy, (
        TickStarted, TickCommitted, TickAborted, TickUncertain,
        ConflictRetried, PauseStarted, TickTimedOut))),)
"""What a subscriber of any of these events subscribes to."""


def hearing_of_ticks(components: IComponents) -> Callable[[], bool]:
    """Return what tells whether a tick may have subscribers.

    To ask that takes 0.3 µs, while the two events of a tick take 2.1 µs if
    nobody hears them: a seventh of an idle tick, a hundredth of a commit.
    """
    subscribers = zope.event.subscribers
    dispatch = _dispatch_of_components()

    def is_heard() -> bool:
        if len(subscribers) != 1 or subscribers[0] is not dispatch:
            return bool(subscribers)
        try:
            return bool(
                components.adapters.subscriptions(_ANY_OF_A_TICK, None))
        except Exception:  # of the database; it will be logged
            return True
    return is_heard


class ChildEvent:
    """See `IChildEvent`."""

    def __init__(self, process: Child) -> None:
        self.process = process
        self.name = process.name

    @classmethod
    def tell(cls, process: Child) -> None:
        """Tell the subscribers that this has happened to `process`."""
        notify(cls(process))

    def __repr__(self) -> str:
        return f'<{type(self).__name__}: {self.process!r}>'


@zope.interface.implementer(interfaces.IChildStarted)
class ChildStarted(ChildEvent):
    """See `IChildStarted`."""


@zope.interface.implementer(interfaces.IChildReady)
class ChildReady(ChildEvent):
    """See `IChildReady`."""


@zope.interface.implementer(interfaces.IChildEnded)
class ChildEnded(ChildEvent):
    """See `IChildEnded`."""

    def __init__(self, process: Child) -> None:
        super().__init__(process)
        assert process.returncode is not None
        self.status = process.returncode


PATIENCE = 1.0
"""Seconds to wait for what another thread tells. It may never end, as the code
of users may want something that the thread which waits has."""


class Queue:
    """Calls that are made in the order in which they were put, by one thread.

    They are put with a lock held, and made by `tell` without it. So nobody is
    told of an end before the start, and code of users runs without our locks.
    """

    def __init__(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()
        self._telling = Lock()  # waited for by `settle` only

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def is_telling(self) -> bool:
        """Whether this thread was called by `tell`."""
        return self._telling.held

    def put(self, call: Callable[..., object], *args: object) -> None:
        """Have it called by the next `tell`."""
        self._calls.append(functools.partial(call, *args))

    def tell(self) -> None:
        """Make the calls, unless a `tell` that goes on will make them.

        That one may be of another thread, or be around this one, if a call
        has come back here. What one of them raises is raised when all are
        made; the background thread logs it and goes on.
        """
        failure: BaseException | None = None
        while (self._calls and not self.is_telling
               and self._telling.acquire(blocking=False)):
            try:
                while self._calls:
                    try:
                        self._calls.popleft()()
                    except BaseException as error:  # the others are made
                        failure = failure or error
            finally:
                self._telling.release()
        if failure is None:
            return
        if not in_background():
            raise failure
        log.error('The background thread goes on', exc_info=failure)

    def settle(self, seconds: float = PATIENCE) -> bool:
        """Make the calls, and wait for the end of those of another thread.

        False if that takes longer than `seconds`: the other thread may wait
        for this one, or for a lock that this one holds. In a call of this
        queue it returns True at once, as it would wait for itself.
        """
        self.tell()
        if self.is_telling:
            return True
        try:
            return bool(self._telling.acquire(timeout=seconds))
        finally:
            if self.is_telling:
                self._telling.release()
            self.tell()  # what was put meanwhile


@contextlib.contextmanager
def hearing(hear: Callable[[object], object]) -> Iterator[None]:
    """Have `hear` called with all events of the process in this block."""
    zope.event.subscribers.append(hear)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # code has removed them all
            zope.event.subscribers.remove(hear)


def notify(event: object) -> None:
    """Do what `zope.event.notify` does, but log what subscribers raise.

    The subscribers that the component architecture knows are called one by
    one. Otherwise one that fails would keep the event from the others.
    """
    dispatch = _dispatch_of_components()
    for subscriber in zope.event.subscribers:
        _call(_dispatch if subscriber is dispatch else subscriber, event)


def _dispatch_of_components() -> Callable[[object], object] | None:
    # Not imported, as a program may do without it.
    return getattr(sys.modules.get('zope.component.event'), 'dispatch', None)


def _dispatch(event: object) -> None:
    # Those of a site are in the database, so that the look may fail as well.
    components = sys.modules['zope.component'].getSiteManager()
    for handler in components.adapters.subscriptions(
            (zope.interface.providedBy(event),), None):
        _call(handler, event)


def _call(subscriber: Callable[[object], object], event: object) -> None:
    try:
        with OneProcess():
            subscriber(event)
    except survived():
        log.exception('A subscriber of %r failed', event)
