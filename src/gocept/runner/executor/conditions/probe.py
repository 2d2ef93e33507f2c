"""The condition that a program, the probe, finds the child ready."""

import contextlib
import copy
import shlex
import signal
from collections.abc import Sequence
from typing import Any, Self

from gocept.runner.channel import PipeChannel
from gocept.runner.errors import EndpointClosedException
from gocept.runner.executor.conditions.base import (
    Check,
    Condition,
    Pauses,
    Setting,
)
from gocept.runner.process import Process
from gocept.runner.process.launch import checked_arguments

_TAIL = 2 ** 10  # bytes at the end of the output that are in a message


class exits_zero(Condition):
    """That a command ends with 0; the command is run until it does."""

    _options: dict[str, Any] = {}
    """Where and how it is run: as the child of the executor."""

    def __init__(self, command: str | Sequence[str]) -> None:
        self.command = checked_arguments('exits_zero', (
            shlex.split(command) if isinstance(command, str) else command))
        if not self.command:
            raise ValueError('a probe needs a command')

    def for_child(self, setting: Setting) -> Self:
        it = copy.copy(self)
        it.command = [setting.replaced(each) for each in self.command]
        it._options = {'cwd': setting.cwd, 'env': setting.env}
        return it

    def check(self) -> Check:
        return _ExitCheck(self.command, self._options)


class _ExitCheck(Check):

    def __init__(self, command: Sequence[str],
                 options: dict[str, Any]) -> None:
        self._command = command
        self._options = options
        self._pauses = Pauses()
        self._probe: Process | None = None
        self._said = b''
        self.awaited = f'{shlex.join(command)!r} to end with 0'
        self.seen = 'it runs still'
        self._runs_first = True

    @property
    def looking(self) -> bool:  # type: ignore[override]
        return self._probe is not None

    def holds(self) -> bool:
        if self._probe is None:
            if not self._pauses.over:
                return False
            self._probe = Process(
                self._command, stdin='null', stdout='pipe', stderr='merge',
                setsid=True, adopt=True, **self._options)
            self._said = b''
            self.poller.register(self._probe)
            for channel in self._probe.channels():
                self.poller.register(channel, self._hear)
        probe = self._probe
        status = probe.poll()
        if status is not None:
            self.close()
            self._pauses.begin()
            self._runs_first = False
            self._tell(f'it ended with {probe.status_text}')
        return status == 0

    def _hear(self, data: bytes, *channel: PipeChannel) -> None:
        self._said = (self._said + data)[-_TAIL:]
        if self._runs_first:  # else the end of the one before tells more
            self._tell('it runs still')

    def _tell(self, state: str) -> None:
        said = self._said.decode('utf-8', 'backslashreplace').strip()
        self.seen = state + (f', and said {said!r}' if said else '')

    def close(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            self.poller.unregister(probe)
            probe.terminate(signal.SIGKILL, 0)
            for channel in probe.channels():
                with contextlib.suppress(EndpointClosedException):
                    while data := channel.read():
                        self._hear(data)
            probe.close_channels()
