"""A process that another child of ours has forked for us, and left to us.

The child forks twice, and the process between ends; see `fork`. As we are a
subreaper, the orphan becomes a child of ours. From before the child is asked
for it until its number is known, none of our children is taken for an orphan
that nobody waits for.
"""

import contextlib
import signal
from collections.abc import Callable

import zope.interface

from gocept.runner.interfaces import IProcess
from gocept.runner.poller import Poller
from gocept.runner.process import descendants, numbers, registry
from gocept.runner.process.adoption import adoption
from gocept.runner.process.marks import new_mark
from gocept.runner.process.offspring import Offspring
from gocept.runner.process.pidfd import Handle, hold
from gocept.runner.process.roster import roster
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.forks import tell_forks


class Expected(Closing):
    """An orphan before it is there. To be closed if it does not come."""

    def __init__(self) -> None:
        registry.hook()
        self._waiting = contextlib.ExitStack()
        self._waiting.enter_context(roster.starting())
        self.before_start = numbers.now()
        self.started_at = descendants.clock()
        self.mark = new_mark()
        """The one that the orphan is to set in its environment."""

    def close(self) -> None:
        """It does not come, or has come."""
        self._waiting.close()


@zope.interface.implementer(IProcess)
class Orphan(Offspring):
    """See `IProcess`; it has no channels and no arguments.

    It leads a process group. `pidfd` belongs to it from now on; -1 for none.
    """

    args = ()
    detached = False
    leads_group = True
    adopts = True

    def __init__(self, expected: Expected, name: str, pid: int,
                 pidfd: int = -1, *,
                 stop_signal: int = signal.SIGTERM,
                 stop_timeout: float | None = None,
                 kill_signal: int = signal.SIGKILL,
                 poller: Poller | None = None,
                 on_end: Callable[['Orphan'], object] | None = None) -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(expected.close)
            self.handle = _handle(pid, pidfd)
            undo.callback(self.handle.close)
            super().__init__(
                name, stop_signal=stop_signal, stop_timeout=stop_timeout,
                kill_signal=kill_signal, poller=poller, on_end=on_end)
            self.pid = pid
            self.mark = expected.mark
            self.before_start = expected.before_start
            self.started_at = expected.started_at
            adoption.begin(self)
            undo.callback(adoption.end, self)
            roster.add(pid, self)
            undo.callback(roster.discard, pid)
            registry.processes.add(self)
            undo.callback(registry.processes.discard, self)
            tell_forks(self)
            self._polled_by.register(self)
            undo.pop_all()
        expected.close()


def _handle(pid: int, pidfd: int) -> Handle:
    if pidfd >= 0:
        return Handle(pid, pidfd)
    try:
        return hold(pid)
    except ProcessLookupError:  # somebody has reaped it
        return Handle(pid)
