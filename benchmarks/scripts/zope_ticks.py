"""Microseconds that a tick takes in Zope: of the main loop, and of a bare one.

usage: zope_ticks.py ZOPE_CONF SITE USER COUNT BLOCKS

Both take turns in one process, in blocks of `COUNT` ticks. Printed are the
medians of the blocks, of the bare loop and of the main loop: as time, and as
time of the processor.
"""

import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from zope_bare import bare_loop

from gocept.runner.runner import Exit, MainLoop, init

WARM_UP = 10

Loop = Callable[[Callable[[], object]], None]


def main() -> None:
    conf, site, user, count, blocks = sys.argv[1:]
    with init(site, conf) as app:
        loops: list[Loop] = [
            lambda worker: bare_loop(app, site, user, worker),
            lambda worker: MainLoop(app, 0, worker, principal=user)()]
        found: dict[Loop, list[tuple[float, float]]] = {
            loop: [] for loop in loops}
        turns = list(loops)
        for _ in range(int(blocks)):
            for loop in turns:
                found[loop].append(block(loop, int(count)))
            turns.reverse()
    print(json.dumps([list(map(median, zip(*found[loop], strict=True)))
                      for loop in loops]))


def block(loop: Loop, count: int) -> tuple[float, float]:
    """Microseconds of a tick, from the first to the last in one loop."""
    stamps: list[tuple[float, float]] = []
    loop(counting(count, stamps))
    first, last = stamps
    return ((last[0] - first[0]) / count * 1e6,
            (last[1] - first[1]) / count * 1e6)


def counting(count: int, stamps: list[Any]) -> Callable[[], object]:
    """A worker that takes the time of its first and its last tick."""
    number = 0
    first, last = WARM_UP, WARM_UP + count

    def worker() -> object:
        nonlocal number
        number += 1
        if number in (first, last):
            stamps.append((time.perf_counter(), time.process_time()))
        return Exit if number == last else None
    return worker


if __name__ == '__main__':
    main()
