"""The subcommand ``gocept-runner run``."""

import argparse
import contextlib
from collections.abc import Sequence

import zope.component

from gocept.runner import errors
from gocept.runner.boot.program import Program, configuration
from gocept.runner.cli import worker as command
from gocept.runner.cli.application import settings_of
from gocept.runner.cli.mistakes import UserError, guarded
from gocept.runner.interfaces import ISupervisor

EXAMPLES = '''\
examples:
  gocept-runner run nightly --config zope.conf
  gocept-runner run import --config zope.conf --once --dry-run orders.csv
  gocept-runner run import --config zope.conf -- --all

'''

PROG = 'gocept-runner run'

UNDECLARED = ('A worker with @appmain() or @once() that ZCML does not '
              'declare is started by a command of its own')


def run(argv: Sequence[str]) -> int:
    """Run a worker that ZCML declares, as its command line says."""
    words, _ = command.split(argv)
    if not {'-h', '--help'}.isdisjoint(words):
        # The help of a worker is known when ZCML has been read.
        with contextlib.suppress(UserError):  # no name, for instance
            wish, _ = command.parse(make_parser(command.Probe), argv)
            return guarded(
                PROG, lambda: _help(wish))
    options, args = command.parse(make_parser(), argv)
    return guarded(PROG, lambda: command.run(
        lambda: find(options, args), options, args))


def make_parser(kind: type[argparse.ArgumentParser] = argparse.ArgumentParser,
                ) -> argparse.ArgumentParser:
    """The parser of the command, which knows no worker yet."""
    parser = command.make_parser(
        'NAME [options] [[--] ARGUMENT ...]',
        'Run a worker that ZCML declares.',
        EXAMPLES + command.STATUSES, PROG, kind=kind)
    parser.add_argument('name', metavar='NAME', help='the worker')
    command.add_options(parser)
    return parser


def _help(options: argparse.Namespace) -> int:
    with configuration(options.config, command.expecting,
                       settings_of(options), logs=False):
        program = named(options.name)
        command.parser_of(program, f'{PROG} {options.name}',
                          site=program.site).print_help()
    return errors.SUCCESS


def find(options: argparse.Namespace, args: Sequence[str]) -> Program:
    """The worker that is named; UserError unless it can be run in this way."""
    program = named(options.name)
    command.check(program, options, args)
    return program


def named(name: str) -> Program:
    """The worker that ZCML declares; UserError if there is none."""
    supervisor = zope.component.queryUtility(ISupervisor)
    workers = {} if supervisor is None else supervisor.workers
    if name not in workers:
        what = f'no worker {name!r} is declared'
        if supervisor is not None and name in supervisor.children:
            kind = supervisor.children[name].kind
            what = (f'{name!r} is no worker, but '
                    f'{"a" if kind == "server" else "an"} {kind}')
        raise UserError(
            f'{what}; there are: {", ".join(sorted(workers)) or "none"}'
            f'{"" if workers else f". {UNDECLARED}"}', errors.BAD_USAGE)
    program: Program = workers[name]
    return program
