"""What one process of a kernel says, for the channels of one reader.

A watcher gives standard output and standard error in one stream, and what was
read is acknowledged by one position in it. So a byte is acknowledged when it
and all bytes before it were read, of both.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from gocept.runner.errors import EndpointClosedException, KernelError
from gocept.runner.kernel.client.watcher import Watcher
from gocept.runner.kernel.wire.frames import OutRecord
from gocept.runner.waits.forks import Lock
from gocept.runner.waits.readable import Readable


class _Piece(NamedTuple):
    """Where in the stream of both some bytes of one of them are."""

    stream: str
    """'' if they were read before."""
    size: int
    end: int


class Notes(Protocol):
    """What a reader leaves with the kernel for the next one."""

    def ahead(self, life: str) -> dict[str, int]:
        """For each stream the offset up to which it was read, though what
        lies before, of another stream, was not."""

    def set_ahead(self, life: str, ahead: Mapping[str, int]) -> None:
        """Change that."""

    def clear(self) -> None:
        """The end is acknowledged next, and the key is free then."""


class _Side:
    """One of the two streams."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self.tell = tell
        self.waiting: deque[bytes] = deque()
        self.begin = 0
        """Where the first piece begins that is not acknowledged."""
        self.done = 0
        """Where the bytes end that were read, and need not come again."""
        self.is_over = False
        """Whether the end was read, or nobody wants to."""

    def take(self, size: int) -> bytes:
        """Up to so many of the bytes that wait."""
        pieces = []
        while self.waiting and size > 0:
            piece = self.waiting.popleft()
            if len(piece) > size:
                self.waiting.appendleft(piece[size:])
                piece = piece[:size]
            size -= len(piece)
            pieces.append(piece)
        return b''.join(pieces)


class Intake:
    """Receives for several channels, and acknowledges what they have read.

    The pollers of the channels are told without the lock.
    """

    def __init__(self, watcher: Watcher, key: str, life: str, begin: int,
                 end: int, notes: Notes) -> None:
        self._watcher = watcher
        self._key = key
        self._life = life
        self._end = end
        """Of what is known to have been said."""
        self._notes = notes
        self._ahead = notes.ahead(life)
        self._lock = Lock()
        self._sides: dict[str, _Side] = {}
        self._open: dict[str, Readable] = {}
        self._pieces: deque[_Piece] = deque()
        self._records: deque[OutRecord] = deque()
        """Those that were received, and are not taken in yet."""
        self._received = begin
        self._acknowledged: tuple[int, bool] = (-1, False)
        self._has_ended = False
        self.is_end_known = False
        """Whether somebody here knows the status."""

    def add(self, stream: str, readable: Readable,
            tell: Callable[[], None]) -> None:
        """Receive for a channel, whose descriptor is `readable`."""
        self._sides[stream] = _Side(tell)
        self._open[stream] = readable
        readable.follow(self._watcher.fileno())

    def take(self, stream: str, size: int) -> bytes:
        """What there is now, `size` bytes at most; b'' for nothing.

        EndpointClosedException at the end, and where the kernel is gone.
        """
        side = self._sides[stream]
        told: list[Callable[[], None]] = []
        try:
            with self._lock:
                if not side.waiting:
                    self._receive(stream, told)
                data = side.take(size)
                if stream in self._open:
                    self._open[stream].say(self.has(stream))
                if data:
                    if self.has(stream):
                        told.append(side.tell)
                    return data
                if self._has_ended:
                    raise EndpointClosedException(
                        'the process has ended, or its kernel has')
                return b''
        finally:
            for tell in told:
                tell()

    def _receive(self, stream: str, told: list[Callable[[], None]]) -> None:
        """Take in what has come; with the lock held."""
        if self._has_ended or not self._open:
            return
        self._records += self._watcher.receive()
        try:
            while self._records:
                self._take_in(self._records[0])
        except BaseException:  # all have to ask again
            for readable in self._open.values():
                readable.say(True)
            raise
        self._follow()
        others = [other for other in self._sides
                  if other != stream and self.has(other)]
        for other in others:
            if other in self._open:
                self._open[other].say(True)
        told += [self._sides[other].tell for other in others]

    def _take_in(self, record: OutRecord) -> None:
        """Let a record be read, wholly or not at all, if an exception of a
        signal handler interrupts this.
        """
        if record.life != self._life or self._has_ended:
            del self._records[0]
            return
        if record.kind == 'closed':
            self._has_ended = True
            return
        new = record.offset - max(
            self._received, record.offset - len(record.data))
        old = max(0, min(new, self._ahead.get(record.kind, 0)
                         - record.offset + new))
        pieces = []
        if old:
            pieces.append(_Piece('', old, record.offset - new + old))
            new -= old
        received = max(self._received, record.offset)
        side = self._sides.get(record.kind)
        if new > 0 and side is not None:
            pieces.append(_Piece(record.kind, new, record.offset))
            data = bytes(record.data[-new:])
            # No call is between these, so no signal handler either.
            side.waiting += (data,)
        self._pieces += pieces
        self._received = received
        del self._records[0]

    def _follow(self) -> None:
        """The connection may be another one now; with the lock held."""
        if self._watcher.closed:
            self._has_ended = True  # the kernel knows the process no more
            return
        for readable in self._open.values():
            readable.follow(self._watcher.fileno())

    def has(self, stream: str) -> bool:
        """Whether `take` has something, or the end, without receiving."""
        return (bool(self._sides[stream].waiting or self._records)
                or self._has_ended)

    def has_more(self, stream: str) -> bool:
        """Whether something is left that was said, though it may be late."""
        told: list[Callable[[], None]] = []
        with self._lock:
            if not self._sides[stream].waiting:
                try:
                    self._receive(stream, told)
                except KernelError:
                    return False
            if stream in self._open:
                self._open[stream].say(self.has(stream))
            more = bool(self._sides[stream].waiting) or (
                not self._has_ended and self._received < self._end)
        for tell in told:
            tell()
        return more

    def is_undecided(self, stream: str) -> bool:
        """Whether something that was received is not acknowledged."""
        with self._lock:
            side = self._sides[stream]
            return not side.is_over and sum(
                piece.size for piece in self._pieces
                if piece.stream == stream) > side.done - side.begin

    def acknowledge(self, stream: str, done: int, is_over: bool) -> None:
        """The first `done` bytes were read, and the end; KernelError."""
        with self._lock:
            side = self._sides[stream]
            side.done = max(side.done, done)
            side.is_over = side.is_over or is_over
            self._acknowledge()

    def note_end(self) -> None:
        """Somebody here knows the status."""
        with self._lock:
            self.is_end_known = True
            self._acknowledge()

    def abandon(self, stream: str) -> None:
        """Nobody wants what is left, and the end; KernelError."""
        with self._lock:
            side = self._sides[stream]
            side.is_over = True
            if all(each.is_over for each in self._sides.values()):
                if self.is_end_known:
                    self._send(max(self._end, self._received), True)
            else:
                self._acknowledge()

    def _acknowledge(self) -> None:
        """With the lock held."""
        offset = self._acknowledged[0]
        while self._pieces:
            stream, size, end = self._pieces[0]
            read = size
            if stream and not self._sides[stream].is_over:
                side = self._sides[stream]
                read = min(side.done - side.begin, size)
            if read > 0:
                offset = end - size + read
            if read < size:
                self._note_ahead(stream)
                break
            if stream:
                self._sides[stream].begin += size
            self._pieces.popleft()
        is_over = self._has_ended and self.is_end_known and all(
            each.is_over for each in self._sides.values())
        self._send(offset, is_over)

    def _note_ahead(self, waiting: str) -> None:
        """Another stream may be read beyond what the waiting one lets us
        acknowledge; with the lock held.
        """
        left = {stream: side.done - side.begin
                for stream, side in self._sides.items()
                if stream != waiting and side.done > side.begin}
        ahead = self._ahead.copy()
        for stream, size, end in self._pieces if left else ():
            if left.get(stream, 0) > 0:
                ahead[stream] = end - size + min(size, left[stream])
                left[stream] -= size
        if ahead != self._ahead:
            self._ahead = ahead
            self._notes.set_ahead(self._life, ahead)

    def _send(self, offset: int, is_over: bool) -> None:
        """With the lock held."""
        if self._watcher.closed or self._acknowledged == (offset, is_over):
            return
        self._acknowledged = offset, is_over
        if is_over:
            self._notes.clear()
        if offset >= 0 or is_over:
            self._watcher.acknowledge_to(
                {self._key: (self._life, max(offset, 0), is_over)})
            self._follow()

    def remove(self, stream: str) -> None:
        """Receive no more for a channel; with the last one for none."""
        with self._lock:
            self._open.pop(stream, None)
            if not self._open:
                self._watcher.close()

    def close(self) -> None:
        """Receive no more."""
        with self._lock:
            self._open.clear()
            self._watcher.close()
