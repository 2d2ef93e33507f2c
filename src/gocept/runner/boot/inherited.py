"""Databases in a forked child, where they belong to the parent.

The parent goes on to write them. If the child wrote too, each would overwrite
what the other has committed; closing a FileStorage writes its index, and frees
the lock.
"""

import os
from collections.abc import Collection
from typing import Any, NoReturn

import ZODB


class Inherited:
    """Open databases, which a forked child neither writes nor closes."""

    def __init__(self, databases: Collection[ZODB.DB]) -> None:
        self._databases = databases
        self._pid = os.getpid()

    def after_fork(self) -> None:
        """Called in the child, by its only thread."""
        for database in self._databases:
            # Storages that are no adapters give each connection an instance.
            database._connectionMap(
                lambda connection: self._bar(connection._normal_storage))
            self._bar(getattr(database._mvcc_storage, '_storage',
                              database._mvcc_storage))

    def _bar(self, storage: Any) -> None:
        storage.tpc_begin = storage.pack = self._refuse
        storage.close = lambda: None

    def _refuse(self, *args: object, **keywords: object) -> NoReturn:
        raise RuntimeError(
            f'the database was opened by process {self._pid}, from which this '
            'process was forked, so only that process can write to it')
