"""The lock of a worker: one instance of it a machine."""

import contextlib
import errno
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zc.lockfile

from gocept.runner.boot.environments import Options
from gocept.runner.errors import CannotLock, WorkerLocked
from gocept.runner.operation.place import Place, file_of, place_of
from gocept.runner.waits.forks import tell_forks

_IN_USE = errno.EWOULDBLOCK, errno.EACCES

_LONGEST = 400  # bytes that are read of a file; a number and a host are less


@contextlib.contextmanager
def locked(worker: str, site: str | None, options: Options) -> Iterator[None]:
    """Hold the lock of this worker for this site and database in the block.

    See `IAppMain`. WorkerLocked if another process holds the lock, and
    CannotLock if it cannot be taken.
    """
    try:
        place = place_of(options)
    except ValueError as error:
        raise CannotLock(f'the worker {worker!r} cannot be locked: {error}'
                         ) from error
    path = os.path.join(
        place.directory, f'{place.prefix}{file_of(worker, site)}.lock')
    lock = _taken(worker, path, place)
    tell_forks(lock)  # which keeps no reference
    try:
        yield
    finally:
        lock.close()


def _taken(worker: str, path: str, place: Place) -> '_Lock':
    try:
        if place.is_of_user:
            os.makedirs(place.directory, 0o700, exist_ok=True)
        return _Lock(path)
    except zc.lockfile.LockError as error:
        cause = error.__context__
        if not isinstance(cause, OSError):  # a system without locks
            raise CannotLock(_no_locks(worker, path, error)) from error
        if cause.errno not in _IN_USE:
            raise CannotLock(_no_locks(worker, path, cause)) from error
        raise _held(worker, path) from error
    except OSError as error:
        if isinstance(error, PermissionError) and _is_held(path):
            raise _held(worker, path) from error
        raise CannotLock(
            f'the lock {path} of the worker {worker!r} cannot be taken: '
            f'{error.strerror or error}{_advice(path, error)}') from error


class _Lock(zc.lockfile.SimpleLockFile):  # type: ignore[misc]
    """A locked file, which says the process and the machine that holds it.

    All processes that have inherited it would hold it. So an exec closes it,
    and so does a forked child.
    """

    _fp: Any

    def _on_lock(self) -> None:
        # The name is for those who see the file, but not the process, as from
        # another container.
        try:
            self._fp.seek(0)
            self._fp.truncate()
            self._fp.write(f' {os.getpid()} {os.uname().nodename}\n')
            self._fp.flush()
        except BaseException:
            with contextlib.suppress(OSError):  # it writes again
                self.close()
            raise

    def close(self) -> None:
        """Free the lock, so that the next holder does not find our number."""
        if self._fp is None:  # in a forked child
            return
        with contextlib.suppress(OSError):
            os.ftruncate(self._fp.fileno(), 0)
        super().close()

    def after_fork(self) -> None:
        """See `tell_forks`."""
        # No unlock, which would be one of the parent, too.
        file, self._fp = self._fp, None
        if file is not None:
            file.close()


def _held(worker: str, path: str) -> WorkerLocked:
    """The error that tells who holds the lock, and what to do about it."""
    pid, host = _holder(path)
    begin = f'another instance of the worker {worker!r} runs already'
    end = 'then the lock is free (leave the file where it is)'
    if not pid:
        return WorkerLocked(
            f'{begin}, and holds the lock {path}: "fuser -v {path}" shows the '
            f'process; end it, {end}', path)
    where = '' if host == os.uname().nodename else f' on {host}'
    return WorkerLocked(
        f'{begin}, as process {pid}{where}, and holds the lock {path}: end it '
        f'with "kill {pid}", or with "kill -9 {pid}" if it hangs; {end}',
        path, 0 if where else pid)


def _holder(path: str) -> tuple[int, str]:
    """The process and the machine that the file names; 0 if it names none."""
    with contextlib.suppress(OSError, ValueError), open(path, 'rb') as file:
        number, host = file.read(_LONGEST).decode('ascii').split()
        pid = int(number)
        # Imported here, as a worker without children needs none of this room.
        from gocept.runner.process.pidfd import exists
        if host != os.uname().nodename or exists(pid):
            return pid, host
    return 0, ''  # of one that has not yet written, or has crashed before


def _is_held(path: str) -> bool:
    """Whether a process holds the lock, whose file only others may write."""
    try:
        import fcntl
        with open(path, 'rb') as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    return False


def _no_locks(worker: str, path: str, error: Exception) -> str:
    reason = getattr(error, 'strerror', None) or error
    return (f'the lock {path} of the worker {worker!r} cannot be taken, as '
            f'its file system has no locks ({reason}): run the worker without '
            'a lock, and have one service manager start it')


def _advice(path: str, error: OSError) -> str:
    """What to do about an error."""
    if error.errno == errno.EROFS:
        return ('; a worker with a lock needs a directory that it can write: '
                'run it with --no-lock, or without lock=True')
    if not isinstance(error, PermissionError):
        return ''
    with contextlib.suppress(OSError):
        owner = os.stat(path).st_uid
        if owner != os.geteuid():
            return (f'; the file belongs to the user {_name(owner)}: run the '
                    'worker as this user, or remove the file')
    directory = Path(path).parent
    return f'; this user may not write in {directory}'


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
