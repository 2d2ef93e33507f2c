"""The instant when a worker in Zope is first called, and processor time.

usage: zope_start.py --config ZOPE_CONF --site PATH
"""

import sys
import time

import gocept.runner


@gocept.runner.once(principal='system')
def worker() -> None:
    print(time.monotonic(), time.process_time(), flush=True)


if __name__ == '__main__':
    sys.exit(worker.main())
