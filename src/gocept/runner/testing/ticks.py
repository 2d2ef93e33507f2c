"""A bounded number of ticks, without the pauses between them."""

import contextlib
import functools
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import zope.interface
from zope.component.interfaces import ISite

from gocept.runner import errors
from gocept.runner.boot.counts import Counts
from gocept.runner.boot.program import Program, Worker, check_arguments
from gocept.runner.boot.texts import name_of
from gocept.runner.events import Loop, hearing
from gocept.runner.interfaces import (
    ILoopStopped,
    ITickAborted,
    ITickCommitted,
    ITicks,
    ITickUncertain,
)
from gocept.runner.runner import MainLoop
from gocept.runner.signals import current_shutdown
from gocept.runner.waits.deadline import Deadline

TIMEOUT = 30.0
"""Seconds after which a worker is taken for endless."""

_LONGEST_PAUSE = 0.01  # seconds, in which a child may say something

R = TypeVar('R')


@zope.interface.implementer(ITicks)
class Ticks:
    """See `ITicks`."""

    loop: MainLoop

    def __init__(self, ticks: int | None, until: Callable[[], object] | None,
                 timeout: float) -> None:
        if ticks is not None and not (isinstance(ticks, int) and ticks > 0):
            raise ValueError(f'ticks is a number >= 1, not {ticks!r}')
        self.committed = 0
        self.errors: list[BaseException] = []
        self._ticks = ticks
        self._until = until
        self._deadline = Deadline(timeout)
        self._began = time.monotonic()
        self._is_met = self._is_cut_short = self._is_interrupted = False
        self._is_told = False  # by events
        self._broken: BaseException | None = None  # error of the condition

    def __repr__(self) -> str:
        errors = f', errors: {self.errors!r}' if self.errors else ''
        return f'<Ticks: {self.committed} committed{errors}>'

    @property
    def status(self) -> int:
        """See `ITicks`."""
        return self.loop.status

    @property
    def counts(self) -> Counts:
        """See `ITicks`."""
        return self.loop.counts

    @property
    def _number(self) -> int:
        return self.committed + len(self.errors)

    @contextlib.contextmanager
    def bounding(self, loop: Loop) -> Iterator[None]:
        """Let `loop` run no longer than it may, if it is run in the block."""
        self.loop = loop = cast(MainLoop, loop)
        loop.ticks = min(loop.ticks, _LONGEST_PAUSE)
        loop.max_backoff = _LONGEST_PAUSE
        loop.schedule = None
        loop.worker = self._hurried(loop.worker)
        if type(loop).__call__ is not MainLoop.__call__:
            self._hear_from(loop)
        with hearing(self._hear):
            yield
        self._check()

    def _hurried(self, worker: Callable[[], R]) -> Callable[[], R | float]:
        """`worker`, which asks for no long pause."""
        def call() -> R | float:
            if self._deadline.passed:
                self._cut_short()  # in a loop that sends no events, say
            result = worker()
            if isinstance(result, bool):
                return result  # an error of the tick
            if isinstance(result, int | float) and result > _LONGEST_PAUSE:
                return _LONGEST_PAUSE
            return result
        functools.update_wrapper(call, worker)
        call.__name__ = name_of(worker)
        return call

    def _hear(self, event: object) -> None:
        if getattr(event, 'loop', None) is not self.loop:
            return
        self._is_told = True
        if ILoopStopped.providedBy(event):
            with current_shutdown() as shutdown:
                self._is_interrupted = shutdown.signum == signal.SIGINT
        if ITickCommitted.providedBy(event):
            self._note(None)
        elif ITickAborted.providedBy(event) or ITickUncertain.providedBy(
                event):
            self._note(event.error)  # type: ignore[attr-defined]

    def _hear_from(self, loop: MainLoop) -> None:
        """Hear of the ticks of a loop with a `__call__` of its own."""
        commit, abort = loop.commit, loop.abort

        def committing() -> None:
            commit()
            if not (self._is_told or loop.failed):  # it may call `abort`
                self._note(None)

        def aborting() -> None:
            error = sys.exc_info()[1] or errors.NotCommitted()
            abort()
            if not self._is_told:
                self._note(error)
        loop.commit = committing  # type: ignore[method-assign]
        loop.abort = aborting  # type: ignore[method-assign]

    def _note(self, error: BaseException | None) -> None:
        """A tick is over."""
        if error is None:
            self.committed += 1
        else:
            self.errors.append(error)
        if self._until is not None:
            try:
                self._is_met = bool(self._until())
            except BaseException as error:  # subscribers raise to nobody
                self._broken = error
        if self._is_met or self._broken or self._number == self._ticks:
            self.loop.stop()
        elif self._deadline.passed:
            self._cut_short()

    def _cut_short(self) -> None:
        self._is_cut_short = True
        self.loop.stop()

    def _check(self) -> None:
        if self._is_interrupted:
            raise KeyboardInterrupt  # which is for the test runner
        if self._broken is not None:
            raise self._broken
        is_over = self._is_cut_short or self._number == self._ticks
        if self._until is not None and not self._is_met:
            what = ('the condition is still false' if is_over else
                    'the worker has ended, and the condition is false')
        elif self._is_cut_short:
            what = ('these are too few' if self._ticks else
                    'the worker has not ended: pass ticks= or until=, or '
                    'have it return gocept.runner.Exit')
        else:
            return
        if self.errors:
            what += f'; the last error was {self.errors[-1]!r}'
        seconds = time.monotonic() - self._began
        raise AssertionError(
            f'{self._number} ticks in {seconds:.3g} s, and {what}')


def run_ticks(worker: Program | Worker, site: ISite, *args: object,
              ticks: int | None = None,
              until: Callable[[], object] | None = None,
              timeout: float = TIMEOUT) -> Ticks:
    """See `ITicks`."""
    result = Ticks(ticks, until, timeout)
    decorator = getattr(worker, 'decorator', None)
    function: Worker = getattr(worker, 'worker', worker)
    check_arguments(function, args)
    loop = (MainLoop(site, 0, functools.partial(function, *args))
            if decorator is None else decorator.loop(site, function, args))
    with result.bounding(loop):
        loop()
    return result
