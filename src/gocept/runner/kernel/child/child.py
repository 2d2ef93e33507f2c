"""A process that lives in a kernel, as a runner or an executor has it.

The kernel is its parent, keeps what it says and what is said to it, and knows
how it ended. Here it is watched and ended: by its pidfd, as it is no child of
ours. Nothing ends it when we end.
"""

import contextlib
import hashlib
import json
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypedDict

import zope.interface

from gocept.runner.errors import KernelError, ProcessExistsException
from gocept.runner.interfaces import IProcess
from gocept.runner.kernel.child.channel import KernelChannel
from gocept.runner.kernel.child.intake import Intake
from gocept.runner.kernel.child.notes import Notes
from gocept.runner.kernel.child.sender import Sender
from gocept.runner.kernel.client.defaults import DEVNULL, PIPE, STDOUT
from gocept.runner.logs import Log
from gocept.runner.poller import Poller, Timer
from gocept.runner.process import descendants, keywords, procfs
from gocept.runner.process.base import (
    LOST_STATUS,
    ON_CHANGE,
    BaseProcess,
)
from gocept.runner.process.keywords import Keywords
from gocept.runner.process.launch import Command, Launch
from gocept.runner.process.numbers import Instant
from gocept.runner.process.pidfd import Handle, hold

if TYPE_CHECKING:
    from gocept.runner.kernel.client.client import Kernel

log = Log('gocept.runner.kernel')

_GROUP = 1 << 2  # PIDFD_SIGNAL_PROCESS_GROUP of Linux 6.9

_ANY_TIME = Instant(0, 0, 0)

_POSSIBLE = {'command', 'shell', 'cwd', 'env', 'extra_env', 'user', 'group',
             'rlimits', 'setpgrp', 'setsid', 'process_group',
             'start_new_session', 'stdin', 'stdout', 'stderr', 'detached',
             'popen_kwargs'}
"""The keywords of a start that a kernel can do. As each process has a session
of its own, there is no choice with some of them."""

_STREAMS = {'pipe': PIPE, 'null': DEVNULL, 'merge': STDOUT}


class Entry(TypedDict):
    """What a kernel says of a process."""

    pid: int
    life: str
    running: bool
    status: int | None
    started: float
    command: list[str]
    begin: int
    end: int
    stdin: bool
    stdout: str
    stderr: str
    watched: bool


@zope.interface.implementer(IProcess)
class KernelProcess(BaseProcess):
    """See `IProcess` and `IKernel.open_process`."""

    in_kernel = True
    detached = True
    leads_group = True  # as each has a session of its own

    def __init__(self, kernel: 'Kernel', key: str, entry: Entry, *,
                 was_found: bool = True,
                 is_read: bool = True,
                 stop_signal: int = signal.SIGTERM,
                 stop_timeout: float | None = None,
                 kill_signal: int = signal.SIGKILL,
                 poller: Poller | None = None,
                 on_start: Callable[['KernelProcess'], object] | None = None,
                 on_end: Callable[['KernelProcess'], object] | None = None,
                 name: str = '', **channel: Any) -> None:
        super().__init__(
            name or key, stop_signal=stop_signal, stop_timeout=stop_timeout,
            kill_signal=kill_signal, poller=poller, on_end=on_end)
        self.was_found = was_found
        self.key = key
        """What the kernel calls it."""
        self.args = entry['command']
        self.pid = entry['pid']
        self.before_start = _ANY_TIME
        self._kernel = kernel
        self._notes = Notes(kernel, self.key)
        self._life = entry['life']
        self.handle = self._hold() if entry['running'] else Handle(self.pid)
        self.started_at = procfs.look(self.pid).start or descendants.clock()
        self._intake: Intake | None = None
        self._leaves_end = not is_read
        with contextlib.ExitStack() as undo:
            undo.callback(self.handle.close)
            if is_read:
                self._open_channels(entry, channel, undo)
            if on_start is not None:
                on_start(self)
            if not self.handle.has_ended():
                self._polled_by.register(self)
            elif on_end is None:
                self.finished = True
                self.poll()
            else:
                self._poll_later()
            undo.pop_all()

    def _poll_later(self) -> None:
        """Have the poller take the status, and call `on_end`.

        The caller may hold a lock that `on_end` takes.
        """
        if self.handle.fileno() >= 0:
            self._polled_by.register(self)
        else:  # the kernel knows the status, and the end is no event any more
            self._polled_by.register(Timer(0), lambda *_: self.poll())

    def _hold(self) -> Handle:
        """A handle that is of no other process with the same number."""
        try:
            handle = hold(self.pid)
        except ProcessLookupError:
            return Handle(self.pid)
        entry = self._look()
        if entry is None or not entry['running']:  # it ended meanwhile
            handle.close()
        return handle

    def _look(self) -> Entry | None:
        """What the kernel says now; None if it has forgotten the process."""
        entry = _entries(self._kernel, self.key).get(self.key)
        return entry if entry and entry['life'] == self._life else None

    def _open_channels(self, entry: Entry, options: Keywords,
                       undo: contextlib.ExitStack) -> None:
        streams = [stream for stream, where in (
            ('out', entry['stdout']), ('err', entry['stderr']))
            if where == 'pipe']
        intake = None
        if streams:
            intake = self._intake = self._new_intake(
                entry['begin'], entry['end'])
            undo.callback(intake.close)
        sender = None
        if entry['stdin'] and entry['running']:
            sender = Sender(self._kernel, self.key)
            undo.callback(sender.close)
            sender.open()
            self._polled_by.register(sender)
        if 'out' in streams or sender is not None:
            channel = self.channel = self._channel(
                intake if 'out' in streams else None, 'out', sender, options)
            undo.callback(channel.close)
            channel.has_ended = entry['stdin'] and not entry['running']
        if 'err' in streams:
            self.stderr = self._channel(intake, 'err', None, options)
            undo.callback(self.stderr.close)

    def _new_intake(self, begin: int, end: int) -> Intake:
        watcher = self._kernel.watch_processes(self.key, transactional=True)
        try:
            return Intake(
                watcher, self.key, self._life, begin, end, self._notes)
        except BaseException:
            watcher.close()
            raise

    @property
    def was_ready(self) -> bool:  # type: ignore[override]
        """See `IProcess`."""
        return self.was_found and self._notes.is_ready(self._life)

    def note_ready(self) -> None:
        self._notes.set_ready(self._life)

    def _channel(self, intake: Intake | None, stream: str,
                 sender: Sender | None, options: Keywords) -> KernelChannel:
        channel = KernelChannel(intake, stream, sender, **options)
        channel.name = f'{self.name!r} ({self.pid})'
        return channel

    def _take_status(self) -> int | None:
        if not self.handle.has_ended():
            return None
        try:
            entry = self._look()
        except KernelError as error:
            log.warning('%r: %s', self, error)
            entry = None
        if entry is not None and entry['running']:
            # The kernel is about to notice it. There is no event for that,
            # but none is needed: the pidfd stays readable, so we are asked
            # again. The kernel notices ends in the loop in which it answers,
            # and so it knows the end after a few questions.
            return None
        status = None if entry is None else entry['status']
        self.lost = status is None
        return LOST_STATUS if status is None else status

    def _note_end(self) -> None:
        # Who sees the status may abandon the channels before we are told.
        if self._intake is not None:
            self._intake.is_end_known = True

    def _tell_end(self) -> None:
        super()._tell_end()
        self._polled_by.unregister(self)
        if self._leaves_end:
            return  # others read what it has said
        with _survived(self):
            if self._intake is not None:
                self._intake.note_end()
            else:  # nothing is to be read before the end
                self._notes.clear()
                self._kernel.watch_processes(self.key, after={
                    self.key: (self._life, 0, True)}).close()

    def _signal_own_group(self, signum: int) -> None:
        fd = self.handle.fileno()
        try:
            signal.pidfd_send_signal(fd, signum, None, _GROUP)
        except ProcessLookupError:
            raise
        except OSError:  # an older system
            if self.handle.has_ended():
                raise ProcessLookupError from None
            os.killpg(self.pid, signum)

    def find_servers(self) -> list[Handle]:
        """Look for members of its session that are left behind."""
        if self.finished or not self.is_ours or self.poll() is None:
            return []
        found = descendants.session(self, self.ended_at)
        with self._lock:
            return [*filter(self._left.add, found)]

    def close(self) -> None:
        """See `IProcess`. The process goes on."""
        self.let_go()

    def let_go(self) -> None:
        self.close_channels()
        self._polled_by.unregister(self)
        self.handle.close()

    def close_channels(self) -> None:
        super().close_channels()
        if self._intake is not None:
            self._intake.close()


@contextlib.contextmanager
def _survived(process: KernelProcess) -> Iterator[None]:
    try:
        yield
    except KernelError as error:
        log.warning('%r: %s', process, error)


def _entries(kernel: 'Kernel', *keys: str) -> dict[str, Entry]:
    return kernel.list_processes(*keys)  # type: ignore[return-value]


def _lives(kernel: 'Kernel', key: str) -> dict[str, Entry]:
    """The processes of one key, the oldest one first.

    The key itself is taken as long as an end was not acknowledged.
    """
    found = _entries(kernel, key, f'{key}#*')
    return dict(sorted(found.items(), key=lambda item: item[1]['started']))


def check_process(command: Command, **options: Any) -> None:
    """ValueError for keywords of a process that a kernel cannot do."""
    own = keywords.CHANNEL | keywords.END | keywords.WATCH
    for name in sorted(options.keys() - own):
        if name not in _POSSIBLE and options[name]:
            raise ValueError(f'a process in a kernel cannot have {name}')
    if options.get('adopt'):
        raise ValueError('a process in a kernel cannot have adopt: the '
                         'orphans of its descendants are children of the '
                         'kernel')
    for name in 'stdin', 'stdout', 'stderr':
        stream = options.get(name, 'null')
        if stream not in _STREAMS:
            raise ValueError(
                f'{name} of a process in a kernel is "pipe" or "null"'
                + (' or "merge"' if name == 'stderr' else '')
                + f', not {stream!r}')
    if options.get('popen_kwargs'):
        raise ValueError('a process in a kernel cannot have popen_kwargs')


def has_process(kernel: 'Kernel', key: str) -> bool:
    """See `IKernel`."""
    return any(entry['running'] for entry in _lives(kernel, key).values())


def running_processes(kernel: 'Kernel') -> list[KernelProcess]:
    """All that run, in order to end them: nothing of them is read."""
    return [KernelProcess(kernel, key, entry, is_read=False)
            for key, entry in _entries(kernel).items() if entry['running']]


def ended_processes(kernel: 'Kernel', key: str, *, command: Command = (),
                    besides: BaseProcess | None = None, **options: Any,
                    ) -> list[KernelProcess]:
    """See `IKernel`."""
    _, watch = _divided(options)
    known = besides._life if isinstance(besides, KernelProcess) else None
    return [KernelProcess(kernel, each, entry, **watch)
            for each, entry in _lives(kernel, key).items()
            if not entry['running'] and not entry['watched']
            and entry['life'] != known]


def open_process(kernel: 'Kernel', key: str, command: Command, *,
                 make_way: Callable[[], object] = lambda: None,
                 on_change: str = 'keep', overflow: str = 'drop',
                 **options: Any) -> KernelProcess:
    """See `IKernel`."""
    if on_change not in ON_CHANGE:
        raise ValueError(
            f'on_change must be one of {", ".join(map(repr, ON_CHANGE))}, '
            f'not {on_change!r}')
    start, watch = _divided(options)
    launch = Launch(command, **start)
    declaration = _digest(launch, options)
    lives = _lives(kernel, key)
    for each, entry in lives.items():
        if not entry['running']:
            continue
        if (Notes(kernel, each).declaration in (declaration, None)
                if on_change != 'refuse'
                else entry['command'] == launch.args):
            return KernelProcess(kernel, each, entry, **watch)
        if on_change == 'refuse':
            raise ProcessExistsException(
                f'process {entry["pid"]} is {each!r} in {kernel!r}, and runs '
                f'another command: {shlex.join(entry["command"])}')
        if on_change == 'keep':
            log.warning(
                '%s runs as process %d with another declaration than that of '
                'now, and goes on; to have the new one, end it, or declare '
                'on_change="replace"', key, entry['pid'])
            return KernelProcess(kernel, each, entry, **watch)
        log.warning('%s runs as process %d with another declaration than that '
                    'of now: it is replaced', key, entry['pid'])
        _end(kernel, each, entry, watch)
    make_way()
    free = next(each for each in _names(key) if each not in lives)
    notes = Notes(kernel, free)
    notes.clear()
    notes.declaration = declaration
    try:
        kernel.make_process(
            free, args=launch.args, env=_environment(launch),
            working_dir=_directory(launch), uid=launch.user, gid=launch.group,
            rlimits=launch.rlimits,
            stdin=_STREAMS[options.get('stdin', 'null')],
            stdout=_STREAMS[options.get('stdout', 'null')],
            stderr=_STREAMS[options.get('stderr', 'null')], overflow=overflow)
    except KernelError:
        if not _entries(kernel, free):
            notes.clear()
        raise
    entry = _entries(kernel, free)[free]
    return KernelProcess(kernel, free, entry, was_found=False, **watch)


def _names(key: str) -> Iterator[str]:
    yield key
    number = 2
    while True:
        yield f'{key}#{number}'
        number += 1


def _divided(options: Keywords) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is for the start, and what is for the process here."""
    ours = keywords.CHANNEL | keywords.END | keywords.WATCH
    start = {name: value for name, value in options.items()
             if name not in ours}
    watch = {name: value for name, value in options.items()
             if name in ours and name not in ('adopt', 'servers')}
    return start, watch


def _end(kernel: 'Kernel', key: str, entry: Entry, watch: Keywords) -> None:
    """End it, and leave what it has said to be read."""
    process = KernelProcess(kernel, key, entry, is_read=False, **{
        name: value for name, value in watch.items()
        if name in keywords.END or name == 'name'})
    with contextlib.closing(process):
        process.terminate()


def _environment(launch: Launch) -> dict[str, str]:
    return {os.fsdecode(name): os.fsdecode(value)
            for name, value in launch.environment().items()}


def _directory(launch: Launch) -> str:
    return os.path.join(os.getcwd(), launch.cwd or '')


def _digest(launch: Launch, options: Keywords) -> str:
    """What tells one declaration from another, though not what differs.

    The environment that is ours, and not declared, is no part of it.
    """
    declared = [launch.args, None if launch.cwd is None else os.fspath(
        launch.cwd), launch.identity, launch.rlimits, *(
            repr(options.get(name)) for name in (
                'env', 'extra_env', 'stdin', 'stdout', 'stderr'))]
    return hashlib.sha256(json.dumps(declared).encode()).hexdigest()
