"""The subcommand ``gocept-runner next``."""

import argparse
import contextlib
import time
from collections.abc import Iterator, Sequence

from gocept.runner import errors
from gocept.runner.boot.program import Program, configuration
from gocept.runner.cli import run, table, times
from gocept.runner.cli import worker as command
from gocept.runner.cli.application import add_application, settings_of
from gocept.runner.cli.mistakes import UserError, guarded
from gocept.runner.operation.amounts import duration
from gocept.runner.schedule import Schedule

EXAMPLES = '''\
examples:
  gocept-runner next nightly --config zope.conf
  gocept-runner next nightly --timezone America/New_York --count 10
  gocept-runner next --schedule '*/15 2-5 * * mon-fri'

statuses:
   0  success
   1  the output could not be written
   2  bad usage: no such worker, no schedule, or one that is not understood
  78  bad configuration: zope.conf or ZCML
'''

PROG = 'gocept-runner next'

COUNT, MOST = 5, 100


def next_(argv: Sequence[str]) -> int:
    """Show when a worker is to run next."""
    parser = command.make_parser(
        '[NAME] [options]', 'Show when a worker that ZCML declares is to run '
        'next. No database is opened.', EXAMPLES, PROG)
    parser.add_argument(
        'name', metavar='NAME', nargs='?',
        help='the worker; not needed with --schedule')
    times.add_schedule(parser, None)
    parser.add_argument(
        '--count', metavar='NUMBER', type=_count, default=COUNT,
        help='how many times to show (default: %(default)s)')
    add_application(parser)
    parser.set_defaults(ticks=None)
    options = parser.parse_args(argv)
    if options.name is None and options.schedule is None:
        parser.error('NAME or --schedule is needed')
    return guarded(PROG, lambda: _next(options))


def _count(value: str) -> int:
    with contextlib.suppress(ValueError):
        if 0 < int(value) <= MOST:
            return int(value)
    raise argparse.ArgumentTypeError(
        f'not a number from 1 to {MOST}: {value!r}')


def _next(options: argparse.Namespace) -> int:
    try:
        schedule = _schedule(options)
    except ValueError as error:
        raise UserError(str(error), errors.BAD_USAGE) from error
    print(*table.lines(
        [('TIME', 'UTC', 'IN'), *_rows(schedule, options.count)]), sep='\n')
    if schedule.jitter:
        print(f'A run starts up to {schedule.jitter:g} s later: the jitter.')
    return errors.SUCCESS


def _schedule(options: argparse.Namespace) -> Schedule:
    if options.name is None:
        return Schedule(options.schedule, options.timezone)
    with configuration(options.config, command.expecting,
                       settings_of(options), logs=False):
        program = run.named(options.name)
        times.check(program, options)
        return times.schedule(options, program.decorator) or _own(program)


def _own(program: Program) -> Schedule:
    decorator = program.decorator
    if decorator.schedule is None:
        often = ('one tick' if decorator.once
                 else f'every {decorator.ticks} s')
        raise ValueError(f'{program.name} has no schedule, it runs {often}; '
                         '--schedule tries one')
    return Schedule(decorator.schedule, decorator.timezone, decorator.jitter)


def _rows(schedule: Schedule, count: int) -> Iterator[tuple[str, str, str]]:
    now = instant = time.time()
    for _ in range(count):
        instant = schedule.after(instant)
        clock = schedule.clock(instant)
        yield (f'{clock:%a %Y-%m-%d %H:%M}', clock.isoformat()[-6:],
               duration(instant - now))
