"""The Unix socket that a child listens on."""

import contextlib
import errno
import os
import pathlib
import re
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from typing import TypeVar

from gocept.runner.errors import DeadlineExceeded, StartError
from gocept.runner.poller import Poller
from gocept.runner.process import descendants, procfs
from gocept.runner.process.child import Process
from gocept.runner.process.output import Output
from gocept.runner.waits.deadline import Deadline

T = TypeVar('T')

_LONGEST_PATH = 107  # bytes in a socket address; see unix(7)

_CREDENTIALS = struct.Struct('3i')  # see SO_PEERCRED in unix(7)

_FIRST_PROBE, _LAST_PROBE = 0.002, 0.1  # seconds between two probes


def make_way(path: str) -> None:
    """Remove the socket of a server that has died.

    StartError if a process listens there or is about to, or there is something
    else.
    """
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
        with _address(path) as address:
            sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def connect_to(path: str, process: Process) -> socket.socket:
    """Like `connect`, but StartError if a stranger to `process` listens."""
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


def connect_when_listening(path: str, process: Process, output: Output,
                           timeout: float, poller: Poller,
                           connect: Callable[[str], T]) -> T:
    """Wait until `process` listens; returns what `connect` returns then.

    StartError if it ends before, DeadlineExceeded after `timeout` seconds,
    from the error of the last attempt.
    """
    deadline = Deadline(timeout)
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
            return connect(path)
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
    # Flags: none; a stream; unconnected. A server may have bound a name that
    # is seen from its own directory.
    rows = re.findall(rb'^\w+: \w+ \w+ 0+ 0001 01 +\d+ (?!@)(.+)$',
                      procfs.table('unix'), re.MULTILINE)
    directory, base = os.path.split(os.path.realpath(path))
    return any(
        os.path.basename(name) == base and (
            not name.startswith('/') or name.startswith('/proc/')
            or os.path.realpath(os.path.dirname(name)) == directory)
        for name in map(os.fsdecode, rows))


def _is_stranger(pid: int, process: Process) -> bool:
    """Whether a process is known not to descend from `process`."""
    now = None if pid == process.pid else procfs.stat(pid)
    if now is None:
        return False
    marks = descendants.marks(pid)
    return bool(
        now.start < process.started_at
        or (process.mark != '' and marks and process.mark not in marks))


@contextlib.contextmanager
def _address(path: str) -> Iterator[str]:
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield path
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f'/proc/self/fd/{fd}/{name}'
    finally:
        os.close(fd)
