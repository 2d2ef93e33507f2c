"""An executor: a child, its output, and the wait until it is ready."""

import contextlib
import functools
import os
import shlex
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import zope.interface

from gocept.runner.errors import (
    AlreadyRunning,
    DeadlineExceeded,
    ExecutorError,
    ProcessExistsException,
    ProcessFinishedWithError,
    TimeoutExpired,
)
from gocept.runner.executor.conditions.base import (
    Check,
    Condition,
    Setting,
)
from gocept.runner.executor.facade import Popen
from gocept.runner.executor.reader import Reader
from gocept.runner.executor.requirements import in_levels
from gocept.runner.executor.run import Run
from gocept.runner.interfaces import IExecutor
from gocept.runner.logs import Log
from gocept.runner.poller import Poller
from gocept.runner.poller.thread import hand_over
from gocept.runner.process import Process
from gocept.runner.process.base import BaseProcess, Kernel, checked_kernel
from gocept.runner.process.keywords import POPEN, STREAMS, Keywords
from gocept.runner.process.launch import (
    Command,
    Redirection,
    checked_arguments,
    checked_variables,
    inherited,
)
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.forks import Lock
from gocept.runner.waits.threads import refuse_to_wait

log = Log('gocept.runner.executor')

_FIRST_PAUSE = 0.001  # seconds between two probes

_PATIENCE = 5.0
"""Seconds until the log says what is waited for."""

_SLOWING = 200
"""A pause is so small a part of the time since the start. So pauses make no
start longer by more than half a per cent."""


_awaited: 'dict[threading.Thread, SimpleExecutor]' = {}
"""The threads that wait until another thread has started an executor."""


@zope.interface.implementer(IExecutor)
class SimpleExecutor:
    """See `IExecutor`."""

    condition: Condition | None = None

    _run: Run | None = None

    def __init__(self, command: Command,
                 cwd: str | os.PathLike[str] | None = None,
                 shell: bool = False,
                 timeout: float | None = 3600,
                 sleep: float = 0.1,
                 stop_signal: int = signal.SIGTERM,
                 kill_signal: int = signal.SIGKILL,
                 expected_returncode: int | None = None,
                 envvars: Mapping[str, str] | None = None,
                 stdin: Redirection = subprocess.PIPE,
                 stdout: Redirection = subprocess.PIPE,
                 stderr: Redirection = None,
                 popen_kwargs: Keywords | None = None, *,
                 stop_timeout: float | None = None,
                 output_size: int = 2 ** 20,
                 log_file: str | os.PathLike[str] | None = None,
                 requires: Sequence['SimpleExecutor'] = (),
                 die_with_parent: bool | int = False,
                 name: str = '',
                 kernel: Kernel | None = None) -> None:
        self.kernel = checked_kernel(kernel)
        self._set_command(command)
        if timeout is False:  # as users of mirakuru may say
            timeout = None
        for each, value in (('timeout', timeout or 0), ('sleep', sleep),
                            ('stop_timeout', stop_timeout or 0),
                            ('output_size', output_size)):
            if not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f'{each} must be a number >= 0, not '
                                 f'{value!r}')
        self._cwd = cwd
        self._shell = shell
        self._stdin = stdin
        self._stdout = stdout
        self._stderr = stderr
        self._popen = dict(popen_kwargs or {})
        if self._popen.pop('preexec_fn', None) is not None:
            warnings.warn(
                'popen_kwargs has a preexec_fn, which is ignored: it may hang '
                'where there are threads; the child has a session of its own '
                'without it', stacklevel=2)
        self._timeout = timeout
        self._sleep = sleep
        self._stop_signal = stop_signal
        self._stop_timeout = stop_timeout
        self._kill_signal = kill_signal
        self._expected_returncode = expected_returncode
        for each, variables in (('envvars', envvars),
                                ('env', self._popen.get('env'))):
            checked_variables(each, variables or {})
        self._envvars = dict(envvars or {})
        self._output_size = output_size
        self._log_file = log_file
        self.requires = tuple(requires)
        self._die_with_parent = die_with_parent
        # The first word for a shell may be anything, such as "exec".
        self.name = name or os.path.basename(
            'sh' if shell else next(iter(self.command_parts), ''))
        if kernel is not None:
            if self._replaced('{port}') != '{port}':
                raise ValueError(
                    f'the executor {self.name!r} lives in a kernel, so it '
                    'needs a fixed port, not 0: with another one, the next '
                    'program would not find it')
            kernel.check_process(**self._options_in_kernel(None))
        self._deadline: Deadline | None = None
        self._changing = threading.Condition(Lock())
        # The lock of `_changing` guards `_run` and these:
        self._starter: threading.Thread | None = None
        """The thread that starts a child now."""
        self._claimant: threading.Thread | None = None
        """The thread in which `ensure_running` starts the child."""

    def _set_command(self, command: Command) -> None:
        self._given = command
        if self.condition is not None:
            command = _replaced(command, self.condition.replaced)
        if isinstance(command, str):
            self.command: str = command
            self.command_parts: Sequence[str | os.PathLike[str]] = (
                shlex.split(command))
        else:
            self.command = shlex.join(os.fspath(each) for each in command)
            self.command_parts = command
        checked_arguments('command', self.command_parts)
        self._made = self.command, [*self.command_parts]

    def _refresh(self) -> None:
        """Take over attributes that were changed, before a start."""
        command, parts = self._made
        if [*self.command_parts] != parts:
            if self.command == command:
                self._set_command(self.command_parts)
        elif self.command != command:
            self._set_command(self.command)
        else:
            self._set_command(self._given)  # for the port of now

    def _replaced(self, text: str) -> str:
        """With the port that the condition has chosen."""
        return (text if self.condition is None
                else self.condition.replaced(text))

    @property
    def child(self) -> BaseProcess | None:
        """See `IExecutor`."""
        run = self._run
        return None if run is None else run.child

    @property
    def process(self) -> Popen | None:
        """See `IExecutor`."""
        run = self._run
        return None if run is None else run.popen

    @property
    def envvars(self) -> dict[str, str]:
        """See `IExecutor`."""
        return inherited(self._popen.get('user')) | self._added_variables

    @property
    def _added_variables(self) -> dict[str, str]:
        return {name: self._replaced(value)
                for name, value in self._envvars.items()}

    @property
    def _popen_kwargs(self) -> dict[str, Any]:
        """The keywords of Popen, as far as it starts the child.

        Users of mirakuru look at it, and override it.
        """
        env = self._popen.get('env')
        text = ({} if {'text', 'universal_newlines'} & self._popen.keys()
                else {'universal_newlines': True})
        return {**text, **self._popen} | {
            key: value for key, value, default in (
                ('cwd', self._cwd, None), ('shell', self._shell, False),
                ('stdin', self._stdin, subprocess.PIPE),
                ('stdout', self._stdout, subprocess.PIPE),
                ('stderr', self._stderr, None))
            if key not in self._popen or value not in (default, None)} | {
            'env': (self.envvars if env is None
                    else {**env, **self._added_variables})}

    def start(self) -> Self:
        """See `IExecutor`."""
        self._set_timeout()
        self._start()
        self._settle(self._run, True)
        return self

    def ensure_running(self) -> Self:
        """See `IExecutor`."""
        if not self._is_ready():
            in_levels([self])  # an error if they require each other
            for each in self.requires:
                each.ensure_running()
            while self._claim():
                try:
                    if not self.is_up():
                        self.start()
                    break
                except AlreadyRunning:
                    if not self.is_up():
                        raise  # else another thread has called `start`
                finally:
                    with self._changing:
                        self._claimant = None
                        self._changing.notify_all()
        return self

    def _is_ready(self) -> bool:
        run = self._run
        return run is not None and run.is_settled and self.is_up()

    def _claim(self) -> bool:
        """Whether it is up to this thread to start the child.

        Not if the child is ready. Waits for a thread that starts the child.
        """
        me = threading.current_thread()
        # It may notice an end, which is told without the lock.
        while not self._is_ready():
            with self._changing:
                if me in self._starters():
                    return False  # a subscriber has called back
                if not self._starters():
                    self._claimant = me
                    return True
                self._await_starters()
        return False

    def _starters(self) -> set[threading.Thread]:
        """The threads that start the child, or wait until it is ready."""
        run = self._run
        threads = (self._claimant, self._starter,
                   None if run is None or run.is_settled else run.starter)
        # In a forked child, those of the parent are not alive.
        return {each for each in threads if each is not None
                and each.is_alive()}

    def _await_starters(self) -> None:
        """Wait for news of the threads that start it; with `_changing` held.

        ExecutorError if one of them waits for an executor that this thread
        starts.
        """
        refuse_to_wait(f'ensure_running() of {self}')
        me = threading.current_thread()
        _awaited[me] = self
        try:
            pending, seen = [self], {self}
            for each in pending:  # it grows
                for thread in each._starters():
                    other = _awaited.get(thread)
                    if thread is me and each is not self:
                        raise ExecutorError(
                            self, f'is being started by a thread that waits '
                            f'for {each}, which this thread starts')
                    if other is not None and other not in seen:
                        seen.add(other)
                        pending.append(other)
            self._changing.wait()
        finally:
            del _awaited[me]

    def _join(self, run: Run | None) -> bool:
        """Wait for the thread that starts the child, if it is another one."""
        if run is None or run.starter is threading.current_thread():
            return False
        with self._changing:
            while (not run.is_settled and self._run is run
                   and run.starter.is_alive()):
                self._await_starters()
        self._require(run)
        return run.is_settled

    def _settle(self, run: Run | None, ready: bool) -> None:
        """The start of a child is over; tells whether the child is ready."""
        if run is not None:
            run.settle(ready)
            with self._changing:
                self._changing.notify_all()
            run.news.tell()

    def _start(self) -> None:
        """Start the child, unless it runs, or another thread starts it.

        Subscribers of the start are called meanwhile, so no lock is held.
        """
        self._refresh()
        deadline = self._deadline
        if self.child is not None and not self.running():
            self.kill()  # what it has left
            self._deadline = deadline
        me = threading.current_thread()
        with self._changing:
            if self._starter is me:
                raise RuntimeError(f'{self} is just being started')
            while self._starter is not None and self._starter.is_alive():
                self._await_starters()
            if self._run is not None:
                return
            self._starter = me
        run = None
        try:
            if not self.command_parts:
                raise ValueError(f'{self} has no command: there is nothing '
                                 'to start')
            run = Run(self)
        except OSError as error:
            self._name_in(error)
            raise
        finally:
            with self._changing:
                self._run, self._starter = run, None
                self._changing.notify_all()

    @property
    def _setting(self) -> Setting:
        """What a condition gets to know of the start."""
        popen = self._popen_kwargs
        return Setting(
            [self.command] if popen['shell'] else [
                os.fspath(each) for each in self.command_parts],
            bool(popen['shell']), popen['cwd'], popen['env'],
            # Not a method of ours: what the process refers to must not keep
            # an executor that is forgotten.
            str if self.condition is None else self.condition.replaced)

    def _options(self, check: Check | None) -> dict[str, Any]:
        """The keywords of a process that do what those of Popen do."""
        popen = self._popen_kwargs
        options = {'pass_fds': ()} | {
            key: popen[key] for key in _KNOWN if key in popen}
        extra: Mapping[str, str] = {}
        command = self.command if popen['shell'] else self.command_parts
        if check is not None:
            extra = check.variables
            options['pass_fds'] = (*options['pass_fds'], *check.pass_fds)
            fd = check.variables.get('NOTIFY_FD', '{notify_fd}')
            command = _replaced(
                command, lambda part: part.replace('{notify_fd}', fd))
        for name in 'stdin', 'stdout', 'stderr':
            options[name] = _STREAMS.get(options[name], options[name])
        return options | {
            'command': command, 'extra_env': extra, 'adopt': True,
            'setsid': not options.keys() & {
                'process_group', 'start_new_session'},
            'die_with_parent': self._die_with_parent,
            'popen_kwargs': {key: value for key, value in popen.items()
                             if key not in _KNOWN | _OF_TEXT},
            'stop_signal': self._stop_signal,
            # At our exit, a time that was given is another one.
            **({} if self._stop_timeout is None else {
                'stop_timeout': self._stop_timeout}),
            'kill_signal': self._kill_signal, 'name': self.name}

    def _options_in_kernel(self, check: Check | None) -> dict[str, Any]:
        options = self._options(check)
        options['adopt'] = False
        if check is not None:  # descriptors of ours cannot be handed on
            del options['pass_fds']
            options['extra_env'] = {
                name: value for name, value in check.variables.items()
                if name != 'NOTIFY_FD'}
        for stream in 'stdin', 'stdout', 'stderr':
            if options[stream] == 'inherit':
                options[stream] = 'null' if stream == 'stdin' else 'pipe'
        return options

    def open(self, check: Check | None, **watch: Any) -> BaseProcess:
        """Start the child, or find the one that lives in the kernel."""
        if self.kernel is None:
            return Process(**self._options(check), **watch)
        for ended in self.kernel.ended_processes(self.name, name=self.name):
            log.warning('%r, without us', ended)
            ended.abandon_channels()
        try:
            return self.kernel.open_process(
                self.name, on_change='refuse',
                **self._options_in_kernel(check), **watch)
        except ProcessExistsException as error:
            raise ExecutorError(self, f'cannot be started: {error}') from error

    def _lives(self) -> bool:
        """Whether its child lives in a kernel, and may be ready."""
        return (self.kernel is not None
                and self.kernel.has_process(self.name))

    def _known_run(self) -> Run | None:
        """The run, also that of a child which others have started."""
        if self._run is None and self._lives():
            self._start()
            self._settle(self._run, False)
        return self._run

    def leave(self) -> None:
        """See `IExecutor`."""
        run = self._run
        if run is not None and run.child.in_kernel:
            run.is_ending = True
            self._forget(run)

    def _set_timeout(self) -> None:
        """Begin the time that a start may take."""
        self._deadline = Deadline(self._timeout)

    def check_timeout(self) -> bool:
        """See `IExecutor`."""
        return self._deadline is None or not self._deadline.passed

    def wait_for(self, wait_for: Callable[[], object]) -> Self:
        """See `IExecutor`."""
        refuse_to_wait(f'The start of {self}')
        began = time.monotonic()
        run = self._run
        patience = Deadline(_PATIENCE)
        try:
            while not wait_for():
                if patience.passed:  # after 5, 10, 20 ... seconds
                    patience = Deadline(time.monotonic() - began)
                    log.warning('%s: still waiting%s', self, '' if run is None
                                else '; '.join(['', *run.looks()]))
                self._require(run)
                if not self.check_timeout():
                    raise TimeoutExpired(self, self._timeout)
                self._pause((time.monotonic() - began) / _SLOWING)
        except BaseException as error:
            if isinstance(error, Exception):
                self._require(run)
            if isinstance(error, ExecutorError) and error.executor is self:
                self._explained(error)
            if run is not None:
                run.is_ending = True
                self._settle(run, False)
                try:
                    # An interruption ends nothing that lives in a kernel.
                    if not run.child.in_kernel or isinstance(
                            error, Exception):
                        run.child.terminate(self._kill_signal, 0)
                except DeadlineExceeded as failure:  # `stop` may try again
                    error.add_note(str(failure))
                else:
                    self._forget(run)
                    run.news.settle()
            raise
        return self

    def _require(self, run: Run | None) -> None:
        """Raise an error unless `run` is still the current one."""
        if self._run is not run:
            raise ExecutorError(self, 'was stopped meanwhile')

    def _pause(self, seconds: float) -> None:
        seconds = max(min(seconds, self._sleep), _FIRST_PAUSE)
        if self._deadline is not None:
            seconds = min(seconds, self._deadline.left())
        poller = None if self._run is None else self._run.poller
        if poller is not None:
            poller.poll(seconds)
        else:
            with Poller() as poller:
                poller.poll(seconds)

    def running(self) -> bool:
        """See `IExecutor`."""
        process = self.child  # another thread may stop it meanwhile
        return process is not None and process.poll() is None

    def is_up(self) -> bool:
        """See `IExecutor`."""
        process = self.child
        return self.running() or (
            process is not None
            and (process.returncode == 0 or process.lost)
            and process.has_left)

    def stop(self, stop_signal: int | None = None,
             expected_returncode: int | None = None) -> Self:
        """See `IExecutor`."""
        run = self._known_run()
        if run is None:
            return self
        run.is_ending = True
        if stop_signal is None:
            stop_signal = self._stop_signal
        self._end(run, stop_signal, 'stopped')
        status = run.child.returncode
        expected = next(each for each in (
            expected_returncode, self._expected_returncode, -stop_signal)
            if each is not None)
        try:
            if (status and status != expected
                    and not (run.child.killed or run.child.lost)):
                raise self._explained(ProcessFinishedWithError(self, status))
        finally:
            self._forget(run)
            run.news.settle()
        return self

    def kill(self, wait: bool = True, sig: int | None = None) -> Self:
        """See `IExecutor`."""
        run = self._known_run()
        if run is None:
            return self
        run.is_ending = True
        sig = self._kill_signal if sig is None else sig
        if wait:
            self._end(run, sig, 'killed')
        else:
            run.child.signal_all(sig)
        self._forget(run)
        if wait:
            run.news.settle()
        return self

    def expect_end(self) -> None:
        """Take the end of the child for wanted, whatever its status is."""
        if self._run is not None:
            self._run.is_ending = True

    def _end(self, run: Run, signum: int, how: str) -> None:
        try:
            run.child.terminate(signum)
        except DeadlineExceeded as error:
            raise self._explained(ExecutorError(
                self, f'cannot be {how}: {error}')) from error

    def _forget(self, run: Run) -> None:
        """Close the run, unless another one has taken its place."""
        with self._changing:
            if self._run is not run:
                return
            self._run = self._deadline = None
        self._settle(run, False)
        run.close()

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
        run = self._run
        return None if run is None else run.readers.get('stdout')

    def err_output(self) -> Reader | None:
        """See `IExecutor`."""
        run = self._run
        return None if run is None else run.readers.get('stderr')

    @property
    def dropped(self) -> int:
        """See `IExecutor`."""
        run = self._run
        return 0 if run is None else sum(
            each.dropped for each in run.captures.values())

    def _explained(self, error: ExecutorError, obstacle: str = '',
                   ) -> ExecutorError:
        """Add to an error of this executor what is known of the child."""
        run = self._run
        parts = [obstacle]
        if run is not None:
            if run.check is not None:
                if (isinstance(error, TimeoutExpired)
                        or '{port}' in self.command):
                    parts.append(self._port_hint())
                parts += run.looks()
            parts += [run.status, *run.tails()]
        error.situation = error.situation or ''.join(
            f'; {part}' for part in parts if part)
        return error

    def _port_hint(self) -> str:
        """What may be wrong with the port that the child uses."""
        port = self._replaced('{port}')
        where = [self.command, *self._added_variables.values()]
        if port == '{port}':
            return ('' if port not in self.command else
                    '{port} in the command is replaced for port 0 only')
        return ('' if any(port in each for each in where) else
                f'neither the command nor envvars have {{port}}, so the child '
                f'may not know that its port is {port}')

    def _name_in(self, error: OSError) -> None:
        """Have the error say what could not be started."""
        if error.strerror:
            cwd = self._popen_kwargs['cwd']
            what = ('directory' if cwd is not None
                    and str(error.filename) == str(cwd) else 'program')
            error.strerror += f' (the {what} of {self.name!r})'

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        if self.kernel is None:
            self.stop()
        else:
            self.leave()

    def __del__(self) -> None:
        # At the exit of the interpreter, the exit hook ends the child.
        if self._run is not None:
            hand_over(functools.partial(self._run.abandon, self._kill_signal))

    def __str__(self) -> str:
        return f'<{type(self).__name__} {self.command!r}>'

    def __repr__(self) -> str:
        process = self.child
        state = (f'running as {process.pid}'
                 if process is not None and process.poll() is None
                 else 'not running')
        return f'{str(self)[:-1]}: {state}>'


def _replaced(command: Command, replace: Callable[[str], str]) -> Command:
    """The command, after a replacement in each of its parts."""
    if isinstance(command, str):
        return replace(command)
    return [replace(os.fspath(part)) for part in command]


_STREAMS: Mapping[Redirection, str] = {
    popen: process for process, popen in STREAMS.items()}

_KNOWN = {'shell', 'cwd', 'stdin', 'stdout', 'stderr', *POPEN}
"""The keywords of Popen that are keywords of `Process`, too."""

_OF_TEXT = {'universal_newlines', 'text', 'encoding', 'errors', 'bufsize'}
"""The keywords of Popen that make files of pipes, which we do ourselves."""
