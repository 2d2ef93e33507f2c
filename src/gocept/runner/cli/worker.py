"""The command line of a worker: options, statuses, one line for a mistake."""

import argparse
import contextlib
import inspect
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from gocept.runner import errors
from gocept.runner.boot import messages
from gocept.runner.boot import program as boot
from gocept.runner.boot.dryrun import dry_run
from gocept.runner.boot.environments import ConfigFile
from gocept.runner.boot.program import (
    Configure,
    Decorator,
    Program,
    Worker,
)
from gocept.runner.cli import times
from gocept.runner.cli.application import add_application, settings_of
from gocept.runner.cli.mistakes import UserError, guarded, meant
from gocept.runner.events import Loop
from gocept.runner.logs import Log
from gocept.runner.operation.asked import Asked
from gocept.runner.version import version

log = Log('gocept.runner.command')

STATUSES = '''\
statuses:
   0  success, also when a signal ended the worker
   1  the worker, or items of it, failed *; or the output of gocept-runner
      could not be written
   2  bad usage
  66  unknown site
  67  unknown principal
  69  the database is locked, cannot be reached, or has closed itself
  71  an eager app or executor cannot be started
  73  the lock cannot be taken
  74  it is not known what was committed *
  75  another process runs the worker, and holds its lock
  78  bad configuration: zope.conf or ZCML
 130  interrupted
 134  a tick took longer than tick_timeout, and tick_timeout_action is abort
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
    options, given = parse(
        parser, sys.argv[1:],
        takes_arguments=bool(usage_of_arguments(program.worker)))
    args = given or args
    try:
        check(program, options, args)
    except UserError as error:
        parser.error(str(error))
    return guarded(parser.prog, lambda: run(lambda: program, options, args))


def parser_of(program: Program, prog: str | None = None, *,
              config: ConfigFile | None = None, site: str | None = None,
              is_script: bool = False) -> argparse.ArgumentParser:
    """The parser of a worker, with its help."""
    worker = program.worker
    words = usage_of_arguments(worker)
    description = [inspect.getdoc(worker) or '']
    if program.arguments:
        words = f'[{words}]'
        declared = shlex.join(map(str, program.arguments))
        description.append(
            f'The arguments, unless the command line has some: {declared}')
    parser = make_parser(
        f'[options] [--] {words}' if words else '[options]',
        '\n\n'.join(filter(None, description)), STATUSES, prog, config=config,
        is_script=is_script)
    decorator = program.decorator
    add_options(parser, decorator, site, is_script=is_script)
    parser.set_defaults(application=decorator.application)
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
    for action in probe._actions:  # a wrong value is for us to report
        action.type = action.choices = None
    try:
        options, args = parse(probe, argv)
        if args and '--' not in argv:
            probe.error(f'unrecognized arguments: {" ".join(args)}')
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


class ShowVersion(argparse.Action):
    """Shows the version, and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> None:
        """See `argparse.Action`."""
        if not isinstance(parser, Probe):
            print('gocept.runner', version())
            parser.exit()


def check(program: Program, options: argparse.Namespace,
          args: Sequence[object]) -> None:
    """Raise UserError unless the worker can be run in this way."""
    if options.state is not None and options.run_dir is not None:
        raise UserError('--state names a file, and --run-dir a directory for '
                        'such files: give one of them', errors.BAD_USAGE)
    try:
        times.check(program, options)
    except ValueError as error:
        raise UserError(str(error), errors.BAD_USAGE) from error
    check_arguments(program.worker, args or program.arguments)


def check_arguments(worker: Worker, args: Sequence[object]) -> None:
    """Raise UserError unless `worker` can be called with `args`."""
    try:
        boot.check_arguments(worker, args)
    except TypeError as error:
        words = usage_of_arguments(worker)
        if not words:
            raise UserError(
                f'unrecognized arguments: {" ".join(map(str, args))} (the '
                'worker has no arguments of its own)',
                errors.BAD_USAGE) from error
        hint = ('; options of the program, such as --dry-run, stand before --'
                if any(str(each).startswith('-') for each in args) else '')
        missing = re.fullmatch(r"missing a required .*: '(\w+)'", str(error))
        what = f'{missing[1].upper()} is missing' if missing else error
        raise UserError(f'{what} (the arguments of the worker are: {words})'
                        f'{hint}', errors.BAD_USAGE) from error


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
        '--version', nargs=0, action=ShowVersion,
        help='show the version of gocept.runner, and exit')
    parser.add_argument(
        '--config', metavar='FILE',
        default=config or default,
        help=argparse.SUPPRESS if is_script else
             'the zope.conf (default: %(default)s)' if config else
             'the zope.conf (default: $ZOPE_CONF, then ./zope.conf; '
             'now: %(default)s)')
    return parser


def add_options(parser: argparse.ArgumentParser,
                decorator: Decorator | None = None,
                site: str | None = None, *, is_script: bool = False) -> None:
    """Add the options of a worker, whose decorator may not be known yet.

    The help does not offer what has no effect on a worker that runs once.
    """
    add_site(parser, site, is_script=is_script)
    parser.add_argument(
        '--once', action='store_true',
        help=argparse.SUPPRESS if decorator and decorator.once
        else 'run one tick, and end')
    parser.add_argument(
        '--dry-run', action='store_true',
        help='abort every transaction, and log what would be committed')
    parser.add_argument(
        '--debug', action='store_true',
        help='enter a debugger at the first error of the worker, then end; '
             'no tick is too long')
    add_application(parser)
    add_verbose(parser)
    times.add_options(parser, decorator)
    _add_operation(parser, decorator)


def _add_operation(parser: argparse.ArgumentParser,
                   decorator: Decorator | None) -> None:
    """Add the options for those who operate the worker."""
    group = parser.add_argument_group('operation')
    default = 'as the worker says' if decorator is None else (
        'yes' if decorator.lock else 'no')
    group.add_argument(
        '--lock', action=argparse.BooleanOptionalAction,
        help='whether to end if another process on this machine runs the '
             f'worker for the same site (default: {default})')
    group.add_argument(
        '--state', metavar='FILE',
        help='where to tell others how the worker does, such as '
             '"gocept-runner status" (default: a file beside the database)')
    group.add_argument(
        '--run-dir', metavar='DIR',
        help='the directory of this file, for several workers')
    group.add_argument(
        '--log-format', choices=('text', 'json'),
        help='write the log as zope.conf says, or a line of JSON for each '
             'message (default: text)')
    group.add_argument(
        '--metrics', metavar='[HOST:]PORT',
        help='where to serve metrics for Prometheus (default: nowhere)')


def add_site(parser: argparse.ArgumentParser, site: str | None = None, *,
             is_script: bool = False) -> None:
    """Add the option that names the site."""
    parser.add_argument(
        '--site', metavar='PATH', default=site,
        help=argparse.SUPPRESS if is_script else
             'the path of the object that becomes the site, such as shop or '
             'intranet/news; "/" is the root (default: '
             f'{"the root" if site is None else "%(default)s"}); -O and '
             '--object-path, as of "instance run", are the same')
    parser.add_argument('-O', '--object-path', dest='site', default=site,
                        help=argparse.SUPPRESS)


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add the option that shows more of the log."""
    parser.add_argument(
        '-v', '--verbose', action='count', default=0,
        help='log debug messages, and all messages to standard error; given '
             'twice: also debug messages of the libraries')


def parse(parser: argparse.ArgumentParser, argv: Sequence[str], *,
          takes_arguments: bool = True,
          ) -> tuple[argparse.Namespace, Sequence[str]]:
    """The options of a worker, and its arguments.

    These follow ``--``. Without it, what is none of our options is taken for
    an argument if nothing looks like an option, not even without its dashes.
    """
    words, args = split(argv)
    options, unknown = parser.parse_known_args(words)
    known = parser._option_string_actions
    if unknown and (len(words) < len(argv) or any(
            word.startswith('-') or f'--{word}' in known for word in unknown)):
        parser.error(f'unrecognized arguments: {" ".join(unknown)} '
                     f'({_advice(parser, unknown, takes_arguments)})')
    return options, unknown or args


def _advice(parser: argparse.ArgumentParser, unknown: Sequence[str],
            takes_arguments: bool) -> str:
    """What to do about words that are no options."""
    options = [option for option, action
               in parser._option_string_actions.items()
               if action.help is not argparse.SUPPRESS]
    words = [word.partition('=')[0] for word in unknown
             if word.startswith('-')]
    words += [f'--{word}' for word in unknown if f'--{word}' in options]
    hint = next(filter(None, (meant(word, options) for word in words)), '')
    if takes_arguments:
        return hint + (' Arguments of the worker itself follow --' if hint
                       else 'arguments of the worker itself follow --')
    return hint or 'the worker has no arguments of its own'


def split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """What is for us, and what is for the worker."""
    border = argv.index('--') if '--' in argv else len(argv)
    return argv[:border], argv[border + 1:]


def usage_of_arguments(worker: Worker) -> str:
    """The arguments of a worker, as its usage shows them."""
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
    return ' '.join(words)


def run(find: Callable[[], Program], options: argparse.Namespace,
        args: Sequence[object], configure: Configure = boot.configuration,
        ) -> int:
    """Run the worker that `find` returns when ZCML has been read."""
    debugger = _PostMortem(logging.ERROR)
    programs: list[Program] = []

    def found() -> Program:
        programs.append(find())
        return programs[0]

    @contextlib.contextmanager
    def as_told(loop: Loop) -> Iterator[None]:
        times.apply(options, programs[0].decorator, loop)
        loop.once = loop.once or options.once
        nothing = contextlib.nullcontext()
        with (dry_run() if options.dry_run else nothing,
              debugger.watching(loop) if options.debug else nothing):
            yield

    end = boot.run(found, args, options.site, configure(
                       options.config, expecting, settings_of(options),
                       verbose=options.verbose), expecting,
                   create=not options.dry_run, within=as_told,
                   asked=Asked(
                       options.state, options.run_dir, options.metrics,
                       dry_run=options.dry_run, is_command=True,
                       lock=options.lock))
    if debugger.used and not end.code:
        end = end._replace(code=errors.WORKER_FAILED)
    return end.status


expecting = messages.guard(UserError)
"""Makes a `UserError` of the project's own errors, and of the kinds that it is
called with."""


class _PostMortem(logging.Handler):
    """Starts a debugger where the first error of the worker is logged.

    That is before the abort, so one can look at the transaction.
    """

    used = False

    @contextlib.contextmanager
    def watching(self, loop: Loop) -> Iterator[None]:
        """Debug the first error that this package logs; it ends the loop.

        No tick is too long, as it is while somebody thinks.
        """
        self._loop = loop
        loop.tick_timeout = None
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
