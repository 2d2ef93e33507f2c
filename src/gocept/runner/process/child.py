"""One child: start it, watch it, end it and its descendants.

This module alone reaps children. Whoever notices the end of a child first does
it: the thread that waits for it, or the poller that it is registered with,
which without one of your own is that of `gocept.runner.poller.background`.
"""

import contextlib
import logging
import os
import select
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import zope.interface

from gocept.runner.channel import PipeChannel
from gocept.runner.errors import DeadlineExceeded
from gocept.runner.interfaces import IProcess
from gocept.runner.poller import Poller, background
from gocept.runner.process import descendants, procfs, registry
from gocept.runner.process.ending import reserve
from gocept.runner.process.launch import Launch, new_mark
from gocept.runner.process.pidfd import Gone, Handle, hold
from gocept.runner.process.registry import terminate_all
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.deadline import Deadline, wait_for
from gocept.runner.waits.forks import tell_forks
from gocept.runner.waits.source import Source

__all__ = ['LOST_STATUS', 'Process', 'terminate_all']

log = logging.getLogger('gocept.runner.process')

LOST_STATUS = 255
"""The status of a child that somebody else has reaped, so nobody knows it."""

CHANNEL_OPTIONS = ('buffering', 'encoding', 'limit', 'high_water')
"""The keywords of a process that are those of its channels."""


@zope.interface.implementer(IProcess)
class Process(Source, Closing):
    """See `IProcess`."""

    def __init__(self, command: str | Sequence[str | os.PathLike[str]], *,
                 stop_signal: int = signal.SIGTERM,
                 stop_timeout: float = 10.0,
                 kill_signal: int = signal.SIGKILL,
                 adopt: bool = False,
                 poller: Poller | None = None,
                 on_start: Callable[['Process'], object] | None = None,
                 on_end: Callable[['Process'], object] | None = None,
                 name: str = '',
                 **options: Any) -> None:
        channel = {key: options.pop(key) for key in CHANNEL_OPTIONS
                   if key in options}
        launch = Launch(command, **options)
        self.args = launch.args
        self.name = name or os.path.basename(self.args[0])
        self.stop_signal = signal.Signals(stop_signal)
        if not isinstance(stop_timeout, int | float) or not stop_timeout >= 0:
            raise ValueError('stop_timeout must be a number of seconds >= 0, '
                             f'not {stop_timeout!r}')
        self.stop_timeout = stop_timeout
        self.kill_signal = signal.Signals(kill_signal)
        self.killed = False
        self.detached = launch.detached
        self.leads_group = launch.leads_group
        self.adopt = adopt
        self.mark = '' if launch.detached else new_mark()
        self.returncode: int | None = None
        self.ended_at = 0
        self.being_ended = False  # by somebody who looks for descendants
        self.channel: PipeChannel | None = None
        self.stderr: PipeChannel | None = None
        self._on_end = on_end
        self._owner = os.getpid()
        # Reentrant, as a signal handler may ask as well.
        self._lock = threading.RLock()
        self._reaping = False
        self._group: list[Handle] = []
        if channel:
            PipeChannel(**channel).close()  # what is wrong is said now
        if not self.detached:
            reserve()
        if adopt:
            descendants.adopt_orphans()
        self._poller = poller
        self._start(launch, self._polled_by, channel, on_start)

    def _start(self, launch: Launch, poller: Poller, channel: dict[str, Any],
               on_start: Callable[['Process'], object] | None) -> None:
        self.started_at = descendants.clock()
        started = launch.start(self.mark)
        self.pid = started.pid
        with contextlib.ExitStack() as undo:
            undo.callback(self._kill_newborn)
            descendants.started.add(self.pid)
            undo.callback(descendants.started.discard, self.pid)
            unowned = {fd for fd in started[1:] if fd >= 0}
            undo.callback(lambda: list(map(os.close, unowned)))
            for name, faucet, sink in (
                    ('channel', started.stdout, started.stdin),
                    ('stderr', started.stderr, -1)):
                if {faucet, sink} & unowned:
                    it = PipeChannel(*(fd if fd >= 0 else None for fd in (
                        faucet, sink)), **channel)
                    unowned -= {faucet, sink}
                    undo.callback(it.close)
                    setattr(self, name, it)
            self._handle = self._hold()
            undo.callback(self._handle.close)
            for each in self.channels():
                each.name = f'{self.name!r} ({self.pid})'
                poller.send_for(each)
            tell_forks(self)
            if not self.detached:
                registry.add(self)
                undo.callback(registry.processes.discard, self)
            if on_start is not None:
                on_start(self)
            poller.register(self)  # from now on it may be reaped
            undo.pop_all()

    def _hold(self) -> Handle:
        try:
            return hold(self.pid)
        except ProcessLookupError:  # as where SIGCHLD is ignored
            return Gone(self.pid)

    def _kill_newborn(self) -> None:
        # Not reaped yet, so that the number is its own.
        with contextlib.suppress(OSError):
            (os.killpg if self.leads_group else os.kill)(
                self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def channels(self) -> Iterator[PipeChannel]:
        """See `IProcess`."""
        for channel in (self.channel, self.stderr):
            if channel is not None:
                yield channel

    def fileno(self) -> int:
        """See `Source`."""
        return self._handle.fileno()

    def layers(self) -> Iterator[Source]:
        """See `Source`."""
        yield self
        yield self._handle

    @property
    def buffered(self) -> bool:
        """See `Source`."""
        return False

    def collect(self) -> tuple[Sequence[Any], bool]:
        """See `Source`."""
        status = self.poll()
        return ((), False) if status is None else ((status,), True)

    def poll(self) -> int | None:
        """See `IProcess`."""
        if self.returncode is None and self.is_ours:
            reaped = False
            try:
                with self._lock:
                    # A signal handler may ask while its thread reaps.
                    if self.returncode is None and not self._reaping:
                        self._reaping = True
                        try:
                            self._reap()
                        finally:
                            self._reaping = False
                            reaped = self.returncode is not None
            finally:  # a signal may have come meanwhile
                if reaped:
                    self._tell_end()
        return self.returncode

    def _reap(self) -> None:
        try:
            self.returncode = self._handle.reap()
        except ChildProcessError:
            if self._handle.has_ended():
                self.returncode = LOST_STATUS
                log.warning('Somebody else has reaped %r; its status is lost',
                            self)
        if self.returncode is None:
            return
        try:
            descendants.started.discard(self.pid)
            self.ended_at = descendants.clock()
            if not (self.being_ended and self.adopts):
                self._take_up(self._left_behind())
        finally:
            self._handle.close()  # and so the pollers are told
        self._watch_group()

    def _take_up(self, handles: Iterable[Handle]) -> bool:
        """Hold those that are not held yet; whether there are some."""
        known = {handle.pid for handle in self._group}
        before = len(known)
        for handle in handles:
            if handle.pid in known:
                handle.close()
            else:
                known.add(handle.pid)
                self._group.append(handle)
        return len(known) > before

    def _left_behind(self) -> Iterator[Handle]:
        if self.leads_group:
            yield from descendants.group(self.pid, self.ended_at)
        if self.adopts:
            for _, handle in descendants.Adopted([self]).look():
                yield handle

    @property
    def adopts(self) -> bool:
        """Whether its orphans are children of ours; for `Ending`."""
        return self.adopt and descendants.adopting()

    def _tell_end(self) -> None:
        if self._on_end is not None:
            try:
                self._on_end(self)
            except Exception:  # the one who waits is not to blame
                log.exception('on_end of %r failed', self)

    def _watch_group(self) -> None:
        """Let go of those it has left behind as soon as they end."""
        for handle in self._group:
            if handle.fileno() >= 0:
                # One that is closed polls nobody.
                with contextlib.suppress(RuntimeError):
                    self._polled_by.register(handle, self._forget)
        if not self._group:
            registry.processes.discard(self)

    @property
    def _polled_by(self) -> Poller:
        return self._poller or background()

    def _forget(self, ended: bool, handle: Handle) -> None:
        with self._lock:
            if handle in self._group:
                self._group.remove(handle)
                descendants.reap(handle)
                handle.close()
            if not self._group and self.returncode is not None:
                registry.processes.discard(self)

    def wait(self, timeout: float | None = None) -> int:
        """See `IProcess`."""
        self._require_owner()
        deadline = Deadline(timeout)
        while self.poll() is None:
            with self._lock:
                if self.returncode is not None:
                    break
                if self._reaping:
                    raise RuntimeError(
                        f'{self!r} is just being reaped by whom this signal '
                        'handler has interrupted: it cannot wait for that')
                # Of our own, as another thread may reap it and close that one.
                fd = os.dup(self._handle.fileno())
            try:
                if not wait_for(fd, select.POLLIN, deadline):
                    raise DeadlineExceeded(
                        f'{self!r} has not ended in {timeout} s')
            finally:
                os.close(fd)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """See `IProcess`."""
        with self._lock:
            if self.returncode is None:
                self._handle.signal(signum)

    def signal_group(self, signum: int) -> None:
        """See `IProcess`."""
        with self._lock:
            for handle in self._group:
                handle.signal(signum)
            # While it is not reaped, the number of its group is its own.
            if (self.returncode is None and self.leads_group
                    and not self._reaping):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signum)
                    return
            self.send_signal(signum)

    def signal_all(self, signum: int) -> None:
        """See `IProcess`."""
        self._require_owner()
        with contextlib.ExitStack() as held:
            others = [held.enter_context(contextlib.closing(handle))
                      for handle in descendants.of(self)]
            with self._lock:
                # Who is told by its group is not told once more.
                told = {handle.pid for handle in self._group}
                if self.leads_group and self.returncode is None:
                    told |= {handle.pid for handle in others
                             if procfs.group(handle.pid) == self.pid}
                self.signal_group(signum)
            for handle in others:
                if handle.pid not in told:
                    handle.signal(signum)

    @property
    def has_left(self) -> bool:
        """Whether it has ended and left somebody behind who runs."""
        with self._lock:
            return self.returncode is not None and bool(self._group)

    def take_group(self) -> list[Handle]:
        """Members of its group that it has left behind; for `Ending`."""
        with self._lock:
            group, self._group = self._group, []
        return group

    def claim(self, pids: Iterable[int]) -> bool:
        """Children of ours that it has left behind, as its user knows.

        Whether there are some that were not known.
        """
        with self._lock:
            new = self._take_up(handle for pid in pids if (
                handle := descendants.stranger(pid)) is not None)
            if new:
                registry.add(self)
        if new:
            self._watch_group()
        return new

    def terminate(self, signum: int | None = None,
                  timeout: float | None = None) -> int:
        """See `IProcess`."""
        terminate_all([self], signum, timeout)
        assert self.returncode is not None
        return self.returncode

    @property
    def is_ours(self) -> bool:
        """See `IProcess`."""
        return self._owner == os.getpid()

    def _require_owner(self) -> None:
        if not self.is_ours:
            raise RuntimeError(
                f'{self!r} is a child of process {self._owner}, of which this '
                'is a fork: it cannot be waited for here')

    def close(self) -> None:
        """See `IProcess`."""
        try:
            if self.is_ours:
                self.terminate()
        finally:
            for channel in self.channels():
                channel.close()

    def after_fork(self) -> None:
        """In a forked child, for which it is nobody's."""
        self._lock = threading.RLock()
        registry.processes.discard(self)
        descendants.started.discard(self.pid)

    def __repr__(self) -> str:
        state = ('running' if self.returncode is None
                 else f'ended with {self.returncode}')
        return f'<Process {self.name!r} ({self.pid}): {state}>'
