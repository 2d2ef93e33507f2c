"""A dry run: transactions are aborted where they would be committed."""

import collections
import contextlib
import logging
from collections.abc import Iterator

import transaction
import ZODB.Connection
import ZODB.utils
from transaction.interfaces import DoomedTransaction

from gocept.runner.channel.journal import journal_of

log = logging.getLogger('gocept.runner.transaction')


@contextlib.contextmanager
def dry_run() -> Iterator[None]:
    """Abort every transaction where it would be committed, in all threads.

    For each transaction, the number of objects of each class that it would
    store is logged.
    """
    commit = transaction.Transaction.commit
    transaction.Transaction.commit = _abort_instead
    try:
        yield
    finally:
        transaction.Transaction.commit = commit


def _abort_instead(txn: transaction.Transaction) -> None:
    if txn.isDoomed():
        raise DoomedTransaction('transaction doomed, cannot commit')
    for hook, args, keywords in txn.getBeforeCommitHooks():
        hook(*args, **keywords)
    # A savepoint stores new and changed objects where they can be counted, and
    # fails on those that cannot be pickled.
    txn.savepoint(optimistic=True)
    classes = collections.Counter(
        name for resource in txn._resources
        if isinstance(resource, ZODB.Connection.Connection)
        for name in _stored_by_savepoint(resource))
    if classes:
        log.info('Dry run: would commit %s', ', '.join(
            f'{count} {name}' for name, count in sorted(classes.items())))
    else:
        log.debug('Dry run: would commit nothing')
    journal = journal_of(txn)
    if journal is not None:
        journal.consume()
    txn.abort()


def _stored_by_savepoint(connection: ZODB.Connection.Connection,
                         ) -> Iterator[str]:
    storage = connection._savepoint_storage
    if storage is not None:
        for oid in storage.index:
            data, _ = storage.load(oid)
            yield '.'.join(ZODB.utils.get_pickle_metadata(data))
