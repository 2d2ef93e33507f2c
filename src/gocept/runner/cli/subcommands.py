"""``gocept-runner``: a command whose subcommands are imported when needed.

A probe of a container runs ``status --check`` every few seconds. So this
imports no more than that needs.
"""

import _signal  # type: ignore[import-not-found]  # `signal` takes long
import errno
import gc
import os
import sys
from importlib import import_module

from gocept.runner.errors import INTERRUPTED, SIGNALLED

TYPE_CHECKING = False  # not that of `typing`, whose import takes long
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType, ModuleType

SUBCOMMANDS = {
    'new': ('gocept.runner.cli.new', 'new', 'write a small project'),
    'run': ('gocept.runner.cli.run', 'run', 'run a worker'),
    'up': ('gocept.runner.cli.up', 'up',
           'run all workers, from one warm process'),
    'reload': ('gocept.runner.cli.reload', 'reload',
               'have "up" take new code'),
    'list': ('gocept.runner.cli.declared', 'list_', 'show what is declared'),
    'next': ('gocept.runner.cli.next', 'next_',
             'show when a worker is to run next'),
    'status': ('gocept.runner.cli.status', 'status',
               'show how workers are'),
    'units': ('gocept.runner.cli.units', 'units',
              'write services of systemd for workers'),
    'shell': ('gocept.runner.cli.shell', 'shell',
              'run Python where a worker would run'),
    'kernel': ('gocept.runner.cli.kernel', 'kernel',
               'keep processes, sockets and output'),
    'server': ('gocept.runner.cli.servers', 'server',
               'start a background server'),
    'terminate': ('gocept.runner.cli.servers', 'terminate',
                  'end a background server'),
    'call': ('gocept.runner.cli.servers', 'call',
             'have a background server run its task'),
    'servers': ('gocept.runner.cli.servers', 'servers',
                'show the background servers of this user'),
    'version': ('gocept.runner.cli.servers', 'version',
                'show the version'),
}
"""The module, the function and the description of each subcommand."""

_BRIEF = [['status'], ['kernel'], ['call'], ['terminate'], ['servers'],
          ['version']]
"""The commands that leave nothing to be looked at."""

_UNWRITTEN = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""Why a write fails. Errors of files that were opened have their names."""

EXAMPLES = '''\
examples:
  gocept-runner new shop
  gocept-runner list --config zope.conf
  gocept-runner run nightly --config zope.conf
  gocept-runner up --config zope.conf
  gocept-runner status
  gocept-runner kernel status
  gocept-runner server 127.0.0.1 54321 --init-file tasks.py

gocept-runner COMMAND --help shows more.
'''


def main(argv: 'Sequence[str] | None' = None) -> int:
    """Run a subcommand; returns the status, or exits with one."""
    if os.getpid() == 1:  # in a container; else it saves the import
        from gocept.runner.signals.handlers import make_default_effective
        make_default_effective()
    try:
        try:
            status = _run(sys.argv[1:] if argv is None else argv)
        except SystemExit:  # with a text of help, for instance
            _flush()
            raise
        _flush()
        if argv is None and sys.argv[1:2] in _BRIEF:
            gc.freeze()  # so the end of Python does not look at all objects
    except KeyboardInterrupt:  # while it was imported, for instance
        print('gocept-runner: interrupted', file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output has gone
        _forget_output()
        from signal import SIGPIPE
        return SIGNALLED + SIGPIPE
    except OSError as error:
        if error.errno not in _UNWRITTEN or error.filename is not None:
            raise
        _forget_output()
        print('gocept-runner: error: the output cannot be written: '
              f'{error.strerror}', file=sys.stderr)
        return 1
    return status


def _flush() -> None:
    if sys.stdout is not None:  # as where it was closed at the start
        sys.stdout.flush()


def _forget_output() -> None:
    """Let the flush at exit not fail."""
    with open(os.devnull, 'wb') as null:
        os.dup2(null.fileno(), sys.stdout.fileno())


def _run(argv: 'Sequence[str]') -> int:
    name = argv[0] if argv and argv[0] in SUBCOMMANDS else _command(argv)
    module, function, _ = SUBCOMMANDS[name]
    status: int = getattr(_imported(module), function)(argv[1:])
    return status


def _imported(name: str) -> 'ModuleType':
    """Import a module, unless Ctrl-C is pressed meanwhile.

    Python drops what its handler raises in the callback of a weak reference,
    and so do libraries in C while they are imported. So this looks at the end.
    """
    came = False

    def interrupt(signum: int, frame: 'FrameType | None') -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    before = _signal.getsignal(_signal.SIGINT)
    if before is not _signal.default_int_handler:
        return import_module(name)
    try:
        _signal.signal(_signal.SIGINT, interrupt)
    except ValueError:  # not in the main thread, where signals are handled
        return import_module(name)
    try:
        module = import_module(name)
    finally:
        _signal.signal(_signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
    return module


def _command(argv: 'Sequence[str]') -> str:
    """The command that is meant; exits if there is none."""
    import argparse
    parser = argparse.ArgumentParser(
        prog='gocept-runner', usage='%(prog)s COMMAND [options]',
        description='Work with what the ZCML of a zope.conf declares, with '
        'the process kernel,\nand with background servers.\n\n'
        'commands:\n' + '\n'.join(
            f'  {name:<11}{text}' for name, (_, _, text)
            in SUBCOMMANDS.items()),
        epilog=EXAMPLES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--version', action='store_true',
                        help='the same as the command version')
    parser.add_argument('command', nargs='?', help=argparse.SUPPRESS)
    # The subcommand parses the other arguments.
    options = parser.parse_args(argv[:1])
    if options.version:
        return 'version'
    if options.command is None:
        parser.error('a COMMAND is needed: ' + ', '.join(SUBCOMMANDS))
    from gocept.runner.cli.mistakes import meant
    hint = meant(options.command, SUBCOMMANDS)
    return parser.error(
        f'there is no command {options.command!r}'
        f'{hint and f" ({hint})"}; there are: ' + ', '.join(SUBCOMMANDS))
