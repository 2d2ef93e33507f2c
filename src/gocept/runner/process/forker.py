"""Calls in a thread that lives as long as the process.

A child gets the signal for the death of its parent when the thread ends that
has started the child; see prctl(2). So the main thread starts children with
that signal, or else this thread, which is begun when it is first needed.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from gocept.runner.waits.forks import Lock

T = TypeVar('T')

_lock = Lock()
_thread: threading.Thread | None = None
_calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()


def call(function: Callable[[], T]) -> T:
    """Call a function in that thread, or at once in the main thread.

    Returns its result, or raises its exception.
    """
    global _thread, _calls
    if threading.current_thread() is threading.main_thread():
        return function()
    future: Future[T] = Future()

    def answer() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # which the caller gets
            future.set_exception(error)

    with _lock:
        if _thread is None or not _thread.is_alive():  # as in a fork
            _calls = queue.SimpleQueue()
            _thread = threading.Thread(
                target=_serve, args=(_calls,), daemon=True,
                name='gocept.runner.forker')
            _thread.start()
        _calls.put(answer)
    return future.result()


def _serve(calls: queue.SimpleQueue[Callable[[], None]]) -> None:
    while True:
        calls.get()()
