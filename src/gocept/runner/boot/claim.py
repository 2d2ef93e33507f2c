"""The claim on a database file: a lock beside it, of who serves the file.

``gocept-runner up`` takes the claim before its ZEO server opens the file, and
gives it up when the server has ended. A program that is about to open the file
and finds a claim asks the server instead; see `gocept.runner.boot.served`.

A lock of flock(2) belongs to an open file, which `up` and its server share: as
long as one of them lives, the file is claimed.
"""

import contextlib
import errno
import fcntl
import os
import stat
from typing import NamedTuple, Self

from gocept.runner.process import procfs
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.forks import tell_forks

_IN_USE = errno.EWOULDBLOCK, errno.EACCES

_LONGEST = 400  # bytes that are read of a claim; a number and a host are less


class Holder(NamedTuple):
    """Who has claimed a file, as far as the claim tells."""

    pid: int
    """That of `up`, or of its server if `up` has died; 0 if it is not known.
    """
    host: str
    is_server: bool = False
    """Whether it is the server of an `up` that has died."""

    @property
    def is_here(self) -> bool:
        """Whether its process can be seen from here."""
        return bool(self.pid) and self.host == os.uname().nodename

    def __str__(self) -> str:
        if not self.pid:
            return 'another process'
        return f'process {self.pid}' + (
            '' if self.is_here else f' on {self.host}')


class Access(NamedTuple):
    """Who may use a file; for others that those are to use as well."""

    mode: int
    """The permissions, without those to execute."""
    user: int
    group: int

    @classmethod
    def of(cls, path: str) -> Self | None:
        """That of the file, or None if there is none yet."""
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return None
        return cls(stat.S_IMODE(found.st_mode) & 0o666, found.st_uid,
                   found.st_gid)

    def give(self, it: int | str) -> None:
        """Let the same users use `it`, a descriptor or a path of ours."""
        found = os.stat(it)
        if (found.st_uid, found.st_gid) != (self.user, self.group):
            # Only root may give it to others, or to any group.
            with contextlib.suppress(PermissionError):
                os.chown(it, self.user, self.group)
        with contextlib.suppress(PermissionError):  # it is that of another
            os.chmod(it, self.mode)


def claim_of(path: str) -> str:
    """The path of the claim on a database file."""
    return f'{os.path.realpath(path)}.claim'


def socket_of(path: str) -> str:
    """The path of the Unix socket where a claimed file is served."""
    return f'{os.path.realpath(path)}.socket'


def holder(path: str) -> Holder | None:
    """Who has claimed this database file; None: nobody.

    OSError if the claim cannot be read.
    """
    claim = claim_of(path)
    while True:
        try:
            fd = os.open(claim, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            if not _lock(fd, fcntl.LOCK_SH):
                return _read(fd)
            if _is_at(fd, claim):
                return None
        finally:
            os.close(fd)


class Claim(Closing):
    """A claim that this process holds.

    A program that it starts holds the claim as well if it gets the descriptor;
    a forked child does not.
    """

    def __init__(self, path: str, fd: int) -> None:
        """`fd` is the descriptor of a claim on `path` that is held already."""
        self.path = path
        self._fd = fd
        tell_forks(self)

    @classmethod
    def take(cls, path: str) -> Self | None:
        """Claim a database file, which may be missing.

        None if another process has claimed it. OSError if the claim cannot be
        written, as in a directory that belongs to another user.
        """
        claim = claim_of(path)
        access = Access.of(path)
        while True:
            fd = os.open(claim, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if not _lock(fd, fcntl.LOCK_EX):
                    os.close(fd)
                    return None
                if _is_at(fd, claim):
                    if access is not None:
                        access.give(fd)
                    _write(fd, f'{os.getpid()} {os.uname().nodename}')
                    return cls(path, fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # somebody has given it up meanwhile

    def fileno(self) -> int:
        """The descriptor, for a program that is to hold the claim as well."""
        return self._fd

    def note_server(self) -> None:
        """Be named as the server, in the claim of `up`."""
        line = os.pread(self._fd, _LONGEST, 0).partition(b'\n')[0]
        pid = os.getpid()
        _write(self._fd, line.decode(), f'{pid} {procfs.look(pid).start}')

    def give_up(self) -> None:
        """Free the file; no other process holds this claim any more.

        The socket of a server that was killed is removed as well.
        """
        if self._fd >= 0 and _is_at(self._fd, claim_of(self.path)):
            for path in socket_of(self.path), claim_of(self.path):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        self.close()

    def close(self) -> None:
        """Hold it no more; others that do go on."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    after_fork = close


def _lock(fd: int, kind: int) -> bool:
    """Lock it; False if another process has locked it."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _IN_USE:
            raise
        return False
    return True


def _is_at(fd: int, path: str) -> bool:
    """Whether an open file is what has this path now."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _write(fd: int, *lines: str) -> None:
    """Write who has the claim: the number of `up` and the name of the host,
    and then the number of the server and when it was started."""
    os.ftruncate(fd, 0)
    os.pwrite(fd, ''.join(f'{line}\n' for line in lines).encode(), 0)


def _read(fd: int) -> Holder:
    with contextlib.suppress(ValueError):
        first, *rest = os.pread(fd, _LONGEST, 0).decode().splitlines()
        number, host = first.split()
        found = Holder(int(number), host)
        if rest and found.is_here and procfs.look(found.pid).state in 'ZX':
            server, start = map(int, rest[0].split())
            if procfs.look(server).start == start:
                return Holder(server, host, True)
        return found
    return Holder(0, '')  # it is about to write
