"""The request that a program ends, and the signals that make it.

The names are handed out lazily: a background server, which has to start fast,
uses the handlers alone.
"""

from typing import TYPE_CHECKING

from gocept.runner.waits.lazy import handing_out

if TYPE_CHECKING:
    from gocept.runner.signals.shutdown import Shutdown, current_shutdown

__all__ = ['Shutdown', 'current_shutdown']

__getattr__, __dir__ = handing_out(
    __name__, dict.fromkeys(__all__, f'{__name__}.shutdown'))
