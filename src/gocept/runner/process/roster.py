"""Which children of ours are a `Process`, and SIGCHLD as long as some are.

Where SIGCHLD is ignored, as some supervisors hand it on, the system reaps
children itself, and nobody learns their statuses. So the action is the default
one while there is a child.
"""

import contextlib
import signal
from collections.abc import Iterator
from weakref import WeakValueDictionary

from gocept.runner.logs import Log
from gocept.runner.waits.forks import Lock, tell_forks
from gocept.runner.waits.sigaction import SA_NOCLDWAIT, Action, action

log = Log('gocept.runner.process')


class _Roster:

    def __init__(self) -> None:
        self._lock = Lock()
        self._starts = 0
        # One that nobody refers to any more, as it is detached, is no member.
        self._members: WeakValueDictionary[int, object] = (
            WeakValueDictionary())
        self._before: Action | None = None
        """The action that was there before ours."""
        tell_forks(self)

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """The time from before a start until the child was added."""
        with self._lock:
            self._starts += 1
            was_ignored = self._heed()
        try:
            if was_ignored:
                log.warning(
                    'SIGCHLD is ignored, so that the status of a child would '
                    'be lost: its action is the default one while there are '
                    'children')
            yield
        finally:
            with self._lock:
                self._starts -= 1
                self._put_back()

    def add(self, pid: int, process: object) -> None:
        """The child is a `Process`, and nobody's orphan."""
        self._members[pid] = process

    def discard(self, pid: int) -> None:
        """It was reaped, or could not be started as a whole."""
        self._members.pop(pid, None)
        if self._before is not None:
            with self._lock:
                self._put_back()

    def is_complete(self) -> bool:
        """Whether all children that are a `Process` are known.

        Otherwise one may just have been started.
        """
        return not self._starts

    def __contains__(self, pid: object) -> bool:
        return pid in self._members

    def _heed(self) -> bool:
        """Whether the action had to be changed. With the lock held."""
        now = action(signal.SIGCHLD)
        if now is None or not (
                now.handler == signal.SIG_IGN or now.flags & SA_NOCLDWAIT):
            return False
        if self._before is None:
            self._before = action(signal.SIGCHLD)
        if now.handler == signal.SIG_IGN:
            now.handler = None  # SIG_DFL
        now.flags &= ~SA_NOCLDWAIT
        action(signal.SIGCHLD, now)
        return True

    def _put_back(self) -> None:
        """If there are no children, and nobody has installed another action.

        With the lock held.
        """
        if self._before is None or self._starts or self._members:
            return
        before, self._before = self._before, None
        now = action(signal.SIGCHLD)
        if now is not None and not now.flags & SA_NOCLDWAIT and (
                now.handler in (None, before.handler)):
            action(signal.SIGCHLD, before)

    def after_fork(self) -> None:
        """In a forked child, which has no children."""
        self._starts = 0
        self._members.clear()
        self._put_back()


roster = _Roster()
