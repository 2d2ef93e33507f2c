"""Reading a zope.conf: ``zopeconf.xml`` is its schema."""

import functools
import os.path
import urllib.parse
from collections.abc import Sequence
from typing import Protocol

import ZConfig
import ZConfig.cfgparser
import ZConfig.loader
import ZConfig.matcher
import ZODB.config
from ZConfig.components.logger.logger import LoggerFactoryBase

from gocept.runner.boot import environments
from gocept.runner.boot.environments import ConfigFile
from gocept.runner.errors import ConfigurationError

here = os.path.dirname(__file__)

BUILT_IN = os.path.join(os.path.dirname(os.path.abspath(here)), 'site.zcml')
"""The site definition where a zope.conf names none."""


class Options(environments.Options, Protocol):
    """What is in a zope.conf."""

    databases: Sequence[ZODB.config.ZODBDatabase]
    eventlog: LoggerFactoryBase | None
    loggers: Sequence[LoggerFactoryBase]
    path: Sequence[str]
    devmode: bool
    product_config: Sequence[ZConfig.matcher.SectionValue]
    web_sections: Sequence[ZConfig.matcher.SectionValue]

    def getSectionAttributes(self) -> list[str]:
        """The names of all attributes."""


def read(configfile: ConfigFile, schema: ZConfig.info.SchemaType,
         ) -> ZConfig.matcher.SectionValue:
    """Read a file that has this schema; each error names the file.

    The attribute `handlers` of the options is called with the functions that
    the schema names, by name; it calls these.
    """
    if not os.path.isfile(configfile):
        raise ZConfig.ConfigurationError(_no_file(configfile))
    try:
        with open(configfile, encoding='utf-8') as file:
            options, handlers = _Loader(schema).loadFile(
                file, _url(configfile))
    except ZConfig.ConfigurationError as error:
        if getattr(error, 'lineno', None) is not None:
            raise
        message = error.message
        if "'zodb.database'; 0 found" in message:
            message = 'a <zodb> section is needed'
        raise ZConfig.ConfigurationError(
            f'{configfile}: {message}') from error
    except (OSError, ConfigurationError):
        raise
    except Exception as error:  # of a data type, such as a wrong log format
        raise ConfigurationError(
            f'{configfile}: {type(error).__name__}: {error}') from error
    options.configfile, options.handlers = os.fspath(configfile), handlers
    return options


def load(configfile: ConfigFile) -> Options:
    """Read a zope.conf; each error names the file."""
    options = read(configfile, _schema())
    names = [database.name or '' for database in options.databases]
    for name, database in zip(names, options.databases, strict=True):
        if names.count(name) > 1:
            raise ConfigurationError(
                f'{configfile}: more than one <zodb> is called {name!r}; '
                'the name follows the word: <zodb name>')
        if database.config.storage is None:
            raise ConfigurationError(
                f'{configfile}: a <zodb> section needs a storage, such as '
                '<filestorage>')
    options.built_in = not options.site_definition
    options.site_definition = os.path.abspath(
        options.site_definition or BUILT_IN)
    return options  # type: ignore[no-any-return]


def _no_file(configfile: ConfigFile) -> str:
    if os.path.isdir(configfile):
        what = f'{configfile} is a directory'
    else:
        what = f'no such file: {configfile}'
    if not os.path.isabs(configfile):
        what += f' in {os.getcwd()}'
    if os.fspath(configfile) == os.environ.get('ZOPE_CONF'):
        what += ', which $ZOPE_CONF names'
    return f'{what}; name a zope.conf with --config or in $ZOPE_CONF'


@functools.cache
def _schema() -> ZConfig.info.SchemaType:
    path = os.path.join(here, 'zopeconf.xml')
    with open(path, encoding='utf-8') as file:
        return ZConfig.loadSchemaFile(file, _url(path))


_SCHEME = 'file://'


def _url(path: ConfigFile) -> str:
    # Given a path, ZConfig would open it with urllib, whose import takes time.
    return _SCHEME + urllib.parse.quote(os.path.abspath(path))


def path_of(url: str) -> str:
    """The path of a file that an error of ZConfig names."""
    return urllib.parse.unquote(url.removeprefix(_SCHEME))


class _Names(dict[str, str]):
    """What ``%define`` defines.

    Unless a file defines ``here`` itself, this is the directory of the file.
    """

    here = ''

    def get(self, name: str, default: str | None = None,  # type: ignore
            ) -> str | None:
        """The value that takes the place of ``$name``."""
        value = super().get(name, default)
        return self.here if value is None and name == 'here' else value


class _Loader(ZConfig.loader.ConfigLoader):  # type: ignore[misc]
    """Knows ``$here``, and names file and line of each error it can."""

    def includeConfiguration(self, section: ZConfig.matcher.BaseMatcher,
                             url: str, names: _Names) -> None:
        try:
            super().includeConfiguration(section, url, names)
        except UnicodeError as error:
            raise _not_utf8(path_of(url), error) from error

    def _parse_resource(self, matcher: ZConfig.matcher.BaseMatcher,
                        resource: ZConfig.loader.Resource,
                        names: _Names | None = None) -> None:
        names = _Names() if names is None else names
        outer, path = names.here, path_of(resource.url)
        names.here = os.path.dirname(path)
        parser = ZConfig.cfgparser.ZConfigParser(resource, self, names)
        try:
            parser.parse(matcher)
        except ZConfig.ConfigurationError as error:
            lineno, url = getattr(error, 'lineno', None), error.url
            message = _explained(error.message)
            if (message == error.message and lineno is not None
                    and type(error) is not ZConfig.ConfigurationError):
                raise
            # Some errors do not know their line, and others do not show it.
            raise ZConfig.ConfigurationSyntaxError(
                message, url if lineno is not None else resource.url,
                parser.lineno if lineno is None else lineno) from error
        except UnicodeError as error:
            raise _not_utf8(path, error) from error
        names.here = outer


def _not_utf8(path: str, error: UnicodeError) -> ConfigurationError:
    return ConfigurationError(f'{path} is not in UTF-8: {error}')


_PACKAGES = {'relstorage': 'relstorage', 'clientstorage': 'ZEO'}
"""Section types that users know, and what imports them."""


def _explained(message: str) -> str:
    if '\\ufeff' in message:
        return ('the file begins with a byte order mark: save it as UTF-8 '
                'without this mark')
    if message == "None is not an allowed name for 'zodb.database' sections":
        return 'the section of a database needs a name, as in <zodb_db main>'
    for name, package in _PACKAGES.items():
        if message == f'unknown type name: {name!r}':
            return f'{message}: put "%import {package}" before it'
    return message
