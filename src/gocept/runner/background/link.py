"""A client's connection to a server, once both have proved who they are."""

import contextlib
import socket
from collections.abc import Sequence
from time import monotonic

from gocept.runner.background.frames import (
    ANSWERS,
    OVERHEAD,
    PIECE,
    PING,
    PONG,
    Message,
    Opener,
    Piece,
    Sealer,
)
from gocept.runner.background.handshake import Agreed
from gocept.runner.errors import BackgroundTimeout
from gocept.runner.waits.deadline import (
    READABLE,
    WRITABLE,
    Deadline,
    wait_for,
)

SILENCES = 3
"""After how many heartbeats without an answer the server is given up."""

_BUFFER = 2 ** 16
"""Bytes that are received at once."""

_LARGE_BUFFER = PIECE + OVERHEAD
"""The same, in the middle of a long message."""

_MOST_PIECES = 64
"""How many pieces are handed to the system at once."""

_SHORTEST = 0.001  # seconds, as 0 stands for no waiting at all


class Broken(Exception):
    """Raised when the connection cannot go on; the text says why."""


class Link:
    """A connection that was agreed on. One thread uses it at a time.

    There are two ways to ask. `ask` sends a small request, and receives the
    answer, in one call each: the socket has a limit of time. All other
    requests are sent by `send`, and `wait` and `receive` put the answers into
    the `inbox`: the socket does not wait.

    `heartbeat` is after how many seconds of silence a server that owes an
    answer is asked whether it is there; None for never.
    """

    def __init__(self, sock: socket.socket, place: object, agreed: Agreed,
                 life: bytes, longest: int, heartbeat: float | None) -> None:
        self.python = agreed.python
        """The server's version of Python: major, minor."""
        self.life = life
        """Another one if the server was started anew."""
        self.used = monotonic()
        """When the server was heard last, or began to owe an answer."""
        self.looked = self.used
        """When somebody has last looked whether the server has gone."""
        self.inbox: list[Message] = []
        """What has arrived. The user takes it away."""
        self.number = 0
        """The id of the last request."""
        self.was_sent = False  # see `ask`
        self.torn = False
        """Whether a part of a frame may be sent or received, and lost. It is
        set before, as no exception handler is sure to run to its end."""
        self._sock = sock
        self._place = place
        self._heartbeat = heartbeat
        self._pinged = 0.0
        self._silences = 0
        self._writes = False  # whether a frame is sent in part
        self._waits = False
        self._limit: float | None = None
        self._again: tuple[type[OSError], ...] = (BlockingIOError,)
        if agreed.receive is None:
            import ssl
            self._again = (BlockingIOError, ssl.SSLWantReadError,
                           ssl.SSLWantWriteError)
        sock.setblocking(False)
        self._sendall, self._recv = sock.sendall, sock.recv
        self._sealer = Sealer(agreed.send)
        self._seal = self._sealer.seal
        self._opener = Opener(agreed.receive, longest, ANSWERS)
        self._feed = self._opener.feed
        self._gathers = agreed.receive is not None and hasattr(sock, 'sendmsg')

    def fileno(self) -> int:
        """Its descriptor."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close it. Again does nothing."""
        self._sock.close()

    def shut(self) -> None:
        """Let a thread that waits for it get a `Broken`."""
        with contextlib.suppress(OSError):  # it is broken already
            self._sock.shutdown(socket.SHUT_RDWR)

    # One small request

    def ask(self, kind: int, flags: int, payload: bytes,
            seconds: float | None) -> Message | None:
        """Send a small request where the server owes nothing; its answer.

        None if the answer takes longer than `seconds`, or the heartbeat, or
        comes in several parts: `wait` then. `Broken`; `was_sent` says whether
        the request was sent whole.
        """
        self.torn = True
        self.was_sent = False
        if seconds != self._limit or not self._waits:
            self._set_limit(seconds)
        self.number = number = self.number + 1
        try:
            self._sendall(self._seal(kind, flags, number, payload))
            self.was_sent = True
            data = self._recv(_BUFFER)
        except TimeoutError as error:
            if not self.was_sent:
                raise self._broken(error) from error
            self.torn = False
            return None
        except OSError as error:
            raise self._broken(error) from error
        messages = self._feed(data) if data else self._end()
        if len(messages) == 1:
            answer = messages[0]
            if answer.id == number:
                self._silences = 0
                self.torn = False
                return answer
        self._keep(messages)
        return None

    def _set_limit(self, seconds: float | None) -> None:
        limits = [each for each in (seconds, self._heartbeat)
                  if each is not None]
        self._sock.settimeout(
            max(min(limits), _SHORTEST) if limits else None)
        self._limit = seconds
        self._waits = True

    # Any requests

    def send(self, kind: int, flags: int, pieces: Sequence[Piece],
             deadline: Deadline) -> int:
        """Send a request, and return its id; `Broken`, BackgroundTimeout.

        After one of these the server has not received the request whole. What
        arrives meanwhile is taken, so that no two sides wait that both send.
        The link stays torn until the caller has noted that it was sent.
        """
        self.torn = True
        self._unblock()
        self.number += 1
        number = self.number
        for frame in self._sealer.frames(kind, flags, number, pieces):
            self._write(frame, deadline)
        return number

    def _write(self, frame: list[Piece], deadline: Deadline) -> None:
        self._writes = True
        is_full = False
        while frame:
            try:
                sent = (self._sock.sendmsg(frame[:_MOST_PIECES])
                        if self._gathers else self._sock.send(frame[0]))
            except self._again:
                if not self._await(READABLE | WRITABLE, deadline):
                    raise BackgroundTimeout(
                        f'the server at {self._place} has not taken the whole '
                        f'request in {deadline}: it is not run'
                    ) from None
                self._take()
                self.torn = is_full = True
                continue
            except OSError as error:
                raise self._broken(error) from error
            if is_full:  # the server has taken something meanwhile
                self._heard()
                is_full = False
            while frame and sent >= len(frame[0]):
                sent -= len(frame.pop(0))
            if sent:
                frame[0] = memoryview(frame[0])[sent:]
        self._writes = False

    def wait(self, deadline: Deadline) -> bool:
        """Wait until something is in the inbox; False when the time is over.

        `Broken`. Meanwhile the server is asked whether it is there.
        """
        self._unblock()
        while not self.inbox:
            if not self._await(READABLE, deadline):
                return False
            self._take()
        return True

    def receive(self) -> None:
        """Put into the inbox what has arrived, without waiting; `Broken`."""
        self._unblock()
        while self._take():
            pass

    def _take(self) -> bool:
        """Receive once; False if nothing has arrived."""
        size = _LARGE_BUFFER if self._opener.kept else _BUFFER
        self.torn = True
        try:
            data = self._recv(size)
        except self._again:
            self.torn = self._writes
            return False
        except OSError as error:
            raise self._broken(error) from error
        self._keep(self._feed(data) if data else self._end())
        return True

    def _heard(self) -> None:
        self._silences = 0
        self._pinged = 0.0
        self.used = monotonic()

    def _keep(self, messages: Sequence[Message]) -> None:
        self._heard()
        self.inbox.extend(each for each in messages if each.kind != PONG)
        self.torn = self._writes

    def _unblock(self) -> None:
        if self._waits:
            self._sock.settimeout(0)
            self._waits = False

    def _end(self) -> list[Message]:
        raise Broken(f'the server at {self._place} has closed the connection')

    def _broken(self, error: OSError) -> Broken:
        return Broken(f'the connection to the server at {self._place} '
                      f'broke: {error.strerror or error}')

    # Heartbeat

    def _await(self, mask: int, deadline: Deadline) -> bool:
        """Wait for the descriptor; False when the time is over; `Broken`."""
        fd = self._sock.fileno()
        while True:
            pause = deadline.left()
            if self._heartbeat is not None:
                beat = max(self._pinged, self.used) + self._heartbeat
                pause = min(pause, max(beat - monotonic(), 0))
            if wait_for(fd, mask, Deadline(pause)):
                return True
            if deadline.passed:
                return False
            if self._heartbeat is not None:
                self._beat(self._heartbeat)

    def _beat(self, heartbeat: float) -> None:
        if monotonic() < max(self._pinged, self.used) + heartbeat:
            return  # the system waits in milliseconds
        if self._silences >= SILENCES:
            raise Broken(
                f'the server at {self._place} has been silent for '
                f'{Deadline(SILENCES * heartbeat)}: it hangs, or the network '
                'is gone')
        self._silences += 1
        self._pinged = monotonic()
        if self._writes or not wait_for(
                self._sock.fileno(), WRITABLE, Deadline(0)):
            return  # what was sent before is not taken, nor would this be
        self.number += 1
        self.torn = True
        self._write([self._seal(PING, 0, self.number)],
                    Deadline(SILENCES * heartbeat))
        self.torn = False
