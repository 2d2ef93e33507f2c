"""Which workers there are in a house, and in which order.

The order is that of their names on the command line, or that of ZCML. They are
started in this order, and ended in reverse.
"""

from collections.abc import Iterator, Mapping, Sequence

from gocept.runner import errors
from gocept.runner.cli.mistakes import UserError, meant
from gocept.runner.house.link import DeclaredChild, DeclaredWorker
from gocept.runner.schedule import Schedule

MARGIN = 60.0
"""Seconds that a tick without a ``tick_timeout`` gets for its end."""


class Plan:
    """The workers that are to run, by their names.

    `names` are those of the command line; none are all that are declared.
    """

    def __init__(self, declared: Sequence[DeclaredWorker],
                 names: Sequence[str] = (),
                 children: Sequence[DeclaredChild] = ()) -> None:
        self.children = children
        by_name = {each.name: each for each in declared}
        unknown = [name for name in names if name not in by_name]
        if unknown:
            raise UserError(_unknown(unknown[0], by_name, children),
                            errors.BAD_USAGE)
        if not by_name:
            raise UserError(
                'no worker is declared, so there is nothing to run: ZCML '
                'declares one with <runner:worker>', errors.BAD_USAGE)
        self.workers: Mapping[str, DeclaredWorker] = {
            name: by_name[name] for name in names or by_name}

    def __iter__(self) -> Iterator[DeclaredWorker]:
        return iter(self.workers.values())

    @property
    def shutdown_timeout(self) -> float:
        """How many seconds the end of the workers takes at most.

        A worker completes its tick first, and ends its children then.
        """
        return max(MARGIN if each.tick_timeout is None else each.tick_timeout
                   for each in self) + max(
                       each.shutdown_timeout for each in self)

    def unused_apps(self) -> list[str]:
        """The eager apps that belong to no worker of the plan.

        None if no worker names any: then each worker starts all of them, as
        `gocept-runner run` does.
        """
        used = {name for each in self for name in each.apps}
        if not used:
            return []
        return [child.name for child in self.children
                if child.kind == 'app' and child.start == 'eager'
                and child.name not in used]


def times(worker: DeclaredWorker) -> Schedule | None:
    """When a worker is due that has a process for each run of its schedule.

    None for the others.
    """
    if worker.schedule is None or not worker.once:
        return None
    return Schedule(worker.schedule, worker.timezone, worker.jitter)


def _unknown(name: str, workers: Mapping[str, DeclaredWorker],
             children: Sequence[DeclaredChild]) -> str:
    for child in children:
        if child.name == name:
            kind = child.kind
            return (f'{name!r} is no worker, but '
                    f'{"a" if kind == "server" else "an"} {kind}')
    hint = meant(name, workers)
    return (f'no worker {name!r} is declared{hint and f" ({hint})"}; there '
            f'are: {", ".join(workers) or "none"}')
