"""Names of a package that are imported when they are asked for.

So who imports a module of the package imports no more than this one needs.
"""

import sys

TYPE_CHECKING = False  # not that of `typing`, whose import takes long
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def handing_out(package: str, modules: 'Mapping[str, str]',
                ) -> 'tuple[Callable[[str], object], Callable[[], list[str]]]':
    """``__getattr__`` and ``__dir__`` of a package; see PEP 562.

    `modules` has the full name of the module for each name; behind a colon,
    what the name is called there. A name of a module in the package is the
    module.
    """
    def get(name: str) -> object:
        where = modules.get(name)
        if where is None:
            raise AttributeError(
                f'module {package!r} has no attribute {name!r}')
        from importlib import import_module
        module, _, other = where.partition(':')
        value = import_module(module)
        if module != f'{package}.{name}':
            value = getattr(value, other or name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return get, names
