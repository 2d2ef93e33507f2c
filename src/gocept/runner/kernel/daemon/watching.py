"""Who receives the output of processes, and how far.

The first watcher of a process owns its output: what it acknowledges is freed.
Others follow, and one of them takes over when the first one ends, from the
first byte on that neither of them has acknowledged. Those who asked to follow
only look.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gocept.runner.errors import KernelError
from gocept.runner.kernel.wire.frames import Json, OutRecord
from gocept.runner.logs import Log
from gocept.runner.waits.source import Item, Source
from gocept.runner.waits.threads import survived

if TYPE_CHECKING:
    from gocept.runner.kernel.daemon.process import KernelProcess
    from gocept.runner.kernel.wire.connection import Connection

log = Log('gocept.runner.kernel')

_BATCH = 2 ** 20  # bytes of output in one message

_KINDS = {1: 'out', 2: 'err'}

Positions = Mapping[str, Sequence[Json]]
"""For each name the life, the offset, and whether the end was seen."""

Position = tuple[str, int, bool]

NOWHERE: Position = ('', 0, False)
"""In no life of any process."""


def position_of(position: Json) -> Position:
    """A position that came from a client; KernelError if it is none."""
    match position:
        case [str(life), int(offset), *rest] if offset >= 0:
            return life, offset, bool(rest and rest[0])
    raise KernelError(f'a position is [life, offset, ended], not {position!r}')


class Cursor:
    """How far one watcher is with one process."""

    __slots__ = ('acknowledged', 'first', 'missing', 'process', 'sent',
                 'told_end', 'watch')

    def __init__(self, process: 'KernelProcess', watch: 'Watch') -> None:
        self.process = process
        self.watch = watch
        self.first = self.sent = self.acknowledged = process.begin
        """Offsets in what the process has written in all."""
        self.missing = 0
        """Bytes that were lost to this watcher, who was not told yet."""
        self.told_end = False

    @property
    def has_more(self) -> bool:
        """Whether there is something to send."""
        return not self.told_end and (
            self.sent < self.process.end or self.process.closed)

    def fetch(self, limit: int, records: list[OutRecord]) -> int:
        """Add what comes next, `limit` bytes or one piece more.

        Returns the number of bytes.
        """
        process, size = self.process, 0
        if self.sent < process.end:
            for piece in process.records(self.sent, limit):
                self.missing += max(0, piece.offset - self.sent)
                self.sent = piece.offset + len(piece.data)
                size += len(piece.data)
                records.append(OutRecord(
                    process.name, process.life, _KINDS[piece.stream],
                    piece.timestamp, piece.data, None, self.sent))
            if not size:  # it was freed before this watcher could see it
                self.missing += process.end - self.sent
                self.sent = process.end
        if self.sent >= process.end and process.closed and not self.told_end:
            self.told_end = True
            records.append(OutRecord(
                process.name, process.life, 'closed', process.ended or 0.0,
                b'', process.status, self.sent))
        return size


class Watches(Source):
    """The watches that have something to send, once all else is done.

    So what several children write at the same time goes in one message.
    """

    def __init__(self) -> None:
        self._ready: dict[Watch, None] = {}

    def fileno(self) -> int:
        return -1

    @property
    def buffered(self) -> bool:
        return bool(self._ready)

    def add(self, watch: 'Watch') -> None:
        """Have `watch` send at the end of this round."""
        if not self._ready:
            self._ready[watch] = None
            self._tell_ready()
        else:
            self._ready[watch] = None

    def discard(self, watch: 'Watch') -> None:
        """Forget a watch that is over."""
        self._ready.pop(watch, None)

    def collect(self) -> tuple[Sequence[Item], bool]:
        ready, self._ready = self._ready, {}
        for watch in ready:
            try:
                watch.send()
            except survived():  # the others go on
                log.exception('%r failed, so its client is closed', watch)
                watch.give_up()
        return (), False


class Watch:
    """What one client watches; see `Connection` for who calls what."""

    def __init__(self, watches: Watches, connection: 'Connection',
                 follows: bool) -> None:
        self._watches = watches
        self._connection = connection
        self.follows = follows
        """Whether it never owns anything."""
        self._cursors: dict[str, Cursor] = {}
        self._pending: dict[Cursor, None] = {}

    def add(self, process: 'KernelProcess', after: Position,
            acknowledges: bool) -> None:
        """Watch a process as well; `after` is a position to resume from.

        What lies before it is acknowledged, or else was received only.
        """
        cursor = Cursor(process, self)
        owns = process.owner is None and not self.follows
        life, offset, ended = after
        if life == process.life:
            offset = min(offset, process.end)
            if acknowledges:
                cursor.acknowledged = max(offset, process.begin)
                if owns:
                    process.acknowledge(offset)
            else:
                cursor.told_end = ended and process.closed
            cursor.first = cursor.sent = max(offset, process.begin)
            cursor.missing = max(0, process.begin - offset)
        elif owns:
            cursor.first = cursor.sent = cursor.acknowledged = process.begin
            cursor.missing = process.unreported
        self._cursors[process.name] = cursor
        process.cursors.append(cursor)
        if (acknowledges and life == process.life and ended
                and process.closed):
            self._acknowledge(cursor, process.end, True)
        else:
            self.wake(cursor)

    @property
    def is_over(self) -> bool:
        """Whether the end of all that is watched was acknowledged."""
        return not self._cursors

    def begin(self) -> None:
        """The client was told that the watch begins."""
        if self.is_over:
            self._finish()

    def wake(self, cursor: Cursor) -> None:
        """There may be something to send."""
        if cursor.has_more:
            self._pending[cursor] = None
            self._watches.add(self)

    def send(self) -> None:
        """Send a batch, if the client takes one."""
        connection = self._connection
        if not connection.takes_output:
            return
        records: list[OutRecord] = []
        missing: dict[str, int] = {}
        left = _BATCH
        while self._pending and left > 0:
            cursor = next(iter(self._pending))
            del self._pending[cursor]
            left -= cursor.fetch(left, records)
            if cursor.missing:
                name = cursor.process.name
                missing[name] = missing.get(name, 0) + cursor.missing
                cursor.missing = 0
            if cursor.has_more:  # behind the others
                self._pending[cursor] = None
        if records or missing:
            connection.send_output(self, records, missing)
        if self._pending and connection.takes_output:
            self._watches.add(self)

    def give_up(self) -> None:
        """Close the client, which can come again."""
        self._connection.close()

    def drained(self) -> None:
        """The client takes more."""
        if self._pending:
            self._watches.add(self)

    def acknowledge(self, positions: Positions | None) -> None:
        """The client has seen this; None for all that was sent to it.

        KernelError for what is no position.
        """
        self._take(positions)
        if self.is_over:
            self._finish()
        elif self._pending:
            self._watches.add(self)

    def _take(self, positions: Positions | None) -> None:
        if positions is None:
            for cursor in [*self._cursors.values()]:
                self._acknowledge(cursor, cursor.sent, cursor.told_end)
            return
        for name, position in positions.items():
            life, offset, ended = position_of(position)
            found = self._cursors.get(name)
            if found is not None and found.process.life == life:
                self._acknowledge(
                    found, min(offset, found.process.end),
                    ended and found.process.closed)

    def _acknowledge(self, cursor: Cursor, offset: int, ended: bool) -> None:
        process = cursor.process
        cursor.acknowledged = max(cursor.acknowledged, offset)
        if process.owner is cursor:
            process.acknowledge(offset)
            if ended:
                process.forget()
        if ended:
            self._drop(cursor)

    def _drop(self, cursor: Cursor) -> None:
        self._cursors.pop(cursor.process.name, None)
        self._pending.pop(cursor, None)
        cursor.process.leave(cursor)

    def stop(self, positions: Positions | None) -> None:
        """The client has seen this, and wants no more."""
        self._take(positions)
        if self.is_over:
            self._finish()
        else:
            self.disconnected()
            self._connection.finish_watch('Stopped watching')

    def disconnected(self) -> None:
        """The client is gone, and others may go on."""
        self._watches.discard(self)
        for cursor in [*self._cursors.values()]:
            self._drop(cursor)

    def _finish(self) -> None:
        self._watches.discard(self)
        self._connection.finish_watch('Nothing left to watch')
