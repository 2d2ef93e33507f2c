"""The condition that the output of a child has a certain text."""

import re
from collections.abc import Callable

from gocept.runner.executor.capture import Capture
from gocept.runner.executor.conditions.base import Check, Condition
from gocept.runner.waits.deadline import Deadline

_BRIEFLY = 0.1
"""Seconds between the end of the output and that of the child, as a rule."""

_LONGEST_LINE = 2 ** 16
"""Bytes at the end of a line that are searched again when more comes."""


class output(Condition):
    """That a line of the output matches `banner`, a regular expression.

    A match of `failure` before that ends the wait with an error.
    """

    def __init__(self, banner: str, failure: str | None = None) -> None:
        self.text = banner
        self.banner = _compiled(banner)
        self.failure = _compiled(failure) if failure else None

    def check(self) -> Check:
        return _OutputCheck(self)


def _compiled(pattern: str) -> re.Pattern[str]:
    # Such a pattern matches from the beginning of a line, or not at all. To
    # try it everywhere takes time with the square of the line's length.
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

    def _watch(self) -> None:
        self._searches = [_Search(self._condition, each, self.poller.wakeup)
                          for each in self.captures]

    def holds(self) -> bool:
        return any(each.found for each in self._searches)

    @property
    def hopeless(self) -> str:
        for each in self._searches:
            if each.failed:
                return f'has said {each.failed!r}'
        if not self._searches:
            return 'has no output that is read: neither is a pipe'
        # The last piece may have come since `holds` was called.
        if (all(each.capture.ended for each in self._searches)
                and not self.holds()):
            if self._briefly is None:
                self._briefly = Deadline(_BRIEFLY)
            if self._briefly.passed or self.process.poll() is not None:
                return 'has closed its output'
        return ''

    def place(self, capture: Capture) -> tuple[int, bool]:
        return next((each.place for each in self._searches
                     if each.capture is capture), (0, False))

    def close(self) -> None:
        for each in self._searches:
            each.close()


class _Search:
    """Looks for the banner in one stream, in the thread that reads it."""

    def __init__(self, condition: output, capture: Capture,
                 tell: Callable[[], None]) -> None:
        self.capture = capture
        self.found = False
        self.failed = ''
        self.place = 0, False  # see `Check.place`
        self._condition = condition
        self._tell = tell
        self._line = b''  # the last one, which may go on
        capture.listen(self._search)

    def close(self) -> None:
        self.capture.listen_no_more(self._search)

    def _search(self, begin: int, data: bytes) -> None:
        if self.found or self.failed:
            return
        if not data:
            self._tell()
            return
        window = self._line + data
        text = window.decode('utf-8', 'replace').replace('\r\n', '\n')
        match = self._condition.banner.search(text)
        failure = (self._condition.failure.search(text)
                   if self._condition.failure else None)
        if failure is not None and (
                match is None or failure.start() < match.start()):
            self.failed = failure.group() or text
        elif match is not None:
            self.place = _place_after(
                window, begin - len(self._line), text, match.end())
            self.found = True
        self._line = window[window.rfind(b'\n') + 1:][-_LONGEST_LINE:]
        if self.found or self.failed:
            self._tell()


def _place_after(window: bytes, begin: int, text: str,
                 end: int) -> tuple[int, bool]:
    """The place behind the line in which the match ends."""
    lines = text.count('\n', 0, end) - text.endswith('\n', 0, end)
    at = -1
    for _ in range(lines + 1):
        at = window.find(b'\n', at + 1)
        if at < 0:
            return begin + len(window), True
    return begin + at + 1, False
