"""A channel whose other side the test has."""

import codecs

import zope.interface

from gocept.runner.channel.base import MIB, Channel
from gocept.runner.channel.lines import Data
from gocept.runner.errors import EndpointClosedException
from gocept.runner.interfaces import ITestChannel
from gocept.runner.poller.descriptors import WakeUp
from gocept.runner.waits.closing import Owning
from gocept.runner.waits.forks import Lock, tell_forks
from gocept.runner.waits.standard import fill_standard


@zope.interface.implementer(ITestChannel)
class TestChannel(Channel, Owning):
    """See `ITestChannel`."""

    __test__ = False  # test runners would take it for a test

    closed = False

    can_wait = False

    _wakeup: WakeUp | None = None
    """Readable while there is something to read; None until it is wanted."""

    def __init__(self, *, buffering: str | None = None,
                 encoding: str | None = None, limit: int = MIB) -> None:
        super().__init__(buffering=buffering, encoding=encoding, limit=limit)
        # A poller asks for the descriptor with its own lock held, so it is
        # not called with this one held.
        self._lock = Lock()
        self._received: list[bytes] = []
        self._written: list[bytes] = []
        self._ended = self._eof_written = False
        # Those of the other side, as both may have to remember a state.
        name = self.encoding or 'ascii'
        self._peer_encoder = codecs.getincrementalencoder(name)()
        self._peer_decoder = codecs.getincrementaldecoder(name)()
        tell_forks(self)

    def put(self, *data: Data) -> None:
        """See `ITestChannel`."""
        if self._ended or self.closed:
            raise EndpointClosedException(f'{self!r} cannot receive any more')
        if self.encoding is not None:
            data = tuple(self._peer_encoder.encode(each)
                         if isinstance(each, str) else each for each in data)
        piece = b''.join(data)
        if piece:
            with self._lock:
                self._received.append(piece)
                self._show()

    def put_eof(self) -> None:
        """See `ITestChannel`."""
        with self._lock:
            self._ended = True
            self._show()

    def _show(self) -> None:
        """Have the descriptor be readable, or not; with the lock held."""
        if self._wakeup is not None:
            if self._received or self._ended:
                self._wakeup.wake()
            else:
                self._wakeup.drain()

    def get(self) -> Data:
        """See `ITestChannel`."""
        with self._lock:
            data = b''.join(self._written)
            self._written.clear()
        return data if self.encoding is None else self._peer_decoder.decode(
            data)

    def _read(self) -> bytes:
        with self._lock:
            data = b''.join(self._received)
            self._received.clear()
            self._show()
        if not data and (self._ended or self.closed):
            raise EndpointClosedException(f'{self!r}: the other side closed')
        return data

    @property
    def has_more(self) -> bool:
        return self.unread or bool(self._received)

    def get_fd(self) -> int:
        """See `IChannel`."""
        with self._lock:
            if self.closed:
                raise EndpointClosedException(f'{self!r} is closed')
            if self._wakeup is None:
                fill_standard()
                self._wakeup = WakeUp()
                self._show()
            return self._wakeup.faucet

    def write(self, *data: Data) -> None:
        if self.closed or self._eof_written:
            raise EndpointClosedException(
                f'{self!r} cannot be written to any more')
        encoded = self._encoded(data)
        with self._lock:
            self._written.append(encoded)

    def write_eof(self) -> None:
        self._eof_written = True

    def close(self) -> None:
        with self._lock:
            self.closed = True
            wakeup, self._wakeup = self._wakeup, None
        if wakeup is not None:
            self._tell_closing(wakeup.faucet)
            wakeup.close()
        self._tell_ready()

    def _release(self) -> None:
        if self._wakeup is not None:
            self._wakeup.close()

    def __del__(self) -> None:
        if self._wakeup is not None:  # else there is nothing to close
            super().__del__()

    def after_fork(self) -> None:
        """In a forked child: the descriptors are those of the parent."""
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is not None:
            wakeup.close_in_child()

    def __repr__(self) -> str:
        return f'<TestChannel{": closed" if self.closed else ""}>'
