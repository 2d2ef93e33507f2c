"""End children and all that descends from them, side by side.

A child is sent its signal first, with its process group if it leads one. When
it has ended, so are its descendants, which may have been told by it. What is
left at the deadline is killed. Each end is an event of one poller, which is
when new descendants are looked for.
"""

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gocept.runner.poller import Poller
from gocept.runner.process import descendants, procfs
from gocept.runner.process.pidfd import Handle
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.forks import Lock

log = logging.getLogger('gocept.runner.process')

KILL_TIMEOUT = 5.0
"""How long to wait for the end of what was killed, in seconds."""

_LOOK_AGAIN = 0.02  # for processes whose end is no event

_SOON, _BECOMING = 0.001, 1.0
"""Seconds between two looks at processes that are becoming other programs, and
until these are given up; it takes less than a millisecond, as a rule."""

_NEEDED = 4  # descriptors, of a poller and a file in /proc


class Ending:
    """One child on its way to its end; see `Process` for what it uses.

    Without a process it is for strays, of which nobody is left to be told.
    """

    def __init__(self, process: Any, signum: int, timeout: float) -> None:
        self.process = process
        self.failed = False
        self._signum = signum
        self._kill_signal = (
            signal.SIGKILL if process is None else process.kill_signal)
        self._deadline = Deadline(timeout)
        self.killing = False
        """Whether the time is over."""
        self._awaited = False
        self._members: dict[int, Handle] = {}
        self._told: dict[int, int] = {}
        """The image of each that was sent the signal. A fork that has not
        become its program yet loses one that it would have handled."""
        self._becoming = Deadline(_BECOMING)

    @property
    def over(self) -> bool:
        """Whether all have ended, or cannot be ended."""
        return self.failed or (not self._runs() and not self._take_group()
                               and not self._members)

    def give_up(self) -> bool:
        """Whether there is no time left for another descendant.

        Or else one that forks faster than it can be found would keep us here.
        """
        self.failed = self.failed or (
            self.killing and self._deadline.passed)
        return self.failed

    @property
    def left(self) -> float:
        """Seconds until something is to be done, if nothing happens."""
        if self._is_restless:
            return min(_LOOK_AGAIN, self._deadline.left())
        return self._deadline.left()

    @property
    def is_late(self) -> bool:
        """Whether something is to be done, whatever happens."""
        return self._is_restless or self._deadline.passed

    @property
    def _is_restless(self) -> bool:
        """Whether it has members of which something is no event.

        That is their end, or that they have become another program.
        """
        if self._members and not self._runs() and not self._becoming.passed:
            return True
        return any(handle.fileno() < 0 for handle in self._members.values())

    def _runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def add(self, handle: Handle) -> bool:
        """Take a descendant in; False if it is known."""
        if handle.pid in self._members or (
                self._runs() and handle.pid == self.process.pid):
            handle.close()
            return False
        self._members[handle.pid] = handle
        return True

    def begin(self) -> None:
        """Send the signal to the child, and to its group."""
        if self.process is None:
            return
        self.process.being_ended = True
        self._gather()
        if self._runs():
            in_group = {pid for pid in self._members
                        if procfs.group(pid) == self.process.pid}
            images = {pid: procfs.image(pid) for pid in in_group}
            _send(self.process.signal_group, self._signum, self.process.pid)
            _wake_stopped(self.process.pid, self.process.send_signal)
            if self.process.leads_group:
                self._told |= images
                for pid in in_group:
                    _wake_stopped(pid, self._members[pid].signal)

    def step(self) -> None:
        """Do what is due now."""
        # Should it end after this look, its end is still to be waited for.
        self._awaited = self._runs()
        self._gather()
        if self._deadline.passed and self.killing:
            self.failed = not self.over
        elif self._deadline.passed:
            self.killing = True
            self._deadline = Deadline(KILL_TIMEOUT)
        if self.killing:
            self._kill()
        elif not self._runs():
            self._tell()

    def _take_group(self) -> bool:
        """Take in whom the child has left in its group; whether there are."""
        group = self.process.take_group() if self.process is not None else ()
        for handle in group:
            self.add(handle)
        return bool(group)

    def _gather(self) -> None:
        """Find the children of all, and let go of those that have ended."""
        self._take_group()
        for pid, handle in list(self._members.items()):
            if handle.has_ended():
                descendants.reap(handle)
                handle.close()
                del self._members[pid]
        new = list(self._members.values())
        if self._runs():
            new += self._add_all(descendants.tree(
                self.process.pid, self._runs))
        while new:
            parent = new.pop()
            new += self._add_all(descendants.tree(
                parent.pid, lambda: not parent.has_ended()))  # noqa: B023

    def _add_all(self, handles: Iterator[Handle]) -> list[Handle]:
        return [handle for handle in handles if self.add(handle)]

    def _tell(self) -> None:
        for pid, handle in self._members.items():
            image = procfs.image(pid)
            if self._told.get(pid) != image:
                self._told[pid] = image
                _send(handle.signal, self._signum, pid)
                _wake_stopped(pid, handle.signal)

    def _kill(self) -> None:
        if self._runs():
            _send(self.process.signal_group, self._kill_signal,
                  self.process.pid)
        for pid, handle in self._members.items():
            _send(handle.signal, self._kill_signal, pid)

    def register(self, poller: Poller, owners: dict[int, 'Ending']) -> None:
        """Have the poller wait for the ends, as this one's."""
        sources = [handle for handle in self._members.values()
                   if handle.fileno() >= 0]
        if self._awaited:
            sources.append(self.process)
        for source in sources:
            poller.register(source)
            owners[id(source)] = self

    def close(self) -> None:
        """Let go of those that could not be ended."""
        if self.process is not None:
            self.process.being_ended = False
        for handle in self._members.values():
            handle.close()

    def __str__(self) -> str:
        pids = ', '.join(map(str, self._members))
        return (f'{self.process!r}'
                + (f' with descendants {pids}' if pids else '')
                + f', killed {KILL_TIMEOUT} s ago')


def end(endings: Iterable[Ending],
        ending_of: Callable[[str], Ending | None] | None) -> None:
    """Carry the endings out; each says in the end whether it failed.

    `ending_of` tells which one a mark belongs to; None if there are no marks.
    All processes are looked through for marks at the beginning and in the end,
    however many endings there are, and again as long as some is found.
    """
    endings = list(endings)
    leavers = _Leavers(endings, ending_of)
    _release()
    try:
        with Poller() as poller:
            for ending in endings:
                ending.begin()
            leavers.find()
            _wait(poller, endings, leavers)
            while found := leavers.find_all(poller):
                _wait(poller, found, leavers)
    finally:
        for ending in endings:
            ending.close()
        with contextlib.suppress(OSError):
            reserve()


class _Leavers:
    """Descendants that are below nobody any more who is to end."""

    def __init__(self, endings: Iterable[Ending],
                 ending_of: Callable[[str], Ending | None] | None) -> None:
        self.owners: dict[int, Ending] = {}
        """Of what the poller waits for, by its id."""
        self._ending_of = ending_of
        self._by_process = {ending.process: ending for ending in endings
                            if ending.process is not None
                            and ending.process.adopts}
        self._adopted = descendants.Adopted(self._by_process)

    def find(self) -> set[Ending]:
        """Have the endings take them in; those that got some."""
        return self.find_adopted() | self._find_marked()

    def find_all(self, poller: Poller) -> set[Ending]:
        """The same, but wait for those that cannot be known yet.

        No event tells when they have become another program.
        """
        deadline = Deadline(_BECOMING)
        while not (found := self.find()) and (
                self._adopted.unsure and not deadline.passed):
            poller.poll(_SOON)
        return found

    def find_adopted(self) -> set[Ending]:
        """Those that are our own children now: what costs little."""
        if not self._by_process:
            return set()
        return _hand_over((self._by_process[process], handle)
                          for process, handle in self._adopted.look())

    def _find_marked(self) -> set[Ending]:
        ending_of = self._ending_of
        if ending_of is None:
            return set()
        return _hand_over(
            (ending_of(mark), handle) for mark, handle in descendants.marked(
                lambda mark: ending_of(mark) is not None))


def _hand_over(found: Iterable[tuple[Ending | None, Handle]]) -> set[Ending]:
    takers = set()
    for ending, handle in found:
        if ending is None or ending.give_up() or handle.has_ended():
            descendants.reap(handle)
            handle.close()
        elif ending.add(handle):
            takers.add(ending)
    return takers


_reserved: list[int] = []
_reserving = Lock()


def reserve() -> None:
    """Keep descriptors back for `end`, which has to work without any left."""
    with _reserving:
        while len(_reserved) < _NEEDED:
            _reserved.append(os.open(os.devnull, os.O_RDONLY))


def _release() -> None:
    with _reserving:
        while _reserved:
            os.close(_reserved.pop())


def _wait(poller: Poller, endings: Iterable[Ending],
          leavers: _Leavers) -> None:
    pending = set(endings)
    due = set(pending)
    while True:
        for ending in due:
            ending.step()
            if ending.over:
                pending.discard(ending)
            else:
                ending.register(poller, leavers.owners)
        if not pending:
            return
        ready = poller.poll(min(ending.left for ending in pending))
        due = {leavers.owners[id(source)] for _, source in ready}
        due |= {ending for ending in pending if not ready or ending.is_late}
        due |= leavers.find_adopted()
        pending |= due


def _send(send: Callable[[int], None], signum: int, pid: int) -> None:
    try:
        send(signum)
    except PermissionError as error:
        log.warning('Process %d cannot be sent signal %d: %s',
                    pid, signum, error)


def _wake_stopped(pid: int, send: Callable[[int], None]) -> None:
    """A stopped process would act on a signal only later."""
    now = procfs.stat(pid)
    if now is not None and now.state in 'Tt':
        _send(send, signal.SIGCONT, pid)
