"""The condition that a URL is answered."""

import contextlib
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlencode, urlsplit, urlunsplit

from gocept.runner.executor.aside import Aside
from gocept.runner.executor.condition import Check, Condition
from gocept.runner.executor.network import TCPCheck, tcp
from gocept.runner.poller import Poller
from gocept.runner.waiting import Deadline

if TYPE_CHECKING:
    from gocept.runner.executor.capture import Capture
    from gocept.runner.process import Process


class http(Condition):
    """That a request is answered as it should be."""

    def __init__(self, url: str, status: str | int = r'^2\d\d$',
                 method: str = 'HEAD',
                 payload: Mapping[str, str] | None = None,
                 headers: Mapping[str, str] | None = None,
                 request_timeout: float | None = None, *,
                 ssl_context: ssl.SSLContext | None = None,
                 expect: Callable[[HTTPResponse], Any]
                 | None = None) -> None:
        self.url = urlsplit(url)
        if self.url.scheme not in ('http', 'https') or not self.url.hostname:
            raise ValueError(f'{url!r} is no URL as http://HOST:PORT/PATH')
        if request_timeout is not None and not request_timeout >= 0:
            raise ValueError(f'request_timeout must be a number of seconds '
                             f'>= 0, not {request_timeout!r}')
        self.status = str(status)
        self.status_re = re.compile(self.status)
        self.method = method
        self.payload = payload
        self.headers = headers
        self.request_timeout = request_timeout
        self.expect = expect
        self.ssl_context = ssl_context
        if self.url.scheme == 'https' and ssl_context is None:
            self.ssl_context = ssl.create_default_context()
        port = self.url.port
        if port is None:
            port = 443 if self.url.scheme == 'https' else 80
        self.tcp = tcp(self.url.hostname, port)
        if port == 0:
            self.url = _with_port(self.url, self.tcp.port)

    def replaced(self, text: str) -> str:
        """See `ICondition`."""
        return self.tcp.replaced(text)

    def holds_already(self, poller: Poller, deadline: Deadline) -> str:
        """See `ICondition`."""
        return self.tcp.holds_already(poller, deadline)

    def servers(self) -> Iterator[int]:
        """See `ICondition`."""
        return self.tcp.servers()

    def check(self) -> Check:
        """See `ICondition`."""
        return _HTTPCheck(self, self.tcp.check())

    def ask(self, sock: socket.socket) -> tuple[bool, str]:
        """Send the request; whether the answer is right, and what it is."""
        connection = HTTPConnection(
            self.tcp.host, self.tcp.port)
        if self.ssl_context is not None and self.url.scheme == 'https':
            sock = self.ssl_context.wrap_socket(
                sock, server_hostname=self.tcp.host)
        connection.sock = sock
        with contextlib.closing(connection):
            connection.request(
                self.method, urlunsplit(
                    ('', '', self.url.path or '/', self.url.query, '')),
                urlencode(self.payload) if self.payload else None,
                dict(self.headers or {}))
            with connection.getresponse() as response:
                status = str(response.status)
                right = bool(status == self.status
                             or self.status_re.match(status))
                if right and self.expect is not None:
                    return bool(self.expect(response)), (
                        f'the answer with {status} is not as expected')
                return right, f'answered with {status} {response.reason}'


def _with_port(url: SplitResult, port: int) -> SplitResult:
    return url._replace(netloc=f'{url.netloc.rpartition(":")[0]}:{port}')


class _HTTPCheck(Check):

    def __init__(self, condition: http, connecting: TCPCheck) -> None:
        self._condition = condition
        self._tcp = connecting
        self._sock: socket.socket | None = None
        self._asking: Aside[tuple[bool, str]] | None = None
        self._limit = Deadline(0)
        self.awaited = (f'an answer with status {condition.status} to '
                        f'{condition.method} {condition.url.geturl()}')

    def begin(self, process: 'Process', captures: 'Sequence[Capture]',
              poller: Poller, deadline: Deadline) -> None:
        """See `Check`."""
        super().begin(process, captures, poller, deadline)
        self._tcp.begin(process, captures, poller, deadline)

    def holds(self) -> bool:
        """See `Check`."""
        if self._asking is None:
            self._begin_asking()
            return False
        if not self._asking.done:
            if self._limit.passed:
                self.seen = ('connected, but no answer in '
                             f'{self._condition.request_timeout} s')
                self._abandon()
            return False
        asking, self._asking = self._asking, None
        try:
            right, self.seen = asking.result()
        except (OSError, HTTPException) as error:
            self.seen = f'{type(error).__name__}: {error}'
            right = False
        finally:
            self._abandon()
        return right

    def _begin_asking(self) -> None:
        sock = self._tcp.connect()
        self.seen = self._tcp.seen
        if sock is None:
            return
        self.seen += ', but no answer yet'
        limit = self._condition.request_timeout or None
        self._limit = Deadline(limit)
        sock.settimeout(min(filter(None, (
            limit, max(self.deadline.left(), 0.001)))))
        # Of our own, as the other one is the thread's.
        self._sock = sock.dup()
        self._asking = Aside(lambda: self._condition.ask(sock), self.poller)

    def _abandon(self) -> None:
        self._asking = None
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # so the thread ends
            sock.close()

    def close(self) -> None:
        """See `Check`."""
        self._abandon()
        self._tcp.close()
