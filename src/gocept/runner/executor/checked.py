"""Executors that wait: for a look of their own, or for a condition."""

from typing import Any, Self

import zope.interface

from gocept.runner.errors import (
    AlreadyRunning,
    ExecutorError,
    ProcessExitedWithError,
)
from gocept.runner.executor.base import Command, SimpleExecutor
from gocept.runner.executor.conditions.base import Condition
from gocept.runner.interfaces import ICheckedExecutor, IConditionExecutor
from gocept.runner.poller import Poller
from gocept.runner.waits.deadline import NEVER


@zope.interface.implementer(ICheckedExecutor)
class Executor(SimpleExecutor):
    """See `ICheckedExecutor`."""

    def pre_start_check(self) -> bool:
        """See `ICheckedExecutor`."""
        raise NotImplementedError

    def after_start_check(self) -> bool:
        """See `ICheckedExecutor`."""
        raise NotImplementedError

    def start(self) -> Self:
        """See `IExecutor`."""
        if not self._is_checked:
            return super().start()
        if self.process is not None and self.process.poll():
            self.kill()  # it has failed: what it has left is not in the way
        self._set_timeout()
        if (type(self).pre_start_check is not Executor.pre_start_check
                and self.pre_start_check()):
            try:
                raise AlreadyRunning(self)
            finally:
                self._obstacle = ''
        started = self._start()
        self.wait_for(self.check_subprocess)
        self._ready()
        if started:
            self._tell_ready()
        return self

    @property
    def _is_checked(self) -> bool:
        kind = type(self)
        return (kind.pre_start_check is not Executor.pre_start_check
                or kind.after_start_check is not Executor.after_start_check
                or kind.check_subprocess is not Executor.check_subprocess)

    def check_subprocess(self) -> bool:
        """See `ICheckedExecutor`."""
        process = self.process
        if process is None:
            raise ExecutorError(self, 'was stopped meanwhile')
        status = process.poll()  # first, as something else may answer later
        if status is not None:
            self._captures.read_rest()
        said = self._check is not None and self._check.said_by_child
        if status and not said:
            raise ProcessExitedWithError(self, status)
        if self.after_start_check():
            return True
        if status:
            raise ProcessExitedWithError(self, status)
        if self._check is not None and (why := self._check.hopeless):
            status = process.poll()  # it may have ended since
            if status is not None:
                raise ProcessExitedWithError(self, status)
            raise ExecutorError(self, why)
        return False

    def _ready(self) -> None:
        if self._check is not None:
            self._captures.skip_to(self._check.place)
        self._end_waiting()
        self._claim()


@zope.interface.implementer(IConditionExecutor)
class ConditionExecutor(Executor):
    """See `IConditionExecutor`."""

    condition: Condition

    def __init__(self, command: Command, condition: Condition,
                 **kwargs: Any) -> None:
        if not isinstance(condition, Condition):
            raise TypeError(f'{condition!r} is no condition, as tcp(...) is')
        self.condition = condition
        super().__init__(command, **kwargs)

    def pre_start_check(self) -> bool:
        """See `ICheckedExecutor`."""
        if self.process is not None and self.process.poll() is None:
            self._obstacle = f'its own process {self.process.pid} runs'
            return True
        with Poller() as poller:
            self._obstacle = self.condition.holds_already(
                poller, self._deadline or NEVER)
        return bool(self._obstacle)

    def after_start_check(self) -> bool:
        """See `ICheckedExecutor`."""
        return self._check is None or self._check.holds()
