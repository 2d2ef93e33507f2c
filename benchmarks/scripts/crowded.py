"""Microseconds of a round trip to a kernel that has much else to hold.

usage: crowded.py PEER TRIPS ROUNDS CONNECTIONS PROCESSES

A line of samples for each of get, set and list, by TCP and by a Unix socket,
of our daemon: one that is alone with its client, and one that has idle
connections and idle processes.
"""

import json
import sys
from contextlib import ExitStack
from functools import partial

from benchmarks.scripts.asking import KINDS, NAME, QUESTIONS, VALUE, timed
from benchmarks.scripts.kernels import IDLE, Daemon, Kernels
from benchmarks.turns import in_turns


def crowd(daemon: Daemon, connections: int, processes: int,
          stack: ExitStack) -> None:
    """Give it idle connections and processes."""
    clients = [stack.enter_context(daemon.connect())
               for _ in range(connections)]
    for number in range(processes):
        clients[0].make_process(f'idle.{number}', IDLE[0], IDLE[1:])


def main() -> None:
    count, rounds, connections, processes = map(int, sys.argv[2:])
    rows = []
    with Kernels() as kernels:
        for kind in KINDS:
            alone, crowded = kernels.ours(kind), kernels.ours(kind)
            with (ExitStack() as stack, alone.connect() as first,
                  crowded.connect() as second):
                crowd(crowded, connections, processes, stack)
                first.set(NAME, VALUE)
                second.set(NAME, VALUE)
                rows += [in_turns({
                    'alone': partial(timed, question, first, count),
                    'ours': partial(timed, question, second, count)}, rounds)
                    for question in QUESTIONS.values()]
            crowded.end_children()
    print(json.dumps(rows))


if __name__ == '__main__':
    main()
