"""What an executor waits for, and the looks at it.

A `Condition` describes the readiness of a child. Several executors may share
one, so it keeps nothing of a start. `check()` returns a `Check`, which belongs
to one start of one child.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import zope.interface

from gocept.runner.executor.capture import Capture
from gocept.runner.interfaces import ICondition
from gocept.runner.poller import Poller
from gocept.runner.process.base import BaseProcess
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.deadline import Deadline


class Setting(NamedTuple):
    """How an executor starts its child."""

    command: Sequence[str]
    """A line for the shell is one word."""
    shell: bool
    cwd: str | os.PathLike[str] | None
    env: Mapping[str, str]
    replaced: Callable[[str], str]
    """That of the condition of the executor."""


class Check(Closing):
    """Looks whether a condition holds; never blocks.

    A check is made before the child is started. An event that may change the
    answer wakes the poller; `holds` is called then, and now and then.
    """

    awaited = 'readiness'
    """What is waited for, as a message calls it."""

    seen = ''
    """What the last look has found, for a message."""

    said_by_child = False
    """Whether only the child itself can make the condition hold. Then the wait
    ends when the child has ended and its output is read."""

    pending = False
    """Whether the child has said something that was not looked at yet."""

    looking = False
    """Whether the last look goes on, so that it may be answered soon."""

    variables: Mapping[str, str] = {}
    """Variables that are added to the environment of the child."""

    pass_fds: Sequence[int] = ()
    """Descriptors that the child inherits."""

    def begin(self, process: BaseProcess, captures: Sequence[Capture],
              poller: Poller, deadline: Deadline) -> None:
        """The child has been started."""
        self.process = process
        self.captures = captures
        self.poller = poller
        self.deadline = deadline
        self._watch()

    def _watch(self) -> None:
        """Begin to wait for the events that may change the answer."""

    def holds(self) -> bool:
        """Whether the condition holds now."""
        raise NotImplementedError

    @property
    def hopeless(self) -> str:
        """Why the condition can never hold; '' if it can."""
        return ''

    def place(self, capture: Capture) -> tuple[int, bool]:
        """Where a reader of the output begins after the start.

        A position in the stream, and whether the reader leaves out what
        follows there up to the end of the line.
        """
        return 0, False

    def close(self) -> None:
        """See `Closing`."""


class Pauses:
    """Pauses between requests to a child that answers that it is not ready.

    To look costs us little, but to answer may cost the child more.
    """

    _FIRST, _LAST = 0.01, 0.1  # seconds

    _GROWTH = 2.0

    def __init__(self) -> None:
        self._deadline = Deadline(0)
        self._seconds = self._FIRST

    def begin(self) -> None:
        """After an answer; each is longer than the one before."""
        self._deadline = Deadline(self._seconds)
        self._seconds = min(self._GROWTH * self._seconds, self._LAST)

    @property
    def over(self) -> bool:
        """Whether it is time for the next request."""
        return self._deadline.passed


@zope.interface.implementer(ICondition)
class Condition:
    """See `ICondition`."""

    def for_child(self, setting: Setting) -> 'Condition':
        """See `ICondition`."""
        return self

    def check(self) -> Check:
        """See `ICondition`."""
        raise NotImplementedError

    def holds_already(self, poller: Poller, deadline: Deadline) -> str:
        """See `ICondition`."""
        return ''

    def replaced(self, text: str) -> str:
        """See `ICondition`."""
        return text

    def servers(self) -> Iterator[int]:
        """See `ICondition`."""
        return iter(())

    def for_found(self) -> 'Condition | None':
        """See `ICondition`."""
        return self


class all_of(Condition):
    """That each of several conditions has held once."""

    def __init__(self, *conditions: Condition) -> None:
        if not conditions:
            raise ValueError('all_of() needs a condition')
        for each in conditions:
            if not isinstance(each, Condition):
                raise TypeError(f'{each!r} is no condition, as tcp(...) is')
        if sum(each.replaced('{port}') != '{port}' for each in conditions) > 1:
            raise ValueError('a command has one {port}: only one of the '
                             'conditions can choose it')
        self.conditions = conditions

    def for_child(self, setting: Setting) -> 'Condition':
        return all_of(*(each.for_child(setting) for each in self.conditions))

    def check(self) -> Check:
        with contextlib.ExitStack() as undo:
            checks = [undo.enter_context(each.check())
                      for each in self.conditions]
            if sum('NOTIFY_FD' in each.variables for each in checks) > 1:
                raise ValueError('a child has one notification: use one '
                                 'notified() in all_of()')
            undo.pop_all()
        return _All(checks)

    def for_found(self) -> 'Condition | None':
        found = [*filter(None, (each.for_found()
                                for each in self.conditions))]
        return all_of(*found) if found else None

    def holds_already(self, poller: Poller, deadline: Deadline) -> str:
        return next(filter(None, (each.holds_already(poller, deadline)
                                  for each in self.conditions)), '')

    def replaced(self, text: str) -> str:
        for each in self.conditions:
            text = each.replaced(text)
        return text

    def servers(self) -> Iterator[int]:
        for each in self.conditions:
            yield from each.servers()


class _All(Check):

    def __init__(self, checks: list[Check]) -> None:
        self._checks = checks
        self._pending = list(checks)
        self.variables = {name: value for each in checks
                          for name, value in each.variables.items()}
        self.pass_fds = [fd for each in checks for fd in each.pass_fds]

    def _watch(self) -> None:
        for each in self._checks:
            each.begin(self.process, self.captures, self.poller,
                       self.deadline)

    def holds(self) -> bool:
        self._pending = [each for each in self._pending if not each.holds()]
        return not self._pending

    @property
    def awaited(self) -> str:  # type: ignore[override]
        return ' and '.join(each.awaited for each in self._pending)

    @property
    def seen(self) -> str:  # type: ignore[override]
        return '; '.join(each.seen for each in self._pending if each.seen)

    @property
    def said_by_child(self) -> bool:  # type: ignore[override]
        return all(each.said_by_child for each in self._pending)

    @property
    def pending(self) -> bool:  # type: ignore[override]
        return any(each.pending for each in self._pending)

    @property
    def looking(self) -> bool:  # type: ignore[override]
        return any(each.looking for each in self._pending)

    @property
    def hopeless(self) -> str:
        return next(filter(None, (
            each.hopeless for each in self._pending)), '')

    def place(self, capture: Capture) -> tuple[int, bool]:
        return max(each.place(capture) for each in self._checks)

    def close(self) -> None:
        for each in self._checks:
            each.close()
