"""Reading the zope.conf of a Zope, and doing what it says before a start."""

import contextlib
import os.path
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import App.config
import ZConfig
import Zope2.Startup
import Zope2.Startup.handlers
import Zope2.utilities
from Zope2.Startup.datatypes import DBTab, ZopeDatabase
from Zope2.Startup.options import ZopeWSGIOptions

from gocept.runner.boot import environments, zopeconf
from gocept.runner.boot.environments import ConfigFile
from gocept.runner.errors import ConfigurationError

Handlers = Callable[[Mapping[str, Callable[[object], object]]], object]
"""Called with the functions that the schema names, it calls these."""


class Options(environments.Options, Protocol):
    """What is in a zope.conf."""

    instancehome: str
    databases: Sequence[ZopeDatabase]

    dbtab: DBTab
    """Opens the databases, by the places at which they are mounted."""

    handlers: Handlers


def load(configfile: ConfigFile) -> Options:
    """Read a zope.conf; see `IEnvironment`."""
    reader = ZopeWSGIOptions()
    reader.load_schema()
    try:
        with _variables_of_buildout():
            options = zopeconf.read(configfile, reader.schema)
    except (ZConfig.ConfigurationError, ConfigurationError) as error:
        if not any(each in str(error) for each in (
                'a <zodb> section is needed', 'getVirtualMountPaths')):
            raise
        raise ConfigurationError(
            f'{configfile}: a <zodb_db> section is needed; <zodb> is of no '
            'use here, as it has no mount-point') from error
    if '/' not in options.dbtab.mount_paths:
        raise ConfigurationError(
            f'{configfile}: one <zodb_db> section needs "mount-point /", for '
            'the root of the application')
    for database in options.databases:
        if database.config.storage is None:
            raise ConfigurationError(
                f'{configfile}: the section <zodb_db {database.getName()}> '
                'needs a storage, such as <filestorage>')
    options.site_definition = _site_definition(options.instancehome)
    options.built_in = False
    return options  # type: ignore[no-any-return]


@contextlib.contextmanager
def _variables_of_buildout() -> Iterator[None]:
    """Set what only the ``bin/instance`` of plone.recipe.zope2instance sets.

    Its zope.conf names ZEO_TMP as the place of the cache of a ZEO client.
    """
    is_set = 'ZEO_TMP' in os.environ
    os.environ.setdefault('ZEO_TMP', tempfile.gettempdir())
    try:
        yield
    finally:
        if not is_set:
            del os.environ['ZEO_TMP']


def _site_definition(instancehome: str) -> str:
    path = os.path.join(instancehome, 'etc', 'site.zcml')
    if os.path.exists(path):
        return path
    # What Zope takes where an instance has none.
    return os.path.join(os.path.dirname(Zope2.utilities.__file__),
                        'skel', 'etc', 'site.zcml')


def apply(options: Options, undo: contextlib.ExitStack) -> None:
    """Set up the process as the file says, but for components."""
    undo.callback(os.environ.update, dict(os.environ))
    undo.callback(os.environ.clear)  # called first
    undo.callback(setattr, App.config, '_config', App.config._config)
    try:
        Zope2.Startup.handlers.handleWSGIConfig(options, options.handlers)
    except OSError as error:  # it asks for the addresses of hosts
        raise ConfigurationError(
            f'{options.configfile}: trusted-proxy: {error}') from error
    # Also tells Zope by variables of the environment where the instance is.
    App.config.setConfiguration(options)
    # Some modules look at the configuration when they are imported, so they
    # are not imported before this.
    starter = Zope2.Startup.get_wsgi_starter()
    starter.setConfiguration(options)
    starter.setupSecurityOptions()
