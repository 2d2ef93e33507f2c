"""The program of a server that is started in the background."""

import contextlib
import fcntl
import gc
import io
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from gocept.runner.background.server import Server
from gocept.runner.errors import WORKER_FAILED, RunnerError
from gocept.runner.logs import Log
from gocept.runner.process import inheritance
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.forks import tell_forks

log = Log('gocept.runner.background')

_LONGEST = 1000  # characters that a starter is told, who keeps few

_OURS = os.path.join(os.path.dirname(__file__), '')


class Quiet:
    """Drops the lines of a server that has no log file.

    Only where a task has set up `logging`, they go there. See `logs.Writer`.
    """

    def write(self, level: int, name: str, text: str,
              error: BaseException | None) -> None:
        """See `logs.Writer`."""
        if 'logging' in sys.modules:
            import logging
            logger = logging.getLogger(name)
            if logger.hasHandlers():
                logger.log(level, '%s', text, exc_info=error)


class Starter(Closing):
    """Whoever starts us, and reads standard output up to its end.

    No child of a task has this descriptor: it might stay open for long.
    """

    def __init__(self) -> None:
        self._fd = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
        tell_forks(self)

    def say(self, **words: object) -> None:
        """Tell it one line, in one write.

        An init task may have printed the beginning of a line there.
        """
        # One that has been killed meanwhile is not needed any more.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._fd, b'\n' + json.dumps(words).encode() + b'\n')

    def refuse(self, error: Exception) -> int:
        """Tell it why there is no server; returns the status."""
        text = ' '.join(str(error).split())[:_LONGEST]
        if not isinstance(error, RunnerError):
            text = f'{type(error).__name__}: {text}{_where(error)}'
        status = _status(error)
        self.say(error=type(error).__name__, message=text, status=status,
                 pid=getattr(error, 'pid', 0))
        return status

    def close(self) -> None:
        """See `Closing`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    after_fork = close


def run(options: Mapping[str, Any]) -> int:
    """Be a server with these options, as `launch` makes them.

    Returns the status of the process.
    """
    inheritance.close_inherited()
    gc.freeze()  # what is there by now stays
    gc.enable()
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # as the log is read
    with contextlib.closing(Starter()) as starter:
        try:
            fields = dict(options['server'])
            if fields['tls']:
                from gocept.runner.background.tls import TLS
                fields['tls'] = TLS(*fields['tls'])
            server = Server(**fields)
            server.check_log()
            _leave(server, options['detached'])
        except Exception as error:
            return starter.refuse(error)
        with _log(server, options['detached']):
            return _serve(server, starter)


def _serve(server: Server, starter: Starter) -> int:
    told = False

    def ready() -> None:
        nonlocal told
        told = True
        starter.say(pid=os.getpid())
        starter.close()
    try:
        server.serve(ready)
    except Exception as error:
        if told or not isinstance(error, RunnerError):
            log.exception('The server fails')
        return _status(error) if told else starter.refuse(error)
    return 0


def _where(error: Exception) -> str:
    """The line of the user that has failed, for a message."""
    if isinstance(error, SyntaxError):  # its text has it
        return ''
    found = ''
    traceback = error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not file.startswith((_OURS, '<')):
            found = f' ({file}, line {traceback.tb_lineno})'
        traceback = traceback.tb_next
    return found


def _status(error: Exception) -> int:
    return error.status if isinstance(error, RunnerError) else WORKER_FAILED


def _log(server: Server, detached: bool,
         ) -> contextlib.AbstractContextManager[None]:
    """Have lines of the log go where they are read."""
    if server.log_file or not detached:
        return server.logging()
    Log.writer = Quiet()
    return contextlib.nullcontext()


def _leave(server: Server, detached: bool) -> None:
    """Let nothing of the starter be standard input, output or error.

    The token was on standard input, and tasks may have children. Only who is
    there to read it keeps the output that is in no log file.
    """
    inheritance.open_standard((0,), os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    if detached or server.log_file:
        inheritance.open_standard(
            (1, 2), server.log_file or os.devnull, inheritance.LOG_FLAGS)
