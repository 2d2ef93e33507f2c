"""A worker that lives in the house, and each process of it.

A process is asked for, is born, and ends. Its output is read by the house, and
it has the end of a pipe that tells it when the house has ended. On a control
socket it says that it has booted. When the template ends before it has said
whether it has forked the process, nobody knows its number: then the pipe is
closed, so that the process ends itself, and the end of the control socket
tells that it has done so. Only after that another one is started.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from typing import Protocol

from gocept.runner.errors import CANNOT_START, LinkError
from gocept.runner.house import plan
from gocept.runner.house.link import (
    DeclaredWorker,
    Fork,
    Forked,
    Stage,
    Streams,
    unpack,
)
from gocept.runner.house.output import Output
from gocept.runner.house.workerprocess import (
    RULES,
    Clock,
    Rules,
    WorkerProcess,
)
from gocept.runner.poller import Poller
from gocept.runner.process.base import BaseProcess
from gocept.runner.process.orphan import Expected, Orphan
from gocept.runner.waits.packets import Packets, pair
from gocept.runner.waits.source import Item, Source


class Landlord(Protocol):
    """What the house is to its tenants."""

    poller: Poller

    def tell_line(self, name: str, line: bytes) -> None:
        """A tenant has written this line."""

    def note_end(self, tenant: 'Tenant', status: int) -> None:
        """The process of a tenant has ended."""

    def note_running(self, tenant: 'Tenant') -> None:
        """The process of a tenant has booted."""

    def note_lost(self, tenant: 'Tenant') -> None:
        """There is no process, as the template has ended before the fork."""


LaunchProgram = Callable[
    [str, Sequence[str], Streams, Poller, Callable[[BaseProcess], object]],
    BaseProcess]
"""Starts a worker as a program; the caller closes the streams."""


class _Stages(Source):
    """What a process says of how far it is, and the end of its socket."""

    def __init__(self, packets: Packets) -> None:
        self.packets = packets

    def fileno(self) -> int:
        return -1 if self.packets.closed else self.packets.fileno()

    def collect(self) -> tuple[Sequence[Item], bool]:
        if self.packets.closed:
            return (), True
        try:
            packet = self.packets.receive()
        except BlockingIOError:
            return (), False
        if packet is None:
            return (None,), True
        packet.discard()
        with contextlib.suppress(LinkError):
            said = unpack(packet.data)
            if isinstance(said, Stage):
                return (said,), False
        return (), False  # of a newer version

    def close(self) -> None:
        if not self.packets.closed:
            self._tell_closing(self.packets.fileno())
            self.packets.close()


class Tenancy:
    """One process, from the wish to have it to its end."""

    def __init__(self, tenant: 'Tenant', landlord: Landlord) -> None:
        self.tenant = tenant
        self.lost = False
        self.over = False
        self._landlord = landlord
        self._process: BaseProcess | None = None
        self._reopen = False
        with contextlib.ExitStack() as undo:
            read, self._life = _pipe(undo)
            self._outputs, sinks = [], []
            for _ in range(2):
                source, sink = _pipe(undo)
                self._outputs.append(Output(source, self._tell))
                sinks.append(sink)
            ours, theirs = pair()
            undo.callback(ours.close)
            undo.callback(theirs.close)
            self._stages = _Stages(Packets(ours))
            self.streams = Streams(sinks[0], sinks[1], read, theirs.detach())
            undo.pop_all()
        for output in self._outputs:
            landlord.poller.register(output)
        landlord.poller.register(self._stages, self._hear)
        self._expected = Expected()

    def _tell(self, line: bytes) -> None:
        self._landlord.tell_line(self.tenant.name, line)

    @property
    def mark(self) -> str:
        """The mark that the process is to set in its environment."""
        return self._expected.mark

    @property
    def is_born(self) -> bool:
        """Whether there is a process whose number is known."""
        return self._process is not None

    def note_birth(self, told: Forked) -> None:
        """The template has forked it."""
        self._process = Orphan(
            self._expected, self.tenant.name, told.pid, told.pidfd,
            poller=self._landlord.poller, on_end=self._end)

    def start(self, launch: LaunchProgram) -> int:
        """Start it as a program; returns its number."""
        try:
            self._process = launch(
                self.tenant.name, self.tenant.words, self.streams,
                self._landlord.poller, self._end)
        finally:
            self.streams.close()
            self._expected.close()
        return self._process.pid

    def note_unborn(self) -> None:
        """It was not forked: it leaves nothing."""
        self._expected.close()
        self.over = True
        for output in self._outputs:
            output.close()
        self._close()

    def lose(self) -> None:
        """The template has ended. If there is a process, it has to end."""
        self.lost = True
        self._expected.close()
        self._close_life()

    def _hear(self, said: Stage | None, source: Source) -> None:
        """It has booted, or has closed its control socket."""
        if said is not None:
            if self._reopen:
                self._reopen = False
                self.signal(signal.SIGUSR2)
            if not self.over and not self.lost:
                self._landlord.note_running(self.tenant)
        elif self.lost and not self.is_born and not self.over:
            self.over = True
            self._read_rest()
            self._close()
            self._landlord.note_lost(self.tenant)

    def _end(self, process: BaseProcess) -> None:
        self.over = True
        self._read_rest()
        self._close()
        assert process.returncode is not None
        self._landlord.note_end(self.tenant, process.returncode)

    def _read_rest(self) -> None:
        # A descendant may still write: it is read until it has ended, too.
        for output in self._outputs:
            output.read_rest()

    def _close(self) -> None:
        self._close_life()
        self._stages.close()

    def _close_life(self) -> None:
        if self._life >= 0:
            life, self._life = self._life, -1
            os.close(life)

    def signal(self, signum: int) -> None:
        """Send a signal to the process alone; it ends its children itself."""
        if self._process is not None:
            self._process.send_signal(signum)

    def reopen(self, running: bool) -> None:
        """Have it reopen its log files, as soon as it can."""
        if running:
            self.signal(signal.SIGUSR2)
        else:
            self._reopen = True

    def kill(self) -> None:
        """Kill it, and what is in its process group."""
        if self._process is not None:
            self._process.signal_group(signal.SIGKILL)


class Tenant:
    """A worker in the house. `words` are the options that it is run with."""

    def __init__(self, declared: DeclaredWorker, words: Sequence[str] = (), *,
                 rules: Rules = RULES, clock: Clock | None = None) -> None:
        self.declared = declared
        self.words = tuple(words)
        self.tenancy: Tenancy | None = None
        self.life = WorkerProcess(
            declared.name, declared.site, once=declared.once,
            times=plan.times(declared), rules=rules, clock=clock)

    @property
    def name(self) -> str:
        """The name of the worker."""
        return self.declared.name

    def prepare(self, generation: int, landlord: Landlord) -> None:
        """Have all that a process needs, and have it in the record."""
        self.life.begin(generation)
        self.tenancy = Tenancy(self, landlord)
        self.life.life = os.fstat(self.tenancy.streams.life).st_ino

    def ask(self, number: int,
            fork: Callable[[Fork, Streams], object]) -> None:
        """Have a process forked, for which all is prepared."""
        assert self.tenancy is not None
        fork(Fork(number, self.name, self.words, self.tenancy.mark),
             self.tenancy.streams)

    def start(self, launch: LaunchProgram) -> None:
        """Start a program of its own, for which all is prepared."""
        assert self.tenancy is not None
        try:
            self.life.note_start(self.tenancy.start(launch))
        except BaseException:
            self.tenancy.note_unborn()
            raise

    def tell_to_end(self) -> None:
        """Let it end after its tick."""
        self.life.note_told()
        if self.tenancy is not None:
            self.tenancy.signal(signal.SIGTERM)

    def redeclare(self, declared: DeclaredWorker) -> None:
        """The new code says this about it; valid from its next start on."""
        self.declared = declared
        self.life.once = declared.once
        self.life.times = plan.times(declared)
        self.life.site = declared.site


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    undo.callback(os.close, read)
    undo.callback(os.close, write)
    return read, write


UNFORKED = CANNOT_START
"""The status of what the template could not fork."""
