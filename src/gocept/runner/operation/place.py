"""Where the files of a worker lie: beside its database, or with its user."""

import hashlib
import os.path
import re
from typing import Any, NamedTuple
from urllib.parse import quote

import ZODB.config

from gocept.runner.boot import environments
from gocept.runner.boot.environments import Options
from gocept.runner.interfaces import IMainDatabase
from gocept.runner.waits.statehome import state_home

_LONGEST = 128
"""Characters. The names of files have 255, and more stands around these."""


class Place(NamedTuple):
    """Where the files about the workers of one database lie."""

    directory: str
    """An absolute path. It may be missing if it is one of the user."""

    prefix: str
    """What the names of the files begin with."""

    @property
    def is_of_user(self) -> bool:
        """Whether the directory is one of the user."""
        return not self.prefix


def place_of(options: Options) -> Place:
    """The place for what `options` name, whose databases need not be open.

    Beside the file of a FileStorage, also if it is the base of another one
    that adds blobs or compression. Otherwise in a directory below that of
    `state_home`, whose ValueError this raises. The name of this directory
    stands for the addresses of a ZEO server and the name of the storage, or
    for what the adapter of a RelStorage connects to. Other storages, such as
    those in memory, are told apart by the path of zope.conf.
    """
    storage = _storage_of_root(options)
    if isinstance(storage, ZODB.config.FileStorage):
        directory, name = os.path.split(os.path.realpath(storage.config.path))
        return Place(directory, f'{name}.')
    kind, identity = _identity(storage)
    if not identity:
        kind = os.path.basename(options.configfile)
        identity = os.path.realpath(options.configfile)
    word = re.sub(r'\W+', '-', os.path.splitext(kind)[0]).strip('-')[:32]
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:8]
    return Place(os.path.join(state_home(), f'{word}-{digest}'), '')


def key_of(worker: str, site: str | None) -> str:
    """What this worker for this site is called.

    No two have the same: ``convert``, ``convert@intranet%2Fnews``.
    """
    path = '/'.join(filter(None, (site or '').split('/')))
    return '@'.join(quote(each, safe='') for each in (worker, path) if each)


def file_of(worker: str, site: str | None) -> str:
    """The beginning of the names of the files of this worker for this site.

    It is the `key_of` both. A key that is longer than the names of files may
    be is cut, and has a digest instead of the rest.
    """
    key = key_of(worker, site)
    if len(key) <= _LONGEST:
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return f'{key[:_LONGEST - len(digest) - 1]}~{digest}'


def _storage_of_root(options: Options) -> object:
    """The storage with the root of the application, as zope.conf says it."""
    known: Any = IMainDatabase(environments.current(), None)
    storage = known and known.main_database(options).config.storage
    while isinstance(base := getattr(getattr(
            storage, 'config', None), 'base', None), ZODB.config.BaseConfig):
        storage = base
    return storage


def _identity(storage: object) -> tuple[str, str]:
    """The kind of the storage, and a text that tells it from others.

    The text is empty if all of the storage may be in this process.
    """
    config: Any = getattr(storage, 'config', None)
    servers = getattr(config, 'server', None)
    if isinstance(servers, list):  # of ZODB or of ZEO itself
        addresses = sorted(str(each.address) for each in servers)
        return 'zeo', f'{addresses} {config.storage}'
    settings = getattr(getattr(config, 'adapter', None), 'config', None)
    connection = [(name, _PASSWORD.sub('', str(value)))
                  for name in _OF_CONNECTION
                  if (value := getattr(settings, name, None)) is not None]
    return ('relstorage', repr(connection)) if connection else ('', '')


_OF_CONNECTION = ('dsn', 'host', 'port', 'unix_socket', 'db', 'user',
                  'read_default_file', 'read_default_group', 'data_dir')
"""What the adapters of RelStorage connect to."""

_PASSWORD = re.compile(r"passw\w*\s*=\s*('[^']*'|\S*)")
"""In a dsn; the password may change."""
