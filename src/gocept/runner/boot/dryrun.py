"""A dry run: transactions are aborted where they would be committed."""

import collections
import contextlib
import shutil
from collections.abc import Iterator

import transaction
import ZODB.blob
import ZODB.Connection
import ZODB.utils
from transaction._transaction import Status
from transaction.interfaces import DoomedTransaction

from gocept.runner.channel.journal import is_of_journal, journal_of
from gocept.runner.events import hearing
from gocept.runner.interfaces import (
    IConflictRetried,
    ITickAborted,
    ITickCommitted,
)
from gocept.runner.logs import Log
from gocept.runner.waits.forks import Lock

log = Log('gocept.runner.transaction')


@contextlib.contextmanager
def dry_run() -> Iterator[None]:
    """Abort every transaction where it would be committed, in all threads.

    At the end of each tick, one line is logged with the number of objects of
    each class that its transactions would have stored, and of other resources
    that take part. What ZODB does without a commit is left undone, too: no
    database is packed, and `Blob.consumeFile` leaves the file in its place.
    """
    verdict, commit = _Verdict(), transaction.Transaction.commit
    pack, consume = ZODB.DB.pack, ZODB.blob.Blob.consumeFile

    def abort_instead(txn: transaction.Transaction) -> None:
        verdict.count(_stored(txn))
        journal = journal_of(txn)
        if journal is not None:
            journal.consume()
        txn.abort()
        txn.status = Status.COMMITTED  # for who asks what became of it

    def tell_pack(database: ZODB.DB, *args: object, **keywords: object,
                  ) -> None:
        log.info('Dry run: would pack the database %r',
                 database.database_name)

    def copy_file(blob: ZODB.blob.Blob, filename: str) -> None:
        with open(filename, 'rb') as source, blob.open('w') as target:
            shutil.copyfileobj(source, target)
    transaction.Transaction.commit = abort_instead
    ZODB.DB.pack, ZODB.blob.Blob.consumeFile = tell_pack, copy_file
    try:
        with hearing(verdict.hear):
            yield
    finally:
        transaction.Transaction.commit = commit
        ZODB.DB.pack, ZODB.blob.Blob.consumeFile = pack, consume
        verdict.tell_rest()


class _Verdict:
    """What the transactions would have stored since the last tick."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._classes: collections.Counter[str] = collections.Counter()

    def count(self, classes: collections.Counter[str]) -> None:
        """Add what one transaction would have stored."""
        with self._lock:
            self._classes += classes

    def hear(self, event: object) -> None:
        """Subscribe to events with this."""
        if ITickCommitted.providedBy(event) or ITickAborted.providedBy(event):
            self._tell()
        elif IConflictRetried.providedBy(event):
            self._take()  # the tick will do it again

    def tell_rest(self) -> None:
        """Log what was done outside of ticks, if there is something."""
        if self._classes:
            self._tell()

    def _take(self) -> collections.Counter[str]:
        with self._lock:
            taken, self._classes = self._classes, collections.Counter()
        return taken

    def _tell(self) -> None:
        log.info('Dry run: would commit %s', ', '.join(
            f'{count} {name}' for name, count in sorted(self._take().items()))
            or 'nothing')


def _stored(txn: transaction.Transaction) -> collections.Counter[str]:
    """The classes of the objects and resources that a commit would store."""
    if txn.isDoomed():
        raise DoomedTransaction('transaction doomed, cannot commit')
    for hook, args, keywords in txn.getBeforeCommitHooks():
        hook(*args, **keywords)
    # A savepoint stores new and changed objects where they can be counted, and
    # fails on those that cannot be pickled.
    txn.savepoint(optimistic=True)
    return collections.Counter(
        name for resource in txn._resources
        for name in _stored_by_savepoint(resource))


def _stored_by_savepoint(resource: object) -> Iterator[str]:
    if not isinstance(resource, ZODB.Connection.Connection):
        if not is_of_journal(resource):  # a mail, say, or an undo
            kind = type(resource)
            yield f'{kind.__module__}.{kind.__qualname__}'
        return
    storage = resource._savepoint_storage
    if storage is not None:
        for oid in storage.index:
            data, _ = storage.load(oid)
            yield '.'.join(ZODB.utils.get_pickle_metadata(data))
