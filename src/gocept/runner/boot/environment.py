"""Steps of a start that are the same for every kind of application.

`gocept.runner.boot.program` takes them, and those of `IEnvironment`.
"""

import contextlib
import os.path
import sys
from collections.abc import Iterator, Sequence

import persistent
import transaction
import zope.component
import zope.security.management
from ZODB.FileStorage.FileStorage import FileStorage
from zope.component.interfaces import ISite

from gocept.runner.boot.creation import name_of
from gocept.runner.boot.environments import Options
from gocept.runner.boot.inherited import parts_of
from gocept.runner.errors import DatabaseClosed
from gocept.runner.events import Loop
from gocept.runner.interfaces import ISupervisor
from gocept.runner.logs import Log
from gocept.runner.waits.forks import OneProcess

log = Log('gocept.runner.environment')

APPLICATION = 'Application'
"""The name of the root in the database, as in zope.app.publication."""


def set_paths(paths: Sequence[str], undo: contextlib.ExitStack) -> None:
    """Put directories in front of the search path; `undo` removes them."""
    undo.callback(sys.path.__setitem__, slice(None), list(sys.path))
    new = [os.path.abspath(path) for path in paths]
    sys.path[:0] = [path for path in new if path not in sys.path]


@contextlib.contextmanager
def loading(options: Options) -> Iterator[None]:
    """Read ZCML in this block; the loggers have been set up."""
    log.debug('Set up by %s and %s', os.path.abspath(options.configfile),
              options.site_definition)
    try:
        yield
    except Exception as error:
        # Here, as the loggers are put back before it is reported. ZCML hides
        # the error behind its own.
        log.debug('This ends the program', exc_info=error.__context__ or error)
        raise


@contextlib.contextmanager
def without_interaction() -> Iterator[None]:
    """End the interaction for the block, and put it back afterwards."""
    outer = zope.security.management.queryInteraction()
    zope.security.management.endInteraction()
    try:
        yield
    finally:
        zope.security.management.endInteraction()
        if outer is not None:
            zope.security.management.thread_local.interaction = outer


def check_connection(app: ISite) -> None:
    """RuntimeError unless this thread commits what is changed in `app`."""
    connection = getattr(app, '_p_jar', None)
    if connection is None:
        return
    manager = connection.transaction_manager
    if manager is None:
        raise RuntimeError('the connection of the site is closed')
    if manager not in (transaction.manager, transaction.manager.manager):
        raise RuntimeError(
            'the connection of the site belongs to another thread, or to a '
            'transaction manager of its own, so nothing would be committed: '
            'open the database in the thread that runs the loop')


def has_lost_connection(site: ISite) -> bool:
    """Whether the connection is closed, as code in a tick has done it.

    It would go on with the state that it has read, and see no changes.
    """
    connection = getattr(site, '_p_jar', None)
    return connection is not None and connection.opened is None


def check_databases(site: ISite) -> None:
    """Raise DatabaseClosed if no later tick can work with the databases.

    A FileStorage closes itself when the last step of a commit fails.
    `gocept-runner up`, which has served one, may have ended.
    """
    if has_lost_connection(site):
        raise _closed('the connection of the site was closed in a tick')
    connection = getattr(site, '_p_jar', None)
    if connection is None:
        return
    for database in connection.db().databases.values():
        for part in parts_of(database.storage):
            if isinstance(part, FileStorage) and part._files.closed:
                raise _closed(f'the database {name_of(database.storage)} has '
                              'closed itself after an error')
            if _is_abandoned(part):
                raise _closed(
                    f'nobody serves {name_of(database.storage)} any more, as '
                    '"gocept-runner up" has ended')


def _is_abandoned(storage: object) -> bool:
    """Whether it is the client of a server that does not come again."""
    client = sys.modules.get('gocept.runner.boot.zeoclient')
    return (client is not None and isinstance(storage, client.ServedStorage)
            and storage.is_abandoned)


def _closed(reason: str) -> DatabaseClosed:
    error = DatabaseClosed(
        f'{reason}, so no tick can work any more: start the program again')
    log.critical('%s', error)
    return error


@contextlib.contextmanager
def reaping_strangers() -> Iterator[None]:
    """Reap what others leave to the first process of a container.

    That is this process, or nothing is done.
    """
    if os.getpid() != 1:
        yield
        return
    # A worker without children imports nothing of this room.
    from gocept.runner.process.adoption import adoption
    with adoption.reaping_strangers():
        yield


@contextlib.contextmanager
def supervised(shutdown_timeout: float) -> Iterator[ISupervisor | None]:
    """Start what ZCML declares as eager; at the end, stop all children.

    Hands out the `ISupervisor`, or None if ZCML includes none. The errors are
    those of `ISupervisor.running`.
    """
    supervisor = zope.component.queryUtility(ISupervisor)
    with (contextlib.nullcontext() if supervisor is None
          else supervisor.running(shutdown_timeout), OneProcess()):
        yield supervisor


def stop_children(timeout: float) -> None:
    """Stop the children that code has started outside of `supervised`."""
    supervisor = zope.component.queryUtility(ISupervisor)
    if supervisor is not None:
        supervisor.stop(timeout)


def log_start(name: str, loop: Loop, appname: str | None, site: ISite) -> None:
    """Say in one line which worker is to run."""
    log.info(
        'Worker %r starts: %s, in %s of %s', name,
        'one tick' if loop.once
        else f'a tick every {loop.ticks} s' if loop.schedule is None
        else f'a tick at each time of {loop.schedule}',
        f'the site {appname!r}' if (appname or '').strip('/')
        else 'the root folder',
        name_of(site._p_jar.db().storage))


def tell_classes_of_script() -> None:
    """Warn of persistent classes in the script that is run.

    The database stores the name of a class and that of its module.
    """
    script = sys.modules['__main__']
    for name, each in list(vars(script).items()):
        if (isinstance(each, type) and issubclass(each, persistent.Persistent)
                and each.__module__ == script.__name__):
            log.warning(
                'Other programs cannot find the class %s of this script, so '
                'its objects in the database would be broken there: move it '
                'to a module', name)
