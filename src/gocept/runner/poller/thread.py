"""The daemon thread that serves what nobody else polls.

There is one in a process. It calls `Poller.poll` of the poller that
`background` returns. It is begun at first need, and anew in a forked child. It
runs the callbacks of what is registered there, sends what channels have kept
back, and does what finalizers have handed over; it reads no channel that was
handed out.
"""

import errno
import os
import sys
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from gocept.runner.errors import PollerInUse, ShortageError
from gocept.runner.logs import Log
from gocept.runner.poller.poller import Pair, Poller
from gocept.runner.waits.forks import Lock
from gocept.runner.waits.threads import (
    in_background,
    serving,
    survived,
)

log = Log('gocept.runner.poller')


class _BackgroundPoller(Poller):

    @property
    def is_of_use(self) -> bool:
        """Whether it can still wait."""
        return not (self.closed or self._descriptors.are_lost)

    def poll(self, timeout: float | None = None) -> list[Pair]:
        if not in_background():
            raise PollerInUse('only the background thread polls this poller; '
                              'make a Poller of your own')
        return super().poll(timeout)

    def pause(self, timeout: float | None = None,
              over: Callable[[], object] = lambda: False) -> bool:
        raise PollerInUse('the background thread does not pause; make a '
                          'Poller of your own')

    def after_fork(self) -> None:
        super().after_fork()
        self.close()  # as nobody polls it here


_lock = Lock()
_background: _BackgroundPoller | None = None
_handed_over: 'SimpleQueue[tuple[int, Callable[[], object]]]' = SimpleQueue()


def background() -> Poller:
    """The poller of the daemon thread, which ends when somebody closes it.

    ShortageError if no thread can be started now; the next call tries again.
    """
    global _background
    with _lock:
        if _background is None or not _background.is_of_use:
            poller = _BackgroundPoller()
            try:
                threading.Thread(target=_serve, args=(poller,), daemon=True,
                                 name='gocept.runner.poller').start()
            except BaseException as error:
                poller.close()  # as nobody would poll it
                if isinstance(error, RuntimeError):  # too many threads
                    raise ShortageError(errno.EAGAIN, str(error)) from error
                raise
            _background = poller
        return _background


def hand_over(function: Callable[[], object]) -> None:
    """Have the thread call `function` soon. For finalizers.

    A finalizer runs in any thread and under any lock, so this takes no lock
    and begins no thread. Where none runs, `function` waits until somebody
    calls `background`; an object that relies on it does that when it is made.
    Nothing is called at the exit of the interpreter, or in a child that was
    forked meanwhile. An exception is logged.
    """
    if not sys.is_finalizing():
        _handed_over.put((os.getpid(), function))
        poller = _background
        if poller is not None:
            poller.wakeup()


def settle(seconds: float) -> bool:
    """Wait until the thread has done what it is at; False if it takes longer.

    For the exit of the process, which would cut its callbacks short.
    """
    poller = _background
    if poller is None or not poller.is_of_use or in_background():
        return True
    done = threading.Event()
    hand_over(done.set)
    return done.wait(seconds)


def _serve(poller: _BackgroundPoller) -> None:
    with serving(lambda: not poller.closed):
        while not poller.closed:
            try:
                _call_handed_over()
                poller.poll()
            except BaseException:  # others rely on this thread
                if poller.is_of_use:
                    log.exception('The background thread goes on')
                elif not poller.closed:
                    log.exception(
                        'Other code has closed the descriptors of the '
                        'background thread, as os.closerange() does: it ends, '
                        'and what it has watched is watched no more')
                    poller.close()


def _call_handed_over() -> None:
    while True:
        try:
            pid, function = _handed_over.get_nowait()
        except Empty:
            return
        if pid == os.getpid():
            try:
                function()
            except survived():
                log.exception(
                    '%r, handed over by a finalizer, failed', function)
