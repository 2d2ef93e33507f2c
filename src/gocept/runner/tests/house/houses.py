"""What a house tells its parts, made up for tests."""

import os
from typing import TYPE_CHECKING, Any

from gocept.runner.operation import vitals

if TYPE_CHECKING:
    from gocept.runner.errors import RunnerError
    from gocept.runner.house.record import HouseState, WorkerState
    from gocept.runner.poller import Poller


def worker_state(name: str = 'nightly', **changes: Any) -> 'WorkerState':
    """What a house knows of a worker that is this process."""
    return {
        'name': name, 'site': None, 'phase': 'running', 'pid': os.getpid(),
        'since': vitals.now(), 'due': None, 'starts': 1, 'failures': 0,
        'status': None, 'generation': 1, **changes}


def house_state(*workers: 'WorkerState', **changes: Any) -> 'HouseState':
    """What a house tells of itself."""
    return {
        'pid': 4, 'start': 7, 'config': '/srv/shop/zope.conf',
        'started': vitals.now(), 'phase': 'running',
        'template': {'pid': 5, 'generation': 1, 'phase': 'ready'},
        'successor': None, 'parts': ['zeo'], 'workers': [*workers], **changes}


class House:
    """The house as a part sees it."""

    config = '/srv/shop/zope.conf'

    def __init__(self, poller: 'Poller', directory: str,
                 *workers: 'WorkerState') -> None:
        self.poller, self.directory = poller, directory
        self.workers = workers
        self.told: list[tuple[str, str]] = []

    def state(self) -> 'HouseState':
        """See `Premises`."""
        return house_state(*self.workers)

    def tell(self, name: str, text: str) -> None:
        """See `Premises`."""
        self.told.append((name, text))

    def fail(self, error: 'RunnerError') -> None:
        """See `Premises`."""
        raise error

    def wakeup(self) -> None:
        """See `Premises`."""
        self.poller.wakeup()
