"""Descriptors that are closed only by the object that they belong to.

A program that becomes a daemon closes all descriptors by their numbers, and
its files get these numbers then. An object that had one of them before, and is
closed or forgotten later, must not close the file of somebody else.
"""

import os
from typing import NamedTuple


class Identity(NamedTuple):
    """What an open file is, whatever its number. See stat(2)."""

    device: int
    inode: int

    @classmethod
    def of(cls, fd: int) -> 'Identity':
        """The identity of what is open there; OSError if nothing is."""
        status = os.fstat(fd)
        return cls(status.st_dev, status.st_ino)

    def has(self, fd: int) -> bool:
        """Whether the same thing is open there."""
        try:
            status = os.fstat(fd)
        except OSError:
            return False
        return status.st_ino == self.inode and status.st_dev == self.device

    def close(self, fd: int) -> None:
        """Close it, if it is still the same."""
        if self.has(fd):
            os.close(fd)


NONE = Identity(-1, -1)
"""Of nothing."""
