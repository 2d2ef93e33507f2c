"""Executors with a name of their own, one for each usual condition."""

import os
import re
import ssl
import subprocess
from collections.abc import Callable
from http.client import HTTPResponse
from typing import Unpack
from urllib.parse import SplitResult, urlsplit

from gocept.runner.executor.checked import ConditionExecutor
from gocept.runner.executor.conditions.answer import Expectation
from gocept.runner.executor.conditions.base import Condition
from gocept.runner.executor.conditions.http import at, http, port_of
from gocept.runner.executor.conditions.network import tcp, unix
from gocept.runner.executor.conditions.output import output
from gocept.runner.executor.conditions.pid_file import pid_file
from gocept.runner.executor.options import Options
from gocept.runner.process.launch import Command


class NamedExecutor(ConditionExecutor):
    """An executor whose attributes describe its condition.

    The attributes are set before the constructor is called. What they are at
    a start counts.
    """

    _described: tuple[object, ...] | None = None
    """What the condition was made of."""

    def __init__(self, command: Command, **kwargs: Unpack[Options]) -> None:
        self._renew_condition()
        super().__init__(command, self.condition, **kwargs)

    def _description(self) -> tuple[object, ...]:
        """What the condition is made of."""
        raise NotImplementedError

    def _make_condition(self) -> Condition:
        raise NotImplementedError

    def _refresh(self) -> None:
        self._renew_condition()
        super()._refresh()

    def _renew_condition(self) -> None:
        if self._described != self._description():
            self.condition = self._make_condition()
            self._described = self._description()


class OutputExecutor(NamedExecutor):
    """See `IConditionExecutor`."""

    def __init__(self, command: Command, banner: str, *,
                 failure: str | None = None,
                 **kwargs: Unpack[Options]) -> None:
        self.banner = banner
        self.failure = failure
        super().__init__(command, **kwargs)
        if subprocess.PIPE not in (
                self._popen_kwargs['stdout'], self._popen_kwargs['stderr']):
            raise TypeError('a banner needs stdout or stderr to be a pipe')

    def _description(self) -> tuple[object, ...]:
        return self.banner, self.failure

    def _make_condition(self) -> Condition:
        return output(self.banner, self.failure)


class TCPExecutor(NamedExecutor):
    """See `IConditionExecutor`."""

    condition: tcp | unix

    expect: str | Callable[..., object] | None

    def __init__(self, command: Command, host: str, port: int, *,
                 send: bytes | None = None, expect: Expectation | None = None,
                 **kwargs: Unpack[Options]) -> None:
        self.host = host
        self.port = port
        self.send = send
        self.expect = expect
        super().__init__(command, **kwargs)

    def _description(self) -> tuple[object, ...]:
        return self.host, self.port, self.send, self.expect

    def _make_condition(self) -> Condition:
        before, condition = self.condition, self._new_condition()
        if isinstance(condition, tcp):
            if isinstance(before, tcp):
                condition.take_port(before)
            self.port = condition.port
        return condition

    def _new_condition(self) -> tcp | unix:
        return tcp(self.host, self.port, send=self.send, expect=self.expect)


class HTTPExecutor(TCPExecutor):
    """See `IConditionExecutor`."""

    DEFAULT_PORT = 80

    expect: Callable[[HTTPResponse], object] | None

    def __init__(self, command: Command, url: str,
                 status: str | int = r'^2\d\d$', method: str = 'HEAD',
                 payload: dict[str, str] | None = None,
                 headers: dict[str, str] | None = None,
                 request_timeout: float | None = None, *,
                 ssl_context: ssl.SSLContext | None = None,
                 expect: Callable[[HTTPResponse], object] | None = None,
                 **kwargs: Unpack[Options]) -> None:
        self.url = url  # type: ignore[assignment]
        self.status = status  # type: ignore[assignment]
        self.method = method
        self.payload = payload
        self.headers = headers
        self.request_timeout = request_timeout
        self.ssl_context = ssl_context
        self.expect = expect
        NamedExecutor.__init__(self, command, **kwargs)

    @property
    def url(self) -> SplitResult:
        return self._url

    @url.setter
    def url(self, url: str | SplitResult) -> None:
        self._url = url if isinstance(url, SplitResult) else urlsplit(url)
        self.host = self._url.hostname or ''
        self.port = port_of(self._url, self.DEFAULT_PORT)

    @property
    def status(self) -> str:
        return self._status

    @status.setter
    def status(self, status: str | int) -> None:
        self._status = str(status)
        self.status_re = re.compile(self._status)

    def _description(self) -> tuple[object, ...]:
        return (self.url, self.host, self.port, self.status, self.status_re,
                self.method, {**(self.payload or {})},
                {**(self.headers or {})}, self.request_timeout,
                self.ssl_context, self.expect)

    def _new_condition(self) -> http:
        condition = http(
            at(self.url, self.host, self.port), self.status, self.method,
            self.payload, self.headers, self.request_timeout,
            ssl_context=self.ssl_context, expect=self.expect)
        condition.status_re = self.status_re
        if self.url.port == 0:
            self._url = condition.url
        return condition


class PidExecutor(NamedExecutor):
    """See `IConditionExecutor`."""

    def __init__(self, command: Command, filename: str | os.PathLike[str],
                 **kwargs: Unpack[Options]) -> None:
        self.filename = filename
        super().__init__(command, **kwargs)

    def _description(self) -> tuple[object, ...]:
        return self.filename,

    def _make_condition(self) -> Condition:
        return pid_file(self.filename)


class UnixSocketExecutor(NamedExecutor):
    """See `IConditionExecutor`."""

    def __init__(self, command: Command,
                 socket_name: str | os.PathLike[str], *,
                 send: bytes | None = None, expect: Expectation | None = None,
                 **kwargs: Unpack[Options]) -> None:
        self.socket = socket_name
        self.send = send
        self.expect = expect
        super().__init__(command, **kwargs)

    def _description(self) -> tuple[object, ...]:
        return self.socket, self.send, self.expect

    def _make_condition(self) -> Condition:
        return unix(self.socket, send=self.send, expect=self.expect)
