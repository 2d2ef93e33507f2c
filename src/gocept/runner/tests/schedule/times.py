"""A schedule of given times, for tests."""

import datetime
import time
from collections.abc import Sequence

FAR = 86_400.0
"""Seconds; later than any test ends."""


class Times:
    """What is used of `ISchedule`. The times are in seconds.

    They count from the instant at which the schedule is asked first, so that
    none passes before a loop has begun. After the last of them there is one
    more, in `FAR` seconds.
    """

    def __init__(self, *seconds: float) -> None:
        self._seconds = [*seconds, FAR]
        self._times: Sequence[float] | None = None

    def times(self, asked: float | None = None) -> Sequence[float]:
        """All of them, in seconds since the epoch."""
        if self._times is None:
            asked = time.time() if asked is None else asked
            self._times = [asked + each for each in self._seconds]
        return self._times

    def __getitem__(self, number: int) -> float:
        return self.times()[number]

    def change(self, *seconds: float) -> None:
        """Have other times from now on."""
        self._times, self._seconds = None, [*seconds, FAR]

    def __str__(self) -> str:
        return 'given times'

    def after(self, instant: float) -> float:
        """See `ISchedule`."""
        return min(each for each in self.times(instant) if each > instant)

    def before(self, instant: float) -> float | None:
        """See `ISchedule`."""
        return max((each for each in self.times(instant) if each <= instant),
                   default=None)

    def delay(self) -> float:
        """See `ISchedule`."""
        return 0.0

    def clock(self, instant: float) -> datetime.datetime:
        """See `ISchedule`."""
        return datetime.datetime.fromtimestamp(instant, datetime.UTC)
