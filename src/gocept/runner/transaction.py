"""Transactions around a tick and around an item, and those of a dry run.

A tick and an item are both attempts: a failure that the data managers call
retryable is tried again after a random pause, every other is reported once.
"""

import collections
import contextlib
import functools
import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar, overload

import transaction
import ZODB.Connection
import ZODB.utils
from transaction._transaction import Status
from transaction.interfaces import (
    DoomedTransaction,
    NoTransaction,
    TransientError,
)
from ZODB.POSException import ConflictError

from gocept.runner.signals import Shutdown, current_shutdown

log = logging.getLogger(__name__)

# The pause before attempt n + 1 is random, at most FIRST_PAUSE * 2 ** n and
# never above LONGEST_PAUSE, in seconds ("full jitter", Marc Brooker, AWS
# Architecture Blog, 2015).
FIRST_PAUSE = 0.01
LONGEST_PAUSE = 1.0

T = TypeVar('T')


class Failure(NamedTuple):
    """What `run_attempts` returns in place of a result."""

    error: BaseException
    conflict: bool


class Observer:
    """Is told what becomes of attempts, after the commit or abort."""

    def committed(self) -> None:
        """It was committed."""

    def aborted(self, error: BaseException) -> None:
        """It was aborted."""

    def retried(self, error: BaseException, number: int) -> None:
        """It was aborted, and is tried again."""


def run_attempts(step: Callable[[int], T], attempts: int, shutdown: Shutdown,
                 report: Callable[[BaseException], None],
                 observer: Observer | None = None) -> T | Failure:
    """Call ``step(number)`` and commit, for as many attempts as it takes.

    `report` is called with an error that is not retried, before the abort; a
    conflict is logged here. SystemExit and KeyboardInterrupt abort and
    propagate. A request to shut down ends the pause between two attempts, and
    the attempts.
    """
    number = 1
    while True:
        try:
            result = step(number)
            doomed = _commit()
        except (SystemExit, KeyboardInterrupt) as error:
            abort()
            if observer is not None:
                observer.aborted(error)
            raise
        except BaseException as error:
            conflict = isinstance(error, ConflictError)
            again = number < attempts and _is_retryable(error)
            if again:
                log.warning(
                    '%s in attempt %d of %d, trying again: %s',
                    'Conflict error' if conflict else 'Transient error',
                    number, attempts, text(error))
            elif conflict:
                log.warning('Conflict error', exc_info=True)
            else:
                report(error)
            abort()
            if not again or shutdown.wait(_pause_after(number)):
                if observer is not None:
                    observer.aborted(error)
                return Failure(error, conflict)
            if observer is not None:
                observer.retried(error, number)
        else:
            if observer is None:
                pass
            elif doomed is None:
                observer.committed()
            else:
                observer.aborted(doomed)
            return result
        number += 1


def _commit() -> DoomedTransaction | None:
    """Commit, or else abort what is doomed."""
    try:
        txn = transaction.get()
    except NoTransaction:
        return None  # explicit mode: the step has ended it
    try:
        txn.commit()
    except DoomedTransaction as error:
        log.debug('The transaction is doomed, so it is aborted')
        txn.abort()
        return error  # type: ignore[no-any-return]
    except Exception:
        # What fails after the storages have finished must not be done twice.
        if txn.status != Status.COMMITTED:
            raise
        log.error('Committed, but the connection failed thereafter',
                  exc_info=True)
        abort()
    return None


def abort() -> None:
    """Abort the transaction, whatever state it and its storages are in."""
    try:
        transaction.abort()
    except NoTransaction:
        pass  # explicit mode: it has ended already
    except Exception:
        log.error('Cannot abort the transaction', exc_info=True)


def _is_retryable(error: BaseException) -> bool:
    # Has to be asked before the abort, which forgets the data managers.
    try:
        return bool(transaction.get().isRetryableError(error))
    except NoTransaction:
        pass  # explicit mode: it has ended already
    except Exception:
        log.error('A data manager cannot tell whether to retry',
                  exc_info=True)
    return isinstance(error, TransientError)


def _pause_after(number: int) -> float:
    from random import uniform
    return uniform(0, min(FIRST_PAUSE * 2 ** number, LONGEST_PAUSE))


def text(value: object, convert: Callable[[object], str] = str) -> str:
    """`value` for a log line, also where its own conversion fails."""
    try:
        return convert(value)
    except Exception as error:
        return f'<{type(value).__name__}, unprintable: {type(error).__name__}>'


Item = Callable[[], object]
Items = Callable[..., Iterable[Item]]
ItemLoop = Callable[..., Any]


@overload
def transaction_per_item(func: Items, *, attempts: int = 1) -> ItemLoop: ...


@overload
def transaction_per_item(*, attempts: int = 1,
                         ) -> Callable[[Items], ItemLoop]: ...


def transaction_per_item(
        func: Items | None = None, *, attempts: int = 1,
) -> ItemLoop | Callable[[Items], ItemLoop]:
    """See `ITransactionPerItem`."""
    if attempts < 1:
        raise ValueError(f'attempts must be at least 1, not {attempts!r}')
    if func is None:
        return functools.partial(transaction_per_item, attempts=attempts)
    name = func.__name__

    @functools.wraps(func)
    def loop(*args: Any, **kwargs: Any) -> Any:
        items = iter(func(*args, **kwargs))
        counts: collections.Counter[str] = collections.Counter()
        with (current_shutdown() as shutdown,
              _progress_bar(name) as progress,
              _closed_at_the_end(items)):
            try:
                return _run_items(items, attempts, shutdown, counts, progress)
            finally:
                log.info('%s: %d done, %d failed, %d skipped%s', name,
                         counts['done'], counts['failed'], counts['skipped'],
                         ', stopped' if shutdown.requested else '')
    return loop


def _run_items(items: Iterator[Item], attempts: int, shutdown: Shutdown,
               counts: collections.Counter[str],
               progress: Callable[[], object]) -> Any:
    while not shutdown.attend():
        try:
            # What the generator does on its way to an item belongs to it.
            _begin(again=bool(counts))
            item = next(items)
        except StopIteration as end:
            return end.value
        except BaseException:
            abort()
            raise
        outcome = _run_item(item, attempts, shutdown)
        if not isinstance(outcome, Failure):
            counts['done'] += 1
        elif outcome.conflict:
            counts['skipped'] += 1
        else:
            counts['failed'] += 1
        progress()
    return None


def _begin(again: bool) -> None:
    try:
        if not again:
            transaction.get()  # the one of the tick, where there is one
            return
    except NoTransaction:
        pass
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
def _closed_at_the_end(items: Iterator[Item]) -> Iterator[None]:
    try:
        yield
    finally:
        close = getattr(items, 'close', None)  # only a generator has one
        if close is not None:
            close()


@contextlib.contextmanager
def _progress_bar(name: str) -> Iterator[Callable[[], object]]:
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda: None
        return
    import tqdm

    class Bar(tqdm.tqdm):  # type: ignore[misc]
        monitor_interval = 0  # it would start a thread

    class AboveTheBar:
        """A terminal, for a log handler."""

        def __init__(self, stream: Any) -> None:
            self.stream = stream
            self.flush = stream.flush

        def write(self, text: str) -> None:
            Bar.write(text, file=self.stream, end='')

    with contextlib.ExitStack() as undo:
        for handler in logging.getLogger().handlers:
            if (isinstance(handler, logging.StreamHandler)
                    and handler.stream in (sys.stdout, sys.stderr)):
                stream = handler.setStream(AboveTheBar(handler.stream))
                undo.callback(handler.setStream, stream)
        # It shows nothing on a terminal that does not know its size.
        columns, lines = shutil.get_terminal_size()
        yield undo.enter_context(
            Bar(desc=name, unit=' items', file=sys.stderr,
                ncols=columns, nrows=lines)).update


@contextlib.contextmanager
def dry_run() -> Iterator[None]:
    """Abort every transaction where it would be committed, in all threads.

    What would have been committed is logged, as a number of objects for each
    class.
    """
    commit = transaction.Transaction.commit
    transaction.Transaction.commit = _abort_instead
    try:
        yield
    finally:
        transaction.Transaction.commit = commit


def _abort_instead(txn: transaction.Transaction) -> None:
    if txn.isDoomed():
        raise DoomedTransaction('transaction doomed, cannot commit')
    for hook, args, keywords in txn.getBeforeCommitHooks():
        hook(*args, **keywords)
    # Stores what is new or changed where it can be counted, and finds what
    # cannot be pickled.
    txn.savepoint(optimistic=True)
    classes = collections.Counter(
        name for resource in txn._resources
        if isinstance(resource, ZODB.Connection.Connection)
        for name in _stored_by_savepoint(resource))
    if classes:
        log.info('Dry run: would commit %s', ', '.join(
            f'{count} {name}' for name, count in sorted(classes.items())))
    else:
        log.debug('Dry run: would commit nothing')
    txn.abort()


def _stored_by_savepoint(connection: ZODB.Connection.Connection,
                         ) -> Iterator[str]:
    storage = connection._savepoint_storage
    if storage is None:
        return
    for oid in storage.index:
        data, _ = storage.load(oid)
        yield '.'.join(ZODB.utils.get_pickle_metadata(data))
