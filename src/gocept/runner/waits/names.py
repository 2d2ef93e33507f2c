"""Names of hosts."""

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
