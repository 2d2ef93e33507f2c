"""Applications of the Zope Toolkit, as those of zope.app.appsetup.

`gocept.runner.boot.zopeconf` reads their zope.conf.
"""

import contextlib
import os.path
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import transaction
import ZODB.broken
import ZODB.config
import ZODB.interfaces
import zope.component
import zope.event
import zope.interface
import zope.interface.interfaces
import zope.processlifetime
from ZODB.ActivityMonitor import ActivityMonitor
from zope.app.appsetup import appsetup, product
from zope.authentication.interfaces import IAuthentication
from zope.component.hooks import getSiteManager
from zope.component.interfaces import ISite

from gocept.runner.boot import loggers, registrations, zopeconf
from gocept.runner.boot.creation import Creation
from gocept.runner.boot.databases import (
    close_database,
    connected,
    opening_of,
    ownership,
)
from gocept.runner.boot.environment import (
    APPLICATION,
    loading,
    set_paths,
    without_interaction,
)
from gocept.runner.boot.environments import NOTHING_SAID, ConfigFile, Settings
from gocept.runner.boot.served import share
from gocept.runner.boot.site import CurrentSite
from gocept.runner.boot.sqlite import forget_aborted
from gocept.runner.boot.zopeconf import Options
from gocept.runner.errors import (
    ConfigurationError,
    NoSuchSite,
    NotASiteError,
    UsageError,
)
from gocept.runner.events import hearing
from gocept.runner.interfaces import IEnvironment, IMainDatabase
from gocept.runner.logs import Log

log = Log('gocept.runner.environment')


@zope.interface.implementer(IEnvironment, IMainDatabase)
class Toolkit:
    """See `IEnvironment`."""

    name = 'toolkit'

    def __init__(self, settings: Settings = NOTHING_SAID) -> None:
        self._settings = settings
        for option, value, reason in (
                ('--server-url', settings.server_url,
                 'in which a worker has no URL'),
                ('--log-config', settings.log_config,
                 'whose zope.conf has an <eventlog>')):
            if value is not None:
                raise UsageError(f'{option} is for applications of Zope; this '
                                 f'is one of the Zope Toolkit, {reason}')

    def load(self, configfile: ConfigFile) -> Options:
        """See `IEnvironment`."""
        return zopeconf.load(configfile)

    def main_database(self, options: Options) -> ZODB.config.ZODBDatabase:
        """See `IMainDatabase`."""
        return options.databases[0]

    @contextlib.contextmanager
    def configured(self, options: Options, *, verbose: int = 0,
                   logs: bool = True) -> Iterator[None]:
        """See `IEnvironment`."""
        with contextlib.ExitStack() as undo:
            set_paths(options.path, undo)
            undo.callback(product.restoreConfiguration,
                          product.saveConfiguration())
            product.setProductConfigurations(options.product_config)
            replaced = loggers.set_up(
                undo, options.configfile, verbose=verbose,
                factories=[*filter(None, [options.eventlog]),
                           *options.loggers],
                log_format=self._settings.log_format) if logs else []
            with loading(options):
                _report_ignored(options)
                _load_zcml(options, undo)
            yield
            undo.pop_all()
        loggers.close(replaced)

    @contextlib.contextmanager
    def opened(self, options: Options, *, create: bool = True,
               opening: Callable[[], AbstractContextManager[object]]
               = nullcontext) -> Iterator[ISite]:
        """See `IEnvironment`."""
        with contextlib.ExitStack() as close:
            with opening():
                database = close.enter_context(
                    open_databases(options, create=create))
            _notify_opened(database)
            yield close.enter_context(connected(database)).root()[APPLICATION]

    def find_site(self, root: ISite, path: str | None) -> ISite:
        """See `IEnvironment`."""
        return find_site(root, path)

    def find_principal(self, principal: object) -> object:
        """See `IEnvironment`."""
        return getSiteManager().getUtility(IAuthentication).getPrincipal(
            principal)

    def entered(self, app: ISite, principal: Callable[[], object], name: str,
                replaced: Callable[[ISite], object]) -> CurrentSite:
        """See `IEnvironment`."""
        return CurrentSite(app, principal, name, replaced)

    def product_configuration(self, section: str) -> Mapping[str, str] | None:
        """See `IEnvironment`."""
        return cast(Mapping[str, str] | None,
                    product.getProductConfiguration(section))


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
    share(options.databases)
    with contextlib.ExitStack() as close:
        creations = [Creation(factory, create)
                     for factory in options.databases]
        for factory, creation in zip(
                options.databases, creations, strict=True):
            name = factory.name or ''
            with opening_of(factory, options.configfile):
                database = databases[name] = factory.open()
            close.callback(close_database, database)
            forget_aborted(database)
            creation.report()
            database.databases, database.database_name = databases, name
            database.setActivityMonitor(ActivityMonitor())
            utility = database, ZODB.interfaces.IDatabase, name
            components.registerUtility(*utility)
            close.callback(components.unregisterUtility, *utility)
        main = databases[options.databases[0].name or '']
        with ownership(databases.values()):
            _ensure_root_folder(main, creations[0])
            yield main


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
    with hearing(seen.append):
        zope.event.notify(zope.processlifetime.DatabaseOpened(database))
    if not any(zope.processlifetime.IDatabaseOpenedWithRoot.providedBy(event)
               for event in seen):
        zope.event.notify(
            zope.processlifetime.DatabaseOpenedWithRoot(database))


def _whole(site: ISite, what: str) -> ISite:
    """`site`, or ConfigurationError if its class cannot be imported."""
    if isinstance(site, ZODB.broken.Broken):
        kind = site.__class__  # not that of a proxy around it
        raise ConfigurationError(
            f'{what} is a {kind.__module__}.{kind.__name__}, which ' + (
                'only the script can find that has stored it; move the class '
                'to a module' if kind.__module__ == '__main__' else
                'cannot be imported; is `path` in zope.conf set?'))
    return site


def find_site(root: ISite, path: str | None) -> ISite:
    """See `IEnvironment`."""
    what = 'the root folder'
    site = _whole(root, what)
    names = [] if path in (None, '/') else path.strip('/').split('/')
    for number, name in enumerate(names, 1):
        if not hasattr(site, '__getitem__'):
            raise NoSuchSite(
                f'{what} is a {site.__class__.__name__}, which contains '
                f'nothing, so there is no {name!r}')
        try:
            site = site[name]
        except KeyError as error:
            if error.args != (name,):
                raise  # a bug of the folder, or a broken database
            raise NoSuchSite(f'{what} has no object {name!r}') from None
        what = f'{"/".join(names[:number])!r} in the root folder'
        site = _whole(site, what)
    try:
        # What its own code raises is a bug, and none of these.
        if not hasattr(site, 'getSiteManager'):
            raise zope.interface.interfaces.ComponentLookupError
        site.getSiteManager()
    except zope.interface.interfaces.ComponentLookupError:
        raise NotASiteError(
            f'{what} is a {site.__class__.__name__} without a site manager, '
            'so it cannot be the site') from None
    return site
