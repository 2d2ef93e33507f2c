"""What all channels share: reading bytes, text or lines."""

import codecs
import fcntl
import functools
import logging
import sys
import termios
from abc import ABCMeta, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self, TypedDict, TypeVar

import zope.interface

from gocept.runner.channel import expect
from gocept.runner.channel.expect import Match, Pattern
from gocept.runner.channel.lines import Data, Lines
from gocept.runner.errors import EndpointClosedException
from gocept.runner.interfaces import IChannel
from gocept.runner.logs import Log
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.source import Source

log = Log('gocept.runner.channel')

MIB = 2 ** 20

T = TypeVar('T', bound='Channel')

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


def _after_what_is_ready(read: Callable[[T], Data]) -> Callable[[T], Data]:
    """Have a custom `read` return first what `read_until` has put back."""
    @functools.wraps(read)
    def call(channel: T) -> Data:
        ready = channel._ready
        return ready.popleft() if ready else read(channel)
    return call


@zope.interface.implementer(IChannel)
class Channel(Source, Closing, metaclass=ABCMeta):
    """See `IChannel`; a base for custom channels as well, see `custom`.

    The constructor of a custom channel need not call ours.
    """

    is_stream = True

    closed = False

    high_water = MIB
    """A write is refused while more bytes than this are kept."""

    can_wait = True
    """Whether `read_until` waits for what is still to come."""

    waits_for_commit = False
    """Whether who reads it calls `acknowledge`, after each commit."""

    loss_level = logging.WARNING
    """How it is logged that bytes which were accepted cannot be sent."""

    encoding: str | None = None

    _buffering = 'bytes'

    _decoder: codecs.IncrementalDecoder | None = None

    _encoder: codecs.IncrementalEncoder | None = None

    _lines: Lines | None = None

    _plain = True

    _nothing: Data = b''

    _last: Data = b''

    _final: Data = b''

    _over: EndpointClosedException | None = None

    _gives_reads = False
    """Whether a subclass has another `read`, so that pollers call it."""

    def __init_subclass__(cls, **keywords: object) -> None:
        super().__init_subclass__(**keywords)
        names = next(vars(each) for each in cls.__mro__
                     if {'read', 'collect'} & vars(each).keys())
        cls._gives_reads = 'collect' not in names
        owner = next(each for each in cls.__mro__ if 'read' in vars(each))
        # Its own, or that of a base which is no channel.
        is_new = owner is cls or not issubclass(owner, Channel)
        if is_new and cls._read is Channel._read:
            cls.read = _after_what_is_ready(cls.read)  # type: ignore[assignment]

    def __new__(cls, *args: object, **keywords: object) -> Self:
        channel = super().__new__(cls)
        channel._ready = deque()
        return channel

    def __init__(self, *, buffering: str | None = None,
                 encoding: str | None = None, limit: int = MIB) -> None:
        self._buffering = checked_buffering(buffering) or 'bytes'
        self.encoding = encoding
        if encoding is not None:
            # Bytes that cannot be decoded are shown, since data that others
            # send must neither be lost nor end the reading of it.
            self._decoder = codecs.getincrementaldecoder(encoding)(
                'backslashreplace')
            self._encoder = codecs.getincrementalencoder(encoding)()
            self._nothing = self._last = self._final = ''
        if buffering == 'line':
            self._lines = Lines(limit, encoding is not None)
        self._plain = self._lines is None and encoding is None

    _ready: deque[Data]

    @property
    def buffering(self) -> str:
        """See `IChannel`."""
        return self._buffering

    def _read(self) -> Data:
        """What there is; EndpointClosedException when no more will come.

        A custom channel has this, or a `read` of its own.
        """
        if not self._gives_reads:
            raise NotImplementedError(f'{self!r} has nothing to read from')
        return self.read() or self._nothing

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

    def take_sink(self, other: 'Channel') -> None:
        """Write to what `other` writes to, as nobody reads there any more.

        Most channels cannot: who writes to them is told the end.
        """

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
        if self._gives_reads:
            return self._collect_reads()
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

    def _collect_reads(self) -> tuple[Sequence[Data], bool]:
        items: list[Data] = []
        try:
            while data := self.read():
                items.append(data)
                if self.buffering != 'line':
                    break
        except EndpointClosedException:
            return [*items, self._nothing], True
        except Exception:
            if not items:
                raise
            # They were read, and would be lost.
            log.exception('%r failed, and is not polled any more', self)
            return [*items, self._nothing], True
        return items, False

    @property
    def is_readable(self) -> bool:
        """Whether it is open and has something to read from."""
        return not self.closed

    @property
    def is_writable(self) -> bool:
        """Whether there is something to write to."""
        return self.sink_fd >= 0

    @property
    def is_undecided(self) -> bool:
        """Whether a kernel waits to hear that what was read is committed."""
        return False

    @property
    def has_more(self) -> bool:
        """Whether something is left to read, here or in the system."""
        if self.unread:
            return True
        try:
            return any(fcntl.ioctl(
                self.get_fd(), termios.FIONREAD, bytes(4)))
        except (EndpointClosedException, NotImplementedError, OSError,
                ValueError):
            return False  # closed, or nothing to read from

    @property
    def _size_of_unread(self) -> int:
        return sum(map(len, self._ready)) + (
            0 if self._lines is None else self._lines.size)

    def abandon(self) -> None:
        """Close it, as nobody wants what is left to read."""
        self.close()

    def acknowledge(self, unread: int = 0, is_over: bool = False) -> None:
        """What was read need not be kept for another reader any more.

        But for the last `unread` bytes, or characters; `is_over` says that
        the end was read as well. Most channels keep nothing.
        """

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
            # A part of a line, or of a character, may be the last: then the
            # end comes behind it, and it is returned now.
            while not self._ready and (data := self._read_bytes()):
                self._feed(data if self._decoder is None
                           else self._decode(data))
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
        data = self._read_bytes()
        return data if self._decoder is None else self._decode(data)

    def _read_bytes(self) -> Data:
        if self._over is None:
            try:
                return self._read()
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
