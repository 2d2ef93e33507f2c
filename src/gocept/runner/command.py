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

from gocept.runner import collector, environment, errors
from gocept.runner.signals import handling
from gocept.runner.transaction import dry_run

log = logging.getLogger(__name__)

STATUSES = '''\
statuses:
   0  success, also when a signal ended the worker
   1  the worker failed (with --once, or when it is made to run once)
   2  bad usage
  66  unknown site
  67  unknown principal
  69  the database is locked or cannot be reached
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

    def check_arguments(self, worker: Callable[..., object],
                        args: Sequence[Any]) -> None:
        """Raise TypeError unless `worker` can be called with `args`."""

    def loop(self, app: Any, worker: Callable[..., object],
             args: tuple[Any, ...], **options: Any) -> Loop:
        """The loop that runs `worker` with its arguments."""


def main(decorator: Decorator, worker: Callable[..., object]) -> int:
    """Run `worker` as its command line says; returns the status.

    A SystemExit of the worker is raised once more when all is closed.
    """
    parser = _parser(decorator, worker)
    options, args = _parse(parser, decorator, worker, sys.argv[1:])
    try:
        # Outside the loop the log files are new, or not needed any more.
        with handling({signal.SIGUSR2: lambda signum, frame: None}):
            return _run(decorator, worker, options, args)
    except _ExpectedError as error:
        print(f'{parser.prog}: error: {error}', file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print(f'{parser.prog}: interrupted', file=sys.stderr)
        return errors.INTERRUPTED


def _parser(decorator: Decorator,
            worker: Callable[..., object]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage=f'%(prog)s [options]{_usage_of_arguments(worker)}',
        description=inspect.getdoc(worker), epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)
    parser.add_argument(
        '--config', metavar='FILE',
        default=os.environ.get('ZOPE_CONF') or './zope.conf',
        help='the zope.conf (default: $ZOPE_CONF, then ./zope.conf; '
             'now: %(default)s)')
    parser.add_argument(
        '--site', metavar='NAME',
        help='the object in the root folder that becomes the site '
             '(default: the root folder)')
    parser.add_argument(
        '--ticks', metavar='SECONDS', type=_seconds, default=decorator.ticks,
        help='how long to sleep between two ticks (default: %(default)s)')
    parser.add_argument(
        '--once', action='store_true', default=decorator.once,
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
    return parser


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


def _parse(parser: argparse.ArgumentParser, decorator: Decorator,
           worker: Callable[..., object], argv: list[str],
           ) -> tuple[argparse.Namespace, list[str]]:
    args: list[str] = []
    if '--' in argv:
        border = argv.index('--')
        argv, args = argv[:border], argv[border + 1:]
    options = parser.parse_args(argv)
    try:
        decorator.check_arguments(worker, args)
    except TypeError as error:
        parser.error(f'arguments of the worker (after --): {error}')
    return options, args


def _run(decorator: Decorator, worker: Callable[..., object],
         options: argparse.Namespace, args: list[str]) -> int:
    with contextlib.ExitStack() as stack:
        with collector.paused():
            app = _boot(options, stack)
        loop = decorator.loop(app, worker, tuple(args),
                              ticks=options.ticks, once=options.once)
        debugger = _PostMortem(loop)
        if options.debug:
            debugger.install(stack)
        with (dry_run() if options.dry_run else contextlib.nullcontext(),
              _expecting(errors.BAD_CONFIGURATION, KeyError),
              _expecting(errors.UNKNOWN_PRINCIPAL,
                         PrincipalLookupError, ComponentLookupError)):
            loop()
    if isinstance(loop.ended_by, SystemExit):
        raise loop.ended_by
    if loop.ended_by is not None:
        return errors.INTERRUPTED
    if debugger.used or (loop.once and loop.failed):
        return errors.WORKER_FAILED
    return errors.SUCCESS


def _boot(options: argparse.Namespace, close: contextlib.ExitStack) -> Any:
    with _expecting(errors.BAD_CONFIGURATION, ZConfig.ConfigurationError,
                    OSError, ValueError):
        conf = environment.load(options.config)
    with contextlib.ExitStack() as boot:
        with _expecting(errors.BAD_CONFIGURATION,
                        zope.configuration.exceptions.ConfigurationError,
                        OSError):
            boot.enter_context(
                environment.configured(conf, verbose=options.verbose))
        with _expecting(errors.DATABASE_UNAVAILABLE, Exception):
            database = close.enter_context(environment.open_databases(conf))
        root = close.enter_context(environment.root_of(database))
        with _expecting(errors.UNKNOWN_SITE):
            try:
                return environment.find_site(root, options.site)
            except KeyError as error:
                if type(error) is not KeyError:
                    raise  # POSKeyError: a broken database
                raise _ExpectedError(
                    f'the root folder has no object {options.site!r}',
                    errors.UNKNOWN_SITE) from None


class _ExpectedError(Exception):
    """Ends the program with one line and a status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def _expecting(status: int, *kinds: type[Exception]) -> Iterator[None]:
    expected: tuple[type[Exception], ...] = (errors.RunnerError, *kinds)
    try:
        yield
    except expected as error:
        log.debug('This ends the program', exc_info=True)
        raise _ExpectedError(
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
