"""What a socket for processes is asked to be."""

import contextlib
import socket
from collections.abc import Mapping
from typing import NamedTuple, Self

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon.names import name_of
from gocept.runner.kernel.wire.frames import Json
from gocept.runner.kernel.wire.text import to_bytes
from gocept.runner.waits.names import look_up

FAMILIES = {'unix': socket.AF_UNIX, 'inet': socket.AF_INET,
            'inet6': socket.AF_INET6}

TYPES = {'stream': socket.SOCK_STREAM, 'dgram': socket.SOCK_DGRAM,
         'raw': socket.SOCK_RAW, 'rdm': socket.SOCK_RDM,
         'seqpacket': socket.SOCK_SEQPACKET}

_LONGEST_PATH = 107  # bytes in a socket address; see unix(7)


class SocketParameters(NamedTuple):
    """What a socket is asked to be; two with equal ones are the same."""

    name: str
    family: str
    type: str
    backlog: int
    path: str | None
    umask: int | None
    host: str | None
    port: int | None
    interface: str | None
    reuseport: bool

    @classmethod
    def of(cls, params: Mapping[str, Json]) -> Self:
        """What a request says, checked and completed; KernelError."""
        name = name_of(params, 'socket')
        path = _text(params, 'path')
        family = _text(params, 'family') or ('unix' if path else 'inet')
        if family not in FAMILIES:
            raise KernelError(f'the family of a socket is one of: '
                              f'{", ".join(FAMILIES)}; not {family!r}')
        kind = _text(params, 'type') or 'stream'
        if kind not in TYPES:
            raise KernelError(f'the type of a socket is one of: '
                              f'{", ".join(TYPES)}; not {kind!r}')
        backlog = _integer(params, 'backlog', 0, 2 ** 31 - 1)
        host = port = umask = interface = None
        if family == 'unix':
            _check_path(path)
            umask = _integer(params, 'umask', 0, 0o777)
        else:
            path = None
            port = _integer(params, 'port', 0, 65535) or 0
            interface = _text(params, 'interface')
            host = _text(params, 'host') or {
                'inet': ('127.0.0.1', '0.0.0.0'), 'inet6': ('::1', '::'),
            }[family][interface is not None]
        return cls(
            name, family, kind, 5 if backlog is None else backlog, path,
            umask, host, port, interface,
            family != 'unix' and params.get('reuseport') not in (
                None, False, 0, '', '0'))

    def differences(self, other: 'SocketParameters') -> list[str]:
        """In what `other`, which exists, is not what is asked for: the names.

        Any port will do where none is asked for; `reuseport` is not compared.
        """
        wanted = self._replace(
            port=self.port or other.port, reuseport=other.reuseport)
        return [name for name, ours, theirs in zip(
            self._fields, wanted, other, strict=True) if ours != theirs]


def numeric(parameters: SocketParameters) -> str | None:
    """The host as a number; None if a name has to be looked up."""
    host = parameters.host
    if host == 'localhost':
        return '127.0.0.1' if parameters.family == 'inet' else '::1'
    for family in ('inet', 'inet6'):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(FAMILIES[family], (host or '').partition('%')[0])
            if family != parameters.family:
                raise KernelError(f'{host} is no address of the family '
                                  f'{parameters.family}')
            return host
    return None


def looked_up(parameters: SocketParameters) -> str:
    """The host as a number; asks servers. OSError if there is none."""
    found = look_up(
        parameters.host, None, FAMILIES[parameters.family], kind=0)
    return str(found[0][4][0])


def _check_path(path: str | None) -> None:
    if (not isinstance(path, str) or not path.startswith('/')
            or path.endswith('/') or '\0' in path):
        raise KernelError('a Unix socket needs the absolute path of a file, '
                          f'not {path!r}')
    if len(to_bytes(path)) > _LONGEST_PATH:
        raise KernelError(f'the path of a Unix socket has at most '
                          f'{_LONGEST_PATH} bytes: {path!r} is longer')


def _text(params: Mapping[str, Json], key: str) -> str | None:
    value = params.get(key)
    if value is None or isinstance(value, str):
        return value or None
    raise KernelError(f'the {key} of a socket is a string, not {value!r}')


def _integer(params: Mapping[str, Json], key: str, least: int, most: int,
             ) -> int | None:
    value = params.get(key)
    if value is None:
        return None
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        number = int(value)
        if least <= number <= most:
            return number
    raise KernelError(f'the {key} of a socket is a number from {least} to '
                      f'{most}, not {value!r}')
