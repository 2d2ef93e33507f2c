"""What a child says that nobody has asked for."""

import logging
from collections import deque

from gocept.runner.channel import PipeChannel
from gocept.runner.errors import EndpointClosedException
from gocept.runner.lines import Lines
from gocept.runner.poller import Poller

_TAIL = 2 ** 14

_LONGEST_LINE = 2 ** 12


class Output:
    """Reads a channel, logs the lines, and keeps the tail for messages.

    So nothing is lost, and the child never waits for a reader.
    """

    def __init__(self, name: str, channel: PipeChannel | None,
                 log: logging.Logger) -> None:
        self._name = name
        self._channel = channel
        self._log = log
        self._poller: Poller | None = None
        self._lines = Lines(_LONGEST_LINE)
        self._pieces: deque[bytes] = deque()
        self._size = 0

    @property
    def tail(self) -> bytes:
        """What was said last, 16 KiB at most."""
        return b''.join(self._pieces)[-_TAIL:]

    def drain(self, poller: Poller) -> None:
        """Have `poller` read it from now on."""
        if self._channel is not None:
            self._poller = poller
            poller.register(self._channel, self._say)

    def read_rest(self) -> None:
        """Read what there is, when the poller does not any more."""
        if self._channel is not None:
            if self._poller is not None:
                self._poller.unregister(self._channel)
            try:
                while data := self._channel.read():
                    self._say(data, self._channel)
            except EndpointClosedException:
                pass
            self._log_lines([self._lines.take_rest()])

    def _say(self, data: bytes, channel: object) -> None:
        if not data:
            self._log_lines([self._lines.take_rest()])
            return
        self._pieces.append(data)
        self._size += len(data)
        while self._size - len(self._pieces[0]) >= _TAIL:
            self._size -= len(self._pieces.popleft())
        self._log_lines(self._lines.feed(data))

    def _log_lines(self, lines: list[bytes]) -> None:
        for line in lines:
            text = line.decode('utf-8', 'backslashreplace').rstrip('\n')
            if text:
                self._log.info('%s: %s', self._name, text)

    def __str__(self) -> str:
        if not self.tail:
            return 'is empty'
        text = self.tail.decode('utf-8', 'backslashreplace').rstrip()
        return f'ends with:\n{text}'
