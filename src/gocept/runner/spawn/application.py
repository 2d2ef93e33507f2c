"""What is configured for an application, checked."""

import dataclasses
import os
import shlex
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from gocept.runner.channel import PipeChannel
from gocept.runner.process.child import CHANNEL_OPTIONS
from gocept.runner.process.launch import Launch

# Keywords of a process that have nothing to do with its start.
_PROCESS = ('stop_signal', 'stop_timeout', 'kill_signal', 'adopt')

# Of which each is part of something else, or one's own business.
_REFUSED = ('poller', 'on_start', 'on_end', 'servers', 'name')

_LONGEST_DELAY = 60.0  # of a restart, in seconds

_MOST_DOUBLINGS = 64  # of a delay, so that there is a float for it


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
    channel: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    process: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Sort the keywords that a user has written, and check them."""
        if not isinstance(config, Mapping):
            raise TypeError(f'its keywords are a dictionary, not {config!r}')
        if 'command' not in config:
            raise ValueError('there is no command')
        own = {field.name for field in dataclasses.fields(cls)
               } - {'channel', 'process'}
        mine: dict[str, Any] = {}
        channel: dict[str, Any] = {}
        process: dict[str, Any] = {}
        for key, value in config.items():
            if key in _REFUSED:
                raise TypeError(f'{key!r} is no keyword of an application')
            (mine if key in own else channel if key in CHANNEL_OPTIONS
             else process)[key] = value
        self = cls(channel=channel, process=process, **mine)
        self._check()
        return self

    def _check(self) -> None:
        _check_choice('type', self.type, ('stdio', 'socket'))
        _check_choice('restart', self.restart,
                      ('never', 'on-failure', 'always'))
        if (self.type == 'socket') != (self.socket is not None):
            raise ValueError("type='socket' and socket=PATH need each other")
        if self.socket is not None and not os.fspath(self.socket):
            raise ValueError("socket is a path, not ''")
        _check_least(self.channel, limit=1, high_water=0)
        _check_least(self.process, stop_timeout=0)
        _check_least(vars(self), start_timeout=0, restart_delay=0,
                     restart_limit=0)
        # What cannot be started or ended is to be known now.
        PipeChannel(**self.channel).close()
        for name in ('stop_signal', 'kill_signal'):
            signal.Signals(self.process.get(name, signal.SIGTERM))
        Launch(self.command, **{key: value for key, value
                                in self.process.items()
                                if key not in _PROCESS})

    def with_arguments(self, args: Sequence[str]) -> Self:
        """The same, called with more arguments."""
        if isinstance(args, str | bytes):
            raise TypeError(f'with_args is a list of arguments, not {args!r}')
        try:
            args = [os.fsdecode(arg) for arg in args]
        except TypeError as error:
            raise TypeError(f'with_args: {error}') from error
        command: str | list[str]
        if self.process.get('shell'):
            command = f'{self.command} {shlex.join(args)}'
        elif isinstance(self.command, str):
            command = [*shlex.split(self.command), *args]
        else:
            command = [*self.command, *args]
        return dataclasses.replace(self, command=command)

    def keywords(self, extra_paths: Iterable[str]) -> dict[str, Any]:
        """The keywords of its process."""
        keywords = dict(self.process)
        if extra_paths:
            extra_env = dict(keywords.get('extra_env') or {})
            env = keywords.get('env')
            path = extra_env.get('PATH') or (
                os.environ if env is None else env).get('PATH', os.defpath)
            # Without an empty one, which is the current directory.
            extra_env['PATH'] = os.pathsep.join(
                filter(None, [path, *extra_paths]))
            keywords['extra_env'] = extra_env
        keywords |= self.channel
        if self.type == 'stdio':
            return {'stdin': 'pipe', 'stdout': 'pipe', **keywords}
        if 'stdout' not in keywords:
            keywords = {'stderr': 'merge', **keywords, 'stdout': 'pipe'}
        return {'stdin': 'null', **keywords}

    @property
    def is_captured(self) -> bool:
        """Whether what it says is not for a channel."""
        return self.type == 'socket' and 'stdout' not in self.process

    def is_to_restart(self, status: int) -> bool:
        """Whether one that has ended with `status` is started again."""
        return self.restart == 'always' or (
            self.restart == 'on-failure' and status != 0)

    def delay(self, failures: int) -> float:
        """Seconds to wait with a restart after so many in a row."""
        return min(self.restart_delay * 2.0 ** min(failures, _MOST_DOUBLINGS),
                   _LONGEST_DELAY)

    @property
    def socket_path(self) -> str:
        """Where it listens: `socket`, seen from its working directory."""
        return os.path.join(os.getcwd(), self.process.get('cwd') or '',
                            self.socket or '')


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f'{name} must be one of '
                         f'{", ".join(map(repr, choices))}, not {value!r}')


def _check_least(values: Mapping[str, Any], **least: int) -> None:
    for name, minimum in least.items():
        value = values.get(name, minimum)
        if not isinstance(value, int | float) or not value >= minimum:
            raise ValueError(
                f'{name} must be a number >= {minimum}, not {value!r}')
