"""Orphans that become our children, and their end.

A subreaper (see PR_SET_CHILD_SUBREAPER in prctl(2)) becomes the parent of all
its descendants that lose their own parent. It has to reap them, too. So does
the process with the number 1.

Orphans of other libraries' children come as well, and we may not reap a child
that one of these libraries waits for. These are no such children:

* one that was seen with a mark of ours, or in the group of a child of ours;
* one in a session that is neither ours nor its own. A process is born in the
  session of its parent, and can leave it only for one with its own number. So
  the parent in whose session it was born was not this process.

No event tells that an orphan has come. So we look once a second. An orphan
that runs is held, and reaped as it ends; so it is also if it ends after the
adoption. The rest stays as it is: zombies without a mark in our own session,
until this process ends.
"""

import contextlib
import ctypes
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator

from gocept.runner.poller import Poller, Timer, background
from gocept.runner.poller.thread import hand_over
from gocept.runner.process import descendants, procfs
from gocept.runner.process.descendants import Child
from gocept.runner.process.marks import MARKER, our_mark
from gocept.runner.process.pidfd import Handle, Handles
from gocept.runner.process.roster import roster
from gocept.runner.waits import libc
from gocept.runner.waits.forks import Lock, tell_forks

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37

_INTERVAL = 1.0  # seconds between two looks


class _Adoption:

    def __init__(self) -> None:
        self._lock = Lock()
        self._reset()
        tell_forks(self)

    def _reset(self) -> None:
        self._adopting: dict[int, weakref.ref[Child]] = {}
        self._strangers = 0  # those who have asked to reap strangers
        self._subreaping = 0  # those of them who have no other children
        self._before = 0  # the flag
        self._session = 0
        self._since = 0
        self._seen: set[int] = set()
        self._held = Handles()
        self._timer: Timer | None = None
        self._poller: Poller | None = None

    @property
    def adopts(self) -> bool:
        """Whether orphans come."""
        return bool(self._adopting)

    def begin(self, child: Child) -> None:
        """Adopt orphans until `end` is called for this child, or it is gone.
        """
        with self._lock:
            if not self._is_on():
                self._note_session()
            if not self._adopting:
                self._before = _subreaper()
                _set_subreaper(1)
            key = id(child)
            self._adopting[key] = weakref.ref(
                child, lambda gone: hand_over(lambda: self._end(key, gone)))
        self.watch()

    def end(self, child: Child) -> None:
        """The child and all its known descendants have ended."""
        self._end(id(child), self._adopting.get(id(child)))

    def _end(self, key: int, known: 'weakref.ref[Child] | None') -> None:
        if known is None:
            return
        if len(self._adopting) == 1:
            self.look()
        with self._lock:
            if self._adopting.get(key) is known:
                del self._adopting[key]
                if not self._adopting:
                    _set_subreaper(self._before)
        self.watch()

    @contextlib.contextmanager
    def reaping_strangers(self) -> Iterator[None]:
        """Look for orphans meanwhile, if this is the process number 1."""
        if os.getpid() != 1:
            yield
            return
        with self._lock:
            if not self._is_on():
                self._note_session()
            self._strangers += 1
        self.watch()
        try:
            yield
        finally:
            with self._lock:
                self._strangers -= 1
            self.watch()

    @contextlib.contextmanager
    def subreaping(self) -> Iterator[None]:
        """Be the parent of all orphans among our descendants meanwhile.

        They are reaped as they end, and not ended. For a program without
        children of other libraries: whoever is not in the roster is an orphan.
        """
        with self._lock:
            if not self._is_on():
                self._note_session()
            before = _subreaper()
            _set_subreaper(1)
            self._strangers += 1
            self._subreaping += 1
        self.watch()
        try:
            yield
        finally:
            with self._lock:
                self._strangers -= 1
                self._subreaping -= 1
                _set_subreaper(before)
            self.watch()

    def _is_on(self) -> bool:
        return bool(self._adopting or self._strangers)

    def _note_session(self) -> None:
        self._session = os.getsid(0)
        self._since = descendants.clock()
        self._seen.clear()

    def watch(self) -> None:
        """Have the background thread look now and then, or no more.

        Also called for each child: that thread may have been ended meanwhile,
        or there could be none.
        """
        if not (self._is_on() or self._poller):
            return
        with self._lock:
            poller, timer = self._poller, self._timer
            is_watched = poller is not None and not poller.closed
            if self._is_on() is is_watched:
                return
            self._poller = self._timer = None
            if self._is_on():
                # If no thread can be started: there is a look at the end.
                with contextlib.suppress(RuntimeError, OSError):
                    self._poller = background()
                    self._timer = Timer(_INTERVAL, _INTERVAL)
                    self._poller.register(
                        self._timer, lambda count, timer: self.look())
            elif poller is not None and timer is not None:
                poller.unregister(timer)

    def look(self) -> None:
        """Reap orphans that have ended, and hold those that run."""
        self._reap_held()
        pids = procfs.children(os.getpid())
        if not roster.is_complete():
            return
        self._seen.intersection_update(pids)
        for pid in pids:
            if pid not in roster and pid not in self._seen:
                self._look_at(pid)

    def _look_at(self, pid: int) -> None:
        now = procfs.stat(pid)
        if now is None:
            return
        if not self._subreaping:
            words = procfs.variable(pid, MARKER)
            if words is None:
                return  # it is becoming another program
            if not (any(word.startswith(our_mark()) for word in words.split())
                    or self._is_no_child(pid, now)):
                self._seen.add(pid)
                return
        handle = descendants.hold_if(pid, descendants.is_stranger)
        if handle is None:
            return
        if handle.has_ended() or handle.fileno() < 0:
            descendants.reap(handle)
            handle.close()
            return
        self._seen.add(pid)
        with self._lock:
            is_new = self._held.add(handle)
        if is_new:
            with contextlib.suppress(RuntimeError, OSError):
                background().register(handle, self._reap)

    def _is_no_child(self, pid: int, now: procfs.Stat) -> bool:
        """Whether another process than this one has forked it."""
        if now.start < self._since:
            return False
        adopting = filter(None, [each() for each in [
            *self._adopting.values()]])
        return any(now.group == child.pid and child.leads_group
                   and not 0 < child.ended_at < now.start
                   for child in adopting) or (
            now.session not in (pid, self._session)
            and self._session == os.getsid(0))

    def _reap_held(self) -> None:
        # Somebody may have closed the poller that waits for them.
        for handle in [*self._held.values()]:
            if handle.has_ended():
                self._reap(True, handle)

    def _reap(self, ended: bool, handle: Handle) -> None:
        with self._lock:
            if self._held.get(handle.pid) is handle:
                del self._held[handle.pid]
        descendants.reap(handle)
        handle.close()

    def reap_all(self) -> None:
        """At our exit, reap all children but those that a library knows."""
        self._reap_held()
        dead = {pid for pid in procfs.children(os.getpid())
                if procfs.look(pid).state in 'ZX'}
        for pid in dead and dead.difference(_known_to_libraries()):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)

    def after_fork(self) -> None:
        """In a child: the orphans are the parent's; the flag is not set."""
        self._held.close()
        self._reset()


adoption = _Adoption()


def _subreaper() -> int:
    """The present flag."""
    flag = ctypes.c_int()
    libc.call('prctl', _PR_GET_CHILD_SUBREAPER, ctypes.byref(flag))
    return flag.value


def _set_subreaper(flag: int) -> None:
    libc.call('prctl', _PR_SET_CHILD_SUBREAPER, flag)


def _known_to_libraries() -> set[int]:
    """The children that some object of a library waits for."""
    forked = sys.modules.get('multiprocessing.popen_fork')
    kinds = (subprocess.Popen, getattr(forked, 'Popen', subprocess.Popen))
    # `isinstance` would ask proxies for what they stand for.
    return {getattr(each, 'pid', 0) for each in gc.get_objects()
            if issubclass(type(each), kinds)}
