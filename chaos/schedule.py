"""Random schedules in zones whose clocks are put forward and back.

Each run compares 50 expressions with the reference of the tests, so 200 runs
are 10,000. An expression with few runs is compared for ten years, and one with
many around each change of the clock and at some other times.
"""

import random
from collections.abc import Iterator

from gocept.runner.tests.schedule.reference import Reference, compare

EXPRESSIONS = 50


def run(randomly: random.Random, runs: int) -> Iterator[str]:
    """Compare what is due with what the reference says."""
    for _ in range(runs):
        references = [Reference(randomly) for _ in range(EXPRESSIONS)]
        number = sum(compare(each, randomly) for each in references)
        yield f'{EXPRESSIONS} expressions, {number} times'
