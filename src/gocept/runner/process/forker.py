"""Calls in a thread that lives as long as the process.

The signal for the death of a parent, see prctl(2), is that of the thread which
has started a child. So those that are to get it are started by the main thread
or by this one, which is begun at first need.
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
    """Call it there, or in the main thread here; returns its result."""
    global _thread, _calls
    if threading.current_thread() is threading.main_thread():
        return function()
    future: Future[T] = Future()

    def answer() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # raised where it is waited for
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
