"""A directory whose changes are events; see inotify(7)."""

import os
import threading
from collections.abc import Sequence

from gocept.runner.waits import libc
from gocept.runner.waits.identity import Identity
from gocept.runner.waits.source import Source

_IN_MODIFY, _IN_CLOSE_WRITE, _IN_MOVED_TO, _IN_CREATE = 0x2, 0x8, 0x80, 0x100

_BUFFER = 2 ** 12


class Directory(Source):
    """Ready when a file in the directory is made, moved there or written to.

    OSError if the directory cannot be watched.
    """

    def __init__(self, path: str) -> None:
        self._fd = libc.call('inotify_init1', os.O_CLOEXEC | os.O_NONBLOCK)
        self._identity = Identity.of(self._fd)
        try:
            libc.call('inotify_add_watch', self._fd, os.fsencode(path),
                      _IN_MODIFY | _IN_CLOSE_WRITE | _IN_MOVED_TO | _IN_CREATE)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        return self._fd

    def collect(self) -> tuple[Sequence[bytes], bool]:
        if self._fd < 0:
            return (), True
        try:
            return (os.read(self._fd, _BUFFER),), False
        except BlockingIOError:
            return (), False

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._tell_closing(fd)
            # This takes some 15 ms, as the system waits for all processors.
            try:
                threading.Thread(
                    target=self._identity.close, args=(fd,), daemon=True,
                    name='gocept.runner.inotify').start()
            except RuntimeError:  # there are too many threads now
                self._identity.close(fd)
