"""A server that runs tasks for clients."""

import contextlib
import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING

import gocept.runner.background.frames as frames
from gocept.runner.background import roster
from gocept.runner.background.address import (
    require_place,
    require_positive,
    serving,
)
from gocept.runner.background.handshake import STATUS_KEY, TOKEN
from gocept.runner.background.limits import Limits
from gocept.runner.background.queue import Request
from gocept.runner.background.tasks import Tasks
from gocept.runner.background.tokens import (
    VARIABLE,
    given_token,
    place_host,
)
from gocept.runner.background.wire import BACKLOG, Wire
from gocept.runner.errors import (
    BackgroundError,
    ServerInsecure,
    ServerNotStarted,
    ServerOccupied,
)
from gocept.runner.logs import Log
from gocept.runner.process import inheritance
from gocept.runner.signals.handlers import (
    TERMINATING,
    handling,
    restore_defaults,
)
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.forks import OneProcess
from gocept.runner.waits.standard import fill_standard

if TYPE_CHECKING:
    import ssl

    from gocept.runner.background.surroundings import Surroundings
    from gocept.runner.background.tls import TLS

log = Log('gocept.runner.background')

_LEVELS = 'DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL'

_LOOPS = frozenset(('asyncio', 'trio', 'twisted'))
"""What changes the descriptor that signals write to."""

_AT_ONCE = 0.1  # seconds

_FAREWELL = 5.0
"""Seconds in which clients take their answers when the server ends."""


class Server:
    """A background server: it runs Python tasks for clients. Linux only.

    * `host`, `port`: where it listens; '' for all addresses
    * `token`: what clients have to know; None for that in GOCEPT_RUNNER_TOKEN,
      or else, on this machine, one that the server makes and keeps for clients
      of the same user
    * `log_level`: DEBUG, INFO, WARNING, ERROR or CRITICAL; `log_file`: the
      path of a file for the log, and for what tasks print
    * `init_file`: the path of a Python file with init_task, exec_task and
      exit_task; `tasks`: in its place, names such as ``my.package:init``
    * `tls`: a `gocept.runner.background.tls.TLS`; `insecure`: whether other
      machines may connect without it
    * `max_message`, `queue_bytes`: bytes; `queue_size`: requests
    * `zope_conf`: a path; with it, tasks run in a transaction, as `principal`
      (an id) and with a `site` (a path from the root on)
    * `application`, `server_url`, `log_config`: what the options of these
      names say to a worker

    TypeError and ValueError for wrong options. More:
    `gocept.runner.interfaces`, IServer.
    """

    def __init__(self, host: str = '127.0.0.1', port: int = 54321,
                 token: str | None = None, log_level: str = 'INFO',
                 log_file: str | None = None, init_file: str | None = None, *,
                 tls: 'TLS | None' = None, insecure: bool = False,
                 max_message: int = Limits().max_message,
                 queue_size: int = Limits().queue_size,
                 queue_bytes: int = Limits().queue_bytes,
                 zope_conf: str | None = None,
                 principal: str | None = None,
                 site: str | None = None,
                 application: str | None = None,
                 server_url: str | None = None,
                 log_config: str | None = None,
                 tasks: Sequence[str | None] = ()) -> None:
        require_place(host, port)
        require_positive(max_message=max_message, queue_size=queue_size,
                         queue_bytes=queue_bytes)
        if log_level not in _LEVELS:
            raise ValueError(f'the log level is one of {", ".join(_LEVELS)}, '
                             f'and not {log_level!r}')
        if zope_conf is None and (principal or site):
            raise ValueError('a principal or a site needs zope_conf')
        if zope_conf is None and (application or server_url or log_config):
            raise ValueError('what is said of an application needs zope_conf')
        if tasks and init_file:
            raise ValueError('init_file and tasks exclude each other')
        self.host = host
        self.port = port
        self.tasks = tuple(tasks)
        self.log_level = log_level
        self.log_file = log_file and os.path.abspath(log_file)
        self.init_file = init_file and os.path.abspath(init_file)
        self.insecure = insecure
        self.limits = Limits(max_message, queue_size, queue_bytes)
        self.zope_conf = zope_conf and os.path.abspath(zope_conf)
        self.principal = principal
        self.site = site
        self.application = application
        self.server_url = server_url
        self.log_config = log_config and os.path.abspath(log_config)
        self._token = token
        self._tls = tls
        self._stop: Callable[[], None] | None = None
        self.requested = False  # to end
        self._place: roster.Place | None = None

    def run(self) -> None:
        """Be the server, in the main thread, until its end.

        ServerOccupied if somebody listens there; ServerInsecure;
        ServerNotStarted; exceptions of the `init_file`. See `IServer`.
        """
        fill_standard()  # before there is a log file
        self.check_log()
        with self.logging():
            self.serve(lambda: None)

    def run_background(self, timeout: float = 30) -> int:
        """Start the server in a process of its own, and return the pid.

        `timeout`: seconds until clients can connect; after these it is killed,
        and BackgroundTimeout is raised. ServerOccupied if somebody listens
        there (its `pid` says who); ServerInsecure; ServerNotStarted. See
        `IServer`.
        """
        require_positive(timeout=timeout)
        from gocept.runner.background import launch
        return launch.start(self.options(), timeout)

    def stop(self) -> None:
        """Have `run` return, from any thread; see `IServer`."""
        if self._stop is not None:
            self._stop()

    def options(self) -> dict[str, object]:
        """The arguments that make such a server, without tokens of the
        environment; all can be JSON."""
        return {
            'host': self.host, 'port': self.port,
            'token': given_token(self._token, os.environ),
            'log_level': self.log_level, 'log_file': self.log_file,
            'init_file': self.init_file,
            'tls': self._tls and [*map(os.path.abspath, self._tls)],
            'insecure': self.insecure, 'max_message': self.limits.max_message,
            'queue_size': self.limits.queue_size,
            'queue_bytes': self.limits.queue_bytes,
            'zope_conf': self.zope_conf, 'principal': self.principal,
            'site': self.site, 'application': self.application,
            'server_url': self.server_url, 'log_config': self.log_config,
            'tasks': self.tasks}

    def check_log(self) -> None:
        """ServerNotStarted if the log file cannot be written, or may block."""
        try:
            inheritance.check_log(self.log_file or '')
        except OSError as error:
            raise ServerNotStarted(str(error)) from error

    def logging(self) -> contextlib.AbstractContextManager[None]:
        """Have the log go to its file, or to standard error.

        Without a file, a zope.conf says itself where it goes.
        """
        if self.zope_conf and not self.log_file:
            return contextlib.nullcontext()
        from gocept.runner.background.logfile import logging_to
        return logging_to(self.log_file, self.log_level)

    # From the start to the end

    def serve(self, ready: Callable[[], object]) -> None:
        """Serve until the end; call `ready` when clients can connect.

        For `run`, and for the program of a server in the background.
        """
        if self._stop is not None:
            raise RuntimeError(f'{self!r} runs already')
        with contextlib.ExitStack() as stack:
            sock, token, entry = self._take_place(stack)
            stack.enter_context(serving(self.host, self.port))
            undo = stack.enter_context(contextlib.ExitStack())
            tasks = Tasks(self._surroundings(undo), self.limits.max_message)
            if self.init_file or self.tasks:
                self._define(tasks)

            def report() -> Mapping[str, object]:
                return {
                    'host': entry.host, 'port': entry.port, 'pid': entry.pid,
                    'started': entry.started,
                    'python': [*sys.version_info[:3]],
                    'log_file': self.log_file, 'clients': len(wire),
                    'waiting': len(wire.queue), **tasks.status()}
            wire = Wire(
                sock, {TOKEN: token.encode(),
                       STATUS_KEY: bytes.fromhex(entry.status_key)},
                self.limits, self._context(), report)
            stack.callback(wire.close)
            keep = stack.enter_context(self._stoppable(wire))
            log.info('A server listens at %s', self._address)
            ready()
            confirm = self._work(wire, tasks, keep)
            # The next server can open the database as soon as it can listen.
            # Until then the stand-in serves the clients.
            undo.close()
            wire.close_listener()
            self._leave_roster()
            if confirm is not None:
                confirm()
            self._refuse_all(wire)
            wire.close(Deadline(_FAREWELL))
        log.info('The server at %s has ended', self._address)

    def _define(self, tasks: Tasks) -> None:
        """Find the tasks that no client has to send, and begin."""
        from gocept.runner.background import initfile
        try:
            with OneProcess():
                if self.init_file:
                    tasks.define(initfile.definition(self.init_file))
                if self.tasks:
                    tasks.define(initfile.named(self.tasks))
        except SystemExit as error:
            raise ServerNotStarted(
                f'{self.init_file or ", ".join(filter(None, self.tasks))} '
                f'raises SystemExit({error}), so there is no server'
                ) from error

    def _take_place(self, stack: contextlib.ExitStack,
                    ) -> tuple[socket.socket, str, roster.Entry]:
        """Listen, and be in the roster; the socket, the token, the entry.

        ServerOccupied, ServerInsecure, ServerNotStarted.
        """
        # It is known still if this server runs once more.
        token = self._token = given_token(self._token, os.environ)
        os.environ.pop(VARIABLE, None)
        try:
            sock = self._bind()
            stack.callback(sock.close)
            is_open = not _is_loopback(sock.getsockname()[0])
            if is_open:
                self._require_safe(token)
            if token is None:
                token = roster.own_token(self.host, self.port)
            # Who finds the port taken is to learn by whom.
            with roster.alone():
                sock.listen(BACKLOG)
                entry = roster.new_entry(
                    self.host, self.port, self._tls is not None)
                stack.callback(self._leave_roster)
                try:
                    self._place = roster.Place(entry)
                except (OSError, BackgroundError) as error:
                    log.warning('The server at %s is in no list of servers: '
                                '%s', self._address, error)
        except UnicodeError as error:  # of a name that no host can have
            raise ServerNotStarted(
                f'no server can be started at {self._address}: {error}'
                ) from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                with roster.alone():
                    pass  # who has just begun to listen is in the roster now
                found = roster.server_at(self.host, self.port)
                raise ServerOccupied(
                    f'{self._address} is taken by '
                    + (f'a background server of this user, process '
                       f'{found.pid}: terminate it, or use another port'
                       if found else 'another program, or by a server with '
                       'another XDG_STATE_HOME: use another port'),
                    found.pid if found else 0) from error
            raise ServerNotStarted(
                f'no server can be started at {self._address}: '
                f'{error.strerror or error}'
                + (f' ({error.filename})' if error.filename else '')
                ) from error
        return sock, token, entry

    def _leave_roster(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            place.close()

    def _bind(self) -> socket.socket:
        family, kind, number, _, address = socket.getaddrinfo(
            place_host(self.host) or None, self.port, type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, kind, number)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except BaseException:
            sock.close()
            raise
        return sock

    def _require_safe(self, token: str | None) -> None:
        """ServerInsecure on an address that other machines can reach."""
        if not token:
            raise ServerInsecure(
                f'a server at {self._address}, where other machines may '
                f'connect, needs a token: give token=, or set {VARIABLE}')
        if self._tls is None and not self.insecure:
            raise ServerInsecure(
                f'a server at {self._address}, where other machines may '
                'connect, needs TLS: give tls=, or insecure=True if nobody '
                'else can read or change what this network carries')

    def _context(self) -> 'ssl.SSLContext | None':
        if self._tls is None:
            return None
        from gocept.runner.background.tls import server_context
        return server_context(*self._tls)

    def _surroundings(self, stack: contextlib.ExitStack,
                      ) -> 'Surroundings | None':
        if self.zope_conf is None:
            return None
        from gocept.runner.background.surroundings import surroundings
        around = surroundings(
            self.zope_conf, self.principal, self.site,
            (self.application, self.server_url, self.log_config))
        around.start()
        stack.callback(around.close)
        return around

    @contextlib.contextmanager
    def _stoppable(self, wire: Wire) -> Iterator[Callable[[], None]]:
        """Have signals, and `stop`, end the server; yields what is called
        after each task, as a task may have changed what this needs."""
        def end(signum: int, frame: FrameType | None) -> None:
            restore_defaults()
            self.requested = True
            wire.stop()
        is_main = threading.current_thread() is threading.main_thread()
        self.requested = False

        def stop() -> None:
            self.requested = True
            wire.stop()
        self._stop = stop
        try:
            with handling(dict.fromkeys(TERMINATING, end)) as keep:
                if not is_main:
                    yield lambda: None
                    return
                # A signal may come after the last bytecode and before the
                # system call that waits.
                before = signal.set_wakeup_fd(
                    wire.wakeup_fd, warn_on_full_buffer=False)

                def restore() -> None:
                    keep(self)
                    # It takes two calls of the system.
                    if not sys.modules.keys().isdisjoint(_LOOPS):
                        signal.set_wakeup_fd(
                            wire.wakeup_fd, warn_on_full_buffer=False)
                try:
                    yield restore
                finally:
                    with contextlib.suppress(OSError, ValueError):
                        signal.set_wakeup_fd(before)
        finally:
            self._stop = None

    def _work(self, wire: Wire, tasks: Tasks, keep: Callable[[], None],
              ) -> Callable[[], None] | None:
        """Run tasks until the last one; what then tells its client.

        Before there are tasks, a request that nobody awaits is not confirmed
        on arrival, as it will be refused.
        """
        wire.confirms = tasks.initialized
        while (request := self._next(wire)) is not None:
            if request.kind == frames.EXIT:
                wire.queue.close()  # what comes during the task is refused
                confirm = tasks.exit(request)
                if confirm is not None:
                    return confirm
                wire.queue.reopen()
            else:
                tasks.handle(request)
                wire.confirms = tasks.initialized
            keep()
        log.info('The server at %s is told to end', self._address)
        self._refuse_all(wire)
        if tasks.initialized:
            tasks.exit(None)
        return None

    def _refuse_all(self, wire: Wire) -> None:
        refused = wire.refuse_all()
        if refused:
            log.warning('%d requests are not run, as the server at %s ends',
                        refused, self._address)

    def _next(self, wire: Wire) -> Request | None:
        """The next request. Meanwhile an alarm may ring that a task has left,
        whose handler raises something."""
        failed = 0.0
        while True:
            try:
                return wire.next()
            except BaseException:
                if time.monotonic() < failed + _AT_ONCE:  # it is the wire
                    raise
                failed = time.monotonic()
                log.exception('Something fails while no task runs, such as a '
                              'signal handler that a task has left behind')

    @property
    def _address(self) -> str:
        host = f'[{self.host}]' if ':' in self.host else self.host
        return f'{host}:{self.port}'

    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self._address}>'


def _is_loopback(address: str) -> bool:
    """Whether only this machine can reach a numeric address."""
    return (address.removeprefix('::ffff:').startswith('127.')
            or address == '::1')
