"""Loops that SIGTERM ends, over and over; the parent sends it.

usage: stopping.py raw|3.0|ours ZOPE_CONF sleep|tick SECONDS...

One loop is run for each of `SECONDS`, the time to sleep between two ticks. It
says ``ready`` when it sleeps or, with ``tick``, when it is in a tick that
takes `TICK` seconds. Then it prints two instants: when the worker returned,
and when the loop had ended. ``raw`` is a handler that raises out of a sleep.
"""

import json
import signal
import sys
import time
from types import FrameType

TICK = 0.1


def main() -> None:
    side, conf, when, *lengths = sys.argv[1:]
    if side == 'raw':
        for seconds in lengths:
            report(*bare_sleep(float(seconds)))
        return
    from gocept.runner.runner import init
    with init(None, conf) as app:
        for seconds in lengths:
            report(*one_loop(app, side, when, float(seconds)))


def one_loop(app: object, side: str, when: str,
             seconds: float) -> tuple[float, float]:
    from gocept.runner.runner import MainLoop
    returned = 0.0

    def worker() -> None:
        nonlocal returned
        print('ready', flush=True)
        if when == 'tick':
            time.sleep(TICK)
        returned = time.monotonic()

    loop = MainLoop(app, seconds, worker)
    if side == '3.0':  # where it is its appmain that installs them
        signal.signal(signal.SIGTERM, loop.stopMainLoop)
    loop()
    return returned, time.monotonic()


class Ended(Exception):
    """Raised by the handler."""


def bare_sleep(seconds: float) -> tuple[float, float]:
    def handler(signum: int, frame: FrameType | None) -> None:
        raise Ended

    signal.signal(signal.SIGTERM, handler)
    returned = time.monotonic()
    try:
        print('ready', flush=True)
        time.sleep(seconds)
    except Ended:
        pass
    return returned, time.monotonic()


def report(returned: float, ended: float) -> None:
    print(json.dumps([returned, ended]), flush=True)


if __name__ == '__main__':
    main()
