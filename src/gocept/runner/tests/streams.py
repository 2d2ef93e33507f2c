"""Streams of every kind, for the tests that read and write them."""

import contextlib
import os
import pty
import select
import signal
import socket
import threading
import tty
import unittest
from collections.abc import Callable, Iterator
from typing import Any, Self

from gocept.runner.channel import PipeChannel, SocketChannel
from gocept.runner.errors import EndpointClosedException
from gocept.runner.tests.support import DEADLINE, open_descriptors
from gocept.runner.waits.deadline import Deadline, wait_for


class Peer:
    """The other side of a channel, by system calls that wait."""

    def __init__(self, faucet: int, sink: int) -> None:
        self.faucet = faucet
        self.sink = sink

    def send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.sink, data):]

    def receive(self, size: int) -> bytes:
        """Read so many bytes, fewer only at the end."""
        data = b''
        while len(data) < size:
            piece = os.read(self.faucet, size - len(data))
            if not piece:
                break
            data += piece
        return data

    def pieces(self, size: int = 2 ** 16) -> Iterator[bytes]:
        """All that comes, in small pieces."""
        while piece := os.read(self.faucet, size):
            yield piece

    def receive_all(self) -> bytes:
        return b''.join(self.pieces())

    def shut(self) -> None:
        """Send no more, but read on."""
        if self.sink != self.faucet:
            os.close(self.sink)
            self.sink = -1
        else:
            with socket.socket(fileno=os.dup(self.sink)) as sock:
                sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Break a TCP connection."""
        with socket.socket(fileno=self.sink) as sock:
            # On, and no seconds: see socket(7).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                            b'\1\0\0\0\0\0\0\0')
            self.faucet = self.sink = -1

    def close(self) -> None:
        for fd in {self.faucet, self.sink} - {-1}:
            os.close(fd)
        self.faucet = self.sink = -1


class StreamTestCase(unittest.TestCase):
    """Leaves no descriptor and no thread behind."""

    def setUp(self) -> None:
        descriptors = open_descriptors()
        threads = threading.enumerate()
        self.addCleanup(
            lambda: self.assertEqual(descriptors, open_descriptors()))
        # One of another test may end meanwhile.
        self.addCleanup(lambda: self.assertLessEqual(
            {*threading.enumerate()}, {*threads}))
        self.streams: list[Any] = []
        self.addCleanup(self.close_streams)

    def opened(self, channel: Any, peer: Peer) -> Any:
        """Both, which are closed in the end."""
        self.streams += channel, peer
        return channel, peer

    def close_streams(self) -> None:
        while self.streams:
            self.streams.pop(0).close()

    def open_pipes(self, **options: Any) -> tuple[PipeChannel, Peer]:
        """A channel with a pipe in each direction."""
        faucet, peer_sink = os.pipe()
        peer_faucet, sink = os.pipe()
        return self.opened(  # type: ignore[no-any-return]
            PipeChannel(faucet, sink, **options), Peer(peer_faucet, peer_sink))

    def open_sockets(self, **options: Any) -> tuple[SocketChannel, Peer]:
        """A channel with one socket of a pair."""
        ours, theirs = socket.socketpair()
        fd = theirs.detach()
        return self.opened(  # type: ignore[no-any-return]
            SocketChannel(ours, **options), Peer(fd, fd))

    def open_tcp(self, host: str = '127.0.0.1', **options: Any,
                 ) -> tuple[SocketChannel, Peer]:
        """A channel with one end of a TCP connection."""
        with listening_tcp(host) as server:
            # Or else the system keeps many megabytes.
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                server.setsockopt(socket.SOL_SOCKET, option, 2 ** 16)
            theirs = socket.create_connection(server.getsockname()[:2])
            ours, _ = server.accept()
        fd = theirs.detach()
        return self.opened(  # type: ignore[no-any-return]
            SocketChannel(ours, **options), Peer(fd, fd))

    def open_pty(self, **options: Any) -> tuple[PipeChannel, Peer]:
        """A channel with the master of a terminal that changes nothing."""
        master, slave = pty.openpty()
        tty.setraw(slave)
        return self.opened(  # type: ignore[no-any-return]
            PipeChannel(master, master, **options), Peer(slave, slave))

    def start(self, target: Callable[..., Any], *args: Any,
              ) -> threading.Thread:
        """A thread, which ends before the streams are closed."""
        thread = threading.Thread(target=target, args=args, daemon=True)
        thread.start()
        self.addCleanup(thread.join, DEADLINE)
        return thread

    def run_until_dead(self, write: Callable[[], Any], fd: int) -> None:
        """Write until the system knows that the other side is gone."""
        with self.assertRaises(EndpointClosedException):
            while True:
                write()
                wait_for(fd, 0, Deadline(DEADLINE))


def listening_tcp(host: str = '127.0.0.1') -> socket.socket:
    return socket.create_server(
        (host, 0), family=socket.AF_INET6 if ':' in host else socket.AF_INET)


def wait_readable(channel: Any) -> None:
    if not wait_for(channel.get_fd(), select.POLLIN, Deadline(DEADLINE)):
        raise AssertionError(f'nothing to read from {channel!r}')


def read_to_end(channel: Any) -> list[Any]:
    """All reads, up to the end."""
    reads = []
    with contextlib.suppress(EndpointClosedException):
        while True:
            data = channel.read()
            if data:
                reads.append(data)
            else:
                wait_readable(channel)
    return reads


class Alarms:
    """A signal every millisecond, with a handler that does nothing else.

    It also has Python see each other signal soon: one that comes just before a
    system call would wait for its end otherwise.
    """

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGALRM, self._count)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        return self

    def __exit__(self, *exc_info: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._previous)

    def _count(self, *args: object) -> None:
        self.count += 1
