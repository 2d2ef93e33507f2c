"""Messages between a client and a server, in frames of a bounded size.

A frame is a header of 16 bytes, the payload, and a tag of 16 bytes:

- the header is the length of the payload (4 bytes), the kind, the flags, two
  zero bytes, and the id of the request (8 bytes), all of them big-endian;
- the tag is BLAKE2b, keyed with the session key of the direction, over the
  number of the frame in this direction (8 bytes, from 0), the header and the
  payload. Instead of a payload of more than 2048 bytes its SHA-256 is taken,
  since that is faster where the processor knows SHA.

So a frame that somebody has changed, repeated, left out or sent back to its
sender is noticed. There is no tag where TLS does this.

A message is one frame, or several of one kind and id: all but the last have
the flag `MORE`. `PING` and `PONG` may come between these.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from hashlib import blake2b, sha256
from hmac import compare_digest
from typing import NamedTuple, NoReturn

from gocept.runner.background import pages
from gocept.runner.errors import ProtocolError

PIECE = 2 ** 18
"""How many bytes the payload of a frame has at most."""

HEADER = struct.Struct('!IBBHQ')

TAG_SIZE = 16

OVERHEAD = HEADER.size + TAG_SIZE
"""How many bytes a frame has without its payload."""

HASHED = 2048
"""A payload that is longer is hashed before it is authenticated."""

LONGEST = 2 ** 30
"""How many bytes a message has at most, if nothing else is set."""

# What a client sends.
INIT = 1
EXEC = 2
EXIT = 3
STATUS = 4
PING = 5

# What a server sends.
RECEIPT = 16
RESPONSE = 17
FAILURE = 18
PONG = 19
REPORT = 20

# Flags.
MORE = 1
"""The message goes on in the next frame of this id."""
AWAIT = 2
"""The client wants the response."""
ERROR = 4
"""The task has called ``respond(error=True)``."""
BY_VALUE = 8
"""There is code in the value, so the same minor version of Python is needed.
"""
_FLAGS = MORE | AWAIT | ERROR | BY_VALUE

REQUESTS: Mapping[int, int] = {
    INIT: PIECE, EXEC: PIECE, EXIT: PIECE, STATUS: 0, PING: 0}
"""The kinds that a server takes, and how long their payloads may be."""

ANSWERS: Mapping[int, int] = {
    RECEIPT: 0, RESPONSE: PIECE, FAILURE: PIECE, PONG: 0, REPORT: PIECE}
"""The same for a client."""

ALL: Mapping[int, int] = {**REQUESTS, **ANSWERS}

_BETWEEN = frozenset((PING, PONG))

# The number of the frame and the header.
_COUNTED = struct.Struct('!QIBBHQ')
_COUNTER = struct.Struct('!Q')
_COUNTER_SIZE = _COUNTER.size
_HEADER_SIZE = HEADER.size

_pack_counted = _COUNTED.pack
_pack_counter = _COUNTER.pack
_unpack = HEADER.unpack_from
_unpack_quick = struct.Struct('!IIQ').unpack_from  # kind and flags in one

Piece = bytes | bytearray | memoryview

_LONG = 2 ** 21
"""What is longer gets memory in large pages."""

_SHORT = 4096
"""What is shorter is copied rather than referred to."""


class Message(NamedTuple):
    """A message that has arrived, and was authenticated."""

    kind: int
    flags: int
    id: int
    pieces: list[Piece]
    """The payload. Empty if it was too long, or has no bytes."""
    size: int
    """How long the payload is; more than `longest` if it was too long."""


class _Header(NamedTuple):
    length: int
    kind: int
    flags: int
    zero: int
    id: int


_UNKNOWN = 0, 0, -1  # no payload is so short

_new = tuple.__new__  # a third of what the constructor takes


class Sealer:
    """Makes frames, in the order in which they are sent.

    `key` is the session key of the direction, None with TLS.
    """

    def __init__(self, key: bytes | None) -> None:
        self._counter = 0
        # To copy an object with a key takes a third of making one.
        self._keyed = (
            None if key is None else blake2b(key=key, digest_size=TAG_SIZE))

    def seal(self, kind: int, flags: int, id: int,  # noqa: A002
             payload: bytes = b'') -> bytes:
        """The only frame of a message; `payload` has at most `PIECE` bytes."""
        size = len(payload)
        if size > HASHED:
            if size > PIECE:
                raise ValueError(f'{size} bytes in a frame')
            return b''.join(self._frame(kind, flags, id, [payload], size))
        keyed = self._keyed
        if keyed is None:
            return HEADER.pack(size, kind, flags, 0, id) + payload
        counted = _pack_counted(
            self._counter, size, kind, flags, 0, id) + payload
        self._counter += 1
        tag = keyed.copy()
        tag.update(counted)
        return counted[_COUNTER_SIZE:] + tag.digest()

    def pieces(self, kind: int, flags: int, id: int,  # noqa: A002
               payload: Iterable[Piece]) -> Iterator[Piece]:
        """The frames of a message of any length, in pieces, one by one.

        What is long in `payload` is not copied. A frame is made when its first
        piece is asked for, so no other one may be sealed in between, but
        after a piece that is the last of its frame: see `frames`.
        """
        for frame in self.frames(kind, flags, id, payload):
            yield from frame

    def frames(self, kind: int, flags: int, id: int,  # noqa: A002
               payload: Iterable[Piece]) -> Iterator[list[Piece]]:
        """The frames of a message of any length, each in pieces.

        Between two of them a `PING` or `PONG` may be sealed and sent.
        """
        views: list[Piece] = []
        size = 0
        for piece in payload:
            start, end = 0, len(piece)
            while size + end - start > PIECE:
                stop = start + PIECE - size
                if stop > start:
                    views.append(memoryview(piece)[start:stop])
                yield self._frame(kind, flags | MORE, id, views, PIECE)
                views, size, start = [], 0, stop
            if end > start:
                views.append(memoryview(piece)[start:] if start else piece)
                size += end - start
        yield self._frame(kind, flags, id, views, size)

    def _frame(self, kind: int, flags: int, id: int,  # noqa: A002
               views: list[Piece], size: int) -> list[Piece]:
        header = HEADER.pack(size, kind, flags, 0, id)
        if self._keyed is None:
            return [header, *views]
        tag = self._keyed.copy()
        tag.update(_pack_counter(self._counter) + header)
        self._counter += 1
        _update(tag, views, size)
        return [header, *views, tag.digest()]


def _update(tag: blake2b, views: Iterable[Piece], size: int) -> None:
    """Authenticate a payload."""
    if size > HASHED:
        long = sha256()
        for view in views:
            long.update(view)
        tag.update(long.digest())
    else:
        for view in views:
            tag.update(view)


_Quick = Mapping[int, tuple[int, int, int]]


@cache
def _quick(kinds: tuple[tuple[int, int], ...]) -> _Quick:
    """By what stands between the length and the id of short frames: the kind,
    the flags, and the longest payload."""
    return {kind << 24 | flags << 16: (kind, flags, min(most, HASHED))
            for kind, most in kinds
            for flags in range(_FLAGS + 1) if not flags & MORE}


class Opener:
    """Makes messages of bytes, however these are cut.

    `key` is the session key of the direction, None with TLS. `longest` is how
    many bytes a message may have; `kinds` are those that the other side may
    send, with the longest payload of each: `REQUESTS` or `ANSWERS`.
    """

    def __init__(self, key: bytes | None, longest: int = LONGEST,
                 kinds: Mapping[int, int] = ALL) -> None:
        self.longest = longest
        self.kept = 0
        """How many bytes wait for the next frame of their message."""
        self._kinds = kinds
        self._counter = 0
        """The number of the next frame."""
        self._keyed = (
            None if key is None else blake2b(key=key, digest_size=TAG_SIZE))
        self._tag_size = 0 if key is None else TAG_SIZE
        self._all_quick: _Quick = (
            {} if key is None or longest < HASHED
            else _quick(tuple(kinds.items())))
        """Frames that need no second look."""
        self._quick = self._all_quick
        """The same now: nothing while a frame or message goes on, and after an
        error."""
        self._head = b''
        """What has come of a header."""
        self._frame: _Header | None = None
        """The header, if the frame goes on."""
        self._fragments: list[Piece] = []
        """What has come of the payload of this frame."""
        self._missing = 0
        """How many bytes of it have not come."""
        self._tag = b''
        """What has come of the tag."""
        self._message: _Header | None = None
        """The first header, if the message goes on."""
        self._pieces: list[Piece] = []
        """What has come of its payload."""
        self._size = 0
        self._region: memoryview | None = None
        """Memory for the next of it, if the message is long."""
        self._filled = 0
        """How many bytes of the region are used."""
        self._discarded = False
        """Whether nothing is kept of that message."""
        self._mistake = ''

    def feed(self, data: bytes) -> list[Message]:
        """Add what has come; return the messages that are complete.

        Parts of `data` are kept. A message that is longer than `longest` is
        returned as soon as it is, without pieces; the rest of it is dropped.

        `ProtocolError` if a frame is none, or has a wrong tag. The connection
        is to be closed then: each further call raises it as well.
        """
        messages: list[Message] = []
        start, end = 0, len(data)
        while start < end:
            if end - start >= OVERHEAD:
                length, what, number = _unpack_quick(data, start)
                stop = start + OVERHEAD + length
                kind, flags, longest = self._quick.get(what, _UNKNOWN)
                if length <= longest and stop <= end:
                    # Nearly all frames come here: this takes a microsecond.
                    tag_start = stop - TAG_SIZE
                    tag = self._keyed.copy()  # type: ignore[union-attr]
                    tag.update(_pack_counter(self._counter)
                               + data[start:tag_start])
                    if not compare_digest(
                            tag.digest(), data[tag_start:stop]):
                        self._refuse('a frame has a wrong tag')
                    self._counter += 1
                    messages.append(_new(Message, (
                        kind, flags, number,
                        [data[start + _HEADER_SIZE:tag_start]] if length
                        else [], length)))
                    start = stop
                    continue
            start = self._take(data, start, end, messages)
        return messages

    def _is_known(self, kind: int, flags: int, zero: int, length: int) -> bool:
        return (length <= self._kinds.get(kind, -1) and not zero
                and not flags & ~_FLAGS)

    def _refuse(self, mistake: str) -> NoReturn:
        self._mistake = mistake
        self._quick = {}
        self._head = b''
        self._fragments = []
        self._drop()
        raise ProtocolError(
            f'{mistake}: the connection was changed on the way, or the other '
            f'side does not speak this protocol')

    def _take(self, data: bytes, start: int, end: int,
              messages: list[Message]) -> int:
        """Take a frame, or what has come of it; returns where it ends."""
        if self._mistake:
            self._refuse(self._mistake)
        if self._frame is None:
            stop = min(start + _HEADER_SIZE - len(self._head), end)
            self._head += data[start:stop]
            start = stop
            if len(self._head) < _HEADER_SIZE:
                self._quick = {}
                return end
            self._begin(_Header(*_unpack(self._head)))
        if self._missing and start < end:
            stop = min(start + self._missing, end)
            self._add_part(data, start, stop)
            self._missing -= stop - start
            start = stop
        if not self._missing:
            stop = min(start + self._tag_size - len(self._tag), end)
            self._tag += data[start:stop]
            start = stop
        if self._missing or len(self._tag) < self._tag_size:
            self._quick = {}
            return end
        message = self._end()
        if message is not None:
            messages.append(message)
        return start

    def _add_part(self, data: bytes, start: int, end: int) -> None:
        """Add a part of a payload.

        What is long goes where it stays: it can be authenticated there, and
        nothing is returned before it was. The bytes objects in which it
        arrives can be used again for the next part, which makes this fast.
        """
        if self._size >= _LONG and not self._discarded:
            view = memoryview(data)
            while start < end:
                if self._region is None:
                    self._region = pages.new_region()
                    if self._region is None:  # no large pages, or no memory
                        break
                size = min(end - start, pages.REGION - self._filled)
                place = self._region[self._filled:self._filled + size]
                place[:] = view[start:start + size]
                self._fragments.append(place)
                self._filled += size
                start += size
                if self._filled == pages.REGION:
                    self._end_region()
        if start < end:
            _add(self._fragments, data, start, end)

    def _end_region(self) -> None:
        if self._region is not None:
            self._pieces.append(self._region[:self._filled])
            self._region = None
            self._filled = 0

    def _begin(self, header: _Header) -> None:
        """Look at the header; its tag has not come, so trust only so much."""
        if not self._is_known(header.kind, header.flags, header.zero,
                              header.length):
            self._refuse('a frame has a wrong header')
        if header.flags & MORE and not header.length:
            self._refuse('a frame that is not the last of a message is empty')
        if header.kind in _BETWEEN:
            if header.flags & MORE:
                self._refuse('a frame has a wrong header')
        elif self._message is not None and (
                header.kind != self._message.kind
                or header.id != self._message.id):
            self._refuse('a message begins within another one')
        self._frame = header
        self._missing = header.length

    def _end(self) -> Message | None:
        """A frame is complete."""
        header = self._frame
        assert header is not None
        head, self._head = self._head, b''
        fragments, self._fragments = self._fragments, []
        self._frame = None
        if self._keyed is not None:
            expected, self._tag = self._tag, b''
            tag = self._keyed.copy()
            tag.update(_pack_counter(self._counter) + head)
            _update(tag, fragments, header.length)
            if not compare_digest(tag.digest(), expected):
                self._refuse('a frame has a wrong tag')
        self._counter += 1
        if header.kind in _BETWEEN:
            self._quick = {} if self._message else self._all_quick
            return Message(header.kind, header.flags, header.id, [], 0)
        return self._add_frame(header, fragments)

    def _add_frame(self, header: _Header,
                   fragments: list[Piece]) -> Message | None:
        """Add an authenticated frame to its message."""
        self._size += header.length
        complete = not header.flags & MORE
        message = None
        if not self._discarded:
            is_long = self._size > self.longest
            if is_long:
                self._drop()
            else:
                for fragment in fragments:
                    if not pages.is_region(fragment):
                        _add(self._pieces, fragment, 0, len(fragment))
            if complete:
                self._end_region()
            if is_long or complete:
                message = Message(header.kind, header.flags & ~MORE,
                                  header.id, self._pieces, self._size)
        if complete:
            self._message = None
            self._pieces = []
            self._size = self.kept = 0
            self._discarded = False
            self._quick = self._all_quick
        else:
            self._message = header
            self._quick = {}
            self.kept = 0 if self._discarded else self._size
        return message

    def discard(self) -> int:
        """Drop what has come of a message that goes on, and what will come.

        Returns its id, or 0 if none goes on.
        """
        if self._message is None:
            return 0
        self._drop()
        return self._message.id

    def _drop(self) -> None:
        self._discarded = True
        self._region = None
        self._filled = 0
        self._pieces = []
        self.kept = 0


def _add(pieces: list[Piece], data: Piece, start: int, end: int) -> None:
    """Add a part of `data`.

    It is not copied if it is long, and most of what would be kept. Short parts
    are put together, as each object costs memory of its own.
    """
    size = end - start
    if size < _SHORT:
        last = pieces[-1] if pieces else None
        if isinstance(last, bytearray) and len(last) < PIECE:
            last += data[start:end]
        else:
            pieces.append(bytearray(data[start:end]))
    elif size == len(data):
        pieces.append(data)
    elif 2 * size >= len(data):
        pieces.append(memoryview(data)[start:end])
    else:
        pieces.append(data[start:end])
