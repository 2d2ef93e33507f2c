"""A worker that is killed with a random signal at a random instant."""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator

import ZODB.scripts.fstest

from chaos.processes import ignores
from gocept.runner import errors
from gocept.runner.tests.cli.test_worker import PREAMBLE, stored
from gocept.runner.tests.support import DEADLINE, Program

RUNS_PER_DATABASE = 20
"""As each transaction stores the whole list once more."""

SCRIPT = PREAMBLE + '''
@gocept.runner.appmain(attempts=1000)
def worker(path):
    acknowledge(count(), path)

sys.exit(worker())
'''

LOG = '''
<eventlog>
  <logfile>
    path worker.log
  </logfile>
</eventlog>
'''

CONF = '''
<zodb>
  <filestorage>
    path Data.fs
  </filestorage>
</zodb>
''' + LOG

LONGEST_LIFE = 1.5
"""How long a program lives at most before its signal comes, in seconds."""


def run(randomly: random.Random, runs: int) -> Iterator[str]:
    """Start workers and kill them; yields what was done after each."""
    for first in range(0, runs, RUNS_PER_DATABASE):
        with tempfile.TemporaryDirectory() as name:
            scene = Scene(pathlib.Path(name), CONF, ticks=0.002)
            for _ in range(min(RUNS_PER_DATABASE, runs - first)):
                yield kill_one(randomly, scene)


class Scene:
    """A directory with a database, and programs that work on it."""

    def __init__(self, directory: pathlib.Path, conf: str,
                 ticks: float) -> None:
        self.directory = directory
        self.ticks = ticks
        self.storage = directory / 'Data.fs'
        self.in_flight = 0
        (directory / 'program.py').write_text(SCRIPT)
        (directory / 'zope.conf').write_text(conf)

    def start(self, name: str = 'worker') -> Program:
        """Start a worker that acknowledges in a file of that name."""
        return Program(
            self.directory / 'program.py', '--ticks', str(self.ticks), '--',
            f'{name}.acknowledged', cwd=self.directory)

    def acknowledged(self, name: str = '*') -> list[int]:
        """The numbers that workers know to be committed, in order."""
        return sorted(
            int(line)
            for path in self.directory.glob(f'{name}.acknowledged')
            for line in path.read_text().splitlines())

    def log(self) -> str:
        """What the workers have logged."""
        path = self.directory / 'worker.log'
        return path.read_text() if path.exists() else ''

    def check(self) -> int:
        """Look at the database, which nobody may have open.

        Returns how many numbers there are.
        """
        numbers, count = [], 0  # there may be no root folder yet
        with contextlib.suppress(KeyError), stored(self.storage) as site:
            numbers = list(getattr(site, 'numbers', ()))
            count = getattr(site, 'count', 0)
        ZODB.scripts.fstest.check(str(self.storage))
        acknowledged = self.acknowledged()
        check(numbers == list(range(1, count + 1)),
              f'the counter is {count}, the list is {numbers}')
        check(len(set(acknowledged)) == len(acknowledged),
              f'an update is lost: {acknowledged}')
        missing = {*numbers} - {*acknowledged}
        check({*acknowledged} <= {*numbers} and len(missing) <= self.in_flight,
              f'{count} are stored, {missing} not acknowledged, although '
              f'{self.in_flight} could be in flight')
        return count


def check(fact: bool, message: str) -> None:
    """AssertionError with that message unless it is a fact."""
    if not fact:
        raise AssertionError(message)


def kill_one(randomly: random.Random, scene: Scene) -> str:
    """Start a worker, and end it somehow; returns what was done."""
    signals = randomly.choice([
        [signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT], [signal.SIGKILL],
        [signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT],
        [signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL],
        [signal.SIGUSR2, signal.SIGTERM],
        [signal.SIGTERM, signal.SIGTERM], [signal.SIGHUP, signal.SIGINT]])
    delay = randomly.uniform(0, LONGEST_LIFE)
    before = len(scene.acknowledged())
    program = scene.start()
    try:
        time.sleep(delay)
        running = len(scene.acknowledged()) > before
        for signum in signals:
            program.send(signum)
        if signals == [signal.SIGINT] and not running and ignores(
                program.process,
                lambda: len(scene.acknowledged()) > before, DEADLINE):
            signals = [signal.SIGINT, signal.SIGTERM]
            program.send(signal.SIGTERM)
        status = end(program)
    finally:
        program.close()
    done = f'{"+".join(signum.name for signum in signals)} after {delay:.3f} s'
    check(status in expected(signals, running),
          f'{done}: status {status}, it had {"" if running else "not "}begun '
          f'to work:\n{program.output}\n{scene.log()}')
    scene.in_flight += status < 0
    check('Error' not in scene.log(), scene.log())
    if not scene.storage.exists():
        return f'{done}: status {status}, no database yet'
    return f'{done}: status {status}, {scene.check()} stored'


def end(program: Program) -> int:
    """Wait for its end, and that nothing of it is left."""
    try:
        status = program.end()
    except subprocess.TimeoutExpired:
        raise AssertionError(f'no end within {DEADLINE} s') from None
    try:
        os.killpg(program.process.pid, 0)
    except ProcessLookupError:
        return status
    raise AssertionError('it has left a process behind')


def expected(signals: list[signal.Signals], running: bool) -> set[int]:
    """The statuses that a worker may have after these signals."""
    ending = [signum for signum in signals if signum in (
        signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL)]
    if signal.SIGKILL in ending:
        return {-signal.SIGKILL}
    # The second of two ends it at once, or comes when the loop has ended.
    statuses = {errors.SUCCESS, *(-signum for signum in ending[1:])}
    if not running:
        statuses |= {-signum for signum in signals}
        statuses |= {errors.SIGNALLED + signum for signum in ending}
        if signal.SIGINT in ending:
            statuses.add(1)  # of a Python that just starts
    if signal.SIGINT in (ending[1:] if running else ending):
        statuses.add(errors.INTERRUPTED)
    return statuses
