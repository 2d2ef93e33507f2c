"""Microseconds to start a process that ends at once, and to reap it.

usage: spawning.py PROCESSES ROUNDS

A sample is the share of a round of all `PROCESSES`, one after the other: as
soon as one is reaped, and in a ``with`` statement. The end of that is also
where what the process may have left behind is looked for and ended.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter

from benchmarks.turns import in_turns
from gocept.runner.process import Process

COMMAND = ['true']


def raw() -> int:
    return subprocess.Popen(COMMAND).wait()


def ours() -> int:
    return Process(COMMAND).wait()


def raw_with() -> int:
    with subprocess.Popen(COMMAND) as process:
        return process.wait()


def ours_with() -> int:
    with Process(COMMAND) as process:
        return process.wait()


def per_process(run: Callable[[], int], count: int) -> float:
    before = perf_counter()
    statuses = [run() for _ in range(count)]
    seconds = perf_counter() - before
    if any(statuses):
        raise SystemExit(f'{COMMAND} failed: {statuses}')
    return seconds / count * 1e6


def main() -> None:
    processes, rounds = map(int, sys.argv[1:])
    print(json.dumps([
        in_turns({name: partial(per_process, run, processes // rounds)
                  for name, run in sides.items()}, rounds)
        for sides in [{'raw': raw, 'ours': ours},
                      {'raw': raw_with, 'ours': ours_with}]]))


if __name__ == '__main__':
    main()
