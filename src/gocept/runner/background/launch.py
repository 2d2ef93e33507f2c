"""The start of a server in the background.

The server is no child of ours, and has a session of its own. So it outlives
us, our terminal, and an executor above us.
"""

import json
import os
import sys
from collections.abc import Mapping

import gocept.runner.errors as errors
from gocept.runner.background.tokens import VARIABLE
from gocept.runner.errors import (
    BackgroundTimeout,
    ServerNotStarted,
    ServerOccupied,
)
from gocept.runner.logs import Log
from gocept.runner.process import daemons, lifetime
from gocept.runner.process.inheritance import SERVICE_VARIABLES
from gocept.runner.process.marks import MARKER
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.modules import module_path

log = Log('gocept.runner.background')


def start(options: Mapping[str, object], timeout: float) -> int:
    """Start a server, and return its pid when clients can connect.

    `options` are those of `Server.options`. BackgroundTimeout, ServerOccupied,
    ServerInsecure, ServerNotStarted. A warning is logged where the server will
    end before its time; see `lifetime.threat`.
    """
    deadline = Deadline(timeout)
    threat = ''

    def meanwhile() -> None:
        nonlocal threat
        threat = lifetime.threat()
    try:
        said = daemons.start(
            command(), environment(), program_options(options, detached=True),
            deadline, meanwhile)
    except errors.ShortageError:
        raise
    except OSError as error:
        raise ServerNotStarted(
            f'no server can be started: {error}') from error
    address = f'{options["host"]}:{options["port"]}'
    if not said:
        advice = (f'look at its init file, or try "gocept-runner server '
                  f'{options["host"]} {options["port"]} --foreground"')
        if deadline.passed:
            raise BackgroundTimeout(
                f'the server at {address} was not ready after {deadline}, '
                f'and was killed: {advice}')
        raise ServerNotStarted(
            f'the server at {address} ended without a word: {advice}')
    try:
        word = json.loads(said)
        if 'error' not in word:
            pid = int(word['pid'])
            if threat:
                log.warning('The server at %s %s', address, threat)
            return pid
        kind, message = str(word['error']), str(word['message'])
        status = int(word['status'])
    except (ValueError, TypeError, KeyError):  # of Python, before our code
        kind, message, status = '', said, ServerNotStarted.status
    if kind == ServerOccupied.__name__:
        raise ServerOccupied(message, int(word['pid']))
    failure = (errors.ServerInsecure if kind == errors.ServerInsecure.__name__
               else ServerNotStarted)(message)
    failure.status = status
    raise failure


def command() -> list[str]:
    """The command that runs a server; its options are on standard input."""
    if not sys.executable:
        raise ServerNotStarted(
            'no server can be started, as sys.executable does not name the '
            'interpreter')
    flags = [f'-X{name}' if value is True else f'-X{name}={value}'
             for name, value in sys._xoptions.items()]
    if sys.flags.dont_write_bytecode:
        flags.append('-B')
    flags += ['-O'] * sys.flags.optimize
    return [sys.executable, '-I', *flags,
            os.path.join(os.path.dirname(__file__), 'start.py')]


def environment() -> dict[str, str]:
    """Ours, without the token, what systemd tells us, and the mark by which
    the server would be ended with a process above us."""
    return {name: value for name, value in os.environ.items()
            if name not in (VARIABLE, MARKER, *SERVICE_VARIABLES)}


def program_options(options: Mapping[str, object], *, detached: bool,
                    ) -> dict[str, object]:
    """What the program finds on standard input, as JSON.

    One that is not `detached` stays a child of ours.
    """
    path = module_path()
    root = os.path.abspath(__file__)
    for _ in range(4):
        root = os.path.dirname(root)
    if root not in path:
        path.append(root)
    return {'path': path, 'detached': detached, 'server': dict(options)}
