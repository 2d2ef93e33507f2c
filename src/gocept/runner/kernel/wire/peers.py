"""Whose process has the other end of a connection.

On a Unix socket, the system keeps the user who has connected. On TCP it tells
the user of a socket by sock_diag(7), in a few microseconds, or else by
``/proc/net/tcp``, which takes milliseconds among thousands of connections.

Names of users are not looked up, as that may wait for a server: a user is a
number here.
"""

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gocept.runner.errors import KernelError
from gocept.runner.logs import Log
from gocept.runner.waits.closing import Owning
from gocept.runner.waits.deadline import Deadline, is_broken, wait_for

log = Log('gocept.runner.kernel')

_CREDENTIALS = struct.Struct('3i')  # pid, uid, gid: see SO_PEERCRED in unix(7)

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2

_HEADER = struct.Struct('=IHHII')
"""length, type, flags, sequence, port: see netlink(7)."""

_REQUEST = struct.Struct('=IHHII' 'BBBxI' '2s2s16s16sI8s')
"""The header, and inet_diag_req_v2: see sock_diag(7)."""

_ANSWER = struct.Struct('=BBBB' '2s2s16s16sI8s' 'IIIII')
"""inet_diag_msg, behind the header."""

_NO_COOKIE = b'\xff' * 8

_ERROR = struct.Struct('=i')

# States of TCP, see <netinet/tcp.h>.
_SYN_SENT = 2
_SYN_RECEIVED = 3
_CLOSED = 7
_LISTEN = 10

_LOOPBACK_NET = 127
_LOOPBACK_6 = b'\0' * 15 + b'\1'

_MAPPED = b'\0' * 10 + b'\xff' * 2
"""Stands before an address of IPv4 in one of IPv6."""

_WAIT = 1.0  # seconds for an answer, which the system gives within the call

_Pair = tuple[bytes, bytes]


class Owner(NamedTuple):
    """The socket at one end of a connection, or one that listens."""

    state: int
    uid: int
    inode: int
    """0 if no process has it: then `uid` says nothing."""


class Peers(Owning):
    """Asks the system who is at the other end, and says who may talk."""

    def __init__(self, allowed: Iterable[int] = ()) -> None:
        """`allowed` are users besides our own and root."""
        self.user = os.geteuid()
        self.allowed = frozenset((self.user, 0, *allowed))
        self._diag = _Diag()
        self.closed = False

    def _release(self) -> None:
        self._diag.close()

    def close(self) -> None:
        """See `Closing`."""
        self.closed = True
        self._release()

    def user_of(self, sock: socket.socket) -> int:
        """The user who has the other end; `KernelError` if nobody has it."""
        if sock.family == socket.AF_UNIX:
            return unix_user(sock)
        ours, theirs = sock.getsockname(), sock.getpeername()
        for address in (ours, theirs):
            if not _is_loopback(address[0]):
                raise KernelError(
                    f'the connection comes from {theirs[0]}, and only this '
                    f'machine may talk to the kernel: use 127.0.0.1')
        owner = self._diag.find(theirs, ours)
        # Meanwhile the client may have broken the connection, and another one
        # may have got its port.
        if owner is None or not owner.inode or _state(sock) == _CLOSED:
            raise KernelError(
                'the client has closed the connection before the kernel could '
                'ask whose it is: wait for the answer before you close it')
        return owner.uid

    def refusal(self, sock: socket.socket) -> str:
        """Why the client may not talk, in one line; empty if it may."""
        try:
            user = self.user_of(sock)
        except KernelError as error:
            return str(error)
        except OSError as error:  # it has gone meanwhile
            return f'the user of the client is not known: {error}'
        if user in self.allowed:
            return ''
        return (f'this kernel serves user {self.user}, and you are user '
                f'{user}: if you may run anything as user {self.user}, it is '
                f'to be started with --allow-user')

    def is_gone(self, sock: socket.socket) -> bool:
        """Whether a client that sends no more does not read either."""
        try:
            if sock.family == socket.AF_UNIX:
                return is_broken(sock.fileno())
            owner = self._diag.find(sock.getpeername(), sock.getsockname())
        except OSError:
            return True
        return owner is None or not owner.inode


def unix_user(sock: socket.socket) -> int:
    """The user who has connected, or who listens, on a Unix socket."""
    uid: int = _CREDENTIALS.unpack(sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
    return uid


def user_of(sock: socket.socket) -> int:
    """The user who has the other end of a connection.

    `KernelError` if nobody has it any more.
    """
    with Peers() as peers:
        return peers.user_of(sock)


def owner_of_listener(host: str, port: int) -> int | None:
    """The user whose socket listens at this address of ours, if one does.

    `host` is a number.
    """
    with contextlib.closing(_Diag()) as diag:
        nowhere = ('::', 0) if ':' in host else ('0.0.0.0', 0)
        owner = diag.find((host, port), nowhere)
    return None if owner is None else owner.uid


def _is_loopback(host: str) -> bool:
    packed = _packed(host)
    return packed[0] == _LOOPBACK_NET if len(packed) == 4 else (
        packed == _LOOPBACK_6)


def _packed(host: str) -> bytes:
    """The 4 or 16 bytes of an address."""
    if ':' not in host:
        return socket.inet_pton(socket.AF_INET, host)
    packed = socket.inet_pton(socket.AF_INET6, host.partition('%')[0])
    return packed.removeprefix(_MAPPED)


def _state(sock: socket.socket) -> int:
    """Of our own end of a TCP connection."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


class _Diag:
    """Looks sockets of TCP up."""

    works = False
    """Whether sock_diag has found a socket, so that what it does not find is
    not there. A system may lack it, or lack its part for TCP."""

    def __init__(self) -> None:
        self._sequence = 0
        self._socket: socket.socket | None = None
        # A socket may be bound to the loopback interface.
        self._interface = 0
        with contextlib.suppress(OSError):
            self._interface = socket.if_nametoindex('lo')
        with contextlib.suppress(OSError):
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
            self._socket.setblocking(False)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def find(self, local: tuple[str | int, ...],
             remote: tuple[str | int, ...]) -> Owner | None:
        """The socket that is bound to `local` and connected to `remote`.

        If `remote` is no address, that which listens.
        """
        ends = (int(local[1]).to_bytes(2, 'big'),
                int(remote[1]).to_bytes(2, 'big'))
        hosts = (_packed(str(local[0])), _packed(str(remote[0])))
        if self._socket is not None:
            try:
                owner = self._ask(self._socket, ends, hosts)
            except OSError as error:
                log.warning('sock_diag does not answer: %s', error)
                self.works = False
            else:
                if owner is not None:
                    self.works = True
                if self.works:
                    return owner
        return _search(ends, hosts)

    def _ask(self, diag: socket.socket, ends: _Pair,
             hosts: _Pair) -> Owner | None:
        self._sequence = sequence = (self._sequence + 1) % 2 ** 32
        family = socket.AF_INET if len(hosts[0]) == 4 else socket.AF_INET6
        diag.send(_REQUEST.pack(
            _REQUEST.size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, sequence, 0,
            family, socket.IPPROTO_TCP, 0, 2 ** 32 - 1,
            *ends, *hosts, self._interface, _NO_COOKIE))
        while True:
            try:
                answer = diag.recv(8192)
            except BlockingIOError:
                if not wait_for(diag.fileno(), select.POLLIN,
                                Deadline(_WAIT)):
                    raise TimeoutError('no answer in a second') from None
                continue
            _, kind, _, number, _ = _HEADER.unpack_from(answer)
            if number == sequence:
                break
        if kind == _NLMSG_ERROR:
            code, = _ERROR.unpack_from(answer, _HEADER.size)
            if code == -errno.ENOENT:
                return None
            raise OSError(-code, os.strerror(-code))
        fields = _ANSWER.unpack_from(answer, _HEADER.size)
        state, uid, inode = fields[1], fields[-2], fields[-1]
        # Where no connection is found, the system offers what listens.
        if fields[4:6] != ends or not _fits(state, ends):
            return None
        return Owner(state, uid, inode)


def _fits(state: int, ends: _Pair) -> bool:
    """Whether a socket is what was looked for.

    A client that still waits for its connection may have the port of one that
    is gone.
    """
    if _listens(ends):
        return state == _LISTEN
    return state not in (_LISTEN, _SYN_SENT, _SYN_RECEIVED, _CLOSED)


def _listens(ends: _Pair) -> bool:
    """Whether a socket is looked for that listens."""
    return ends[1] == b'\0\0'


def _search(ends: _Pair, hosts: _Pair) -> Owner | None:
    """Look it up in ``/proc/net``, which shows all of them."""
    here, there = hosts
    # What listens on all addresses listens on this one.
    others = [bytes(len(here))] if _listens(ends) else []
    for host in (here, *others):
        for path, prefix in _tables(len(host)):
            names = [f'{_hex(prefix + host)}:{end.hex().upper()}'
                     for host, end in ((host, ends[0]), (there, ends[1]))]
            for line in _lines(path):
                fields = line.split()
                if fields[1:3] == names:
                    state = int(fields[3], 16)
                    if _fits(state, ends):
                        return Owner(state, int(fields[7]), int(fields[9]))
    return None


def _tables(size: int) -> Iterator[tuple[str, bytes]]:
    """The files, and what stands before an address of `size` bytes there."""
    if size == 4:
        yield '/proc/net/tcp', b''
        yield '/proc/net/tcp6', _MAPPED
    else:
        yield '/proc/net/tcp6', b''


def _hex(address: bytes) -> str:
    """As the system writes it: words in the order of its own bytes."""
    return ''.join(
        f'{word:08X}' for word, in struct.iter_unpack('=I', address))


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding='ascii') as table:
            return table.read().splitlines()[1:]
    except FileNotFoundError:  # a system without IPv6
        return []
