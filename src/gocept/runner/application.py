"""What is configured for an application, checked."""

import dataclasses
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from gocept.runner.launch import Launch

_CHANNEL = ('buffering', 'encoding', 'limit', 'high_water')

# Keywords of a process that have nothing to do with its start.
_PROCESS = ('stop_signal', 'stop_timeout', 'adopt')

# Of which each is part of something else, or one's own business.
_REFUSED = ('poller', 'on_end', 'name')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Application:
    """See `IRunner.add`."""

    command: str | Sequence[str]
    type: str = 'stdio'
    socket: str | None = None
    start_timeout: float = 30.0
    restart: str = 'never'
    restart_delay: float = 0.1
    restart_limit: int = 5
    channel: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    process: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Sort the keywords that a user has written, and check them."""
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
            (mine if key in own else channel if key in _CHANNEL
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
        # What cannot be started is to be known now.
        Launch(self.command, **{key: value for key, value
                                in self.process.items()
                                if key not in _PROCESS})

    def with_arguments(self, args: Sequence[str]) -> Self:
        """The same, called with more arguments."""
        if isinstance(args, str | bytes):
            raise TypeError(f'with_args is a list of arguments, not {args!r}')
        command: str | list[str]
        if self.process.get('shell'):
            command = shlex.join([*args])
            command = f'{self.command} {command}'
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
            extra_env['PATH'] = os.pathsep.join([path, *extra_paths])
            keywords['extra_env'] = extra_env
        if self.type == 'stdio':
            return {'stdin': 'pipe', 'stdout': 'pipe',
                    **self.channel, **keywords}
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

    @property
    def socket_path(self) -> str:
        """Where it listens: `socket`, seen from its working directory."""
        return os.path.join(os.path.abspath(self.process.get('cwd') or ''),
                            self.socket or '')


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f'{name} must be one of '
                         f'{", ".join(map(repr, choices))}, not {value!r}')
