"""Descriptors that are left for the next daemon.

It has what this one has, and needs a few more until it serves. So nothing that
it would have to take over is opened with the last numbers.
"""

import errno
import os
import resource

RESERVE = 32


def check(*descriptors: int) -> None:
    """Raise an OSError if one of these numbers is among the last.

    The system gives out the lowest free number.
    """
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft != resource.RLIM_INFINITY and (
            max(descriptors) >= soft - RESERVE):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
