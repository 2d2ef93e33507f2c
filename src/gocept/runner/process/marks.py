"""Words in the environment, by which descendants of a child are recognised."""

import functools
import itertools
import os

from gocept.runner.process import procfs

MARKER = 'GOCEPT_RUNNER_CHILD'
"""The environment variable that descendants are recognised by.

Its value are marks: one word for each child that the process descends from.
"""

_numbers = itertools.count(1)


def new_mark() -> str:
    """A word that no other child of any runner has."""
    return f'{our_mark()}{next(_numbers)}'


def our_mark() -> str:
    """What all words of this process begin with."""
    return _mark_of(os.getpid())


@functools.lru_cache(1)  # so that a fork has its own
def _mark_of(pid: int) -> str:
    us = procfs.stat(pid)
    return f'{pid}.{us.start if us else 0}.'
