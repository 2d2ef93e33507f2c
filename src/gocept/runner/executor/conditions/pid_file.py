"""The condition that a child writes a file, mostly one with its process id."""

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

from gocept.runner.executor.conditions.base import Check, Condition
from gocept.runner.executor.conditions.inotify import Directory
from gocept.runner.poller import Poller
from gocept.runner.process import descendants, procfs
from gocept.runner.waits.deadline import Deadline

_BRIEFLY = 0.1
"""Seconds between the creation of a file and its content, as a rule."""


class pid_file(Condition):
    """That a file is written after the start."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        if not self.path:
            raise ValueError('the path of a pid file is needed')

    def check(self) -> Check:
        return _PidFileCheck(self.path)

    def holds_already(self, poller: Poller, deadline: Deadline) -> str:
        pid = _writer(self.path)
        return f'process {pid} runs, which {self.path} names' if pid else ''

    def servers(self) -> Iterator[int]:
        if pid := _writer(self.path):
            yield pid


def _writer(path: str) -> int:
    """The process that a file names, if that process may have written it.

    0 if there is none.
    """
    try:
        if not os.path.isfile(path):  # to open a named pipe would block
            return 0
        with open(path, 'rb') as file:
            # That of PostgreSQL has more lines.
            pid = int(file.readline(32))
            written = os.fstat(file.fileno()).st_mtime
    except (OSError, ValueError):
        return 0
    now = procfs.stat(pid) if pid > 0 else None
    if now is None or now.state in 'ZX':
        return 0
    age = (descendants.clock() - now.start) / os.sysconf('SC_CLK_TCK')
    # A process that is younger than the file has the number of the writer,
    # which has ended.
    return pid if time.time() - age <= written + 1 else 0


class _Written(NamedTuple):
    """What differs when a file has been written anew."""

    inode: int
    size: int
    modified: int


class _PidFileCheck(Check):

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._stale = self._look()
        self._directory: Directory | None = None
        self._briefly: Deadline | None = None
        self.awaited = f'the file {path}'

    def _watch(self) -> None:
        # A directory that cannot be watched is looked at now and then.
        with contextlib.suppress(OSError):
            self._directory = Directory(os.path.dirname(self._path))
            self.poller.register(self._directory)

    def holds(self) -> bool:
        now = self._look()
        if now is None or now == self._stale:
            return False
        if now.size:
            self.close()  # events of other files would wake the poller
            return True
        # Some programs make an empty file; others write to it at once.
        self.seen = 'it is empty'
        if self._briefly is None:
            self._briefly = Deadline(_BRIEFLY)
        return self._briefly.passed

    def _look(self) -> _Written | None:
        try:
            now = os.stat(self._path)
        except FileNotFoundError:
            self.seen = 'there is none'
        except OSError as error:
            self.seen = str(error.strerror)
        else:
            if stat.S_ISREG(now.st_mode):
                self.seen = 'it is stale'
                return _Written(now.st_ino, now.st_size, now.st_mtime_ns)
            self.seen = 'it is no regular file'
        return None

    def close(self) -> None:
        if self._directory is not None:
            self._directory.close()
