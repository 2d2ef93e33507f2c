"""End children and all their descendants, side by side.

A child gets its signal first, with its process group if it leads one. When the
child has ended, its descendants get the signal, unless they had it with the
group. What is left at the deadline is killed. Each end is an event of one
poller; at each event new descendants are looked for.
"""

import contextlib
import errno
import signal
import time
from collections.abc import Callable, Iterable, Iterator

from gocept.runner.logs import Log
from gocept.runner.poller import Poller
from gocept.runner.process import descendants, procfs
from gocept.runner.process.descendants import Child
from gocept.runner.process.marks import our_mark
from gocept.runner.process.pidfd import Handle, Handles
from gocept.runner.waits.deadline import NEVER, Deadline

log = Log('gocept.runner.process')

KILL_TIMEOUT = 5.0
"""Seconds to wait for the end of what was killed."""

STRAYS_TIMEOUT = 5.0
"""Seconds that descendants have whose child is forgotten."""

_LOOK_AGAIN = 0.02  # for processes whose end is no event

_SOON, _BECOMING = 0.001, 1.0
"""Seconds between two looks at processes that are becoming other programs, and
until the looks are given up. To become one takes less than a millisecond, as a
rule."""

_PATIENCE = 0.1
"""Seconds after which all processes are looked through though some children
run. One look is enough if all children end before; but descendants that have
left a child which has ended are to get their signal soon."""


class Ending:
    """One child on its way to its end, with its descendants.

    Without a child it is for strays: descendants whose child is forgotten.
    """

    def __init__(self, child: Child | None, signum: int, timeout: float,
                 ) -> None:
        self.child = child
        self.failed = False
        self._signum = signum
        self._kill_signal = (
            signal.SIGKILL if child is None else child.kill_signal)
        self._deadline = Deadline(timeout)
        self.killing = False
        """Whether the time is over."""
        self._awaited = False
        self._members = Handles()
        self._dead: list[Handle] = []
        """Members that become children of ours when their parent ends, too."""
        self._told: dict[int, int] = {}
        """The image of each that was sent the signal. A fork that has not
        become its program yet loses a signal that it would have handled."""
        self._becoming = Deadline(_BECOMING)

    @property
    def over(self) -> bool:
        """Whether all have ended, or cannot be ended."""
        if self.failed or self.runs():
            return self.failed
        self._take_left()
        return not self._members

    def give_up(self) -> bool:
        """Whether there is no time left for another descendant.

        Otherwise one that forks faster than its forks are found would keep the
        caller here for ever.
        """
        self.failed = self.failed or (
            self.killing and self._deadline.passed)
        return self.failed

    @property
    def left(self) -> float:
        """Seconds until something is to be done, if no event comes.

        `_LOOK_AGAIN` at most if a member may end without an event, or become
        another program, which is no event either.
        """
        left = self._deadline.left()
        if (any(each.fileno() < 0 for each in self._members.values())
                or not (self._becoming.passed or self.runs())):
            return min(_LOOK_AGAIN, left)
        return left

    def runs(self) -> bool:
        """Whether there is a child, and it has not ended."""
        return self.child is not None and self.child.poll() is None

    def add(self, handle: Handle) -> bool:
        """Take a descendant in; False if it is known."""
        if (self.child is not None and handle.pid == self.child.pid
                and self.runs()):
            handle.close()
            return False
        return self._members.add(handle)

    def take(self, handle: Handle) -> bool:
        """Take in a descendant that a search has found.

        False if it is known, or it is too late for it.
        """
        if self.give_up() or handle.has_ended():
            descendants.reap(handle)
            handle.close()
            return False
        return self.add(handle)

    def begin(self) -> None:
        """Send the signal to the child and its group."""
        self._gather()
        child = self.child
        if child is None or not self.runs():
            return
        images = {pid: now.image for pid in self._members
                  if (now := procfs.look(pid)).group == child.pid}
        if not _send(child.signal_group, self._signum, child.pid):
            child.close_input()  # many a program ends then, too
        _wake_stopped(child.pid, child.send_signal)
        if child.leads_group:
            self._told |= images
            for pid in images:
                _wake_stopped(pid, self._members[pid].signal)

    def step(self) -> None:
        """Do what is due now."""
        # If the child ends after this look, its end is still an event.
        self._awaited = self.runs()
        self._gather()
        if self._deadline.passed and self.killing:
            self.failed = not self.over
        elif self._deadline.passed:
            self.killing = True
            self._deadline = Deadline(KILL_TIMEOUT)
        if self.killing:
            self._kill()
        elif not self.runs():
            self._tell()

    def _take_left(self) -> None:
        """Take in all that the child has left behind."""
        for handle in self.child.take_left() if self.child is not None else ():
            self.add(handle)

    def _gather(self) -> None:
        """Let go of members that have ended, and find children of the others.
        """
        self._take_left()
        for pid, handle in list(self._members.items()):
            if handle.has_ended():
                del self._members[pid]
                if not descendants.reap(handle) and (
                        self.child is not None and self.child.adopts):
                    self._dead.append(handle)
                else:
                    handle.close()
        new = list(self._members.values())
        if self.child is not None and self.runs():
            new += filter(self.add, descendants.tree(
                self.child.pid, self.runs))
        for parent in new:  # it grows
            new += filter(self.add, descendants.tree(
                parent.pid, lambda: not parent.has_ended()))  # noqa: B023

    def _tell(self) -> None:
        for pid, handle in self._members.items():
            image = procfs.look(pid).image
            if self._told.get(pid) != image:
                self._told[pid] = image
                _send(handle.signal, self._signum, pid)
                _wake_stopped(pid, handle.signal)

    def _kill(self) -> None:
        if self.child is not None and self.runs():
            _send(self.child.signal_group, self._kill_signal, self.child.pid)
        for pid, handle in self._members.items():
            _send(handle.signal, self._kill_signal, pid)

    def awaited(self) -> Iterator[Handle]:
        """The handles of all whose end is an event."""
        for handle in self._members.values():
            if handle.fileno() >= 0:
                yield handle
        if self.child is not None and self._awaited:
            yield self.child.handle

    def close(self) -> None:
        """Let go of the dead, and give those back that were not ended."""
        for handle in self._dead:
            descendants.reap(handle)
            handle.close()
        if self.child is not None:
            self.child.put_left(self._members.values())
        else:
            self._members.close()

    def __str__(self) -> str:
        pids = ', '.join(map(str, self._members))
        return (f'{self.child!r}'
                + (f' with descendants {pids}' if pids else '')
                + f', killed {KILL_TIMEOUT} s ago')


def end(endings: Iterable[Ending], mark: str = '') -> bool:
    """Carry the endings out; each says in the end whether it failed.

    If there may be marks, all processes are looked through for them once all
    children have ended, however many endings there are; and again as long as
    some is found. Returns False if the last look may have missed somebody: if
    no descriptor was left for it, or a process was becoming another program
    all the time.

    Strays are those of this process, or of the process with this `mark`.
    """
    endings = list(endings)
    with contextlib.ExitStack() as stack:
        for ending in endings:
            stack.callback(ending.close)
        poller = _Wait()
        stack.callback(poller.close)
        if any(ending.runs() for ending in endings):
            poller.open()
        for ending in endings:
            ending.begin()
        search = _Search(endings, poller, mark or our_mark())
        owners: dict[Handle, Ending] = {}
        pending = set(endings)
        due = set(endings)
        look = Deadline(_PATIENCE)
        while True:
            for ending in due:
                ending.step()
                if ending.over:
                    pending.discard(ending)
                    continue
                for handle in ending.awaited():
                    poller.register(handle)
                    owners[handle] = ending
            if pending and not look.passed:
                ready = poller.poll(min(
                    look.left(), *(ending.left for ending in pending)))
                due = {owners[handle] for _, handle in ready}
                due |= {ending for ending in pending
                        if not ready or ending.left <= _LOOK_AGAIN}
                due |= search.find_adopted()
                pending |= due
            else:
                found = search.find_all()
                if not found and not pending:
                    return search.is_sure
                pending |= found
                due = set(pending)  # the search may have fetched their events
                look = NEVER


def end_strays(mark: str) -> None:
    """End all children of a process that has ended, and what they started.

    `mark` is what their marks begin with; see `our_mark`.
    """
    end([Ending(None, signal.SIGTERM, STRAYS_TIMEOUT)], mark)


class Pauses:
    """Waits in place of a poller, if no descriptor is left for one.

    It asks which processes have ended, by `waitid` and the like, with pauses
    that grow. Nothing else in this package sleeps.
    """

    _FIRST, _LAST = 0.001, 0.05  # seconds

    def __init__(self) -> None:
        self._handles: set[Handle] = set()

    def register(self, handle: Handle) -> None:
        """Wait for the end of this process as well."""
        self._handles.add(handle)

    def poll(self, timeout: float) -> list[tuple[bool, Handle]]:
        """The processes that have ended, each once."""
        deadline = Deadline(timeout)
        pause = self._FIRST
        while True:
            ended = {each for each in self._handles if each.has_ended()}
            if ended or deadline.passed:
                self._handles -= ended
                return [(True, each) for each in ended]
            time.sleep(min(pause, deadline.left()))
            pause = min(2 * pause, self._LAST)

    def close(self) -> None:
        """Nothing is open."""


class _Wait:
    """A poller, or `Pauses`; it is not made if all have ended already."""

    def __init__(self) -> None:
        self._poller: Poller | Pauses | None = None

    @property
    def has_descriptors(self) -> bool:
        """Whether a descriptor is left to read /proc with."""
        if self._poller is None:
            return procfs.is_readable()
        return not isinstance(self._poller, Pauses)

    def open(self) -> Poller | Pauses:
        """Make it now, unless it is there."""
        if self._poller is None:
            try:
                self._poller = Poller()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                self._poller = Pauses()
        return self._poller

    def register(self, handle: Handle) -> None:
        """Wait for the end of this process as well."""
        self.open().register(handle)

    def poll(self, timeout: float) -> list[tuple[bool, Handle]]:
        """The processes that have ended, each once."""
        return self.open().poll(timeout)

    def close(self) -> None:
        if self._poller is not None:
            self._poller.close()


class _Search:
    """Finds descendants that have left their parents, for several endings."""

    def __init__(self, endings: Iterable[Ending], poller: _Wait,
                 our_mark: str) -> None:
        self.is_sure = False
        """Whether the last look has missed nobody."""
        self._our_mark = our_mark
        self._poller = poller
        self._strays = next(
            (ending for ending in endings if ending.child is None), None)
        self._by_child = {ending.child: ending for ending in endings
                          if ending.child is not None}
        self._by_mark = {child.mark: ending
                         for child, ending in self._by_child.items()}
        self._adopted = descendants.Adopted(
            [child for child in self._by_child if child.adopts])

    def find_all(self) -> set[Ending]:
        """Hand all that are found to their endings; returns these.

        This waits for processes that cannot be known yet, as no event tells
        when they have become another program, or a descriptor is free.
        """
        deadline = Deadline(_BECOMING)
        while True:
            can_look, misses = self._can_look(), procfs.misses
            found = {ending for child, ending in self._by_child.items()
                     if child.has_left and not ending.give_up()}
            found |= self.find_adopted() | self._find_marked()
            # Another thread may have taken the last descriptor meanwhile.
            self.is_sure = (can_look and procfs.misses == misses
                            and not self._adopted.unsure)
            if found or self.is_sure or deadline.passed:
                return found
            self._poller.poll(_SOON)

    def _can_look(self) -> bool:
        """Whether a descriptor is left to read /proc with."""
        if self._poller.has_descriptors:
            return True
        for child in self._by_child:
            if child.poll() is not None:
                child.close_channels()  # to give their descriptors back
        return procfs.is_readable()

    def find_adopted(self) -> set[Ending]:
        """Do the same for orphans that are our children now, at little cost.
        """
        return {self._by_child[child] for child, handle in self._adopted.look()
                if self._by_child[child].take(handle)}

    def _find_marked(self) -> set[Ending]:
        children = [child for child in self._by_child
                    if child.mark and not child.adopts]
        if self._strays is None and not children:
            return set()
        return {ending for ending, handle in descendants.marked(
            self._ending_of, None if self._strays else children)
            if ending.take(handle)}

    def _ending_of(self, mark: str) -> Ending | None:
        return self._by_mark.get(mark) or (
            self._strays if mark.startswith(self._our_mark) else None)


def _send(send: Callable[[int], None], signum: int, pid: int) -> bool:
    """Send a signal; False if it is refused."""
    try:
        send(signum)
        return True
    except PermissionError as error:
        log.warning('Process %d cannot be sent signal %d: %s',
                    pid, signum, error)
        return False


def _wake_stopped(pid: int, send: Callable[[int], None]) -> None:
    """Continue a stopped process, which would act on a signal later only."""
    if procfs.look(pid).state in 'Tt':
        _send(send, signal.SIGCONT, pid)
