"""The Unix socket that a child listens on."""

import contextlib
import errno
import os
import pathlib
import re
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

from gocept.runner.errors import DeadlineExceeded, StartError
from gocept.runner.poller import Poller
from gocept.runner.process import descendants, procfs
from gocept.runner.process.base import BaseProcess
from gocept.runner.process.output import Output
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.unixpath import short_address

T = TypeVar('T')

_CREDENTIALS = struct.Struct('3i')  # see SO_PEERCRED in unix(7)

_FIRST_PROBE, _LAST_PROBE = 0.002, 0.1  # seconds between two probes


def make_way(path: str, *others: str) -> None:
    """Remove the socket of a server that has died.

    StartError if a process listens there or is about to, or there is something
    else. At `others`, where the server may listen as well, only such a socket
    is removed, and nothing is an error.
    """
    for other in others:
        with contextlib.suppress(OSError, StartError):
            if stat.S_ISSOCK(os.lstat(other).st_mode):
                make_way(other)
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISREG(found.st_mode) and not found.st_size:
        pathlib.Path(path).unlink(missing_ok=True)
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise StartError(f'{path} is in the way: the file is not a socket')
    try:
        connect(path).close()
    except ConnectionRefusedError:  # nobody listens any more, or not yet
        if _is_bound(path):
            raise StartError(f'another process has bound {path}, and is about '
                             'to listen on it') from None
        pathlib.Path(path).unlink(missing_ok=True)
        return
    except FileNotFoundError:
        return
    except BlockingIOError:  # the server is busy
        pass
    except OSError as error:
        raise StartError(f'{path} is in the way: {error}') from error
    raise StartError(f'another process listens on {path} already')


def connect(path: str) -> socket.socket:
    """Connect without waiting.

    FileNotFoundError or ConnectionRefusedError if nobody listens,
    BlockingIOError if too many want to.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        with short_address(path) as address:
            sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def connect_to(paths: Sequence[str], process: BaseProcess) -> socket.socket:
    """Connect to the first of `paths` where `process` listens.

    The errors are those of `connect` for the first path, and StartError if a
    stranger to `process` listens there.
    """
    try:
        return _connect_to(paths[0], process)
    except OSError:
        for path in paths[1:]:
            with contextlib.suppress(OSError, StartError):
                return _connect_to(path, process)
        raise


def _connect_to(path: str, process: BaseProcess) -> socket.socket:
    sock = connect(path)
    pid = peer(sock)
    if _is_stranger(pid, process):
        sock.close()
        raise StartError(
            f'process {pid} ({procfs.name(pid) or "ended meanwhile"}) listens '
            f'on {path} in place of {process.name!r}: have each of them use '
            'a path of its own')
    return sock


def peer(sock: socket.socket) -> int:
    """The process that listens where `sock` is connected.

    0 for a process of another namespace.
    """
    pid, _, _ = _CREDENTIALS.unpack(sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(pid)


def connect_when_listening(paths: Sequence[str], process: BaseProcess,
                           output: Output, timeout: float, poller: Poller,
                           connect: Callable[[Sequence[str]], T]) -> T:
    """Wait until `process` listens; returns what `connect` returns then.

    StartError if it ends before, DeadlineExceeded after `timeout` seconds,
    from the error of the last attempt.
    """
    deadline = Deadline(timeout)
    path = ' or '.join(paths)
    pause = _FIRST_PROBE
    poller.register(process)
    while True:
        # First, as a process that it has left behind may listen instead.
        status = process.poll()
        if status is not None:
            output.read_rest()
            raise StartError(
                f'{process.name!r} ended with {process.status_text} before it '
                f'listened on {path}; its output {output}', status,
                output.tail)
        try:
            return connect(paths)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ECONNREFUSED,
                                   errno.EAGAIN):
                raise StartError(
                    f'{process.name!r}: cannot connect to {path}: {error}; '
                    f'its output {output}', None, output.tail) from error
            if deadline.passed:
                raise DeadlineExceeded(
                    f'{process.name!r} has not listened on {path} after '
                    f'{timeout} s; its output {output}', output.tail
                ) from error
        poller.poll(min(pause, deadline.left()))
        pause = min(2 * pause, _LAST_PROBE)


def _is_bound(path: str) -> bool:
    """Whether a process that lives has bound a path on which none listens."""
    # Flags: none; a stream; unconnected.
    rows = re.findall(rb'^\w+: \w+ \w+ 0+ 0001 01 +(\d+) (?!@)(.+)$',
                      procfs.table('unix'), re.MULTILINE)
    directory, base = os.path.split(os.path.realpath(path))
    return any(os.path.basename(name) == base
               and _may_be_in(directory, name, inode)
               for inode, name in (map(os.fsdecode, row) for row in rows))


def _may_be_in(directory: str, name: str, inode: str) -> bool:
    """Whether the socket that was bound as `name` may be in a directory."""
    if name.startswith('/proc/'):
        return True  # by a descriptor of its process; see `short_address`
    if name.startswith('/'):
        return os.path.realpath(os.path.dirname(name)) == directory
    # Seen from the directory of its process. This one may have moved since, or
    # be one that we may not look at.
    places = [f'{procfs.path(pid)}/cwd/{name}' for pid in procfs.pids()
              if inode in procfs.sockets(pid)]
    return (not places or any(
        os.path.realpath(os.path.dirname(place)) == directory
        or not os.path.exists(place) for place in places)) and _exists(inode)


def _exists(inode: str) -> bool:
    """Whether a socket is still there, as its process may have just ended."""
    return any(row.split()[6:7] == [inode.encode()]
               for row in procfs.table('unix').splitlines())


def _is_stranger(pid: int, process: BaseProcess) -> bool:
    """Whether a process is known not to descend from `process`."""
    now = None if pid == process.pid else procfs.stat(pid)
    if now is None:
        return False
    marks = descendants.marks(pid)
    return bool(
        now.start < process.started_at
        or (process.mark != '' and marks and process.mark not in marks))
