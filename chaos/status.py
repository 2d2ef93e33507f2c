"""Workers that hang, stop, die, or have a full disk, and what `status` says.

`chaos.scripts.seen` notes when its ticks begin and end. When all is over, each
answer of ``gocept-runner status --check`` is compared with what was true all
the time from the start of the command to its end.
"""

import collections
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from chaos.processes import side_by_side
from chaos.scripts import seen
from chaos.worker import CONF, check
from gocept.runner.operation import state
from gocept.runner.tests.support import DEADLINE, child_environment

RUNS = 40
"""What is tried is not so much."""

TIMEOUT = 1.0
"""The limit of a tick, in seconds."""

EARLY = 0.01  # seconds that a poller may wake up before the time

FOREVER = 1e6  # seconds, or a pause

STATUS = [sys.executable, '-c', 'import sys, gocept.runner.cli\n'
          'sys.exit(gocept.runner.cli.main())', 'status', '--check']


@dataclasses.dataclass
class Plan:
    """What happens to one worker."""

    ticks: list[tuple[str, float, float]]
    """What a tick does, for how long, and the pause thereafter."""
    ending: str
    """The signals that are sent in the pause at the end."""
    is_full: bool
    """Whether the disk with the state is full after the first tick."""

    def __str__(self) -> str:
        words = [f'{what} {seconds:.1f}' for what, seconds, _ in self.ticks]
        return (f'{", ".join(words)}, {self.ending}'
                + ', the disk is full' * self.is_full)


@dataclasses.dataclass
class Answer:
    """What the command has said, and when it ran."""

    begin: float
    end: float
    healthy: bool
    text: str


@dataclasses.dataclass
class Truth:
    """What was true for some time."""

    begin: float
    end: float
    healthy: bool
    what: str


def run(randomly: random.Random, runs: int) -> Iterator[str]:
    """Run workers; yields what each of them has done."""
    has_disks = _has_disks()
    plans = [_chosen_by(randomly) for _ in range(runs)]
    for plan in plans:
        plan.is_full = plan.is_full and has_disks
    yield from side_by_side(run_one, plans)


def _chosen_by(randomly: random.Random) -> Plan:
    """A plan; all choices are made here, so that a seed makes them again."""
    ticks = []
    for _ in range(randomly.randrange(1, 4)):
        seconds = randomly.choice([
            0.0, randomly.uniform(0, TIMEOUT / 2),
            randomly.uniform(3 * TIMEOUT, 5 * TIMEOUT)])
        pause = randomly.choice([
            0.0, randomly.uniform(0, 0.2), randomly.uniform(1, 2)])
        ticks.append((randomly.choice(['python', 'c', 'computing']), seconds,
                      pause))
    what, seconds, _ = ticks[-1]
    ticks[-1] = what, seconds, FOREVER
    return Plan(ticks, randomly.choice([
        'KILL', 'STOP', 'STOP CONT', 'TERM', 'STOP KILL']),
        randomly.random() < 0.4)


@contextlib.contextmanager
def _disk(path: pathlib.Path) -> Iterator[None]:
    """A small disk at that place."""
    path.mkdir()
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs',
                    str(path)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(['umount', str(path)], check=True)


def _has_disks() -> bool:
    """Whether this user may have one."""
    with tempfile.TemporaryDirectory() as name:
        try:
            with _disk(pathlib.Path(name) / 'disk'):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def run_one(plan: Plan) -> str:
    """Run one worker; returns what it has done."""
    with (tempfile.TemporaryDirectory() as name,
          contextlib.ExitStack() as stack):
        directory = pathlib.Path(name)
        if plan.is_full:
            stack.enter_context(_disk(directory / 'run'))
        one = Run(plan, directory)
        try:
            one.run()
            judged = one.compare()
        except Exception as error:
            error.add_note(one.story())
            raise
        return f'{plan}: {judged}'


class Run:
    """One worker, what is asked, and what was true."""

    def __init__(self, plan: Plan, directory: pathlib.Path) -> None:
        self.plan, self.directory = plan, directory
        self.answers: list[Answer] = []
        self.truths: list[Truth] = []
        self._written = math.inf  # when the last pause was in the state
        (directory / 'zope.conf').write_text(CONF)
        (directory / 'plan').write_text(json.dumps(plan.ticks))

    def run(self) -> None:
        """Run the worker, and ask, to its end."""
        with open(self.directory / 'output', 'wb') as output:
            worker = subprocess.Popen(
                [sys.executable, seen.__file__, '--run-dir', 'run'],
                cwd=self.directory, env=child_environment(
                    TIMEOUT=str(TIMEOUT), XDG_STATE_HOME=str(self.directory)),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            self._live(worker)
            for word in self.plan.ending.split():
                self._send(worker, word)
        finally:
            worker.kill()
            worker.wait()

    def _live(self, worker: 'subprocess.Popen[bytes]') -> None:
        """Ask until the last tick has ended, and somewhat longer."""
        until = time.monotonic() + DEADLINE
        while not self._facts():
            check(worker.poll() is None, 'it has ended')
            check(time.monotonic() < until, 'it has not begun')
            time.sleep(0.01)
        if self.plan.is_full:
            while not [*(self.directory / 'run').glob('*.json')]:
                check(time.monotonic() < until, 'there is no state')
                time.sleep(0.01)
            with (contextlib.suppress(OSError),
                  open(self.directory / 'run' / 'filler', 'wb', 0) as filler):
                while True:
                    filler.write(b'x' * 4096)
        while len(self._facts()) < 2 * len(self.plan.ticks):
            check(time.monotonic() < until, 'the ticks have not ended')
            self._ask()
        while not self._is_pause_written():
            check(time.monotonic() < until, 'the last pause is not written')
            self._ask()
        self._written = time.monotonic()
        self._ask_for(0.5)

    def _send(self, worker: 'subprocess.Popen[bytes]', word: str) -> None:
        """Send a signal in the last pause, and ask what is true then."""
        signum = getattr(signal, f'SIG{word}')
        if not any(each.what == 'paused' for each in self.truths):
            self.truths.append(
                Truth(self._written, time.monotonic(), True, 'paused'))
        worker.send_signal(signum)
        if word == 'CONT':
            os.waitid(os.P_PID, worker.pid, os.WCONTINUED)
            what, healthy = 'continued', True
        elif word == 'STOP':
            os.waitid(os.P_PID, worker.pid, os.WSTOPPED)
            what, healthy = 'stopped', False
        else:
            # It is a zombie until somebody asks for its status.
            fd = os.pidfd_open(worker.pid)
            try:
                check(bool(select.select([fd], [], [], DEADLINE)[0]),
                      f'no end within {DEADLINE} s')
            finally:
                os.close(fd)
            what, healthy = 'dead', False
        begin = time.monotonic()
        self._ask_for(0.3)
        self.truths.append(Truth(begin, time.monotonic(), healthy, what))

    def _ask_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._ask()

    def _ask(self) -> None:
        begin = time.monotonic()
        answer = subprocess.run(
            [*STATUS, 'run'], cwd=self.directory, env=child_environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=DEADLINE)
        end = time.monotonic()
        lines = answer.stdout.splitlines()
        check(len(lines) == 1 and answer.returncode in (0, 1),
              f'status {answer.returncode}: {answer.stdout}')
        self.answers.append(Answer(
            begin, end, not answer.returncode, lines[0]))

    def _facts(self) -> list[tuple[int, str, float]]:
        """What the worker has noted."""
        path = self.directory / 'facts'
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(number), word, float(instant))
                for number, word, instant in map(str.split, lines)]

    def _is_pause_written(self) -> bool:
        """Whether the last pause is in the state, which may take its time."""
        for path in (self.directory / 'run').glob('*.json'):
            with contextlib.suppress(state.Unreadable):
                found = state.read(str(path))
                return (found['phase'] == 'pause'
                        and found['tick'] == len(self.plan.ticks))
        return False

    def _recovery(self, instant: float) -> float:
        """When the worker was first seen to be healthy after an instant.

        To write the first state, or what has changed, takes as long as a busy
        machine needs.
        """
        return next((answer.end for answer in self.answers
                     if answer.healthy and answer.begin >= instant), math.inf)

    def _truths_of_ticks(self) -> Iterator[Truth]:
        begin = ticked = due = -math.inf
        for number, word, instant in self._facts():
            what, _, pause = self.plan.ticks[number - 1]
            if word == 'begin':
                if number == 1:
                    begin = self._recovery(instant)
                ticked = instant
                continue
            if instant > ticked + TIMEOUT:
                # The tick may have begun before it could say so, but not
                # before its time.
                yield Truth(begin, due + TIMEOUT - EARLY, True, 'busy')
                yield Truth(ticked + TIMEOUT + EARLY, instant, False,
                            f'hanging in {what}')
                begin = self._recovery(instant)
            due = instant + pause

    def compare(self) -> str:
        """AssertionError for an answer that was never true.

        Returns how many answers were compared, by what was true.
        """
        counts: collections.Counter[str] = collections.Counter()
        self.truths += self._truths_of_ticks()
        for truth in self.truths:
            for answer in self.answers:
                if truth.begin <= answer.begin and answer.end <= truth.end:
                    check(answer.healthy == truth.healthy,
                          f'{truth.what}, and it says: {answer.text}')
                    counts[truth.what] += 1
        return ', '.join(f'{what} {n}' for what, n in sorted(counts.items()))

    def story(self) -> str:
        """All that is known."""
        def lines(title: str, found: Sequence[object]) -> list[str]:
            return [title, *map(str, found)]
        return '\n'.join([
            f'the plan: {self.plan}', *lines('facts', self._facts()),
            *lines('truths', self.truths), *lines('answers', self.answers),
            (self.directory / 'output').read_text(errors='replace')])
