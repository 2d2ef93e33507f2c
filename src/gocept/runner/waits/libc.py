"""System calls that Python does not have."""

import ctypes
import functools
import os


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> int:
    """Call a function of the C library that returns a number.

    OSError if it fails; NotImplementedError if this system has no such one.
    """
    try:
        function = getattr(_library(), name)
    except AttributeError:
        raise NotImplementedError(f'this system has no {name}') from None
    result: int = function(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
