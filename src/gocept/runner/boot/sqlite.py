"""What RelStorage leaves in a connection to SQLite after a conflict.

RelStorage writes the objects of a transaction into a temporary table of its
SQLite connection, commits this table, and compares then the objects that the
transaction relies on (`ZODB.Connection.Connection.readCurrent`, which a BTree
calls for its inner nodes). If one of them has changed, the transaction is
aborted. But SQLite is in no transaction then, so RelStorage (up to 4.3.0 at
least) does not roll back, which would empty the table. The next transaction
that uses the connection commits what the aborted one has left, or fails with a
KeyError or a CacheConsistencyError.
"""

import sys

import ZODB

from gocept.runner.boot.inherited import parts_of


def forget_aborted(database: ZODB.DB) -> None:
    """Let a RelStorage on SQLite roll back after each abort.

    Of all connections of this process; it does nothing for other storages.
    """
    sqlite = sys.modules.get('relstorage.adapters.sqlite.connmanager')
    if sqlite is None:
        return
    for storage in parts_of(database.storage):
        adapter = getattr(storage, '_adapter', None)
        manager = getattr(adapter, 'connmanager', None)
        if isinstance(manager, sqlite.Sqlite3ConnectionManager):
            manager._may_need_rollback = _always


def _always(connection: object) -> bool:
    return True
