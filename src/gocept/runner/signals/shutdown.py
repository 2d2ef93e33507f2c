"""How a program learns that it is to end, and the waits that this ends.

A signal handler only records and wakes; what it recorded is acted on in the
thread that runs the loop, between two ticks or in a wait.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from types import FrameType
from typing import Protocol, Self

import zope.interface

from gocept.runner.errors import PollerInUse, Terminated
from gocept.runner.interfaces import IShutdown
from gocept.runner.logs import Log
from gocept.runner.poller import Poller
from gocept.runner.signals.handlers import (
    TERMINATING,
    Previous,
    handling,
    is_default,
    restore_defaults,
)
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.forks import tell_forks

log = Log('gocept.runner.signals')

_running = threading.local()


class Listener(Protocol):
    """Who wants to know at once what a shutdown is asked for."""

    def note_request(self) -> object:
        """The end is requested; called in any thread and in signal handlers.
        """

    def reopening(self) -> AbstractContextManager[object]:
        """The block in which the log files are reopened."""


@zope.interface.implementer(IShutdown)
class Shutdown:
    """See `IShutdown`."""

    def __init__(self) -> None:
        self.requested = False
        self.signum: int | None = None
        self.listener: Listener | None = None
        self._reopen = False
        self._entered = False
        self._pausing: Poller | None = None
        self._woken = False  # for the next pause
        self._wakeup_fd = -1  # that signals write to; -1 for none of ours
        tell_forks(self)

    def after_fork(self) -> None:
        # The pipe is closed in the child, and others may get its number.
        if self._wakeup_fd >= 0:
            signal.set_wakeup_fd(-1)
            self._wakeup_fd = -1

    def request(self, signum: int | None = None) -> None:
        """See `IShutdown`."""
        if signum is not None:
            self.signum = signum
        self.requested = True
        self._wake()
        if self.listener is not None:
            self.listener.note_request()

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
            with (contextlib.nullcontext() if self.listener is None
                  else self.listener.reopening()):
                _reopen_logs()
        return self.requested

    def wait(self, seconds: float, poller: Poller | None = None) -> bool:
        """See `IShutdown`."""
        deadline = Deadline(seconds)
        try:
            while (not self.pause(deadline.left(), poller)
                   and not deadline.passed):
                pass
        except OSError:
            if poller is not None:
                raise
            # No descriptors are left to wait with, so this goes on at once.
        return self.requested

    def pause(self, seconds: float | None = None,
              poller: Poller | None = None) -> bool:
        """See `IShutdown`."""
        self.rest(seconds, poller)
        return self.requested

    def rest(self, seconds: float | None = None,
             poller: Poller | None = None) -> bool:
        """See `IShutdown`."""
        if not self._entered:
            raise RuntimeError('a shutdown has to be entered before it can '
                               'wait: with shutdown: ...')
        if poller is None:
            with Poller() as poller:
                return self.rest(seconds, poller)
        self._pausing = poller
        if self._woken:
            poller.wakeup()
        try:
            with self._woken_by_signals(poller):
                return poller.pause(seconds, self.attend)
        except PollerInUse as error:
            log.warning('Pausing with another poller: %s', error)
            return self.rest(seconds)
        finally:
            self._pausing, self._woken = None, False

    @contextlib.contextmanager
    def _woken_by_signals(self, poller: Poller) -> Iterator[None]:
        # A signal that arrives after the last bytecode and before the system
        # call would not be seen until the wait is over, did it not write to
        # the poller. Set only while waiting, so that a worker may run an event
        # loop.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._wakeup_fd = poller.wakeup_fd
        previous = signal.set_wakeup_fd(
            self._wakeup_fd, warn_on_full_buffer=False)
        try:
            yield
        finally:
            self._wakeup_fd = -1
            try:
                signal.set_wakeup_fd(previous)
            except (OSError, ValueError):  # somebody has closed it
                signal.set_wakeup_fd(-1)

    def wakeup(self) -> None:
        """See `IShutdown`."""
        self._woken = True  # first, as a pause may just begin
        poller = self._pausing
        if poller is not None:
            poller.wakeup()

    def __enter__(self) -> Self:
        self._entered, self._woken = True, False
        self._outer: Shutdown | None = getattr(_running, 'shutdown', None)
        _running.shutdown = self
        return self

    def serve(self) -> Callable[[], None]:
        """Like `__enter__`; returns what ends this, but keeps the request."""
        self.__enter__()

        def end() -> None:
            _running.shutdown = self._outer
            self._entered = False
        return end

    def join_outer(self) -> None:
        """Take over a signal that has ended the one around this one."""
        outer = self._outer
        if outer is not None and outer.signum is not None:
            self.request(outer.signum)

    def __exit__(self, *exc: object) -> None:
        _running.shutdown = self._outer
        self._entered = False
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
    running: Shutdown | None = getattr(_running, 'shutdown', None)
    with (contextlib.nullcontext(running) if running
          else Shutdown()) as shutdown:
        yield shutdown


def end_program(signum: int) -> None:
    """Do what this signal does now; nothing if one is being heeded already.

    To be called in the main thread, where a signal handler may do so.
    """
    running: Shutdown | None = getattr(_running, 'shutdown', None)
    if running is None:
        signal.raise_signal(signum)
    elif not running.requested:
        restore_defaults()
        running.request(signum)


@contextlib.contextmanager
def requesting(shutdown: Shutdown) -> Iterator[None]:
    """Let the signals that end a loop request `shutdown`."""
    def request(signum: int, frame: FrameType | None) -> None:
        restore_defaults()
        shutdown.request(signum)
    with handling(dict.fromkeys(TERMINATING, request)):
        yield


@contextlib.contextmanager
def raising(before: Mapping[signal.Signals, Previous]) -> Iterator[None]:
    """Within `requesting`, install the handlers from before it.

    Those that would end the process raise `Terminated`, so that it is ended in
    order. It is raised at once if a signal has come meanwhile, and again at
    the end if code of the block has swallowed it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        with _terminated_by(before.keys()), contextlib.ExitStack() as undo:
            for signum, handler in before.items():
                if handler is not None and not is_default(handler):
                    undo.callback(signal.signal, signum,
                                  signal.signal(signum, handler))
            with current_shutdown() as shutdown:
                if shutdown.requested:
                    raise Terminated(shutdown.signum or signal.SIGTERM)
            yield
    except (Terminated, KeyboardInterrupt):
        restore_defaults()  # as other handlers are in place again
        raise


@contextlib.contextmanager
def booting() -> Iterator[None]:
    """Let a signal that would end the process raise `Terminated`.

    Where Python would raise KeyboardInterrupt, it is that. If the signal comes
    in a commit, or if code of the block swallows the exception, it is raised
    at the end: no commit is cut in halves. A second signal ends the process at
    once.
    """
    # Not for those that are ignored, or have a handler of the caller.
    with _terminated_by([signum for signum in TERMINATING
                         if is_default(found := signal.getsignal(signum))
                         or found is signal.default_int_handler],
                        later=_commits):
        yield


@contextlib.contextmanager
def _terminated_by(signals: Collection[signal.Signals],
                   later: Callable[[FrameType | None], bool]
                   = lambda frame: False) -> Iterator[None]:
    """Let the first of these signals raise `Terminated`.

    In place of Python's own handler it raises KeyboardInterrupt, as that does.
    Python drops an exception that is raised in a finalizer, or in the callback
    of a weak reference, and shows a traceback. This one is not shown, and it
    is raised again at the end of the block, as it is if code has caught it. It
    is raised there only where the frame is one that it has to wait for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    interrupting = [signum for signum in signals if signal.getsignal(signum)
                    is signal.default_int_handler]

    def ending(signum: int) -> Terminated | KeyboardInterrupt:
        return (KeyboardInterrupt() if signum in interrupting
                else Terminated(signum))

    def end(signum: int, frame: FrameType | None) -> None:
        restore_defaults(signals)
        came.append(signum)
        if not later(frame):
            raise ending(signum)

    def show(dropped: 'sys.UnraisableHookArgs') -> None:
        if not (came and isinstance(dropped.exc_value,
                                    Terminated | KeyboardInterrupt)):
            before(dropped)
    before = sys.unraisablehook
    sys.unraisablehook = show
    try:
        with handling(dict.fromkeys(signals, end)):
            yield
            if came:
                raise ending(came[0])
    finally:
        if sys.unraisablehook is show:  # and not one of other code
            sys.unraisablehook = before


def _commits(frame: FrameType | None) -> bool:
    """Whether a signal has interrupted the commit of a transaction."""
    while frame is not None:
        # By their names, as this floor does not import the package.
        if (frame.f_code.co_name == 'commit' and
                frame.f_globals.get('__name__') == 'transaction._transaction'):
            return True
        frame = frame.f_back
    return False


def _reopen_logs() -> None:
    if reopen_logs():
        log.info('Reopened the log files')


def reopen_logs() -> bool:
    """Open the log files anew; returns whether all could be opened.

    An error is logged.
    """
    # ZConfig makes the handlers, if a zope.conf was read. Its reopenFiles()
    # would stop at the first handler that fails.
    loghandler = sys.modules.get('ZConfig.components.logger.loghandler')
    failed = False
    for reference in list(getattr(loghandler, '_reopenable_handlers', ())):
        handler = reference()
        if handler is not None:
            try:
                path = getattr(handler, 'baseFilename', None)
                if path is not None:
                    # A handler closes the old file first, so all later lines
                    # would be lost.
                    with open(path, 'a'):
                        pass
                handler.reopen()
            except Exception as error:  # of a handler of another kind, too
                log.error('Cannot reopen a log file: %s', error)
                failed = True
    return not failed
