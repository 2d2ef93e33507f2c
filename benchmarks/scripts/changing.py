"""A client of a database that changes a counter at random moments.

usage: changing.py ZOPE_CONF COUNT

For each line of standard input, it commits COUNT changes, and writes the
monotonic clock, which is that of all processes, when a commit has returned.
"""

import sys
import time

import transaction

from benchmarks.scripts.happening import gap
from gocept.runner.runner import init


def main() -> None:
    conf, count = sys.argv[1:]
    with init(None, conf) as app:
        print('ready', flush=True)
        for _ in sys.stdin:
            for _ in range(int(count)):
                time.sleep(gap())
                transaction.begin()
                app.counter.change(1)
                transaction.commit()
                print(time.monotonic_ns(), flush=True)


if __name__ == '__main__':
    main()
