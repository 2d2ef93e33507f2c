"""Writes the state of a worker, in a thread of its own.

The thread of the loop, and others that send events, only note here what they
hear. The disk may hang: then this thread hangs, and nobody else.
"""

import contextlib
import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from ZODB.POSException import ConflictError
from zope.component import getUtilitiesFor

from gocept.runner import events
from gocept.runner.boot.texts import described
from gocept.runner.errors import AlreadyRun
from gocept.runner.interfaces import IRunner
from gocept.runner.logs import Log
from gocept.runner.operation import state as form
from gocept.runner.operation import vitals
from gocept.runner.operation.health import NOTICED, by
from gocept.runner.operation.hour import Hour
from gocept.runner.operation.numbers import Durations, added
from gocept.runner.operation.statefile import StateFile
from gocept.runner.version import version
from gocept.runner.waits.forks import Lock, tell_forks
from gocept.runner.waits.instants import Instant

if TYPE_CHECKING:
    from gocept.runner.operation.state import (
        Child,
        LastError,
        LastTick,
        Moment,
        NextTick,
        State,
        Total,
    )

log = Log('gocept.runner.operation')

INTERVAL = 1.0
"""Between two writes there are at least as many seconds."""

_PATIENCE = 2.0  # seconds for the last state, at the end

_LONGEST_WAIT = 60.0  # seconds, since a clock may be set

_MOST_CHILDREN = 100  # in a state; those that have ended long ago are left out

_LONGEST_ERROR = 500  # characters

_LONGEST_TRACEBACK = 6000  # characters


class Recorder:
    """Hears the events of a loop, and has its state written."""

    def __init__(self, loop: events.Loop, name: str, site: str | None,
                 file: StateFile) -> None:
        self._loop, self._name, self._site = loop, name, site
        self._file = file
        self._calls: SimpleQueue[bool] = SimpleQueue()
        self._is_called = False
        self._is_over = False
        self._done = Event()
        self._started = vitals.now()
        self._phase, self._since = 'starting', self._started
        self._began: float | None = None
        self._due: Instant | None = None
        self._next: NextTick | None = None
        self._written = self._started
        self._status: int | None = None
        self._counts = dict.fromkeys((
            'ticks', 'commits', 'aborts', 'uncertain', 'elsewhere',
            'conflicts', 'retries', 'child_starts', 'child_restarts'), 0)
        self._durations, self._hour = Durations(), Hour()
        self._lost = 0, 0
        """Items that had failed, or were skipped, when a tick has ended."""
        self._failures = 0
        self._last_tick: LastTick | None = None
        self._last_success: Moment | None = None
        self._last_error: LastError | None = None
        self._children: dict[int, Child] = {}
        self._lock = Lock()  # as several threads tell of children
        self._facts: dict[str, object] = {
            'format': form.FORMAT, 'version': '', 'worker': name,
            'site': site, 'host': vitals.host(), 'pid': os.getpid(),
            'start': _start(), 'boot': vitals.boot(),
            'namespaces': vitals.namespaces(), 'started': self._started}
        self._hears: Mapping[type, Callable[[Any], object]] = {
            events.TickStarted: self._hear_start,
            events.TickCommitted: self._hear_commit,
            events.TickAborted: self._hear_abort,
            events.TickUncertain: self._hear_uncertain,
            events.ConflictRetried: self._hear_retry,
            events.PauseStarted: self._hear_pause}

    @contextlib.contextmanager
    def running(self, status: Callable[[BaseException | None], int],
                ) -> Iterator[None]:
        """Record what happens in the block, and `status` at its end."""
        for process in _children():
            self._note_child(process.name, getattr(process, 'pid', 0),
                             'running')
        tell_forks(self)  # which keeps no reference
        # The thread imports nothing: a child that is forked meanwhile would
        # wait for ever when it imports the same.
        importlib.import_module('json')
        try:
            Thread(target=self._run, daemon=True,
                   name='gocept.runner.state').start()
        except RuntimeError as error:
            log.warning('No state of the worker %r is written, as no thread '
                        'can be started: %s', self._name, error)
            self._is_over = True
        try:
            with events.hearing(self.hear):
                yield
        except BaseException as error:
            self._status = status(error)
            raise
        else:
            self._status = status(None)
        finally:
            self._end()

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._calls.put(True)
            if not self._done.wait(_PATIENCE):
                log.warning(
                    'The last state of the worker %r was not written within '
                    '%g s to %s: does the disk hang?', self._name, _PATIENCE,
                    self._file.path)

    def after_fork(self) -> None:
        """A forked child has no state, and no thread."""
        self._is_over = True

    # What others call

    def hear(self, event: object) -> None:
        """Note an event; for `zope.event.subscribers`."""
        if self._is_over:
            return
        note = self._hears.get(type(event))
        if note is not None:
            if event.loop is self._loop:  # type: ignore[attr-defined]
                note(event)
        elif isinstance(event, events.ChildEvent):
            self._hear_child(event)

    def _call(self) -> None:
        """Have the thread look."""
        if not self._is_called:
            self._is_called = True
            self._calls.put(False)

    def _hear_start(self, event: events.TickStarted) -> None:
        self._counts['ticks'] += 1
        self._call()

    def _hear_commit(self, event: events.TickCommitted) -> None:
        self._counts['commits'] += 1
        self._failures = 0
        self._last_success = self._note_end('committed')

    def _hear_abort(self, event: events.TickAborted) -> None:
        if isinstance(event.error, AlreadyRun):
            self._counts['elsewhere'] += 1
            self._failures = 0
            self._last_success = self._note_end('elsewhere')
            return
        self._counts['aborts'] += 1
        self._note_error(event.error)
        self._note_end('aborted')

    def _hear_uncertain(self, event: events.TickUncertain) -> None:
        self._counts['uncertain'] += 1
        self._note_error(event.error)
        self._note_end('uncertain')

    def _hear_retry(self, event: events.ConflictRetried) -> None:
        self._counts['retries'] += 1
        self._counts['conflicts'] += isinstance(event.error, ConflictError)

    def _hear_pause(self, event: events.PauseStarted) -> None:
        self._call()

    def _hear_child(self, event: events.ChildEvent) -> None:
        state = 'ready' if isinstance(event, events.ChildReady) else 'running'
        if isinstance(event, events.ChildEnded):
            state = f'ended {event.status}'
        self._note_child(event.name, getattr(event.process, 'pid', 0), state)
        self._call()

    def _note_child(self, name: str, pid: int, state: str) -> None:
        with self._lock:
            known = self._children.get(pid)
            if state == 'running' and (
                    known is None or known['state'].startswith('ended')):
                self._counts['child_starts'] += 1
                self._counts['child_restarts'] += any(
                    child['name'] == name
                    for child in self._children.values())
            children = {
                each: child for each, child in self._children.items()
                if child['name'] != name or (
                    not child['state'].startswith('ended'))}
            children[pid] = {'name': name, 'pid': pid, 'state': state}
            ended = [each for each, child in children.items()
                     if child['state'].startswith('ended')]
            for each in ended[:max(0, len(children) - _MOST_CHILDREN)]:
                del children[each]
            # Not changed, as the thread may be reading it.
            self._children = children

    def _note_end(self, outcome: str) -> 'Moment':
        now, loop = vitals.now(), self._loop
        started = loop.tick_started
        duration = 0.0 if started is None else now['monotonic'] - started
        self._last_tick = {
            'number': loop.tick, 'ended': now['realtime'],
            'duration': duration, 'outcome': outcome}
        self._durations.add(duration)
        self._hour.add(now['realtime'], duration,
                       outcome in ('aborted', 'uncertain'))
        self._lost = loop.counts.failed, loop.counts.skipped
        return now

    def _note_error(self, error: BaseException) -> None:
        self._failures += 1
        self._counts['conflicts'] += isinstance(error, ConflictError)
        self._last_error = {
            'tick': self._loop.tick, 'time': time.time(),
            'error': described(error)[:_LONGEST_ERROR],
            'traceback': _traceback(error)}

    # The thread

    def _run(self) -> None:
        try:
            # Here, as it takes longer than all else, and no tick waits for it.
            self._facts['version'] = version()
            self._record()
        except Exception:  # a mistake of ours; the worker goes on
            log.exception('The state of the worker %r is not written any more',
                          self._name)
        finally:
            self._done.set()

    def _record(self) -> None:
        self._file.open()
        told: dict[str, object] | None = None
        while not self._is_over:
            self._is_called = False
            state = self._state()
            new = _told(state)
            if new != told or self._is_to_be_noted(state):
                told = new if self._file.write(state) else None
                self._written = state['written']
                self._rest()
            if told is not None:
                self._wait(_patience(state))
        self._phase, self._since = 'ended', vitals.now()
        self._file.write(self._state())

    def _rest(self) -> None:
        """Let time pass between two writes, unless all is over."""
        until = time.monotonic() + INTERVAL
        while not self._is_over and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(Empty):
                self._calls.get(timeout=left)

    def _wait(self, seconds: float) -> None:
        """Wait until somebody calls."""
        if not (self._is_called or self._is_over):
            with contextlib.suppress(Empty):
                self._calls.get(timeout=seconds)

    def _is_to_be_noted(self, state: 'State') -> bool:
        """Whether to note that nothing has changed; see `health`."""
        due, timeout = state['next_tick'], state['tick_timeout']
        if state['phase'] in ('starting', 'between') and timeout is not None:
            age = state['written']['monotonic'] - self._written['monotonic']
            return age >= max(INTERVAL, timeout / 3)
        if state['phase'] != 'pause' or due is None:
            return False
        written, now = (by(due['clock'], moment) for moment in (
            self._written, state['written']))
        return written < due['at'] + NOTICED <= now

    def _state(self) -> 'State':
        loop, now = self._loop, vitals.now()
        # Read first, as the loop goes on meanwhile.
        deadline, started, due = (
            loop.deadline, loop.tick_started, loop.next_tick)
        if self._phase != 'ended':
            self._note_phase(started, due, now)
        if self._phase != 'tick':
            deadline = None
        elif deadline is None and loop.tick_timeout is not None:
            # It begins at this moment, or its next item.
            deadline = min(now['monotonic'] + loop.tick_timeout, form.LARGEST)
        timeout = loop.tick_timeout
        items = loop.counts
        before = self._file.before
        counts = {
            **self._counts, 'timed_out': loop.timed_out,
            'items_done': items.done, 'items_failed': items.failed,
            'items_skipped': items.skipped,
            'items_uncertain': items.uncertain}
        return {
            **self._facts,  # type: ignore[typeddict-item]
            'written': now, 'phase': self._phase, 'since': self._since,
            'tick': loop.tick,
            'deadline': deadline,
            'tick_timeout': (
                None if timeout is None else min(timeout, form.LARGEST)),
            'schedule': None if loop.schedule is None else str(loop.schedule),
            'next_tick': self._next if self._phase == 'pause' else None,
            'last_tick': self._last_tick, 'last_success': self._last_success,
            'failures': self._failures, 'last_error': self._last_error,
            'counts': counts,
            'memory': vitals.memory(),
            'children': [*self._children.values()],
            'status': self._status,
            'hour': self._hour.after(
                before.get('hour', ()) if before else (), now['realtime']),
            'total': self._total(
                counts, before.get('total') if before else None)}

    def _total(self, counts: dict[str, int], before: 'Total | None',
               ) -> 'Total':
        """What does not get less, whatever is taken back or started anew."""
        if self._phase != 'ended':  # the tick in progress may be repeated
            failed, skipped = self._lost
            counts = {**counts, 'items_failed': failed,
                      'items_skipped': skipped}
        total: Total = {'counts': counts, 'durations': self._durations.counts,
                        'seconds': self._durations.sum}
        return added(total, before)

    def _note_phase(self, started: float | None, due: Instant | None,
                    now: 'Moment') -> None:
        before = self._phase, self._began, self._due
        if started is not None:
            phase, due = 'tick', None
        elif due is not None:
            phase = 'pause'
        else:
            phase = 'between' if self._loop.tick else 'starting'
        if before == (phase, started, due):
            return
        self._phase, self._began, self._due = phase, started, due
        offset = now['realtime'] - now['monotonic']
        if started is not None:
            self._since = {'monotonic': started, 'realtime': started + offset}
        elif phase != 'starting':
            self._since = now
        if due is not None:
            on_wall = due.clock == 'realtime'
            at = min(due.at, form.LARGEST)
            self._next = {'clock': due.clock, 'at': at, 'realtime': min(
                at if on_wall else at + offset, form.LARGEST)}


def _traceback(error: BaseException) -> str:
    """The traceback, or its end if it is very long."""
    text = ''.join(
        traceback.TracebackException.from_exception(error).format())
    return text if len(text) <= _LONGEST_TRACEBACK else (
        f'...\n{text[-_LONGEST_TRACEBACK:].partition(chr(10))[2]}')


def _told(state: 'State') -> dict[str, object]:
    """What is new if it differs; the rest changes all the time, or with it."""
    return {name: value for name, value in state.items()
            if name not in ('written', 'memory', 'hour', 'total')}


def _patience(state: 'State') -> float:
    """Seconds after which to look again if nobody calls."""
    due = state['next_tick']
    if due is None:
        return INTERVAL  # items are counted, and have deadlines
    left = due['at'] + NOTICED - by(due['clock'], state['written'])
    return min(left, _LONGEST_WAIT) if left > 0 else _LONGEST_WAIT


def _children() -> Iterator[events.Child]:
    """The children that have begun before the loop, and live."""
    # A worker without children imports nothing of that room.
    registry = sys.modules.get('gocept.runner.process.registry')
    for process in list(registry.processes if registry else ()):
        if not process.finished:
            yield process
    for _, runner in getUtilitiesFor(IRunner):  # some are in a kernel
        for alias in runner.aliases():
            with contextlib.suppress(KeyError):
                process = runner.get_process(alias)
                if process is not None and process.returncode is None:
                    yield process


def _start() -> int | None:
    found = vitals.process(os.getpid())
    return None if found is None else found.start
