"""When runs are due: a cron expression, in a time zone."""

import itertools
import math
import random
import time
from datetime import datetime, timedelta

import zope.interface

from gocept.runner.interfaces import ISchedule
from gocept.runner.schedule.expression import Expression, never
from gocept.runner.schedule.zone import Zone

_MINUTE = timedelta(minutes=1)

_SECOND = timedelta(seconds=1)

_RUNS, _YEAR = 50, timedelta(days=366)
"""How many runs a jitter is compared with, and how far ahead."""

_MONDAY = datetime(2001, 1, 1)
"""From when on, so that a schedule is right or wrong whatever day it is."""


@zope.interface.implementer(ISchedule)
class Schedule:
    """See `ISchedule`."""

    def __init__(self, expression: str, timezone: str | None = None,
                 jitter: float = 0) -> None:
        if not (isinstance(jitter, int | float)
                and not isinstance(jitter, bool)
                and 0 <= jitter < math.inf):
            raise ValueError(
                f'jitter: needs a number of seconds >= 0, not {jitter!r}')
        self.jitter = jitter
        self._expression = Expression(expression)
        self._zone = Zone(timezone)
        self.after(time.time())  # refuses a schedule without a run
        if jitter:
            self._check_jitter()

    def _check_jitter(self) -> None:
        """Refuse a jitter that mixes runs up, on any day without a change of
        the clocks."""
        moments = self._expression.following(_MONDAY)
        for moment, following in itertools.islice(
                itertools.pairwise(moments), _RUNS):
            between = (following - moment).total_seconds()
            if between < self.jitter:
                raise ValueError(
                    f'jitter: {self.jitter:g} s are more than the '
                    f'{between:g} s between two runs of {self}')
            if moment > _MONDAY + _YEAR:
                break

    @property
    def expression(self) -> str:
        """See `ISchedule`."""
        return self._expression.text

    @property
    def timezone(self) -> str | None:
        """See `ISchedule`."""
        return self._zone.name

    def __str__(self) -> str:
        return self.expression + (f' ({self.timezone})' if self.timezone
                                  else '')

    def __repr__(self) -> str:
        return (f'Schedule({self.expression!r}, {self.timezone!r}, '
                f'{self.jitter!r})')

    def clock(self, instant: float) -> datetime:
        """See `ISchedule`."""
        return self._zone.clock(instant)

    def delay(self) -> float:
        """See `ISchedule`."""
        # Forked workers would share the state of `random`.
        return random.SystemRandom().random() * self.jitter

    def after(self, instant: float) -> float:
        """See `ISchedule`."""
        now = self._zone.moment(instant)
        # What the clock has shown once, and is going to show again.
        begin = now if now.fold else now - self._zone.repeated(now)
        found: list[float] = []
        for moment in self._expression.following(begin):
            found += [each for each in self._runs(moment) if each > instant]
            if found and moment > now:
                return min(found)
        raise ValueError(never(str(self)))

    def before(self, instant: float) -> float | None:
        """See `ISchedule`."""
        now = self._zone.moment(instant)
        # What the clock shows again, and has shown for the first time.
        end = now + self._zone.repeated(now) if now.fold else now
        found: list[float] = []
        for moment in self._expression.preceding(end + _SECOND):
            found += [each for each in self._runs(moment) if each <= instant]
            if found and moment <= now:
                return max(found)
        return None

    def _runs(self, moment: datetime) -> list[float]:
        """When runs are due for a moment of the expression."""
        instants = self._zone.instants(moment)
        if not self._expression.is_fixed:
            return instants
        while not instants:
            moment += _MINUTE
            instants = self._zone.instants(moment)
        return instants[:1]
