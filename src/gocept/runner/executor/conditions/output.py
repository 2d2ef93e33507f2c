"""The condition that the output of a child has a certain text."""

import bisect
import codecs
import re
from collections.abc import Callable

from gocept.runner.executor.capture import Capture
from gocept.runner.executor.conditions.base import Check, Condition
from gocept.runner.executor.conditions.pattern import compiled, find
from gocept.runner.waits.deadline import Deadline

_BRIEFLY = 1.0
"""Seconds between the end of the output and that of the child, at most, also
on a busy machine. As a rule there is less than a millisecond."""

_LONGEST_LINE = 2 ** 16
"""Characters at the end of a line that are searched again when more comes."""

_SHOWN = 200  # characters of a line in a message


class output(Condition):
    """That a line of the output matches `banner`, a regular expression.

    ``$`` is the end of a whole line, or of the output.
    A match of `failure` before that ends the wait with an error.
    """

    def __init__(self, banner: str, failure: str | None = None) -> None:
        self.text = banner
        self.banner = compiled(banner)
        self.failure = compiled(failure) if failure else None

    def for_found(self) -> None:
        return None

    def check(self) -> Check:
        return _OutputCheck(self)


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
    def seen(self) -> str:  # type: ignore[override]
        return '; '.join(
            f'the line {line!r} is not finished: without $, which is the end '
            'of a whole line, it would match'
            for each in self._searches if (line := each.unfinished))

    @property
    def pending(self) -> bool:  # type: ignore[override]
        return any(each.pending for each in self._searches)

    @property
    def hopeless(self) -> str:
        for each in self._searches:
            if each.failed:
                return f'has said {each.failed!r}'
        if not self._searches:
            return 'has no output that is read: neither is a pipe'
        # The last piece may have come since `holds` was called.
        if (all(each.ended for each in self._searches)
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
        self.ended = False
        self.place = 0, False  # see `Check.place`
        self._condition = condition
        self._tell = tell
        # Text that differs from that of the reader at errors only.
        self._decoder = codecs.getincrementaldecoder(capture.encoding)(
            'backslashreplace')
        self._position = 0
        self._line = ''  # the last one, which may go on
        capture.listen(self._search)

    def close(self) -> None:
        self.capture.listen_no_more(self._search)

    @property
    def pending(self) -> bool:
        """Whether something was read, and not searched yet."""
        return not (self.found or self.failed or self.ended) and (
            self.capture.ended or self._position < self.capture.end)

    @property
    def unfinished(self) -> str:
        """The last line, if it would match as a whole line."""
        line = self._line
        match = None if self._is_over else self._condition.banner.search(line)
        return '' if match is None else line[-_SHOWN:]

    @property
    def _is_over(self) -> bool:
        return self.found or bool(self.failed) or self.ended

    def _search(self, begin: int, data: bytes) -> None:
        if self._is_over:
            return
        before = self._decoder.getstate()
        text = self._line + self._decoder.decode(data, final=not data)
        # Only at the end of the stream, the last line is a whole one.
        search = find if data else re.Pattern.search
        plain = text.replace('\r\n', '\n')
        match = search(self._condition.banner, plain)
        failure = (search(self._condition.failure, plain)
                   if self._condition.failure else None)
        if failure is not None and (
                match is None or failure.start() < match.start()):
            self.failed = failure.group() or plain
        elif match is not None:
            at = _end_of_line(text, plain, match.end())
            if at < 0:
                self.place = begin + len(data), True
            else:
                self._decoder.setstate(before)
                self.place = begin + _size(
                    data, at - len(self._line), self._decoder), False
            self.found = True
        self._line = text[text.rfind('\n') + 1:][-_LONGEST_LINE:]
        self._position = begin + len(data)
        self.ended = not data
        if self._is_over:
            self._tell()


def _end_of_line(text: str, plain: str, end: int) -> int:
    """The place behind the line in which the match ends; -1 if it goes on.

    `end` is a place in `plain`, and the result one in `text`.
    """
    lines = plain.count('\n', 0, end) - plain.endswith('\n', 0, end)
    at = -1
    for _ in range(lines + 1):
        at = text.find('\n', at + 1)
        if at < 0:
            return -1
    return at + 1


def _size(data: bytes, length: int, decoder: codecs.IncrementalDecoder) -> int:
    """The number of bytes at the beginning that are so much text."""
    state = decoder.getstate()

    def decoded(size: int) -> int:
        decoder.setstate(state)
        return len(decoder.decode(data[:size]))
    return bisect.bisect_left(range(len(data)), length, key=decoded)
