"""What happens to the program of a house, chosen at random beforehand."""

import dataclasses
import random
import signal
from typing import Self

ENDINGS = (
    'SIGTERM', 'SIGHUP', 'SIGINT', 'SIGKILL',
    'SIGTERM SIGTERM', 'SIGHUP SIGINT', 'SIGINT SIGTERM', 'SIGINT SIGINT',
    'SIGTERM SIGKILL', 'SIGTERM SIGUSR2',
    'SIGSTOP SIGCONT SIGTERM', 'SIGSTOP SIGTERM SIGCONT',
    'SIGSTOP SIGCONT SIGKILL', 'SIGSTOP SIGKILL', 'SIGTERM SIGSTOP SIGCONT',
    'SIGUSR2 SIGTERM', 'SIGUSR2 SIGUSR2 SIGINT', 'SIGUSR2 SIGKILL')

DEADLY = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL)

VICTIMS = ('converter', 'web', 'postgres', 'backend')

LONGEST_START, LONGEST_WORK, LONGEST_PAUSE = 0.8, 0.7, 0.2
"""Seconds until something happens, at most: to one that was just started, to
one that works, and until something else happens."""


@dataclasses.dataclass(kw_only=True)
class Act:
    """A signal that is sent after a pause, in seconds."""

    signum: signal.Signals
    pause: float

    victim: str = ''
    """Which child gets it, or '' for the program."""

    to_group: bool = False
    """Whether all in the group of the program get it."""

    number: int = 0
    """Which of several, if there are."""

    recovers: bool = False
    """Whether to wait until the damage is repaired."""

    def __str__(self) -> str:
        whom = self.victim or ('group' if self.to_group else '')
        return self.signum.name + (f' to {whom}' if whom else '')


@dataclasses.dataclass(kw_only=True)
class Fate:
    """What one program is like, and what happens to it."""

    acts: list[Act]

    works: bool = True
    """Whether it has begun to work before the first thing happens."""

    ticks: float = 60
    readiness: str = 'probe'
    start: str = 'eager'
    devmode: bool = False

    @classmethod
    def peaceful(cls) -> Self:
        """One that leaves nothing in memory, whatever was before."""
        return cls(acts=[Act(signum=signal.SIGTERM, pause=0)])

    @classmethod
    def chosen_by(cls, randomly: random.Random) -> Self:
        """Any."""
        works = randomly.random() < 0.6
        to_group = randomly.random() < 0.2
        acts = [
            Act(signum=signal.Signals[name], pause=0, to_group=to_group)
            for name in randomly.choice(ENDINGS).split()]
        for _ in range(randomly.choice([0, 0, 0, 1, 1, 2])):
            acts.insert(randomly.randrange(len(acts) + 1), _harm(randomly))
        for act in acts:
            act.pause = randomly.uniform(0, LONGEST_PAUSE)
        acts[0].pause = randomly.uniform(
            0, LONGEST_WORK if works else LONGEST_START)
        if works:
            _let_recover(acts, randomly)
        return cls(
            acts=acts, works=works,
            ticks=randomly.choice([0.005, 0.1, 60, 60]),
            readiness=randomly.choice(
                ['unix', 'probe', 'postgresql', 'notified', 'output']),
            start=randomly.choice(['eager', 'lazy']),
            devmode=randomly.random() < 0.2)


def _harm(randomly: random.Random) -> Act:
    victim = randomly.choice(VICTIMS)
    signums = [signal.SIGKILL]
    if victim != 'backend':
        # Who has no postmaster any more must be able to notice it.
        signums += [signal.SIGTERM, signal.SIGSTOP]
    return Act(signum=randomly.choice(signums), pause=0, victim=victim,
               number=randomly.randrange(1000))


def _let_recover(acts: list[Act], randomly: random.Random) -> None:
    """Only the living can, with the help of all others."""
    for act in acts:
        if signal.SIGSTOP is act.signum or (
                act.signum in DEADLY and not act.victim):
            return
        act.recovers = bool(act.victim) and randomly.random() < 0.7
