"""Calls in a thread that lasts as long as the process.

The signal for the death of a parent, see prctl(2), is that of the thread which
has started a child. So those that are to get it are started by the main thread
or by this one, which is begun at first need.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from gocept.runner.waits.forks import Lock, tell_forks

T = TypeVar('T')


class _Lasting:

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[
            tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        tell_forks(self)
        threading.Thread(target=self._serve, daemon=True,
                         name='gocept.runner.forker').start()

    def _serve(self) -> None:
        while True:
            function, future = self._calls.get()
            try:
                future.set_result(function())
            except BaseException as error:  # raised where it is waited for
                future.set_exception(error)

    def call(self, function: Callable[[], T]) -> T:
        future: Future[T] = Future()
        self._calls.put((function, future))
        return future.result()

    def after_fork(self) -> None:
        global _lasting
        _lasting = None  # the thread is the parent's


_lock = Lock()
_lasting: _Lasting | None = None


def call(function: Callable[[], T]) -> T:
    """Call it there, or in the main thread here; returns its result."""
    global _lasting
    if threading.current_thread() is threading.main_thread():
        return function()
    with _lock:
        if _lasting is None:
            _lasting = _Lasting()
        lasting = _lasting
    return lasting.call(function)
