"""A request, and the response that is to come."""

import threading
from types import EllipsisType
from typing import Protocol

import zope.interface

from gocept.runner.background.frames import Message
from gocept.runner.errors import BackgroundError, ConnectionLost
from gocept.runner.interfaces import IPending
from gocept.runner.waits import forks

Timeout = float | None | EllipsisType
"""Seconds, None for no limit, or ``...`` for the client's own."""


class Asked(Protocol):
    """Who has sent a request."""

    def wait_for(self, pending: 'Pending', timeout: Timeout) -> None:
        """Wait until it is settled; DeadlineExceeded."""

    def receive(self) -> object:
        """Take what has arrived, without waiting."""

    def value(self, answer: Message, kind: int, python: tuple[int, int],
              ) -> object:
        """What a request of that kind returns; or the error is raised."""


@zope.interface.implementer(IPending)
class Pending:
    """See `IPending`."""

    def __init__(self, asked: Asked, kind: int, flags: int,
                 pieces: list[bytes], retry: bool) -> None:
        self.kind = kind
        self.flags = flags
        self.pieces = pieces
        """What is sent; empty when it is not needed any more."""
        self.retry = retry
        self.tries = 0
        self.number = 0
        """The id on the connection that it was sent on."""
        self.may_have_arrived = False
        """Whether the server may have received it whole."""
        self.settled = False
        self.event: threading.Event | None = None  # see `Turn`
        self._asked = asked
        self._generation = forks.generation
        self._lock = forks.Lock()
        self._answer: Message | None = None
        self._python = 0, 0
        self._value: object = None
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        return f'<{"settled" if self.settled else "pending"} request>'

    @property
    def done(self) -> bool:
        """See `IPending`."""
        if not self.settled:
            self._check_fork()
            self._asked.receive()
        return self.settled

    def result(self, timeout: Timeout = ...) -> object:
        """See `IPending`."""
        if not self.settled:
            self._check_fork()
            self._asked.wait_for(self, timeout)
        with self._lock:  # so that one thread decodes it
            if self._answer is not None:
                self._decode(self._answer)
            if self._error is not None:
                raise self._error
            return self._value

    def _decode(self, answer: Message) -> None:
        self._answer = None
        try:
            self._value = self._asked.value(answer, self.kind, self._python)
        except Exception as error:
            self._error = error
        except BaseException:
            self._error = BackgroundError(
                'an exception has interrupted the decoding of this response, '
                'which is lost')
            raise

    def settle(self, answer: Message | None = None,
               python: tuple[int, int] = (0, 0),
               error: BaseException | None = None) -> None:
        """The answer, or why there is none; by the thread that has it."""
        self.pieces.clear()
        self._answer, self._python, self._error = answer, python, error
        self.settled = True
        if self.event is not None:
            self.event.set()

    def _check_fork(self) -> None:
        if self._generation != forks.generation:
            raise ConnectionLost(
                'the parent of this process has sent this request, and gets '
                'the answer: send another one')
