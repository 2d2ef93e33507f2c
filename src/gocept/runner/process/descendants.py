"""The descendants of a child, wherever they have gone.

A descendant is found in one of three ways: as a child of a process that is
known, in the process group of the child, or by the mark in its environment.
It is held by a pidfd and looked at once more afterwards, so that no other
process is ever taken for it.
"""

import math
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Protocol, TypeVar

from gocept.runner.process import procfs
from gocept.runner.process.marks import MARKER
from gocept.runner.process.numbers import Instant, Numbers
from gocept.runner.process.pidfd import (
    Handle,
    Handles,
    PidAndStart,
    hold,
)
from gocept.runner.process.roster import roster

_LOOKS = 100  # where others start processes all the time


class Child(Protocol):
    """What a search for descendants, and an end, need of a `Process`."""

    pid: int
    mark: str
    """A word in the environment of all its descendants; '' for none."""
    adopts: bool
    """Whether orphans of this child become children of ours."""
    leads_group: bool
    started_at: int
    """In ticks of `clock`."""
    before_start: Instant
    ended_at: int
    """In ticks of `clock`; 0 while the child runs."""
    handle: Handle
    """Whose event is the end of the child."""
    stop_signal: signal.Signals
    stop_timeout: float
    exit_timeout: float
    """Seconds that the child has at our exit."""
    kill_signal: signal.Signals
    killed: bool
    """Whether `kill_signal` had to be sent; set by `terminate_all`."""
    finished: bool
    """Whether the child and all descendants have ended; set by
    `terminate_all`."""

    def require_ours(self) -> None:
        """Raise a RuntimeError in a forked copy of the parent."""

    # The next three are described in `IProcess`.

    def poll(self) -> int | None: ...

    def send_signal(self, signum: int) -> None: ...

    def signal_group(self, signum: int) -> None: ...

    def settle(self, seconds: float) -> bool:
        """Wait until the end was told, if there was one; False if that takes
        longer."""

    def close_input(self) -> None:
        """Let the child read the end of its input."""

    def close_channels(self) -> None:
        """Close the channels, which gives their descriptors back."""

    @property
    def has_left(self) -> bool:
        """Whether there is something for `take_left`.

        Also daemons that the child has become, which are looked for now, or
        were found by another thread meanwhile.
        """

    def take_left(self) -> list[Handle]:
        """Hand over the handles of all that the child has left behind."""

    def put_left(self, handles: Iterable[Handle]) -> None:
        """Take the handles of those back that could not be ended."""


T = TypeVar('T')


def hold_if(pid: int, is_it: Callable[[int], bool]) -> Handle | None:
    """Hold a process, and check then that it is the right one; or None."""
    for make in (hold, PidAndStart):
        try:
            handle = make(pid)
        except ProcessLookupError:
            return None
        except OSError:  # no descriptor is left
            continue
        if is_it(pid):
            return handle
        can_look = procfs.is_readable()
        handle.close()
        if can_look:
            return None
        # The handle has taken the last descriptor, so nothing can be checked.
    return None


def hold_all(pids: Iterable[int], is_it: Callable[[int], bool],
             ) -> Iterator[Handle]:
    """Hold those processes that are the right ones."""
    for pid in pids:
        handle = hold_if(pid, is_it)
        if handle is not None:
            yield handle


def tree(pid: int, alive: Callable[[], bool]) -> Iterator[Handle]:
    """The children of a process that is held, without their children."""
    return hold_all(procfs.children(pid),
                    lambda it: procfs.look(it).parent == pid and alive())


def group(child: Child, until: int) -> Iterator[Handle]:
    """The living members of the group of a child, started until then.

    `until` is in ticks of `clock`: later, the number may be used again.
    """
    def belongs(pid: int) -> bool:
        now = procfs.look(pid)
        return (now.group == child.pid and now.start <= until
                and now.state not in 'ZX')

    try:
        os.killpg(child.pid, 0)
    except ProcessLookupError:  # the usual case
        return
    except PermissionError:
        pass
    yield from hold_all(filter(belongs, Numbers([child]).pids()), belongs)


def session(child: Child, until: int) -> Iterator[Handle]:
    """The same of the session of a child that leads one."""
    def belongs(pid: int) -> bool:
        now = procfs.look(pid)
        return (now.session == child.pid and now.start <= until
                and now.state not in 'ZX')
    yield from hold_all(filter(belongs, Numbers([child]).pids()), belongs)


class Adopted:
    """Finds the orphans of children with ``adopt=True``, which are ours then.

    Such an orphan is a child of ours that is no `Process`, or it descends from
    one; and it is younger than the child that it belongs to. Its mark tells
    that child, or else its session or group. All others may be children of
    another library, and are left alone. Each process is looked at once.
    """

    def __init__(self, adopting: Collection[Child]) -> None:
        self._by_mark = {each.mark: each for each in adopting if each.mark}
        self._by_group = {
            each.pid: each for each in adopting if each.leads_group}
        self._numbers = Numbers(adopting)
        self._since = min(
            (each.started_at for each in adopting), default=math.inf)
        self._older: set[int] = set()
        self._seen: set[int] = set()
        self.unsure = False
        """Whether one could not be known yet, as it was becoming another
        program."""

    def look(self) -> Iterator[tuple[Child, Handle]]:
        """The orphans that no look has found before, each with its child."""
        self.unsure = False
        others = [] if self._since == math.inf else [
            pid for pid in strangers() if pid not in self._older]
        pids = self._numbers.among(others)
        self._older.update({*others} - {*pids})
        while pids:
            pid = pids.pop()
            if pid not in self._seen:
                child = self._forebear(pid)
                if child is not None:
                    handle = hold_if(
                        pid, lambda pid: self._forebear(pid) is child)  # noqa: B023
                    if handle is not None:
                        yield child, handle
                    else:
                        self._seen.discard(pid)
                if not (pid in self._seen or pid in self._older):
                    self.unsure |= procfs.stat(pid) is not None
            if pid not in self._older:
                pids += procfs.children(pid)

    def _forebear(self, pid: int) -> Child | None:
        now = procfs.stat(pid)
        if now is None:
            return None
        if now.start < self._since:
            self._older.add(pid)
            return None
        words = procfs.variable(pid, MARKER)
        if words is None:
            return None  # it is becoming another program
        self._seen.add(pid)
        for word in words.split():
            if word in self._by_mark:
                return self._by_mark[word]
        if now.parent == os.getpid():
            for leader in now.group, now.session:
                process = self._by_group.get(leader)
                if process is not None and not (
                        0 < process.ended_at < now.start):
                    return process
        return None


def strangers() -> Iterator[int]:
    """The pids of our children that are no `Process`.

    They are adopted, or another library has started them.
    """
    for pid in procfs.children(os.getpid()):
        if pid not in roster:
            yield pid


def is_stranger(pid: int) -> bool:
    """Whether a process is a child of ours that is no `Process`."""
    return pid not in roster and procfs.look(pid).parent == os.getpid()


def marks(pid: int) -> list[str]:
    """The marks that a process carries."""
    return (procfs.variable(pid, MARKER) or '').split()


def marked(owner_of: Callable[[str], T | None],
           children: Iterable[Child] | None = None,
           ) -> Iterator[tuple[T, Handle]]:
    """The processes with a mark that has an owner, each with that owner.

    All processes are looked at, or those that may descend from `children`;
    then those that were started meanwhile, as their parents may have ended
    meanwhile; and those that were becoming other programs once more.
    """
    pids = procfs.pids if children is None else Numbers(children).pids
    seen = {os.getpid()}
    for _ in range(_LOOKS):
        new = [pid for pid in pids() if pid not in seen]
        if not new:
            return
        seen.update(new)
        for pid in new:
            words = procfs.variable(pid, MARKER)
            if words is None:
                seen.remove(pid)
                continue
            for mark in words.split():
                owner = owner_of(mark)
                if owner is not None:
                    handle = hold_if(pid, lambda pid: mark in marks(pid))  # noqa: B023
                    if handle is not None:
                        yield owner, handle
                    else:
                        seen.discard(pid)


def reap(handle: Handle) -> bool:
    """Reap a process that has ended, if we have adopted it.

    False if it is not, or not yet: its parent may be about to end.
    """
    # A `Process` may be found by its own mark, and needs its status itself.
    if handle.pid not in roster:
        try:
            handle.reap()
        except ChildProcessError:
            return False
    return True


def of(process: Child) -> Handles:
    """All present descendants of a child."""
    found = Handles()
    parents = [*filter(found.add, tree(
        process.pid, lambda: process.poll() is None))]
    for parent in parents:  # it grows
        parents += filter(found.add, tree(
            parent.pid, lambda: not parent.has_ended()))  # noqa: B023
    for _, handle in (Adopted([process]).look() if process.adopts
                      else marked({process.mark: process}.get, [process])):
        if handle.pid == process.pid:
            handle.close()
        else:
            found.add(handle)
    return found


def clock() -> int:
    """Now, in the unit in which /proc tells when a process was started."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME)
               * os.sysconf('SC_CLK_TCK'))
