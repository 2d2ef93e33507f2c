"""A transaction for each item of a generator, or for each batch of items."""

import contextlib
import functools
import inspect
import logging
import reprlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import transaction
from transaction._transaction import Status
from transaction.interfaces import NoTransaction

from gocept.runner.boot import metadata
from gocept.runner.boot.attempts import (
    Failure,
    abort,
    checked_attempts,
    current_transaction,
    run_attempts,
    second_phase_has_begun,
)
from gocept.runner.boot.counts import Counts, Items, current_items
from gocept.runner.boot.progress import Progress, progress
from gocept.runner.boot.texts import described, name_of, text
from gocept.runner.errors import RunnerError
from gocept.runner.logs import Log
from gocept.runner.signals import Shutdown, current_shutdown
from gocept.runner.waits.forks import OneProcess

if TYPE_CHECKING:
    from gocept.runner.channel.journal import Journal

log = Log(__name__)

Item = Callable[[], object]
Generator = Callable[..., Iterable[Item]]
ItemLoop = Callable[..., object]
OnFailure = Literal['status', 'ignore']
Total = int | Callable[..., int | None] | None


@overload
def transaction_per_item(
    func: Generator, *, attempts: int = 1, on_failure: OnFailure = 'status',
    batch: int = 1, total: Total = None,
) -> ItemLoop: ...


@overload
def transaction_per_item(
    *, attempts: int = 1, on_failure: OnFailure = 'status', batch: int = 1,
    total: Total = None,
) -> Callable[[Generator], ItemLoop]: ...


def transaction_per_item(
        func: Generator | None = None, *, attempts: int = 1,
        on_failure: OnFailure = 'status', batch: int = 1, total: Total = None,
) -> ItemLoop | Callable[[Generator], ItemLoop]:
    """See `ITransactionPerItem`."""
    options = _Options(checked_attempts(attempts), on_failure, batch)
    if on_failure not in ('status', 'ignore'):
        raise ValueError(
            f"on_failure must be 'status' or 'ignore', not {on_failure!r}")
    if not isinstance(batch, int) or batch < 1:
        raise ValueError(
            f'batch must be a number of items, at least 1, not {batch!r}')
    if not callable(total):
        _check_total(total)
    if func is None:
        return functools.partial(
            transaction_per_item, attempts=attempts, on_failure=on_failure,
            batch=batch, total=total)
    _check_is_generator(func)
    name = name_of(func)

    @functools.wraps(func)
    def loop(*args: object, **kwargs: object) -> object:
        items = _items_of(func(*args, **kwargs), name)
        expected = total(*args, **kwargs) if callable(total) else total
        _check_total(expected)
        with (current_shutdown() as shutdown, OneProcess() as process,
              contextlib.ExitStack() as stack):
            run = _Run(name, options, shutdown)
            show = stack.enter_context(
                progress(name, run.own.counts, expected))
            if hasattr(items, 'close'):  # a generator
                stack.callback(items.close)
            try:
                return run.all(_Source(items, process), show)
            finally:
                log.log(logging.DEBUG if run.is_idle else logging.INFO,
                        '%s: %s%s', name, run.own.counts,
                        ', stopped' if run.own.cut_short else '')
    return loop


def _check_total(total: object) -> None:
    if total is not None and (not isinstance(total, int) or total < 0):
        raise ValueError('total must be a number of items, None, or a '
                         f'callable that returns one, not {text(total, repr)}')


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


class _Options(NamedTuple):
    """What the decorator says about items."""

    attempts: int
    on_failure: OnFailure
    batch: int


class _Source:
    """The items of a generator. What ends it once is raised ever after."""

    def __init__(self, items: Iterator[Item], process: OneProcess) -> None:
        self._items = items
        self._process = process
        self.end: BaseException | None = None
        self._fetched_in: transaction.Transaction | None = None

    def next(self) -> Item:
        """The next item; StopIteration after the last one."""
        if self.end is not None:
            raise self.end
        fetches = _fetches()
        try:
            item = next(self._items)
        except BaseException as error:
            self._process.check(
                None if isinstance(error, StopIteration) else error)
            self.end = error
            raise
        finally:
            if _fetches() > fetches:
                self._fetched_in = current_transaction()
        self._process.check()
        return item

    def has_fetched_in(self, txn: transaction.Transaction | None) -> bool:
        """Whether the generator has fetched something in this transaction.

        An abort gives that back, so it comes again. If the items were called
        again as well, it would be processed twice.
        """
        return txn is not None and txn is self._fetched_in


def _fetches() -> int:
    # Not imported here: where no module has a journal, nothing is fetched.
    module = sys.modules.get('gocept.runner.channel.journal')
    if module is None:
        return 0
    journal: Journal | None = module.known_journal()
    return 0 if journal is None else journal.fetches


class _Run:
    """One run of all items of a generator."""

    def __init__(self, name: str, options: _Options,
                 shutdown: Shutdown) -> None:
        self._name = name
        self._options = options
        self._shutdown = shutdown
        self._of_loop = current_items()
        self.own = Items()

    @property
    def is_idle(self) -> bool:
        """Whether there was nothing to do, in one tick of many."""
        return not (self._of_loop.once or self.own.cut_short
                    or self.own.counts != Counts())

    def all(self, items: _Source, show: Progress) -> object:
        """Run one after another; returns what the generator returns."""
        is_first = True
        while True:
            stopping = self._shutdown.attend()
            self._of_loop.begin_item()
            if (stopping and items.end is None
                    and (is_first or not self._of_loop.once)):
                break
            try:
                # The way of the generator to an item belongs to the
                # transaction of that item.
                _begin(again=not is_first)
                item = items.next()
            except StopIteration as end:
                return end.value
            except BaseException as error:
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
            if self._options.batch == 1:
                self._run_alone(item, show, 1 if items.has_fetched_in(
                    current_transaction()) else self._options.attempts)
            else:
                self._run_batch(item, items, show)
        self.own.cut_short = self._of_loop.cut_short = True
        return None

    def _note_exit(self, error: BaseException, what: str) -> None:
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            log.warning('%s raised by %s of %r, so no further item is run',
                        text(error, repr), what, self._name)
            self.own.cut_short = self._of_loop.cut_short = True
            self._of_loop.ended_by = error

    def _run_alone(self, item: Item, show: Progress, attempts: int) -> None:
        """Run an item in a transaction of its own, which has begun."""
        def step(number: int) -> None:
            if number > 1:
                metadata.begin_item()
            _call(item)

        uncertain = False

        def report(message: str, error: BaseException) -> None:
            log.error('%s', message, exc_info=error)

        def observe(error: BaseException | None, again: int,
                    is_uncertain: bool) -> None:
            nonlocal uncertain
            uncertain = is_uncertain

        try:
            outcome = run_attempts(
                step, attempts, self._shutdown,
                lambda: f'item {_shown(item)} of {self._name!r}', report,
                observe, doom_fails=True)
        except (SystemExit, KeyboardInterrupt) as error:
            if uncertain:
                self._count(Failure(error, False, True))
            self._note_exit(error, f'item {_shown(item)}')
            raise
        self._count(outcome)
        show(1)

    def _run_batch(self, item: Item, items: _Source, show: Progress) -> None:
        """Run an item, and those that follow it, in the transaction.

        If this fails, the items are run one by one.
        """
        batch = _Batch(item, items, self._options.batch, self._shutdown,
                       self._of_loop.begin_item)
        uncertain = False

        def report(message: str, error: BaseException) -> None:
            if second_phase_has_begun():
                log.error('%s', message, exc_info=error)

        def observe(error: BaseException | None, again: int,
                    is_uncertain: bool) -> None:
            nonlocal uncertain
            uncertain = is_uncertain

        def what() -> str:
            return (f'{len(batch.called)} items of {self._name!r} in one '
                    f'transaction, the last of them {batch.last}')

        try:
            outcome = run_attempts(
                lambda number: batch.run(), 1, self._shutdown, what, report,
                observe, doom_fails=True)
        except (SystemExit, KeyboardInterrupt) as error:
            self._count(None, len(batch.done))
            self._count(Failure(error, True, uncertain), len(batch.called))
            self._note_exit(error, 'the generator' if error is items.end
                            else f'item {batch.last}')
            raise
        self._count(None, len(batch.done))
        show(len(batch.done))
        if isinstance(outcome, Failure) and not outcome.uncertain:
            if not batch.called:  # it is about what the generator has changed
                raise outcome.error
            if batch.is_given_back:
                log.warning('Nothing is stored of %s. They are not called '
                            'again, as what the generator has fetched for '
                            'them was given back, and comes again',
                            what(), exc_info=outcome.error)
                is_alone = len(batch.called) == 1  # so this item has failed
                self._count(outcome if is_alone
                            else outcome._replace(conflict=True),
                            len(batch.called))
                show(len(batch.called))
                return
            # An item that fails again is reported then.
            log.info('Nothing is stored of %s, so they are called again, one '
                     'by one; what the generator has changed for them is '
                     'undone: %s', what(), described(outcome.error))
            self._run_one_by_one(batch.called, show)
        else:
            self._count(outcome, len(batch.called))
            show(len(batch.called))

    def _run_one_by_one(self, called: Sequence[Item], show: Progress) -> None:
        left = deque(called)
        try:
            while left and not self._shutdown.attend():
                metadata.begin_item()
                self._of_loop.begin_item()
                self._run_alone(left[0], show, self._options.attempts)
                left.popleft()
        finally:
            if left:  # in another run, the generator may yield them again
                self._count(Failure(RunnerError(), True, cut_short=True),
                            len(left))

    def _count(self, outcome: object, number: int = 1) -> None:
        """Count items with the same outcome."""
        kind = 'done'
        if isinstance(outcome, Failure):
            kind = ('uncertain' if outcome.uncertain
                    else 'skipped' if outcome.conflict else 'failed')
        if not number:
            return
        matters = self._options.on_failure == 'status'
        for items in self._of_loop, self.own:
            items.count(kind, number)
            if isinstance(outcome, Failure):
                items.incomplete = items.incomplete or matters
                items.cut_short = items.cut_short or outcome.cut_short
                if outcome.uncertain:
                    items.uncertain = outcome.error


class _Batch:
    """Items that are called in one transaction, which has begun."""

    def __init__(self, first: Item, items: _Source, size: int,
                 shutdown: Shutdown,
                 begin_item: Callable[[], object]) -> None:
        self._first = first
        self._items = items
        self._size = size
        self._shutdown = shutdown
        self._begin_item = begin_item
        self._transaction = current_transaction()
        self._is_over = self._is_undone = self._has_given_back = False
        self.called: list[Item] = []
        """Those whose fate is that of the transaction."""
        self.done: list[Item] = []
        """Those that came before, if code of the worker has committed them."""

    @property
    def is_given_back(self) -> bool:
        """Whether an abort gives back what the items are about."""
        return self._has_given_back or self._items.has_fetched_in(
            self._transaction)

    @property
    def last(self) -> str:
        """The last item that was called, for a log line."""
        return _shown((self.called or self.done)[-1])

    def run(self) -> None:
        """Call the items, until there are enough."""
        item = self._first
        while True:
            with self._watch():
                self.called.append(item)
                _call(item)
            if (self._is_over or len(self.called) >= self._size
                    or self._shutdown.attend()):
                break
            self._begin_item()
            try:
                with self._watch():
                    item = self._items.next()
            except StopIteration:
                break
            if self._is_undone:
                self.called.append(item)
                break
        if self._is_undone:
            raise RunnerError('the worker itself has aborted the transaction, '
                              'with what other items had changed')

    @contextlib.contextmanager
    def _watch(self) -> Iterator[None]:
        """Notice if code in the block ends the transaction."""
        called = len(self.called)
        try:
            yield
        finally:
            before, self._transaction = (
                self._transaction, current_transaction())
            if before is not None and before is not self._transaction:
                self._is_over = True
                if before.status == Status.COMMITTED:
                    self.done += self.called[:called]
                    del self.called[:called]
                else:
                    self._is_undone = called > 0
                    self._has_given_back = self._items.has_fetched_in(before)


_LONGEST = 200
"""Characters of an item in a log line."""

_values = reprlib.Repr()
_values.maxstring = _values.maxother = _values.maxlong = 80


def _shown(item: Item) -> str:
    """An item for a log line, as a call of a function."""
    shown = text(item, _call_text)
    return shown if len(shown) <= _LONGEST else f'{shown[:_LONGEST - 3]}...'


def _call_text(item: object) -> str:
    if type(item) is functools.partial:
        values = [*map(_values.repr, item.args),
                  *(f'{name}={_values.repr(value)}'
                    for name, value in item.keywords.items())]
        return f'{_call_text(item.func)}({", ".join(values)})'
    if inspect.ismethod(item):
        return f'{_values.repr(item.__self__)}.{name_of(item)}'
    return name_of(item) if inspect.isroutine(item) else str(item)


def _call(item: Item) -> None:
    if not callable(item):
        raise TypeError(f'a {type(item).__name__} is no item; an item is a '
                        'callable without arguments')
    item()


def _begin(again: bool) -> None:
    if not again:
        with contextlib.suppress(NoTransaction):
            transaction.get()  # the one of the tick, where there is one
            return
    metadata.begin_item()
