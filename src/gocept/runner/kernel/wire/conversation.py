"""What is said on a connection of the kernel: text, frames, or nothing.

Commands of the text protocol (`gocept.runner.kernel.wire.text`) are answered
one after the other. Requests in frames (`gocept.runner.kernel.wire.frames`)
are answered when their results are known, each by its id.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from gocept.runner.errors import KernelError
from gocept.runner.kernel.keeper.link import KeeperGone
from gocept.runner.kernel.wire import frames, text
from gocept.runner.kernel.wire.frames import HEADER, Json, OutRecord
from gocept.runner.logs import Log

if TYPE_CHECKING:
    from gocept.runner.kernel.wire.connection import Connection

log = Log('gocept.runner.kernel')

_TURN = 100
"""How many requests or commands of a client are handled in a row."""

_HTTP = re.compile(rb'\S+ +\S+ +HTTP/')

_TLS = b'\x16\x03'

_SESSION = re.compile(r'[0-9a-f]{32}')

_OF_WATCH = frozenset(('acknowledge', 'unwatch'))

_HEAD = HEADER.size

_unpack_from = HEADER.unpack_from

_decode = frames.decode

_answer = frames.answer

Piece = bytes | bytearray | memoryview

Positions = dict[str, list[Json]]
"""For each name the life, the offset, and whether the end was seen."""


class Operations(Protocol):
    """Who does what clients ask for."""

    def handle(self, request: 'Request') -> None:
        """Answer the request, now or later. A `KernelError` is an answer."""


class Watch(Protocol):
    """A watch as its connection knows it."""

    def acknowledge(self, positions: Positions | None) -> None:
        """The client has seen this; None for all that was sent to it."""

    def stop(self, positions: Positions | None) -> None:
        """The client has seen this, and wants no more.

        The watch calls `Connection.finish_watch`.
        """

    def drained(self) -> None:
        """The client has taken all that was sent, and takes more."""

    def disconnected(self) -> None:
        """The client is gone. The connection is not used any more."""


HANDLED, WAITING, ANSWERED = 'handled', 'waiting', 'answered'


class Request:
    """What a client asks for: `op` with `params` and `data`.

    One of `answer`, `fail` and `begin_watch` is called, and once.
    """

    __slots__ = ('connection', 'data', 'id', 'op', 'params', 'state')

    def __init__(self, connection: 'Connection', op: str,
                 params: dict[str, Json], data: bytes, number: int) -> None:
        self.connection = connection
        self.op = op
        self.params = params
        self.data = data
        self.id = number
        """Counts up in a session; 0 wants no answer."""
        self.state = HANDLED

    @property
    def session(self) -> str:
        """32 hexadecimal digits; empty in the text protocol."""
        return self.connection.session

    @property
    def answered(self) -> bool:
        """Whether it was answered."""
        return self.state is ANSWERED

    def answer(self, result: Json = None, data: bytes = b'') -> None:
        """It was done, with this result."""
        state = self.state
        if state is ANSWERED:
            raise RuntimeError(f'{self.op} was answered before')
        self.state = ANSWERED
        connection = self.connection
        if self.id:
            message = _answer(self.id, result, data)
            if len(message) > connection.longest:
                message = _too_long(self.id, len(message), connection.longest)
            connection.send(message)
        if state is WAITING:
            connection.request_over()

    def fail(self, message: str) -> None:
        """It was not done; `message` says in a line why."""
        state = self.state
        if state is ANSWERED:
            raise RuntimeError(f'{self.op} was answered before')
        self.state = ANSWERED
        connection = self.connection
        if self.id:
            connection.send(frames.frame(self.id, ('error', message)))
        else:
            log.warning('%r failed: %s', self, message)
        if state is WAITING:
            connection.request_over()

    def begin_watch(self, watch: Watch, result: Json) -> None:
        """Answer, and tell `watch` what becomes of it from now on."""
        self.connection.begin_watch(watch, self.id)
        self.answer(result)

    def __repr__(self) -> str:
        return f'<Request {self.id} {self.op} of {self.connection!r}>'


class TextRequest(Request):
    """A command of the text protocol."""

    __slots__ = ('command', 'watched')

    def __init__(self, connection: 'Connection',
                 command: text.Command) -> None:
        super().__init__(connection, command.op, command.params, b'', 0)
        self.command = command
        self.watched = False

    def answer(self, result: Json = None, data: bytes = b'') -> None:
        """See `Request`."""
        if self.op == 'exit-if-idle':
            self._say('Exiting papa!' if result else 'not idle')
            if result:
                self.connection.close_when_sent()
            return
        try:
            shown = text.result_text(self.command, result)
            if len(shown) > self.connection.longest:
                raise KernelError(
                    f'the answer has {len(shown)} characters, more than '
                    f'{self.connection.longest}: ask for less at once')
        except KernelError as error:
            self.fail(str(error))
        else:
            self._say(shown)

    def fail(self, message: str) -> None:
        """See `Request`."""
        self.watched = False
        self._say(f'Error: {text.in_line(message)}')

    def _say(self, words: str) -> None:
        state = self.state
        if state is ANSWERED:
            raise RuntimeError(f'{self.op} was answered before')
        self.state = ANSWERED
        self.connection.send(text.to_bytes(
            f'{words}\n' if self.watched else f'{words}\n{text.PROMPT}'))
        if state is WAITING:
            self.connection.request_over()

    def begin_watch(self, watch: Watch, result: Json) -> None:
        """See `Request`."""
        self.watched = True
        self.connection.begin_watch(watch, 0)
        self.answer(result)


def fail(request: Request, error: BaseException) -> None:
    """Tell the client of an error; an unexpected one is logged.

    What needs a keeper when there is none gets no answer: the daemon closes
    its connections next, and the client asks the one after it.
    """
    told = request.state is ANSWERED
    if isinstance(error, KeeperGone) and not told:
        return
    expected = isinstance(error, KernelError)
    if told or not expected:
        log.error('%r failed', request, exc_info=error)
    if not told:
        request.fail(str(error) if expected
                     else f'{type(error).__name__}: {error}')


def _too_long(number: int, length: int, limit: int) -> bytes:
    return frames.frame(number, (
        'error', f'the answer has {length} bytes, more than {limit}: ask for '
        f'less at once, or start the kernel with --limit frame={length}'))


class Conversation(Protocol):
    """What the kernel understands, and how it says things."""

    def waits_for_more(self, size: int, last: bytes) -> bool:
        """Whether `size` bytes, of which `last` came last, are too few."""

    def take(self, data: bytes | bytearray) -> None:
        """Handle what has come, as far as it is complete."""

    def send_output(self, records: Sequence[OutRecord],
                    missing: Mapping[str, int]) -> None:
        """Send a batch of what is watched."""

    def finish_watch(self, words: str) -> None:
        """Say why the watch is over."""


class TextConversation:
    """Lines; see `Conversation`."""

    def __init__(self, connection: 'Connection', version: str) -> None:
        self.connection = connection
        self.version = version
        self._longest = connection.limits.line
        self._first = True
        """Whether the first line has not come yet."""

    def waits_for_more(self, size: int, last: bytes) -> bool:
        """See `Conversation`."""
        return b'\n' not in last and size <= self._longest

    def take(self, data: bytes | bytearray) -> None:
        """See `Conversation`."""
        connection = self.connection
        watch = connection.watch
        start = turn = 0
        while turn < _TURN:
            stop = data.find(b'\n', start)
            if (stop if stop >= 0 else len(data)) - start > self._longest:
                self._say(f'Error: a line is longer than {self._longest} '
                          'bytes\n')
                connection.discard()
                return
            if stop < 0 or self._is_busy(data[start:stop], watch):
                break
            line = bytes(data[start:stop])
            start = stop + 1
            turn += 1
            self._take_line(line)
            if connection.closed or connection.leaving:
                return
            if connection.conversation is not self:
                if start < len(data):
                    connection.conversation.take(data[start:])
                return
        if start < len(data):
            connection.keep_rest(data, start)
            if turn == _TURN:
                connection.go_on()
            elif len(data) - start > self._longest:
                connection.suspended = True

    def _is_busy(self, line: bytes | bytearray, watch: Watch | None) -> bool:
        """Whether the next line has to wait.

        `watch` is what was going on when the line came.
        """
        connection = self.connection
        if connection.unanswered:
            return True
        if connection.is_full():
            connection.suspended = True
            return True
        # An acknowledgement that comes too early is for the next batch, and
        # so is a "q" that has come with the command: as papa does it.
        return (connection.watch is not None
                and not connection.unacknowledged
                and (connection.watch is not watch
                     or line.strip().lower() != b'q'))

    def _take_line(self, line: bytes) -> None:
        connection = self.connection
        if self._first:
            self._first = False
            if _HTTP.match(line) or line.startswith(_TLS):
                self._say('Error: this is no web server\n')
                connection.close_when_sent()
                return
        if connection.watch is not None:
            self._take_watch_line(connection.watch, line)
            return
        words = text.split(text.from_bytes(line).strip())
        if not words:
            self._say(text.PROMPT)
        elif words[0] == 'frames':
            self._begin_frames(words)
        else:
            self._command(words)

    def _take_watch_line(self, watch: Watch, line: bytes) -> None:
        connection = self.connection
        connection.unacknowledged = False
        if line.strip().lower() == b'q':
            connection.tell(watch.stop, None)
        else:
            connection.tell(watch.acknowledge, None)

    def _begin_frames(self, words: list[str]) -> None:
        if len(words) != 3 or words[1] != str(frames.VERSION) or (
                not _SESSION.fullmatch(words[2])):
            self._say(f'Error: this kernel knows "frames {frames.VERSION} '
                      f'SESSION", with 32 hexadecimal digits\n> ')
            return
        self.connection.begin_session(words[2])
        self._say(f'frames {frames.VERSION} {self.version}\n> ')

    def _command(self, words: list[str]) -> None:
        try:
            command = text.parse(words)
        except KernelError as error:
            self._say(f'Error: {text.in_line(str(error))}\n> ')
            return
        if command.op == 'help':
            self._say(command.params['text'] + text.PROMPT)
        elif command.op == 'quit':
            self._say('ok\n')
            self.connection.close_when_sent()
        else:
            self.connection.do(TextRequest(self.connection, command))

    def _say(self, words: str) -> None:
        self.connection.send(text.to_bytes(words))

    def send_output(self, records: Sequence[OutRecord],
                    missing: Mapping[str, int]) -> None:
        """See `Conversation`. There are no words for what is missing."""
        if records:
            connection = self.connection
            connection.unacknowledged = True
            is_first, connection.watch_is_new = connection.watch_is_new, False
            connection.send_pieces(text.output_pieces(
                records, text.FIRST_BATCH if is_first else 0))
            connection.go_on()

    def finish_watch(self, words: str) -> None:
        """See `Conversation`."""
        self._say(f'{words}\n{text.PROMPT}')


class FrameConversation:
    """Frames; see `Conversation`."""

    def __init__(self, connection: 'Connection') -> None:
        self.connection = connection
        self._longest = connection.limits.frame
        self._missing = 0
        """How many bytes have to come before it is worth to look again."""

    def waits_for_more(self, size: int, last: bytes) -> bool:
        """See `Conversation`."""
        return size < self._missing

    def take(self, data: bytes | bytearray) -> None:
        """See `Conversation`."""
        # A round trip counts in microseconds, and a call takes a tenth of one.
        connection = self.connection
        start = turn = 0
        end = len(data)
        self._missing = _HEAD
        while end - start >= _HEAD:
            length, size, number = _unpack_from(data, start)
            body = start + _HEAD
            middle = body + length
            stop = middle + size
            if stop > end:
                if length + size > self._longest:
                    self._refuse_length(length + size)
                    return
                self._missing = stop - start
                break
            start = stop
            try:
                op, params = _decode(data[body:middle])
            except (KernelError, TypeError, ValueError):
                op = params = None
            if type(op) is not str or type(params) is not dict:
                self._fail(number, 'a request is [operation, {parameters}] in '
                                   'JSON')
            elif op in _OF_WATCH:
                self._take_watch_frame(op, params, number)
            else:
                connection.do(Request(
                    connection, op, params,
                    bytes(memoryview(data)[middle:stop]) if size else b'',
                    number))
            if connection.closed:
                return
            if start < end:
                turn += 1
                if turn >= _TURN or connection.is_full():
                    self._missing = 0
                    break
        if start < end:
            connection.keep_rest(data, start)
            if turn >= _TURN and not connection.is_full():
                connection.go_on()
        if connection.unsent or connection.unanswered:
            connection.suspend_if_full()

    def _take_watch_frame(self, op: str, params: dict[str, Json],
                          number: int) -> None:
        connection = self.connection
        watch = connection.watch
        positions = params.get('positions', {})
        if type(positions) is not dict:
            error = f'{op} needs positions'
        elif watch is None:
            error = ''  # it has ended meanwhile
        else:
            error = connection.tell(
                watch.acknowledge if op == 'acknowledge' else watch.stop,
                positions)
        if error:
            self._fail(number, error)
        elif number:
            connection.send(_answer(number, None))

    def _fail(self, number: int, message: str) -> None:
        if number:
            self.connection.send(frames.frame(number, ('error', message)))
        else:
            log.warning('%r: %s', self.connection, message)

    def _refuse_length(self, length: int) -> None:
        """End with an error that belongs to no request."""
        self.connection.send(frames.frame(0, ('error', (
            f'a frame of {length} bytes is longer than {self._longest}, or it '
            f'is no frame: start the kernel with --limit frame={length} to '
            f'allow more'))))
        self.connection.discard()

    def send_output(self, records: Sequence[OutRecord],
                    missing: Mapping[str, int]) -> None:
        """See `Conversation`."""
        heads: list[Json] = []
        pieces: list[Piece] = [b'']
        size = 0
        for name, life, kind, timestamp, data, status, offset in records:
            length = len(data)
            heads.append((name, life, kind, timestamp,
                          status if kind == 'closed' else length, offset))
            if length:
                pieces.append(data)
                size += length
        body = frames.encode(('output', heads, missing))
        connection = self.connection
        pieces[0] = frames.pack(len(body), size, connection.watch_id) + body
        connection.send_pieces(pieces)

    def finish_watch(self, words: str) -> None:
        """See `Conversation`."""
        connection = self.connection
        connection.send(frames.frame(connection.watch_id, ('over', words)))


class Silence:
    """After an error: what still comes is thrown away, up to a limit.

    To close the connection while the client sends would take from the client
    what was said last. See `Conversation`.
    """

    def __init__(self, connection: 'Connection') -> None:
        self.connection = connection
        self._left = 4 * connection.limits.frame

    def waits_for_more(self, size: int, last: bytes) -> bool:
        """See `Conversation`."""
        return False

    def take(self, data: bytes | bytearray) -> None:
        """See `Conversation`."""
        self._left -= len(data)
        if self._left < 0:
            self.connection.close()

    def send_output(self, records: Sequence[OutRecord],
                    missing: Mapping[str, int]) -> None:
        """See `Conversation`."""

    def finish_watch(self, words: str) -> None:
        """See `Conversation`."""
