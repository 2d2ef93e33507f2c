"""Streams that never block and never lose a byte.

A channel is read by one thread. It may be written by others, and a poller in
another thread may send what was kept back: so the descriptors and the outgoing
buffer have a lock. Pollers are told of a descriptor that is closed with the
lock held; all else, log messages too, comes when the lock is free again.
"""

import contextlib
import errno
import functools
import os
import select
import socket
import stat
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Unpack

import zope.interface

from gocept.runner.channel.base import MIB, Channel, Chunk, Options
from gocept.runner.channel.outgoing import Outgoing, Piece, write_piece
from gocept.runner.errors import (
    DeadlineExceeded,
    EndpointClosedException,
    WriteBufferFull,
)
from gocept.runner.interfaces import IPipeChannel, ISocketChannel
from gocept.runner.logs import Log
from gocept.runner.waits.closing import Owning
from gocept.runner.waits.deadline import Deadline, is_broken, wait_for
from gocept.runner.waits.forks import Lock, tell_forks
from gocept.runner.waits.identity import Identity

log = Log('gocept.runner.channel')

# The errors of a connection whose other side has vanished.
_UNREACHABLE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH,
                errno.ENETDOWN, errno.ENOTCONN)

_READ_SIZE = 2 ** 16  # what a pipe holds


class _DescriptorChannel(Channel, Owning):
    """A channel that owns descriptors, and keeps what they do not take yet."""

    closed = True  # until it owns its descriptors

    name = ''
    """What the channel belongs to; for messages."""

    _receive: Callable[[int], bytes]
    """Like os.read(); its argument is the most bytes that it returns."""

    def __init__(self, send: Callable[[Piece], int], *, high_water: int = MIB,
                 **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self._lock = Lock()
        self._identities = {fd: Identity.of(fd) for fd in self._descriptors()}
        self._outgoing = Outgoing(
            _guarded(self._identities[self.sink_fd], self.sink_fd, send)
            if self.sink_fd in self._identities else send, high_water)
        self.high_water = high_water
        self._ending = self._ended = False  # after write_eof()
        tell_forks(self)

    @abstractmethod
    def _end_sending(self) -> None:
        """Let the other side read the end."""

    @abstractmethod
    def _descriptors(self) -> Iterable[int]:
        """The descriptors that are open."""

    @property
    def kept(self) -> int:
        """See `IChannel`."""
        return self._outgoing.size

    def _owns(self, fd: int) -> bool:
        """Whether nobody else has closed the descriptor by its number."""
        return self._identities[fd].has(fd)

    def fileno(self) -> int:
        """See `IChannel`; -1 as well if somebody else has closed it."""
        fd = super().fileno()
        if fd in self._identities and not self._owns(fd):
            self._receive = _receive_nothing
            return -1
        return fd

    def _require_open(self) -> None:
        if self.closed:
            raise EndpointClosedException(f'{self!r} is closed')

    def _require_sink(self) -> None:
        self._require_open()
        if self._ending:
            raise EndpointClosedException(f'{self!r}: write_eof() was called')
        if self.sink_fd < 0:
            raise NotImplementedError(f'{self!r} has nothing to write to')

    def _gone(self, error: ConnectionError) -> EndpointClosedException:
        """The error when the other side does not read any more."""
        with contextlib.suppress(NotImplementedError):
            self.fileno()  # a lost descriptor is not read any more, either
        return EndpointClosedException(
            f'{self!r}: {error}; {self._outgoing.forget()} bytes could not be '
            'sent')

    def _read(self) -> bytes:
        with self._lock:
            if self.closed:
                raise EndpointClosedException(f'{self!r} is closed')
            try:
                data = self._receive(_READ_SIZE)
            except BlockingIOError:
                return b''
            except OSError as error:
                self.get_fd()  # raises if there is nothing to read from
                raise EndpointClosedException(f'{self!r}: {error}') from error
        if not data:
            raise EndpointClosedException(f'{self!r}: the other side closed')
        return data

    def write(self, *data: Chunk) -> None:
        """See `IChannel`."""
        outgoing = self._outgoing
        with self._lock:
            if self.sink_fd < 0 or self._ending:
                self._require_sink()
            try:
                if outgoing.size > outgoing.high_water and outgoing.is_full():
                    raise WriteBufferFull(
                        f'{self!r} keeps {self.kept} bytes, more than '
                        f'{outgoing.high_water}, that the other side does not '
                        'read; wait with flush() or a poller, then write '
                        'again')
                outgoing.add(
                    data[0] if len(data) == 1 and type(data[0]) is bytes
                    else self._encoded(data))
            except ConnectionError as error:
                raise self._gone(error) from error
        if outgoing.size:
            self._tell_sending()

    def write_accepted(self, *data: Chunk) -> None:
        with self._lock:
            self._require_sink()
            try:
                self._outgoing.add(self._encoded(data))
            except ConnectionError as error:
                raise self._gone(error) from error
        if self.kept:
            self._tell_sending()

    def check_sink(self) -> None:
        with self._lock:
            self._require_sink()
            if not self._owns(self.sink_fd) or is_broken(self.sink_fd):
                raise EndpointClosedException(
                    f'{self!r}: the other side does not read any more')

    def write_eof(self) -> None:
        """See `IChannel`."""
        with self._lock:
            self._require_open()
            if not self._ending:
                self._require_sink()
            self._ending = True
            try:
                self._send()
            except ConnectionError as error:
                raise self._gone(error) from error
        if self.kept:
            self._tell_sending()

    def _send(self) -> None:
        """Send what is kept, and the end after it. With the lock held."""
        self._outgoing.send()
        if self._ending and not self._ended and not self._outgoing.size:
            if not self._owns(self.sink_fd):
                raise _lost(self.sink_fd)
            self._end_sending()
            self._ended = True

    def send_kept(self) -> bool:
        with self._lock:
            failure = None if self.closed else self._send_kept()
            kept = self.kept
        if failure:
            log.log(self.loss_level, '%s', failure)
        return kept > 0 and not failure

    def _send_kept(self) -> str | None:
        """Returns what has failed. With the lock held."""
        try:
            self._send()
        except ConnectionError as error:
            return str(self._gone(error))
        except OSError as error:
            return f'{self!r}: {error}'
        return None

    def flush(self, timeout: float | None = None) -> None:
        """See `IChannel`."""
        deadline = Deadline(timeout)
        while True:
            with self._lock:
                self._require_open()
                try:
                    self._send()
                except ConnectionError as error:
                    raise self._gone(error) from error
                if not self._outgoing.size:
                    return
                fd = self.sink_fd
            if not wait_for(fd, select.POLLOUT, deadline):
                raise DeadlineExceeded(
                    f'{self!r}: {self.kept} bytes were not read by the other '
                    f'side in {deadline.seconds} s; they are kept')

    def close(self) -> None:
        """See `IChannel`."""
        with self._lock:
            if self.closed:
                return
            failure = self._send_kept() if self.kept else None
            lost = self._outgoing.forget()
            self.closed = True
            try:
                for fd in self._descriptors():
                    self._tell_closing(fd)
            finally:
                self._release()
        self._tell_ready()
        if failure:
            log.log(self.loss_level, '%s', failure)
        if lost:
            log.log(self.loss_level, '%r was closed with %d bytes unsent',
                    self, lost)

    def __del__(self) -> None:
        if not (self.closed or any(map(self._owns, self._descriptors()))):
            self.closed = True  # by somebody else
            self._release()
        super().__del__()

    def after_fork(self) -> None:
        """In a forked child: the parent sends what is kept."""
        self._outgoing.forget()

    def __repr__(self) -> str:
        name = f' of {self.name}' if self.name else ''
        state = 'closed' if self.closed else ', '.join(
            map(str, self._descriptors()))
        return f'<{type(self).__name__}{name}: {state}>'


def _lost(fd: int) -> ConnectionError:
    return ConnectionError(f'somebody else has closed its descriptor {fd}')


def _receive_nothing(size: int) -> bytes:
    raise OSError(errno.EBADF, 'somebody else has closed its descriptor')


def _guarded(identity: Identity, fd: int, send: Callable[[Piece], int],
             ) -> Callable[[Piece], int]:
    """`send`, but not to another file that has the same number now."""
    def guarded(piece: Piece) -> int:
        if not identity.has(fd):
            raise _lost(fd)
        return send(piece)
    return guarded


@zope.interface.implementer(IPipeChannel)
class PipeChannel(_DescriptorChannel):
    """See `IPipeChannel`."""

    def __init__(self, faucet: int | None = None, sink: int | None = None, *,
                 high_water: int = MIB, **options: Unpack[Options]) -> None:
        self._faucet = -1 if faucet is None else faucet
        self._receive = functools.partial(os.read, self._faucet)
        self.sink_fd = -1 if sink is None else sink
        super().__init__(functools.partial(write_piece, self.sink_fd),
                         high_water=high_water, **options)
        # Other processes may have the same open file (a terminal, say), so
        # `close` undoes this.
        self._blocking = [fd for fd in self._descriptors()
                          if os.get_blocking(fd)]
        for fd in self._blocking:
            os.set_blocking(fd, False)
        self.closed = False

    def _descriptors(self) -> list[int]:
        return [fd for fd in dict.fromkeys((self._faucet, self.sink_fd))
                if fd >= 0]

    def get_fd(self) -> int:
        """See `IChannel`."""
        self._require_open()
        if self._faucet < 0:
            raise NotImplementedError(f'{self!r} has nothing to read from')
        return self._faucet

    @property
    def is_readable(self) -> bool:
        return self._faucet >= 0

    def _end_sending(self) -> None:
        if self.sink_fd != self._faucet:
            sink, self.sink_fd = self.sink_fd, -1
            if sink in self._blocking and self._shares(sink):
                self._blocking.remove(sink)  # or else reading would block
            self._tell_closing(sink)
            self._close(sink)
        elif stat.S_ISSOCK(os.fstat(self.sink_fd).st_mode):
            with socket.socket(fileno=os.dup(self.sink_fd)) as sock:
                _shut_down(sock)

    def _shares(self, sink: int) -> bool:
        """Whether both ends are the same terminal or socket."""
        return (self._faucet >= 0 and os.path.sameopenfile(sink, self._faucet)
                and not stat.S_ISFIFO(os.fstat(sink).st_mode))

    def _release(self) -> None:
        fds = self._descriptors()
        self._faucet = self.sink_fd = -1
        with contextlib.ExitStack() as stack:  # all, even if one fails
            for fd in fds:
                stack.callback(self._close, fd)

    def after_fork(self) -> None:
        super().after_fork()
        self._blocking = []  # the files are also those of the parent

    def _close(self, fd: int) -> None:
        if not self._owns(fd):
            return
        try:
            if fd in self._blocking:
                os.set_blocking(fd, True)
        finally:
            os.close(fd)


@zope.interface.implementer(ISocketChannel)
class SocketChannel(_DescriptorChannel):
    """See `ISocketChannel`."""

    def __init__(self, sock: socket.socket, *, high_water: int = MIB,
                 **options: Unpack[Options]) -> None:
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f'a channel needs a stream socket, not {sock!r}')

        def send(piece: Piece) -> int:
            try:
                return sock.send(piece, socket.MSG_NOSIGNAL)
            except OSError as error:
                if error.errno in (*_UNREACHABLE, errno.EBADF):
                    raise ConnectionError(*error.args) from error
                raise
        self.sink_fd = sock.fileno()
        super().__init__(send, high_water=high_water, **options)
        sock.setblocking(False)
        self._socket = sock
        self._receive = sock.recv
        self.closed = False

    def get_fd(self) -> int:
        """See `IChannel`."""
        self._require_open()
        return self._socket.fileno()

    def _end_sending(self) -> None:
        _shut_down(self._socket)

    def _descriptors(self) -> list[int]:
        return [self.sink_fd]

    def _release(self) -> None:
        fd, self.sink_fd = self.sink_fd, -1
        if not self._owns(fd):
            self._socket.detach()
        self._socket.close()


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side has closed it
        sock.shutdown(socket.SHUT_WR)
