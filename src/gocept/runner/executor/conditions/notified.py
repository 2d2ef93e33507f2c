"""The condition that a child notifies us when it is ready."""

import contextlib
import os
import secrets
import socket
import struct
from collections.abc import Sequence

from gocept.runner.channel import PipeChannel
from gocept.runner.errors import EndpointClosedException
from gocept.runner.executor.conditions.base import Check, Condition
from gocept.runner.process import procfs
from gocept.runner.process.launch import let_all_open
from gocept.runner.waits.source import Source
from gocept.runner.waits.standard import fill_standard


class notified(Condition):
    """That the child says that it is ready, in one of two ways.

    The child writes a newline to a descriptor, as programs do under s6; see
    https://skarnet.org/software/s6/notifywhenup.html. ``NOTIFY_FD`` in its
    environment is the number of the descriptor, which also replaces
    ``{notify_fd}`` in its command. Or the child sends ``READY=1`` to the
    socket that ``NOTIFY_SOCKET`` names; see sd_notify(3). From another network
    namespace, only the descriptor can be reached.
    """

    def check(self) -> Check:
        return _NotifiedCheck()

    def for_found(self) -> None:
        return None


Message = tuple[bytes, int, int]
"""The text, and the process and the user who have sent it."""

_MOST_MESSAGES = 64  # in one look, as others may go on sending them


class _NotifiedCheck(Check):

    awaited = 'its notification'

    said_by_child = True

    def __init__(self) -> None:
        self._told = self._silent = False
        self._users = {0, os.getuid()}
        fill_standard()  # the child gets the pipe under the same number
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            name = f'gocept.runner.{secrets.token_hex(8)}'
            sock.bind(f'\0{name}')
            self._pipe = PipeChannel(*os.pipe())
            let_all_open(self._pipe.sink_fd)
            undo.pop_all()
        self._messages = _Messages(sock)
        self.variables = {'NOTIFY_SOCKET': f'@{name}',
                          'NOTIFY_FD': str(self._pipe.sink_fd)}
        self.pass_fds = [self._pipe.sink_fd]

    def _watch(self) -> None:
        self._pipe.write_eof()  # that end is the child's now
        self.poller.register(self._pipe, self._take)
        self.poller.register(self._messages, self._hear)

    def _take(self, data: bytes, channel: PipeChannel) -> None:
        self._told = self._told or b'\n' in data
        self._silent = not data
        self.poller.wakeup()

    def _hear(self, message: Message, source: Source) -> None:
        data, pid, uid = message
        if b'READY=1' not in data.split(b'\n'):
            return
        with contextlib.suppress(OSError):  # a child may change its user
            user = os.stat(procfs.path(self.process.pid)).st_uid
            # The number of a child that was reaped may be another process's.
            if self.process.returncode is None:
                self._users.add(user)
        # The user of a child that was reaped is not known any more.
        if uid in self._users or pid == self.process.pid:
            self._told = True
            self.poller.wakeup()
        else:
            self.seen = f'a notification by user {uid} was ignored'

    def holds(self) -> bool:
        if not self._told:  # the child may have ended after it said so
            with contextlib.suppress(EndpointClosedException):
                self._told = b'\n' in self._pipe.read()
            for _ in range(_MOST_MESSAGES):
                messages = self._messages.collect()[0]
                if not messages:
                    break
                self._hear(messages[0], self._messages)
        return self._told

    @property
    def hopeless(self) -> str:
        if (self._silent and not self.holds()
                and self.process.poll() is not None):
            return 'has not said that it is ready'
        return ''

    def close(self) -> None:
        self._pipe.close()
        self._messages.close()


class _Messages(Source):
    """The messages that a socket receives."""

    _CREDENTIALS = struct.Struct('3i')  # see SCM_CREDENTIALS in unix(7)

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        return self._socket.fileno()

    def collect(self) -> tuple[Sequence[Message], bool]:
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
        if self._socket.fileno() >= 0:
            self._tell_closing(self._socket.fileno())
            self._socket.close()
