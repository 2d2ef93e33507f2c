"""Executors with a name of their own, one for each usual condition."""

import os
import ssl
import subprocess
from collections.abc import Callable
from http.client import HTTPResponse
from typing import Any

from gocept.runner.executor.checked import ConditionExecutor
from gocept.runner.executor.conditions.http import http
from gocept.runner.executor.conditions.network import tcp, unix
from gocept.runner.executor.conditions.output import output
from gocept.runner.executor.conditions.pid_file import pid_file
from gocept.runner.process.launch import Command


class OutputExecutor(ConditionExecutor):
    """See `IConditionExecutor`."""

    def __init__(self, command: Command, banner: str, *,
                 failure: str | None = None, **kwargs: Any) -> None:
        super().__init__(command, output(banner, failure), **kwargs)
        if subprocess.PIPE not in (
                self._popen['stdout'], self._popen['stderr']):
            raise TypeError('a banner needs stdout or stderr to be a pipe')


class TCPExecutor(ConditionExecutor):
    """See `IConditionExecutor`."""

    condition: tcp

    def __init__(self, command: Command, host: str, port: int,
                 **kwargs: Any) -> None:
        super().__init__(command, tcp(host, port), **kwargs)
        self.host = host
        self.port = self.condition.port


class HTTPExecutor(TCPExecutor):
    """See `IConditionExecutor`."""

    def __init__(self, command: Command, url: str,
                 status: str | int = r'^2\d\d$', method: str = 'HEAD',
                 payload: dict[str, str] | None = None,
                 headers: dict[str, str] | None = None,
                 request_timeout: float | None = None, *,
                 ssl_context: ssl.SSLContext | None = None,
                 expect: Callable[[HTTPResponse], object] | None = None,
                 **kwargs: Any) -> None:
        condition = http(url, status, method, payload, headers,
                         request_timeout, ssl_context=ssl_context,
                         expect=expect)
        ConditionExecutor.__init__(self, command, condition, **kwargs)
        self.host = condition.host
        self.port = condition.port
        self.url = condition.url


class PidExecutor(ConditionExecutor):
    """See `IConditionExecutor`."""

    def __init__(self, command: Command, filename: str | os.PathLike[str],
                 **kwargs: Any) -> None:
        super().__init__(command, pid_file(filename), **kwargs)
        self.filename = filename


class UnixSocketExecutor(ConditionExecutor):
    """See `IConditionExecutor`."""

    def __init__(self, command: Command,
                 socket_name: str | os.PathLike[str], **kwargs: Any) -> None:
        super().__init__(command, unix(socket_name), **kwargs)
        self.socket = socket_name
