"""What a child has written and nobody has acknowledged yet.

The bytes go from the child's pipe into a memfd by one splice(): the system
moves them, and advances the position of the memfd. All who hold the memfd
share this position, so it says how many bytes were moved, whenever the daemon
is killed. Nothing can be lost or taken twice, and where memory is full the
bytes stay in the pipe.

The memfd has a page with two copies of the header, of which the newer one
counts, and the first slots; more slots; and then the data. A slot says of one
record where it begins, in which stream, and when it was read; it is written
before its bytes are moved. The data never wrap: they are appended, pages that
were acknowledged are given back to the system, and when all is acknowledged
the data begin anew at the same place. Offsets count the bytes of both streams
since the start of the child.
"""

import errno
import os
import struct
import time
from array import array
from binascii import crc32
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon import memfd

VERSION = 1

PIECE = 256 * 1024
"""The most bytes of one record, and of one call."""

SMALL_PIECE = 64 * 1024
"""Likewise where the capacity is smaller: a pipe holds as much."""

START = struct.Struct('<8sII')  # magic, version, slots
MAGIC = b'grkoutpt'
HEADER = struct.Struct('<QQQQQQ')
CHECKSUM = struct.Struct('<I')
HEADERS = (64, 128)  # where the two copies are
SLOT = struct.Struct('<QQdQ')  # number, first byte, time, number and stream
SLOTS = 256  # where the first slot is
FIRST_PAGE = 4096
IN_FIRST_PAGE = (FIRST_PAGE - SLOTS) // SLOT.size
MOST_SLOTS = 65536

BURST = 0.1
"""A pause of so many seconds ends a flood; during one, memory is kept."""

KEPT = 256 * 1024
"""How many bytes of it."""

OVERFLOW = ('drop', 'block')


class Record(NamedTuple):
    """Bytes of one stream that were read at once, or a part of these."""

    stream: int
    """1 for standard output, 2 for standard error."""
    offset: int
    """That of the first byte."""
    timestamp: float
    """When they were read, in seconds since the epoch."""
    data: memoryview

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.offset + len(self.data)


class Output(memfd.Owner):
    """Keeps up to `capacity` bytes of one child's output.

    Where more arrives, `overflow` says what happens: 'drop' drops the oldest
    records and counts their bytes, but keeps the newest one; 'block' takes no
    more, so the child waits.

    The memfd is made before the first byte is taken, and given to `on_create`,
    so that the keeper holds it. `fd` is a memfd to go on with, which this
    object closes from now on. To make the object only reads it.
    """

    def __init__(self, capacity: int, overflow: Literal['drop', 'block'],
                 fd: int = -1, *,
                 on_create: Callable[[int], object] | None = None) -> None:
        if overflow not in OVERFLOW:
            raise ValueError(f'overflow must be drop or block, not {overflow}')
        self.capacity = capacity
        self.overflow = overflow
        self.fd = fd
        self.begin = 0
        """The offset of the oldest byte that is kept."""
        self.end = 0
        """The offset after the newest byte."""
        self.dropped = 0
        """How many bytes were dropped in all."""
        self._on_create = on_create
        self._drops = overflow == 'drop'
        self._most = min(PIECE, max(capacity, SMALL_PIECE))
        self._joined = min(SMALL_PIECE, capacity // 16)
        self._step = max(SMALL_PIECE, min(1024 * 1024, capacity // 4))
        # 32 bytes a slot; as many bytes of slots as of data, within limits.
        pages = max(1, min(capacity // FIRST_PAGE,
                           MOST_SLOTS * SLOT.size // FIRST_PAGE))
        self._layout((pages * FIRST_PAGE - SLOTS) // SLOT.size)
        self._origin = 0  # the offset of the first byte of the data
        self._first = 1  # the number of the oldest record
        self._slot_origin = 1  # the number of the record in the first slot
        self._count = 0  # of the headers that were written
        self._freed = 0  # the bytes of the data whose pages were given back
        self._used = 0  # the most bytes that had pages since these were freed
        self._restart = 0.0  # when the data were last begun anew
        self._is_clean = True  # no slot is written that has no bytes
        self._rest: dict[int, bytes] = {}
        # What is known of the records, from `_head` on.
        self._starts = array('Q')
        self._times = array('d')
        self._streams = array('B')
        self._head = 0
        if fd >= 0:
            self._recover()
        self.closed = fd < 0

    @property
    def room(self) -> int:
        """How many bytes fit; 'block' takes in no more."""
        if len(self._starts) - self._head >= self._slots - 1:
            return 0
        return max(0, self.capacity - (self.end - self.begin))

    def take_in(self, stream: int, fd: int) -> int:
        """Move what a pipe has, up to 256 KiB.

        Returns how many bytes were moved; 0 when all writers have closed it,
        and -1 when nothing fits and `overflow` is 'block'.

        Raises BlockingIOError when the pipe is empty, and KernelError when
        memory is full: then the bytes are still in the pipe.

        What is no pipe is read, and a daemon that is killed just then loses
        what it has read.
        """
        if self.fd < 0:
            self._create()
        most = self._most
        starts = self._starts
        end = self.end
        if self._drops:
            self._drop_what_has_no_slot()  # if a daemon was killed before
        else:
            most = min(most, self.room)
            if not most:
                return -1
        joins = self._joins(stream)
        if not joins:
            now = time.time()
            number = self._first + len(starts) - self._head
            self._is_clean = False
            memfd.write(
                self.fd, SLOT.pack(number, end, now, number << 2 | stream),
                self._slot(number))
        size = self._move(stream, fd, most)
        if not size:
            return 0
        if not joins:
            self._is_clean = True
            starts.append(end)
            self._times.append(now)
            self._streams.append(stream)
        self.end = end = end + size
        if self._drops:
            self._drop_what_has_no_slot()
            if end - self.begin > self.capacity:
                self._drop(min(
                    bisect_left(starts, max(0, end - self.capacity),
                                self._head),
                    len(starts) - 1))
        return size

    def records(self, start: int, limit: int) -> list[Record]:
        """What is kept from the offset `start` on, up to `limit` bytes.

        The data are a copy. Where they are cut, the rest of a record is one
        with the same timestamp.
        """
        start = max(start, self.begin)
        stop = min(self.end, start + limit)
        records: list[Record] = []
        if stop <= start:
            return records
        data = memoryview(os.pread(
            self.fd, stop - start, self._data + start - self._origin))
        stop = start + len(data)
        index = bisect_right(self._starts, start, self._head) - 1
        position = start
        while position < stop:
            end = (self._starts[index + 1] if index + 1 < len(self._starts)
                   else stop)
            end = min(end, stop)
            records.append(Record(
                self._streams[index], position, self._times[index],
                data[position - start:end - start]))
            position = end
            index += 1
        return records

    def acknowledge(self, offset: int) -> None:
        """Forget what is before the offset."""
        offset = min(offset, self.end)
        if offset <= self.begin:
            return
        if offset == self.end:
            index = len(self._starts)
        else:
            index = bisect_right(self._starts, offset, self._head) - 1
        self._forget(index, offset, self.dropped)

    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.begin}..{self.end}>'

    def _layout(self, slots: int) -> None:
        self._slots = slots
        self._data = SLOTS + slots * SLOT.size

    def _slot(self, number: int) -> int:
        return (SLOTS + (number - self._slot_origin) % self._slots
                * SLOT.size)

    def _create(self) -> None:
        fd = memfd.create('output')
        try:
            memfd.write(fd, START.pack(MAGIC, VERSION, self._slots), 0)
            self._write_header(fd, self.begin, self.dropped, self._first)
            os.lseek(fd, self._data, os.SEEK_SET)
            if self._on_create is not None:
                self._on_create(fd)
        except BaseException:
            os.close(fd)
            raise
        self.fd = fd
        self.closed = False

    def _joins(self, stream: int) -> bool:
        """Whether bytes become a part of the newest record.

        So thousands of small writes do not need a slot each.
        """
        last = len(self._starts) - 1
        return (self._is_clean
                and last - self._head >= self._slots // 2
                and self._streams[last] == stream
                and self.end - self._starts[last] < self._joined)

    def _move(self, stream: int, source: int, most: int) -> int:
        try:
            if stream not in self._rest:
                return os.splice(source, self.fd, most,
                                 flags=os.SPLICE_F_NONBLOCK)
        except OSError as error:
            if error.errno in memfd.FULL:
                raise memfd.full(error) from error
            if error.errno != errno.EINVAL:
                raise
        return self._read(stream, source, most)

    def _read(self, stream: int, source: int, most: int) -> int:
        """Like `_move`, for what cannot be spliced."""
        data = self._rest.get(stream) or os.read(source, most)
        self._rest[stream] = data  # until there is memory for it
        memfd.write(self.fd, data[:most],
                    self._data + self.end - self._origin)
        self._rest[stream] = data[most:]
        size = min(len(data), most)
        os.lseek(self.fd, size, os.SEEK_CUR)
        return size

    def _drop_what_has_no_slot(self) -> None:
        """Have a slot for the next record."""
        index = len(self._starts) - self._slots + 1
        if index > self._head:
            self._drop(index)

    def _drop(self, index: int) -> None:
        """Drop the records before that index."""
        begin = (self._starts[index] if index < len(self._starts)
                 else self.end)
        if begin > self.begin:
            self._forget(index, begin, self.dropped + begin - self.begin)

    def _forget(self, index: int, begin: int, dropped: int) -> None:
        first = self._first + index - self._head
        self._write_header(self.fd, begin, dropped, first)
        self.begin, self.dropped = begin, dropped
        self._first, self._head = first, index
        if begin == self.end:
            self._start_anew()
        else:
            self._give_back()
        if index > 1024 and index * 2 > len(self._starts):
            self._trim()

    def _trim(self) -> None:
        for known in (self._starts, self._times, self._streams):
            del known[:self._head]
        self._head = 0

    def _write_header(self, fd: int, begin: int, dropped: int,
                      first: int) -> None:
        self._count += 1
        header = HEADER.pack(self._count, begin, dropped, first,
                             self._origin, self._slot_origin)
        memfd.write(fd, header + CHECKSUM.pack(crc32(header)),
                    HEADERS[self._count % 2])

    def _start_anew(self) -> None:
        """All is acknowledged: the next data take the place of these.

        The memory is freed, but for a page, or where it is soon used again:
        fresh pages cost as much time as all the rest.
        """
        size = self.end - self._origin
        self._used = max(self._used, size)
        is_flood = self._times[-1] - self._restart < BURST
        self._restart = self._times[-1]
        self._trim()
        if self._first - self._slot_origin > IN_FIRST_PAGE:
            os.ftruncate(self.fd, FIRST_PAGE)
            self._used = 0
        elif self._used > (KEPT if is_flood else 0):
            os.ftruncate(self.fd, self._data)
            self._used = 0
        elif size <= FIRST_PAGE:
            return
        os.lseek(self.fd, self._data, os.SEEK_SET)
        # A successor that finds fewer data than were acknowledged knows that
        # this was to come.
        self._origin, self._slot_origin = self.end, self._first
        self._freed = 0
        self._write_header(self.fd, self.begin, self.dropped, self._first)

    def _give_back(self) -> None:
        """Free the pages of what was acknowledged."""
        offset = self._data + self.begin - self._origin
        start = self._data + self._freed
        if offset - start >= self._step:
            stop = offset - offset % memfd.PAGE
            start += -start % memfd.PAGE
            if start < stop and memfd.give_back(self.fd, start, stop):
                self._freed = stop - self._data

    def _recover(self) -> None:
        """Read what a daemon has left, whenever it was killed."""
        page = os.pread(self.fd, FIRST_PAGE, 0)
        self._layout(_slots_of(page))
        (self._count, self.begin, self.dropped, self._first, self._origin,
         self._slot_origin) = _newest_header(page)
        size = os.lseek(self.fd, 0, os.SEEK_CUR) - self._data
        self._used = max(0, os.fstat(self.fd).st_size - self._data)
        if size < self.begin - self._origin:  # see _start_anew
            size = 0
            self._origin, self._slot_origin = self.begin, self._first
        self.end = self._origin + size
        self._is_clean = False
        for number, start, read, check in self._written_slots():
            if (number != self._first + len(self._starts)
                    or check >> 2 != number or start >= self.end):
                break
            self._starts.append(start)
            self._times.append(read)
            self._streams.append(check & 3)
        if self.begin < self.end and not self._starts:
            raise KernelError('The output of a child is damaged: something '
                              'else has written into its memory')

    def _written_slots(self) -> Iterator[tuple[int, int, float, int]]:
        """The slots from that of the oldest record on, without an end."""
        number = self._first
        while True:
            offset = self._slot(number)
            page = os.pread(self.fd, min(FIRST_PAGE, self._data - offset),
                            offset)
            count = len(page) // SLOT.size
            if not count:
                return
            yield from SLOT.iter_unpack(page[:count * SLOT.size])
            number += count


def check_output(fd: int) -> None:
    """KernelError if a memfd is not of the version of this code."""
    _slots_of(os.pread(fd, START.size, 0))


def _slots_of(page: bytes) -> int:
    """The number of slots, if the version is that of this code."""
    magic, version, slots = (
        START.unpack_from(page) if len(page) >= START.size else (b'', 0, 0))
    if magic != MAGIC:
        raise KernelError('The descriptor that should have the output of '
                          'a child has something else')
    if version != VERSION:
        raise KernelError(
            f'The output of a child has version {version}, this code '
            f'needs version {VERSION}: run the kernel with the release '
            'that it was started with, or end it and start it anew')
    return int(slots)


def _newest_header(page: bytes) -> tuple[int, ...]:
    newest: tuple[int, ...] = ()
    for offset in HEADERS:
        header = page[offset:offset + HEADER.size]
        checksum = page[offset + HEADER.size:][:CHECKSUM.size]
        if checksum == CHECKSUM.pack(crc32(header)):
            newest = max(newest, HEADER.unpack(header))
    if not newest:
        raise KernelError('The output of a child is damaged: something else '
                          'has written into its memory')
    return newest
