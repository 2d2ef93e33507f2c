"""Workers on a Plone site, which ZEO serves, conflict in its catalog.

Each run is one of these: two processes work on documents until they are done,
two are ended by a signal again and again while they do, and one looks at the
site for a long time. `chaos.scripts.plone` has the workers. Then nothing may
be lost or done twice, the catalog has to agree with the content, and the
memory has to be what it was.
"""

import contextlib
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from chaos.worker import check, expected
from gocept.runner import errors
from gocept.runner.tests.support import (
    SIGNALS,
    child_environment,
    ignore_nothing,
)
from gocept.runner.tests.zope.plones import Instance

ENVIRONMENT = 'plone'

DOCUMENTS = 500
"""What each of two processes creates, publishes, moves and deletes."""

LOOKS = 20_000
"""In how many ticks one looks at the site."""

KEPT, STEPS = 5, 4
"""As in `chaos.scripts.plone`, which imports Plone."""

SETTLED = 0.25
"""The part of the ticks after which the memory does not grow any more."""

MOST_GROWTH = 6 << 10
"""What the memory may differ by from then on, in KiB."""

LONGEST_LIFE = 5.0
"""How long a program works at most before its signal comes, in seconds."""

LONGEST_WORK = 1200.0
"""How long a program may take for all of its work, in seconds."""

LONGEST_END = 180.0
"""How long it may take to end after a signal, in seconds."""

URL = 'https://www.example.org/portal'

CONFLICT = re.compile('Conflict error in attempt')

SKIPPED = re.compile(r'(\d+) skipped$', re.M)
"""Items that have met more conflicts than they may have attempts."""


class Kind(NamedTuple):
    """What a run does."""

    worker: str
    count: int
    options: tuple[str, ...] = ()
    is_ended: bool = False
    """Whether signals end the processes before they are done."""
    names: str = 'ab'
    """Those of the processes."""

    def __str__(self) -> str:
        return ' '.join([self.worker, str(self.count), *self.options,
                         *['with signals'] * self.is_ended])

    @property
    def stores(self) -> bool:
        """Whether anything is in the database afterwards."""
        return self.worker in ('documents', 'items')


KINDS = (
    Kind('documents', DOCUMENTS),
    Kind('items', DOCUMENTS),
    Kind('documents', 60, is_ended=True),
    Kind('items', 60, is_ended=True),
    Kind('lives', 100, ('--dry-run',)),
    Kind('living', 100, ('--dry-run',)),
    Kind('looks', LOOKS, names='a'),
    Kind('looking', LOOKS, names='a'),
    Kind('looks', LOOKS, ('--dry-run',), names='a'),
    Kind('looking', LOOKS, ('--dry-run',), names='a'),
)

RUNS = len(KINDS)


def run(randomly: random.Random, runs: int) -> Iterator[str]:
    """One kind of work after the other; yields what was done in each."""
    for kind in KINDS[:runs]:
        with tempfile.TemporaryDirectory() as name:
            instance = Instance(pathlib.Path(name) / 'instance')
            with instance.zeo():
                yield f'{kind}: {Scene(instance, kind).play(randomly)}'


class Scene:
    """A site, and two processes that work on it."""

    def __init__(self, instance: Instance, kind: Kind) -> None:
        self.instance = instance
        self.kind = kind
        self.workers = [Worker(instance, kind, name)
                        for name in kind.names]
        self.signals = 0

    def play(self, randomly: random.Random) -> str:
        """Have both done, and look at what is there; returns the numbers."""
        before = self._state()
        started = time.monotonic()
        with contextlib.ExitStack() as close:
            for worker in self.workers:
                close.callback(worker.kill)
            while working := [each for each in self.workers
                              if not each.is_done]:
                self._work(randomly, working)
        seconds = time.monotonic() - started
        self._check(before, self._state())
        growth = [worker.growth() for worker in self.workers]
        return (f'{seconds:.0f} s, {self.signals} signals, '
                f'{sum(each.conflicts() for each in self.workers)} conflicts, '
                f'{sum(each.skipped() for each in self.workers)} skipped'
                + ''.join(f', {first // 1024} MiB {grown:+} KiB'
                          for first, grown in filter(None, growth)))

    def _work(self, randomly: random.Random,
              workers: list['Worker']) -> None:
        for each in workers:
            each.start()
        if self.kind.is_ended:
            signals = list(SIGNALS)
            if randomly.random() < 0.8:
                for each in workers:
                    each.begin()
            else:
                # Perhaps while it starts. Before it is told to be a worker,
                # Python may lose a KeyboardInterrupt, as in a finalizer.
                signals.remove(signal.SIGINT)
            deadline = time.monotonic() + randomly.uniform(0, LONGEST_LIFE)
            for each in workers:
                each.wait(deadline - time.monotonic())
            for each in workers:
                if each.send(randomly.choice(signals)):
                    self.signals += 1
        for each in workers:
            each.end()

    def _state(self) -> Mapping[str, Any]:
        state: Mapping[str, Any] = self.instance.ask('plones.state(site)')
        check(not state['disagreements'],
              f'catalog and content: {state["disagreements"]}')
        return state

    def _check(self, before: Mapping[str, Any],
               after: Mapping[str, Any]) -> None:
        if not self.kind.stores:
            check(before == after, f'{after} is stored')
            return
        kept = {f'/Plone/archive/{worker.name}-{number}'
                for worker in self.workers
                for number in range(0, self.kind.count, KEPT)}
        check(set(after['states']) == set(before['states']) | kept,
              f'these are not what was kept: {sorted(after["states"])}')
        check(all(after['states'][path] == 'published' for path in kept),
              f'not all is published: {after["states"]}')


class Worker:
    """One process after the other that does the work with a name."""

    def __init__(self, instance: Instance, kind: Kind, name: str) -> None:
        self.name = name
        self.is_done = False
        self._kind = kind
        self._directory = instance.directory
        self._arguments = [
            sys.executable, '-m', 'chaos.scripts.plone', kind.worker,
            '--config', str(instance.conf), '--site', 'Plone',
            '--server-url', URL, *kind.options, '--', name, str(kind.count)]
        self._log = instance.directory / f'{name}.log'
        self._log.touch()
        self._before = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._signum: signal.Signals | None = None

    def start(self) -> None:
        """Have it work."""
        ignore_nothing()
        self._signum = None
        self._before = self._log.stat().st_size
        with self._log.open('ab') as log:
            self._process = subprocess.Popen(
                self._arguments, cwd=self._directory, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, env=child_environment(),
                process_group=0)

    def begin(self) -> None:
        """Wait until it works, or has ended."""
        assert self._process is not None
        deadline = time.monotonic() + LONGEST_WORK
        while (self._process.poll() is None
               and not self._numbers(self._text()[self._before:])):
            check(time.monotonic() < deadline, self._text())
            time.sleep(0.05)

    def wait(self, seconds: float) -> None:
        """Wait until it has ended, or so long."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0, seconds))

    def send(self, signum: signal.Signals) -> bool:
        """Send it a signal; False if it has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            return False
        self._process.send_signal(signum)
        self._signum = signum
        return True

    def end(self) -> None:
        """Wait until it has ended, and look at what it has said."""
        assert self._process is not None
        try:
            status = self._process.wait(
                LONGEST_WORK if self._signum is None else LONGEST_END)
        except subprocess.TimeoutExpired:
            raise AssertionError(f'no end: {self._text()[-2000:]}') from None
        text = self._text()
        numbers = self._numbers(text[self._before:])
        statuses = ({errors.SUCCESS} if self._signum is None else
                    # Each attempt prints the number.
                    expected([self._signum], len(set(numbers)) > 1))
        check(status in statuses,
              f'status {status} after {self._signum}: {text[-4000:]}')
        check('Error in' not in text, text[text.find('Error in'):][:4000])
        former = self._numbers(text[:self._before])
        if self._kind.stores and numbers and former:
            # A tick is completed, unless it has conflicted and the signal has
            # kept it from another attempt. Of several items, some are done.
            last = text[:self._before].rpartition(f'\n{former[-1]}\n')[2]
            may_be_cut = (self._kind.worker == 'items'
                          or CONFLICT.search(last) is not None)
            check(numbers[0] - former[-1] in {1, 1 - may_be_cut},
                  f'{former[-1]} was the last, now the first is {numbers[0]}')
        self.is_done = self._signum is None or (
            numbers[-1:] == [self._kind.count + STEPS - 1])

    def kill(self) -> None:
        """Whatever it does."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _text(self) -> str:
        return self._log.read_text()

    def _numbers(self, text: str) -> list[int]:
        return [int(number) for number in re.findall(
            r'(?m)^(\d+)(?: \d+)?$', text)]

    def conflicts(self) -> int:
        """How many conflicts were met in all."""
        return len(CONFLICT.findall(self._text()))

    def skipped(self) -> int:
        """How many items were left to the end of their tick."""
        return sum(map(int, SKIPPED.findall(self._text())))

    def growth(self) -> tuple[int, int] | None:
        """The memory it has when it is settled, and how much it has grown
        since, in KiB."""
        shown = {int(tick): int(size) for tick, size in
                 re.findall(r'(?m)^(\d+) (\d+)$', self._text())}
        if not shown:
            return None
        settled = shown[max(
            tick for tick in shown if tick <= self._kind.count * SETTLED)]
        growth = shown[self._kind.count] - settled
        check(growth < MOST_GROWTH, f'the memory has grown: {shown}')
        return settled, growth
