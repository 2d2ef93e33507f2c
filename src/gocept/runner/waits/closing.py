"""What has to be closed."""

import sys
import warnings
from types import TracebackType
from typing import Self


class Closing:
    """A context manager that closes itself."""

    def close(self) -> None:
        """Let go of what it has; again does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None,
                 exc: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()


class Owning(Closing):
    """One with descriptors of its own, so that to forget it is a mistake."""

    closed = True  # until it has them

    def __del__(self) -> None:
        if not self.closed:
            warnings.warn(f'unclosed {self!r}', ResourceWarning,
                          stacklevel=2, source=self)
            # A thread that is no more may have the locks that it needs.
            if not sys.is_finalizing():
                self.close()
