"""Executors that are started, or stopped, side by side."""

import math
import signal
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TypeVar

from gocept.runner.errors import (
    DeadlineExceeded,
    ProcessFinishedWithError,
    Terminated,
)
from gocept.runner.executor.base import SimpleExecutor
from gocept.runner.executor.requirements import Startable, in_levels
from gocept.runner.process import terminate_all
from gocept.runner.signals import Shutdown
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.deadline import Deadline

T = TypeVar('T', bound=Startable)

_KILL_AGAIN = 0.05  # seconds, as a child may have been started meanwhile


class _Threads(Closing):
    """Threads that are waited for at the end.

    Those of concurrent.futures cannot be started after the end of the main
    thread, though other threads may go on.
    """

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[..., object],
               *args: object) -> Future[None]:
        future: Future[None] = Future()

        def run() -> None:
            try:
                function(*args)
            except BaseException as error:  # raised where it is waited for
                future.set_exception(error)
            else:
                future.set_result(None)

        thread = threading.Thread(target=run, name='gocept.runner.groups')
        thread.start()
        self._threads.append(thread)
        return future

    def close(self) -> None:
        for thread in self._threads:
            thread.join()


def start_all(executors: Iterable[T], *, shutdown: Shutdown | None = None,
              start: Callable[[T], object] = lambda it: it.start(),
              stop: Callable[[list[T]], object] | None = None) -> list[T]:
    """Start executors side by side, each when those that it requires are up.

    Those that they require are started too, if they are not up. Returns those
    that were started here, each behind what it requires: hand them to
    `stop_all`. If one fails, nobody is waited for any more, and all that were
    started are stopped. Then its error is raised, or an ExceptionGroup of the
    errors of all that have failed. What the stop raises is a note of that
    error. ValueError if executors require each other.

    A request of the `IShutdown` ends the start in the same way, with
    `gocept.runner.errors.Terminated`. `start` is called in place of the method
    of each executor, in a thread of its own, and `stop` in place of
    `stop_all`.
    """
    stop = stop or stop_all
    ordered = [each for level in in_levels(executors) for each in level]
    starts: dict[int, Future[None]] = {}
    started: set[int] = set()
    given_up = threading.Event()

    def start_one(executor: T) -> None:
        for each in executor.requires:
            if starts[id(each)].exception() is not None or not (
                    id(each) in started or each.is_up()):
                return  # the error is that of the other one
        if not (given_up.is_set() or executor.is_up()):
            start(executor)
            started.add(id(executor))

    def give_up() -> None:
        """End the starts that go on."""
        given_up.set()
        while wait(starts.values(), _KILL_AGAIN).not_done:
            for executor in down:
                if id(executor) in starts and not starts[id(executor)].done():
                    executor.kill()

    down = [each for each in ordered if not each.is_up()]
    if not down:
        return []
    with _Threads() as threads:
        try:
            for executor in ordered:
                # Its thread looks for the futures of those that it requires.
                starts[id(executor)] = threads.submit(start_one, executor)
            _wait(starts.values(), shutdown)
            _raise('starting', [
                error for each in starts.values() if each.done()
                and (error := each.exception()) is not None])
        except BaseException as reason:  # also that of a signal handler
            give_up()
            try:
                stop([each for each in ordered if id(each) in started])
            except Exception as failure:
                reason.add_note(str(failure))
            raise
    return [each for each in ordered if id(each) in started]


def _wait(starts: Collection[Future[None]],
          shutdown: Shutdown | None) -> None:
    """Wait until all starts are done, or one has failed."""
    if shutdown is None:
        wait(starts, return_when=FIRST_EXCEPTION)
        return
    for each in starts:
        each.add_done_callback(lambda future: shutdown.wakeup())
    while not shutdown.requested:
        done, going_on = wait(starts, 0)
        if not going_on or any(each.exception() for each in done):
            return
        shutdown.pause()
    raise Terminated(shutdown.signum or signal.SIGTERM)


def stop_all(executors: Iterable[Startable],
             timeout: float = math.inf) -> None:
    """Stop executors side by side.

    Each has its own time, but `timeout` seconds at most. All are stopped,
    whatever happens to one. Then its error is raised, or an ExceptionGroup of
    the errors of several. DeadlineExceeded for those that cannot be ended. A
    `stop` that a subclass overrides is called in a thread of its own; if it
    takes longer, the child is killed.
    """
    there = {process: each for each in executors
             if (process := each.child) is not None}
    own = [each for each in there.values() if _stops_itself(each)]
    plain = {process: each for process, each in there.items()
             if not _stops_itself(each)}
    errors: list[BaseException] = []
    deadline = Deadline(None if math.isinf(timeout) else timeout)
    for each in there.values():
        if isinstance(each, SimpleExecutor):
            each.expect_end()
    with _Threads() as threads:
        stops = {threads.submit(each.stop): each for each in own}
        try:
            terminate_all(plain, at_most=timeout)
        except DeadlineExceeded as error:
            errors.append(error)
            # Those that cannot be ended are not waited for once more.
            plain = {process: each for process, each in plain.items()
                     if process.finished}
        for each in plain.values():
            try:
                each.stop()
            except Exception as error:
                errors.append(error)
        late = wait(stops, deadline.left()).not_done
        for stop in late:
            stops[stop].kill()
    # The status of a child that is killed here is no error.
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
