"""What processes of a kernel write; see `IWatcher`."""

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Concatenate,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
)

import zope.interface

from gocept.runner.errors import KernelError, WatcherInUse
from gocept.runner.interfaces import IWatcher
from gocept.runner.kernel.client.reading import (
    Begun,
    Output,
    Place,
    Places,
    Position,
    ProcessOutput,
    Reading,
    records_of,
)
from gocept.runner.kernel.client.transport import Lost, Transport
from gocept.runner.kernel.wire.frames import Json, OutRecord
from gocept.runner.logs import Log
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.forks import tell_forks
from gocept.runner.waits.source import Source

if TYPE_CHECKING:
    from gocept.runner.channel.base import Chunk
    from gocept.runner.channel.journal import Delivery, Journal
    from gocept.runner.kernel.client.delivery import ReadDelivery

log = Log('gocept.runner.kernel')

P = ParamSpec('P')
T = TypeVar('T')

_MOST = 4 << 20
"""Bytes after which a read takes no further batch."""

class _Start(NamedTuple):
    """What a call goes back to if an exception interrupts it."""

    received: Places
    read: Places
    noted: int
    """How many reads a transaction has to decide upon."""
    returned: 'ReadDelivery | None'
    """What is read next, as a transaction has given it back."""


def _alone(method: Callable[Concatenate['Watcher', P], T],
           ) -> Callable[Concatenate['Watcher', P], T]:
    """Let one call at a time take output, and take none if it fails.

    The exception may be one of a signal handler, such as Ctrl-C.
    """
    @functools.wraps(method)
    def call(watcher: 'Watcher', /, *args: P.args, **keywords: P.kwargs) -> T:
        token = object()
        turn = watcher._turn
        try:
            if turn.setdefault('call', token) is not token:
                raise WatcherInUse(
                    f'{watcher!r} is in use, by another thread or by a call '
                    'that a signal handler has interrupted: give each thread '
                    'a watcher of its own')
            watcher._begin()
            result = method(watcher, *args, **keywords)
        except BaseException:
            if turn.get('call') is token:
                try:
                    watcher._undo()
                finally:
                    del turn['call']
            raise
        # Python runs a signal handler after a call only, and none is left: the
        # user gets the result, or what it has is undone.
        watcher._start = None
        del turn['call']
        return result
    return call


class Client(Protocol):
    """What a watcher needs of its `Kernel`."""

    connection_timeout: float

    def connect(self, deadline: Deadline, *, autostart: bool | None = None,
                ) -> Transport:
        """Return a new connection; KernelError."""

    def give_back(self, transport: Transport) -> None:
        """Use a connection for requests."""

    def next_number(self) -> int:
        """The number of the next request."""


@zope.interface.implementer(IWatcher)
class Watcher(Source, Closing):
    """See `IWatcher`.

    The kernel has sent what lies before `_received`, the user has read what
    lies before `_read`, and what lies before `_done` was acknowledged. These
    differ while a transaction is to decide.
    """

    _nothing: Output = ([], [], [])

    def __init__(self, kernel: Client, transport: Transport, begun: Begun, *,
                 after: Mapping[str, Position] | None = None,
                 follow: bool = False, transactional: bool = False) -> None:
        self.exit_code: dict[str, int | None] = {}
        self.missing: dict[str, int] = {}
        self.transactional = transactional
        self.closed = self.suspended = False
        self._kernel = kernel
        self._transport = transport
        lives = begun['processes']
        self._count = begun.get('count', len(lives))
        """How many processes were watched at the start."""
        self._gone: set[str] = set()
        """The names of those whose end the kernel does not know any more."""
        self._follows = follow
        self._is_accepted = False  # the last end, by a transaction
        self._is_closing = False  # when the transaction ends
        self._committed: Places | None = None
        """What is to be acknowledged now, as a transaction is committed."""
        self._noted: deque[ReadDelivery] = deque()
        self._returned: deque[ReadDelivery] = deque()
        self._turn: dict[str, object] = {}
        """Has an item while a call takes output."""
        self._start: _Start | None = None
        """Of the call that has not returned, or that was interrupted."""
        self._is_receiving = False
        """Whether that call has begun to receive."""
        tell_forks(self)
        self._done: Places = {
            name: Place(life) for name, life in lives.items()}
        self._read = self._done
        for name, position in (after or {}).items():
            place = Place(*position)  # type: ignore[arg-type]
            if self._done.get(name, Place('')).life == place.life:
                self._read = {**self._read, name: place}
        self._received = self._read
        if transactional and not transport.exact:
            self.close()
            raise KernelError(
                'an old kernel sends nothing more before the rest was '
                'acknowledged, so a watcher of it cannot be transactional')
        self._acknowledge(self._read)

    def __repr__(self) -> str:
        return f'<Watcher of {", ".join(self._received) or self._transport}>'

    def __bool__(self) -> bool:
        return not (self.closed or self._is_closing or self._is_accepted)

    def fileno(self) -> int:
        """See `IWatcher`."""
        return -1 if self.closed else self._transport.fileno()

    @property
    def position(self) -> dict[str, tuple[str, int, bool]]:
        """See `IWatcher`."""
        return {name: (life, offset, ended)
                for name, (life, offset, ended) in self._read.items()}

    def _begin(self) -> None:
        if self._start is not None:  # the call before was not undone
            self._undo()
        self._is_receiving = False
        self._start = _Start(
            self._received, self._read, len(self._noted),
            self._returned[0] if self._returned else None)

    def _undo(self) -> None:
        """Let what an interrupted call has taken come again.

        Nobody has got it, so it must not count as read.
        """
        start = self._start
        if start is None:
            return
        if not self.closed:
            self._take_back(start)
            self._received, self._read = start.received, start.read
            for name in [*self.exit_code]:
                place = start.read.get(name)
                if place is None or not place.ended:
                    del self.exit_code[name]
            if self._is_receiving:
                self._transport.spoil()
        self._start = None

    def _take_back(self, start: _Start) -> None:
        """Have no transaction decide upon it."""
        if len(self._noted) > start.noted:
            from gocept.runner.channel.journal import known_journal
            journal = known_journal()
            if journal is not None:
                journal.keep(self, start.noted)
            while len(self._noted) > start.noted:
                self._noted.pop()
        if start.returned is not None and (
                not self._returned or self._returned[0] is not start.returned):
            self._returned.appendleft(start.returned)

    # Reading

    @property
    def ready(self) -> bool:
        """See `IWatcher`."""
        return self._look()

    @_alone
    def _look(self) -> bool:
        return self._is_ready()

    def _is_ready(self) -> bool:
        if not self or self.suspended:
            return False
        if self._returned or self._is_over(self._read):
            return True
        try:
            return self._transport.has_batch
        except Lost as lost:
            self._resume(lost)
            return bool(self) and self._transport.has_batch

    @property
    def buffered(self) -> bool:
        return bool(self and not self.suspended and (
            self._returned or self._transport.owes_answer))

    @_alone
    def read(self) -> Output | None:
        """See `IWatcher`."""
        self.missing = {}
        if not self:
            return None
        journal = self._journal()
        if journal is None:
            self._acknowledge(self._read)
            output = (self._next().output if self else ([], [], []))
        else:
            output = self._read_within(journal)
        if self.told:
            self.tell_fetched()
        return output

    @_alone
    def collect(self) -> tuple[Sequence[Output], bool]:
        if self.suspended:  # the transaction has read the last end
            return (), False
        self.missing = {}
        if not self:
            return (), True
        journal = self._journal()
        if journal is None:
            self._acknowledge(self._read)
            if not self._is_ready():
                return (), not self
            return [self._next().output], (
                self.closed or self._is_over(self._read))
        if not self._is_ready():
            return (), self.closed
        output = self._read_within(journal)
        if self.suspended:
            return (), False
        if self._is_over(self._read):
            self._suspend(journal)
        return [output], False

    def _next(self) -> Reading:
        """What was given back, or what comes in; waits for it."""
        if not self._returned:
            return self._fetch()
        reading = self._returned.popleft().reading
        self._read, self.missing = reading.after, reading.missing
        self._note_ends(reading.output)
        return reading

    def _fetch(self) -> Reading:
        before = self._read
        records, missing, received = self._receive(True)
        output: Output = ([], [], [])
        for name, _, kind, when, data, status, _ in records:
            if kind == 'closed':
                output[2].append(ProcessOutput(name, when, status))
            else:
                assert isinstance(data, bytes)
                output[kind == 'err'].append(ProcessOutput(name, when, data))
        reading = Reading(output, missing, before, received)
        self._received = self._read = received
        self.missing = missing
        self._note_ends(output)
        if self.buffered:
            # No descriptor says so: the next `collect` has to acknowledge.
            self._tell_ready()
        return reading

    @_alone
    def receive(self) -> list[OutRecord]:
        """Return what there is, as records, and acknowledge nothing.

        It does not wait. For callers that acknowledge by themselves.
        """
        records, missing, received = self._receive(False)
        self._received = self._read = received
        self.missing = missing
        return records

    def _receive(self, waits: bool,
                 ) -> tuple[list[OutRecord], dict[str, int], Places]:
        """Records, what was dropped, and the places behind the records.

        With `waits`, wait until there is something.
        """
        records: list[OutRecord] = []
        missing: dict[str, int] = {}
        received = self._received.copy()
        size = 0
        self._is_receiving = True
        while not self.closed and size < _MOST:
            is_empty = not records and not missing
            try:
                if not (waits and is_empty) and not self._transport.has_batch:
                    break
                batch = self._transport.batch()
            except Lost as lost:
                if not is_empty:
                    break  # the next read meets it again
                self._resume(lost)
                received = self._received.copy()
                continue
            for record in records_of(
                    batch, received, missing, self._transport.exact):
                records.append(record)
                size += len(record.data)
            if batch.over:
                self._leave(True)
        return records, missing, received

    def _note_ends(self, output: Output) -> None:
        for name, _, status in output[2]:
            assert not isinstance(status, bytes)
            self.exit_code[name] = status

    def _is_over(self, places: Places) -> bool:
        """Whether these have the end of each process."""
        return self._count <= sum(
            place.ended or name in self._gone
            for name, place in places.items())

    # Acknowledgements

    @_alone
    def acknowledge(self) -> None:
        """See `IWatcher`."""
        if self:
            journal = self._journal()
            if journal is None:
                self._acknowledge(self._read)
            elif self._is_over(self._read):
                self._accept(journal)

    def _acknowledge(self, places: Places) -> None:
        """What lies before these need not be sent again."""
        changed = {name: place for name, place in places.items()
                   if self._done.get(name) != place}
        self._done = places
        if self._is_over(places):
            self._finish()
        elif (changed or self._transport.owes_answer) and not self._follows:
            # Where the kernel is lost, the next read tells its successor.
            with contextlib.suppress(Lost):
                self._transport.acknowledge(changed)

    @_alone
    def acknowledge_to(self, positions: Mapping[str, Position]) -> None:
        """Acknowledge what lies before these, and wait for nothing.

        For callers that `receive`. If the kernel has died, this waits for its
        successor: what has come from the dead one may go on coming for a
        while, and must not be sent to another watcher again. KernelError if
        there is none.
        """
        changed = {name: Place(*position)  # type: ignore[arg-type]
                   for name, position in positions.items()}
        self._done = {**self._done, **changed}
        try:
            self._transport.acknowledge(changed)
        except Lost as lost:
            self._resume(lost)

    @_alone
    def close(self, acknowledge: bool = True) -> None:
        """See `IWatcher`."""
        if self.closed or self._is_closing:
            return
        if self._noted:
            self._is_closing = True
        elif not acknowledge:
            self._leave(False)
        else:
            if not self.transactional:
                self._done = self._read
            self._finish()

    def __exit__(self, exc_type: type[BaseException] | None,
                 exc: BaseException | None,
                 traceback: TracebackType | None) -> None:
        # What an exception has interrupted comes again.
        self.close(acknowledge=exc_type is None)

    def _finish(self) -> None:
        """Tell the kernel what is done, and end the watch."""
        try:
            while not self.closed:
                try:
                    is_usable = self._transport.unwatch(
                        self._kernel.next_number(),
                        {} if self._follows else self._done)
                except Lost as lost:
                    self._resume(lost)
                else:
                    self._leave(is_usable)
        except KernelError as error:
            log.warning('%r: what was read last may come again, as the kernel '
                        'has not taken the acknowledgement: %s', self, error)
        finally:
            if not self.closed:
                self._leave(False)

    def _leave(self, is_usable: bool) -> None:
        """Be over; requests can use the connection, or it is closed."""
        self._tell_closing(self._transport.fileno())
        self.closed = True
        if is_usable:
            self._kernel.give_back(self._transport)
        else:
            self._transport.close()
        self._tell_ready()

    def _resume(self, lost: Lost) -> None:
        """Have the successor of a kernel that has died send what is left."""
        if not self._transport.exact:
            self._leave(False)
            raise lost
        deadline = Deadline(self._kernel.connection_timeout)
        try:
            while not self._resume_with(self._kernel.connect(
                    deadline, autostart=False)):
                if deadline.passed:
                    raise lost
        except KernelError:
            self._leave(False)
            raise

    def _resume_with(self, transport: Transport) -> bool:
        """False if this kernel has died, too."""
        left = [name for name in self._done if name not in self._gone]
        try:
            listed = transport.ask(
                self._kernel.next_number(), 'list-processes',
                {'names': left}) if left else {}
            there = [name for name in left if name in listed
                     and listed[name]['life'] == self._done[name].life]
            self._forget({*left} - {*there})
            if there:
                # At 0 is also who has received nothing yet, wherever the
                # kernel begins.
                after = {name: self._received[name] for name in there}
                params: dict[str, Json] = {
                    'names': there, 'acknowledge': False,
                    'after': {name: place for name, place in after.items()
                              if place.offset or place.ended}}
                if self._follows:
                    params['follow'] = True
                transport.watch(self._kernel.next_number(), 'watch', params)
                if not self._follows:
                    transport.acknowledge({
                        name: self._done[name] for name in there})
        except Lost:
            transport.close()
            return False
        except BaseException:
            transport.close()
            raise
        self._tell_closing(self._transport.fileno())
        self._transport.become(transport)
        if there:
            self._tell_returned()
        else:
            self._leave(True)
        return True

    def _forget(self, names: set[str]) -> None:
        self._gone |= names
        lost = [name for name in names if not self._received[name].ended]
        if lost:
            log.warning('%r: the kernel does not know %s any more, so nothing '
                        'more comes from there', self, ', '.join(sorted(lost)))

    def after_fork(self) -> None:
        """In a child: the watch is the parent's."""
        self._turn = {}
        self.closed = True
        self._transport.close()

    # Transactions

    def _journal(self) -> 'Journal | None':
        """That of the transaction which decides, if one does."""
        if not self.transactional:
            return None
        # Imported here, as most watchers need no transaction.
        from gocept.runner.channel.journal import current_journal
        return current_journal()

    def _read_within(self, journal: 'Journal') -> Output:
        from gocept.runner.kernel.client.delivery import ReadDelivery
        group = self._returned[0].group if self._returned else None
        if self.suspended or not journal.admits(group):
            self._suspend(journal)
            return [], [], []
        if self._returned:
            undecided = self._returned[0]
            self._next()
        elif self._is_over(self._read):
            self._accept(journal)
            return [], [], []
        else:
            undecided = ReadDelivery(self._fetch())
        self._noted.append(undecided)
        journal.note(self, undecided)
        journal.wait(self)
        return undecided.reading.output

    def _suspend(self, journal: 'Journal') -> None:
        """Nothing more is read before the transaction ends."""
        self.suspended = True
        journal.wait(self)

    def _accept(self, journal: 'Journal') -> None:
        """The last end is taken, unless the transaction is aborted."""
        self._is_accepted = True
        journal.wait(self)

    def give_back(self, deliveries: 'Sequence[Delivery]', is_alone: bool,
                  ) -> None:
        """An abort: the same comes again, before all others."""
        for undecided in reversed(cast('Sequence[ReadDelivery]', deliveries)):
            self._noted.remove(undecided)
            self._returned.appendleft(undecided)
            reading = undecided.reading
            self._read = reading.before
            for each in reading.output[2]:
                self.exit_code.pop(each.name, None)

    def consume_end(self) -> None:
        """The oldest read is not given back any more."""
        self._committed = self._noted.popleft().reading.after

    def acknowledge_fetched(self) -> None:
        """A commit; not called in a dry run."""
        committed, self._committed = self._committed, None
        if committed is not None and not self.closed:
            self._acknowledge(committed)
            self._close_if_wanted()

    def resume(self) -> None:
        """The transaction has ended, or has gone back to a savepoint."""
        self.suspended = self._is_accepted = False
        if not self._noted and self._committed is None:
            self._close_if_wanted()
        if self:
            self._tell_returned()

    def _close_if_wanted(self) -> None:
        if self._is_closing and not self.closed:
            self._finish()

    def unfetch(self, items: Sequence[Output]) -> None:
        """A poller could not hand these out."""
        from gocept.runner.channel.journal import known_journal
        journal = known_journal()
        if journal is None:
            # What was not acknowledged is asked for again.
            self._received = self._read = self._done
            self._transport.spoil()
        else:
            self.give_back(journal.take_last(self, len(items)), False)
            self.resume()

    def require_sent(self) -> None:
        """A poller may wait: nothing is written here."""

    def vote(self) -> None:
        """Nothing is written here."""

    def send(self, chunks: 'Sequence[Chunk]', is_end: bool) -> None:
        """Nothing is written here."""
