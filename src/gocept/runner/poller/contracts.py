"""Which contracts the classes of this room fulfil.

It is said here instead of by decorators, since the daemon of the kernel does
not import zope.interface, which takes several milliseconds.
"""

import zope.interface

from gocept.runner.interfaces import IPoller, ITimer
from gocept.runner.poller.poller import Poller
from gocept.runner.poller.thread import background
from gocept.runner.poller.timer import Timer

__all__ = ['Poller', 'Timer', 'background']

zope.interface.classImplements(Poller, IPoller)
zope.interface.classImplements(Timer, ITimer)
