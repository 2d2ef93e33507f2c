"""The life of one worker: when it is started, and what its end means.

It knows times and statuses, and touches no process. The house tells it what
has happened, and asks when to start it.
"""

import signal
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gocept.runner import errors
from gocept.runner.house.record import Phase, WorkerState
from gocept.runner.process import procfs
from gocept.runner.waits.instants import Clock as ClockName
from gocept.runner.waits.instants import Instant

if TYPE_CHECKING:
    from gocept.runner.operation.state import Moment


class Clock:
    """Both clocks."""

    def monotonic(self) -> float:
        """Seconds that pauses are measured with."""
        return time.monotonic()

    def realtime(self) -> float:
        """Seconds since the epoch, by the clock on the wall."""
        return time.time()

    def moment(self) -> 'Moment':
        """Now, by both."""
        return {'realtime': self.realtime(), 'monotonic': self.monotonic()}


class Times(Protocol):
    """When a worker is due; see `ISchedule`."""

    def after(self, instant: float) -> float:
        """The next time after an instant."""

    def delay(self) -> float:
        """How many seconds later this run begins, at random."""


class Rules(NamedTuple):
    """What becomes of a worker that fails."""

    first_pause: float = 0.25
    """Seconds from its end to its first restart. Each further pause is twice
    as long."""

    longest_pause: float = 60.0
    """Seconds; no pause is longer."""

    limit: int = 10
    """After so many failures in a row it is given up."""

    stable: float = 60.0
    """Seconds. The failure of a worker that has run for so long is the first
    one in a row."""


RULES = Rules()

FINAL = frozenset([errors.BAD_USAGE, errors.UNKNOWN_SITE,
                   errors.UNKNOWN_PRINCIPAL, errors.BAD_CONFIGURATION])
"""Statuses of what a restart does not change: it is given up at once."""

PASSING = frozenset([errors.DATABASE_UNAVAILABLE, errors.ALREADY_RUNNING])
"""Statuses of what others have to end: it is never given up."""


EXPECTED = frozenset([
    errors.SUCCESS, errors.INTERRUPTED, errors.SIGNALLED + signal.SIGTERM,
    -signal.SIGTERM])
"""Statuses of one that was told to end, perhaps before its first tick."""


class WorkerProcess:
    """One worker. Its process is replaced when it has ended.

    `once`: it runs one tick. With `times` it is started when it is due.
    """

    def __init__(self, name: str, site: str | None = None, *,
                 once: bool = False, times: Times | None = None,
                 rules: Rules = RULES, clock: Clock | None = None) -> None:
        self.name = name
        self.site = site
        self.once = once
        self.times = times
        self.clock = clock or Clock()
        self.pid: int | None = None
        self.life: int | None = None
        """See `WorkerState`."""
        self._start: int | None = None
        self.generation = 0
        self.starts = 0
        self.failures = 0
        self.status: int | None = None
        self.ending = False
        """Whether it is not started again."""
        self.replacing = False
        """Whether it was told to make way for a successor."""
        self._rules = rules
        self._since = self.clock.moment()
        self._born = self._run = self._due = 0.0
        self.phase: Phase = 'waiting'
        self.next_start: Instant | None = None
        """When to start it; None: not at all, or it has a process."""
        self._await()

    @property
    def has_process(self) -> bool:
        """Whether it has a process, or is about to have one."""
        return self.phase in ('starting', 'running', 'ending')

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens to it by itself."""
        return self.phase in ('done', 'given up', 'ended')

    def is_due(self) -> bool:
        """Whether it is to be started now."""
        start = self.next_start
        if start is None or self.ending:
            return False
        now = (self.clock.monotonic() if start.clock == 'monotonic'
               else self.clock.realtime())
        return now >= start.at

    def begin(self, generation: int) -> None:
        """A process of it is being started, by this template."""
        self.generation = generation
        self.starts += 1
        self._born = self.clock.monotonic()
        self._become('starting')

    def note_start(self, pid: int) -> None:
        """The process is there, and boots."""
        self.pid, self._born = pid, self.clock.monotonic()
        self._start = procfs.look(pid).start or None

    def note_running(self) -> None:
        """The process has booted: its first tick is next."""
        if self.phase == 'starting':
            self._become('running')

    def note_failed_start(self) -> None:
        """There is no process, as what was to fork it has ended."""
        self.starts -= 1
        self.life = None
        if self.ending:
            self._become('ended')
        else:
            self.replacing = False
            self._become('waiting')
            self._start_at('monotonic', self.clock.monotonic())

    def note_end(self, status: int) -> str:
        """The process has ended; returns what to say of it, or ''."""
        lasted = self.clock.monotonic() - self._born
        was_told = self.phase == 'ending'
        self.pid = self._start = self.life = None
        self.status = status
        replaced, self.replacing = self.replacing, False
        how = f'has ended with {said(status)}'
        if self.ending:
            self._become('ended')
            return '' if was_told and status in EXPECTED else how
        if was_told and replaced:
            self._become('waiting')
            self._start_at('monotonic', self.clock.monotonic())
            return '' if status in EXPECTED else how
        if not status:
            return self._succeed()
        if lasted >= self._rules.stable:
            self.failures = 0
        self.failures += 1
        return how + self._fail(status)

    def _succeed(self) -> str:
        self.failures = 0
        if self.once and self.times is not None:
            self._await()
            return ''
        self._become('done')
        return '' if self.once else 'has ended by itself, and is not restarted'

    def _fail(self, status: int) -> str:
        """Decide what is next; returns the rest of the sentence about it."""
        if self.once and self.times is None:
            self._become('done')
            return '; it runs once, and is not restarted'
        if status in FINAL:
            self._become('given up')
            return ': a restart would not help, so it is given up'
        is_last = (self.failures >= self._rules.limit
                   and status not in PASSING)
        pause = self.pause()
        if self.once and self.times is not None:
            now = self.clock.realtime()
            if (is_last or status == errors.PARTLY_COMMITTED
                    or self.times.after(now) <= now + pause):
                self.failures = 0
                self._await()
                return '; it is started again when it is due'
        elif is_last:
            self._become('given up')
            return f'; that was failure {self.failures} in a row, so it is ' \
                'given up'
        self._become('pausing')
        self._start_at('monotonic', self.clock.monotonic() + pause)
        return f'; it is restarted in {pause:.3g} s'

    def pause(self) -> float:
        """Seconds before the restart after this many failures."""
        rules = self._rules
        return min(rules.longest_pause,
                   rules.first_pause * 2.0 ** min(self.failures - 1, 64))

    def note_told(self) -> None:
        """The process was told to end."""
        if self.phase in ('starting', 'running'):
            self._become('ending')

    def end(self) -> None:
        """Do not start it again."""
        self.ending = True
        if not self.has_process and self.phase not in ('done', 'given up'):
            self._become('ended')
        self.next_start = None

    def renew(self) -> None:
        """New code is there: failures of the old one do not count.

        One that was given up is started again, and a pause is over.
        """
        self.failures = 0
        if self.phase in ('given up', 'pausing') and not self.ending:
            self._await()

    def note_clock(self) -> None:
        """The clock was set: it may be due at another time."""
        if (self.phase == 'waiting' and self.once and self.times is not None
                and self.times.after(self.clock.realtime()) < self._run):
            self._await()

    def _await(self) -> None:
        """Wait until it is due."""
        self._become('waiting')
        if self.once and self.times is not None:
            self._run = self.times.after(self.clock.realtime())
            self._start_at('realtime', self._run + self.times.delay())
        else:
            self._start_at('monotonic', self.clock.monotonic())

    def _start_at(self, clock: ClockName, at: float) -> None:
        self.next_start = Instant(clock, at)
        self._due = (at if clock == 'realtime' else
                     self.clock.realtime() + at - self.clock.monotonic())

    def _become(self, phase: Phase) -> None:
        self.phase = phase
        self._since = self.clock.moment()
        self.next_start = None

    def state(self) -> WorkerState:
        """What is told of it."""
        return {
            'name': self.name, 'site': self.site, 'phase': self.phase,
            'pid': self.pid, 'start': self._start,
            'life': self.life, 'since': self._since,
            'due': None if self.next_start is None else self._due,
            'starts': self.starts, 'failures': self.failures,
            'status': self.status, 'generation': self.generation}


def said(status: int) -> str:
    """A status as people call it: 1, or SIGKILL."""
    if status >= 0:
        return f'status {status}'
    try:
        return f'signal {signal.Signals(-status).name}'
    except ValueError:
        return f'signal {-status}'
