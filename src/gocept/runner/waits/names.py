"""Names of hosts, and of places to listen at."""

import os
import socket

Address = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
"""Of IPv4, of IPv6, and where the system lacks IPv6."""


def look_up(host: str | None, port: int | None, family: int = 0, *,
            kind: int = socket.SOCK_STREAM, passive: bool = False,
            ) -> list[tuple[int, int, int, str, Address]]:
    """The addresses as of `socket.getaddrinfo`, which asks servers.

    With `passive`, those to listen at. OSError if there are none, also for a
    name that no host can have, such as one that is too long.
    """
    try:
        return list(socket.getaddrinfo(
            host, port, family, kind,
            flags=socket.AI_PASSIVE if passive else 0))
    except UnicodeError as error:
        raise socket.gaierror(
            socket.EAI_NONAME, 'No host can have this name') from error


def address(text: str) -> tuple[str, int]:
    """Host and port of ``[HOST:]PORT``; without a host, this machine alone.

    Port 0 is one that is free. ValueError in one line for anything else.
    """
    host, colon, port = text.rpartition(':')
    if host.startswith('[') and host.endswith(']'):
        host = host[1:-1]
    elif ':' in host:
        host = ''
    if (colon and not host) or not (
            port.isascii() and port.isdigit() and int(port) < 2 ** 16):
        raise ValueError(f'not [HOST:]PORT, such as 9100, 10.0.0.1:9100 or '
                         f'[::1]:9100: {text!r}')
    return host or '127.0.0.1', int(port)


def place(host: str, port: int) -> str:
    """Host and port as they stand in a URL."""
    return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens at the first address of a host.

    OSError if that is not possible; see `reason_of`.
    """
    [(family, _, _, _, address), *_] = look_up(host, port, passive=True)
    return socket.create_server(address, family=family)


def reason_of(error: OSError) -> str:
    """Why nobody can listen there, without the place."""
    # The text of the error itself may have the address once more.
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)
