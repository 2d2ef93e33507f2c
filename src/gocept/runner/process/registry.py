"""Processes that have not ended, and their end, also when we exit."""

import atexit
import math
import os
import signal
from collections.abc import Iterable

from gocept.runner.errors import DeadlineExceeded
from gocept.runner.process import descendants
from gocept.runner.process.descendants import Child
from gocept.runner.process.ending import Ending, end
from gocept.runner.process.launch import our_mark

processes: set[Child] = set()
"""Each `Process` that runs, or has left somebody behind."""

_hooks: set[int] = set()  # of which processes


def hook() -> None:
    """Have what is left ended at exit; before a first child is started."""
    pid = os.getpid()
    if pid not in _hooks:
        _hooks.add(pid)
        atexit.register(end_all, pid)


def terminate_all(children: Iterable[Child], signum: int | None = None,
                  timeout: float | None = None,
                  at_most: float = math.inf) -> None:
    """End several processes as `IProcess.terminate` does, side by side.

    Each has `at_most` so many seconds, even if its own time is longer. One
    that has been ended in this way before is not looked at again. Afterwards
    `finished` says of each whether it was ended. DeadlineExceeded if one was
    not.
    """
    endings = {}
    for child in children:
        child.require_ours()
        if not child.finished:
            endings[child] = Ending(
                child, child.stop_signal if signum is None else signum,
                min(child.stop_timeout if timeout is None else timeout,
                    at_most))
    by_mark = {child.mark: ending for child, ending in endings.items()
               if child.mark and not child.adopts}
    all_seen = False
    try:
        all_seen = end(endings.values(), by_mark.get if by_mark else None)
    finally:
        for child, ending in endings.items():
            child.killed = child.killed or ending.killing
            child.finished = all_seen and not ending.failed
    failed = [ending for ending in endings.values() if ending.failed]
    processes.difference_update(
        child for child, ending in endings.items() if not ending.failed)
    if failed:
        raise DeadlineExceeded('still there: ' + '; '.join(map(str, failed)))


def end_all(pid: int) -> None:
    """End all that is left, and what has left its parents."""
    if pid != os.getpid():
        return  # a fork ends nothing that is not its own
    children = list(processes)
    by_mark = {child.mark: Ending(child, child.stop_signal, child.stop_timeout)
               for child in children}
    strays = Ending(None, signal.SIGTERM, 10.0)
    ours = our_mark()
    end([*by_mark.values(), strays],
        lambda mark: by_mark.get(mark) or (
            strays if mark.startswith(ours) else None))
    descendants.reap_orphans()
    for child in children:
        child.close_channels()
