"""Where a kernel listens, and the way there."""

import os
import socket
import struct

from gocept.runner.errors import KernelError, KernelRefused, KernelSilent
from gocept.runner.kernel.client.frame_transport import FrameTransport
from gocept.runner.kernel.client.transport import (
    Lost,
    Transport,
    receive_prompt,
    shown,
)
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.standard import fill_standard
from gocept.runner.waits.unixpath import short_address

HOST = '127.0.0.1'

_TIME = struct.Struct('ll')  # see SO_SNDTIMEO in socket(7)

_SHORTEST = 0.001  # seconds, as 0 stands for no limit

_GREETINGS = 20
"""How many kernels may die, one after another, before they have greeted."""


def new_session() -> str:
    """What the requests of one connection, and of its successors, share.

    The kernel knows the last answer of each session. So of the requests of
    one session, one at a time can wait for its answer.
    """
    return os.urandom(16).hex()


class Address:
    """A port of the loopback interface, or the path of a Unix socket."""

    def __init__(self, place: int | str, user: str | int | None = None,
                 ) -> None:
        self.place = place
        self._user = None if user is None else _uid(user)

    def __str__(self) -> str:
        return (self.place if isinstance(self.place, str)
                else f'{HOST}:{self.place}')

    def connect(self, session: str, deadline: Deadline) -> Transport:
        """Return a connection, with the best framing that the kernel knows.

        ConnectionRefusedError or FileNotFoundError if nobody listens;
        KernelError.
        """
        for _ in range(_GREETINGS):
            try:
                return self._connect(session, deadline)
            except Lost as error:  # it died; its successor has our socket
                lost = error
                if deadline.passed:
                    break
        raise lost

    def _connect(self, session: str, deadline: Deadline) -> Transport:
        sock = self._dial(deadline)
        try:
            # Before anything is sent: so who is refused is told why.
            receive_prompt(sock, self, deadline)
            self._check_owner(sock)
            try:
                sock.sendall(f'frames 1 {session}\n'.encode('ascii'))
            except OSError as error:
                raise Lost(f'the kernel at {self} has closed the connection: '
                           f'{error}') from error
            said = receive_prompt(sock, self, deadline)
            if said.startswith(b'frames '):
                return FrameTransport(sock, self)
            if not said.startswith(b'Error: '):
                raise KernelSilent(f'what listens at {self} is no kernel: it '
                                   f'said {shown(said)}')
            # Imported here, as there are few old kernels.
            from gocept.runner.kernel.client.text_transport import (
                TextTransport,
            )
            return TextTransport(sock, self)
        except BaseException:
            sock.close()
            raise

    def _dial(self, deadline: Deadline) -> socket.socket:
        fill_standard()
        sock = socket.socket(
            socket.AF_UNIX if isinstance(self.place, str) else socket.AF_INET)
        try:
            # A connect without a limit of its own would wait for ever where
            # too many wait already.
            seconds = max(deadline.left(), _SHORTEST)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIME.pack(
                int(seconds), int(seconds % 1 * 1e6)))
            try:
                self._dial_with(sock)
            except BlockingIOError:
                raise KernelError(
                    f'the kernel at {self} has not taken the connection in '
                    f'{deadline.seconds} s: it hangs, or too many clients '
                    'connect at once') from None
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIME.pack(0, 0))
        except BaseException:
            sock.close()
            raise
        return sock

    def _dial_with(self, sock: socket.socket) -> None:
        if isinstance(self.place, str):
            with short_address(self.place) as path:
                sock.connect(path)
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect((HOST, self.place))
        try:
            is_own = sock.getsockname() == sock.getpeername()
        except OSError as error:
            raise Lost(f'the kernel at {self} has closed the connection: '
                       f'{error}') from error
        if is_own:  # the system has chosen the port itself for our end
            raise ConnectionRefusedError(f'nobody listens at {self}')

    def _check_owner(self, sock: socket.socket) -> None:
        """KernelError if somebody else would get what we send."""
        from gocept.runner.kernel.wire import peers
        uid = (peers.unix_user(sock) if isinstance(self.place, str)
               else peers.owner_of_listener(HOST, self.place))
        if uid is None:
            raise KernelRefused(
                f'nobody knows which user listens at {self}, so nothing is '
                'sent there; use a kernel on a Unix socket')
        if uid not in (0, os.geteuid(), self._user):
            name = _name(uid)
            raise KernelRefused(
                f'user {name} listens at {self}, and would get all that you '
                f'send; if that is right, name the user: Kernel(..., user='
                f'{name!r}), or --user {name} on the command line')


def _uid(user: str | int) -> int:
    if isinstance(user, int):
        return user
    import pwd
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise KernelError(f'there is no user {user!r}') from None


def _name(uid: int) -> str | int:
    import pwd
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return uid
