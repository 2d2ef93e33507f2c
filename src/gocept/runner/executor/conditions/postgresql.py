"""The condition that a PostgreSQL lets clients in."""

import os
from collections.abc import Iterator

from gocept.runner.executor.conditions.answer import (
    LIMIT,
    SHOWN,
    Question,
)
from gocept.runner.executor.conditions.network import tcp, unix

_VERSION = 3 << 16  # of the protocol, 3.0

_NOT_NOW = {
    b'57P01',  # admin_shutdown
    b'57P02',  # crash_shutdown
    b'57P03',  # cannot_connect_now: it starts up, shuts down or recovers
}
"""SQLSTATEs of a server that lets nobody in for a while."""


def postgresql(host: str | os.PathLike[str], port: int = 5432, *,
               user: str = 'postgres', dbname: str = 'postgres') -> tcp | unix:
    """That a PostgreSQL lets clients in; see `ICondition`."""
    host = os.fspath(host)
    question = _Session(user, dbname)
    condition: tcp | unix
    if host.startswith('/'):
        if not port:
            raise ValueError('the socket of a PostgreSQL has the number of a '
                             'port in its name: choose any but 0')
        condition = unix(f'{host}/.s.PGSQL.{port}')
    else:
        condition = tcp(host, port)
    condition.question = question
    return condition


class _Session(Question):
    """Begins a session, and ends it.

    See the chapter "Frontend/Backend Protocol" of PostgreSQL's manual.
    """

    awaited = 'an answer of PostgreSQL, which lets clients in,'

    farewell = b'X' + (4).to_bytes(4)  # Terminate

    def __init__(self, user: str, dbname: str) -> None:
        words = 'user', user, 'database', dbname
        if not user or any('\0' in each for each in words):
            raise ValueError(f'PostgreSQL knows no user {user!r} and database '
                             f'{dbname!r}')
        body = _VERSION.to_bytes(4) + b''.join(
            each.encode() + b'\0' for each in words) + b'\0'
        self.send = (len(body) + 4).to_bytes(4) + body  # StartupMessage

    def judge(self, answer: bytes, over: bool) -> bool | None:
        if answer[:1] not in (b'R', b'E', b'N', b'v'):
            return False  # no PostgreSQL says so at first
        try:
            for kind, body in _messages(answer):
                # It asks for a password or the like, or is ready for queries.
                if (kind == b'R' and any(body[:4])) or kind == b'Z':
                    return True
                if kind == b'E':
                    state = _fields(body).get(b'C', b'')
                    return len(state) == 5 and state not in _NOT_NOW
        except ValueError:
            return False
        return None

    def shown(self, answer: bytes) -> str:
        try:
            for kind, body in _messages(answer):
                if kind == b'E':
                    fields = _fields(body)
                    text = b' '.join(fields[each] for each in
                                     (b'S', b'C', b'M') if each in fields)
                    return repr(text.decode('utf-8', 'replace'))[1:-1][:SHOWN]
        except ValueError:
            pass
        return super().shown(answer)


def _messages(answer: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The complete messages: the kind and the body of each.

    ValueError if it is no message of PostgreSQL.
    """
    while len(answer) >= 5:
        size = int.from_bytes(answer[1:5])  # with these four bytes
        if not 4 <= size < LIMIT:
            raise ValueError(f'no message has {size} bytes')
        if len(answer) <= size:
            return
        yield answer[:1], answer[5:size + 1]
        answer = answer[size + 1:]


def _fields(body: bytes) -> dict[bytes, bytes]:
    """The fields of an ErrorResponse."""
    return {each[:1]: each[1:] for each in body.split(b'\0') if each}
