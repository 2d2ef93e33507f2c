"""A kernel that runs, and whose socket somebody has removed.

Whoever cleans up a directory may do that. Nobody could reach the kernel any
more, and as it has the lock, no other one could be started in its place.
"""

import contextlib
import os
import select

from gocept.runner.errors import KernelError
from gocept.runner.kernel.keeper.control import DAEMON, KEEPER, SIGNAL
from gocept.runner.process import procfs
from gocept.runner.process.pidfd import hold
from gocept.runner.waits.deadline import Deadline, wait_for

_PATIENCE = 5.0  # seconds


def revive(path: str, lock: str, fd: int) -> bool:
    """Have the kernel with this lock listen at its path, if it does not.

    `lock` was opened as `fd`, and the caller has the right to start a kernel
    there. False if the kernel is ending; KernelError if it runs and does not
    listen.
    """
    if os.path.lexists(path):
        return True
    holders = _holders(os.path.realpath(lock))
    for keeper in holders.get(KEEPER, ()):
        for daemon in holders.get(DAEMON, ()):
            _tell(keeper, daemon)
            if os.path.lexists(path):
                return True
    if not _is_there(lock, fd):
        return False
    pids = [str(pid) for each in holders.values() for pid in each]
    raise KernelError(
        f'a kernel runs, but its socket {path} was removed, and it does not '
        f'make another one; the lock {lock} is held by '
        + (f'process {" and ".join(pids)}: end it' if pids
           else 'processes of another user'))


def _is_there(path: str, fd: int) -> bool:
    """Whether the file at the path is the one that was opened."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _tell(keeper: int, daemon: int) -> None:
    """Tell the keeper, and wait until it has replaced the daemon."""
    try:
        handle = hold(daemon)
    except ProcessLookupError:
        return
    try:
        os.kill(keeper, SIGNAL)
        wait_for(handle.fileno(), select.POLLIN, Deadline(_PATIENCE))
    except ProcessLookupError:
        pass
    finally:
        handle.close()


def _holders(lock: str) -> dict[str, list[int]]:
    """The processes that have a file open, by their names."""
    found: dict[str, list[int]] = {}
    for pid in procfs.pids():
        with contextlib.suppress(OSError):  # it ends, or is another user's
            where = f'{procfs.path(pid)}/fd'
            if any(os.readlink(f'{where}/{fd}') == lock
                   for fd in os.listdir(where)):
                found.setdefault(procfs.name(pid), []).append(pid)
    return found
