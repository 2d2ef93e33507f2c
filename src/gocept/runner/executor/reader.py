"""What a user reads of the output of a child: a file over a capture."""

import codecs
import contextlib
import io
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

from gocept.runner.errors import DeadlineExceeded
from gocept.runner.executor.capture import READING, Capture
from gocept.runner.waits.deadline import NEVER, Deadline
from gocept.runner.waits.forks import Lock, tell_forks
from gocept.runner.waits.readable import Readable
from gocept.runner.waits.threads import refuse_to_wait

_SIZE = 2 ** 14  # bytes that are taken at once

Data = str | bytes

Argument = TypeVar('Argument')
Result = TypeVar('Result')


class Reader(io.IOBase):
    """Text, or bytes. Reading waits for what is to come.

    Several threads may read. What was taken from the capture for a call that
    is left early (by an error, by a signal handler) is read by the next one.
    """

    _readable: Readable | None = None

    def __init__(self, capture: Capture, errors: str | None = None, *,
                 is_text: bool = True) -> None:
        self.capture = capture
        self.is_text = is_text
        self.encoding = capture.encoding if is_text else None
        self.errors = (errors or 'backslashreplace') if is_text else None
        self._nothing: Data = '' if is_text else b''
        self._decoder = io.IncrementalNewlineDecoder(
            codecs.getincrementaldecoder(capture.encoding)(
                errors or 'backslashreplace'), translate=True)
        self._position = 0  # in the stream
        self._skips = False
        """Whether the rest of the current line is left out."""
        self._pieces: deque[Data] = deque()  # taken, but not read
        self._start = 0  # in the first piece
        self._length = 0  # of what was not read
        self._over = False
        self._turn = Lock()  # of the thread that reads, or waits for more
        self._moving = Lock()  # around the position, and what was taken there
        self._telling = Lock()  # around what it says
        tell_forks(self)

    def after_fork(self) -> None:
        """In a forked child: its descriptor is also that of the parent."""
        self._close_readable()

    def skip_to(self, position: int, skips: bool) -> None:
        """Begin at a position; with `skips`, after the line there.

        Not if it was read already, or is being read.
        """
        with self._moving:
            if position >= self._position and not self._pieces:
                self._position, self._skips = position, skips
        self._tell()

    def readable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def readline(self, size: int | None = -1, /) -> Data:  # type: ignore[override]
        """See `io.IOBase`."""
        return self._in_turn(self._line, -1 if size is None else size)

    def read(self, size: int | None = -1, /) -> Data:
        """All up to the end, or `size` characters or bytes."""
        return self._in_turn(self._part, -1 if size is None else size)

    def take_all(self, deadline: Deadline) -> None:
        """Wait for the end, and keep all there is for the next `read`.

        DeadlineExceeded if it does not come in time. Nothing if it is closed.
        """
        if not self.closed:
            self._in_turn(self._all, deadline, deadline)

    def read_rest(self) -> Data:
        """All up to the end; nothing if it is closed."""
        return self._nothing if self.closed else self.read()

    def taken(self) -> bytes | None:
        """What has come, and is for the next `read`; None for nothing."""
        with contextlib.suppress(DeadlineExceeded):
            self.take_all(Deadline(0))
        rest = [*self._pieces]
        if rest:
            rest[0] = rest[0][self._start:]
        return b''.join(
            each if isinstance(each, bytes)
            else each.encode(self.capture.encoding, 'backslashreplace')
            for each in rest) or None

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Nothing is dropped meanwhile that was not read."""
        self.capture.keep_from(self._position)
        try:
            yield
        finally:
            self.capture.keep_from(None)

    def _in_turn(self, function: Callable[[Argument], Result],
                 argument: Argument, deadline: Deadline = NEVER) -> Result:
        if self.closed:
            raise ValueError('I/O operation on closed file.')
        if self._turn.held or not self._turn.acquire(blocking=False):
            self._await_turn(deadline)
        try:
            return function(argument)
        finally:
            self._turn.release()
            if self._readable is not None:
                self._tell()

    def _await_turn(self, deadline: Deadline) -> None:
        if self._turn.held:
            raise RuntimeError('this thread reads the output already: it was '
                               'called back by a signal handler')
        refuse_to_wait(READING)
        if not self._turn.acquire(timeout=-1 if deadline.seconds is None
                                  else deadline.left()):
            raise DeadlineExceeded(
                f'another thread has read the output for {deadline}')

    def _line(self, size: int) -> Data:
        number = length = 0
        while number < len(self._pieces) or self._take():
            piece = self._pieces[number]
            begin = self._start if number == 0 else 0
            end = _end_of_line(piece, begin)
            number += 1
            length += (end or len(piece)) - begin
            if end or 0 <= size <= length:
                break
        return self._pop(length if size < 0 else min(size, length))

    def _part(self, size: int) -> Data:
        while not 0 <= size <= self._length and self._take():
            pass
        return self._pop(self._length if size < 0
                         else min(size, self._length))

    def _all(self, deadline: Deadline) -> None:
        while self._take(deadline):
            pass

    def _take(self, deadline: Deadline = NEVER) -> bool:
        """Wait for the next piece; False at the end. With `_turn` held."""
        before = len(self._pieces)
        while not self._over and len(self._pieces) == before:
            begin = self._position
            position, data = self.capture.take(begin, _SIZE, deadline)
            with self._moving:
                if self._position == begin:  # else it was moved meanwhile
                    self._add_piece(position, data)
        return len(self._pieces) > before

    def _add_piece(self, position: int, data: bytes) -> None:
        """Add what was taken there; with `_moving` held."""
        lost = position - self._position
        self._position = position + len(data)
        self._over = not (lost or data)
        if self._skips and data:
            _, newline, data = data.partition(b'\n')
            self._skips = not newline
        if lost:
            notice = f'\n[{lost} bytes were not kept]\n'
            self._add(notice if self.is_text else notice.encode())
        self._add(self._decoder.decode(data, self._over)
                  if self.is_text else data)

    def _add(self, piece: Data) -> None:
        if piece:
            self._pieces.append(piece)
            self._length += len(piece)

    def _pop(self, length: int) -> Data:
        self._length -= length
        parts = []
        while length:
            piece = self._pieces[0]
            end = min(self._start + length, len(piece))
            parts.append(piece[self._start:end])
            length -= end - self._start
            self._start = end
            if end == len(piece):
                self._pieces.popleft()
                self._start = 0
        return self._nothing.join(parts)  # type: ignore[arg-type]

    def fileno(self) -> int:
        """A descriptor that is readable as long as `readline` does not wait.

        For `select` and the like: there is nothing to read from it.
        """
        if self.closed:
            raise ValueError('I/O operation on closed file.')
        readable = self._readable
        if readable is None:
            new = Readable()
            with self._telling:
                readable = self._readable = self._readable or new
            if readable is new:
                self.capture.listen(self._hear)
            else:  # another thread was first
                new.close()
        self._tell()
        return readable.fileno()

    def _hear(self, position: int, data: bytes) -> None:
        self._tell()

    def _tell(self) -> None:
        """Say whether `readline` would wait, if anybody wants to know."""
        if self._readable is not None:
            with self._telling:
                if self._readable is not None:
                    self._readable.say(self._has_line)

    @property
    def _has_line(self) -> bool:
        """Whether `readline` would not wait."""
        return self._over or self.capture.ended or any(
            _end_of_line(piece, 0 if number else self._start)
            for number, piece in enumerate(list(self._pieces))
            ) or self.capture.has_line(
                self._position, self._skips, self.is_text)

    def close(self) -> None:
        """Read no more. The output is still kept for messages."""
        if not self.closed:
            self.capture.listen_no_more(self._hear)
            with self._telling:
                self._close_readable()
        super().close()

    def _close_readable(self) -> None:
        readable, self._readable = self._readable, None
        if readable is not None:
            readable.close()

    def __del__(self) -> None:
        # Without a lock: nobody else refers to it.
        self._close_readable()


def _end_of_line(piece: Data, start: int) -> int:
    """Where the next line begins; 0 if this one has no end there."""
    return 1 + (piece.find('\n', start) if isinstance(piece, str)
                else piece.find(b'\n', start))
