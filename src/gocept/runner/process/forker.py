"""Calls in a thread that lives as long as the process.

A child gets the signal for the death of its parent when the thread ends that
has started the child; see prctl(2). So the main thread starts children with
that signal, or else this thread, which is begun when it is first needed.

No signal handler runs in this thread. So the main thread, too, has it fork a
child that could not be found if a handler raised an exception in the middle.
"""

import errno
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from gocept.runner.errors import ShortageError
from gocept.runner.waits.forks import Lock

T = TypeVar('T')

_lock = Lock()
_thread: threading.Thread | None = None
_calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()


def call(function: Callable[[], T], also_main: bool = False) -> T:
    """Call a function in that thread, or at once in the main thread.

    With `also_main`, in that thread always: no signal handler interrupts it
    there. Only at the exit of the program, where Python begins no threads any
    more, the main thread calls it. Returns its result, or raises its
    exception. ShortageError if the thread cannot be begun.
    """
    global _thread, _calls
    main = threading.main_thread()
    if threading.current_thread() is main and not (
            also_main and main.is_alive()):
        return function()
    future: Future[T] = Future()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def answer() -> None:
        # A child inherits what the thread blocks that starts it.
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            future.set_result(function())
        except BaseException as error:  # which the caller gets
            future.set_exception(error)

    with _lock:
        if _thread is None or not _thread.is_alive():  # as in a fork
            _calls = queue.SimpleQueue()
            thread = threading.Thread(
                target=_serve, args=(_calls,), daemon=True,
                name='gocept.runner.forker')
            try:
                thread.start()
            except RuntimeError as error:
                raise ShortageError(errno.EAGAIN, str(error)) from error
            _thread = thread
        _calls.put(answer)
    try:
        return future.result()
    except BaseException:
        wait([future])  # when a signal handler has raised it
        raise


def _serve(calls: queue.SimpleQueue[Callable[[], None]]) -> None:
    while True:
        calls.get()()
