"""Which run of a schedule is due, and when to look again.

A run is named by its time: the instant for which it is scheduled, whenever it
takes place. An agenda decides by the clock and by the last run that was done.
It reads no database, and waits for nothing.
"""

import math
import time

from gocept.runner.events import Missed, Schedule
from gocept.runner.logs import INFO, WARNING, Log
from gocept.runner.waits.instants import Instant

log = Log('gocept.runner.runner')

NEVER = -math.inf
"""The last run of a worker that has never run."""


class Agenda:
    """The runs of one loop, one after another.

    Call `look` when `start` has come. Then either `start` is None, and a tick
    is next, or it says when to call `look` again. `done` or `failed` is called
    after the tick.
    """

    def __init__(self, schedule: Schedule, missed: Missed, name: str) -> None:
        self._schedule = schedule
        self._missed = missed
        self._name = name
        self.due: float | None = None
        """The run that the tick does; None: it is no run of the schedule."""
        self.start: Instant | None = None
        """When to look again; None: a tick is next, or nobody has looked."""
        self.latest_start = math.inf
        """When `start` has come by the clock on the wall, in any case."""
        self._awaited: float | None = None  # the run that `start` is for
        self._is_extra = False  # the tick that `start` is for
        self._last = NEVER  # run that was done
        self._told = NEVER  # last run in the future

    def time_of(self, run: float) -> str:
        """The time of a run, for a log line."""
        return self._schedule.clock(run).isoformat(' ', 'seconds')

    def hurry(self) -> None:
        """Have the last run whose time has come be due."""
        self.due = self._schedule.before(time.time())

    def look(self, stored: float) -> None:
        """Decide what is next; `stored` is the last run in the database."""
        now, awaited = time.time(), self._awaited
        has_come = (awaited is not None and awaited <= now
                    and self.has_started())
        is_extra = self._is_extra
        self._rest()
        self._last = last = max(stored, self._last)
        latest = self._schedule.before(now)
        if last > now:
            self._await(self._schedule.after(last))
            self._tell_future(last)
        elif latest is not None and latest > last and (
                has_come or self._is_to_be_made_up(latest)):
            self.due = latest
        elif not is_extra:
            if has_come and latest is not None:
                self._say(INFO, latest, 'was done already, elsewhere')
            self._await(self._schedule.after(now))

    def _is_to_be_made_up(self, run: float) -> bool:
        """Whether a run whose time has passed unattended is done now."""
        if self._last == NEVER:
            return False
        if self._missed == 'once':
            self._say(INFO, run, 'was missed, and is done now')
            return True
        self._say(INFO, run, "was missed, and is left out (missed='skip')")
        return False

    def done(self, pause: float | None = None) -> None:
        """The tick has done the run.

        `pause` is the number of seconds before another tick that is no run.
        """
        if self.due is not None:
            self._last = max(self.due, self._last)
        self._rest()
        if pause is not None:
            self._await(self._schedule.after(max(time.time(), self._last)))
            self._be_extra(pause)

    def _be_extra(self, pause: float) -> None:
        start = after(pause)
        if self.start is None or start.left() < self.start.left():
            self.start, self._is_extra = start, True

    def failed(self, pause: float, errors: int, *,
               uncertain: bool = False) -> None:
        """The tick has failed: after a pause, try again what it has done.

        `errors` is how many ticks in a row have failed. What is `uncertain` is
        not tried again.
        """
        run, now = self.due, time.time()
        if run is None:
            self.done(pause)
            return
        self._rest()
        if uncertain:
            self._last = max(run, self._last)
            self._await(self._schedule.after(max(run, now)))
            self._say(WARNING, run, 'may be committed in part, so it is not '
                      'tried again; the next one is due at '
                      + self.time_of(self._awaited or 0))
            return
        following = self._schedule.after(run)
        if following <= now and self._missed == 'once':
            run = self._schedule.before(now) or run
            following = self._schedule.after(run)
        if following > now + pause:
            self._awaited, self.start = run, after(pause)
            self.latest_start = following
            self._say(INFO, run, f'will be tried again in {pause:.3g} s, after'
                      f' {errors} error{"s in a row" * (errors > 1)}')
        else:
            self._await(self._schedule.after(now))
            self._say(WARNING, run, 'is given up, since the next one is due '
                      'at ' + self.time_of(self._awaited or 0))

    def postpone(self, pause: float) -> None:
        """It cannot be looked now: do it after a pause."""
        self.start, self.latest_start = after(pause), math.inf

    def left(self) -> float:
        """Seconds until `start`, by its clock; 0 once it has come."""
        return 0.0 if self.start is None else max(0.0, self.start.left())

    def has_started(self) -> bool:
        """Whether `start` has come."""
        return not self.left() or time.time() >= self.latest_start

    def is_current(self) -> bool:
        """Whether `start` is right, by the clock as it is now.

        It is not when the clock was set back behind a time before `start`.
        Neither is it when the clock was set back behind the last run, as
        `look` has to tell that.
        """
        now, awaited = time.time(), self._awaited
        if now < self._last != self._told:
            return False
        return awaited is None or awaited <= now or (
            awaited == self._schedule.after(max(now, self._last)))

    def _rest(self) -> None:
        self.start = self.due = self._awaited = None
        self.latest_start, self._is_extra = math.inf, False

    def _await(self, run: float) -> None:
        self._awaited = run
        delay = self._schedule.delay()
        if delay:  # on the day when clocks change, the next run may be nearer
            delay = min(delay, self._schedule.after(run) - run)
        self.latest_start = run + delay
        self.start = Instant('realtime', self.latest_start)
        log.debug('The next run of %s is that of %s', self._name,
                  self.time_of(run))

    def _tell_future(self, last: float) -> None:
        if last != self._told and self._awaited is not None:
            self._told = last
            log.warning(
                'The last run of %s is that of %s, which is in the future: '
                'the clock was set back. The next run is due at %s',
                self._name, self.time_of(last), self.time_of(self._awaited))

    def _say(self, level: int, run: float, what: str) -> None:
        log.log(level, 'The run of %s at %s %s', self._name, self.time_of(run),
                what)


def after(pause: float) -> Instant:
    """The instant after so many seconds."""
    return Instant('monotonic', time.monotonic() + pause)
