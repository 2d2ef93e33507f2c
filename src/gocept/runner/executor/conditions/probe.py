"""The condition that a program, the probe, finds the child ready."""

import os
import shlex
import signal
from collections.abc import Sequence

from gocept.runner.executor.conditions.base import Check, Condition
from gocept.runner.process import Process


class exits_zero(Condition):
    """That a command ends with 0; the command is run until it does."""

    def __init__(self, command: str | Sequence[str]) -> None:
        self.command = (shlex.split(command) if isinstance(command, str)
                        else [os.fspath(each) for each in command])
        if not self.command:
            raise ValueError('a probe needs a command')

    def check(self) -> Check:
        return _ExitCheck(self.command)


class _ExitCheck(Check):

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._probe: Process | None = None
        self.awaited = f'{shlex.join(command)!r} to end with 0'
        self.seen = 'it runs still'

    def holds(self) -> bool:
        if self._probe is None:
            self._probe = Process(
                self._command, stdin='null', stdout='null', stderr='null',
                setsid=True, adopt=True)
            self.poller.register(self._probe)
        status = self._probe.poll()
        if status is not None:
            self.close()
            self.seen = f'it ended with {status}'
        return status == 0

    def close(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            self.poller.unregister(probe)
            probe.terminate(signal.SIGKILL, 0)
