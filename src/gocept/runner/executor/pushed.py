"""Conditions that the child brings about: output, a file, a status."""

import contextlib
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence

from gocept.runner import descendants, proc
from gocept.runner.executor.capture import Capture
from gocept.runner.executor.condition import Check, Condition
from gocept.runner.executor.inotify import Directory
from gocept.runner.poller import Poller
from gocept.runner.process import Process
from gocept.runner.waiting import Deadline

_LONGEST_LINE = 2 ** 16  # bytes that are searched again when more comes


class output(Condition):
    """That the output matches `banner`, a regular expression, in a line.

    As soon as it matches `failure`, the wait has failed.
    """

    def __init__(self, banner: str, failure: str | None = None) -> None:
        self.banner = re.compile(banner, re.MULTILINE)
        self.failure = failure and re.compile(failure, re.MULTILINE)

    def check(self) -> Check:
        """See `ICondition`."""
        return _OutputCheck(self)


class _OutputCheck(Check):

    said_by_child = True

    def __init__(self, condition: output) -> None:
        self._condition = condition
        self._searches: list[_Search] = []
        self.awaited = f'{condition.banner.pattern!r} in its output'

    def begin(self, process: Process, captures: Sequence[Capture],
              poller: Poller, deadline: Deadline) -> None:
        """See `Check`."""
        super().begin(process, captures, poller, deadline)
        self._searches = [_Search(self._condition, each, poller.wakeup)
                          for each in captures]

    def holds(self) -> bool:
        """See `Check`."""
        return any(each.found for each in self._searches)

    @property
    def hopeless(self) -> str:
        """See `Check`."""
        for each in self._searches:
            if each.failed:
                return f'has said {each.failed!r}'
        if all(each.capture.ended for each in self._searches):
            return 'has closed its output'
        return ''

    def place(self, capture: Capture) -> tuple[int, bool]:
        """See `Check`."""
        for each in self._searches:
            if each.capture is capture and each.found:
                return each.position, each.in_line
        return 0, False

    def close(self) -> None:
        """See `Check`."""
        for each in self._searches:
            each.capture.listen_no_more()


class _Search:
    """Looks for the banner in one stream; in the thread that reads it."""

    def __init__(self, condition: output, capture: Capture,
                 tell: Callable[[], None]) -> None:
        self.capture = capture
        self.found = False
        self.failed = ''
        self.position = capture.dropped
        self.in_line = False
        self._condition = condition
        self._tell = tell
        self._line = b''  # what was searched already, as it may go on
        capture.listen(self._search)

    def _search(self, data: bytes) -> None:
        if self.found or not data:
            self._tell()
            return
        window = self._line + data
        begin = self.position - len(self._line)
        self.position += len(data)
        text = window.decode('utf-8', 'replace')
        match = self._condition.banner.search(text)
        if match is not None:
            self._end_after(window, begin, text, match.end())
            self.found = True
        elif self._condition.failure:
            failure = self._condition.failure.search(text)
            self.failed = failure.group() if failure else ''
        self._line = window[window.rfind(b'\n') + 1:][-_LONGEST_LINE:]
        if self.found or self.failed:
            self._tell()

    def _end_after(self, window: bytes, begin: int, text: str,
                   end: int) -> None:
        """Go to the end of the line in which the match ends."""
        lines = text.count('\n', 0, end)
        if end and text[end - 1] == '\n':
            lines -= 1
        at = -1
        for _ in range(lines + 1):
            at = window.find(b'\n', at + 1)
            if at < 0:
                self.in_line = True
                return
        self.position = begin + at + 1


class pid_file(Condition):
    """That a file is written after the start; one from before is stale."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        if not self.path:
            raise ValueError('the path of a pid file is needed')

    def check(self) -> Check:
        """See `ICondition`."""
        return _PidFileCheck(self.path)

    def holds_already(self, poller: Poller, deadline: Deadline) -> str:
        """See `ICondition`."""
        pid = _writer(self.path)
        return f'process {pid} runs, which {self.path} names' if pid else ''

    def servers(self) -> Iterator[int]:
        """See `ICondition`."""
        if pid := _writer(self.path):
            yield pid


def _writer(path: str) -> int:
    """The process that a file names, if it may have written it; or 0."""
    try:
        with open(path, 'rb') as file:
            pid = int(file.read(32))
            written = os.fstat(file.fileno()).st_mtime
    except (OSError, ValueError):
        return 0
    now = proc.stat(pid) if pid > 0 else None
    if now is None or now.state in 'ZX':
        return 0
    age = (descendants.clock() - now.start) / os.sysconf('SC_CLK_TCK')
    # A younger one has been given the number of one that has ended.
    return pid if time.time() - age <= written + 1 else 0


class _PidFileCheck(Check):

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._stale = self._look()
        self._directory: Directory | None = None
        self.awaited = f'the file {path}'
        self.seen = 'it is stale' if self._stale else 'there is none'

    def begin(self, process: Process, captures: Sequence[Capture],
              poller: Poller, deadline: Deadline) -> None:
        """See `Check`."""
        super().begin(process, captures, poller, deadline)
        # If it cannot be watched, it is looked for now and then.
        with contextlib.suppress(OSError):
            self._directory = Directory(os.path.dirname(self._path))
            poller.register(self._directory)

    def holds(self) -> bool:
        """See `Check`."""
        now = self._look()
        return now is not None and now != self._stale

    def _look(self) -> tuple[int, ...] | None:
        if not os.path.isfile(self._path):
            return None
        with contextlib.suppress(OSError):
            now = os.stat(self._path)
            return now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns
        return None

    def close(self) -> None:
        """See `Check`."""
        if self._directory is not None:
            self._directory.close()


class exits_zero(Condition):
    """That a command ends with 0; it is run again and again."""

    def __init__(self, command: str | Sequence[str]) -> None:
        self.command = (shlex.split(command) if isinstance(command, str)
                        else [os.fspath(each) for each in command])
        if not self.command:
            raise ValueError('a probe needs a command')

    def check(self) -> Check:
        """See `ICondition`."""
        return _ExitCheck(self.command)


class _ExitCheck(Check):

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._probe: Process | None = None
        self.awaited = f'{shlex.join(command)!r} to end with 0'

    def holds(self) -> bool:
        """See `Check`."""
        if self._probe is None:
            self._probe = Process(
                self._command, stdin='null', stdout='null', stderr='null',
                setsid=True)
            self.poller.register(self._probe)
        status = self._probe.poll()
        if status is not None:
            self._end()
            self.seen = f'it ended with {status}'
        return status == 0

    def _end(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            self.poller.unregister(probe)
            probe.terminate(signal.SIGKILL, 0)

    def close(self) -> None:
        """See `Check`."""
        self._end()
