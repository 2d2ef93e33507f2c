"""Microseconds of a poll() with one busy channel among idle ones.

usage: idle.py PEER ROUNDS IDLE...

The idle channels, `IDLE` many of them, read one pipe that nobody writes to.
One byte is written to the busy one before each poll(), outside of the time
that is taken. The raw side is epoll and os.read().
"""

import gc
import json
import os
import resource
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter
from typing import Any

from benchmarks.scripts.sides import (
    PATIENCE,
    Library,
    Mismatch,
    expect,
    libraries,
)
from benchmarks.turns import in_turns

POLLS = 1000

WARM_UP = 10

SPARE = 100
"""Descriptors for all else."""


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    faucet, sink = os.pipe()
    with open(faucet, 'rb', 0), open(sink, 'wb', 0):
        yield faucet, sink


def raw(idle: int) -> float:
    with pipe() as (quiet, _), pipe() as (busy, sink), ExitStack() as stack:
        epoll = stack.enter_context(select.epoll())
        epoll.register(busy, select.EPOLLIN)
        for _ in range(idle):
            fd = os.dup(quiet)
            stack.callback(os.close, fd)
            epoll.register(fd, select.EPOLLIN)

        def poll() -> Any:
            return [(os.read(fd, 1024), fd)
                    for fd, _ in expect(epoll.poll(PATIENCE))]
        return per_poll(poll, [(b'x', busy)], sink)


def polled(library: Library, idle: int) -> float:
    with pipe() as (quiet, _), pipe() as (busy, sink), ExitStack() as stack:
        poller, channel = stack.enter_context(
            library.polled(os.dup(busy)))
        for _ in range(idle):
            other = library.make_channel(os.dup(quiet))
            stack.callback(other.close)
            poller.register(other)
        return per_poll(
            partial(poller.poll, PATIENCE), [(b'x', channel)], sink)


def per_poll(poll: Callable[[], Any], expected: Any, sink: int) -> float:
    """Microseconds of a poll that gives one byte."""
    gc.collect()  # what was built is not to be looked through meanwhile
    seconds = 0.0
    for number in range(-WARM_UP, POLLS):
        os.write(sink, b'x')
        before = perf_counter()
        found = poll()
        after = perf_counter()
        if found != expected:
            raise Mismatch('not the byte that was written')
        if number >= 0:
            seconds += after - before
    return seconds / POLLS * 1e6


def main() -> None:
    rounds, *numbers = map(int, sys.argv[2:])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(numbers) + SPARE
    if most != resource.RLIM_INFINITY and most < needed:
        raise SystemExit(f'needs {needed} descriptors, the limit is {most}')
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))
    sides: dict[str, Callable[[int], float]] = {'raw': raw, **{
        name: partial(polled, library)
        for name, library in libraries().items()}}
    # Those with the fewest come right after our own with the most, as these
    # are what is compared.
    turns = [(name, idle) for idle in numbers[1:] for name in sides]
    turns += [(name, numbers[0]) for name in reversed(sides)]
    found = in_turns({
        f'{name}, {idle}': partial(sides[name], idle)
        for name, idle in turns}, rounds)
    print(json.dumps([
        {**found, **{name: found[f'{name}, {idle}'] for name in sides}}
        for idle in numbers]))


if __name__ == '__main__':
    main()
