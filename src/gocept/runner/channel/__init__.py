"""One stream of bytes, text or lines; see `IChannel`."""

from gocept.runner.channel.base import Channel, LineChannel
from gocept.runner.channel.descriptor import PipeChannel, SocketChannel
from gocept.runner.errors import EndpointClosedException, WriteBufferFull

__all__ = [
    'Channel',
    'EndpointClosedException',
    'LineChannel',
    'PipeChannel',
    'SocketChannel',
    'WriteBufferFull',
]
