"""A timer of the kernel that sends a signal to one thread.

The signal comes while C code holds the interpreter, too. A forked child has no
such timer, and neither has a program that takes the place of this one. See
timer_create(2). Linux only.
"""

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable

from gocept.runner.waits import forks
from gocept.runner.waits.closing import Closing

_CLOCK_MONOTONIC = 1

_SIGEV_THREAD_ID = 4


class _Event(ctypes.Structure):
    """``struct sigevent``, which has 64 bytes."""

    _fields_ = [
        ('value', ctypes.c_void_p),
        ('signo', ctypes.c_int),
        ('notify', ctypes.c_int),
        ('thread', ctypes.c_int),
        ('rest', ctypes.c_byte * 44),
    ]


class _Times(ctypes.Structure):
    """``struct itimerspec``: each time in seconds and nanoseconds."""

    _fields_ = [('interval', ctypes.c_long * 2), ('value', ctypes.c_long * 2)]


class Alarm(Closing):
    """Sends `signum` to this thread, `seconds` after each `set`.

    With `again`, once more after so many seconds, and so on until `clear`.
    OSError if the system has no such timer, or none is left.
    """

    def __init__(self, seconds: float, signum: int, again: float = 0) -> None:
        library = _library()
        self._delete = library.timer_delete
        self._generation = forks.generation
        self._timer = ctypes.c_void_p()
        event = _Event(None, signum, _SIGEV_THREAD_ID,
                       threading.get_native_id())
        if library.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event),
                                ctypes.byref(self._timer)):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._is_open = True
        set_time = functools.partial(library.timer_settime, self._timer, 0)
        # Ready made, as each tick calls both: they take less than 1 µs each.
        self.set: Callable[[], object] = functools.partial(
            set_time, ctypes.byref(_Times(_split(again), _split(seconds))),
            None)
        self.clear: Callable[[], object] = functools.partial(
            set_time, ctypes.byref(_Times()), None)

    def close(self) -> None:
        """See `Closing`."""
        if self._is_open:
            self._is_open = False
            # In a forked child the number may be that of another timer.
            if self._generation == forks.generation:
                self._delete(self._timer)


def _split(seconds: float) -> 'ctypes.Array[ctypes.c_long]':
    nanoseconds = int(seconds * 1e9) or int(seconds > 0)
    return (ctypes.c_long * 2)(*divmod(nanoseconds, 1_000_000_000))


@functools.cache
def _library() -> ctypes.PyDLL:
    """The C library, whose calls keep the interpreter: none of them waits."""
    if sys.platform == 'linux':
        # In glibc before 2.34 they are in a library of their own.
        for name in None, 'librt.so.1':
            library = ctypes.PyDLL(name, use_errno=True)
            if hasattr(library, 'timer_create'):
                return library
    raise OSError(f'no timer of {sys.platform} is known here')
