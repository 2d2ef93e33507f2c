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
from gocept.runner.executor.capture import Capture
from gocept.runner.executor.condition import Check, Condition
from gocept.runner.poller import Poller
from gocept.runner.process import Process
from gocept.runner.source import Source
from gocept.runner.waiting import Deadline


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


class _NotifiedCheck(Check):

    awaited = 'its notification'

    said_by_child = True

    def __init__(self) -> None:
        self._process: Process | None = None
        self._told = False
        self._ended = False
        read, self._write = os.pipe()
        self._pipe = PipeChannel(read, None)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._messages = _Messages(self._socket)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            name = f'gocept.runner.{secrets.token_hex(8)}'
            self._socket.bind(f'\0{name}')
        except BaseException:
            self.close()
            raise
        self.variables = {'NOTIFY_SOCKET': f'@{name}',
                          'NOTIFY_FD': str(self._write)}
        self.pass_fds = [self._write]

    def begin(self, process: Process, captures: Sequence[Capture],
              poller: Poller, deadline: Deadline) -> None:
        """See `Check`."""
        super().begin(process, captures, poller, deadline)
        self._process = process
        self._close_write()
        poller.register(self._pipe, self._take)
        poller.register(self._messages, self._hear)

    def _take(self, data: bytes, channel: Any) -> None:
        self._told = self._told or b'\n' in data
        self._ended = not data
        self.poller.wakeup()

    def _hear(self, message: tuple[bytes, int], source: Any) -> None:
        data, uid = message
        if b'READY=1' in data.split(b'\n'):
            if uid in (0, os.getuid(), self._uid()):
                self._told = True
                self.poller.wakeup()
            else:
                self.seen = f'ignored the one of user {uid}'

    def _uid(self) -> int:
        assert self._process is not None
        with contextlib.suppress(OSError):
            return os.stat(f'/proc/{self._process.pid}').st_uid
        return os.getuid()

    def holds(self) -> bool:
        """See `Check`."""
        if not self._told:  # it may have said so before it ended
            with contextlib.suppress(EndpointClosedException):
                self._told = b'\n' in self._pipe.read()
            for message in self._messages.collect()[0]:
                self._hear(message, None)
        return self._told

    @property
    def hopeless(self) -> str:
        """See `Check`."""
        if (self._process is not None and self._process.poll() is not None
                and self._ended):
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
    """The messages of a socket, each with the user who has sent it."""

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
                _, uid, _ = self._CREDENTIALS.unpack(content)
                return ((data, uid),), False
        return (), False

    def close(self) -> None:
        """Receive no more."""
        if self._socket.fileno() >= 0:
            self._tell_closing(self._socket.fileno())
            self._socket.close()
