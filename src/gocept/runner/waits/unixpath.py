"""The path of a Unix socket, as the system takes it."""

import contextlib
import errno
import os
from collections.abc import Iterator

LONGEST = 107
"""Bytes in the address of a Unix socket; see unix(7)."""


@contextlib.contextmanager
def short_address(path: str) -> Iterator[str]:
    """The path itself, or another one that leads there and is short enough.

    OSError if the directory cannot be opened, or if the last name of the path
    alone is too long.
    """
    if len(os.fsencode(path)) <= LONGEST:
        yield path
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        address = f'/proc/self/fd/{fd}/{name}'
        excess = len(os.fsencode(address)) - LONGEST
        if excess > 0:
            raise OSError(
                errno.ENAMETOOLONG,
                f'the last name of the path of a Unix socket is {excess} '
                'bytes too long: choose a shorter one', name)
        yield address
    finally:
        os.close(fd)
