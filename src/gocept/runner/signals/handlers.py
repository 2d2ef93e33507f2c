"""The handlers of signals, and how they are put back."""

import _signal  # type: ignore[import-not-found]
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any, Protocol

from gocept.runner.logs import Log
from gocept.runner.waits import sigaction

log = Log('gocept.runner.signals')

TERMINATING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""The signals that end a loop after the tick in progress."""

Handler = Callable[[int, FrameType | None], None]

Previous = Callable[[int, FrameType | None], Any] | int | None
"""What `signal.getsignal` returns; None for a handler of C code."""



class Request(Protocol):
    """What handlers may have been removed for; see `IShutdown`."""

    requested: bool


Keep = Callable[[Request], None]
"""Called after a tick; puts back handlers that code of the tick has removed.
"""


@contextlib.contextmanager
def handling(handlers: Mapping[signal.Signals, Handler]) -> Iterator[Keep]:
    """Install signal handlers, and put those that were there back at the end.

    The action of a signal in `TERMINATING` is its default again as soon as it
    has arrived once, whatever code runs then. Outside the main thread, where
    Python can install none, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        log.debug('Not in the main thread: running without signal handlers')
        yield _Installed({}).keep
        return
    before = {signum: _before(signum) for signum in handlers}
    ours = _Installed({signum: _in_this_process(handler)
                       for signum, handler in handlers.items()})
    blocked = handlers.keys() & signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        for signum in handlers:
            ours.install(signum)
        # Whoever started the program may have blocked them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
        # One that arrived meanwhile could not restore those that came later.
        # To block them does not help, as another thread would get the signal.
        if any(is_default(signal.getsignal(signum)) for signum in handlers):
            restore_defaults()
        yield ours.keep
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        # Twice, as one that arrives meanwhile restores defaults.
        for _ in range(2):
            for signum, (previous, action) in before.items():
                signal.signal(signum, previous)
                sigaction.action(signum, action)


def _before(signum: signal.Signals) -> tuple[
        Handler | int, sigaction.Action | None]:
    """What to put back: the handler, and the action unless Python sets it."""
    # Where C code had installed a handler, Python does not know it.
    handler = signal.getsignal(signum) or signal.SIG_DFL
    action = sigaction.action(signum)
    if (os.getpid() == 1 and signum in TERMINATING
            and handler is signal.SIG_DFL and not (action and action.handler)):
        return _exit, None
    return handler, action


class _Installed:
    """Handlers of ours, and what other code has put in their place."""

    def __init__(self, handlers: Mapping[signal.Signals, Handler]) -> None:
        self._handlers = handlers
        # As numbers, since to convert a member of an enumeration takes longer
        # than the rest.
        self._numbers = [(int(signum), handler)
                         for signum, handler in handlers.items()]
        self._foreign: dict[signal.Signals, Previous] = {}

    def install(self, signum: signal.Signals) -> None:
        """Install the handler of a signal."""
        signal.signal(signum, self._handlers[signum])
        if signum in TERMINATING:
            _handle_once(signum)

    def keep(self, request: Request) -> None:
        """See `Keep`.

        The default, and Python's own handler, are replaced by ours. A handler
        of others stays, and is reported once.
        """
        for number, handler in self._numbers:
            if _getsignal(number) is not handler:
                self._put_back(request)
                break

    def _put_back(self, request: Request) -> None:
        for signum, handler in self._handlers.items():
            found = _getsignal(signum)
            if found is handler or request.requested:
                continue  # once the end is requested, the default is right
            if is_default(found) or found is signal.default_int_handler:
                self.install(signum)
                log.info('The handler of %s was removed in a tick: '
                         'it is in place again', signum.name)
            elif self._foreign.get(signum) is not found:
                self._foreign[signum] = found
                log.warning('%s does not end the loop any more: a tick has '
                            'installed the handler %r', signum.name, found)
        if request.requested:  # one may have arrived meanwhile
            restore_defaults()


# signal.getsignal() takes a hundred times as long, as it looks for a member of
# an enumeration.
_getsignal = _signal.getsignal


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


def restore_defaults(signals: Iterable[signal.Signals] = TERMINATING) -> None:
    """Let the next signal that ends a loop end the process at once."""
    if threading.current_thread() is threading.main_thread():
        default = _default()
        for signum in signals:
            signal.signal(signum, default)


def is_default(handler: Previous) -> bool:
    """Whether a signal in `TERMINATING` ends the process at once."""
    return handler is _exit or handler == signal.SIG_DFL


def _default() -> Handler | signal.Handlers:
    # In a container we may be the first process. For this one, the system
    # ignores each signal that has its default action.
    return _exit if os.getpid() == 1 else signal.SIG_DFL


def make_default_effective() -> None:
    """As the first process, let signals end it from now on.

    Called as early as possible; elsewhere the default action has this effect.
    """
    if (os.getpid() == 1
            and threading.current_thread() is threading.main_thread()):
        for signum in TERMINATING:
            if signal.getsignal(signum) is signal.SIG_DFL:
                signal.signal(signum, _exit)


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """A program, from its first line on: the default actions have their
    effect, and SIGUSR2 ends nothing before there are log files to reopen.
    """
    make_default_effective()
    with handling({signal.SIGUSR2: lambda signum, frame: None}):
        yield


def _exit(signum: int, frame: FrameType | None) -> None:
    os._exit(128 + signum)


_COMPLETING = (b'\nInterrupted: the tick is completed first. '
               b'Another Ctrl-C ends the program at once.\n')


def tell_terminal() -> None:
    """Tell who has pressed Ctrl-C in a tick what happens now.

    The only thing that a signal handler of ours writes: one system call, and
    only where standard error is a terminal.
    """
    with contextlib.suppress(OSError):
        if os.isatty(2):
            os.write(2, _COMPLETING)


_SA_RESETHAND = 0x80000000
_SA_ONSTACK = 0x08000000
_SA_RESTORER = 0x04000000


def _handle_once(signum: int) -> None:
    """Let the system itself restore the default when a signal is delivered.

    Python runs a handler only between two bytecodes, so one that restores the
    default is too late while C code runs. Where the structure is not as we
    know it, that is all there is; also for the first process of a container,
    which would ignore the signal then. See sigaction(2), SA_RESETHAND.
    """
    if os.getpid() == 1:
        return
    action = sigaction.action(signum)
    if action is not None and not action.flags & ~(
            _SA_ONSTACK | _SA_RESTORER):  # as Python sets it
        action.flags |= _SA_RESETHAND
        sigaction.action(signum, action)
