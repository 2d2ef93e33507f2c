"""A program that ZCML declares, with its servers, is killed while it works.

It consists of a worker (`chaos.scripts.house`), a child that it talks to, a
web server and PostgreSQL. One after another is run in the same directory, and
meets a fate of its own (`chaos.fates`); then nothing may be left of it but
what it has stored, with which the next one goes on.
"""

import contextlib
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from chaos.fates import DEADLY, Act, Fate
from chaos.premises import House
from chaos.processes import (
    adopted,
    adopting,
    alive,
    arguments,
    described,
    ignores,
    working_in,
)
from chaos.scripts import converter
from chaos.worker import check
from gocept.runner import errors
from gocept.runner.process import exechelper, procfs
from gocept.runner.tests.cli.test_worker import caught_by
from gocept.runner.tests.support import child_environment

NEEDS = 'postgres'

RUNS_PER_HOUSE = 20
"""As a new PostgreSQL takes its time, and a long history as well."""

LONGEST_WAIT = 180.0
"""How long the program may take for anything, in seconds; longer than the
limits of `SITE_ZCML`."""

LONGEST_GOODBYE = 60.0
"""How long children may take to notice that it was killed, in seconds."""

COMMAND = [sys.executable, '-c',
           'import sys; from gocept.runner.cli import main; sys.exit(main())',
           'run', 'house', '--config', 'zope.conf']

# How its children are known, by their arguments.
SIGNS = {'converter': os.fsencode(converter.__file__),
         'web': b'\0http.server\0', 'postgres': b'/postgres\0-D\0'}

# What it may say at any time: that ZODB mends what a killed one has left, that
# the database is new, and what the converter has not been sent at the end; and
# that something takes its time, as on a busy machine. And what of those whom
# something has happened to.
ALLOWED = re.compile(
    r'WARNING (ZODB\.|.* could not be sent$|.* new, empty database: '
    r'|.* is empty: creating its root folder$'
    r'|gocept\.runner\.executor .*: still waiting'
    r'|gocept\.runner\.operation The last state of .* was not written within '
    r'|gocept\.runner\.process A callback of .* takes long, and is cut short)')
SUFFERING = re.compile(
    r'WARNING (chaos\.scripts\.house'
    r'|gocept\.runner\.(executor|spawn|supervisor)) ')

COMPLAINT = re.compile(r'(?:WARNING|ERROR|CRITICAL) .*$', re.M)


def run(randomly: random.Random, runs: int) -> Iterator[str]:
    """Run the program; yields what has happened to it each time."""
    for first in range(0, runs, RUNS_PER_HOUSE):
        numbers = range(first, min(first + RUNS_PER_HOUSE, runs))
        with tempfile.TemporaryDirectory() as name, adopting():
            house = House(pathlib.Path(name).resolve())
            try:
                for number in numbers:
                    fate = (Fate.chosen_by(randomly) if number < numbers[-1]
                            else Fate.peaceful())
                    yield Life(house, f'house-{os.getpid()}-{number}-', fate
                               ).live()
            finally:
                house.close()


class Life:
    """One program, from its start to what is left of it."""

    def __init__(self, house: House, word: str, fate: Fate) -> None:
        self.house = house
        self.word = word
        self.fate = fate
        self.done: list[str] = []
        self.statuses: set[int] = set()
        """Those that it may have."""
        self.harmed: set[str] = set()
        self.is_lost = False
        """Whether it may go on although it got SIGINT; see `ignores`."""

    def live(self) -> str:
        """Returns what has happened; AssertionError with all that is known."""
        self.house.furnish(self.fate)
        try:
            try:
                self.suffer()
                self.check_left()
                count = self.house.check_stored(self.status < 0)
                self.check_said()
            except Exception as error:
                error.add_note(self.told())
                raise
        finally:
            self.end_all()
        return (f'{self.fate.readiness}, {self.fate.start}, ticks '
                f'{self.fate.ticks}: {", ".join(self.done)}: status '
                f'{self.status} after {self.took:.2f} s, {count} stored')

    # What happens.

    def suffer(self) -> None:
        """Start it, and do what is to be done until its end."""
        before = self.house.acknowledged
        self.start()
        try:
            if self.fate.works:
                self.wait_for('work', lambda: (
                    self.house.acknowledged > before))
                self.done.append(f'works after {self.age:.2f} s')
            for act in self.fate.acts:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(act.pause)
                if act.victim:
                    self.harm(act)
                else:
                    self.send(act)
            self.wait()
        finally:
            self.process.kill()
            self.status = self.process.wait()
        self.took = time.monotonic() - self.told_at
        if self.harmed and not self.has_logged('LoopStarted'):
            self.statuses.add(errors.CANNOT_START)
        check(self.status in self.statuses,
              f'its status is {self.status}, none of {self.statuses}')

    def start(self) -> None:
        """Start it, in a group of its own."""
        more = {'PYTHONDEVMODE': '1'} if self.fate.devmode else {}
        with open(self.house.directory / 'output', 'wb') as output:
            self.process = subprocess.Popen(
                COMMAND, cwd=self.house.directory, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, process_group=0,
                env=child_environment(CHAOS=self.word, **more))
        self.started_at = self.told_at = time.monotonic()

    @property
    def age(self) -> float:
        """How long it lives, in seconds."""
        return time.monotonic() - self.started_at

    def wait_for(self, what: str, fact: Callable[[], bool]) -> None:
        """Wait for something that it does."""
        deadline = time.monotonic() + LONGEST_WAIT
        while not fact():
            check(self.process.poll() is None,
                  f'it ended with {self.process.returncode} before {what}')
            if time.monotonic() > deadline:
                self.show_stacks()
                raise AssertionError(f'no {what} within {LONGEST_WAIT} s')
            time.sleep(0.005)

    def wait(self) -> None:
        """Wait for its end."""
        if self.is_lost and ignores(
                self.process, lambda: self.has_logged('LoopStarted'),
                LONGEST_WAIT):
            self.send(Act(signum=signal.SIGTERM, pause=0))
        try:
            self.process.wait(LONGEST_WAIT)
        except subprocess.TimeoutExpired:
            self.show_stacks()
            raise AssertionError(f'no end within {LONGEST_WAIT} s') from None

    def show_stacks(self) -> None:
        """Have it say where all its threads are."""
        if signal.SIGUSR1 in caught_by(self.process.pid):
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(1)  # until it is written

    def send(self, act: Act) -> None:
        """Send it, or all in its group, a signal."""
        if self.process.poll() is not None:
            return
        caught = caught_by(self.process.pid)
        told = bool(self.statuses)
        signum = act.signum
        if signum == signal.SIGUSR2:
            self.house.rotate()
            if told or signum not in caught:
                self.statuses.add(-signum)
        elif signum == signal.SIGKILL:
            self.statuses.add(-signum)
        elif signum in DEADLY:
            if told or signal.SIGTERM not in caught or not self.has_begun():
                self.statuses.add(-signum)
                if signum == signal.SIGINT:
                    # The other one is that of a Python that just starts.
                    self.statuses |= {errors.INTERRUPTED, 1}
                    self.is_lost = not told
            self.statuses.add(errors.SUCCESS)
            if not self.has_logged('LoopStarted'):
                self.statuses.add(errors.SIGNALLED + signum)
        if act.to_group:
            self.harmed.add('converter')
            os.killpg(self.process.pid, signum)
        else:
            self.process.send_signal(signum)
        self.done.append(str(act))
        self.told_at = time.monotonic()

    def has_begun(self) -> bool:
        """Whether it handles signals, now and until its end.

        It does so from its first child on. But before its loop it may lose
        this child, and end. Between booting and all that it has no handlers,
        and may have come there since somebody has looked at them.
        """
        return self.has_logged('LoopStarted') or (
            not self.harmed and self.has_logged('ChildStarted .*'))

    def harm(self, act: Act) -> None:
        """Send a signal to one of its children, if there is such a one."""
        parents = [self.process.pid]
        if act.victim == 'backend':
            parents = self.children('postgres', parents)
        victims = self.children(act.victim, parents)
        if act.signum == signal.SIGSTOP:
            # Who starts a program waits until it runs, as Popen does.
            victims = [pid for pid in victims
                       if os.fsencode(exechelper.__file__)
                       not in arguments(pid)]
        if self.process.poll() is not None or not victims:
            return
        pid = victims[act.number % len(victims)]
        ready, known = self.times_ready(act.victim), self.house.acknowledged
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                # It may be another by now.
                if pid not in self.children(act.victim, parents):
                    return
                self.harmed.add(act.victim)
                signal.pidfd_send_signal(fd, act.signum)
            finally:
                os.close(fd)
            self.done.append(str(act))
            if act.recovers:
                self.wait_for(f'work after {act}', lambda: (
                    self.house.acknowledged > known and (
                        act.victim == 'backend'
                        or self.times_ready(act.victim) > ready)))

    @staticmethod
    def children(name: str, parents: list[int]) -> list[int]:
        """Those of that name; of a backend, all children are."""
        return [pid for parent in parents for pid in procfs.children(parent)
                if SIGNS.get(name, b'') in arguments(pid)]

    def has_logged(self, text: str) -> bool:
        """Whether it has logged a line with that end."""
        return bool(re.search(f'{text}$', self.house.log(), re.M))

    def times_ready(self, name: str) -> int:
        """How often a child has become ready."""
        return len(re.findall(f'ChildReady {name}$', self.house.log(), re.M))

    # What is left.

    def left(self) -> list[int]:
        """Its processes, but for the dead."""
        return sorted({
            *adopted(), *alive(self.word),
            *working_in(self.house.directory)} - {os.getpid()})

    def check_left(self) -> None:
        """No process, nor a file that belongs to one."""
        deadline = time.monotonic() + (
            0 if self.status >= 0 else LONGEST_GOODBYE)
        while left := self.left():
            check(time.monotonic() < deadline, 'it has left behind:\n'
                  + '\n'.join(map(described, left)))
            time.sleep(0.01)
        # It does not end in time when it is told to while it recovers.
        if (self.status == errors.SUCCESS and self.has_logged('LoopStarted')
                and not self.harmed & {'postgres', 'backend'}):
            files = {each.name for each in (
                *self.house.home.glob('.s.*'),
                *self.house.home.glob('data/postmaster.pid'))}
            check(not files, f'PostgreSQL has left {files}')

    def check_said(self) -> None:
        """It may complain of what it has suffered, not of anything else."""
        output, failed = self.output(), (
            errors.CANNOT_START in self.statuses)
        if failed and output.startswith('gocept-runner run: error: '):
            check(output.count('\n') == 1, 'an error in several lines')
            output = ''
        if output.endswith('ignored due to race condition\n'):
            # Python has been sent another one before it could handle the first
            # one, which has no handler now.
            check(min(self.statuses) < 0, 'who has sent the first?')
            output = ''
        if errors.INTERRUPTED in self.statuses:
            # At any line, and whoever is there may log it.
            check(not output or 'nterrupt' in output, 'it has said something')
            return
        for complaint in COMPLAINT.findall(self.house.log()):
            check(bool(ALLOWED.match(complaint)) or (
                bool(self.harmed and SUFFERING.match(complaint))), complaint)
        check('Traceback' not in self.house.log(), 'an error is logged')
        check(not output, 'it has said something')

    def end_all(self) -> None:
        """Kill whoever is left."""
        deadline = time.monotonic() + LONGEST_GOODBYE
        while pids := self.left():
            check(time.monotonic() < deadline, f'cannot be killed: {pids}')
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    fd = os.pidfd_open(pid)
                    try:
                        if pid in self.left():  # it may be another by now
                            signal.pidfd_send_signal(fd, signal.SIGKILL)
                    finally:
                        os.close(fd)
            time.sleep(0.005)

    # What to tell.

    def output(self) -> str:
        """What it has said."""
        return (self.house.directory / 'output').read_text(errors='replace')

    def told(self) -> str:
        """All that is known."""
        postgres = self.house.home / 'log'
        return '\n'.join([
            f'the fate: {self.fate}', f'what was done: {self.done}',
            'the processes:', *map(described, self.left()),
            'the log:', self.house.log()[-20_000:],
            'the log of PostgreSQL:',
            postgres.read_text()[-5000:] if postgres.exists() else '',
            'the output:', self.output()[-20_000:]])
