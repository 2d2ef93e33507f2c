"""One child: start it, watch it, end it and its descendants."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

import zope.interface

from gocept.runner.channel import PipeChannel
from gocept.runner.interfaces import IProcess
from gocept.runner.logs import Log
from gocept.runner.poller import Poller
from gocept.runner.process import (
    descendants,
    keywords,
    numbers,
    registry,
)
from gocept.runner.process.adoption import adoption
from gocept.runner.process.base import LOST_STATUS
from gocept.runner.process.launch import Command, Launch
from gocept.runner.process.marks import new_mark
from gocept.runner.process.newborn import Newborn
from gocept.runner.process.offspring import Offspring
from gocept.runner.process.pidfd import Handle, hold
from gocept.runner.process.registry import terminate_all
from gocept.runner.process.roster import roster
from gocept.runner.process.shortages import shortages
from gocept.runner.waits.forks import tell_forks
from gocept.runner.waits.threads import survived

__all__ = ['LOST_STATUS', 'Process', 'terminate_all']

log = Log('gocept.runner.process')


@zope.interface.implementer(IProcess)
class Process(Offspring):
    """See `IProcess`."""

    channel: PipeChannel | None
    stderr: PipeChannel | None

    def __init__(self, command: Command, *,
                 stop_signal: int = signal.SIGTERM,
                 stop_timeout: float | None = None,
                 kill_signal: int = signal.SIGKILL,
                 adopt: bool = False,
                 poller: Poller | None = None,
                 on_start: Callable[['Process'], object] | None = None,
                 on_end: Callable[['Process'], object] | None = None,
                 servers: Callable[[], Iterable[int]] | None = None,
                 name: str = '',
                 **options: Any) -> None:
        if sys.platform != 'linux':
            raise NotImplementedError(
                'children can be started on Linux 4.18 or later only, and '
                f'this system is {sys.platform}')
        channel = {key: options.pop(key)
                   for key in keywords.CHANNEL & options.keys()}
        launch = Launch(command, **options)
        super().__init__(
            name or os.path.basename(launch.args[0]), stop_signal=stop_signal,
            stop_timeout=stop_timeout, kill_signal=kill_signal, poller=poller,
            on_end=on_end)
        self.args = launch.args
        self.detached = launch.detached
        self.leads_group = launch.leads_group
        self.adopts = adopt
        self.mark = '' if launch.detached else new_mark()
        self._servers = servers
        if channel:
            PipeChannel(**channel).close()  # an error comes before the start
        if not self.detached:
            registry.hook()
        if adopt:
            adoption.begin(self)
        adoption.watch()
        undo = contextlib.ExitStack()
        try:
            self._start(launch, self._polled_by, channel, on_start, undo)
        except BaseException:
            # Also that of a signal handler, when all was done.
            undo.close()
            adoption.end(self)
            raise

    def _start(self, launch: Launch, poller: Poller, channel: dict[str, Any],
               on_start: Callable[['Process'], object] | None,
               undo: contextlib.ExitStack) -> None:
        newborn = Newborn(self.mark, self.leads_group)
        undo.callback(self._abandon, newborn)
        with shortages():
            with roster.starting():
                self.before_start = numbers.now()
                self.started_at = descendants.clock()
                launch.start(
                    newborn, {self.stop_signal, self.kill_signal})
                self.pid = newborn.pid
                roster.add(self.pid, self)
            undo.callback(roster.discard, self.pid)
            for name, faucet, sink in (
                    ('channel', newborn.stdout, newborn.stdin),
                    ('stderr', newborn.stderr, -1)):
                if faucet >= 0 or sink >= 0:
                    it = PipeChannel(*(fd if fd >= 0 else None for fd in (
                        faucet, sink)), **channel)
                    # First, as nothing may be closed twice.
                    newborn.take(faucet)
                    newborn.take(sink)
                    undo.callback(it.close)
                    it.name = f'{self.name!r} ({self.pid})'
                    poller.send_for(it)
                    setattr(self, name, it)
            try:
                self.handle = hold(self.pid)
            except ProcessLookupError:  # reaped, as SIGCHLD is ignored
                self.handle = Handle(self.pid)
            undo.callback(self.handle.close)
            undo.callback(self._abandon, newborn)  # while it is held
            tell_forks(self)
            if not self.detached:
                registry.processes.add(self)
                undo.callback(registry.processes.discard, self)
            if on_start is not None:
                on_start(self)
            # From now on the child may be reaped. The background thread need
            # not be woken for one that has ended already.
            undo.callback(poller.unregister, self)
            if self._poller or self._on_end or self.poll() is None:
                poller.register(self)

    def _abandon(self, newborn: Newborn) -> None:
        """End a child that could not be started as a whole."""
        # A thread that polls may be about to take the status.
        with contextlib.nullcontext() if self._lock.held else self._lock:
            if self.returncode is None:  # else somebody has waited for it
                newborn.abandon()
                self.returncode = -signal.SIGKILL

    @property
    def _has_servers(self) -> bool:
        return self._servers is not None

    def find_servers(self) -> list[Handle]:
        if (self._servers is None or self.finished or not self.is_ours
                or self.poll() is None):
            return []
        try:
            found = [*descendants.hold_all(
                self._servers(), descendants.is_stranger)]
        except survived():  # the known descendants are to be ended anyway
            log.exception('servers of %r failed', self)
            return []
        with self._lock:
            new = [*filter(self._left.add, found)]
        if new:
            self._set_end_at_exit(True)
            self._watch_left()
        return new

    def forget_servers(self) -> None:
        self._servers = None
        if self.returncode is not None:
            self._watch_left()
