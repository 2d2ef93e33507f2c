"""The start of children by a daemon of one thread, which nothing may hold up.

`gocept.runner.process.Process` is for programs of any kind. It waits until the
child has become its program. A daemon that serves others cannot wait for a
directory on another machine. So `spawn` is only for what answers at once, and
`Preparation` does everything else in a forked child: names of users, limits,
and a directory or a program that `may_hang`. A fork without an exec helper is
safe here as the process has one thread.

In every such child all signals have their defaults, none is blocked, and the
child leads a session. It has the streams that it is given, what the daemon
has made inheritable, and nothing else.
"""

import contextlib
import errno
import grp
import json
import os
import pwd
import resource
import signal
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn, TypedDict

from gocept.runner.process.mounts import Mounts
from gocept.runner.waits.forks import becoming_program
from gocept.runner.waits.source import Item, Source

FAILED = 127  # the status of a child that could not become its program

_SIGNALS = [each for each in signal.valid_signals()
            if each not in (signal.SIGKILL, signal.SIGSTOP)]

_DEFAULT_PATH = b'/bin:/usr/bin'  # as execvp(3) searches without a PATH

_LONGEST_REPORT = 65536  # bytes


class Command:
    """What is started, and how."""

    __slots__ = ('args', 'cwd', 'env', 'group', 'inherited', 'rlimits',
                 'soft_limits', 'streams', 'user')

    def __init__(self, args: list[bytes], env: dict[bytes, bytes], *,
                 cwd: bytes | None = None,
                 soft_limits: Mapping[int, int] | None = None,
                 user: str | int | None = None,
                 group: str | int | None = None,
                 rlimits: Mapping[str, tuple[int, int]] | None = None,
                 ) -> None:
        self.args = args
        self.env = env
        self.cwd = cwd
        """An absolute path; None for the directory of the daemon."""
        self.streams = (-1, -1, -1)
        """The standard streams: three descriptors, none of them below 3."""
        self.soft_limits = soft_limits or {}
        """Soft limits that are not ours, by their numbers in `resource`."""
        self.inherited: Sequence[int] = ()
        """Descriptors for this child alone, which has them under these
        numbers."""
        self.user = user
        self.group = group
        """By number or name; None: ours, or the group of that user."""
        self.rlimits = rlimits or {}
        """By the lower-case name: the soft and the hard limit."""

    @property
    def changes_user(self) -> bool:
        """Whether user or group have to be looked up or set."""
        return self.user not in (None, os.geteuid()) or self.group not in (
            None, os.getegid())

    def may_hang(self, mounts: Mounts) -> bool:
        """Whether a look at its directory or program may wait for somebody."""
        cwd = self.cwd or b'/'
        return mounts.may_hang(cwd) or any(
            mounts.may_hang(os.path.join(cwd, path))
            for path in self._candidates())

    def _candidates(self) -> Iterator[bytes]:
        program = self.args[0]
        if b'/' in program:
            yield program
            return
        for directory in self.env.get(b'PATH', _DEFAULT_PATH).split(b':'):
            yield os.path.join(directory, program)

    def program(self) -> bytes:
        """The file that is executed, as seen from its directory.

        FileNotFoundError, PermissionError or IsADirectoryError if there is
        none.
        """
        number = errno.ENOENT
        for path in self._candidates():
            with contextlib.suppress(OSError, ValueError):
                if stat.S_ISREG(os.stat(path).st_mode):
                    if os.access(path, os.X_OK, effective_ids=True):
                        return path
                    number = errno.EACCES
                elif b'/' in self.args[0] and os.path.isdir(path):
                    number = errno.EISDIR
        raise OSError(number, os.strerror(number), os.fsdecode(self.args[0]))


def spawn(command: Command) -> int:
    """Start a child and return its pid.

    An OSError has the program as its file name, or the directory if that is
    at fault. To be called only if `Command.changes_user` and `may_hang` are
    False, and without rlimits.
    """
    with contextlib.ExitStack() as stack:
        if command.cwd is not None:
            before = os.open('.', os.O_PATH | os.O_CLOEXEC)
            stack.callback(os.close, before)
            os.chdir(command.cwd)
            stack.callback(os.fchdir, before)
        program = command.program()
        for fd in command.inherited:
            if not os.get_inheritable(fd):
                os.set_inheritable(fd, True)
                stack.callback(os.set_inheritable, fd, False)
        for number, soft in command.soft_limits.items():
            ours = resource.getrlimit(number)
            if ours[0] != soft:
                resource.setrlimit(number, _with_soft(soft, ours[1]))
                stack.callback(resource.setrlimit, number, ours)
        return os.posix_spawn(
            program, command.args, command.env,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, number)
                          for number, fd in enumerate(command.streams)],
            setsid=True, setsigmask=(), setsigdef=_SIGNALS)


def _with_soft(soft: int, hard: int) -> tuple[int, int]:
    """Both limits, the soft one as near to `soft` as the hard one allows.

    RLIM_INFINITY is a number that is less than all others.
    """
    if hard == resource.RLIM_INFINITY:
        return soft, hard
    if soft == resource.RLIM_INFINITY:
        return hard, hard
    return min(soft, hard), hard


class Report(TypedDict, total=False):
    """What a prepared child says of itself."""

    user: int | None
    group: int | None
    errno: int
    step: str
    """What has failed: 'user', 'group', 'working_dir', 'command', ... or
    'gate', if the daemon has died before it opened the gate."""
    text: str


class Reports(Source):
    """Reads what one forked child says, until it ends or is a program.

    `done` is called once, with all that was said.
    """

    def __init__(self, fd: int, done: Callable[[bytes], None]) -> None:
        self._fd = fd
        self._done = done
        self._said = bytearray()

    def fileno(self) -> int:
        return self._fd

    def collect(self) -> tuple[Sequence[Item], bool]:
        try:
            data = os.read(self._fd, _LONGEST_REPORT)
        except BlockingIOError:
            return (), False
        self._said += data
        if data and len(self._said) <= _LONGEST_REPORT:
            return (), False
        said = bytes(self._said)
        self.close()
        self._done(said)
        return (), True

    def close(self) -> None:
        """Listen no more."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._tell_closing(fd)
            os.close(fd)
            self._tell_ready()


class Preparation:
    """A forked child behind a gate, which then becomes the command.

    The order is: make it; `fork`; record the pid; `open_gate`. If the daemon
    dies in between, the child ends and was never the program. `report_fd` may
    be kept by others, so that they learn what has become of the child.
    """

    def __init__(self) -> None:
        self._gate_read, self._gate = os.pipe()
        try:
            self.report_fd, self._report = os.pipe()
        except BaseException:
            self.close()
            raise
        os.set_blocking(self.report_fd, False)

    _gate_read = _gate = _report = report_fd = -1

    def fork(self, command: Command, kept: Sequence[int] = (),
             may_hang: bool = True) -> int:
        """Fork the child and return its pid; it waits at the gate.

        `kept` are the descriptors that all children inherit.
        """
        with becoming_program():
            pid = os.fork()
        if not pid:
            os.close(self._gate)
            _prepare(command, self._gate_read, self._report, kept, may_hang)
        for name in ('_gate_read', '_report'):
            os.close(getattr(self, name))
            setattr(self, name, -1)
        return pid

    def open_gate(self) -> None:
        """Let the child go on."""
        with contextlib.suppress(BrokenPipeError):  # it was killed
            os.write(self._gate, b'.')
        os.close(self._gate)
        self._gate = -1

    def close(self) -> None:
        """Close what is left, but for `report_fd`, which a `Reports` owns."""
        for name in ('_gate_read', '_gate', '_report'):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)


def parsed(said: bytes) -> Report:
    """All the lines of a report as one; the last one that says so counts."""
    report: Report = {}
    for line in said.splitlines():
        try:
            report.update(json.loads(line))
        except ValueError:
            break
    return report


class Question:
    """A call that may block, in a forked child; the answer comes as JSON.

    `report_fd` is for a `Reports`. The child ends itself after `seconds`.
    """

    def __init__(self, function: Callable[[], object], seconds: float) -> None:
        self.report_fd, report = os.pipe()
        os.set_blocking(self.report_fd, False)
        try:
            self.pid = os.fork()
        except BaseException:
            os.close(self.report_fd)
            os.close(report)
            raise
        if not self.pid:
            try:
                _restore_signals()
                signal.setitimer(signal.ITIMER_REAL, seconds)
                _close_all_but({0, 1, 2, report})
                try:
                    answer = {'answer': function()}
                except Exception as error:  # the daemon tells its client
                    answer = {'error': str(error)}
                os.write(report, json.dumps(answer).encode())
            finally:
                os._exit(0)
        os.close(report)


def _prepare(command: Command, gate: int, report: int,
             kept: Sequence[int], closes: bool) -> NoReturn:
    """In the child: become the command, or say why not.

    One that may take long `closes` what is the daemon's, so that nobody takes
    it for a daemon that lives. The others lose it when they are the program.
    """
    step = 'gate'

    def say(said: Report) -> None:
        os.write(report, json.dumps(said).encode() + b'\n')

    try:
        try:
            signal.set_wakeup_fd(-1)
            os.setsid()
            for number, fd in enumerate(command.streams):
                os.dup2(fd, number)
            if closes:
                _close_all_but(
                    {0, 1, 2, gate, report, *kept, *command.inherited})
            if not os.read(gate, 1):
                raise InterruptedError(
                    errno.EINTR, 'the daemon has ended in between')
            for fd in command.inherited:
                os.set_inheritable(fd, True)
            step = 'user'
            uid, gid, groups = identity(command.user, command.group)
            say({'user': uid, 'group': gid})
            step = 'working_dir'
            waits = False
            if command.cwd is not None:
                try:
                    os.chdir(command.cwd)
                except PermissionError:  # perhaps the user may
                    waits = uid is not None
                    if not waits:
                        raise
            step = 'command'
            program = command.program() if not waits else b''
            step = 'rlimits'
            for number, soft in command.soft_limits.items():
                hard = resource.getrlimit(number)[1]
                resource.setrlimit(number, _with_soft(soft, hard))
            _restore_signals()
            for name, limits in command.rlimits.items():
                step = f'rlimit.{name}'
                resource.setrlimit(
                    getattr(resource, f'RLIMIT_{name.upper()}'), limits)
            step = 'group'
            if groups is not None:
                os.setgroups(groups)
            if gid is not None:
                os.setresgid(gid, gid, gid)
            step = 'user'
            if uid is not None:
                os.setresuid(uid, uid, uid)
            if waits and command.cwd is not None:
                step = 'working_dir'
                os.chdir(command.cwd)
                step = 'command'
                program = command.program()
            step = 'command'
            os.execve(program, command.args, command.env)
        except BaseException as error:  # the daemon tells its client
            say({'errno': getattr(error, 'errno', None) or 0, 'step': step,
                 'text': getattr(error, 'strerror', None) or str(error)})
    finally:
        os._exit(FAILED)


def identity(user: str | int | None, group: str | int | None,
             ) -> tuple[int | None, int | None, list[int] | None]:
    """The numbers of a user, a group and the user's further groups.

    None for what stays as it is. It may ask servers for the names. LookupError
    for a name that nobody knows.
    """
    uid = None if user is None else _number(user, 'user')
    gid = None if group is None else _number(group, 'group')
    groups: list[int] | None = None
    if uid is not None:
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            if gid is None and uid != os.geteuid():
                raise LookupError(
                    f'the group of the user {uid} is not known: name one as '
                    'gid') from None
        else:
            if gid is None:
                gid = entry.pw_gid
            groups = os.getgrouplist(entry.pw_name, gid)
        if uid == os.geteuid() and gid in (None, os.getegid()):
            return uid if user is not None else None, gid, None
        if os.geteuid():  # only root may set them, and the system says so
            groups = None
        elif groups is None:
            groups = []
    return uid, gid, groups


def _number(name: str | int, kind: str) -> int:
    if isinstance(name, int) or name.isdecimal():
        return int(name)
    try:
        return (pwd.getpwnam(name).pw_uid if kind == 'user'
                else grp.getgrnam(name).gr_gid)
    except KeyError:
        raise LookupError(f'there is no {kind} {name!r}') from None


def _restore_signals() -> None:
    """Before the program, or before a call that may last."""
    for each in _SIGNALS:
        if signal.getsignal(each) is not signal.SIG_DFL:
            signal.signal(each, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _close_all_but(kept: set[int]) -> None:
    """Close what belongs to the daemon: nobody is to take us for it."""
    try:
        last = max(map(int, os.listdir('/proc/self/fd')))
    except OSError:
        return  # the exec closes them
    first = 0
    for fd in [*sorted(kept), last + 1]:
        if first < fd:  # an empty range would be taken for all of them
            os.closerange(first, fd)
        first = fd + 1
