"""The subcommands ``gocept-runner run`` and ``gocept-runner list``."""

import argparse
import contextlib
import inspect
from collections.abc import Iterator, Sequence

import zope.component

from gocept.runner import errors
from gocept.runner.boot.program import Program, configuration
from gocept.runner.cli import worker as command
from gocept.runner.interfaces import ISupervisor

RUN_EXAMPLES = '''\
examples:
  gocept-runner run nightly --config zope.conf
  gocept-runner run import --config zope.conf --once --dry-run -- orders.csv

'''

LIST_EXAMPLES = '''\
examples:
  gocept-runner list
  gocept-runner list --config /etc/my-application/zope.conf

statuses:
   0  success
   2  bad usage
  78  bad configuration: zope.conf or ZCML
'''


PROG = 'gocept-runner run'


def run(argv: Sequence[str]) -> int:
    """Run a worker that ZCML declares, as its command line says."""
    words, _ = command.split(argv)
    if not {'-h', '--help'}.isdisjoint(words):
        # The help of a worker is known when ZCML has been read.
        with contextlib.suppress(command.UserError):  # no name, for instance
            wish, _ = command.parse(_parser(command.Probe), argv)
            return command.guarded(
                PROG, lambda: _help(wish.name, wish.config))
    options, args = command.parse(_parser(), argv)
    return command.guarded(PROG, lambda: command.run(
        lambda: _find(options.name, args), options, args))


def _parser(kind: type[argparse.ArgumentParser] = argparse.ArgumentParser,
            ) -> argparse.ArgumentParser:
    parser = command.make_parser(
        'NAME [options] [-- ARGUMENT ...]', 'Run a worker that ZCML declares.',
        RUN_EXAMPLES + command.STATUSES, PROG, kind=kind)
    parser.add_argument('name', metavar='NAME', help='the worker')
    command.add_options(parser)
    return parser


def _help(name: str, config: str) -> int:
    with configuration(config, command.expecting, logs=False):
        command.parser_of(_named(name), f'{PROG} {name}').print_help()
    return errors.SUCCESS


def _find(name: str, args: Sequence[str]) -> Program:
    program = _named(name)
    command.check_arguments(program.worker, args)
    return program


def _named(name: str) -> Program:
    supervisor = zope.component.queryUtility(ISupervisor)
    workers = {} if supervisor is None else supervisor.workers
    if name not in workers:
        what = f'no worker {name!r} is declared'
        if supervisor is not None and name in supervisor.children:
            what = f'{name!r} is no worker, but an ' + (
                supervisor.children[name].kind)
        raise command.UserError(
            f'{what}; there are: {", ".join(sorted(workers)) or "none"}',
            errors.BAD_USAGE)
    program: Program = workers[name]
    return program


def list_(argv: Sequence[str]) -> int:
    """Show, as a table, what ZCML declares."""
    parser = command.make_parser(
        '[options]', 'Show the apps, executors and workers that ZCML '
        'declares. Nothing is started or opened.', LIST_EXAMPLES,
        'gocept-runner list')
    options = parser.parse_args(argv)
    return command.guarded(parser.prog, lambda: _list(options))


def _list(options: argparse.Namespace) -> int:
    with configuration(options.config, command.expecting, logs=False) as conf:
        rows = list(_rows())
    if not rows:
        print(f'{conf.configfile} names no site-definition, so nothing is '
              'declared.' if conf.built_in else
              f'Nothing is declared in {conf.site_definition}.')
    else:
        _print_table([('KIND', 'NAME', 'START', 'REQUIRES', 'WHAT'), *rows])
    return errors.SUCCESS


def _rows() -> Iterator[tuple[str, str, str, str, str]]:
    supervisor = zope.component.queryUtility(ISupervisor)
    if supervisor is None:
        return
    for _, child in sorted(supervisor.children.items()):
        yield (child.kind, child.name, 'eager' if child.eager else 'lazy',
               ' '.join(child.requires) or '-', child.description)
    for name, program in sorted(supervisor.workers.items()):
        yield 'worker', name, '-', '-', _description(program)


def _description(program: Program) -> str:
    decorator, worker = program.decorator, program.worker
    # A worker is a function, or an object that can be called.
    is_function = hasattr(worker, '__qualname__')
    named = worker if is_function else type(worker)
    parts = [f'{named.__module__}:{named.__qualname__}'
             f'{command.usage_of_arguments(worker)}',
             'once' if decorator.once else f'every {decorator.ticks} s']
    if isinstance(decorator.principal, str):
        parts.append(f'as {decorator.principal}')
    elif decorator.principal is not None:
        parts.append('with a principal')  # only its callable is known
    doc = inspect.getdoc(worker) if is_function else None
    purpose, _, _ = (doc or '').partition('\n')
    return ', '.join(parts) + (f': {purpose}' if purpose else '')


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print('  '.join(map(str.ljust, row, widths)).rstrip())
