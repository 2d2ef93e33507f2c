"""Fakes for the users' own tests."""

import codecs
from typing import Any

import zope.interface

from gocept.runner.errors import EndpointClosedException
from gocept.runner.interfaces import ITestChannel
from gocept.runner.stream import Channel

__all__ = ['TestChannel']


@zope.interface.implementer(ITestChannel)
class TestChannel(Channel):
    """See `ITestChannel`."""

    __test__ = False  # it is none, whatever its name makes test runners think

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._received: list[bytes] = []
        self._written: list[bytes] = []
        self._ended = self._eof_written = False
        # The other side's; both may have to remember a state.
        name = self.encoding or 'ascii'
        self._peer_encoder = codecs.getincrementalencoder(name)()
        self._peer_decoder = codecs.getincrementaldecoder(name)()

    def put(self, *data: Any) -> None:
        """See `ITestChannel`."""
        if self._ended or self.closed:
            raise EndpointClosedException(f'{self!r} can receive no more')
        if self.encoding is not None:
            data = tuple(self._peer_encoder.encode(each)
                         if isinstance(each, str) else each for each in data)
        self._received.append(b''.join(data))

    def put_eof(self) -> None:
        """See `ITestChannel`."""
        self._ended = True

    def get(self) -> Any:
        """See `ITestChannel`."""
        data = b''.join(self._written)
        self._written.clear()
        return data if self.encoding is None else self._peer_decoder.decode(
            data)

    def _read(self) -> bytes:
        data = b''.join(self._received)
        self._received.clear()
        if not data and (self._ended or self.closed):
            raise EndpointClosedException(f'{self!r}: the other side closed')
        return data

    def write(self, *data: Any) -> None:
        """See `IChannel`."""
        if self.closed or self._eof_written:
            raise EndpointClosedException(f'{self!r} can be written no more')
        self._written.append(self._encoded(data))

    def write_eof(self) -> None:
        """See `IChannel`."""
        self._eof_written = True

    def close(self) -> None:
        """See `IChannel`."""
        self.closed = True

    def __repr__(self) -> str:
        return f'<TestChannel{": closed" if self.closed else ""}>'
