"""The servers of this user on this machine, as files.

Each server has an entry, a file of JSON, in the state directory. The server
holds a lock on it, so the entry of a server that was killed is known for what
it is. The token that a server has made itself is in a file beside it, which
stays for the next server at this place.

Who may write to the directory is the user, or root.
"""

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from typing import NamedTuple, Self

from gocept.runner.background.tokens import (
    TOKEN_FILE,
    VARIABLE,
    is_private,
    open_kept,
    place,
    state_directory,
    token_create,
)
from gocept.runner.errors import BackgroundError
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.forks import tell_forks

_ENTRY = '.json'

_ALL = '', '0.0.0.0', '::'

_LONGEST = 65536  # bytes of an entry


class Entry(NamedTuple):
    """What is known of a server that runs."""

    host: str
    port: int
    pid: int
    started: float
    """When, by the clock on the wall."""
    status_key: str
    """What it tells its status to; in hexadecimal digits."""
    tls: bool
    """Whether clients need certificates."""

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """ValueError if it was cut off, or is not an entry."""
        fields = json.loads(text)
        try:
            return cls(**{name: kind(fields[name])
                          for name, kind in cls.__annotations__.items()})
        except (KeyError, TypeError) as error:
            raise ValueError(f'no entry of a server: {error}') from error


class Place(Closing):
    """The entry of this server, as long as it is open."""

    def __init__(self, entry: Entry) -> None:
        """Make it; another process that has had this place has ended.

        OSError if that fails.
        """
        self.entry = entry
        directory = _directory()
        self._path = os.path.join(
            directory, place(entry.host, entry.port) + _ENTRY)
        # Locked before it has its name, so nobody takes it for a dead one.
        temporary = f'{self._path}.{entry.pid}'
        self._fd = _create(temporary)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            os.write(self._fd, json.dumps(entry._asdict()).encode())
            os.rename(temporary, self._path)
        except BaseException:
            self._close_file()
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        tell_forks(self)

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def close(self) -> None:
        """See `Closing`."""
        if self._fd >= 0:
            with contextlib.suppress(OSError), alone():
                if _is_at(self._fd, self._path):
                    os.unlink(self._path)
            self._close_file()

    def after_fork(self) -> None:
        """In a child that a task has forked: the parent alone is the server.
        """
        if self._fd >= 0:
            self._close_file()


def servers() -> list[Entry]:
    """Those that run, by place. The entries of others are removed."""
    found = []
    try:
        names = os.listdir(state_directory())
    except (OSError, BackgroundError):  # there is none, or none of ours
        return []
    for name in sorted(names):
        if name.endswith(_ENTRY):
            entry = _living(os.path.join(state_directory(), name))
            if entry is not None:
                found.append(entry)
    return found


def server_at(host: str, port: int) -> Entry | None:
    """The server of this user that has this place, as far as is known.

    Also one on all addresses, which leaves no room for others.
    """
    entries = {each.host: each for each in servers() if each.port == port}
    for entry in entries.values():
        if place(entry.host, port) == place(host, port):
            return entry
    for entry in entries.values():
        if host in _ALL or entry.host in _ALL:
            return entry
    return None


def _living(path: str) -> Entry | None:
    try:
        fd = open_kept(path)
    except OSError:
        return None
    try:
        if not is_private(fd):
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Entry.from_json(os.read(fd, _LONGEST))
        with contextlib.suppress(OSError), alone():
            if _is_at(fd, path):
                os.unlink(path)
    except ValueError:  # not one of ours
        return None
    finally:
        os.close(fd)
    return None


def own_token(host: str, port: int) -> str:
    """The token that servers at this place have, if they were given none.

    It is made by the first one.
    """
    path = os.path.join(_directory(), place(host, port) + TOKEN_FILE)
    with alone():
        try:
            fd = open_kept(path)
        except FileNotFoundError:
            return _write_token(path)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise _unsafe(path) from error
        try:
            if not is_private(fd):
                raise _unsafe(path)
            token = os.read(fd, _LONGEST).decode().strip()
        except UnicodeError as error:
            raise BackgroundError(
                f'the token in {path} is no text in UTF-8: remove it'
                ) from error
        finally:
            os.close(fd)
        return token or _write_token(path)


def _unsafe(path: str) -> BackgroundError:
    return BackgroundError(
        f'the token in {path} is not safe, as others may write or read it, or '
        'it is no plain file: remove it')


def _write_token(path: str) -> str:
    token = token_create()
    temporary = f'{path}.{os.getpid()}'
    try:
        with open(_create(temporary), 'w') as file:
            file.write(token + '\n')
        os.rename(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise BackgroundError(
            f'the token cannot be kept in {path}: {error.strerror}; make room '
            f'there, or give token= or {VARIABLE}') from error
    return token


def status_key() -> str:
    """A new one, for one life of a server."""
    return os.urandom(32).hex()


def new_entry(host: str, port: int, tls: bool = False) -> Entry:
    """The entry of this process."""
    return Entry(host, port, os.getpid(), time.time(), status_key(), tls)


def _directory() -> str:
    """The state directory, which is there then, and private."""
    path = state_directory()
    _make_private(path)
    found = os.stat(path)
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022:
        raise BackgroundError(
            f'{path} is not safe, as others may write there: give it to this '
            'user (chown), with the mode 700 (chmod)')
    if found.st_mode & 0o077:
        os.chmod(path, 0o700)
    return path


def _make_private(path: str) -> None:
    """Make a directory, and those above that are missing, whatever the umask.
    """
    if not os.path.isdir(path):
        _make_private(os.path.dirname(path))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)


def _create(path: str) -> int:
    """Create a file that only this user may read or write; open it."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of a process with this number that has died
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                   | os.O_NOFOLLOW, 0o600)


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One process of this user at a time is in here, for a moment.

    Unless there can be no directory, and so nothing to do in it.
    """
    try:
        fd = os.open(_directory(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, BackgroundError):
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
