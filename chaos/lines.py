"""A worker that reads a child in a kernel; worker, kernel and child get killed.

The database has each line that a child has written, once.
"""  # noqa: E501

import contextlib
import os
import pathlib
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import ZODB.scripts.fstest

from chaos.processes import described, end_kernel, working_in
from chaos.scripts import lines
from chaos.worker import CONF, check
from gocept.runner.kernel import Kernel
from gocept.runner.tests.cli.test_worker import stored
from gocept.runner.tests.support import DEADLINE, Program

RUNS_PER_DATABASE = 40

LONGEST_PAUSE = 0.3
"""Seconds between two kills, at most."""

VICTIMS = ('worker', 'worker', 'daemon', 'daemon', 'keeper', 'child')


def run(randomly: random.Random, runs: int) -> Iterator[str]:
    """Kill one or some, and see that all goes on; yields what was done."""
    for first in range(0, runs, RUNS_PER_DATABASE):
        # Short, as the path of a socket must be.
        with tempfile.TemporaryDirectory(prefix='kernel') as name:
            scene = Scene(pathlib.Path(name))
            try:
                for _ in range(min(RUNS_PER_DATABASE, runs - first)):
                    yield scene.suffer(randomly)
                scene.end()
            except Exception as error:
                error.add_note(scene.told())
                raise
            finally:
                scene.close()


class Scene:
    """A kernel, a worker with a database, and a child of the kernel."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.path = str(directory / 'sock')
        self.log = directory / 'log'
        self.done: list[str] = []
        (directory / 'zope.conf').write_text(CONF)
        (directory / 'written').mkdir()
        self.committed = directory / 'committed'
        self.committed.touch()
        self.kernel = Kernel(self.path, DEADLINE, log=self.log)
        self.worker = self.start()
        self.wait_for_work()

    def start(self) -> Program:
        """Start the worker."""
        return Program(
            pathlib.Path(lines.__file__), self.path, '--ticks', '0.001',
            cwd=self.directory)

    def suffer(self, randomly: random.Random) -> str:
        """Lose some of them; whoever is lost comes back."""
        victims = [randomly.choice(VICTIMS)
                   for _ in range(randomly.randrange(1, 4))]
        self.done.append(' '.join(victims))
        for victim in victims:
            time.sleep(randomly.uniform(0, LONGEST_PAUSE))
            {'worker': self.kill_worker, 'daemon': self.kill_daemon,
             'keeper': self.kill_keeper, 'child': self.kill_child}[victim]()
        self.wait_for_work()
        return (f'{", ".join(victims)}: {self.committed.stat().st_size} '
                f'commits, {len(os.listdir(self.directory / "written"))} '
                'children')

    def kill_worker(self) -> None:
        """The next one goes on."""
        check(self.worker.process.poll() is None, 'the worker has ended')
        self.worker.send(signal.SIGKILL)
        self.worker.process.wait()
        self.worker.close()
        self.worker = self.start()

    def kill_daemon(self) -> None:
        """A successor goes on."""
        os.kill(self.kernel.status()['pid'], signal.SIGKILL)

    def kill_keeper(self) -> None:
        """The daemon becomes the keeper; both must not die at once."""
        status = self.kernel.status()
        os.kill(status['keeper'], signal.SIGKILL)
        self.wait_for('another keeper', lambda: (
            self.kernel.status()['keeper'] != status['keeper']))

    def kill_child(self) -> None:
        """The worker starts another one, when it has read this one's end."""
        found = self.kernel.list_processes(lines.NAME)
        if found and found[lines.NAME]['running']:
            with contextlib.suppress(ProcessLookupError):
                os.kill(found[lines.NAME]['pid'], signal.SIGKILL)

    def wait_for_work(self) -> None:
        """Wait for some more commits."""
        before = self.committed.stat().st_size
        self.wait_for('work', lambda: (
            self.committed.stat().st_size > before + 5))

    def wait_for(self, what: str, fact: Any) -> None:
        """Wait until it holds."""
        deadline = time.monotonic() + DEADLINE
        while not fact():
            check(time.monotonic() < deadline, f'no {what}')
            check(self.worker.process.poll() is None, 'the worker has ended')
            time.sleep(0.005)

    def end(self) -> None:
        """End all in good order, and look at the database."""
        self.kill_child()
        self.wait_for_work()
        self.worker.send(signal.SIGTERM)
        check(self.worker.end() == 0, 'the worker has failed')
        ZODB.scripts.fstest.check(str(self.directory / 'Data.fs'))
        with stored(self.directory / 'Data.fs') as site:
            counts, failures = dict(site.counts), site.failures
        check(not failures, f'not each once: {failures}')
        alive = self.kernel.list_processes(lines.NAME)
        for path in (self.directory / 'written').iterdir():
            if path.name in counts or not alive:
                written = int(path.read_bytes() or 0)
                is_last = [*counts][-1:] == [path.name]
                check(counts.get(path.name, 0) >= written or (
                    is_last and bool(alive)),
                    f'{path.name}: {counts.get(path.name)} of {written}')

    def close(self) -> None:
        """End whatever is left."""
        self.worker.close()
        end_kernel(self.kernel, self.directory)

    def told(self) -> str:
        """All that is known."""
        self.worker.process.kill()
        with contextlib.suppress(Exception):
            self.worker.end()
        log = self.directory / 'worker.log'
        return '\n'.join([
            f'what was done: {self.done}', 'the processes:',
            *map(described, working_in(self.directory)),
            'the log of the kernel:',
            self.log.read_text()[-20_000:] if self.log.exists() else '',
            'the log of the worker:',
            log.read_text()[-10_000:] if log.exists() else '',
            'its output:', self.worker.output[-10_000:]])
