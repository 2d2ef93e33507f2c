"""The instant when a worker is first called.

usage: start.py ZOPE_CONF
"""

import sys
import time

import gocept.runner


@gocept.runner.appmain(ticks=0)
def worker() -> object:
    print(time.monotonic())
    return gocept.runner.Exit


if __name__ == '__main__':
    worker(None, sys.argv[1])
