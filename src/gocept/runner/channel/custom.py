"""Channels of the users' own classes; see `IChannel`."""

from collections.abc import Callable
from typing import Protocol

from gocept.runner.channel.base import Channel, Chunk
from gocept.runner.channel.lines import Data


class CustomChannel(Protocol):
    """The least that pollers and other channels take as a channel."""

    def read(self) -> Data: ...

    def write(self, *data: Chunk) -> object: ...

    def close(self) -> object: ...


class Adapter(Channel):
    """A custom channel of a class that has nothing of ours."""

    def __init__(self, custom: CustomChannel) -> None:
        super().__init__()
        self._custom = custom

    @property
    def closed(self) -> bool:  # type: ignore[override]
        """See `IChannel`."""
        return getattr(self._custom, 'closed', False) is True

    @property
    def buffering(self) -> str:
        """See `IChannel`."""
        return ('line' if getattr(self._custom, 'buffering', None) == 'line'
                else 'bytes')

    def read(self) -> Data:
        """See `IChannel`."""
        return self._custom.read() or b''

    def write(self, *data: Chunk) -> None:
        """See `IChannel`."""
        self._custom.write(*data)

    def close(self) -> None:
        """See `IChannel`."""
        self._custom.close()

    def get_fd(self) -> int:
        """See `IChannel`."""
        get_fd: Callable[[], int] = getattr(
            self._custom, 'get_fd', super().get_fd)
        return get_fd()

    def __repr__(self) -> str:
        return repr(self._custom)


def as_channel(channel: Channel | CustomChannel) -> Channel:
    """Return `channel`, or an adapter; TypeError if it is no channel."""
    if isinstance(channel, Channel):
        return channel
    if not all(callable(getattr(channel, name, None))
               for name in ('read', 'write', 'close')):
        raise TypeError(f'{channel!r} is no channel: a channel has read(), '
                        'write() and close()')
    return Adapter(channel)
