"""Microseconds to start a process that ends at once, and to reap it.

usage: spawning.py PROCESSES ROUNDS OTHERS...

A sample is the share of a round of all `PROCESSES`, one after the other: as
soon as one is reaped, and in a ``with`` statement among each number of
`OTHERS`, which sleep. The end of that statement is also where what the process
may have left behind is looked for and ended.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def among(others: int) -> Iterator[None]:
    """Beside so many processes, which are children of another one."""
    shell = ('for i in $(seq $1); do sleep 1000 & done; echo ready; '
             'exec sleep 1000')
    with subprocess.Popen(
            ['sh', '-c', shell, 'sh', str(others)], stdout=subprocess.PIPE,
            start_new_session=True) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        try:
            yield
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def main() -> None:
    processes, rounds, *others = map(int, sys.argv[1:])

    def compare(raw: Callable[[], int], ours: Callable[[], int],
                ) -> dict[str, list[float]]:
        return in_turns({
            'raw': partial(per_process, raw, processes // rounds),
            'ours': partial(per_process, ours, processes // rounds)}, rounds)

    samples = [compare(raw, ours)]
    for number in others:
        with among(number):
            samples.append(compare(raw_with, ours_with))
    print(json.dumps(samples))


if __name__ == '__main__':
    main()
