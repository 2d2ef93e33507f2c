"""The command line of ``gocept-runner status``."""

import argparse

DESCRIPTION = '''\
Show how workers are, by the states that they write to files: one line for each
worker. A DIR holds such files, as --run-dir of a worker names it. Without
arguments these are the states that workers of this user have registered, and
those in $GOCEPT_RUNNER_RUN_DIR. No zope.conf is read.

A worker is healthy if its process is alive and not stopped, and if its next
tick is not overdue by more than 10 s, or a tick runs within its tick_timeout.
LATE is a tick without a tick_timeout that runs longer than 10 s, and more than
twice as long as the one before.'''

EPILOG = '''\
statuses:
   0  success; with --check: all workers are healthy
   1  with --check: a worker is not healthy, or nothing is known of any; or
      the output could not be written
   2  bad usage
  65  a file is damaged, or was written by a newer version
  66  there is no state, or it cannot be read
 130  interrupted

examples:
  gocept-runner status
  gocept-runner status --watch var/run
  gocept-runner status --check --max-age 3600 /run/shop/nightly.json
'''


def parser_of() -> argparse.ArgumentParser:
    """The parser. `status._quick` knows the same options."""
    parser = argparse.ArgumentParser(
        'gocept-runner status', description=DESCRIPTION, epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('paths', metavar='DIR|FILE', nargs='*',
                        help='where states are')
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        '--check', action='store_true',
        help='print one line, and end with 0 if all workers are healthy, or '
             'with 1; for probes')
    mode.add_argument(
        '--watch', action='store_true',
        help='show the table again each second, until Ctrl-C')
    mode.add_argument('--json', action='store_true', help='print JSON')
    mode.add_argument(
        '--forget', action='store_true',
        help='remove the states of workers that are dead or have ended, and '
             'what is registered and is not there any more')
    parser.add_argument(
        '--max-age', metavar='SECONDS', type=_seconds,
        help='a worker is not healthy either if its last successful tick has '
             'ended longer ago; before the first one, if the worker was '
             'started longer ago')
    parser.add_argument(
        '--color', choices=('auto', 'always', 'never'), default='auto',
        help='whether to use colours (default: auto, which is on a terminal, '
             'unless NO_COLOR is set)')
    return parser


def options_of(argv: list[str]) -> dict[str, object]:
    """The values of the options, by name; exits if `argv` is wrong."""
    return vars(parser_of().parse_intermixed_args(argv))


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f'not a number >= 0: {value!r}')
    return seconds
