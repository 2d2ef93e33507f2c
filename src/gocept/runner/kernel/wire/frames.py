"""Messages with a length in front, in which any bytes pass unharmed.

A frame is a header, JSON, and data:

- the header is the length of the JSON, the length of the data (4 bytes each),
  and the id of the request (8 bytes), all of them big-endian;
- the JSON is ASCII. A string in it is what ``os.fsdecode`` makes of bytes, so
  a byte that is no UTF-8 is a surrogate, and comes back as that byte;
- the data is bytes of any kind.

A request is ``[operation, parameters]``, its answer ``["ok", result]`` or
``["error", message]``. Ids count up from 1 in a session; 0 asks for no answer.
"""

import json
import struct
from collections.abc import Callable, Iterable
from json import encoder
from typing import Any, NamedTuple, NoReturn

from gocept.runner.errors import KernelError

Json = Any
"""None, a bool, an int, a float, a string, or a list or dict of these."""

VERSION = 1
"""Of the framing. A client asks for it by ``frames 1 SESSION``."""

HEADER = struct.Struct('!IIQ')

LIMIT = 16 * 2 ** 20
"""How many bytes the JSON and the data of a frame have at most."""

pack = HEADER.pack

unpack_from = HEADER.unpack_from


def _refuse(value: object) -> NoReturn:
    raise TypeError(f'no JSON: {value!r}')


# An encoder and a scanner made once: those of `json.dumps` and `json.loads`
# take three times as long for a short message.
_scan: Callable[[str, int], tuple[Json, int]] = (
    json.JSONDecoder().scan_once)  # type: ignore[attr-defined]
quote: Callable[[str], str] = encoder.encode_basestring_ascii
"""The JSON of a string, in ASCII."""
_dumps = json.JSONEncoder(default=_refuse, separators=(',', ':')).encode
_make = getattr(encoder, 'c_make_encoder', None)
_chunks: Callable[[Json, int], Iterable[str]] = (
    _make(None, _refuse, quote, None, ':', ',', False, False, True)
    if _make is not None else lambda value, level: (_dumps(value),))


class OutRecord(NamedTuple):
    """A piece of what a process has written, or its end."""

    name: str
    life: str
    kind: str
    """``out``, ``err`` or ``closed``."""
    timestamp: float
    """When the kernel read it, or learned of the end; seconds since 1970."""
    data: bytes | memoryview = b''
    status: int | None = None
    """With which the process ended: None if nobody knows."""
    offset: int = 0
    """Of the end of `data` in what the process has written in all."""


def dumps(value: Json) -> str:
    """The JSON of `value`, in ASCII."""
    return ''.join(_chunks(value, 0))


def encode(value: Json) -> bytes:
    """The same in bytes."""
    return ''.join(_chunks(value, 0)).encode('ascii')


def decode(data: bytes | bytearray) -> Json:
    """What was encoded; `KernelError` for anything else."""
    try:
        text = data.decode()
        value, end = _scan(text, 0)
        if end == len(text):
            return value
    except (ValueError, StopIteration, RecursionError):
        pass
    raise KernelError('a frame has something else than JSON')


def frame(number: int, value: Json, data: bytes = b'') -> bytes:
    """A frame with the id `number`."""
    body = ''.join(_chunks(value, 0)).encode('ascii')
    return pack(len(body), len(data), number) + body + data


def answer(number: int, result: Json, data: bytes = b'') -> bytes:
    """The frame ``["ok", result]``, in a microsecond for a string."""
    if result is None:
        body = b'["ok",null]'
    elif type(result) is str:
        body = f'["ok",{quote(result)}]'.encode('ascii')
    else:
        body = ''.join(_chunks(('ok', result), 0)).encode('ascii')
    return pack(len(body), len(data), number) + body + data


class Frame(NamedTuple):
    """A frame that has arrived."""

    number: int
    value: Json
    data: bytes


class Reader:
    """Makes frames of bytes, however these are cut."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._rest = b''
        self._pieces: list[bytes] = []
        self._missing = 0
        """How many bytes have to come before it is worth to look again."""

    @property
    def empty(self) -> bool:
        """Whether no frame has begun."""
        return not self._rest and not self._pieces

    def feed(self, piece: bytes) -> list[Frame]:
        """Add what has come; return the frames that are complete.

        `KernelError` if a frame is longer than the limit, or no frame.
        """
        if self._missing > len(piece):
            self._missing -= len(piece)
            self._pieces.append(piece)
            return []
        if self._pieces:
            piece = b''.join((*self._pieces, piece))
            self._pieces = []
        self._missing = 0
        return self._cut(piece)

    def _cut(self, data: bytes) -> list[Frame]:
        frames = []
        start, end = 0, len(data)
        while end - start >= HEADER.size:
            length, size, number = unpack_from(data, start)
            check_length(length + size, self.limit)
            body = start + HEADER.size
            stop = body + length + size
            if stop > end:
                self._missing = stop - end
                break
            value = decode(data[body:body + length])
            frames.append(Frame(number, value, data[body + length:stop]))
            start = stop
        if start < end:
            self._pieces = [data[start:]]
            self._missing = self._missing or HEADER.size - (end - start)
        return frames


def check_length(length: int, limit: int) -> None:
    """Refuse what is too long to wait for."""
    if length > limit:
        raise KernelError(
            f'a frame of {length} bytes is longer than {limit}, or it is no '
            f'frame: ask for less at once, or start the kernel with --limit '
            f'frame={length}')
