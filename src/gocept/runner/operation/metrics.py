"""Numbers of a worker for monitoring, counted from its events.

See `numbers` for what they are. They are served by `exposition`, the only
module that needs the package prometheus_client.
"""

import contextlib
import copy
import sys
import time
from collections.abc import Iterator

from ZODB.POSException import ConflictError

from gocept.runner import version
from gocept.runner.errors import AlreadyRun, UsageError
from gocept.runner.events import (
    Child,
    ChildStarted,
    ConflictRetried,
    Loop,
    LoopEvent,
    LoopStopped,
    TickAborted,
    TickCommitted,
    TickStarted,
    TickUncertain,
    hearing,
)
from gocept.runner.operation.numbers import Numbers
from gocept.runner.waits.forks import Lock
from gocept.runner.waits.instants import Instant
from gocept.runner.waits.names import address

_MOST_NAMES = 1000
"""Names of children that are remembered, to tell a restart from a start."""


class Counting:
    """Counts the events of a loop, and of the children of its process."""

    def __init__(self, loop: Loop, worker: str, site: str | None) -> None:
        self._loop = loop
        self._lock = Lock()
        self._numbers = Numbers(worker, (site or '').strip('/') or '/',
                                time.time(), version.version())
        self._began: float | None = None
        self._items = dict.fromkeys(self._numbers.items, 0)
        """The items of the loop when a tick has ended last."""
        self._children: set[Child] = set()
        self._names: dict[str, None] = {}

    @contextlib.contextmanager
    def hearing(self) -> Iterator[None]:
        """Count in this block."""
        registry = sys.modules.get('gocept.runner.process.registry')
        if registry is not None:
            for child in list(registry.processes):
                self._start_of(child)
        with hearing(self.hear):
            yield

    def hear(self, event: object) -> None:
        """Subscribe to events with this."""
        if isinstance(event, ChildStarted):
            self._start_of(event.process)
        elif isinstance(event, LoopEvent) and event.loop is self._loop:
            with self._lock:
                self._count(event)

    def _start_of(self, child: Child) -> None:
        with self._lock:
            numbers = self._numbers
            numbers.child_starts += 1
            numbers.child_restarts += child.name in self._names
            self._names[child.name] = None
            if len(self._names) > _MOST_NAMES:
                del self._names[next(iter(self._names))]
            self._children.add(child)
            self._forget_ended()

    def _forget_ended(self) -> None:
        """With the lock held."""
        self._children = {child for child in self._children
                          if child.returncode is None}

    def _count(self, event: LoopEvent) -> None:
        """With the lock held."""
        numbers = self._numbers
        match event:
            case TickStarted():
                self._began = time.monotonic()
                numbers.tick_started = time.time()
            case TickCommitted():
                self._end('committed')
                numbers.last_success = time.time()
            case TickAborted(error=AlreadyRun()):
                self._end('skipped')
                numbers.last_success = time.time()  # what was due is done
            case TickAborted(error=error):
                numbers.conflicts += isinstance(error, ConflictError)
                self._end('aborted')
            case TickUncertain():
                self._end('uncertain')
            case ConflictRetried(error=error):
                numbers.retries += 1
                numbers.conflicts += isinstance(error, ConflictError)
            case LoopStopped():
                self._rest()

    def _end(self, outcome: str) -> None:
        numbers = self._numbers
        numbers.ticks[outcome] += 1
        if self._began is not None:
            numbers.last_duration = time.monotonic() - self._began
            numbers.durations.add(numbers.last_duration)
        self._rest()

    def _rest(self) -> None:
        self._began = self._numbers.tick_started = None
        self._items = self._items_of_loop()

    def _items_of_loop(self) -> dict[str, int]:
        counts = self._loop.counts
        return {kind: getattr(counts, kind) for kind in self._numbers.items}

    def numbers(self) -> Numbers:
        """What there is now. From any thread."""
        with self._lock:
            self._forget_ended()
            self._numbers.children = len(self._children)
            numbers = copy.deepcopy(self._numbers)
            numbers.items.update(self._items)
        # Those of a tick in progress. Others are taken back before a retry.
        now = self._items_of_loop()
        for kind in 'done', 'uncertain':
            numbers.items[kind] = max(numbers.items[kind], now[kind])
        numbers.timed_out = self._loop.timed_out  # known before the tick ends
        next_tick = self._loop.next_tick
        if next_tick is not None and numbers.tick_started is None:
            numbers.next_tick = _since_epoch(next_tick)
        return numbers


def _since_epoch(instant: Instant) -> float:
    return (instant.at if instant.clock == 'realtime'
            else time.time() + instant.left())


@contextlib.contextmanager
def attached(loop: Loop, worker: str, site: str | None, where: str,
             ) -> Iterator[None]:
    """Serve the metrics of a loop at `where` in this block; see `address`.

    UsageError if this is no place, or if a package is missing; CannotStart if
    nobody can be served there.
    """
    try:
        place = address(where)
    except ValueError as error:
        raise UsageError(f'--metrics: {error}') from error
    try:
        from gocept.runner.operation.exposition import serving
    except ModuleNotFoundError as error:
        if error.name != 'prometheus_client':
            raise
        raise UsageError(
            '--metrics needs the package prometheus_client: pip install '
            '"gocept.runner[metrics]"') from error
    counting = Counting(loop, worker, site)
    with counting.hearing(), serving(lambda: [counting.numbers()], *place):
        yield
