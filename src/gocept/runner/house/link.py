"""The socket between `up` and a template: what the two say, and how.

A message is a JSON object in one packet; ``is`` in it says which kind, and the
rest are the fields of the class of this name, below. One that is too long for
a packet goes as a file in memory, the last descriptor of a packet which only
says how long it is.

The template says `Ready` or `Failed`, and then `Forked` or `Unforked` for each
`Fork` that `up` has sent. The end of the link ends the template; its workers
go on.
"""

import collections
import contextlib
import fcntl
import json
import os
import select
import signal
import types
import typing
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, Union, cast

from gocept.runner.errors import LinkError
from gocept.runner.waits.closing import Owning
from gocept.runner.waits.deadline import NEVER, is_broken, wait_for
from gocept.runner.waits.packets import LONGEST, Packets
from gocept.runner.waits.source import Source

_LARGEST = 1 << 24  # bytes of a message that is a file

T = TypeVar('T')


class DeclaredWorker(NamedTuple):
    """A worker as ZCML declares it, with what its decorator says.

    Fields are named as the attributes of the directive; see
    `IWorkerDirective`.
    """

    name: str
    site: str | None
    arguments: tuple[str, ...]
    once: bool
    ticks: float | None
    """Seconds; None where `schedule` says when it is called, or ``once``."""
    schedule: str | None
    timezone: str | None
    jitter: float
    missed: str
    lock: bool
    tick_timeout: float | None
    shutdown_timeout: float
    apps: tuple[str, ...]
    """The apps that belong to it."""


class DeclaredChild(NamedTuple):
    """An app, an executor or a server as ZCML declares it."""

    kind: str
    name: str
    start: str
    """'eager', 'lazy' or 'detached'."""
    requires: tuple[str, ...]
    description: str
    in_kernel: bool


class Ready(NamedTuple):
    """The template has read the configuration, and can fork workers."""

    application: str
    """The kind, such as 'toolkit'."""
    workers: tuple[DeclaredWorker, ...]
    children: tuple[DeclaredChild, ...]
    threads: tuple[str, ...]
    """The names of threads that the configuration has started. If there are
    some, the template forks nobody."""


class Failed(NamedTuple):
    """The configuration cannot be read, and the template ends."""

    status: int
    error: str
    """One line."""


class Forked(NamedTuple):
    """A worker was born; it is a child of `up`."""

    number: int
    """That of the `Fork`."""
    pid: int
    pidfd: int = -1
    """Whoever gets this message closes it; -1 where the system has none."""


class Unforked(NamedTuple):
    """A worker could not be forked."""

    number: int
    error: str
    """One line."""


Told = Ready | Failed | Forked | Unforked
"""What a template says."""


class Fork(NamedTuple):
    """Fork a worker."""

    number: int
    """Which answer is for which wish."""
    name: str
    words: tuple[str, ...] = ()
    """What a command line has after ``gocept-runner run NAME``, but for the
    zope.conf and the kind of application: those are the template's."""
    mark: str = ''
    """The worker's mark; see `gocept.runner.process.marks`."""


class Streams(NamedTuple):
    """The descriptors that a worker gets."""

    stdout: int
    stderr: int
    life: int
    """The end of a pipe that is readable when `up` has ended."""
    control: int = -1
    """The end of a pair of `gocept.runner.waits.packets`, on which the worker
    says how far it is; see `Stage`. -1: there is none."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """Those that there are."""
        return tuple(fd for fd in self if fd >= 0)

    def close(self) -> None:
        """Close them."""
        for fd in self.numbers:
            os.close(fd)


class Stage(NamedTuple):
    """How far a worker is, as it says on its control socket."""

    name: Literal['running']
    """'running': the database is open, the children have been started, and
    the first tick is next."""


_KINDS: dict[str, Any] = {kind.__name__.lower(): kind for kind in (
    Ready, Failed, Forked, Unforked, Fork, Stage)}

Message = Told | Fork | Stage


def pack(message: Message) -> bytes:
    """A message in bytes."""
    fields = message._asdict()
    fields.pop('pidfd', None)
    if isinstance(message, Ready):
        fields['workers'] = [each._asdict() for each in message.workers]
        fields['children'] = [each._asdict() for each in message.children]
    return json.dumps(
        {'is': type(message).__name__.lower(), **fields}).encode()


def unpack(data: bytes) -> Message:
    """The message of these bytes; LinkError if they are none."""
    try:
        fields = json.loads(data)
        kind = _KINDS[fields.pop('is')]
    except (ValueError, TypeError, KeyError, AttributeError,
            RecursionError) as error:
        raise LinkError('something else than a message came from the other '
                        'end of the link') from error
    return cast(Message, _built(kind, fields))


def _built(kind: type[T], value: object) -> T:
    """`value`, which is made of JSON, as a NamedTuple of this kind."""
    hints = typing.get_type_hints(kind)
    if not isinstance(value, dict) or not value.keys() <= hints.keys():
        raise LinkError(f'this is no {kind.__name__}: {str(value)[:200]}')
    try:
        return kind(**{name: _checked(name, hints[name], each)
                       for name, each in value.items()})
    except TypeError as error:  # one is missing
        raise LinkError(f'this is no {kind.__name__}: {error}') from error


def _checked(name: str, hint: Any, value: object) -> object:
    """The value of a field, if it is what the hint says."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        [some] = [each for each in inner if each is not type(None)]
        return None if value is None else _checked(name, some, value)
    if origin is tuple:  # of any length
        if isinstance(value, list):
            return tuple(_checked(name, inner[0], each) for each in value)
    elif origin is Literal:
        if value in inner:
            return value
    elif hasattr(hint, '_fields'):
        return _built(hint, value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif type(value) is hint:
        return value
    raise LinkError(f'{name} cannot be {str(value)[:200]!r}')


class _End:
    """One end, which sends and receives whole messages."""

    def __init__(self, packets: Packets) -> None:
        self.packets = packets

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send what `pack` has returned; see `Packets.send`."""
        if len(data) <= LONGEST:
            self.packets.send(data, descriptors)
            return
        with open(os.memfd_create('message', os.MFD_CLOEXEC), 'wb',
                  buffering=0) as file:
            file.write(data)
            self.packets.send(json.dumps({'bytes': len(data)}).encode(),
                              (*descriptors, file.fileno()))

    def receive(self) -> tuple[Message, list[int]] | None:
        """The next message, and the descriptors with it; None at the end.

        BlockingIOError if there is none now. LinkError for one that is wrong.
        """
        packet = self.packets.receive()
        if packet is None:
            return None
        try:
            if not packet.complete:
                raise LinkError('a message was cut off: it is too long, or '
                                'this process has too many files open')
            data = packet.data
            if data.startswith(b'{"bytes"'):
                data = _content(data, packet.descriptors)
            message = unpack(data)
        except BaseException:
            packet.discard()
            raise
        return message, packet.descriptors


def _content(head: bytes, descriptors: list[int]) -> bytes:
    """The message in the last of the descriptors."""
    try:
        size = int(json.loads(head)['bytes'])
    except (ValueError, TypeError) as error:
        raise LinkError('a long message does not say how long it is'
                        ) from error
    if not (descriptors and 0 < size <= _LARGEST):
        raise LinkError(f'a message of {size} bytes cannot be received')
    with open(descriptors.pop(), 'rb', buffering=0) as file:
        data = b''
        file.seek(0)
        while part := file.read(size - len(data)):
            data += part
    if len(data) < size:
        raise LinkError('a long message is not as long as it says')
    return data


class Template(Source, Owning):
    """The end that `up` has. A poller gets from it what the template says,
    and sends what the template does not take at once.

    The last item is the end of the link, which is that of the template.
    """

    def __init__(self, packets: Packets) -> None:
        self._end = _End(packets)
        self.closed = False
        self._left: collections.deque[tuple[bytes, tuple[int, ...]]] = (
            collections.deque())

    def fork(self, wish: Fork, streams: Streams) -> None:
        """Have the template fork a worker, which gets copies of `streams`.

        Returns at once, and never waits for the template. `streams` belong to
        the link from now on, which closes them when they were sent. If the
        template has ended, nothing is sent; `collect` tells that end.
        """
        self._left.append((pack(wish), streams.numbers))
        if self.send_kept():
            self._tell_sending()

    def fileno(self) -> int:
        """See `Source`."""
        return -1 if self.closed else self._end.packets.fileno()

    @property
    def sink_fd(self) -> int:  # type: ignore[override]
        return self.fileno()

    @property
    def kept(self) -> int:
        return sum(len(data) for data, _ in self._left)

    def send_kept(self) -> bool:
        while self._left:
            data, descriptors = self._left[0]
            try:
                self._end.send(data, descriptors)
            except BlockingIOError:
                return True
            except ConnectionError:  # `collect` tells it
                self._forget_kept()
                return False
            self._left.popleft()
            _close_all(descriptors)
        return False

    def collect(self) -> tuple[Sequence[Told], bool]:
        """What the template has said; LinkError for what it cannot say."""
        told: list[Told] = []
        while not self.closed:
            try:
                received = self._end.receive()
            except BlockingIOError:
                return told, False
            if received is None:
                break
            message, descriptors = received
            if isinstance(message, Forked) and len(descriptors) <= 1:
                message = message._replace(pidfd=(*descriptors, -1)[0])
            elif descriptors or isinstance(message, Fork | Stage | Forked):
                _close_all(descriptors)
                raise LinkError('the template has said what only others say: '
                                + str(message)[:200])
            told.append(message)
        return told, True

    def close(self) -> None:
        """Close the link, which ends the template."""
        if not self.closed:
            self._tell_closing(self.fileno())
            self._release()

    def _release(self) -> None:
        self.closed = True
        self._forget_kept()
        self._end.packets.close()

    def _forget_kept(self) -> None:
        while self._left:
            _close_all(self._left.popleft()[1])

    def __repr__(self) -> str:
        return f'<Template at {self._end.packets!r}>'


class Up(Owning):
    """The end that a template has, which waits for as long as it takes."""

    def __init__(self, packets: Packets) -> None:
        self._end = _End(packets)
        self.closed = False

    def say(self, message: Told) -> None:
        """Tell `up`; ConnectionError if that has ended."""
        fd = message.pidfd if isinstance(message, Forked) else -1
        data, descriptors = pack(message), [fd] if fd >= 0 else []
        while True:
            try:
                self._end.send(data, descriptors)
                return
            except BlockingIOError:
                wait_for(self._end.packets.fileno(), select.POLLOUT, NEVER)

    @contextlib.contextmanager
    def required(self) -> Iterator[None]:
        """End the process if `up` ends in this block, whatever goes on here.

        The system tells it by SIGIO, and that ends who does not handle it.
        """
        fd = self._end.packets.fileno()
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_ASYNC)
        if is_broken(fd):  # up has ended before
            signal.raise_signal(signal.SIGIO)
        try:
            yield
        finally:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)

    def wishes(self) -> Generator[tuple[Fork, Streams], None, None]:
        """What is to be forked, until the link ends.

        The streams are open until the next one is asked for.
        """
        while True:
            try:
                received = self._end.receive()
            except BlockingIOError:
                wait_for(self._end.packets.fileno(), select.POLLIN, NEVER)
                continue
            if received is None:
                return
            wish, descriptors = received
            try:
                if not isinstance(wish, Fork) or not (
                        3 <= len(descriptors) <= 4):
                    raise LinkError('up has said what only others say: '
                                    + str(wish)[:200])
                yield wish, Streams(*descriptors)
            finally:
                _close_all(descriptors)

    def close(self) -> None:
        """Close the link."""
        if not self.closed:
            self._release()

    def _release(self) -> None:
        self.closed = True
        self._end.packets.close()

    def __repr__(self) -> str:
        return f'<Up at {self._end.packets!r}>'


def say_stage(control: Packets, stage: Stage) -> None:
    """Say how far a worker is. Who does not listen misses it."""
    with contextlib.suppress(BlockingIOError, ConnectionError):
        control.send(pack(stage))


def _close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)
