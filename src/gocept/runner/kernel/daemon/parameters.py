"""What a process is asked to be."""

import json
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon.names import name_of
from gocept.runner.kernel.wire.frames import Json
from gocept.runner.kernel.wire.text import to_bytes
from gocept.runner.process.rlimits import limits_of

BUFSIZE = 2 ** 20  # bytes of output that are kept, unless said otherwise

_LARGEST = 2 ** 40  # what a buffer can be asked to hold

_BEGIN = '$(socket.'

_MOST_VARIABLES = 500  # of which is kept how to tell them from others

_LONGEST_NAME = 100  # characters of each of these

_CHOICES = {
    'stdin': ('null', 'pipe'),
    'stdout': ('pipe', 'null'),
    'stderr': ('pipe', 'null', 'stdout'),
    'overflow': ('drop', 'block'),
}
"""The first one is the default."""


class Parameters(NamedTuple):
    """How a process is started; two with equal ones are the same."""

    name: str
    args: list[str]
    """The command, with its placeholders for sockets."""
    env: dict[str, str]
    working_dir: str | None
    user: str | int | None
    group: str | int | None
    rlimits: dict[str, tuple[int, int]]
    stdin: str
    stdout: str
    stderr: str
    bufsize: int
    overflow: str

    @classmethod
    def of(cls, params: Mapping[str, Json]) -> Self:
        """What a request says, checked and completed; KernelError."""
        name = name_of(params, 'process')
        bufsize = params.get('bufsize')
        if bufsize is None:
            bufsize = BUFSIZE
        if type(bufsize) is not int or not 0 <= bufsize <= _LARGEST:
            raise KernelError(f'bufsize is a number of bytes, not {bufsize!r}')
        choices = {key: _choice(params, key) for key in _CHOICES}
        if not bufsize:
            choices['stdout'] = choices['stderr'] = 'null'
        return cls(
            name, _args(params.get('args')), _env(params.get('env')),
            _directory(params.get('working_dir')),
            _user(params, 'uid'), _user(params, 'gid'),
            _rlimits(params.get('rlimits')), bufsize=bufsize, **choices)

    @property
    def digest(self) -> str:
        """A hash of all but the user and the group.

        It is kept in place of the environment, which may be long and secret.
        """
        import hashlib  # it takes a while, and not every daemon needs it
        plain = json.dumps(self._replace(user=None, group=None),
                           sort_keys=True)
        return hashlib.blake2b(plain.encode(), digest_size=16).hexdigest()

    def hints(self, salt: str) -> Json:
        """What tells a user how other parameters differ.

        Of each variable it has a short hash, and not the value. False in place
        of the environment if that is too much.
        """
        env = self.env
        if len(env) > _MOST_VARIABLES or any(
                len(name) > _LONGEST_NAME for name in env):
            return [False, self.rlimits]
        from hashlib import blake2b  # as above
        key = salt.encode()
        return [{name: blake2b(value.encode('utf-8', 'surrogatepass'),
                               digest_size=4, key=key).hexdigest()
                 for name, value in env.items()}, self.rlimits]

    def sockets(self) -> list[tuple[str, str]]:
        """The sockets that the arguments name: names, and what of them."""
        found: list[tuple[str, str]] = []

        def note(name: str, part: str) -> str:
            found.append((name, part))
            return ''

        for arg in self.args:
            replaced(arg, note)
        return found


def replaced(arg: str, value: Callable[[str, str], str]) -> str:
    """`arg` with ``$(socket.NAME.PART)`` replaced by ``value(NAME, PART)``.

    KernelError for what is no such placeholder, but begins so.
    """
    if _BEGIN not in arg:
        return arg
    first, *others = arg.split(_BEGIN)
    pieces = [first]
    for each in others:
        inside, closed, rest = each.partition(')')
        if not closed:
            raise KernelError(
                f'"{_BEGIN}" begins a placeholder in the argument {arg!r}, '
                'and no ")" ends it')
        name, _, part = inside.rpartition('.')
        if not name or part not in ('fileno', 'port'):
            raise KernelError(
                f'a placeholder is $(socket.NAME.fileno) or '
                f'$(socket.NAME.port), not {_BEGIN}{inside})')
        pieces += value(name, part), rest
    return ''.join(pieces)


def _choice(params: Mapping[str, Json], key: str) -> str:
    words = _CHOICES[key]
    value = params.get(key)
    if value is None:
        return words[0]
    if value not in words:
        raise KernelError(f'{key} is one of {", ".join(words)}, not {value!r}')
    return str(value)


def _args(args: Json) -> list[str]:
    if not isinstance(args, list) or not args or not all(
            isinstance(arg, str) for arg in args):
        raise KernelError('a process needs a command: its program, and the '
                          'arguments')
    if not args[0]:
        raise KernelError('the program of a process has a name')
    for arg in args:
        _check_bytes(arg)
    return args


def _env(env: Json) -> dict[str, str]:
    if env is None:
        return {}
    if not isinstance(env, dict):
        raise KernelError('env is a dictionary of strings')
    for name, value in env.items():
        if not isinstance(value, str) or not name or '=' in name:
            raise KernelError(f'no environment variable can be {name!r}: '
                              f'{value!r}')
        _check_bytes(name)
        _check_bytes(value)
    return env


def _check_bytes(text: str) -> None:
    if '\0' in text:
        raise KernelError(f'{text!r}: no argument and no variable can have '
                          'a NUL byte')


def _directory(path: Json) -> str | None:
    if path is None or path == '':
        return None
    if not isinstance(path, str) or not path.startswith('/'):
        raise KernelError(f'working_dir is an absolute path, not {path!r}')
    _check_bytes(path)
    return path


def _user(params: Mapping[str, Json], key: str) -> str | int | None:
    value = params.get(key)
    if value is None or value == '':
        return None
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() else value
    if type(value) is int and 0 <= value < 2 ** 32 - 1:
        return value
    raise KernelError(f'{key} is a name or a number, not {value!r}')


def _rlimits(limits: Json) -> dict[str, tuple[int, int]]:
    if limits is None:
        return {}
    if not isinstance(limits, dict):
        raise KernelError('rlimits is a dictionary of numbers by names')
    try:
        return {name: limits_of(name, value)
                for name, value in limits.items()}
    except ValueError as error:
        raise KernelError(str(error)) from error


def arguments(parameters: Parameters, values: Mapping[tuple[str, str], str],
              ) -> list[bytes]:
    """The command in bytes, with the `values` of its placeholders."""
    return [to_bytes(replaced(arg, lambda name, part: values[name, part]))
            for arg in parameters.args]
