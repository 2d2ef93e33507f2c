"""A worker whose ticks do what a plan says, and that notes when.

Started in a directory with the files ``zope.conf`` and ``plan``. The plan is
JSON: for each tick what it does, for how many seconds, and the pause after it.
The file ``facts`` gets a line for the begin and the end of each tick: the
number, the word, and the time by the monotonic clock.
"""

import ctypes
import json
import os
import pathlib
import sys
import time

import gocept.runner

C = ctypes.PyDLL(None)
"""Functions of C, which hold the interpreter."""


def note(number: int, word: str) -> None:
    """Write a fact, whatever else this process cannot do any more."""
    fd = os.open('facts', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f'{number} {word} {time.monotonic()}\n'.encode())
    os.close(fd)


def spend(what: str, seconds: float) -> None:
    """Let the time pass in Python, in C, or with a computation."""
    until = time.monotonic() + seconds
    if what == 'python':
        time.sleep(seconds)
    elif what == 'computing':
        while time.monotonic() < until:
            sum(range(1000))
    else:
        while (left := until - time.monotonic()) > 0:
            C.usleep(int(min(left, 0.9) * 1e6))


class Seen:
    """What the worker has to know."""

    def __init__(self) -> None:
        self.plan = json.loads(pathlib.Path('plan').read_text())
        self.number = 0

    def tick(self) -> float:
        """Do what the plan says; returns the pause."""
        what, seconds, pause = self.plan[self.number]
        self.number += 1
        note(self.number, 'begin')
        spend(what, seconds)
        note(self.number, 'end')
        return pause


def main() -> int:
    """Run the worker with the limit of the command line."""
    seen = Seen()

    @gocept.runner.appmain(tick_timeout=float(os.environ['TIMEOUT']))
    def worker() -> float:
        return seen.tick()
    return worker()


if __name__ == '__main__':
    sys.exit(main())
