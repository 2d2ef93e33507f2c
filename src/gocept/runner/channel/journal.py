"""What one transaction has fetched from channels, and written to them.

A journal joins the transaction twice. `_SecondPhase` is finished before all
other data managers, so it knows whether the second phase of the commit has
begun. The journal itself votes and finishes after all others: nobody reads
what was written before the database has what was committed with it.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import transaction
import zope.interface
from transaction._transaction import Status
from transaction.interfaces import (
    IDataManager,
    ISavepointDataManager,
    NoTransaction,
    TransientError,
)

from gocept.runner.channel.lines import Data
from gocept.runner.errors import (
    EndpointClosedException,
    NotCommitted,
    WriteBufferFull,
)
from gocept.runner.logs import Log

log = Log('gocept.runner.channel')

Kept = TypeVar('Kept')  # what a party sends: bytes or text, or a request

Kept_contra = TypeVar('Kept_contra', contravariant=True)


class Delivery:
    """An item that was fetched: a line, a piece, or the end of the stream."""

    __slots__ = ('data', 'failures', 'group', 'is_end', 'is_text', 'partial')

    @property
    def items(self) -> 'Sequence[Delivery]':
        return (self,)

    def __init__(self, data: Data, *, partial: bool | None = None,
                 is_end: bool = False, is_text: bool = False,
                 failures: int = 0) -> None:
        self.data = data
        self.partial = partial
        """Whether it is a piece of a line; None if its end says so."""
        self.is_end = is_end
        self.is_text = is_text
        """Whether `read_until` has read it, so that it may be half a line."""
        self.failures = failures
        """How many transactions have fetched it and failed."""
        self.group = object() if failures else None
        """What it is fetched together with, if it has failed."""


class Batch:
    """Items that were fetched together for the first time.

    Deliveries are made of them if they are given back, which is rare.
    """

    __slots__ = ('data', 'is_end', 'partial')

    failures = 0
    group: object = None

    def __init__(self, data: Sequence[Data], partial: bool, is_end: bool,
                 ) -> None:
        self.data = data
        self.partial = partial
        """Whether the last one is a piece of a line."""
        self.is_end = is_end

    @property
    def items(self) -> Sequence[Delivery]:
        items = [*map(Delivery, self.data)]
        items[-1].partial, items[-1].is_end = self.partial, self.is_end
        return items


class Party(Protocol[Kept_contra]):
    """A channel, or another source, as its journal knows it."""

    def give_back(self, deliveries: Sequence[Delivery],
                  is_alone: bool) -> None:
        """Have them fetched again, before all others."""

    def resume(self) -> None:
        """What the transaction could not fetch can be fetched now."""

    def consume_end(self) -> None:
        """The end was fetched for good."""

    def acknowledge_fetched(self) -> None:
        """What was fetched, and not given back, was committed."""

    def vote(self) -> None:
        """EndpointClosedException if nobody will read what is sent."""

    def send(self, chunks: Sequence[Kept_contra], is_end: bool) -> None:
        """Send what a transaction has written."""


class Written(Generic[Kept]):
    """What is kept for one channel until the commit."""

    def __init__(self) -> None:
        self.chunks: list[Kept] = []
        self.sizes: list[int] = []
        self.is_end = False
        """Whether `write_eof` was called."""

    @property
    def size(self) -> int:
        """The number of bytes."""
        return sum(self.sizes)


@zope.interface.implementer(IDataManager)
class _SecondPhase:
    """Is finished first, and so knows that the second phase has begun."""

    transaction_manager = transaction.manager

    def __init__(self) -> None:
        self.begun = False

    def sortKey(self) -> str:
        return ''

    def _do_nothing(self, txn: transaction.Transaction) -> None:
        pass

    abort = tpc_begin = commit = tpc_vote = tpc_abort = _do_nothing

    def tpc_finish(self, txn: transaction.Transaction) -> None:
        self.begun = True

    def savepoint(self) -> 'Savepoint':
        return Savepoint(lambda: None)


class Savepoint:
    """What is done to go back to it."""

    def __init__(self, rollback: Callable[[], object]) -> None:
        self.rollback = rollback


@zope.interface.implementer(ISavepointDataManager)
class Journal:
    """Gives back at an abort what was fetched; sends at a commit what was
    written."""

    transaction_manager = transaction.manager

    def __init__(self, txn: transaction.Transaction) -> None:
        self._txn = txn
        self._fetched: list[tuple[Party[Any], Delivery | Batch]] = []
        self._written: dict[Party[Any], Written[Any]] = {}
        self._waiting: dict[Party[Any], None] = {}
        self._second_phase = _SecondPhase()
        txn.join(self._second_phase)  # raises if the transaction has failed
        txn.join(self)
        txn.set_data(_KEY, self)

    def sortKey(self) -> str:
        return '\U0010ffff'

    # What channels call.

    def admits(self, group: object = None) -> bool:
        """Whether the transaction may fetch an item of this group.

        What has failed is fetched by halves, and alone in the end, or else it
        would not be known which item is to blame.
        """
        return not self._fetched or self._fetched[0][1].group is group

    @property
    def fetches(self) -> int:
        """How often something was fetched that an abort gives back."""
        return len(self._fetched)

    def note(self, channel: Party[Kept], fetched: Delivery | Batch) -> None:
        """This was fetched."""
        self._fetched.append((channel, fetched))

    def wait(self, channel: Party[Kept]) -> None:
        """Resume `channel` when the transaction has ended."""
        self._waiting[channel] = None

    def keep(self, channel: Party[Kept], count: int) -> None:
        """Forget what was fetched from a channel after the first items."""
        found = sum(party is channel for party, _ in self._fetched)
        self.take_last(channel, found - count)

    def take_last(self, channel: Party[Kept], count: int,
                  ) -> list[Delivery]:
        """Forget the last items that were fetched from a channel."""
        taken: list[Delivery] = []
        index = len(self._fetched)
        while index and len(taken) < count:
            index -= 1
            if self._fetched[index][0] is channel:
                items = self._fetched[index][1].items
                left = max(0, len(items) - count + len(taken))
                taken = [*items[left:], *taken]
                self._fetched[index:index + 1] = [
                    (channel, each) for each in items[:left]]
        return taken

    def written_to(self, channel: Party[Kept]) -> Written[Kept] | None:
        """What is kept for a channel."""
        return self._written.get(channel)

    def write(self, channel: Party[Kept]) -> Written[Kept]:
        """Where to add what is to be kept for a channel."""
        return self._written.setdefault(channel, Written())

    # What the transaction calls.

    def tpc_begin(self, txn: transaction.Transaction) -> None:
        pass

    def commit(self, txn: transaction.Transaction) -> None:
        pass

    def tpc_vote(self, txn: transaction.Transaction) -> None:
        for channel in self._written:
            channel.vote()

    def tpc_finish(self, txn: transaction.Transaction) -> None:
        # Called once more by `tpc_abort` if an interrupt has ended it here.
        while self._written:
            channel = next(iter(self._written))
            written = self._written.pop(channel)
            try:
                channel.send(written.chunks, written.is_end)
            except EndpointClosedException as error:
                log.error('%s. A transaction was committed, but %d bytes (%d '
                          'writes) of it were not sent', error, written.size,
                          len(written.chunks))
            except OSError as error:
                log.error('%s; the bytes are kept and sent later', error)
            except Exception:
                log.exception('%r: %d bytes of a committed transaction were '
                              'not sent', channel, written.size)
        read = {channel: None for channel, _ in self._fetched}
        self.consume()
        for channel in read:
            try:
                channel.acknowledge_fetched()
            except Exception:
                log.exception('%r: what was committed may come again', channel)

    def tpc_abort(self, txn: transaction.Transaction) -> None:
        if self._second_phase.begun:
            self.tpc_finish(txn)
        else:
            self.abort(txn)

    def abort(self, txn: transaction.Transaction) -> None:
        txn.set_data(_KEY, None)
        self._written.clear()
        self._give_back(0)

    def savepoint(self) -> Savepoint:
        """See `transaction.interfaces.ISavepointDataManager`."""
        fetched = len(self._fetched)
        written = {channel: (len(each.chunks), each.is_end)
                   for channel, each in self._written.items()}

        def rollback() -> None:
            for channel, each in [*self._written.items()]:
                if channel not in written:
                    del self._written[channel]
                    continue
                count, each.is_end = written[channel]
                del each.chunks[count:], each.sizes[count:]
            self._give_back(fetched)
        return Savepoint(rollback)

    def consume(self) -> None:
        """What was fetched is not given back, and what is kept is not sent."""
        self._txn.set_data(_KEY, None)
        self._written.clear()
        fetched, self._fetched = self._fetched, []
        for channel, delivery in fetched:
            if delivery.is_end:
                channel.consume_end()
        self._resume()

    def _give_back(self, start: int) -> None:
        fetched = [(channel, delivery)
                   for channel, noted in self._fetched[start:]
                   for delivery in noted.items]
        del self._fetched[start:]
        # What one transaction has read with `read_until` is one item.
        is_alone = len(fetched) == 1 or any(
            delivery.is_text for _, delivery in fetched)
        if fetched and _has_failed(self._txn):
            # The child may read what is kept, or one item less may fit.
            counts = is_alone and not isinstance(
                sys.exception(), WriteBufferFull)
            most = max(delivery.failures for _, delivery in fetched)
            half = len(fetched) if is_alone else (len(fetched) + 1) // 2
            for part in fetched[:half], fetched[half:]:
                group = object()
                for _, delivery in part:
                    delivery.failures = most + 1 if counts else max(most, 1)
                    delivery.group = group
            is_alone = counts
        returned: dict[Party[Any], list[Delivery]] = {}
        for channel, delivery in fetched:
            returned.setdefault(channel, []).append(delivery)
        for channel, deliveries in returned.items():
            channel.give_back(deliveries, is_alone)
        self._resume()

    def _resume(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for channel in waiting:
            channel.resume()


_KEY = Journal  # under which a transaction has its journal


def current_journal() -> Journal | None:
    """The journal of the transaction of this thread.

    None where there is no transaction: in explicit mode outside of one, and
    in what is called after a commit. TransactionFailedError if the transaction
    has failed, and was not aborted yet.
    """
    try:
        txn = transaction.get()
    except NoTransaction:
        return None
    return journal_of(txn) or (
        None if txn.status == Status.COMMITTED else Journal(txn))


def known_journal() -> Journal | None:
    """Like `current_journal`, but None if nothing was fetched or written."""
    try:
        return journal_of(transaction.get())
    except NoTransaction:
        return None


def journal_of(txn: transaction.Transaction) -> Journal | None:
    """The journal that a transaction has."""
    try:
        return txn.data(_KEY)  # type: ignore[no-any-return]
    except KeyError:
        return None


def is_of_journal(resource: object) -> bool:
    """Whether a resource of a transaction belongs to its journal."""
    return isinstance(resource, (Journal, _SecondPhase))


def _has_failed(txn: transaction.Transaction) -> bool:
    """Whether what was fetched may be to blame for the abort in progress.

    An abort without an error is wanted; a conflict passes, and so does what
    stands in the way of a commit, such as a full disk.
    """
    error = sys.exception()
    if not isinstance(error, Exception) or isinstance(error, NotCommitted):
        return False
    if isinstance(error, OSError) and txn.status in (
            Status.COMMITTING, Status.COMMITFAILED):
        return False
    try:
        return not txn.isRetryableError(error)
    except Exception:  # of another data manager
        return not isinstance(error, TransientError)
