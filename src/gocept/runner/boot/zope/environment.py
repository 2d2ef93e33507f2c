"""Zope 5, Zope 6 and Plone, as a kind of application.

Nothing of Zope is imported here before it is needed, since Zope may not be
installed.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import zope.interface
from zope.component.hooks import getSite
from zope.interface.interfaces import ComponentLookupError

from gocept.runner.boot import loggers
from gocept.runner.boot.databases import connected
from gocept.runner.boot.environment import loading
from gocept.runner.boot.environments import ConfigFile, Settings
from gocept.runner.boot.zope.garbage import no_collections
from gocept.runner.boot.zope.serverurl import ServerURL
from gocept.runner.errors import ConfigurationError
from gocept.runner.interfaces import IEnvironment, IMainDatabase

if TYPE_CHECKING:
    from zope.component.interfaces import ISite
    from Zope2.Startup.datatypes import ZopeDatabase

    from gocept.runner.boot.zope.configuration import Options
    from gocept.runner.boot.zope.site import CurrentSite


@zope.interface.implementer(IEnvironment, IMainDatabase)
class ZopeEnvironment:
    """See `IEnvironment`."""

    name = 'zope'

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = (ServerURL() if settings.server_url is None
                     else ServerURL.parse(settings.server_url))

    def load(self, configfile: ConfigFile) -> 'Options':
        """See `IEnvironment`."""
        with no_collections():
            try:
                from gocept.runner.boot.zope.configuration import load
            except ModuleNotFoundError as error:
                raise ConfigurationError(
                    f'{configfile} belongs to Zope, which is not installed '
                    f'here ({error}): pip install "gocept.runner[zope6]", or '
                    'use the environment of the Zope instance') from error
            return load(configfile)

    def main_database(self, options: 'Options') -> 'ZopeDatabase':
        """See `IMainDatabase`."""
        name = options.dbtab.getName('/')
        return next(database for database in options.databases
                    if database.getName() == name)

    @contextlib.contextmanager
    def configured(self, options: 'Options', *, verbose: int = 0,
                   logs: bool = True) -> Iterator[None]:
        """See `IEnvironment`."""
        from gocept.runner.boot.zope.configuration import apply
        with contextlib.ExitStack() as undo:
            with no_collections():
                apply(options, undo)
                from gocept.runner.boot.zope import startup
            startup.check_process(options)
            replaced = loggers.set_up(
                undo, options.configfile, verbose=verbose,
                log_config=self._settings.log_config,
                log_format=self._settings.log_format) if logs else []
            with loading(options), no_collections():
                startup.load_components(options)
            yield
            undo.pop_all()
        loggers.close(replaced)

    @contextlib.contextmanager
    def opened(self, options: 'Options', *, create: bool = True,
               opening: Callable[[], AbstractContextManager[object]]
               = nullcontext) -> Iterator['ISite']:
        """See `IEnvironment`."""
        import Zope2
        from zope.globalrequest import clearRequest, setRequest

        from gocept.runner.boot.zope import startup
        from gocept.runner.boot.zope.databases import open_databases
        from gocept.runner.boot.zope.request import request_of, with_request
        with contextlib.ExitStack() as close:
            with no_collections(is_last=True):
                with opening():
                    database = close.enter_context(
                        open_databases(options, create=create))
                close.callback(startup.stop, database)
                startup.start(database, create)
            connection = close.enter_context(connected(database))
            root = with_request(
                Zope2.bobo_application(connection=connection), self._url)
            setRequest(request_of(root))
            close.callback(clearRequest)
            yield root

    def find_site(self, root: 'ISite', path: str | None) -> 'ISite':
        """See `IEnvironment`."""
        from gocept.runner.boot.zope.place import find_site
        return find_site(root, path)  # type: ignore[no-any-return]

    def find_principal(self, principal: object) -> object:
        """See `IEnvironment`."""
        from zope.globalrequest import getRequest

        from gocept.runner.boot.zope.user import find_user
        site, request = getSite(), getRequest()
        if site is None and request is not None:
            site = request['PARENTS'][-1]
        if site is None:
            raise ComponentLookupError(
                'no site is set, so no user folder can be asked')
        return find_user(site, principal)

    def entered(self, app: 'ISite', principal: Callable[[], object],
                name: str, replaced: Callable[['ISite'], object],
                ) -> 'CurrentSite':
        """See `IEnvironment`."""
        from gocept.runner.boot.zope.site import CurrentSite
        return CurrentSite(app, principal, name, replaced, self._url)

    def product_configuration(self, section: str) -> Mapping[str, str] | None:
        """See `IEnvironment`."""
        from App.config import getConfiguration
        found = getConfiguration().product_config.get(section)
        if found is None or isinstance(found, Mapping):
            return found
        # A section with a schema of its own, which a product has imported.
        return {name.replace('_', '-'): str(getattr(found, name))
                for name in found.getSectionAttributes()}
