"""What a child says: read as it comes, kept, and given to whom asks.

The thread of `gocept.runner.poller.background` reads, so the child never
waits. Readers may be in any other thread.
"""

import contextlib
import io
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gocept.runner.channel import PipeChannel
from gocept.runner.errors import EndpointClosedException
from gocept.runner.poller import background
from gocept.runner.process import Process
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.forks import Lock, tell_forks
from gocept.runner.waits.source import Source

log = logging.getLogger('gocept.runner.executor')

_MOST_READS = 64  # of what is left, as somebody else may write on

_TAIL = 2 ** 12  # bytes of it in a message

_PIECE = 2 ** 12
"""Bytes that a piece has at least, but for the last: a child that writes
little at a time makes few pieces, each of which a reader may look at."""

Listener = Callable[[int, bytes], object]


class Capture(Source):
    """One stream of a child; the last `size` bytes can be read."""

    def __init__(self, channel: PipeChannel, size: int,
                 log_file: str | os.PathLike[str] | None = None) -> None:
        self._channel = channel
        self._size = size
        self._log_fd = -1 if log_file is None else os.open(
            log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC,
            0o666)
        self._pieces: deque[bytearray] = deque()
        self._begin = self._end = 0  # of what is kept, in the stream
        self._listeners: tuple[Listener, ...] = ()
        self.ended = False
        self._reading = Lock()  # one reads at a time, so the order is kept
        self._changed = threading.Condition(Lock())
        tell_forks(self)

    def after_fork(self) -> None:
        """In a forked child: what comes is the parent's to read."""
        self.ended = True

    @property
    def dropped(self) -> int:
        """How many bytes are not kept any more."""
        return self._begin

    def fileno(self) -> int:
        """See `Source`."""
        return self._channel.fileno()

    def layers(self) -> Any:
        """See `Source`."""
        yield self
        yield from self._channel.layers()

    @property
    def buffered(self) -> bool:
        """See `Source`."""
        return self._channel.closed

    def collect(self) -> tuple[Sequence[Any], bool]:
        """See `Source`."""
        with self._reading:
            return (), self._read() is None

    def read_rest(self) -> None:
        """Read what there is now."""
        with self._reading:
            for _ in range(_MOST_READS):
                if not self._read():
                    return

    def _read(self) -> bytes | None:
        """One piece, b'' for nothing, None for the end."""
        if self.ended:
            return None
        try:
            data: bytes = self._channel._read()  # past its encoding
        except EndpointClosedException:
            data, over = b'', True
        else:
            over = False
        begin = self._end
        if data:
            self._log(data)
            self._keep(data)
        with self._changed:
            self.ended = over
            self._changed.notify_all()
            listeners = self._listeners
        if data or over:
            for listener in listeners:
                listener(begin, data)
        return None if over else data

    def _log(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest and self._log_fd >= 0:
            try:
                rest = rest[os.write(self._log_fd, rest):]
            except OSError:  # the child goes on, and so does its reader
                log.exception('The output is not written to its file any more')
                self._close_log()

    def _close_log(self) -> None:
        if self._log_fd >= 0:
            fd, self._log_fd = self._log_fd, -1
            os.close(fd)

    def _keep(self, data: bytes) -> None:
        with self._changed:
            if self._pieces and len(self._pieces[-1]) < _PIECE:
                self._pieces[-1] += data
            else:
                self._pieces.append(bytearray(data))
            self._end += len(data)
            while self._pieces and (self._end - self._begin
                                    - len(self._pieces[0]) >= self._size):
                self._begin += len(self._pieces.popleft())

    def listen(self, listener: Listener) -> None:
        """Have it called with what was kept, then with all that comes.

        With where it begins in the stream, and with b'' at the end; by
        whichever thread reads.
        """
        with self._reading:
            with self._changed:
                kept = b''.join(self._pieces)
                self._listeners += (listener,)
            if kept:
                listener(self._begin, kept)
            if self.ended:
                listener(self._end, b'')

    def listen_no_more(self, listener: Listener) -> None:
        """Forget the listener."""
        with self._reading, self._changed:
            self._listeners = tuple(
                each for each in self._listeners if each != listener)

    def take(self, position: int, size: int) -> tuple[int, bytes]:
        """Up to `size` bytes, and where they begin: there or later.

        Waits for them; b'' at the end.
        """
        with self._changed:
            while position >= self._end and not self.ended:
                self._changed.wait()
            position = max(position, self._begin)
            begin = self._begin
            for piece in self._pieces:
                if position < begin + len(piece):
                    start = position - begin
                    return position, bytes(piece[start:start + size])
                begin += len(piece)
            return position, b''

    @property
    def tail(self) -> str:
        """The last lines, for a message."""
        with self._changed:
            data = b''.join(list(self._pieces)[-2:])[-_TAIL:]
        return data.decode('utf-8', 'backslashreplace').rstrip()

    def close(self) -> None:
        """Read what is left, and end it for the readers."""
        self.read_rest()
        with self._reading:
            self._channel.close()
            self._close_log()
            with self._changed:
                self.ended = True
                self._listeners = ()
                self._changed.notify_all()


class _Raw(io.RawIOBase):
    """The bytes of a capture; what it has dropped is shown."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._position = 0
        self._notice = b''
        self.skipping = False
        """Whether to leave out what comes up to the next line."""

    def readable(self) -> bool:
        return True

    def skip_to(self, position: int, skipping: bool) -> None:
        if position >= self._position:  # or else it was read already
            self._position, self.skipping = position, skipping
            self._notice = b''

    def readinto(self, buffer: Any) -> int:
        while True:
            data = self._notice or self._next(len(buffer))
            if self.skipping and data:
                _, newline, data = data.partition(b'\n')
                self.skipping = not newline
                if not data:
                    continue
            buffer[:len(data)] = data[:len(buffer)]
            self._notice = data[len(buffer):]
            return min(len(data), len(buffer))

    def _next(self, size: int) -> bytes:
        position, data = self._capture.take(self._position, size)
        lost, self._position = position - self._position, position + len(data)
        if lost:
            return b'\n[%d bytes were not kept]\n' % lost + data
        return data


class Reader(io.TextIOWrapper):
    """A text stream over a capture; reading waits for what is to come.

    Several threads may read; io.TextIOWrapper alone would lose lines.
    """

    def __init__(self, capture: Capture, encoding: str | None = None,
                 errors: str | None = None) -> None:
        self._raw = _Raw(capture)
        self._turn = Lock()
        super().__init__(io.BufferedReader(self._raw),
                         encoding=encoding or 'utf-8',
                         errors=errors or 'backslashreplace')

    def skip_to(self, position: int, skipping: bool) -> None:
        """Begin there; with `skipping`, after the end of that line."""
        self._raw.skip_to(position, skipping)

    def read(self, size: int | None = -1, /) -> str:
        """See `io.TextIOWrapper`."""
        with self._turn:
            return super().read(size)

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        """See `io.TextIOWrapper`."""
        with self._turn:
            return super().readline(size)


class Captures(dict[str, Capture], Closing):
    """What a child says: the captures of its pipes, by their names.

    `size` and `log_file` are those of `Capture`; `encoding` and `errors` those
    of the readers.
    """

    def __init__(self, process: Process, size: int,
                 log_file: str | os.PathLike[str] | None = None,
                 encoding: str | None = None,
                 errors: str | None = None) -> None:
        super().__init__()
        self.readers: dict[str, Reader] = {}
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for name, channel in (('stdout', process.channel),
                                  ('stderr', process.stderr)):
                if channel is not None and channel.is_readable:
                    self[name] = Capture(channel, size, log_file)
                    self.readers[name] = Reader(self[name], encoding, errors)
            undo.pop_all()

    def begin(self) -> None:
        """Have them read in the background, with all who listen by now."""
        for capture in self.values():
            background().register(capture)

    def read_rest(self) -> None:
        """Read what there is now."""
        for capture in self.values():
            capture.read_rest()

    def skip_to(self, place: Callable[[Capture], tuple[int, bool]]) -> None:
        """Have each reader begin at its place; see `Reader.skip_to`."""
        for name, reader in self.readers.items():
            reader.skip_to(*place(self[name]))

    @property
    def dropped(self) -> int:
        """See `IExecutor`."""
        return sum(each.dropped for each in self.values())

    def tails(self) -> Iterator[str]:
        """How each ends, for a message."""
        self.read_rest()
        for name, capture in self.items():
            tail = capture.tail
            yield (f'its {name} ends with:\n{tail}' if tail
                   else f'its {name} is empty')

    def close(self) -> None:
        """Read what is left, and end it for the readers."""
        for capture in self.values():
            capture.close()
