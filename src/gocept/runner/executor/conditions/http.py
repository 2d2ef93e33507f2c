"""The condition that a request of HTTP is answered."""

import contextlib
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import SplitResult, urlencode, urlsplit

from gocept.runner.executor.conditions.base import Check, Pauses
from gocept.runner.executor.conditions.network import TCPCheck, tcp
from gocept.runner.executor.conditions.threads import in_thread
from gocept.runner.waits.deadline import Deadline


def port_of(url: SplitResult, default: int = 80) -> int:
    """The port of a URL; `default` if it has none and is not encrypted."""
    if url.port is not None:
        return url.port
    return 443 if url.scheme == 'https' else default


def at(url: SplitResult, host: str, port: int) -> SplitResult:
    """The URL on that server."""
    if not url.hostname or (host, port) == (url.hostname, port_of(url)):
        return url
    user, at, _ = url.netloc.rpartition('@')
    place = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'
    return url._replace(netloc=f'{user}{at}{place}')


class http(tcp):
    """That a request has the right answer."""

    def __init__(self, url: str | SplitResult, status: str | int = r'^2\d\d$',
                 method: str = 'HEAD',
                 payload: Mapping[str, str] | None = None,
                 headers: Mapping[str, str] | None = None,
                 request_timeout: float | None = None, *,
                 ssl_context: ssl.SSLContext | None = None,
                 expect: Callable[[HTTPResponse], object]
                 | None = None) -> None:
        self.url = url if isinstance(url, SplitResult) else urlsplit(url)
        if self.url.scheme not in ('http', 'https') or not self.url.hostname:
            raise ValueError(f'{self.url.geturl()!r} is no URL as '
                             'http://HOST:PORT/PATH')
        if request_timeout is not None and not request_timeout >= 0:
            raise ValueError(f'request_timeout must be a number of seconds '
                             f'>= 0, not {request_timeout!r}')
        self.status = str(status)
        self.status_re = re.compile(self.status)
        self.method = method
        self.headers = dict(headers or {})
        self.body = urlencode(payload) if payload else None
        if payload and 'content-type' not in map(str.lower, self.headers):
            self.headers['Content-Type'] = 'application/x-www-form-urlencoded'
        self.request_timeout = request_timeout
        self.expect = expect
        encrypted = self.url.scheme == 'https'
        self.ssl_context = (
            ssl_context or ssl.create_default_context()) if encrypted else None
        super().__init__(self.url.hostname, port_of(self.url))
        self.url = at(self.url, self.host, self.port)
        # urlunsplit() of some Pythons changes a path as //x.
        query = f'?{self.url.query}' if self.url.query else ''
        self.target = (self.url.path or '/') + query

    def check(self) -> Check:
        return _HTTPCheck(self)

    def ask(self, sock: socket.socket) -> tuple[bool, str]:
        """Send the request; return whether the answer is right, and say it."""
        connection = HTTPConnection(self.host, self.port)
        connection.sock = sock
        with contextlib.closing(connection):
            if self.ssl_context is not None:
                connection.sock = self.ssl_context.wrap_socket(
                    sock, server_hostname=self.host)
            connection.request(
                self.method, self.target, self.body, self.headers)
            with connection.getresponse() as response:
                status = str(response.status)
                right = bool(status == self.status
                             or self.status_re.match(status))
                if right and self.expect is not None:
                    return bool(self.expect(response)), (
                        f'the answer with {status} is not as expected')
                return right, f'answered with {status} {response.reason}'


class _HTTPCheck(TCPCheck):

    _condition: http

    def __init__(self, condition: http) -> None:
        super().__init__(condition)
        self._sock: socket.socket | None = None
        self._asking: Future[tuple[bool, str]] | None = None
        self._limit = Deadline(0)
        self._pauses = Pauses()
        self._answer = ''  # to a request before
        url = condition.url  # shown without a user and a password
        shown = url._replace(netloc=url.netloc.rpartition('@')[2]).geturl()
        self.awaited = (f'an answer with status {condition.status} to '
                        f'{condition.method} {shown}')

    @property
    def looking(self) -> bool:  # type: ignore[override]
        return self._asking is not None or super().looking

    def holds(self) -> bool:
        if self._asking is None:
            if self._pauses.over:
                self._begin_asking()
            return False
        if not self._asking.done() and not self._limit.passed:
            return False
        right = False
        try:
            right, self._answer = self._asking.result(0)
        except TimeoutError:  # there is none yet, or the socket says so
            if self.deadline.passed and self._answer:
                return False  # it was cut short: the answer before tells more
            self._answer = (f'connected, but no answer in '
                            f'{self._limit.seconds:.2f} s')
        except (OSError, HTTPException) as error:
            self._answer = f'{type(error).__name__}: {error}'
        finally:
            self._abandon()
            self._pauses.begin()
        self.seen = self._answer
        return right

    def _begin_asking(self) -> None:
        sock = self.connect()
        seen = self.seen
        if sock is not None:
            seen += ', but no answer yet'
        # The deadline may pass here, so the answer before is said as well.
        self.seen = f'{self._answer}; then {seen}' if self._answer else seen
        if sock is None:
            return
        left = max(self.deadline.left(), 0.001)
        self._limit = Deadline(
            min(self._condition.request_timeout or left, left))
        sock.settimeout(self._limit.seconds)
        # A copy, as the thread closes the other one.
        self._sock = sock.dup()
        self._asking = in_thread(
            lambda: self._condition.ask(sock), self.poller)
        if self._asking.done():  # perhaps there is no thread that closes it
            sock.close()

    def _abandon(self) -> None:
        self._asking = None
        sock, self._sock = self._sock, None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # ends the thread
            sock.close()

    def close(self) -> None:
        self._abandon()
        super().close()
