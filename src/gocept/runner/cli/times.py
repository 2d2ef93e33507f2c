"""The options of a worker about its times: ticks, schedule, time limits."""

import argparse
import contextlib
from typing import TYPE_CHECKING

from gocept.runner.boot.program import Decorator, Program
from gocept.runner.events import Loop

if TYPE_CHECKING:
    from gocept.runner.schedule import Schedule


def add_options(parser: argparse.ArgumentParser,
                decorator: Decorator | None) -> None:
    """Add them; the decorator of the worker may not be known yet.

    The help does not offer what has no effect on a worker that runs once.
    """
    group = parser.add_argument_group('times')
    runs_once = decorator is not None and decorator.once
    group.add_argument(
        '--ticks', metavar='SECONDS', type=_seconds,
        help=argparse.SUPPRESS if runs_once else
             'how long to pause between two ticks (default: '
             f'{_default(decorator, "ticks")})')
    add_schedule(group, decorator)
    group.add_argument(
        '--tick-timeout', metavar='SECONDS', type=_limit,
        help='how long a tick, or an item, may take (default: '
             f'{_default(decorator, "tick_timeout", "as long as it takes")})')


def add_schedule(group: argparse._ActionsContainer,
                 decorator: Decorator | None) -> None:
    """Add those about a schedule."""
    runs_once = decorator is not None and decorator.once
    group.add_argument(
        '--schedule', metavar='EXPRESSION',
        help=argparse.SUPPRESS if runs_once else
             'at which times to run, as in a crontab, such as "*/15 2-5 * * '
             f'mon-fri" (default: {_default(decorator, "schedule")})')
    group.add_argument(
        '--timezone', metavar='ZONE',
        help=argparse.SUPPRESS if runs_once else
             'the zone of these times, such as Europe/Berlin (default: '
             f'{_default(decorator, "timezone", "that of the system")})')


def _default(decorator: Decorator | None, name: str, none: str = 'none',
             ) -> str:
    if decorator is None:
        return 'as the worker says'
    if name == 'ticks' and decorator.schedule is not None:
        return none
    value = getattr(decorator, name)
    return none if value is None else str(value).replace('%', '%%')


def _seconds(value: str) -> float:
    with contextlib.suppress(ValueError):
        seconds = float(value)
        if seconds >= 0:
            return seconds
    raise argparse.ArgumentTypeError(f'not a number >= 0: {value!r}')


def _limit(value: str) -> float:
    with contextlib.suppress(argparse.ArgumentTypeError):
        if seconds := _seconds(value):
            return seconds
    raise argparse.ArgumentTypeError(f'not a number > 0: {value!r}')


def check(program: Program, options: argparse.Namespace) -> None:
    """Raise ValueError unless the worker can be run at these times."""
    decorator, name = program.decorator, program.name
    given = [f'--{each}' for each in ('ticks', 'schedule', 'timezone')
             if getattr(options, each) is not None]
    if given and decorator.once:
        raise ValueError(f'{given[0]}: {name} runs one tick, and ends')
    if '--ticks' in given and len(given) > 1:
        raise ValueError(f'--ticks and {given[1]} exclude each other: a '
                         'worker has either ticks or a schedule')
    if '--schedule' in given and decorator.watch:
        raise ValueError(f'--schedule: {name} watches the database, which a '
                         'worker with a schedule does not')
    if given == ['--timezone'] and decorator.schedule is None:
        raise ValueError(f'--timezone: {name} has no schedule; give one with '
                         '--schedule')
    schedule(options, decorator)


def apply(options: argparse.Namespace, decorator: Decorator, loop: Loop,
          ) -> None:
    """Have the loop keep the times that the command line says."""
    if options.ticks is not None:
        loop.ticks, loop.schedule = options.ticks, None
    loop.schedule = schedule(options, decorator) or loop.schedule
    if options.tick_timeout is not None:
        loop.tick_timeout = options.tick_timeout


def schedule(options: argparse.Namespace, decorator: Decorator,
             ) -> 'Schedule | None':
    """The schedule, if the command line says something of it."""
    if options.schedule is None and options.timezone is None:
        return None
    # Imported here, since few workers need it.
    from gocept.runner.schedule import Schedule
    expression, zone = (
        getattr(decorator if getattr(options, name) is None else options, name)
        for name in ('schedule', 'timezone'))
    return Schedule(expression, zone, decorator.jitter)
