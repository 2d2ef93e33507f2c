"""The sockets that the daemon keeps for processes.

Each has a number from `FIRST_NUMBER` on, and every child inherits it under
that number. A successor gives it the same one.
"""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterable, Iterator, Mapping

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon import reserve
from gocept.runner.kernel.daemon.binding import LISTENING, listen, open_socket
from gocept.runner.kernel.daemon.names import matching
from gocept.runner.kernel.daemon.socketparameters import (
    FAMILIES,
    TYPES,
    SocketParameters,
)
from gocept.runner.kernel.daemon.state import State
from gocept.runner.kernel.keeper.link import Link
from gocept.runner.kernel.wire.frames import Json
from gocept.runner.kernel.wire.text import from_bytes, to_bytes
from gocept.runner.logs import Log
from gocept.runner.process.mounts import Mounts

log = Log('gocept.runner.kernel')

FIRST_NUMBER = 64
"""What the daemon opens itself mostly has lower numbers."""

_PREFIX = 'socket:'
"""Of the keys under which the keeper holds the descriptors."""

_PASSED = 'systemd:'
"""Of the keys of sockets that systemd has passed."""


class KernelSocket:
    """One socket that exists."""

    __slots__ = ('address', 'fd', 'inode', 'parameters')

    def __init__(self, parameters: SocketParameters, address: str | None,
                 fd: int, inode: tuple[int, int] | None) -> None:
        self.parameters = parameters
        self.address = address
        """The host as a number."""
        self.fd = fd
        """-1 where there is none, as each process gets a socket of its own and
        nobody has to keep the port."""
        self.inode = inode
        """Of the file of a Unix socket that is ours to remove."""

    @property
    def info(self) -> dict[str, Json]:
        """What clients are shown."""
        parameters = self.parameters
        shown: dict[str, Json] = {
            'family': parameters.family, 'type': parameters.type,
            'backlog': parameters.backlog}
        for key in ('path', 'host', 'port', 'interface'):
            value = getattr(parameters, key)
            if value is not None:
                shown[key] = value
        if parameters.umask is not None:
            shown['umask'] = str(parameters.umask)
        if parameters.reuseport:
            shown['reuseport'] = '1'
        else:
            shown['fileno'] = self.fd
        return shown

    @property
    def is_inherited(self) -> bool:
        """Whether all children have it."""
        return self.fd >= 0 and not self.parameters.reuseport

    @property
    def record(self) -> Json:
        """What a successor needs."""
        return [self.parameters._asdict(), self.address, self.fd,
                None if self.inode is None else [*self.inode]]


class Sockets:
    """The sockets by name."""

    def __init__(self, state: State, link: Link, mounts: Mounts,
                 limit: int) -> None:
        self._state = state
        self._link = link
        self._mounts = mounts
        self._limit = limit
        self._sockets: dict[str, KernelSocket] = {}
        record: Json
        for name, record in [*state.items('socket')]:
            parameters, address, number, inode = record
            fd = link.table.get(_PREFIX + name, -1)
            if fd < 0 <= number:
                log.error('The socket %r is lost, as the keeper does not have '
                          'it: make it again', name)
                state.drop('socket', name)
                continue
            self._sockets[name] = KernelSocket(
                SocketParameters(**parameters), address, fd,
                None if inode is None else (inode[0], inode[1]))
            if self._sockets[name].is_inherited:
                os.set_inheritable(self._sockets[name].fd, True)

    def __len__(self) -> int:
        return len(self._sockets)

    @property
    def descriptors(self) -> list[int]:
        """What every child inherits."""
        return [each.fd for each in self._sockets.values()
                if each.is_inherited]

    def select(self, names: Iterable[str], required: bool = False,
               ) -> dict[str, KernelSocket]:
        """Those with such names or numbers; all of them for no names."""
        return matching(self._sockets, names, required, self._numbered)

    def _numbered(self, number: int) -> str | None:
        for name, each in self._sockets.items():
            if each.fd == number:
                return name
        return None

    def get(self, name: str) -> KernelSocket | None:
        """One socket by its name."""
        return self._sockets.get(name)

    def find(self, parameters: SocketParameters) -> KernelSocket | None:
        """The existing one; KernelError if it is another one."""
        existing = self._sockets.get(parameters.name)
        if existing is None:
            if len(self._sockets) >= self._limit:
                raise KernelError(
                    f'there are {self._limit} sockets, and the limit '
                    '"sockets" allows no more: remove some')
            return None
        differ = parameters.differences(existing.parameters)
        if differ:
            raise KernelError(
                f'the socket {parameters.name!r} exists with other '
                f'parameters: {_describe(existing.info)}; it differs in '
                f'{", ".join(differ)}; remove it first')
        return existing

    def make(self, parameters: SocketParameters, address: str | None,
             ) -> KernelSocket:
        """Open one that does not exist; `address` is the host as a number."""
        if parameters.path is not None:
            self._check_free(parameters.path)
        sock, inode = open_socket(parameters, address)
        with sock:
            if (not parameters.port and address is not None
                    and parameters.type != 'raw'):
                parameters = parameters._replace(port=sock.getsockname()[1])
            made = KernelSocket(parameters, address, -1, inode)
            try:
                if not parameters.reuseport or parameters.type == 'stream':
                    # A stream socket that does not listen keeps the port and
                    # takes no clients. Another one would take what is sent.
                    made.fd = _numbered_copy(sock, parameters.name)
                self._add(made)
            except BaseException:
                self._let_go(made)
                raise
        return made

    def _add(self, made: KernelSocket) -> None:
        name = made.parameters.name
        if made.fd >= 0:
            self._link.hold({_PREFIX + name: made.fd})
        self._state.put('socket', name, made.record)
        if made.is_inherited:
            os.set_inheritable(made.fd, True)
        self._sockets[name] = made

    def _check_free(self, path: str) -> None:
        if self._mounts.may_hang(to_bytes(path)):
            raise KernelError(
                f'{path} lies on a mount that may not answer: choose a path '
                'on a local file system')
        for name, each in self._sockets.items():
            if each.parameters.path == path:
                raise KernelError(f'the socket {name!r} has the path {path} '
                                  'already: remove it first')

    def remove(self, name: str) -> None:
        """Close it, and remove the file of a Unix socket."""
        gone = self._sockets.pop(name)
        self._state.drop('socket', name)
        self._let_go(gone)

    def _let_go(self, gone: KernelSocket) -> None:
        _remove_file(gone)
        if gone.fd >= 0:
            self._link.release([_PREFIX + gone.parameters.name])
            os.close(gone.fd)

    def adopt(self) -> None:
        """Make kernel sockets of those that systemd has passed."""
        passed = [key for key in self._link.table if key.startswith(_PASSED)]
        for key in passed:
            fd = self._link.table[key]
            name = key.removeprefix(_PASSED)
            if name not in self._sockets:
                number = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_NUMBER)
                self._add(_passed_socket(name, number))
            self._link.release([key])
            os.close(fd)

    @contextlib.contextmanager
    def cloned(self, names: Iterable[str]) -> Iterator[dict[str, int]]:
        """A socket of its own for each of those with `reuseport`.

        For the time of a start.
        """
        clones: dict[str, int] = {}
        try:
            for name in names:
                each = self._sockets[name]
                sock, _ = open_socket(each.parameters, each.address)
                with sock:
                    if each.parameters.type in LISTENING:
                        listen(sock, each.parameters)
                    clones[name] = _numbered_copy(sock, name)
            yield clones
        finally:
            for fd in clones.values():
                os.close(fd)

    def close(self) -> None:
        """Close all of them and remove their files: the kernel ends."""
        for name in [*self._sockets]:
            self.remove(name)


def _numbered_copy(sock: socket.socket, name: str) -> int:
    """Another descriptor of it, with a number for children; KernelError."""
    try:
        fd = fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, FIRST_NUMBER)
        try:
            reserve.check(fd)
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        raise KernelError(
            f'no socket {name!r}: {error.strerror}; raise the limit of open '
            'files (ulimit -Hn) before the kernel starts') from error
    return fd


def restore_numbers(table: dict[str, int], state: State, link: Link) -> None:
    """Give the sockets the numbers that they had in the daemon before.

    What has one of these numbers in `table` gets that which the socket has
    there, so a single free descriptor is enough; the link gets any other one.
    To be called before anything else is opened.
    """
    keys = {fd: key for key, fd in table.items()}
    record: Json
    for name, record in state.items('socket'):
        key, number = _PREFIX + name, record[2]
        fd = table.get(key, -1)
        if number in (-1, fd) or fd < 0:
            continue
        if number == link.fileno():
            link.move(3)
        other = keys.get(number)
        if other is None:
            os.dup2(fd, number, inheritable=False)
            os.close(fd)
        else:
            spare = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
            os.dup2(fd, number, inheritable=False)
            os.dup2(spare, fd, inheritable=False)
            os.close(spare)
            table[other], keys[fd] = fd, other
        table[key], keys[number] = number, key


def _remove_file(gone: KernelSocket) -> None:
    """Remove the file of a Unix socket, unless it is another one by now."""
    path = gone.parameters.path
    if path is not None and gone.inode is not None:
        with contextlib.suppress(OSError):
            found = os.lstat(to_bytes(path))
            if (found.st_dev, found.st_ino) == gone.inode:
                os.unlink(to_bytes(path))


def _passed_socket(name: str, fd: int) -> KernelSocket:
    """What systemd has opened, in our terms."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        family = next((key for key, value in FAMILIES.items()
                       if value == sock.family), 'inet')
        kind = next((key for key, value in TYPES.items()
                     if value == sock.type), 'stream')
        address = sock.getsockname()
    path = host = port = None
    if family == 'unix':
        path = from_bytes(address) if isinstance(address, bytes) else address
    else:
        host, port = address[:2]
    return KernelSocket(SocketParameters(
        name, family, kind, 5, path, None, host, port, None, False),
        host, fd, None)


def _describe(info: Mapping[str, Json]) -> str:
    return ' '.join(f'{key}={value}' for key, value in info.items())
