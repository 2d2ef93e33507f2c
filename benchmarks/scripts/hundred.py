"""Seconds for a hundred executors: one after another, and side by side.

usage: hundred.py PEER COUNT

Two lines of samples, for servers on TCP ports that are started and stopped
one after another, and for such that take a while to be ready and are started
side by side. Of those, `slowest` is the longest of the starts.
"""

import json
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from benchmarks.scripts import ready
from benchmarks.scripts.executors import Home, held_port, libraries
from gocept.runner.executor import TCPExecutor, start_all, stop_all

WHILE = 0.3  # seconds


def answers(port: int) -> bool:
    with socket.socket() as sock:
        return not sock.connect_ex((ready.HOST, port))


def raw(home: Home, count: int) -> float:
    before = perf_counter()
    for _ in range(count):
        with held_port() as port, subprocess.Popen(home.command(
                'tcp', str(port), 0, Path('/dev/null'))) as child:
            while not answers(port):
                sleep(0.001)
            child.terminate()
    return perf_counter() - before


def in_a_row(home: Home, library: Any, count: int) -> float:
    before = perf_counter()
    for _ in range(count):
        with home.make(library, 'tcp') as executor, executor:
            pass
    return perf_counter() - before


class Timed(TCPExecutor):
    """Knows how long its start has taken."""

    seconds = 0.0

    def start(self) -> 'Timed':
        before = perf_counter()
        try:
            return super().start()
        finally:
            self.seconds = perf_counter() - before


class Library:
    """What `Home` makes the executors of."""

    TCPExecutor = Timed


def side_by_side(home: Home, count: int) -> tuple[float, float]:
    with ExitStack() as held:
        executors = [held.enter_context(home.make(Library, 'tcp', WHILE))
                     for _ in range(count)]
        before = perf_counter()
        start_all(executors)
        seconds = perf_counter() - before
        stop_all(executors)
    return seconds, max(each.seconds for each in executors)


def main() -> None:
    count = int(sys.argv[2])
    found = libraries()
    with closing(Home()) as home:
        row = {'raw': [raw(home, count)]} | {
            name: [in_a_row(home, library, count)]
            for name, library in found.items()}
        seconds, slowest = side_by_side(home, count)
    print(json.dumps([row, {'slowest': [slowest], 'ours': [seconds]}]))


if __name__ == '__main__':
    main()
