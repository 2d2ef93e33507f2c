"""What is attached to a loop while it runs, so that it is seen from outside.

Each of the attached things hears the events of the loop, and has timers or a
thread of its own. The loop knows none of them.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gocept.runner import errors
from gocept.runner.boot.environments import Options
from gocept.runner.events import Loop
from gocept.runner.operation.asked import Asked


class Watched(NamedTuple):
    """A loop that is about to run, and what is known of its program."""

    loop: Loop
    name: str
    """The name of the worker."""
    site: str | None
    """The path of the site; None: the root."""
    options: Options
    """What the zope.conf says; see `IEnvironment.load`."""
    asked: Asked
    shutdown_timeout: float
    """Seconds in which the children have to end."""
    status: Callable[[], int]
    """What the program ends with when the loop has ended, or SystemExit."""


@contextlib.contextmanager
def attached(watched: Watched) -> Iterator[None]:
    """Attach what was asked for, until the block ends."""
    # Imported here, as the help of a worker needs none of it.
    from gocept.runner.operation.recorder import Recorder
    from gocept.runner.operation.statefile import StateFile
    with contextlib.ExitStack() as stack:
        site = (watched.site or '').strip('/') or None
        file = StateFile.of(watched.name, site, watched.options,
                            watched.asked)
        if file is not None:
            stack.enter_context(
                Recorder(watched.loop, watched.name, site, file).running(
                    functools.partial(_status, watched.status)))
        if os.environ.get('NOTIFY_SOCKET'):
            from gocept.runner.operation import systemd
            stack.enter_context(systemd.attached(
                watched.loop, watched.shutdown_timeout))
        if watched.asked.metrics is not None:
            # Imported here, since few workers need it.
            from gocept.runner.operation import metrics
            stack.enter_context(metrics.attached(
                watched.loop, watched.name, watched.site,
                watched.asked.metrics))
        yield


def _status(find: Callable[[], int], error: BaseException | None) -> int:
    """What the program is about to end with."""
    if error is None:
        try:
            return find()
        except SystemExit as ending:
            error = ending
    if isinstance(error, SystemExit):
        return errors.status_of(error)
    status = getattr(error, 'status', errors.WORKER_FAILED)
    return status if isinstance(status, int) else errors.WORKER_FAILED
