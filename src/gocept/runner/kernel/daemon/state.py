"""Everything small that the successor of a daemon needs.

The state is a log in a memfd: after its version, each entry has a length, a
checksum, and changes. One system call appends an entry, and the size of the
memfd, which the system keeps, grows with the bytes. So the entry that a killed
daemon was about to append is longer than what is there of it, and is ignored.
A log that has grown is written anew into another memfd.

A change is the name of a table with a key, and a value in JSON. A successor
decodes a value when somebody asks for it: many are not asked for, or stand in
the log several times, and the clients wait meanwhile.
"""

import contextlib
import os
import struct
from binascii import crc32
from collections import defaultdict
from collections.abc import (
    Callable,
    ItemsView,
    KeysView,
    Mapping,
    Sequence,
)
from types import TracebackType
from typing import TypeAlias

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon import memfd
from gocept.runner.kernel.wire import frames

JSON: TypeAlias = (  # tuples become lists
    'Mapping[str, JSON] | Sequence[JSON] | str | int | float | bool | None')

Kept: TypeAlias = 'JSON | bytes'
"""A value, or its JSON as long as nobody has asked for it."""

VERSION = 2
"""The version of the log; a daemon reads no other."""

START = struct.Struct('<8sQ')
MAGIC = b'grkstate'
ENTRY = struct.Struct('<QI')  # the length of the changes, their checksum
CHANGE = struct.Struct('<II')  # the lengths of the name and of the value

_pack = CHANGE.pack

_pack_entry = ENTRY.pack

RECENT = frozenset(['answer'])
"""Tables whose order is that of the last `put` of each key."""

_GONE = b''  # in place of the value that a change removes

SMALLEST = 512 * 1024
"""A log of fewer bytes is not written anew."""

SPREAD = 4
"""A log is written anew when it is that many times what is valid in it."""

SPARE = 16 * 1024 * 1024
"""A large log is written anew when that much more than half is not valid."""


class State(memfd.Owner):
    """Tables of JSON values by key, in the order of their first `put`, or of
    the last one where `RECENT` has the table.

    `fd` is a memfd of a state to go on with, which this object closes from now
    on, or -1 for a new one. To make the object only reads, so what a running
    daemon writes can be looked at with a duplicate of its descriptor.

    Raises KernelError where the memfd has another version, or no state.
    """

    VERSION = VERSION

    def __init__(self, fd: int = -1) -> None:
        self.on_replace: Callable[[int], object] = lambda fd: None
        """Called with a new memfd that takes the place of `fd`, before `fd` is
        closed. If this raises an exception, nothing is replaced."""
        self._tables: dict[str, dict[str, Kept]] = defaultdict(dict)
        self._viewed: set[str] = set()  # tables of which all is decoded
        self._sizes: dict[str, dict[str, int]] = defaultdict(dict)
        self._valid: dict[str, int] = defaultdict(int)  # sums of the sizes
        self._changes: list[bytes] | None = None  # those of `batch`
        self._owed = b''  # removals for which there was no memory
        self._limit = SMALLEST
        self._end = START.size
        self._is_clean = False  # nothing stands behind `_end`
        if fd < 0:
            fd = _new_log(b'')
        self.fd = fd
        self.closed = False
        try:
            self._replay()
        except BaseException:
            self.closed = True  # the descriptor is still the caller's
            raise

    def put(self, table: str, key: str, value: JSON) -> None:
        """Set a value.

        The value belongs to the state from now on: to change it, put another
        one. Raises KernelError, and changes nothing, where memory is full.
        """
        self.put_encoded((table, key, value, frames.encode(value)))

    def put_encoded(self, *values: tuple[str, str, JSON, bytes]) -> None:
        """Set values by table and key, all at once: like a `batch` block.

        The bytes are the JSON of a value.
        """
        changes = [_change(table, key, data) for table, key, _, data in values]
        if self._changes is None:
            self._make_room()
            self._append(b''.join(changes))
        else:
            self._changes += changes
        for table, key, value, _ in values:
            self._set(table, key, value, len(changes.pop(0)))

    def drop(self, table: str, key: str) -> None:
        """Remove a value, if it is there.

        Where memory is full, a successor learns of it with the next change
        that fits: whoever gives something back must not fail for that.
        """
        if key not in self._tables[table]:
            return
        self._unset(table, key)
        change = _change(table, key, _GONE)
        if self._changes is not None:
            self._changes.append(change)
            return
        self._owed += change
        for step in (self._make_room, self._append):
            with contextlib.suppress(KernelError):
                step()

    def get(self, table: str, key: str) -> JSON:
        """The value, or None."""
        values = self._tables[table]
        value = values.get(key)
        if type(value) is bytes:
            value = values[key] = frames.decode(value)
        return value  # type: ignore[return-value]

    def keys(self, table: str) -> KeysView[str]:
        """A live view of all keys."""
        return self._tables[table].keys()

    def items(self, table: str) -> ItemsView[str, JSON]:
        """A live view of all keys and values."""
        if table not in self._viewed:
            self._viewed.add(table)
            self._decode(table)
        return self._tables[table].items()  # type: ignore[return-value]

    def size(self, table: str) -> int:
        """How many bytes all keys and values take in the log."""
        return self._valid[table]

    def size_of(self, table: str, key: str) -> int:
        """How many of these are of one key; 0 if it is not there."""
        return self._sizes[table].get(key, 0)

    @property
    def changing(self) -> bool:
        """Whether a `batch` block is open."""
        return self._changes is not None

    def batch(self) -> contextlib.AbstractContextManager[None]:
        """Changes inside become valid at the end of the block, all at once.

        An exception, also that of a full memory, undoes them all. A block
        inside a block is a part of it.
        """
        return (contextlib.nullcontext() if self.changing
                else _Block(self._begin, self._commit, self._undo))

    def _begin(self) -> None:
        self._make_room()
        self._changes = []

    def _commit(self) -> None:
        if self._changes:
            self._append(b''.join(self._changes))
        self._changes = None

    def _undo(self) -> None:
        changes, self._changes = self._changes, None
        if changes:
            self._replay()

    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.fd}>'

    def _set(self, table: str, key: str, value: Kept, size: int) -> None:
        values, sizes = self._tables[table], self._sizes[table]
        if table in RECENT:
            values.pop(key, None)
        values[key] = value
        self._valid[table] += size - sizes.get(key, 0)
        sizes[key] = size

    def _unset(self, table: str, key: str) -> None:
        del self._tables[table][key]
        self._valid[table] -= self._sizes[table].pop(key)

    def _decode(self, table: str) -> None:
        """Decode all of a table, in one go, which takes half of the time."""
        values = self._tables[table]
        kept = {key: value for key, value in values.items()
                if type(value) is bytes}
        values.update(zip(kept, frames.decode(
            b'[' + b','.join(kept.values()) + b']'), strict=True))

    def _append(self, changes: bytes = b'') -> None:
        changes = self._owed + changes
        if not changes:  # they are in a new log
            return
        if not self._is_clean:
            os.ftruncate(self.fd, self._end)
        self._is_clean = False
        entry = _pack_entry(len(changes), crc32(changes)) + changes
        memfd.write(self.fd, entry, self._end)
        self._end += len(entry)
        self._is_clean = True
        self._owed = b''

    def _make_room(self) -> None:
        """Write the log anew, if most of it is not valid any more."""
        if self._end <= self._limit:
            return
        valid = sum(self._valid.values())
        if self._end <= min(SPREAD * valid, 2 * valid + SPARE):
            return
        changes = b''.join(
            _change(table, key, value if type(value) is bytes
                    else frames.encode(value))
            for table, values in self._tables.items()
            for key, value in values.items())
        log = (ENTRY.pack(len(changes), crc32(changes)) + changes if changes
               else b'')
        try:
            new = _new_log(log)
        except KernelError:
            # The old log is as good, and the next change says what is wrong
            # if it does not fit either.
            self._limit = 2 * self._end
            return
        try:
            self.on_replace(new)
        except BaseException:
            os.close(new)
            raise
        old, self.fd = self.fd, new
        self._end = START.size + len(log)
        self._is_clean = True
        self._owed = b''
        self._limit = SMALLEST
        os.close(old)

    def _replay(self) -> None:
        """Set the tables to what the log says."""
        for values in self._tables.values():
            values.clear()
        self._sizes.clear()
        self._valid.clear()
        log = _read(self.fd)
        _check_version(log)
        view = memoryview(log)
        end, self._is_clean = START.size, False
        while end + ENTRY.size <= len(log):
            size, checksum = ENTRY.unpack_from(log, end)
            start = end + ENTRY.size
            stop = start + size
            if stop > len(log):
                break  # its daemon was killed meanwhile
            if crc32(view[start:stop]) != checksum:
                raise KernelError(
                    f'The state is damaged at byte {end} of {len(log)}: '
                    'something else has written into its memory')
            self._apply(log, start, stop)
            end = stop
        self._end = end
        self._apply(self._owed, 0, len(self._owed))
        for table in self._viewed:
            self._decode(table)

    def _apply(self, log: bytes, start: int, stop: int) -> None:
        while start < stop:
            length, size = CHANGE.unpack_from(log, start)
            begin = start + CHANGE.size
            middle = begin + length
            end = middle + size
            table, _, key = log[begin:middle].decode(
                'utf-8', 'surrogatepass').partition('\0')
            if size:
                self._set(table, key, log[middle:end], end - start)
            else:
                self._unset(table, key)
            start = end


class _Block:
    """What `batch` gives; a generator would take twice the time."""

    def __init__(self, begin: Callable[[], None], commit: Callable[[], None],
                 undo: Callable[[], None]) -> None:
        self._begin = begin
        self._commit = commit
        self._undo = undo

    def __enter__(self) -> None:
        self._begin()

    def __exit__(self, exc_type: type[BaseException] | None,
                 exc: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if exc_type is not None:
            self._undo()
            return
        try:
            self._commit()
        except BaseException:
            self._undo()
            raise


def _change(table: str, key: str, value: bytes) -> bytes:
    """A change of a value as it stands in the log."""
    name = f'{table}\0{key}'.encode('utf-8', 'surrogatepass')
    return _pack(len(name), len(value)) + name + value


def _new_log(log: bytes) -> int:
    fd = memfd.create('state')
    try:
        memfd.write(fd, START.pack(MAGIC, VERSION) + log, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _read(fd: int) -> bytes:
    pieces = []
    offset = 0
    # A piece needs as much memory as is asked for, even if there is less.
    while piece := os.pread(fd, os.fstat(fd).st_size - offset, offset):
        pieces.append(piece)
        offset += len(piece)
    return b''.join(pieces)


def _check_version(log: bytes) -> None:
    magic, version = (START.unpack_from(log) if len(log) >= START.size
                      else (b'', 0))
    if magic != MAGIC:
        raise KernelError('The descriptor that should have the state of a '
                          'kernel has something else')
    if version != VERSION:
        raise KernelError(
            f'The state of the kernel has version {version}, this code needs '
            f'version {VERSION}: run the kernel with the release that it was '
            'started with, or end it and start it anew')
