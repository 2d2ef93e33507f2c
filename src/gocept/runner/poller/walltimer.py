"""Instants of the clock that is set and that goes on in a suspended machine.

Where the system has no timerfd that tells of a clock that was set, or has no
descriptor left, the timer has whoever waits look at the clock each second.
"""

import ctypes
import errno
import math
import os
import time
from collections.abc import Sequence

import zope.interface

from gocept.runner.interfaces import IWallTimer
from gocept.runner.poller.timer import Timer
from gocept.runner.waits import libc
from gocept.runner.waits.closing import Owning
from gocept.runner.waits.forks import tell_forks
from gocept.runner.waits.identity import NONE, Identity
from gocept.runner.waits.source import Item
from gocept.runner.waits.standard import fill_standard

LOOK = 1.0
"""After how many seconds to look at the clock, if need be."""

_CLOCK_REALTIME = 0

_TFD_TIMER_ABSTIME, _TFD_TIMER_CANCEL_ON_SET = 1, 2

_SOONEST = 1e-9
"""Zero would not be an instant, but take the timer back."""

_LATEST = 2.0 ** min(40, 8 * ctypes.sizeof(ctypes.c_long) - 1) - 1
"""Which the system still takes for a time."""


@zope.interface.implementer(IWallTimer)
class WallTimer(Timer, Owning):
    """See `IWallTimer`."""

    def __init__(self, at: float) -> None:
        if math.isnan(at):
            raise ValueError('a timer needs an instant')
        self.at = at
        self._fd, self._identity = -1, NONE
        try:
            fill_standard()
            self._fd = _timerfd(at)
        except (OSError, NotImplementedError):
            super().__init__(max(0.0, min(LOOK, at - time.time())))
        else:
            self._identity = Identity.of(self._fd)
            super().__init__(math.inf)
        self.closed = False
        tell_forks(self)

    def fileno(self) -> int:
        return self._fd

    def collect(self) -> tuple[Sequence[Item], bool]:
        if self._fd < 0:
            return super().collect()
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return (), False
        except OSError as error:
            if error.errno != errno.ECANCELED:  # the clock was set
                raise
        return (1,), True

    def close(self) -> None:
        """See `IWallTimer`."""
        if not self.closed:
            fd = self._fd
            if fd >= 0:
                self._tell_closing(fd)
            self._release()

    def _release(self) -> None:
        self.closed = True
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._identity.close(fd)

    def after_fork(self) -> None:
        """In a forked child: the parent waits."""
        if not self.closed:
            self._release()

    def __repr__(self) -> str:
        return f'WallTimer({self.at!r})'


class _Timespec(ctypes.Structure):
    _fields_ = (('seconds', ctypes.c_long), ('nanoseconds', ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (('interval', _Timespec), ('value', _Timespec))


def _timerfd(at: float) -> int:
    """A descriptor that can be read from `at` on; see timerfd_create(2).

    OSError or NotImplementedError if that cannot be had.
    """
    # Up, so that the clock has come to `at` when it can be read.
    part, whole = math.modf(min(max(at, _SOONEST), _LATEST))
    nanoseconds = math.ceil(part * 1e9)
    value = _Timespec(int(whole) + nanoseconds // 10 ** 9,
                      nanoseconds % 10 ** 9)
    fd = libc.call('timerfd_create', _CLOCK_REALTIME,
                   os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        libc.call('timerfd_settime', fd,
                  _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET,
                  ctypes.byref(_Itimerspec(value=value)), None)
    except BaseException:
        os.close(fd)
        raise
    return fd
