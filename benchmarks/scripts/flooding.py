"""A child that writes to a watcher: how much arrives, and how soon.

usage: flooding.py PEER MIB LINES ROUNDS

Lines of samples: seconds for all of it, by TCP and by a Unix socket, to a
watcher that acknowledges, with ``overflow='block'``; bytes that did not arrive
then; bytes that neither arrived nor were reported as missing, with
``overflow='drop'``; and milliseconds from a line of the child to the watcher.
The peer has no ``overflow``. The raw side is a pipe.
"""

import json
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from time import monotonic_ns, perf_counter
from typing import Any, NamedTuple

from benchmarks.scripts import flood
from benchmarks.scripts.kernels import PATIENCE, Daemon, Kernels, Mismatch
from benchmarks.turns import in_turns

NAME = 'flood'


class Arrived(NamedTuple):
    """What a watcher has got of a child that has ended."""

    seconds: float
    size: int
    missing: int
    is_exact: bool
    """Whether each byte is the one that was written, to the end."""


def command(*words: object) -> list[str]:
    return [sys.executable, '-I', '-S', flood.__file__, *map(str, words)]


def raw(mebibytes: int) -> Arrived:
    with subprocess.Popen(
            command(mebibytes), stdout=subprocess.PIPE, bufsize=0) as child:
        assert child.stdout is not None
        before = perf_counter()
        pieces = []
        while data := child.stdout.read(1 << 20):
            pieces.append(data)
        seconds = perf_counter() - before
    size, is_exact = compared(pieces)
    return Arrived(seconds, size, 0, is_exact)


def watched(daemon: Daemon, mebibytes: int, **options: Any) -> Arrived:
    pieces: list[bytes] = []
    missing = 0
    with watching(daemon, command(mebibytes), options) as watcher:
        before = perf_counter()
        while watcher:
            found = watcher.read()
            if found is None:  # the peer's says that it has ended
                break
            pieces += [data for _, _, data in found[0]]
            missing += sum(getattr(watcher, 'missing', {}).values())
            if found[1]:
                raise Mismatch(str(found[1]))
        seconds = perf_counter() - before
    size, is_exact = compared(pieces)
    return Arrived(seconds, size, missing, is_exact)


@contextmanager
def watching(daemon: Daemon, words: list[str],
             options: dict[str, Any]) -> Iterator[Any]:
    """Start a process of the kernel and watch it."""
    with daemon.connect() as client:
        watcher = client.make_process(
            NAME, words[0], words[1:], watch_immediately=True, **options)
        yield watcher
        watcher.close()


def compared(pieces: list[bytes]) -> tuple[int, bool]:
    """The size, and whether it is what was written."""
    block, at = flood.block() * 2, 0
    is_exact = True
    for piece in pieces:
        view = memoryview(piece)
        while view:
            start = at % flood.BLOCK
            part = view[:flood.BLOCK]
            is_exact = is_exact and part == block[start:start + len(part)]
            at += len(part)
            view = view[len(part):]
    return at, is_exact


def latencies_raw(count: int) -> list[float]:
    with subprocess.Popen(command('lines', count), stdout=subprocess.PIPE,
                          bufsize=0) as child:
        assert child.stdout is not None
        found = []
        while data := child.stdout.read(65536):
            now = monotonic_ns()
            found += [(now - int(line)) / 1e6 for line in data.split()]
        return found


def latencies(daemon: Daemon, count: int) -> list[float]:
    found: list[float] = []
    with watching(daemon, command('lines', count), {}) as watcher:
        poll = select.poll()
        poll.register(watcher, select.POLLIN)
        while watcher and poll.poll(PATIENCE * 1e3):
            read = watcher.read()
            now = monotonic_ns()
            watcher.acknowledge()
            if read is None:
                break
            found += [(now - int(line)) / 1e6
                      for _, _, data in read[0] for line in data.split()]
    if len(found) != count:
        raise Mismatch(f'{len(found)} lines, of {count}')
    return found


def main() -> None:
    mebibytes, lines, rounds = map(int, sys.argv[2:])
    size = mebibytes << 20
    rows = []
    with Kernels() as kernels:
        theirs, unix, tcp = (kernels.theirs('Unix'), kernels.ours('Unix'),
                             kernels.ours('TCP'))
        papa = watched(theirs, mebibytes)  # once, as it takes long
        sides: dict[str, Callable[[], Arrived]] = {
            'raw': partial(raw, mebibytes),
            'TCP': partial(watched, tcp, mebibytes, overflow='block'),
            'Unix': partial(watched, unix, mebibytes, overflow='block'),
            'drop': partial(watched, unix, mebibytes)}
        found = in_turns(sides, rounds)
        late = in_turns({
            'raw': partial(latencies_raw, lines),
            'papa': partial(latencies, theirs, lines),
            'ours': partial(latencies, unix, lines)}, rounds)
    pipe = [each.seconds for each in found['raw']]
    rows = [
        {'raw': pipe, 'papa': [papa.seconds] * rounds,
         'ours': [each.seconds for each in found[kind]]}
        for kind in ('TCP', 'Unix')]
    blocked = list(zip(found['TCP'], found['Unix'], strict=True))
    rows.append({
        'papa': [size - papa.size] * rounds,
        'ours': [sum(size - each.size + (0 if each.is_exact else size)
                     + each.missing for each in both)
                 for both in blocked]})
    rows.append({
        'ours': [abs(size - each.size - each.missing)
                 for each in found['drop']]})
    rows.append({side: list(chain.from_iterable(parts))
                 for side, parts in late.items()})
    print(json.dumps(rows))


if __name__ == '__main__':
    main()
