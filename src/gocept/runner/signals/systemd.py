"""What a program tells the service manager that has started it.

See sd_notify(3) and sd_watchdog_enabled(3). The keeper of a kernel uses this,
too, and has to start fast, so this imports little.
"""

import contextlib
import os
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import socket

_VARIABLES = 'NOTIFY_SOCKET', 'WATCHDOG_PID', 'WATCHDOG_USEC'


class ServiceManager:
    """Who listens at the address of ``NOTIFY_SOCKET``.

    ValueError if this is no address of a UNIX socket, as for the manager of a
    virtual machine (``vsock:``).
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(('/', '@')) or len(address) < 2:
            raise ValueError(
                f'NOTIFY_SOCKET is {address!r}, which is neither an absolute '
                'path nor an abstract address (@NAME): the service manager is '
                'told nothing')
        self._address = ('\0' + address[1:] if address[0] == '@'
                         else address)
        self._socket: socket.socket | None = None

    def send(self, text: str) -> None:
        """Send assignments, one a line, and never wait.

        OSError if it cannot be done: BlockingIOError as long as the manager
        has many messages to read, or what connect(2) and send(2) say.
        """
        if self._socket is not None:
            try:
                self._send(self._socket, text)
                return
            except ConnectionError:  # it listens with a new socket, perhaps
                self.close()
        self._send(self._connect(), text)

    def _send(self, sock: 'socket.socket', text: str) -> None:
        sock.send(text.encode(errors='replace'))

    def _connect(self) -> 'socket.socket':
        # Once, since to look up a path may take its time.
        import socket  # the command that starts a kernel needs none
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            sock.setblocking(False)
            sock.connect(self._address)
            undo.pop_all()
        self._socket = sock
        return sock

    def close(self) -> None:
        """Close the socket; `send` opens another one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Wishes(NamedTuple):
    """What the variables of a service say."""

    address: str
    """Where to tell; '': nowhere."""

    watchdog: float | None
    """Seconds after which a silent service is killed, or None."""


@contextlib.contextmanager
def taken_variables(environ: MutableMapping[str, str]) -> Iterator[Wishes]:
    """Remove them in the block, as they are for no child of the service.

    A watchdog that waits for another process is None.
    """
    before = {name: environ.pop(name) for name in _VARIABLES
              if name in environ}
    try:
        yield Wishes(before.get('NOTIFY_SOCKET', ''), _watchdog(before))
    finally:
        for name, value in before.items():
            environ.setdefault(name, value)


def _watchdog(variables: MutableMapping[str, str]) -> float | None:
    pid = variables.get('WATCHDOG_PID', '')
    micros = variables.get('WATCHDOG_USEC', '')
    if pid not in ('', str(os.getpid())) or not (
            micros.isascii() and micros.isdecimal()):
        return None
    return int(micros) / 1_000_000 or None
