"""What a child has from the program that started it, and gives up.

A daemon has to start fast, so this imports little.
"""

import contextlib
import os
import stat
from collections.abc import Collection, Iterable

SERVICE_VARIABLES = (
    'NOTIFY_SOCKET', 'WATCHDOG_PID', 'WATCHDOG_USEC', 'LISTEN_PID',
    'LISTEN_PIDFDID', 'LISTEN_FDS', 'LISTEN_FDNAMES')
"""What systemd tells its service, and not the children of that."""

LOG_FLAGS = (os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
             | os.O_NOCTTY | os.O_CLOEXEC)


def leave_starter() -> None:
    """Go on in a fork, which is a child of nobody whom we know.

    For a process of one thread.
    """
    if os.fork():
        os._exit(0)


def close_inherited(kept: Collection[int] = ()) -> None:
    """Close what was opened for other children, but 0 to 2 and `kept`.

    Such as a lock, which would be held as long as somebody has it open.
    """
    for fd in map(int, os.listdir('/proc/self/fd')):
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):  # that of the list itself
                os.close(fd)


def check_log(path: str) -> None:
    """OSError if a line that is written there may block, or cannot be."""
    if path:
        try:
            fd = os.open(path, LOG_FLAGS, 0o640)
        except OSError as error:
            raise OSError(
                f'the log {path} cannot be written: {error.strerror}; name a '
                'file in a directory that exists and in which this user can '
                'write') from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(
                    f'the log {path} has to be a plain file: name another one')
        finally:
            os.close(fd)


def open_standard(numbers: Iterable[int], path: str, flags: int) -> None:
    """Open a file in the place of some of the descriptors 0 to 2."""
    fd = os.open(path, flags, 0o640)
    os.set_blocking(fd, True)  # as standard streams do
    for each in numbers:
        os.dup2(fd, each)
    os.close(fd)
