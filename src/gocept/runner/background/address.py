"""Where a server listens, and the way there."""

import errno
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gocept.runner.background.handshake import (
    ANOTHER_TOKEN,
    ANSWER_SIZE,
    CHALLENGE_SIZE,
    MAGIC,
    STATUS_KEY,
    TOKEN,
    prove,
)
from gocept.runner.background.link import Broken, Link
from gocept.runner.background.tokens import (
    VARIABLE,
    find_token,
    given_token,
    place,
    state_directory,
    token_file,
)
from gocept.runner.errors import (
    BackgroundTimeout,
    NobodyListens,
    ProtocolError,
    ServerBusy,
    ServerNotRunning,
    ServerRefused,
    ShortageError,
)
from gocept.runner.waits import forks
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.names import look_up

if TYPE_CHECKING:
    from gocept.runner.background.tls import TLS

_SHORTEST = 0.001  # seconds, as 0 stands for no waiting at all

_SHOWN = 60  # bytes of what is no greeting

_IDLE, _PAUSE, _PROBES = 30, 10, 3
"""Seconds of silence, seconds and number of the system's own probes."""

_LIFE = slice(12, 16)
"""Where a challenge has the number of the server's life."""


served: dict[str, tuple[int, int]] = {}
"""The servers of this process, by their `place`: the thread that runs the
tasks, and the generation of the process."""


@contextmanager
def serving(host: str, port: int) -> Iterator[None]:
    """This thread runs the tasks of the server there."""
    name = place(host, port)
    served[name] = threading.get_ident(), forks.generation
    try:
        yield
    finally:
        served.pop(name, None)


def require_place(host: object, port: object) -> None:
    """TypeError and ValueError where no server can be."""
    if not isinstance(host, str):
        raise TypeError(f'the host is a str, and not {host!r}')
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f'the port is an int, and not {port!r}')
    if not 0 < port < 2 ** 16:
        raise ValueError(f'the port is between 1 and 65535, and not {port}')


def require_positive(**numbers: object) -> None:
    """TypeError and ValueError for a number that lets nothing pass."""
    for name, number in numbers.items():
        if not isinstance(number, int | float):
            raise TypeError(f'{name} is a number, and not {number!r}')
        if not number > 0:
            raise ValueError(f'{name} is more than 0, and not {number}')


class Address:
    """A host and a port, and what proves there who we are."""

    def __init__(self, host: str, port: int, token: str | None,
                 tls: 'TLS | None', status_key: bytes | None) -> None:
        require_place(host, port)
        self.host = host
        self.port = port
        self._token = token
        self._tls = tls
        self._status_key = status_key

    def __str__(self) -> str:
        host = f'[{self.host}]' if ':' in self.host else self.host
        return f'{host}:{self.port}'

    def is_ours(self) -> bool:
        """Whether this thread runs the tasks of that server."""
        return served.get(place(self.host, self.port)) == (
            threading.get_ident(), forks.generation)

    def is_loopback(self) -> bool:
        """Whether no other machine can be meant."""
        return self.host in ('localhost', '::1') or (
            self.host.startswith('127.'))

    def is_local(self) -> bool:
        """Whether it belongs to this machine, so that we could listen there.

        What only the system can tell is tried: to bind a socket.
        """
        if self.is_loopback() or self.host in ('', '0.0.0.0', '::'):
            return True
        try:
            found = look_up(self.host, 0)[0]
            with socket.socket(found[0], found[1]) as sock:
                sock.bind(found[4])
        except OSError:
            return False
        return True

    def connect(self, deadline: Deadline, longest: int,
                heartbeat: float | None) -> Link:
        """Return a connection on which both have proved who they are.

        NobodyListens and other ServerNotRunning, ServerRefused, ServerBusy,
        ProtocolError, BackgroundTimeout. `Broken` if the server closes it, as
        one that ends does: worth another try.
        """
        sock = self._dial(deadline)
        try:
            if self._tls is not None:
                sock = self._encrypt(sock, deadline)
            challenge = self._receive(sock, CHALLENGE_SIZE, MAGIC, deadline)
            number, key, advice = self._key()
            try:
                proof = prove(challenge, number, key,
                              tls=self._tls is not None)
                self._limit(sock, deadline)
                sock.sendall(proof.data)
                agreed = proof.check(
                    self._receive(sock, ANSWER_SIZE, b'', deadline))
            except (ProtocolError, ServerRefused, ServerBusy) as error:
                text = f'{self}: {error}'
                raise type(error)(
                    text + advice if str(error) == ANOTHER_TOKEN else text
                ) from None
            except TimeoutError:
                raise self._silent(deadline) from None
            except OSError as error:
                raise self._gone(error) from error
            return Link(sock, self, agreed, challenge[_LIFE], longest,
                        heartbeat)
        except BaseException:
            sock.close()
            raise

    # Connection

    def _dial(self, deadline: Deadline) -> socket.socket:
        if hasattr(os, 'get_blocking'):
            from gocept.runner.waits.standard import fill_standard
            fill_standard()
        try:
            found = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as error:
            raise ServerNotRunning(
                f'the host {self.host!r} is not known '
                f'({getattr(error, "strerror", None) or error}): look at its '
                'spelling, or give its IP address') from error
        refusal: OSError | None = None
        for family, kind, number, _, peer in found:
            try:
                return self._try((family, kind, number), peer, deadline)
            except OSError as error:
                # Of several addresses, that nobody listens is told last.
                if refusal is None or not isinstance(
                        error, ConnectionRefusedError):
                    refusal = error
        assert refusal is not None
        if isinstance(refusal, ConnectionRefusedError):
            raise NobodyListens(
                f'no server listens at {self}: start one there, with '
                f'"gocept-runner server {self.host} {self.port}" or '
                'gocept.runner.background.initialize()') from None
        if isinstance(refusal, TimeoutError):
            raise BackgroundTimeout(
                f'nobody has answered at {self} in {deadline}: '
                'look at the host, the port, and any firewall between'
            ) from None
        if isinstance(refusal, ConnectionError):
            raise self._gone(refusal) from refusal
        if refusal.errno in (errno.EMFILE, errno.ENFILE):
            raise ShortageError(refusal.errno, refusal.strerror) from refusal
        raise ServerNotRunning(
            f'{self} cannot be reached ({refusal.strerror or refusal}): look '
            'at the host and the network') from refusal

    def _try(self, kind: tuple[int, int, int], place: object,
             deadline: Deadline) -> socket.socket:
        sock = socket.socket(*kind)
        try:
            self._limit(sock, deadline)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (('TCP_KEEPIDLE', _IDLE),
                                ('TCP_KEEPINTVL', _PAUSE),
                                ('TCP_KEEPCNT', _PROBES)):
                if hasattr(socket, name):
                    sock.setsockopt(
                        socket.IPPROTO_TCP, getattr(socket, name), value)
            sock.connect(place)  # type: ignore[arg-type]
            try:
                is_own = sock.getsockname() == sock.getpeername()
            except OSError as error:  # closed already, by the other side
                raise ConnectionResetError(*error.args) from error
            if is_own:  # the system has chosen the port itself for our end
                raise ConnectionRefusedError
        except BaseException:
            sock.close()
            raise
        return sock

    def _limit(self, sock: socket.socket, deadline: Deadline) -> None:
        sock.settimeout(max(deadline.left(), _SHORTEST))

    def _encrypt(self, sock: socket.socket, deadline: Deadline,
                 ) -> socket.socket:
        import ssl

        from gocept.runner.background.tls import client_context
        assert self._tls is not None
        context = client_context(*self._tls)
        self._limit(sock, deadline)
        try:
            return context.wrap_socket(sock, server_hostname=self.host)
        except ssl.SSLCertVerificationError as error:
            raise ServerRefused(
                f'the certificate of the server at {self} is not the right '
                f'one: {error.verify_message}') from error
        except ssl.SSLError as error:
            raise ProtocolError(
                f'the server at {self} does not speak TLS with us '
                f'({error.reason or error}): start it with certificates, or '
                'leave tls= out here') from error
        except TimeoutError:
            raise self._silent(deadline) from None
        except OSError as error:
            raise self._gone(error) from error

    # Handshake

    def _receive(self, sock: socket.socket, size: int, begin: bytes,
                 deadline: Deadline) -> bytes:
        """Receive so many bytes, which are to begin so."""
        said = b''
        while len(said) < size:
            self._limit(sock, deadline)
            try:
                received = sock.recv(size - len(said))
            except TimeoutError:
                raise self._silent(deadline, said) from None
            except OSError as error:
                raise self._gone(error) from error
            if not received:
                raise self._gone(None)
            said += received
            if said[:len(begin)] != begin[:len(said)]:
                raise ProtocolError(
                    f'what listens at {self} is no background server, or one '
                    f'that speaks TLS or another version: it said '
                    f'{_shown(said)}; look at the port')
        return said

    def _silent(self, deadline: Deadline, said: bytes = b'',
                ) -> BackgroundTimeout:
        return BackgroundTimeout(
            f'what listens at {self} has said '
            f'{"no more" if said else "nothing"} in {deadline}, so no '
            'request was sent: it hangs, is no background server, or '
            + ('does not speak TLS: look at the port, and at tls='
               if self._tls else 'one with TLS: look at the port, or give '
               'tls='), said)

    def _gone(self, error: OSError | None) -> Broken:
        reason = f' ({error.strerror or error})' if error else ''
        return Broken(
            f'what listens at {self} has closed the connection before it was '
            f'agreed on{reason}: it ends, has too many clients at once, '
            + ('or refuses our certificate' if self._tls
               else 'or wants TLS: give tls='))

    def _key(self) -> tuple[int, bytes, str]:
        """The number of what we prove to know; this; and what to do if it is
        another one than that of the server."""
        if self._status_key is not None:
            return STATUS_KEY, self._status_key, (
                ' than the one in the state directory: it was started anew '
                'just now, or is the server of somebody else')
        environ: Mapping[str, str] = os.environ
        token = given_token(self._token, environ)
        advice = (' than the one that was given: give token= of the server, '
                  'or leave it out for a server that has made its own'
                  if self._token is not None else
                  f' than the one in {VARIABLE}: give token=, or unset '
                  f'{VARIABLE} for a server that has made its own')
        if token is None:
            token = find_token(self.host, self.port)
            advice = (f' than the one in {token_file(self.host, self.port)}, '
                      'as it was started with a token, or by another user: '
                      f'give token=, or set {VARIABLE}')
        if token is None:
            raise ServerRefused(
                f'the server at {self} wants a token, and there is none: give '
                'token=, or set GOCEPT_RUNNER_TOKEN (a server that was '
                'started without a token keeps its own in '
                f'{state_directory()}, for the same user on the same machine)')
        return TOKEN, token.encode(), advice


def _shown(said: bytes) -> str:
    text = said[:_SHOWN].decode(errors='replace').strip()
    return '"' + ''.join(each if each.isprintable() else ' '
                         for each in text) + '"'
