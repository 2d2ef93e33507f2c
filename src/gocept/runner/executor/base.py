"""An executor: a child, its output, and the wait until it is ready."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, Self

import zope.interface

from gocept.runner.errors import (
    DeadlineExceeded,
    ExecutorError,
    ProcessFinishedWithError,
    TimeoutExpired,
)
from gocept.runner.events import child_ended, child_ready, child_started
from gocept.runner.executor.capture import Captures, Reader
from gocept.runner.executor.conditions.base import Check, Condition
from gocept.runner.interfaces import IExecutor
from gocept.runner.poller import Poller
from gocept.runner.process import Process
from gocept.runner.waits.deadline import Deadline

Command = str | Sequence[str]

_FIRST_PAUSE = 0.001  # seconds between two probes

_SLOWING = 200
"""Which part of the time since the start a pause is, so that no start takes
longer by more than half a per cent because of it."""


@zope.interface.implementer(IExecutor)
class SimpleExecutor:
    """See `IExecutor`."""

    condition: Condition | None = None

    def __init__(self, command: Command,
                 cwd: str | os.PathLike[str] | None = None,
                 shell: bool = False,
                 timeout: float = 3600,
                 sleep: float = 0.1,
                 stop_signal: int = signal.SIGTERM,
                 kill_signal: int = signal.SIGKILL,
                 expected_returncode: int | None = None,
                 envvars: Mapping[str, str] | None = None,
                 stdin: int | IO[Any] | None = subprocess.PIPE,
                 stdout: int | IO[Any] | None = subprocess.PIPE,
                 stderr: int | IO[Any] | None = None,
                 popen_kwargs: Mapping[str, Any] | None = None, *,
                 stop_timeout: float | None = None,
                 output_size: int = 2 ** 20,
                 log_file: str | os.PathLike[str] | None = None,
                 requires: Sequence['SimpleExecutor'] = (),
                 die_with_parent: bool | int = False,
                 name: str = '') -> None:
        self.process: Process | None = None
        self._lock = threading.RLock()  # around process and what belongs to it
        self._set_command(command)
        for each, value in (('timeout', timeout), ('sleep', sleep),
                            ('stop_timeout', stop_timeout or 0),
                            ('output_size', output_size)):
            if not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f'{each} must be a number >= 0, not '
                                 f'{value!r}')
        # Whatever is said there too is to be as it is said there.
        self._popen = dict(popen_kwargs or {})
        self._cwd = self._popen.pop('cwd', cwd)
        self._shell = self._popen.pop('shell', shell)
        self._streams = {
            each: self._popen.pop(each, stream) for each, stream in (
                ('stdin', stdin), ('stdout', stdout), ('stderr', stderr))}
        self._timeout = timeout
        self._sleep = sleep
        self._stop_signal = stop_signal
        self._stop_timeout = stop_timeout
        self._kill_signal = kill_signal
        self._expected_returncode = expected_returncode
        self._envvars = dict(envvars or {})
        self._output_size = output_size
        self._log_file = log_file
        self.requires = tuple(requires)
        self._die_with_parent = die_with_parent
        self.name = name or os.path.basename(self.command_parts[0])
        self._deadline: Deadline | None = None
        self._began = 0.0
        self._check: Check | None = None
        self._poller: Poller | None = None
        self._captures = Captures()
        self._terminated = False
        self._obstacle = ''

    def _set_command(self, command: Command) -> None:
        if self.condition is not None:
            command = (self.condition.replaced(command)
                       if isinstance(command, str)
                       else [self.condition.replaced(os.fspath(each))
                             for each in command])
        if isinstance(command, str):
            self.command: str = command
            self.command_parts: Sequence[str] = shlex.split(command)
        else:
            self.command = shlex.join(map(os.fspath, command))
            self.command_parts = command
        if not self.command_parts:
            raise ValueError(f'there is no program in {command!r}')

    @property
    def envvars(self) -> dict[str, str]:
        """See `IExecutor`."""
        return os.environ | self._envvars

    def start(self) -> Self:
        """See `IExecutor`."""
        self._set_timeout()
        if self._start():
            self._tell_ready()
        return self

    def ensure_running(self) -> Self:
        """See `IExecutor`."""
        if not self.is_up():
            for each in self.requires:
                each.ensure_running()
            if not self.is_up():  # still, after all that time
                self.start()
        return self

    def _start(self) -> bool:
        """Start the child; whether it did not run."""
        deadline = self._deadline
        if self.process is not None and not self.running():
            self.kill()  # what it has left
            self._deadline = deadline
        return self.process is None and self._launch()

    def _tell_ready(self) -> None:
        process = self.process  # another thread may have stopped it
        if process is not None:
            child_ready(process)

    def _launch(self) -> bool:
        self._began = time.monotonic()
        with self._lock, contextlib.ExitStack() as undo:
            if self.process is not None:  # another thread was faster
                return False
            undo.callback(self._clear)
            if self.condition is not None:
                self._check = self.condition.check()
            self._poller = Poller()
            self.process = Process(**self._options(self._check))
            undo.callback(self.process.terminate, signal.SIGKILL, 0)
            self._captures = Captures(
                self._popen.get('encoding'), self._popen.get('errors'))
            self._captures.take(
                self.process, self._output_size, self._log_file)
            self._poller.register(self.process)
            if self._check is not None:
                self._check.begin(
                    self.process, list(self._captures.values()),
                    self._poller, self._deadline or Deadline(self._timeout))
            self._captures.begin()
            undo.pop_all()
        return True

    def _options(self, check: Check | None) -> dict[str, Any]:
        return process_options(
            self.command if self._shell else self.command_parts,
            self._streams, self.envvars, self._envvars, self._popen, check,
        ) | {'shell': self._shell, 'cwd': self._cwd, 'adopt': True,
             'stop_signal': self._stop_signal,
             'stop_timeout': (self._timeout if self._stop_timeout is None
                              else self._stop_timeout),
             'kill_signal': self._kill_signal, 'name': self.name,
             'die_with_parent': self._die_with_parent,
             'on_start': child_started, 'on_end': child_ended}

    def _set_timeout(self) -> None:
        """Begin the time that a start, or a stop, may take."""
        self._deadline = Deadline(self._timeout)

    def check_timeout(self) -> bool:
        """See `IExecutor`."""
        return self._deadline is None or not self._deadline.passed

    def wait_for(self, wait_for: Callable[[], Any]) -> Self:
        """See `IExecutor`."""
        began = time.monotonic()
        process, deadline = self.process, self._deadline
        try:
            while not wait_for():
                deadline = self._deadline or deadline
                self._require(process)
                if deadline is not None and deadline.passed:
                    raise TimeoutExpired(self, self._timeout)
                pause = (time.monotonic() - began) / _SLOWING
                self._pause(min(max(pause, _FIRST_PAUSE),
                                max(self._sleep, _FIRST_PAUSE)))
        except BaseException as error:
            if isinstance(error, Exception):
                self._require(process)
            if process is not None:
                self._kill_now(process, error)
            raise
        return self

    def _require(self, process: Process | None) -> None:
        if self.process is not process:
            raise ExecutorError(self, 'was stopped meanwhile')

    def _kill_now(self, process: Process,
                  error: BaseException | None = None) -> None:
        """Kill it, as nobody has time to wait; `error` is why."""
        self._claim()
        try:
            process.terminate(self._kill_signal, 0)
        except DeadlineExceeded as failure:  # so it can be stopped once more
            if error is not None:
                error.add_note(str(failure))
        else:
            self._clear(process)

    def _pause(self, seconds: float) -> None:
        if self._deadline is not None:
            seconds = min(seconds, self._deadline.left())
        if self._poller is not None:
            self._poller.poll(seconds)
        else:
            with Poller() as poller:
                poller.poll(seconds)

    def running(self) -> bool:
        """See `IExecutor`."""
        process = self.process  # another thread may stop it
        return process is not None and process.poll() is None

    def is_up(self) -> bool:
        """See `IExecutor`."""
        self._claim()
        process = self.process
        return self.running() or (
            process is not None and process.returncode == 0
            and process.has_left)

    def stop(self, stop_signal: int | None = None,
             expected_returncode: int | None = None) -> Self:
        """See `IExecutor`."""
        process = self.process
        if process is None:
            return self
        if stop_signal is None:
            stop_signal = self._stop_signal
        try:
            self._end(process, stop_signal)
        except DeadlineExceeded as error:
            raise ExecutorError(self, f'cannot be stopped: {error}') from error
        status = process.returncode
        expected = next((each for each in (
            expected_returncode, self._expected_returncode)
            if each is not None), -stop_signal)
        try:
            if status and status != expected and not process.killed:
                raise ProcessFinishedWithError(self, status)
        finally:
            self._clear(process)
        return self

    def kill(self, wait: bool = True, sig: int | None = None) -> Self:
        """See `IExecutor`."""
        process = self.process
        if sig is None:
            sig = self._kill_signal
        if process is None:
            return self
        try:
            if wait:
                self._end(process, sig)
            else:
                self._claim()
                process.signal_all(sig)
                if self._claim():  # as it has ended meanwhile
                    process.signal_group(sig)
        except DeadlineExceeded as error:
            raise ExecutorError(self, f'cannot be killed: {error}') from error
        self._clear(process)
        return self

    def _end(self, process: Process, signum: int) -> None:
        if self._claim() or not self._terminated:
            process.terminate(signum)
            if self._claim():  # it has become one meanwhile
                process.terminate(signum)

    def _claim(self) -> bool:
        """Know a daemon that the child has become, by what it serves.

        It may have a session of its own, and no mark any more. Whether there
        is one that was not known.
        """
        process = self.process
        return (self.condition is not None and process is not None
                and process.is_ours and process.poll() is not None
                and process.claim(self.condition.servers()))

    def _clear(self, process: Process | None = None) -> None:
        """Forget the process, unless another one has taken its place."""
        with self._lock:
            if process is not self.process and process is not None:
                return
            process, self.process = self.process, None
            captures, self._captures = self._captures, Captures()
            self._terminated = False
            self._deadline = None
            self._end_waiting()
        captures.close()
        if process is not None:
            for channel in process.channels():
                channel.close()

    def _end_waiting(self) -> None:
        """Let go of what only the start needs."""
        check, self._check = self._check, None
        poller, self._poller = self._poller, None
        for each in filter(None, (check, poller)):
            each.close()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[Self]:
        """See `IExecutor`."""
        ran = self.is_up()
        if ran:
            self.stop()
        try:
            yield self
        finally:
            if ran:
                self.start()

    def output(self) -> Reader | None:
        """See `IExecutor`."""
        return self._captures.readers.get('stdout')

    def err_output(self) -> Reader | None:
        """See `IExecutor`."""
        return self._captures.readers.get('stderr')

    @property
    def dropped(self) -> int:
        """See `IExecutor`."""
        return self._captures.dropped

    def situation(self) -> str:
        """What an error says beside its reason."""
        parts = []
        if self._obstacle:
            parts.append(self._obstacle)
        if self._check is not None and self.process is not None:
            parts.append(f'waited {time.monotonic() - self._began:.2f} s for '
                         f'{self._check.awaited}')
            if self._check.seen:
                parts.append(f'seen last: {self._check.seen}')
        if self.process is not None and self.process.returncode is not None:
            parts.append(f'its status is {self.process.returncode}')
        parts += self._captures.tails()
        return ''.join(f'; {part}' for part in parts)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __del__(self) -> None:
        # When the interpreter exits, what is left is ended by its hook.
        process = getattr(self, 'process', None)
        if not sys.is_finalizing():
            if process is not None and process.is_ours:
                self._kill_now(process)
            elif process is not None:
                self._clear()

    def __str__(self) -> str:
        return f'<{type(self).__name__} {self.command!r}>'

    def __repr__(self) -> str:
        state = (f'running as {self.process.pid}'
                 if self.process is not None and self.process.poll() is None
                 else 'not running')
        return f'<{type(self).__name__} {self.command!r}: {state}>'


_STREAMS: dict[Any, str] = {
    subprocess.PIPE: 'pipe', subprocess.DEVNULL: 'null',
    subprocess.STDOUT: 'merge', None: 'inherit'}

# What a process has to know of the keywords of Popen.
_GROUP = ('process_group', 'start_new_session')
_KNOWN = ('user', 'group', 'extra_groups', *_GROUP)


def process_options(command: str | Sequence[str], streams: Mapping[str, Any],
                    envvars: Mapping[str, str], added: Iterable[str],
                    popen_kwargs: Mapping[str, Any], check: Check | None,
                    ) -> dict[str, Any]:
    """The keywords of a process that depend on what the caller has said.

    `envvars` is the environment, and `added` are the names in it that were
    added to ours. `popen_kwargs` come before all else.
    """
    popen = dict(popen_kwargs)
    options = {key: popen.pop(key) for key in _KNOWN if key in popen}
    environment = popen.pop('env', envvars)
    # What is never inherited has to be said once more.
    extra = {name: environment[name] for name in added if name in environment}
    pass_fds = tuple(popen.pop('pass_fds', ()))
    if check is not None:
        extra |= check.variables
        pass_fds += tuple(check.pass_fds)
        fd = check.variables.get('NOTIFY_FD', '{notify_fd}')
        command = (command.replace('{notify_fd}', fd)
                   if isinstance(command, str)
                   else [os.fspath(each).replace('{notify_fd}', fd)
                         for each in command])
    return options | {
        name: _STREAMS.get(stream, stream) for name, stream in streams.items()
    } | {
        'command': command, 'env': environment, 'extra_env': extra,
        'pass_fds': pass_fds, 'popen_kwargs': popen,
        'setsid': not any(each in options for each in _GROUP)}
