"""Loggers whose handlers cannot end what logs."""

import contextlib
import logging
import sys
from typing import Any

from gocept.runner.waits.threads import survived


class Log(logging.LoggerAdapter[logging.Logger]):
    """The logger of that name, for code that has to go on.

    A handler may raise an exception, for instance where it opens a log file
    whose directory is gone. Then standard error is told, once in a process.
    A library that sets up logging may disable all loggers there are. This one
    is enabled again.
    """

    has_failed = was_disabled = False

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name))

    def log(self, level: int, msg: object, *args: object,
            **keywords: Any) -> None:
        """Log it, or tell standard error why not."""
        keywords['stacklevel'] = keywords.get('stacklevel', 1) + 1
        try:
            if self.logger.disabled:
                self._enable()
            super().log(level, msg, *args, **keywords)
        except survived() as error:
            if not Log.has_failed:
                Log.has_failed = True
                with contextlib.suppress(Exception):
                    sys.stderr.write(
                        f'The log failed with {type(error).__name__}: '
                        f'{error}; the first line that is lost: '
                        f'{str(msg) % args}\n')
                    sys.stderr.flush()

    def _enable(self) -> None:
        self.logger.disabled = False
        if not Log.was_disabled:
            Log.was_disabled = True
            self.warning(
                'The logger %s was disabled, and is enabled again: call '
                'logging.config with disable_existing_loggers=False',
                self.logger.name)
