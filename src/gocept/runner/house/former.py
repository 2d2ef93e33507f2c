"""The workers of a house that has died: a new one waits for their end.

When `up` is killed, its workers notice that, complete their tick, and end.
Until then their successors must not start, or a worker would run twice.
"""

from collections.abc import Callable

from gocept.runner.house import record
from gocept.runner.house.part import Premises
from gocept.runner.logs import Log
from gocept.runner.operation import vitals
from gocept.runner.process import descendants, procfs
from gocept.runner.process.pidfd import Handle
from gocept.runner.waits.deadline import Deadline

log = Log('gocept.runner.house')


class Former:
    """See `Part`."""

    name = 'former'

    def __init__(self) -> None:
        self._handles: dict[Handle, str] = {}
        self._house: Premises | None = None

    def start(self, house: Premises) -> None:
        """Look whom the last house has left behind, and wait for them."""
        self._house = house
        found = record.read(house.directory)
        if found is None or found['boot'] != vitals.boot():
            return
        for worker in found['workers']:
            pid, start = worker['pid'], worker['start']
            if pid is None or start is None:
                continue
            handle = descendants.hold_if(pid, _started(start))
            if handle is not None:
                self._handles[handle] = worker['name']
                house.poller.register(handle, self._note_end)
        if self._handles:
            log.warning(
                'Process %d, which has run these workers, has died; waiting '
                'until they end: %s', found['pid'], ', '.join(
                    f'{name} ({handle.pid})'
                    for handle, name in self._handles.items()))

    def _note_end(self, ended: bool, handle: Handle) -> None:
        self._handles.pop(handle, None)
        handle.close()

    @property
    def ready(self) -> bool:
        """Whether all have ended."""
        return not self._handles

    def stop(self, deadline: Deadline) -> None:
        """Wait no more."""
        while self._handles:
            self._handles.popitem()[0].close()

    @property
    def ended(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self._handles

    def kill(self) -> None:
        """They are not ours to kill."""


def _started(start: int) -> Callable[[int], bool]:
    """Whether a process is the one that was started then, and lives."""
    def is_it(pid: int) -> bool:
        now = procfs.look(pid)
        return now.start == start and now.state not in 'ZX'
    return is_it
