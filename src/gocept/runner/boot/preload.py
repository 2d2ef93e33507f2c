"""Modules that a worker imports when it opens its databases, and when it runs.

To import them before a fork saves each worker the time and the memory. An
import opens nothing.
"""

import contextlib
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Protocol

_OF_SECTIONS = {
    'ZODB.config.DemoStorage': ('ZODB.DemoStorage',),
    'ZODB.config.FileStorage': (
        'ZODB.FileStorage',
        'gocept.runner.boot.zeoclient',  # as a server may have the file
    ),
    'ZODB.config.MappingStorage': ('ZODB.MappingStorage',),
    'ZODB.config.ZEOClient': ('ZEO.ClientStorage',),
    'relstorage.config.MySQLAdapterFactory': ('relstorage.adapters.mysql',),
    'relstorage.config.PostgreSQLAdapterFactory': (
        'relstorage.adapters.postgresql',),
    'relstorage.config.Sqlite3AdapterFactory': (
        'relstorage.adapters.sqlite.adapter',),
}
"""What a section of zope.conf imports when a storage of it is opened."""

_OF_WORKERS = (
    'gocept.runner.boot.served',
    'gocept.runner.boot.sqlite',
    'gocept.runner.operation.recorder',
    'gocept.runner.poller.thread',
)

_OF_APPLICATIONS = {
    'toolkit': (
        'encodings.latin_1',
        'zope.site.folder',  # the class of the root, which the database names
    ),
    'zope': (
        'OFS.Uninstalled',
        'Products.ZODBMountPoint.MountedObject',
        'Zope2.App.ClassFactory',
        'encodings.latin_1',
        'gocept.runner.boot.zope.databases',
        'gocept.runner.boot.zope.place',
        'gocept.runner.boot.zope.request',
        'gocept.runner.boot.zope.site',
        'gocept.runner.boot.zope.user',
        'zope.globalrequest',
    ),
}
"""By the kind of application."""

_OF_OPTIONS = {
    'lock': ('gocept.runner.operation.lock',),
    'schedule': ('gocept.runner.schedule.agenda',
                 'gocept.runner.schedule.runs',
                 'gocept.runner.schedule.timetable'),
    'tick_timeout': ('gocept.runner.operation.watchdog',),
    'watch': ('gocept.runner.boot.changes',),
}
"""By the attribute of a decorator whose value is not false."""


class Databases(Protocol):
    """The options of a zope.conf whose databases are sections."""

    databases: Iterable[object]


def preload(options: object, application: str,
            decorators: Iterable[object]) -> None:
    """Import what workers with these decorators will import.

    What is not installed, or fails, is left out: a worker that needs it says
    so itself.
    """
    names = [*_OF_WORKERS, *_OF_APPLICATIONS.get(application, ())]
    for section in _sections(getattr(options, 'databases', ())):
        kind = type(section)
        names += _OF_SECTIONS.get(
            f'{kind.__module__}.{kind.__qualname__}', ())
    for decorator in decorators:
        for attribute, modules in _OF_OPTIONS.items():
            if getattr(decorator, attribute, None):
                names += modules
    for name in dict.fromkeys(names):
        with contextlib.suppress(ImportError):
            import_module(name)


def _sections(value: object) -> Iterator[object]:
    """All sections in a value of a configuration."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _sections(each)
        return
    section = getattr(value, 'config', None)
    if section is not None:
        yield value
        for name in section.getSectionAttributes():
            yield from _sections(getattr(section, name))
