"""A worker in Zope 5, Zope 6 and Plone, beside what their users do without.

* tick: ``ticks=0``, a worker that does nothing, a site and the user ``admin``.
  Raw is a loop that makes the same request, site, user and interaction by hand
  and ends them; see ``scripts/zope_bare.py``. Both take turns in one process.
* start: from before the process is started to the first line of the worker,
  of a script for ``zconsole run`` on the other side, and to the end of the
  process. All files are in the system's cache.
* watch: from the commit of one process to the tick of a worker in another one,
  both of them clients of a ZEO server; as in ``bench watch``.
* memory: what the process holds after many ticks over a database that is
  larger than the cache, and after a tenth of them.

The environments are those of ``bin/zope-tests``. Of ticks and starts, time of
the processor is shown as well: on a busy machine it is the better figure.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import environments
from benchmarks import measures
from benchmarks.environments import clean_environ, heading
from benchmarks.measures import Measure
from benchmarks.options import make_parser
from benchmarks.table import Row, Samples, Target, render
from benchmarks.turns import in_turns
from benchmarks.worker import CHILDREN, Side, run_child

SIDES = ('raw', 'zconsole', 'ours')

USER = 'admin'


class Sizes(NamedTuple):
    """How much is done for one sample."""

    ticks_of_a_block: int
    blocks: int
    memory_ticks: int
    changes: int


FULL = Sizes(500, 10, 20_000, 200)
QUICK = Sizes(50, 4, 10_000, 20)


class Instance(NamedTuple):
    """An instance of Zope, and the interpreter for it."""

    python: Path
    site: str
    conf: str
    sizes: Sizes
    runs: int

    def side(self, script: str, *arguments: object) -> Side:
        """A script that runs in its environment."""
        return Side(self.python, script, tuple(map(str, arguments)))


KINDS = {
    'zope5': ['Zope', 'ZODB'],
    'zope6': ['Zope', 'ZODB'],
    'plone': ['Products.CMFPlone', 'Zope', 'ZODB'],
}
"""The environments, and the distributions whose versions matter."""


@contextlib.contextmanager
def instance(environment: str, directory: Path | None, sizes: Sizes,
             runs: int) -> Iterator[Instance]:
    """A new instance with a site; its environment is made if need be."""
    python = environments.interpreter(environment)
    is_plone = environment == 'plone'
    with tempfile.TemporaryDirectory(dir=directory) as home:
        path = Path(home, 'instance')
        subprocess.run(
            [python, CHILDREN / 'zope_instance.py',
             'plone' if is_plone else 'zope', path],
            env=clean_environ(), check=True, stdout=subprocess.DEVNULL)
        yield Instance(
            python, 'Plone' if is_plone else 'site',
            os.fspath(path / 'etc' / 'zope.conf'), sizes, runs)


def tick(zope: Instance) -> list[Row]:
    """A tick with nothing to do."""
    side = zope.side('zope_ticks.py', zope.conf, zope.site, USER,
                     zope.sizes.ticks_of_a_block, zope.sizes.blocks)
    found = [run_child(side) for _ in range(zope.runs)]
    return [
        Row(f'idle tick{what}', 'µs', {
            'raw': [raw[number] for raw, _ in found],
            'ours': [ours[number] for _, ours in found]},
            [Target(1.2, 'raw')])
        for number, what in enumerate(['', ', processor'])]


class Start(NamedTuple):
    """Milliseconds of one process."""

    first: float
    """To the first line of what it runs."""

    first_processor: float
    whole: float
    whole_processor: float


def start(zope: Instance) -> list[Row]:
    """Up to the first tick."""
    console = os.fspath(zope.python.with_name('zconsole'))
    sides = {
        'zconsole': partial(started, [
            console, 'run', zope.conf,
            os.fspath(CHILDREN / 'zope_empty.py')]),
        'ours': partial(started, zope.side(
            'zope_start.py', '--config', zope.conf, '--site', zope.site,
        ).argv())}
    for side in sides.values():
        side()  # so that it is warm
    found = in_turns(sides, 4 * zope.runs)

    def samples(name: str) -> Samples:
        return {side: [getattr(each, name) for each in starts]
                for side, starts in found.items()}
    aim = [Target(1.05, 'zconsole')]
    return [
        Row('start to first tick', 'ms', samples('first'), aim),
        Row('start to first tick, processor', 'ms',
            samples('first_processor'), aim),
        Row('start to end', 'ms', samples('whole')),
        Row('start to end, processor', 'ms', samples('whole_processor'))]


def started(argv: list[str]) -> Start:
    """Run a child that prints an instant and processor time, to its end."""
    before = time.monotonic()
    with subprocess.Popen(
            argv, env=clean_environ(), stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        output = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        ended = time.monotonic()
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f'{argv} failed: {child.returncode}')
    instant, processor = map(float, output.split()[-2:])
    return Start((instant - before) * 1000, processor * 1000,
                 (ended - before) * 1000,
                 (usage.ru_utime + usage.ru_stime) * 1000)


def watch(zope: Instance) -> list[Row]:
    """From a commit to the tick."""
    measure = Measure('watching', ['zope', str(zope.sizes.changes)], [
        Row('commit to tick, zeo', 'ms', {}, [Target(5.0)])])
    return measures.run({'watch': measure}, zope.python, zope.runs)


def memory(zope: Instance) -> list[Row]:
    """Memory after many ticks; one run, since it is a long one."""
    ticks = zope.sizes.memory_ticks
    found = {
        side: run_child(zope.side(
            'zope_memory.py', kind, zope.conf, zope.site, USER, ticks))
        for side, kind in [('raw', 'raw'), ('ours', 'runner')]}
    return [
        Row(f'memory after {ticks // 10:,} ticks', 'MiB',
            {name: [early] for name, (early, late) in found.items()}),
        Row(f'memory after {ticks:,} ticks', 'MiB',
            {name: [late] for name, (early, late) in found.items()}),
        Row('memory, late by early', '',
            {name: [late / early] for name, (early, late) in found.items()},
            [Target(1.05)])]


MEASURES: dict[str, Callable[[Instance], list[Row]]] = {
    'tick': tick, 'start': start, 'watch': watch, 'memory': memory}


def main(arguments: list[str]) -> int:
    """Print the table; returns 1 if a target is missed."""
    parser = make_parser(
        'zope', __doc__, [*KINDS, *MEASURES],
        'those of the starts are four times as many')
    parser.add_argument(
        '--quick', action='store_true',
        help='few iterations: to try it out, not to quote')
    parser.add_argument(
        '--dir', metavar='DIRECTORY', type=Path,
        help='where to put the instances (default: that of temporary files)')
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else FULL
    # Where no environment is named, all are meant; so with measures.
    kinds = [each for each in KINDS if each in options.only] or [*KINDS]
    names = [each for each in MEASURES if each in options.only] or [*MEASURES]
    status = 0
    try:
        for kind in kinds:
            with instance(kind, options.dir, sizes, options.runs) as zope:
                rows: list[Row] = []
                for name in names:
                    print(f'measuring {name} with {kind} ...', file=sys.stderr)
                    rows += MEASURES[name](zope)
                print(heading(zope.python, names=KINDS[kind]))
                print(render(SIDES, rows), end='\n\n', flush=True)
                if not all(row.is_met() for row in rows):
                    status = 1
    except environments.EnvironmentFailed as error:
        print(error, file=sys.stderr)
        return 1
    return status
