"""The main loop, and the decorators that make a program of a function.

The loop belongs to the thread that calls it. `MainLoop.stop` may be called
from any thread, and `MainLoop.stopMainLoop` by a signal handler.
"""

import contextlib
import functools
import numbers
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Protocol, cast

import transaction
import zope.interface
from zope.app.appsetup.product import getProductConfiguration
from zope.authentication.interfaces import IAuthentication
from zope.component import getGlobalSiteManager
from zope.component.hooks import getSite, getSiteManager, setSite
from zope.component.hooks import site as site_set
from zope.component.interfaces import ISite
from zope.security.management import (
    endInteraction,
    getSecurityPolicy,
    queryInteraction,
    thread_local,
)

from gocept.runner import errors, events
from gocept.runner.boot import environment
from gocept.runner.boot import program as boot
from gocept.runner.boot.attempts import (
    Failure,
    Observer,
    abort,
    checked_attempts,
    described,
    name_of,
    nobody,
    run_attempts,
    text,
)
from gocept.runner.boot.counts import Counts, Items, counting
from gocept.runner.boot.program import Principal, Program, Worker
from gocept.runner.boot.site import finder, is_same
from gocept.runner.boot.zopeconf import ConfigFile
from gocept.runner.events import hearing_of_ticks, notify
from gocept.runner.interfaces import IMainLoop, IPoller
from gocept.runner.logs import Log
from gocept.runner.poller import Poller
from gocept.runner.signals import Shutdown
from gocept.runner.signals.handlers import (
    Keep,
    handlers,
    handling,
    make_default_effective,
    restore_defaults,
    starting,
    tell_terminal,
)
from gocept.runner.signals.shutdown import raising
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.forks import OneProcess
from gocept.runner.waits.standard import restore_blocking

log = Log(__name__)


MAX_BACKOFF = 60.0
"""The longest pause after errors in a row, in seconds."""

SHUTDOWN_TIMEOUT = 30.0
"""The time in which the declared children have to end, in seconds."""

_LEAST_BACKOFF = 0.1  # seconds; doubled instead of ticks that are shorter

_MOST_DOUBLINGS = 64  # of a pause, so that there is a float for it


class _Components(Protocol):
    """What is used of the site manager of a site."""

    def getUtility(self, provided: type) -> Any: ...


_Participation = Callable[[_Components], Callable[[], None]]
"""Returns what begins an interaction in the site of these components."""


class _Exit:
    """What a worker returns to end the loop."""

    def __repr__(self) -> str:
        return 'gocept.runner.Exit'


Exit = _Exit()


_users: dict[tuple[int, int], int] = {}
"""The threads whose loops pause with an `IPoller` utility, by its id."""


@contextlib.contextmanager
def _poller_of_pauses() -> Iterator[Poller]:
    """The utility, or else a poller for this alone.

    So it is if the utility is that of a loop in another thread already. Its
    descriptors are opened before a tick can take all that are left.
    """
    # Never the poller of a site, whose database may be away.
    utility = getGlobalSiteManager().queryUtility(IPoller)
    me = threading.get_ident()
    use = os.getpid(), id(utility)  # a fork has no other threads
    with contextlib.ExitStack() as stack:
        poller = utility
        if _users.get(use) != me:
            if utility is not None and _users.setdefault(use, me) == me:
                stack.callback(_users.pop, use)
            else:
                poller = stack.enter_context(Poller())
        _ = poller.wakeup_fd
        yield poller


@zope.interface.implementer(IMainLoop)
class MainLoop:
    """See `IMainLoop`."""

    def __init__(self, app: ISite, ticks: float, worker: Callable[[], object],
                 principal: Principal = None, once: bool = False, *,
                 attempts: int = 3, max_backoff: float = MAX_BACKOFF) -> None:
        self.app = app
        self.ticks = _seconds(ticks)
        self.worker = worker
        self.principal = principal
        self.once = once
        self.attempts = checked_attempts(attempts)
        self.max_backoff = _seconds(max_backoff)
        self.failed = False
        self.status = errors.SUCCESS
        self.ended_by: SystemExit | KeyboardInterrupt | None = None
        self.announce: Callable[[], object] = lambda: None
        self._failures = 0  # in a row
        self._last: Failure | None = None  # of the last tick
        self._ticking = self._ticked = False
        self._items = Items()
        self._shutdown = Shutdown()

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
        _check_connection(self.app)
        self.failed, self.ended_by, self._failures = False, None, 0
        self._items, self._last = Items(self.once), None
        self._ticked = False
        with (self._shutdown, handling({
                signal.SIGTERM: self.stopMainLoop,
                signal.SIGHUP: self.stopMainLoop,
                signal.SIGINT: self.stopMainLoop,
                signal.SIGUSR2: self._reopen_logs}) as keep_handlers,
              environment.without_interaction(),
              site_set(self.app),
              _poller_of_pauses() as poller,
              counting(self._items),
              OneProcess() as process):
            self._shutdown.join_outer()
            participation_in = self._participation()
            process.check()
            self.announce()
            notify(events.LoopStarted(self))
            try:
                with process:
                    self._loop(participation_in, poller, keep_handlers)
            finally:
                self.status = self._status()
                notify(events.LoopStopped(self))
                abort()  # what subscribers have changed since the last tick
            if self._shutdown.signum is not None:
                log.info('Received signal %d, terminating.',
                         self._shutdown.signum)

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

    def _participation(self) -> _Participation | None:
        """Return what makes the beginning of interactions, or None."""
        principal = (self.principal() if callable(self.principal)
                     else self.principal)
        if principal is None:
            return None
        # Imported here, since it takes its time and few workers need it.
        from zope.publisher.base import BaseRequest, BaseResponse
        response = BaseResponse()  # never read, so all requests share it

        def participation_in(components: _Components) -> Callable[[], None]:
            get_utility = components.getUtility

            def participate() -> None:
                request = BaseRequest(None, {}, response)
                request.setPrincipal(
                    get_utility(IAuthentication).getPrincipal(principal))
                # Like newInteraction(), without the check that there is none.
                thread_local.interaction = getSecurityPolicy()(request)
            return participate

        # Report an unknown principal before the first tick.
        getSiteManager().getUtility(IAuthentication).getPrincipal(principal)
        return participation_in

    @staticmethod
    def _serve_site(participation_in: _Participation | None) -> tuple[
            _Components, Callable[[], bool], Callable[[], None] | None]:
        """What is kept of a site from tick to tick."""
        components = getSiteManager()
        return (components, hearing_of_ticks(components),
                participation_in and participation_in(components))

    def _loop(self, participation_in: _Participation | None,
              poller: Poller, keep_handlers: Keep) -> None:
        app, worker, begin = self.app, self.worker, transaction.begin
        find, items = finder(app), self._items
        components, is_heard, participate = self._serve_site(participation_in)

        def step(number: int) -> _Exit | float:
            nonlocal app, components, is_heard, participate
            if number > 1:
                endInteraction()
                items.repeat_tick()
            begin()
            if find is not None:
                found = find()
                if found is not app and not is_same(found, app):
                    log.warning(
                        'The site %s was replaced in the database, so the '
                        'loop goes on with the new one',
                        text(getattr(found, '__name__', None)))
                    self.app = app = found
            if getSite() is not app or (
                    find is not None
                    and app.getSiteManager() is not components):
                setSite(app)
                components, is_heard, participate = self._serve_site(
                    participation_in)
            if participate is not None:
                participate()
            result = worker()
            if result is None:
                return self.ticks
            return result if isinstance(result, _Exit) else _seconds(result)

        while not self._shutdown.attend():
            self._ticked = True
            if items.before is not None:  # cheaper than to call it each time
                items.begin_tick()
            observer: Observer = nobody
            if is_heard():
                observer = self._send_end
                notify(events.TickStarted(self))
            self._ticking = True
            pause = self._tick(step, observer)
            self._ticking = False
            keep_handlers(self._shutdown)
            if queryInteraction() is not None:  # cheaper than to end none
                endInteraction()
            if isinstance(pause, _Exit) or self.once:
                break
            if self._failures or items.uncertain:
                environment.check_databases(app)
            if self._failures > 1:
                pause = self._backoff()
                log.debug('Sleeping %s seconds after %d errors in a row',
                          pause, self._failures)
                # Output of a child must not shorten this pause.
                self._pause(self._shutdown.wait, pause, poller)
            elif pause:
                log.debug('Sleeping %s seconds', pause)
                self._pause(self._shutdown.pause, pause, poller)

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

    def _tick(self, step: Callable[[int], _Exit | float],
              observer: Observer) -> _Exit | float:
        try:
            outcome = run_attempts(
                step, self.attempts, self._shutdown, self._name, self._report,
                observer, doom_fails=self.once)
        except (SystemExit, KeyboardInterrupt) as error:
            self.ended_by = error
            if error is not self._items.ended_by:
                log.info('%s raised by %s, so the loop ends',
                         text(error, repr), self._name())
            return Exit
        except Exception as error:  # of a signal handler, between attempts
            self._report(f'Error beside {self._name()}: {described(error)}',
                         error)
            abort()
            outcome = Failure(error, False)
        if isinstance(outcome, Failure):
            self._last, self.failed = outcome, True
            self._failures += 1
            return self.ticks
        if self.failed:
            self._last, self.failed, self._failures = None, False, 0
        return outcome

    def _backoff(self) -> float:
        """The pause after several errors in a row."""
        doublings = min(self._failures - 1, _MOST_DOUBLINGS)
        return max(self.ticks, min(
            self.max_backoff,
            max(self.ticks, _LEAST_BACKOFF) * 2.0 ** doublings))

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
        return f'worker {name_of(self.worker)!r}'

    def _report(self, message: str, error: BaseException) -> None:
        log.error('%s', message, exc_info=error)


def _check_connection(app: ISite) -> None:
    """RuntimeError unless this thread commits what is changed in `app`."""
    connection = getattr(app, '_p_jar', None)
    if connection is None:
        return
    manager = connection.transaction_manager
    if manager is None:
        raise RuntimeError('the connection of the site is closed')
    if manager not in (transaction.manager, transaction.manager.manager):
        raise RuntimeError(
            'the connection of the site belongs to another thread, or to a '
            'transaction manager of its own, so nothing would be committed: '
            'open the database in the thread that runs the loop')


def _seconds(value: object) -> float:
    """`value`, if it is a number of seconds that can be slept."""
    if isinstance(value, numbers.Number) and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            seconds = float(value)  # type: ignore[arg-type]
            if seconds >= 0:
                return value if isinstance(value, int) else seconds
    hint = ''
    if isinstance(value, types.GeneratorType):
        hint = ' (a generator function needs @transaction_per_item)'
    raise ValueError(
        'expected None, a number of seconds >= 0 or Exit, '
        f'not {text(value, repr)}{hint}')


class appmain:
    """See `IAppMain`."""

    once = False

    def __init__(self, ticks: float = 1, principal: Principal = None, *,
                 attempts: int = 3, max_backoff: float = MAX_BACKOFF,
                 shutdown_timeout: float = SHUTDOWN_TIMEOUT) -> None:
        if callable(ticks):
            raise TypeError(self._hint)
        self.ticks = _seconds(ticks)
        self.principal = principal
        self.attempts = checked_attempts(attempts)
        self.max_backoff = _seconds(max_backoff)
        self.shutdown_timeout = _seconds(shutdown_timeout)

    _hint = 'use parentheses: @gocept.runner.appmain(), @gocept.runner.once()'

    def __call__(self, worker: Worker | None = None,
                 *misplaced: object) -> Program:
        """See `IAppMain`."""
        if worker is None or misplaced:
            # A worker was passed as the principal, which may be callable.
            raise TypeError(self._hint)
        nothing = cast(str, object())

        @functools.wraps(worker)
        def program(appname: str | None = nothing,
                    configfile: ConfigFile = nothing,
                    *args: object) -> int | None:
            with starting():
                if appname is nothing and configfile is nothing:
                    return main()
                if appname is nothing or configfile is nothing:
                    raise TypeError(
                        f'{worker.__name__}() takes an object name and the '
                        'path of a zope.conf, or neither to read the command '
                        'line')
                if _is_main_module(sys._getframe(1)) and sys.argv[1:]:
                    from gocept.runner.cli import worker as command
                    if command.understands(made, sys.argv[1:]):
                        # The script may not look at what is returned.
                        if status := command.main(
                                made, appname, configfile, args,
                                is_script=True):
                            raise SystemExit(status)
                        return None
                boot.check_arguments(worker, args)
                return boot.run(lambda: made, args, appname, configfile).result

        def main(site: str | None = None, config: ConfigFile | None = None,
                 ) -> int:
            with starting():
                try:
                    from gocept.runner.cli import worker as command
                    return command.main(made, site, config)
                except KeyboardInterrupt:  # while it was imported, say
                    print(f'{made.name}: interrupted', file=sys.stderr)
                    return errors.INTERRUPTED

        # Callers need the signature of the program, not that of the worker.
        del program.__wrapped__  # type: ignore[attr-defined]
        made = cast(Program, program)
        # For ZCML too, which may name the program as a handler.
        made.decorator, made.worker, made.main = self, worker, main
        made.name = getattr(worker, '__name__', type(worker).__name__)
        return made

    def loop(self, app: ISite, worker: Worker,
             args: Sequence[object] = ()) -> MainLoop:
        """The loop that calls `worker` with its arguments."""
        return MainLoop(
            app, self.ticks,
            functools.partial(worker, *args) if args else worker,
            self.principal, self.once, attempts=self.attempts,
            max_backoff=self.max_backoff)


def _is_main_module(frame: FrameType) -> bool:
    """Whether it runs code of a script, such as one that buildout generates.
    """
    return frame.f_globals is vars(sys.modules['__main__'])


class once(appmain):
    """See `IOnce`."""

    once = True

    def __init__(self, principal: Principal = None, *, attempts: int = 3,
                 shutdown_timeout: float = SHUTDOWN_TIMEOUT) -> None:
        super().__init__(principal=principal, attempts=attempts,
                         shutdown_timeout=shutdown_timeout)


@contextlib.contextmanager
def init(appname: str | None, configfile: ConfigFile, *,
         shutdown_timeout: float = SHUTDOWN_TIMEOUT) -> Iterator[ISite]:
    """See `IInit`."""
    make_default_effective()
    timeout, before = _seconds(shutdown_timeout), handlers()
    process = OneProcess()
    with environment.reaping_strangers(), contextlib.ExitStack() as stack:
        with boot.configuration(configfile) as options:
            app = stack.enter_context(boot.opened(options, appname))
        if stack.enter_context(environment.supervised(timeout)):
            stack.enter_context(raising(before))
            stack.callback(abort)  # children can get back what they have sent
        process.check()
        with process:
            yield app


def from_config(section: str, variable: str) -> Callable[[], str]:
    """See `IFromConfig`."""
    def get_config() -> str:
        # ZConfig makes the names lower-case; other code may have set others.
        for name, key in (section, variable), (section.lower(),
                                               variable.lower()):
            config = getProductConfiguration(name)
            if config is not None and key in config:
                return config[key]  # type: ignore[no-any-return]
        if config is None:
            raise errors.NoSuchSetting(
                f'zope.conf has no <product-config {section}>')
        raise errors.NoSuchSetting(
            f'the <product-config {section}> of zope.conf has no {variable}')
    return get_config
