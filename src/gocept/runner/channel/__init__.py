"""One stream of bytes, text or lines; see `IChannel`."""

from gocept.runner.channel.base import Channel
from gocept.runner.channel.descriptor import PipeChannel, SocketChannel
from gocept.runner.channel.transactional import TransactionalChannel
from gocept.runner.channel.wrapping import LineChannel
from gocept.runner.errors import (
    EndpointClosedException,
    StillKept,
    WriteBufferFull,
)

__all__ = [
    'Channel',
    'EndpointClosedException',
    'LineChannel',
    'PipeChannel',
    'SocketChannel',
    'StillKept',
    'TransactionalChannel',
    'WriteBufferFull',
]
