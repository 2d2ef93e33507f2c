"""Databases in a forked child, where they belong to the parent.

The parent goes on to write them. If the child wrote too, each would overwrite
what the other has committed; closing a FileStorage writes its index, and frees
the lock. The two even share the position in each open file: what the child
reads from one, or closes, moves the position under the hands of the parent.
"""

import contextlib
import os
from collections.abc import Collection
from typing import Any, NoReturn

import ZODB
from ZODB.FileStorage.FileStorage import FilePool, FileStorage

_kept: list[object] = []
"""In a forked child: what must not be closed, also not by the collector."""


class Inherited:
    """Open databases, which a forked child may read, but nothing else."""

    def __init__(self, databases: Collection[ZODB.DB]) -> None:
        self._databases = databases
        self._pid = os.getpid()

    def after_fork(self) -> None:
        """Called in the child, by its only thread."""
        for database in self._databases:
            with contextlib.suppress(AttributeError):  # it is closed already
                # Storages without an adapter have an instance a connection.
                database._connectionMap(
                    lambda connection: self._bar(connection._normal_storage))
                self._bar(getattr(database._mvcc_storage, '_storage',
                                  database._mvcc_storage))

    def _bar(self, storage: Any) -> None:
        _kept.append(storage)
        storage.tpc_begin = storage.pack = self._refuse
        storage.close = lambda: None
        if isinstance(storage, FileStorage):
            _kept.append(storage._files)
            storage._files = FilePool(storage._file_name)

    def _refuse(self, *args: object, **keywords: object) -> NoReturn:
        raise RuntimeError(
            f'the database was opened by process {self._pid}, from which this '
            'process was forked, so only that process can write to it')
