"""Run small programs against a ZODB, tick by tick.

The names are handed out lazily, so that importing a module of this package
imports no more than that module needs.
"""

from gocept.runner.waits.lazy import handing_out

TYPE_CHECKING = False  # not that of `typing`, whose import takes long
if TYPE_CHECKING:
    from gocept.runner.boot.jsonlines import JSONFormatter
    from gocept.runner.runner import Exit, appmain, from_config, once
    from gocept.runner.transaction import transaction_per_item

__all__ = ['Exit', 'JSONFormatter', 'appmain', 'from_config', 'once',
           'transaction_per_item']

__getattr__, __dir__ = handing_out(__name__, {
    **dict.fromkeys(('Exit', 'appmain', 'from_config', 'once'),
                    f'{__name__}.runner'),
    'transaction_per_item': f'{__name__}.transaction',
    'JSONFormatter': f'{__name__}.boot.jsonlines',
    # Modules that users of 3.0 reach without an import of their own.
    'runner': f'{__name__}.runner',
    'transaction': f'{__name__}.transaction',
})
