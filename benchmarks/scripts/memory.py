"""Resident memory after a tenth of the ticks, and after all of them, in MiB.

usage: memory.py create|raw|runner ZOPE_CONF TICKS

The database is larger than the cache. Each tick reads objects at random, and
some change one.
"""

import json
import random
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import transaction
import zope.component.hooks
from BTrees.IOBTree import IOBTree
from persistent.mapping import PersistentMapping

from gocept.runner.runner import Exit, MainLoop, init

OBJECTS = 20_000
SIZE = 1000
READ_IN_A_TICK = 5
TICKS_OF_A_WRITE = 1000


def main() -> None:
    side, conf, ticks = sys.argv[1:]
    measured: list[float] = []
    with init(None, conf) as app:
        work = working(app, int(ticks), measured)
        if side == 'create':
            create(app)
        elif side == 'raw':
            with zope.component.hooks.site(app):
                bare_loop(work.__next__)
        else:
            MainLoop(app, 0, work.__next__)()
    print(json.dumps(measured))


def create(app: object) -> None:
    app.items_of_bench = items = IOBTree()  # type: ignore[attr-defined]
    for number in range(OBJECTS):
        items[number] = PersistentMapping(data=random.randbytes(SIZE))
        if number % 1000 == 0:
            transaction.savepoint(optimistic=True)
    transaction.commit()


def working(app: object, ticks: int, measured: list[float],
            ) -> Iterator[object]:
    """A worker that keeps its place: each ``next()`` is a tick."""
    items = app.items_of_bench  # type: ignore[attr-defined]
    choose = random.Random(0).randrange
    for number in range(1, ticks + 1):
        for _ in range(READ_IN_A_TICK):
            read = items[choose(OBJECTS)]['data']
        if number % TICKS_OF_A_WRITE == 0:
            items[choose(OBJECTS)]['data'] = read[1:] + read[:1]
        if number in (ticks // 10, ticks):
            measured.append(resident())
        yield Exit if number == ticks else None


def bare_loop(worker: Callable[[], object]) -> None:
    result = None
    while result is not Exit:
        transaction.begin()
        result = worker()
        transaction.commit()


def resident() -> float:
    """MiB that the process holds in memory now."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == '__main__':
    main()
