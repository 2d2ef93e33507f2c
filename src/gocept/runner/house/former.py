"""The workers of a house that has died: a new one waits for their end.

When `up` is killed, its workers notice that, complete their tick, and end.
Until then their successors must not start, or a worker would run twice.

A worker whose pid `up` has not written any more is found by the pipe that
tells it the end of `up`: the inode is written before the worker is forked. One
that is forked even later ends before its first tick, as `up` has ended.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping

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
        pipes = {f'pipe:[{worker["life"]}]': worker['name']
                 for worker in found['workers'] if worker['pid'] is None
                 and worker['life'] is not None}
        for worker in found['workers']:
            pid, start = worker['pid'], worker['start']
            if pid is not None and start is not None:
                self._wait_for(house, worker['name'], descendants.hold_if(
                    pid, _started(start)))
        for name, pid in _holders(pipes):
            self._wait_for(house, name, descendants.hold_if(pid, _has(pipes)))
        if self._handles:
            log.warning(
                'Process %d, which has run these workers, has died; waiting '
                'until they end: %s', found['pid'], ', '.join(
                    f'{name} ({handle.pid})'
                    for handle, name in self._handles.items()))

    def _wait_for(self, house: Premises, name: str, handle: Handle | None,
                  ) -> None:
        if handle is not None:
            self._handles[handle] = name
            house.poller.register(handle, self._note_end)

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


def _holders(pipes: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Who has one of these pipes: the name that belongs to it, and the pid."""
    if pipes:
        for pid in procfs.pids():
            for pipe in _pipes(pid) & pipes.keys():
                if pid != os.getpid():
                    yield pipes[pipe], pid


def _has(pipes: Mapping[str, str]) -> Callable[[int], bool]:
    """Whether a process has one of these pipes."""
    return lambda pid: bool(_pipes(pid) & pipes.keys())


def _pipes(pid: int) -> set[str]:
    """What the descriptors of a process are; nothing if it is not ours."""
    found = set()
    with contextlib.suppress(OSError):
        directory = procfs.path(f'{pid}/fd')
        for fd in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):
                found.add(os.readlink(f'{directory}/{fd}'))
    return found
