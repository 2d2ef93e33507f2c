"""Executors that look whether the child is ready: themselves, or by means of a
condition."""

from typing import Self, Unpack

import zope.interface

from gocept.runner.errors import (
    AlreadyRunning,
    ExecutorError,
    ProcessExitedWithError,
)
from gocept.runner.executor.base import SimpleExecutor
from gocept.runner.executor.conditions.base import Condition
from gocept.runner.executor.options import Options
from gocept.runner.executor.run import Run
from gocept.runner.interfaces import ICheckedExecutor, IConditionExecutor
from gocept.runner.poller import Poller
from gocept.runner.process.base import BaseProcess
from gocept.runner.process.launch import Command
from gocept.runner.waits.deadline import NEVER, Deadline
from gocept.runner.waits.threads import refuse_to_wait

_LOOK = 1.0
"""Seconds that a look may take at a child that was ready."""


@zope.interface.implementer(ICheckedExecutor)
class Executor(SimpleExecutor):
    """See `ICheckedExecutor`."""

    _obstacle = ''
    """What `pre_start_check` has found."""

    def pre_start_check(self) -> bool:
        """See `ICheckedExecutor`."""
        raise NotImplementedError

    def after_start_check(self) -> bool:
        """See `ICheckedExecutor`."""
        raise NotImplementedError

    def start(self) -> Self:
        """See `IExecutor`."""
        if not self._overrides('pre_start_check', 'after_start_check',
                               'check_subprocess'):
            return super().start()
        refuse_to_wait(f'The start of {self}')
        if self.child is not None and _has_failed(self.child):
            # What a child that has failed has left must not be in the way.
            self.kill()
        self._set_timeout()
        self._obstacle = ''
        if (self._overrides('pre_start_check') and not self._lives()
                and self.pre_start_check()):
            raise self._explained(AlreadyRunning(self), self._obstacle)
        self._start()
        if self._join(self._run):
            return self
        self.wait_for(self.check_subprocess)
        run = self._run  # None if another thread has stopped it
        if run is not None:
            check = run.check
            if check is not None:
                for name, capture in run.captures.items():
                    run.readers[name].skip_to(*check.place(capture))
            run.end_waiting()
        self._settle(run, True)
        return self

    def _overrides(self, *methods: str) -> bool:
        """Whether a subclass has them, or this object has others."""
        return any(
            getattr(getattr(self, each), '__func__', None)
            is not getattr(Executor, each) for each in methods)

    def check_subprocess(self) -> bool:
        """See `ICheckedExecutor`."""
        run = self._run
        if run is None or (run.is_settled and not self.is_up()):
            return False
        check = run.check
        # This comes first: after the end, another process may look ready.
        status = run.child.poll()
        if status is not None:
            for capture in run.captures.values():
                capture.read_rest()
        said_by_child = check is not None and check.said_by_child
        failed = _has_failed(run.child)
        if (not failed or said_by_child) and self.after_start_check():
            return True
        if check is not None and check.pending:
            return False  # another thread is about to
        hopeless = '' if check is None else check.hopeless
        if hopeless:
            status = run.child.poll()  # it may have ended meanwhile
            failed = _has_failed(run.child)
        if status is not None and (failed or hopeless):
            raise ProcessExitedWithError(
                self, status, run.child.status_text)
        if hopeless:
            raise ExecutorError(self, hopeless)
        return False


def _has_failed(process: BaseProcess) -> bool:
    return bool(process.poll()) and not process.lost


@zope.interface.implementer(IConditionExecutor)
class ConditionExecutor(Executor):
    """See `IConditionExecutor`."""

    condition: Condition

    def __init__(self, command: Command, condition: Condition,
                 **kwargs: Unpack[Options]) -> None:
        if not isinstance(condition, Condition):
            raise TypeError(f'{condition!r} is no condition, as tcp(...) is')
        self.condition = condition
        super().__init__(command, **kwargs)

    def pre_start_check(self) -> bool:
        if self.child is not None and self.child.poll() is None:
            self._obstacle = f'its own process {self.child.pid} runs'
            return True
        self._refresh()
        with Poller() as poller:
            self._obstacle = self.condition.for_child(
                self._setting).holds_already(poller, self._deadline or NEVER)
        return bool(self._obstacle)

    def after_start_check(self) -> bool:
        run = self._run
        if run is None or (run.is_settled and not self.is_up()):
            return False
        if run.check is not None:
            return run.look()
        return self._still_holds(run)

    def _still_holds(self, run: Run) -> bool:
        """Look anew at the condition of a child that was ready."""
        condition = self.condition.for_child(self._setting).for_found()
        if condition is None:
            return True
        deadline = Deadline(_LOOK)
        with Poller() as poller, condition.check() as check:
            check.begin(run.child, [*run.captures.values()], poller, deadline)
            while not (held := check.holds()) and (
                    check.looking and not deadline.passed):
                poller.poll(min(deadline.left(), _LOOK / 100))
        return held
