"""A child that lets something happen at random moments, and writes when.

usage: happening.py [end]

For each line of standard input, a number and perhaps a port of this machine,
it writes its monotonic clock, which is that of all processes, so many times;
with a port it connects to that first. Or it does so once, and ends.
"""

import os
import random
import socket
import sys
import time

HOST = '127.0.0.1'

SHORTEST, LONGEST = 0.002, 0.02
"""Seconds between two moments: those that wait are waiting again by then."""


def gap() -> float:
    """Seconds to the next moment."""
    return random.uniform(SHORTEST, LONGEST)


def happen(ports: list[int]) -> None:
    time.sleep(gap())
    instant = time.monotonic_ns()
    for port in ports:
        socket.create_connection((HOST, port)).close()
    os.write(1, b'%d\n' % instant)


def main() -> None:
    if sys.argv[1:] == ['end']:
        happen([])
        os._exit(0)  # at once: what Python does at exit is not to be measured
    for line in sys.stdin:
        count, *ports = map(int, line.split())
        for _ in range(count):
            happen(ports)


if __name__ == '__main__':
    main()
