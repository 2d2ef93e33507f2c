"""The ends of all children of a daemon of one thread.

Unlike the handles of `gocept.runner.process.pidfd`, this takes one descriptor
for any number of children, and reaps also those that the daemon has adopted.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Sequence

from gocept.runner.logs import Log
from gocept.runner.waits.source import Item, Source
from gocept.runner.waits.threads import survived

log = Log('gocept.runner.process')


def _status(result: os.waitid_result) -> int:
    """The status of a child, as Popen has it."""
    return (result.si_status if result.si_code == os.CLD_EXITED
            else -result.si_status)


class Reaper(Source):
    """The ends of our children, as SIGCHLD tells of them.

    `ended` gets the pid and the status, before the child is reaped.
    """

    def __init__(self, ended: Callable[[int, int], None]) -> None:
        self._ended = ended
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        signal.signal(signal.SIGCHLD, lambda *ignored: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def fileno(self) -> int:
        return self._read

    def collect(self) -> tuple[Sequence[Item], bool]:
        self.look()
        return (), False

    def look(self) -> None:
        """Reap what has ended, if anything has."""
        try:
            os.read(self._read, 4096)
        except BlockingIOError:
            return
        self.reap()

    def reap(self) -> None:
        """Record all ends, and reap each child after that."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG
                                  | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            try:
                self._ended(found.si_pid, _status(found))
            except survived():  # the others have to be reaped
                log.exception('The end of process %d could not be recorded',
                              found.si_pid)
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)

    def close(self) -> None:
        """Listen no more."""
        signal.set_wakeup_fd(-1)
        for fd in (self._read, self._write):
            self._tell_closing(fd)
            os.close(fd)

