"""Opening a FileStorage that ``gocept-runner up`` may serve to all others.

Whoever has claimed the file (see `gocept.runner.boot.claim`) serves it on a
Unix socket beside it. While there is a claim, this process never opens the
file itself, even where nobody has locked it for a moment, as between the end
of a server and its restart. It waits for the socket.
"""

import contextlib
import importlib.util
import os.path
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, cast

import ZConfig.matcher
import ZODB.config
from zc.lockfile import LockError

from gocept.runner.boot import claim
from gocept.runner.boot.claim import Holder
from gocept.runner.errors import ConfigurationError
from gocept.runner.logs import Log
from gocept.runner.waits.deadline import Deadline

if TYPE_CHECKING:
    from ZODB.interfaces import IStorage

    from gocept.runner.poller import Poller

log = Log('gocept.runner.environment')

_INTERVAL = 1.0
"""Seconds, at most, until it is seen that a claim was given up, or that a
server listens again on the socket of one that was killed."""

_PATIENCE = 10.0
"""Seconds between two lines of the log about a server that does not come."""


def share(databases: Collection[ZODB.config.ZODBDatabase]) -> None:
    """Have the storages of these databases heed claims when they are opened.

    Waits until the files that are claimed are served: before that, one that is
    to be new may be missing.
    """
    for database in databases:
        for found in _shared(database):
            if found.is_claimed:
                _served(found.path)


def file_storages(databases: Collection[ZODB.config.ZODBDatabase],
                  ) -> 'list[SharedFile | SharedBlobs]':
    """The FileStorages of these databases that one process can open."""
    return [found for database in databases for found in _shared(database)
            if not found.is_read_only]


class SharedFile(ZODB.config.FileStorage):  # type: ignore[misc]
    """A section ``<filestorage>``."""

    file: Any
    """The configuration of the FileStorage."""

    def __init__(self, config: ZConfig.matcher.SectionValue) -> None:
        super().__init__(config)
        self.file = config

    @property
    def path(self) -> str:
        """The absolute path of the file."""
        path: str = self.file.path
        return os.path.abspath(path)

    @property
    def blob_dir(self) -> str | None:
        """The directory of its blobs, if it has some."""
        return cast(str | None, self.config.blob_dir)

    @property
    def is_read_only(self) -> bool:
        """Whether any number of processes can open it."""
        return bool(self.file.read_only)

    @property
    def is_claimed(self) -> bool:
        """Whether somebody serves the file, or is about to."""
        return claim.holder(self.path) is not None

    def open(self) -> 'IStorage':
        """The storage, by a server if there is a claim."""
        return _opened(self, super().open)


class SharedBlobs(ZODB.config.BlobStorage):  # type: ignore[misc]
    """A section ``<blobstorage>`` around a ``<filestorage>``.

    They are the same as a ``<filestorage>`` with a ``blob-dir``.
    """

    path = SharedFile.path
    blob_dir = SharedFile.blob_dir
    is_read_only = SharedFile.is_read_only
    is_claimed = SharedFile.is_claimed

    def __init__(self, config: ZConfig.matcher.SectionValue) -> None:
        super().__init__(config)
        self.file = config.base.config

    def open(self) -> 'IStorage':
        """The storage, by a server if there is a claim."""
        return _opened(self, super().open)


def _shared(section: ZODB.config.BaseConfig,
            ) -> Iterator[SharedFile | SharedBlobs]:
    """The FileStorages in a section, which are made `SharedFile` and so on."""
    config = section.config
    for name in config.getSectionAttributes():
        value = getattr(config, name)
        if isinstance(value, list):  # such as the storages of a demostorage
            for number, each in enumerate(value):
                value[number] = made = _made(each)
                yield from _found(made)
        else:
            made = _made(value)
            if made is not value:
                setattr(config, name, made)
            yield from _found(made)


def _made(section: object) -> object:
    match section:
        case SharedFile() | SharedBlobs():
            return section
        case ZODB.config.FileStorage():
            return SharedFile(section.config)
        case ZODB.config.BlobStorage(
                config=object(base=ZODB.config.FileStorage())):
            return SharedBlobs(section.config)
    return section


def _found(section: object) -> Iterator[SharedFile | SharedBlobs]:
    match section:
        case SharedFile() | SharedBlobs():
            yield section
        case object(config=ZConfig.matcher.SectionValue()):
            yield from _shared(cast(ZODB.config.BaseConfig, section))


def _opened(section: SharedFile | SharedBlobs,
            open_file: Callable[[], 'IStorage']) -> 'IStorage':
    while True:
        if not section.is_claimed:
            try:
                return open_file()
            except LockError:
                # Somebody may have claimed it just before he has opened it.
                if not section.is_claimed:
                    raise
        elif _served(section.path):
            from ZEO.Exceptions import ClientDisconnected

            from gocept.runner.boot.zeoclient import ServedStorage
            # The server may end now, or hang. Then this waits again.
            with contextlib.suppress(ClientDisconnected):
                return ServedStorage(
                    section.path, section.blob_dir, section.is_read_only)


def _served(path: str) -> bool:
    """Wait until the server of a claimed file listens.

    False if the claim is given up before.
    """
    if importlib.util.find_spec('ZEO') is None:
        raise ConfigurationError(
            f'{path} is served by "gocept-runner up" ({claim.holder(path)}), '
            'and to ask its ZEO server the package ZEO is needed: pip install '
            '"gocept.runner[zeo]"')
    if _is_listening(path):
        return True
    from gocept.runner.poller import Poller
    with contextlib.ExitStack() as stack:
        poller = stack.enter_context(Poller())
        _watch(os.path.dirname(claim.socket_of(path)), poller, stack)
        told = Deadline(_INTERVAL)
        while not _is_listening(path):
            holder = claim.holder(path)
            if holder is None:
                return False
            if told.passed:
                told = Deadline(_PATIENCE)
                _tell(path, holder)
            poller.poll(_INTERVAL)
    return True


def _tell(path: str, holder: Holder) -> None:
    log.info('Waiting for the ZEO server of "gocept-runner up" (%s), which '
             'has claimed %s, and does not listen yet', holder, path)


def _is_listening(path: str) -> bool:
    """Whether the server of a file answers."""
    from gocept.runner.process.unixsocket import connect
    try:
        connect(claim.socket_of(path)).close()
    except BlockingIOError:  # it is busy
        return True
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def _watch(directory: str, poller: 'Poller',
           stack: contextlib.ExitStack) -> None:
    """Have the poller see what is new in the directory."""
    from gocept.runner.executor.conditions.inotify import Directory
    # Where the system cannot tell, the interval has to do.
    with contextlib.suppress(OSError, NotImplementedError):
        source = Directory(directory)
        stack.callback(source.close)
        poller.register(source)
