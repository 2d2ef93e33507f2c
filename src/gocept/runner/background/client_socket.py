"""The client that a task was called for."""

from typing import Final

import gocept.runner.background.frames as frames
from gocept.runner.background.queue import Request
from gocept.runner.background.values import encode
from gocept.runner.errors import BackgroundError

Response = tuple[list[bytes], int]
"""A value as `encode` makes it."""

_NONE: Final[Response] = [], 0
"""That of a task that has ended without one."""

_GONE: Final[Response] = [], 0
"""One that has left. It may be large, so it is not kept."""


class ClientSocket:
    """The first argument of a task: who has asked for it.

    `address` is ``host:port`` of the client, '' if none has asked; `awaits`
    says whether the client waits for a response; ``respond(response)`` gives
    it. More: `gocept.runner.interfaces`, IClientSocket.

    With `keeps`, what is responded is sent by `send` only.
    """

    def __init__(self, request: Request | None, longest: int,
                 keeps: bool = False) -> None:
        self.address = request.connection.address if request else ''
        self.awaits = request is not None and request.kind in (
            frames.EXEC, frames.EXIT) and bool(request.flags & frames.AWAIT)
        self._request = request
        self._longest = longest
        self._keeps = keeps
        self._given: dict[str, Response] = {}
        """At most one. `setdefault` lets one of several threads put it in."""

    @property
    def responded(self) -> bool:
        """Whether the task has given the response."""
        return self._given.get('it', _NONE) is not _NONE

    @property
    def sent(self) -> bool:
        """Whether the response has left, or does so now in another thread."""
        return self.responded and not self._keeps

    def respond(self, response: object, error: bool = False) -> None:
        """Give the client the value that it waits for; once, from any thread.

        With `error`, the client raises RemoteTaskError, with the value as its
        `response`. Nothing happens where nobody waits. BackgroundError if the
        task has responded or ended before, or if the value is too large. See
        `IClientSocket`.
        """
        if not self.awaits:
            return
        pieces, flags = encode(response)
        size = sum(map(len, pieces))
        if size > self._longest:
            raise BackgroundError(
                f'the response has {size} bytes, and a message may have '
                f'{self._longest}: send less, or start the server with a '
                'larger max_message')
        mine = pieces, flags | frames.ERROR if error else flags
        if self._given.setdefault('it', mine) is not mine:
            raise BackgroundError(
                'the task has responded before, and its client takes one '
                'response: put all of it in one value' if self.responded else
                'the task has ended, so its client does not wait any more: '
                'respond before the task returns')
        if not self._keeps:
            self._send()

    def end(self) -> None:
        """Take no response any more."""
        self._given.setdefault('it', _NONE)

    def send(self) -> None:
        """Send what was kept."""
        if self._keeps and self.responded:
            self._send()

    def _send(self) -> None:
        response, self._given['it'] = self._given['it'], _GONE
        if response is not _GONE:
            assert self._request is not None
            self._request.respond(*response)

    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.address or "without a client"}>'


def respond(client_socket: ClientSocket, response: object,
            error: bool = False) -> None:
    """Send a value to the client of a task, which returns it there.

    `client_socket` is the first argument of the task. Any value that can be
    pickled; once for a task. With ``error=True`` the client raises
    RemoteTaskError, with the value as its `response`. Nothing happens where
    nobody waits. BackgroundError if the task has responded or ended before, or
    if the value is too large. More: `gocept.runner.interfaces`, IClientSocket.
    """
    client_socket.respond(response, error)
