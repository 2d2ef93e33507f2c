"""Packets between two processes: some bytes each, and descriptors with them.

They go over a pair of Unix sockets of the kind SOCK_SEQPACKET, which keeps the
borders of packets and never blocks here. What one process has sent is in the
queue of the other, so it outlives its sender.
"""

import array
import errno
import os
import socket
from collections.abc import Sequence
from typing import NamedTuple

from gocept.runner.waits.closing import Owning

LONGEST = 65536
"""Bytes of a packet."""

MOST_DESCRIPTORS = 200
"""Those of a packet; the system takes 253."""

_BUFFER = 1 << 20  # bytes of the queue, as far as the system allows

_LATE = {errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM}


class Packet(NamedTuple):
    """What has come."""

    data: bytes
    descriptors: list[int]
    """They belong to whoever has received the packet."""
    complete: bool
    """Whether nothing was cut off: bytes beyond `LONGEST`, or descriptors for
    which this process has no number left."""

    def discard(self) -> None:
        """Close the descriptors."""
        while self.descriptors:
            os.close(self.descriptors.pop())


class Packets(Owning):
    """One end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.closed = False
        sock.setblocking(False)
        # What is beyond the limit of the system is left out without an error.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)

    def fileno(self) -> int:
        """The descriptor of the socket."""
        return self.sock.fileno()

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Put a packet into the queue of the other end.

        BlockingIOError if the queue is full; BrokenPipeError or
        ConnectionResetError if there is no other end.
        """
        try:
            self.sock.sendmsg([data], [(
                socket.SOL_SOCKET, socket.SCM_RIGHTS,
                array.array('i', descriptors))] if descriptors else [])
        except OSError as error:
            # Too many descriptors on their way: the other end is late.
            if error.errno in _LATE:
                raise BlockingIOError(*error.args) from error
            raise

    def receive(self) -> Packet | None:
        """The next packet; None if the other end is closed.

        BlockingIOError if there is none now. The descriptors are
        close-on-exec.
        """
        while True:
            try:
                data, ancillary, flags, _ = self.sock.recvmsg(
                    LONGEST, socket.CMSG_SPACE(4 * MOST_DESCRIPTORS),
                    socket.MSG_CMSG_CLOEXEC)
                break
            except ConnectionResetError:
                # The other end is gone, and has not read all that we have
                # sent. The system says so once, before it gives out what the
                # other end had sent.
                continue
        descriptors = array.array('i')
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(
                    content[:len(content) - len(content) % 4])
        if not data:
            return None
        return Packet(data, descriptors.tolist(), not flags & (
            socket.MSG_TRUNC | socket.MSG_CTRUNC))

    def close(self) -> None:
        """Close the socket."""
        if not self.closed:
            self._release()

    def _release(self) -> None:
        self.closed = True
        self.sock.close()

    def __repr__(self) -> str:
        return f'<Packets {self.sock!r}>'


def pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets for packets, which are connected, and close-on-exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
