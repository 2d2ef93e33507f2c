"""How processes are started, and what has become of starts in between.

What answers at once is started at once. The rest is prepared in a forked
child (`gocept.runner.process.direct`), which says when it is the program.
"""

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon import reserve
from gocept.runner.kernel.daemon.parameters import Parameters, arguments
from gocept.runner.kernel.daemon.process import KernelProcess
from gocept.runner.kernel.daemon.processes import Processes
from gocept.runner.kernel.daemon.sockets import Sockets
from gocept.runner.kernel.keeper.link import KeeperGone
from gocept.runner.kernel.wire.text import to_bytes
from gocept.runner.logs import Log
from gocept.runner.poller.timer import Timer
from gocept.runner.process import direct, procfs
from gocept.runner.process.mounts import Mounts
from gocept.runner.waits.source import Item, Source

if TYPE_CHECKING:
    from gocept.runner.kernel.keeper.link import Link

log = Log('gocept.runner.kernel')

PATIENCE = 10.0  # seconds for what a child does before it is the program

_BIRTH = 'birth:'
"""Of the keys of pipes that tell a successor that no start is under way."""

_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}

Done = Callable[[KernelProcess], None]

Failed = Callable[[str], None]


class Starts:
    """Starts processes."""

    def __init__(self, processes: Processes, sockets: Sockets,
                 mounts: Mounts, link: 'Link',
                 soft_limits: Mapping[int, int]) -> None:
        self._processes = processes
        self._sockets = sockets
        self._mounts = mounts
        self._link = link
        self._poller = processes.poller
        self._soft_limits = soft_limits
        self._preparing: dict[str, tuple[Done, Failed] | None] = {}
        self._births = Births(self, processes, link)

    def is_under_way(self, process: KernelProcess) -> bool:
        """Whether it is not known yet if a start succeeds."""
        return not process.pid or process.life in self._preparing

    def start(self, parameters: Parameters, asked: tuple[str, int],
              done: Done, failed: Failed) -> None:
        """Start a process that does not exist.

        `done`, which records what is known of it, or `failed` is called, now
        or later. KernelError for what can be said now.
        """
        values, cloned = self._values(parameters)
        command = direct.Command(
            arguments(parameters, values),
            {to_bytes(name): to_bytes(value)
             for name, value in parameters.env.items()},
            cwd=None if parameters.working_dir is None
            else to_bytes(parameters.working_dir),
            soft_limits=self._soft_limits, user=parameters.user,
            group=parameters.group, rlimits=parameters.rlimits)
        slow = bool(parameters.rlimits or command.changes_user
                    or command.may_hang(self._mounts))
        with self._sockets.cloned(cloned) as clones:
            if clones:
                for name, fd in clones.items():
                    values[name, 'fileno'] = str(fd)
                command.args = arguments(parameters, values)
                command.inherited = tuple(clones.values())
            with contextlib.ExitStack() as theirs:
                if slow:
                    self._prepare(parameters, command, asked, theirs,
                                  done, failed)
                else:
                    self._spawn(parameters, command, asked, theirs, done)

    def _values(self, parameters: Parameters,
                ) -> tuple[dict[tuple[str, str], str], set[str]]:
        """What placeholders stand for; those that get a socket of their own.
        """
        values: dict[tuple[str, str], str] = {}
        cloned: set[str] = set()
        for name, part in parameters.sockets():
            found = self._sockets.get(name)
            if found is None:
                raise KernelError(f'Socket {name} not found: make it before '
                                  f'the process {parameters.name}')
            if part == 'port':
                values[name, part] = str(found.parameters.port)
            elif found.parameters.reuseport:
                cloned.add(name)
                values[name, part] = ''
            else:
                values[name, part] = str(found.fd)
        return values, cloned

    def _spawn(self, parameters: Parameters, command: direct.Command,
               asked: tuple[str, int], theirs: contextlib.ExitStack,
               done: Done) -> None:
        process = self._add(parameters, command, asked, theirs, False)
        try:
            pid = direct.spawn(command)
        except OSError as error:
            self._processes.discard(process)
            raise KernelError(_spawn_error(error, parameters)) from error
        except BaseException:
            self._processes.discard(process)
            raise
        process.user = _as_number(parameters.user)
        process.group = _as_number(parameters.group)
        self._processes.runs(process, pid)
        done(process)

    def _prepare(self, parameters: Parameters, command: direct.Command,
                 asked: tuple[str, int], theirs: contextlib.ExitStack,
                 done: Done, failed: Failed) -> None:
        preparation = direct.Preparation()
        theirs.callback(preparation.close)
        process = self._add(parameters, command, asked, theirs, True,
                            preparation.report_fd)
        if command.changes_user:
            for fd in command.streams:
                # So that the child can open /dev/stdout.
                if fd != self._processes.null:
                    with contextlib.suppress(OSError):
                        os.fchmod(fd, 0o666)
        try:
            pid = preparation.fork(
                command, self._sockets.descriptors,
                command.changes_user or command.may_hang(self._mounts))
            self._processes.runs(process, pid)
            self._processes.save(process)
        except BaseException as error:
            # Its gate is closed next, so a child is never the program.
            os.close(preparation.report_fd)
            self._processes.failed(process)
            if isinstance(error, OSError):
                raise KernelError(_spawn_error(error, parameters)) from error
            raise
        preparation.open_gate()
        self._expect(process, preparation.report_fd, (done, failed))

    def _expect(self, process: KernelProcess, report_fd: int,
                answers: tuple[Done, Failed] | None) -> None:
        """Wait for the report of a child that prepares itself."""
        def tell(said: bytes) -> None:
            self._poller.unregister(timer)
            self._reported(process, direct.parsed(said))

        def give_up(*result: object) -> None:
            self._poller.unregister(reports)
            reports.close()
            # It is a child of ours, and not reaped as long as it is listed.
            if process.running and process.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            self._over(process, (
                f'{process.name} could not be started within {PATIENCE:g} s: '
                f'its working_dir {process.working_dir}, its program '
                f'{process.command[0]} or its user is on a server that does '
                'not answer'))

        timer = Timer(PATIENCE)
        reports = direct.Reports(report_fd, tell)
        self._preparing[process.life] = answers
        self._poller.register(reports)
        self._poller.register(timer, give_up)

    def _reported(self, process: KernelProcess, report: direct.Report,
                  ) -> None:
        step = report.get('step')
        if step is not None:
            self._over(process, _step_error(process, step, report))
            return
        if not process.pid:
            self._over(process, f'{process.name}: the daemon has died before '
                                'there was a child; make it again')
            return
        # A daemon that has died may have read what the child has said.
        found = _identity_of(process) if 'user' not in report else (
            report['user'], report.get('group'))
        process.user, process.group = found
        self._over(process, '')

    def _over(self, process: KernelProcess, error: str) -> None:
        """A preparation has succeeded or failed."""
        answers = self._preparing.pop(process.life, None)
        if error:
            self._processes.failed(process)
            if answers is not None:
                answers[1](error)
            else:
                log.warning('A start under the former daemon failed: %s',
                            error)
        elif answers is not None:
            try:
                with contextlib.suppress(KeeperGone):
                    answers[0](process)
            except KernelError as failure:
                answers[1](str(failure))
        else:
            self._processes.save_if_possible(process)
        self._link.release([f'report:{process.life}'])
        self.tell_waiting(process)

    def tell_waiting(self, process: KernelProcess) -> None:
        """It is known now what has become of a start."""
        waiting, process.waiting = process.waiting, []
        for call in waiting:
            call()

    def _add(self, parameters: Parameters, command: direct.Command,
             asked: tuple[str, int], theirs: contextlib.ExitStack,
             slow: bool, report_fd: int = -1) -> KernelProcess:
        null = self._processes.null
        streams = [null, null, null]

        def descriptors(life: str) -> dict[str, int]:
            opened: dict[str, int] = {}
            with contextlib.ExitStack() as failure:
                for number, kind in enumerate(('in', 'out', 'err')):
                    if getattr(parameters, f'std{kind}') != 'pipe':
                        continue
                    read, write = os.pipe()
                    ours, child = ((write, read) if kind == 'in'
                                   else (read, write))
                    theirs.callback(os.close, child)
                    failure.callback(os.close, ours)
                    reserve.check(ours, child)
                    os.set_blocking(ours, False)
                    streams[number], opened[kind] = child, ours
                failure.pop_all()
            if parameters.stderr == 'stdout':
                streams[2] = streams[1]
            if report_fd >= 0:
                opened['report'] = report_fd
            return opened

        try:
            process = self._processes.add(
                parameters, asked, slow, descriptors)
        except OSError as error:
            if report_fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(report_fd)
            raise KernelError(_spawn_error(error, parameters)) from error
        command.streams = (streams[0], streams[1], streams[2])
        return process

    def recover(self) -> None:
        """See what has become of the starts under the former daemon."""
        table = self._link.table
        pending = []
        for process in [*self._processes.all_of_them]:
            report = table.get(f'report:{process.life}', -1)
            if report >= 0 or not process.pid:
                self._processes.recovery.look_at(process)
            if report >= 0:
                self._expect(process, report, None)
            elif not process.pid and process.slow:
                self._processes.failed(process)
            elif not process.pid:
                pending.append(process)
        self._births.recover(pending)

    def ended(self, pid: int, status: int) -> bool:
        """A child that is not known has ended; whether it may be one."""
        return self._births.ended(pid, status)

    def close(self) -> None:
        """Close what belongs to this daemon alone."""
        self._births.close()


class Births(Source):
    """Finds the children that were forked, but whose pids were not recorded.

    Each daemon has a pipe whose other end the keeper holds. A child has it
    until it is its program. So, when the daemon has died, the end of the pipe
    says that there is no such child any more.
    """

    def __init__(self, starts: Starts, processes: Processes, link: 'Link',
                 ) -> None:
        self._starts = starts
        self._processes = processes
        self._link = link
        self._pending: list[KernelProcess] = []
        self._old = {key: _End(fd, self._look)
                     for key, fd in link.table.items()
                     if key.startswith(_BIRTH)}
        self._unknown: dict[int, int] = {}
        self._timer = Timer(PATIENCE)
        read, self._write = os.pipe()
        link.hold({_BIRTH + os.urandom(8).hex(): read})

    def recover(self, pending: Sequence[KernelProcess]) -> None:
        """Find out about these."""
        self._pending = [*pending]
        if not self._pending:
            self._forget_old()
            return
        poller = self._processes.poller
        for end in self._old.values():
            poller.register(end)
        poller.register(self._timer, lambda *result: self._resolve())
        self._look()

    def _look(self) -> None:
        """Whether the last one is its program by now."""
        if self._pending and all(
                end.has_come() for end in self._old.values()):
            self._resolve()

    def ended(self, pid: int, status: int) -> bool:
        """A child ended that is not known."""
        if not self._pending:
            return False
        self._unknown[pid] = status
        return True

    def _resolve(self) -> None:
        poller = self._processes.poller
        poller.unregister(self._timer)
        pending, self._pending = self._pending, []
        # Those that have ended as well: the keeper reaps them when it hears
        # that their end is known.
        children = [pid for pid in procfs.children(self._link.keeper)
                    if pid != os.getpid()
                    and self._processes.of_pid(pid) is None]
        for process in pending:
            pid = _find(process, children)
            if pid:
                children.remove(pid)
                log.info('%r is process %d, which was started when the '
                         'former daemon died', process.name, pid)
                self._processes.runs(process, pid)
                self._processes.save(process)
                if pid in self._unknown:
                    self._processes.ended(process, self._unknown.pop(pid))
                    self._link.known(pid)
            else:
                self._processes.failed(process)
            self._starts.tell_waiting(process)
        for pid in self._unknown:
            self._link.known(pid)
        self._unknown.clear()
        self._forget_old()

    def _forget_old(self) -> None:
        for end in self._old.values():
            end.close()
        self._link.release(self._old)
        self._old = {}

    def close(self) -> None:
        """Close our end: no child is being started."""
        os.close(self._write)


class _End(Source):
    """Tells when nobody has the other end of a pipe any more."""

    def __init__(self, fd: int, told: Callable[[], None]) -> None:
        self._fd = fd
        self._told = told

    def fileno(self) -> int:
        return self._fd

    def has_come(self) -> bool:
        """Whether nobody has it."""
        try:
            os.set_blocking(self._fd, False)
            return not os.read(self._fd, 1)
        except BlockingIOError:
            return False

    def collect(self) -> tuple[Sequence[Item], bool]:
        if not self.has_come():
            return (), False
        self._told()
        return (), True

    def close(self) -> None:
        """Close our end."""
        fd, self._fd = self._fd, -1
        self._tell_closing(fd)
        self._tell_over()
        os.close(fd)


def _as_number(value: str | int | None) -> int | None:
    return value if isinstance(value, int) else None


def _identity_of(process: KernelProcess) -> tuple[int | None, int | None]:
    """User and group of a process, where they were asked for."""
    user, group = process.given
    found = None
    with contextlib.suppress(OSError):
        found = os.stat(f'/proc/{process.pid}')
    return (None if user is None else found.st_uid if found
            else _as_number(user),
            None if group is None and user is None else found.st_gid if found
            else _as_number(group))


def _find(process: KernelProcess, children: Sequence[int]) -> int:
    """The pid of the child of this process; 0 if there is none."""
    return (next(_with_pipes(process, children), 0)
            or next(_leaders(process, children), 0))


def _with_pipes(process: KernelProcess, children: Sequence[int],
                ) -> Iterator[int]:
    """Those that have the other end of one of its pipes."""
    ours = {}
    for number, stream in process.streams.items():
        ours[number] = os.fstat(stream.fileno())
    if process.sink is not None:
        ours[0] = os.fstat(process.sink.sink_fd)
    for pid in children:
        for number, stat in ours.items():
            with contextlib.suppress(OSError):
                if os.path.samestat(
                        stat, os.stat(f'/proc/{pid}/fd/{number}')):
                    yield pid


def _leaders(process: KernelProcess, children: Sequence[int],
             ) -> Iterator[int]:
    """Those that lead a session, and are not older than its record."""
    for pid in children:
        found = procfs.look(pid)
        if found.session == pid and process.is_it(pid):
            yield pid


def _spawn_error(error: OSError, parameters: Parameters) -> str:
    if error.errno in _SHORTAGES and error.filename is None:
        return (f'{parameters.name} cannot be started now: '
                f'{error.strerror}; '
                'try again when there are less processes or open files, or '
                'raise the limit of open files (ulimit -Hn) before the kernel '
                'starts')
    filename = error.filename
    if isinstance(filename, bytes):
        filename = os.fsdecode(filename)
    if parameters.working_dir is not None and (
            filename == parameters.working_dir):
        return f'Bad working_dir - {parameters.working_dir}: {error.strerror}'
    if error.errno == errno.E2BIG:
        return ('Bad command - its arguments and its environment are too '
                'long together for the system')
    return _command_error(parameters.args[0], error.errno, error.strerror)


def _command_error(program: str, number: object, text: object) -> str:
    if number == errno.EISDIR:
        return (f'Bad command - {program} is a directory; give the path of a '
                'program')
    return (f'Bad command - {program}: {text}; give the path of a program, or '
            'a PATH in env')


def _step_error(process: KernelProcess, step: str,
                report: Mapping[str, object]) -> str:
    text = report.get('text')
    if step == 'working_dir':
        return f'Bad working_dir - {process.working_dir}: {text}'
    if step == 'command':
        return _command_error(
            process.command[0], report.get('errno'), text)
    if step == 'gate':
        return f'{process.name}: {text}; make it again'
    if step not in ('user', 'group'):
        return f'Bad {step} - {text}'
    user, group = process.given
    noun, given = (('gid', group) if user is None or (
        step == 'group' and group is not None) else ('uid', user))
    if report.get('errno') == errno.EPERM:
        text = f'{text}; the kernel runs as user {os.geteuid()}'
    return f'Bad {noun} {given} - {text}'
