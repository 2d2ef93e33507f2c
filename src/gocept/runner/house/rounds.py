"""A poller whose wait ends when it has called somebody.

`Poller.poll` goes on after callbacks. The loop of the house has to look then,
since a callback may have noted what it acts on.
"""

import functools
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from gocept.runner.poller import Poller
from gocept.runner.waits.source import Source

if TYPE_CHECKING:
    from gocept.runner.channel.custom import CustomChannel


class Rounds(Poller):
    """See the module."""

    def register(self, source: 'Source | CustomChannel',
                 callback: Callable[..., object] | None = None) -> None:
        """See `IPoller`."""
        super().register(source, self._noting(callback))

    def add_server(self, sock: socket.socket,
                   callback: Callable[..., object] | None = None) -> None:
        """See `IPoller`."""
        super().add_server(sock, self._noting(callback))

    def _noting(self, callback: Callable[..., object] | None,
                ) -> Callable[..., object] | None:
        if callback is None:
            return None

        @functools.wraps(callback)
        def call(*args: object) -> None:
            try:
                callback(*args)
            finally:
                self.wakeup()
        return call
