"""The daemon: it serves all clients and processes, in one thread.

It holds nothing alone that its successor needs: the keeper has the descriptors
and, in a memfd, the state.
"""

import gc
import os
import resource
import socket
import sys
import time
from typing import TYPE_CHECKING

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon.operations import Operations
from gocept.runner.kernel.daemon.output import check_output
from gocept.runner.kernel.daemon.processes import Processes
from gocept.runner.kernel.daemon.sockets import Sockets, restore_numbers
from gocept.runner.kernel.daemon.starts import Starts
from gocept.runner.kernel.daemon.state import State
from gocept.runner.kernel.daemon.version import VERSION
from gocept.runner.kernel.daemon.watching import Watches
from gocept.runner.kernel.keeper.link import Link, Outcome
from gocept.runner.kernel.keeper.options import Options
from gocept.runner.kernel.keeper.trial import Trial
from gocept.runner.kernel.wire.clients import Clients, Listener
from gocept.runner.kernel.wire.frames import Json
from gocept.runner.kernel.wire.limits import Limits
from gocept.runner.kernel.wire.peers import Peers
from gocept.runner.logs import Log
from gocept.runner.poller.poller import Poller
from gocept.runner.process.mounts import Mounts
from gocept.runner.process.reaper import Reaper

if TYPE_CHECKING:
    from gocept.runner.kernel.wire.conversation import Request

log = Log('gocept.runner.kernel')

_LISTEN = 'listen:'

_GARBAGE = 50_000, 20, 50  # fewer collections, which look at all processes


def run(table: dict[str, int], link: Link, options: Options) -> Outcome:
    """Serve; see `program.Daemon`."""
    gc.disable()  # a successor makes much, and no garbage
    return Daemon(table, link, options).serve()


def trial(table: dict[str, int], options: Options) -> str:
    """See whether this code can go on with the state; see `program.Daemon`.

    Returns the version of this code.
    """
    with State(os.dup(table['state'])):
        Limits(**options.limits)
        for key, fd in table.items():
            if key.startswith('ring:'):
                # No more than that: the daemon goes on to write there.
                check_output(fd)
    return VERSION


class Daemon:
    """What serves, from its start to its end."""

    def __init__(self, table: dict[str, int], link: Link, options: Options,
                 ) -> None:
        self._options = options
        self._link = link
        self._started = time.time()
        self._outcome: Outcome | None = None
        self._stopping = False
        self._idle_at = -1
        self._trial: Trial | None = None
        self._state = self._open_state(table)
        meta: Json = self._state.get('meta', 'kernel')
        if meta is None:
            meta = {'started': self._started, 'upgrades': 0}
            self._state.put('meta', 'kernel', meta)
        self._meta = meta
        limits = Limits(**options.limits)
        self._poller = Poller()
        self._mounts = Mounts()
        self._sockets = Sockets(
            self._state, link, self._mounts, limits.sockets)
        self._processes = Processes(
            self._state, link, self._poller, limits.memory)
        self._starts = Starts(self._processes, self._sockets, self._mounts,
                              link, _soft_limits(options))
        self._processes.recovery.on_end = gc.freeze
        self._watches = Watches()
        self._ends = Reaper(self._child_ended)
        self._operations = Operations(
            self._state, self._poller, limits, self._sockets, self._processes,
            self._starts, self._watches, self._ends)
        self._operations.plain |= {
            'status': self._status, 'stop': self._stop_asked,
            'exit-if-idle': self._exit_if_idle, 'upgrade': self._upgrade}
        self._peers = Peers(options.allow_users)
        self._clients = Clients(
            self._operations, limits, self._peers, VERSION)
        self._clients.on_empty = self._all_left
        self._operations.is_live = self._clients.is_live
        self._limits = limits
        self._listeners: list[Listener] = []

    def _open_state(self, table: dict[str, int]) -> State:
        """The state of the daemon before, or a new one.

        The sockets get the numbers again that they had there.
        """
        if 'state' not in table:
            state = State()
            self._link.hold({'state': state.fd})
        else:
            state = State(table['state'])
            restore_numbers(table, state, self._link)
            state.fd = table['state']
        state.on_replace = lambda fd: self._link.hold({'state': fd})
        return state

    def serve(self) -> Outcome:
        """Serve until the end."""
        poller = self._poller
        poller.register(self._link, self._told)
        poller.register(self._ends)
        poller.register(self._watches)
        self._sockets.adopt()
        self._processes.recover()
        self._starts.recover()
        for key in sorted(self._link.table):
            if key.startswith(_LISTEN):
                self._listen(self._link.table[key])
        self._link.ready()
        gc.freeze()
        gc.set_threshold(*_GARBAGE)
        gc.enable()
        self._ends.reap()  # of a time without a handler
        while self._outcome is None:
            poller.poll()
        self._close()
        return self._outcome

    def _listen(self, fd: int) -> None:
        listener = Listener(socket.socket(fileno=fd), self._clients)
        self._listeners.append(listener)
        self._poller.register(listener, lambda *client: None)

    def _over(self, outcome: Outcome) -> None:
        self._outcome = self._outcome or outcome
        self._poller.wakeup()

    def _close(self) -> None:
        """Close what is ours alone; what the keeper holds as well stays open.
        """
        self._clients.close()
        if self._trial is not None:
            self._trial.close()
        for listener in self._listeners:
            self._poller.unregister(listener)
            listener.socket.detach()
        self._starts.close()
        self._processes.close()
        self._ends.close()
        self._mounts.close()
        self._peers.close()
        self._poller.close()
        self._state.closed = True

    # Children

    def _child_ended(self, pid: int, status: int) -> None:
        process = self._processes.of_pid(pid)
        if process is not None:
            self._processes.ended(process, status)

    def _told(self, item: tuple[str, int, int], link: Link) -> None:
        """What the keeper says."""
        match item:
            case 'status', int(pid), int(code):
                process = self._processes.of_pid(pid)
                if process is not None:
                    self._processes.ended(process, code)
                elif self._starts.ended(pid, code):
                    return
                self._link.known(pid)
            case ('stop',):
                self._stop()
            case ('keeper died',):
                if not self._stopping:
                    self._over('become keeper')
            case _:
                log.warning('The keeper says %r, which this daemon does not '
                            'know', item)

    # The end

    def _stop_asked(self, request: 'Request') -> None:
        if not request.params.get('force') and not self._operations.is_idle:
            counts = ', '.join(
                f'{count} {one if count == 1 else many}'
                for one, many, count in (
                    ('socket', 'sockets', len(self._sockets)),
                    ('process', 'processes', len(self._processes.listed)),
                    ('value', 'values', len(self._state.items('value'))))
                if count)
            raise KernelError(
                f'the kernel is not idle: it has {counts}; remove them, or '
                'stop it by force, which lets the processes run on')
        request.answer(None)
        self._stop()

    def _stop(self) -> None:
        """No successor: let processes run on, and throw away what they say.
        """
        if self._stopping:
            return
        self._stopping = True
        for listener in self._listeners:
            self._poller.unregister(listener)
            listener.close()
        self._listeners = []
        self._link.stop()
        self._clients.close()
        self._sockets.close()
        self._state.on_replace = lambda fd: None  # nobody keeps it any more
        self._processes.recovery.look_at_all()
        for process in [*self._processes.all_of_them]:
            self._processes.remove(process)
            self._processes.input_over(process)
        self._processes.on_silence = lambda: self._over('ended')
        if self._processes.is_silent:
            self._over('ended')

    def _exit_if_idle(self, request: 'Request') -> None:
        if self._operations.is_idle:
            self._idle_at = self._clients.arrived
            request.answer(True)
        else:
            request.answer(False)

    def _all_left(self) -> None:
        """The last client has left: end if that was asked for."""
        if (self._clients.arrived == self._idle_at and not self._stopping
                and self._operations.is_idle):
            self._stop()

    def _upgrade(self, request: 'Request') -> None:
        if self._trial is not None:
            raise KernelError('an upgrade is under way: wait for it')
        config = {key: value for key, value in request.params.items()
                  if key in ('python', 'path')}

        def on_end(error: str) -> None:
            self._trial = None
            if self._stopping:
                error = 'the kernel was asked to end meanwhile'
            if error:
                request.fail(error)
                return
            meta = {**self._meta, 'upgrades': self._meta['upgrades'] + 1}
            try:
                self._state.put('meta', 'kernel', meta)
                self._link.upgrade(config)  # nothing may fail behind this
            except KernelError as failure:
                request.fail(str(failure))
                return
            self._meta = meta
            request.answer(None)
            self._over('ended')

        self._trial = Trial(self._poller, config, self._options,
                            self._link.table, on_end)

    # The status

    def _status(self, request: 'Request') -> None:
        self._ends.look()
        request.answer({**self._program(), **self._operations.status()})

    def _program(self) -> dict[str, Json]:
        return {
            'version': VERSION,
            'python': '.'.join(map(str, sys.version_info[:3])),
            'path': os.path.dirname(os.path.dirname(
                os.path.dirname(__file__))),
            'pid': os.getpid(),
            'keeper': self._link.keeper,
            'address': self._options.address,
            'started': self._started,
            'kernel_started': self._meta['started'],
            'deaths': self._link.deaths,
            'keeper_deaths': self._link.keeper_deaths,
            'upgrades': self._meta['upgrades'],
            'failed_upgrades': self._link.failed_upgrades,
            'clients': len(self._clients),
            # To ask for their names may take long.
            'allow_users': [*map(str, self._options.allow_users)],
            'limits': {name: getattr(self._limits, name)
                       for name in Limits.meanings()},
        }


def _soft_limits(options: Options) -> dict[int, int]:
    """The limits of children that differ from ours, which were raised."""
    limits: dict[int, int] = {}
    if any(options.open_files):
        limits[resource.RLIMIT_NOFILE] = options.open_files[0]
    if options.file_size != (-1, -1):
        limits[resource.RLIMIT_FSIZE] = options.file_size[0]
    return limits
