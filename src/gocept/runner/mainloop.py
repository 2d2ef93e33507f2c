"""The main loop: it calls a worker tick by tick.

The loop belongs to the thread that calls it. `MainLoop.stop` may be called
from any thread, and `MainLoop.stopMainLoop` by a signal handler.
"""

import contextlib
import functools
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING

import transaction
import zope.interface
from zope.component.interfaces import ISite

from gocept.runner import errors, events
from gocept.runner.boot import environment, environments
from gocept.runner.boot.attempts import (
    Failure,
    Observer,
    abort,
    checked_attempts,
    nobody,
    run_attempts,
    second_phase_has_begun,
)
from gocept.runner.boot.counts import Counts, Items, count_in, counting
from gocept.runner.boot.current import run_in_thread, running
from gocept.runner.boot.environments import CurrentSite
from gocept.runner.boot.metadata import carry, carrying
from gocept.runner.boot.pauses import poller_of_pauses
from gocept.runner.boot.program import (
    Principal,
    User,
    Watch,
    Who,
)
from gocept.runner.boot.texts import described, name_of, text
from gocept.runner.boot.ticks import Exit, ExitType, seconds
from gocept.runner.events import (
    Missed,
    Schedule,
    TimeoutAction,
    hearing_of_ticks,
    notify,
)
from gocept.runner.interfaces import IMainLoop
from gocept.runner.logs import Log
from gocept.runner.poller import Poller
from gocept.runner.signals import Shutdown
from gocept.runner.signals.handlers import (
    Keep,
    handling,
    restore_defaults,
    tell_terminal,
)
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.forks import OneProcess
from gocept.runner.waits.instants import Instant
from gocept.runner.waits.standard import restore_blocking

if TYPE_CHECKING:
    from gocept.runner.boot.changes import Changes
    from gocept.runner.operation.watchdog import Watchdog
    from gocept.runner.schedule.timetable import Timetable

log = Log('gocept.runner.runner')


MAX_BACKOFF = 60.0
"""The longest pause after errors in a row, in seconds."""

WATCH_INTERVAL = 0.5
"""Seconds between two looks for a change in a database that tells nobody."""

_LEAST_BACKOFF = 0.1  # seconds; doubled instead of ticks that are shorter

_LONGEST_TICKS = 1.0  # seconds; doubled instead of longer ones, with `watch`

_MOST_DOUBLINGS = 64  # of a pause, so that there is a float for it


@zope.interface.implementer(IMainLoop)
class MainLoop:
    """See `IMainLoop`."""

    # Of the class, for adopters with an `__init__` of their own.
    tick = attempt = 0
    tick_started: float | None = None
    next_tick: Instant | None = None
    schedule: Schedule | None = None
    missed: Missed = 'skip'
    tick_timeout: float | None = None
    tick_timeout_action: TimeoutAction = 'log'
    timed_out = 0
    _watchdog: 'Watchdog | None' = None

    def __init__(self, app: ISite, ticks: float | ExitType,
                 worker: Callable[[], object], principal: Principal = None,
                 once: bool = False, *, attempts: int = 3,
                 max_backoff: float = MAX_BACKOFF, watch: Watch | None = None,
                 watch_interval: float = WATCH_INTERVAL) -> None:
        self.app = app
        self.ticks = 0 if isinstance(ticks, ExitType) else seconds(
            ticks, 'ticks')
        self.worker = worker
        self._principal: Principal | User = principal
        self.once = once or isinstance(ticks, ExitType)
        self.attempts = checked_attempts(attempts)
        self.max_backoff = seconds(max_backoff, 'max_backoff')
        self.watch = watch
        self.watch_interval = checked_interval(watch_interval)
        self.failed = False
        self.status = errors.SUCCESS
        self.ended_by: SystemExit | KeyboardInterrupt | None = None
        self.announce: Callable[[], object] = lambda: None
        self.name: str | None = None
        self._failures = 0  # in a row
        self._last: Failure | None = None  # of the last tick
        self._ticking = self._ticked = False
        self._items = Items()
        self._shutdown = Shutdown()
        self._current: CurrentSite | None = None  # in `__call__` of this class
        # In that of a subclass:
        self._own_attempt = contextlib.ExitStack()
        self._process = OneProcess()
        self._running = True

    def _who(self) -> Who:
        # No cached_property: it would make all attributes of a loop slow.
        if callable(self._principal):
            self._principal = self._principal()
        return self._principal

    @property
    def principal_id(self) -> str | None:
        """See `IMainLoop`."""
        who = self._who()
        return who if who is None or isinstance(who, str) else who.getId()

    @property
    def known_principal(self) -> str | None:
        """See `IMainLoop`."""
        return None if callable(self._principal) else self.principal_id

    @property
    def interaction(self) -> bool:
        """See `IMainLoop`."""
        return self._who() is not None

    @property
    def principal(self) -> object:
        """See `IMainLoop`."""
        return environments.current().find_principal(self._who())

    @property
    def running(self) -> bool:
        """See `IMainLoop`."""
        if self._shutdown.attend() and self._running:
            self._running = False
            if self._shutdown.signum is not None:
                log.info('Received signal %d, terminating.',
                         self._shutdown.signum)
        return self._running

    @running.setter
    def running(self, value: bool) -> None:
        self._running = value

    _is_running = running  # what it was called in 3.0

    @property
    def stopping(self) -> bool:
        """See `IMainLoop`."""
        return self._shutdown.requested or not self._running

    @property
    def deadline(self) -> float | None:
        """See `IMainLoop`."""
        watchdog = self._watchdog
        return None if watchdog is None else watchdog.deadline

    @property
    def counts(self) -> Counts:
        """See `IMainLoop`."""
        return self._items.counts

    def stop(self) -> None:
        """See `IMainLoop`."""
        self._shutdown.request()

    def stopMainLoop(self, signum: int, frame: FrameType | None) -> None:
        """See `IMainLoop`."""
        restore_defaults()
        if signum == signal.SIGINT and self._ticking:
            tell_terminal()
        self._shutdown.request(signum)

    def _reopen_logs(self, signum: int, frame: FrameType | None) -> None:
        self._shutdown.request_reopening()

    def __call__(self) -> None:
        """See `IMainLoop`."""
        environment.check_connection(self.app)
        self.failed, self.ended_by, self._failures = False, None, 0
        self._items, self._last = Items(self.once), None
        self._ticked, self._running = False, True
        self.tick = self.attempt = self.timed_out = 0
        self.next_tick = None
        process = OneProcess()
        with (self._shutdown, handling({
                signal.SIGTERM: self.stopMainLoop,
                signal.SIGHUP: self.stopMainLoop,
                signal.SIGINT: self.stopMainLoop,
                signal.SIGUSR2: self._reopen_logs}) as keep_handlers,
              self._entered() as current,
              poller_of_pauses() as poller,
              counting(self._items),
              running(self),
              self._watched_over(),
              process):
            self._shutdown.join_outer()
            process.check()
            self.announce()
            notify(events.LoopStarted(self))
            try:
                self._current = current
                with (self._watching() as changes, process,
                      carrying(current.begin_item)):
                    self._loop(current, poller, keep_handlers, changes)
            finally:
                self._current = None
                self.status = self._status()
                notify(events.LoopStopped(self))
                abort()  # what subscribers have changed since the last tick
            _ = self.running  # logs a signal, unless somebody has asked

    def _status(self) -> int:
        failure, items = self._last, self._items
        if items.uncertain or (failure and failure.uncertain):
            return errors.PARTLY_COMMITTED
        if isinstance(self.ended_by, KeyboardInterrupt):
            return errors.INTERRUPTED
        if self.ended_by is not None and (
                status := errors.status_of(self.ended_by)):
            return status
        if (not self._ticked or items.cut_short
                or (failure and failure.cut_short)):
            signum = self._shutdown.signum
            return (errors.WORKER_FAILED if signum is None
                    else errors.SIGNALLED + signum)
        return (errors.WORKER_FAILED if failure or items.incomplete
                else errors.SUCCESS)

    def _take_over(self, app: ISite) -> None:
        log.warning('The site %s was replaced in the database, so the loop '
                    'goes on with the new one',
                    text(getattr(app, '__name__', None)))
        self.app = app

    def _timetable(self, current: CurrentSite) -> 'Timetable | None':
        if self.schedule is None:
            return None
        if self.watch is not None:
            raise errors.UsageError('a worker with a schedule runs at its '
                                    'times only: it cannot have watch as well')
        # Imported here, since few workers need it.
        from gocept.runner.schedule.agenda import Agenda
        from gocept.runner.schedule.runs import LastRun
        from gocept.runner.schedule.timetable import Timetable
        name = self.name or name_of(self.worker)
        return Timetable(
            Agenda(self.schedule, self.missed, self._name()),
            LastRun(current.app, name, getattr(current, 'path', None)),
            self.worker, self._items, once=self.once)

    def _entered(self) -> AbstractContextManager[CurrentSite]:
        return environments.current().entered(
            self.app, self._who, self.name or name_of(self.worker),
            self._take_over)

    def _watching(self) -> 'AbstractContextManager[Changes | None]':
        if self.watch is None or self.once:
            return contextlib.nullcontext()
        # Imported here, since few workers need it.
        from gocept.runner.boot.changes import Changes
        return Changes(self.app, self.watch, self.watch_interval,
                       self._shutdown)

    @contextlib.contextmanager
    def _watched_over(self) -> Iterator[None]:
        if self.tick_timeout is None:
            yield
            return
        with self._make_watchdog() as self._watchdog:
            self._items.begin_item = self._watchdog.begin_item
            try:
                yield
            finally:
                self._watchdog = None

    def _make_watchdog(self) -> 'Watchdog':
        # Imported here, since few workers need it.
        from gocept.runner.operation.watchdog import Watchdog
        return Watchdog(self)

    def begin(self) -> None:
        """See `IMainLoop`."""
        if self._current is not None:
            self._current.begin()
            return
        if not self._ticked:
            if self.schedule is not None:
                raise errors.UsageError(
                    f'{type(self).__name__} has a __call__ of its own, which '
                    'keeps no schedule')
            environment.check_connection(self.app)
            self.announce()
            self._ticked = True
            self._items = Items(self.once)
        self._process = OneProcess()
        self._own_attempt.close()
        if self._last is not None or not self.once:  # and no second commit
            self._items.begin_tick()
        current = self._own_attempt.enter_context(self._entered())
        self._own_attempt.callback(current.end)
        # Not as contexts: if they are forgotten, they end at any time.
        self._own_attempt.callback(count_in, count_in(self._items))
        self._own_attempt.callback(carry, carry(current.begin_item))
        self._own_attempt.callback(run_in_thread, run_in_thread(self))
        self._own_attempt.callback(self._shutdown.serve())
        if self.tick_timeout is not None:
            self._watch_over()
        self._begin_tick()
        self.attempt = 1
        current.begin()

    def commit(self) -> None:
        """See `IMainLoop`."""
        if self._current is None:
            self._process.check()
        transaction.commit()
        if self._current is None:
            self._end(None)

    def abort(self) -> None:
        """See `IMainLoop`."""
        error = sys.exc_info()[1]
        if self._current is None:
            self._process.check(error)
        uncertain = second_phase_has_begun()
        abort()
        if self._current is None:
            if isinstance(error, (SystemExit, KeyboardInterrupt)):
                self.ended_by = error
            self._end(Failure(error or errors.NotCommitted(), False,
                              uncertain))

    def _watch_over(self) -> None:
        """Do the same for a subclass that has a `__call__` of its own."""
        watchdog = self._watchdog
        if watchdog is None or not watchdog.is_of_this_thread:
            if watchdog is not None:
                watchdog.close()
            self._watchdog = watchdog = self._make_watchdog()
        self._items.begin_item = watchdog.begin_item

    def _end(self, failure: Failure | None) -> None:
        """End a tick of a subclass that has a `__call__` of its own."""
        self._own_attempt.close()
        self.tick_started = None
        if self._watchdog is not None:
            self._watchdog.end_tick()
            if self.once or self.stopping:
                self._watchdog.close()
                self._watchdog = None
        if self.ended_by is None or (failure and failure.uncertain):
            self._last, self.failed = failure, failure is not None
        self.status = self._status()

    def _override(self, name: str) -> Callable[[], object] | None:
        """The method of a subclass, or None if it has none of this name."""
        method: Callable[[], object] = getattr(self, name)
        is_ours = getattr(method, '__func__', None) is getattr(MainLoop, name)
        return None if is_ours else method

    def _abort(self) -> None:
        override = self._override('abort')
        if override is not None:
            try:
                override()
            except (SystemExit, KeyboardInterrupt) as error:
                # Not raised, so that the tick ends as one that has failed.
                log.info('%s raised by abort(), so the loop ends',
                         text(error, repr))
                self.ended_by = error
                self._shutdown.request()
            except Exception:
                log.error('abort() of the loop has failed', exc_info=True)
        abort()

    def _loop(self, current: CurrentSite, poller: Poller,
              keep_handlers: Keep, changes: 'Changes | None') -> None:
        timetable, items = self._timetable(current), self._items
        worker = self.worker if timetable is None else timetable.run
        begin = self._override('begin') or current.begin
        commit = self._override('commit')
        components = current.components
        is_heard = hearing_of_ticks(components)

        def step(number: int) -> ExitType | float:
            self.attempt = number
            if number > 1:
                current.end()
                items.repeat_tick()
            if changes is not None:
                changes.begin_tick()
            begin()
            result = worker()
            if result is None:
                return self.ticks
            return result if isinstance(result, ExitType) else seconds(result)

        while not self._shutdown.attend():
            if not (timetable is None or self.once or self._await_run(
                    timetable, begin, current, poller)):
                break
            self._ticked = True
            if items.before is not None:  # cheaper than to call it each time
                items.begin_tick()
            observer: Observer = nobody
            if current.components is not components:
                components = current.components
                is_heard = hearing_of_ticks(components)
            self._begin_tick()
            if is_heard():
                observer = self._send_end
                notify(events.TickStarted(self))
            self._ticking = True
            pause = self._tick(step, observer, commit)
            self._ticking = False
            self.tick_started = None
            keep_handlers(self._shutdown)
            current.end()
            if self._watchdog is not None:
                for took in self._watchdog.end_tick():
                    if is_heard():
                        notify(events.TickTimedOut(self, took))
            if isinstance(pause, ExitType) or self.once:
                break
            if (self._failures or items.uncertain
                    or environment.has_lost_connection(self.app)):
                environment.check_databases(self.app)
            if timetable is not None:
                self._note_run(timetable)
            elif pause or self._failures > 1:
                # To ask the observer is cheaper than `is_heard`.
                self._rest(pause, observer is not nobody, changes, begin,
                           current, poller)

    def _rest(self, pause: float, is_heard: bool, changes: 'Changes | None',
              begin: Callable[[], object], current: CurrentSite,
              poller: Poller) -> None:
        """The pause between two ticks."""
        if self._failures > 1:
            pause = self._backoff(self.ticks)
        if not self._shutdown.requested:
            self.next_tick = Instant('monotonic', monotonic() + pause)
            if is_heard:
                notify(events.PauseStarted(self))
        if self._failures > 1:
            pause -= self._pause_after_errors(pause, changes, poller)
        if not pause:
            return
        if changes is not None:
            self._watch(changes, begin, current)
        log.debug('Sleeping %s seconds', pause)
        self._pause(self._shutdown.pause if changes is None
                    else changes.pause, pause, poller)

    def _pause_after_errors(self, pause: float, changes: 'Changes | None',
                            poller: Poller) -> float:
        """The part of a pause that only a request to end cuts short."""
        tell = log.info if pause > self.ticks else log.debug
        tell('Trying again in %.3g s, after %d errors in a row',
             pause, self._failures)
        # Output of a child must not shorten this pause. Neither must a
        # change, but `ticks` may be long where changes are watched.
        deaf = (pause if changes is None
                else self._backoff(min(self.ticks, _LONGEST_TICKS)))
        self._pause(self._shutdown.wait, deaf, poller)
        return deaf

    def _await_run(self, timetable: 'Timetable', begin: Callable[[], object],
                   current: CurrentSite, poller: Poller) -> bool:
        """Pause until a tick is due by the schedule; False: the loop ends."""
        failures = 0
        while not self._shutdown.attend():
            start = timetable.start
            if start is not None and (left := start.left()) > 0:
                self.next_tick = start
                if hearing_of_ticks(current.components)():
                    notify(events.PauseStarted(self))
                self._pause(
                    functools.partial(timetable.rest, self._shutdown), left,
                    poller)
                if self._shutdown.attend():
                    break
            try:
                with OneProcess():
                    begin()
                    timetable.look()
                failures = 0
            except (SystemExit, KeyboardInterrupt) as error:
                self.ended_by = error
                log.info('%s raised before a tick of %s, so the loop ends',
                         text(error, repr), self._name())
                self._shutdown.request()
            except Exception as error:
                failures += 1
                pause = self._backoff(self.ticks, failures)
                timetable.postpone(pause)
                log.error('Cannot tell which run of %s was the last, trying '
                          'again in %.3g s: %s', self._name(), pause,
                          described(error), exc_info=error)
            finally:
                abort()
                current.end()
            if failures:
                environment.check_databases(self.app)
            elif timetable.start is None:
                return not self._shutdown.requested
        return False

    def _note_run(self, timetable: 'Timetable') -> None:
        failure, items = self._last, self._items
        if self.failed or not timetable.is_complete:
            self._failures += not self.failed
            timetable.failed(
                self._backoff(self.ticks), self._failures,
                uncertain=items.uncertain is not None or (
                    failure is not None and failure.uncertain))
        else:
            self._failures = 0
            timetable.done()

    def _begin_tick(self) -> None:
        self.tick += 1
        self.next_tick = None
        self.tick_started = now = monotonic()
        if self._watchdog is not None:
            self._watchdog.begin_tick(now)

    def _watch(self, changes: 'Changes', begin: Callable[[], object],
               current: CurrentSite) -> None:
        try:
            changes.watch(begin, current)
        except (SystemExit, KeyboardInterrupt) as error:
            self.ended_by = error
            log.info('%s raised by what tells %s what to watch, so the loop '
                     'ends', text(error, repr), self._name())
            self._shutdown.request()

    def _pause(self, wait: Callable[[float, Poller], object], seconds: float,
               poller: Poller) -> None:
        deadline = Deadline(seconds)
        restore_blocking()
        try:
            wait(seconds, poller)
        except Exception as error:
            log.error('Error in the pause after %s: %s; is an alarm of it '
                      'still set?', self._name(), described(error),
                      exc_info=error)
            wait(deadline.left(), poller)  # once: the poller may be broken

    def _tick(self, step: Callable[[int], ExitType | float],
              observer: Observer, commit: Callable[[], object] | None,
              ) -> ExitType | float:
        try:
            outcome = run_attempts(
                step, self.attempts, self._shutdown, self._name, self._report,
                observer, commit=commit,
                doom_fails=self.once or self.schedule is not None,
                undo=self._abort)
        except (SystemExit, KeyboardInterrupt) as error:
            self.ended_by = error
            if error is not self._items.ended_by:
                log.info('%s raised by %s, so the loop ends',
                         text(error, repr), self._name())
            return Exit
        except Exception as error:  # of a signal handler, between attempts
            self._report(f'Error beside {self._name()}: {described(error)}',
                         error)
            self._abort()
            outcome = Failure(error, False)
        if (isinstance(outcome, Failure)
                and isinstance(outcome.error, errors.AlreadyRun)):
            outcome = self.ticks
        if isinstance(outcome, Failure):
            self._last, self.failed = outcome, True
            self._failures += 1
            return self.ticks
        if self.failed:
            self._last, self.failed, self._failures = None, False, 0
        return outcome

    def _backoff(self, ticks: float, failures: int | None = None) -> float:
        """The pause after several errors in a row."""
        doublings = min((self._failures if failures is None else failures) - 1,
                        _MOST_DOUBLINGS)
        return max(ticks, min(
            self.max_backoff, max(ticks, _LEAST_BACKOFF) * 2.0 ** doublings))

    def _send_end(self, error: BaseException | None, retried: int,
                  uncertain: bool) -> None:
        if not uncertain and not retried and self._items.uncertain:
            error, uncertain = self._items.uncertain, True
        if error is None:
            notify(events.TickCommitted(self))
        elif uncertain:
            notify(events.TickUncertain(self, error))
        elif retried:
            notify(events.ConflictRetried(self, error, retried))
        else:
            notify(events.TickAborted(self, error))

    def _name(self) -> str:
        return f'worker {self.name or name_of(self.worker)!r}'

    def _report(self, message: str, error: BaseException) -> None:
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            # Of the second phase, or else it would not be reported.
            self._last = Failure(error, False, True)
        log.error('%s', message, exc_info=error)


def checked_interval(interval: float) -> float:
    """`interval`, if it is a number of seconds above 0."""
    found = seconds(interval, 'watch_interval')
    if not found:
        raise ValueError('watch_interval must be more than 0 seconds')
    return found
