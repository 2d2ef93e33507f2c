"""Loggers whose handlers cannot end what logs.

They import `logging` with the first line, since that takes several
milliseconds. A kernel, which has to start fast, writes its lines without it.
"""

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Protocol

from gocept.runner.waits.threads import survived

if TYPE_CHECKING:
    import logging

DEBUG, INFO, WARNING, ERROR, CRITICAL = 10, 20, 30, 40, 50
"""The levels, as `logging` has them."""


class Writer(Protocol):
    """What may take the place of `logging` in a process."""

    def write(self, level: int, name: str, text: str,
              error: BaseException | None) -> None:
        """Write a line of the logger `name`, and the traceback of `error`."""


class Log:
    """The logger of that name, for code that has to go on.

    A handler may raise an exception, for instance where it opens a log file
    whose directory is gone. Then standard error is told, once in a process.
    A library that sets up logging may disable all loggers there are. This one
    is enabled again.
    """

    writer: Writer | None = None
    """What writes the lines of all of them; None: `logging`."""

    has_failed = was_disabled = False

    def __init__(self, name: str) -> None:
        self.name = name
        self._logger: logging.Logger | None = None
        if 'logging' in sys.modules:
            self._find()  # so that others find it in the list of loggers

    @property
    def logger(self) -> 'logging.Logger':
        """The logger of `logging`."""
        return self._logger or self._find()

    def _find(self) -> 'logging.Logger':
        import logging
        self._logger = logging.getLogger(self.name)
        return self._logger

    def debug(self, msg: object, *args: object, **keywords: Any) -> None:
        """See `logging.Logger`, as for the other levels."""
        self.log(DEBUG, msg, *args, **_from_caller(keywords))

    def info(self, msg: object, *args: object, **keywords: Any) -> None:
        self.log(INFO, msg, *args, **_from_caller(keywords))

    def warning(self, msg: object, *args: object, **keywords: Any) -> None:
        self.log(WARNING, msg, *args, **_from_caller(keywords))

    def error(self, msg: object, *args: object, **keywords: Any) -> None:
        self.log(ERROR, msg, *args, **_from_caller(keywords))

    def critical(self, msg: object, *args: object, **keywords: Any) -> None:
        self.log(CRITICAL, msg, *args, **_from_caller(keywords))

    def exception(self, msg: object, *args: object, **keywords: Any) -> None:
        self.log(ERROR, msg, *args,
                 **{'exc_info': True, **_from_caller(keywords)})

    def log(self, level: int, msg: object, *args: object,
            **keywords: Any) -> None:
        """Log it, or tell standard error why not."""
        try:
            if self.writer is not None:
                self._write(self.writer, level, msg, args, keywords)
                return
            if self.logger.disabled:
                self._enable()
            self.logger.log(level, msg, *args, **_from_caller(keywords))
        except survived() as error:
            if not Log.has_failed:
                Log.has_failed = True
                with contextlib.suppress(Exception):
                    sys.stderr.write(
                        f'The log failed with {type(error).__name__}: '
                        f'{error}; the first line that is lost: '
                        f'{str(msg) % args}\n')
                    sys.stderr.flush()

    def _write(self, writer: Writer, level: int, msg: object,
               args: tuple[object, ...], keywords: dict[str, Any]) -> None:
        error = keywords.get('exc_info')
        if error is True:
            error = sys.exception()
        writer.write(level, self.name,
                     str(msg) % args if args else str(msg), error or None)

    def _enable(self) -> None:
        self.logger.disabled = False
        if not Log.was_disabled:
            Log.was_disabled = True
            self.warning(
                'The logger %s was disabled, and is enabled again: call '
                'logging.config with disable_existing_loggers=False',
                self.logger.name)


def _from_caller(keywords: dict[str, Any]) -> dict[str, Any]:
    """Have the line say where the caller's caller is."""
    return {**keywords, 'stacklevel': keywords.get('stacklevel', 1) + 1}
