"""The start of Zope, which is there once in a process.

Zope imports its products and reads its ZCML when it starts, after it has
opened the database. Here this is done before, so that the declared workers can
be listed while an instance has its database locked.
"""

import contextlib
import os.path
from collections.abc import Callable
from pathlib import Path

import App.config
import App.ZApplication
import OFS.Application
import transaction
import zope.event
import Zope2
import Zope2.App.patches
import Zope2.App.startup
import Zope2.App.zcml
from AccessControl.SecurityManagement import (
    newSecurityManager,
    noSecurityManager,
)
from AccessControl.users import system
from ZODB import DB
from zope.processlifetime import DatabaseOpened, DatabaseOpenedWithRoot

from gocept.runner.boot import registrations
from gocept.runner.boot.dryrun import dry_run
from gocept.runner.boot.environment import APPLICATION, without_interaction
from gocept.runner.boot.zope.configuration import Options
from gocept.runner.errors import ConfigurationError


class _Process:
    """What was done in this process."""

    configfile: str | None = None
    """The zope.conf whose ZCML was read."""

    has_started = False


def check_process(options: Options) -> None:
    """ConfigurationError if this process has read another zope.conf."""
    read = _Process.configfile
    if read is not None and read != os.path.realpath(options.configfile):
        raise ConfigurationError(
            f'Zope was set up in this process by {read}, so it cannot be by '
            f'{options.configfile}: run the other worker in a process of its '
            'own')


def load_components(options: Options) -> None:
    """Import the products and read the ZCML, unless this was done."""
    if _Process.configfile is not None:
        return
    with contextlib.ExitStack() as undo:
        registrations.restore_with(undo)
        undo.callback(setattr, Zope2.App.zcml, '_initialized', False)
        undo.callback(setattr, Zope2.App.zcml, '_context', None)
        Zope2.App.patches.apply_patches()
        OFS.Application.import_products()
        with without_interaction():
            newSecurityManager(None, system)
            undo.callback(noSecurityManager)
            Zope2.App.startup.load_zcml()
            noSecurityManager()
        undo.pop_all()
    _Process.configfile = os.path.realpath(options.configfile)


def start(database: DB, create: bool) -> None:
    """Start Zope on its open database.

    Zope adds to the database what is missing there. Without `create`, nothing
    is changed, and the file of the initial user is left for the first start
    that may change something.
    """
    initializer = _Initializer if create else _DryInitializer
    with contextlib.ExitStack() as stack:
        if not create:
            stack.enter_context(dry_run())
        stack.callback(setattr, OFS.Application, 'AppInitializer',
                       OFS.Application.AppInitializer)
        OFS.Application.AppInitializer = initializer
        stack.callback(noSecurityManager)
        if not _Process.has_started:
            Zope2._began_startup = 1
            Zope2.App.startup.startup()
            _Process.has_started = True
        else:
            _start_again(database)


class _Initializer(OFS.Application.AppInitializer):  # type: ignore[misc]
    """Adds what is missing, though another process may do the same now."""

    def install_required_roles(self) -> None:
        _retry(super().install_required_roles)

    def install_inituser(self) -> None:
        # The file is deleted when it is read, before the commit.
        path = Path(App.config.getConfiguration().instancehome, 'inituser')
        content, install = None, super().install_inituser
        with contextlib.suppress(OSError):  # most often there is none
            content = path.read_bytes()

        def write_back() -> None:
            if content is not None and not path.exists():
                path.write_bytes(content)

        def install_from_file() -> None:
            write_back()
            install()
        try:
            _retry(install_from_file)
        except BaseException:  # such as a full disk
            with contextlib.suppress(OSError):
                write_back()
            raise

    def install_standards(self) -> None:
        _retry(super().install_standards)

    def install_virtual_hosting(self) -> None:
        _retry(super().install_virtual_hosting)

    def install_root_view(self) -> None:
        _retry(super().install_root_view)


class _DryInitializer(_Initializer):
    """Leaves the file of the initial user."""

    def install_inituser(self) -> None:
        pass


def _retry(step: Callable[[], object]) -> None:
    """Call it again after a conflict; it commits itself."""
    for attempt in transaction.manager.attempts():
        with attempt:
            step()


def _start_again(database: DB) -> None:
    """Do what Zope's start does with a database, the second time.

    The products are initialized once.
    """
    zope.event.notify(DatabaseOpened(database))
    Zope2.DB = database
    Zope2.opened.append(database)
    Zope2.bobo_application = Zope2.App.startup.app = (
        App.ZApplication.ZApplicationWrapper(
            database, APPLICATION, OFS.Application.Application))
    zope.event.notify(DatabaseOpenedWithRoot(database))


def stop(database: DB) -> None:
    """Forget the database, which is closed then."""
    Zope2.DB = Zope2.bobo_application = Zope2.App.startup.app = None
    with contextlib.suppress(ValueError):
        Zope2.opened.remove(database)
