"""The condition that a Redis answers commands."""

import os

from gocept.runner.executor.conditions.answer import Question
from gocept.runner.executor.conditions.network import tcp, unix


def redis(host: str | os.PathLike[str], port: int = 6379, *,
          password: str = '') -> tcp | unix:
    """That a Redis answers commands; see `ICondition`."""
    host = os.fspath(host)
    condition = unix(host) if host.startswith('/') else tcp(host, port)
    condition.question = _Ping(password)
    return condition


class _Ping(Question):
    """Sends PING, and AUTH before it if there is a password.

    See "Redis serialization protocol specification" of Redis's manual.
    """

    awaited = 'PONG, the answer of Redis,'

    def __init__(self, password: str) -> None:
        commands = [['PING']]
        if password:
            commands.insert(0, ['AUTH', password])
        self._replies = len(commands)
        self.send = b''.join(map(_encoded, commands))

    def judge(self, answer: bytes, over: bool) -> bool | None:
        *replies, _ = answer.split(b'\r\n')
        if answer[:1] not in (b'+', b'-'):
            return False  # no Redis says so
        if self._replies > 1 and replies and replies[0] != b'+OK':
            return False
        if len(replies) < self._replies:
            return None
        # The last two are of a Redis that others can use: those who know a
        # password, or may do something else.
        return replies[-1].startswith((b'+PONG', b'-NOAUTH ', b'-NOPERM '))


def _encoded(command: list[str]) -> bytes:
    words = [each.encode() for each in command]
    return b'*%d\r\n' % len(words) + b''.join(
        b'$%d\r\n%b\r\n' % (len(each), each) for each in words)
