"""Attempts to do something in a transaction.

An error that the data managers call retryable is followed by another attempt,
after a random pause. Any other error is reported once.
"""

import logging
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

from gocept.runner.signals import Shutdown

log = logging.getLogger('gocept.runner.transaction')

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


Observer = Callable[[BaseException | None, int], object]
"""Called after each attempt with the error, or None if it was committed.

The second argument is the number of the attempt if another one follows, or 0.
"""


def nobody(error: BaseException | None, retried: int) -> None:
    """The `Observer` that does nothing."""


def run_attempts(step: Callable[[int], T], attempts: int, shutdown: Shutdown,
                 report: Callable[[BaseException], None],
                 observer: Observer = nobody) -> T | Failure:
    """Call ``step(number)`` and commit, up to `attempts` times.

    An error that is not retried is passed to `report` before the abort; a
    conflict is logged here. SystemExit and KeyboardInterrupt abort and
    propagate. After a request to shut down there is no further attempt, and a
    pause before one ends at once.
    """
    number = 0
    while True:
        number += 1
        try:
            result = step(number)
            doomed = _commit()
        except (SystemExit, KeyboardInterrupt) as error:
            abort()
            observer(error, 0)
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
                observer(error, 0)
                return Failure(error, conflict)
            observer(error, number)
        else:
            observer(doomed, 0)
            return result


def _commit() -> DoomedTransaction | None:
    """Commit, or abort a doomed transaction and return the error."""
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
