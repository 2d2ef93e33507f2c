"""Processes that have not ended, and their end when the interpreter exits."""

import atexit
import os
import signal
from typing import Any

from gocept.runner import descendants
from gocept.runner.ending import Ending, end
from gocept.runner.launch import our_mark

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
