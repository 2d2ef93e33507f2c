"""The template that workers are forked from, and its successor.

One is booted at the start. For a reload a successor is booted beside it, and
takes its place when it is ready. Workers of the old one go on: they are
children of the house. If a template dies, another one is booted after a pause.
"""

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import Protocol

from gocept.runner.errors import CANNOT_START
from gocept.runner.house.link import (
    Failed,
    Forked,
    Ready,
    Template,
    Told,
    Unforked,
)
from gocept.runner.house.output import Output
from gocept.runner.house.record import TemplateState
from gocept.runner.house.workerprocess import RULES, said
from gocept.runner.logs import Log
from gocept.runner.poller import Poller, Timer
from gocept.runner.process.base import BaseProcess
from gocept.runner.waits.packets import Packets, pair
from gocept.runner.waits.source import Source
from gocept.runner.waits.threads import survived

log = Log('gocept.runner.house')

NAME = 'template'
"""What its lines are marked with."""

Launch = Callable[[socket.socket, int, Poller], BaseProcess]
"""Starts a template that has this end of the link, and writes to a pipe.

The caller closes both. The end of the process is told to the poller.

It is `detached`, or it would have a mark that all its workers inherit. So
nobody calls its `terminate`, which ends descendants as well.
"""


class Owner(Protocol):
    """Who has the templates."""

    poller: Poller

    def tell_line(self, name: str, line: bytes) -> None:
        """A template has written this line."""

    def note_ready(self, template: 'TemplateProcess', ready: Ready) -> None:
        """A template can fork; the owner decides whether it does."""

    def note_failed(self, template: 'TemplateProcess', failed: Failed) -> None:
        """A template cannot boot, or could not be started."""

    def note_forked(self, told: Forked | Unforked) -> None:
        """The answer to a wish."""

    def note_template_end(self, template: 'TemplateProcess') -> None:
        """One that was ready has ended by itself."""


class TemplateProcess:
    """One template."""

    def __init__(self, generation: int, launch: Launch, owner: Owner) -> None:
        self.generation = generation
        self.ready: Ready | None = None
        self.ended = False
        self._closed = False
        self._owner = owner
        with contextlib.ExitStack() as undo:
            ours, theirs = pair()
            undo.callback(ours.close)
            read, write = os.pipe()
            self._output = Output(
                read, lambda line: owner.tell_line(NAME, line))
            undo.callback(self._output.close)
            try:
                with theirs:
                    self.process = launch(theirs, write, owner.poller)
            finally:
                os.close(write)
            undo.pop_all()
        self.link = Template(Packets(ours))
        owner.poller.register(self._output)
        owner.poller.register(self.link, self._hear)
        owner.poller.register(self.process, self._end)

    def _hear(self, told: Told, source: Source) -> None:
        if isinstance(told, Ready):
            self.ready = told
            self._owner.note_ready(self, told)
        elif isinstance(told, Failed):
            self._fail(told)
        else:
            self._owner.note_forked(told)

    def _fail(self, failed: Failed) -> None:
        if not self._closed:
            self.close()
            self._owner.note_failed(self, failed)

    def _end(self, status: int, process: BaseProcess) -> None:
        self.ended = True
        self._output.read_rest()
        # What it has said before comes first.
        try:
            told, _ = self.link.collect()
            for each in told:
                self._hear(each, self.link)
        except survived():
            log.exception('The template has sent what cannot be read')
        if self._closed:
            return
        if self.ready is None:
            self._fail(Failed(CANNOT_START, 'the template has ended with '
                              f'{said(status)} before it was ready'))
        else:
            log.warning('The template has ended with %s', said(status))
            self.close()
            self._owner.note_template_end(self)

    def close(self) -> None:
        """Let it end; what it has not forked yet it does not fork."""
        self._closed = True
        self.link.close()

    def kill(self) -> None:
        """Kill it, if the end of the link has not ended it."""
        self.process.send_signal(signal.SIGKILL)

    def reopen(self) -> None:
        """Have it reopen its log files, which its next workers inherit."""
        if self.ready is not None:
            self.process.send_signal(signal.SIGUSR2)

    def state(self) -> TemplateState:
        """What is told of it."""
        return {'pid': None if self.ended else self.process.pid,
                'generation': self.generation,
                'phase': ('ended' if self.ended else
                          'starting' if self.ready is None else 'ready')}


class Templates:
    """All templates: the one that forks, the one that boots, and old ones."""

    def __init__(self, launch: Launch, owner: Owner) -> None:
        self.current: TemplateProcess | None = None
        """The one that forks."""
        self.successor: TemplateProcess | None = None
        """The one that boots."""
        self._launch = launch
        self._owner = owner
        self._all: list[TemplateProcess] = []
        self._generation = 0
        self._failures = 0
        self._timer: Timer | None = None

    def boot(self) -> None:
        """Boot another one, in place of one that boots already.

        OSError if it cannot be started.
        """
        self._forget_timer()
        if self.successor is not None:
            self.successor.close()
            self.successor.kill()
            self.successor = None
        self._generation += 1
        self.successor = TemplateProcess(
            self._generation, self._launch, self._owner)
        self._all.append(self.successor)

    def boot_again(self, why: str) -> None:
        """Boot another one after a pause, as there is none that forks."""
        self._failures += 1
        pause = min(RULES.longest_pause,
                    RULES.first_pause * 2.0 ** min(self._failures - 1, 64))
        log.log(20 if self._failures == 1 else 30,
                '%s; another template is started in %.3g s', why, pause)
        self._timer = Timer(pause)
        self._owner.poller.register(self._timer, self._boot_now)

    def _boot_now(self, *result: object) -> None:
        self._timer = None
        try:
            self.boot()
        except OSError as error:
            self.boot_again(f'No template can be started: {error}')

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._owner.poller.unregister(self._timer)
            self._timer = None

    def promote(self, template: TemplateProcess) -> None:
        """Let it fork from now on; the one before ends."""
        self._failures = 0
        before, self.current = self.current, template
        if self.successor is template:
            self.successor = None
        if before is not None:
            before.close()
        self._forget_ended()

    def drop(self, template: TemplateProcess) -> None:
        """It has ended, or is not wanted."""
        template.close()
        if self.successor is template:
            self.successor = None
        if self.current is template:
            self.current = None
        self._forget_ended()

    def _forget_ended(self) -> None:
        self._all = [each for each in self._all if not each.ended]

    def reopen(self) -> None:
        """Have them reopen their log files."""
        for each in self._all:
            each.reopen()

    def close(self) -> None:
        """Let all of them end."""
        self._forget_timer()
        for each in self._all:
            each.close()

    @property
    def ended(self) -> bool:
        """Whether all have ended."""
        return all(each.ended for each in self._all)

    def kill(self) -> None:
        """Kill those that are left."""
        for each in self._all:
            if not each.ended:
                each.kill()
