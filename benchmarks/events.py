"""What wakes a worker, and what events and utilities cost a tick.

* line, timer, client, end, wakeup: the worker sleeps for a minute between two
  ticks, and its ZCML includes gocept.runner. From what happens, at random
  moments, to the beginning of the tick: a line of a child that ZCML declares,
  a timer, a client of a server, the end of a child, ``wakeup()`` by another
  thread. Raw is ``select.poll`` on the descriptor, and for the timer its
  timeout, with ``transaction.begin()`` and ``commit()`` around.
* idle: a tick with a principal and nothing to do, without a database. Beside
  the built-in ZCML once with such that includes gocept.runner, so that the
  utilities are there, and once more with a subscriber for each event of a
  tick. Raw and the aims are those of ``bench worker``.
* connection: the same, with the utilities and a connection open; without and
  with a principal.
* write: a tick that changes one object on FileStorage, on the disk.

3.0 is that of ``bench worker``, with the built-in ZCML, as it has neither
utilities nor events.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import environments, measures, worker
from benchmarks.measures import Measure
from benchmarks.options import make_parser
from benchmarks.table import Row, Target, render
from benchmarks.turns import in_turns
from benchmarks.worker import CHILDREN, PRINCIPAL, Bench, Side, run_child

SIDES = ('raw', '3.0', 'ours')

MOST = Target(2.0)
"""Milliseconds from what happens to the tick."""

WAKING = {
    'line': 'a line of a child',
    'timer': 'a timer',
    'client': 'a client of a server',
    'end': 'the end of a child',
    'wakeup': 'wakeup() by another thread',
}

IDLE = {
    'site.zcml': 'idle tick, principal',
    'utilities.zcml': 'idle tick, principal, utilities',
    'subscribers.zcml': 'idle tick, principal, utilities, subscribers',
}

OF_OLD, BEYOND_RAW = Target(0.25, '3.0'), Target(0.25, '3.0', beyond=True)
OF_RAW, WRITE_OF_RAW = Target(2.0, 'raw'), Target(1.1, 'raw')


class Sizes(NamedTuple):
    """How much is done for one sample."""

    ticks: worker.Sizes
    events: int


FULL = Sizes(worker.FULL, 50)
QUICK = Sizes(worker.QUICK, 10)

ROUNDS = 2
"""In each process that waits for events."""


def waking(sizes: Sizes) -> dict[str, Measure]:
    """From what happens to the tick."""
    return {
        kind: Measure('waking', [kind, str(sizes.events), str(ROUNDS)],
                      [Row(f'to the tick: {what}', 'ms', {}, [MOST])])
        for kind, what in WAKING.items()}


def idle(bench: Bench) -> list[Row]:
    """A tick with nothing to do, and no database."""
    scripts = {'3.0': (bench.old, 'site.zcml'), **{
        file: (bench.ours, file) for file in IDLE}}
    found = ticks(bench, {
        name: (python, os.fspath(CHILDREN / file), 'idle', PRINCIPAL)
        for name, (python, file) in scripts.items()})
    return [Row(title, 'µs', found.samples(file, '3.0'), [OF_OLD, OF_RAW])
            for file, title in IDLE.items()]


def connection(bench: Bench) -> list[Row]:
    """A tick with nothing to do but to poll the storage."""
    rows = []
    with database(bench) as (old, ours):
        for title, rest in [('', ()), (', principal', (PRINCIPAL,))]:
            found = ticks(bench, {
                '3.0': (bench.old, old, 'idle', *rest),
                'ours': (bench.ours, ours, 'idle', *rest)})
            rows.append(Row(
                f'idle tick, connection{title}, utilities', 'µs',
                found.samples('ours', '3.0'), [BEYOND_RAW, OF_RAW]))
    return rows


def write(bench: Bench) -> list[Row]:
    """A tick that changes one object, on the disk."""
    with database(bench) as (_, ours):
        found = ticks(bench, {'ours': (bench.ours, ours, 'write')},
                      bench.sizes.writes_of_a_block)
    return [Row('tick with a write, on the disk, utilities', 'µs',
                found.samples('ours'), [WRITE_OF_RAW])]


TICKS: dict[str, Callable[[Bench], list[Row]]] = {
    'idle': idle, 'connection': connection, 'write': write}


@contextmanager
def database(bench: Bench) -> Iterator[tuple[str, str]]:
    """The zope.conf of 3.0, and that of ours, with the utilities."""
    with bench.database() as home:
        ours = home / 'utilities.conf'
        ours.write_text(worker.CONF.format(
            site_definition=f'site-definition {CHILDREN}/utilities.zcml',
            home=home))
        yield f'{home}/zope.conf', os.fspath(ours)


class Ticks(NamedTuple):
    """Of each side, and each process: the bare loop's, and the main loop's."""

    found: Mapping[str, list[tuple[float, float]]]

    def samples(self, ours: str, old: str | None = None,
                ) -> dict[str, list[float]]:
        """Those of a row; `ours` and `old` are names of sides."""
        row = {'raw': [raw for raw, _ in self.found[ours]],
               'ours': [full for _, full in self.found[ours]]}
        if old is not None:
            row |= {'3.0': [full for _, full in self.found[old]],
                    '3.0 raw': [raw for raw, _ in self.found[old]]}
        return row


def ticks(bench: Bench, sides: Mapping[str, tuple[Path | str, ...]],
          count: int | None = None) -> Ticks:
    """Microseconds of a tick.

    Of each side the interpreter, the file, and what is done with what
    principal; `count` is how many ticks a block has.
    """
    block = (str(count or bench.sizes.ticks_of_a_block),
             str(bench.sizes.blocks))
    return Ticks(in_turns({
        name: partial(run_child, Side(
            Path(python), 'ticks.py',
            (str(file), *block, *map(str, rest))))
        for name, (python, file, *rest) in sides.items()}, 2 * bench.runs))


def main(arguments: list[str]) -> int:
    """Print the table; returns 1 if a target is missed."""
    options = parse(arguments)
    sizes = QUICK if options.quick else FULL
    try:
        bench = Bench(options.dir, options.runs, sizes.ticks)
    except environments.EnvironmentFailed as error:
        print(error, file=sys.stderr)
        return 1
    print(environments.heading(
        bench.ours, bench.old, names=['ZODB']), flush=True)
    rows = measures.run(
        {name: measure for name, measure in waking(sizes).items()
         if name in options.only}, bench.ours, options.runs)
    for name in options.only:
        if name in TICKS:
            print(f'measuring {name} ...', file=sys.stderr)
            rows += TICKS[name](bench)
    print(render(SIDES, rows))
    return 0 if all(row.is_met() for row in rows) else 1


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = make_parser(
        'events', __doc__, [*WAKING, *TICKS],
        'those of the ticks are twice as many')
    worker.add_options(parser)
    return parser.parse_args(arguments)
