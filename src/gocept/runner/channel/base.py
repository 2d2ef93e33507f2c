"""What all channels share: reading bytes, text or lines."""

import codecs
import logging
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypedDict, Unpack

import zope.interface

from gocept.runner.channel import expect
from gocept.runner.channel.expect import Match, Pattern
from gocept.runner.channel.lines import Data, Lines
from gocept.runner.errors import EndpointClosedException
from gocept.runner.interfaces import IChannel, ILineChannel
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.source import Source

MIB = 2 ** 20

Chunk = bytes | bytearray | memoryview | str
"""What can be written: text only with an encoding."""


class Options(TypedDict, total=False):
    """The keywords of every channel."""

    buffering: str | None
    encoding: str | None
    limit: int


def checked_buffering(buffering: str | None) -> str | None:
    """Return `buffering`; ValueError if channels do not know it."""
    if buffering not in (None, 'bytes', 'line'):
        raise ValueError("buffering must be None, 'bytes' or 'line', "
                         f'not {buffering!r}')
    return buffering


@zope.interface.implementer(IChannel)
class Channel(Source, Closing, ABC):
    """See `IChannel`; the base of custom channels as well."""

    is_stream = True

    closed = False

    high_water = MIB
    """A write is refused while more bytes than this are kept."""

    loss_level = logging.WARNING
    """How it is logged that bytes which were accepted cannot be sent."""

    def __init__(self, *, buffering: str | None = None,
                 encoding: str | None = None, limit: int = MIB) -> None:
        self.buffering = checked_buffering(buffering)
        self.encoding = encoding
        self._decoder = self._encoder = None
        if encoding is not None:
            # Bytes that cannot be decoded are shown, since data that others
            # send must neither be lost nor end the reading of it.
            self._decoder = codecs.getincrementaldecoder(encoding)(
                'backslashreplace')
            self._encoder = codecs.getincrementalencoder(encoding)()
        self._nothing: Data = b'' if encoding is None else ''
        self._lines = (Lines(limit, encoding is not None)
                       if buffering == 'line' else None)
        self._plain = self._lines is None and encoding is None
        self._ready: deque[Data] = deque()
        self._last = self._final = self._nothing
        self._over: EndpointClosedException | None = None

    @abstractmethod
    def _read(self) -> Data:
        """What there is; EndpointClosedException when no more will come."""

    @abstractmethod
    def write(self, *data: Chunk) -> None:
        """See `IChannel`."""

    def write_accepted(self, *data: Chunk) -> None:
        """Like `write`, but however much is kept: it was asked for before."""
        self.write(*data)

    def check_sink(self) -> None:
        """EndpointClosedException if it is known that nobody will read."""
        if self.closed:
            raise EndpointClosedException(f'{self!r} is closed')

    @abstractmethod
    def close(self) -> None:
        """See `IChannel`."""

    def get_fd(self) -> int:
        """See `IChannel`."""
        raise NotImplementedError(f'{self!r} cannot be polled')

    def fileno(self) -> int:
        """See `IChannel`."""
        return -1 if self.closed else self.get_fd()

    def closing(self) -> None:
        """See `IChannel`."""
        self._tell_closing(self.get_fd())
        self.closed = True
        self._tell_ready()

    def write_eof(self) -> None:
        """See `IChannel`."""
        raise NotImplementedError(f'{self!r} cannot be closed for writing')

    def flush(self, timeout: float | None = None) -> None:
        """See `IChannel`."""

    def read(self) -> Data:
        """See `IChannel`."""
        ready = self._ready
        if not ready:
            if self.kept:
                self.send_kept()
            self._fill()
            if len(ready) > 1:
                self._tell_ready()
            if not ready:
                if self.told:
                    self.tell_fetched()
                return self._nothing
        item = self._last = ready.popleft()
        if self.told:
            self.tell_fetched()
        return item

    def collect(self) -> tuple[Sequence[Data], bool]:
        ready = self._ready
        if not ready:
            try:
                if self._plain:
                    data = self._read()
                    return ((data,) if data else ()), False
                self._fill()
            except EndpointClosedException:
                return (self._nothing,), True
        items = list(ready)
        ready.clear()
        if items:
            self._last = items[-1]
        return items, False

    @property
    def buffered(self) -> bool:
        return bool(self._ready) or self.closed or self._over is not None

    @property
    def unread(self) -> bool:
        """See `IChannel`."""
        return bool(self._ready) or (
            self._lines is not None and self._lines.size > 0)

    @property
    def partial(self) -> bool:
        """See `IChannel`."""
        return (self._lines is not None and bool(self._last)
                and self._last is not self._final
                and not self._last.endswith(self._lines.newline))

    def _fill(self) -> None:
        try:
            self._feed(self._read_once())
        except EndpointClosedException:
            over, self._over = self._over, None
            self._finish()
            if not self._ready:
                raise
            self._over = over
            self._tell_ready()

    def receive(self) -> Data:
        """Return what comes now, without what `take_all` returns."""
        if self.kept:
            self.send_kept()
        return self._read_once()

    def _read_once(self) -> Data:
        if self._over is None:
            try:
                data = self._read()
                return data if self._decoder is None else self._decode(data)
            except EndpointClosedException as error:
                # A terminal and a named pipe tell their end only once.
                self._over = error
        raise self._over

    def _decode(self, data: bytes, final: bool = False) -> str:
        decoder = self._decoder
        assert decoder is not None
        try:
            return decoder.decode(data, final)
        except UnicodeError:
            # UTF-16 and UTF-32 without the mark: the order is the machine's.
            before, _ = decoder.getstate()
            name = codecs.lookup(self.encoding or '').name
            decoder = self._decoder = codecs.getincrementaldecoder(
                f'{name}-{sys.byteorder[0]}e')('backslashreplace')
            return decoder.decode(before + data, final)

    def _feed(self, data: Data) -> None:
        if data:
            if self._lines is None:
                self._ready.append(data)
            else:
                self._ready += self._lines.feed(data)

    def _finish(self) -> None:
        if self._decoder is not None:
            self._feed(self._decode(b'', True))
        if self._lines is not None:
            rest = self._lines.take_rest()
            if rest:
                self._final = rest
                self._ready.append(rest)

    def read_until(self, pattern: Pattern, timeout: float | None = None,
                   ) -> tuple[Data, Match]:
        """See `IChannel`."""
        return expect.read_until(self, pattern, Deadline(timeout))

    @property
    def is_text(self) -> bool:
        """See `IChannel`."""
        return isinstance(self._nothing, str)

    def take_all(self) -> Data:
        """Return and forget what was received and not read yet."""
        items = [*self._ready]
        self._ready.clear()
        if self._lines is not None:
            items.append(self._lines.take_rest())
        return self._nothing.join(items)

    def put_back(self, data: Data) -> None:
        """Have `data` read next."""
        self._feed(data)
        if self.told:
            self.tell_fetched()
        if self.buffered:
            self._tell_ready()

    def _encoded(self, data: Sequence[Chunk]) -> bytes:
        # The caller may change the object while its bytes are kept.
        if len(data) == 1 and type(data[0]) is bytes:
            return data[0]
        encoder = self._encoder
        before = 0 if encoder is None else encoder.getstate()
        pieces = []
        for each in data:
            if isinstance(each, str):
                if encoder is None:
                    raise TypeError('a channel without an encoding takes '
                                    'bytes, no text')
                try:
                    each = encoder.encode(each)
                except UnicodeError:
                    encoder.setstate(before)
                    raise
            pieces.append(each)
        return b''.join(pieces)


class Wrapping(Channel):
    """The base of channels that do all but one thing by another channel."""

    def __init__(self, channel: Channel, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self._channel = channel

    @property
    def closed(self) -> bool:  # type: ignore[override]
        """See `IChannel`."""
        return self._channel.closed

    @property
    def kept(self) -> int:
        """See `IChannel`."""
        return self._channel.kept

    @property
    def high_water(self) -> int:  # type: ignore[override]
        return self._channel.high_water

    def layers(self) -> Iterator[Source]:
        yield self
        yield from self._channel.layers()

    def _read(self) -> Data:
        return self._channel.read()

    def send_kept(self) -> bool:
        return self._channel.send_kept()

    def check_sink(self) -> None:
        self._channel.check_sink()

    def write_eof(self) -> None:
        """See `IChannel`."""
        self._channel.write_eof()

    def flush(self, timeout: float | None = None) -> None:
        """See `IChannel`."""
        self._channel.flush(timeout)

    def close(self) -> None:
        """See `IChannel`."""
        self._channel.close()

    def get_fd(self) -> int:
        """See `IChannel`."""
        return self._channel.get_fd()


@zope.interface.implementer(ILineChannel)
class LineChannel(Wrapping):
    """See `ILineChannel`."""

    def __init__(self, channel: Channel, *, encoding: str | None = None,
                 limit: int = MIB) -> None:
        super().__init__(channel, buffering='line', encoding=encoding,
                         limit=limit)
        if channel.transactional:
            raise ValueError(
                f'{channel!r} cannot give back a part of a line: make a '
                'TransactionalChannel of the LineChannel')
        if encoding and channel.encoding:
            raise ValueError(f'{channel!r} gives text already: leave out the '
                             'encoding')
        if channel.encoding:
            self._lines = Lines(limit, text=True)
            self._nothing = ''

    @property
    def buffered(self) -> bool:
        return bool(self._ready) or self._channel.buffered

    def write(self, *data: Chunk) -> None:
        """See `IChannel`."""
        if self.encoding is not None:
            data = (self._encoded(data),)
        self._channel.write(*data)

    def write_accepted(self, *data: Chunk) -> None:
        if self.encoding is not None:
            data = (self._encoded(data),)
        self._channel.write_accepted(*data)

    def __repr__(self) -> str:
        return f'<LineChannel {self._channel!r}>'
