"""Microseconds that a tick takes: of the main loop, and of a bare one.

usage: ticks.py FILE COUNT BLOCKS idle|write [PRINCIPAL]

`FILE` is a zope.conf, whose database is then open and polled by each tick; or
a ZCML file, and then there is none, and the site is a folder in memory. The
main loop and a loop of nothing but begin, call and commit take turns in blocks
of `COUNT` ticks, so that both have the same processor to themselves for the
same time. Printed are the medians of the blocks: first the bare loop's.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

import transaction
import zope.component.hooks
import zope.configuration.xmlconfig
from zope.site.folder import rootFolder
from zope.site.site import LocalSiteManager

from gocept.runner.runner import Exit, MainLoop, init

WARM_UP = 10


def main() -> None:
    path, count, blocks, work, *rest = sys.argv[1:]
    boot = without_database if path.endswith('.zcml') else with_database
    with boot(path) as app:
        def write(number: int) -> None:
            app.counter = number

        def bare(worker: Callable[[], object]) -> None:
            with zope.component.hooks.site(app):
                bare_loop(worker)

        def full(worker: Callable[[], object]) -> None:
            MainLoop(app, 0, worker, principal=rest[0] if rest else None)()

        found: dict[Callable[..., None], list[float]] = {bare: [], full: []}
        loops = [bare, full]
        for _ in range(int(blocks)):
            for loop in loops:
                found[loop].append(block(
                    loop, int(count), write if work == 'write' else None))
            loops.reverse()
    print(json.dumps([median(found[bare]), median(found[full])]))


def block(loop: Callable[[Callable[[], object]], None], count: int,
          work: Callable[[int], None] | None) -> float:
    """Microseconds of a tick, from the first to the last in one loop."""
    stamps: list[float] = []
    loop(counting(count, stamps, work))
    first, last = stamps
    return (last - first) / count * 1e6


@contextmanager
def with_database(conf: str) -> Iterator[Any]:
    with init(None, conf) as app:
        yield app


@contextmanager
def without_database(site_definition: str) -> Iterator[Any]:
    logging.getLogger().setLevel(logging.INFO)  # as with a zope.conf
    zope.component.hooks.setHooks()
    zope.configuration.xmlconfig.file(site_definition)
    app = rootFolder()
    app.setSiteManager(LocalSiteManager(app))
    yield app


def counting(count: int, stamps: list[float],
             work: Callable[[int], None] | None) -> Callable[[], object]:
    """A worker that takes the time of its first and its last tick."""
    number = 0
    first, last = WARM_UP, WARM_UP + count

    def worker() -> object:
        nonlocal number
        number += 1
        if work is not None:
            work(number)
        if number == first:
            stamps.append(perf_counter())
        elif number == last:
            stamps.append(perf_counter())
            return Exit
        return None
    return worker


def bare_loop(worker: Callable[[], object]) -> None:
    result = None
    while result is not Exit:
        transaction.begin()
        result = worker()
        transaction.commit()


if __name__ == '__main__':
    main()
