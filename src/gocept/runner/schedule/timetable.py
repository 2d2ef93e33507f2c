"""How a loop keeps a schedule.

An `Agenda` tells which run is due. Each attempt of a tick reads the last run
in its own transaction, and stores the one that it does.
"""

from collections.abc import Callable

import transaction

from gocept.runner.boot.attempts import current_transaction
from gocept.runner.boot.counts import Items
from gocept.runner.boot.metadata import begin_item
from gocept.runner.boot.ticks import ExitType, seconds
from gocept.runner.errors import AlreadyRun
from gocept.runner.poller import Poller, WallTimer
from gocept.runner.schedule.agenda import Agenda
from gocept.runner.schedule.runs import LastRun
from gocept.runner.signals import Shutdown
from gocept.runner.waits.instants import Instant


class Timetable:
    """The runs of a loop, and the worker that does them.

    With `once`, the worker runs at once, whatever was run before.
    """

    def __init__(self, agenda: Agenda, last: LastRun,
                 worker: Callable[[], object], items: Items, *,
                 once: bool) -> None:
        self._agenda = agenda
        self._last = last
        self._worker = worker
        self._items = items
        self._once = once
        self._pause: float | None = None  # that the worker has asked for
        self._result: object = None  # of the worker
        self._unstored: float | None = None
        """The run whose record is all that is left to be stored."""
        if once:
            agenda.hurry()

    @property
    def start(self) -> Instant | None:
        """When to look again; None: a tick is next, or nobody has looked."""
        return self._agenda.start

    @property
    def is_complete(self) -> bool:
        """Whether all items of the tick that matter are done."""
        return not (self._items.incomplete or self._items.cut_short)

    def look(self) -> None:
        """Decide what is next. Call this in a transaction."""
        self._agenda.look(self._last.read())

    def postpone(self, pause: float) -> None:
        """The database cannot be read: look again after a pause."""
        self._agenda.postpone(pause)

    def rest(self, shutdown: Shutdown, seconds: float, poller: Poller) -> None:
        """Pause until `start`, which is so many seconds from now.

        Sources of the poller do not end the pause. It ends early if the clock
        was set, and another run is due next.
        """
        agenda = self._agenda
        while not shutdown.attend():
            with WallTimer(agenda.latest_start) as timer:
                poller.register(timer)
                try:
                    # Asked now, so that no change of the clock is missed.
                    if agenda.has_started() or not agenda.is_current():
                        return
                    shutdown.pause(agenda.left(), poller)
                finally:
                    poller.unregister(timer)

    def run(self) -> object:
        """Call the worker, and store that the run is done."""
        due, self._pause = self._agenda.due, None
        if due is not None and not self._once and self._last.read() >= due:
            raise AlreadyRun(f'the run at {self._agenda.time_of(due)} was '
                             'done meanwhile, elsewhere')
        if due is None or self._unstored != due:
            self._result = self._worker()
            self._unstored = None
        result = self._result
        self._pause = (None if result is None or isinstance(result, ExitType)
                       else seconds(result))
        if due is not None and self.is_complete:
            if current_transaction() is None:  # the worker has ended it
                begin_item()
            # A conflict about the record must not have the items done again.
            if _is_empty(current_transaction()):
                self._unstored = due
            self._last.write(due)
        return result

    def done(self) -> None:
        """The tick is committed, or the run was done elsewhere."""
        self._agenda.done(self._pause)

    def failed(self, pause: float, errors: int, *, uncertain: bool) -> None:
        """Not all of the tick is done; see `Agenda.failed`."""
        self._agenda.failed(pause, errors, uncertain=uncertain)


def _is_empty(txn: transaction.Transaction | None) -> bool:
    """Whether a commit would store nothing, so that an abort loses nothing."""
    return txn is not None and not (
        txn._resources or txn.isDoomed() or [*txn.getBeforeCommitHooks()])
