"""Resident memory in Zope after a tenth of the ticks, and after all, in MiB.

usage: zope_memory.py raw|runner ZOPE_CONF SITE USER TICKS

Each tick reads objects of a database that is larger than the cache, and makes
a URL; some change an object.
"""

import json
import random
import sys
from collections.abc import Iterator
from typing import Any

from memory import resident
from zope.globalrequest import getRequest
from zope_bare import bare_loop
from zope_instance import OBJECTS

from gocept.runner.runner import Exit, MainLoop, init

READ_IN_A_TICK = 10
TICKS_OF_A_WRITE = 1000


def main() -> None:
    side, conf, site, user, ticks = sys.argv[1:]
    measured: list[float] = []
    with init(site, conf) as app:
        worker = working(
            app._p_jar.root()['items_of_bench'], int(ticks), measured).__next__
        if side == 'raw':
            bare_loop(app, site, user, worker)
        else:
            MainLoop(app, 0, worker, principal=user)()
    print(json.dumps(measured))


def working(items: Any, ticks: int, measured: list[float],
            ) -> Iterator[object]:
    """A worker that keeps its place: each ``next()`` is a tick."""
    choose = random.Random(0).randrange
    for number in range(1, ticks + 1):
        for _ in range(READ_IN_A_TICK):
            read = items[choose(OBJECTS)]['data']
        getRequest()['PARENTS'][0].absolute_url()
        if number % TICKS_OF_A_WRITE == 0:
            items[choose(OBJECTS)]['data'] = read[1:] + read[:1]
        if number in (ticks // 10, ticks):
            measured.append(resident())
        yield Exit if number == ticks else None


if __name__ == '__main__':
    main()
