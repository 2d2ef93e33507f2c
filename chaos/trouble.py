"""A worker that forks, has no threads, descriptors or disk, or is process 1.

Each run is one program; `chaos.scripts.trouble` says what may happen in it.
"""

import contextlib
import json
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from chaos.processes import alive, described, ignores, side_by_side
from chaos.scripts import trouble
from chaos.worker import CONF, Scene, check
from gocept.runner.process import procfs
from gocept.runner.tests.cli.test_worker import caught_by
from gocept.runner.tests.support import child_environment

LONGEST_RUN = 300
"""How long a program may take, in seconds."""

LONGEST_GOODBYE = 60
"""How long daemons may take to end after it, in seconds."""

LONGEST_LIFE = 0.6
"""How long a program lives at most before its signal comes, in seconds, since
it has begun, or since its first commit."""

LAST = 12
"""The number of ticks, if no signal is to end the program."""

FIRST_PROCESS = ['unshare', '--pid', '--fork', '--mount-proc']


def run(randomly: random.Random, runs: int) -> Iterator[str]:
    """Run programs; yields what each of them was and how it ended."""
    may_be_first = not subprocess.run(
        [*FIRST_PROCESS, 'true'], capture_output=True).returncode
    plans = [chosen_by(randomly) for _ in range(runs)]
    for plan in plans:
        plan['is_first'] = plan['is_first'] and may_be_first
    yield from side_by_side(run_one, plans)


def run_one(plan: dict[str, Any]) -> str:
    """Run one program; returns what it was and how it ended."""
    with tempfile.TemporaryDirectory() as directory:
        return Run(plan, pathlib.Path(directory)).run()


def chosen_by(randomly: random.Random) -> dict[str, Any]:
    """A plan. All choices are made here, so that a seed makes them again."""
    acts: dict[str, list[tuple[str, object]]] = {}
    for _ in range(randomly.randrange(1, 7)):
        acts.setdefault(str(randomly.randrange(1, LAST)), []).append(
            randomly.choice([
                ('fork', randomly.choice([*trouble.STATUSES])),
                ('daemon', None),
                ('callback', randomly.choice([*trouble.ERRORS])),
                ('threads', randomly.randrange(3)),
                ('descriptors', randomly.randrange(1, 3)),
                ('clock', randomly.uniform(-1e6, 1e6)),
                ('server', randomly.choice(
                    [0, -2, 2, randomly.uniform(-1e9, 1e9)])),
                ('disk', [randomly.randrange(1500),
                          randomly.uniform(0, 0.1)]),
                ('kill', randomly.choice([signal.SIGTERM, signal.SIGKILL])),
                ('interrupt', randomly.uniform(0.0005, 0.02)),
                ('log', None),
                ('orphans', randomly.randrange(1, 4)),
                ('echo', randomly.randrange(1000)),
            ]))
    acts[str(LAST)] = [('echo', LAST)]
    signum = randomly.choice([
        None, None, None, signal.SIGTERM, signal.SIGHUP, signal.SIGINT,
        signal.SIGKILL])
    return {
        'acts': acts, 'last': LAST if signum is None else sys.maxsize,
        'closed': randomly.choice(
            [[], [], [], [], [], [0], [2], [1, 2], [0, 1, 2]]),
        'is_first': randomly.random() < 0.2,
        'signum': signum, 'works': randomly.random() < 0.6,
        'delay': randomly.uniform(0.05, LONGEST_LIFE)}


class Run:
    """One program, and what is left of it."""

    def __init__(self, plan: dict[str, Any], directory: pathlib.Path) -> None:
        self.plan = plan
        self.scene = Scene(directory, CONF, ticks=0.001)
        self.directory = directory
        self.word = f'chaos={directory}'
        self.statuses = {0}
        """Those that it may have."""
        self.acknowledged = directory / 'worker.acknowledged'
        (directory / 'plan').write_text(json.dumps(plan))

    def run(self) -> str:
        """Returns what was done; AssertionError with all that is known."""
        try:
            try:
                status = self.start_and_wait()
            finally:
                left = self.end_all()
            check(not left, 'it has left behind:\n' + '\n'.join(left))
            return f'{self}: status {status}, {self.check(status)} stored'
        except Exception as error:
            error.add_note('\n'.join([
                f'the plan: {json.dumps(self.plan)}', *(
                    f'{path.name}: {path.read_text(errors="replace")}'
                    for path in (self.directory / name for name in (
                        'output', 'worker.log', 'failures', 'stacks'))
                    if path.exists())]))
            raise

    def start_and_wait(self) -> int:
        """Run the program, and send it its signal; returns the status."""
        command = shlex.join([
            sys.executable, trouble.__file__,
            '--ticks', str(self.scene.ticks)])
        closed = ''.join(f' {fd}>&-' for fd in self.plan['closed'])
        script = f'exec {command}{closed}'
        first = FIRST_PROCESS if self.plan['is_first'] else []
        with open(self.directory / 'output', 'wb') as output:
            process = subprocess.Popen(
                [*first, 'sh', '-c', script], cwd=self.directory,
                env=child_environment(CHAOS=self.word),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True)
        try:
            if self.plan['signum'] is not None:
                self.trouble(process)
            return process.wait(LONGEST_RUN)
        except subprocess.TimeoutExpired:
            self.send(process, signal.SIGUSR1)
            time.sleep(0.5)  # while all stacks are written
            raise AssertionError(f'no end within {LONGEST_RUN} s') from None
        finally:
            process.kill()
            process.wait()

    def trouble(self, process: 'subprocess.Popen[bytes]') -> None:
        """Send it its signal, when it is time."""
        deadline = time.monotonic() + LONGEST_RUN
        while process.poll() is None and not self.is_there(process):
            check(time.monotonic() < deadline, 'it has not begun')
            time.sleep(0.005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.plan['delay'])
        signum = self.plan['signum']
        has_worked = self.acknowledged.exists()
        self.send(process, signum)
        if signum == signal.SIGINT and not has_worked and ignores(
                process, self.acknowledged.exists, LONGEST_RUN):
            self.send(process, signal.SIGTERM)

    def is_there(self, process: 'subprocess.Popen[bytes]') -> bool:
        """Whether the signal may come."""
        if self.plan['works']:
            return self.acknowledged.exists()
        if not (self.directory / 'begun').exists():
            return False
        # The first process of a system has no default action; so its handlers
        # have to be there.
        return not self.plan['is_first'] or any(
            signal.SIGTERM in caught_by(pid) for pid in self.pids(process))

    def pids(self, process: 'subprocess.Popen[bytes]') -> list[int]:
        """The program, which may be another's child."""
        return (procfs.children(process.pid) if self.plan['is_first']
                else [process.pid])

    def send(self, process: 'subprocess.Popen[bytes]', signum: int) -> None:
        """Send the program a signal."""
        for pid in self.pids(process):
            with contextlib.suppress(ProcessLookupError):
                if process.poll() is None:
                    os.kill(pid, signum)
                    self.statuses |= {-signum, 128 + signum}

    def end_all(self) -> list[str]:
        """Kill all that is left, and describe it."""
        was_killed = self.plan['signum'] == signal.SIGKILL
        # A daemon that has come back to the loop ends by itself.
        deadline = time.monotonic() + (0 if was_killed else LONGEST_GOODBYE)
        while (pids := [*alive(self.word)]) and time.monotonic() < deadline:
            time.sleep(0.01)
        left = [described(pid) for pid in pids]
        while pids := [*alive(self.word)]:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        return [] if was_killed else left

    def check(self, status: int) -> int:
        """The status, what it has said of itself, and the database."""
        signum = self.plan['signum']
        if signum == signal.SIGKILL and self.plan['is_first']:
            self.statuses.add(1)  # of unshare
        check(status in self.statuses, f'its status is {status}')
        failures = self.directory / 'failures'
        check(not failures.exists(), 'it has found failures')
        self.scene.in_flight += signum == signal.SIGKILL
        if not self.scene.storage.exists():
            return 0
        stored = self.scene.check()
        check(signum is not None or stored == LAST, f'{stored} are stored')
        return stored

    def __str__(self) -> str:
        acts = ' '.join(name for acts in self.plan['acts'].values()
                        for name, _ in acts)
        marks = ' '.join([
            *(['as process 1'] if self.plan['is_first'] else []),
            *(f'without {fd}' for fd in self.plan['closed'])])
        signum = self.plan['signum']
        ending = '' if signum is None else f', {signal.Signals(signum).name}'
        return f'{acts}{f" ({marks})" if marks else ""}{ending}'
