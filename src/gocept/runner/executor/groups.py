"""Many executors at once."""

import math
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import (
    FIRST_EXCEPTION,
    Future,
    ThreadPoolExecutor,
    wait,
)
from graphlib import CycleError, TopologicalSorter
from typing import Protocol, TypeVar, cast

from gocept.runner.errors import (
    DeadlineExceeded,
    ProcessFinishedWithError,
    Terminated,
)
from gocept.runner.executor.base import SimpleExecutor
from gocept.runner.process import Process, terminate_all
from gocept.runner.signals import Shutdown
from gocept.runner.waits.deadline import Deadline

T = TypeVar('T', bound='Startable')

_KILL_AGAIN = 0.05  # seconds, for those that were about to be started


class Startable(Protocol):
    """What is started and stopped together: an executor, or the like."""

    @property
    def requires(self) -> Sequence['Startable']:
        """Others that are to be started before."""

    @property
    def process(self) -> Process | None:
        """What is to be ended; None for nothing."""

    def is_up(self) -> bool:
        """See `IExecutor`."""

    def start(self) -> object:
        """Return when it is ready."""

    def stop(self) -> object:
        """End it; raise an error if it has ended badly."""

    def kill(self) -> object:
        """End it at once."""


def start_all(executors: Iterable[T], *, shutdown: Shutdown | None = None,
              start: Callable[[T], object] = lambda it: it.start(),
              stop: Callable[[list[T]], object] | None = None) -> list[T]:
    """Start them side by side, each when those that it requires are ready.

    Those they require are started too, if they do not run. Returns those that
    were started here, in an order in which each stands behind what it
    requires: hand them to `stop_all`. If one fails, all that were started are
    stopped, nobody is waited for any more, and its error is raised; those of
    several that have failed by then in an ExceptionGroup. ValueError if
    executors require each other.

    A request of an `IShutdown` ends the waiting in the same way, with
    `gocept.runner.errors.Terminated`. `start` is called in place of
    their own, and `stop` in place of `stop_all`.

    Each `start` is called in a thread of its own, as it may be one of yours.
    """
    stop = stop or stop_all
    ordered = [each for level in in_levels(executors) for each in level]
    starts: dict[int, Future[bool]] = {}
    given_up = threading.Event()

    def start_one(executor: T) -> bool:
        """Whether it was started, and not left as it was."""
        for each in executor.requires:
            if starts[id(each)].exception() is not None or not (
                    starts[id(each)].result() or each.is_up()):
                return False  # there is nothing to blame it for
        if given_up.is_set() or executor.is_up():
            return False
        start(executor)
        return True

    def give_up() -> None:
        """End the waiting of those that are not ready yet."""
        given_up.set()
        while wait(starts.values(), _KILL_AGAIN).not_done:
            for executor in here:
                if id(executor) in starts and not starts[id(executor)].done():
                    executor.kill()

    here = [each for each in ordered if not each.is_up()]
    if not here:
        return []
    with ThreadPoolExecutor(len(ordered)) as threads:
        try:
            for executor in ordered:
                # It finds the futures of those that it requires, as they
                # precede.
                starts[id(executor)] = threads.submit(start_one, executor)
            _wait(starts.values(), shutdown)
            _raise('starting', [
                error for each in starts.values() if each.done()
                and (error := each.exception()) is not None])
        except BaseException as reason:  # also that of a signal handler
            give_up()
            try:
                stop(_started(ordered, starts))
            except Exception as failure:
                reason.add_note(str(failure))
            raise
    return _started(ordered, starts)


def _wait(starts: Collection[Future[bool]],
          shutdown: Shutdown | None) -> None:
    """Wait until all is done, or one has failed."""
    if shutdown is None:
        wait(starts, return_when=FIRST_EXCEPTION)
        return
    for each in starts:
        each.add_done_callback(lambda future: shutdown.wakeup())
    while not shutdown.requested and not all(
            each.done() for each in starts) and not any(
                each.done() and each.exception() for each in starts):
        shutdown.pause()
    if shutdown.requested:
        raise Terminated(shutdown.signum or signal.SIGTERM)


def _started(ordered: Iterable[T],
             starts: Mapping[int, Future[bool]]) -> list[T]:
    return [each for each in ordered
            if id(each) in starts and starts[id(each)].exception() is None
            and starts[id(each)].result()]


def stop_all(executors: Iterable[Startable],
             timeout: float = math.inf) -> None:
    """Stop them side by side, within one time.

    That is the longest that one of them may take, but `timeout` seconds at
    most. All are stopped, whatever happens to one; then its error is raised,
    or those of several in an ExceptionGroup. DeadlineExceeded for those that
    cannot be ended. A `stop` of your own is called in a thread of its own; if
    it takes longer, the child is killed.
    """
    there = {id(each): each for each in executors if each.process is not None}
    own = [each for each in there.values() if _stops_itself(each)]
    plain = [each for each in there.values() if not _stops_itself(each)]
    errors: list[BaseException] = []
    deadline = Deadline(None if math.isinf(timeout) else timeout)
    with ThreadPoolExecutor(max(len(own), 1)) as threads:
        stops = {threads.submit(each.stop): each for each in own}
        processes = {process: each for each in plain
                     if (process := each.process) is not None}
        try:
            terminate_all(processes, at_most=timeout)
        except DeadlineExceeded as error:
            errors.append(error)
            # Nobody waits a second time for one that cannot be ended.
            plain = [each for process, each in processes.items()
                     if process.finished]
        for each in plain:
            try:
                each.stop()
            except Exception as error:
                errors.append(error)
        late = wait(stops, deadline.left()).not_done
        for stop in late:
            stops[stop].kill()
    # What is killed here cannot end with the status that is expected of it.
    errors += [failure for stop in stops
               if (failure := stop.exception()) is not None and not (
                   stop in late
                   and isinstance(failure, ProcessFinishedWithError))]
    _raise('stopping', errors)


def _stops_itself(each: Startable) -> bool:
    return (isinstance(each, SimpleExecutor)
            and type(each).stop is not SimpleExecutor.stop)


def _raise(doing: str, errors: list[BaseException]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup(f'{doing} executors', errors)


def in_levels(executors: Iterable[T],
              name: Callable[[T], str] = str) -> list[list[T]]:
    """Each in a list behind those of what it requires, which is added.

    ValueError, with the names, if they require each other.
    """
    found: dict[int, T] = {}
    order: TopologicalSorter[int] = TopologicalSorter()
    pending = list(executors)
    for each in pending:  # it grows
        if id(each) not in found:
            found[id(each)] = each
            order.add(id(each), *map(id, each.requires))
            pending += cast(Sequence[T], each.requires)
    try:
        order.prepare()
    except CycleError as error:
        cycle = [name(found[key]) for key in reversed(error.args[1])]
        raise ValueError(
            f'these require each other: {", ".join(cycle)}') from None
    levels = []
    while ready := order.get_ready():
        levels.append([found[key] for key in ready])
        order.done(*ready)
    return levels
