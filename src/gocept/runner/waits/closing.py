"""What has to be closed."""

import sys
import warnings
from types import TracebackType
from typing import Self


class Closing:
    """A context manager that closes itself."""

    def close(self) -> None:
        """Close what it owns. To call it again does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None,
                 exc: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()


class Owning(Closing):
    """An object with descriptors: to forget it while it is open is a mistake.
    """

    closed = True  # until it has them

    def _release(self) -> None:
        """Close the descriptors, without a lock, and tell nobody.

        A finalizer runs in any thread and under any lock. It needs no lock
        itself, as nobody else refers to the object: a poller refers to what is
        registered and to what it is to send.
        """
        raise NotImplementedError

    def __del__(self) -> None:
        if not self.closed:
            try:
                warnings.warn(f'unclosed {self!r}', ResourceWarning,
                              stacklevel=2, source=self)
            finally:
                # At the exit of the interpreter the system closes them.
                if not sys.is_finalizing():
                    self._release()
