"""A worker to copy, `gocept.runner.example.worker`, its child and its demo.

The names are handed out lazily, as the child needs nothing of the worker.
"""

from importlib import import_module

__all__ = ['Catalog', 'Changes', 'Converter', 'IConverter', 'fill',
           'forget', 'index_tree']


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.worker'), name)
