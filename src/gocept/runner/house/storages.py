"""The FileStorages of a zope.conf, as a program of its own tells them.

What reads a zope.conf imports a good part of Zope. `up` lives long and has no
other use for all that, so it starts this program, which ends at once; see
`gocept.runner.house.zeostart`.
"""

import importlib.util
import json
import os.path
from collections.abc import Mapping
from typing import Any, TypedDict

import ZConfig

from gocept.runner.boot import environments, messages
from gocept.runner.boot.environments import Settings
from gocept.runner.boot.served import SharedBlobs, SharedFile, file_storages
from gocept.runner.errors import BAD_CONFIGURATION, ConfigurationError


class Options(TypedDict):
    """What the program finds on standard input."""

    config: str
    application: str | None
    """The kind of application; None: the zope.conf tells it."""


class FileSection(TypedDict):
    """A ``<filestorage>``, perhaps with the ``<blobstorage>`` around it."""

    path: str
    """Absolute."""
    options: Mapping[str, Any]
    """All keys of the section, with underscores, and their values."""


class Found(TypedDict):
    """What the program writes to standard output, as a line of JSON."""

    files: list[FileSection]
    """Those that one process at a time can open."""
    has_zeo: bool
    """Whether the package ZEO is installed."""


class Refused(TypedDict):
    """What it writes if the zope.conf cannot be read."""

    error: str
    status: int


class _Refusal(Exception):

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def run(options: Options) -> int:
    """Write what there is; returns the status."""
    try:
        with messages.guard(_Refusal)(BAD_CONFIGURATION, OSError, ValueError,
                                      ZConfig.ConfigurationError):
            _say(Found(files=_files(options), has_zeo=has_zeo()))
    except _Refusal as error:
        _say(Refused(error=str(error), status=error.status))
        return error.status
    return 0


def has_zeo() -> bool:
    """Whether the package ZEO is installed."""
    return importlib.util.find_spec('ZEO') is not None


def _say(words: Found | Refused) -> None:
    print(json.dumps(words), flush=True)


def _files(options: Options) -> list[FileSection]:
    config = options['config']
    read = environments.choose(
        config, Settings(options['application'])).load(config)
    files: dict[str, FileSection] = {}
    for storage in file_storages(getattr(read, 'databases', ())):
        if storage.path in files:
            raise ConfigurationError(
                f'{config} names the file {storage.path} in two sections')
        files[storage.path] = _section(storage)
    return [*files.values()]


def _section(storage: SharedFile | SharedBlobs) -> FileSection:
    file = storage.file
    options = {name: getattr(file, name)
               for name in file.getSectionAttributes()}
    blob_dir = storage.blob_dir or options['blob_dir']
    return {'path': storage.path, 'options': {
        **options, 'path': storage.path,
        'blob_dir': blob_dir and os.path.abspath(blob_dir)}}
