"""Microseconds of a round trip to a kernel.

usage: asking.py PEER TRIPS ROUNDS

A line of samples for each of get, set and list, by TCP and by a Unix socket,
first for the peer's client, which talks to both daemons, and then for ours.
The raw side is a socket echo.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

from benchmarks.scripts.kernels import Kernels, Mismatch, echo
from benchmarks.turns import in_turns

NAME, VALUE = 'bench.value', 'some text'

KINDS = ('TCP', 'Unix')


def get(client: Any) -> bool:
    return bool(client.get(NAME) == VALUE)


def set_(client: Any) -> bool:
    return client.set(NAME, VALUE) is None


def list_(client: Any) -> bool:
    return bool(client.list_values(NAME) == {NAME: VALUE})


QUESTIONS: dict[str, Callable[[Any], bool]] = {
    'get': get, 'set': set_, 'list': list_}


def timed(question: Callable[[Any], bool], client: Any, count: int) -> float:
    """Microseconds of one."""
    before = perf_counter()
    for _ in range(count):
        if not question(client):
            raise Mismatch('another answer')
    return (perf_counter() - before) / count * 1e6


def echoed(sock: Any) -> bool:
    sock.send(b'get bench.value\n')
    return len(sock.recv(65536)) == 16


def main() -> None:
    count, rounds = map(int, sys.argv[2:])
    rows = []
    with Kernels() as kernels:
        for kind in KINDS:
            theirs, ours = kernels.theirs(kind), kernels.ours(kind)
            with (theirs.connect() as papa, ours.connect() as kernel,
                  kernels.theirs_to_ours(ours) as papa_to_ours,
                  echo(kind) as sock):
                papa.set(NAME, VALUE)
                kernel.set(NAME, VALUE)
                found = {name: in_turns({
                    'raw': partial(timed, echoed, sock, count),
                    'papa': partial(timed, question, papa, count),
                    'same': partial(timed, question, papa_to_ours, count),
                    'ours': partial(timed, question, kernel, count),
                }, rounds) for name, question in QUESTIONS.items()}
            for samples in found.values():
                same = samples.pop('same')
                rows += [samples | {'ours': same}, samples]
    print(json.dumps(rows))


if __name__ == '__main__':
    main()
