"""Milliseconds that `stop` takes for a child that obeys at once.

usage: obeying.py PEER ROUNDS OTHERS...

With so many other processes on the machine; there is a line of samples for
each number, with ours for the first one beside it. Raw is
``subprocess.Popen``.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

from benchmarks.scripts.executors import libraries
from benchmarks.turns import in_turns

CHILD = ['sleep', '1000']

# None of them ends by itself before the first one does.
CROWD = '''\
import os, signal, sys
for _ in range(int(sys.argv[1])):
    if not os.fork():
        signal.pause()
os.write(1, b'.')
sys.stdin.read()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.killpg(0, signal.SIGTERM)
'''


@contextmanager
def crowd(count: int) -> Iterator[None]:
    """So many processes that are nobody's business."""
    with subprocess.Popen(
            [sys.executable, '-I', '-S', '-c', CROWD, str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True) as leader:
        assert leader.stdout is not None
        os.read(leader.stdout.fileno(), 1)
        yield


def raw() -> float:
    child = subprocess.Popen(CHILD)
    before = perf_counter()
    child.send_signal(signal.SIGTERM)
    child.wait()
    return (perf_counter() - before) * 1e3


def stop(library: Any) -> float:
    executor = library.SimpleExecutor(CHILD)
    executor.start()
    before = perf_counter()
    executor.stop()
    return (perf_counter() - before) * 1e3


def main() -> None:
    rounds, *others = map(int, sys.argv[2:])
    sides = {'raw': raw} | {
        name: partial(stop, library) for name, library in libraries().items()}
    samples = []
    for count in others:
        with crowd(count):
            samples.append(in_turns(sides, rounds))
    for each in samples:
        each['ours, alone'] = samples[0]['ours']
    print(json.dumps(samples))


if __name__ == '__main__':
    main()
