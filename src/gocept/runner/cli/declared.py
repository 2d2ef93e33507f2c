"""The subcommand ``gocept-runner list``."""

import argparse
import inspect
import shlex
from collections.abc import Iterator, Sequence

import zope.component

from gocept.runner import errors
from gocept.runner.boot.program import Decorator, Program, configuration
from gocept.runner.cli import table
from gocept.runner.cli import worker as command
from gocept.runner.cli.application import add_application, settings_of
from gocept.runner.cli.mistakes import guarded
from gocept.runner.cli.run import UNDECLARED
from gocept.runner.interfaces import ISupervisor
from gocept.runner.runner import appmain
from gocept.runner.zcml.kernels import DeclaredKernel
from gocept.runner.zcml.supervisor import Declaration

LIST_EXAMPLES = '''\
examples:
  gocept-runner list
  gocept-runner list --config /etc/my-application/zope.conf

statuses:
   0  success
   1  the output could not be written
   2  bad usage
  78  bad configuration: zope.conf or ZCML
'''


def list_(argv: Sequence[str]) -> int:
    """Show, as a table, what ZCML declares."""
    parser = command.make_parser(
        '[options]', 'Show the apps, executors, servers, workers and kernels '
        'that ZCML declares, and which of them live in a kernel. Nothing is '
        'started or opened.', LIST_EXAMPLES,
        'gocept-runner list')
    add_application(parser)
    options = parser.parse_args(argv)
    return guarded(parser.prog, lambda: _list(options))


def _list(options: argparse.Namespace) -> int:
    with configuration(options.config, command.expecting,
                       settings_of(options), logs=False) as conf:
        rows = list(_rows())
    if not rows:
        print(f'{conf.configfile} names no site-definition, so nothing is '
              'declared.' if conf.built_in else
              f'Nothing is declared in {conf.site_definition}.',
              f'{UNDECLARED}.')
    else:
        print(*table.lines(
            [('KIND', 'NAME', 'START', 'REQUIRES', 'WHAT'), *rows]), sep='\n')
    return errors.SUCCESS


def _rows() -> Iterator[tuple[str, str, str, str, str]]:
    supervisor = zope.component.queryUtility(ISupervisor)
    if supervisor is None:
        return
    for _, child in sorted(supervisor.children.items()):
        yield (child.kind, child.name, child.start,
               ' '.join(child.requires) or '-',
               child.description + _whereabouts(child))
    for name, kernel in sorted(supervisor.kernels.items()):
        yield 'kernel', name or '-', '-', '-', kernel.description
    for name, program in sorted(supervisor.workers.items()):
        yield 'worker', name, '-', '-', _description(program)


def _whereabouts(child: Declaration) -> str:
    """Whether it lives in its kernel now, which may be that of others."""
    kernel = child.kernel
    if kernel is None:
        return ''
    found = (kernel.look_for(child.name)
             if isinstance(kernel, DeclaredKernel) else {})
    lives = ', '.join(f'{key} runs as process {pid}'
                      for key, pid in sorted(found.items()))
    return f' (in the kernel{lives and ": "}{lives})'


def _description(program: Program) -> str:
    decorator, worker = program.decorator, program.worker
    # A worker is a function, or an object that can be called.
    is_function = hasattr(worker, '__qualname__')
    named = worker if is_function else type(worker)
    arguments = (shlex.join(map(str, program.arguments))
                 or command.usage_of_arguments(worker))
    parts = [f'{named.__module__}:{named.__qualname__} {arguments}'.rstrip(),
             _times(decorator)]
    if program.site is not None:
        parts.append(f'in {program.site}')
    is_overridden = type(decorator).get_principal is not appmain.get_principal
    if isinstance(decorator.principal, str) and not is_overridden:
        parts.append(f'as {decorator.principal}')
    elif decorator.principal is not None or is_overridden:
        parts.append('with a principal')  # only its callable is known
    if decorator.lock:
        parts.append('with a lock')
    doc = inspect.getdoc(worker) if is_function else None
    purpose, _, _ = (doc or '').partition('\n')
    return ', '.join(parts) + (f': {purpose}' if purpose else '')


def _times(decorator: Decorator) -> str:
    if decorator.once and decorator.schedule is None:
        return 'once'
    if decorator.schedule is None:
        return (f'every {decorator.ticks} s'
                + (' or on a change' if decorator.watch else ''))
    zone = '' if decorator.timezone is None else f' ({decorator.timezone})'
    at = f'at {decorator.schedule}{zone}'
    return f'once, {at}' if decorator.once else at
