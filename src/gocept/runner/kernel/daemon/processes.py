"""The processes of the kernel: their starts, their output and their ends.

A start is recorded, and its descriptors are with the keeper, before there is a
child; then its pid is recorded. An end is recorded before the child is reaped.
So a successor finds out about each child what has become of it.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon.input import Input
from gocept.runner.kernel.daemon.names import matching
from gocept.runner.kernel.daemon.output import (
    Output,
)
from gocept.runner.kernel.daemon.parameters import Parameters
from gocept.runner.kernel.daemon.process import (
    KernelProcess,
    closed_input,
    ticks,
)
from gocept.runner.kernel.daemon.recovery import Recovery
from gocept.runner.kernel.daemon.streams import Releases, Sink, Stream
from gocept.runner.kernel.wire.frames import Json
from gocept.runner.logs import Log
from gocept.runner.poller.timer import Timer
from gocept.runner.waits.deadline import Deadline

if TYPE_CHECKING:
    from gocept.runner.kernel.daemon.state import State
    from gocept.runner.kernel.keeper.link import Link
    from gocept.runner.kernel.wire.conversation import Request
    from gocept.runner.poller.poller import Poller

log = Log('gocept.runner.kernel')

_AGAIN = 60.0  # seconds until a shortage that lasts is logged again

_RETRY = 1.0  # seconds until a stream is read again for which memory is full

_LEAST = 2 ** 16  # bytes that a buffer keeps where all of them have too many

_DESCRIPTORS = ('out', 'err', 'in', 'ring', 'input', 'report')
"""What the keeper holds of a process: the key is this, a colon and its life.
"""

class Write:
    """A request to write for which there is no room yet."""

    __slots__ = ('done', 'request')

    def __init__(self, request: 'Request', done: Callable[[], None]) -> None:
        self.request = request
        self.done = done
        """To be called when it was answered."""


class Processes:
    """The processes by name, and by life those of which only output is left.
    """

    def __init__(self, state: 'State', link: 'Link', poller: 'Poller',
                 memory: int) -> None:
        self.state = state
        self.link = link
        self.poller = poller
        self.null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.suspended: dict[Stream, None] = {}
        self._releases = Releases(link)
        poller.register(self._releases)
        self.buffered = 0
        """Bytes of output that are kept in all."""
        self._memory = memory
        self._cramped: dict[KernelProcess, None] = {}
        """Those that keep less, or wait, as all together had too much."""
        self._by_name: dict[str, KernelProcess] = {}
        self._by_life: dict[str, KernelProcess] = {}
        self._by_pid: dict[int, KernelProcess] = {}
        self.recovery = Recovery(self)
        """Of those of the former daemon that were not looked at yet."""
        self._short = False
        self._quiet = Deadline(0)
        """Until then no shortage is logged."""
        self.on_silence: Callable[[], None] | None = None
        """Called when nobody writes anything any more."""
        self.answer_write: Callable[[Request, KernelProcess], bool] = (
            lambda request, process: True)

    def __len__(self) -> int:
        return len(self._by_life)

    @property
    def listed(self) -> Mapping[str, KernelProcess]:
        """Those that clients see."""
        self.recovery.look_at_all()
        return self._by_name

    @property
    def all_of_them(self) -> Iterable[KernelProcess]:
        """Also those of which only the output of descendants is left.

        Those of the former daemon may not have been looked at yet.
        """
        return self._by_life.values()

    def select(self, names: Iterable[str], required: bool = False,
               ) -> dict[str, KernelProcess]:
        """Those with such names or pids; all of them for no names."""
        found = matching(self._by_name, names, required, self._numbered)
        if self.recovery.buffered:
            for process in found.values():
                self.recovery.look_at(process)
            found = {name: process for name, process in found.items()
                     if self._by_name.get(name) is process}
        return found

    def _numbered(self, number: int) -> str | None:
        process = self._by_pid.get(number)
        if process is None or process.name not in self._by_name:
            return None
        return process.name

    def get(self, name: str) -> KernelProcess | None:
        """One process by its name."""
        process = self._by_name.get(name)
        if process is not None and self.recovery.buffered:
            self.recovery.look_at(process)
            process = self._by_name.get(name)
        return process

    def of_pid(self, pid: int) -> KernelProcess | None:
        """The one that runs with this pid."""
        process = self._by_pid.get(pid)
        if process is not None:
            self.recovery.look_at(process)
        return process if process is not None and process.running else None

    # Records

    def add(self, parameters: Parameters, asked: tuple[str, int], slow: bool,
            descriptors: Callable[[str], dict[str, int]]) -> KernelProcess:
        """Record a start; `descriptors` opens what our end has of it.

        It gets the life. The keys are of those of `_DESCRIPTORS`.
        """
        life = os.urandom(8).hex()
        process = KernelProcess(self, life, {
            'name': parameters.name, 'pid': 0, 'born': [ticks(), 0],
            'started': time.time(), 'command': parameters.args,
            'cwd': parameters.working_dir, 'digest': parameters.digest,
            'given': [parameters.user, parameters.group],
            'user': None, 'group': None, 'bufsize': parameters.bufsize,
            'overflow': parameters.overflow, 'stdin': parameters.stdin,
            'stdout': parameters.stdout, 'stderr': parameters.stderr,
            'asked': list(asked), 'slow': slow, 'status': None, 'ended': None,
            'closed': False, 'removed': False})
        opened = descriptors(life)
        try:
            self.link.hold({f'{kind}:{life}': fd
                            for kind, fd in opened.items()})
            with self.state.batch():
                self.state.put('process', life, process.record)
                self.state.put('hints', life, parameters.hints(life))
        except BaseException:
            self.link.release([f'{kind}:{life}' for kind in opened])
            for fd in opened.values():
                os.close(fd)
            raise
        opened.pop('report', None)
        self._attach(process, opened)
        self._by_life[life] = process
        self._by_name[process.name] = process
        return process

    def _attach(self, process: KernelProcess, opened: Mapping[str, int],
                ) -> None:
        """Give a process our ends of its pipes, and its buffers."""
        life = process.life
        for number, kind in ((1, 'out'), (2, 'err')):
            if kind in opened:
                process.streams[number] = Stream(process, number, opened[kind])
        if process.streams and not process.removed and not process.closed:
            process.output = Output(
                process.bufsize, process.overflow, opened.get('ring', -1),
                on_create=lambda fd: self.link.hold({f'ring:{life}': fd}))
            reported: Json = self.state.get('reported', life)
            process.reported = reported or 0
            self.count(process)
        elif 'ring' in opened and process.removed:
            os.close(opened['ring'])
            self.link.release([f'ring:{life}'])
        elif 'ring' in opened:
            process.output = Output(
                process.bufsize, process.overflow, opened['ring'])
            self.count(process)
        if 'in' in opened:
            process.sink = Sink(process, opened['in'])
            process.input = Input(
                self.state, life, fd=opened.get('input', -1),
                on_create=lambda fd: self.link.hold({f'input:{life}': fd}))
            process.sink.closing = bool(self.state.get('closing', life))

    def save(self, process: KernelProcess) -> None:
        """Record what has changed."""
        self.state.put('process', process.life, process.record)

    def runs(self, process: KernelProcess, pid: int) -> None:
        """The child is there; the caller records that."""
        process.pid = pid
        process.born = [process.born[0], ticks()]
        self._by_pid[pid] = process
        self.listen(process)

    def listen(self, process: KernelProcess) -> None:
        """Read what it writes from now on."""
        for stream in process.streams.values():
            self.poller.register(stream)

    def failed(self, process: KernelProcess) -> None:
        """There is no child after all: forget the record."""
        self._by_pid.pop(process.pid, None)
        self.discard(process)

    def note_reported(self, process: KernelProcess) -> None:
        """Record how many dropped bytes the owner knows of.

        If there is no room for that, the next daemon may tell them again.
        """
        with contextlib.suppress(KernelError):
            self.state.put('reported', process.life, process.reported)

    # Output

    def count(self, process: KernelProcess) -> None:
        """Bring the sum of all buffers up to date."""
        held = process.end - process.begin
        added = held - process.held
        self.buffered += added
        process.held = held
        if added < 0 and self._cramped and not self.is_full:
            self._end_cramp()

    @property
    def is_full(self) -> bool:
        """Whether all buffers together have too much."""
        return self.buffered >= self._memory

    def make_room(self, process: KernelProcess) -> bool:
        """Have a process keep less, as all together keep too much.

        False if it has to wait, as nothing of it may be dropped.
        """
        self._cramped[process] = None
        if process.overflow == 'block':
            return process.end == process.begin
        output = process.output
        if output is not None:
            output.capacity = min(
                output.capacity, max(output.end - output.begin, _LEAST))
        return True

    def _end_cramp(self) -> None:
        """There is room again: let each buffer have its whole size."""
        cramped, self._cramped = self._cramped, {}
        for process in cramped:
            if process.output is not None:
                process.output.capacity = process.bufsize
                process.resume()

    def shortage(self, error: KernelError) -> None:
        """Memory is full: wait a moment before the next try."""
        if not self._short:
            self._short = True
            if self._quiet.passed:
                self._quiet = Deadline(_AGAIN)
                log.warning('Output is left in the pipes of its processes: %s',
                            error)
            self.poller.register(Timer(_RETRY), self._try_again)

    def _try_again(self, *result: object) -> None:
        self._short = False
        for stream in [*self.suspended]:
            stream.resume()

    # Ends

    def ended(self, process: KernelProcess, status: int | None) -> None:
        """The child has ended; the caller reaps it after this."""
        if process.ended is not None:
            return
        process.status, process.ended = status, time.time()
        self.finish(process)

    def finish(self, process: KernelProcess) -> None:
        """See what its pipes still have, and record the end."""
        process.rest = {}
        if process.output is not None:
            process.rest = {
                number: left for number, stream in process.streams.items()
                if (left := stream.left) > 0}
        if process.rest:
            self.save_if_possible(process)
        else:
            self._close(process)
        self.input_over(process)

    def save_if_possible(self, process: KernelProcess) -> None:
        """Record what has happened, whether there is room for it or not."""
        try:
            self.save(process)
        except KernelError as error:
            log.error('What has become of %r will not be known to the next '
                      'daemon: %s', process.name, error)

    def settle(self, process: KernelProcess, number: int) -> None:
        """After the end: a stream has nothing more of the child's."""
        if process.rest is None or process.rest.pop(number, None) is None:
            return
        if not process.rest and not process.closed:
            self._close(process)

    def _close(self, process: KernelProcess) -> None:
        process.closed = True
        self.save_if_possible(process)
        if process.streams:
            log.debug('Descendants of %r still have its output; what they '
                      'write is thrown away', process.name)
        if process.removed:
            self._unlist(process)
        process.wake()
        if process.removed:
            self.discard_if_over(process)

    def stream_over(self, process: KernelProcess, number: int) -> None:
        """Nobody has the other end of a stream any more."""
        process.streams.pop(number, None)
        # A successor that gets it nevertheless finds its end again.
        self._releases.add([f'{"out" if number == 1 else "err"}:'
                            f'{process.life}'])
        self.settle(process, number)
        self.discard_if_over(process)
        if self.on_silence is not None and self.is_silent:
            self.on_silence()

    @property
    def is_silent(self) -> bool:
        """Whether there is nothing to read, now or later."""
        return not any(each.streams for each in self._by_life.values())

    def forget(self, process: KernelProcess) -> None:
        """The end was acknowledged: throw away what is left of it."""
        if process.life in self._by_life and process.closed:
            process.removed = True
            self._drop_output(process)
            self._unlist(process)
            process.wake()
            if process.streams:
                self.save_if_possible(process)
            self.discard_if_over(process)

    def remove(self, process: KernelProcess) -> None:
        """Throw its output away, from now on until its end."""
        if process.removed:
            return
        process.removed = True
        self._drop_output(process)
        process.rest = None if process.running else {}
        self.save_if_possible(process)
        for stream in process.streams.values():
            stream.resume()
        if not process.running:
            if not process.closed:
                self._close(process)
            else:
                self._unlist(process)
                process.wake()
                self.discard_if_over(process)

    def _drop_output(self, process: KernelProcess) -> None:
        if process.output is not None:
            self.link.release([f'ring:{process.life}'])
            process.drop_output()
            self.count(process)
            if self.state.get('reported', process.life) is not None:
                self.state.drop('reported', process.life)

    def _unlist(self, process: KernelProcess) -> None:
        if self._by_name.get(process.name) is process:
            del self._by_name[process.name]
        if self._by_pid.get(process.pid) is process:
            del self._by_pid[process.pid]

    def discard_if_over(self, process: KernelProcess) -> None:
        """Forget one of which nothing is left."""
        if process.removed and process.closed and not process.streams:
            self.discard(process)

    def discard(self, process: KernelProcess) -> None:
        """Forget everything about a process."""
        if self._by_life.pop(process.life, None) is None:
            return
        self._unlist(process)
        self.input_over(process)
        for stream in process.streams.values():
            stream.close()
        process.streams.clear()
        self._drop_output(process)
        self.state.drop('hints', process.life)
        # The last one: by it, a daemon that takes over finds the others.
        self.state.drop('process', process.life)
        self._releases.add([
            key for kind in _DESCRIPTORS
            if (key := f'{kind}:{process.life}') in self.link.table])

    # Input

    def input_sent(self, process: KernelProcess) -> None:
        """The child has taken something: there may be room for others."""
        while process.writes:
            write = process.writes.popleft()
            if not self.answer_write(write.request, process):
                process.writes.appendleft(write)
                break
            write.done()
        sink = process.sink
        if sink is not None and sink.closing and not process.writes and (
                process.input is None or not process.input.pending):
            self.input_over(process)

    def close_input(self, process: KernelProcess) -> None:
        """Close it once the child has taken what was written."""
        if process.sink is not None and not process.sink.closing:
            process.sink.closing = True
            self.state.put('closing', process.life, True)
            self.input_sent(process)

    def input_over(self, process: KernelProcess) -> None:
        """The child reads no more, or nobody writes any more."""
        sink, process.sink = process.sink, None
        if sink is not None:
            self.poller.unregister(sink)
            sink.close()
            if process.input is not None:
                process.input.close()
                process.input = None
            if self.state.get('closing', process.life):
                self.state.drop('closing', process.life)
            self.link.release([key for kind in ('in', 'input') if (
                key := f'{kind}:{process.life}') in self.link.table])
        while process.writes:
            write = process.writes.popleft()
            write.done()
            if not write.request.answered:
                write.request.fail(closed_input(process))

    # The next daemon

    def recover(self) -> None:
        """Take over what the daemon before has left; see `Recovery`."""
        known = set()
        for life, record in self.state.items('process'):
            known.add(life)
            process = KernelProcess(self, life, record)
            self._by_life[life] = process
            if not (process.removed and process.closed):
                self._by_name[process.name] = process
                if process.pid:
                    self._by_pid[process.pid] = process
            self.recovery.add(process)
        table = self.link.table
        stray = []
        for key in table:
            kind, _, life = key.partition(':')
            if kind in _DESCRIPTORS and life not in known:
                stray.append(key)
        for key in stray:
            os.close(table[key])
        self.link.release(stray)
        self.poller.register(self.recovery)

    def attach(self, process: KernelProcess) -> None:
        """Give a process what the keeper has of it."""
        table = self.link.table
        opened = {kind: table[key] for kind in _DESCRIPTORS
                  if (key := f'{kind}:{process.life}') in table}
        opened.pop('report', None)
        self._attach(process, opened)

    def close(self) -> None:
        """Close what belongs to this daemon alone, not to its successor."""
        os.close(self.null)
        for process in self._by_life.values():
            # Their memory files are in the table, which is used from now on.
            for kept in (process.output, process.input):
                if kept is not None:
                    kept.closed = True
