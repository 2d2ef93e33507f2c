"""Values as bytes: pickles, made by cloudpickle if there is code in them.

Large bytes and strings in a value become pieces of their own, and are not
copied for that. `decode` drops each piece once it has read it. So no large
value is held twice.

A pickle runs code when it is read: give `decode` nothing that was not
authenticated.
"""

import pickle
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType, ModuleType

from gocept.runner.background import pages
from gocept.runner.background.frames import BY_VALUE, Piece
from gocept.runner.errors import NotDecoded
from gocept.runner.waits.forks import Lock

_PROTOCOL = 5

_LARGE = 2 ** 16
"""What is longer gets a piece of its own from pickle."""

_SHORT = 1000  # characters

_SCALARS = frozenset((int, float, bool, type(None)))

_MAIN = b'_main__'
"""How the names of `__main__` end, and of `_IMPORTED_MAIN`."""

_IMPORTED_MAIN = '__mp_main__'
"""What a child of multiprocessing calls the script that began."""

_NO_FILE = '<dynamic-code>'
"""What cloudpickle says instead of the name of the file."""

_lock = Lock()

_registered: Counter[str] = Counter()
"""How many calls now send each module by value."""


class _Collector:
    """A file for a pickler: what is written stays in pieces."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.write = self.pieces.append

    def result(self) -> list[bytes]:
        pieces = self.pieces
        if len(pieces) > 1:
            # A bytearray or an array may change before it is sent.
            for number, piece in enumerate(pieces):
                if type(piece) is not bytes:
                    pieces[number] = memoryview(piece).tobytes()
        return pieces


def encode(value: object, by_value: Sequence[ModuleType] = (),
           ) -> tuple[list[bytes], int]:
    """The pieces of a pickle of `value`, and flags of a frame.

    Functions and classes of modules travel by name. Those of `__main__` and of
    the modules in `by_value` (with the modules below them), lambdas and inner
    functions travel with their code; the flag is `BY_VALUE` then, as only the
    same minor version of Python understands it.

    What pickle raises, mostly PicklingError or TypeError, if that cannot be.
    """
    if not by_value:
        try:
            if _is_short(value):
                pieces = [pickle.dumps(value, _PROTOCOL)]
            else:
                collector = _Collector()
                pickle.Pickler(collector, _PROTOCOL).dump(value)
                pieces = collector.result()
        except Exception:  # cloudpickle can do more, and says what it cannot
            return _encode_code(value, by_value)
        if not (_MAIN in pieces[0] if len(pieces) == 1
                else _names_main(pieces)):
            return pieces, 0
    return _encode_code(value, by_value)


def _is_short(value: object) -> bool:
    """Whether one piece is enough: a collector would cost a microsecond."""
    if type(value) is not dict or len(value) > 20:
        return False
    for each in value.values():
        kind = type(each)
        if kind not in _SCALARS and (
                (kind is not str and kind is not bytes) or len(each) > _SHORT):
            return False
    return True


def _names_main(pieces: list[bytes]) -> bool:
    """Whether there may be something in it that is to be found in __main__."""
    before = b''
    for piece in pieces:
        size = len(piece)
        # Large bytes or a string: their length is what was written before.
        is_data = size >= _LARGE and before.endswith(
            (size.to_bytes(8, 'little'),
             (size % 2 ** 32).to_bytes(4, 'little')))
        if not is_data and _MAIN in piece:
            return True
        before = piece
    return False


def _encode_code(value: object, by_value: Sequence[ModuleType],
                 ) -> tuple[list[bytes], int]:
    import cloudpickle  # when it is needed: this takes milliseconds

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]

        flags = 0

        def reducer_override(self, it: object) -> object:
            """See `pickle.Pickler`: NotImplemented if it goes by name."""
            reduced = super().reducer_override(it)
            if isinstance(it, CodeType) or (
                    reduced is not NotImplemented
                    and isinstance(it, type | FunctionType)
                    and it.__module__ != 'builtins'):
                self.flags = BY_VALUE
            if isinstance(it, CodeType) and reduced is NotImplemented:
                # A traceback is to name the file.
                build, arguments = self.dispatch_table[CodeType](it)
                reduced = build, tuple(
                    it.co_filename if isinstance(each, str)
                    and each == _NO_FILE else each for each in arguments)
            return reduced

    if _IMPORTED_MAIN in sys.modules:
        by_value = *by_value, sys.modules[_IMPORTED_MAIN]
    collector = _Collector()
    pickler = Pickler(collector, _PROTOCOL)
    with _by_value(by_value):
        pickler.dump(value)
    return collector.result(), pickler.flags


@contextmanager
def _by_value(modules: Sequence[ModuleType]) -> Iterator[None]:
    """Have cloudpickle send the modules by value.

    It knows only a list for the whole process. What users have put there
    themselves stays there.
    """
    import cloudpickle
    mine = []
    try:
        with _lock:
            known = cloudpickle.list_registry_pickle_by_value()
            for module in modules:
                name = module.__name__
                if name in _registered or name not in known:
                    cloudpickle.register_pickle_by_value(module)
                    _registered[name] += 1
                    mine.append(module)
        yield
    finally:
        with _lock:
            for module in mine:
                name = module.__name__
                _registered[name] -= 1
                if not _registered[name]:
                    del _registered[name]
                    cloudpickle.unregister_pickle_by_value(module)


class _Reader:
    """A file for an unpickler, made of pieces, which it drops."""

    def __init__(self, pieces: list[Piece]) -> None:
        pieces.reverse()
        self._pieces = pieces

    def _take(self, size: int) -> Piece:
        """At most `size` bytes, as many as one piece has; none at the end."""
        if not self._pieces:
            return b''
        piece = self._pieces.pop()
        if len(piece) > size:
            view = memoryview(piece)
            self._pieces.append(view[size:])
            return view[:size]
        return piece

    def read(self, size: int) -> bytes:
        """See `io.RawIOBase`; less than `size` bytes only at the end."""
        parts = []
        while size > 0:
            part = self._take(size)
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b''.join(parts)

    def readinto(self, buffer: memoryview) -> int:
        """See `io.RawIOBase`; it fills the buffer, except at the end."""
        pages.advise(buffer)
        done, end = 0, len(buffer)
        while done < end:
            part = self._take(end - done)
            if not part:
                break
            buffer[done:done + len(part)] = part
            done += len(part)
        return done

    def readline(self) -> bytes:
        """See `io.IOBase`; only pickles of old protocols have lines."""
        line = bytearray()
        while not line.endswith(b'\n'):
            byte = self._take(1)
            if not byte:
                break
            line += byte
        return bytes(line)


def decode(pieces: list[Piece]) -> object:
    """The value of which these are the bytes; `pieces` is empty afterwards.

    `NotDecoded` if that cannot be.
    """
    try:
        if len(pieces) == 1:
            return pickle.loads(pieces.pop())
        return pickle.Unpickler(_Reader(pieces)).load()
    except ModuleNotFoundError as error:
        raise NotDecoded(
            f'there is no module {error.name!r} where the value is decoded: '
            f'install it there, or send it with by_value=[...]') from error
    except Exception as error:
        raise NotDecoded(
            f'the value cannot be decoded: {type(error).__name__}: {error}'
        ) from error
    finally:
        pieces.clear()
