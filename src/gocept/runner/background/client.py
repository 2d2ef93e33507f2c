"""A client of a background server.

Nothing here needs a POSIX system. There is no thread: whoever waits for an
answer receives those of others as well.
"""

import functools
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Self, cast

import zope.interface

from gocept.runner.background.address import Address, require_positive
from gocept.runner.background.frames import (
    AWAIT,
    EXEC,
    EXIT,
    INIT,
    LONGEST,
    STATUS,
)
from gocept.runner.background.pending import Pending, Timeout
from gocept.runner.background.session import Session
from gocept.runner.background.values import encode
from gocept.runner.errors import BackgroundError
from gocept.runner.interfaces import IClient
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.modules import module_path

if TYPE_CHECKING:
    from gocept.runner.background.tls import TLS

HOST = '127.0.0.1'
PORT = 54321


@zope.interface.implementer(IClient)
class Client:
    """A client of a background server; it connects when it is used first.

    * `host`, `port`: where the server is
    * `token`: None for that in GOCEPT_RUNNER_TOKEN, or else the one that a
      server of this user on this machine has made
    * `tls`: a `gocept.runner.background.tls.TLS`, for a server with TLS
    * `timeout`: seconds for each call in all; None for no limit
    * `connect_timeout`: seconds to connect
    * `heartbeat`: seconds of silence after which the server is asked for a
      sign of life; after three of them ConnectionLost. None: never
    * `by_value`: modules whose functions travel as code
    * `max_message`: bytes of a request or a response at most
    * `retry`: whether a request may run twice after a lost connection
    * `patient`: whether to wait for a server that is gone; None: where it is
      on another machine, or with `retry`

    It is a context manager, which closes it. Errors are BackgroundErrors;
    TypeError and ValueError for wrong options. More:
    `gocept.runner.interfaces`, IClient.
    """

    def __init__(self, host: str = HOST, port: int = PORT,
                 token: str | None = None, *, tls: 'TLS | None' = None,
                 timeout: float | None = None,
                 connect_timeout: float = 10,
                 heartbeat: float | None = 10,
                 by_value: Sequence[ModuleType] = (),
                 max_message: int = LONGEST, retry: bool = False,
                 status_key: bytes | None = None,
                 patient: bool | None = None) -> None:
        self.address = Address(host, port, token, tls, status_key)
        if patient is None:
            patient = retry or not self.address.is_loopback()
        require_positive(max_message=max_message,
                         connect_timeout=connect_timeout)
        if timeout is not None:
            require_positive(timeout=timeout)
        if heartbeat is not None:
            require_positive(heartbeat=heartbeat)
        for each in by_value:
            if not isinstance(each, ModuleType):
                raise TypeError(f'by_value has modules, and not {each!r}')
        self._open = functools.partial(
            Session, self.address, timeout=timeout,
            connect_timeout=connect_timeout, heartbeat=heartbeat,
            max_message=max_message, retry=retry, patient=patient)
        self._session = self._open()
        self._call = self._session.call
        self._by_value = tuple(by_value)
        self._max_message = max_message

    def __repr__(self) -> str:
        return f'<client of the server at {self.address}>'

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._session.connected_fd >= 0

    def close(self) -> None:
        """Close the connection. Requests without an answer get a
        ConnectionLost. Again does nothing."""
        self._session.close()

    # Requests

    def initialize(self, init_task: object, exec_task: object,
                   exit_task: object = None, *,
                   timeout: Timeout = ...) -> object:
        """Give the server its tasks, and have it run the init task.

        Returns ``{'message': 'Initialization successful.'}`` or ``{'message':
        'Already initialized.'}``. `timeout`: seconds, None for no limit, ...
        for that of the client. RemoteTaskError if the init task fails;
        ServerNotRunning: a client starts no server, as `initialize` of the
        package does. See `IClient`.
        """
        for name, task in ('init', init_task), ('exec', exec_task), (
                'exit', exit_task):
            if not callable(task) and (task is not None or name != 'exit'):
                raise TypeError(f'{name}_task is a function, and not {task!r}')
        # The server may find their modules by this path only, so it is read
        # before the tasks are decoded.
        tasks, flags = self._encode({
            'init': init_task, 'exec': exec_task, 'exit': exit_task})
        pieces, _ = encode({
            'path': module_path() if self.address.is_local() else None,
            'tasks': b''.join(tasks)})
        found = self._call(INIT, flags | AWAIT, pieces, timeout)
        self._session.is_new = False
        if isinstance(found, dict) and 'since' in found:
            from gocept.runner.background.initialization import warn
            warn(found, (init_task, exec_task, exit_task), self.address)
            return {'message': found['message']}
        return found

    def execute(self, exec_args: object, await_response: bool = False, *,
                timeout: Timeout = ...) -> object:
        """Have the server run the exec task with `exec_args`, any value.

        Returns ``{'message': "Received 'EXEC'"}`` when the request is in the
        queue; with `await_response`, a copy of what the task responds.
        `timeout` as for `initialize`. RemoteTaskError if the task fails,
        NoResponse, NotInitialized, BackgroundTimeout (it may still run),
        ServerNotRunning, ServerRefused, ServerBusy, ConnectionLost (it may
        have run). See `IClient`.
        """
        pieces, flags = self._encode(exec_args)
        return self._call(
            EXEC, flags | AWAIT if await_response else flags, pieces, timeout)

    def terminate(self, exit_args: object = None,
                  await_response: bool = False, *,
                  timeout: Timeout = ...) -> object:
        """Have the server run the exit task (None: with ``{}``), and end.

        Returns ``{'message': "Received 'EXIT'"}`` when the port is free; with
        `await_response`, what the exit task responds. `timeout` and errors as
        for `execute`. See `IClient`.
        """
        pieces, flags = self._encode({} if exit_args is None else exit_args)
        found = self._call(
            EXIT, flags | AWAIT if await_response else flags, pieces, timeout)
        self._session.hang_up()
        return found

    def submit(self, exec_args: object, await_response: bool = True, *,
               timeout: Timeout = ...) -> Pending:
        """Like `execute`, but return when the request is sent.

        The value is an `IPending`: `done`, and ``result(timeout=...)``, which
        returns or raises what `execute` would. See `IClient`.
        """
        pieces, flags = self._encode(exec_args)
        pending = self._session.pending(
            EXEC, flags | AWAIT if await_response else flags, pieces)
        self._session.send(pending, timeout)
        return pending

    def status(self, *, timeout: Timeout = ...) -> dict[str, object]:
        """A dict of what the server tells about itself, such as `pid`,
        `requests`, `running`, `waiting`, `initialized` and `last_error`. See
        `IClient`."""
        return cast(dict[str, object],
                    self._call(STATUS, AWAIT, [b''], timeout))

    def _encode(self, value: object) -> tuple[list[bytes], int]:
        found = encode(value, self._by_value)
        pieces = found[0]
        if len(pieces) > 1 or len(pieces[0]) > self._max_message:
            self._check_size(sum(map(len, pieces)))
        return found

    def _check_size(self, size: int) -> None:
        if size > self._max_message:
            raise BackgroundError(
                f'a value of {size} bytes is more than max_message='
                f'{self._max_message}: give the client, and the server, a '
                'larger one, or send it in parts')

    def wait_for_end(self, deadline: Deadline) -> None:
        """Wait until a server has ended that refuses requests, as it ends."""
        self._session.wait_for_end(deadline)

    # For whoever waits for several things

    def fileno(self) -> int:
        """The descriptor of the connection, which is made where needed. If it
        can be read, call `receive`. See `IClient`."""
        return self._session.fileno()

    def receive(self) -> Sequence[Pending]:
        """Take what has arrived, without waiting; a list of the `IPending`
        that are done by that. See `IClient`."""
        return self._session.receive()
