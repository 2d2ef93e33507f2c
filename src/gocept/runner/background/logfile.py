"""Where the lines of a server go."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

FORMAT = '%(asctime)s [%(process)d] %(levelname)s %(name)s %(message)s'


class LogFile(logging.FileHandler):
    """Writes the lines that no other handler writes to this file.

    In the background, standard error is this file, too, and a zope.conf may
    say that its lines go there.
    """

    def __init__(self, path: str) -> None:
        # No character is to keep a line out of the log, such as a surrogate.
        super().__init__(path, encoding='utf-8', errors='backslashreplace')

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        if not any(each.level <= record.levelno and self._is_same(each)
                   for each in logging.getLogger().handlers):
            super().emit(record)

    def _is_same(self, other: logging.Handler) -> bool:
        if (other is self or self.stream is None
                or not isinstance(other, logging.StreamHandler)):
            return False
        try:
            return os.path.samestat(os.fstat(other.stream.fileno()),
                                    os.fstat(self.stream.fileno()))
        except (OSError, ValueError, AttributeError):  # it is no file
            return False


@contextlib.contextmanager
def logging_to(path: str | None, level: str) -> Iterator[None]:
    """Have `logging` write there, or to standard error without a `path`.

    Without a path, logging that was set up before stays as it is.
    """
    root = logging.getLogger()
    if path is None:
        if root.handlers:
            yield
            return
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
    else:
        handler = LogFile(path)
    handler.setFormatter(logging.Formatter(FORMAT))
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield
    finally:
        root.setLevel(before)
        root.removeHandler(handler)
        handler.close()
