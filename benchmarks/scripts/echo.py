"""Milliseconds of much data through ``cat``, microseconds of one byte.

usage: echo.py PEER MIB TRIPS ROUNDS

`MIB` mebibytes are written 64 KiB at a time while what comes back is read.
Then, in each round, one byte is written and awaited `TRIPS` times: where the
system puts the child, and on the same processor. The raw side is an epoll loop
over two descriptors that do not block.
"""

import hashlib
import json
import os
import random
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

from benchmarks.scripts.sides import (
    PATIENCE,
    Mismatch,
    expect,
    libraries,
    raw_cat,
)
from benchmarks.turns import in_turns

CHUNK = 64 * 1024

IN_FLIGHT = 2 * CHUNK
"""What the peer may have sent and not got back: its writes block."""

ROUNDS_OF_MUCH = 3


class Data:
    """Chunks to send, and room for all of them to come back to.

    The room is used again, as new memory would cost more than the pipes.
    """

    def __init__(self, mebibytes: int) -> None:
        some = random.Random(0).randbytes(min(mebibytes, 16) << 20)
        self.chunks = [some[start:start + CHUNK]
                       for start in range(0, len(some), CHUNK)]
        self.chunks *= (mebibytes << 20) // len(some)
        self.size = sum(map(len, self.chunks))
        self.room = bytearray(self.size)
        self.received = 0
        digest = hashlib.sha256()
        for chunk in self.chunks:
            digest.update(chunk)
        self.digest = digest.digest()

    def store(self, data: bytes) -> None:
        """Keep what was received."""
        end = self.received + len(data)
        self.room[self.received:end] = data
        self.received = end

    def check(self) -> None:
        """Compare what was received, and forget it."""
        found = hashlib.sha256(self.room).digest()
        if self.received != self.size or found != self.digest:
            raise Mismatch(f'{self.received} bytes, or not those sent')
        self.received = 0


def timed(move: Callable[[Data], float], data: Data) -> float:
    """Milliseconds; all of the data has arrived, or it is an error."""
    seconds = move(data)
    data.check()
    return seconds * 1e3


def raw_throughput(data: Data) -> float:
    with raw_cat() as (sink, faucet), select.epoll() as epoll:
        os.set_blocking(sink, False)
        os.set_blocking(faucet, False)
        epoll.register(sink, select.EPOLLOUT)
        epoll.register(faucet, select.EPOLLIN)
        start = perf_counter()
        chunks = iter(data.chunks)
        unsent = memoryview(next(chunks))
        while data.received < data.size:
            for fd, _ in expect(epoll.poll(PATIENCE)):
                if fd == faucet:
                    data.store(os.read(faucet, CHUNK))
                    continue
                unsent = unsent[os.write(sink, unsent):]
                if not unsent:
                    unsent = memoryview(next(chunks, b''))
                    if not unsent:
                        epoll.unregister(sink)
        return perf_counter() - start


def peer_throughput(cat: Callable[[], Any], data: Data) -> float:
    with cat() as (poller, channel):
        start = perf_counter()
        sent = 0
        for chunk in data.chunks:
            while sent + CHUNK - data.received > IN_FLIGHT:
                receive(poller, channel, data)
            channel.write(chunk)
            sent += CHUNK
        while data.received < data.size:
            receive(poller, channel, data)
        return perf_counter() - start


def our_throughput(cat: Callable[[], Any], data: Data) -> float:
    with cat() as (poller, channel):
        start = perf_counter()
        for chunk in data.chunks:
            while channel.kept:
                receive(poller, channel, data)
            channel.write(chunk)
        channel.write_eof()
        ended = False
        while data.received < data.size and not ended:
            ended = receive(poller, channel, data)
        seconds = perf_counter() - start
        while not ended:
            ended = receive(poller, channel, data)
        return seconds


def receive(poller: Any, channel: Any, data: Data) -> bool:
    """Keep what there is; whether this was the end of it."""
    ended = False
    for piece, source in expect(poller.poll(PATIENCE)):
        if source is channel:  # and not the process, which has ended
            data.store(piece)
            ended = not piece
    return ended


def raw_trips(count: int) -> float:
    with raw_cat() as (sink, faucet), select.epoll() as epoll:
        epoll.register(faucet, select.EPOLLIN)
        start = perf_counter()
        for _ in range(count):
            os.write(sink, b'x')
            expect(epoll.poll(PATIENCE))
            if os.read(faucet, CHUNK) != b'x':
                raise Mismatch('not the byte that was sent')
        return (perf_counter() - start) / count * 1e6


def trips(cat: Callable[[], Any], count: int) -> float:
    with cat() as (poller, channel):
        start = perf_counter()
        for _ in range(count):
            channel.write(b'x')
            if poller.poll(PATIENCE) != [(b'x', channel)]:
                raise Mismatch('not the byte that was sent')
        return (perf_counter() - start) / count * 1e6


@contextmanager
def one_processor() -> Iterator[None]:
    """For this process and the children that it starts meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def main() -> None:
    sides = libraries()
    mebibytes, count, rounds = map(int, sys.argv[2:])
    data = Data(mebibytes)
    much = in_turns({
        'raw': partial(timed, raw_throughput, data),
        'peer': partial(timed, partial(
            peer_throughput, sides['peer'].cat), data),
        'ours': partial(timed, partial(
            our_throughput, sides['ours'].cat), data)}, ROUNDS_OF_MUCH)
    one = {
        'raw': partial(raw_trips, count),
        **{name: partial(trips, library.cat, count)
           for name, library in sides.items()}}
    anywhere = in_turns(one, rounds)
    with one_processor():
        together = in_turns(one, rounds)
    print(json.dumps([much, anywhere, together]))


if __name__ == '__main__':
    main()
