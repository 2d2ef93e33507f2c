"""The descriptors 0 to 2: standard input, standard output, standard error."""

import contextlib
import functools
import os
from typing import TextIO

from gocept.runner.logs import Log

log = Log('gocept.runner.process')


def fill_standard() -> None:
    """Open /dev/null for those of the descriptors 0 to 2 that are closed.

    Else the next file to be opened gets such a number. Then it receives what
    other code writes to standard error, or a child has it as a standard
    stream. So this is called before anything is opened that stays open.
    """
    restore_blocking()
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            new = os.open(os.devnull, os.O_RDWR)
            if new > 2:  # another thread has opened something meanwhile
                os.close(new)
            else:
                os.set_inheritable(new, True)  # as those of a new process


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at it, or types there.

    Programs put objects in the place of standard streams that do not know it,
    or close them; None is one that was closed at the start.
    """
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):
        return False


def restore_blocking() -> None:
    """Let standard error block, if it did when this was called first.

    A child that shares it may set O_NONBLOCK for all. Then our log lines are
    lost where the reader is slow.
    """
    with contextlib.suppress(OSError):
        if _blocked_first() and not os.get_blocking(2):
            os.set_blocking(2, True)
            _report()


@functools.cache
def _blocked_first() -> bool:
    return os.get_blocking(2)


@functools.cache
def _report() -> None:  # once
    log.warning('A child has set O_NONBLOCK on standard error, so log lines '
                'may be lost; it is blocking again')
