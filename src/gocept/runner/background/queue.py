"""The requests of all clients, in order of receipt."""

import collections
import json
from collections.abc import Sequence
from typing import Protocol

from gocept.runner.background.frames import (
    FAILURE,
    RECEIPT,
    RESPONSE,
    Piece,
)
from gocept.runner.background.limits import Account

ENDED = 'ending', 'the server has ended before this request: start it again'
"""Why a request was not run: a word and a line."""


class Sender(Protocol):
    """The client of a request, who may have gone."""

    @property
    def address(self) -> str:
        """From where the client has connected."""

    @property
    def python(self) -> tuple[int, int]:
        """The version of the client's Python: major, minor."""

    @property
    def key_number(self) -> int:
        """Which key the client knows."""

    def send(self, kind: int, flags: int, number: int,
             pieces: Sequence[Piece] = ()) -> bool:
        """Send or keep an answer; False if the client has gone."""


class Request:
    """What a client wants done.

    Any thread may answer. Each answer returns whether the client is there
    still; to answer a client that has gone is no error.
    """

    __slots__ = ('confirmed', 'connection', 'flags', 'id', 'kind', 'pieces')

    def __init__(self, connection: Sender, kind: int, flags: int,
                 id: int,  # noqa: A002
                 pieces: list[Piece]) -> None:
        self.connection = connection
        self.kind = kind
        self.flags = flags
        self.id = id
        self.pieces = pieces
        self.confirmed = False
        """Whether the client was told that the request has arrived."""

    def respond(self, pieces: Sequence[Piece], flags: int = 0) -> bool:
        """Send a value, as `values.encode` makes it."""
        return self.connection.send(RESPONSE, flags, self.id, pieces)

    def fail(self, error: str, message: str, type: str = '',  # noqa: A002
             traceback: str = '') -> bool:
        """Say why there is no value. `error` is one word for programs."""
        return fail(self.connection, self.id, error, message, type, traceback)

    def receipt(self) -> bool:
        """Confirm that the request has arrived."""
        self.confirmed = True
        return self.connection.send(RECEIPT, 0, self.id)

    def __repr__(self) -> str:
        return f'<Request {self.id} kind {self.kind} of {self.connection!r}>'


def fail(client: Sender, number: int, error: str, message: str,
         type: str = '', traceback: str = '') -> bool:  # noqa: A002
    """Tell a client why a request has no value; see `Request.fail`."""
    failure = json.dumps({'error': error, 'message': message, 'type': type,
                          'traceback': traceback})
    return client.send(FAILURE, 0, number, [failure.encode()])


class Queue(collections.deque[tuple[Request, int]]):
    """Requests that wait for the main thread, with their sizes.

    One thread at a time puts some in. The main thread takes them out.
    """

    def __init__(self, size: int, account: Account) -> None:
        super().__init__()
        self._size = self._most = size
        self._account = account
        # Each is written by one thread, so neither needs a lock.
        self._put = self._taken = 0
        self.exits = self._refused_exits = 0
        """How many EXITs have come, and how many of these were refused."""

    @property
    def ends(self) -> bool:
        """Whether what comes now may not be run, as an EXIT came before."""
        return self.exits != self._refused_exits

    @property
    def bytes(self) -> int:
        """How many bytes the requests have."""
        return self._put - self._taken

    def put(self, request: Request, size: int) -> bool:
        """Add a request with `size` bytes at the end, if there is room."""
        if (len(self) >= self._size
                or self._put - self._taken + self._account.total + size
                > self._account.limit):
            return False
        self.append((request, size))
        self._put += size
        return True

    def refusal(self, size: int) -> tuple[str, str]:
        """Why there is no room for `size` bytes: a word and a line."""
        if not self._size:
            return 'ending', 'the server ends: start it again'
        if len(self) >= self._size:
            return 'busy', (
                f'{len(self)} requests wait for the server, the '
                'limit of its queue_size: try again later')
        return 'busy', (
            f'the server keeps {self._account.total + self.bytes} bytes for '
            f'its clients, and {size} more would pass its limit of '
            'queue_bytes: try again later')

    def close(self) -> None:
        """Take no more requests."""
        self._size = 0

    def reopen(self) -> None:
        """Take requests again, as an EXIT was refused."""
        self._refused_exits += 1
        self._size = self._most

    def take(self) -> Request:
        """Take out the first one; IndexError if there is none."""
        request, size = self.popleft()
        self._taken += size
        return request
