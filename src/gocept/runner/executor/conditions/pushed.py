"""Conditions that the child brings about: output, a file, a status."""

import contextlib
import os
import re
import shlex
import signal
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from gocept.runner.executor.capture import Capture
from gocept.runner.executor.conditions.base import Check, Condition
from gocept.runner.executor.conditions.inotify import Directory
from gocept.runner.poller import Poller
from gocept.runner.process import Process, descendants, procfs
from gocept.runner.waits.deadline import Deadline

_BRIEFLY = 0.1
"""Seconds for what comes as a rule right after what was seen: the end of a
child after that of its output, the content of a file after its creation."""

_LONGEST_LINE = 2 ** 16  # bytes that are searched again when more comes


class output(Condition):
    """That the output matches `banner`, a regular expression, in a line.

    As soon as it matches `failure`, the wait has failed.
    """

    def __init__(self, banner: str, failure: str | None = None) -> None:
        self.text = banner
        self.banner = _compiled(banner)
        self.failure = _compiled(failure) if failure else None

    def check(self) -> Check:
        """See `ICondition`."""
        return _OutputCheck(self)


def _compiled(pattern: str) -> re.Pattern[str]:
    # What begins so matches from the beginning of a line if it does at all.
    # Tried everywhere in it, it would take time with the square of its length.
    if pattern.startswith('.*'):
        pattern = f'^{pattern}'
    return re.compile(pattern, re.MULTILINE)


class _OutputCheck(Check):

    said_by_child = True

    def __init__(self, condition: output) -> None:
        self._condition = condition
        self._searches: list[_Search] = []
        self._briefly: Deadline | None = None
        self.awaited = f'{condition.text!r} in its output'

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
        if not self._searches:
            return 'has no output that is read: neither is a pipe'
        # The last piece may have come since `holds` was asked.
        if (all(each.capture.ended for each in self._searches)
                and not self.holds()):
            if self._briefly is None:
                self._briefly = Deadline(_BRIEFLY)
            if (self._briefly.passed
                    or self.process.poll() is not None):
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
            each.close()


class _Search:
    """Looks for the banner in one stream; in the thread that reads it."""

    def __init__(self, condition: output, capture: Capture,
                 tell: Callable[[], None]) -> None:
        self.capture = capture
        self.found = False
        self.failed = ''
        self.position = 0
        self.in_line = False
        self._condition = condition
        self._tell = tell
        self._line = b''  # what was searched already, as it may go on
        capture.listen(self._search)

    def close(self) -> None:
        self.capture.listen_no_more(self._search)

    def _search(self, begin: int, data: bytes) -> None:
        if self.found or self.failed:
            return  # whatever it says now is no reason to look at others
        if not data:
            self._tell()
            return
        window = self._line + data
        self.position = begin + len(data)
        text = window.decode('utf-8', 'replace').replace('\r\n', '\n')
        match = self._condition.banner.search(text)
        failure = (self._condition.failure.search(text)
                   if self._condition.failure else None)
        if failure is not None and (
                match is None or failure.start() < match.start()):
            self.failed = failure.group() or text
        elif match is not None:
            self._end_after(window, begin - len(self._line), text, match.end())
            self.found = True
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
        if not os.path.isfile(path):  # a named pipe would keep us here
            return 0
        with open(path, 'rb') as file:
            pid = int(file.readline(32))  # more may follow, as PostgreSQL's
            written = os.fstat(file.fileno()).st_mtime
    except (OSError, ValueError):
        return 0
    now = procfs.stat(pid) if pid > 0 else None
    if now is None or now.state in 'ZX':
        return 0
    age = (descendants.clock() - now.start) / os.sysconf('SC_CLK_TCK')
    # A younger one has been given the number of one that has ended.
    return pid if time.time() - age <= written + 1 else 0


class _Written(NamedTuple):
    """What is different when a file has been written anew."""

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
        if now is None or now == self._stale:
            return False
        if now.size:
            self.close()  # other files there are no reason to look at others
            return True
        # Some only make one, others write into it next.
        self.seen = 'it is empty'
        if self._briefly is None:
            self._briefly = Deadline(_BRIEFLY)
        return self._briefly.passed

    def _look(self) -> '_Written | None':
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
        self.seen = 'it runs still'

    def holds(self) -> bool:
        """See `Check`."""
        if self._probe is None:
            self._probe = Process(
                self._command, stdin='null', stdout='null', stderr='null',
                setsid=True, adopt=True)
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
