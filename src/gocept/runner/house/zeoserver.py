"""The ZEO server of the FileStorages that the workers of a house share.

A program of its own, which `up` starts; see `gocept.runner.house.zeo` and
`gocept.runner.house.zeostart`. Standard input is open as long as `up` lives.
On standard output the program writes what `Word` describes; standard error has
its log.

When `up` has died, its workers end. The server goes on for as long as they use
it, but nobody else can connect any more. Then it ends, too.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import ZODB
import ZODB.config
from zc.lockfile import LockError
from ZODB.interfaces import IStorage

from gocept.runner.boot.claim import Access, Claim, socket_of
from gocept.runner.boot.creation import missing
from gocept.runner.errors import (
    DATABASE_UNAVAILABLE,
    SUCCESS,
    DatabaseLocked,
)
from gocept.runner.house.zeostorage import ServedStorage
from gocept.runner.process import inheritance
from gocept.runner.waits.deadline import READABLE, Deadline, wait_for_any
from gocept.runner.waits.unixpath import short_address

if TYPE_CHECKING:
    from gocept.runner.house.storages import FileSection

log = logging.getLogger('gocept.runner.house')

_LIFE = 0
"""Standard input, whose end is that of `up`."""

_FINISHING = 3.0
"""Seconds in which clients can finish the commits that they have voted for."""

_LONGEST = 4096
"""Bytes of a line of the log that are written at once; see pipe(7)."""


class Options(TypedDict):
    """What the program finds on standard input."""

    files: 'Sequence[FileSection]'
    claims: Sequence[int]
    """The descriptors of the claims on the files, in their order."""
    is_first: bool
    """Whether a file is created anew if its section says so."""
    create: bool
    """Whether a file may be created at all."""
    wait: float
    """Seconds in which another process has to close the files."""
    timeout: float
    """Seconds in which a client has to finish a commit."""
    grace: float
    """Seconds that the workers have to end when `up` has died."""


class Word(TypedDict, total=False):
    """What the program tells `up`, as a line of JSON."""

    what: Literal['ready', 'failed']
    text: str
    """Why it has failed."""
    status: int
    """That of the program then."""


def run(options: Options) -> int:
    """Serve the files; returns the status."""
    inheritance.close_inherited(options['claims'])
    for signum in signal.SIGINT, signal.SIGHUP, signal.SIGUSR2:
        signal.signal(signum, signal.SIG_IGN)  # these are for workers
    _set_up_logging()
    with contextlib.ExitStack() as close:
        try:
            server = _Server(options, close)
        except _Abandoned:
            return SUCCESS
        except Exception as error:
            # Imported here, as it imports what the server does not need.
            from gocept.runner.boot import messages
            log.debug('This ends the server', exc_info=True)
            status = getattr(error, 'status', DATABASE_UNAVAILABLE)
            _say(what='failed', text=messages.message(error), status=status)
            return int(status)
        server.run()
    return SUCCESS


class _Abandoned(Exception):
    """Raised when `up` has died before anything was served."""


class _Server:
    """All files, in one process and one loop."""

    def __init__(self, options: Options, close: contextlib.ExitStack) -> None:
        self._loop = loop = asyncio.new_event_loop()
        close.callback(loop.close)
        self._grace = options['grace']
        self._is_orphan = self._is_ending = False
        self._claims = [
            Claim(section['path'], fd) for section, fd
            in zip(options['files'], options['claims'], strict=True)]
        for claim in self._claims:
            os.set_inheritable(claim.fileno(), False)
            claim.note_server()
        close.callback(self._leave_claims)
        self._storages: list[ServedStorage] = []
        close.callback(_close, self._storages)
        deadline = Deadline(options['wait'])
        for section in options['files']:
            self._storages.append(ServedStorage(
                section['path'],
                _open(_section(section, options), deadline),
                options['timeout'], loop, self._look))
        self._sockets = contextlib.ExitStack()
        close.callback(self._sockets.close)
        for served in self._storages:
            self._sockets.enter_context(_listening(served))

    def run(self) -> None:
        """Serve until there is nobody to serve any more."""
        self._loop.add_signal_handler(signal.SIGTERM, self._end)
        self._loop.add_reader(_LIFE, self._note_death)
        _say(what='ready')
        self._loop.run_forever()

    def _end(self) -> None:
        """End when no client is about to finish a commit."""
        self._sockets.close()
        self._is_ending = True
        if self._commits:
            log.info('Ending in at most %g s, when clients have finished what '
                     'they commit', _FINISHING)
            self._loop.call_later(_FINISHING, self._loop.stop)
        self._look()

    def _note_death(self) -> None:
        """`up` has died."""
        self._loop.remove_reader(_LIFE)
        self._is_orphan = True
        self._sockets.close()
        log.warning('"gocept-runner up" has died: ending in at most %g s, '
                    'when its workers have ended', self._grace)
        self._loop.call_later(self._grace, self._end)
        self._look()

    @property
    def _commits(self) -> bool:
        """Whether a client is about to finish a commit."""
        return any(served.commits for served in self._storages)

    def _look(self) -> None:
        """A client has left or ended a transaction, or something is to end."""
        if self._is_ending:
            if not self._commits:
                self._loop.stop()
        elif self._is_orphan and not any(
                served.has_tenants for served in self._storages):
            self._end()

    def _leave_claims(self) -> None:
        for claim in self._claims:
            if self._is_orphan:
                claim.give_up()
            else:  # `up` holds it
                claim.close()


class _Section:
    """The configuration of a FileStorage, as `ZODB.config` has it."""

    path: str
    create: bool | None

    def __init__(self, options: Mapping[str, Any]) -> None:
        vars(self).update(options)

    def getSectionName(self) -> None:
        """A ``<filestorage>`` has no name."""


def _section(section: 'FileSection', options: Options) -> _Section:
    """The configuration for this start.

    DatabaseMissing if the file would be created and must not be.
    """
    made = _Section(section['options'])
    _finish_pack(made.path)
    if not options['is_first']:
        made.create = None
    if not options['create'] and (
            made.create or not os.path.exists(made.path)):
        raise missing(made.path)
    return made


def _open(section: _Section, deadline: Deadline) -> IStorage:
    """Open the file, and wait for another process that has it open.

    DatabaseLocked after the deadline.
    """
    path = section.path
    is_new = not os.path.exists(path)
    while True:
        try:
            storage = ZODB.config.FileStorage(section).open()
        except LockError as error:
            owner = _owner(path)
            if deadline.passed:
                raise DatabaseLocked(
                    f'{owner} has the database {path} open, and has not '
                    f'closed it within {deadline}; it has to be the ZEO '
                    'server of "gocept-runner up" that opens it, for all '
                    'others: end that process, or wait longer with --wait '
                    'SECONDS') from error
            log.info('%s has the database %s open: waiting up to %s until it '
                     'has closed it', owner, path, deadline)
            _wait_for_lock(f'{path}.lock', deadline)
        else:
            if is_new:
                log.warning('Created a new, empty database: %s', path)
            if not len(storage):
                # Makes the root object. Clients that did so at the same time
                # would be in each other's way.
                ZODB.DB(storage)
            return storage


def _finish_pack(path: str) -> None:
    """Put the packed file in its place, if the process that has packed it was
    killed between the two steps of that."""
    packed = f'{path}.pack'
    if (not os.path.exists(path) and os.path.exists(packed)
            and os.path.exists(f'{path}.old')):
        os.rename(packed, path)
        log.warning('Finished the packing of %s, which was interrupted', path)


def _owner(path: str) -> str:
    with contextlib.suppress(OSError, ValueError), open(
            f'{path}.lock', encoding='ascii') as file:
        return f'process {int(file.read())}'
    return 'another process'


def _wait_for_lock(path: str, deadline: Deadline) -> None:
    """Wait until nobody has locked the file, or the deadline has passed."""
    faucet, sink = os.pipe()

    def wait() -> None:
        try:
            with open(path, 'rb+') as file:
                fcntl.flock(file, fcntl.LOCK_EX)
        finally:
            os.close(sink)
    threading.Thread(target=wait, daemon=True).start()
    try:
        wait_for_any({faucet: READABLE, _LIFE: READABLE}, deadline)
        if wait_for_any({_LIFE: READABLE}, Deadline(0)):
            raise _Abandoned
    finally:
        os.close(faucet)


@contextlib.contextmanager
def _listening(served: ServedStorage) -> Iterator[None]:
    """Let clients connect in this block: who can open the file can do so."""
    path = socket_of(served.name)
    new = f'{path}.new'
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)  # of a server that was killed
    sock = socket.socket(socket.AF_UNIX)
    try:
        mask = os.umask(0o777)
        try:
            with short_address(new) as address:
                sock.bind(address)
        finally:
            os.umask(mask)
        access = Access.of(served.name)
        if access is not None:
            access.give(new)
        served.listen(sock)
    except BaseException:
        sock.close()
        raise
    # Clients wait for the name: from now on they are let in.
    os.rename(new, path)
    try:
        yield
    finally:
        served.refuse()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _close(storages: Sequence[ServedStorage]) -> None:
    """Close the storages, unless one is packed.

    A thread that packs goes on as long as the process does. If the file was
    closed before, another process could commit to the file which that thread
    is about to replace.
    """
    packed = [served for served in storages if served.is_packed]
    for served in storages:
        if served not in packed:
            served.close()
    for served in packed:
        log.warning('The packing of %s was not finished: it is as if it had '
                    'not begun', served.name)
        with served.storage._lock:  # not between two files
            logging.shutdown()
            os._exit(SUCCESS)


class Handler(logging.Handler):
    """Writes lines to a pipe, and does not wait for its reader.

    As long as `up` is stopped nobody reads, and with the server all its
    clients would wait.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        os.set_blocking(fd, False)
        self._fd = fd
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        try:
            text = self.format(record)
            if self._lost:
                text = f'({self._lost} lines are lost)\n{text}'
            data = text.encode(errors='backslashreplace')
            os.write(self._fd, data[:_LONGEST - 1] + b'\n')
            self._lost = 0
        except BlockingIOError:
            self._lost += 1
        except OSError:  # nobody reads it any more
            pass
        except Exception:  # of an argument of the message
            self.handleError(record)


def _set_up_logging() -> None:
    handler = Handler(2)
    handler.setFormatter(logging.Formatter(
        '%(asctime)s %(levelname)s %(name)s %(message)s'))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger('gocept').setLevel(logging.INFO)


def _say(**words: Unpack[Word]) -> None:
    """Tell `up`, unless it has died."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(words).encode() + b'\n')
