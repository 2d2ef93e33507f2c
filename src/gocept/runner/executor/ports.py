"""TCP ports: one that is free, and who has one."""

import contextlib
import os
import socket

from gocept.runner import proc

_LISTENING = '0A'  # in /proc/net/tcp; see proc(5)


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


def holder(port: int) -> str:
    """Who listens on a port, as far as the system tells; or ''."""
    inodes = set(_inodes(port))
    if not inodes:
        return ''
    for pid in proc.pids():
        if inodes & _sockets(pid):
            return f'process {pid} ({_name(pid)}) listens on port {port}'
    return f'a process of somebody else listens on port {port}'


def _inodes(port: int) -> list[str]:
    found = []
    for name in ('tcp', 'tcp6'):
        with contextlib.suppress(OSError), open(f'/proc/net/{name}') as file:
            next(file)
            for line in file:
                fields = line.split()
                if (fields[3] == _LISTENING
                        and int(fields[1].rpartition(':')[2], 16) == port):
                    found.append(fields[9])
    return found


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
