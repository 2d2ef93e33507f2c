"""What a client uses that is not told otherwise."""

import os

from gocept.runner.errors import KernelError

PIPE, STDOUT, DEVNULL = -1, -2, -3  # those of subprocess

PORT = 20202

CONNECTION_TIMEOUT = 10.0  # seconds


class Defaults:
    """Where the kernel is, and how long it may take to reach it."""

    def __init__(self) -> None:
        self.place: int | str = PORT
        """A port of the loopback interface, or the path of a Unix socket."""
        self.connection_timeout = CONNECTION_TIMEOUT


defaults = Defaults()


def set_default_port(port: int) -> None:
    """Have each new `Kernel` that is not told otherwise use this port."""
    defaults.place = checked_place(port)


def set_default_path(path: str | os.PathLike[str]) -> None:
    """Have each new `Kernel` that is not told otherwise use this path."""
    defaults.place = checked_place(path)


def set_default_connection_timeout(connection_timeout: float) -> None:
    """The seconds that a new `Kernel` may need for a connection."""
    defaults.connection_timeout = connection_timeout


def checked_place(place: int | str | os.PathLike[str]) -> int | str:
    """Return a port or a path; KernelError if it can be neither."""
    if isinstance(place, int):
        if not 0 < place < 65536:
            raise KernelError(f'{place} is no port: name one from 1 to 65535, '
                              'or the path of a Unix socket')
        return place
    place = os.fspath(place)
    if not os.path.isabs(place):
        raise KernelError(
            f'the path of a Unix socket has to be absolute, not {place!r}')
    return place
