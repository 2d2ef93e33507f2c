"""The start of a kernel by a client, or in the place of a command."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from gocept.runner.errors import KernelError, ShortageError
from gocept.runner.kernel.keeper.options import Options
from gocept.runner.logs import Log
from gocept.runner.process import daemons, lifetime
from gocept.runner.waits.deadline import Deadline

log = Log('gocept.runner.kernel')

_KEPT = ('PATH', 'HOME', 'LANG', 'LC_ALL', 'LC_CTYPE', 'TZ')

_SERVICE = ('NOTIFY_SOCKET', 'LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES')


def code() -> dict[str, object]:
    """The interpreter and the path of this program's code.

    As `Options`, and what an upgrade is asked for with.
    """
    # Only what is needed, as each directory costs time at each import.
    root = os.path.abspath(__file__)
    for _ in range(5):
        root = os.path.dirname(root)
    return {'python': sys.executable, 'path': (root,)}


def start(options: Options, timeout: float) -> tuple[bool, int | str]:
    """Start a kernel, and wait until it listens.

    Returns whether it was started, as somebody may listen there already, and
    the address. KernelError if that fails or takes longer than `timeout`
    seconds; its line says what the kernel said. A warning is logged where the
    kernel will end before its time; see `lifetime.threat`.
    """
    options = _complete(options, foreground=False)
    deadline = Deadline(timeout)
    threat = ''

    def meanwhile() -> None:
        nonlocal threat
        import_module('gocept.runner.kernel.wire.peers')  # needed afterwards
        threat = lifetime.threat()
    try:
        said = daemons.start(
            options.command(options.describe()), _environment(_KEPT),
            options.to_json(), deadline, meanwhile)
    except ShortageError:
        raise
    except OSError as error:
        raise KernelError(f'no kernel can be started: {error}') from error
    if deadline.passed and not said:
        raise KernelError(f'the kernel does not listen on '
                          f'{options.describe()} after {timeout} s')
    word, *words = said.split() or ['']
    if word == 'exists':
        return False, options.address
    if word != 'started':
        raise KernelError(
            f'no kernel could be started on {options.describe()}: '
            + (said or f'{options.python} ended without a word'))
    if threat:
        log.warning('The kernel on %s %s', options.describe(), threat)
    return True, (int(words[1]) if isinstance(options.address, int)
                  else options.address)


def become(options: Options) -> NoReturn:
    """Be the kernel, in the place of this program: the foreground."""
    options = _complete(options, foreground=True)
    command = options.command(options.describe())
    with daemons.options_file(options.to_json()) as config:
        os.dup2(config, 0)
        os.execve(command[0], command, _environment(_KEPT + _SERVICE))


def _complete(options: Options, foreground: bool) -> Options:
    found = options._replace(foreground=foreground)
    if not found.path:
        found = Options.from_json(found.to_json() | code())
    if not found.script:
        raise KernelError('no kernel can be started, as its code is not in a '
                          'directory of sys.path')
    return found


def _environment(names: Sequence[str]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}
