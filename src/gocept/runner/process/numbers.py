"""The numbers that the system can have given to descendants of a child.

Linux gives out the numbers of processes in a circle: each process gets the
next number that is free. So the descendants of a child have numbers from that
of the child on, up to the last one that was given out; unless all numbers were
given out once since then. Nothing tells that this has happened: the counter of
forks in /proc/stat leaves out those forks that fail, though each takes a
number. But it needs time. A child that has lived longer may have descendants
with any number.
"""

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from gocept.runner.process import procfs

_FASTEST = 1e-6
"""Seconds in which no system starts two processes, however many processors it
has, as there is one lock around the numbers."""

_RESERVED = 300
"""The circle goes on at this number; see RESERVED_PIDS in the kernel."""

_FEW = 200
"""It takes longer to list all processes than to look at so many numbers."""


class Instant(NamedTuple):
    """What was known about the numbers at some time."""

    time: float
    last: int
    """The last number that was given out; see proc(5), /proc/loadavg."""
    tasks: int
    """How many there are. Each uses one number, or three: one for its process
    group and one for its session as well, which may have no leader."""


def now() -> Instant:
    """The present state, but with the time from before the look."""
    began = time.monotonic()
    words = procfs.words('loadavg')
    if not words:  # no descriptor is left
        return Instant(began, 0, 0)
    return Instant(began, int(words[4]), int(words[3].partition('/')[2]))


class Numbered(Protocol):
    """A child."""

    pid: int
    before_start: Instant


class Numbers:
    """The numbers of some children and of all that can descend from them."""

    def __init__(self, children: Iterable[Numbered]) -> None:
        self._children = list(children)

    def pids(self) -> Iterator[int]:
        """The present processes with these numbers."""
        found = self._find()
        if found is None:
            return procfs.pids()
        first, count, size = found
        if count > _FEW:
            return (pid for pid in procfs.pids()
                    if (pid - first) % size < count)
        return filter(procfs.is_process, (
            (first + number) % size for number in range(count)))

    def among(self, pids: Iterable[int]) -> list[int]:
        """Those of the processes that have such numbers."""
        pids = list(pids)
        found = self._find() if pids else None
        if found is None:
            return pids
        first, count, size = found
        return [pid for pid in pids if (pid - first) % size < count]

    def _find(self) -> tuple[int, int, int] | None:
        """The first number, their count, and the size of the circle.

        None if they may be any numbers.
        """
        if not self._children:
            return 0, 0, 1
        size = int(''.join(procfs.words('sys/kernel/pid_max')) or 0)
        _, last, _ = now()
        longest = 0
        for child in self._children:
            began, before, tasks = child.before_start
            if not (before and last) or time.monotonic() - began > _FASTEST * (
                    size - _RESERVED - 3 * tasks):
                return None
            count = (last - child.pid) % size + 1
            # Where /proc/loadavg is not the system's own, as in some
            # containers, its number may be older than the child.
            if (child.pid - before) % size + count > size:
                return None
            longest = max(longest, count)
        return (last + 1 - longest) % size, longest, size
