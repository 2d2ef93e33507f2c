"""A worker as a program: how it is booted and run, and what its end means.

A call in Python and a command line run a worker by the same sequence. They
differ in `guard`, which may replace an expected error, and in the view of the
`End`.
"""

import contextlib
import inspect
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import NamedTuple, Protocol

import ZConfig
import zope.configuration.exceptions
from zope.authentication.interfaces import PrincipalLookupError
from zope.component.interfaces import ISite
from zope.interface.interfaces import ComponentLookupError

from gocept.runner import errors
from gocept.runner.boot import environment, environments
from gocept.runner.boot.attempts import abort
from gocept.runner.boot.environments import (
    NOTHING_SAID,
    ConfigFile,
    Options,
    Settings,
)
from gocept.runner.boot.ticks import seconds
from gocept.runner.events import Loop, Missed, TimeoutAction
from gocept.runner.logs import Log
from gocept.runner.operation.asked import NOTHING_ASKED, Asked
from gocept.runner.operation.attach import Watched, attached
from gocept.runner.signals.handlers import (
    handlers,
    handling,
    make_default_effective,
)
from gocept.runner.signals.shutdown import booting, raising
from gocept.runner.waits.forks import OneProcess
from gocept.runner.waits.standard import fill_standard

log = Log('gocept.runner.runner')

SHUTDOWN_TIMEOUT = 30.0
"""The time in which the declared children have to end, in seconds."""

Worker = Callable[..., object]


class User(Protocol):
    """A user of a user folder."""

    def getId(self) -> str:
        """The id."""


Who = str | User | None
"""Whom a worker runs as."""

Principal = str | Callable[[], Who] | None

Watch = Callable[[ISite], object]
"""Returns the objects of the database whose changes end a pause."""

Guard = Callable[..., AbstractContextManager[None]]
"""Called with a status and the kinds of errors that end a step with it."""


class Configure(Protocol):
    """What sets up the process; see `configuration`."""

    def __call__(self, configfile: ConfigFile, guard: Guard,
                 settings: Settings, *, verbose: int,
                 ) -> AbstractContextManager[Options]: ...


class Decorator(Protocol):
    """What a run needs of an `IAppMain`."""

    principal: Principal
    application: str | None
    once: bool
    shutdown_timeout: float
    watch: Watch | None
    schedule: str | None
    timezone: str | None
    jitter: float
    missed: Missed
    tick_timeout: float | None
    tick_timeout_action: TimeoutAction
    lock: bool

    @property
    def ticks(self) -> object:
        """A number of seconds, or `Exit`."""

    def get_principal(self) -> Who:
        """The id of the principal; see `IAppMain`."""

    def loop(self, app: ISite, worker: Worker,
             args: Sequence[object]) -> Loop:
        """The loop that calls `worker` with its arguments."""


class Program(Protocol):
    """A worker, and the decorator that says how to run it; see `IAppMain`."""

    name: str
    decorator: Decorator
    worker: Worker
    main: Callable[..., int]

    site: str | None
    """The path of the site, unless a call or a command line names one."""

    arguments: Sequence[object]
    """Those of the worker, unless a call or a command line has some."""

    def __call__(self, appname: str | None = ..., configfile: ConfigFile = ...,
                 *args: object) -> int | None: ...


class End(NamedTuple):
    """How a run has ended."""

    code: int = errors.SUCCESS
    by: SystemExit | KeyboardInterrupt | None = None

    @classmethod
    def of(cls, loop: Loop) -> 'End':
        """The end of a run whose loop this was."""
        return cls(loop.status if loop.once else errors.SUCCESS, loop.ended_by)

    @property
    def result(self) -> int | None:
        """What a call in Python returns."""
        return self.code or None

    @property
    def status(self) -> int:
        """What a command line returns; a SystemExit is raised again.

        But not one that claims a success which is none.
        """
        if isinstance(self.by, SystemExit) and (
                errors.status_of(self.by) or not self.code):
            raise self.by
        return self.code or (
            errors.SUCCESS if self.by is None else errors.INTERRUPTED)


def unguarded(status: int, *kinds: type[Exception],
              ) -> AbstractContextManager[None]:
    """The `Guard` that raises errors as they are."""
    return nullcontext()


def check_arguments(worker: Worker, args: Sequence[object]) -> None:
    """Raise TypeError unless `worker` can be called with `args`."""
    try:
        signature = inspect.signature(worker)
    except ValueError:
        return  # written in C, without a signature
    signature.bind(*args)


@contextlib.contextmanager
def configuration(configfile: ConfigFile, guard: Guard = unguarded,
                  settings: Settings = NOTHING_SAID, *, verbose: int = 0,
                  logs: bool = True, loaded: Options | None = None,
                  ) -> Iterator[Options]:
    """Read zope.conf, and set up the process; see `IEnvironment.configured`.

    The block holds the rest of booting. A signal ends it; see `booting`.
    `loaded` is what an earlier call in this process has found in zope.conf.
    """
    fill_standard()
    with booting(), ExitStack() as undo:
        with guard(errors.BAD_CONFIGURATION, OSError, ValueError,
                   ZConfig.ConfigurationError,
                   zope.configuration.exceptions.ConfigurationError):
            chosen = environments.choose(configfile, settings)
            options = chosen.load(configfile) if loaded is None else loaded
            undo.enter_context(environments.setting_up(chosen))
            undo.enter_context(chosen.configured(
                options, verbose=verbose, logs=logs))
        yield options


class Opened(NamedTuple):
    """What `opened` hands out."""

    root: ISite
    site: ISite


@contextlib.contextmanager
def opened(options: Options, appname: str | None, guard: Guard = unguarded, *,
           create: bool = True) -> Iterator[Opened]:
    """Open the databases, and find the site; see `IEnvironment.opened`."""
    chosen = environments.current()
    with chosen.opened(
            options, create=create, opening=lambda: guard(
                errors.DATABASE_UNAVAILABLE, Exception)) as root:
        with guard(errors.UNKNOWN_SITE):
            site = chosen.find_site(root, appname)
        yield Opened(root, site)


def _check_kind(program: Program) -> None:
    wanted, found = program.decorator.application, environments.current().name
    if wanted not in (None, found):
        raise errors.UsageError(
            f'{program.name} is a worker for applications of the kind '
            f'{wanted}, and this one is of the kind {found}')


def _locking(program: Program, lock: bool | None, appname: str | None,
             options: Options) -> AbstractContextManager[None]:
    """Hold the lock of the worker in the block, if there is to be one."""
    if not (program.decorator.lock if lock is None else lock):
        return nullcontext()
    # Imported here, since few workers need it.
    from gocept.runner.operation.lock import locked
    return locked(program.name, appname, options)


def _tell_threads(before: Sequence[threading.Thread]) -> None:
    """Log which threads of the worker the end of the process waits for."""
    left = [thread.name for thread in threading.enumerate()
            if thread not in before and not thread.daemon]
    if left:
        log.info('The process ends when these threads have ended: %s',
                 ', '.join(map(repr, left)))


def run(find: Callable[[], Program], args: Sequence[object],
        appname: str | None, configuration: AbstractContextManager[Options],
        guard: Guard = unguarded, *, create: bool = True,
        within: Callable[[Loop], AbstractContextManager[object]] = nullcontext,
        asked: Asked = NOTHING_ASKED) -> End:
    """Run the worker that `find` returns, in the block of ``within(loop)``.

    `find` is called when ZCML has been read, by the `configuration` of the
    function above. `asked` says how the worker is to be seen from outside, and
    may take the place of the decorator's `lock`.
    """
    loop: Loop | None = None
    booted, process, before = False, OneProcess(), threading.enumerate()
    try:
        # Outside the loop the log files are new, or not needed any more.
        with (handling({signal.SIGUSR2: lambda signum, frame: None}),
              environment.reaping_strangers(), ExitStack() as stack):
            with configuration as options:
                program = find()
                appname = program.site if appname is None else appname
                with guard(errors.BAD_USAGE):
                    _check_kind(program)
                with guard(errors.CANNOT_LOCK):
                    stack.enter_context(
                        _locking(program, asked.lock, appname, options))
                _, site = stack.enter_context(
                    opened(options, appname, guard, create=create))
            booted = True
            environment.tell_classes_of_script()
            with guard(errors.CANNOT_START):
                stack.enter_context(
                    environment.supervised(program.decorator.shutdown_timeout))
            loop = program.decorator.loop(
                site, program.worker, args or program.arguments)
            loop.name = program.name
            process.check()
            with (within(loop),
                  guard(errors.UNKNOWN_PRINCIPAL,
                        PrincipalLookupError, ComponentLookupError),
                  attached(Watched(
                      loop, program.name, appname, options, asked,
                      program.decorator.shutdown_timeout,
                      lambda: End.of(loop).status)),
                  process):
                loop.announce = lambda: environment.log_start(
                    program.name, loop, appname, site)
                loop()
    except errors.Terminated as error:
        if booted:
            # While children were started or stopped: no loop handled it.
            log.info('Received signal %d, terminating.', error.signum)
        if loop is None:
            raise
    finally:
        _tell_threads(before)
    return End.of(loop)


@contextlib.contextmanager
def init(appname: str | None, configfile: ConfigFile, *,
         shutdown_timeout: float = SHUTDOWN_TIMEOUT,
         application: str | None = None) -> Iterator[ISite]:
    """See `IInit`."""
    make_default_effective()
    timeout = seconds(shutdown_timeout, 'shutdown_timeout')
    before = handlers()
    process = OneProcess()
    with environment.reaping_strangers(), contextlib.ExitStack() as stack:
        with configuration(
                configfile, settings=Settings(application)) as options:
            _, app = stack.enter_context(opened(options, appname))
        if stack.enter_context(environment.supervised(timeout)):
            stack.enter_context(raising(before))
            stack.callback(abort)  # children can get back what they have sent
        process.check()
        with process:
            yield app
