"""A child that writes much, as fast as it can, or a line now and then.

usage: flood.py MIB                 so many mebibytes
       flood.py lines COUNT         lines, with the clock in nanoseconds
"""

import os
import random
import sys
import time

BLOCK = 1 << 20

PIECE = 64 * 1024

SHORTEST, LONGEST = 0.02, 0.15
"""Seconds between two lines."""


def block() -> bytes:
    """What is written again and again."""
    return random.Random(0).randbytes(BLOCK)


def flood(mebibytes: int) -> None:
    data = memoryview(block())
    pieces = [data[start:start + PIECE] for start in range(0, BLOCK, PIECE)]
    for _ in range(mebibytes):
        for piece in pieces:
            while piece:
                piece = piece[os.write(1, piece):]


def lines(count: int) -> None:
    for _ in range(count):
        time.sleep(random.uniform(SHORTEST, LONGEST))
        os.write(1, b'%d\n' % time.monotonic_ns())


if __name__ == '__main__':
    if sys.argv[1] == 'lines':
        lines(int(sys.argv[2]))
    else:
        flood(int(sys.argv[1]))
