"""What opening a database creates: files of a storage, the root folder."""

import os.path
from collections.abc import Iterator
from typing import cast

import ZConfig.matcher
import ZODB.config
from ZODB.interfaces import IStorage
from ZODB.MappingStorage import MappingStorage

from gocept.runner.errors import DatabaseMissing
from gocept.runner.logs import Log

log = Log('gocept.runner.environment')


class Creation:
    """What is created with a database, which is reported or refused."""

    def __init__(self, factory: ZODB.config.ZODBDatabase,
                 allowed: bool) -> None:
        """To be made before the database is opened.

        Raises DatabaseMissing if files are missing, and it is not `allowed`
        to create them.
        """
        self._allowed = allowed
        self._missing = list(_missing(factory))
        if not allowed:
            for path in self._missing:
                raise missing(path)

    def report(self) -> None:
        """Tell which files are new, once the database is open."""
        for path in self._missing:
            log.warning('Created a new, empty database: %s', path)

    def of_root_folder(self, storage: IStorage) -> None:
        """Report that `storage` gets a root folder.

        Raises DatabaseMissing if this is not allowed, and the storage is not
        just in memory.
        """
        if self._missing or isinstance(
                getattr(storage, 'changes', storage), MappingStorage):
            return
        name = name_of(storage)
        if not self._allowed:
            raise DatabaseMissing(
                f'the database {name} is empty, and a dry run does not create '
                'its root folder: run the program without --dry-run first')
        log.warning('The database %s is empty: creating its root folder', name)


def missing(path: str) -> DatabaseMissing:
    """The error of a dry run that would create a database."""
    return DatabaseMissing(
        f'there is no database {path}, and a dry run creates none: correct '
        'the path, or run the program without --dry-run first')


def name_of(storage: IStorage) -> str:
    """What tells people which storage it is; for a file, the absolute path."""
    name: str = storage.getName()
    return os.path.abspath(name) if os.path.exists(name) else name


def _missing(factory: object) -> Iterator[str]:
    """The absolute paths that a database or storage would create."""
    match factory:
        case ZODB.config.FileStorage():
            config = factory.config
            if config.create or not (
                    config.read_only or os.path.exists(config.path)):
                yield os.path.abspath(config.path)
            yield from _missing_directory(config.blob_dir)
        case ZODB.config.BlobStorage():
            yield from _missing(factory.config.base)
            yield from _missing_directory(factory.config.blob_dir)
        case object(config=ZConfig.matcher.SectionValue() as config):
            # The files of a RelStorage with SQLite.
            yield from _missing_directory(getattr(config, 'data_dir', None))
            for name in config.getSectionAttributes():
                yield from _missing(getattr(config, name))
        case list():  # such as the storages of a demostorage
            for each in cast(list[object], factory):
                yield from _missing(each)


def _missing_directory(path: str | None) -> Iterator[str]:
    if path is not None and not os.path.isdir(path):
        yield os.path.abspath(path)
