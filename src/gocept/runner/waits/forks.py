"""What a forked child has to have anew, and what it must not go on with.

Other threads of the parent do not exist in the child, but what they held at
the moment of the fork is still held there.
"""

import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import NoReturn, Protocol, Self

from gocept.runner.errors import status_of
from gocept.runner.logs import ERROR, WARNING, Log

log = Log('gocept.runner.process')


class Forked(Protocol):
    """What is told of a fork."""

    def after_fork(self) -> None:
        """Called in the child, by its only thread."""


_locks: 'weakref.WeakSet[Lock]' = weakref.WeakSet()
_forked: 'weakref.WeakSet[Forked]' = weakref.WeakSet()
_hooked = False

generation = 0
"""Higher in each forked child; cheaper than to ask the system for the pid."""


def tell_forks(it: Forked) -> None:
    """Call ``it.after_fork()`` in each child that this process forks."""
    _hook()
    _forked.add(it)


def _hook() -> None:
    global _hooked
    if not _hooked:
        _hooked = True
        if hasattr(os, 'register_at_fork'):  # not where nothing can fork
            os.register_at_fork(after_in_child=_after_fork)


_becomes_program = False


@contextlib.contextmanager
def becoming_program() -> Iterator[None]:
    """For a process of one thread that forks a child in this block.

    The child becomes another program, or ends, and uses nothing of what would
    be told of the fork. To have all that anew takes milliseconds.
    """
    global _becomes_program
    _becomes_program = True
    try:
        yield
    finally:
        _becomes_program = False


def _after_fork() -> None:
    global generation
    generation += 1
    if _becomes_program:
        return
    for lock in list(_locks):  # first, as the others take them
        if not lock._is_owned():  # it forks itself with the lock held
            lock._at_fork_reinit()
    failure = None
    for each in list(_forked):
        try:
            each.after_fork()
        except Exception as error:  # the others are told
            failure = error
    if failure is not None:
        raise failure  # Python reports it on standard error


class Lock(type(threading.RLock())):  # type: ignore[misc]
    """A lock, as a context manager, that a forked child has anew.

    A thread that takes it twice gets a RuntimeError, where a plain lock would
    wait for ever. So nothing that takes one is called with one held: no code
    of users, no finalizer, and of what a signal handler may call only what
    `gocept.runner.interfaces` names.
    """

    def __init__(self) -> None:
        super().__init__()
        _hook()
        _locks.add(self)

    @property
    def held(self) -> bool:
        """Whether this thread holds it."""
        return bool(self._is_owned())

    def __enter__(self) -> object:
        if self._is_owned():
            raise RuntimeError(
                'this thread holds the lock already: it was called back, or '
                'by a signal handler, where that is not allowed')
        try:
            return self.acquire()
        except BaseException:  # of a signal handler
            if self._is_owned():
                self.release()
            raise


class OneProcess:
    """A block that only the process leaves which has entered it.

    A child that code in the block has forked, and that comes to the end of the
    block, is ended by `end_fork`. So put the block inside of everything that
    the child must not undo, such as an open database.
    """

    def __init__(self) -> None:
        _hook()
        self._generation = generation

    def __enter__(self) -> Self:
        return self

    def check(self, error: BaseException | None = None) -> None:
        """End this process if it is a forked child."""
        if generation != self._generation:
            end_fork(error)

    def __exit__(self, kind: object, error: BaseException | None,
                 traceback: object) -> None:
        if generation != self._generation:
            end_fork(error)


def end_fork(error: BaseException | None = None) -> NoReturn:
    """End this process, a forked child that came back to code of its parent.

    The child closes nothing and calls no exit handlers, since all of this
    belongs to the parent. The status is 0, the code of a SystemExit, or 1 for
    another `error`.
    """
    is_bug = error is not None and not isinstance(error, SystemExit)
    status = status_of(error) if isinstance(error, SystemExit) else is_bug
    try:
        if (isinstance(error, SystemExit) and isinstance(error.code, str)
                and sys.stderr is not None):
            print(error, file=sys.stderr, flush=True)  # as Python itself does
        log.log(ERROR if is_bug else WARNING,
                'Process %d, which was forked from process %d, came back to '
                'code that only its parent may run, so it ends here, with '
                'status %d; a forked child has to end by os._exit()',
                os.getpid(), os.getppid(), status,
                exc_info=error if is_bug else None)
    finally:
        os._exit(status)
