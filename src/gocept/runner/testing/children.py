"""Children whose other side the test has.

A fake child is a process that does nothing; the test holds the other ends of
its pipes, and tells it when to end. So all else is real: the runner, the
channels, the number of the process, signals, its end and its restart.
"""

import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import zope.component
import zope.interface

from gocept.runner.channel import Channel, PipeChannel
from gocept.runner.channel.base import Chunk
from gocept.runner.channel.lines import Data
from gocept.runner.errors import DeadlineExceeded, EndpointClosedException
from gocept.runner.events import hearing
from gocept.runner.interfaces import (
    IChildStarted,
    IFakeChild,
    IFakeChildren,
    IPoller,
    IRunner,
)
from gocept.runner.poller import background
from gocept.runner.process import Process, terminate_all
from gocept.runner.process.base import BaseProcess
from gocept.runner.process.keywords import Keywords
from gocept.runner.spawn.application import Application
from gocept.runner.spawn.runner import Runner
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.forks import Lock, OneProcess

_PATIENCE = 10.0  # seconds

_KEPT = {'buffering', 'encoding', 'limit', 'high_water', 'transactional',
         'redeliveries', 'restart', 'restart_limit', 'stop_signal',
         'stop_timeout', 'kill_signal'}
"""What counts of a declaration; the rest is about a program that is not run.
"""

_REAL = Runner.application_of  # what is replaced

_COMMAND = 'read status < /dev/fd/{} && exit $status'
"""Fails when the test has ended."""


@zope.interface.implementer(IFakeChild)
class FakeChild:
    """See `IFakeChild`."""

    def __init__(self, process: BaseProcess, control: int,
                 encoding: str | None) -> None:
        self.process = process
        self.name = process.name
        self.args = process.args[4:]
        self._control = control
        self._lock = Lock()
        self._received: list[Data] = []
        self._channel = _other_side(process.channel, encoding)
        self._stderr = _other_side(process.stderr, encoding)

    def put(self, *data: Chunk) -> None:
        """See `IFakeChild`."""
        self._write(self._channel, 'stdout', data)

    def put_error(self, *data: Chunk) -> None:
        """See `IFakeChild`."""
        self._write(self._stderr, 'stderr', data)

    def _write(self, channel: Channel, stream: str, data: Sequence[Chunk],
               ) -> None:
        try:
            channel.write(*data)
        except NotImplementedError:
            raise ValueError(f'nobody can read what {self!r} says there; '
                             f"declare it with {stream}='pipe'") from None

    def get(self) -> Data:
        """See `IFakeChild`."""
        nothing: Data = '' if self._channel.is_text else b''
        with self._lock:
            self._receive()
            received, self._received = self._received, []
        return nothing.join(received)

    def _receive(self) -> None:
        if self._channel.is_readable:
            with contextlib.suppress(EndpointClosedException):
                while data := self._channel.read():
                    self._received.append(data)

    def end(self, status: int = 0) -> None:
        """See `IFakeChild`."""
        try:
            self._channel.flush(_PATIENCE)
            with self._lock:
                if status >= 0:
                    os.write(self._control, b'%d\n' % status)
        except DeadlineExceeded:  # an OSError, too
            raise
        except (EndpointClosedException, OSError):
            raise RuntimeError(f'{self!r} has ended already') from None
        if status < 0:
            self.process.send_signal(-status)
        self.process.wait(_PATIENCE)
        # Another thread may be telling the runner.
        if not self.process.settle(_PATIENCE):
            raise DeadlineExceeded(f'nobody was told of the end of {self!r}')

    def close(self) -> None:
        """Close what the process has closed by its end."""
        with self._lock:
            self._receive()
            self._channel.close()
            self._stderr.close()
            if self._control >= 0:
                os.close(self._control)
                self._control = -1

    def __repr__(self) -> str:
        return f'<FakeChild {self.process!r}>'


def _other_side(channel: Channel | None, encoding: str | None) -> PipeChannel:
    """The pipes of a channel, opened once more, for the other direction."""
    faucet, sink = (None, None) if channel is None else (
        channel.sink_fd, channel.get_fd() if channel.is_readable else -1)
    other = PipeChannel(*(
        None if fd is None or fd < 0 else os.open(f'/proc/self/fd/{fd}', mode)
        for fd, mode in ((faucet, os.O_RDONLY), (sink, os.O_WRONLY))),
        encoding=encoding)
    background().send_for(other)
    return other


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FakeApplication(Application):
    """Starts fake children."""

    children: 'FakeChildren'

    def open(self, alias: str, key: str, extra_paths: Iterable[str],
             **watch: Any) -> BaseProcess:
        """Start a fake child in place of the program."""
        return self.children.start(self, alias, **watch)

    def is_to_restart(self, status: int) -> bool:
        """As declared, but not after the end of the test."""
        return not self.children.closed and super().is_to_restart(status)


@zope.interface.implementer(IFakeChildren)
class FakeChildren(Closing):
    """See `IFakeChildren`."""

    def __init__(self, on_start: Callable[[FakeChild], object] | None,
                 ) -> None:
        self.closed = False
        self._errors: list[Exception] = []
        self._on_start = on_start
        self._started: dict[str, list[FakeChild]] = {}
        self._changed = threading.Condition(Lock())
        self._undo = contextlib.ExitStack()
        self._process = OneProcess()

    def open(self, declared: Mapping[str, Keywords] | None) -> None:
        """Start fake children from now on."""
        if Runner.application_of is not _REAL:
            raise RuntimeError('fake_children() is open already: close the '
                               'other one before')
        with contextlib.ExitStack() as undo:
            undo.callback(self._end)
            undo.enter_context(mock.patch.object(
                Runner, 'application_of',
                lambda runner, config: self.application(config)))
            undo.enter_context(hearing(self._hear))
            if declared is not None:
                undo.enter_context(_utilities(declared))
            self._undo = undo.pop_all()

    def close(self) -> None:
        """See `IFakeChildren`."""
        self._process.check(sys.exception())
        self._undo.close()
        errors, self._errors = self._errors, []
        if errors:
            raise errors[0]

    def _end(self) -> None:
        self.closed = True
        terminate_all((child.process for name in [*self._started]
                       for child in self.all(name)), timeout=0)

    def __getitem__(self, name: str) -> FakeChild:
        """See `IFakeChildren`."""
        found = self.all(name)
        if not found:
            names = ', '.join(sorted(self._started)) or 'none'
            raise KeyError(
                f'no child {name!r} was started yet; started were: {names}')
        return found[-1]

    def all(self, name: str) -> list[FakeChild]:
        """See `IFakeChildren`."""
        with self._changed:
            return [*self._started.get(name, ())]

    def wait_for(self, name: str, number: int = 1) -> FakeChild:
        """See `IFakeChildren`."""
        with self._changed:
            if not self._changed.wait_for(
                    lambda: len(self._started.get(name, ())) >= number,
                    _PATIENCE):
                raise DeadlineExceeded(
                    f'{len(self._started.get(name, ()))} of {number} children '
                    f'{name!r} were started in {_PATIENCE:g} s')
            return self._started[name][number - 1]

    def application(self, config: Keywords) -> Application:
        """An application of fake children, with such keywords."""
        streams = {name: _stream(config[name]) for name
                   in ('stdin', 'stdout', 'stderr') if name in config}
        kept = {name: config[name] for name in _KEPT & config.keys()}
        return _FakeApplication.from_config({
            **kept, **streams, 'command': ['sh'], 'restart_delay': 0,
            'children': self})

    def start(self, application: Application, alias: str,
              on_end: Callable[[BaseProcess], object], **watch: Any,
              ) -> BaseProcess:
        """Start a fake child."""
        if self.closed:
            raise RuntimeError(f'no {alias!r} is started, as fake_children() '
                               'is closed')

        def tell_end(process: BaseProcess) -> None:
            child.close()
            on_end(process)

        faucet, control = os.pipe()
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, control)
            try:
                process = Process(
                    ['/bin/sh', '-c', _COMMAND.format(faucet), alias,
                     *application.command[1:]],
                    setsid=True, pass_fds=(faucet,), name=alias,
                    on_end=tell_end, **watch,
                    **application.keywords(()))
            finally:
                os.close(faucet)
            child = FakeChild(
                process, control, application.options.get('encoding'))
            undo.pop_all()
        with self._changed:
            self._started.setdefault(alias, []).append(child)
            self._changed.notify_all()
        return process

    def _hear(self, event: object) -> None:
        if self._on_start is None or not IChildStarted.providedBy(event):
            return
        process: object = event.process  # type: ignore[attr-defined]
        for child in self.all(event.name):  # type: ignore[attr-defined]
            if child.process is process:
                try:
                    self._on_start(child)
                except EndpointClosedException as error:
                    if child.process.poll() is None:  # else it was ended
                        self._errors.append(error)
                except Exception as error:  # subscribers raise to nobody
                    self._errors.append(error)


def _stream(value: object) -> object:
    """'pipe', 'null' or 'merge': no files, and not what we have ourselves."""
    return value if value in ('pipe', 'merge') else 'null'


def fake_children(declared: Mapping[str, Keywords] | None = None, *,
                  on_start: Callable[[FakeChild], object] | None = None,
                  ) -> FakeChildren:
    """See `IFakeChildren`."""
    children = FakeChildren(on_start)
    children.open(declared)
    return children


@contextlib.contextmanager
def _utilities(declared: Mapping[str, Keywords]) -> Iterator[None]:
    """The utilities of workers, as ``configure.zcml`` registers them."""
    # Imported here, as ZCML that declares children has them.
    from gocept.runner.boot import registrations
    from gocept.runner.zcml.utilities import WorkerPoller, WorkerRunner
    with contextlib.ExitStack() as undo:
        registrations.restore_with(undo)
        poller = undo.enter_context(WorkerPoller())
        runner = undo.enter_context(WorkerRunner())
        for name, keywords in declared.items():
            runner.declare(name, **{'command': name, **keywords})
        zope.component.provideUtility(poller, IPoller)
        zope.component.provideUtility(runner, IRunner)
        yield
