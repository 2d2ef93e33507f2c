"""Clients of a listening socket."""

import errno
import socket
from collections.abc import Callable, Sequence

from gocept.runner.logs import Log
from gocept.runner.waits.source import Item, Source

log = Log('gocept.runner.poller')

_NOT_LISTENING = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)


class Server(Source):
    """Accepts clients; each is a pair of an address and a channel."""

    is_stream = True
    accepts = True

    in_a_row = 64
    """Clients that are accepted before others have their turn."""

    SHORTEST_PAUSE = 0.05
    LONGEST_PAUSE = 1.0

    def __init__(self, sock: socket.socket,
                 welcome: Callable[[socket.socket], Source | None]) -> None:
        """`welcome` owns a client; None if it closes one that is not wanted.
        """
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f'a server needs a stream socket, not {sock!r}')
        sock.setblocking(False)
        self.socket = sock
        self.pause = 0.0
        """How many seconds to wait before clients are accepted again."""
        self._welcome = welcome

    def fileno(self) -> int:
        return self.socket.fileno()

    def collect(self) -> tuple[Sequence[Item], bool]:
        clients: list[Item] = []
        for _ in range(self.in_a_row):
            try:
                client, address = self.socket.accept()
            except BlockingIOError:
                break
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno in _NOT_LISTENING:
                    log.error('%r accepts no more clients: %s',
                              self.socket, error)
                    return clients, True
                self._back_off(error)
                return clients, False
            self.pause = 0.0
            try:
                source = self._welcome(client)
            except BaseException:
                client.close()
                raise
            if source is not None:
                clients.append((address, source))
        return clients, False

    def _back_off(self, error: OSError) -> None:
        # The client stays in the queue of the system, and so the socket stays
        # readable: to try again at once would only cost time.
        if not self.pause:
            log.warning('%r cannot accept a client now, trying again: %s',
                        self.socket, error)
        self.pause = min(max(self.SHORTEST_PAUSE, 2 * self.pause),
                         self.LONGEST_PAUSE)
