"""The workers of a house: as the house sees them, and as they see themselves.

The house knows which processes there are, and how often they were started.
What a worker does, tick by tick, stands in its state file, which is found as
by ``gocept-runner status``. To read these files may take any time, since a
disk may hang: call `Census.take` in a thread that nobody waits for.
"""

import os.path
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from gocept.runner.operation import health, report
from gocept.runner.operation.amounts import NONE, duration
from gocept.runner.operation.numbers import Numbers, numbers_of

if TYPE_CHECKING:
    from gocept.runner.house.record import HouseState, WorkerState
    from gocept.runner.operation.state import State

Key = tuple[str, str | None]
"""The name of a worker, and its site."""


class Resident:
    """One worker of the house."""

    def __init__(self, told: 'WorkerState', found: report.Worker | None,
                 ) -> None:
        self.told = told
        """What the house knows."""
        self.found = found
        """What the worker has written; None: nothing yet."""

    @property
    def name(self) -> str:
        """The worker, and its site."""
        name, site = key_of(self.told)
        return name + (f'@{site}' if site else '')

    @property
    def state(self) -> 'State | None':
        """What the worker has written."""
        return None if self.found is None else self.found.state

    @property
    def speaks(self) -> report.Worker | None:
        """The worker itself, if its process runs and has written."""
        if self.told['phase'] == 'running' and self.found is not None and (
                self.state is not None
                and self.state['pid'] == self.told['pid']):
            return self.found
        return None

    @property
    def healthy(self) -> bool:
        """Whether all is well, as far as somebody knows."""
        if self.told['phase'] == 'given up':
            return False
        if self.told['phase'] == 'pausing':
            return not self.told['failures']
        worker = self.speaks
        return worker is None or worker.healthy or worker.in_doubt

    @property
    def tone(self) -> str:
        """What people are to notice; see `report.Worker.tone`."""
        worker = self.speaks
        if worker is not None:
            return worker.tone
        if not self.healthy:
            return 'ill'
        if self.told['phase'] in ('done', 'ended'):
            return 'late' if self.told['status'] else 'over'
        return 'late' if self.told['failures'] else ''

    @property
    def sentence(self) -> str:
        """What it does, for a probe."""
        if self.speaks is not None:
            return report.sentence(self.speaks)
        times = _times(self.told['failures'])
        after = f'after {_end(self.told["status"])}'
        if self.told['phase'] == 'given up':
            return f'{self.name} is given up: it has failed {times}, {after}'
        if self.told['phase'] == 'pausing':
            return f'{self.name} waits to be started again {after}'
        return f'{self.name} is {self.told["phase"]}'

    @property
    def row(self) -> list[str]:
        """Its cells in the table of the house; see `report.TITLES`."""
        if self.found is None or self.state is None:
            cells = [NONE] * len(report.TITLES)
        else:
            cells = [*report.row(self.found)]
        changes = {'WORKER': self.name}
        if self.speaks is None:
            changes |= self._seen_from_outside()
        return [changes.get(title, cell) for title, cell in zip(
            report.TITLES, cells, strict=True)]

    def _seen_from_outside(self) -> dict[str, str]:
        told, now = self.told, time.time()
        due = told['due']
        text = f'ended {told["status"]}' if told['phase'] == 'ended' else (
            told['phase'])
        if told['failures']:
            text += f', {told["failures"]} failed'
        notes = [f'last time {_end(told["status"])}'] if told['status'] else []
        if self.state is not None:
            notes += report.last_error(self.state, now)
        return {
            'STATE': text, 'PID': str(told['pid'] or NONE),
            'NEXT TICK': NONE if due is None else (
                f'in {duration(max(0.0, due - now))}'),
            'CHILDREN': NONE, 'MEMORY': NONE, 'NOTE': '; '.join(notes) or NONE}

    @property
    def numbers(self) -> Numbers | None:
        """What Prometheus is told."""
        if self.state is None:
            return None
        numbers = numbers_of(self.state)
        if self.speaks is None:  # what it did when it was there
            numbers.tick_started = numbers.next_tick = None
            numbers.children = 0
        return numbers


def key_of(worker: 'WorkerState') -> Key:
    """What tells a worker from the others."""
    return worker['name'], (worker['site'] or '').strip('/') or None


def _times(number: int) -> str:
    return 'once' if number == 1 else f'{number} times'


def _end(status: int | None) -> str:
    if status is None:
        return 'an unknown end'
    return f'signal {-status}' if status < 0 else f'status {status}'


class Census:
    """Which state file belongs to which worker, from one look to the next."""

    def __init__(self) -> None:
        self._paths: dict[Key, str] = {}
        self._doubts: dict[str, tuple[object, float]] = {}

    def take(self, house: 'HouseState') -> list[Resident]:
        """The workers of the house at this moment."""
        try:
            found = report.find()
        except report.NothingFound:
            found = []
        self._settle(found)
        states: dict[Key, list[report.Worker]] = {}
        for worker in found:
            if worker.state is not None:
                states.setdefault(
                    (worker.state['worker'], worker.state['site']), []).append(
                        worker)
        for told in house['workers']:
            key = key_of(told)
            for worker in states.get(key, ()):
                if worker.state and worker.state['pid'] == told['pid']:
                    self._paths[key] = worker.path
        return [Resident(told, self._of(key_of(told), states))
                for told in house['workers']]

    def _of(self, key: Key, states: dict[Key, list[report.Worker]],
            ) -> report.Worker | None:
        """The state of a worker: its own, or that of a program before it.

        A worker that has not run yet may have run in a house before. Then its
        state lies where the states of the other workers lie.
        """
        candidates = {worker.path: worker for worker in states.get(key, ())}
        known = self._paths.get(key)
        if known is not None:
            return candidates.get(known)
        places = {os.path.dirname(path) for path in self._paths.values()}
        here = [worker for path, worker in candidates.items()
                if os.path.dirname(path) in places]
        return max(here, key=_written, default=None)

    def _settle(self, workers: Iterable[report.Worker]) -> None:
        """Believe what was in doubt, and has not changed for long enough."""
        now = time.monotonic()
        doubts = {}
        for worker, what in _in_doubt(workers):
            before, since = self._doubts.get(worker.path, (what, now))
            doubts[worker.path] = what, since if before == what else now
            worker.is_settled = (
                before == what and now - since >= health.SETTLED)
        self._doubts = doubts


def _in_doubt(workers: Iterable[report.Worker],
              ) -> Iterator[tuple[report.Worker, object]]:
    for worker in workers:
        if worker.in_doubt and worker.state is not None:
            yield worker, worker.state['written']


def _written(worker: report.Worker) -> float:
    return worker.state['written']['realtime'] if worker.state else 0.0
