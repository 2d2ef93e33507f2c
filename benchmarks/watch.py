"""From a commit in one process to the tick of a worker in another one.

* zeo: both are clients of a ZEO server. The worker sleeps for a minute between
  two ticks; its ``watch`` names a counter that the other process changes, at
  random moments. From the return of the commit to the beginning of the tick,
  which has seen the change. Raw is an object among those that ZODB's MVCC
  adapter tells, an event that it sets, and ``transaction.begin()``.
* relstorage: the same with RelStorage on SQLite, where the loop looks for a
  change every 20 ms of the pause. Half of that is to be expected. And how long
  one look takes.
* tree: a tree with a million items is watched, on FileStorage. How long the
  first walk through its inner nodes takes, how long it takes after a bucket
  was split and after nothing but buckets has changed, and what it keeps in
  memory.
"""

import sys

from benchmarks import environments, measures
from benchmarks.measures import Measure
from benchmarks.options import make_parser
from benchmarks.table import Row, Target, render

SIDES = ('raw', 'ours')

CHANGES = 200
"""In each process that waits for them."""


def rows_of(storage: str) -> list[Row]:
    """From the commit to the tick."""
    aims = [Target(5.0)] if storage == 'zeo' else []
    return [Row(f'commit to tick, {storage}', 'ms', {}, aims)]


MEASURES = {
    'zeo': Measure('watching', ['zeo', str(CHANGES)], rows_of('zeo')),
    'relstorage': Measure(
        'watching', ['relstorage', str(CHANGES)],
        [*rows_of('relstorage'), Row('a look, relstorage', 'ms', {})]),
    'tree': Measure('tree', [], [
        Row('a million items, first walk', 'ms', {}),
        Row('a million items, a bucket was split', 'ms', {}),
        Row('a million items, buckets have changed', 'ms', {}),
        Row('a million items, memory', 'MiB', {})]),
}


def main(arguments: list[str]) -> int:
    """Print the table; returns 1 if a target is missed."""
    options = make_parser(
        'watch', __doc__, list(MEASURES),
        'in each of them, each side waits for many changes',
    ).parse_args(arguments)
    try:
        python = environments.ours('ZEO', 'RelStorage')
    except environments.EnvironmentFailed as error:
        print(error, file=sys.stderr)
        return 1
    print(environments.heading(
        python, names=['ZODB', 'ZEO', 'RelStorage']), flush=True)
    rows = measures.run({name: MEASURES[name] for name in options.only},
                        python, options.runs)
    print(render(SIDES, rows))
    return 0 if all(row.is_met() for row in rows) else 1
