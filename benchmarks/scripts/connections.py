"""Milliseconds of a request that connects for itself.

usage: connections.py PEERS BGPY COUNT ROUNDS

A line of samples. With the peer it is one request each round, as it takes a
second. The raw side is a connection to a socket echo.
"""

import json
import sys
from contextlib import closing
from functools import partial
from time import perf_counter

from benchmarks.scripts.servers import Server, servers
from benchmarks.turns import in_turns


def timed(server: Server, count: int) -> float:
    before = perf_counter()
    for _ in range(count):
        with closing(server.connect()) as client:
            client.change()
    return (perf_counter() - before) / count * 1e3


def main() -> None:
    count, rounds = map(int, sys.argv[3:])
    with servers('raw', 'bgpy', 'rpyc', 'ours') as found:
        samples = in_turns({
            side: partial(timed, server, 1 if side == 'bgpy' else count)
            for side, server in found.items()}, rounds)
    print(json.dumps([samples]))


if __name__ == '__main__':
    main()
