"""Instants that a poller waits for."""

import heapq
import itertools
import math
import time
from collections.abc import Sequence

from gocept.runner.waits.source import Item, Source


class Timer(Source):
    """See `ITimer`, and `contracts`."""

    def __init__(self, seconds: float, interval: float | None = None) -> None:
        if math.isnan(seconds):
            raise ValueError('a timer needs a number of seconds')
        if interval is not None and not interval > 0:
            raise ValueError(f'a timer needs an interval > 0, not {interval}')
        self.seconds = seconds
        self.interval = interval
        self.due = self._started = 0.0

    def start(self) -> None:
        """Count from now."""
        self._started = time.monotonic()
        self.due = self._started + self.seconds

    def fileno(self) -> int:
        return -1

    def collect(self) -> tuple[Sequence[Item], bool]:
        late = time.monotonic() - self.due
        if late < 0:
            return (), False
        if self.interval is None:
            return (1,), True
        expirations = 1 + int(late / self.interval)
        self.due += expirations * self.interval
        return (expirations,), False

    def due_after(self, instant: float) -> float:
        """When the timer is due next, whatever was collected; infinity: never.

        A timer that was started after `instant` is due once more, even if its
        time was before.
        """
        if max(self.due, self._started) > instant:
            return self.due
        if self.interval is None:
            return math.inf
        return self.due + self.interval * (
            1 + (instant - self.due) // self.interval)

    def __repr__(self) -> str:
        repeated = f', {self.interval}' if self.interval is not None else ''
        return f'Timer({self.seconds}{repeated})'


class Schedule(list[tuple[float, int, Timer]]):
    """Which timer is due next: a heap."""

    def __init__(self) -> None:
        super().__init__()
        self._sequence = itertools.count()

    def add(self, timer: Timer) -> None:
        """Wait for `timer` as well, until it is taken or removed."""
        heapq.heappush(self, (timer.due, next(self._sequence), timer))

    def drop(self, timer: Timer) -> None:
        """Do not wait for `timer` any more."""
        self[:] = [entry for entry in self if entry[2] is not timer]
        heapq.heapify(self)

    def left(self) -> float:
        """Seconds until one is due; infinity if there is none."""
        # Without a lock, while another thread may take out the last one.
        first = self[:1]
        return max(0.0, first[0][0] - time.monotonic()) if first else math.inf

    def left_after(self, instant: float) -> float:
        """Seconds until one is due that was not due at `instant` yet."""
        due = min((timer.due_after(instant) for _, _, timer in self[:]),
                  default=math.inf)
        return max(0.0, due - time.monotonic())

    def take_due(self) -> list[Timer]:
        """Take out those that are due."""
        due = []
        while self.left() == 0:
            due.append(heapq.heappop(self)[2])
        return due
