"""Many executors at once."""

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import (
    FIRST_EXCEPTION,
    Future,
    ThreadPoolExecutor,
    wait,
)

from gocept.runner import unfinished
from gocept.runner.errors import DeadlineExceeded
from gocept.runner.executor.base import SimpleExecutor
from gocept.runner.process import terminate_all

_KILL_AGAIN = 0.05  # seconds, for those that were about to be started


def start_all(executors: Iterable[SimpleExecutor]) -> list[SimpleExecutor]:
    """Start them side by side, each when those that it requires are ready.

    Those they require are started too, if they do not run. Returns those that
    were started here, in an order in which each stands behind what it
    requires: hand them to `stop_all`. If one fails, all that were started are
    stopped, nobody is waited for any more, and its error is raised; those of
    several that have failed by then in an ExceptionGroup. ValueError if
    executors require each other.

    Each `start` is called in a thread of its own, as it may be one of yours.
    """
    ordered = in_order(executors)
    starts: dict[int, Future[bool]] = {}
    given_up = threading.Event()
    here = [each for each in ordered if not each.is_up()]

    def start(executor: SimpleExecutor) -> bool:
        """Whether it was started, and not left as it was."""
        for each in executor.requires:
            if starts[id(each)].exception() is not None or not (
                    starts[id(each)].result() or each.is_up()):
                return False  # there is nothing to blame it for
        if given_up.is_set() or executor.is_up():
            return False
        executor.start()
        return True

    def give_up() -> None:
        """End the waiting of those that are not ready yet."""
        given_up.set()
        while wait(starts.values(), _KILL_AGAIN).not_done:
            for executor in here:
                if id(executor) in starts and not starts[id(executor)].done():
                    executor.kill()

    if not ordered:
        return []
    with ThreadPoolExecutor(len(ordered)) as threads:
        try:
            for executor in ordered:
                # It finds the futures of those that it requires, as they
                # precede.
                starts[id(executor)] = threads.submit(start, executor)
            wait(starts.values(), return_when=FIRST_EXCEPTION)
        except BaseException:  # a signal: nobody is waited for any more
            give_up()
            stop_all(_started(ordered, starts))
            raise
        errors = [error for each in starts.values()
                  if each.done() and (error := each.exception()) is not None]
        if errors:
            give_up()
    if errors:
        try:
            stop_all(_started(ordered, starts))
        except Exception as error:
            errors.append(error)
        _raise('starting', errors)
    return _started(ordered, starts)


def _started(ordered: Iterable[SimpleExecutor],
             starts: Mapping[int, Future[bool]]) -> list[SimpleExecutor]:
    return [each for each in ordered
            if id(each) in starts and starts[id(each)].exception() is None
            and starts[id(each)].result()]


def stop_all(executors: Iterable[SimpleExecutor]) -> None:
    """Stop them side by side, within one time.

    All are stopped, whatever happens to one; then its error is raised, or
    those of several in an ExceptionGroup. DeadlineExceeded for those that
    cannot be ended. A `stop` of your own is called in a thread of its own.
    """
    there = {id(each): each for each in executors if each.process is not None}
    plain = [each for each in there.values()
             if type(each).stop is SimpleExecutor.stop]
    own = [each for each in there.values()
           if type(each).stop is not SimpleExecutor.stop]
    errors: list[BaseException] = []
    with ThreadPoolExecutor(max(len(own), 1)) as threads:
        stops = [threads.submit(each.stop) for each in own]
        for each in plain:
            each._claim()
        try:
            terminate_all([each.process for each in plain
                           if each.process is not None])
        except DeadlineExceeded as error:
            errors.append(error)
        for each in plain:
            # Nobody waits a second time for one that cannot be ended.
            if each.process in unfinished.processes:
                continue
            each._terminated = True
            try:
                each.stop()
            except Exception as error:
                errors.append(error)
    errors += filter(None, (each.exception() for each in stops))
    _raise('stopping', errors)


def _raise(doing: str, errors: list[BaseException]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup(f'{doing} executors', errors)


def in_order(executors: Iterable[SimpleExecutor]) -> list[SimpleExecutor]:
    """Each after those that it requires, which are added if not there."""
    found: dict[int, SimpleExecutor] = {}
    path: list[SimpleExecutor] = []

    def add(executor: SimpleExecutor) -> None:
        if executor in path:
            raise ValueError('executors require each other: ' + ', '.join(
                map(str, [*path[path.index(executor):], executor])))
        if id(executor) not in found:
            path.append(executor)
            for each in executor.requires:
                add(each)
            path.pop()
            found[id(executor)] = executor

    for each in executors:
        add(each)
    return list(found.values())
