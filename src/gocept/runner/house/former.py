"""The workers of a house that has died: a new one waits for their end.

When `up` is killed, its workers notice that, complete their tick, and end.
Until then their successors must not start, or a worker would run twice.

A worker whose pid `up` has not written any more is found by the pipe that
tells it the end of `up`: the inode is written before the worker is forked. One
that is forked even later ends before its first tick, as `up` has ended.

The next `up` may be killed as well, while it waits. Its state, which has taken
the place of that of the first one, does not tell of these workers. So they are
in a file of their own until they have ended.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TypedDict

from gocept.runner.house import record
from gocept.runner.house.part import Premises
from gocept.runner.logs import Log
from gocept.runner.operation import vitals
from gocept.runner.process import descendants, procfs
from gocept.runner.process.pidfd import Handle
from gocept.runner.waits.deadline import Deadline

log = Log('gocept.runner.house')

NAME = 'former.json'
"""The file with the workers, in the directory of the house."""


class _Left(TypedDict):
    """A worker that is waited for."""

    name: str
    pid: int
    start: int
    """When it was started, as in /proc/PID/stat."""


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
        if found is not None and found['boot'] == vitals.boot():
            self._find(house, found)
        for left in _read(house.directory):
            self._wait_for(house, left['name'], left['pid'], _started(
                left['start']))
        if self._handles:
            log.warning(
                'An "up" that has run these workers has died; waiting until '
                'they end: %s', ', '.join(
                    f'{name} ({handle.pid})'
                    for handle, name in self._handles.items()))
        self._write(house.directory)

    def _find(self, house: Premises, found: record.HouseState) -> None:
        """Find the workers of the last house."""
        pipes = {f'pipe:[{worker["life"]}]': worker['name']
                 for worker in found['workers'] if worker['pid'] is None
                 and worker['life'] is not None}
        for worker in found['workers']:
            pid, start = worker['pid'], worker['start']
            if pid is not None and start is not None:
                self._wait_for(house, worker['name'], pid, _started(start))
        for name, pid in _holders(pipes):
            self._wait_for(house, name, pid, _has(pipes))

    def _write(self, directory: str) -> None:
        """Write who is waited for, before the state of the house is replaced.
        """
        path = os.path.join(directory, NAME)
        try:
            if not self._handles:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                return
            with open(f'{path}.new', 'w', encoding='utf-8') as file:
                json.dump({'boot': vitals.boot(), 'workers': [
                    _Left(name=name, pid=handle.pid,
                          start=procfs.look(handle.pid).start)
                    for handle, name in self._handles.items()]}, file)
            os.replace(f'{path}.new', path)
        except OSError as error:
            log.warning('%s, which tells the next "up" of these workers if '
                        'this one is killed, cannot be written: %s', path,
                        error.strerror)

    def _wait_for(self, house: Premises, name: str, pid: int,
                  is_it: Callable[[int], bool]) -> None:
        if any(pid == handle.pid for handle in self._handles):
            return
        handle = descendants.hold_if(pid, is_it)
        if handle is not None:
            self._handles[handle] = name
            house.poller.register(handle, self._note_end)

    def _note_end(self, ended: bool, handle: Handle) -> None:
        self._handles.pop(handle, None)
        handle.close()
        if self._house is not None and not self._handles:
            self._write(self._house.directory)

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


def _read(directory: str) -> list[_Left]:
    """Whom the last house has waited for."""
    with (contextlib.suppress(OSError, ValueError, TypeError, KeyError),
          open(os.path.join(directory, NAME), encoding='utf-8') as file):
        found = json.load(file)
        if found['boot'] == vitals.boot():
            return [_Left(name=str(each['name']), pid=int(each['pid']),
                          start=int(each['start']))
                    for each in found['workers']]
    return []


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
