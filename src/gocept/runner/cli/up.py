"""The subcommand ``gocept-runner up``: all workers, from one warm process."""

import argparse
import functools
import os
import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gocept.runner import errors
from gocept.runner.cli import cells
from gocept.runner.cli import worker as command
from gocept.runner.cli.application import add_application, settings_of
from gocept.runner.cli.mistakes import UserError, guarded

if TYPE_CHECKING:
    from gocept.runner.house.part import Part
    from gocept.runner.house.templates import Launch
    from gocept.runner.house.tenant import LaunchProgram
    from gocept.runner.poller import Poller
    from gocept.runner.process import Process

EXAMPLES = '''\
examples:
  gocept-runner up --config zope.conf
  gocept-runner up --config zope.conf import export
  gocept-runner up --config zope.conf --no-color > workers.log

signals:
  SIGTERM, SIGINT  each worker completes its tick, and ends; the second one
                   kills what has not ended
  SIGHUP           as "gocept-runner reload"; with a terminal, as SIGTERM
  SIGUSR2          the workers reopen their log files

A worker that fails is restarted after 0.25 s, then after twice as long each
time, up to 60 s. After 10 failures in a row it is given up; one that has run
for 60 s counts anew. One that has ended by itself is not restarted.

'''

STATUSES = '''\
statuses:
   0  success, also when a signal has ended it
   1  a worker was given up, or one that runs once has failed
   2  bad usage: no such worker, for instance
  69  the database cannot be opened
  71  the processes cannot be started
  73  the lock cannot be taken
  75  another process runs the workers of this zope.conf
  78  bad configuration: zope.conf or ZCML
 128  and the number of a signal: that of the second one
'''

PROG = 'gocept-runner up'


def up(argv: Sequence[str]) -> int:
    """Run all workers that ZCML declares, until a signal ends them."""
    parser = command.make_parser(
        '[options] [NAME ...]', 'Run all workers that ZCML declares, or those '
        'that are named, each in a process\nof its own, until a signal ends '
        'them. The configuration is read once.', EXAMPLES + STATUSES, PROG)
    parser.add_argument('names', nargs='*', metavar='NAME', help='a worker')
    parser.add_argument(
        '--shutdown-timeout', metavar='SECONDS', type=_seconds,
        help='how many seconds the end may take until what is left is killed '
             '(default: what the worker that takes longest may need: its '
             'tick_timeout, or 60, and its shutdown_timeout)')
    parser.add_argument(
        '--no-zeo', dest='zeo', action='store_false',
        help='start no ZEO server for a <filestorage>; then only one worker '
             'can run')
    parser.add_argument(
        '--wait', metavar='SECONDS', type=_seconds, default=30.0,
        help='how many seconds another process may have the file of a '
             '<filestorage> open, before this ends (default: 30)')
    parser.add_argument(
        '--no-color', '--no-colour', action='store_true',
        help='show no colours on a terminal; $NO_COLOR does the same')
    parser.add_argument(
        '--dry-run', action='store_true',
        help='abort every transaction, and log what would be committed')
    parser.add_argument(
        '--lock', action=argparse.BooleanOptionalAction,
        help='whether a worker ends if another process on this machine runs '
             'it for the same site (default: as each worker says)')
    parser.add_argument(
        '--run-dir', metavar='DIR',
        help='the directory of files for "gocept-runner status" (default: '
             'beside the database)')
    parser.add_argument(
        '--log-format', choices=('text', 'json'),
        help='write the log as zope.conf says, or a line of JSON for each '
             'message; then, lines have no marks (default: text)')
    parser.add_argument(
        '--http', metavar='[HOST:]PORT',
        help='serve a page with the workers, /healthz and /metrics; without '
             'HOST for this machine alone')
    parser.add_argument(
        '--http-page', action='store_true',
        help='serve the page, which shows the tracebacks of errors, also if '
             'other machines can reach HOST')
    add_application(parser)
    command.add_verbose(parser)
    options = parser.parse_args(argv)
    if options.http_page and options.http is None:
        parser.error('--http-page needs --http')
    return guarded(PROG, lambda: _up(options))


def _seconds(value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = -1.0
    if not 0 <= found < float('inf'):
        raise argparse.ArgumentTypeError(
            f'not a number of seconds: {value!r}')
    return found


def _up(options: argparse.Namespace) -> int:
    # Imported here, so that --help is fast.
    from gocept.runner.house.house import House
    from gocept.runner.house.marks import JSONMarks, Marks
    from gocept.runner.house.place import directory_of, occupied
    from gocept.runner.house.writer import Writer
    if len({*options.names}) < len(options.names):
        raise UserError('a worker is named twice', errors.BAD_USAGE)
    config = os.path.abspath(options.config)
    directory = directory_of(config)
    choice = 'never' if options.no_color else 'auto'
    marks = (JSONMarks() if options.log_format == 'json' else Marks(
        colours=cells.wants_colour(choice, os.isatty(1))))
    with occupied(directory, config):
        return House(
            config, directory, *_launches(options), Writer(1), marks,
            names=options.names, words=[*_words(options)],
            parts=_parts(options),
            shutdown_timeout=options.shutdown_timeout).run()


def _launches(options: argparse.Namespace) -> 'tuple[Launch, LaunchProgram]':
    """What starts a template, and what starts a worker as a program."""
    from gocept.runner.house import launch, program
    wanted = launch.Wanted(
        os.path.abspath(options.config), *settings_of(options),
        verbose=options.verbose)

    def start(link: socket.socket, output: int, poller: 'Poller',
              ) -> 'Process':
        return launch.start(
            wanted, link, stdout=output, stderr=output, poller=poller)
    return start, functools.partial(program.start, wanted)


def _parts(options: argparse.Namespace) -> 'list[Part]':
    """What lives as long as the workers, in the order of the start."""
    from gocept.runner.house.former import Former
    parts: list[Part] = []
    if options.http is not None:
        # The first one, so that it shows the start and the end of the others.
        from gocept.runner.house.web import web_of
        try:
            parts.append(web_of(options.http, with_page=options.http_page))
        except errors.RunnerError as error:
            raise UserError(str(error), error.status) from error
    parts.append(Former())
    if options.zeo:
        from gocept.runner.house.zeo import ZEO
        parts.append(ZEO(options.application, wait=options.wait,
                         create=not options.dry_run))
    return parts


def _words(options: argparse.Namespace) -> Iterator[str]:
    """The options that ``gocept-runner run`` gets for each worker."""
    if options.dry_run:
        yield '--dry-run'
    if options.lock is not None:
        yield '--lock' if options.lock else '--no-lock'
    if options.run_dir is not None:
        yield f'--run-dir={os.path.abspath(options.run_dir)}'
