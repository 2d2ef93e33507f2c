"""A transaction for each item of a generator."""

import collections
import contextlib
import functools
import logging
import shutil
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import overload

import transaction
from transaction.interfaces import NoTransaction

from gocept.runner.boot.attempts import (
    Failure,
    abort,
    checked_attempts,
    run_attempts,
    text,
)
from gocept.runner.signals import Shutdown, current_shutdown

log = logging.getLogger(__name__)

Item = Callable[[], object]
Items = Callable[..., Iterable[Item]]
ItemLoop = Callable[..., object]


@overload
def transaction_per_item(func: Items, *, attempts: int = 1) -> ItemLoop: ...


@overload
def transaction_per_item(*, attempts: int = 1,
                         ) -> Callable[[Items], ItemLoop]: ...


def transaction_per_item(
        func: Items | None = None, *, attempts: int = 1,
) -> ItemLoop | Callable[[Items], ItemLoop]:
    """See `ITransactionPerItem`."""
    checked_attempts(attempts)
    if func is None:
        return functools.partial(transaction_per_item, attempts=attempts)
    name = func.__name__

    @functools.wraps(func)
    def loop(*args: object, **kwargs: object) -> object:
        items = iter(func(*args, **kwargs))
        counts: collections.Counter[str] = collections.Counter()
        with (current_shutdown() as shutdown, _progress_bar(name) as progress,
              contextlib.ExitStack() as stack):
            if hasattr(items, 'close'):  # a generator
                stack.callback(items.close)
            try:
                return _run_items(items, attempts, shutdown, counts, progress)
            finally:
                log.info('%s: %d done, %d failed, %d skipped%s', name,
                         counts['done'], counts['failed'], counts['skipped'],
                         ', stopped' if shutdown.requested else '')
    return loop


def _run_items(items: Iterator[Item], attempts: int, shutdown: Shutdown,
               counts: collections.Counter[str],
               progress: Callable[[], object]) -> object:
    while not shutdown.attend():
        try:
            # The way of the generator to an item belongs to the transaction
            # of that item.
            _begin(again=bool(counts))
            item = next(items)
        except StopIteration as end:
            return end.value
        except BaseException:
            abort()
            raise
        outcome = _run_item(item, attempts, shutdown)
        if isinstance(outcome, Failure):
            counts['skipped' if outcome.conflict else 'failed'] += 1
        else:
            counts['done'] += 1
        progress()
    return None


def _begin(again: bool) -> None:
    if not again:
        with contextlib.suppress(NoTransaction):
            transaction.get()  # the one of the tick, where there is one
            return
    transaction.begin()


def _run_item(item: Item, attempts: int,
              shutdown: Shutdown) -> object | Failure:

    def step(number: int) -> object:
        if number > 1:
            transaction.begin()
        return item()

    def report(error: BaseException) -> None:
        log.error('Error in item %s: %s', text(item), text(error),
                  exc_info=True)

    return run_attempts(step, attempts, shutdown, report)


@contextlib.contextmanager
def _progress_bar(name: str) -> Iterator[Callable[[], object]]:
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda: None
        return
    import tqdm

    class Bar(tqdm.tqdm):  # type: ignore[misc]
        monitor_interval = 0  # it would start a thread

    with contextlib.ExitStack() as undo:
        for handler in logging.getLogger().handlers:
            if (isinstance(handler, logging.StreamHandler)
                    and handler.stream in (sys.stdout, sys.stderr)):
                stream = handler.stream
                undo.callback(handler.setStream, stream)
                handler.setStream(types.SimpleNamespace(  # above the bar
                    write=functools.partial(Bar.write, file=stream, end=''),
                    flush=stream.flush))
        # tqdm shows nothing on a terminal that does not know its size.
        columns, lines = shutil.get_terminal_size()
        yield undo.enter_context(
            Bar(desc=name, unit=' items', file=sys.stderr,
                ncols=columns, nrows=lines)).update
