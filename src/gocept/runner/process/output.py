"""The output of a child that its user does not read."""

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator, Sequence

from gocept.runner.channel import Channel
from gocept.runner.channel.lines import Lines
from gocept.runner.errors import EndpointClosedException
from gocept.runner.events import Queue
from gocept.runner.logs import Log
from gocept.runner.poller import Poller
from gocept.runner.waits.forks import Lock
from gocept.runner.waits.source import Source

_TAIL = 2 ** 14

_PIPE, _SPLICE_F_NONBLOCK = 2 ** 16, 2

_LONGEST_LINE = 2 ** 12

_MOST_LINES = 100_000  # that wait for another thread to log them

_MOST_READS = 64  # of the rest, as a descendant may write for ever


class Output(Source):
    """Reads a channel, logs the lines, and keeps the tail for messages.

    So nothing is lost, and the child never waits for a reader. Several pollers
    may have it; their users get no results of it.
    """

    def __init__(self, name: str, channel: Channel | None,
                 log: Log) -> None:
        self.tail = b''
        """The last part of the output, 16 KiB at most."""
        self._name = name
        self._channel = channel
        self._log = log
        self._lock = Lock()  # around reading
        self._news = Queue()  # for the log, whose handlers are users' code
        self._lines = Lines(_LONGEST_LINE)
        self._lost = 0  # lines

    @property
    def is_kept(self) -> bool:
        """Whether there is a channel to read."""
        return self._channel is not None

    def reads(self, channel: Channel) -> bool:
        """Whether `channel` is the one that this reads."""
        return channel is self._channel

    def drain(self, poller: Poller) -> None:
        """Have `poller` read the channel from now on."""
        if self._channel is not None:
            poller.register(self)

    def read_rest(self) -> None:
        """Read all that there is, and log an incomplete line, too."""
        with self._lock:
            for _ in range(_MOST_READS):
                if not self._read():
                    break
            self._log_lines([self._lines.take_rest()])
        self._news.settle()  # another thread may be logging

    def fileno(self) -> int:
        return -1 if self._channel is None else self._channel.fileno()

    def layers(self) -> Iterator[Source]:
        yield self
        if self._channel is not None:
            yield from self._channel.layers()

    @property
    def buffered(self) -> bool:
        return self._channel is None or self._channel.closed

    def collect(self) -> tuple[Sequence[object], bool]:
        with self._lock:
            is_end = self._read() is None
        self._news.tell()
        return (), is_end

    def _read(self) -> bytes | None:
        """One piece, b'' for nothing, None for the end; with the lock held."""
        data = None
        if self._channel is not None:
            try:
                # Past its buffering and encoding.
                data = self._channel._read()
            except EndpointClosedException:
                self._log_lines([self._lines.take_rest()])
        if data:
            self.tail = (self.tail + data)[-_TAIL:]
            self._log_lines(self._lines.feed(data))
        return data

    def _log_lines(self, lines: list[bytes]) -> None:
        """With the lock held; they are logged without it."""
        for line in lines:
            text = line.decode('utf-8', 'backslashreplace').rstrip('\n')
            if not text:
                continue
            if len(self._news) >= _MOST_LINES:
                self._lost += 1
                continue
            if self._lost:
                self._news.put(
                    self._log.warning, '%s: %d lines are left out here, as '
                    'the log takes no more', self._name, self._lost)
                self._lost = 0
            self._news.put(self._log.info, '%s: %s', self._name, text)

    def __str__(self) -> str:
        if self._channel is None:
            return 'was not kept, as it goes elsewhere'
        return _shown(self.tail) or 'is empty'


def unread(channels: Iterable[Channel]) -> str:
    """The end of what is in pipes, which others will read; see tee(2).

    '' if there is nothing, or nothing can be found out.
    """
    said = b''
    with contextlib.suppress(EndpointClosedException, OSError):
        for channel in channels:
            if channel.is_readable:
                said += _peek(channel.get_fd())
    return _shown(said[-_TAIL:])


def _peek(fd: int) -> bytes:
    libc = ctypes.CDLL(None, use_errno=True)
    faucet, sink = os.pipe()
    try:
        size = libc.tee(fd, sink, _PIPE, _SPLICE_F_NONBLOCK)
        return os.read(faucet, size) if size > 0 else b''
    finally:
        os.close(faucet)
        os.close(sink)


def _shown(tail: bytes) -> str:
    text = tail.decode('utf-8', 'backslashreplace').rstrip()
    return f'ends with:\n{text}' if tail else ''
