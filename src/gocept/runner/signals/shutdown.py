"""How a program learns that it is to end, and the waits that this ends.

A signal handler only records and wakes; what it recorded is acted on in the
thread that runs the loop, between two ticks or in a wait.
"""

import contextlib
import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, TracebackType
from typing import Any, Self

import zope.interface

from gocept.runner.errors import Terminated
from gocept.runner.interfaces import IShutdown
from gocept.runner.poller import Poller
from gocept.runner.waits.deadline import Deadline

log = logging.getLogger('gocept.runner.signals')

TERMINATING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""The signals that end a loop after the tick in progress."""

_running = threading.local()


@zope.interface.implementer(IShutdown)
class Shutdown:
    """See `IShutdown`."""

    def __init__(self) -> None:
        self.requested = False
        self.signum: int | None = None
        self._reopen = False
        self._poller: Poller | None = None
        self._pausing: Poller | None = None

    def request(self, signum: int | None = None) -> None:
        """See `IShutdown`."""
        if signum is not None:
            self.signum = signum
        self.requested = True
        self._wake()

    def request_reopening(self) -> None:
        """See `IShutdown`."""
        self._reopen = True
        self._wake()

    def _wake(self) -> None:
        poller = self._pausing
        if poller is not None:
            poller.interrupt()

    def attend(self) -> bool:
        """See `IShutdown`."""
        if self._reopen:
            self._reopen = False
            _reopen_logs()
        return self.requested

    def wait(self, seconds: float) -> bool:
        """See `IShutdown`."""
        deadline = Deadline(seconds)
        while not self.pause(deadline.left()) and not deadline.passed:
            pass
        return self.requested

    def pause(self, seconds: float | None = None,
              poller: Any = None) -> bool:
        """See `IShutdown`."""
        if self._poller is None:
            raise RuntimeError('wait() needs an entered shutdown: with ...:')
        poller = self._pausing = self._poller if poller is None else poller
        try:
            with _woken_by_signals(poller):
                poller.pause(seconds, self.attend)
        finally:
            self._pausing = None
        return self.requested

    def wakeup(self) -> None:
        """See `IShutdown`."""
        poller = self._poller
        if poller is not None:
            poller.wakeup()

    def __enter__(self) -> Self:
        self._poller = Poller()
        self._outer: Shutdown | None = getattr(_running, 'shutdown', None)
        _running.shutdown = self
        return self

    def join_outer(self) -> None:
        """Take over a signal that has ended the one around this one."""
        outer = self._outer
        if outer is not None and outer.signum is not None:
            self.request(outer.signum)

    def __exit__(self, exc_type: type[BaseException] | None,
                 exc: BaseException | None,
                 traceback: TracebackType | None) -> None:
        _running.shutdown = self._outer
        poller, self._poller = self._poller, None
        if poller is not None:
            poller.close()
        if self._outer is not None and self.signum is not None:
            # Its handlers are in place again, but this was the first signal.
            restore_defaults()
            self._outer.request(self.signum)
        self.requested, self.signum = False, None


@contextlib.contextmanager
def current_shutdown() -> Iterator[Shutdown]:
    """The shutdown of the loop that runs in this thread.

    Where none runs: one that nobody requests, so that its waits can be used.
    """
    shutdown: Shutdown | None = getattr(_running, 'shutdown', None)
    if shutdown is not None:
        yield shutdown
    else:
        with Shutdown() as shutdown:
            yield shutdown


Handler = Callable[[int, FrameType | None], None]


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
                       _get_action(signum)) for signum in handlers}
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
                _set_action(signum, action)


@contextlib.contextmanager
def requesting(shutdown: Shutdown) -> Iterator[None]:
    """Let the signals that end a loop request `shutdown`."""
    def request(signum: int, frame: FrameType | None) -> None:
        restore_defaults()
        shutdown.request(signum)
    with handling(dict.fromkeys(TERMINATING, request)):
        yield


def handlers() -> dict[signal.Signals, Any]:
    """Those of the signals that end a loop, as `raising` needs them."""
    return {signum: signal.getsignal(signum) for signum in TERMINATING}


@contextlib.contextmanager
def raising(before: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Within `requesting`, have the handlers from before it.

    Those that would end the process raise `Terminated`, so that it is ended in
    order. It is raised at once if a signal has come meanwhile.
    """
    def end(signum: int, frame: FrameType | None) -> None:
        restore_defaults()
        raise Terminated(signum)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with (_default_after_the_first(), handling(dict.fromkeys(before, end)),
          contextlib.ExitStack() as undo):
        for signum, handler in before.items():
            if handler is not None and handler is not signal.SIG_DFL:
                undo.callback(signal.signal, signum,
                              signal.signal(signum, handler))
        with current_shutdown() as shutdown:
            if shutdown.requested:
                raise Terminated(shutdown.signum or signal.SIGTERM)
        yield


@contextlib.contextmanager
def _default_after_the_first() -> Iterator[None]:
    try:
        yield
    except (Terminated, KeyboardInterrupt):
        restore_defaults()  # as other handlers are in place again
        raise


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


@contextlib.contextmanager
def _woken_by_signals(poller: Poller) -> Iterator[None]:
    # A signal that arrives after the last bytecode and before the system call
    # would not be seen until the wait is over, did it not write to the poller.
    # Set only while waiting, so that a worker may run an event loop.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.set_wakeup_fd(
        poller.wakeup_fd, warn_on_full_buffer=False)
    try:
        yield
    finally:
        try:
            signal.set_wakeup_fd(previous)
        except (OSError, ValueError):  # somebody has closed it
            signal.set_wakeup_fd(-1)


def _reopen_logs() -> None:
    from ZConfig.components.logger import loghandler
    # reopenFiles() would leave out those behind one that fails.
    for reference in list(loghandler._reopenable_handlers):
        handler = reference()
        if handler is not None:
            try:
                handler.reopen()
            except OSError as error:
                log.error('Cannot reopen a log file: %s', error)
    log.info('Reopened the log files')


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


_sigaction = ctypes.CDLL(None).sigaction


def _get_action(signum: int) -> _Action:
    action = _Action()
    _sigaction(signum, None, ctypes.byref(action))
    return action


def _set_action(signum: int, action: _Action) -> None:
    _sigaction(signum, ctypes.byref(action), None)


def _handle_once(signum: int) -> None:
    """Let the system itself restore the default when a signal is delivered.

    Python runs a handler only between two bytecodes, so one that restores the
    default is too late while C code runs. Where the structure is not as we
    know it, that is all there is. See sigaction(2), SA_RESETHAND.
    """
    action = _get_action(signum)
    if not action.flags & ~(_SA_ONSTACK | _SA_RESTORER):  # as Python sets it
        action.flags |= _SA_RESETHAND
        _set_action(signum, action)
