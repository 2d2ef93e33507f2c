"""The start of a child: its command, environment, streams, user and limits.

`subprocess.Popen` does what it can do. The rest is done by
`gocept.runner.process.exechelper`, since code of ours between the fork and the
program (``preexec_fn``) may deadlock where there are threads.
"""

import contextlib
import fcntl
import functools
import grp
import itertools
import json
import os
import pathlib
import pwd
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypedDict, Unpack, cast

from gocept.runner.process import exechelper, forker, procfs
from gocept.runner.process.keywords import STREAMS
from gocept.runner.waits.standard import fill_standard

MARKER = 'GOCEPT_RUNNER_CHILD'
"""The environment variable that descendants are recognised by.

Its value are marks: one word for each child that the process descends from.
"""

# What a service manager tells its service, and not the children of that.
_NEVER_INHERITED = ('NOTIFY_SOCKET', 'WATCHDOG_', 'LISTEN_')

_UNCHANGED = 2 ** 32 - 1  # what the system takes for -1, instead of a user


class File(Protocol):
    """An open file."""

    def fileno(self) -> int:
        """Its descriptor."""


Stream = str | int | os.PathLike[str] | File

Redirection = int | File | None
"""What Popen takes for a stream."""

Command = str | Sequence[str | os.PathLike[str]]


class PopenOptions(TypedDict, total=False):
    """Keywords that are handed to `subprocess.Popen`.

    Those that make text of streams are missing, as channels do that; and
    ``preexec_fn``, as it runs code of ours between the fork and the program.
    """

    executable: str | os.PathLike[str]
    close_fds: bool
    pass_fds: Sequence[int]
    restore_signals: bool
    start_new_session: bool
    process_group: int
    umask: int
    pipesize: int


class Started(NamedTuple):
    """A child, and our ends of its pipes (-1 where there is none)."""

    pid: int
    stdin: int
    stdout: int
    stderr: int


class Launch:
    """How a program is started, checked; see `IProcess` for the keywords."""

    def __init__(
            self, command: Command, *,
            shell: bool = False,
            cwd: str | os.PathLike[str] | None = None,
            env: Mapping[str, str] | None = None,
            extra_env: Mapping[str, str | None] | None = None,
            user: str | int | None = None,
            group: str | int | None = None,
            extra_groups: Sequence[str | int] | None = None,
            rlimits: Mapping[str, int | Sequence[int]] | None = None,
            setpgrp: bool = False,
            setsid: bool = False,
            stdin: Stream = 'inherit',
            stdout: Stream = 'inherit',
            stderr: Stream = 'inherit',
            die_with_parent: bool | int = False,
            detached: bool = False,
            popen_kwargs: Mapping[str, object] | None = None,
            **popen: Unpack[PopenOptions]) -> None:
        self.args = _arguments(command, shell)
        self.detached = detached
        self.leads_group = (
            setpgrp or setsid or detached or popen.get('process_group') == 0
            or bool(popen.get('start_new_session')))
        self._cwd = cwd
        self._env = env
        self._extra_env = dict(extra_env or {})
        self._identity = _identity(user, group, extra_groups)
        self._rlimits = {name: _limits(name, value)
                         for name, value in (rlimits or {}).items()}
        self._streams = {
            'stdin': _checked_stream('stdin', stdin),
            'stdout': _checked_stream('stdout', stdout),
            'stderr': _checked_stream('stderr', stderr)}
        self._death_signal = (
            signal.SIGKILL if die_with_parent is True
            else signal.Signals(die_with_parent) if die_with_parent else 0)
        if detached and self._death_signal:
            raise ValueError('a detached process outlives its parent: '
                             'leave out die_with_parent')
        for name in popen:
            if name not in PopenOptions.__annotations__:
                raise TypeError(f'{name!r} is no keyword of a process')
        self._popen = cast(PopenOptions, {**popen, **(popen_kwargs or {})})
        if setsid or detached:
            self._popen['start_new_session'] = True
        elif setpgrp:
            self._popen['process_group'] = 0

    def start(self, mark: str) -> Started:
        """Start it, marked; raises what Popen does, mostly an OSError."""
        fill_standard()
        ours = dict.fromkeys(self._streams, -1)
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as undo:
            streams: dict[str, Redirection] = {}
            pipesize = self._popen.get('pipesize', -1)
            for name, stream in self._streams.items():
                streams[name], ours[name] = _open(name, stream, theirs, undo)
                if ours[name] >= 0 and pipesize > 0:
                    fcntl.fcntl(ours[name], fcntl.F_SETPIPE_SZ, pipesize)
            environment = self._environment(mark)
            keywords = {**streams, 'env': environment, 'cwd': self._cwd}
            if self._rlimits or self._death_signal:
                pid = self._start_helped(
                    keywords, environment.get('LC_CTYPE'))
            else:
                pid = _popen(self.args, {
                    **keywords, **self._popen, **self._identity})
            undo.pop_all()
        return Started(pid, **ours)

    def _start_helped(self, keywords: Mapping[str, object],
                      locale: str | None) -> int:
        popen = self._popen.copy()
        executable = os.fsdecode(popen.pop('executable', '') or self.args[0])
        read, low = os.pipe()
        with open(read, 'rb') as reader:
            with open(low, 'wb'), open(
                    # A number that no stream of the child gets.
                    fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3), 'wb') as high:
                write = high.fileno()
                options = {
                    'report': write,
                    'rlimits': self._rlimits,
                    **self._identity,
                    'death_signal': self._death_signal,
                    'parent': os.getpid(),
                    'restored_signals': (
                        [signal.SIGPIPE, signal.SIGXFSZ]
                        if popen.get('restore_signals', True) else []),
                    # Python sets this one in itself for some locales.
                    'locale': locale,
                }
                if popen.get('close_fds', True):
                    popen['pass_fds'] = (*popen.get('pass_fds', ()), write)
                else:
                    os.set_inheritable(write, True)
                pid = forker.call(lambda: _popen(
                    [sys.executable, '-I', '-S', '-X', 'utf8',
                     exechelper.__file__, json.dumps(options), executable,
                     *self.args], {**keywords, **popen}))
            try:
                report = reader.read()
            except BaseException:  # nobody else would reap it
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
        if report:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            step, errno, text = json.loads(report)
            if errno is None:
                raise ValueError(f'{step}: {text}')
            raise OSError(errno, os.strerror(errno), step or executable)
        return pid

    def _environment(self, mark: str) -> dict[str, str]:
        inherited = os.environ if self._env is None else self._env
        environment: dict[str, str | None] = {
            name: value for name, value in inherited.items()
            if not name.startswith(_NEVER_INHERITED)}
        if self.detached:
            environment.pop(MARKER, None)
            program = os.path.basename(self.args[0])
            if program.startswith('python') or self.args[0] == sys.executable:
                environment['PYTHONPATH'] = os.pathsep.join(
                    os.path.abspath(path) for path in sys.path)
        else:
            environment[MARKER] = ' '.join(
                [*os.environ.get(MARKER, '').split(), mark])
        environment |= self._extra_env
        return {name: value for name, value in environment.items()
                if value is not None}


_numbers = itertools.count(1)


def new_mark() -> str:
    """A word that no other child of any runner has."""
    return f'{our_mark()}{next(_numbers)}'


def our_mark() -> str:
    """What all words of this process begin with."""
    return _mark_of(os.getpid())


@functools.lru_cache(1)  # so that a fork has its own
def _mark_of(pid: int) -> str:
    us = procfs.stat(pid)
    return f'{pid}.{us.start if us else 0}.'


def _arguments(command: Command, shell: bool) -> list[str]:
    if shell:
        if not isinstance(command, str) or not command.strip():
            raise ValueError(
                f'a command for the shell is a string, not {command!r}')
        return ['/bin/sh', '-c', command]
    if not isinstance(command, str | Sequence):
        raise TypeError('a command is a string or a list of arguments, not '
                        f'{command!r}')
    args = (shlex.split(command) if isinstance(command, str)
            else [os.fsdecode(each) for each in command])
    if not args or not args[0]:
        raise ValueError(f'there is no program in the command {command!r}')
    return args


def _identity(user: str | int | None, group: str | int | None,
              extra_groups: Sequence[str | int] | None,
              ) -> dict[str, int | list[int] | None]:
    """What Popen calls the new user and groups; None for each that stays."""
    groups = (None if extra_groups is None
              else [_number(each, 'group') for each in extra_groups])
    gid = None if group is None else _number(group, 'group')
    uid = None if user is None else _number(user, 'user')
    if uid == os.getuid() == os.geteuid():
        uid = None  # so that it works without privileges
    if uid is not None:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwuid(uid)
            if gid is None:
                gid = entry.pw_gid
            if groups is None:
                groups = os.getgrouplist(entry.pw_name, gid)
        if gid is None:
            raise LookupError(
                f'the group of the user {uid} is not known: name one')
        if groups is None:
            groups = []  # not ours
    if gid == os.getgid() == os.getegid():
        gid = None
    return {'user': uid, 'group': gid, 'extra_groups': groups}


def _number(name: str | int, kind: str) -> int:
    if isinstance(name, int):
        if not 0 <= name < _UNCHANGED:
            raise ValueError(f'a {kind} has a number from 0 on, not {name}')
        return name
    try:
        return (pwd.getpwnam(name).pw_uid if kind == 'user'
                else grp.getgrnam(name).gr_gid)
    except KeyError:
        raise LookupError(f'there is no {kind} {name!r}') from None


def _limits(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    if not hasattr(resource, f'RLIMIT_{name.upper()}') or name != name.lower():
        names = sorted(each.removeprefix('RLIMIT_').lower()
                       for each in dir(resource) if each.startswith('RLIMIT_'))
        raise ValueError(f'there is no resource limit {name!r}; there are: '
                         + ', '.join(names))
    match value:
        case int():
            return value, value
        case [int(soft), int(hard)]:
            return soft, hard
    raise ValueError(f'the resource limit {name!r} needs a number or a pair '
                     f'of them, not {value!r}')


def _checked_stream(name: str, stream: Stream) -> Stream:
    if isinstance(stream, str) and os.sep in stream:
        return pathlib.Path(stream)
    words = [each for each in STREAMS if each != 'merge' or name == 'stderr']
    if (stream is None or (isinstance(stream, int) and stream < 0)
            or (isinstance(stream, str) and stream not in words)):
        raise ValueError(
            f'{name} must be {", ".join(map(repr, words))}, a path, a file or '
            f'a descriptor, not {stream!r}')
    return stream


def _open(name: str, stream: Stream, theirs: contextlib.ExitStack,
          undo: contextlib.ExitStack) -> tuple[Redirection, int]:
    """What Popen gets, and our end; -1 for none."""
    if stream == 'pipe':
        read, write = os.pipe()
        child, ours = (read, write) if name == 'stdin' else (write, read)
        theirs.callback(os.close, child)
        undo.callback(os.close, ours)
        return child, ours
    if isinstance(stream, os.PathLike):
        return theirs.enter_context(
            open(stream, 'rb' if name == 'stdin' else 'ab')), -1
    if isinstance(stream, str):
        return STREAMS[stream], -1
    return stream, -1


def _popen(args: Sequence[str], keywords: Mapping[str, object]) -> int:
    start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen
    process = start(args, **keywords)
    # From here on it is ours to reap.
    process.returncode = 0
    return process.pid
