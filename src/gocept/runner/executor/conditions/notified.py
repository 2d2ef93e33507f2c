"""The condition that a child says itself that it is ready."""

import contextlib
import os
import secrets
import socket
import struct
from collections.abc import Sequence
from typing import Any

from gocept.runner.channel import PipeChannel
from gocept.runner.errors import EndpointClosedException
from gocept.runner.executor.conditions.base import Check, Condition
from gocept.runner.waits.source import Source


class notified(Condition):
    """That the child says so itself, in one of two ways.

    It writes a newline to the descriptor that ``NOTIFY_FD`` names in its
    environment, and ``{notify_fd}`` in its command, as programs do under s6;
    see https://skarnet.org/software/s6/notifywhenup.html. Or it sends
    ``READY=1`` to the socket that ``NOTIFY_SOCKET`` names; see sd_notify(3).
    """

    def check(self) -> Check:
        """See `ICondition`."""
        return _NotifiedCheck()


_MOST_MESSAGES = 64  # in one look, as somebody may send them for ever


class _NotifiedCheck(Check):

    awaited = 'its notification'

    said_by_child = True

    def __init__(self) -> None:
        self._told = False
        self._silent = False
        self._users = {0, os.getuid()}
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            name = f'gocept.runner.{secrets.token_hex(8)}'
            sock.bind(f'\0{name}')
            read, self._write = os.pipe()
            undo.pop_all()
        self._messages = _Messages(sock)
        self._pipe = PipeChannel(read, None)
        self.variables = {'NOTIFY_SOCKET': f'@{name}',
                          'NOTIFY_FD': str(self._write)}
        self.pass_fds = [self._write]

    def _watch(self) -> None:
        self._close_write()
        self.poller.register(self._pipe, self._take)
        self.poller.register(self._messages, self._hear)

    def _take(self, data: bytes, channel: Any) -> None:
        self._told = self._told or b'\n' in data
        self._silent = not data
        self.poller.wakeup()

    def _hear(self, message: tuple[bytes, int, int], source: Any) -> None:
        data, pid, uid = message
        if b'READY=1' in data.split(b'\n'):
            self._look_up_user()
            # The child itself may have been reaped meanwhile.
            if uid in self._users or pid == self.process.pid:
                self._told = True
                self.poller.wakeup()
            else:
                self.seen = f'ignored the one of user {uid}'

    def _look_up_user(self) -> None:
        """Take in the user of the child, who may change."""
        with contextlib.suppress(OSError):
            user = os.stat(f'/proc/{self.process.pid}').st_uid
            if self.process.returncode is None:  # or else it may be another's
                self._users.add(user)

    def holds(self) -> bool:
        """See `Check`."""
        if not self._told:  # it may have said so before it ended
            with contextlib.suppress(EndpointClosedException):
                self._told = b'\n' in self._pipe.read()
            for _ in range(_MOST_MESSAGES):
                messages = self._messages.collect()[0]
                if not messages:
                    break
                self._hear(messages[0], None)
        return self._told

    @property
    def hopeless(self) -> str:
        """See `Check`."""
        if (self._silent and not self.holds()
                and self.process.poll() is not None):
            return 'has not said that it is ready'
        return ''

    def _close_write(self) -> None:
        if self._write >= 0:
            os.close(self._write)
            self._write = -1

    def close(self) -> None:
        """See `Check`."""
        self._close_write()
        self._pipe.close()
        self._messages.close()


class _Messages(Source):
    """The messages of a socket, each with the process and the user who
    have sent it."""

    _CREDENTIALS = struct.Struct('3i')  # see SCM_CREDENTIALS in unix(7)

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        """See `Source`."""
        return self._socket.fileno()

    def collect(self) -> tuple[Sequence[Any], bool]:
        """See `Source`."""
        try:
            data, controls, _, _ = self._socket.recvmsg(
                4096, socket.CMSG_SPACE(self._CREDENTIALS.size))
        except OSError:
            return (), self._socket.fileno() < 0
        for level, kind, content in controls:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                pid, uid, _ = self._CREDENTIALS.unpack(content)
                return ((data, pid, uid),), False
        return (), False

    def close(self) -> None:
        """Receive no more."""
        if self._socket.fileno() >= 0:
            self._tell_closing(self._socket.fileno())
            self._socket.close()
