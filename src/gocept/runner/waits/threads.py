"""What the background thread is asked for: nobody may wait for it there.

`gocept.runner.poller.thread` has the thread itself.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

from gocept.runner.errors import RunnerError


class _Here(threading.local):
    serves: Callable[[], bool] | None = None
    """Whether this thread still serves what it was begun for."""


_here = _Here()


@contextlib.contextmanager
def serving(goes_on: Callable[[], bool]) -> Iterator[None]:
    """Make this thread the background thread as long as `goes_on()`."""
    _here.serves = goes_on
    try:
        yield
    finally:
        _here.serves = None


def in_background() -> bool:
    """Whether this thread is the background thread.

    False in a child that was forked by it, as nobody waits for that thread.
    """
    return _here.serves is not None and _here.serves()


def refuse_to_wait(what: str) -> None:
    """RunnerError in the background thread, which would wait for itself."""
    if in_background():
        raise RunnerError(
            f'{what} would wait in the background thread for something that '
            'only this thread does: call it in a thread of your own')


def survived() -> type[BaseException]:
    """What a caller of user code catches: in the background thread all.

    Others rely on that thread. Elsewhere SystemExit and KeyboardInterrupt go
    to the caller, who is the user. Write ``except survived():``.
    """
    return BaseException if in_background() else Exception
