"""What the log of a program says about its children."""

import logging
from typing import Any


class Started(logging.Handler):
    """Collects the processes that a runner starts, and what is wrong."""

    def __init__(self, fail: Any) -> None:
        super().__init__()
        self.fail = fail
        self.processes: list[Any] = []
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        text = record.getMessage()
        self.lines.append(f'{record.created % 1000:.3f} {text}')
        if record.msg.startswith('Started '):
            self.processes.append(record.args[0])
        if record.exc_info or 'reaped' in text or 'failed' in record.msg:
            self.fail(f'logged: {logging.Formatter().format(record)}')
