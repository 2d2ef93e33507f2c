"""Instants of one of the two clocks, which others may ask for."""

import time
from typing import Literal, NamedTuple

Clock = Literal['monotonic', 'realtime']


class Instant(NamedTuple):
    """When something is due.

    Pauses of so many seconds end by the monotonic clock, and the times of a
    schedule come by the one that a user sees on the wall.
    """

    clock: Clock
    at: float
    """In seconds; those of `realtime` are since the epoch."""

    def left(self) -> float:
        """Seconds until then; fewer than 0 once it has passed."""
        return self.at - (time.monotonic() if self.clock == 'monotonic'
                          else time.time())
