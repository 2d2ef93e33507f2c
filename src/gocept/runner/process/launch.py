"""The start of a child: its command, environment, streams, user and limits.

`subprocess.Popen` does what it can do. The rest is done by
`gocept.runner.process.exechelper`, since code of ours between the fork and the
program (``preexec_fn``) may deadlock where there are threads.
"""

import contextlib
import errno
import fcntl
import grp
import json
import os
import pathlib
import pwd
import select
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypedDict, Unpack, cast

from gocept.runner.process import exechelper, forker
from gocept.runner.process.inheritance import SERVICE_VARIABLES
from gocept.runner.process.keywords import STREAMS
from gocept.runner.process.marks import MARKER
from gocept.runner.process.newborn import Newborn
from gocept.runner.process.rlimits import limits_of
from gocept.runner.process.shortages import SHORTAGES
from gocept.runner.waits.deadline import Deadline, wait_for
from gocept.runner.waits.modules import module_path
from gocept.runner.waits.standard import fill_standard

_NEVER_INHERITED = tuple(map(os.fsencode, SERVICE_VARIABLES))

_LONGEST_HELP = 60.0  # seconds that the helper may take, on a busy machine

_MARKER = MARKER.encode()

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
        self.cwd = cwd
        self._env = None if env is None else checked_variables('env', env)
        self._extra_env = checked_variables('extra_env', extra_env or {})
        self._uid = _uid(user)
        self.identity = _identity(self._uid, group, extra_groups)
        self.rlimits = {name: limits_of(name, value)
                         for name, value in (rlimits or {}).items()}
        self.streams = {
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
        self._restores = bool(self._popen.get('restore_signals', True))
        if setsid or detached:
            self._popen['start_new_session'] = True
        elif setpgrp and not self._popen.get('start_new_session'):
            self._popen.setdefault('process_group', 0)

    @property
    def user(self) -> int | None:
        """The number of another user; None for ours."""
        return cast(int | None, self.identity['user'])

    @property
    def group(self) -> int | None:
        """The number of another group; None for ours."""
        return cast(int | None, self.identity['group'])

    def start(self, newborn: Newborn,
              signals: Collection[signal.Signals] = ()) -> None:
        """Start it; raises what Popen does, mostly an OSError.

        The program does not ignore or block `signals`, as others end it.

        To be called within `shortages`. After an error there may be something
        to abandon.
        """
        streams: dict[str, Redirection] = {}
        with contextlib.ExitStack() as theirs:
            fill_standard()
            for name, stream in self.streams.items():
                streams[name] = self._open(name, stream, newborn, theirs)
            environment = self.environment(newborn.mark)
            keywords = {**streams, 'env': environment, 'cwd': self.cwd}
            deaf = _deaf(signals) if self._restores else []
            if self.rlimits or self._death_signal or deaf:
                self._start_helped(
                    newborn, keywords, deaf, environment.get(b'LC_CTYPE'))
            else:
                self._fork(newborn, self.args, {
                    **keywords, **self._popen, **self.identity})

    def _open(self, name: str, stream: Stream, newborn: Newborn,
              theirs: contextlib.ExitStack) -> Redirection:
        """What Popen gets."""
        if isinstance(stream, os.PathLike):
            fd = open_stream(stream, reads=name == 'stdin')
            theirs.callback(os.close, fd)
            os.set_blocking(fd, True)
            return fd
        if stream != 'pipe':
            return STREAMS[stream] if isinstance(stream, str) else stream
        read, write = newborn.pipe()
        let_all_open(read)
        child, ours = (read, write) if name == 'stdin' else (write, read)
        theirs.callback(lambda: os.close(newborn.take(child)))
        setattr(newborn, name, ours)
        size = self._popen.get('pipesize', -1)
        if size > 0:
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, size)
        return child

    def _fork(self, newborn: Newborn, args: Sequence[str],
              keywords: Mapping[str, object]) -> None:
        """Call Popen, where no signal handler can take the child from us.

        A handler that raises in the main thread leaves a child that can be
        found by its mark, unless it has none, or was not forked by vfork(2)
        and may not have become the program yet.
        """
        def popen() -> None:
            newborn.pid = _popen(args, keywords)

        is_hidden = self.detached or any(
            keywords.get(name) is not None for name in (
                'user', 'group', 'extra_groups', 'preexec_fn'))
        if is_hidden or self._death_signal:
            forker.call(popen, also_main=is_hidden)
        else:
            popen()

    def _start_helped(self, newborn: Newborn, keywords: Mapping[str, object],
                      deaf: Collection[signal.Signals],
                      locale: bytes | None) -> None:
        popen = self._popen.copy()
        executable = os.fsdecode(popen.pop('executable', '') or self.args[0])
        read, low = newborn.pipe()
        # A number that no stream of the child gets.
        high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3)
        with open(newborn.take(read), 'rb') as reader:
            with open(newborn.take(low), 'wb'), open(high, 'wb'):
                options = {
                    'report': high,
                    'rlimits': self.rlimits,
                    **self.identity,
                    'death_signal': self._death_signal,
                    'parent': os.getpid(),
                    'restored_signals': (
                        [signal.SIGPIPE, signal.SIGXFSZ, *deaf]
                        if self._restores else []),
                    # Python sets this one in itself for some locales.
                    'locale': None if locale is None else os.fsdecode(locale),
                }
                if popen.get('close_fds', True):
                    popen['pass_fds'] = (*popen.get('pass_fds', ()), high)
                else:
                    os.set_inheritable(high, True)
                interpreter = python()
                try:
                    self._fork(newborn, [
                        interpreter, '-I', '-S', '-X', 'utf8',
                        exechelper.__file__,
                        json.dumps(options), executable, *self.args],
                        {**keywords, **popen})
                except OSError as error:
                    if error.filename == interpreter:
                        raise _no_help(interpreter, str(error)) from error
                    raise
            report = _read_report(reader.fileno())
        if report == exechelper.EXEC:
            return
        if not report:  # whatever it is, it is not our helper
            os.kill(newborn.pid, signal.SIGKILL)
        status = newborn.reap(newborn.pid)
        if not report:
            raise _no_help(interpreter, f'it ended with {status}')
        step, number, text = json.loads(report)
        if number is None:
            raise ValueError(f'{step}: {text}')
        raise OSError(number, os.strerror(number), step or executable)

    def environment(self, mark: str = '') -> dict[bytes, bytes]:
        """In bytes, as decoding and encoding takes a tenth of a start.

        With no mark it is that of a process which is no child of ours.
        """
        environment = (_inherited(self._uid)
                       if self._env is None else dict(self._env))
        if not mark:
            environment.pop(_MARKER, None)
        if self.detached:
            program = os.path.basename(self.args[0])
            if program.startswith('python') or self.args[0] == sys.executable:
                environment[b'PYTHONPATH'] = os.fsencode(
                    os.pathsep.join(module_path()))
        if mark:
            environment[_MARKER] = b' '.join(
                [*os.environb.get(_MARKER, b'').split(), mark.encode()])
        environment |= self._extra_env
        return {name: value for name, value in environment.items()
                if value is not None}


def inherited(user: str | int | None = None) -> dict[str, str]:
    """The environment of a child that is given none."""
    return {os.fsdecode(name): os.fsdecode(value)
            for name, value in _inherited(_uid(user)).items()}


def _inherited(uid: int | None) -> dict[bytes, bytes]:
    """Ours, without what systemd has told us alone.

    For another user, with the variables that systemd sets for a ``User=``.
    """
    variables = {
        name: value for name in os.environb
        # Another thread may have removed it meanwhile.
        if (value := os.environb.get(name)) is not None
        and name not in _NEVER_INHERITED}
    if uid is not None:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwuid(uid)
            variables |= {
                b'HOME': os.fsencode(entry.pw_dir),
                **dict.fromkeys((b'USER', b'LOGNAME'),
                                os.fsencode(entry.pw_name))}
    return variables


def _arguments(command: Command, shell: bool) -> list[str]:
    if shell:
        if not isinstance(command, str) or not command.strip():
            raise ValueError(
                f'a command for the shell is a string, not {command!r}')
        return checked_arguments('command', ['/bin/sh', '-c', command])
    if not isinstance(command, str | Sequence):
        raise TypeError('a command is a string or a list of arguments, not '
                        f'{command!r}')
    args = checked_arguments('command', (
        shlex.split(command) if isinstance(command, str) else command))
    if not args or not args[0]:
        raise ValueError(f'there is no program in the command {command!r}')
    return args


def checked_arguments(
        keyword: str, args: Sequence[str | bytes | os.PathLike[str]],
        ) -> list[str]:
    """The arguments that `keyword` has.

    TypeError and ValueError for those that cannot be meant.
    """
    try:
        strings = [os.fsdecode(arg) for arg in args]
    except TypeError as error:
        raise TypeError(f'{keyword}: {error}') from error
    for each in strings:
        if '\0' in each:
            raise ValueError(f'{keyword}: no argument can be {each!r}')
    return strings


def checked_variables(keyword: str, variables: Mapping[str, str | None],
                      ) -> dict[bytes, bytes | None]:
    """What `keyword` says of the environment, in bytes.

    TypeError and ValueError for variables that cannot be meant.
    """
    if not isinstance(variables, Mapping):
        raise TypeError(f'{keyword} is a dictionary, not {variables!r}')
    checked: dict[bytes, bytes | None] = {}
    for name, value in variables.items():
        if not isinstance(name, str) or not (
                isinstance(value, str)
                or (value is None and keyword == 'extra_env')):
            raise TypeError(f'{keyword}: the variable {name!r} needs a string,'
                            f' not {value!r}')
        if not name or '=' in name or '\0' in name + (value or ''):
            raise ValueError(f'{keyword}: no variable can be {name!r}: '
                             f'{value!r}')
        checked[os.fsencode(name)] = (
            None if value is None else os.fsencode(value))
    return checked


def _uid(user: str | int | None) -> int | None:
    """The number of a user; None for ours, who needs no privileges."""
    uid = None if user is None else _number(user, 'user')
    return None if uid == os.getuid() == os.geteuid() else uid


def _identity(uid: int | None, group: str | int | None,
              extra_groups: Sequence[str | int] | None,
              ) -> dict[str, int | list[int] | None]:
    """What Popen calls the new user and groups; None for each that stays."""
    groups = (None if extra_groups is None
              else [_number(each, 'group') for each in extra_groups])
    gid = None if group is None else _number(group, 'group')
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


def open_stream(path: str | os.PathLike[str], reads: bool = False) -> int:
    """Open a file to append to it, or to read it, without waiting for anybody.

    Returns a descriptor that does not block. Nobody has to be at the other end
    of a FIFO that is read; so its reader does not find its end. One that is
    written needs a reader: OSError if there is none.
    """
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    if not reads:
        flags |= os.O_WRONLY | os.O_APPEND | os.O_CREAT
    elif stat.S_ISFIFO(os.stat(path).st_mode):
        flags |= os.O_RDWR
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in SHORTAGES:
            error.filename = None  # see `shortages`
        elif error.errno == errno.ENXIO:
            error.strerror = 'Nobody reads what is written there'
        raise


def let_all_open(pipe: int) -> None:
    """Let a child of another user open its end by ``/dev/fd/N``.

    The system still asks for access to a process that has the pipe. So this
    also serves a child that changes its user itself.
    """
    with contextlib.suppress(OSError):
        os.fchmod(pipe, 0o666)


def python() -> str:
    """The path of a Python for scripts of ours.

    `sys.executable` may be a server that embeds Python, such as uWSGI, or a
    program that was frozen.
    """
    if 'py' in os.path.basename(sys.executable or '') and not hasattr(
            sys, 'frozen'):
        return sys.executable
    return os.path.join(sys.base_exec_prefix, 'bin', 'python{}.{}'.format(
        *sys.version_info))


def _read_report(fd: int) -> bytes:
    """What the helper says before it becomes the program, or ends."""
    report, deadline = b'', Deadline(_LONGEST_HELP)
    # A forked copy of us may keep the pipe open.
    while wait_for(fd, select.POLLIN, deadline):
        data = os.read(fd, select.PIPE_BUF)
        if not data:
            break
        report += data
    return report


def _no_help(python: str, reason: str) -> OSError:
    return OSError(
        errno.ENOEXEC, 'rlimits, die_with_parent and a stop signal that is '
        'ignored or blocked here need a Python that can run '
        f'{exechelper.__file__}: {reason}', python)


def _deaf(signals: Collection[signal.Signals]) -> list[signal.Signals]:
    """Those that a child would inherit as ignored or blocked.

    A shell starts programs so, for instance those behind ``&``.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return [each for each in signals if each in blocked
            or signal.getsignal(each) is signal.SIG_IGN]


def _popen(args: Sequence[str], keywords: Mapping[str, object]) -> int:
    start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen
    process = start(args, **keywords)
    # From here on it is ours to reap.
    process.returncode = 0
    return process.pid
