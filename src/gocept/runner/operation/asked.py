"""What is asked for when a worker is started, about its operation."""

from typing import NamedTuple


class Asked(NamedTuple):
    """What a command line, or a caller in Python, asks for."""

    state: str | None = None
    """The file that the state is written to."""
    run_dir: str | None = None
    """The directory of the states of several workers."""
    metrics: str | None = None
    """Where metrics are served: [HOST:]PORT."""
    dry_run: bool = False
    is_command: bool = False
    """Whether a command line runs the worker. Then the state is written also
    if nobody asks for it, except in a dry run."""
    lock: bool | None = None
    """Whether the worker has a lock; None: as its decorator says."""


NOTHING_ASKED = Asked()
