"""Processes that have not ended, and their end, also when we exit."""

import atexit
import math
import os
import signal
from collections.abc import Iterable
from typing import Any

from gocept.runner.errors import DeadlineExceeded
from gocept.runner.process import descendants
from gocept.runner.process.ending import Ending, end
from gocept.runner.process.launch import our_mark

processes: set[Any] = set()
"""Each `Process` that runs, or has left somebody behind."""

_hooks: set[int] = set()  # of which processes


def add(process: Any) -> None:
    """Have it ended at exit, unless it is discarded before."""
    processes.add(process)
    pid = os.getpid()
    if pid not in _hooks:
        _hooks.add(pid)
        atexit.register(end_all, pid)


def terminate_all(children: Iterable[Any], signum: int | None = None,
                  timeout: float | None = None,
                  at_most: float = math.inf) -> None:
    """End several processes as `IProcess.terminate` does, side by side.

    Each has `at_most` so many seconds, even if its own time is longer.
    """
    endings = []
    for process in children:
        process._require_owner()
        endings.append(Ending(
            process, process.stop_signal if signum is None else signum,
            min(process.stop_timeout if timeout is None else timeout,
                at_most)))
    by_mark = {ending.process.mark: ending for ending in endings
               if ending.process.mark and not ending.process.adopts}
    end(endings, by_mark.get if by_mark else None)
    for ending in endings:
        ending.process.killed = ending.process.killed or ending.killing
    processes.difference_update(
        ending.process for ending in endings if not ending.failed)
    if failed := [ending for ending in endings if ending.failed]:
        raise DeadlineExceeded(
            'still there: ' + '; '.join(map(str, failed)))


def end_all(pid: int) -> None:
    """End all that is left, and what has left its parents."""
    if pid != os.getpid():
        return  # a fork ends nothing that is not its own
    by_mark = {process.mark: Ending(process, process.stop_signal,
                                    process.stop_timeout)
               for process in list(processes)}
    strays = Ending(None, signal.SIGTERM, 10.0)
    ours = our_mark()
    end([*by_mark.values(), strays],
        lambda mark: by_mark.get(mark) or (
            strays if mark.startswith(ours) else None))
    descendants.reap_orphans()
    for ending in by_mark.values():
        for channel in ending.process.channels():
            channel.close()
