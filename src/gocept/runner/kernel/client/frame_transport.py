"""A client's connection in our framing; `frames` has the format."""

import os
import socket

from gocept.runner.errors import KernelError
from gocept.runner.kernel.client.transport import (
    Batch,
    Lost,
    Params,
    Socket,
    Transport,
)
from gocept.runner.kernel.wire.frames import (
    HEADER,
    Json,
    OutRecord,
    decode,
    frame,
    unpack_from,
)

_BUFFER = 1 << 18
"""Bytes that are received at once, of what is long."""

_PIECE = 1 << 16
"""Bytes of an answer that is received in one piece."""

_LARGEST = 1 << 30
"""Bytes of a frame."""


class Refused(Exception):
    """Raised in this module when the kernel answers with an error."""


class FrameTransport(Socket):
    """See `Transport`. One thread uses it at a time.

    An exception in the middle of a frame, such as one of a signal handler,
    leaves the rest of the frame behind. So the connection is lost from then
    on.
    """

    exact = True

    owes_answer = False

    def __init__(self, sock: socket.socket, place: object) -> None:
        super().__init__(sock, place)
        self._sendall = sock.sendall
        self._recv, self._recv_into = sock.recv, sock.recv_into
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0  # of what was received and not taken
        self._watched = 0
        """The number of the request that has begun a watch; 0 for none."""
        self._is_exact = False
        """Whether nothing behind a frame may be taken from the socket."""

    def __repr__(self) -> str:
        return f'<connection to the kernel at {self._place}>'

    def become(self, transport: Transport) -> None:
        assert isinstance(transport, FrameTransport)
        self._is_torn = True
        # Who has selected the descriptor goes on with the same number.
        os.dup2(transport.fileno(), self.fileno(), inheritable=False)
        self._buffer, self._view = transport._buffer, transport._view
        self._start, self._end = transport._start, transport._end
        self._watched, self._is_exact = transport._watched, transport._is_exact
        self._is_torn = transport._is_torn
        transport.close()

    # Requests

    def ask(self, number: int, op: str, params: Params,
            data: bytes = b'') -> Json:
        try:
            if self._is_torn or self._watched:
                raise self._lost()
            self._is_torn = True
            try:
                self._sendall(frame(number, (op, params), data))
                if self._start == self._end and not self._is_exact:
                    # As most often: one answer in one piece. The loops below
                    # would cost some microseconds more.
                    piece = self._recv(_PIECE)
                    if len(piece) >= HEADER.size:
                        length, _, found = unpack_from(piece)
                        if found == number and (
                                len(piece) == HEADER.size + length):
                            said = decode(piece[HEADER.size:])
                            self._is_torn = False
                            return self._result(said)
                    elif not piece:
                        raise self._lost()
                    self._start, self._end = 0, len(piece)
                    self._buffer[:len(piece)] = piece
            except OSError:
                pass  # it may have said why, before it closed the connection
            return self._answer(number)
        except Refused as refused:
            raise KernelError(str(refused)) from None
        except BaseException:
            self.close()
            raise

    def _result(self, said: list[Json]) -> Json:
        if said[0] == 'ok':
            return said[1]
        raise Refused(said[1])

    def end_session(self) -> None:
        self.send(0, 'bye', {})

    def watch(self, number: int, op: str, params: Params) -> Json:
        # Or else some output might be here, where the user who selects the
        # descriptor does not see it.
        self._is_exact = True
        try:
            answer = self.ask(number, op, params)
        except KernelError:
            self._is_exact = False
            raise
        self._watched = number
        return answer

    def send(self, number: int, op: str, params: Params,
             data: bytes = b'') -> None:
        """Send a request, whose answer is taken later; `Lost`."""
        self._require_whole()
        try:
            self._is_torn = True
            try:
                self._sendall(frame(number, (op, params), data))
            except OSError as error:
                self._is_torn = False  # it may have said why
                raise self._lost() from error
            self._is_torn = False
        except Lost:
            raise
        except BaseException:
            self.spoil()
            raise

    def answer(self, number: int) -> Json:
        """The answer to a request; the rest of an earlier watch is skipped."""
        self._require_whole()
        self._is_torn = True
        try:
            return self._answer(number)
        except Refused as refused:
            raise KernelError(str(refused)) from None
        except BaseException:
            self.spoil()
            raise

    def _answer(self, number: int) -> Json:
        while True:
            found, said, _ = self._frame()
            if found == number:
                self._is_torn = False
                return self._result(said)
            if not found:  # the kernel will say no more
                raise KernelError(said[1])

    # Output

    def _batch(self) -> Batch:
        while True:
            number, said, data = self._frame()
            if not number:  # the kernel will say no more
                raise KernelError(said[1])
            if number != self._watched:
                continue
            if said[0] != 'output':
                self._end_watch()
                return Batch((), {}, True)
            pieces = []
            start = 0
            for name, life, kind, timestamp, value, offset in said[1]:
                if kind == 'closed':
                    pieces.append(OutRecord(
                        name, life, kind, timestamp, b'', value, offset))
                else:
                    pieces.append(OutRecord(
                        name, life, kind, timestamp,
                        bytes(data[start:start + value]), None, offset))
                    start += value
            return Batch(pieces, said[2], False)

    def acknowledge(self, positions: Params) -> None:
        self.send(0, 'acknowledge', {'positions': positions})

    def unwatch(self, number: int, positions: Params) -> bool:
        self.send(number, 'unwatch', {'positions': positions})
        self.answer(number)
        self._end_watch()
        return True

    def _end_watch(self) -> None:
        self._watched = 0
        self._is_exact = False

    # Frames

    def _frame(self) -> tuple[int, list[Json], memoryview]:
        """The next frame; the data are valid up to the next call."""
        self._need(HEADER.size)
        length, size, number = unpack_from(self._buffer, self._start)
        total = HEADER.size + length + size
        if total > _LARGEST:
            raise KernelError(f'the kernel at {self._place} sends a frame of '
                              f'{total} bytes, which is too much')
        self._need(total)
        begin = self._start + HEADER.size
        middle = begin + length
        end = middle + size
        if end == self._end:
            self._start = self._end = 0
        else:
            self._start = end
        said = decode(self._buffer[begin:middle])
        return number, said, self._view[middle:end]

    def _need(self, size: int) -> None:
        """Wait until so many bytes are in the buffer."""
        if self._start + size > len(self._buffer):
            self._make_room(size)
        flags = socket.MSG_WAITALL if self._is_exact else 0
        while self._end - self._start < size:
            stop = self._start + size if self._is_exact else None
            try:
                received = self._recv_into(
                    self._view[self._end:stop], 0, flags)
            except OSError as error:
                raise self._lost() from error
            if not received:
                raise self._lost()
            self._end += received

    def _make_room(self, size: int) -> None:
        rest = self._buffer[self._start:self._end]
        if size > len(self._buffer):
            self._buffer = bytearray(size + _BUFFER)
            self._view = memoryview(self._buffer)
        self._buffer[:len(rest)] = rest
        self._start, self._end = 0, len(rest)
