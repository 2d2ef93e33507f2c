"""Processes that listen on TCP ports and Unix sockets; a port that is free."""

import contextlib
import errno
import os
import re
import socket
from collections.abc import Collection, Iterable, Iterator

from gocept.runner.process import procfs, unixsocket
from gocept.runner.waits.names import look_up
from gocept.runner.waits.standard import fill_standard

_ACCEPTING = 0x10000  # in /proc/net/unix; see proc(5)


def reserve(host: str, port: int = 0) -> socket.socket:
    """Bind a port without listening, so that nobody else is given that port.

    A server that sets SO_REUSEADDR may still bind the port, and listen.
    """
    fill_standard()
    addresses = look_up(host, port, passive=True)
    while True:
        family, _, _, _, address = addresses.pop(0)
        with contextlib.ExitStack() as undo:
            try:
                sock = undo.enter_context(
                    socket.socket(family, socket.SOCK_STREAM))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(address)
                undo.pop_all()
                return sock
            except OSError as error:
                # A name may have an address of IPv6 where the system has none.
                if not addresses or error.errno not in (
                        errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise


def holder(inodes: Collection[str], where: str) -> str:
    """Name the process that has one of the sockets; '' if there are none.

    `where` is what the sockets listen on.
    """
    if not inodes:
        return ''
    for pid in among(procfs.pids(), inodes):
        name = procfs.name(pid) or 'ended meanwhile'
        return f'process {pid} ({name}) listens on {where}'
    return f'a process of somebody else listens on {where}'


def among(pids: Iterable[int], inodes: Collection[str]) -> Iterator[int]:
    """Those of the processes that have one of the sockets open."""
    for pid in pids:
        if not procfs.sockets(pid).isdisjoint(inodes):
            yield pid


def on_port(port: int) -> list[str]:
    """The inodes of the sockets that listen on a TCP port."""
    # Addresses, state (0A: it listens), two queues, timer, user, time, inode.
    row = re.compile(rb'^ *\d+: \w+:%04X \w+:\w+ 0A \S+ \S+ \S+ +\d+ +\d+ '
                     rb'(\d+)' % port, re.MULTILINE)
    return [inode.decode() for name in ('tcp', 'tcp6')
            for inode in row.findall(procfs.table(name))]


def at(path: str) -> int:
    """The process that listens on a Unix socket; OSError if there is none."""
    with unixsocket.connect(path) as sock:
        return unixsocket.peer(sock)


def on_path(path: str | bytes) -> list[str]:
    """The inodes of the Unix sockets that listen on a path, or a name."""
    name = os.fsencode(path).replace(b'\0', b'@')
    # Any path in the table may have spaces and newlines.
    rows = re.findall(rb'^\w+: \w+ \w+ (\w+) \w+ \w+ +(\d+) %b$'
                      % re.escape(name), procfs.table('unix'), re.MULTILINE)
    return [inode.decode() for flags, inode in rows
            if int(flags, 16) & _ACCEPTING]
