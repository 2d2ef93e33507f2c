"""The client of a kernel; see `IKernel`."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from operator import methodcaller
from typing import TYPE_CHECKING, Any

import zope.interface

from gocept.runner.errors import (
    KernelError,
    KernelNotRunning,
    KernelRefused,
    KernelSilent,
    WriteBufferFull,
)
from gocept.runner.interfaces import IKernel
from gocept.runner.kernel.client.address import Address, new_session
from gocept.runner.kernel.client.defaults import checked_place, defaults
from gocept.runner.kernel.client.requests import (
    Command,
    Limit,
    Text,
    checked_name,
    process_parameters,
    socket_parameters,
)
from gocept.runner.kernel.client.transport import Lost, Transport
from gocept.runner.kernel.wire.frames import Json
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.forks import Lock, tell_forks

if TYPE_CHECKING:
    from gocept.runner.kernel.child.child import KernelProcess
    from gocept.runner.kernel.client.reading import Begun, Position
    from gocept.runner.kernel.client.watcher import Watcher
    from gocept.runner.process.launch import Command as Program

_REPEATABLE = {'get', 'set', 'list-sockets', 'list-values', 'list-processes',
               'remove-values'}
"""What may be asked twice without harm, also of an old kernel."""

_STARTS = 5
"""How many kernels may end, one after another, while a client connects."""


@zope.interface.implementer(IKernel)
class Kernel(Closing):
    """See `IKernel`.

    The connection is None until it is needed, and while a watcher has it.
    """

    def __init__(self,
                 port_or_path: int | str | os.PathLike[str] | None = None,
                 connection_timeout: float | None = None, *,
                 user: str | int | None = None, autostart: bool = True,
                 log: str | os.PathLike[str] | None = None) -> None:
        place = (checked_place(port_or_path) if port_or_path
                 else defaults.place)
        if connection_timeout is not None and not isinstance(
                connection_timeout, int | float):
            raise TypeError('connection_timeout is a number of seconds, not '
                            f'{connection_timeout!r}')
        self.port_or_path = place
        self.connection_timeout = (
            connection_timeout or defaults.connection_timeout)
        self.autostart = autostart
        self._log = '' if log is None else os.path.abspath(log)
        self._address = Address(place, user)
        self._lock = Lock()
        self._transport: Transport | None = None
        self._is_open = True
        self._number = 0
        """Of the last request; no two on one connection have the same."""
        self._begin_session()
        tell_forks(self)
        with self._lock:
            self._transport = self.connect(Deadline(self.connection_timeout))

    def __repr__(self) -> str:
        return f'<Kernel {self._address}>'

    def fileno(self) -> int | None:
        """See `IKernel`."""
        transport = self._transport
        return None if transport is None else transport.fileno()

    def close(self) -> None:
        """See `IKernel`."""
        with self._lock:
            self._is_open = False
            transport, self._transport = self._transport, None
            if transport is not None:
                with contextlib.closing(transport), contextlib.suppress(Lost):
                    transport.end_session()
                self._begin_session()

    def after_fork(self) -> None:
        """In a child: the connection is the parent's."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        self._begin_session()

    def _begin_session(self) -> None:
        self._session = new_session()

    # Connections

    def connect(self, deadline: Deadline, *, autostart: bool | None = None,
                session: str = '') -> Transport:
        """Return a new connection; KernelError if that is not possible.

        It belongs to the session of our requests, if to no other one.
        """
        if autostart is None:
            autostart = self.autostart
        try:
            return self._address.connect(session or self._session, deadline)
        except KernelError:
            raise
        except (ConnectionRefusedError, FileNotFoundError) as error:
            if not autostart:
                place = self.port_or_path
                option = '--path' if isinstance(place, str) else '--port'
                raise KernelNotRunning(
                    f'no kernel listens at {self._address}; start one by '
                    f'"gocept-runner kernel start {option} {place}"'
                    ) from error
        except PermissionError as error:
            raise KernelRefused(
                f'the kernel at {self._address} belongs to another user: '
                f'{error}') from error
        except OSError as error:
            raise KernelError(f'the kernel at {self._address} cannot be '
                              f'reached: {error}') from error
        # Imported here, as most often there is a kernel.
        from gocept.runner.kernel.client.autostart import start
        from gocept.runner.kernel.keeper.options import Options
        for _ in range(_STARTS):
            start(Options(address=self.port_or_path, log=self._log),
                  deadline.left())
            try:
                return self.connect(deadline, autostart=False)
            except KernelSilent:
                raise
            except KernelNotRunning as error:  # one was there, and has ended
                ended = error
        raise ended

    def give_back(self, transport: Transport) -> None:
        """Use a connection again that a watcher does not need any more."""
        with self._lock:
            if self._transport is None and self._is_open:
                self._transport = transport
                return
        transport.close()

    def next_number(self) -> int:
        """The number of a request of a watcher."""
        with self._lock:
            self._number += 1
            return self._number

    # Requests

    def ask(self, op: str, params: Mapping[str, Json],
            data: bytes = b'') -> Json:
        """Return the answer; KernelError if there is none, or a refusal."""
        with self._lock:
            self._number += 1
            number = self._number
            try:
                transport = self._transport
                if transport is None or transport.closed:
                    transport = self._open()
                return transport.ask(number, op, params, data)
            except Lost as lost:
                # A function in this one would make each request dearer.
                return self._again(lost, op, methodcaller(
                    'ask', number, op, params, data))

    def _open(self, autostart: bool | None = None) -> Transport:
        """With the lock held."""
        self._transport = self.connect(
            Deadline(self.connection_timeout), autostart=autostart)
        self._is_open = True
        return self._transport

    def _again(self, lost: Lost, op: str, ask: Callable[[Transport], Json],
               ) -> Json:
        """Ask a successor, which knows what was done. With the lock held."""
        transport = self._transport
        deadline = Deadline(self.connection_timeout)
        while transport is None or transport.exact or op in _REPEATABLE:
            # Where the kernel has ended with all that it had, a new one must
            # not be started for a request that may have been done.
            transport = self._transport = self.connect(
                deadline, autostart=False)
            if not transport.exact and op not in _REPEATABLE:
                break
            try:
                return ask(transport)
            except Lost:
                if deadline.passed:
                    raise
        raise KernelError(f'{lost}; it is not known whether the request '
                          f'{op!r} was done') from lost

    # Sockets

    def list_sockets(self, *names: str) -> dict[str, dict[str, Json]]:
        """See `IKernel`."""
        return self._listed('list-sockets', names)

    def make_socket(self, name: str, host: str | None = None,
                    port: int | None = None, family: int | str | None = None,
                    socket_type: int | str | None = None,
                    backlog: int | None = None,
                    path: str | os.PathLike[str] | None = None,
                    umask: int | None = None, interface: str | None = None,
                    reuseport: bool | None = None) -> dict[str, Json]:
        """See `IKernel`."""
        made: dict[str, Json] = self.ask('make-socket', socket_parameters(
            name, host, port, family, socket_type, backlog, path, umask,
            interface, reuseport))
        return made

    def remove_sockets(self, *names: str) -> bool:
        """See `IKernel`."""
        _require_names(names, 'sockets')
        return self._removed('remove-sockets', names)

    # Values

    def list_values(self, *names: str) -> dict[str, str]:
        """See `IKernel`."""
        return self._listed('list-values', names)

    def set(self, name: str, value: str | None = None) -> None:
        """See `IKernel`."""
        if value is not None and not isinstance(value, str):
            raise TypeError(f'a value is text, not {value!r}: encode it, for '
                            'instance with json.dumps()')
        self.ask('set', {'name': checked_name(name, 'value'), 'value': value})

    def get(self, name: str) -> str | None:
        """See `IKernel`."""
        value: str | None = self.ask(
            'get', {'name': checked_name(name, 'value')})
        return value

    def remove_values(self, *names: str) -> bool:
        """See `IKernel`."""
        return self._removed('remove-values', names)

    # Processes

    def list_processes(self, *names: str) -> dict[str, dict[str, Json]]:
        """See `IKernel`."""
        return self._listed('list-processes', names)

    def make_process(
            self, name: str, executable: Text | None = None,
            args: Command | None = None,
            env: Mapping[str, Text | float] | None = None,
            working_dir: Text | None = None, uid: int | str | None = None,
            gid: int | str | None = None,
            rlimits: Mapping[str, Limit] | None = None,
            stdout: int | None = None, stderr: int | None = None,
            bufsize: int | str | None = None,
            watch_immediately: bool | None = None, *,
            stdin: int | None = None, overflow: str = 'drop',
            ) -> 'dict[str, Json] | Watcher':
        """See `IKernel`."""
        params = process_parameters(
            name, executable, args, env, working_dir, uid, gid, rlimits,
            stdout, stderr, bufsize, stdin, overflow)
        if watch_immediately:
            return self._make_and_watch(name, params)
        made: dict[str, Json] = self.ask('make-process', params)
        return made

    def remove_processes(self, *names: str) -> bool:
        """See `IKernel`."""
        _require_names(names, 'processes')
        return self._removed('remove-processes', names)

    def write_process(self, name: str, data: bytes, *, wait: bool = True,
                      ) -> None:
        """See `IKernel`."""
        params = {'name': checked_name(name, 'process'), 'wait': wait}
        if isinstance(data, str):
            raise TypeError('a process is written bytes, not text: encode '
                            f'{data[:40]!r}')
        content = bytes(memoryview(data))
        try:
            self.ask('write', params, content)
        except KernelError as error:
            if not wait and str(error).startswith('no room'):
                raise WriteBufferFull(str(error)) from None
            raise

    def close_stdin(self, name: str) -> None:
        """See `IKernel`."""
        self.ask('close-stdin', {'name': checked_name(name, 'process')})

    def check_process(self, command: 'Program', **keywords: Any) -> None:
        """See `IKernel`."""
        from gocept.runner.kernel.child.child import check_process
        check_process(command, **keywords)

    def open_process(self, key: str, command: 'Program', *,
                     make_way: Callable[[], object] = lambda: None,
                     on_change: str = 'keep', **keywords: Any,
                     ) -> 'KernelProcess':
        """See `IKernel`."""
        from gocept.runner.kernel.child.child import open_process
        return open_process(self, key, command, make_way=make_way,
                            on_change=on_change, **keywords)

    def has_process(self, key: str) -> bool:
        """See `IKernel`."""
        from gocept.runner.kernel.child.child import has_process
        return has_process(self, key)

    def ended_processes(self, key: str, **keywords: Any,
                        ) -> 'list[KernelProcess]':
        """See `IKernel`."""
        from gocept.runner.kernel.child.child import ended_processes
        return ended_processes(self, key, **keywords)

    def watch_processes(
            self, *names: str, after: 'Mapping[str, Position] | None' = None,
            transactional: bool = False) -> 'Watcher':
        """See `IKernel`."""
        from gocept.runner.kernel.client.watcher import Watcher
        with self._lock:
            transport, answer = self._begin_watch(names, after or {})
        return Watcher(self, transport, answer, after=after or {},
                       transactional=transactional)

    def follow_processes(
            self, *names: str, after: 'Mapping[str, Position] | None' = None,
            ) -> 'Watcher':
        """See `IKernel`."""
        from gocept.runner.kernel.client.watcher import Watcher
        with self._lock:
            transport, answer = self._begin_watch(
                names, after or {}, follow=True)
        return Watcher(self, transport, answer, after=after or {}, follow=True)

    def _begin_watch(self, names: Sequence[str],
                     after: 'Mapping[str, Position]', follow: bool = False,
                     ) -> 'tuple[Transport, Begun]':
        """The connection is the watcher's from now on. With the lock held."""
        self._number += 1
        number = self._number
        params: dict[str, Json] = {'names': names}
        if follow:
            params['follow'] = True
        # At 0 is also who has read nothing yet, wherever the kernel begins.
        params['after'] = {
            name: [life, offset]
            for name, (life, offset, *_) in after.items() if offset}
        try:
            transport = self._transport
            if transport is None or transport.closed:
                transport = self._open()
            answer = transport.watch(number, 'watch', params)
        except Lost as lost:
            answer = self._again(
                lost, 'watch',
                lambda transport: transport.watch(number, 'watch', params))
        return self._hand_over(), answer

    def _make_and_watch(self, name: str, params: dict[str, Json]) -> 'Watcher':
        from gocept.runner.kernel.client.watcher import Watcher
        with self._lock:
            self._number += 1
            number = self._number
            try:
                transport = self._transport
                if transport is None or transport.closed:
                    transport = self._open()
                made = transport.watch(
                    number, 'make-process', {**params, 'watch': True})
            except Lost as lost:
                # A successor answers again, but that does not watch.
                self._again(
                    lost, 'make-process', lambda transport: transport.ask(
                        number, 'make-process', params))
                transport, answer = self._begin_watch([name], {})
            else:
                transport = self._hand_over()
                answer = ({'processes': {name: made['life']}}
                          if transport.exact
                          else {'processes': {}, 'count': 1})
        return Watcher(self, transport, answer)

    def _hand_over(self) -> Transport:
        transport, self._transport = self._transport, None
        assert transport is not None
        return transport

    def _listed(self, op: str, names: Sequence[str]) -> dict[str, Json]:
        found: dict[str, Json] = self.ask(op, {'names': names})
        return found

    def _removed(self, op: str, names: Sequence[str]) -> bool:
        self.ask(op, {'names': names})
        return True

    # The kernel itself

    def exit_if_idle(self) -> bool:
        """See `IKernel`."""
        is_idle = self._end('exit-if-idle', {})
        if is_idle:
            self.close()
        return is_idle

    def _end(self, op: str, params: Mapping[str, Json]) -> bool:
        """Ask for its end; True as well if there is no kernel any more."""
        try:
            with self._lock:
                if self._transport is None or self._transport.closed:
                    self._open(autostart=False)
            return self.ask(op, params) is not False
        except KernelSilent:
            raise
        except KernelNotRunning:
            return True

    def status(self) -> dict[str, Json]:
        """See `IKernel`."""
        status: dict[str, Json] = self.ask('status', {})
        return status

    def stop(self, force: bool = False) -> None:
        """See `IKernel`."""
        self._end('stop', {'force': force})
        self.close()

    def upgrade(self) -> None:
        """See `IKernel`."""
        from gocept.runner.kernel.client.autostart import code
        from gocept.runner.kernel.daemon.version import VERSION
        before = self.status()
        self.ask('upgrade', {**code(), 'version': VERSION})
        # Who answers next has begun to serve.
        if self.status().get('failed_upgrades', 0) > before.get(
                'failed_upgrades', 0):
            raise KernelError(
                f'the new code does not start, so the old one goes on: the '
                f'log of the kernel at {self._address} says why')


def _require_names(names: Sequence[str], noun: str) -> None:
    """KernelError without names, which the daemon would take for all."""
    if not names:
        raise KernelError(f'name the {noun} to remove, or pass "*" if all of '
                          'them are meant')
