"""Attempts to do something in a transaction.

An error that the data managers call retryable is followed by another attempt,
after a random pause. Any other error is reported once.
"""

import contextlib
import random
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import transaction
import zope.interface
from transaction._transaction import Status
from transaction.interfaces import (
    DoomedTransaction,
    ISynchronizer,
    NoTransaction,
    TransientError,
)
from ZODB.POSException import ConflictError

from gocept.runner.boot.current import change_in, note_commit
from gocept.runner.boot.texts import described
from gocept.runner.errors import (
    AlreadyRun,
    NotCommitted,
    PartlyCommitted,
)
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


def abort() -> None:
    """Abort the transaction, whatever state it and its storages are in."""
    try:
        transaction.abort()
    except NoTransaction:
        pass  # explicit mode: it has ended already
    except Exception:
        log.error('Cannot abort the transaction', exc_info=True)


def run_attempts(step: Callable[[int], T], attempts: int, shutdown: Shutdown,
                 what: Callable[[], str],
                 report: Callable[[str, BaseException], None],
                 observer: Observer = nobody, *, doom_fails: bool = False,
                 commit: Callable[[], object] | None = None,
                 undo: Callable[[], object] = abort) -> T | Failure:
    """Call ``step(number)`` and commit, up to `attempts` times.

    `what` names that which is done, for the log. An error that is not retried
    is passed to `report` before the abort, with a message; a conflict is
    logged here. SystemExit and KeyboardInterrupt abort and propagate. After a
    request to shut down there is no further attempt, and a pause before one
    ends at once. There is no further attempt either once the second phase of
    the commit has begun: some of it may be committed. A doomed transaction is
    aborted with a warning; with `doom_fails` this is a failure.

    `commit` is called in place of that of the transaction. What it swallows is
    no success; see `_Override`. `undo` aborts an attempt that has failed.

    A child that `step` has forked ends where it comes back to here.
    """
    number, generation = 0, forks.generation
    while True:
        number += 1
        txn = override = None
        try:
            result = step(number)
            if forks.generation != generation:
                forks.end_fork()
            txn = current_transaction()
            if txn is not None:
                change = change_in(txn)
                if commit is None:
                    txn.commit()
                else:
                    override = _Override(commit, txn)
                    override()
                if change is not None:
                    note_commit(change)
            if forks.generation != generation:
                forks.end_fork()
        except BaseException as error:
            if forks.generation != generation:
                forks.end_fork(error)
            ending = isinstance(error, (SystemExit, KeyboardInterrupt))
            if txn is not None and _is_over(txn, error, what):
                doomed = isinstance(error, DoomedTransaction)
                (undo if doomed else abort)()
                observer(error if doomed else None, 0, False)
                if ending:
                    raise
                return (Failure(error, False) if doomed and doom_fails
                        else result)
            uncertain = second_phase_has_begun() or (
                override is not None and override.is_uncertain)
            again = (number < attempts and not ending and not uncertain
                     and _is_retryable(error))
            if uncertain or not ending:
                _tell(error, uncertain,
                      f'{number} of {attempts}' if again else '',
                      what(), report)
            undo()
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


def current_transaction() -> transaction.Transaction | None:
    """The transaction of this thread; None where there is none."""
    try:
        return transaction.get()
    except NoTransaction:
        return None  # explicit mode: it has ended already


@zope.interface.implementer(ISynchronizer)
class _Override:
    """A function that commits in place of the transaction.

    It may swallow errors, or only abort. Whether it has committed is asked of
    the transaction alone.
    """

    def __init__(self, commit: Callable[[], object],
                 txn: transaction.Transaction) -> None:
        self._commit = commit
        self._txn = txn
        self.is_uncertain = False
        """Whether it has aborted what may be committed in part."""

    def __call__(self) -> None:
        # A hook of the transaction would hear of this as well. But where there
        # is one, data managers are aborted after they have finished.
        manager = transaction.manager
        manager.registerSynch(self)
        try:
            self._commit()
        finally:
            with contextlib.suppress(KeyError):
                manager.unregisterSynch(self)
        if self._txn.status == Status.COMMITTED:
            return
        if self.is_uncertain:
            raise PartlyCommitted(
                'commit() of the loop has aborted a transaction that some '
                'data managers may have committed')
        if self._txn.isDoomed():
            self._txn.commit()  # raises
        raise NotCommitted('commit() of the loop has returned, but the '
                           'transaction was not committed')

    def newTransaction(self, txn: transaction.Transaction) -> None:
        """Nothing is to be done."""

    def beforeCompletion(self, txn: transaction.Transaction) -> None:
        """It is aborted, or is still to be committed."""
        if txn is self._txn and second_phase_has_begun():
            self.is_uncertain = True

    def afterCompletion(self, txn: transaction.Transaction) -> None:
        """Nothing is to be done."""


def _is_over(txn: transaction.Transaction, error: BaseException,
             what: Callable[[], str]) -> bool:
    """Whether the commit has failed, but not the attempt."""
    if isinstance(error, DoomedTransaction):
        log.warning('The transaction of %s was doomed, so it was aborted and '
                    'nothing of it is stored', what())
        return True
    if txn.status == Status.COMMITTED:
        # What fails after all have finished must not be done twice.
        log.error('Committed, but what follows a commit has failed',
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
    txn = current_transaction()
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
    elif isinstance(error, AlreadyRun):
        log.info('Nothing is left to do for %s: %s', what, error)
    elif isinstance(error, NotCommitted):  # the loop has logged the reason
        log.warning('Nothing of %s is stored: %s', what, error)
    else:
        report(f'Error in {what}: {described(error)}', error)


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
