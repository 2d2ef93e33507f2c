"""What happens to loops and children, told through zope.event."""

import logging
import sys
from typing import Any

import zope.event
import zope.interface

from gocept.runner import interfaces

log = logging.getLogger(__name__)


class LoopEvent:
    """See `ILoopEvent`."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop

    def __repr__(self) -> str:
        facts = ', '.join(f'{name}={value!r}'
                          for name, value in vars(self).items())
        return f'<{type(self).__name__}: {facts}>'


@zope.interface.implementer(interfaces.ILoopStarted)
class LoopStarted(LoopEvent):
    """See `ILoopStarted`."""


@zope.interface.implementer(interfaces.ILoopStopped)
class LoopStopped(LoopEvent):
    """See `ILoopStopped`."""


@zope.interface.implementer(interfaces.ITickStarted)
class TickStarted(LoopEvent):
    """See `ITickStarted`."""


@zope.interface.implementer(interfaces.ITickCommitted)
class TickCommitted(LoopEvent):
    """See `ITickCommitted`."""


@zope.interface.implementer(interfaces.ITickAborted)
class TickAborted(LoopEvent):
    """See `ITickAborted`."""

    def __init__(self, loop: Any, error: BaseException) -> None:
        super().__init__(loop)
        self.error = error


@zope.interface.implementer(interfaces.IConflictRetried)
class ConflictRetried(TickAborted):
    """See `IConflictRetried`."""

    def __init__(self, loop: Any, error: BaseException, attempt: int) -> None:
        super().__init__(loop, error)
        self.attempt = attempt


class ChildEvent:
    """See `IChildEvent`."""

    def __init__(self, process: Any) -> None:
        self.process = process
        self.name: str = process.name

    def __repr__(self) -> str:
        return f'<{type(self).__name__}: {self.process!r}>'


@zope.interface.implementer(interfaces.IChildStarted)
class ChildStarted(ChildEvent):
    """See `IChildStarted`."""


@zope.interface.implementer(interfaces.IChildReady)
class ChildReady(ChildEvent):
    """See `IChildReady`."""


@zope.interface.implementer(interfaces.IChildEnded)
class ChildEnded(ChildEvent):
    """See `IChildEnded`."""

    def __init__(self, process: Any) -> None:
        super().__init__(process)
        self.status: int = process.returncode


def child_started(process: Any) -> None:
    """Tell it; for `IProcess`."""
    notify(ChildStarted(process))


def child_ended(process: Any) -> None:
    """Tell it; for `IProcess`."""
    notify(ChildEnded(process))


def notify(event: object) -> None:
    """Do what `zope.event.notify` does, but log what subscribers raise.

    Those that the component architecture knows are called one by one, as one
    that fails would else keep the event from the others.
    """
    component: Any = sys.modules.get('zope.component.event')
    dispatch = None if component is None else component.dispatch
    for subscriber in zope.event.subscribers:
        if subscriber is not dispatch:
            _call(subscriber, event)
            continue
        components = sys.modules['zope.component'].getSiteManager()
        for handler in components.adapters.subscriptions(
                (zope.interface.providedBy(event),), None):
            _call(handler, event)


def _call(subscriber: Any, event: object) -> None:
    try:
        subscriber(event)
    except Exception:
        log.exception('A subscriber of %r failed', event)
