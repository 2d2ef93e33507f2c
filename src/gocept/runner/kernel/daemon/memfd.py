"""Memory that outlives the process that writes it: memfds.

The keeper holds each memfd too. What a system call has written is there for
the successor of a daemon that is killed right after that call.
"""

import errno
import mmap
import os

from gocept.runner.errors import KernelError
from gocept.runner.waits.closing import Owning

FULL = frozenset((errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT,
                  errno.EPERM))  # the last one of a memfd that is sealed
"""What the system answers where a memfd cannot grow."""

PAGE = mmap.ALLOCATIONGRANULARITY


def full(error: OSError) -> KernelError:
    """The error that clients are told where a memfd cannot grow."""
    return KernelError(
        f'The kernel has no memory for more data ({error.strerror}): read and '
        'acknowledge output, remove values, or allow the daemon more memory')


def create(name: str) -> int:
    """A new memfd, close-on-exec."""
    try:
        return os.memfd_create(f'gocept.runner {name}')
    except OSError as error:
        raise full(error) from error


def write(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data`.

    Raises KernelError where the memfd cannot grow; then a part may be there.
    """
    try:
        size = os.pwrite(fd, data, offset)
        while size < len(data):
            size += os.pwrite(fd, memoryview(data)[size:], offset + size)
    except OSError as error:
        if error.errno in FULL:
            raise full(error) from error
        raise


def give_back(fd: int, start: int, stop: int) -> bool:
    """Free the pages between two offsets, which are multiples of `PAGE`.

    False: there is no descriptor or no address space for that just now.
    """
    try:
        # Python knows no fallocate() with FALLOC_FL_PUNCH_HOLE.
        with mmap.mmap(fd, stop - start, offset=start) as pages:
            pages.madvise(mmap.MADV_REMOVE)
    except OSError:
        return False
    return True


class Owner(Owning):
    """An object with a memfd, or none yet."""

    fd = -1

    def release(self) -> None:
        """Close the memfd, which lives on where the keeper holds it."""
        if not self.closed:
            self.closed = True
            self._release()

    close = release

    def _release(self) -> None:
        os.close(self.fd)
