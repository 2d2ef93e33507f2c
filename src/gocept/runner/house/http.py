"""A small HTTP server for people, probes and Prometheus, without threads.

Sockets, deadlines and answers are sources and callbacks of one poller, so all
of it runs in the thread that polls, and that thread waits for no client. What
clients may use is bounded: their number, the length of a request, the time for
sending it and for reading the answer.

Each connection has one request (RFC 9112): the answer says ``Connection:
close``. A client that has sent more requests sends them again. A request with
a body is refused.

A page of an attacker may have its name point to this machine, and have the
browser of a user read what is here (DNS rebinding). The browser sends that
name as ``Host``. So names other than those that are known are refused. An
address cannot be such a name.
"""

import contextlib
import email.utils
import ipaddress
import logging
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from gocept.runner.channel import SocketChannel
from gocept.runner.errors import EndpointClosedException
from gocept.runner.logs import Log
from gocept.runner.poller import Poller, Timer
from gocept.runner.poller.server import Server as Source
from gocept.runner.waits.names import place

log = Log('gocept.runner.house')

LONGEST_HEAD = 8192
"""Bytes of a request, up to its empty line."""

MOST_FIELDS = 64
"""Lines of the head of a request, after the first."""

MOST_CONNECTIONS = 64
"""When one more comes, the oldest one is closed."""

PATIENCE = 10.0
"""Seconds in which a request has to be sent; then, in which it has to be
answered; and then, in which the answer has to be read."""

_MOST_BYTES = 256 * 1024
"""Bytes that are read of a client. What comes after its request is ignored."""

_END = re.compile(rb'\r?\n\r?\n')
_REQUEST = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) "
                      rb'HTTP/([0-9])\.([0-9])')
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*"
                    rb'([\t -~\x80-\xff]*)')
_HOST = re.compile(r'(\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@\s]+)(?::[0-9]*)?')
_ABSOLUTE = re.compile(r'https?://([^/?#]*)(.*)', re.IGNORECASE)

_LOOPBACK = 'localhost', '127.0.0.1', '::1'

_HEADERS = {
    'Cache-Control': 'no-store',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Referrer-Policy': 'no-referrer',
    'X-Content-Type-Options': 'nosniff',
}
"""Those of each answer."""


@dataclass(frozen=True)
class Request:
    """What a client asks for."""

    method: str
    """GET or HEAD."""
    path: str
    """As it was sent: with escapes, without the query."""
    query: str = ''
    headers: Mapping[str, str] = field(default_factory=dict)
    """By names in lower case."""


@dataclass(frozen=True)
class Answer:
    """What the client gets; of HEAD without the body."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = 'text/plain; charset=utf-8'
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request, Callable[[Answer], None]], None]
"""Answers a request by a call of its second argument: at once or later, from
the thread that polls. It calls this once."""


class Refusal(Exception):
    """Raised for a request that is refused; the message says why."""

    def __init__(self, status: HTTPStatus, reason: str,
                 headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.answer = Answer(
            f'{status.value} {status.phrase}: {reason}\n'.encode(
                errors='replace'), status, headers=headers or {})


def is_loopback(sock: socket.socket) -> bool:
    """Whether only this machine can connect to the socket."""
    return ipaddress.ip_address(
        sock.getsockname()[0].partition('%')[0]).is_loopback


def names_of(host: str) -> frozenset[str]:
    """The names that a server answers to which listens at this host."""
    return frozenset(each.lower() for each in (
        *_LOOPBACK, host, os.uname().nodename) if each)


class Server:
    """The clients of one listening socket.

    It has the socket from now on, and closes it.
    """

    def __init__(self, poller: Poller, sock: socket.socket, handler: Handler,
                 names: Iterable[str] = _LOOPBACK) -> None:
        self.poller = poller
        self.handler = handler
        self.names = frozenset(names)
        self._source = Source(sock, SocketChannel)
        self._connections: dict[Connection, None] = {}  # the oldest first
        poller.register(self._source, self._greet)

    def __str__(self) -> str:
        return place(*self._source.socket.getsockname()[:2])

    @property
    def is_idle(self) -> bool:
        """Whether there is no client."""
        return not self._connections

    def _greet(self, client: tuple[object, SocketChannel], source: object,
               ) -> None:
        while len(self._connections) >= MOST_CONNECTIONS:
            # One that says nothing, or little by little, takes no place.
            next(iter(self._connections)).close()
        connection = Connection(self, client[1])
        self._connections[connection] = None
        connection.open()

    def forget(self, connection: 'Connection') -> None:
        """Have no such client any more."""
        self._connections.pop(connection, None)

    def stop(self) -> None:
        """Accept nobody, and hear no request any more.

        Answers that are on their way are sent, within their time.
        """
        self.poller.unregister(self._source)
        self._source.socket.close()
        for connection in [*self._connections]:
            connection.stop()

    def close(self) -> None:
        """Close all."""
        self.stop()
        for connection in [*self._connections]:
            connection.close()


class Connection:
    """A client, its request, and the answer to that."""

    def __init__(self, server: Server, channel: SocketChannel) -> None:
        self._server, self._channel = server, channel
        # It is no concern of ours that a client did not read an answer.
        channel.loss_level = logging.DEBUG
        self._received = b''
        self._request: Request | None = None
        self._is_refused = False
        self._is_answered = False
        self._count = 0
        self._timer = Timer(PATIENCE)

    def open(self) -> None:
        """Hear what the client says."""
        poller = self._server.poller
        poller.register(self._channel, self._hear)
        poller.register(self._timer, self._give_up)

    @property
    def _is_heard(self) -> bool:
        """Whether its request has come, or will not be heard."""
        return self._request is not None or self._is_refused

    def _hear(self, data: bytes, channel: object) -> None:
        self._count += len(data)
        if not data or self._count > _MOST_BYTES:
            self.close()
        elif not self._is_heard:
            # Empty lines before a request are ignored.
            self._received = (self._received + data).lstrip(b'\r\n')
            self._look()

    def _look(self) -> None:
        """Whether the request is complete."""
        found = _END.search(self._received, 0, LONGEST_HEAD)
        try:
            if found is not None:
                self._request = request_of(
                    self._received[:found.start()], self._server.names)
            elif len(self._received) >= LONGEST_HEAD:
                raise _too_long(self._received)
            else:
                return
        except Refusal as refusal:
            self._refuse(refusal)
            return
        self._received = b''
        self._wait_anew()
        try:
            self._server.handler(self._request, self._answer)
        except Exception:
            log.exception('The request %s %s failed', self._request.method,
                          self._request.path)
            self._refuse(Refusal(
                HTTPStatus.INTERNAL_SERVER_ERROR, 'the log says why'))

    def _refuse(self, refusal: Refusal) -> None:
        log.debug('A request is refused: %s', refusal)
        self._is_refused = True
        self._received = b''
        self._answer(refusal.answer)

    def _answer(self, answer: Answer) -> None:
        if self._is_answered or self._channel.closed:
            return
        self._is_answered = True
        body = answer.body
        if self._request is not None and self._request.method == 'HEAD':
            body = b''
        self._wait_anew()
        try:
            self._channel.write_accepted(head_of(answer) + body)
            # Its end is read after it. The socket is closed when the client
            # has closed its side: otherwise what it has sent beyond the
            # request would have the system throw away the answer.
            self._channel.write_eof()
        except (EndpointClosedException, OSError) as error:
            log.debug('A client is gone: %s', error)
            self.close()

    def _wait_anew(self) -> None:
        """The next step has a time of its own."""
        poller = self._server.poller
        poller.unregister(self._timer)
        self._timer = Timer(PATIENCE)
        poller.register(self._timer, self._give_up)

    def _give_up(self, *result: object) -> None:
        """The time of this step has passed."""
        if self._is_answered or not (self._received or self._is_heard):
            self.close()
        elif self._request is None:
            self._refuse(Refusal(
                HTTPStatus.REQUEST_TIMEOUT,
                f'the request was not complete within {PATIENCE:g} s'))
        else:
            self._refuse(Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f'there was no answer within {PATIENCE:g} s'))

    def stop(self) -> None:
        """Close it, if no answer is on its way."""
        if not (self._is_answered and self._channel.kept):
            self.close()

    def close(self) -> None:
        """Close it, whatever it does."""
        poller = self._server.poller
        poller.unregister(self._timer)
        poller.unregister(self._channel)
        self._channel.close()
        self._server.forget(self)


def request_of(head: bytes, names: Iterable[str]) -> Request:
    """The request with this head; `Refusal` if it is none to be answered."""
    line, *lines = re.split(rb'\r?\n', head)
    found = _REQUEST.fullmatch(line)
    if found is None:
        raise Refusal(HTTPStatus.BAD_REQUEST,
                      'the first line is none of a request')
    method, target, major, minor = (part.decode() for part in found.groups())
    if major != '1':
        raise Refusal(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
                      'only HTTP/1.0 and HTTP/1.1 are known here')
    headers = _headers(lines)
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is not None:
        headers['host'], target = absolute[1], absolute[2] or '/'
    _check_host(headers.get('host'), minor == '0', names)
    if method not in ('GET', 'HEAD'):
        raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED,
                      'there are only GET and HEAD', {'Allow': 'GET, HEAD'})
    if 'transfer-encoding' in headers or (
            headers.get('content-length', '0').strip('0')):
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                      'a request with a body is not read')
    path, _, query = target.partition('#')[0].partition('?')
    if not path.startswith('/'):
        raise Refusal(HTTPStatus.BAD_REQUEST, 'a path begins with a slash')
    return Request(method, path, query, headers)


def _headers(lines: Iterable[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for number, line in enumerate(lines):
        if number == MOST_FIELDS:
            raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                          f'there are more than {MOST_FIELDS} fields')
        found = _FIELD.fullmatch(line)
        if found is None:
            raise Refusal(HTTPStatus.BAD_REQUEST,
                          f'line {number + 2} is none of a head')
        name, value = (part.decode('latin-1') for part in found.groups())
        name = name.lower()
        if name == 'host' and name in headers:
            raise Refusal(HTTPStatus.BAD_REQUEST, 'there are several hosts')
        headers[name] = value.strip()
    return headers


def _check_host(host: str | None, may_be_missing: bool,
                names: Iterable[str]) -> None:
    if host is None and may_be_missing:
        return  # no browser is so old
    found = _HOST.fullmatch(host or '')
    if found is None:
        raise Refusal(HTTPStatus.BAD_REQUEST, 'there is no host, or none that '
                      'can be one')
    name = found[1].strip('[]').lower().removesuffix('.')
    if name in names:
        return
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return
    raise Refusal(
        HTTPStatus.MISDIRECTED_REQUEST,
        f'this server is not known as {name}; ask it by its address, or start '
        f'it with --http {name}:PORT')


def _too_long(received: bytes) -> Refusal:
    if b'\n' in received[:LONGEST_HEAD]:
        return Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                       f'the head has more than {LONGEST_HEAD} bytes')
    return Refusal(HTTPStatus.REQUEST_URI_TOO_LONG,
                   f'the first line has more than {LONGEST_HEAD} bytes')


def head_of(answer: Answer) -> bytes:
    """The head of an answer, with its empty line."""
    headers = {
        'Date': email.utils.formatdate(usegmt=True),
        'Connection': 'close', 'Content-Type': answer.content_type,
        'Content-Length': str(len(answer.body)), **_HEADERS, **answer.headers}
    lines = [f'HTTP/1.1 {answer.status.value} {answer.status.phrase}',
             *(f'{name}: {value}' for name, value in headers.items())]
    return '\r\n'.join([*lines, '', '']).encode('latin-1')
