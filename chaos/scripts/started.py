"""What the log and the events of a program say about its children."""

import logging
from typing import Any

import zope.event

from gocept.runner.interfaces import IChildStarted


class Started(logging.Handler):
    """Collects the processes that a runner starts, and what is wrong."""

    def __init__(self, fail: Any) -> None:
        super().__init__()
        self.fail = fail
        self.processes: list[Any] = []
        self.lines: list[str] = []
        zope.event.subscribers.append(self.hear)

    def hear(self, event: object) -> None:
        """Know a process that was started."""
        if IChildStarted.providedBy(event):
            self.processes.append(event.process)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        text = record.getMessage()
        self.lines.append(f'{record.created % 1000:.3f} {text}')
        if record.exc_info or 'reaped' in text or 'failed' in record.msg:
            self.fail(f'logged: {logging.Formatter().format(record)}')
