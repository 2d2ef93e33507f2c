"""The condition that a request of HTTP is answered."""

import contextlib
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from http.client import HTTPConnection, HTTPException, HTTPResponse
from urllib.parse import urlencode, urlsplit

from gocept.runner.executor.conditions.base import Check, Pauses
from gocept.runner.executor.conditions.network import TCPCheck, tcp
from gocept.runner.executor.conditions.threads import in_thread
from gocept.runner.waits.deadline import Deadline


class http(tcp):
    """That a request has the right answer."""

    def __init__(self, url: str, status: str | int = r'^2\d\d$',
                 method: str = 'HEAD',
                 payload: Mapping[str, str] | None = None,
                 headers: Mapping[str, str] | None = None,
                 request_timeout: float | None = None, *,
                 ssl_context: ssl.SSLContext | None = None,
                 expect: Callable[[HTTPResponse], object]
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
        self.headers = dict(headers or {})
        self.body = urlencode(payload) if payload else None
        if payload and 'content-type' not in map(str.lower, self.headers):
            self.headers['Content-Type'] = 'application/x-www-form-urlencoded'
        self.request_timeout = request_timeout
        self.expect = expect
        encrypted = self.url.scheme == 'https'
        self.ssl_context = (
            ssl_context or ssl.create_default_context()) if encrypted else None
        port = self.url.port
        if port is None:
            port = 443 if encrypted else 80
        super().__init__(self.url.hostname, port)
        if port == 0:
            place = f'{self.url.netloc.rpartition(":")[0]}:{self.port}'
            self.url = self.url._replace(netloc=place)
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
        self._answer = ''
        url = condition.url  # shown without a user and a password
        shown = url._replace(netloc=url.netloc.rpartition('@')[2]).geturl()
        self.awaited = (f'an answer with status {condition.status} to '
                        f'{condition.method} {shown}')

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
