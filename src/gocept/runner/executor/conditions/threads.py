"""Calls that may hang, in a thread of their own, so that nobody waits longer
for one than it is allowed to take."""

import errno
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from gocept.runner.errors import ShortageError
from gocept.runner.poller import Poller

T = TypeVar('T')


def in_thread(function: Callable[[], T], poller: Poller) -> Future[T]:
    """Call `function` in a daemon thread, whose end wakes the poller.

    If no thread can be started now, the future has a ShortageError.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # raised where the result is taken
            future.set_exception(error)
        poller.wakeup()

    try:
        threading.Thread(target=run, daemon=True,
                         name='gocept.runner.executor').start()
    except RuntimeError as error:
        future.set_exception(ShortageError(errno.EAGAIN, str(error)))
    return future
