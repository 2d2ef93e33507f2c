"""Numbers of a worker for monitoring: what they are, and those of a state.

This imports neither Zope nor the ZODB, as a process may show the numbers of
workers without being one.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gocept.runner.operation.state import LARGEST

if TYPE_CHECKING:
    from gocept.runner.operation.state import State, Total

BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0,
           14400.0)
"""The seconds at which durations of ticks are told apart."""


@dataclass
class Durations:
    """How long ticks took: a histogram."""

    counts: list[int] = field(
        default_factory=lambda: [0] * (len(BUCKETS) + 1))
    """How many took longer than the bucket before, and not than this one. The
    last number is that of ticks which took longer than all buckets."""

    sum: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


@dataclass
class Numbers:
    """What is counted of one worker.

    A plain value, so that a process can send it to another one, which adds up
    several. Instants are seconds since the epoch.
    """

    worker: str
    site: str
    started: float
    version: str = ''
    ticks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(
        ('committed', 'aborted', 'uncertain', 'skipped'), 0))
    """By outcome. One is skipped if its run was done elsewhere meanwhile."""
    durations: Durations = field(default_factory=Durations)
    items: dict[str, int] = field(default_factory=lambda: dict.fromkeys(
        ('done', 'failed', 'skipped', 'uncertain'), 0))
    timed_out: int = 0
    conflicts: int = 0
    retries: int = 0
    children: int = 0
    child_starts: int = 0
    child_restarts: int = 0
    last_duration: float | None = None
    last_success: float | None = None
    tick_started: float | None = None
    """None in a pause."""
    next_tick: float | None = None
    """None in a tick."""


def added(total: 'Total', before: 'Total | None') -> 'Total':
    """What both have counted together. The sum is a new one."""
    earlier = before['counts'] if before else {}
    durations = before['durations'] if before else []
    seconds = before['seconds'] if before else 0.0
    if len(durations) != len(total['durations']):  # of other buckets, or none
        durations, seconds = [0] * len(total['durations']), 0.0
    return {
        'counts': {name: min(LARGEST, number + earlier.get(name, 0))
                   for name, number in total['counts'].items()},
        'durations': [min(LARGEST, sum(pair)) for pair in zip(
            total['durations'], durations, strict=True)],
        'seconds': min(LARGEST, total['seconds'] + seconds)}


def numbers_of(state: 'State') -> Numbers:
    """What the state of a worker tells, with earlier programs of the worker.

    A state of the first versions has only what was counted since the start,
    and no durations.
    """
    counts: Mapping[str, int] = state['counts']
    numbers = Numbers(state['worker'], (state['site'] or '/'),
                      state['started']['realtime'], state['version'])
    total = state.get('total')
    if total is not None:
        counts = total['counts']
        if len(total['durations']) == len(numbers.durations.counts):
            numbers.durations = Durations(
                [*total['durations']], total['seconds'])
    numbers.ticks = {outcome: counts.get(name, 0) for outcome, name in (
        ('committed', 'commits'), ('aborted', 'aborts'),
        ('uncertain', 'uncertain'), ('skipped', 'elsewhere'))}
    numbers.items = {kind: counts.get(f'items_{kind}', 0)
                     for kind in numbers.items}
    for name in ('timed_out', 'conflicts', 'retries', 'child_starts',
                 'child_restarts'):
        setattr(numbers, name, counts.get(name, 0))
    last, success, due = (
        state['last_tick'], state['last_success'], state['next_tick'])
    numbers.last_duration = last and last['duration']
    numbers.last_success = success and success['realtime']
    if state['phase'] != 'ended':
        numbers.children = sum(not child['state'].startswith('ended')
                               for child in state['children'])
        numbers.next_tick = due and due['realtime']
    if state['phase'] == 'tick':
        numbers.tick_started = state['since']['realtime']
    return numbers
