"""A call that may hang, so that nobody waits longer for it than he wants."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from gocept.runner.poller import Poller
from gocept.runner.waits.deadline import Deadline

T = TypeVar('T')


class Aside(Generic[T]):
    """Calls `function` in a daemon thread; its end wakes the poller."""

    def __init__(self, function: Callable[[], T], poller: Poller) -> None:
        self._function = function
        self._poller = poller
        self._value: T
        self._error: BaseException | None = None
        self.done = False
        threading.Thread(target=self._run, daemon=True,
                         name='gocept.runner.executor').start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:  # raised where the result is taken
            self._error = error
        self.done = True
        self._poller.wakeup()

    def result(self) -> T:
        """What it has returned or raised."""
        if self._error is not None:
            raise self._error
        return self._value


def within(function: Callable[[], T], poller: Poller,
           deadline: Deadline) -> T:
    """Call it, but wait no longer than that; TimeoutError."""
    aside = Aside(function, poller)
    while not aside.done:
        if deadline.passed:
            raise TimeoutError('no answer in time')
        poller.poll(deadline.left())
    return aside.result()
