"""Many clients at once, each with a connection and a thread of its own.

usage: clients.py PEERS BGPY CLIENTS TRIPS ROUNDS

Four lines of samples: microseconds for a request, that is the time of all of
them divided by their number; the slowest client in its wait for an answer, on
average, and the longest wait of all, both divided by the median wait; and how
many requests failed. The raw side is a socket echo with epoll.
"""

import json
import sys
import threading
from functools import partial
from statistics import mean, median
from time import perf_counter

from benchmarks.scripts.servers import PATIENCE, Client, Server, servers
from benchmarks.turns import in_turns

SIDES = ('loop', 'execnet', 'rpyc', 'ours')


class Caller(threading.Thread):
    """A client that asks again and again, and notes how long it waits."""

    def __init__(self, client: Client, count: int,
                 barrier: threading.Barrier) -> None:
        super().__init__()
        self.client = client
        self.waits: list[float] = []
        self.failures: list[Exception] = []
        self._count = count
        self._barrier = barrier

    def run(self) -> None:
        change, note = self.client.change, self.waits.append
        self._barrier.wait(PATIENCE)
        for _ in range(self._count):
            before = perf_counter()
            try:
                change()
            except Exception as error:
                self.failures.append(error)
            note(perf_counter() - before)


def timed(server: Server, clients: list[Client], count: int) -> list[float]:
    """The four figures."""
    barrier = threading.Barrier(len(clients) + 1)
    callers = [Caller(client, count, barrier) for client in clients]
    for caller in callers:
        caller.start()
    barrier.wait(PATIENCE)
    before = perf_counter()
    for caller in callers:
        caller.join()
    seconds = perf_counter() - before
    waits = [wait for caller in callers for wait in caller.waits]
    failures = [error for caller in callers for error in caller.failures]
    if failures:
        print(f'{len(failures)} failed: {failures[0]!r}', file=sys.stderr)
    return [seconds / len(waits) * 1e6,
            max(mean(caller.waits) for caller in callers) / median(waits),
            max(waits) / median(waits), len(failures)]


def main() -> None:
    number, count, rounds = map(int, sys.argv[3:])
    with servers(*SIDES) as found:
        clients = {side: [server.connect() for _ in range(number)]
                   for side, server in found.items()}
        samples = in_turns({
            side: partial(timed, found[side], clients[side], count)
            for side in SIDES}, rounds)
        for each in clients.values():
            for client in each:
                client.close()
    samples['raw'] = samples.pop('loop')
    print(json.dumps([
        {side: [figures[row] for figures in samples[side]]
         for side in samples} for row in range(4)]))


if __name__ == '__main__':
    main()
