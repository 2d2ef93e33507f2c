"""A channel whose data follow the transaction; see `ITransactionalChannel`."""

import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import zope.interface

from gocept.runner.channel.base import Channel, Chunk
from gocept.runner.channel.custom import CustomChannel, as_channel
from gocept.runner.channel.expect import Match, Pattern
from gocept.runner.channel.lines import Data
from gocept.runner.channel.wrapping import Wrapping
from gocept.runner.errors import (
    EndpointClosedException,
    StillKept,
    WriteBufferFull,
)
from gocept.runner.interfaces import ITransactionalChannel

if TYPE_CHECKING:
    from gocept.runner.channel.journal import Delivery, Journal, Written
from gocept.runner.logs import Log

log = Log('gocept.runner.channel')

REDELIVERIES = 5


def checked_redeliveries(redeliveries: int | None) -> int | None:
    """Return `redeliveries`; ValueError if channels do not know it."""
    if redeliveries is not None and (
            not isinstance(redeliveries, int) or redeliveries < 0):
        raise ValueError('redeliveries must be a number >= 0, or None for no '
                         f'limit, not {redeliveries!r}')
    return redeliveries


@zope.interface.implementer(ITransactionalChannel)
class TransactionalChannel(Wrapping):
    """See `ITransactionalChannel`.

    What was given back waits in `_returned`, before all that the other channel
    has; only the last of it may be the end.
    """

    transactional = True

    def __init__(self, channel: Channel | CustomChannel, *,
                 redeliveries: int | None = REDELIVERIES) -> None:
        # Imported here, as most channels need no transaction.
        from gocept.runner.channel import journal
        channel = as_channel(channel)
        if channel.transactional:
            raise ValueError(f'{channel!r} is transactional already')
        super().__init__(channel)
        for layer in channel.layers():
            if isinstance(layer, Channel):
                layer.loss_level = logging.ERROR  # as it was committed
                layer.waits_for_commit = True
        self._buffering, self.encoding = channel.buffering, channel.encoding
        self._nothing = '' if channel.is_text else b''
        self.redeliveries = checked_redeliveries(redeliveries)
        self.skipped = 0
        self.suspended = False
        self._current_journal = journal.current_journal
        self._known_journal = journal.known_journal
        self._delivery, self._batch = journal.Delivery, journal.Batch
        self._returned: deque[Delivery] = deque()
        self._partial = False
        self._is_over = False  # as the end was fetched for good
        # Of what `take_all` has returned last.
        self._failures = 0

    # Reading

    def read(self) -> Data:
        """See `IChannel`."""
        journal = self._current_journal()
        if journal is None:
            self.acknowledge_fetched()
        self._divide()
        if self._returned:
            if self._returned[0].is_end:
                raise self._ended()
            delivery = self._fetch_again(journal)
            if self.told:
                self.tell_fetched()
            return self._nothing if delivery is None else delivery.data
        if journal is not None and not journal.admits():
            self._suspend(journal)
            return self._nothing
        data = self._channel.read()
        self._partial = self._channel.partial
        if data and journal is not None:
            journal.note(self, self._delivery(data, partial=self._partial))
        return data

    def collect(self) -> tuple[Sequence[Data], bool]:
        journal = self._current_journal()
        if self.suspended:  # the transaction has fetched the end
            return (), False
        if journal is None:
            self.acknowledge_fetched()
        self._divide()
        if self._returned:
            deliveries = [*iter(lambda: self._fetch_again(journal), None)]
            return ([each.data for each in deliveries],
                    journal is None and deliveries[-1].is_end)
        if journal is not None and not journal.admits():
            self._suspend(journal)
            return (), False
        try:
            items, over = self._channel.collect()
        except Exception:  # of a custom channel
            log.exception('%r failed, and is not polled any more',
                          self._channel)
            items, over = (self._nothing,), True
        self._partial = self._channel.partial
        if journal is None:
            return items, over
        if items:
            journal.note(self, self._batch(items, self._partial, over))
        if over:
            self._suspend(journal)
        return items, False

    def _divide(self) -> None:
        """Have lines made again of what `read_until` has read."""
        if self._returned and self._returned[0].is_text:
            self._channel.put_back(self.take_all())

    def _fetch_again(self, journal: 'Journal | None') -> 'Delivery | None':
        """The first of what was given back, if it may be fetched now."""
        if not self._returned:
            return None
        delivery = self._returned[0]
        if journal is not None:
            if not journal.admits(delivery.group):
                self._suspend(journal)
                return None
            journal.note(self, delivery)
            if delivery.is_end:
                self._suspend(journal)
        self._returned.popleft()
        self._partial = (
            delivery.partial if delivery.partial is not None
            else self.buffering == 'line' and not delivery.data.endswith(
                '\n' if self.is_text else b'\n'))
        return delivery

    def _suspend(self, journal: 'Journal') -> None:
        """Nothing more is fetched before the transaction ends."""
        self.suspended = True
        journal.wait(self)

    def read_until(self, pattern: Pattern, timeout: float | None = None,
                   ) -> tuple[Data, Match]:
        """See `IChannel`."""
        journal = self._current_journal()
        before, match = super().read_until(pattern, timeout)
        if journal is not None:
            found = match if isinstance(match, str | bytes) else match[0]
            journal.note(self, self._delivery(
                before + found, is_text=True, failures=self._failures))
        return before, match

    def receive(self) -> Data:
        if self._returned:
            raise self._ended()  # as all else was taken
        data = self._channel.receive()
        if not data:
            self.require_sent()
        return data

    def take_all(self) -> Data:
        self._failures = 0
        items = []
        while self._returned and not self._returned[0].is_end:
            delivery = self._returned.popleft()
            self._failures = max(self._failures, delivery.failures)
            items.append(delivery.data)
        return self._nothing.join([*items, self._channel.take_all()])

    def put_back(self, data: Data) -> None:
        self._channel.put_back(data)

    def _ended(self) -> EndpointClosedException:
        return EndpointClosedException(f'{self!r}: the other side closed')

    @property
    def unread(self) -> bool:
        """See `IChannel`."""
        return self._channel.unread or bool(
            self._returned and not self._returned[0].is_end)

    @property
    def buffered(self) -> bool:
        return not self.suspended and (
            bool(self._returned) or self._channel.buffered)

    @property
    def partial(self) -> bool:
        """See `IChannel`."""
        return self._partial

    @property
    def is_forgotten(self) -> bool:
        """Whether something was given back, but no poller will fetch it."""
        return bool(self._returned) and self.unread and not self._watchers

    @property
    def is_held(self) -> bool:
        """Whether somebody is still to fetch something, or the end."""
        return bool(self._returned or self._watchers) and not self._is_over

    # What the journal calls

    def give_back(self, deliveries: Sequence['Delivery'],
                  is_alone: bool) -> None:
        left = deque(deliveries)
        if is_alone and self.redeliveries is not None and (
                left[0].failures > self.redeliveries):
            for delivery in left:
                self._skip(delivery)
            left.clear()
        self._returned.extendleft(reversed(left))
        if left and self.closed and not self._watchers:
            log.warning('%r was closed; %d items were given back, and no '
                        'poller will fetch them again', self, len(left))
        self.resume()

    def _skip(self, delivery: 'Delivery') -> None:
        self.skipped += 1
        log.error(
            '%r: each transaction that has fetched this fails, so it is '
            'skipped (%d skipped by now): %s. It is lost unless you store it '
            'by hand; with redeliveries=None ("none" in ZCML) it would come '
            'again until a transaction is committed', self, self.skipped,
            'the end' if delivery.is_end else repr(delivery.data))
        if delivery.is_end:
            self.consume_end()

    def unfetch(self, items: Sequence[Data]) -> None:
        journal = self._known_journal()
        self._returned.extendleft(reversed(
            [*map(self._delivery, items)] if journal is None
            else journal.take_last(self, len(items))))
        self.resume()

    def resume(self) -> None:
        self.suspended = False
        self._tell_returned()

    def consume_end(self) -> None:
        self.suspended, self._is_over = False, True
        self._tell_over()

    def acknowledge_fetched(self) -> None:
        self._channel.acknowledge(
            sum(len(each.data) for each in self._returned), self._is_over)

    # Writing

    @property
    def kept(self) -> int:
        """See `IChannel`."""
        written = self._written()
        return self._channel.kept + (0 if written is None else written.size)

    def _written(self) -> 'Written[Chunk] | None':
        journal = self._known_journal()
        return None if journal is None else journal.written_to(self)

    def write(self, *data: Chunk) -> None:
        """See `IChannel`."""
        self.check_sink()
        journal = self._current_journal()
        if journal is None:
            self._channel.write(*data)
            return
        chunks, sizes = self._copied(data)
        kept = self.kept
        if kept > self.high_water:
            raise WriteBufferFull(
                f'{self!r} keeps {kept} bytes, more than {self.high_water}, '
                'until the transaction is committed and the other side has '
                'read them; write less in one transaction')
        written = journal.write(self)
        written.chunks += chunks
        written.sizes += sizes

    def _copied(self, data: Sequence[Chunk]) -> tuple[list[Chunk], list[int]]:
        """What nobody can change, and the number of bytes of each chunk."""
        encoding = next((layer.encoding for layer in self.layers()
                         if isinstance(layer, Channel) and layer.encoding),
                        None)
        chunks: list[Chunk] = []
        sizes = []
        for each in data:
            if isinstance(each, str):
                if encoding is None:
                    raise TypeError('a channel without an encoding takes '
                                    'bytes, no text')
                sizes.append(len(each.encode(encoding)))
            else:
                each = bytes(each)
                sizes.append(len(each))
            chunks.append(each)
        return chunks, sizes

    def write_eof(self) -> None:
        """See `IChannel`."""
        journal = self._current_journal()
        if journal is None:
            self._channel.write_eof()
        else:
            self._channel.check_sink()
            journal.write(self).is_end = True

    def check_sink(self) -> None:
        written = self._written()
        if written is not None and written.is_end:
            raise EndpointClosedException(f'{self!r}: write_eof() was called')
        self._channel.check_sink()

    def vote(self) -> None:
        self._channel.check_sink()

    def send(self, chunks: Sequence[Chunk], is_end: bool) -> None:
        if chunks:
            self._channel.write_accepted(*chunks)
        if is_end:
            self._channel.write_eof()

    def flush(self, timeout: float | None = None) -> None:
        """See `IChannel`."""
        self.require_sent()
        self._channel.flush(timeout)

    def require_sent(self) -> None:
        """`StillKept` if the transaction of this thread has written to it."""
        written = self._written()
        if written is not None and written.chunks:
            raise StillKept(
                f'{self!r}: {written.size} bytes are kept until the '
                'transaction is committed, so nobody can answer them; read '
                'the answer in a later transaction, or call '
                'transaction.commit() first')

    def close(self) -> None:
        """See `IChannel`."""
        closed = self.closed
        self._channel.close()
        left = sum(not each.is_end for each in self._returned)
        if left and not closed:
            log.warning('%r was closed with %d items that were given back and '
                        'not fetched again; they are lost, unless the next '
                        'child says them again', self, left)

    def __repr__(self) -> str:
        return f'<TransactionalChannel {self._channel!r}>'
