"""Databases in a forked child, where they belong to the parent.

The parent goes on to write them. If the child wrote too, each would overwrite
what the other has committed; closing a FileStorage writes its index, and frees
the lock. The two even share the position in each open file: what the child
reads from one, or closes, moves the position under the hands of the parent.
And they share each connection to a database server: each of them may get an
answer to what the other has asked. A ZEO client has a cache in a file, too,
and its connection is served by a thread, which the child does not have.
"""

import contextlib
import os
import sys
from collections.abc import Collection
from typing import Any, NoReturn

import ZODB
from ZODB.FileStorage.FileStorage import FilePool, FileStorage

_kept: list[object] = []
"""In a forked child: what must not be closed, also not by the collector."""

_READS = ('loadBefore', 'prefetch', '_call', '_async', '_async_iter', '_wait')
"""Of a ZEO client: what reads its cache, or waits for the server."""


def parts_of(*storages: Any) -> list[Any]:
    """The storages, and those that they adapt, wrap or consist of."""
    found = list(storages)
    for storage in found:  # while it grows
        for name in '_storage', 'base', 'changes':  # also of a DemoStorage
            part = getattr(storage, '__dict__', {}).get(name)
            if part is not None and all(part is not it for it in found):
                found.append(part)
    return found


class Inherited:
    """Open databases, which a forked child may read, but nothing else.

    With ZEO it may read what is in memory only.
    """

    def __init__(self, databases: Collection[ZODB.DB]) -> None:
        self._databases = databases
        self._pid = os.getpid()

    def after_fork(self) -> None:
        """Called in the child, by its only thread."""
        for database in self._databases:
            with contextlib.suppress(AttributeError):  # it is closed already
                _renew_locks(database)
                _renew_locks(database.getActivityMonitor())
                # Each connection has an instance. The database's own method
                # to look at all of them would have to lock it.
                for storage in parts_of(database._mvcc_storage, *(
                        connection._normal_storage for connection in (
                            *database.pool, *database.historical_pool))):
                    self._bar(storage)

    def _bar(self, storage: Any) -> None:
        _kept.append(storage)
        _renew_locks(storage)
        storage.tpc_begin = storage.pack = self._refuse
        storage.close = lambda: None
        if isinstance(storage, FileStorage):
            _kept.append(storage._files)
            storage._files = FilePool(storage._file_name)
        zeo = sys.modules.get('ZEO.ClientStorage')
        if zeo and isinstance(storage, zeo.ClientStorage):
            _renew_locks(storage._cache)
            for name in _READS:
                setattr(storage, name, self._refuse_read)
        self._part_from(storage)

    def _part_from(self, storage: Any) -> None:
        """Let a RelStorage connect anew, and leave what it has inherited."""
        load: Any = getattr(storage, '_load_connection', None)
        if getattr(load, 'connection', None) is not None:
            _kept.append((load.connection, load._cursor))
            load.connection = load._cursor = None
            load.active = False
            vars(load).pop('cursor', None)
        pool: Any = getattr(storage, '_store_connection_pool', None)
        _renew_locks(pool)
        if getattr(pool, '_connections', None):
            _kept.append(pool._connections)
            pool._connections = []

    def _refuse(self, *args: object, **keywords: object) -> NoReturn:
        raise RuntimeError(f'{self._owner()} can write to it')

    def _refuse_read(self, *args: object, **keywords: object) -> NoReturn:
        raise RuntimeError(
            f'{self._owner()} can ask the ZEO server: load what this process '
            'needs before the fork')

    def _owner(self) -> str:
        return (f'the database was opened by process {self._pid}, from which '
                'this process was forked, so only that process')


def _renew_locks(it: object) -> None:
    """Free what a thread of the parent holds, but not what this one holds."""
    for value in getattr(it, '__dict__', {}).values():
        if hasattr(value, '_at_fork_reinit') and not (
                hasattr(value, '_is_owned') and value._is_owned()):
            value._at_fork_reinit()
