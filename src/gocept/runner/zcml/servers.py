"""The background servers that ZCML declares."""

import contextlib
import json
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, Protocol, TypeVar

import zope.interface

from gocept.runner.background import launch
from gocept.runner.background.server import Server
from gocept.runner.background.tokens import VARIABLE, token_create
from gocept.runner.background.worker_client import WorkerClient
from gocept.runner.errors import ExecutorError, ServerOccupied
from gocept.runner.executor import ConditionExecutor, all_of, output, tcp
from gocept.runner.executor.conditions.base import Check
from gocept.runner.executor.requirements import Startable
from gocept.runner.interfaces import IDeclaredServer
from gocept.runner.logs import Log
from gocept.runner.process.base import BaseProcess
from gocept.runner.process.daemons import options_file

log = Log('gocept.runner.background')

E = TypeVar('E', bound=ExecutorError)

PORT = 54321

_READY, _FAILED = r'^\{"pid": \d+\}$', r'^\{"error": ".*\}$'


@zope.interface.implementer(IDeclaredServer)
class DeclaredServer(Server):
    """See `IDeclaredServer`."""

    def __init__(self, name: str, tasks: Sequence[str | None], *,
                 host: str = '127.0.0.1', port: int = PORT,
                 start_timeout: float = 30,
                 client: Mapping[str, Any] | None = None,
                 **options: Any) -> None:
        super().__init__(host, port, tasks=tasks, **options)
        self.name = name
        self.start_timeout = start_timeout
        self.client = WorkerClient(
            host, port, self._token, tls=self._tls, name=name,
            connect_timeout=start_timeout, start=self._start,
            **self._for_client(), **(client or {}))
        self.child: Detached | ServerExecutor = Detached(self)
        """What is started, and perhaps stopped."""

    def _for_client(self) -> dict[str, Any]:
        """What only the client of this kind of server needs."""
        return {'tasks': lambda: [
            name and resolve_name(name) for name in self.tasks]}

    def _start(self) -> None:
        """Start it, as nobody answers; then it is no business of ours."""
        for each in self.child.requires:
            each.ensure_running()
        try:
            pid = self.run_background(self.start_timeout)
        except ServerOccupied as error:
            # Another program was faster, or the client finds out what it is.
            log.info('%s', error)
        else:
            log.info('Started the server %r: process %d', self.name, pid)

    @property
    def description(self) -> str:
        """What ``gocept-runner list`` shows."""
        return f'{self.tasks[1]} at {self.client.address}'

    def ensure_running(self) -> None:
        """See `IDeclaredServer`."""
        self.client.ensure_running()


class Required(Startable, Protocol):
    """What a detached server requires."""

    name: str

    def ensure_running(self) -> object: ...


class Detached:
    """A server that nobody stops, as the supervisor knows it.

    See `gocept.runner.executor.groups.Startable`.
    """

    child: BaseProcess | None = None

    def __init__(self, server: DeclaredServer) -> None:
        self.name = server.name
        self.requires: tuple[Required, ...] = ()
        self._client = server.client

    def is_up(self) -> bool:
        """It may have ended meanwhile."""
        return False

    def ensure_running(self) -> None:
        """See `IDeclaredServer`."""
        self._client.ensure_running()

    start = ensure_running

    def stop(self) -> None:
        """It goes on."""

    kill = stop


class EagerServer(DeclaredServer):
    """One that lives and dies with this process.

    Its token is known here only, unless it was given one.
    """

    _found: BaseProcess | None = None
    """What ran when it was to be started last."""

    def __init__(self, name: str, tasks: Sequence[str | None], *,
                 host: str = '127.0.0.1', port: int = 0,
                 start_timeout: float = 30, stop_timeout: float | None = None,
                 token: str | None = None,
                 envvars: Mapping[str, str] | None = None,
                 **options: Any) -> None:
        listening = tcp(host, port)
        super().__init__(
            name, tasks, host=host, port=listening.port,
            token=token or token_create(), start_timeout=start_timeout,
            **options)
        self._has_port = port != 0
        self.child: ServerExecutor = ServerExecutor(
            self.options, listening, name=name, timeout=start_timeout,
            stop_timeout=stop_timeout, envvars=envvars)

    @property
    def description(self) -> str:
        """See `DeclaredServer`. A port that is found anew says nothing."""
        return (super().description if self._has_port
                else f'{self.tasks[1]} at {self.host}, on any free port')

    def _for_client(self) -> dict[str, Any]:
        return {}  # it is initialized when it is ready

    def _start(self) -> None:
        found, before = self.child.child, self._found
        self._found = found
        if found is not None and found is before:
            # It runs, but listens no more. Its status is no matter.
            self.child.kill(sig=signal.SIGTERM)
        self.child.ensure_running()


class ServerExecutor(ConditionExecutor):
    """A background server as a child."""

    def __init__(self, options: Callable[[], Mapping[str, object]],
                 listening: tcp, **keywords: Any) -> None:
        self._server_options = options
        self._place = f'{listening.host}:{listening.port}'
        super().__init__(
            launch.command(), all_of(output(_READY, _FAILED), listening),
            die_with_parent=signal.SIGTERM, **keywords)

    @property
    def envvars(self) -> dict[str, str]:
        """See `IExecutor`. Without the token of others."""
        return {name: value for name, value in super().envvars.items()
                if name != VARIABLE}

    def open(self, check: Check | None, **watch: Any) -> BaseProcess:
        with options_file(launch.program_options(
                self._server_options(), detached=False)) as fd:
            self._stdin = fd
            return super().open(check, **watch)

    def _explained(self, error: E, obstacle: str = '') -> E:
        """Say in one line what the server has said of its failure."""
        run = self._run
        said = '' if run is None else run.captures['stdout'].tail
        found = re.search(_FAILED, said, re.MULTILINE)
        if found is not None:
            with contextlib.suppress(ValueError, KeyError):
                message = json.loads(found[0])['message']
                error.subject, error.reason = '{}', f'cannot start: {message}'
                return error
        return super()._explained(error, obstacle)  # type: ignore[return-value]

    def _port_hint(self) -> str:
        return ''  # the port is in the options

    def __str__(self) -> str:
        return f'the server at {self._place}'
