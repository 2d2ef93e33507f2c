"""Milliseconds of starting processes in a kernel.

usage: launching.py PEER COUNT ROUNDS

Three lines of samples: for `COUNT` processes, by the peer's client and by
ours; and for one with a resource limit, by ours. The raw side is
``subprocess.Popen`` with two pipes.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from time import perf_counter
from typing import Any

from benchmarks.scripts.kernels import IDLE, Daemon, Kernels
from benchmarks.turns import in_turns

RLIMITS = {'core': 0}


def raw(count: int, prepare: Callable[[], object] | None = None) -> float:
    before = perf_counter()
    # In a session of its own, as the kernels' are.
    children = [subprocess.Popen(
        IDLE, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True, preexec_fn=prepare)
        for _ in range(count)]
    seconds = perf_counter() - before
    for child in children:
        child.kill()
        child.communicate()
    return seconds * 1e3


def kernel(daemon: Daemon, connect: Callable[[], Any], count: int,
           **options: Any) -> float:
    with closing(connect()) as client:
        before = perf_counter()
        for number in range(count):
            client.make_process(f'started.{number}', IDLE[0], IDLE[1:],
                                env={'PATH': os.environ['PATH']}, **options)
        seconds = perf_counter() - before
    daemon.end_children()
    return seconds * 1e3


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    count, rounds = map(int, sys.argv[2:])
    with Kernels() as kernels:
        theirs, ours = kernels.theirs('Unix'), kernels.ours('Unix')
        many = in_turns({
            'raw': partial(raw, count),
            'papa': partial(kernel, theirs, theirs.connect, count),
            'same': partial(kernel, ours,
                            partial(kernels.theirs_to_ours, ours), count),
            'ours': partial(kernel, ours, ours.connect, count)}, rounds)
        one = in_turns({
            'raw': partial(raw, 1, limit),
            'papa': partial(kernel, theirs, theirs.connect, 1,
                            rlimits=RLIMITS),
            'ours': partial(kernel, ours, ours.connect, 1,
                            rlimits=RLIMITS)}, 4 * rounds)
    same = many.pop('same')
    print(json.dumps([many | {'ours': same}, many, one]))


if __name__ == '__main__':
    main()
