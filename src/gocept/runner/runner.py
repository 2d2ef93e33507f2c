"""The decorators that make a program of a function."""

import functools
import inspect
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TypeVar, cast, get_args

from zope.component.interfaces import ISite

from gocept.runner import errors
from gocept.runner.boot import program as boot
from gocept.runner.boot.attempts import checked_attempts
from gocept.runner.boot.environments import ConfigFile, Settings
from gocept.runner.boot.productconfig import from_config
from gocept.runner.boot.program import (
    SHUTDOWN_TIMEOUT,
    Principal,
    Program,
    Watch,
    Who,
    Worker,
    init,
)
from gocept.runner.boot.texts import name_of, text
from gocept.runner.boot.ticks import Exit, ExitType, seconds
from gocept.runner.events import Missed, Schedule, TimeoutAction
from gocept.runner.logs import Log
from gocept.runner.mainloop import (
    MAX_BACKOFF,
    WATCH_INTERVAL,
    MainLoop,
    checked_interval,
)
from gocept.runner.signals.handlers import starting
from gocept.runner.waits.lazy import handing_out

__all__ = ['Exit', 'MainLoop', 'appmain', 'from_config', 'init', 'once']

log = Log(__name__)

__getattr__, __dir__ = handing_out(__name__, {
    'RunnerRequest': 'gocept.runner.boot.request'})

_EVERY_SECOND = 1.0
"""The default of `ticks`, told by its identity from ticks that were given."""

Choice = TypeVar('Choice', bound=str)


class appmain:
    """See `IAppMain`."""

    once = False
    main_loop = MainLoop
    application: str | None = None
    watch: Watch | None = None
    watch_interval: float = WATCH_INTERVAL
    schedule: str | None = None
    timezone: str | None = None
    jitter: float = 0
    missed: Missed = 'skip'
    tick_timeout: float | None = None
    tick_timeout_action: TimeoutAction = 'log'
    lock = False

    def __init__(self, ticks: float | ExitType = _EVERY_SECOND,
                 principal: Principal = None, *, attempts: int = 3,
                 max_backoff: float = MAX_BACKOFF,
                 shutdown_timeout: float = SHUTDOWN_TIMEOUT,
                 application: str | None = None,
                 watch: Watch | None = None,
                 watch_interval: float = WATCH_INTERVAL,
                 schedule: str | None = None, timezone: str | None = None,
                 jitter: float = 0, missed: Missed = 'skip',
                 tick_timeout: float | None = None,
                 tick_timeout_action: TimeoutAction = 'log',
                 lock: bool = False) -> None:
        if callable(ticks):
            raise TypeError(self._hint)
        if schedule is not None and ticks is not _EVERY_SECOND:
            raise ValueError('a worker has either ticks or a schedule')
        if schedule is not None and watch is not None:
            raise ValueError('a worker with a schedule runs at its times '
                             'only: it cannot have watch as well')
        self.ticks = (1 if ticks is _EVERY_SECOND
                      else ticks if isinstance(ticks, ExitType)
                      else seconds(ticks, 'ticks'))
        if ticks is Exit:
            self.once = True
        self.principal = principal
        self.attempts = checked_attempts(attempts)
        self.max_backoff = seconds(max_backoff, 'max_backoff')
        self.shutdown_timeout = seconds(shutdown_timeout, 'shutdown_timeout')
        self.application = application
        if not (watch is None or callable(watch)):
            raise TypeError('watch is called with the site, and returns what '
                            f'to watch; this cannot be called: {watch!r}')
        self.watch = watch
        self.watch_interval = checked_interval(watch_interval)
        self.schedule, self.timezone = schedule, timezone
        self.jitter = jitter
        self.missed = _checked_choice('missed', missed, get_args(Missed))
        self.tick_timeout = _checked_timeout(tick_timeout)
        self.tick_timeout_action = _checked_choice(
            'tick_timeout_action', tick_timeout_action,
            get_args(TimeoutAction))
        self.lock = lock
        if tick_timeout is None and tick_timeout_action != 'log':
            raise ValueError('tick_timeout_action is about tick_timeout, and '
                             'the worker has none')
        if schedule is None and not (
                timezone is None and jitter == 0 and missed == 'skip'):
            raise ValueError('timezone, jitter and missed are about a '
                             'schedule, and the worker has none')
        self._schedule()  # raises now what is wrong

    def _schedule(self) -> Schedule | None:
        if self.schedule is None:
            return None
        # Imported here, since few workers need it.
        from gocept.runner.schedule import Schedule
        return Schedule(self.schedule, self.timezone, self.jitter)

    _hint = 'use parentheses: @gocept.runner.appmain(), @gocept.runner.once()'

    def get_principal(self) -> Who:
        """See `IAppMain`."""
        return self.principal() if callable(self.principal) else self.principal

    def __call__(self, worker: Worker | None = None,
                 *misplaced: object) -> Program:
        """See `IAppMain`."""
        if worker is None or misplaced:
            # A worker was passed as the principal, which may be callable.
            raise TypeError(self._hint)
        if inspect.isgeneratorfunction(worker):
            raise TypeError(
                f'{name_of(worker)} is a generator function, so a call of it '
                'does nothing: put @transaction_per_item above it, and below '
                '@appmain() or @once()')
        if (inspect.iscoroutinefunction(worker)
                or inspect.isasyncgenfunction(worker)):
            raise TypeError(
                f'{name_of(worker)} is an async function, so a call of it '
                'does nothing: decorate a plain function that calls '
                'asyncio.run()')
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
                return boot.run(
                    lambda: made, args, appname, boot.configuration(
                        configfile, settings=Settings(self.application)),
                    ).result

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
        made.site, made.arguments = None, ()
        return made

    def loop(self, app: ISite, worker: Worker,
             args: Sequence[object] = ()) -> MainLoop:
        """The loop that calls `worker` with its arguments."""
        loop = self.main_loop(
            app, self.ticks,
            functools.partial(worker, *args) if args else worker,
            self.get_principal, self.once, attempts=self.attempts,
            max_backoff=self.max_backoff)
        # Not as keywords, which the class of an adopter may not know.
        loop.watch, loop.watch_interval = self.watch, self.watch_interval
        loop.schedule, loop.missed = self._schedule(), self.missed
        loop.tick_timeout = self.tick_timeout
        loop.tick_timeout_action = self.tick_timeout_action
        return loop


def _checked_timeout(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    found = seconds(timeout, 'tick_timeout')
    if not found:
        raise ValueError('tick_timeout must be more than 0 seconds')
    return found


def _checked_choice(name: str, value: Choice, choices: Sequence[Choice],
                    ) -> Choice:
    if value not in choices:
        raise ValueError(f'{name} is {" or ".join(map(repr, choices))}, not '
                         f'{text(value, repr)}')
    return value


def _is_main_module(frame: FrameType) -> bool:
    """Whether it runs code of a script, such as one that buildout generates.
    """
    return frame.f_globals is vars(sys.modules['__main__'])


class once(appmain):
    """See `IOnce`."""

    once = True

    def __init__(self, principal: Principal = None, *, attempts: int = 3,
                 shutdown_timeout: float = SHUTDOWN_TIMEOUT,
                 application: str | None = None,
                 tick_timeout: float | None = None,
                 tick_timeout_action: TimeoutAction = 'log',
                 lock: bool = False) -> None:
        super().__init__(principal=principal, attempts=attempts,
                         shutdown_timeout=shutdown_timeout,
                         application=application, tick_timeout=tick_timeout,
                         tick_timeout_action=tick_timeout_action, lock=lock)
