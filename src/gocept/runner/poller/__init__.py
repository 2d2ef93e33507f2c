"""Many streams, processes and timers; one wait. See `IPoller`.

The names are handed out lazily, with their contracts. The daemon of the kernel
has to start fast: it imports the modules themselves, and no zope.interface.
"""

from typing import TYPE_CHECKING

from gocept.runner.waits.lazy import handing_out

if TYPE_CHECKING:
    from gocept.runner.poller.poller import Poller
    from gocept.runner.poller.thread import background
    from gocept.runner.poller.timer import Timer
    from gocept.runner.poller.walltimer import WallTimer

__all__ = ['Poller', 'Timer', 'WallTimer', 'background']

__getattr__, __dir__ = handing_out(
    __name__, dict.fromkeys(__all__, f'{__name__}.contracts')
    | {'WallTimer': f'{__name__}.walltimer'})
