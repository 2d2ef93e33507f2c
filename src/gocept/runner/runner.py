"""The main loop, and the decorators that make a program of a function.

The loop belongs to the thread that calls it; `MainLoop.stop` may be called
from any other, and `MainLoop.stopMainLoop` by a signal handler.
"""

import contextlib
import functools
import inspect
import logging
import numbers
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import transaction
import zope.interface
from zope.authentication.interfaces import IAuthentication
from zope.component import getGlobalSiteManager
from zope.component.hooks import getSite, getSiteManager, setSite
from zope.component.hooks import site as site_set
from zope.security.management import (
    endInteraction,
    getSecurityPolicy,
    queryInteraction,
    thread_local,
)

from gocept.runner.boot import collector, environment
from gocept.runner.errors import WORKER_FAILED, Terminated
from gocept.runner.events import (
    ConflictRetried,
    LoopStarted,
    LoopStopped,
    TickAborted,
    TickCommitted,
    TickStarted,
    hearing_of_ticks,
    notify,
)
from gocept.runner.interfaces import IMainLoop, IPoller
from gocept.runner.signals import Shutdown
from gocept.runner.signals.shutdown import (
    handlers,
    handling,
    raising,
    restore_defaults,
)
from gocept.runner.transaction import (
    Failure,
    Observer,
    abort,
    run_attempts,
    text,
)

log = logging.getLogger(__name__)


MAX_BACKOFF = 60.0
"""The longest pause after errors in a row, in seconds."""

SHUTDOWN_TIMEOUT = 30.0
"""How long the end of all that ZCML declares may take, in seconds."""

_LEAST_BACKOFF = 0.1  # seconds, which are doubled where ticks are shorter

_MOST_DOUBLINGS = 64  # of a pause, so that there is a float for it


class _Exit:
    """What a worker returns to end the loop."""

    def __repr__(self) -> str:
        return 'gocept.runner.Exit'


Exit = _Exit()

Worker = Callable[..., object]
Principal = str | Callable[[], str] | None


class _Observer(Observer):
    """Tells the events of a tick."""

    def __init__(self, loop: 'MainLoop') -> None:
        self._loop = loop

    def committed(self) -> None:
        notify(TickCommitted(self._loop))

    def aborted(self, error: BaseException) -> None:
        notify(TickAborted(self._loop, error))

    def retried(self, error: BaseException, number: int) -> None:
        notify(ConflictRetried(self._loop, error, number))


@zope.interface.implementer(IMainLoop)
class MainLoop:
    """See `IMainLoop`."""

    def __init__(self, app: Any, ticks: float, worker: Callable[[], object],
                 principal: Principal = None, once: bool = False, *,
                 attempts: int = 3, max_backoff: float = MAX_BACKOFF) -> None:
        self.app = app
        self.ticks = _seconds(ticks)
        self.worker = worker
        self.principal = principal
        self.once = once
        self.attempts = _checked_attempts(attempts)
        self.max_backoff = _seconds(max_backoff)
        self.failed = False
        self._failures = 0  # in a row
        self.ended_by: SystemExit | KeyboardInterrupt | None = None
        self._shutdown = Shutdown()

    def stop(self) -> None:
        """See `IMainLoop`."""
        self._shutdown.request()

    def stopMainLoop(self, signum: int, frame: FrameType | None) -> None:
        """See `IMainLoop`."""
        restore_defaults()
        self._shutdown.request(signum)

    def _reopen_logs(self, signum: int, frame: FrameType | None) -> None:
        self._shutdown.request_reopening()

    def __call__(self) -> None:
        """See `IMainLoop`."""
        self.failed, self.ended_by, self._failures = False, None, 0
        with (self._shutdown, handling({
                signal.SIGTERM: self.stopMainLoop,
                signal.SIGHUP: self.stopMainLoop,
                signal.SIGINT: self.stopMainLoop,
                signal.SIGUSR2: self._reopen_logs}),
              environment.without_interaction(),
              site_set(self.app)):
            self._shutdown.join_outer()
            participate = self._participation(
                self.principal() if callable(self.principal)
                else self.principal)
            notify(LoopStarted(self))
            try:
                self._loop(participate)
            finally:
                notify(LoopStopped(self))
                abort()  # what subscribers have changed since the last tick
            if self._shutdown.signum is not None:
                log.info('Received signal %d, terminating.',
                         self._shutdown.signum)

    def _participation(self, principal: str | None,
                       ) -> Callable[[], object] | None:
        """What begins the interaction of a tick, if it is to have one."""
        if principal is None:
            return None
        # Imported here, since it takes its time and few workers need it.
        from zope.publisher.base import BaseRequest, BaseResponse
        response = BaseResponse()  # nobody reads it, so one will do

        get_utility = getSiteManager().getUtility

        def participate() -> None:
            request = BaseRequest(None, {}, response)
            request.setPrincipal(
                get_utility(IAuthentication).getPrincipal(principal))
            # What newInteraction() does, but for a check that there is none.
            thread_local.interaction = getSecurityPolicy()(request)

        # Report an unknown one before the first tick.
        get_utility(IAuthentication).getPrincipal(principal)
        return participate

    def _loop(self, participate: Callable[[], object] | None) -> None:
        app, worker, begin = self.app, self.worker, transaction.begin

        def step(number: int) -> _Exit | float:
            if number > 1:
                endInteraction()
            begin()
            if getSite() is not app:
                setSite(app)
            if participate is not None:
                participate()
            result = worker()
            return self.ticks if result is None else _checked(result)

        # Never that of a site, whose database may be away.
        poller = getGlobalSiteManager().queryUtility(IPoller)
        is_heard = hearing_of_ticks(getSiteManager())
        telling = _Observer(self)
        while not self._shutdown.attend():
            observer = telling if is_heard() else None
            if observer is not None:
                notify(TickStarted(self))
            pause = self._tick(step, observer)
            if queryInteraction() is not None:  # to ask is cheaper
                endInteraction()
            if isinstance(pause, _Exit) or self.once:
                break
            if self._failures > 1:
                pause = self._backoff()
                log.debug('Sleeping %s seconds after %d errors in a row',
                          pause, self._failures)
                # A child that says something must not make it try sooner.
                self._shutdown.wait(pause)
            elif pause:
                log.debug('Sleeping %s seconds', pause)
                self._shutdown.pause(pause, poller)

    def _tick(self, step: Callable[[int], _Exit | float],
              observer: Observer | None) -> _Exit | float:
        try:
            outcome = run_attempts(
                step, self.attempts, self._shutdown, self._report, observer)
        except (SystemExit, KeyboardInterrupt) as error:
            self.ended_by = error
            return Exit
        if isinstance(outcome, Failure):
            self.failed = True
            self._failures += 1
            return self.ticks
        if self.failed:
            self.failed, self._failures = False, 0
        return outcome

    def _backoff(self) -> float:
        """The pause after several errors in a row."""
        doublings = min(self._failures - 1, _MOST_DOUBLINGS)
        return max(self.ticks, min(
            self.max_backoff,
            max(self.ticks, _LEAST_BACKOFF) * 2.0 ** doublings))

    def _report(self, error: BaseException) -> None:
        log.error('Error in worker: %s', text(error, repr), exc_info=True)


def _checked(result: object) -> _Exit | float:
    return result if isinstance(result, _Exit) else _seconds(result)


def _seconds(value: object) -> float:
    """`value`, if it is a number of seconds that can be slept."""
    if isinstance(value, numbers.Number) and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            seconds = float(value)  # type: ignore[arg-type]
            if seconds >= 0:
                return value if isinstance(value, int) else seconds
    raise ValueError(
        'expected None, a number of seconds >= 0 or Exit, '
        f'not {text(value, repr)}')


def _checked_attempts(attempts: int) -> int:
    if attempts < 1:
        raise ValueError(f'attempts must be at least 1, not {attempts!r}')
    return attempts


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
        self.attempts = _checked_attempts(attempts)
        self.max_backoff = _seconds(max_backoff)
        self.shutdown_timeout = _seconds(shutdown_timeout)

    _hint = 'use parentheses: @gocept.runner.appmain(), @gocept.runner.once()'

    def __call__(self, worker: Worker | None = None,
                 *misplaced: Any) -> Callable[..., int | None]:
        """See `IAppMain`."""
        if worker is None or misplaced:
            # The worker went where the principal belongs: it may be callable.
            raise TypeError(self._hint)
        nothing = object()

        @functools.wraps(worker)
        def program(appname: Any = nothing, configfile: Any = nothing,
                    *args: Any) -> int | None:
            if appname is nothing and configfile is nothing:
                from gocept.runner.cli.worker import main
                return main(self, worker)
            if appname is nothing or configfile is nothing:
                raise TypeError(
                    f'{worker.__name__}() takes an object name and the path '
                    'of a zope.conf, or neither to read the command line')
            return self._run(worker, appname, configfile, args)

        # Its own signature is the one that callers need.
        del program.__wrapped__  # type: ignore[attr-defined]
        # For ZCML, which may name it as a handler.
        program.decorator = self  # type: ignore[attr-defined]
        program.worker = worker  # type: ignore[attr-defined]
        return program

    def loop(self, app: Any, worker: Worker, args: tuple[Any, ...] = (),
             **options: Any) -> MainLoop:
        """The loop that runs `worker` with its arguments.

        `options` are keywords of `MainLoop`, in place of the decorator's.
        """
        options = {'ticks': self.ticks, 'principal': self.principal,
                   'once': self.once, 'attempts': self.attempts,
                   'max_backoff': self.max_backoff} | options
        return MainLoop(
            app, worker=functools.partial(worker, *args) if args else worker,
            **options)

    @staticmethod
    def check_arguments(worker: Worker, args: Sequence[Any]) -> None:
        """Raise TypeError unless `worker` can be called with `args`."""
        try:
            signature = inspect.signature(worker)
        except ValueError:
            return  # written in C, and says nothing about itself
        signature.bind(*args)

    def _run(self, worker: Worker, appname: str | None, configfile: Any,
             args: tuple[Any, ...]) -> int | None:
        self.check_arguments(worker, args)
        failed = False
        with (booted(appname, configfile) as app,
              # While children are started or stopped there is no loop.
              contextlib.suppress(Terminated),
              environment.supervised(self.shutdown_timeout)):
            loop = self.loop(app, worker, args)
            loop()
            failed = loop.once and loop.failed
        return WORKER_FAILED if failed else None


class once(appmain):
    """See `IOnce`."""

    once = True

    def __init__(self, principal: Principal = None, *, attempts: int = 3,
                 shutdown_timeout: float = SHUTDOWN_TIMEOUT) -> None:
        super().__init__(principal=principal, attempts=attempts,
                         shutdown_timeout=shutdown_timeout)


@contextlib.contextmanager
def init(appname: str | None, configfile: Any, *,
         shutdown_timeout: float = SHUTDOWN_TIMEOUT) -> Iterator[Any]:
    """See `IInit`."""
    timeout, before = _seconds(shutdown_timeout), handlers()
    with (booted(appname, configfile) as app,
          environment.supervised(timeout) as supervisor,
          raising(before) if supervisor else contextlib.nullcontext()):
        yield app


@contextlib.contextmanager
def booted(appname: str | None, configfile: Any) -> Iterator[Any]:
    """The site, with its database open, but nothing that ZCML declares."""
    with contextlib.ExitStack() as close:
        with collector.paused():
            options = environment.load(configfile)
            with environment.configured(options):
                database = close.enter_context(
                    environment.open_databases(options))
                root = close.enter_context(environment.root_of(database))
                site = environment.find_site(root, appname)
        yield site


def from_config(section: str, variable: str) -> Callable[[], str]:
    """See `IFromConfig`."""
    def get_config() -> str:
        from zope.app.appsetup.product import getProductConfiguration
        config = getProductConfiguration(section)
        if config is None:
            raise KeyError(f'No such section {section}')
        if variable not in config:
            raise KeyError(f'No such variable {variable} in {section}')
        return config[variable]  # type: ignore[no-any-return]
    return get_config
