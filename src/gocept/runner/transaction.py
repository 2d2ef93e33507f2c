"""A transaction for each item of a generator."""

import contextlib
import functools
import logging
import shutil
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, overload

import transaction
from transaction.interfaces import NoTransaction

from gocept.runner.boot.attempts import (
    Failure,
    abort,
    checked_attempts,
    described,
    name_of,
    run_attempts,
    text,
)
from gocept.runner.boot.counts import Items, current_items
from gocept.runner.errors import RunnerError
from gocept.runner.logs import Log
from gocept.runner.signals import Shutdown, current_shutdown
from gocept.runner.waits.forks import OneProcess

log = Log(__name__)

Item = Callable[[], object]
Generator = Callable[..., Iterable[Item]]
ItemLoop = Callable[..., object]
OnFailure = Literal['status', 'ignore']


@overload
def transaction_per_item(
    func: Generator, *, attempts: int = 1, on_failure: OnFailure = 'status',
) -> ItemLoop: ...


@overload
def transaction_per_item(
    *, attempts: int = 1, on_failure: OnFailure = 'status',
) -> Callable[[Generator], ItemLoop]: ...


def transaction_per_item(
        func: Generator | None = None, *, attempts: int = 1,
        on_failure: OnFailure = 'status',
) -> ItemLoop | Callable[[Generator], ItemLoop]:
    """See `ITransactionPerItem`."""
    checked_attempts(attempts)
    if on_failure not in ('status', 'ignore'):
        raise ValueError(
            f"on_failure must be 'status' or 'ignore', not {on_failure!r}")
    if func is None:
        return functools.partial(transaction_per_item, attempts=attempts,
                                 on_failure=on_failure)
    _check_is_generator(func)
    name = name_of(func)

    @functools.wraps(func)
    def loop(*args: object, **kwargs: object) -> object:
        items = _items_of(func(*args, **kwargs), name)
        with (current_shutdown() as shutdown, _progress_bar(name) as progress,
              contextlib.ExitStack() as stack, OneProcess() as process):
            if hasattr(items, 'close'):  # a generator
                stack.callback(items.close)
            run = _Run(name, attempts, on_failure, shutdown)
            try:
                return run.all(items, progress, process)
            finally:
                log.info('%s: %s%s', name, run.own.counts,
                         ', stopped' if run.own.cut_short else '')
    return loop


def _check_is_generator(func: object) -> None:
    if not callable(func):
        raise TypeError(f'{func!r} is no generator function; options have '
                        'names: @transaction_per_item(attempts=3)')
    if hasattr(func, 'decorator') and hasattr(func, 'worker'):
        raise TypeError(
            f'{name_of(func)} is a program already: put @transaction_per_item '
            'below @appmain() or @once(), next to the generator function')


def _items_of(result: Iterable[Item], name: str) -> Iterator[Item]:
    try:
        return iter(result)
    except TypeError as error:
        raise TypeError(
            f'{name} returned {text(result, repr)} and no items: '
            '@transaction_per_item needs a generator function, with yield',
        ) from error


class _Run:
    """One run of all items of a generator."""

    def __init__(self, name: str, attempts: int, on_failure: OnFailure,
                 shutdown: Shutdown) -> None:
        self._name = name
        self._attempts = attempts
        self._matters = on_failure == 'status'
        self._shutdown = shutdown
        self._of_loop = current_items()
        self.own = Items()

    def all(self, items: Iterator[Item], progress: Callable[[], object],
            process: OneProcess) -> object:
        """Run one after another; returns what the generator returns."""
        is_first = True
        while True:
            stopping = self._shutdown.attend()
            if stopping and (is_first or not self._of_loop.once):
                break
            try:
                # The way of the generator to an item belongs to the
                # transaction of that item.
                _begin(again=not is_first)
                item = next(items)
                process.check()
            except StopIteration as end:
                process.check()
                return end.value
            except BaseException as error:
                process.check(error)
                abort()
                self._note_exit(error, 'the generator')
                if self.own.uncertain is not None:
                    # It may be retryable, but that item must not run again.
                    raise RunnerError(
                        'an item before this error has an uncertain '
                        f'outcome: {described(error)}') from error
                raise
            if stopping:
                abort()
                break
            is_first = False
            try:
                outcome = self._run(item)
            except (SystemExit, KeyboardInterrupt) as error:
                self._note_exit(error, f'item {text(item)}')
                raise
            self._count(outcome)
            progress()
        self.own.cut_short = self._of_loop.cut_short = True
        return None

    def _note_exit(self, error: BaseException, what: str) -> None:
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            log.warning('%s raised by %s of %r, so no further item is run',
                        text(error, repr), what, self._name)
            self.own.cut_short = self._of_loop.cut_short = True
            self._of_loop.ended_by = error

    def _run(self, item: Item) -> object | Failure:

        def step(number: int) -> object:
            if number > 1:
                transaction.begin()
            if not callable(item):
                raise TypeError(
                    f'a {type(item).__name__} is no item; an item is a '
                    'callable without arguments')
            return item()

        def report(message: str, error: BaseException) -> None:
            log.error('%s', message, exc_info=error)

        return run_attempts(
            step, self._attempts, self._shutdown,
            lambda: f'item {text(item)} of {self._name!r}', report,
            doom_fails=True)

    def _count(self, outcome: object) -> None:
        kind = 'done'
        if isinstance(outcome, Failure):
            kind = ('uncertain' if outcome.uncertain
                    else 'skipped' if outcome.conflict else 'failed')
        for items in self._of_loop, self.own:
            items.count(kind)
            if isinstance(outcome, Failure):
                items.incomplete = items.incomplete or self._matters
                items.cut_short = items.cut_short or outcome.cut_short
                if outcome.uncertain:
                    items.uncertain = outcome.error


def _begin(again: bool) -> None:
    if not again:
        with contextlib.suppress(NoTransaction):
            transaction.get()  # the one of the tick, where there is one
            return
    transaction.begin()


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
