"""The processes that have not ended, and their end, also at our exit."""

import atexit
import math
import os
import signal
from collections.abc import Iterable

from gocept.runner.errors import DeadlineExceeded
from gocept.runner.process.adoption import adoption
from gocept.runner.process.descendants import Child
from gocept.runner.process.ending import Ending, end

processes: set[Child] = set()
"""Each `Process` that runs, or has left descendants behind."""

_hooks: set[int] = set()  # the pids of processes, forks too, with a hook


def hook() -> None:
    """End all children at the exit of this process.

    To be called before a child is started: a signal handler may raise an
    exception as soon as the child is there.
    """
    pid = os.getpid()
    if pid not in _hooks:
        _hooks.add(pid)
        atexit.register(end_all, pid)


def terminate_all(children: Iterable[Child], signum: int | None = None,
                  timeout: float | None = None,
                  at_most: float = math.inf) -> None:
    """End several processes as `IProcess.terminate` does, side by side.

    Each has at most `at_most` seconds, even if its own time is longer. One
    that is finished already is not looked at again. DeadlineExceeded if some
    cannot be ended; their `finished` is False afterwards.
    """
    endings = {}
    for child in children:
        child.require_ours()
        if not child.finished:
            endings[child] = Ending(
                child, child.stop_signal if signum is None else signum,
                min(child.stop_timeout if timeout is None else timeout,
                    at_most))
    all_seen = False
    try:
        all_seen = end(endings.values())
    finally:
        for child, ending in endings.items():
            child.killed = child.killed or ending.killing
            child.finished = all_seen and not ending.failed
            if child.finished and child.adopts:
                adoption.end(child)
    failed = [ending for ending in endings.values() if ending.failed]
    processes.difference_update(
        child for child, ending in endings.items() if not ending.failed)
    if failed:
        raise DeadlineExceeded('still there: ' + '; '.join(map(str, failed)))


def end_all(pid: int) -> None:
    """End all children that are left, and descendants of earlier ones."""
    if pid != os.getpid():
        return  # a fork does not end the children of its parent
    children = list(processes)
    end([Ending(None, signal.SIGTERM, 10.0), *(
        Ending(child, child.stop_signal, child.stop_timeout)
        for child in children)])
    adoption.reap_all()
    for child in children:
        child.close_channels()
