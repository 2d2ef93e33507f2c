"""Run small programs against a ZODB, tick by tick.

The names are handed out lazily, so that importing a module of this package
imports no more than that module needs.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gocept.runner.runner import Exit, appmain, from_config, once
    from gocept.runner.transaction import transaction_per_item

__all__ = ['Exit', 'appmain', 'from_config', 'once', 'transaction_per_item']


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    module = 'transaction' if name == 'transaction_per_item' else 'runner'
    value = getattr(import_module(f'{__name__}.{module}'), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
