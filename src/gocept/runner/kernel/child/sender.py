"""What is written to a process of a kernel, on its way there.

The kernel answers a request to write when it has room for the data. So there
is one such request at a time, on a connection of its own, and its answer is
the event upon which the next one is sent. Nobody waits for it, but `flush`.
"""

import contextlib
import select
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gocept.runner.errors import (
    DeadlineExceeded,
    EndpointClosedException,
    KernelError,
)
from gocept.runner.kernel.client.address import new_session
from gocept.runner.kernel.client.frame_transport import FrameTransport
from gocept.runner.kernel.client.transport import Lost
from gocept.runner.logs import Log
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.deadline import Deadline, wait_for
from gocept.runner.waits.forks import Lock, tell_forks
from gocept.runner.waits.readable import Readable
from gocept.runner.waits.source import Source

if TYPE_CHECKING:
    from gocept.runner.kernel.client.client import Kernel

log = Log('gocept.runner.kernel')

_PIECE = 2 ** 18
"""Bytes of one request: a quarter of what a kernel keeps for a process."""


class Sender(Source, Closing):
    """Sends pieces in order. It is a source: a poller takes the answers."""

    def __init__(self, kernel: 'Kernel', key: str) -> None:
        self.size = 0
        """The number of bytes that the kernel has not taken yet."""
        self.failure = ''
        """Why nothing can be sent any more."""
        self._kernel = kernel
        self._session = new_session()
        self._key = key
        self._lock = Lock()
        self._pieces: deque[bytes] = deque()
        self._is_ending = False
        self._number = 0  # of the request that is not answered; 0 for none
        self._is_sent = False
        """Whether that was sent; not if an exception has interrupted it."""
        self._transport: FrameTransport | None = None
        # Pollers go on with it when the connection is another one.
        self._readable = Readable()
        self.closed = False
        tell_forks(self)

    def after_fork(self) -> None:
        """In a forked child: the parent sends what is kept."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()  # and says nothing to the kernel
        self.close()

    def fileno(self) -> int:
        return self._readable.fileno()

    def open(self) -> None:
        """Connect; KernelError."""
        with self._lock:
            self._opened()

    def _opened(self) -> FrameTransport:
        if self._transport is None:
            self._transport = self._connect()
            self._readable.follow(self._transport.fileno())
        return self._transport

    def _connect(self) -> FrameTransport:
        transport = self._kernel.connect(
            Deadline(self._kernel.connection_timeout), autostart=False,
            session=self._session)
        if not isinstance(transport, FrameTransport):
            transport.close()
            raise KernelError('an old kernel keeps no standard input')
        return transport

    def add(self, data: bytes) -> None:
        """Send this after all else; `EndpointClosedException`."""
        with self._lock:
            self._require_process()
            view = memoryview(data)
            size = len(view)
            pieces = [bytes(view[start:start + _PIECE])
                      for start in range(0, size, _PIECE)]
            # No call is between these, so no signal handler either.
            self.size += size
            self._pieces += pieces
            self._go_on_or_fail()

    def add_end(self) -> None:
        """Let the process read the end after all else."""
        with self._lock:
            self._require_process()
            self._is_ending = True
            self._go_on_or_fail()

    def _require_process(self) -> None:
        if self.failure or self.closed:
            raise EndpointClosedException(self.failure or 'it is closed')

    def _send(self) -> None:
        """Send the next request, unless one is not answered yet; with the
        lock held.
        """
        if self._number or not (self._pieces or self._is_ending):
            return
        self._send_later(self._kernel.next_number())
        self._send_again()

    def _send_later(self, number: int) -> None:
        self._is_sent = False
        self._number = number

    def _go_on(self) -> None:
        """Like `_send`, also after an exception of a signal handler."""
        if self._number and not self._is_sent:
            self._send_again()
        else:
            self._send()

    def _go_on_or_fail(self) -> None:
        """Like `_go_on`; what a caller is told to have failed is not sent
        later.
        """
        try:
            self._go_on()
        except KernelError as error:
            self._fail(str(error))
            raise

    def _send_again(self) -> None:
        self._is_sent = False
        transport = self._opened()
        try:
            if self._pieces:
                transport.send(self._number, 'write', {'name': self._key},
                          self._pieces[0])
            else:
                transport.send(
                    self._number, 'close-stdin', {'name': self._key})
        except Lost:
            pass  # the wait for the answer finds it as well
        self._is_sent = True

    def _take_answer(self) -> None:
        """Take the answer, which is there or on its way; with the lock held.
        """
        transport = self._opened()
        size = len(self._pieces[0]) if self._pieces else 0
        try:
            transport.answer(self._number)
        except Lost:
            self._is_sent = False
            transport.close()
            self._transport = None
            self._send_again()  # the successor knows whether it was done
            return
        except KernelError as error:
            if str(error).startswith('no room'):
                self._send_again_later()
                return
            self._fail(str(error))
            return
        # No call is between these, so the piece is not sent again.
        self._number = 0
        if self._pieces:
            del self._pieces[0]
            self.size -= size
        else:
            self._is_ending = False
        self._send()

    def _send_again_later(self) -> None:
        """The kernel has waited long enough for the process; it waits on."""
        self._send_later(self._kernel.next_number())
        self._send_again()

    def _fail(self, reason: str) -> None:
        self.failure = reason
        lost, self.size, self._number = self.size, 0, 0
        self._pieces.clear()
        self._is_ending = False
        if lost:
            log.warning('%s: %d bytes were not sent', reason, lost)

    def collect(self) -> tuple[Sequence[object], bool]:
        try:
            if not self._lock.acquire(blocking=False):
                return (), False  # who holds the lock takes the answer
            if self.closed:
                return (), True
            self._go_on()
            while self._number and wait_for(
                    self.fileno(), select.POLLIN, Deadline(0)):
                self._take_answer()
        except KernelError as error:
            self._fail(str(error))
            return (), True
        finally:
            if self._lock.held:  # a signal handler may have raised before
                self._lock.release()
        return (), False

    def flush(self, deadline: Deadline) -> None:
        """Wait until the kernel has everything; `DeadlineExceeded`."""
        with self._lock:
            self._go_on()
            while self._number:
                if not wait_for(self.fileno(), select.POLLIN, deadline):
                    raise DeadlineExceeded(
                        f'{self.size} bytes were not read by the process in '
                        f'{deadline.seconds} s; they are kept')
                self._take_answer()
            self._require_process()

    def close(self) -> None:
        """Close the connection; what is kept is lost."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            transport, self._transport = self._transport, None
            if transport is not None:
                with contextlib.closing(transport), contextlib.suppress(Lost):
                    transport.end_session()
            self._tell_closing(self.fileno())
            self._readable.close()
        self._tell_ready()
