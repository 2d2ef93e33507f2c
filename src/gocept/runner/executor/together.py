"""Many executors at once."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from gocept.runner.executor.base import SimpleExecutor
from gocept.runner.process import terminate_all


def start_all(executors: Iterable[SimpleExecutor]) -> None:
    """Start them side by side, each when those that it requires are ready.

    Those they require are started too, if they do not run. If one fails, all
    that were started are stopped, and its error is raised; those of several
    in an ExceptionGroup. ValueError if executors require each other.

    Each `start` is called in a thread of its own, as it may be one of yours.
    """
    ordered = in_order(executors)
    started: dict[int, Future[Any]] = {}

    def start(executor: SimpleExecutor) -> SimpleExecutor | None:
        for each in executor.requires:
            if started[id(each)].exception() is not None:
                return None  # there is nothing to blame it for
            if started[id(each)].result() is None and not each.running():
                return None
        if executor.running():
            return None
        return executor.start()

    if not ordered:
        return
    with ThreadPoolExecutor(len(ordered)) as threads:
        for executor in ordered:
            # It finds the futures of those that it requires, as they precede.
            started[id(executor)] = threads.submit(start, executor)
        try:
            wait(started.values())
        except BaseException:  # a signal: nobody is waited for any more
            for executor in ordered:
                executor.kill()
            raise
    errors = [error for each in started.values()
              if (error := each.exception()) is not None]
    if errors:
        try:
            stop_all(executor for executor in ordered
                     if started[id(executor)].exception() is None
                     and started[id(executor)].result() is not None)
        except Exception as error:
            errors.append(error)
        _raise('starting', errors)


def stop_all(executors: Iterable[SimpleExecutor]) -> None:
    """Stop them side by side, within one time.

    All are stopped, whatever happens to one; then its error is raised, or
    those of several in an ExceptionGroup.
    """
    ordered = list(reversed(in_order(executors, required=False)))
    plain = [each for each in ordered if each.process is not None
             and type(each).stop is SimpleExecutor.stop]
    errors: list[BaseException] = []
    for each in plain:
        each._claim()
    try:
        terminate_all([each.process for each in plain
                       if each.process is not None])
    except Exception as error:
        errors.append(error)
    else:
        for each in plain:
            each._terminated = True
    for each in ordered:
        try:
            each.stop()
        except Exception as error:
            errors.append(error)
    _raise('stopping', errors)


def _raise(doing: str, errors: list[BaseException]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup(f'{doing} executors', errors)


def in_order(executors: Iterable[SimpleExecutor],
             required: bool = True) -> list[SimpleExecutor]:
    """Each after those that it requires, which are added if not there."""
    chosen = list(executors)
    wanted = {id(each) for each in chosen}
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
            if required or id(executor) in wanted:
                found[id(executor)] = executor

    for each in chosen:
        add(each)
    return list(found.values())
