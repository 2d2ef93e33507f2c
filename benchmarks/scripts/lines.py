"""Microseconds of a line, from a pipe and from a file.

usage: lines.py PEER LINES ROUNDS

In each round, lines are written into a pipe burst by burst, and read by poll()
or by read(); a line may begin in one burst and end in the next. Only the time
that reading takes is counted. Then files in memory are read to their ends,
small ones and a big one: all that is in a file can be read at once. The raw
side splits what it reads.
"""

import json
import os
import select
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
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

LINE = b'%09d\n'

LENGTH = 10

PIPE = 64 * 1024
"""What a pipe holds: a burst of a child that writes as fast as it can."""

PIECE = 4 * 1024
"""A burst of a child that fills a small buffer first."""

SMALL_FILE = 100_000

FILES = 10
"""How many small ones are read for one sample."""

BIG_FILE = 10_000_000

ROUNDS_OF_FILES = 2

IN_MEMORY = Path('/dev/shm')

Receive = Callable[[int], list[Any]]
"""Returns lines, or pairs of them and a channel; takes how many are due."""

Side = Callable[[int], AbstractContextManager[Receive]]
"""From a descriptor, which it closes in the end."""


class Checked:
    """Takes the time until lines are received, and compares them."""

    def __init__(self, receive: Receive, expected: bytes) -> None:
        self._receive = receive
        self._expected = expected
        self.received = 0
        self.seconds = 0.0

    def receive(self, due: int) -> bool:
        """Until `due` lines have come; False when the end comes before."""
        ended = False
        while self.received < due and not ended:
            ended = self._receive_once(due)
        return not ended

    def _receive_once(self, due: int) -> bool:
        before = perf_counter()
        found = self._receive(due - self.received)
        self.seconds += perf_counter() - before
        lines = [each if isinstance(each, bytes) else each[0]
                 for each in found]
        ended = bool(lines) and not lines[-1]
        if ended:
            lines.pop()
        end = self.received + len(lines)
        expected = self._expected[self.received * LENGTH:end * LENGTH]
        if ((not lines and not ended) or b''.join(lines) != expected
                or any(len(line) != LENGTH for line in lines)):
            raise Mismatch(f'not the lines {self.received} to {end}')
        self.received = end
        return ended

    def per_line(self) -> float:
        """Microseconds; an error if a line is missing."""
        if self.received * LENGTH != len(self._expected):
            raise Mismatch(f'{self.received} lines of '
                           f'{len(self._expected) // LENGTH}')
        return self.seconds / self.received * 1e6


def from_pipe(side: Side, data: bytes, burst: int) -> float:
    """Microseconds of a line."""
    faucet, sink = os.pipe()
    with side(faucet) as receive, open(sink, 'wb', 0) as out:
        checked = Checked(receive, data)
        for start in range(0, len(data), burst):
            sent = start + out.write(data[start:start + burst])
            if not checked.receive(sent // LENGTH):
                raise Mismatch('the end, before all was sent')
        return checked.per_line()


def from_file(side: Side, path: Path, times: int) -> float:
    """Microseconds of a line; the file is read `times` times."""
    expected = path.read_bytes()
    found = []
    for _ in range(times):
        with side(os.open(path, os.O_RDONLY)) as receive:
            checked = Checked(receive, expected)
            if checked.receive(len(expected) // LENGTH + 1):
                raise Mismatch('no end of the file')
            found.append(checked.per_line())
    return sum(found) / times


@contextmanager
def raw(faucet: int) -> Iterator[Receive]:
    poll = select.poll()
    poll.register(faucet, select.POLLIN)
    rest = b''

    def receive(due: int) -> list[Any]:
        nonlocal rest
        expect(poll.poll(PATIENCE * 1000))
        data = os.read(faucet, PIPE)
        if not data:
            return [b'']
        lines = data.splitlines(True)
        lines[0] = rest + lines[0]
        rest = b'' if lines[-1].endswith(b'\n') else lines.pop()
        return lines

    try:
        yield receive
    finally:
        os.close(faucet)


@contextmanager
def by_poll(library: Library, faucet: int) -> Iterator[Receive]:
    with library.polled(faucet, buffering='line') as (poller, _):
        def receive(due: int) -> list[Any]:
            pairs: list[Any] = poller.poll(PATIENCE)
            return pairs
        yield receive


@contextmanager
def by_read(library: Library, faucet: int) -> Iterator[Receive]:
    with closing(library.make_channel(faucet, buffering='line')) as channel:
        def receive(due: int) -> list[Any]:
            read = channel.read
            return [read() for _ in range(due)]
        yield receive


def main() -> None:
    count, rounds = map(int, sys.argv[2:])
    sides = libraries()
    data = b''.join(LINE % number for number in range(count // rounds))
    polled: dict[str, Side] = {'raw': raw, **{
        name: partial(by_poll, library) for name, library in sides.items()}}
    read: dict[str, Side] = {'raw': raw, **{
        name: partial(by_read, library) for name, library in sides.items()}}
    rows = [
        in_turns({name: partial(from_pipe, side, data, burst)
                  for name, side in ways.items()}, rounds)
        for ways, burst in [(polled, PIECE), (polled, PIPE), (read, PIPE)]]
    print(json.dumps(rows + files(polled)))


def files(sides: dict[str, Side]) -> list[Any]:
    """A row of small files, and one of big ones, without the peer."""
    with tempfile.TemporaryDirectory(dir=(
            IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None)) as home:
        small, big = Path(home, 'small'), Path(home, 'big')
        for path, size in [(small, SMALL_FILE), (big, BIG_FILE)]:
            path.write_bytes(b''.join(
                LINE % number for number in range(size // LENGTH)))
        found = in_turns({
            **{f'{name}, small': partial(from_file, side, small, FILES)
               for name, side in sides.items()},
            **{name: partial(from_file, sides[name], big, 1)
               for name in ('raw', 'ours')}}, ROUNDS_OF_FILES)
    return [{name: found[f'{name}, small'] for name in sides}, found]


if __name__ == '__main__':
    main()
