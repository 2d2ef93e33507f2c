"""A process that cannot be taken for another, and whose end is an event.

The number of a process is used again when it has ended and was reaped. A pidfd
stays with the process, and is readable once it has ended; see pidfd_open(2).
"""

import contextlib
import errno
import functools
import os
import select
import signal
import threading
from collections.abc import Sequence

from gocept.runner.process import procfs
from gocept.runner.waits.deadline import Deadline, wait_for
from gocept.runner.waits.identity import NONE, Identity
from gocept.runner.waits.source import Source


class Handle(Source):
    """One process, by its pidfd. A poller tells its end once.

    A handle that is closed is like that of a child that others have reaped.
    """

    def __init__(self, pid: int, fd: int = -1) -> None:
        self.pid = pid
        self._identity = NONE
        self._hold(fd)

    def _hold(self, fd: int) -> None:
        if fd >= 0:
            self._identity = Identity.of(fd)
        self._fd = fd

    def fileno(self) -> int:
        """A descriptor that is readable when the process has ended.

        -1 if the handle is closed, or the end is no event.
        """
        return self._fd

    def has_ended(self) -> bool:
        """Whether the process has ended, reaped or not."""
        return self._fd < 0 or wait_for(self._fd, select.POLLIN, Deadline(0))

    def signal(self, signum: int) -> None:
        """Send a signal; nothing if the process has ended."""
        if self._fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signum)

    def reap(self) -> int | None:
        """Take the status of a child that has ended, as Popen has it.

        None if the child runs; ChildProcessError if it was reaped already, or
        is not ours.
        """
        if self._fd < 0:
            raise ChildProcessError(f'{self.pid} is not held any more')
        return _status(os.waitid(
            os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG))

    def collect(self) -> tuple[Sequence[bool], bool]:
        ended = self.has_ended()
        return ((True,) if ended else ()), ended

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._tell_closing(fd)
            self._identity.close(fd)
        self._tell_ready()

    def __del__(self) -> None:
        # The handle of a detached child may be forgotten. Nobody is told of
        # it, as that needs locks; a poller that has it refers to it.
        if self._fd >= 0:
            self._identity.close(self._fd)


class PidAndStart(Handle):
    """A process by its number and the time of its start, without a pidfd.

    For systems that have none, and if no descriptor is left. The end is no
    event, unless `watch` was called. ProcessLookupError if there is no such
    process.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self._start = procfs.look(pid).start
        self._is_child = _child_has_ended(pid) is not None
        self._reaped = False
        if not exists(pid):
            raise ProcessLookupError(errno.ESRCH, f'no process {pid}')

    def watch(self) -> None:
        """Make an event of the end of a child, with a thread that waits."""
        if self._is_child:
            fd, end = os.pipe()
            self._hold(fd)
            try:
                threading.Thread(
                    target=_tell_end, args=(self.pid, end),
                    name=f'end of {self.pid}', daemon=True).start()
            except BaseException:
                os.close(end)
                raise

    def has_ended(self) -> bool:
        if self._reaped or (self._fd >= 0 and wait_for(
                self._fd, select.POLLIN, Deadline(0))):
            return True
        # The thread may be late.
        now = procfs.look(self.pid)
        if now.start and self._start:
            return now.start != self._start or now.state in 'ZX'
        # There is no such process, or no descriptor is left to look at it.
        if self._is_child:
            return _child_has_ended(self.pid) is not False
        return not exists(self.pid)

    def signal(self, signum: int) -> None:
        if not self.has_ended():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def reap(self) -> int | None:
        start = procfs.look(self.pid).start
        if self._reaped or (start != self._start if start and self._start
                            else not self._is_child):
            raise ChildProcessError(f'{self.pid} is not a child of ours')
        status = _status(os.waitid(
            os.P_PID, self.pid, os.WEXITED | os.WNOHANG))
        self._reaped = status is not None
        return status


class Handles(dict[int, Handle]):
    """Handles by pid, so each process is held once."""

    def add(self, handle: Handle) -> bool:
        """Take a handle in, or close it and return False if there is one."""
        if handle.pid in self:
            handle.close()
            return False
        self[handle.pid] = handle
        return True

    def close(self) -> None:
        """Close them all."""
        for handle in self.values():
            handle.close()


def _tell_end(pid: int, fd: int) -> None:
    try:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        # To close it is not enough: a forked copy of us may have it, too.
        with contextlib.suppress(BrokenPipeError):
            os.write(fd, b'.')
    finally:
        os.close(fd)


def _child_has_ended(pid: int) -> bool | None:
    """Whether a child has ended, without reaping it; None if it is not ours.
    """
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
                         ) is not None
    except ChildProcessError:
        return None


def exists(pid: int) -> bool:
    """Whether there is such a process, also a dead one that is not reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _status(result: os.waitid_result | None) -> int | None:
    if result is None:
        return None
    return (result.si_status if result.si_code == os.CLD_EXITED
            else -result.si_status)


@functools.cache
def has_pidfds() -> bool:
    """Whether this system has all that `Handle` needs.

    Pidfds came with Linux 5.3, and `waitid` for them with 5.4. Some sandboxes
    have only a part of that.
    """
    pid = os.getpid()
    try:
        with contextlib.closing(Handle(pid, os.pidfd_open(pid))) as handle:
            handle.signal(0)
            handle.reap()
    except ChildProcessError:
        return True  # we are no child of our own
    except AttributeError:
        pass
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # it says nothing about the system
    return False


def hold(pid: int) -> Handle:
    """A handle of a process, whose end is an event if it is a child of ours.

    ProcessLookupError if there is none.
    """
    if has_pidfds():
        return Handle(pid, os.pidfd_open(pid))
    handle = PidAndStart(pid)
    handle.watch()
    return handle
