"""The child of an executor as `subprocess.Popen` would show it."""

import codecs
import contextlib
import errno
import io
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import zope.interface

from gocept.runner.channel import Channel
from gocept.runner.errors import DeadlineExceeded, EndpointClosedException
from gocept.runner.executor.reader import Data, Reader
from gocept.runner.interfaces import IPopen
from gocept.runner.process.base import BaseProcess
from gocept.runner.waits.deadline import NEVER, Deadline
from gocept.runner.waits.forks import Lock
from gocept.runner.waits.threads import in_background, refuse_to_wait

_PIECE = 2 ** 16
"""How many bytes a write hands to the channel at once."""


@zope.interface.implementer(IPopen)
class Popen:
    """See `IPopen`."""

    def __init__(self, child: BaseProcess, args: str | Sequence[str],
                 readers: Mapping[str, Reader],
                 encoding: str | None, errors: str | None = None) -> None:
        self._child = child
        self.args = args
        self.stdout = readers.get('stdout')
        self.stderr = readers.get('stderr')
        self._communicating = Lock()
        self._said: tuple[Data | None, Data | None] | None = None
        """What `communicate` has returned."""
        channel = child.channel
        self.stdin = (None if channel is None or not channel.is_writable
                      else Input(channel, encoding, errors))

    @property
    def pid(self) -> int:
        """See `IPopen`."""
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """See `IPopen`."""
        return self._child.returncode

    def poll(self) -> int | None:
        """See `IPopen`."""
        return self._child.poll()

    def wait(self, timeout: float | None = None) -> int:
        """See `IPopen`."""
        if timeout != 0:
            self._refuse_to_wait('wait')
        try:
            return self._child.wait(timeout)
        except DeadlineExceeded as error:
            raise subprocess.TimeoutExpired(
                self.args, timeout or 0) from error

    def communicate(self, input: Data | None = None,  # noqa: A002
                    timeout: float | None = None,
                    ) -> tuple[Data | None, Data | None]:
        """See `IPopen`."""
        deadline = Deadline(timeout)
        if not self._communicating.acquire(blocking=False):
            refuse_to_wait(f'communicate() of {self}')
            if not self._communicating.acquire(
                    timeout=-1 if timeout is None else deadline.left()):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        try:
            if self._said is None:
                self._refuse_to_wait('communicate')
                self._communicate(input, deadline)
                out, err = (None if each is None else each.read_rest()
                            for each in (self.stdout, self.stderr))
                self._said = out, err
            return self._said
        except DeadlineExceeded as error:
            taken = (None if each is None else each.taken()
                     for each in (self.stdout, self.stderr))
            raise subprocess.TimeoutExpired(
                self.args, timeout or 0, *taken) from error
        finally:
            self._communicating.release()

    def _refuse_to_wait(self, method: str) -> None:
        """RunnerError where the child might wait for us to read its output."""
        if self.poll() is None:
            refuse_to_wait(f'{method}() of {self}')

    def _communicate(self, text: Data | None, deadline: Deadline) -> None:
        """Up to the end of the streams and of the child."""
        readers = [each for each in (self.stdout, self.stderr)
                   if each is not None]
        with contextlib.ExitStack() as stack:
            for each in readers:
                stack.enter_context(each.keeping())
            if self.stdin is not None:
                self.stdin.send(text, deadline)
            for each in readers:
                each.take_all(deadline)
            self._child.wait(
                None if deadline.seconds is None else deadline.left())

    def send_signal(self, sig: int) -> None:
        """See `IPopen`."""
        self._child.send_signal(sig)

    def terminate(self) -> None:
        """See `IPopen`."""
        self._child.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """See `IPopen`."""
        self._child.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None,
                 exc: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if self.stdin is not None:
            self.stdin.close()
        self.wait()

    def __repr__(self) -> str:
        return (f'<Popen: returncode: {self.returncode} '
                f'args: {self.args!r}>')


class Input(io.IOBase):
    """The standard input of a child, as a file: of text with an encoding.

    A write waits until the child has room for it; nothing is kept here. (In
    the background thread, it is sent later.) To close it tells the child the
    end. To forget it does not: the child may be another program's, too.
    """

    def __init__(self, channel: Channel, encoding: str | None,
                 errors: str | None = None) -> None:
        self._channel = channel
        self.encoding = encoding
        self.errors = None if encoding is None else errors or 'strict'
        self._encoder = (
            None if encoding is None else codecs.getincrementalencoder(
                encoding)(errors or 'strict'))
        self._closed = False
        self._unsent = memoryview(b'')

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._channel.sink_fd

    def write(self, data: Data) -> int:
        """See `io.IOBase`."""
        if self.closed:
            raise ValueError('I/O operation on closed file.')
        self._send(self._encoded(data), NEVER)
        return len(data)

    def send(self, data: Data | None, deadline: Deadline) -> None:
        """Write `data` and what is left of the call before, and close it.

        DeadlineExceeded if the child has no room in time: call it again.
        ValueError for `data` if it was closed before.
        """
        if data:
            if self._closed:
                raise ValueError('I/O operation on closed file: the child '
                                 'cannot get this input.')
            self._unsent = memoryview(
                bytes(self._unsent) + self._encoded(data))
        with contextlib.suppress(BrokenPipeError):
            while self._unsent and not self.closed:
                piece, self._unsent = (
                    self._unsent[:_PIECE], self._unsent[_PIECE:])
                self._send(piece, deadline)
        self.close()

    def _encoded(self, data: Data) -> bytes:
        if self._encoder is None:
            if isinstance(data, str):
                raise TypeError(f'bytes are needed, not {data!r}')
            return bytes(data)
        if not isinstance(data, str):
            raise TypeError(f'a text is needed, not {data!r}')
        return self._encoder.encode(data)

    def _send(self, data: bytes | memoryview, deadline: Deadline) -> None:
        left = None if deadline is NEVER else deadline.left
        try:
            for start in range(0, len(data), _PIECE):
                self._channel.write(data[start:start + _PIECE])
                if not in_background():  # which reads what the child writes
                    self._channel.flush(left and left())
        except EndpointClosedException as error:
            raise BrokenPipeError(
                errno.EPIPE, os.strerror(errno.EPIPE)) from error

    @property
    def closed(self) -> bool:  # type: ignore[override]
        return self._closed or self._channel.closed

    def close(self) -> None:
        if not self.closed:
            self._closed = True
            with contextlib.suppress(EndpointClosedException):
                self._channel.write_eof()

    def __del__(self) -> None:
        pass  # that of IOBase would close it
