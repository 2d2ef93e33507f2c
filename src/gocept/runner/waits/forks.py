"""What a forked child has to have anew.

Other threads of the parent do not exist in the child, but what they held at
the moment of the fork is still held there.
"""

import os
import threading
import weakref
from typing import Protocol


class Forked(Protocol):
    """What is told of a fork."""

    def after_fork(self) -> None:
        """Called in the child, by its only thread."""


_locks: 'weakref.WeakSet[Lock]' = weakref.WeakSet()
_forked: 'weakref.WeakSet[Forked]' = weakref.WeakSet()
_hooked = False


def tell_forks(it: Forked) -> None:
    """Call ``it.after_fork()`` in each child that this process forks."""
    _hook()
    _forked.add(it)


def _hook() -> None:
    global _hooked
    if not _hooked:
        _hooked = True
        os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    for lock in list(_locks):  # first, as the others take them
        if not lock._is_owned():  # it forks itself with the lock held
            lock._at_fork_reinit()
    for each in list(_forked):
        each.after_fork()


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
