"""Microseconds of a request on a kept connection, and of the processor.

usage: trips.py PEERS BGPY TRIPS ROUNDS

Three lines of samples: the round trip; of this, the processor's time of the
client; and that of the server. The raw side is a socket echo.
"""

import json
import sys
from functools import partial
from time import perf_counter

from benchmarks.scripts.servers import (
    Client,
    Mismatch,
    Server,
    cpu,
    servers,
)
from benchmarks.turns import in_turns

SIDES = ('raw', 'execnet', 'rpyc', 'ours')


def timed(server: Server, client: Client, count: int) -> list[float]:
    """The three figures."""
    first = client.change()
    used = cpu(server)
    before = perf_counter()
    for _ in range(count):
        value = client.change()
    seconds = perf_counter() - before
    used = tuple(b - a for a, b in zip(used, cpu(server), strict=True))
    if value != first + count:
        raise Mismatch(f'{value} in place of {first + count}')
    return [each / count * 1e6 for each in (seconds, *used)]


def main() -> None:
    count, rounds = map(int, sys.argv[3:])
    with servers(*SIDES) as found:
        clients = {side: server.connect() for side, server in found.items()}
        samples = in_turns({
            side: partial(timed, found[side], clients[side], count)
            for side in SIDES}, rounds)
        for client in clients.values():
            client.close()
    print(json.dumps([
        {side: [figures[number] for figures in samples[side]]
         for side in SIDES} for number in range(3)]))


if __name__ == '__main__':
    main()
