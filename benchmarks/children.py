"""Processes, channels and the poller beside another library and system calls.

The peer is yet-another-io-channels-library, which has channels and a poller
too. Raw is what the system calls cost in a bare loop:

* echo: 256 MiB through ``cat`` in writes of 64 KiB, and the round trip of one
  byte. Raw is an epoll loop with descriptors that do not block. The peer's
  writes do block, so it never has more on the way than the pipes hold. For a
  round trip it matters most which processor the child wakes up on; with one
  for both there is the least that hides what a side adds.
* lines: a million short ones from a pipe, by poll() and by read(), in bursts
  as large as a pipe and in small ones; then from a file in memory, all of
  which is ready at once. There the peer's time grows with the square of the
  size, so that it gets small files only. Raw is a read and
  ``splitlines()``.
* idle: a poll() with one busy channel among many that are idle. Raw is epoll
  and a read.
* spawn: start and reap 500 processes, one after the other, without and with
  the end of a ``with`` statement, which has ours look for descendants that
  are left. Raw is ``subprocess.Popen``.

All sides run in one process, where they take turns; of these processes, there
is one for each measure in each round.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import environments
from benchmarks.options import make_parser
from benchmarks.table import Row, Samples, Target, render

SIDES = ('raw', 'peer', 'ours')

PEER = 'yet-another-io-channels-library'

PEER_VERSION = '0.2.4.post1'

IDLE = (10, 1_000, 10_000)


class Measure(NamedTuple):
    """A script, its arguments, and the rows that it has samples for."""

    script: str
    arguments: Sequence[str]
    rows: Sequence[Row]

    def run(self, python: Path) -> list[Samples]:
        """The samples of each row."""
        # As a module of the checkout, as it shares others with its like.
        done = subprocess.run(
            [python, '-m', f'benchmarks.scripts.{self.script}',
             *self.arguments],
            cwd=environments.CHECKOUT, env=environments.clean_environ(),
            text=True, stdout=subprocess.PIPE, check=True)
        found: list[Samples] = json.loads(done.stdout)
        return found


def measures(peer: str) -> dict[str, Measure]:
    """What can be measured; `peer` is the directory that has the peer."""
    third = Target(1 / 3, 'peer')
    few = f'peer, {IDLE[0]}'
    idle = [
        Row(f'poll() among {number:,} idle', 'µs', {}, [Target(1.0, few)],
            {'peer': known})
        for number, known in zip(IDLE, (7.0, 109.0, 500.0), strict=True)]
    idle[-1] = idle[-1]._replace(targets=[
        *idle[-1].targets, Target(1.5, f'ours, {IDLE[0]}')])
    return {
        'echo': Measure('echo', [peer, '256', '500', '10'], [
            Row('256 MiB through cat', 'ms', {}, [Target(1 / 0.9, 'raw')]),
            Row('one byte through cat', 'µs', {}, [Target(1.3, 'raw')]),
            Row('one byte through cat, one processor', 'µs', {})]),
        'lines': Measure('lines', [peer, '1000000', '10'], [
            Row('line by poll(), bursts of 4 KiB', 'µs', {}, [third],
                {'peer': 0.9}),
            Row('line by poll(), bursts of 64 KiB', 'µs', {}, [third]),
            Row('line by read(), bursts of 64 KiB', 'µs', {}),
            Row('10 MB of lines by poll(), files of 100 kB', 's', {}),
            Row('10 MB of lines by poll(), one file', 's', {},
                [Target(1.0, 'ours, small')], {'peer': 92.0})]),
        'idle': Measure('idle', [peer, '3', *map(str, IDLE)], idle),
        'spawn': Measure('spawning', ['500', '10'], [
            Row('start and reap true', 'µs', {}, [Target(1.3, 'raw')]),
            Row('start, reap and close true', 'µs', {})]),
    }


NAMES = ('echo', 'lines', 'idle', 'spawn')


def run(chosen: Mapping[str, Measure], python: Path, runs: int) -> list[Row]:
    """All of them in each round, so that a slow time is nobody's own."""
    found: dict[str, list[list[Samples]]] = {name: [] for name in chosen}
    for number in range(1, runs + 1):
        print(f'round {number} of {runs} ...', file=sys.stderr)
        for name, measure in chosen.items():
            found[name].append(measure.run(python))
    return [
        row._replace(samples=together(parts))
        for name, measure in chosen.items()
        for row, parts in zip(
            measure.rows, zip(*found[name], strict=True), strict=True)]


def together(parts: Sequence[Samples]) -> Samples:
    """The samples of several processes."""
    return {side: [value for part in parts for value in part[side]]
            for side in parts[0]}


def main(arguments: list[str]) -> int:
    """Print the table; returns 1 if a target is missed."""
    options = make_parser(
        'children', __doc__, NAMES,
        'in each of them, the sides take several turns',
    ).parse_args(arguments)
    try:
        ours = environments.ours()
        peer = environments.released('peer', f'{PEER}=={PEER_VERSION}')
    except environments.EnvironmentFailed as error:
        print(error, file=sys.stderr)
        return 1
    print(environments.heading(ours, peer, PEER), flush=True)
    known = measures(str(environments.packages(peer)))
    rows = run({name: known[name] for name in options.only}, ours,
               options.runs)
    print(render(SIDES, rows))
    return 0 if all(row.is_met() for row in rows) else 1
