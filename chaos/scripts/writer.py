"""A child of a kernel that writes numbered lines until it gets SIGTERM.

usage: writer.py PAUSE

Lines of any length go to both streams, each with numbers of its own, and
pauses of at most so many seconds are between the bursts. The last line of a
stream says how many bytes were written to it.
"""

import os
import random
import signal
import sys
import time

STATUS = 7

LONGEST_LINE = 3000

END = b'end'


def main() -> int:
    pause = float(sys.argv[1])
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, frame: told.append(signum))
    numbers, written = {1: 0, 2: 0}, {1: 0, 2: 0}
    while not told:
        for _ in range(random.randrange(1, 40)):
            stream = random.choice([1, 1, 1, 2])
            size = random.choice([0, 10, 100, LONGEST_LINE])
            line = b'%d %s\n' % (
                numbers[stream], b'x' * random.randrange(size + 1))
            write(stream, line)
            numbers[stream] += 1
            written[stream] += len(line)
        time.sleep(random.uniform(0, pause))
    for stream in 1, 2:
        write(stream, b'%s %d %d\n' % (END, numbers[stream], written[stream]))
    return STATUS


def write(stream: int, data: bytes) -> None:
    while data:
        data = data[os.write(stream, data):]


if __name__ == '__main__':
    sys.exit(main())
