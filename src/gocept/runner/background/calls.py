"""A server is started, called and ended: each call connects of its own."""

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, NotRequired, TypedDict, Unpack

import zope.interface

from gocept.runner.background.address import require_positive
from gocept.runner.background.answers import Ending
from gocept.runner.background.client import HOST, PORT, Client
from gocept.runner.background.session import INIT_GOES_ON
from gocept.runner.errors import (
    BackgroundError,
    BackgroundTimeout,
    NobodyListens,
    ServerOccupied,
)
from gocept.runner.interfaces import IExecute, IInitialize, ITerminate
from gocept.runner.waits.deadline import NEVER, Deadline

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from gocept.runner.background.tls import TLS


class ClientOptions(TypedDict):
    """What a client may be given; see `IClient`."""

    tls: 'NotRequired[TLS | None]'
    connect_timeout: NotRequired[float]
    heartbeat: NotRequired[float | None]
    by_value: 'NotRequired[Sequence[ModuleType]]'
    max_message: NotRequired[int]
    retry: NotRequired[bool]


_START = 30.0
"""Seconds for the start of a server, and to connect, without a `timeout`."""

_LEAST = 0.001  # seconds, as 0 is no timeout

_OCCUPIED = 3
"""How often somebody may be faster, but not be there."""

_OF_CLIENTS = ClientOptions.__annotations__.keys()

_OF_BOTH = ('tls', 'max_message')

_NAMES = ('init_task', 'exec_task', 'exit_task', 'host', 'port', 'token')


def initialize(*args: object, timeout: float | None = None, start: bool = True,
               **options: object) -> object:
    """Start a server where none listens, give it tasks, and run its init task.

    ``initialize(init_task, exec_task, exit_task=None, host='127.0.0.1',
    port=54321, token=None, *, timeout=None, start=True, ...)``, or
    ``initialize(host, port, init_task, exec_task, exit_task)``. Other options
    are those of `Client` and `Server`.

    * ``init_task()`` or ``init_task(client_socket)`` returns the state, a dict
    * ``exec_task(client_socket, state, exec_args)`` returns the next state
    * ``exit_task(client_socket, state, exit_args)``

    A task answers by ``respond(client_socket, value)``. Returns ``{'message':
    'Initialization successful.'}`` or ``{'message': 'Already initialized.'}``:
    then the server goes on with its tasks and its state.

    `timeout`: seconds for all; None: 30 for the start and to connect, and no
    limit for the init task. RemoteTaskError if it fails, BackgroundTimeout,
    ServerNotStarted, ServerRefused, ServerNotRunning (with ``start=False``).
    All derive from BackgroundError. More: `gocept.runner.interfaces`,
    IInitialize.
    """
    found = dict(zip(_order(args), args, strict=False))
    for name in _NAMES:
        if name in options:
            if name in found:
                raise TypeError(f'initialize() got {name!r} twice')
            found[name] = options.pop(name)
    if 'init_task' not in found or 'exec_task' not in found:
        raise TypeError('initialize() needs init_task and exec_task')
    tasks = [found.pop(name, None) for name in _NAMES[:3]]
    if timeout is not None:
        require_positive(timeout=timeout)
    deadline = NEVER if timeout is None else Deadline(timeout)
    occupied = 0
    place = {'host': HOST, 'port': PORT, **found}
    mine = {name: options[name] for name in _OF_CLIENTS & options.keys()}
    # One that is about to be ready may be slow.
    mine.setdefault('connect_timeout', timeout or _START)
    others = {name: value for name, value in options.items()
              if name not in mine or name in _OF_BOTH}
    with _client(place | mine) as client:
        while True:
            left = None if timeout is None else max(deadline.left(), _LEAST)
            try:
                return client.initialize(*tasks, timeout=left)
            except BackgroundTimeout as error:
                if not client.connected:
                    raise
                raise BackgroundTimeout(
                    f'the server at {client.address} is not initialized after '
                    f'{deadline}: {INIT_GOES_ON}') from error.__cause__
            except (NobodyListens, Ending) as error:
                if not start or not client.address.is_local():
                    raise
                if isinstance(error, Ending):  # another one follows it
                    client.wait_for_end(deadline)
                    continue
                if timeout is not None and deadline.passed:
                    raise BackgroundTimeout(
                        f'no server at {client.address} was ready in '
                        f'{deadline}') from None
            try:
                _start(client, place | others, left)
            except ServerOccupied:
                # Somebody was faster. If that is no server, the next attempt
                # to connect says so, unless nobody listens there.
                occupied += 1
                if occupied == _OCCUPIED:
                    raise


def _order(args: tuple[object, ...]) -> tuple[str, ...]:
    """What the arguments without a name are: there are two forms."""
    if len(args) > len(_NAMES):
        raise TypeError(
            f'initialize() takes {len(_NAMES)} arguments, but {len(args)} '
            'were given; name the options')
    if args and isinstance(args[0], str):
        return (*_NAMES[3:5], *_NAMES[:3], _NAMES[5])
    return _NAMES


def _client(options: Mapping[str, object]) -> Client:
    return Client(**options)  # type: ignore[arg-type]


def _start(client: Client, options: Mapping[str, object],
           timeout: float | None) -> None:
    if sys.platform != 'linux' or not hasattr(os, 'fork'):
        raise BackgroundError(
            f'no server listens at {client.address}, and none can be started '
            'here, as servers need Linux 4.18 or later: start one on a Linux '
            'machine with "gocept-runner server", and give its host= and '
            'port=')
    from gocept.runner.background.server import Server
    server = Server(**options)  # type: ignore[arg-type]
    server.run_background(timeout or _START)


def execute(exec_args: object, await_response: bool = False, host: str = HOST,
            port: int = PORT, token: str | None = None, *,
            timeout: float | None = None,
            **options: Unpack[ClientOptions]) -> object:
    """Have a server run its exec task, on a connection of its own.

    Returns ``{'message': "Received 'EXEC'"}`` on receipt, or what the task
    responds with ``await_response=True``. `timeout`: seconds, None for no
    limit. `options` are those of `Client`, whose `execute` says which errors
    there are. More: `gocept.runner.interfaces`, IExecute.
    """
    with Client(host, port, token, timeout=timeout, **options) as client:
        return client.execute(exec_args, await_response)


def terminate(exit_args: object = None, await_response: bool = False,
              host: str = HOST, port: int = PORT, token: str | None = None, *,
              timeout: float | None = None,
              **options: Unpack[ClientOptions]) -> object:
    """Have a server run its exit task and end, on a connection of its own.

    `exit_args` are for the exit task; None stands for ``{}``. Returns
    ``{'message': "Received 'EXIT'"}`` when the port is free, or what the exit
    task responds with ``await_response=True``. `timeout`: seconds, None for no
    limit. ServerNotRunning if nobody listens there. More:
    `gocept.runner.interfaces`, ITerminate.
    """
    with Client(host, port, token, timeout=timeout, **options) as client:
        return client.terminate(exit_args, await_response)


zope.interface.directlyProvides(initialize, IInitialize)
zope.interface.directlyProvides(execute, IExecute)
zope.interface.directlyProvides(terminate, ITerminate)
