"""Rows of figures: medians with their spread, ratios, and what was aimed at.

The sides of a row are measured in turn, so that the samples of one round were
taken at about the same time. Hence a ratio is the median of the ratios of the
rounds: what slows a whole round down leaves it alone.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

Samples = Mapping[str, Sequence[float]]


class Target(NamedTuple):
    """An upper limit for ours: relative to a side, or absolute.

    With `beyond`, what each takes longer than its raw is compared: for where
    both spend most of their time in the same code. The samples hold the raw
    of another side as `3.0 raw`, say.
    """

    limit: float
    side: str | None = None
    beyond: bool = False

    def values(self, samples: Samples) -> list[float]:
        """What is to be below the limit, for each round."""
        ours = samples['ours']
        if self.side is None:
            return list(ours)
        other = samples[self.side]
        if self.beyond:
            ours = _differences(ours, samples['raw'])
            other = _differences(other, samples[f'{self.side} raw'])
        return [a / b for a, b in zip(ours, other, strict=True)]

    def is_met(self, samples: Samples) -> bool:
        """Whether the median is within the limit."""
        return median(self.values(samples)) <= self.limit

    def text(self, samples: Samples) -> str:
        """The figure, its spread, the limit, and yes or no."""
        answer = 'yes' if self.is_met(samples) else 'NO'
        if self.side is None:
            return f'at most {_number(self.limit)}: {answer}'
        what = f'{self.side}, beyond raw' if self.beyond else self.side
        spec = '.2f' if self.limit >= 0.1 else '.4f'
        return (f'{_spread(self.values(samples), spec)} of {what}, '
                f'at most {self.limit:{spec}}: {answer}')


class Row(NamedTuple):
    """What was measured, on each side; without a target it informs only.

    `known` has what was measured earlier on another machine, by side.
    """

    name: str
    unit: str
    samples: Samples
    targets: Sequence[Target] = ()
    known: Mapping[str, float] = {}

    def is_met(self) -> bool:
        """Whether all targets are reached."""
        return all(target.is_met(self.samples) for target in self.targets)

    def cells(self, sides: Sequence[str]) -> list[str]:
        """Name and sides, as text."""
        cells = [f'{self.name}, {self.unit}' if self.unit else self.name]
        for side in sides:
            cell = '-'
            if self.samples.get(side):
                cell = _spread(self.samples[side])
            if side in self.known:
                cell += f' [{_number(self.known[side])}]'
            cells.append(cell)
        return cells


def render(sides: Sequence[str], rows: Sequence[Row]) -> str:
    """The table, with a column for each of `sides`; a line for each target.
    """
    lines: list[list[str]] = [['', *sides, 'ours, and the aim']]
    for row in rows:
        aims = [target.text(row.samples) for target in row.targets] or ['']
        lines.append([*row.cells(sides), aims[0]])
        lines += [['', *('' for _ in sides), aim] for aim in aims[1:]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ['-' * width for width in widths])
    return '\n'.join(
        '  '.join(cell.ljust(width) for cell, width
                  in zip(line, widths, strict=True)).rstrip()
        for line in lines)


def _differences(values: Sequence[float],
                 others: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(values, others, strict=True)]


def _spread(values: Sequence[float], spec: str = '') -> str:
    def text(value: float) -> str:
        return format(value, spec) if spec else _number(value)
    middle = text(median(values))
    if len(values) == 1:
        return middle
    return f'{middle} ({text(min(values))}-{text(max(values))})'


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if abs(value) >= 100:
        return f'{value:.0f}'
    return f'{value:.1f}' if abs(value) >= 10 else f'{value:.2f}'
