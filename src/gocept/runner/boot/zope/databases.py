"""The databases that the zope.conf of a Zope names."""

import contextlib
import os.path
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import OFS.Application
import transaction
import ZODB.config
from Acquisition import aq_base
from zc.lockfile import LockError
from ZODB import DB
from Zope2.App.ClassFactory import ClassFactory

from gocept.runner.boot.creation import Creation, name_of
from gocept.runner.boot.databases import (
    close_database,
    opening_of,
    ownership,
)
from gocept.runner.boot.environment import APPLICATION
from gocept.runner.boot.served import share
from gocept.runner.boot.sqlite import forget_aborted
from gocept.runner.boot.zope.configuration import Options
from gocept.runner.errors import ConfigurationError, DatabaseLocked


@contextlib.contextmanager
def open_databases(options: Options, *, create: bool) -> Iterator[DB]:
    """Open all databases, and hand out that of the root; close all at the end.

    Without `create`, DatabaseMissing if something would be created.
    """
    _check_custom(options)
    share(options.databases)
    creations = {database.getName(): Creation(database, create)
                 for database in options.databases}
    use_own_caches(options.databases)
    opened: dict[str, DB] = options.dbtab.databases
    opened.clear()  # those of a start before this one
    with contextlib.ExitStack() as close:
        close.callback(_close, opened)
        for database in options.databases:
            name = database.getName()
            with (opening_of(database, options.configfile),
                  _locking(database)):
                # In Zope 5, the first connections would not find the class
                # that takes the place of one that is gone.
                options.dbtab.getDatabase(
                    name=name).classFactory = ClassFactory
            forget_aborted(opened[name])
            creations[name].report()
        main = opened[options.dbtab.getName('/')]
        with ownership(opened.values()):
            _ensure_root(main, creations[main.database_name])
            yield main


def _close(opened: dict[str, DB]) -> None:
    for database in opened.values():
        close_database(database)
    opened.clear()


def _check_custom(options: Options) -> None:
    path = os.path.join(options.instancehome, 'custom_zodb.py')
    if os.path.exists(path):
        raise ConfigurationError(
            f'{path} takes the place of the databases in zope.conf, which a '
            'worker needs: name the databases in zope.conf')


def _ensure_root(database: DB, creation: Creation) -> None:
    """Have a look at the root that Zope's start will find, or make it.

    ConfigurationError if the database belongs to another application, and
    DatabaseMissing if it is empty, and must not be changed.
    """
    # With its own manager, since this is not a transaction of the worker.
    manager = transaction.TransactionManager()
    connection = database.open(manager)
    try:
        # Another process may create the root at the same time.
        for attempt in manager.attempts():
            with attempt:
                root = connection.root()
                if APPLICATION not in root:
                    creation.of_root_folder(database.storage)
                    root[APPLICATION] = OFS.Application.Application()
                found = aq_base(root[APPLICATION])
                if not isinstance(found, OFS.Application.Application):
                    kind = type(found)
                    raise ConfigurationError(
                        f'the root of {name_of(database.storage)} is a '
                        f'{kind.__module__}.{kind.__name__}, so the database '
                        'belongs to another application, and not to Zope')
    finally:
        manager.abort()
        connection.close()


def use_own_caches(databases: Collection[ZODB.config.ZODBDatabase]) -> None:
    """Let ZEO clients use temporary caches.

    The file of a lasting cache is locked by the process that uses it. That is
    the web server, or another worker.
    """
    for each in _storages(databases):
        for name in 'client', 'cache_path':
            if name in each.config.getSectionAttributes():
                setattr(each.config, name, None)


def _storages(value: Any) -> Iterator[Any]:
    """All storages in the sections of a configuration."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _storages(each)
    elif hasattr(value, 'open') and hasattr(value, 'config'):
        yield value
        for name in value.config.getSectionAttributes():
            yield from _storages(getattr(value.config, name))


@contextlib.contextmanager
def _locking(database: ZODB.config.ZODBDatabase) -> Iterator[None]:
    try:
        yield
    except LockError as error:
        configs = [each.config for each in _storages(database)]
        blob_dir = next(filter(None, (
            getattr(config, 'blob_dir', None) for config in configs)), None)
        for config in configs:
            path = getattr(config, 'path', None)
            if path is not None and repr(f'{path}.lock') in str(error):
                raise DatabaseLocked(_advice(path, blob_dir)) from error
        raise


def _advice(path: str, blob_dir: str | None) -> str:
    owner = ''
    with contextlib.suppress(OSError, ValueError):
        owner = f' {int(Path(f"{path}.lock").read_text("ascii"))}'
    server = f'runzeo -a localhost:8100 -f {path}'
    client = ['<zeoclient>', 'server localhost:8100', '</zeoclient>']
    if blob_dir is not None:
        server = 'runzeo -C zeo.conf'
        client[2:2] = [f'blob-dir {blob_dir}', 'shared-blob-dir on']
    text = (
        f'the process{owner} has the database {path} open, such as the web '
        f'server of this instance. With a ZEO server, "{server}", both can '
        'run: in zope.conf, put in the place of the storage the lines '
        + ', '.join(map(repr, client)))
    return text if blob_dir is None else (
        f"{text}, and into zeo.conf '<zeo>', 'address localhost:8100', "
        f"'</zeo>', '<filestorage 1>', 'path {path}', 'blob-dir {blob_dir}', "
        "'</filestorage>'")
