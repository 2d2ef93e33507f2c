"""The calls that wait, and the deadline that one wait or several share.

Everything else in the project that waits does it through these, most of it
through `gocept.runner.poller`.
"""

import math
import select
import time
from collections.abc import Mapping

# The longest wait that the system is asked for in one call, in seconds: its
# own limit is 2**31 milliseconds.
_LONGEST = 1_000_000.0


class Deadline:
    """An instant, `seconds` from now; None for never.

    A call makes one when it begins, and hands it to all that it waits for.
    """

    # Not looked up in `time`, where tests of users may have stopped the clock.
    _now = staticmethod(time.monotonic)

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._end = end = None if seconds is None else self._now() + seconds
        if end != end:  # not a number
            raise ValueError('a deadline needs a number of seconds')

    def __str__(self) -> str:
        """How long it was from the beginning on, for messages."""
        if self.seconds is None:
            return 'any time'
        return f'{self.seconds:.{3 if self.seconds < 1000 else 9}g} s'

    @property
    def passed(self) -> bool:
        """Whether the instant was reached."""
        return self._end is not None and self._now() >= self._end

    def left(self) -> float:
        """Seconds to wait in one call; 0 once the deadline has passed."""
        if self._end is None:
            return _LONGEST
        return min(max(0.0, self._end - self._now()), _LONGEST)


NEVER = Deadline()

READABLE = getattr(select, 'POLLIN', 1)

WRITABLE = getattr(select, 'POLLOUT', 4)


class SelectPoll:
    """What is used of `select.poll`, for sockets on systems without it."""

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}

    def register(self, fd: int, mask: int) -> None:
        self._masks[fd] = mask

    def poll(self, milliseconds: int) -> list[tuple[int, int]]:
        reading = [fd for fd, mask in self._masks.items() if mask & READABLE]
        writing = [fd for fd, mask in self._masks.items() if mask & WRITABLE]
        # Windows tells the failure of a connection as a third kind.
        found = select.select(reading, writing, writing, milliseconds / 1000)
        ready = dict.fromkeys(found[0], READABLE)
        for fd in {*found[1], *found[2]}:
            ready[fd] = ready.get(fd, 0) | WRITABLE
        return list(ready.items())


_Poll = getattr(select, 'poll', SelectPoll)


class PollReadiness:
    """What is used of `select.epoll`, for systems without it."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.register = self._poll.register
        self.modify = self._poll.modify
        self.unregister = self._poll.unregister

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        return self._poll.poll(math.ceil(seconds * 1000))

    def close(self) -> None:
        pass


Readiness = getattr(select, 'epoll', PollReadiness)
"""Which of many descriptors can be read or written."""


def wait_for(fd: int, mask: int, deadline: Deadline) -> bool:
    """Wait until one descriptor is ready; False when the time is over.

    `mask` is `READABLE`, `WRITABLE` (as ``select.POLLIN`` and
    ``select.POLLOUT``, where there are these) or both.
    """
    return wait_for_any({fd: mask}, deadline)


def is_broken(fd: int) -> bool:
    """Whether the system knows that nobody has the other end any more."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def wait_for_any(masks: Mapping[int, int], deadline: Deadline) -> bool:
    """Wait until one of several descriptors is ready; each has its mask."""
    poll = _Poll()
    for fd, mask in masks.items():
        poll.register(fd, mask)
    while not poll.poll(math.ceil(deadline.left() * 1000)):
        if deadline.passed:
            return False
    return True
