"""What executors require: the order in which they are started."""

from collections.abc import Callable, Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Protocol, TypeVar, cast

from gocept.runner.process.base import BaseProcess

T = TypeVar('T', bound='Startable')


class Startable(Protocol):
    """An executor, or what has these methods of one; see `IExecutor`."""

    @property
    def requires(self) -> Sequence['Startable']: ...

    @property
    def child(self) -> BaseProcess | None: ...

    def is_up(self) -> bool: ...

    def start(self) -> object: ...

    def stop(self) -> object: ...

    def kill(self) -> object: ...


def in_levels(executors: Iterable[T],
              name: Callable[[T], str] = str) -> list[list[T]]:
    """Lists of executors; what they require, which is added, is in others
    before them.

    ValueError, with the names, if they require each other.
    """
    found: dict[int, T] = {}
    order: TopologicalSorter[int] = TopologicalSorter()
    pending = list(executors)
    for each in pending:  # it grows
        if id(each) not in found:
            found[id(each)] = each
            order.add(id(each), *map(id, each.requires))
            pending += cast(Sequence[T], each.requires)
    try:
        order.prepare()
    except CycleError as error:
        cycle = [name(found[key]) for key in reversed(error.args[1])]
        raise ValueError(
            f'these require each other: {", ".join(cycle)}') from None
    levels = []
    while ready := order.get_ready():
        levels.append([found[key] for key in ready])
        order.done(*ready)
    return levels
