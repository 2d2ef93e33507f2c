"""Whose turn it is, of several threads that use one connection."""

import threading
from typing import Protocol

from gocept.runner.errors import BackgroundTimeout
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.forks import Lock


class Settled(Exception):
    """Raised when another thread has received what this one waits for."""


class Awaited(Protocol):
    """What another thread may receive."""

    settled: bool
    event: threading.Event | None
    """Set when it is settled, or when the turn is free; made by `Turn`."""


class Turn(Lock):
    """A thread has the connection for itself from `take` to `leave`."""

    def __init__(self, longest: float | None) -> None:
        """`longest`: for how many seconds a thread waits at most until it
        looks again whether the turn is free. Then nobody hangs if a signal
        handler has interrupted `leave`."""
        super().__init__()
        self._longest = longest
        self.followers: list[Awaited] = []
        """What threads wait for that have not got the turn."""

    def take(self, deadline: Deadline, awaited: Awaited | None = None,
             ) -> None:
        """BackgroundTimeout if other threads use it for too long.

        Whoever waits for something `awaited` gets a `Settled` as soon as
        another thread has it.
        """
        if self._is_owned():
            raise RuntimeError(
                'this thread uses the client already: a signal handler, or '
                'code that it has called back, needs a client of its own')
        try:
            if not self.acquire(False):
                self._wait(deadline, awaited)
        except BaseException:
            if self._is_owned():
                self.leave()
            raise

    def leave(self) -> None:
        """Tell the threads that wait that the turn is free."""
        self.release()
        if self.followers:
            for each in self.followers[:]:
                if each.event is not None:
                    each.event.set()

    def _wait(self, deadline: Deadline, awaited: Awaited | None) -> None:
        if awaited is None:
            if not self.acquire(timeout=deadline.left()):
                raise self._late(deadline)
            return
        if awaited.event is None:
            awaited.event = threading.Event()
        self.followers.append(awaited)
        try:
            while True:
                awaited.event.clear()
                if awaited.settled:
                    raise Settled
                if self.acquire(False):
                    return
                if deadline.passed:
                    raise self._late(deadline)
                awaited.event.wait(min(
                    deadline.left(), self._longest or deadline.left()))
        finally:
            self.followers.remove(awaited)

    def _late(self, deadline: Deadline) -> BackgroundTimeout:
        return BackgroundTimeout(
            f'other threads have used this client for {deadline}: wait '
            'longer, or use a client for each thread')
