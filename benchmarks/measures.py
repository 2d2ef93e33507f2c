"""Measures that are scripts, in which all sides run in one process.

They take turns there; of these processes, there is one for each measure in
each round.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import environments
from benchmarks.options import make_parser
from benchmarks.table import Row, Samples, render


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


class Comparison(NamedTuple):
    """A benchmark beside a peer from the package index."""

    name: str
    description: str
    sides: Sequence[str]
    peer: str
    version: str
    measures: Callable[[str], Mapping[str, Measure]]
    """Given the directory that has the peer."""

    def main(self, arguments: list[str]) -> int:
        """Print the table; returns 1 if a target is missed."""
        options = make_parser(
            self.name, self.description, list(self.measures('')),
            'in each of them, the sides take several turns',
        ).parse_args(arguments)
        try:
            ours = environments.ours()
            peer = environments.released(
                self.peer, f'{self.peer}=={self.version}')
        except environments.EnvironmentFailed as error:
            print(error, file=sys.stderr)
            return 1
        print(environments.heading(ours, peer, names=[self.peer]),
              flush=True)
        known = self.measures(str(environments.packages(peer)))
        rows = run({name: known[name] for name in options.only}, ours,
                   options.runs)
        print(render(self.sides, rows))
        return 0 if all(row.is_met() for row in rows) else 1
