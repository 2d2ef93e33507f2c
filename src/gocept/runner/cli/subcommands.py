"""``gocept-runner``: a command whose subcommands are imported when needed."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

SUBCOMMANDS = {
    'run': ('gocept.runner.cli.declared', 'run', 'run a worker'),
    'list': ('gocept.runner.cli.declared', 'list_', 'show what is declared'),
}
"""The module, the function and the description of each subcommand."""

EXAMPLES = '''\
examples:
  gocept-runner list --config zope.conf
  gocept-runner run nightly --config zope.conf

gocept-runner COMMAND --help shows more.
'''


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the status, or exits with one."""
    if os.getpid() == 1:  # in a container; else it saves the import
        from gocept.runner.signals.handlers import make_default_effective
        make_default_effective()
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog='gocept-runner', usage='%(prog)s COMMAND [options]',
        description='Work with what the ZCML of a zope.conf declares.\n\n'
        'commands:\n' + '\n'.join(
            f'  {name:<6}{text}' for name, (_, _, text)
            in SUBCOMMANDS.items()),
        epilog=EXAMPLES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('command', nargs='?', help=argparse.SUPPRESS)
    # The subcommand parses the other arguments.
    options = parser.parse_args(argv[:1])
    if options.command is None:
        parser.error('a COMMAND is needed: ' + ', '.join(SUBCOMMANDS))
    if options.command not in SUBCOMMANDS:
        parser.error(f'there is no command {options.command!r}; there are: '
                     + ', '.join(SUBCOMMANDS))
    module, function, _ = SUBCOMMANDS[options.command]
    try:
        status: int = getattr(import_module(module), function)(argv[1:])
        if sys.stdout is not None:  # as where it was closed at the start
            sys.stdout.flush()
    except KeyboardInterrupt:  # while it was imported, for instance
        print('gocept-runner: interrupted', file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of the output has gone; the flush at exit must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status
