"""The kernels, each a daemon in a directory of its own, and their clients.

The first argument of each script that uses this is the directory that has the
peer. Both daemons speak the peer's protocol, so its client can talk to either;
ours has a protocol of its own beside it.
"""

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gocept.runner.kernel import Kernel

PATIENCE = 60.0
"""Seconds in which something has to come."""

HOST = '127.0.0.1'

IDLE = ['sleep', '100000']
"""A child that does nothing."""

Where = str | int
"""The path of a Unix socket, or a port."""


class Mismatch(Exception):
    """Raised when a side did not do what it was asked for."""


def peer() -> Any:
    """The module of the peer, which starts no daemon by itself."""
    sys.path.append(sys.argv[1])
    papa = importlib.import_module('papa')
    papa.Papa.spawned = True
    return papa


@contextmanager
def home() -> Iterator[Path]:
    """A directory; its path is short, as that of a socket must be."""
    with TemporaryDirectory(prefix='bench') as directory:
        yield Path(directory)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server((HOST, 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


class Daemon:
    """A daemon that runs until `close`, and what can connect to it."""

    def __init__(self, connect: Callable[[Where], Any], where: Where) -> None:
        self._connect = connect
        self.where = where

    def connect(self) -> Any:
        """A new client."""
        return self._connect(self.where)

    def pids(self) -> list[int]:
        """Its processes."""
        raise NotImplementedError

    def close(self) -> None:
        """End it, and all that it has started."""
        raise NotImplementedError

    def end_children(self) -> None:
        """Kill all that it has started; nothing of them stays listed."""
        with closing(self.connect()) as client:
            pids = [each['pid'] for each in client.list_processes().values()
                    if each['running']]
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            if client.list_processes():
                with closing(client.watch_processes('*')) as watcher:
                    while watcher and watcher.read() is not None:
                        pass


class Theirs(Daemon):
    """The daemon of the peer."""

    def __init__(self, connect: Callable[[Where], Any], where: Where) -> None:
        super().__init__(connect, where)
        option = '-u' if isinstance(where, str) else '-p'
        self._process = subprocess.Popen(
            [sys.executable, '-c', 'from papa.server import main; main()',
             option, str(where)], env={**os.environ, 'PYTHONPATH': sys.argv[1]},  # noqa: E501
            stdin=subprocess.DEVNULL)
        self.connect().close()

    def pids(self) -> list[int]:
        return [self._process.pid]

    def close(self) -> None:
        self.end_children()
        self._process.kill()
        self._process.wait()


class Ours(Daemon):
    """Our daemon, with its keeper."""

    def __init__(self, connect: Callable[[Where], Any], where: Where) -> None:
        super().__init__(connect, where)
        with closing(Kernel(where)) as kernel:
            status = kernel.status()
        self._pids = [status['pid'], status['keeper']]

    def pids(self) -> list[int]:
        return self._pids

    def close(self) -> None:
        self.end_children()
        with closing(Kernel(self.where)) as kernel:
            kernel.stop(force=True)
        gone(self._pids)


def gone(pids: Iterable[int]) -> None:
    """Wait until these processes have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            with open(fd, 'rb', 0) as held:
                wait_for(held)


def wait_for(readable: Any, seconds: float = PATIENCE) -> None:
    """Wait until there is something to read."""
    import select
    poll = select.poll()
    poll.register(readable, select.POLLIN)
    if not poll.poll(seconds * 1e3):
        raise Mismatch(f'nothing for {seconds} s')


class Kernels:
    """Starts daemons, which end with the context."""

    def __init__(self) -> None:
        self._papa = peer()
        self._stack = ExitStack()
        self._number = 0

    def __enter__(self) -> 'Kernels':
        self._home = self._stack.enter_context(home())
        return self

    def __exit__(self, *args: object) -> None:
        self._stack.close()

    def where(self, kind: str) -> Where:
        """A place for one more, by `TCP` or by `Unix`."""
        self._number += 1
        return (free_port() if kind == 'TCP'
                else str(self._home / f'{self._number}.sock'))

    def theirs(self, kind: str) -> Daemon:
        """The peer's daemon, with the peer's client."""
        return self._started(Theirs(self._papa.Papa, self.where(kind)))

    def ours(self, kind: str) -> Daemon:
        """Our daemon, with our client."""
        return self._started(Ours(Kernel, self.where(kind)))

    def theirs_to_ours(self, daemon: Daemon) -> Any:
        """A client of the peer for our daemon."""
        return self._papa.Papa(daemon.where)

    def _started(self, daemon: Daemon) -> Daemon:
        self._stack.callback(daemon.close)
        return daemon


@contextmanager
def echo(kind: str) -> Iterator[socket.socket]:
    """A socket to a process that sends back what it gets."""
    family = socket.AF_INET if kind == 'TCP' else socket.AF_UNIX
    with home() as directory, socket.socket(family) as server:
        server.bind((HOST, 0) if kind == 'TCP'
                    else str(directory / 'echo'))
        server.listen()
        with subprocess.Popen(
                [sys.executable, '-I', '-S', '-c', _ECHO, str(server.fileno())],  # noqa: E501
                pass_fds=[server.fileno()]) as child, socket.socket(
                    family) as sock:
            sock.connect(server.getsockname())
            if kind == 'TCP':
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield sock
            sock.close()
            child.wait(PATIENCE)


_ECHO = '''
import socket, sys
with socket.socket(fileno=int(sys.argv[1])) as server:
    sock = server.accept()[0]
while data := sock.recv(65536):
    sock.send(data)
'''
