"""Names with a wildcard at the end, and numbers that stand for names."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from gocept.runner.errors import KernelError
from gocept.runner.kernel.wire.frames import Json

T = TypeVar('T')


def matching(all_of: Mapping[str, T], names: Iterable[str],
             required: bool = False,
             numbered: Callable[[int], str | None] = lambda number: None,
             ) -> dict[str, T]:
    """Those that one of `names` stands for, which is all of them for no names.

    A name may end with ``*`` for all that begin so. A number that is no name
    is looked up by `numbered`. With `required`, a KernelError for a name
    without a wildcard that is not there.
    """
    wanted = list(names)
    if not wanted:
        return dict(all_of)
    found: dict[str, T] = {}
    for name in wanted:
        if name.endswith('*'):
            begin = name[:-1]
            for each, value in all_of.items():
                if each.startswith(begin):
                    found[each] = value
        elif name in all_of:
            found[name] = all_of[name]
        else:
            other = (numbered(int(name))
                     if name.isascii() and name.isdecimal() else None)
            if other is not None:
                found[other] = all_of[other]
            elif required:
                raise KernelError(f'{name} not found: list shows what there '
                                  'is')
    return found


def name_of(params: Mapping[str, Json], noun: str) -> str:
    """The name for what is to be made; KernelError if it is none."""
    name = params.get('name')
    if not name or not isinstance(name, str):
        raise KernelError(f'a {noun} needs a name')
    if name.endswith('*'):
        raise KernelError(f'no {noun} can have the name {name!r}: what ends '
                          'in * stands for all that begin so')
    return name
