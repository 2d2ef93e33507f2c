"""A process of the kernel."""

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from gocept.runner.kernel.daemon.input import Input
from gocept.runner.kernel.daemon.output import Output, Record
from gocept.runner.kernel.daemon.parameters import Parameters
from gocept.runner.kernel.daemon.streams import Sink, Stream
from gocept.runner.kernel.wire.frames import Json
from gocept.runner.process import procfs

if TYPE_CHECKING:
    from gocept.runner.kernel.daemon.processes import Processes, Write
    from gocept.runner.kernel.daemon.watching import Cursor
_MOST_SHOWN = 20  # variables in an error


class KernelProcess:
    """One process, from the record of its start to the end of its output."""

    __slots__ = (
        '_final',
        'asked',
        'born',
        'bufsize',
        'closed',
        'command',
        'cursors',
        'digest',
        'ended',
        'given',
        'group',
        'held',
        'input',
        'life',
        'name',
        'output',
        'overflow',
        'owner_of_all',
        'pid',
        'removed',
        'reported',
        'rest',
        'sink',
        'slow',
        'started',
        'status',
        'stderr',
        'stdin',
        'stdout',
        'streams',
        'user',
        'waiting',
        'working_dir',
        'writes',
    )

    def __init__(self, processes: 'Processes', life: str, record: Json,
                 ) -> None:
        self.owner_of_all = processes
        self.life = life
        self.name: str = record['name']
        self.pid: int = record['pid']
        """0 as long as it is not known."""
        self.born: list[int] = record['born']
        """When it was started, in clock ticks after the boot: not before the
        first number, and not after the second one."""
        self.started: float = record['started']
        self.command: list[str] = record['command']
        self.working_dir: str | None = record['cwd']
        self.digest: str = record['digest']
        self.given: list[str | int | None] = record['given']
        """User and group as they were asked for."""
        self.user: int | None = record['user']
        self.group: int | None = record['group']
        self.bufsize: int = record['bufsize']
        self.overflow: Literal['drop', 'block'] = record['overflow']
        self.stdin: str = record['stdin']
        self.stdout: str = record['stdout']
        self.stderr: str = record['stderr']
        self.asked: list[Json] = record['asked']
        """The session and the id of the request that has started it."""
        self.slow: bool = record['slow']
        self.status: int | None = record['status']
        """With which it has ended; None if nobody knows, or it runs."""
        self.ended: float | None = record['ended']
        self.closed: bool = record['closed']
        """Whether all that it has written before its end was taken in."""
        self.removed: bool = record['removed']
        """Whether its output is thrown away."""
        self.reported = 0
        """How many of the bytes that were dropped the owner knows of."""
        self.output: Output | None = None
        self.input: Input | None = None
        self.streams: dict[int, Stream] = {}
        self.sink: Sink | None = None
        self.rest: dict[int, int] | None = None
        """After its end: what each stream still has of it, in bytes."""
        self.cursors: list[Cursor] = []
        self.waiting: list[Callable[[], None]] = []
        """To be called when the start has succeeded or failed."""
        self.writes: deque[Write] = deque()
        self.held = 0
        """Bytes of its output, as they were counted last."""
        self._final = 0

    @property
    def record(self) -> Json:
        """What a successor needs."""
        return {
            'name': self.name, 'pid': self.pid, 'born': self.born,
            'started': self.started, 'command': self.command,
            'cwd': self.working_dir, 'digest': self.digest,
            'given': self.given, 'user': self.user, 'group': self.group,
            'bufsize': self.bufsize, 'overflow': self.overflow,
            'stdin': self.stdin, 'stdout': self.stdout, 'stderr': self.stderr,
            'asked': self.asked, 'slow': self.slow, 'status': self.status,
            'ended': self.ended, 'closed': self.closed,
            'removed': self.removed}

    @property
    def running(self) -> bool:
        """Whether it is there, or about to be."""
        return self.ended is None

    def is_it(self, pid: int) -> bool:
        """Whether the process with this number may be the child."""
        return self.is_that(procfs.look(pid))

    def is_that(self, found: procfs.Stat) -> bool:
        """The same for one that was looked at."""
        first, last = self.born
        return first <= found.start <= (last or ticks())

    @property
    def begin(self) -> int:
        """The offset of the first byte that is kept."""
        return self._final if self.output is None else self.output.begin

    @property
    def end(self) -> int:
        """The offset behind the last byte that was read."""
        return self._final if self.output is None else self.output.end

    @property
    def dropped(self) -> int:
        """How many bytes did not fit into the buffer."""
        return 0 if self.output is None else self.output.dropped

    @property
    def unreported(self) -> int:
        """How many bytes were dropped that no owner knows of."""
        return max(0, self.dropped - self.reported)

    @property
    def info(self) -> dict[str, Json]:
        """What all clients are shown."""
        shown: dict[str, Json] = {
            'pid': self.pid, 'running': self.running, 'started': self.started}
        if self.user is not None:
            shown['uid'] = self.user
        if self.group is not None:
            shown['gid'] = self.group
        shown['args'] = ' '.join(self.command)
        return shown

    @property
    def details(self) -> dict[str, Json]:
        """What our own clients are shown."""
        return {
            **self.info, 'life': self.life, 'status': self.status,
            'ended': self.ended, 'closed': self.closed,
            'begin': self.begin, 'end': self.end,
            'dropped': self.dropped, 'buffered': self.end - self.begin,
            'bufsize': self.bufsize, 'overflow': self.overflow,
            'stdin': self.stdin == 'pipe', 'stdout': self.stdout,
            'stderr': self.stderr, 'watched': self.owner is not None,
            'command': self.command, 'working_dir': self.working_dir,
            'removed': self.removed}

    def is_what(self, parameters: Parameters) -> bool:
        """Whether it is what is asked for, but for user and group."""
        return self.digest == parameters.digest

    def differences(self, parameters: Parameters) -> list[str]:
        """The parameters that are not what is asked for, but for user and
        group."""
        names = [name for name, ours, wanted in (
            ('args', self.command, parameters.args),
            ('working_dir', self.working_dir, parameters.working_dir),
            ('stdin', self.stdin, parameters.stdin),
            ('stdout', self.stdout, parameters.stdout),
            ('stderr', self.stderr, parameters.stderr),
            ('bufsize', self.bufsize, parameters.bufsize),
            ('overflow', self.overflow, parameters.overflow),
        ) if ours != wanted]
        hints: Json = self.owner_of_all.state.get('hints', self.life)
        if hints is not None:
            env, rlimits = hints
            wanted, asked = parameters.hints(self.life)
            if env and wanted:
                variables = [
                    name for name in sorted(env.keys() | wanted.keys())
                    if env.get(name) != wanted.get(name)]
                if variables:
                    names.append(f'env ({_listing(variables)})')
            elif env != wanted:
                names.append('env')
            if {name: [*limits] for name, limits in rlimits.items()} != {
                    name: [*limits] for name, limits in asked.items()}:
                names.append('rlimits')
        return names or ['env or rlimits']

    def records(self, start: int, limit: int) -> Sequence[Record]:
        """The pieces of its output from an offset on."""
        if self.output is None:
            return ()
        return self.output.records(start, limit)

    # Watching

    @property
    def owner(self) -> 'Cursor | None':
        """Whose acknowledgements count."""
        for cursor in self.cursors:
            if not cursor.watch.follows:
                return cursor
        return None

    def wake(self) -> None:
        """There is more to see."""
        for cursor in self.cursors:
            cursor.watch.wake(cursor)

    def acknowledge(self, offset: int) -> None:
        """The owner of the output has seen it up to there."""
        output = self.output
        if output is None:
            return
        if output.dropped != self.reported:
            known = output.dropped - max(0, output.begin - offset)
            if known > self.reported:
                self.reported = known
                self.owner_of_all.note_reported(self)
        if offset > output.begin:
            output.acknowledge(offset)
            self.owner_of_all.count(self)
            self.resume()

    def leave(self, cursor: 'Cursor') -> None:
        """Somebody watches no more, and another one may take over."""
        owned = self.owner is cursor
        with contextlib.suppress(ValueError):
            self.cursors.remove(cursor)
        heir = self.owner if owned else None
        if heir is not None:
            # What this one has missed, the one before it did not know of.
            lost = self.unreported - max(0, self.begin - heir.first)
            heir.missing += max(0, lost)
            self.acknowledge(heir.acknowledged)
            heir.watch.wake(heir)

    def forget(self) -> None:
        """Its owner knows of its end: it is not listed any more."""
        self.owner_of_all.forget(self)

    def resume(self) -> None:
        """There is room again: read what was left in the pipes."""
        for stream in self.streams.values():
            stream.resume()

    def drop_output(self) -> None:
        """Keep nothing of what it has written, and what it will write."""
        output, self.output = self.output, None
        if output is not None:
            self._final = output.end
            output.close()


def closed_input(process: KernelProcess) -> str:
    """Why nobody can write to a process."""
    if process.stdin != 'pipe':
        return (f'{process.name} was started without stdin: make it with '
                'stdin=PIPE')
    return f'the standard input of {process.name} is closed'


def _listing(names: Sequence[str]) -> str:
    """The first of them, as text of one line."""
    shown = [name if name.isprintable() else repr(name)
             for name in names[:_MOST_SHOWN]]
    if len(names) > _MOST_SHOWN:
        shown.append('...')
    return ', '.join(shown)


def ticks() -> int:
    """Now, as the system counts the starts of processes."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME)
               * os.sysconf('SC_CLK_TCK'))
