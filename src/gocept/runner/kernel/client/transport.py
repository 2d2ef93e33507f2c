"""A client's connection to a kernel, which speaks frames or papa's text."""

import contextlib
import select
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from gocept.runner.errors import KernelError, KernelRefused, KernelSilent
from gocept.runner.kernel.wire.frames import Json, OutRecord
from gocept.runner.waits.closing import Owning
from gocept.runner.waits.deadline import Deadline, wait_for

Params = Mapping[str, Json]

_LONGEST_GREETING = 4096  # bytes

_SHOWN = 80  # bytes of what is no greeting

PROMPT = b'\n> '


class Lost(KernelError):
    """Raised when the kernel has closed the connection."""


class Batch(NamedTuple):
    """What a kernel has sent at once of what is watched."""

    records: Sequence[OutRecord]
    missing: Mapping[str, int]
    """For each name the bytes that were dropped."""
    over: bool
    """Whether the kernel sends no more, and takes requests again."""


class Transport(Protocol):
    """A connection, whatever is spoken on it."""

    closed: bool
    exact: bool
    """Whether a request may be asked again, and bytes pass unharmed."""
    owes_answer: bool
    """Whether the kernel sends nothing more before `acknowledge`."""

    def fileno(self) -> int:
        """Its descriptor."""

    def ask(self, number: int, op: str, params: Params,
            data: bytes = b'') -> Json:
        """Return the answer; KernelError if the kernel refuses, `Lost`.

        After any other exception it is closed, as half an answer may be left.
        """

    def end_session(self) -> None:
        """Let the kernel forget the answers that it keeps; `Lost`."""

    def watch(self, number: int, op: str, params: Params) -> Json:
        """Like `ask`, and then `batch` returns what processes write."""

    def batch(self) -> Batch:
        """Wait for the next one; `Lost`."""

    @property
    def has_batch(self) -> bool:
        """Whether one has begun to come in, so that `batch` waits for no
        process; `Lost`.

        Nothing is taken from the descriptor, which the user may select.
        """

    def acknowledge(self, positions: Params) -> None:
        """What was read up to there need not be kept."""

    def unwatch(self, number: int, positions: Params) -> bool:
        """Acknowledge and end the watch.

        False if the connection cannot be used for anything else.
        """

    def spoil(self) -> None:
        """An exception has left half a batch: be lost from now on."""

    def become(self, transport: 'Transport') -> None:
        """Take over another connection, but keep the descriptor."""

    def close(self) -> None:
        """Close it. Again does nothing."""


class Socket(Owning):
    """What the connection is of, in whatever is spoken on it."""

    def __init__(self, sock: socket.socket, place: object) -> None:
        self._sock = sock
        self._place = place
        self._is_torn = False
        """Whether a part of what is said may be sent or received. It is noted
        before, as no exception handler is sure to run to its end."""
        self.closed = False

    def fileno(self) -> int:
        """Its descriptor."""
        return self._sock.fileno()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._release()

    def _release(self) -> None:
        self._sock.close()

    def spoil(self) -> None:
        """See `Transport`."""
        self._is_torn = True
        # What has come in can still be received, and means nothing. But who
        # has selected the descriptor wakes up, and the kernel is told.
        with contextlib.suppress(OSError):  # it is lost already
            self._sock.shutdown(socket.SHUT_RDWR)

    def _require_whole(self) -> None:
        if self._is_torn:
            raise Lost(
                f'an exception has interrupted the connection to the kernel '
                f'at {self._place}, which cannot go on: ask or watch again')

    def batch(self) -> Batch:
        """See `Transport`."""
        self._require_whole()
        self._is_torn = True
        try:
            batch = self._batch()
        except BaseException:
            self.spoil()
            raise
        self._is_torn = False
        return batch

    def _batch(self) -> Batch:
        raise NotImplementedError

    @property
    def has_batch(self) -> bool:
        """See `Transport`."""
        self._require_whole()
        try:
            return has_begun(self._sock)
        except (OSError, EOFError) as error:
            raise self._lost() from error

    def _lost(self) -> Lost:
        return Lost(f'the kernel at {self._place} has closed the connection')


def has_begun(sock: socket.socket) -> bool:
    """Whether something has come in, which is left there; OSError.

    EOFError if nothing more will come.
    """
    try:
        begin = sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    if not begin:
        raise EOFError
    return True


def receive_prompt(sock: socket.socket, place: object, deadline: Deadline,
                   ) -> bytes:
    """Return what the kernel says, up to its next prompt.

    KernelError if it is an error, no kernel, or if the time is over.
    """
    said = b''
    while not said.endswith(PROMPT):
        if not wait_for(sock.fileno(), select.POLLIN, deadline):
            raise KernelSilent(
                f'what listens at {place} is no kernel, or does not answer: '
                f'in {deadline.seconds} s it said {shown(said)}')
        try:
            received = sock.recv(_LONGEST_GREETING)
        except OSError as error:
            raise Lost(f'the kernel at {place} has closed the connection: '
                       f'{error}') from error
        said += received
        if not received and said.startswith(b'Error: '):
            raise KernelRefused(said[7:].decode(errors='replace').strip())
        if not received:
            raise Lost(f'the kernel at {place} has closed the connection')
        if len(said) > _LONGEST_GREETING:
            raise KernelSilent(f'what listens at {place} is no kernel: it '
                               f'said {shown(said)}')
    return said[:-len(PROMPT)]


def shown(said: bytes) -> str:
    """The first of it as text of one line, for an error."""
    text = said[:_SHOWN].decode(errors='replace').strip()
    if not text:
        return 'nothing'
    return '"' + ''.join(each if each.isprintable() else ' '
                         for each in text) + '"'
