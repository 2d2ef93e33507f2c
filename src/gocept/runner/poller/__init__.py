"""Many streams, processes and timers; one wait. See `IPoller`."""

from gocept.runner.poller.poller import Poller
from gocept.runner.poller.thread import background
from gocept.runner.poller.timer import Timer

__all__ = ['Poller', 'Timer', 'background']
