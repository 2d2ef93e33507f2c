"""A worker of this checkout beside gocept.runner 3.0 and the raw limit.

What is measured, and what is the raw limit:

* tick: ``ticks=0`` and a worker that does nothing, without and with a
  principal. Raw is a loop of ``transaction.begin()``, the call and
  ``transaction.commit()``. This is the machinery alone, with a site in memory.
  Then once more with a connection open, which each begin and each commit
  makes poll its storage, on all sides: two thirds of a raw tick. What 3.0 adds
  to that is compared with what ours adds.
* write: a tick that changes one object on FileStorage, on the disk and where
  there is one on a file system in memory, which is the harder test, as there
  the storage's fsync hides nothing. Raw is the same bare loop.
* stop: from SIGTERM to the end of the loop, in a sleep; and from the return of
  the worker, if the signal comes in a tick. Raw is a handler that raises an
  exception out of ``time.sleep``. 3.0 waits to the end of its sleep, so it
  gets a short one.
* start: from before the process is started to the first line of the worker,
  with an existing database; all files are in the system's cache. Raw is
  Python, the import of ZODB, and the database opened.
* memory: what the process holds after many ticks over a database that is
  larger than the cache, and after a tenth of them.

3.0 comes from the package index and has an environment of its own; see
`benchmarks.environments`. The sides take turns, and the one that is first
changes too: as processes, and within them the bare loop and the main loop.
"""

import argparse
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import environments
from benchmarks.explain import explain
from benchmarks.options import make_parser
from benchmarks.table import Row, Target, render
from benchmarks.turns import in_turns

SIDES = ('raw', '3.0', 'ours')

CHILDREN = Path(__file__).parent / 'scripts'

IN_MEMORY = Path('/dev/shm')

PRINCIPAL = 'zope.mgr'

CHILD_TIMEOUT = 60.0
"""Seconds in which a child has to say something."""

CONF = '''\
{site_definition}
<zodb>
  cache-size 400
  <filestorage>
    path {home}/Data.fs
  </filestorage>
</zodb>
<eventlog>
  <logfile>
    path {home}/event.log
  </logfile>
</eventlog>
'''


class Sizes(NamedTuple):
    """How much is done for one sample."""

    ticks_of_a_block: int
    writes_of_a_block: int
    blocks: int
    stops: int
    memory_ticks: int


FULL = Sizes(500, 50, 20, 20, 100_000)
QUICK = Sizes(100, 20, 4, 4, 10_000)


class Side(NamedTuple):
    """A way to do the same thing."""

    python: Path
    script: str
    arguments: tuple[str, ...]

    def argv(self) -> list[str]:
        """The command line."""
        return [os.fspath(self.python), os.fspath(CHILDREN / self.script),
                *self.arguments]


class Bench:
    """The environments, the place for databases, and how often to measure."""

    def __init__(self, directory: Path | None, runs: int,
                 sizes: Sizes) -> None:
        self.ours = environments.ours()
        self.old = environments.released(
            '3.0', 'gocept.runner==3.0',
            # What it needs and does not say.
            'setuptools<82', 'zope.principalregistry')
        self.directory = directory or environments.HOME
        self.runs = runs
        self.sizes = sizes

    @contextmanager
    def database(self, directory: Path | None = None) -> Iterator[Path]:
        """A new directory with a database that has its root folder.

        ``zope.conf`` in it names the ZCML that all sides share, and
        ``builtin.conf`` none.
        """
        home = Path(tempfile.mkdtemp(dir=directory or self.directory))
        try:
            shutil.copyfile(CHILDREN / 'site.zcml', home / 'site.zcml')
            (home / 'zope.conf').write_text(CONF.format(
                site_definition=f'site-definition {home}/site.zcml',
                home=home))
            (home / 'builtin.conf').write_text(CONF.format(
                site_definition='', home=home))
            run_child(Side(self.old, 'start.py', (f'{home}/zope.conf',)))
            yield home
        finally:
            shutil.rmtree(home)


def run_child(side: Side) -> Any:
    """What a child prints as JSON."""
    done = subprocess.run(
        side.argv(), env=environments.clean_environ(), text=True,
        stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def figure(side: Side) -> float:
    """The one number that a child prints."""
    return float(run_child(side))


def tick(bench: Bench) -> list[Row]:
    """A tick with nothing to do: without a database, and with one."""
    of_old, of_raw = Target(0.25, '3.0'), Target(2.0, 'raw')
    beyond_raw = Target(0.25, '3.0', beyond=True)
    rows = []
    with bench.database() as home:
        for name, file, aims, known in [
                ('idle tick', 'site.zcml', [of_old, of_raw],
                 {'raw': 12.0, '3.0': 109.0}),
                ('idle tick, connection', 'zope.conf', [beyond_raw, of_raw],
                 {})]:
            for title, rest in [(name, ()),
                                (f'{name}, principal', (PRINCIPAL,))]:
                rows.append(Row(title, 'µs', blocks_of_ticks(
                    bench, home / file, bench.sizes.ticks_of_a_block, 'idle',
                    *rest), aims, known))
    return rows


def write(bench: Bench) -> list[Row]:
    """A tick that changes one object, on the disk and in memory."""
    places = [('on the disk', bench.directory)]
    if os.access(IN_MEMORY, os.W_OK):
        places.append(('in memory', IN_MEMORY))
    rows = []
    for name, directory in places:
        with bench.database(directory) as home:
            samples = blocks_of_ticks(
                bench, home / 'zope.conf', bench.sizes.writes_of_a_block,
                'write')
        rows.append(Row(f'tick with a write, {name}', 'µs', samples,
                        [Target(1.1, 'raw')]))
    return rows


def blocks_of_ticks(bench: Bench, file: Path, count: int,
                    *rest: str) -> dict[str, list[float]]:
    """Microseconds of a tick; raw is taken in the process of the other."""
    arguments = (os.fspath(file), str(count), str(bench.sizes.blocks), *rest)
    found = in_turns({
        name: partial(run_child, Side(python, 'ticks.py', arguments))
        for name, python in [('3.0', bench.old), ('ours', bench.ours)]},
        2 * bench.runs)
    return {
        'raw': [raw for raw, _ in found['ours']],
        '3.0': [full for _, full in found['3.0']],
        '3.0 raw': [raw for raw, _ in found['3.0']],
        'ours': [full for _, full in found['ours']]}


def stop(bench: Bench) -> list[Row]:
    """From a signal to the end of the loop."""
    # Not one length only: a wait must not depend on it.
    lengths = ['1', '60', '3600', '10000000']
    any_length = [lengths[number % len(lengths)]
                  for number in range(bench.sizes.stops)]
    one_second = ['1'] * bench.runs
    with bench.database() as home:
        def side(name: str, python: Path, when: str,
                 seconds: list[str]) -> list[float]:
            return latencies(Side(python, 'stopping.py', (
                name, f'{home}/zope.conf', when, *seconds)), when)

        rows = []
        for when, name in [
                ('sleep', 'signal in a sleep (3.0: one of 1 s)'),
                ('tick', 'signal in a tick (3.0: and a sleep of 1 s)')]:
            samples = {
                '3.0': side('3.0', bench.old, when, one_second),
                'ours': side('ours', bench.ours, when, any_length)}
            if when == 'sleep':
                samples['raw'] = side('raw', bench.ours, when, any_length)
            rows.append(Row(name, 'ms', samples, [Target(5.0)]))
    return rows


def latencies(side: Side, when: str) -> list[float]:
    """Milliseconds that each loop of a child takes to end.

    From the signal; from the return of the worker if that comes later.
    """
    choose = random.Random(0).uniform
    found = []
    with subprocess.Popen(
            side.argv(), env=environments.clean_environ(),
            stdout=subprocess.PIPE, bufsize=0) as child:
        try:
            while expect_line(child) == b'ready':
                # In a tick (of 0.1 s), or in a sleep (of 1 s or longer).
                time.sleep(choose(0.01, 0.06))
                sent = time.monotonic()
                child.send_signal(signal.SIGTERM)
                returned, ended = json.loads(expect_line(child))
                if when == 'tick' and sent > returned:
                    continue  # this machine was busy: not in the tick
                found.append((ended - max(sent, returned)) * 1000)
        except BaseException:
            child.kill()
            raise
    if child.returncode or not found:
        raise SystemExit(f'{side.script} failed: {child.returncode}')
    return found


def expect_line(child: subprocess.Popen[bytes]) -> bytes:
    """The next line of a child; empty at the end."""
    assert child.stdout is not None
    # Not buffered, so that no line can be here that select does not see.
    if not select.select([child.stdout], [], [], CHILD_TIMEOUT)[0]:
        raise TimeoutError(f'the child said nothing for {CHILD_TIMEOUT} s')
    return child.stdout.readline().strip()


def start(bench: Bench) -> list[Row]:
    """From before the process is started to the first tick."""
    with bench.database() as home:
        shared, builtin = f'{home}/zope.conf', f'{home}/builtin.conf'
        sides = {
            'raw': Side(bench.ours, 'start_raw.py', (f'{home}/Data.fs',)),
            '3.0': Side(bench.old, 'start.py', (shared,)),
            'ours': Side(bench.ours, 'start.py', (shared,)),
            'built-in': Side(bench.ours, 'start.py', (builtin,))}
        buildout = environments.CHECKOUT / 'bin' / 'py'
        if buildout.is_file():
            sides['buildout'] = Side(buildout, 'start.py', (builtin,))
        for side in sides.values():
            started(side)  # so that it is warm
        samples = in_turns(
            {name: partial(started, side) for name, side in sides.items()},
            5 * bench.runs)
    others = {'raw': samples['raw'], '3.0': samples['3.0']}
    known = {'raw': 153.0, '3.0': 218.0}
    rows = [
        Row('start, same ZCML', 'ms', samples, [Target(1.0, '3.0')], known),
        Row('start, built-in ZCML', 'ms',
            {**others, 'ours': samples['built-in']},
            [Target(0.85, '3.0')], known)]
    if 'buildout' in samples:
        rows.append(Row('start, built-in ZCML, path of the buildout', 'ms',
                        {**others, 'ours': samples['buildout']}))
    return rows


def started(side: Side) -> float:
    """Milliseconds up to the instant that a child prints."""
    before = time.monotonic()
    return (figure(side) - before) * 1000


def memory(bench: Bench) -> list[Row]:
    """Memory after many ticks; one run, since it is a long one."""
    ticks = bench.sizes.memory_ticks
    with bench.database() as home:
        conf = home / 'zope.conf'
        run_child(Side(bench.ours, 'memory.py',
                       ('create', os.fspath(conf), '0')))
        found = {
            name: run_child(Side(python, 'memory.py', (
                kind, os.fspath(conf), str(ticks))))
            for name, python, kind in [
                ('raw', bench.ours, 'raw'),
                ('3.0', bench.old, 'runner'),
                ('ours', bench.ours, 'runner')]}
    return [
        Row(f'memory after {ticks // 10:,} ticks', 'MiB',
            {name: [early] for name, (early, late) in found.items()}),
        Row(f'memory after {ticks:,} ticks', 'MiB',
            {name: [late] for name, (early, late) in found.items()}),
        Row('memory, late by early', '',
            {name: [late / early] for name, (early, late) in found.items()},
            [Target(1.05)]),
    ]


MEASURES: dict[str, Callable[[Bench], list[Row]]] = {
    'tick': tick, 'write': write, 'stop': stop, 'start': start,
    'memory': memory}


def main(arguments: list[str]) -> int:
    """Print the table; returns 1 if a target is missed."""
    options = parse(arguments)
    try:
        bench = Bench(options.dir, options.runs,
                      QUICK if options.quick else FULL)
    except environments.EnvironmentFailed as error:
        print(error, file=sys.stderr)
        return 1
    print(environments.heading(
        bench.ours, bench.old, names=['ZODB']), flush=True)
    rows: list[Row] = []
    for name in options.only:
        print(f'measuring {name} ...', file=sys.stderr)
        rows += MEASURES[name](bench)
    print(render(SIDES, rows))
    if options.explain:
        with bench.database() as home:
            print(explain(bench.ours, CHILDREN, home, 3 * bench.runs))
    return 0 if all(row.is_met() for row in rows) else 1


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = make_parser(
        'worker', __doc__, list(MEASURES),
        'those of the ticks are twice, those of the starts five times as many')
    add_options(parser)
    parser.add_argument(
        '--explain', action='store_true',
        help='show at the end where the time of a start goes')
    return parser.parse_args(arguments)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of what makes a `Bench`."""
    parser.add_argument(
        '--quick', action='store_true',
        help='few iterations: to try it out, not to quote')
    parser.add_argument(
        '--dir', metavar='DIRECTORY', type=Path,
        help='where to put the databases (default: var/bench)')
