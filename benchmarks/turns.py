"""Sides take turns, so that each has its share of the quiet times."""

from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar('T')


def in_turns(measure: Mapping[str, Callable[[], T]], rounds: int,
             ) -> dict[str, list[T]]:
    """Call all of `measure` in each round; the first one changes."""
    names = list(measure)
    samples: dict[str, list[T]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(measure[name]())
    return samples
