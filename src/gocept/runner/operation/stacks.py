"""The stacks of all threads, as `faulthandler` writes them.

A signal makes it write them from C, at once, also while other C code holds the
interpreter. So they are written to a descriptor that is open already.
"""

import contextlib
import ctypes
import faulthandler
import functools
import logging
import os
import re
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

from gocept.runner.waits.closing import Closing
from gocept.runner.waits.forks import Lock
from gocept.runner.waits.sigaction import action
from gocept.runner.waits.standard import fill_standard

_LONGEST = 1_000_000  # bytes of stacks in a line of the log

_choosing = Lock()


class Sheet(Closing):
    """A file without a name that stacks are written to, and read from."""

    def __init__(self) -> None:
        fill_standard()
        if hasattr(os, 'memfd_create'):
            self.fd = os.memfd_create('stacks')
        else:
            self.fd, path = tempfile.mkstemp()
            os.unlink(path)

    def write(self) -> None:
        """Write the stacks of all threads, now."""
        faulthandler.dump_traceback(self.fd, all_threads=True)

    def read(self) -> str:
        """What was written."""
        return os.pread(self.fd, _LONGEST, 0).decode('ascii', 'replace')

    def clear(self) -> None:
        """Forget what was written."""
        os.lseek(self.fd, 0, os.SEEK_SET)
        os.ftruncate(self.fd, 0)

    def close(self) -> None:
        """See `Closing`."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


class Signal(Closing):
    """A signal that writes the stacks of all threads to a descriptor.

    It is one that has its default action, so nobody waits for it; `close`
    gives it back. If it is `fatal`, the process ends then by SIGABRT, with the
    default action of that, also if Python has a handler for it. OSError if the
    system has none that is free. Linux only.
    """

    def __init__(self, fd: int, *, fatal: bool = False) -> None:
        self._fatal = fatal
        with _choosing:
            self.number = _free_signal()
            if fatal:
                # With `chain`, faulthandler calls the handler that was there.
                _set_handler(self.number, _address_of_abort())
            faulthandler.register(
                self.number, fd, all_threads=True, chain=fatal)
        self._blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, (
            self.number,)) & {self.number}
        self._is_open = True

    def close(self) -> None:
        """See `Closing`. To be called by the thread that has made it."""
        if self._is_open:
            self._is_open = False
            faulthandler.unregister(self.number)
            if self._fatal:
                _set_handler(self.number, None)
            signal.pthread_sigmask(signal.SIG_BLOCK, self._blocked)


def _free_signal() -> int:
    if sys.platform != 'linux':
        raise OSError(f'no signal of {sys.platform} is known to be free')
    # From the upper end of the real-time ones, as libraries that use some
    # begin at the lower end, as a rule.
    for number in range(signal.SIGRTMAX - 1, signal.SIGRTMIN, -1):
        found = action(number)
        if found is not None and found.handler is None:
            return number
    raise OSError('no real-time signal is free')


@functools.cache
def _library() -> ctypes.PyDLL:
    return ctypes.PyDLL(None)


def _address_of_abort() -> int | None:
    # Unlike SIGABRT alone, this ends the first process of a container, too.
    return ctypes.cast(_library().abort, ctypes.c_void_p).value


def _set_handler(signum: int, address: int | None) -> None:
    # Not by sigaction(2), whose structure differs between machines.
    _library().signal(signum, ctypes.c_void_p(address))


def report(sheet: Sheet, ident: int, without: int | None = None) -> str:
    """What is written there, with the names of the threads.

    `ident` is that of the thread with the tick; the thread `without` is left
    out.
    """
    names = {each.ident: each.name for each in threading.enumerate()}
    found = []
    for stack in sheet.read().strip().split('\n\n'):
        number = re.match(r'(?:Current t|T)hread 0x([0-9a-f]+)', stack)
        if number is None:
            found.append(stack)
            continue
        thread = int(number[1], 16)
        if thread != without:
            name = names.get(thread, 'unknown to Python')
            tick = ', in the tick' * (thread == ident)
            found.append(f'Thread {name}{tick}{stack[number.end():]}')
    return '\n\n'.join(found)


@contextlib.contextmanager
def error_output() -> Iterator[int]:
    """The descriptor of standard error.

    If nobody reads that, as with a daemon: of the first log file of the
    program instead.
    """
    with contextlib.ExitStack() as stack:
        fd = 2
        if _is_null(fd):
            for handler in logging.getLogger().handlers:
                fileno: Callable[[], int] | None = getattr(
                    getattr(handler, 'stream', None), 'fileno', None)
                with contextlib.suppress(OSError, ValueError, TypeError):
                    if fileno is not None and not _is_null(fileno()):
                        # It may be closed, and its number be used again.
                        fd = os.dup(fileno())
                        stack.callback(os.close, fd)
                        break
        yield fd


def _is_null(fd: int) -> bool:
    try:
        null, found = os.stat(os.devnull), os.fstat(fd)
    except OSError:  # there are systems in a box that have no such device
        return False
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == null.st_rdev
