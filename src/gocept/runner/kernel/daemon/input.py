"""What was written for a child and its standard input has not taken yet.

The bytes go from a memfd into the child's pipe by splice(), which advances the
position of the memfd: all who hold it share this position, so it says how many
were sent, whenever the daemon is killed. How many were accepted stands in the
state, so they become valid together with the answer to whoever wrote them.

The pipe refers to pages of the memfd. So these are never written again and
never cut: data are appended, and where memory is freed, then in whole huge
pages, or all of it.
"""

import errno
import os
from collections.abc import Callable
from typing import cast

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon import memfd
from gocept.runner.kernel.daemon.state import State

TABLE = 'input'

LIMIT = 1024 * 1024

KEPT = 64 * 1024
"""Of what was sent, that many bytes stay in memory."""

HUGE_PAGE = memfd.PAGE * memfd.PAGE // 8

SPREAD = 4
"""So many huge pages, or more, are freed while not all is sent."""


class Input(memfd.Owner):
    """Keeps up to `limit` bytes for the standard input of the child `life`.

    The memfd is made before the first byte is added, and given to `on_create`,
    so that the keeper holds it. `fd` is a memfd to go on with, which this
    object closes from now on. To make the object only reads it.
    """

    def __init__(self, state: State, life: str, limit: int = LIMIT,
                 fd: int = -1, *,
                 on_create: Callable[[int], object] | None = None) -> None:
        self.limit = limit
        self.fd = fd
        self._state = state
        self._life = life
        self._on_create = on_create
        self._freed = 0
        self._sent = 0 if fd < 0 else os.lseek(fd, 0, os.SEEK_CUR)
        # Where nothing is pending, the position may be that of older data.
        self._is_clean = fd < 0
        self.closed = fd < 0

    @property
    def pending(self) -> int:
        """How many bytes were accepted and not sent yet."""
        start, end = self._accepted()
        return 0 if start == end else end - start - self._sent

    def add(self, data: bytes) -> bool:
        """Keep the data; False: there is no room for all of them now.

        They are valid once the `batch` block around this call has ended.
        Raises KernelError, and keeps nothing, where memory is full, or where
        the data are more than fit at all.
        """
        self.check(data)
        if self.pending + len(data) > self.limit:
            return False
        if not data:
            return True
        if self.fd < 0:
            self._create()
        start, end = self._accepted()
        if start == end and not self._is_clean:
            self._rewind()
        memfd.write(self.fd, data, end - start)
        self._state.put(TABLE, self._life, [start, end + len(data)])
        return True

    def check(self, data: bytes) -> None:
        """KernelError if the data are more than fit at all."""
        if len(data) > self.limit:
            raise KernelError(
                f'{len(data)} bytes are more than the {self.limit} that are '
                'kept for the standard input of a process: write less at once')

    def send(self, sink: int) -> bool:
        """Send what the pipe `sink` takes; True: nothing is left.

        Raises BrokenPipeError when the child has closed its end. If `sink` is
        no pipe, a daemon that is killed just then sends some bytes twice.
        """
        if self._state.changing:
            raise RuntimeError('Call send() after the batch() block')
        while pending := self.pending:
            try:
                self._sent += self._move(sink, pending)
            except BlockingIOError:
                self._give_back()
                return False
        if self._sent > KEPT:
            self._start_anew()
        return True

    def close(self) -> None:
        """Forget what is pending, and close the memfd."""
        self._state.drop(TABLE, self._life)
        self.release()

    def __repr__(self) -> str:
        return f'<{type(self).__name__} of {self._life}>'

    def _accepted(self) -> tuple[int, int]:
        """The offset of the memfd's first byte, and that after the last one,
        of all bytes that were accepted since the start of the child."""
        accepted = self._state.get(TABLE, self._life)
        if accepted is None:
            return 0, 0
        start, end = cast(list[int], accepted)
        return start, end

    def _create(self) -> None:
        fd = memfd.create('input')
        try:
            if self._on_create is not None:
                self._on_create(fd)
        except BaseException:
            os.close(fd)
            raise
        self.fd = fd
        self.closed = False

    def _move(self, sink: int, pending: int) -> int:
        try:
            return os.splice(self.fd, sink, pending,
                             flags=os.SPLICE_F_NONBLOCK)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        size = os.write(sink, os.pread(self.fd, pending, self._sent))
        os.lseek(self.fd, size, os.SEEK_CUR)
        return size

    def _start_anew(self) -> None:
        _, end = self._accepted()
        try:
            self._state.put(TABLE, self._life, [end, end])
        except KernelError:
            return  # memory is full: free it the next time
        self._rewind()

    def _rewind(self) -> None:
        os.ftruncate(self.fd, 0)
        os.lseek(self.fd, 0, os.SEEK_SET)
        self._sent = self._freed = 0
        self._is_clean = True

    def _give_back(self) -> None:
        stop = self._sent - self._sent % HUGE_PAGE
        if (stop - self._freed >= SPREAD * HUGE_PAGE
                and memfd.give_back(self.fd, self._freed, stop)):
            self._freed = stop
