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
from gocept.runner.boot import environment, zopeconf
from gocept.runner.boot.zopeconf import ConfigFile, Options
from gocept.runner.events import Loop
from gocept.runner.logs import Log
from gocept.runner.signals.handlers import handling
from gocept.runner.signals.shutdown import booting
from gocept.runner.waits.forks import OneProcess
from gocept.runner.waits.standard import fill_standard

log = Log('gocept.runner.runner')

Worker = Callable[..., object]
Principal = str | Callable[[], str] | None

Guard = Callable[..., AbstractContextManager[None]]
"""Called with a status and the kinds of errors that end a step with it."""


class Decorator(Protocol):
    """What a run needs of an `IAppMain`."""

    ticks: float
    principal: Principal
    once: bool
    shutdown_timeout: float

    def loop(self, app: ISite, worker: Worker,
             args: Sequence[object]) -> Loop:
        """The loop that calls `worker` with its arguments."""


class Program(Protocol):
    """A worker, and the decorator that says how to run it; see `IAppMain`."""

    name: str
    decorator: Decorator
    worker: Worker
    main: Callable[..., int]

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
        return errors.INTERRUPTED if self.by is not None else self.code


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
def configuration(configfile: ConfigFile, guard: Guard = unguarded, *,
                  verbose: int = 0, logs: bool = True,
                  ) -> Iterator[Options]:
    """Read zope.conf, and set up the process; see `environment.configured`.

    The block holds the rest of booting. A signal ends it; see `booting`.
    """
    fill_standard()
    with booting(), ExitStack() as undo:
        with guard(errors.BAD_CONFIGURATION, OSError, ValueError,
                   ZConfig.ConfigurationError,
                   zope.configuration.exceptions.ConfigurationError):
            options = zopeconf.load(configfile)
            undo.enter_context(environment.configured(
                options, verbose=verbose, logs=logs))
        yield options


@contextlib.contextmanager
def opened(options: Options, appname: str | None, guard: Guard = unguarded, *,
           create: bool = True) -> Iterator[ISite]:
    """Open the databases, and hand out the site.

    Without `create`, it is an error if there is no database or root folder.
    """
    with ExitStack() as close:
        with guard(errors.DATABASE_UNAVAILABLE, Exception):
            database = close.enter_context(
                environment.open_databases(options, create=create))
        root = close.enter_context(environment.root_of(database))
        with guard(errors.UNKNOWN_SITE):
            site = environment.find_site(root, appname)
        yield site


def _tell_threads(before: Sequence[threading.Thread]) -> None:
    """Log which threads of the worker the end of the process waits for."""
    left = [thread.name for thread in threading.enumerate()
            if thread not in before and not thread.daemon]
    if left:
        log.info('The process ends when these threads have ended: %s',
                 ', '.join(map(repr, left)))


def run(find: Callable[[], Program], args: Sequence[object],
        appname: str | None, configfile: ConfigFile,
        guard: Guard = unguarded, *, verbose: int = 0,
        create: bool = True,
        within: Callable[[Loop], AbstractContextManager[object]] = nullcontext,
        ) -> End:
    """Run the worker that `find` returns, in the block of ``within(loop)``.

    `find` is called when ZCML has been read.
    """
    loop: Loop | None = None
    booted, process, before = False, OneProcess(), threading.enumerate()
    try:
        # Outside the loop the log files are new, or not needed any more.
        with (handling({signal.SIGUSR2: lambda signum, frame: None}),
              environment.reaping_strangers(), ExitStack() as stack):
            with configuration(configfile, guard, verbose=verbose) as options:
                program = find()
                site = stack.enter_context(
                    opened(options, appname, guard, create=create))
            booted = True
            with guard(errors.CANNOT_START):
                stack.enter_context(
                    environment.supervised(program.decorator.shutdown_timeout))
            loop = program.decorator.loop(site, program.worker, args)
            process.check()
            with (within(loop), process,
                  guard(errors.UNKNOWN_PRINCIPAL,
                        PrincipalLookupError, ComponentLookupError)):
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
