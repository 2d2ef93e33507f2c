"""How a socket for processes is opened and bound to its address."""

import errno
import os
import socket
import stat

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon.socketparameters import (
    FAMILIES,
    TYPES,
    SocketParameters,
)
from gocept.runner.kernel.wire.text import to_bytes

LISTENING = ('stream', 'seqpacket')


def open_socket(parameters: SocketParameters, address: str | None,
                ) -> tuple[socket.socket, tuple[int, int] | None]:
    """Open, bind and, unless each process gets its own, listen.

    Returns the socket and the inode of its file. KernelError.
    """
    try:
        sock = socket.socket(
            FAMILIES[parameters.family], TYPES[parameters.type])
    except OSError as error:
        raise KernelError(f'no socket {parameters.name!r}: {error}; choose '
                          'another family or type') from error
    try:
        if parameters.path is not None:
            return sock, _bind_path(sock, parameters)
        _bind_address(sock, parameters, address or '')
        return sock, None
    except BaseException:
        sock.close()
        raise


def _bind_address(sock: socket.socket, parameters: SocketParameters,
                  address: str) -> None:
    where = f'{parameters.host}:{parameters.port}'
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if parameters.reuseport:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if parameters.interface:
            where += f' on {parameters.interface}'
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_BINDTODEVICE,
                to_bytes(parameters.interface) + b'\0')
        sock.bind((address, parameters.port))
        if parameters.type in LISTENING and not parameters.reuseport:
            sock.listen(parameters.backlog)
    except (OSError, OverflowError) as error:
        raise KernelError(f'Bind failed on {where}: {_reason(error)}; choose '
                          'another one') from error


def listen(sock: socket.socket, parameters: SocketParameters) -> None:
    try:
        sock.listen(parameters.backlog)
    except OSError as error:
        raise KernelError(f'no process can listen on the port '
                          f'{parameters.port}: {_reason(error)}') from error


def _bind_path(sock: socket.socket, parameters: SocketParameters,
               ) -> tuple[int, int]:
    path = to_bytes(parameters.path or '')
    _make_way(path, parameters.path or '')
    before = None
    try:
        if parameters.umask is not None:
            before = os.umask(parameters.umask)
        sock.bind(path)
        found = os.lstat(path)
        if parameters.type in LISTENING:
            sock.listen(parameters.backlog)
    except OSError as error:
        raise KernelError(f'Bind failed on {parameters.path}: '
                          f'{_reason(error)}; choose another path') from error
    finally:
        if before is not None:
            os.umask(before)
    return found.st_dev, found.st_ino


def _make_way(path: bytes, shown: str) -> None:
    """Remove the socket of a process that has died; KernelError otherwise."""
    try:
        found = os.lstat(path)
        if not stat.S_ISSOCK(found.st_mode):
            raise KernelError(f'{shown} is in the way: the file is no socket; '
                              'remove it or choose another path')
        if _is_live(path):
            raise KernelError(f'another process has the socket {shown}: end '
                              'it or choose another path')
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise KernelError(f'Bind failed on {shown}: {_reason(error)}; choose '
                          'another path') from error


def _is_live(path: bytes) -> bool:
    """Whether some process has the socket; asks without waiting."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except BlockingIOError:
                return True  # its backlog is full
            except OSError as error:
                if error.errno == errno.EPROTOTYPE:
                    continue  # it is of another type
                if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                    return False
                raise
            return True
    return True


def _reason(error: Exception) -> str:
    return getattr(error, 'strerror', None) or str(error)
