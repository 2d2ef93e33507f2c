"""The command line of a worker: options, statuses, one line for a mistake."""

import argparse
import contextlib
import inspect
import logging
import os
import signal
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import ZConfig
import zope.configuration.exceptions
from zc.lockfile import LockError
from zope.authentication.interfaces import PrincipalLookupError
from zope.interface.interfaces import ComponentLookupError

from gocept.runner import errors
from gocept.runner.boot import collector, environment
from gocept.runner.signals.shutdown import handling
from gocept.runner.transaction import dry_run

log = logging.getLogger('gocept.runner.command')

STATUSES = '''\
statuses:
   0  success, also when a signal ended the worker
   1  the worker failed (with --once, or when it is made to run once)
   2  bad usage
  66  unknown site
  67  unknown principal
  69  the database is locked or cannot be reached
  71  an eager app or executor cannot be started
  78  bad configuration: zope.conf or ZCML
 130  interrupted
   n  the worker raised SystemExit(n)
'''


class Loop(Protocol):
    """What the command line needs to know of an `IMainLoop`."""

    once: bool
    failed: bool
    ended_by: SystemExit | KeyboardInterrupt | None

    def __call__(self) -> None:
        """See `IMainLoop`."""

    def stop(self) -> None:
        """See `IMainLoop`."""


class Decorator(Protocol):
    """What the command line needs to know of an `IAppMain`."""

    ticks: float
    once: bool
    shutdown_timeout: float

    def check_arguments(self, worker: Callable[..., object],
                        args: Sequence[Any]) -> None:
        """Raise TypeError unless `worker` can be called with `args`."""

    def loop(self, app: Any, worker: Callable[..., object],
             args: tuple[Any, ...], **options: Any) -> Loop:
        """The loop that runs `worker` with its arguments."""


Program = tuple[Decorator, Callable[..., object]]


def main(decorator: Decorator, worker: Callable[..., object]) -> int:
    """Run `worker` as its command line says; returns the status.

    A SystemExit of the worker is raised once more when all is closed.
    """
    parser = argparse.ArgumentParser(
        usage=f'%(prog)s [options]{_usage_of_arguments(worker)}',
        description=inspect.getdoc(worker), epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)
    add_config_option(parser)
    add_options(parser, decorator)
    argv, args = split(sys.argv[1:])
    options = parser.parse_args(argv)
    try:
        decorator.check_arguments(worker, args)
    except TypeError as error:
        parser.error(f'arguments of the worker (after --): {error}')
    return guarded(parser.prog, lambda: run(
        lambda: (decorator, worker), options, args))


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the zope.conf."""
    parser.add_argument(
        '--config', metavar='FILE',
        default=os.environ.get('ZOPE_CONF') or './zope.conf',
        help='the zope.conf (default: $ZOPE_CONF, then ./zope.conf; '
             'now: %(default)s)')


def add_options(parser: argparse.ArgumentParser,
                decorator: Decorator | None = None) -> None:
    """Add the options of a worker; without a decorator it is not known yet.
    """
    parser.add_argument(
        '--site', metavar='NAME',
        help='the object in the root folder that becomes the site '
             '(default: the root folder)')
    parser.add_argument(
        '--ticks', metavar='SECONDS', type=_seconds,
        default=decorator and decorator.ticks,
        help='how long to sleep between two ticks (default: '
             + ('%(default)s)' if decorator else 'as the worker says)'))
    parser.add_argument(
        '--once', action='store_true',
        default=decorator is not None and decorator.once,
        help='run one tick, and end')
    parser.add_argument(
        '--dry-run', action='store_true',
        help='abort every transaction, and log what would be committed')
    parser.add_argument(
        '--debug', action='store_true',
        help='enter a debugger at the first error of the worker, then end')
    parser.add_argument(
        '--verbose', action='store_true',
        help='log debug messages, and all messages to standard error')


def _usage_of_arguments(worker: Callable[..., object]) -> str:
    with contextlib.suppress(ValueError):
        parameters = inspect.signature(worker).parameters
        if parameters:
            return ' -- ' + ' '.join(
                name.upper() if parameter.default is parameter.empty
                else f'[{name.upper()}]'
                for name, parameter in parameters.items())
    return ''


def _seconds(value: str) -> float:
    with contextlib.suppress(ValueError):
        seconds = float(value)
        if seconds >= 0:
            return seconds
    raise argparse.ArgumentTypeError(f'not a number >= 0: {value!r}')


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options, and what follows the first ``--``."""
    border = argv.index('--') if '--' in argv else len(argv)
    return list(argv[:border]), list(argv[border + 1:])


def guarded(prog: str, call: Callable[[], int]) -> int:
    """Call it; a mistake of the user becomes one line and a status."""
    try:
        # Outside the loop the log files are new, or not needed any more.
        with handling({signal.SIGUSR2: lambda signum, frame: None}):
            return call()
    except ExpectedError as error:
        print(f'{prog}: error: {error}', file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print(f'{prog}: interrupted', file=sys.stderr)
        return errors.INTERRUPTED


def run(find: Callable[[], Program], options: argparse.Namespace,
        args: list[str]) -> int:
    """Run the worker that `find` returns when ZCML is read."""
    loop: Loop | None = None
    with contextlib.ExitStack() as stack:
        with collector.paused():
            app, (decorator, worker) = _boot(find, options, stack)
        # While children are started or stopped there is no loop.
        stack.enter_context(_ending_early())
        with expecting(errors.CANNOT_START):
            stack.enter_context(
                environment.supervised(decorator.shutdown_timeout))
        loop = decorator.loop(
            app, worker, tuple(args), once=options.once or decorator.once,
            ticks=decorator.ticks if options.ticks is None else options.ticks)
        debugger = _PostMortem(loop)
        if options.debug:
            debugger.install(stack)
        with (dry_run() if options.dry_run else contextlib.nullcontext(),
              expecting(errors.BAD_CONFIGURATION, KeyError),
              expecting(errors.UNKNOWN_PRINCIPAL,
                        PrincipalLookupError, ComponentLookupError)):
            loop()
    if loop is None:
        return errors.SUCCESS
    if isinstance(loop.ended_by, SystemExit):
        raise loop.ended_by
    if loop.ended_by is not None:
        return errors.INTERRUPTED
    if debugger.used or (loop.once and loop.failed):
        return errors.WORKER_FAILED
    return errors.SUCCESS


@contextlib.contextmanager
def _ending_early() -> Iterator[None]:
    try:
        yield
    except errors.Terminated as error:
        log.info('Received signal %d, terminating.', error.signum)


def load(config: str) -> Any:
    """Read a zope.conf."""
    with expecting(errors.BAD_CONFIGURATION, ZConfig.ConfigurationError,
                   OSError, ValueError):
        return environment.load(config)


def configure(conf: Any, boot: contextlib.ExitStack, **options: Any) -> None:
    """Set up the process; see `environment.configured`."""
    with expecting(errors.BAD_CONFIGURATION,
                   zope.configuration.exceptions.ConfigurationError,
                   OSError):
        boot.enter_context(environment.configured(conf, **options))


def _boot(find: Callable[[], Program], options: argparse.Namespace,
          close: contextlib.ExitStack) -> tuple[Any, Program]:
    conf = load(options.config)
    with contextlib.ExitStack() as boot:
        configure(conf, boot, verbose=options.verbose)
        program = find()
        with expecting(errors.DATABASE_UNAVAILABLE, Exception):
            database = close.enter_context(environment.open_databases(conf))
        root = close.enter_context(environment.root_of(database))
        with expecting(errors.UNKNOWN_SITE):
            try:
                return environment.find_site(root, options.site), program
            except KeyError as error:
                if type(error) is not KeyError:
                    raise  # POSKeyError: a broken database
                raise ExpectedError(
                    f'the root folder has no object {options.site!r}',
                    errors.UNKNOWN_SITE) from None


class ExpectedError(Exception):
    """Ends the program with one line and a status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def expecting(status: int, *kinds: type[Exception]) -> Iterator[None]:
    expected: tuple[type[Exception], ...] = (errors.RunnerError, *kinds)
    try:
        yield
    except expected as error:
        log.debug('This ends the program', exc_info=True)
        raise ExpectedError(
            _message(error), getattr(error, 'status', status)) from error


def _message(error: Exception) -> str:
    message = ' '.join(str(error).split())
    match error:
        case LockError():
            return (f'{message}: another process has the database open; '
                    'a ZEO server lets several share it')
        case PrincipalLookupError():
            return f'no authentication knows the principal {message}'
        case ComponentLookupError():
            return ('the principal cannot be looked up, as the ZCML registers '
                    'no authentication (IAuthentication)')
        case KeyError():
            return str(error.args[0]) if error.args else 'KeyError'
        case ZConfig.ConfigurationError() if getattr(error, 'lineno', None):
            path = urllib.parse.unquote(error.url.removeprefix('file://'))
            return f'{path}, line {error.lineno}: {error.message}'
        case (errors.RunnerError() | ZConfig.ConfigurationError()
              | zope.configuration.exceptions.ConfigurationError()
              | OSError()):
            return message
    return f'{type(error).__name__}: {message}'


class _PostMortem(logging.Handler):
    """Starts a debugger where the worker's first error is logged.

    That is before the abort, so the transaction can be looked at.
    """

    def __init__(self, loop: Loop) -> None:
        super().__init__(logging.ERROR)
        self.used = False
        self._loop = loop

    def install(self, undo: contextlib.ExitStack) -> None:
        """Watch the errors that this package logs."""
        logger = logging.getLogger('gocept.runner')
        undo.callback(logger.setLevel, logger.level)
        if not logger.isEnabledFor(logging.ERROR):
            logger.setLevel(logging.ERROR)
        logger.addHandler(self)
        undo.callback(logger.removeHandler, self)

    def emit(self, record: logging.LogRecord) -> None:
        """Debug the exception of `record`, if it is the first."""
        if self.used or not record.exc_info:
            return
        import pdb
        self.used = True
        # The log may be elsewhere, or come later.
        print(f'Debugging {record.exc_info[1]!r}', file=sys.stderr)
        pdb.post_mortem(record.exc_info[2])
        self._loop.stop()
