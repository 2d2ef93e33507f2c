"""Milliseconds from a child's becoming ready to the return of `start`.

usage: readiness.py PEER ROUNDS KIND DELAY...

The delays are milliseconds; there is a line of samples for each.
"""

import json
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from benchmarks.scripts.executors import Home, libraries
from benchmarks.turns import in_turns


def reported(report: Path) -> float:
    """What the child has written, or is about to write."""
    while not (report.exists() and report.read_text().endswith('\n')):
        sleep(0.001)
    return float(report.read_text())


def latency(home: Home, library: Any, kind: str, delay: float) -> float:
    with home.make(library, kind, delay) as executor:
        executor.start()
        returned = monotonic()
        try:
            return (returned - reported(executor.report)) * 1e3
        finally:
            executor.stop()


def main() -> None:
    rounds, kind, *delays = sys.argv[2:]
    found = libraries()
    if kind in ('answer', 'notified'):
        del found['peer']  # which has no such
    with closing(Home()) as home:
        print(json.dumps([
            in_turns({name: partial(latency, home, library, kind,
                                    float(delay) / 1e3)
                      for name, library in found.items()}, int(rounds))
            for delay in delays]))


if __name__ == '__main__':
    main()
