"""The server's side of one client.

One thread at a time reads from it, within `collect`: whoever has the turn to
look at the wire. Any thread may send.

At first it is a stranger. Until it has proved that it knows the token, nothing
is read but the bytes of the proof.
"""

import collections
import contextlib
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from gocept.runner.background.frames import (
    AWAIT,
    EXEC,
    EXIT,
    PING,
    PONG,
    REPORT,
    REQUESTS,
    STATUS,
    Opener,
    Piece,
    Sealer,
)
from gocept.runner.background.handshake import (
    FULL,
    MAGIC,
    PROOF_SIZE,
    STATUS_KEY,
    Agreed,
    Challenge,
    refuse,
)
from gocept.runner.background.limits import Account, Complaints, Limits
from gocept.runner.background.queue import ENDED, Queue, Request, fail
from gocept.runner.errors import ProtocolError
from gocept.runner.logs import Log
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.forks import Lock
from gocept.runner.waits.source import Item, Source
from gocept.runner.waits.threads import survived

if TYPE_CHECKING:
    import ssl

log = Log('gocept.runner.background')

_PIECE = 2 ** 16
"""Received in a row, so that other clients have their turn."""

_LARGE = 2 ** 18
"""The same of a client that sends much; and how much is sent in a row."""

_HIGH_WATER = 2 ** 20
"""No more is read from a client that has left so many bytes of answers."""

_MANY = 64
"""How many pieces are sent in one call; see IOV_MAX in sendmsg(2)."""

_ANSWER = 256
"""What it costs to keep an answer, beside its bytes."""

_ASKING = frozenset((PING, STATUS))

_NOTHING: Sequence[Item] = ()


class Owner(Protocol):
    """Whoever keeps the connections."""

    limits: Limits
    keys: Mapping[int, bytes]
    queue: Queue
    account: Account
    complaints: Complaints
    report: Callable[[], Mapping[str, object]]
    confirms: bool
    """Whether a request that nobody awaits is confirmed on arrival."""

    def introduce(self, connection: 'Connection') -> bool:
        """It is no stranger any more; False if there are too many clients."""

    def stuck(self, connection: 'Connection', moves: bool) -> None:
        """Bytes are kept for it; `moves`: it has taken some now."""

    def forget(self, connection: 'Connection') -> None:
        """It is closed."""


class Connection(Source, Closing):
    """A client, or a stranger."""

    is_stream = True

    def __init__(self, sock: socket.socket, owner: Owner,
                 tls: 'ssl.SSLContext | None' = None, life: bytes = bytes(4),
                 ) -> None:
        """OSError if the peer has gone already. `life`: see `Challenge`."""
        sock.setblocking(False)
        host, port = sock.getpeername()[:2]
        self.address = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'
        self.python = 0, 0
        self.key_number = -1
        self._may_ask = False
        """Whether the client may have tasks done."""
        self.closed = False
        self.unsent = 0
        """The bytes of all answers that were not sent as a whole."""
        self._owner = owner
        self._put = owner.queue.put
        self._longest = owner.limits.max_message
        self._challenge = Challenge(tls=tls is not None, life=life)
        self._rest = b''
        """What has come of the proof."""
        self._size = PROOF_SIZE
        """How many bytes may be received in a row."""
        self._take: Callable[[bytes], Sequence[Item]] = self._take_proof
        self._partial = 0
        """The bytes of a half received message."""
        self._again = False
        """Whether something is left that was decrypted already."""
        self._broken = False
        """Whether the client cannot be sent anything."""
        self._lock = Lock()  # of all that is sent
        self._outgoing: collections.deque[tuple[Iterator[Piece], int]] = (
            collections.deque())
        """Answers that wait, and the bytes of each."""
        self._batch: list[Piece] = []
        """What is sent next."""
        self._batch_size = 0
        """The bytes of the answers that end in the batch."""
        self._is_secured = tls is not None
        if tls is None:
            self.socket = sock
            self._recv: Callable[[int], bytes] = sock.recv
            self._send: Callable[[Piece], int] = sock.send
            self._begin()
        else:
            self._secured = tls.wrap_socket(
                sock, server_side=True, do_handshake_on_connect=False)
            self.socket = self._secured
            self._recv = self._shake_hands
            self._send = self._send_secured
        self._fd = self.sink_fd = self.socket.fileno()

    def __repr__(self) -> str:
        return f'<Connection {self._fd} from {self.address}>'

    def fileno(self) -> int:
        return self._fd

    @property
    def kept(self) -> int:
        return len(self._batch) + len(self._outgoing)

    @property
    def buffered(self) -> bool:
        return self._again

    # Receiving

    def collect(self) -> tuple[Sequence[Item], bool]:
        items = _NOTHING
        try:
            data = self._recv(self._size)
            if data:
                items = self._take(data)
            else:
                self.close()
        except BlockingIOError:
            pass
        except ProtocolError as error:
            self._owner.complaints.warn(
                'The connection from %s is closed, as what came is not of a '
                'client: %s', self.address, error)
            self.close()
        except OSError:  # the client is gone
            self.close()
        except survived():  # a mistake of ours; the other clients go on
            log.exception('%r is closed, as it failed', self)
            self.close()
        return items, self.closed

    def _begin(self) -> None:
        """Ask the stranger for a proof."""
        self._say(self._challenge.data)

    def _take_proof(self, data: bytes) -> Sequence[Item]:
        self._rest += data
        if not self._rest.startswith(MAGIC[:len(self._rest)]):
            raise ProtocolError('it begins with other bytes')
        self._size = PROOF_SIZE - len(self._rest)
        if not self._size:
            agreed = self._challenge.check(self._rest, self._owner.keys)
            self._rest = b''
            if agreed is None:
                self._owner.complaints.warn(
                    'A client from %s was refused, as it has another token',
                    self.address)
                self._refuse(refuse())
            elif self._owner.introduce(self):
                self._agree(agreed)
            else:
                self._refuse(refuse(FULL))
        return _NOTHING

    def _refuse(self, answer: bytes) -> None:
        self._say(answer)
        self.close()

    def _say(self, data: bytes) -> None:
        """Send what is so short that there is always room for it."""
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            raise ConnectionAbortedError('the peer has not read a hello')

    def _agree(self, agreed: Agreed) -> None:
        self.python = agreed.python
        self.key_number = agreed.key_number
        self._may_ask = agreed.key_number != STATUS_KEY
        sealer = Sealer(agreed.send)
        self._seal = sealer.seal
        self._pieces = sealer.pieces
        self._opener = Opener(
            agreed.receive, self._longest, REQUESTS)
        self._feed = self._opener.feed
        self._take = self._take_frames
        self._size = _PIECE
        self._say(agreed.answer)

    def _take_frames(self, data: bytes) -> Sequence[Item]:
        requests: list[Request] = []
        messages = self._feed(data)
        kept = self._opener.kept
        if kept or self._partial:
            self._keep_partial(kept)
        for kind, flags, number, pieces, size in messages:
            if kind in _ASKING:
                self._answer(kind, number)
            elif (self._may_ask and size <= self._longest
                    and self._put(request := Request(
                        self, kind, flags, number, pieces), size)):
                requests.append(request)
                if kind == EXIT:
                    self._owner.queue.exits += 1
                elif (kind == EXEC and not flags & AWAIT
                        and self._owner.confirms
                        and not self._owner.queue.ends):
                    request.receipt()
            else:
                fail(self, number, *self._refusal(size))
        if self.unsent > _HIGH_WATER:
            with self._lock:
                self.suspended = (
                    self.unsent > _HIGH_WATER and not self._broken)
        return requests

    def _answer(self, kind: int, number: int) -> None:
        """Answer what no task is needed for."""
        if kind == PING:
            self.send(PONG, 0, number)
        else:
            report = json.dumps(self._owner.report(), default=str)
            self.send(REPORT, 0, number, [report.encode()])

    def _refusal(self, size: int) -> tuple[str, str]:
        """Why a request of `size` bytes was not taken: a word and a line."""
        if not self._may_ask:
            return 'not_allowed', (
                'the key of this client allows to ask for the status only')
        if size > self._longest:
            return 'too_large', (
                f'the request has more than {self._longest} bytes: start the '
                'server with a higher max_message')
        return self._owner.queue.refusal(size)

    def _keep_partial(self, kept: int) -> None:
        """Count what has come of a message that goes on."""
        self._owner.account.add(kept - self._partial)
        self._partial = kept
        self._size = _LARGE if kept >= _PIECE else _PIECE
        if kept and not self._owner.account.has_room(self._owner.queue.bytes):
            number = self._opener.discard()
            self._owner.account.add(-self._partial)
            self._partial = 0
            fail(self, number, 'busy', 'the server keeps all the bytes that '
                 'its limit of queue_bytes allows: try again later')

    # Sending

    def send(self, kind: int, flags: int, number: int,
             pieces: Sequence[Piece] = ()) -> bool:
        """Send an answer, or keep what the client does not take.

        Any thread may call it. False if the client has gone.
        """
        size = sum(map(len, pieces))
        with self._lock:
            if self._broken:
                return False
            if self._outgoing or self._batch:
                self._keep(self._pieces(kind, flags, number, pieces), size)
            elif size > _PIECE:
                self._keep(self._pieces(kind, flags, number, pieces), size)
                self._send_batches()
            else:
                data = self._seal(kind, flags, number, b''.join(pieces))
                try:
                    sent = self._send(data)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    self._lose()
                    return False
                if sent < len(data):
                    self._keep(iter((memoryview(data)[sent:],)), size)
        if self.unsent:
            self._owner.stuck(self, False)
        return not self._broken

    def _keep(self, answer: Iterator[Piece], size: int) -> None:
        """Send it later. With the lock held, as the next ones."""
        size += _ANSWER
        self._outgoing.append((answer, size))
        self._count(size)
        self._tell_sending()

    def _count(self, added: int) -> None:
        self.unsent += added
        self._owner.account.add(added)

    def _send_batches(self) -> None:
        """Send what the client takes, but no more than its share."""
        left = _HIGH_WATER
        while left > 0 and (self._batch or self._fill_batch()):
            try:
                sent = (self._send(self._batch[0]) if len(self._batch) == 1
                        else self.socket.sendmsg(self._batch))
            except BlockingIOError:
                return
            except OSError:
                self._lose()
                return
            left -= sent
            self._cut_batch(sent)

    def _fill_batch(self) -> bool:
        """Take what is sent next; whether there is something."""
        size = 0
        batch = self._batch
        while self._outgoing and size < _LARGE and len(batch) < _MANY:
            answer, answer_size = self._outgoing[0]
            for piece in answer:
                batch.append(piece)
                size += len(piece)
                if size >= _LARGE or len(batch) >= _MANY:
                    break
            else:
                self._outgoing.popleft()
                self._batch_size += answer_size
        if self._is_secured and len(batch) > 1:
            batch[:] = [b''.join(batch)]  # sendmsg() is not for TLS
        self._forget_if_sent()
        return bool(batch)

    def _cut_batch(self, sent: int) -> None:
        """Forget what was sent of the batch."""
        batch = self._batch
        done = 0
        for piece in batch:
            if sent < len(piece):
                break
            sent -= len(piece)
            done += 1
        del batch[:done]
        if sent:
            batch[0] = memoryview(batch[0])[sent:]
        self._forget_if_sent()

    def _forget_if_sent(self) -> None:
        if self._batch_size and not self._batch:
            self._count(-self._batch_size)
            self._batch_size = 0

    def send_kept(self) -> bool:
        """See `Source`: the client takes more."""
        with self._lock:
            self._send_batches()
            kept = self.kept
        self._owner.stuck(self, True)
        if self.suspended and self.unsent <= _HIGH_WATER // 2:
            self._go_on()
        return bool(kept)

    def _go_on(self) -> None:
        """Have the poller read again."""
        self.suspended = False
        self._tell_returned()

    # TLS

    def _shake_hands(self, size: int) -> bytes:
        """Receive nothing before the handshake of TLS is over."""
        import ssl
        try:
            self._secured.do_handshake()
        except ssl.SSLWantReadError:
            raise BlockingIOError from None
        except ssl.SSLError as error:
            raise ProtocolError(f'{error}') from None
        self._recv = self._receive_secured
        self._begin()
        return self._receive_secured(size)

    def _receive_secured(self, size: int) -> bytes:
        """What has come, decrypted. One thread at a time uses the object."""
        import ssl
        pieces = []
        with self._lock:
            try:
                while size > 0:
                    piece = self._secured.recv(size)
                    pieces.append(piece)
                    size -= len(piece)
                    if not piece:
                        break
            except ssl.SSLWantReadError:
                pass
            self._again = self._secured.pending() > 0
        if self._again:
            self._tell_ready()
        if not pieces:
            raise BlockingIOError
        return b''.join(pieces)

    def _send_secured(self, piece: Piece) -> int:
        import ssl
        try:
            return self._secured.send(piece)
        except ssl.SSLWantWriteError:
            raise BlockingIOError from None

    # The end

    def _lose(self) -> None:
        """The client is gone: what it has sent before is taken still.

        So this does not close it. With the lock held.
        """
        self._broken = True
        self._forget_answers()
        if self.suspended:
            self._go_on()

    def _forget_answers(self) -> None:
        self._outgoing.clear()
        self._batch.clear()
        self._batch_size = 0
        self._count(-self.unsent)

    def cut_off(self) -> None:
        """Send nothing more, and have the poller close it.

        For any thread, but not with the lock held.
        """
        with self._lock:
            if not self.closed:
                with contextlib.suppress(OSError):  # the client has gone
                    self.socket.shutdown(socket.SHUT_RDWR)
                self._lose()

    def close_politely(self) -> None:
        """Close it so that the client can read what was sent last.

        That is a FAILURE of the request 0: whatever has come since, or comes,
        is not run. If something was left unread, the system would tell the
        client that the connection is broken.
        """
        if not self.kept:  # else a request may have been run
            fail(self, 0, *ENDED)
        with contextlib.suppress(OSError):
            self._recv(_LARGE)
        self.close()

    def close(self) -> None:
        """See `Closing`. For the thread that has the turn."""
        with self._lock:
            if self.closed:
                return
            self.closed = self._broken = True
            self._again = self.suspended = False
            self._forget_answers()
            self._owner.account.add(-self._partial)
            self._partial = 0
            self._tell_closing(self._fd)
            self._fd = self.sink_fd = -1
            self.socket.close()
        self._tell_over()
        self._owner.forget(self)

    def close_in_child(self) -> None:
        """In a forked child: the connection is its parent's, and stays so."""
        self.closed = self._broken = True
        self._watchers = ()
        self.socket.close()
        self._outgoing.clear()
        self._batch.clear()
