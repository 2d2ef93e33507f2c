"""Bytes on their way to a descriptor that does not always take them."""

import contextlib
import errno
import os
import signal
import stat
from collections import deque
from collections.abc import Callable, Iterator

try:
    # The function itself: that of `signal` makes an enum of each answer, which
    # takes longer than to write.
    from _signal import getsignal  # type: ignore[import-not-found]
except ImportError:
    from signal import getsignal

Piece = bytes | memoryview


class Outgoing:
    """What the descriptor did not take is kept, and sent in order.

    `send` is `write_piece` or its like. What it raises, but for
    BlockingIOError, leaves all that was not sent where it is.
    """

    def __init__(self, send: Callable[[Piece], int], high_water: int) -> None:
        self._send = send
        self.high_water = high_water
        self.size = 0
        """The number of bytes that are kept."""
        self._pieces: deque[Piece] = deque()

    def is_full(self) -> bool:
        """Whether more than `high_water` bytes have to be kept."""
        try:
            self.send()
        except ConnectionError:
            raise
        except OSError:
            pass  # it comes again when the new bytes are added
        return self.size > self.high_water

    def add(self, piece: bytes) -> None:
        """Send or keep `piece`; with an error it is kept too."""
        if self.size:
            self._keep(piece)
            self.send()
            return
        sent = 0
        try:
            sent = self._send(piece)
        except BlockingIOError:
            pass
        finally:
            if sent < len(piece):
                self._keep(memoryview(piece)[sent:])

    def _keep(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self.size += len(piece)

    def send(self) -> None:
        """Send what the descriptor takes now."""
        pieces = self._pieces
        while pieces:
            piece = pieces[0]
            try:
                sent = self._send(piece)
            except BlockingIOError:
                return
            self.size -= sent
            if sent < len(piece):
                pieces[0] = memoryview(piece)[sent:]
                return  # as it took a part, it is full
            pieces.popleft()

    def forget(self) -> int:
        """Keep nothing; returns how many bytes that were."""
        lost, self.size = self.size, 0
        self._pieces.clear()
        return lost


def write_piece(fd: int, piece: Piece) -> int:
    """os.write(), which raises BrokenPipeError whatever SIGPIPE does.

    Of a terminal as well, when nobody has its other side.
    """
    try:
        if getsignal(signal.SIGPIPE) == signal.SIG_DFL:
            with _sigpipe_blocked():
                return os.write(fd, piece)
        return os.write(fd, piece)
    except OSError as error:
        if error.errno == errno.EIO and stat.S_ISCHR(os.fstat(fd).st_mode):
            raise BrokenPipeError(*error.args) from error
        raise


@contextlib.contextmanager
def _sigpipe_blocked() -> Iterator[None]:
    """Write to a pipe that nobody reads and live.

    Python ignores the signal, but a program may have put its default back.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    pending = signal.SIGPIPE in signal.sigpending()
    try:
        yield
    except BrokenPipeError:
        if not pending:
            signal.sigtimedwait({signal.SIGPIPE}, 0)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
