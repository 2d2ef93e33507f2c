"""A child of a kernel that numbers its lines, and may be killed.

usage: source.py DIRECTORY

A line has the name of this life and a number. The file of that name in the
directory says how many lines were written for sure. SIGTERM ends it.
"""

import os
import pathlib
import random
import secrets
import signal
import sys
import time


def main() -> None:
    life = secrets.token_hex(8)
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, frame: told.append(signum))
    path = pathlib.Path(sys.argv[1], life)
    number = 0
    with open(path, 'wb', 0) as progress:
        while not told:
            for _ in range(random.randrange(1, 60)):
                line = b'%s %d %s\n' % (
                    life.encode(), number, b'x' * random.randrange(200))
                while line:
                    line = line[os.write(1, line):]
                number += 1
                os.pwrite(progress.fileno(), b'%09d' % number, 0)
            time.sleep(random.uniform(0, 0.01))


if __name__ == '__main__':
    main()
