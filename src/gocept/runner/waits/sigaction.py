"""The action of a signal as the system knows it; see sigaction(2).

Python's `signal` sets handlers in the main thread only, and knows no flags.
"""

import ctypes
import functools
from collections.abc import Callable

SA_NOCLDWAIT = 2
"""Of SIGCHLD: children are not to be reaped, and their statuses are lost."""


class Action(ctypes.Structure):
    """``struct sigaction`` of the C libraries of Linux.

    On all but MIPS and s390. The rest makes it large enough for any system.
    """

    _fields_ = [
        ('handler', ctypes.c_void_p),
        ('mask', ctypes.c_byte * 128),
        ('flags', ctypes.c_uint),
        ('rest', ctypes.c_byte * 128),
    ]


@functools.cache
def _sigaction() -> Callable[..., int] | None:
    try:
        return ctypes.CDLL(None).sigaction
    except (AttributeError, OSError):  # no such library on this system
        return None


def action(signum: int, new: Action | None = None) -> Action | None:
    """Return the action of a signal, and set `new`; None without sigaction."""
    call, found = _sigaction(), Action()
    if call is None:
        return None
    call(signum, new and ctypes.byref(new), ctypes.byref(found))
    return found
