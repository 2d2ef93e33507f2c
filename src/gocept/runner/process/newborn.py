"""A child that was just started, until it has an owner."""

import itertools
import os
import signal
from collections.abc import Iterator

from gocept.runner.process import procfs
from gocept.runner.process.marks import MARKER
from gocept.runner.waits.deadline import Deadline


class Newborn:
    """A child, and our ends of its pipes, as long as they have no owner.

    A signal handler may raise an exception at any time. So each thing is noted
    down here as it is made, and `abandon` ends what is noted.
    """

    def __init__(self, mark: str, leads_group: bool = False) -> None:
        self.mark = mark
        self.leads_group = leads_group
        self.pid = 0
        self.stdin = self.stdout = self.stderr = -1
        """Our ends; -1 where there is none."""
        self._open: list[int] = []

    def pipe(self) -> tuple[int, int]:
        """Make a pipe: the end to read from, and the one to write to."""
        # In one call of C, so that no handler comes between.
        self._open.extend(itertools.chain.from_iterable(
            itertools.starmap(os.pipe, [()])))
        read, write = self._open[-2:]
        return read, write

    def take(self, fd: int) -> int:
        """Hand over a descriptor to an owner."""
        if fd >= 0:
            self._open.remove(fd)
        return fd

    def abandon(self) -> None:
        """Kill the child, if it was started, and close the descriptors."""
        while self._open:
            os.close(self._open.pop())
        # The child is not reaped, so the number is its own.
        for pid in [self.pid] if self.pid else list(self._unknown()):
            try:
                (os.killpg if self.leads_group else os.kill)(
                    pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            except PermissionError:  # sudo, say, which nobody can wait for
                continue
            self.reap(pid)

    def reap(self, pid: int) -> int | None:
        """Wait for the end of the child, and forget it; returns its status.

        None if that is not known.
        """
        self.pid, self.mark = 0, ''
        try:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except ChildProcessError:
            return None

    def _unknown(self) -> Iterator[int]:
        """The child, if an exception has taken the place of its number."""
        for pid in procfs.children(os.getpid()):
            deadline = Deadline(1)  # of what takes a moment
            while (words := procfs.variable(pid, MARKER)) is None:
                if deadline.passed:  # it is becoming another program
                    break
            if self.mark and self.mark in (words or '').split():
                yield pid
