"""Programs that start children of all kinds, trouble them and end somehow.

Each run is one program; `chaos.plans` says what may happen in it.
"""

import contextlib
import json
import os
import pathlib
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from chaos.plans import SUDDEN, Plan
from chaos.processes import alive, described, words
from chaos.scripts import program
from chaos.worker import check
from gocept.runner.process import procfs
from gocept.runner.tests.support import DEADLINE, child_environment

SIGNALS = {'SIGINT': signal.SIGINT, 'handled SIGTERM': signal.SIGTERM,
           'SIGTERM': signal.SIGTERM, 'SIGKILL': signal.SIGKILL}

DROPPED = re.compile(
    r'^Exception ignored in: .*?^(KeyboardInterrupt|SystemExit)\b.*?\n',
    re.M | re.S)

LONGEST_GOODBYE = 60.0
"""How long children may take to die with their parent, in seconds."""


def run(randomly: random.Random, runs: int) -> Iterator[str]:
    """Run programs; yields what each of them was and how it ended."""
    for number in range(runs):
        with tempfile.TemporaryDirectory() as directory:
            yield Run(randomly, directory, f'chaos-{os.getpid()}-{number}-'
                      ).run()


class Run:
    """One program, and what is left of it."""

    def __init__(self, randomly: random.Random, directory: str, word: str,
                 ) -> None:
        self.directory = pathlib.Path(directory)
        self.word = word
        self.plan = Plan(randomly, directory, word).content
        self.ending = self.plan['ending']
        self.status: int | None = None

    def run(self) -> str:
        """Returns what was done; AssertionError with all that is known."""
        try:
            try:
                self.status = self.start_and_wait()
                self.check()
            finally:
                self.end_all()
        except Exception as error:
            error.add_note(self.told())
            raise
        return self.summary()

    def start_and_wait(self) -> int:
        """Run the program and let it have its end; returns the status."""
        path = self.directory / 'plan'
        path.write_text(json.dumps(self.plan))
        ready, their_ready = os.pipe()
        try:
            with open(self.directory / 'stderr', 'wb') as stderr:
                process = subprocess.Popen(
                    [sys.executable, program.__file__, path, str(their_ready)],
                    env=child_environment(PYTHONDEVMODE='1'),
                    cwd=self.directory, stdin=subprocess.DEVNULL,
                    stdout=stderr, stderr=stderr, pass_fds=[their_ready],
                    start_new_session=True)
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(their_ready)
        try:
            return self.wait(process, ready)
        finally:
            os.close(ready)
            process.kill()
            process.wait()

    def wait(self, process: 'subprocess.Popen[bytes]', ready: int) -> int:
        """Send the signal that it is to end by, and wait."""
        check(bool(select.select([ready], [], [], DEADLINE)[0]),
              f'not ready within {DEADLINE} s')
        if self.ending in SIGNALS:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.plan['delay'])
            process.send_signal(SIGNALS[self.ending])
        try:
            return process.wait(program.LONGEST_RUN)
        except subprocess.TimeoutExpired:
            self.show_stacks(process.pid)
            raise AssertionError(
                f'no end within {program.LONGEST_RUN} s') from None

    def show_stacks(self, session: int) -> None:
        """Have the program, and forks of it, say where they are."""
        for pid in procfs.pids():
            now = procfs.stat(pid)
            if (now is not None and now.session == session
                    and program.__file__.encode() in words(pid)):
                os.kill(pid, signal.SIGUSR1)
                time.sleep(0.5)  # one after the other, while it is written
                if pid != session:
                    os.kill(pid, signal.SIGKILL)

    # What is left.

    def check(self) -> None:
        """The status, what it has said, what it reports and who is left."""
        check(self.status in self.expected(), f'its status is {self.status}')
        if self.status != -signal.SIGKILL and self.ending not in SUDDEN:
            check(not self.left(), 'it has left behind:\n' + self.left())
        else:
            self.check_dead()
        if self.ending in SUDDEN and self.status != 0:
            return
        self.check_output()
        failures = self.report()['failures']
        check(not failures, '\n'.join(failures))

    def expected(self) -> set[int]:
        """The statuses that it may have."""
        normal = {0}
        return {
            'return': normal,
            'exit': {self.plan['status']},
            'raise': {1},
            # By the signal that it raises again, or in place of it.
            'SIGINT': normal | {-signal.SIGINT, 128 + signal.SIGINT},
            # By the signal itself when Python has put its action back.
            'handled SIGTERM': normal | {
                self.plan['status'], -signal.SIGTERM},
            'SIGTERM': normal | {-signal.SIGTERM},
            'SIGKILL': normal | {-signal.SIGKILL},
        }[self.ending]

    def left(self) -> str:
        """The processes that are left, one to a line."""
        return '\n'.join(described(pid)
                         for pid in alive(self.word))

    def check_dead(self) -> None:
        """Wait for those that die with their parent."""
        deadline = time.monotonic() + LONGEST_GOODBYE
        while True:
            left = [described(pid)
                    for pid in alive(self.word)
                    if b'"must_die": true' in words(pid)]
            if not left:
                return
            check(time.monotonic() < deadline,
                  'they were to die with their parent:\n' + '\n'.join(left))
            time.sleep(0.01)

    def check_output(self) -> None:
        """Nothing but the exception that was planned may be said."""
        said = self.output()
        if self.ending in ('SIGINT', 'handled SIGTERM'):
            # What their handlers raise in the callback of a weak reference, or
            # in a finalizer, Python tells and drops.
            said = DROPPED.sub('', said)
        if self.ending == 'raise':
            said, _, _ = said.rpartition('RuntimeError: as planned')
            said = '' if said.startswith('Traceback') else said
        if self.report()['interrupted']:
            # At any line, also in Popen or of one that opens a file.
            said = re.sub(r'(?m)^.*ResourceWarning: .*\n(  .*\n)?', '', said)
            if self.ending == 'SIGINT':
                said = said.rpartition('KeyboardInterrupt')[2].strip()
        check(not said, 'it has said something')

    def output(self) -> str:
        """What the program has said."""
        return (self.directory / 'stderr').read_text(errors='replace')

    def report(self) -> dict[str, Any]:
        """What the program has written in the end."""
        try:
            text = (self.directory / 'report').read_text()
        except FileNotFoundError:
            return {'failures': ['no report'], 'interrupted': False,
                    'log': [], 'started': 0}
        report: dict[str, Any] = json.loads(text)
        return report

    def end_all(self) -> None:
        """Kill whoever is left, also those that are born meanwhile."""
        deadline = time.monotonic() + LONGEST_GOODBYE
        while pids := list(alive(self.word)):
            check(time.monotonic() < deadline, f'cannot be killed: {pids}')
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    fd = os.pidfd_open(pid)
                    try:
                        # It may be another by now.
                        if self.word.encode() in words(pid):
                            signal.pidfd_send_signal(fd, signal.SIGKILL)
                    finally:
                        os.close(fd)
            time.sleep(0.005)

    # What to tell.

    def summary(self) -> str:
        """A line."""
        acts = ' '.join(actor['acts'] for actor in self.plan['actors'])
        marks = ' '.join(key for key in (
            'closes', 'own_poller', 'fallback', 'forks') if self.plan[key])
        started = self.report()['started'] or 'some'
        return (f'{acts}, {started} children, {self.ending}'
                f'{f" ({marks})" if marks else ""}: status {self.status}')

    def told(self) -> str:
        """All that is known."""
        records = self.directory / 'records'
        return '\n'.join([
            f'the plan: {json.dumps(self.plan)}',
            f'what the children have recorded: '
            f'{records.read_text().splitlines() if records.exists() else ""}',
            'the log:', *self.report()['log'],
            f'the output of the program, status {self.status}:',
            self.output()])
