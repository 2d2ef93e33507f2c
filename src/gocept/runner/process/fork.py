"""A fork of this process that is no child of it, but of its subreaper.

A process between is forked first, forks in its turn, says which number its
child has, and ends. So that child loses its parent, and the system gives it to
the next subreaper above; see PR_SET_CHILD_SUBREAPER in prctl(2), and `orphan`.

The orphan leads a process group. It runs no code of its caller before somebody
who waits for it knows its number, and it never does if nobody gets to know it.
"""

import contextlib
import errno
import os
import select
import signal
from collections.abc import Callable, Iterator
from typing import NoReturn

from gocept.runner.process.pidfd import has_pidfds
from gocept.runner.waits.deadline import NEVER, wait_for
from gocept.runner.waits.forks import becoming_program
from gocept.runner.waits.packets import Packets, pair

_GO = b'.'

_UNKNOWN = 1  # status of an orphan that nobody waits for


def fork_orphan(tell: Callable[[int, int], object]) -> bool:
    """Fork; returns True in the orphan, and False in this process.

    `tell` is called here, with the number and a pidfd of the orphan; -1 where
    the system has no pidfds. It is closed afterwards. If `tell` fails, its
    error is raised, and the orphan ends without a word. OSError if the system
    has too little for another process.

    For a process of one thread.
    """
    has_pidfds()  # asked once, and not in each fork
    ours, theirs = map(Packets, pair())
    with ours, theirs, _Gate() as gate:
        with _undisturbed():
            with becoming_program():  # which is told nothing of the fork
                between = os.fork()
            if not between:
                gate.close_opener()
                _pass_on(theirs, gate)
                return True
            theirs.close()
            pid, pidfd = _born(ours, between)
        try:
            tell(pid, pidfd)
        finally:
            if pidfd >= 0:
                os.close(pidfd)
        gate.open()
    return False


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no handler of a signal run in the block; they run afterwards."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Gate:
    """What the orphan waits at."""

    def __init__(self) -> None:
        self._gate, self._opener = os.pipe()

    def close_opener(self) -> None:
        os.close(self._opener)
        self._opener = -1

    def open(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it was killed
            os.write(self._opener, _GO)

    def was_opened(self) -> bool:
        """Wait until it was opened, or nobody can do that any more."""
        return os.read(self._gate, 1) == _GO

    def __enter__(self) -> '_Gate':
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._gate)
        if self._opener >= 0:
            os.close(self._opener)


def _pass_on(link: Packets, gate: _Gate) -> None:
    """In the process between: fork, tell the number, and end.

    Returns in the orphan, when that may run.
    """
    try:
        pid = os.fork()
    except OSError as error:
        _end_with(link, b'-%d' % (error.errno or errno.EAGAIN))
    if pid:
        _tell(link, pid)
    link.close()
    if not gate.was_opened():
        os._exit(_UNKNOWN)


def _tell(link: Packets, pid: int) -> NoReturn:
    """In the process between: tell which number the orphan has."""
    try:
        os.setpgid(pid, pid)
        pidfds = [os.pidfd_open(pid)] if has_pidfds() else []
    except OSError as error:
        _end_with(link, b'-%d' % (error.errno or errno.EAGAIN))
    _end_with(link, b'%d' % pid, *pidfds)


def _end_with(link: Packets, answer: bytes, *descriptors: int) -> NoReturn:
    try:
        link.send(answer, descriptors)
    finally:
        os._exit(0)


def _born(link: Packets, between: int) -> tuple[int, int]:
    """The number of the orphan, which has lost its parent, and its pidfd."""
    wait_for(link.fileno(), select.POLLIN, NEVER)
    packet = link.receive()
    os.waitpid(between, 0)
    if packet is None:
        raise OSError(errno.EAGAIN, 'The process that was to fork was killed')
    number = int(packet.data)
    if not packet.complete:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    if number < 0:
        raise OSError(-number, os.strerror(-number))
    return number, (*packet.descriptors, -1)[0]
