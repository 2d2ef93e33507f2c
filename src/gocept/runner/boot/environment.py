"""From zope.conf to an open database, in steps that undo themselves.

`gocept.runner.boot.zopeconf` reads the file. `configured` sets up paths,
product configuration, loggers and components, `open_databases` and `root_of`
open databases and a connection, and `find_site` looks up the object that
becomes the site. In `supervised`, the children run that ZCML declares.
`gocept.runner.boot.program` takes the steps in this order.
"""

import contextlib
import logging
import os.path
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence

import transaction
import ZODB.broken
import ZODB.config
import ZODB.interfaces
import zope.component
import zope.event
import zope.interface.interfaces
import zope.processlifetime
import zope.security.management
from ZConfig.components.logger.loghandler import NullHandler
from ZODB.ActivityMonitor import ActivityMonitor
from ZODB.FileStorage.FileStorage import FileStorage
from zope.app.appsetup import appsetup, product
from zope.component.hooks import getSite, setSite
from zope.component.interfaces import ISite

from gocept.runner.boot import registrations
from gocept.runner.boot.attempts import abort
from gocept.runner.boot.creation import Creation, name_of
from gocept.runner.boot.inherited import Inherited, parts_of
from gocept.runner.boot.zopeconf import Options
from gocept.runner.errors import (
    ConfigurationError,
    DatabaseClosed,
    NoSuchSite,
    NotASiteError,
)
from gocept.runner.events import Loop
from gocept.runner.interfaces import ISupervisor
from gocept.runner.logs import Log
from gocept.runner.waits.forks import OneProcess, tell_forks

log = Log('gocept.runner.environment')

APPLICATION = 'Application'
"""The name of the root folder, as in zope.app.publication."""


@contextlib.contextmanager
def configured(options: Options, *, verbose: int = 0, logs: bool = True,
               ) -> Iterator[None]:
    """Set up the process as zope.conf says; after an error, put it back.

    The block holds the other steps of booting: an error in the block has the
    same effect. When the block has ended well, the loggers, the product
    configuration and the components stay. A second call with the same site
    definition runs no ZCML. `verbose` shows all messages on standard error,
    and debug messages: 1 shows ours and those of the application, 2 also those
    of the libraries that we use. Without `logs` the loggers stay as they are,
    and no log file is opened.

    Raises zope.configuration's ConfigurationError for wrong ZCML, and
    `gocept.runner.errors.ConfigurationError` for another site definition.
    """
    with contextlib.ExitStack() as undo:
        _set_paths(options.path, undo)
        undo.callback(product.restoreConfiguration,
                      product.saveConfiguration())
        product.setProductConfigurations(options.product_config)
        replaced = _set_loggers(options, verbose, undo) if logs else []
        log.debug('Set up by %s and %s', os.path.abspath(options.configfile),
                  options.site_definition)
        _report_ignored(options)
        try:
            _load_zcml(options, undo)
        except Exception as error:
            # Here, as the loggers are put back before it is reported. ZCML
            # hides the error behind its own.
            log.debug('This ends the program',
                      exc_info=error.__context__ or error)
            raise
        yield
        undo.pop_all()
    for handler in replaced:
        with contextlib.suppress(ValueError):  # one that was not reopened
            handler.close()


def _set_paths(paths: Sequence[str], undo: contextlib.ExitStack) -> None:
    undo.callback(sys.path.__setitem__, slice(None), list(sys.path))
    new = [os.path.abspath(path) for path in paths]
    sys.path[:0] = [path for path in new if path not in sys.path]


# The handlers that a zope.conf of this process has installed.
_installed: weakref.WeakSet[logging.Handler] = weakref.WeakSet()


LIBRARIES = ('ZConfig', 'ZEO', 'ZODB', 'asyncio', 'concurrent', 'config',
             'persistent', 'relstorage', 'txn', 'zc', 'zodburi', 'zope')
"""The loggers of the libraries that a worker needs, not of its application.

The loggers of ZCML and of transactions are `config` and `txn`.
"""


def _set_loggers(options: Options, verbose: int, undo: contextlib.ExitStack,
                 ) -> list[logging.Handler]:
    replaced: list[logging.Handler] = []
    for factory in [options.eventlog, *options.loggers]:
        if factory is not None:
            logger = logging.getLogger(factory.name)
            _restore_logger_on_error(logger, undo)
            before = list(logger.handlers)
            try:
                factory()
            except OSError as error:
                raise ConfigurationError(
                    f'{options.configfile}: the log file of '
                    f'{factory.name or "<eventlog>"} cannot be opened: '
                    f'{error}') from error
            new = [h for h in logger.handlers if h not in before]
            _installed.update(new)
            for handler in new:
                _make_encodable(handler)
            # Handlers of an earlier zope.conf in this process are replaced, so
            # that no line is logged twice.
            if not all(isinstance(handler, NullHandler) for handler in new):
                for handler in _installed.intersection(before):
                    logger.removeHandler(handler)
                    replaced.append(handler)
    root = logging.getLogger()
    _restore_logger_on_error(root, undo)
    if verbose:
        root.setLevel(logging.DEBUG)
        for library in map(logging.getLogger, LIBRARIES):
            _restore_logger_on_error(library, undo)
            if verbose > 1:
                library.setLevel(logging.DEBUG)
            elif library.level == logging.NOTSET:  # unless a <logger> sets it
                library.setLevel(logging.INFO)
    elif options.eventlog is None and not root.handlers:
        root.setLevel(logging.INFO)
    else:
        return replaced
    if not any(getattr(handler, 'stream', None) is sys.stderr
               for handler in root.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(
            '%(asctime)s %(levelname)s %(name)s %(message)s'))
        root.addHandler(handler)
        _installed.add(handler)
    return replaced


def _make_encodable(handler: logging.Handler) -> None:
    """Let no character keep a line out of the log, such as a surrogate."""
    original = handler.format

    def encodable(record: logging.LogRecord) -> str:
        stream = getattr(handler, 'stream', None)
        encoding = getattr(stream, 'encoding', None) or 'utf-8'
        return original(record).encode(
            encoding, 'backslashreplace').decode(encoding)
    handler.format = encodable  # type: ignore[method-assign]


def _restore_logger_on_error(logger: logging.Logger,
                             undo: contextlib.ExitStack) -> None:
    handlers, level = list(logger.handlers), logger.level
    propagate = logger.propagate

    def restore() -> None:
        for handler in logger.handlers:
            if handler not in handlers:
                handler.close()
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
    undo.callback(restore)


def _report_ignored(options: Options) -> None:
    ignored = [f'<{section.getSectionType()}>'
               for section in options.web_sections]
    ignored += [name.removeprefix('web_').replace('_', '-')
                for name in options.getSectionAttributes()
                if name.startswith('web_') and name != 'web_sections'
                and getattr(options, name) is not None]
    if ignored:
        log.debug('Ignored in zope.conf, as only a web server needs it: %s',
                  ', '.join(ignored))


def _load_zcml(options: Options, undo: contextlib.ExitStack) -> None:
    wanted = options.site_definition
    if appsetup.getConfigContext() is not None:
        loaded = appsetup.getConfigSource()
        if os.path.realpath(loaded) != os.path.realpath(wanted):
            raise ConfigurationError(
                f'the site definition {loaded} was loaded in this process '
                f'before, so {wanted} cannot be: there is one component '
                'registry; run the other worker in a process of its own')
        return
    if not os.path.isfile(wanted):
        raise ConfigurationError(
            f'{options.configfile}: site-definition: no such file: {wanted} '
            f'(relative paths start in {os.getcwd()}, and $here is the '
            'directory of zope.conf)')
    features: tuple[str, ...] = ()
    if options.devmode:
        log.warning('Developer mode is on; turn it off where others have '
                    'access: devmode off')
        features = ('devmode',)
    registrations.restore_with(undo)
    undo.callback(appsetup.reset)
    with without_interaction():
        appsetup.config(wanted, features=features)


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


@contextlib.contextmanager
def open_databases(options: Options, *, create: bool = True,
                   ) -> Iterator[ZODB.DB]:
    """Open all databases, and hand out the first; close them at the end.

    An empty first database gets a root folder. Without `create`, nothing is
    created: DatabaseMissing is raised before.

    Raises what the storage raises if it is locked or cannot be reached, and
    ConfigurationError if the database belongs to another application.
    """
    components = zope.component.getGlobalSiteManager()
    databases: dict[str, ZODB.DB] = {}
    with contextlib.ExitStack() as close:
        creations = [Creation(factory, create)
                     for factory in options.databases]
        for factory, creation in zip(
                options.databases, creations, strict=True):
            name = factory.name or ''
            database = databases[name] = _open(factory, options.configfile)
            close.callback(_close, database)
            creation.report()
            database.databases, database.database_name = databases, name
            database.setActivityMonitor(ActivityMonitor())
            utility = database, ZODB.interfaces.IDatabase, name
            components.registerUtility(*utility)
            close.callback(components.unregisterUtility, *utility)
        main = databases[options.databases[0].name or '']
        inherited = Inherited(databases.values())
        tell_forks(inherited)
        _ensure_root_folder(main, creations[0])
        with OneProcess():
            yield main


def check_databases(site: ISite) -> None:
    """Raise DatabaseClosed if no later tick can work with the databases.

    A FileStorage closes itself when the last step of a commit fails.
    """
    connection = getattr(site, '_p_jar', None)
    if connection is None:
        return
    if connection.opened is None:
        raise _closed('the connection of the site was closed in a tick')
    for database in connection.db().databases.values():
        for part in parts_of(database.storage):
            if isinstance(part, FileStorage) and part._files.closed:
                raise _closed(f'the database {name_of(database.storage)} has '
                              'closed itself after an error')


def _closed(reason: str) -> DatabaseClosed:
    error = DatabaseClosed(
        f'{reason}, so no tick can work any more: start the program again')
    log.critical('%s', error)
    return error


def _close(database: ZODB.DB) -> None:
    try:
        database.close()
    except Exception:  # a full disk, say: what is committed is committed
        log.error('An error while the database %r was closed',
                  database.database_name, exc_info=True)


def _open(factory: ZODB.config.ZODBDatabase, configfile: str) -> ZODB.DB:
    try:
        return factory.open()
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f'{configfile}: a storage needs a package that is not installed: '
            f'{error}') from error


@contextlib.contextmanager
def root_of(database: ZODB.DB) -> Iterator[Mapping[str, ISite]]:
    """Send the events of an opened database, and hand out its root.

    At the end the site is the one from before, the transaction is aborted, and
    the connection is closed.
    """
    with contextlib.ExitStack() as close:
        _notify_opened(database)
        connection = database.open()
        close.callback(connection.close)
        close.callback(abort)
        # Callers set the site themselves; once closed, it cannot be used.
        close.callback(setSite, getSite())
        with OneProcess():
            yield connection.root()


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


def _ensure_root_folder(database: ZODB.DB, creation: Creation) -> None:
    # With its own manager, since this is not a transaction of the worker.
    manager = transaction.TransactionManager()
    connection = database.open(manager)
    try:
        # Another process may create the folder at the same time.
        for attempt in manager.attempts():
            with attempt:
                root = connection.root()
                if APPLICATION in root:
                    break
                if len(root):
                    raise ConfigurationError(
                        f'the database has no root folder {APPLICATION!r}, '
                        'so it belongs to another application: its root '
                        f'holds {", ".join(sorted(map(repr, root)))}')
                creation.of_root_folder(database.storage)
                root[APPLICATION] = _new_root_folder()
    finally:
        manager.abort()
        connection.close()


def _new_root_folder() -> ISite:
    from zope.lifecycleevent import ObjectCreatedEvent
    from zope.site.folder import rootFolder
    from zope.site.site import LocalSiteManager
    folder = rootFolder()
    zope.event.notify(ObjectCreatedEvent(folder))
    folder.setSiteManager(LocalSiteManager(folder))
    return folder


def _notify_opened(database: ZODB.DB) -> None:
    """Send the events that zope.app.appsetup sends for an opened database.

    Where ZCML includes the subscriber of zope.app.appsetup, that one sends the
    second event. Otherwise the second event is sent here.
    """
    seen: list[object] = []
    watch = seen.append
    zope.event.subscribers.append(watch)
    try:
        zope.event.notify(zope.processlifetime.DatabaseOpened(database))
    finally:
        zope.event.subscribers.remove(watch)
    if not any(zope.processlifetime.IDatabaseOpenedWithRoot.providedBy(event)
               for event in seen):
        zope.event.notify(
            zope.processlifetime.DatabaseOpenedWithRoot(database))


def log_start(name: str, loop: Loop, appname: str | None, site: ISite) -> None:
    """Say in one line which worker is to run."""
    log.info(
        'Worker %r starts: %s, in %s of %s', name,
        'one tick' if loop.once else f'a tick every {loop.ticks} s',
        'the root folder' if appname is None else f'the site {appname!r}',
        name_of(site._p_jar.db().storage))


def _whole(site: ISite, what: str) -> ISite:
    """`site`, or ConfigurationError if its class cannot be imported."""
    if isinstance(site, ZODB.broken.Broken):
        kind = type(site)
        raise ConfigurationError(
            f'{what} is a {kind.__module__}.{kind.__name__}, which cannot be '
            'imported; is `path` in zope.conf set?')
    return site


def find_site(root: Mapping[str, ISite], appname: str | None) -> ISite:
    """The root folder, or the object in it that `appname` names.

    Raises NoSuchSite if there is no such object, NotASiteError if it has no
    site manager, and ConfigurationError if its class cannot be imported.
    """
    site = _whole(root[APPLICATION], 'the root folder')
    what = 'the root folder'
    if appname is not None:
        what = f'{appname!r} in the root folder'
        try:
            site = site[appname]
        except KeyError as error:
            if error.args != (appname,):
                raise  # a bug of the root folder, or a broken database
            raise NoSuchSite(
                f'the root folder has no object {appname!r}') from None
        site = _whole(site, what)
    try:
        # What its own code raises is a bug, and none of these.
        if not hasattr(site, 'getSiteManager'):
            raise zope.interface.interfaces.ComponentLookupError
        site.getSiteManager()
    except zope.interface.interfaces.ComponentLookupError:
        raise NotASiteError(
            f'{what} is a {type(site).__name__} without a site manager, '
            'so it cannot be the site') from None
    return site
