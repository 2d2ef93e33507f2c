"""The subcommand ``gocept-runner reload``: `up` takes new code."""

import argparse
import os
from collections.abc import Sequence

from gocept.runner import errors
from gocept.runner.cli import worker as command
from gocept.runner.cli.mistakes import UserError, guarded

EXAMPLES = '''\
examples:
  gocept-runner reload --config zope.conf
  gocept-runner reload --config zope.conf --timeout 120

statuses:
   0  the new code runs: the workers change over, each after its tick
   1  the new code cannot boot, so the workers go on with the old
   2  bad usage
  69  no "gocept-runner up" runs for this zope.conf, as this user
 124  there was no answer in time
'''

PROG = 'gocept-runner reload'

TIMEOUT = 60.0


def reload(argv: Sequence[str]) -> int:
    """Have ``gocept-runner up`` read the configuration and code anew."""
    parser = command.make_parser(
        '[options]', 'Have "gocept-runner up" read the configuration and the '
        'code of the workers anew.\nIf that works, the workers change over '
        'one by one, each after its tick.', EXAMPLES, PROG)
    parser.add_argument(
        '--timeout', metavar='SECONDS', type=_seconds, default=TIMEOUT,
        help='how many seconds to wait until the new code has booted '
             '(default: %(default)g)')
    options = parser.parse_args(argv)
    return guarded(PROG, lambda: _reload(options))


def _seconds(value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = 0.0
    if not 0 < found < float('inf'):
        raise argparse.ArgumentTypeError(
            f'not a number of seconds above 0: {value!r}')
    return found


def _reload(options: argparse.Namespace) -> int:
    from gocept.runner.house import control
    from gocept.runner.house.place import directory_of
    from gocept.runner.waits.deadline import Deadline
    deadline = Deadline(options.timeout)
    try:
        for answer in control.ask(
                directory_of(options.config), 'reload', deadline):
            if answer['step'] == 'done':
                print(f'The new code has booted: {answer["text"]}.')
                return errors.SUCCESS
            if answer['step'] in ('failed', 'refused'):
                raise UserError(
                    'the new code cannot boot, so the workers go on with the '
                    f'old: {answer["text"]}', errors.WORKER_FAILED)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise UserError(_nobody(options), errors.KERNEL_NOT_RUNNING,
                        ) from error
    except TimeoutError as error:
        raise UserError(
            f'the new code has not booted in {deadline}; the workers go on '
            'with the old until it has', errors.TIMED_OUT) from error
    except OSError as error:
        raise UserError(f'gocept-runner up cannot be asked: {error}',
                        errors.KERNEL_NOT_RUNNING) from error
    raise UserError('gocept-runner up has ended meanwhile',
                    errors.KERNEL_NOT_RUNNING)


def _nobody(options: argparse.Namespace) -> str:
    return (f'no "gocept-runner up" runs for {os.path.abspath(options.config)}'
            ', as this user')
