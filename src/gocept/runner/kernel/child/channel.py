"""A channel to a process that lives in a kernel."""

import bisect
from typing import Unpack

from gocept.runner.channel import Channel
from gocept.runner.channel.base import MIB, Chunk, Options
from gocept.runner.channel.lines import Data
from gocept.runner.errors import (
    DeadlineExceeded,
    EndpointClosedException,
    KernelError,
    WriteBufferFull,
)
from gocept.runner.kernel.child.intake import Intake
from gocept.runner.kernel.child.sender import Sender
from gocept.runner.logs import Log
from gocept.runner.waits.closing import Owning
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.readable import Readable

log = Log('gocept.runner.kernel')

_READ_SIZE = 2 ** 16  # as of a pipe

_PATIENCE = 5.0
"""Seconds that `close` waits for a kernel to take what was written."""


class KernelChannel(Channel, Owning):
    """Reads one stream of a process, and may write to its standard input.

    The kernel keeps what is read until `acknowledge` is called. The channel
    calls it itself when it is asked for more, unless a transaction does.
    """

    closed = True  # until it has its descriptor

    name = ''

    def __init__(self, intake: Intake | None, stream: str,
                 sender: Sender | None, *, high_water: int = MIB,
                 **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.high_water = high_water
        self._intake = intake
        self._stream = stream
        self._sender = sender
        self._own_sender = sender
        self.has_ended = False
        """Whether the process had ended before this channel was made."""
        # Characters and bytes up to the ends of lines.
        self._sizes: tuple[list[int], list[int]] = [0], [0]
        self._is_searching = False
        self._readable = Readable()
        self.closed = False
        if intake is not None:
            intake.add(stream, self._readable, self._tell_ready)

    @property
    def is_readable(self) -> bool:
        return self._intake is not None and not self.closed

    @property
    def is_writable(self) -> bool:
        return self._sender is not None or self.has_ended

    def get_fd(self) -> int:
        """See `IChannel`."""
        self._require_open()
        if self._intake is None:
            raise NotImplementedError(f'{self!r} has nothing to read from')
        return self._readable.fileno()

    def _require_open(self) -> None:
        if self.closed:
            raise EndpointClosedException(f'{self!r} is closed')

    # Reading

    def _read(self) -> bytes:
        self._require_open()
        intake = self._intake
        if intake is None:
            raise NotImplementedError(f'{self!r} has nothing to read from')
        try:
            if not (self.waits_for_commit or self._is_searching):
                self.acknowledge()
            data = intake.take(self._stream, _READ_SIZE)
        except EndpointClosedException as error:
            if not self.waits_for_commit:
                self.acknowledge(is_over=True)
            raise EndpointClosedException(f'{self!r}: {error}') from error
        except KernelError as error:
            raise EndpointClosedException(f'{self!r}: {error}') from error
        if data and self._decoder is None:
            self._note(len(data), len(data))
        return data

    def receive(self) -> Data:
        # `read_until` has what it has received, and nobody else has it yet.
        self._is_searching = True
        try:
            return super().receive()
        finally:
            self._is_searching = False

    def _decode(self, data: bytes, final: bool = False) -> str:
        pieces = []
        for line in data.splitlines(keepends=True) or [data]:
            text = super()._decode(line)
            self._note(len(text), len(line))
            pieces.append(text)
        if final:
            pieces.append(super()._decode(b'', True))
        return ''.join(pieces)

    def _note(self, length: int, size: int) -> None:
        lengths, sizes = self._sizes
        if self._decoder is None:
            lengths[-1] += length
            sizes[-1] += size
            return
        lengths.append(lengths[-1] + length)
        sizes.append(sizes[-1] + size)

    def acknowledge(self, unread: int = 0, is_over: bool = False) -> None:
        if self._intake is None:
            return
        lengths, sizes = self._sizes
        length = lengths[-1] - unread - self._size_of_unread
        if self._decoder is None:
            size = sizes[-1] - (lengths[-1] - length)
        else:
            index = bisect.bisect_right(lengths, length) - 1
            size = sizes[index]
            del lengths[:index], sizes[:index]
        self._intake.acknowledge(self._stream, size, is_over)

    @property
    def has_more(self) -> bool:
        return self.unread or (
            self._intake is not None and not self.closed
            and self._intake.has_more(self._stream))

    @property
    def is_undecided(self) -> bool:
        return (self.waits_for_commit and self._intake is not None
                and self._intake.is_undecided(self._stream))

    @property
    def buffered(self) -> bool:
        return super().buffered or (
            self._intake is not None and self._intake.has(self._stream))

    # Writing

    @property
    def kept(self) -> int:
        """See `IChannel`."""
        return 0 if self._sender is None else self._sender.size

    def take_sink(self, other: Channel) -> None:
        sink = next((layer for layer in other.layers()
                     if isinstance(layer, KernelChannel)), None)
        if sink is not None and sink._sender is not None:
            self._sender = sink._sender

    def _required_sender(self) -> Sender:
        self._require_open()
        if self._sender is None and self.has_ended:
            raise EndpointClosedException(
                f'{self!r}: the process has ended, and only what it has said '
                'is left to read; write to the next one')
        if self._sender is None:
            raise NotImplementedError(f'{self!r} has nothing to write to')
        return self._sender

    def write(self, *data: Chunk) -> None:
        """See `IChannel`."""
        sender = self._required_sender()
        if sender.size > self.high_water:
            sender.collect()
        if sender.size > self.high_water:
            raise WriteBufferFull(
                f'{self!r} keeps {sender.size} bytes, more than '
                f'{self.high_water}, that the process does not read; wait '
                'with flush() or a poller, then write again')
        self.write_accepted(*data)

    def write_accepted(self, *data: Chunk) -> None:
        self._add(self._encoded(data))

    def _add(self, data: bytes) -> None:
        sender = self._required_sender()
        try:
            sender.add(data)
        except (EndpointClosedException, KernelError) as error:
            raise EndpointClosedException(f'{self!r}: {error}') from error

    def check_sink(self) -> None:
        sender = self._required_sender()
        if sender.failure:
            raise EndpointClosedException(f'{self!r}: {sender.failure}')

    def write_eof(self) -> None:
        """See `IChannel`."""
        try:
            self._required_sender().add_end()
        except KernelError as error:
            raise EndpointClosedException(f'{self!r}: {error}') from error

    def flush(self, timeout: float | None = None) -> None:
        """See `IChannel`."""
        if self._sender is not None:
            self._sender.flush(Deadline(timeout))

    # The end

    def abandon(self) -> None:
        if self._intake is not None and not self.closed:
            try:
                self._intake.abandon(self._stream)
            except KernelError as error:
                log.warning('%r: %s', self, error)
        self.close()

    def close(self) -> None:
        """See `IChannel`."""
        if self.closed:
            return
        try:
            self._end_sending()
            if not self.waits_for_commit:
                self.acknowledge()
        except (KernelError, DeadlineExceeded) as error:
            log.log(self.loss_level, '%r: %s', self, error)
        self._tell_closing(self._readable.fileno())
        self.closed = True
        self._release()
        self._tell_ready()

    def _end_sending(self) -> None:
        sender = self._own_sender
        if sender is not None:
            try:
                if sender.size:
                    sender.flush(Deadline(_PATIENCE))
            finally:
                sender.close()

    def _release(self) -> None:
        if self._intake is not None:
            self._intake.remove(self._stream)
        self._readable.close()

    def __repr__(self) -> str:
        state = 'closed' if self.closed else self._stream
        return f'<KernelChannel of {self.name}: {state}>'
