"""What a house tells of itself: to ``gocept-runner status``, to the page."""

import contextlib
import json
import os
from typing import TYPE_CHECKING, Literal, TypedDict, cast

if TYPE_CHECKING:
    from gocept.runner.operation.state import Moment

Phase = Literal[
    'waiting',   # for the template, for a part, or until it is due
    'starting',  # it is being forked
    'running',
    'ending',    # it was told to end
    'pausing',   # between its end and its restart
    'done',      # it runs once, and has done so
    'given up',  # it has failed too often
    'ended',     # with the house
]


class WorkerState(TypedDict):
    """One worker, as the house sees it.

    What it does itself, tick by tick, is in its own state file; see
    `gocept.runner.operation.state`.
    """

    name: str
    site: str | None
    phase: Phase
    pid: int | None
    start: int | None
    """When this process was started, as in /proc/PID/stat."""
    life: int | None
    """The inode of the pipe that tells it the end of `up`. It is written
    before the process is asked for, so the process is found in any case."""
    since: 'Moment'
    """When the phase has begun."""
    due: float | None
    """When it is started next, by the clock on the wall; None: nobody knows.
    """
    starts: int
    """How often it was started."""
    failures: int
    """How often it has failed in a row."""
    status: int | None
    """How it has ended last: a status, or a signal as a negative number."""
    generation: int
    """The number of the template that it was forked from; 0: none so far."""


class TemplateState(TypedDict):
    """A process that workers are forked from."""

    pid: int | None
    generation: int
    """1 for the first one, and one more for each that was started."""
    phase: Literal['starting', 'ready', 'ended']


class HouseState(TypedDict):
    """The whole house."""

    pid: int
    start: int | None
    """When the process was started, as in /proc/PID/stat."""
    boot: str
    """The id of the boot of the system."""
    config: str
    started: 'Moment'
    phase: Literal['starting', 'running', 'reloading', 'ending']
    template: TemplateState | None
    successor: TemplateState | None
    """The template that is warmed for a reload."""
    parts: list[str]
    """The names of the parts that are ready."""
    workers: list[WorkerState]


NAME = 'house.json'
"""The file with the state, in the directory of the house."""


def write(directory: str, state: HouseState) -> None:
    """Replace the file in this directory; OSError if that fails."""
    path = os.path.join(directory, NAME)
    temporary = f'{path}.new'
    try:
        with open(temporary, 'w', encoding='utf-8') as file:
            json.dump(state, file)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read(directory: str) -> HouseState | None:
    """What is in this file; None if there is none, or nothing of use."""
    try:
        with open(os.path.join(directory, NAME), encoding='utf-8') as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    return cast(HouseState, found) if isinstance(found, dict) and all(
        name in found for name in HouseState.__annotations__) else None
