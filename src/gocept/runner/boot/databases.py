"""Opening and closing the databases of any kind of application."""

import contextlib
import os.path
from collections.abc import Collection, Iterator

import ZODB
import ZODB.config
from ZODB.Connection import Connection
from zope.component.hooks import getSite, setSite

from gocept.runner.boot.attempts import abort
from gocept.runner.boot.inherited import Inherited
from gocept.runner.errors import ConfigurationError
from gocept.runner.logs import Log
from gocept.runner.waits.forks import OneProcess, tell_forks

log = Log('gocept.runner.environment')


@contextlib.contextmanager
def opening_of(factory: ZODB.config.ZODBDatabase, configfile: str,
               ) -> Iterator[None]:
    """Open a database in this block, whose errors tell what they are about.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f'{configfile}: a storage needs a package that is not installed: '
            f'{error}') from error
    except Exception as error:
        storage = factory.config.storage.config
        # ZEO does not tell which server does not answer.
        for each in getattr(storage, 'server', ()):
            error.add_note(f'the server is {name_of_address(each.address)}')
        # A full disk does not tell where it is.
        path = getattr(storage, 'path', None)
        if path and isinstance(error, OSError) and error.filename is None:
            error.add_note(f'the database is {os.path.abspath(path)}')
        raise


def name_of_address(address: tuple[str, int] | str) -> str:
    """HOST:PORT, or the path of a Unix socket."""
    return (address if isinstance(address, str)
            else ':'.join(map(str, address)))


@contextlib.contextmanager
def ownership(databases: Collection[ZODB.DB]) -> Iterator[None]:
    """Open databases are those of this process; a forked child reads them."""
    inherited = Inherited(databases)
    tell_forks(inherited)  # which keeps no reference
    with OneProcess():
        yield


@contextlib.contextmanager
def connected(database: ZODB.DB) -> Iterator[Connection]:
    """Open a connection for the transactions of this thread.

    At the end the site is the one from before, the transaction is aborted, and
    the connection is closed.
    """
    with contextlib.ExitStack() as close:
        connection = database.open()
        close.callback(connection.close)
        close.callback(abort)
        # Callers set the site themselves; once closed, it cannot be used.
        close.callback(setSite, getSite())
        with OneProcess():
            yield connection


def close_database(database: ZODB.DB) -> None:
    """Close it; an error is logged."""
    try:
        database.close()
    except Exception:  # a full disk, say: what is committed is committed
        log.error('An error while the database %r was closed',
                  database.database_name, exc_info=True)
