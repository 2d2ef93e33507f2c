"""The output of a child: read as it comes, and kept for its readers.

The thread of `gocept.runner.poller.background` reads, so the child never
waits. Readers may be in any other thread.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from gocept.runner.channel import Channel
from gocept.runner.errors import DeadlineExceeded, EndpointClosedException
from gocept.runner.events import Queue
from gocept.runner.executor.logfile import LogFile
from gocept.runner.logs import Log
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.deadline import NEVER, Deadline
from gocept.runner.waits.forks import Lock, tell_forks
from gocept.runner.waits.source import Source
from gocept.runner.waits.threads import (
    refuse_to_wait,
    survived,
)

log = Log('gocept.runner.executor')

_MOST_READS = 64  # of what is left, as another process may write on

_TAIL = 2 ** 12  # bytes at the end of the output that are in a message

_PIECE = 2 ** 12
"""The least size of a piece, but for the last one. So a child that writes
little at a time makes few pieces for readers to look at."""

READING = 'reading the output of a child that goes on'

Listener = Callable[[int, bytes], object]


class Capture(Source, Closing):
    """One stream of a child. The last `size` bytes of it are kept.

    All of it is appended to `log_file`.
    """

    def __init__(self, channel: Channel, size: int,
                 log_file: str | os.PathLike[str] | None = None,
                 encoding: str | None = None) -> None:
        self.encoding = encoding or 'utf-8'
        self._channel = channel
        self._size = size
        self._log_file = None if log_file is None else LogFile(log_file)
        self._pieces: deque[bytearray] = deque()
        self.dropped = 0  # bytes; what is kept begins there
        self.end = 0  # a position in the stream, as `dropped` is
        self._kept_from: int | None = None
        self._listeners: list[Listener] = []
        self.ended = False
        self._reading = Lock()  # one reads at a time, so the order is kept
        self._news = Queue()  # for listeners and the log; put with this lock
        self._changed = threading.Condition(Lock())
        tell_forks(self)

    def after_fork(self) -> None:
        """In a forked child: the output is the parent's to read."""
        self.ended = True

    def fileno(self) -> int:
        return self._channel.fileno()

    def layers(self) -> Iterator[Source]:
        yield self
        yield from self._channel.layers()

    @property
    def buffered(self) -> bool:
        return self._channel.closed

    def collect(self) -> tuple[Sequence[bytes], bool]:
        with self._reading:
            ended = self._read() is None
        self._news.tell()
        return (), ended

    def read_rest(self) -> None:
        """Read what there is now."""
        with self._reading:
            for _ in range(_MOST_READS):
                if not self._read():
                    break
        self._news.tell()

    def _read(self) -> bytes | None:
        """Read a piece: b'' for nothing, None for the end.

        With `_reading` held.
        """
        if self.ended:
            return None
        data: bytes | None
        try:
            data = self._channel._read()  # bytes, whatever its encoding is
        except EndpointClosedException:
            data = None
        begin = self.end
        if data:
            self._log(data)
        with self._changed:
            self._keep(data or b'')
            self.ended = data is None
            self._changed.notify_all()
        if data != b'':
            for listener in self._listeners:
                self._news.put(_call, listener, begin, data or b'')
        return data

    def _log(self, data: bytes) -> None:
        text = '' if self._log_file is None else self._log_file.write(data)
        if text:
            self._news.put(log.error, text)

    def _keep(self, data: bytes) -> None:
        """Add it to what is kept; with `_changed` held."""
        if self._pieces and len(self._pieces[-1]) < _PIECE:
            self._pieces[-1] += data
        elif data:
            self._pieces.append(bytearray(data))
        self.end += len(data)
        while self._pieces and (self.end - self.dropped
                                - len(self._pieces[0]) >= self._size):
            if self._kept_from is not None and (
                    self.dropped + len(self._pieces[0]) > self._kept_from):
                break
            self.dropped += len(self._pieces.popleft())

    def keep_from(self, position: int | None) -> None:
        """Drop nothing from there on, until it is None again."""
        with self._changed:
            self._kept_from = position
            self._keep(b'')

    def listen(self, listener: Listener) -> None:
        """Call it with what is kept, and then with all that comes.

        The arguments are a position in the stream and the bytes there, at the
        end b''. A thread that reads calls it, one at a time: for what `end`
        counts, a call may still come.
        """
        with self._reading:
            self._listeners.append(listener)
            if self._pieces:
                self._news.put(_call, listener, self.dropped,
                               b''.join(self._pieces))
            if self.ended:
                self._news.put(_call, listener, self.end, b'')
        self._news.tell()

    def listen_no_more(self, listener: Listener) -> None:
        """Forget the listener."""
        with self._reading, contextlib.suppress(ValueError):
            self._listeners.remove(listener)

    def take(self, position: int, size: int, deadline: Deadline = NEVER,
             ) -> tuple[int, bytes]:
        """Return up to `size` bytes, and the position where they begin.

        That is a later one if bytes were dropped. Waits for what is still to
        come; b'' at the end. DeadlineExceeded if it does not come in time.
        """
        with self._changed:
            if position >= self.end and not self.ended:
                refuse_to_wait(READING)
            while position >= self.end and not self.ended:
                if deadline.passed:
                    raise DeadlineExceeded(
                        f'no more output has come in {deadline}')
                self._changed.wait(deadline.left())
            if self._kept_from is not None:
                self._kept_from = position
            begin = self.dropped
            position = max(position, begin)
            for piece in self._pieces:
                if position < begin + len(piece):
                    start = position - begin
                    return position, bytes(piece[start:start + size])
                begin += len(piece)
            return position, b''

    def has_line(self, position: int, after_one: bool, is_text: bool) -> bool:
        """Whether the end of a line is kept from there on.

        Behind the first one, if `after_one`. For a text, a carriage return is
        the end of a line, if something follows that tells.
        """
        with self._changed:
            data = b''.join(self._pieces)
            start = max(0, position - self.dropped)
        if after_one:
            start = data.find(b'\n', start) + 1
            if not start:
                return False
        return (data.find(b'\n', start) >= 0
                or (is_text and data.find(b'\r', start, -1) >= 0))

    @property
    def tail(self) -> str:
        """The last lines, for a message."""
        with self._changed:
            data = b''.join(list(self._pieces)[-2:])[-_TAIL:]
        return data.decode(self.encoding, 'backslashreplace').rstrip()

    def close(self) -> None:
        """Read what is left, and end it for the readers."""
        self.read_rest()
        with self._reading:
            self._channel.close()
            text = '' if self._log_file is None else self._log_file.close()
            if text:
                self._news.put(log.error, text)
            listeners = [] if self.ended else list(self._listeners)
            self._listeners.clear()
            with self._changed:
                self.ended = True
                self._changed.notify_all()
            for listener in listeners:
                self._news.put(_call, listener, self.end, b'')
        self._news.tell()


def _call(listener: Listener, position: int, data: bytes) -> None:
    try:
        listener(position, data)
    except survived():  # the child goes on, and so does its reader
        log.exception('%r, which listens to an output, failed', listener)
