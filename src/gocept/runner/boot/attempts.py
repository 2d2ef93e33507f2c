"""Attempts to do something in a transaction.

An error that the data managers call retryable is followed by another attempt,
after a random pause. Any other error is reported once.
"""

import functools
import random
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import transaction
from transaction._transaction import Status
from transaction.interfaces import (
    DoomedTransaction,
    NoTransaction,
    TransientError,
)
from ZODB.POSException import ConflictError

from gocept.runner.logs import Log
from gocept.runner.signals import Shutdown
from gocept.runner.waits import forks

log = Log('gocept.runner.transaction')

# The pause before attempt n + 1 is random, at most FIRST_PAUSE * 2 ** n and
# never above LONGEST_PAUSE, in seconds ("full jitter", Marc Brooker, AWS
# Architecture Blog, 2015).
FIRST_PAUSE = 0.01
LONGEST_PAUSE = 1.0

T = TypeVar('T')


def checked_attempts(attempts: int) -> int:
    """`attempts`, or ValueError if there are none."""
    if attempts < 1:
        raise ValueError(f'attempts must be at least 1, not {attempts!r}')
    return attempts


class Failure(NamedTuple):
    """What `run_attempts` returns in place of a result."""

    error: BaseException
    conflict: bool
    uncertain: bool = False
    """Whether the error came in the second phase of the commit."""
    cut_short: bool = False
    """Whether a request to shut down has prevented another attempt."""


Observer = Callable[[BaseException | None, int, bool], object]
"""Called after each attempt with the error, or None if it was committed.

The second argument is the number of the attempt if another one follows, or 0.
The third argument tells whether the outcome is uncertain.
"""


def nobody(error: BaseException | None, retried: int, uncertain: bool) -> None:
    """The `Observer` that does nothing."""


def run_attempts(step: Callable[[int], T], attempts: int, shutdown: Shutdown,
                 what: Callable[[], str],
                 report: Callable[[str, BaseException], None],
                 observer: Observer = nobody, *,
                 doom_fails: bool = False) -> T | Failure:
    """Call ``step(number)`` and commit, up to `attempts` times.

    `what` names that which is done, for the log. An error that is not retried
    is passed to `report` before the abort, with a message; a conflict is
    logged here. SystemExit and KeyboardInterrupt abort and propagate. After a
    request to shut down there is no further attempt, and a pause before one
    ends at once. There is no further attempt either once the second phase of
    the commit has begun: some of it may be committed. A doomed transaction is
    aborted with a warning; with `doom_fails` this is a failure.

    A child that `step` has forked ends where it comes back to here.
    """
    number, generation = 0, forks.generation
    while True:
        number += 1
        txn = None
        try:
            result = step(number)
            if forks.generation != generation:
                forks.end_fork()
            txn = _current()
            if txn is not None:
                txn.commit()
            if forks.generation != generation:
                forks.end_fork()
        except BaseException as error:
            if forks.generation != generation:
                forks.end_fork(error)
            ending = isinstance(error, (SystemExit, KeyboardInterrupt))
            if txn is not None and _is_over(txn, error, what):
                abort()
                doomed = isinstance(error, DoomedTransaction)
                observer(error if doomed else None, 0, False)
                if ending:
                    raise
                return (Failure(error, False) if doomed and doom_fails
                        else result)
            uncertain = second_phase_has_begun()
            again = (number < attempts and not ending and not uncertain
                     and _is_retryable(error))
            if uncertain or not ending:
                _tell(error, uncertain,
                      f'{number} of {attempts}' if again else '',
                      what(), report)
            abort()
            cut_short = again and shutdown.wait(_pause_after(number))
            again = again and not cut_short
            observer(error, number if again else 0, uncertain)
            if ending:
                raise
            if not again:
                return Failure(error, isinstance(error, ConflictError),
                               uncertain, cut_short)
        else:
            observer(None, 0, False)
            return result


def _current() -> transaction.Transaction | None:
    try:
        return transaction.get()
    except NoTransaction:
        return None  # explicit mode: it has ended already


def _is_over(txn: transaction.Transaction, error: BaseException,
             what: Callable[[], str]) -> bool:
    """Whether the commit has failed, but not the attempt."""
    if isinstance(error, DoomedTransaction):
        log.warning('The transaction of %s was doomed, so it was aborted and '
                    'nothing of it is stored', what())
        return True
    if txn.status == Status.COMMITTED:
        # What fails after all have finished must not be done twice.
        log.error('Committed, but the connection failed thereafter',
                  exc_info=True)
        return True
    return False


def second_phase_has_begun() -> bool:
    """Whether data managers of the current transaction may have finished it.

    The first phase ends with the vote of the last data manager. What fails
    thereafter cannot be undone, as others may have finished before, and as
    even the one that failed may have stored everything. Ask before the abort,
    which forgets the data managers.
    """
    txn = _current()
    if txn is None:
        return False
    return txn.status == Status.COMMITTED or (
        txn.status == Status.COMMITFAILED and bool(txn._resources)
        and all(id(each) in txn._voted for each in txn._resources))


def _tell(error: BaseException, uncertain: bool, again: str, what: str,
          report: Callable[[str, BaseException], None]) -> None:
    conflict = isinstance(error, ConflictError)
    if uncertain:
        report(f'Partly committed: the second phase of the commit failed in '
               f'{what}, so it is not known what was committed, and nothing '
               f'is tried again: {described(error)}', error)
    elif again:
        log.warning('%s in attempt %s of %s, trying again: %s',
                    'Conflict error' if conflict else 'Transient error',
                    again, what, described(error))
    elif conflict:
        log.warning('Conflict error in %s: %s', what, described(error),
                    exc_info=True)
    else:
        report(f'Error in {what}: {described(error)}', error)


def abort() -> None:
    """Abort the transaction, whatever state it and its storages are in."""
    try:
        transaction.abort()
    except NoTransaction:
        pass  # explicit mode: it has ended already
    except Exception:
        log.error('Cannot abort the transaction', exc_info=True)


def _is_retryable(error: BaseException) -> bool:
    # Asked before the abort, since the abort forgets the data managers.
    try:
        return bool(transaction.get().isRetryableError(error))
    except NoTransaction:
        pass  # explicit mode: it has ended already
    except Exception:
        log.error('A data manager cannot tell whether to retry',
                  exc_info=True)
    return isinstance(error, TransientError)


def _pause_after(number: int) -> float:
    return random.uniform(0, min(FIRST_PAUSE * 2 ** number, LONGEST_PAUSE))


def text(value: object, convert: Callable[[object], str] = str) -> str:
    """`value` for a log line, even if its own conversion fails."""
    try:
        return convert(value)
    except Exception as error:
        return f'<{type(value).__name__}, unprintable: {type(error).__name__}>'


def described(error: BaseException) -> str:
    """The type of an error and its message, for a log line."""
    message = text(error)
    return type(error).__name__ + (f': {message}' if message else '')


def name_of(function: Callable[..., object]) -> str:
    """The name of a function, for a log line."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, '__name__', None) or type(function).__name__
