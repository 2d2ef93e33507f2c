"""The control socket, on which the daemon listens, and its lock.

Only one kernel listens on an address. For a port, the system sees to that: of
several sockets that are bound to it with SO_REUSEADDR, only one can listen. A
path is guarded by the lock of the file PATH.lock:

* Its first byte is locked as long as the kernel lives, by the keeper and the
  daemon together.
* Its second byte is locked by whoever starts a kernel, until it listens, and
  by a kernel that ends. The others wait for that.

So if the first byte is locked, and the second is not, but nothing is at the
path, somebody has removed the socket of a kernel that runs; see `revival`.

These are locks of open files (F_OFD_SETLK in fcntl(2)), which forked children
share.
"""

import contextlib
import errno
import fcntl
import os
import signal
import socket
import stat
import struct

from gocept.runner.errors import KernelError
from gocept.runner.kernel.keeper.options import Options
from gocept.runner.waits.unixpath import short_address

HOST = '127.0.0.1'

BACKLOG = 1024

_LIFE, _START = 0, 1  # the bytes that are locked

_SUFFIX = '.lock'


SIGNAL = signal.SIGUSR1
"""Has a keeper listen again at its path, if nothing is there."""

KEEPER, DAEMON = 'runner-keeper', 'runner-kernel'
"""The names of our processes."""


class AlreadyThere(Exception):
    """Raised when somebody listens there already."""


def listen(options: Options) -> dict[str, int]:
    """Listen on the address of `options`; what the keeper holds of it.

    AlreadyThere if another kernel, or another program, does. KernelError if
    nobody can.
    """
    if isinstance(options.address, int):
        return {'listen:0': _listen_on_port(options.address)}
    return _listen_on_path(options.address, options)


def take_passed(passed: dict[str, int], options: Options) -> dict[str, int]:
    """Take out what systemd listens with on the address, if it does."""
    for key, fd in passed.items():
        with socket.socket(fileno=os.dup(fd)) as sock:
            name = sock.getsockname()
            if (sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    and name == (options.address if isinstance(
                        options.address, str) else (HOST, options.address))):
                sock.setblocking(False)
                del passed[key]
                return {'listen:0': fd}
    return {}


def with_address(table: dict[str, int], options: Options) -> Options:
    """The port that the system has chosen in place of 0."""
    if options.address == 0:
        with socket.socket(fileno=os.dup(table['listen:0'])) as sock:
            return options._replace(address=sock.getsockname()[1])
    return options


def _listen_on_port(port: int) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
            sock.listen(BACKLOG)
        except (OSError, OverflowError) as error:
            if getattr(error, 'errno', 0) == errno.EADDRINUSE:
                raise AlreadyThere from error
            raise KernelError(f'the kernel cannot listen on port {port} of '
                              f'{HOST}: {error}; choose another one'
                              ) from error
        sock.setblocking(False)
        return sock.detach()


def _listen_on_path(path: str, options: Options) -> dict[str, int]:
    directory = os.path.dirname(path)
    try:
        _check_directory(directory)
        lock = _lock(path + _SUFFIX)
        try:
            _make_way(path)
            sock = _bind(path, options)
            _unlock_start(lock)
        except BaseException:
            # Who waits for the lock finds that it has no file any more.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + _SUFFIX)
            os.close(lock)
            raise
    except OSError as error:
        raise KernelError(f'the kernel cannot listen on {path}: {error}'
                          ) from error
    return {'listen:0': sock, 'lock': lock}


def _check_directory(directory: str) -> None:
    """KernelError if others may replace what is in the directory."""
    status = os.stat(directory)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in (0, os.geteuid()):
        raise KernelError(
            f'the directory {directory} belongs to user {status.st_uid}, who '
            'could put another socket in the place of the kernel\'s: choose a '
            'directory of your own')
    if mode & 0o022 and not mode & stat.S_ISVTX:
        raise KernelError(
            f'others may write to the directory {directory} (mode {mode:o}), '
            'and could put another socket in the place of the kernel\'s: '
            'choose a directory of your own, or take the right from them '
            '(chmod go-w)')


def _lock(path: str) -> int:
    """The lock of a kernel that is to live, and the right to start it.

    Waits while another one starts. AlreadyThere if it lives.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                     | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            status = os.fstat(fd)
            if (status.st_uid != os.geteuid()
                    or not stat.S_ISREG(status.st_mode)):
                raise KernelError(
                    f'the lock file {path} belongs to user {status.st_uid}, '
                    'or is no file: remove it, or choose another path')
            _set_lock(fd, fcntl.F_OFD_SETLKW, _START)
            # Its last kernel may have removed the file meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(status, os.lstat(path)):
                    try:
                        _set_lock(fd, fcntl.F_OFD_SETLK, _LIFE)
                    except (BlockingIOError, PermissionError) as error:
                        # Imported here, as it is hardly ever needed.
                        from gocept.runner.kernel.keeper.revival import revive
                        if revive(path.removesuffix(_SUFFIX), path, fd):
                            raise AlreadyThere from error
                    else:
                        return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def listen_again(table: dict[str, int], options: Options) -> bool:
    """In the keeper: replace a socket whose file was removed.

    False if there is one.
    """
    path = options.address
    if (isinstance(path, int) or 'lock' not in table
            or os.path.lexists(path)):
        return False
    new = _bind(path, options)
    os.close(table['listen:0'])
    table['listen:0'] = new
    return True


def _unlock_start(lock: int) -> None:
    _set_lock(lock, fcntl.F_OFD_SETLK, _START, fcntl.F_UNLCK)


def _set_lock(fd: int, command: int, byte: int,
              kind: int = fcntl.F_WRLCK) -> None:
    # struct flock: type, whence, start, length, pid.
    fcntl.fcntl(fd, command, struct.pack(
        'hhqqi4x', kind, os.SEEK_SET, byte, 1, 0))


def _make_way(path: str) -> None:
    """Remove the socket of a kernel that has died.

    With the lock held, so nobody is about to listen on it.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise KernelError(f'{path} is in the way, and is no socket: remove '
                          'it, or choose another path')
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        try:
            with short_address(path) as address:
                sock.connect(address)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:  # who listens there is busy
            pass
    raise AlreadyThere


def _bind(path: str, options: Options) -> int:
    """Listen at the path. Others can connect if there are users to allow.

    The daemon refuses all but these, as it asks for the user of each client.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        umask = os.umask(0o111 if options.allow_users else 0o177)
        try:
            with short_address(path) as address:
                sock.bind(address)
        finally:
            os.umask(umask)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        return sock.detach()


def remove(table: dict[str, int], options: Options) -> None:
    """At the end: close the control sockets, and remove their files."""
    lock = table.get('lock', -1)
    if isinstance(options.address, str) and lock >= 0:
        path = options.address + _SUFFIX
        with contextlib.suppress(OSError):  # who has it finds us still there
            _set_lock(lock, fcntl.F_OFD_SETLK, _START)
        with contextlib.suppress(FileNotFoundError):
            # Somebody may have removed both, and started another kernel.
            if os.path.samestat(os.fstat(lock), os.lstat(path)):
                # Whoever waits for the lock finds that the file is not there
                # any more, and makes another one.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(options.address)
                os.unlink(path)
    for key in [*table]:
        if key == 'lock' or key.startswith('listen:'):
            os.close(table.pop(key))
