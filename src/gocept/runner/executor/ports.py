"""Who listens on TCP ports and Unix sockets; and a port that is free."""

import contextlib
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator

from gocept.runner import proc

# In /proc/net/tcp and /proc/net/unix; see proc(5).
_LISTENING = '0A'
_ACCEPTING = 0x10000

_CREDENTIALS = struct.Struct('3i')  # see SO_PEERCRED in unix(7)


def reserve(host: str, port: int = 0) -> socket.socket:
    """Bind a port, without listening, so that nobody else is given it.

    A server that sets SO_REUSEADDR may still bind it, and listen.
    """
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def holder(inodes: Collection[str], where: str) -> str:
    """Who listens there, as far as the system tells; or ''."""
    if not inodes:
        return ''
    for pid in among(proc.pids(), inodes):
        return f'process {pid} ({_name(pid)}) listens on {where}'
    return f'a process of somebody else listens on {where}'


def among(pids: Iterable[int], inodes: Collection[str]) -> Iterator[int]:
    """Those of the processes that have one of the sockets."""
    for pid in pids:
        if not _sockets(pid).isdisjoint(inodes):
            yield pid


def on_port(port: int) -> list[str]:
    """The inodes of the sockets that listen on a TCP port."""
    return [fields[9] for name in ('tcp', 'tcp6') for fields in _table(name)
            if fields[3] == _LISTENING
            and int(fields[1].rpartition(':')[2], 16) == port]


def peer(sock: socket.socket) -> int:
    """The process that listens where a Unix socket is connected; or 0."""
    if not hasattr(socket, 'SO_PEERCRED'):
        return 0
    pid, _, _ = _CREDENTIALS.unpack(sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(pid)


def on_path(path: str) -> list[str]:
    """The inodes of the Unix sockets that listen on a path, or a name."""
    path = path.replace('\0', '@')
    return [fields[6] for fields in _table('unix')
            if int(fields[3], 16) & _ACCEPTING and fields[7:] == [path]]


def _table(name: str) -> Iterator[list[str]]:
    """The lines of a file in /proc/net, after the first."""
    with contextlib.suppress(OSError), open(
            f'/proc/net/{name}', errors='surrogateescape') as file:
        next(file)
        for line in file:
            # The last field may be a path with spaces.
            yield line.rstrip('\n').split(None, 7 if name == 'unix' else -1)


def _sockets(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f'/proc/{pid}/fd'):
            with contextlib.suppress(OSError):
                target = os.readlink(f'/proc/{pid}/fd/{name}')
                if target.startswith('socket:['):
                    found.add(target[8:-1])
    return found


def _name(pid: int) -> str:
    with contextlib.suppress(OSError), open(f'/proc/{pid}/comm') as file:
        return file.read().strip()
    return 'ended meanwhile'
