"""The start of a template."""

import os
import socket
import sys
from typing import NamedTuple

from gocept.runner.errors import CannotStart
from gocept.runner.poller import Poller
from gocept.runner.process import Process
from gocept.runner.process.daemons import options_file
from gocept.runner.process.launch import Stream
from gocept.runner.waits.modules import interpreter_flags, module_path


class Wanted(NamedTuple):
    """What a template is to be of."""

    config: str
    """The path of zope.conf."""
    application: str | None = None
    """See `Settings`, as of the next three."""
    server_url: str | None = None
    log_config: str | None = None
    log_format: str | None = None
    verbose: int = 0
    """How much of the log is shown; see `IEnvironment.configured`."""


def start(wanted: Wanted, link: socket.socket, *,
          stdout: Stream = 'inherit', stderr: Stream = 'inherit',
          poller: Poller | None = None, name: str = 'template') -> Process:
    """Start a template that has this end of the link; the caller closes it.

    The process has a session of its own, as its orphans have. We are a
    subreaper until it was terminated. Its workers are none of its descendants
    once they are an `Orphan`, or in the roster. The end of the link ends it.
    """
    with options_file({**wanted._asdict(), 'path': module_path(),
                       'link': link.fileno()}) as options:
        return Process(
            command(), name=name, setsid=True, adopt=True, stdin=options,
            stdout=stdout, stderr=stderr, poller=poller,
            pass_fds=[link.fileno()])


def command() -> list[str]:
    """The command that runs a template; its options are on standard input."""
    if not sys.executable:
        raise CannotStart('no worker can be started, as sys.executable does '
                          'not name the interpreter')
    # The directory of the script is not to be searched for modules.
    return [sys.executable, '-P', *interpreter_flags(),
            os.path.join(os.path.dirname(__file__), 'start.py')]
