"""The handlers of signals, and how they are put back."""

import contextlib
import ctypes
import functools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

log = logging.getLogger('gocept.runner.signals')

TERMINATING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""The signals that end a loop after the tick in progress."""

Handler = Callable[[int, FrameType | None], None]

Previous = Callable[[int, FrameType | None], Any] | int | None
"""What `signal.getsignal` returns; None for a handler of C code."""


@contextlib.contextmanager
def handling(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Install signal handlers, and put those that were there back at the end.

    The action of a signal in `TERMINATING` is its default again as soon as it
    has arrived once, whatever code runs then. Outside the main thread, where
    Python can install none, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        log.debug('Not in the main thread: running without signal handlers')
        yield
        return
    # Where C code had installed a handler, Python does not know it.
    before = {signum: (signal.getsignal(signum) or signal.SIG_DFL,
                       _action(signum)) for signum in handlers}
    try:
        for signum, handler in handlers.items():
            signal.signal(signum, _in_this_process(handler))
            if signum in TERMINATING:
                _handle_once(signum)
        # One that arrived meanwhile could not restore those that came later.
        # To block them does not help, as another thread would get the signal.
        if any(signal.getsignal(signum) is signal.SIG_DFL
               for signum in handlers):
            restore_defaults()
        yield
    finally:
        # Twice, as one that arrives meanwhile restores defaults.
        for _ in range(2):
            for signum, (previous, action) in before.items():
                signal.signal(signum, previous)
                _action(signum, action)


def handlers() -> dict[signal.Signals, Previous]:
    """The handlers of the signals that end a loop, for `raising`."""
    return {signum: signal.getsignal(signum) for signum in TERMINATING}


def _in_this_process(handler: Handler) -> Handler:
    pid = os.getpid()

    def handle(signum: int, frame: FrameType | None) -> None:
        if os.getpid() == pid:
            handler(signum, frame)
        else:  # a child that was forked in a tick: it has no loop to end
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
    return handle


def restore_defaults() -> None:
    """Let the next signal that ends a loop end the process at once."""
    if threading.current_thread() is threading.main_thread():
        for signum in TERMINATING:
            signal.signal(signum, signal.SIG_DFL)


_SA_RESETHAND = 0x80000000
_SA_ONSTACK = 0x08000000
_SA_RESTORER = 0x04000000


class _Action(ctypes.Structure):
    # struct sigaction of the C libraries of Linux, on all but MIPS and s390.
    # The rest makes it large enough for any system.
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


def _action(signum: int, new: _Action | None = None) -> _Action | None:
    """Return the action of a signal, and set `new`; None without sigaction."""
    call, action = _sigaction(), _Action()
    if call is None:
        return None
    call(signum, new and ctypes.byref(new), ctypes.byref(action))
    return action


def _handle_once(signum: int) -> None:
    """Let the system itself restore the default when a signal is delivered.

    Python runs a handler only between two bytecodes, so one that restores the
    default is too late while C code runs. Where the structure is not as we
    know it, that is all there is. See sigaction(2), SA_RESETHAND.
    """
    action = _action(signum)
    if action is not None and not action.flags & ~(
            _SA_ONSTACK | _SA_RESTORER):  # as Python sets it
        action.flags |= _SA_RESETHAND
        _action(signum, action)
