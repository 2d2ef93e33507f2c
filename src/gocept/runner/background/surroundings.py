"""What tasks run in, where they need more than Python: a hook.

A server with a zope.conf runs its tasks in the component architecture. That is
on a higher floor, so it is found by its name.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, cast

IMPLEMENTATION = 'gocept.runner.boot.surroundings:Surroundings'

T = TypeVar('T')


class Surroundings(Protocol):
    """See `ITaskSurroundings`."""

    def start(self) -> None: ...

    def run(self, attempt: Callable[[], T]) -> T: ...

    def check(self) -> None: ...

    def close(self) -> None: ...


class Maker(Protocol):
    """The class that `IMPLEMENTATION` names."""

    def __call__(self, zope_conf: str, principal: str | None,
                 site: str | None, settings: Sequence[str | None],
                 ) -> Surroundings: ...


def surroundings(zope_conf: str, principal: str | None = None,
                 site: str | None = None,
                 settings: Sequence[str | None] = ()) -> Surroundings:
    """What the tasks of a server with this zope.conf run in.

    `settings` are those of `IEnvironment`.
    """
    from pkgutil import resolve_name
    return cast(Maker, resolve_name(IMPLEMENTATION))(
        zope_conf, principal, site, settings)
