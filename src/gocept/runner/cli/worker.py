"""The command line of a worker: options, statuses, one line for a mistake."""

import argparse
import contextlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from ZODB.POSException import POSKeyError
from zope.authentication.interfaces import IAuthentication
from zope.interface.interfaces import ComponentLookupError

from gocept.runner import errors
from gocept.runner.boot import program as boot
from gocept.runner.boot.dryrun import dry_run
from gocept.runner.boot.program import Program, Worker
from gocept.runner.boot.zopeconf import ConfigFile
from gocept.runner.cli.messages import message
from gocept.runner.events import Loop
from gocept.runner.logs import Log

log = Log('gocept.runner.command')

STATUSES = '''\
statuses:
   0  success, also when a signal ended the worker
   1  the worker, or items of it, failed *
   2  bad usage
  66  unknown site
  67  unknown principal
  69  the database is locked, cannot be reached, or has closed itself
  71  an eager app or executor cannot be started
  74  it is not known what was committed *
  78  bad configuration: zope.conf or ZCML
 130  interrupted
   n  the worker raised SystemExit(n)
 128  and the number of a signal: it came before the first tick, or it has cut
      the tick short *

* With --once, or if the worker is made to run once: the tick is not done.
  Other workers go on after errors, and end with 0 after a signal.
'''


def main(program: Program, site: str | None = None,
         config: ConfigFile | None = None, args: Sequence[object] = (), *,
         is_script: bool = False) -> int:
    """Run a worker as its command line says; returns the status.

    `site`, `config` and `args` are the defaults of the command line. The help
    does not offer to change the first two if a script names them. If the
    worker raised SystemExit, it is raised again when the database is closed.
    """
    parser = parser_of(program, config=config, site=site, is_script=is_script)
    options, given = parse(parser, sys.argv[1:])
    args = given or args
    try:
        check_arguments(program.worker, args)
    except UserError as error:
        parser.error(str(error))
    return guarded(parser.prog, lambda: run(lambda: program, options, args))


def parser_of(program: Program, prog: str | None = None, *,
              config: ConfigFile | None = None, site: str | None = None,
              is_script: bool = False) -> argparse.ArgumentParser:
    """The parser of a worker, with its help."""
    worker = program.worker
    parser = make_parser(
        f'[options]{usage_of_arguments(worker)}', inspect.getdoc(worker),
        STATUSES, prog, config=config, is_script=is_script)
    add_options(parser, program.decorator.ticks, site, is_script=is_script)
    return parser


def understands(program: Program, argv: Sequence[str]) -> bool:
    """Whether a script that names the site and zope.conf can leave `argv` to
    `main`.

    Not if a word of it is none of ours: then the script itself reads it.
    Whoever writes --dry-run or --once is warned that this has no effect.
    """
    probe = make_parser('', '', '', kind=Probe)
    add_options(probe)
    probe.set_defaults(config=None)
    probe.register('type', _seconds, str)  # a wrong number is for us to report
    try:
        options, args = parse(probe, argv)
        if argv[0] == '--':  # no word of ours
            check_arguments(program.worker, args)
    except UserError as error:
        if {'--dry-run', '--once'}.isdisjoint(split(argv)[0]):
            return False
        reason = str(error)
    else:
        if options.config is None and options.site is None:
            return True
        reason = 'this script names the site and zope.conf itself'
    log.warning('The command line is ignored: %s. So none of its options has '
                'an effect, --dry-run neither, unless the script itself reads '
                'the command line', reason)
    return False


class Probe(argparse.ArgumentParser):
    """Looks at a command line without an effect."""

    def print_help(self, file: object = None) -> None:
        """Not yet."""

    def exit(self, *args: object,  # type: ignore[misc,empty-body]
             ) -> NoReturn:
        """Go on behind the option that shows the help."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, errors.BAD_USAGE)


def check_arguments(worker: Worker, args: Sequence[object]) -> None:
    """Raise UserError unless `worker` can be called with `args`."""
    try:
        boot.check_arguments(worker, args)
    except TypeError as error:
        hint = ('; options of the program, such as --dry-run, stand before --'
                if any(str(each).startswith('-') for each in args) else '')
        raise UserError(f'arguments of the worker (after --): {error}{hint}',
                        errors.BAD_USAGE) from error


def make_parser(usage: str, description: str | None, epilog: str,
                prog: str | None = None, *, config: ConfigFile | None = None,
                kind: type[argparse.ArgumentParser] = argparse.ArgumentParser,
                is_script: bool = False) -> argparse.ArgumentParser:
    """A parser with the option that names the zope.conf."""
    default = os.environ.get('ZOPE_CONF') or './zope.conf'
    parser = kind(
        prog, f'%(prog)s {usage}', description, epilog, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--config', metavar='FILE',
        default=config or default,
        help=argparse.SUPPRESS if is_script else
             'the zope.conf (default: %(default)s)' if config else
             'the zope.conf (default: $ZOPE_CONF, then ./zope.conf; '
             'now: %(default)s)')
    return parser


def add_options(parser: argparse.ArgumentParser,
                ticks: float | str = 'as the worker says',
                site: str | None = None, *, is_script: bool = False) -> None:
    """Add the options of a worker, whose decorator may not be known yet."""
    parser.add_argument(
        '--site', metavar='NAME', default=site,
        help=argparse.SUPPRESS if is_script else
             'the object in the root folder that becomes the site (default: '
             f'{"the root folder" if site is None else "%(default)s"})')
    parser.add_argument(
        '--ticks', metavar='SECONDS', type=_seconds,
        help=f'how long to pause between two ticks (default: {ticks})')
    parser.add_argument(
        '--once', action='store_true', help='run one tick, and end')
    parser.add_argument(
        '--dry-run', action='store_true',
        help='abort every transaction, and log what would be committed')
    parser.add_argument(
        '--debug', action='store_true',
        help='enter a debugger at the first error of the worker, then end')
    parser.add_argument(
        '-v', '--verbose', action='count', default=0,
        help='log debug messages, and all messages to standard error; given '
             'twice: also debug messages of the libraries')


def parse(parser: argparse.ArgumentParser, argv: Sequence[str],
          ) -> tuple[argparse.Namespace, Sequence[str]]:
    """The options of a worker, and its arguments: what follows ``--``."""
    words, args = split(argv)
    options, unknown = parser.parse_known_args(words)
    if unknown:
        hint = ('' if any(word.startswith('-') for word in unknown) else
                ' (arguments of the worker follow --)')
        parser.error(f'unrecognized arguments: {" ".join(unknown)}{hint}')
    return options, args


def split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """What is for us, and what is for the worker."""
    border = argv.index('--') if '--' in argv else len(argv)
    return argv[:border], argv[border + 1:]


def usage_of_arguments(worker: Worker) -> str:
    """What follows the options in the usage of a worker."""
    words = []
    with contextlib.suppress(ValueError):
        for name, parameter in inspect.signature(worker).parameters.items():
            word = name.upper()
            if parameter.kind is parameter.VAR_POSITIONAL:
                words.append(f'[{word} ...]')
            elif parameter.kind in (parameter.POSITIONAL_ONLY,
                                    parameter.POSITIONAL_OR_KEYWORD):
                words.append(word if parameter.default is parameter.empty
                             else f'[{word}]')
    return ' '.join([' --', *words]) if words else ''


def _seconds(value: str) -> float:
    with contextlib.suppress(ValueError):
        seconds = float(value)
        if seconds >= 0:
            return seconds
    raise argparse.ArgumentTypeError(f'not a number >= 0: {value!r}')


def guarded(prog: str, call: Callable[[], int]) -> int:
    """Call it; a mistake of the user becomes one line and a status."""
    try:
        return call()
    except UserError as error:
        print(f'{prog}: error: {error}', file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print(f'{prog}: interrupted', file=sys.stderr)
        return errors.INTERRUPTED


def run(find: Callable[[], Program], options: argparse.Namespace,
        args: Sequence[object]) -> int:
    """Run the worker that `find` returns when ZCML has been read."""
    debugger = _PostMortem(logging.ERROR)

    @contextlib.contextmanager
    def as_told(loop: Loop) -> Iterator[None]:
        if options.ticks is not None:
            loop.ticks = options.ticks
        loop.once = loop.once or options.once
        nothing = contextlib.nullcontext()
        with (dry_run() if options.dry_run else nothing,
              debugger.watching(loop) if options.debug else nothing):
            yield

    end = boot.run(find, args, options.site, options.config, expecting,
                   verbose=options.verbose, create=not options.dry_run,
                   within=as_told)
    if debugger.used and not end.code:
        end = end._replace(code=errors.WORKER_FAILED)
    return end.status


class UserError(Exception):
    """Ends the program with one line and a status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def expecting(status: int, *kinds: type[Exception]) -> Iterator[None]:
    """Make a `UserError` of the project's own errors, and of these kinds."""
    expected: tuple[type[Exception], ...] = (errors.RunnerError, *kinds)
    try:
        yield
    except expected as error:
        if isinstance(error, POSKeyError) and KeyError in kinds:
            raise  # of a broken database
        if (isinstance(error, ComponentLookupError)
                and error.args[:1] != (IAuthentication,)):
            raise  # a bug in a site, say
        log.debug('This ends the program', exc_info=True)
        if isinstance(error, errors.RunnerError):
            status = error.status
        raise UserError(message(error), status) from error


class _PostMortem(logging.Handler):
    """Starts a debugger where the first error of the worker is logged.

    That is before the abort, so one can look at the transaction.
    """

    used = False

    @contextlib.contextmanager
    def watching(self, loop: Loop) -> Iterator[None]:
        """Debug the first error that this package logs; it ends the loop."""
        self._loop = loop
        logger = logging.getLogger('gocept.runner')
        level = logger.level
        if not logger.isEnabledFor(logging.ERROR):
            logger.setLevel(logging.ERROR)
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Debug the exception of `record`, if it is the first."""
        if self.used or not record.exc_info:
            return
        import pdb
        self.used = True
        # The log may be in a file, or show the error later.
        print(f'Debugging {record.exc_info[1]!r}', file=sys.stderr)
        pdb.post_mortem(record.exc_info[2])
        self._loop.stop()
