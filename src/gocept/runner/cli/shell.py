"""The subcommand ``gocept-runner shell``: Python, in the place of a worker."""

import argparse
import code
import os.path
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import transaction
import zope.interface
from transaction.interfaces import ISynchronizer
from zope.authentication.interfaces import PrincipalLookupError
from zope.interface.interfaces import ComponentLookupError

from gocept.runner import errors
from gocept.runner.boot import environment, environments
from gocept.runner.boot import program as boot
from gocept.runner.boot.attempts import abort, current_transaction
from gocept.runner.cli import worker as command
from gocept.runner.cli.application import add_application, settings_of
from gocept.runner.cli.mistakes import guarded
from gocept.runner.signals.handlers import handlers
from gocept.runner.signals.shutdown import raising
from gocept.runner.version import version
from gocept.runner.waits.standard import is_terminal

DESCRIPTION = '''\
Run Python where a worker would run: an interactive console, the CODE of -c, a
script in FILE, or one on standard input. The components are set up, a
transaction has begun, and the site is set. Declared children are not started.
The names are:

  app          the root of the application
  site, obj    the object that --site names; without it, the root
  transaction  transaction.commit() stores the changes. What is not committed
               at the end is undone.

What follows FILE is for the script, which finds it in sys.argv.
'''

EPILOG = '''\
examples:
  gocept-runner shell --config zope.conf
  gocept-runner shell --config zope.conf -c 'print(*app)'
  gocept-runner shell --site shop --principal zope.mgr clean_up.py --all

statuses:
   0  success
   1  an exception has ended the code; or the output could not be written
   2  bad usage
  66  unknown site
  67  unknown principal
  69  the database is locked, or cannot be reached
  78  bad configuration: zope.conf or ZCML
 130  interrupted
   n  the code called sys.exit(n)
 128  and the number of a signal
'''

PROG = 'gocept-runner shell'

SHUTDOWN_TIMEOUT = 30.0
"""Seconds in which children have to end that the code has started."""

Namespace = dict[str, object]


def shell(argv: Sequence[str]) -> int:
    """Run Python in the surroundings of a worker."""
    parser = command.make_parser(
        '[options] [FILE [ARGUMENT ...]]', DESCRIPTION, EPILOG, PROG)
    command.add_site(parser)
    parser.add_argument(
        '--principal', metavar='ID',
        help='run in an interaction of this principal (default: in none)')
    parser.add_argument('-c', metavar='CODE', dest='code',
                        help='run this, in place of a console')
    parser.add_argument('file', metavar='FILE', nargs='?',
                        help='run this script, in place of a console')
    add_application(parser)
    command.add_verbose(parser)
    words, args = split(parser, argv)
    options = parser.parse_args(words)
    if options.file is not None and options.code is not None:
        parser.error('either -c CODE or FILE can be run, not both')
    return guarded(parser.prog, lambda: _shell(options, args))


def split(parser: argparse.ArgumentParser, argv: Sequence[str],
          ) -> tuple[Sequence[str], Sequence[str]]:
    """What is for us, up to FILE, and the arguments of the script."""
    argv, index = list(argv), 0
    while index < len(argv):
        word = argv[index]
        if not word.startswith('-') or word == '--':
            border = index + 1 + (word == '--')
            has_mark = argv[border:border + 1] == ['--']
            return argv[:border], argv[border + has_mark:]
        option = parser._option_string_actions.get(word)
        has_value = option is not None and option.nargs is None
        index += 1 + has_value
    return argv, []


def _script(path: str) -> bytes:
    """Bytes, as a script may name its encoding."""
    with command.expecting(errors.BAD_USAGE, OSError):
        return Path(path).read_bytes()


def _shell(options: argparse.Namespace, args: Sequence[str]) -> int:
    script = None if options.file is None else _script(options.file)
    before = handlers()
    with environment.reaping_strangers(), ExitStack() as stack:
        with boot.configuration(options.config, command.expecting,
                                settings_of(options),
                                verbose=options.verbose) as conf:
            app, site = stack.enter_context(boot.opened(
                conf, options.site, command.expecting))
        stack.callback(environment.stop_children, SHUTDOWN_TIMEOUT)
        stack.enter_context(raising(before))
        with command.expecting(errors.UNKNOWN_PRINCIPAL,
                               PrincipalLookupError, ComponentLookupError):
            current = stack.enter_context(environments.current().entered(
                site, lambda: options.principal, PROG, lambda found: None))
        stack.callback(abort)  # children can get back what they have sent
        current.begin()
        author = Author(transaction.get())
        transaction.manager.registerSynch(author)
        stack.callback(transaction.manager.unregisterSynch, author)
        stack.callback(_tell_uncommitted)
        stack.callback(setattr, sys, 'argv', sys.argv)
        sys.argv = [options.file or ('-c' if options.code else ''), *args]
        namespace: Namespace = {
            '__name__': '__main__', '__doc__': None,
            'app': app, 'site': current.app, 'obj': current.app,
            'transaction': transaction}
        if options.code is not None:
            return _run(options.code, '<string>', namespace)
        if script is not None:
            return _run(script, options.file,
                        namespace | {'__file__': options.file})
        if not is_terminal(sys.stdin):
            return _run(sys.stdin.buffer.read() if sys.stdin else '',
                        '<stdin>', namespace)
        _help_typing(namespace)
        code.interact(_banner(conf.configfile, options), local=namespace,
                      exitmsg='')
    return errors.SUCCESS


@zope.interface.implementer(ISynchronizer)
class Author:
    """Tells an undo log who has made the transactions of this thread.

    All of them have the metadata of the first.
    """

    def __init__(self, first: transaction.Transaction) -> None:
        self._user, first.user = first.user, ''
        self._description, first.description = first.description, ''

    def newTransaction(self, txn: transaction.Transaction) -> None:
        """Nothing is to be done: not all that are new come here."""

    def beforeCompletion(self, txn: transaction.Transaction) -> None:
        """See `ISynchronizer`."""
        txn.user = txn.user or self._user
        txn.description = txn.description or self._description

    def afterCompletion(self, txn: transaction.Transaction) -> None:
        """Nothing is to be done."""


def _run(source: str | bytes, filename: str, namespace: Namespace) -> int:
    """Run code, and return the status; SystemExit propagates."""
    try:
        exec(compile(source, filename, 'exec'), namespace)  # noqa: S102
    except Exception as error:
        if error.__traceback__ is not None:  # its first frame is this one
            error.__traceback__ = error.__traceback__.tb_next
        sys.excepthook(type(error), error, error.__traceback__)
        return errors.WORKER_FAILED
    return errors.SUCCESS


def _help_typing(namespace: Namespace) -> None:
    """Complete and remember lines as Python does; not where it does not."""
    hook = getattr(sys, '__interactivehook__', None)
    if hook is None:
        return
    hook()
    try:
        import readline
        import rlcompleter
    except ImportError:
        return
    readline.set_completer(rlcompleter.Completer(namespace).complete)


def _banner(configfile: str, options: argparse.Namespace) -> str:
    what = ('the root' if options.site is None
            else f'{options.site!r} in the root')
    who = '' if options.principal is None else f', as {options.principal}'
    return f'''\
gocept.runner {version()}, Python {sys.version.split()[0]}
{os.path.abspath(configfile)}{who}

  app          the root of the application
  site, obj    {what}, which is set as the site
  transaction  has begun: transaction.commit() stores your changes,
               transaction.abort() undoes them, and shows what others have
               stored

At the end (Ctrl-D), what is not committed is undone.'''


def _tell_uncommitted() -> None:
    txn = current_transaction()
    if txn is not None and txn._resources:
        print(f'{PROG}: there were changes that were not committed, and they '
              'are undone', file=sys.stderr)
