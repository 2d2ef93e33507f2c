"""Executors of servers that are ready when they answer in their protocol."""

import os
import signal
from typing import Unpack

from gocept.runner.executor.conditions.network import tcp, unix
from gocept.runner.executor.conditions.postgresql import postgresql
from gocept.runner.executor.conditions.redis import redis
from gocept.runner.executor.named import NamedExecutor, TCPExecutor
from gocept.runner.executor.options import Options
from gocept.runner.process.launch import Command

Host = str | os.PathLike[str]
"""A name, an address or a path."""


class PostgreSQLExecutor(TCPExecutor):
    """See `IConditionExecutor`."""

    def __init__(self, command: Command, host: Host, port: int = 5432, *,
                 user: str = 'postgres', dbname: str = 'postgres',
                 **kwargs: Unpack[Options]) -> None:
        self.host = os.fspath(host)
        self.port = port
        self.user = user
        self.dbname = dbname
        # After SIGTERM, it would wait until all clients have gone.
        kwargs.setdefault('stop_signal', signal.SIGINT)
        NamedExecutor.__init__(self, command, **kwargs)

    def _description(self) -> tuple[object, ...]:
        return self.host, self.port, self.user, self.dbname

    def _new_condition(self) -> tcp | unix:
        return postgresql(
            self.host, self.port, user=self.user, dbname=self.dbname)


class RedisExecutor(TCPExecutor):
    """See `IConditionExecutor`."""

    def __init__(self, command: Command, host: Host, port: int = 6379, *,
                 password: str = '', **kwargs: Unpack[Options]) -> None:
        self.host = os.fspath(host)
        self.port = port
        self.password = password
        NamedExecutor.__init__(self, command, **kwargs)

    def _description(self) -> tuple[object, ...]:
        return self.host, self.port, self.password

    def _new_condition(self) -> tcp | unix:
        return redis(self.host, self.port, password=self.password)
