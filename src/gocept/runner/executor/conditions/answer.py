"""Checks that a server accepts connections, and that its answer is right."""

import contextlib
import logging
import re
import socket
import time
from collections.abc import Callable

from gocept.runner.channel import SocketChannel
from gocept.runner.errors import EndpointClosedException
from gocept.runner.executor.conditions.base import Check, Pauses
from gocept.runner.executor.conditions.pattern import compiled, find
from gocept.runner.poller import Poller
from gocept.runner.waits.closing import Closing

LIMIT = 2 ** 16
"""Bytes of an answer; one that is longer is wrong."""

SHOWN = 200
"""Characters of an answer in a message."""

_MOST = 10
"""Connections that may still bring the right answer; older ones are closed."""

Expectation = str | Callable[[bytes], object]
"""A regular expression, or a function that is called with the answer."""


class Question:
    """What is sent on a connection, and which answer is right."""

    awaited = 'an answer'
    """What is waited for, as a message calls it."""

    send = b''

    farewell = b''
    """What is sent after the right answer."""

    def judge(self, answer: bytes, over: bool) -> bool | None:
        """Whether `answer` is right; None if only more of it can tell.

        There is some of it. `over` says that there will not be more.
        """
        raise NotImplementedError

    def shown(self, answer: bytes) -> str:
        """The answer, as a message shows it."""
        text = repr(answer[:SHOWN])[1:]
        return text if len(answer) <= SHOWN else f'{text}...'


class Expected(Question):
    """Which answer is right is told by the user."""

    def __init__(self, send: bytes | None, expect: Expectation | None,
                 ) -> None:
        if not isinstance(send, bytes | None):
            raise TypeError(f'"send" must be bytes, not {send!r}')
        if not (isinstance(expect, str | None) or callable(expect)):
            raise TypeError('"expect" must be a regular expression as text, '
                            f'or a function, not {expect!r}')
        self.send = send or b''
        self.expect = compiled(expect) if isinstance(expect, str) else expect
        if isinstance(expect, str):
            self.awaited = f'an answer that matches {expect!r}'
        elif expect is not None:
            self.awaited = 'the answer that is expected'

    def judge(self, answer: bytes, over: bool) -> bool | None:
        right: object = answer
        if isinstance(self.expect, re.Pattern):
            text = answer.decode('utf-8', 'backslashreplace')
            search = re.Pattern.search if over else find
            right = search(self.expect, text.replace('\r\n', '\n'))
        elif self.expect is not None:
            right = self.expect(answer)
        return bool(right) or None


def question(send: bytes | None, expect: Expectation | None,
             ) -> Question | None:
    """The question of a user; None if a connection is enough."""
    return (None if send is None and expect is None
            else Expected(send, expect))


class ConnectCheck(Check):
    """Connects now and then."""

    def __init__(self, place: str) -> None:
        self.place_of_server = place
        self.awaited = f'connections to {place}'

    def connect(self) -> socket.socket | None:
        """Return a connected socket; or None, and say why in `seen`."""
        raise NotImplementedError

    def holds(self) -> bool:
        sock = self.connect()
        if sock is None:
            return False
        sock.close()
        return True


class _Attempt(Closing):
    """A question on a connection, and what has come of its answer.

    What comes wakes the poller.
    """

    def __init__(self, sock: socket.socket, question: Question,
                 poller: Poller) -> None:
        self._question = question
        self._poller = poller
        self.answer = b''
        self.over = False
        self.news = False
        """Whether something has come since `judge` was called."""
        self.quiet_since = time.monotonic()
        self._channel = channel = SocketChannel(sock)
        channel.loss_level = logging.DEBUG  # it is asked again
        with contextlib.suppress(EndpointClosedException):
            channel.write(question.send)
        poller.register(channel, self._hear)

    def _hear(self, data: bytes, channel: SocketChannel) -> None:
        self.answer = (self.answer + data)[:LIMIT]
        self.over = not data or len(self.answer) == LIMIT
        self.quiet_since = time.monotonic()
        self.news = True

    def judge(self) -> bool | None:
        """Whether the answer is right; None if more of it may come."""
        self.news = False
        right = (self._question.judge(self.answer, self.over) if self.answer
                 else None)
        if right and self._question.farewell:
            with contextlib.suppress(EndpointClosedException):
                self._channel.write(self._question.farewell)
        return False if self.over and not right else right

    def __str__(self) -> str:
        """What the server has said."""
        if not self.answer:
            return ('the server closed the connection without an answer'
                    if self.over else 'no answer yet')
        told = f'answered {self._question.shown(self.answer)}'
        if len(self.answer) == LIMIT:
            return f'{told}, and went on after {LIMIT} bytes'
        return f'{told}, and closed the connection' if self.over else told

    def close(self) -> None:
        """Hang up."""
        self._poller.unregister(self._channel)
        self._channel.close()


class _Pauses(Pauses):
    """A twentieth of the time since the first answer that was wrong."""

    _FIRST, _GROWTH = 0.002, 1.05


class AnswerCheck(Check):
    """Connects, asks and listens, until an answer is right."""

    def __init__(self, connection: ConnectCheck, question: Question) -> None:
        self._connection = connection
        self._question = question
        self._attempts: list[_Attempt] = []
        self._pauses = _Pauses()
        self._last = ''  # what has come of an attempt before
        self.awaited = (
            f'{question.awaited} from {connection.place_of_server}')

    @property
    def looking(self) -> bool:  # type: ignore[override]
        return bool(self._attempts) or self._connection.looking

    def _watch(self) -> None:
        self._began = time.monotonic()
        self._connection.begin(
            self.process, self.captures, self.poller, self.deadline)

    def holds(self) -> bool:
        for attempt in [each for each in self._attempts if each.news]:
            right = attempt.judge()
            self.seen = self._last = str(attempt)
            if right:
                self._hang_up(self._attempts)
                return True
            if right is False:
                self._hang_up([attempt])
                self._pauses.begin()
        if self._is_time_to_ask():
            self._ask()
        return False

    def _is_time_to_ask(self) -> bool:
        """Also if an attempt may still succeed, but has been quiet for long.

        Long is relative to the time so far. To a part of an answer, which may
        also be a wrong one, the rest comes soon, as a rule.
        """
        if not self._attempts:
            return self._pauses.over
        newest, now = self._attempts[-1], time.monotonic()
        waited = now - self._began
        return now - newest.quiet_since > (
            max(0.1, waited / 5) if newest.answer else max(1, waited / 2))

    def _ask(self) -> None:
        sock = self._connection.connect()
        seen = self._connection.seen
        if sock is not None:
            self._hang_up(self._attempts[:1 - _MOST])
            self._attempts.append(
                _Attempt(sock, self._question, self.poller))
            seen += f', {self._attempts[-1]}'
        # The deadline may pass here, so the answer before is said as well.
        self.seen = f'{self._last}; then {seen}' if self._last else seen

    def _hang_up(self, attempts: list[_Attempt]) -> None:
        for attempt in [*attempts]:
            self._attempts.remove(attempt)
            attempt.close()

    def close(self) -> None:
        self._hang_up(self._attempts)
        self._connection.close()
