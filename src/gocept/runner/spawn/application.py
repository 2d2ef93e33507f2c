"""What is configured for an application, checked."""

import contextlib
import dataclasses
import functools
import os
import shlex
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from gocept.runner.channel import (
    Channel,
    PipeChannel,
    TransactionalChannel,
)
from gocept.runner.channel.transactional import (
    REDELIVERIES,
    checked_redeliveries,
)
from gocept.runner.process import Process, keywords, unixsocket
from gocept.runner.process.base import (
    ON_CHANGE,
    BaseProcess,
    Kernel,
    checked_kernel,
)
from gocept.runner.process.keywords import Keywords
from gocept.runner.process.launch import Launch, checked_arguments

_LONGEST_DELAY = 60.0  # of a restart, in seconds

_MOST_DOUBLINGS = 64  # of a delay, so that there is a float for it

_LEAST = {'start_timeout': 0, 'restart_delay': 0, 'restart_limit': 0,
          'stop_timeout': 0, 'limit': 1, 'high_water': 0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Application:
    """See `IRunner.add`."""

    command: str | Sequence[str]
    type: str = 'stdio'
    socket: str | os.PathLike[str] | None = None
    start_timeout: float = 30.0
    restart: str = 'never'
    restart_delay: float = 0.1
    restart_limit: int = 5
    transactional: bool = False
    redeliveries: int | None = REDELIVERIES
    kernel: Kernel | None = None
    on_change: str = 'keep'
    home: str = ''
    """Where relative paths start; '' for our directory at the start."""
    options: Keywords = dataclasses.field(default_factory=dict)
    """The keywords of the process and of its channels."""

    @classmethod
    def from_config(cls, config: Keywords) -> Self:
        """Sort the keywords that a user has written, and check them."""
        if not isinstance(config, Mapping):
            raise TypeError(f'its keywords are a dictionary, not {config!r}')
        if 'command' not in config:
            raise ValueError('there is no command')
        for key in keywords.WATCH & config.keys():
            raise TypeError(f'{key!r} is no keyword of an application')
        options = dict(config)
        own = (cls.__dataclass_fields__.keys() & config.keys()
               - {'options', 'home'})
        self = cls(**{key: options.pop(key) for key in own}, options=options)
        checked_kernel(self.kernel)
        if 'on_change' in own and self.kernel is None:
            raise ValueError('on_change has a meaning only with a kernel')
        if 'redeliveries' in own and not self.transactional:
            raise ValueError(
                'redeliveries has a meaning only if transactional is true')
        self._check()
        return self

    def _check(self) -> None:
        for name, choice, choices in (
                ('type', self.type, ('stdio', 'socket')),
                ('restart', self.restart, ('never', 'on-failure', 'always')),
                ('on_change', self.on_change, ON_CHANGE)):
            if choice not in choices:
                raise ValueError(
                    f'{name} must be one of {", ".join(map(repr, choices))}, '
                    f'not {choice!r}')
        if self.type != 'socket' and self.socket is not None:
            raise ValueError("socket=PATH needs type='socket'")
        if self.socket is not None and not os.fspath(self.socket):
            raise ValueError("socket is a path, not ''")
        values = {**vars(self), **self.options}
        for name, least in _LEAST.items():
            value = values.get(name, least)
            if not isinstance(value, int | float) or not value >= least:
                raise ValueError(
                    f'{name} must be a number >= {least}, not {value!r}')
        checked_redeliveries(self.redeliveries)
        # What cannot be started or ended is refused now, and not later.
        PipeChannel(**self.channel).close()
        for name in ('stop_signal', 'kill_signal'):
            signal.Signals(self.options.get(name, signal.SIGTERM))
        elsewhere = keywords.END | keywords.CHANNEL
        Launch(self.command, **{key: value for key, value
                                in self.options.items()
                                if key not in elsewhere})
        if self.kernel is not None:
            self.kernel.check_process(self.command, **self.keywords(()))

    def check_socket(self) -> None:
        """ValueError if it cannot be started before `socket` is known."""
        if self.type == 'socket' and self.socket is None:
            raise ValueError("type='socket' needs socket=PATH, in the "
                             'configuration or as a keyword of the start')

    @property
    def program(self) -> str:
        """What is run."""
        if self.options.get('shell'):
            return '/bin/sh'
        return os.fspath(shlex.split(self.command)[0] if isinstance(
            self.command, str) else self.command[0])

    @property
    def channel(self) -> Keywords:
        """The keywords of its channels."""
        return {key: self.options[key]
                for key in keywords.CHANNEL & self.options.keys()}

    def handed_out(self, channel: Channel) -> Channel:
        """What users get in place of a channel of the process."""
        if not self.transactional:
            return channel
        return TransactionalChannel(channel, redeliveries=self.redeliveries)

    def with_arguments(self, args: Sequence[str]) -> Self:
        """This application, but called with more arguments."""
        if isinstance(args, str | bytes):
            raise TypeError(f'with_args is a list of arguments, not {args!r}')
        args = checked_arguments('with_args', args)
        if self.options.get('shell'):
            return dataclasses.replace(
                self, command=f'{self.command} {shlex.join(args)}')
        command = (shlex.split(self.command) if isinstance(self.command, str)
                   else self.command)
        return dataclasses.replace(self, command=[*command, *args])

    def seen_from(self, home: str) -> Self:
        """This application, but relative paths start in the directory `home`.

        If that is ours, nothing is changed: it may not be reachable by name.
        """
        with contextlib.suppress(FileNotFoundError):  # ours is gone
            if home == os.getcwd():
                return self
        paths = {'cwd': self.options.get('cwd') or '', **{
            name: path for name, path in self.options.items()
            if name in ('stdin', 'stdout', 'stderr') and (
                isinstance(path, os.PathLike)
                or (isinstance(path, str) and '/' in path))}}
        return dataclasses.replace(self, home=home, options={
            **self.options, **{name: os.path.join(home, path)
                               for name, path in paths.items()}})

    def keywords(self, extra_paths: Iterable[str]) -> dict[str, Any]:
        """The keywords of its process, and of the channels of that."""
        options = dict(self.options)
        if extra_paths:
            extra_env = dict(options.get('extra_env') or {})
            env = options.get('env')
            path = extra_env.get('PATH') or (
                os.environ if env is None else env).get('PATH', os.defpath)
            # An empty one would be the current directory.
            extra_env['PATH'] = os.pathsep.join(
                filter(None, [path, *extra_paths]))
            options['extra_env'] = extra_env
        if self.type == 'stdio':
            options = {'stdin': 'pipe', 'stdout': 'pipe', **options}
        elif self._is_captured:
            options = {'stderr': 'merge', **options, 'stdout': 'pipe'}
        if self._is_stderr_captured:
            options['stderr'] = 'pipe'
        return {'stdin': 'null', **options}

    @property
    def _is_captured(self) -> bool:
        return self.type == 'socket' and 'stdout' not in self.options

    @property
    def _is_stderr_captured(self) -> bool:
        """Whether it would be ours, which nobody in a kernel can have."""
        return (self.kernel is not None and not self._is_captured
                and self.options.get('stderr', 'inherit') == 'inherit')

    def captured(self, process: BaseProcess) -> Channel | None:
        """The channel of which each line is logged, and not handed out."""
        return (process.channel if self._is_captured
                else process.stderr if self._is_stderr_captured else None)

    def open(self, alias: str, key: str, extra_paths: Iterable[str],
             **watch: Any) -> BaseProcess:
        """Start its process, or find the one that lives in the kernel."""
        make_way: Callable[[], object] = (
            functools.partial(unixsocket.make_way, *self.socket_paths)
            if self.type == 'socket' else lambda: None)
        options = {**self.keywords(extra_paths), 'name': alias, **watch}
        if self.kernel is not None:
            return self.kernel.open_process(
                key, self.command, make_way=make_way,
                on_change=self.on_change, overflow='block', **options)
        make_way()
        return Process(self.command, **options)

    def ended(self, alias: str, key: str, extra_paths: Iterable[str], *,
              besides: BaseProcess | None = None) -> Sequence[BaseProcess]:
        """Processes that ended in the kernel, whose rest nobody has read."""
        return () if self.kernel is None else self.kernel.ended_processes(
            key, besides=besides,
            **{**self.keywords(extra_paths), 'name': alias})

    def is_to_restart(self, status: int) -> bool:
        """Whether a process that ended with `status` is started again."""
        return self.restart == 'always' or (
            self.restart == 'on-failure' and status != 0)

    def delay(self, failures: int) -> float:
        """Seconds to wait before a restart, after so many in a row."""
        return min(self.restart_delay * 2.0 ** min(failures, _MOST_DOUBLINGS),
                   _LONGEST_DELAY)

    @property
    def socket_paths(self) -> list[str]:
        """Where it may listen: `socket` seen from `cwd`, then from here."""
        socket = self.socket or ''
        path = os.path.join(self.options.get('cwd') or '', socket)
        # Our directory may be gone.
        paths = [path if os.path.isabs(path)
                 else os.path.join(os.getcwd(), path)]
        with contextlib.suppress(FileNotFoundError):
            paths.append(os.path.join(self.home or os.getcwd(), socket))
        return [*dict.fromkeys(paths)]
