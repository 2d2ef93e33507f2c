"""The kernel's side of one client.

What a client sends is received, handled and answered at once, within
`collect`: there is no queue in between. What is said is in
`gocept.runner.kernel.wire.conversation`.
"""

import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from gocept.runner.errors import KernelError
from gocept.runner.kernel.wire import text
from gocept.runner.kernel.wire.conversation import (
    ANSWERED,
    WAITING,
    Conversation,
    FrameConversation,
    Operations,
    Piece,
    Positions,
    Request,
    Silence,
    TextConversation,
    Watch,
    fail,
)
from gocept.runner.kernel.wire.frames import OutRecord
from gocept.runner.kernel.wire.limits import Limits
from gocept.runner.logs import Log
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.source import Item, Source
from gocept.runner.waits.threads import survived

log = Log('gocept.runner.kernel')

_PIECE = 2 ** 16  # received in a row, so that other clients have their turn

_HIGH_WATER = 2 ** 20
"""No more is read from a client that has left so many bytes of answers."""

_MANY = 64
"""How many pieces of output are not worth a list of their own."""

_NOTHING: tuple[Sequence[Item], bool] = ((), False)

_END: tuple[Sequence[Item], bool] = ((), True)


class Owner(Protocol):
    """Who keeps the connections."""

    def is_gone(self, sock: socket.socket) -> bool:
        """Whether the client that sends no more does not read either."""

    def introduce(self, connection: 'Connection') -> None:
        """It has a session now."""

    def count(self, connection: 'Connection', added: int) -> None:
        """So many bytes more (or less) are kept for this client."""

    def forget(self, connection: 'Connection') -> None:
        """It is closed."""


class Connection(Source, Closing):
    """A client that may talk to the kernel."""

    is_stream = True

    def __init__(self, sock: socket.socket, operations: Operations,
                 owner: Owner, limits: Limits, version: str) -> None:
        """`version` is that of the program, for clients."""
        sock.setblocking(False)
        self.socket = sock
        self.limits = limits
        self.longest = limits.frame
        """How many bytes an answer has at most."""
        self.closed = False
        self.session = ''
        self.unsent = 0
        """The number of bytes that the client has not taken."""
        self.unanswered = 0
        """How many requests were not answered at once."""
        self.leaving = False
        """Whether to close when all is sent."""
        self.watch: Watch | None = None
        self.watch_id = 0
        """The id of the request that has begun the watch."""
        self.unacknowledged = False
        """Whether a batch of output waits for a line of text."""
        self.watch_is_new = False
        """Whether the watch has sent no output in text yet."""
        self._owner = owner
        self._fd = self.sink_fd = sock.fileno()
        self._recv = sock.recv
        self._send: Callable[[Piece], int] = sock.send
        self._handle = operations.handle
        self._outgoing: list[Piece] = []
        self._rest: bytes | bytearray = b''
        """What was received, and not yet handled."""
        self._counted = 0
        """How many bytes the owner knows of."""
        self._ended = False
        """Whether the client sends no more."""
        self._again = False
        """Whether the rest can be handled now."""
        self._broken = False
        """Whether the client cannot be sent anything."""
        self.conversation: Conversation = TextConversation(self, version)
        self.send(text.GREETING)

    def __repr__(self) -> str:
        return f'<Connection {self._fd} {self.session or "text"}>'

    def fileno(self) -> int:
        return self._fd

    @property
    def kept(self) -> int:
        return self.unsent

    @property
    def buffered(self) -> bool:
        return self._again

    @property
    def framed(self) -> bool:
        """Whether the client speaks in frames, and knows positions."""
        return isinstance(self.conversation, FrameConversation)

    def begin_session(self, session: str) -> None:
        """The client speaks in frames from now on."""
        self.session = session
        self.conversation = FrameConversation(self)
        self._owner.introduce(self)

    # Receiving

    def collect(self) -> tuple[Sequence[Item], bool]:
        try:
            if self._again or self.suspended:
                self._collect_rest()
                if not self._broken or self.suspended or self.closed:
                    return _END if self.closed else _NOTHING
            try:
                data = self._recv(_PIECE)
            except BlockingIOError:
                if self._broken:
                    self.close()
                return _NOTHING
            except OSError:
                self.close()
                return _END
            if not data:
                return self._collect_end()
            if self._rest:
                self._add(data)
            else:
                self.conversation.take(data)
            self._again |= self._broken and not self.closed
        except survived():  # a mistake of ours; the other clients go on
            log.exception('%r is closed, as it failed', self)
            self.close()
        return _END if self.closed else _NOTHING

    def _collect_rest(self) -> None:
        """Handle what could not be handled before."""
        if not self._again:
            return
        self._again = False
        self.suspended = self._ended  # unless there is more for another turn
        rest, self._rest = self._rest, b''
        if rest:
            self.conversation.take(rest)
            self._count()
        self._close_if_over()

    def _collect_end(self) -> tuple[Sequence[Item], bool]:
        """The client sends no more, but may want its answers."""
        self._ended = self.suspended = True
        if self._broken:
            self.close()
        self._close_if_over()
        return _END if self.closed else _NOTHING

    def _add(self, data: bytes) -> None:
        """Add `data` to the rest, and handle all if it is worth a look."""
        rest = self._rest
        if isinstance(rest, bytes):
            rest = self._rest = bytearray(rest)
        rest += data
        if not self.conversation.waits_for_more(len(rest), data):
            self._rest = b''
            self.conversation.take(rest)
        self._count()

    def keep_rest(self, data: bytes | bytearray, start: int) -> None:
        """Keep `data` from `start` on."""
        if isinstance(data, bytearray):
            del data[:start]  # without a copy
            self._rest = data
        else:
            self._rest = data[start:]
        self._count()

    def _count(self) -> None:
        """Tell the owner how much memory the client costs."""
        counted = self.unsent + len(self._rest)
        added, self._counted = counted - self._counted, counted
        if added:
            self._owner.count(self, added)

    # Requests

    def do(self, request: Request) -> None:
        """Have what the client asks for done."""
        try:
            self._handle(request)
        except survived() as error:
            fail(request, error)
        if request.state is not ANSWERED:
            request.state = WAITING
            self.unanswered += 1

    def request_over(self) -> None:
        """A request that had waited was answered."""
        self.unanswered -= 1
        self.go_on()

    def is_full(self) -> bool:
        """Whether the client has to take answers before it asks for more."""
        return (self.unsent > _HIGH_WATER
                or self.unanswered >= self.limits.requests)

    def suspend_if_full(self) -> None:
        """Do not read from a client that is to take answers first."""
        if self.is_full():
            self.suspended = True

    def go_on(self) -> None:
        """Have the poller collect the rest, and what comes.

        Not at once: it would be within a call of the operations.
        """
        if self.closed:
            return
        was_suspended, self.suspended = self.suspended, False
        if self._ended:  # the poller must not read from it
            self._again = True
            self._tell_ready()
        elif was_suspended:
            self._again = True
            self._tell_returned()
        elif self._rest:
            self._again = True
            self._tell_ready()

    # Watching

    def begin_watch(self, watch: Watch, number: int) -> None:
        """The client watches: see `Request.begin_watch`."""
        if self.watch is not None:
            raise KernelError('this connection watches already: open '
                              'another one')
        self.watch = watch
        self.watch_id = number
        self.watch_is_new = True
        self.unacknowledged = False

    @property
    def takes_output(self) -> bool:
        """Whether `send_output` may be called now.

        After it was false, the watch learns by `Watch.drained` or
        `Watch.acknowledge` when it is true.
        """
        return not (self.unsent or self.unacknowledged or self._broken
                    or self.closed)

    def send_output(self, watch: Watch, records: Sequence[OutRecord],
                    missing: Mapping[str, int]) -> None:
        """Send a batch. `missing` are bytes that were lost, by name."""
        if self.watch is watch and not self._broken:
            self.conversation.send_output(records, missing)

    def finish_watch(self, words: str) -> None:
        """The watch is over: `words` say why."""
        if self.watch is not None:
            self.watch = None
            self.unacknowledged = False
            self.conversation.finish_watch(words)
            self.go_on()

    def tell(self, method: Callable[..., object],
             *positions: Positions | None) -> str:
        """Call a method of a watch; return the error, if there is one."""
        try:
            method(*positions)
        except survived() as error:
            if isinstance(error, KernelError):
                return str(error)
            log.exception('A watch of %r failed', self)
            return f'{type(error).__name__}: {error}'
        return ''

    def _end_watch(self) -> None:
        watch, self.watch = self.watch, None
        if watch is not None:
            self.tell(watch.disconnected)

    def _is_watch_over(self) -> bool:
        """Whether a client that sends no more can watch no more.

        ``echo w p web | nc -N`` gets one batch, or as many as there are lines.
        """
        return (self.framed or self.unacknowledged
                or self._owner.is_gone(self.socket))

    # Sending

    def send(self, message: bytes) -> None:
        """Send it, or keep what the client does not take."""
        if self._outgoing:
            self._keep([message])
            return
        try:
            sent = self._send(message)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose()
            return
        if sent < len(message):
            self._keep([memoryview(message)[sent:]])

    def send_pieces(self, pieces: Sequence[Piece]) -> None:
        if len(pieces) > _MANY:
            self.send(b''.join(pieces))
            return
        if self._outgoing or self._broken:
            self._keep(pieces)
            return
        try:
            sent = self.socket.sendmsg(pieces)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose()
            return
        rest: list[Piece] = []
        for piece in pieces:
            if sent >= len(piece):
                sent -= len(piece)
            else:
                rest.append(memoryview(piece)[sent:])
                sent = 0
        if rest:
            self._keep(rest)

    def _keep(self, pieces: Sequence[Piece]) -> None:
        """Keep copies: what the pieces refer to may change."""
        if self._broken or self.closed:
            return
        kept = b''.join(pieces)
        self._outgoing.append(kept)
        self.unsent += len(kept)
        self._count()
        if not self.closed:
            self._tell_sending()

    def send_kept(self) -> bool:
        """See `Source`: the client takes more."""
        try:
            return self._send_kept()
        except survived():  # a mistake of ours; the other clients go on
            log.exception('%r is closed, as it failed', self)
            self.close()
            return False

    def _send_kept(self) -> bool:
        outgoing = self._outgoing
        while outgoing:
            piece = outgoing[0]
            try:
                sent = self._send(piece)
            except BlockingIOError:
                break
            except OSError:
                self._lose()
                return False
            self.unsent -= sent
            if sent < len(piece):
                outgoing[0] = memoryview(piece)[sent:]
                break
            del outgoing[0]
        self._count()
        if self.closed or outgoing:
            return not self.closed
        self._sent_all()
        return bool(self.unsent)

    def _sent_all(self) -> None:
        if isinstance(self.conversation, Silence):
            self._shut()
        elif self.leaving:
            self._close_if_over()
        else:
            self.go_on()
            if self.watch is not None and self.takes_output:
                self.tell(self.watch.drained)

    def _lose(self) -> None:
        """The client is gone, or the connection is broken.

        What the client has sent before is handled still, as it may be an
        acknowledgement; then the connection is closed.
        """
        if self._ended or isinstance(self.conversation, Silence):
            self.close()
            return
        self._broken = True
        self._send = len  # takes all
        self._outgoing = []
        self.unsent = 0
        self._count()
        self.go_on()
        if not self._again:
            self._again = True
            self._tell_ready()

    # The end

    def discard(self) -> None:
        """Say no more, and throw away what comes."""
        self._end_watch()
        self.conversation = Silence(self)
        if not self.unsent:
            self._shut()

    def _shut(self) -> None:
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()

    def close_when_sent(self) -> None:
        """Take no more from the client, and close when it has all."""
        self.leaving = True
        self._close_if_over()

    def _close_if_over(self) -> None:
        """Close it if the client has sent all and got all."""
        if self.unsent or self._again or self.closed:
            return
        if self.leaving:
            self._close_politely()
        elif self._ended and not self.unanswered and (
                self.watch is None or self._is_watch_over()):
            self.close()

    def _close_politely(self) -> None:
        """Close it so that the client can read what was sent last.

        If something was left unread, the system would tell the client that
        the connection is broken.
        """
        with contextlib.suppress(OSError):
            self._recv(_PIECE)
        self.close()

    def close(self) -> None:
        """See `Closing`."""
        if self.closed:
            return
        self.closed = True
        self._tell_closing(self._fd)
        self._fd = self.sink_fd = -1
        self.socket.close()
        self._outgoing = []
        self._rest = b''
        self.unsent = 0
        self.suspended = self._again = False
        self._owner.count(self, -self._counted)
        self._counted = 0
        self._tell_over()
        self._owner.forget(self)
        self._end_watch()
