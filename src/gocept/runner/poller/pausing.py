"""The pause of a poller: a wait for what is new."""

import math
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from gocept.runner.poller.descriptors import WAKE, Descriptors
from gocept.runner.poller.timer import Schedule
from gocept.runner.waits.deadline import NEVER, Deadline

WRITABLE = select.POLLOUT

READABLE = ~WRITABLE
"""The events of a reader: an end, an error and one that is not open, too."""


class Pausing:
    """The part of a `Poller` that pauses."""

    closed: bool
    _lock: threading.RLock
    _descriptors: Descriptors
    _ready: dict[Any, None]
    _readers: dict[int, Any]
    _schedule: Schedule

    def _begin_pausing(self) -> None:
        self._news = False  # beside what the descriptors tell
        self._paused_until = -math.inf

    def _select(self, deadline: Deadline,
                pausing: bool = False) -> Sequence[tuple[int, int]]:
        raise NotImplementedError

    def _attend(self, fd: int) -> bytes:
        raise NotImplementedError

    def pause(self, timeout: float | None = None,
              over: Callable[[], object] = lambda: False) -> bool:
        """See `IPoller`."""
        deadline = NEVER if timeout is None else Deadline(timeout)
        try:
            while not over():
                news = False
                for fd, event in self._select(deadline, pausing=True):
                    if event & READABLE and fd in self._readers:
                        news = True
                    else:
                        # A signal is no news.
                        news = WAKE in self._attend(fd) or news
                # All are taken, or the next pause would be ended by the rest.
                if (self._take_news() or news or self.closed
                        or not self._timers_left()):
                    return True
                if deadline.passed:
                    return False
            return True
        finally:
            self._paused_until = time.monotonic()

    def _select_news(self, deadline: Deadline) -> list[tuple[int, int]]:
        with self._lock:
            self._descriptors.begin_edges()
        return self._descriptors.wait_for_news(
            0.0 if self._news else min(deadline.left(), self._timers_left()))

    def _take_news(self) -> bool:
        if not self._news:
            return False
        # Before the look, as another thread may say so again meanwhile.
        self._news = False
        # It may have been fetched since.
        return bool(self._ready or self._descriptors.files)

    def _timers_left(self) -> float:
        """Seconds until one is due that no pause has ended for yet."""
        if not self._schedule:
            return math.inf
        return self._schedule.left_after(self._paused_until)
