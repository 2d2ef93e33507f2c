"""Channels that do something by another channel."""

from abc import ABCMeta
from collections.abc import Iterator
from typing import Unpack

import zope.interface

from gocept.runner.channel.base import MIB, Channel, Chunk, Options
from gocept.runner.channel.custom import CustomChannel, as_channel
from gocept.runner.channel.lines import Data, Lines
from gocept.runner.interfaces import ILineChannel
from gocept.runner.waits.source import Source


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
    def can_wait(self) -> bool:  # type: ignore[override]
        return self._channel.can_wait

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

    def take_sink(self, other: Channel) -> None:
        self._channel.take_sink(other)

    def write_eof(self) -> None:
        """See `IChannel`."""
        self._channel.write_eof()

    def flush(self, timeout: float | None = None) -> None:
        """See `IChannel`."""
        self._channel.flush(timeout)

    def close(self) -> None:
        """See `IChannel`."""
        self._channel.close()

    def abandon(self) -> None:
        self._channel.abandon()

    def acknowledge(self, unread: int = 0, is_over: bool = False) -> None:
        unread += self._size_of_unread
        if self.encoding is None or not unread:  # else bytes are not known
            self._channel.acknowledge(unread, is_over)

    @property
    def is_readable(self) -> bool:
        return self._channel.is_readable

    @property
    def is_writable(self) -> bool:
        return self._channel.is_writable

    @property
    def has_more(self) -> bool:
        return self.unread or self._channel.has_more

    @property
    def is_undecided(self) -> bool:
        return self._channel.is_undecided

    def get_fd(self) -> int:
        """See `IChannel`."""
        return self._channel.get_fd()


class _Lineness(ABCMeta):
    """Has each channel that gives lines be an instance of `LineChannel`."""

    def __instancecheck__(cls, instance: object) -> bool:
        return super().__instancecheck__(instance) or (
            cls is LineChannel and isinstance(instance, Channel)
            and instance.buffering == 'line')


@zope.interface.implementer(ILineChannel)
class LineChannel(Wrapping, metaclass=_Lineness):
    """See `ILineChannel`."""

    def __init__(self, channel: Channel | CustomChannel, *,
                 encoding: str | None = None, limit: int = MIB) -> None:
        channel = as_channel(channel)
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
