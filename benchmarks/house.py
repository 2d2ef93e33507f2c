"""Twenty workers under ``gocept-runner up``, beside as many programs.

The programs are ``gocept-runner run NAME``, all started at once, beside a ZEO
server that runs already. The ZEO server of ``up`` is started by ``up``. All
files are in the system's cache.

* together: 20 workers, each with a first tick and a long pause.

  * from the moment when the template has booted (``up`` names the workers in
    its log then) to the first tick of the last worker; of programs, from
    before the first one is started
  * the same from before the start of ``up``
  * processor time of all processes until then, the ZEO server included
  * memory of all processes a second later, as the sum of the proportional set
    sizes: ``up``, the template, the ZEO server and the workers on one side,
    and the programs alone on the other one

* due: a worker that runs once, with a schedule. From the instant when it is
  due to its first line. On the other side is what cron does: it starts a
  program, which opens the same database; cron itself is left out.
* zope5, zope6, plone: ``together`` in an instance of this kind, without the
  programs, as the aim is a time.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import environments, zope
from benchmarks.environments import clean_environ, heading
from benchmarks.family import Use, use
from benchmarks.options import make_parser
from benchmarks.table import Row, Target, render
from benchmarks.turns import in_turns
from benchmarks.worker import CHILDREN, expect_line

SIDES = ('programs', 'ours')

WORKERS = 20

SETTLED = 1.0
"""Seconds from the last first tick until memory is measured."""

JITTER = 50
"""Seconds over which the workers that are due are spread in a minute."""

DUE = 10
"""How many workers are due in a round."""

SITE = '''\
<configure xmlns="http://namespaces.zope.org/zope"
           xmlns:runner="http://namespaces.gocept.com/runner">
  {base}
  <include package="gocept.runner" />
  {workers}
</configure>
'''

BASE = '<include package="gocept.runner" file="site.zcml" />'

CONF = '''\
{imports}
site-definition {home}/site.zcml
<zodb>
  {storage}
</zodb>
<eventlog>
  <logfile>
    path {home}/event.log
  </logfile>
</eventlog>
'''

FILE = '''<filestorage>
    path {home}/Data.fs
  </filestorage>'''

CLIENT = '''<clientstorage>
    server {home}/zeo.sock
  </clientstorage>'''

LONG = 'ticks="3600"'

ONCE = 'once="true"'

AT_ITS_TIME = f'once="true" schedule="* * * * *" jitter="{JITTER}"'


class Installation(NamedTuple):
    """A zope.conf with workers, and the interpreter for it."""

    python: Path
    home: Path
    conf: Path
    names: Sequence[str]

    def command(self, *words: str) -> list[str]:
        """A command line of ``gocept-runner``."""
        return [os.fspath(self.python.with_name('gocept-runner')), *words,
                f'--config={self.conf}']

    def start(self, *words: str) -> 'subprocess.Popen[bytes]':
        """A process with this command line, whose output is a pipe."""
        environ = {**clean_environ(), 'PYTHONPATH': os.fspath(self.home),
                   'GOCEPT_RUNNER_RUN_DIR': os.fspath(self.home / 'run')}
        return subprocess.Popen(
            self.command(*words), env=environ, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, bufsize=0)


def declarations(names: Sequence[str], attributes: str) -> str:
    """The ZCML of workers that are all alike."""
    return '\n  '.join(
        f'<runner:worker name="{name}" handler="house_worker.tick" '
        f'{attributes} />' for name in names)


def names_of(count: int) -> list[str]:
    """So many names, all of the same length."""
    return [f'worker{number:02}' for number in range(1, count + 1)]


@contextlib.contextmanager
def toolkit(python: Path, directory: Path, names: Sequence[str],
            attributes: str, storage: str) -> Iterator[Installation]:
    """Workers of the Zope Toolkit, with this storage."""
    with tempfile.TemporaryDirectory(dir=directory) as path:
        home = Path(path)
        shutil.copy(CHILDREN / 'house_worker.py', home)
        (home / 'site.zcml').write_text(SITE.format(
            base=BASE, workers=declarations(names, attributes)))
        (home / 'zope.conf').write_text(CONF.format(
            imports='%import ZEO' if storage == CLIENT else '',
            storage=storage.format(home=home), home=home))
        yield Installation(python, home, home / 'zope.conf', names)


@contextlib.contextmanager
def served(installation: Installation) -> Iterator[int]:
    """The ZEO server of the programs; hands out its pid."""
    address = installation.home / 'zeo.sock'
    with subprocess.Popen(
            [installation.python, '-m', 'ZEO.runzeo', '-a', address,
             '-f', installation.home / 'Data.fs'], env=clean_environ(),
            stderr=subprocess.DEVNULL) as server:
        try:
            while not address.exists():
                if server.poll() is not None:
                    raise SystemExit('the ZEO server does not start')
                time.sleep(0.01)
            yield server.pid
        finally:
            server.terminate()


class Found(NamedTuple):
    """How twenty workers have started."""

    warm: float
    """Seconds to the last first tick, from the warm template."""

    whole: float
    """Seconds to the last first tick, from nothing."""

    use: Use
    """Of all processes. Of programs, without their server."""

    processor: float
    """Seconds of all processes, servers included, at the last first tick."""


def under_up(installation: Installation) -> Found:
    """Start all workers by ``up``, and end them."""
    began = time.time()
    with running_up(installation) as child:
        warm = None
        ticks: dict[str, float] = {}
        while warm is None or len(ticks) < len(installation.names):
            name, text = said(child)
            if name == 'up' and text.endswith(
                    ': ' + ', '.join(installation.names)):
                warm = datetime.strptime(
                    text[:23], '%Y-%m-%d %H:%M:%S,%f').timestamp()
            elif name in installation.names:
                with contextlib.suppress(ValueError):  # its log, in Zope
                    ticks.setdefault(name, float(text))
        processor = use([child.pid]).processor
        time.sleep(SETTLED)
        last = max(ticks.values())
        return Found(last - warm, last - began, use([child.pid]), processor)


@contextlib.contextmanager
def running_up(installation: Installation,
               ) -> Iterator['subprocess.Popen[bytes]']:
    """An ``up`` that is ended."""
    with installation.start('up', '--no-color') as child:
        try:
            yield child
        finally:
            child.terminate()
            assert child.stdout is not None
            while child.stdout.read(65536):
                pass  # so that it can write its last words


def said(child: 'subprocess.Popen[bytes]') -> tuple[str, str]:
    """The next line of an ``up``: its mark, and what follows."""
    line = expect_line(child).decode()
    if not line:
        raise SystemExit(f'up has ended with {child.wait()}')
    mark, _, text = line.partition('|')
    return mark.strip(), text.strip()


def as_programs(installation: Installation) -> Found:
    """Start all workers as programs, and end them."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(served(installation))
        began = time.time()
        children = []
        for name in installation.names:
            children.append(stack.enter_context(
                installation.start('run', name)))
            stack.callback(children[-1].terminate)
        last = max(map(moment, children))
        pids = [child.pid for child in children]
        processor = use([server, *pids]).processor
        time.sleep(SETTLED)
        return Found(last - began, last - began, use(pids), processor)


def moment(child: 'subprocess.Popen[bytes]') -> float:
    """When the first tick of a program was."""
    line = expect_line(child)
    if not line:
        raise SystemExit(f'a program has ended with {child.wait()}')
    return float(line)


def together(python: Path, directory: Path, runs: int) -> list[Row]:
    """Twenty at once."""
    names = names_of(WORKERS)
    with (toolkit(python, directory, names, LONG, FILE) as home,
          toolkit(python, directory, names, LONG, CLIENT) as programs):
        sides = {'programs': partial(as_programs, programs),
                 'ours': partial(under_up, home)}
        with served(programs):
            # So that it is warm, and has the root object: those that start at
            # one time are in conflict about a new one.
            fresh(programs, 1)
        under_up(home)
        found = in_turns(sides, runs)
    return rows_of('', found, [
        # 20 times 300 ms, when each was a program.
        Target(1.0), Target(1 / 6, 'programs')], [Target(0.35, 'programs')])


def rows_of(kind: str, found: Mapping[str, Sequence[Found]],
            of_start: Sequence[Target], of_memory: Sequence[Target],
            ) -> list[Row]:
    """The rows of twenty workers."""
    def row(name: str, unit: str, value: Callable[[Found], float],
            aims: Sequence[Target] = ()) -> Row:
        return Row(f'{WORKERS} workers{kind}: {name}', unit, {
            side: [value(each) for each in values]
            for side, values in found.items()}, aims)
    return [
        row('first ticks, warm', 's', lambda each: each.warm, of_start),
        row('first ticks, from nothing', 's', lambda each: each.whole),
        row('processor', 's', lambda each: each.processor),
        row('memory', 'MiB', lambda each: each.use.memory, of_memory),
        row('processes', '', lambda each: each.use.count)]


def due(python: Path, directory: Path, runs: int) -> list[Row]:
    """One that is due, beside a program that cron has started."""
    with (toolkit(python, directory, names_of(DUE), AT_ITS_TIME, FILE) as home,
          toolkit(python, directory, names_of(1), ONCE, CLIENT) as program,
          served(program)):
        sides = {'ours': partial(late, home),
                 'programs': partial(fresh, program, DUE)}
        fresh(program, 1)  # so that it is warm
        found = in_turns(sides, runs)
    return [Row('due to first line', 'ms', {
        side: [value for part in parts for value in part]
        for side, parts in found.items()}, [
            # A program took 250 ms.
            Target(30.0), Target(30 / 250, 'programs')])]


def late(installation: Installation) -> list[float]:
    """Milliseconds from the instant when each worker is due."""
    from gocept.runner.house import record
    houses = installation.home / 'run' / 'houses'
    with running_up(installation) as child:
        said(child)  # it knows its workers
        due: dict[str, float] = {}
        while len(due) < DUE:
            time.sleep(0.1)
            for directory in houses.iterdir():
                state = record.read(os.fspath(directory))
                due = {} if state is None else {
                    each['name']: each['due'] for each in state['workers']
                    if each['due'] is not None and not each['starts']}
        found: dict[str, float] = {}
        while len(found) < DUE:
            name, text = next_said(child)
            if name in due and name not in found:
                found[name] = (float(text) - due[name]) * 1000
    return list(found.values())


def next_said(child: 'subprocess.Popen[bytes]') -> tuple[str, str]:
    """The next line, which may take longer than a minute to come."""
    for _ in range(3):
        with contextlib.suppress(TimeoutError):
            return said(child)
    raise TimeoutError('no worker was due')


def fresh(installation: Installation, count: int) -> list[float]:
    """Milliseconds from before the start of so many programs, in turn."""
    found = []
    for _ in range(count):
        began = time.time()
        with installation.start('run', installation.names[0]) as child:
            found.append((moment(child) - began) * 1000)
            child.terminate()
    return found


def in_zope(kind: str, python: Path, directory: Path, runs: int) -> list[Row]:
    """Twenty at once, in Zope or Plone."""
    names = names_of(WORKERS)
    with zope.instance(kind, directory, zope.QUICK, runs) as instance:
        conf = Path(instance.conf)
        home = conf.parent.parent
        shutil.copy(CHILDREN / 'house_worker.py', home)
        slugs = conf.parent / 'package-includes'
        slugs.mkdir(exist_ok=True)
        (slugs / 'bench-configure.zcml').write_text(SITE.format(
            base='', workers=declarations(
                names, f'{LONG} site="/{instance.site}"')))
        installation = Installation(instance.python, home, conf, names)
        under_up(installation)  # so that it is warm
        print(heading(instance.python, names=zope.KINDS[kind]))
        found = [under_up(installation) for _ in range(runs)]
    return rows_of(f', {kind}', {'ours': found}, [Target(2.0)], [])


MEASURES: Mapping[str, Callable[[Path, Path, int], list[Row]]] = {
    'together': together, 'due': due,
    **{kind: partial(in_zope, kind) for kind in zope.KINDS}}


def main(arguments: list[str]) -> int:
    """Print the table; returns 1 if a target is missed."""
    parser = make_parser(
        'house', __doc__, list(MEASURES),
        f'in each of them, {DUE} workers are due, in a minute or two')
    parser.add_argument(
        '--dir', metavar='DIRECTORY', type=Path,
        help='where to put the databases (default: var/bench)')
    options = parser.parse_args(arguments)
    status = 0
    rows: list[Row] = []
    try:
        python = environments.ours('ZEO')
        directory = options.dir or environments.HOME
        print(heading(python, names=['ZODB', 'ZEO']), flush=True)
        for name in options.only:
            print(f'measuring {name} ...', file=sys.stderr)
            rows += MEASURES[name](python, directory, options.runs)
    except environments.EnvironmentFailed as error:
        print(error, file=sys.stderr)
        status = 1
    # What came before an environment that cannot be made, is measured.
    print(render(SIDES, rows))
    return status if all(row.is_met() for row in rows) else 1
