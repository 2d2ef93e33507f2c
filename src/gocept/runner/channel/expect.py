"""Read up to a pattern, in the manner of expect."""

import contextlib
import re
import select
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from gocept.runner.channel.lines import Data
from gocept.runner.errors import (
    DeadlineExceeded,
    EndpointClosedException,
    StillKept,
)
from gocept.runner.waits.deadline import Deadline, wait_for_any
from gocept.runner.waits.source import Source

Pattern = bytes | str | re.Pattern[bytes] | re.Pattern[str]

Match = Any
"""The pattern itself; of an expression the match object."""

_BRIEF = 0.001  # seconds of a search, after which there is no need to wait

_TAIL = 2000  # of what was seen, in an error


class Readable(Protocol):
    """What is needed of a channel; see `Channel`."""

    @property
    def is_text(self) -> bool: ...

    @property
    def can_wait(self) -> bool: ...

    def get_fd(self) -> int: ...

    def layers(self) -> Iterator[Source]: ...

    def receive(self) -> Data: ...

    def take_all(self) -> Data: ...

    def put_back(self, data: Data) -> None: ...


def read_until(channel: Readable, pattern: Pattern, deadline: Deadline,
               ) -> tuple[Data, Match]:
    """See `IChannel.read_until`."""
    search = _searching(pattern, str if channel.is_text else bytes)
    seen = channel.take_all()
    if isinstance(seen, bytes):
        seen = bytearray(seen)  # to which a piece is added at its own cost
    end = 0
    try:
        late = False
        while True:
            began = time.monotonic()
            found = search(seen)
            took = time.monotonic() - began
            if found is not None:
                break
            if late:
                raise _too_late(channel, pattern, deadline, seen)
            late = deadline.passed  # even if there is always more
            seen += _receive(channel, pattern, deadline, seen)
            # To search a large output takes at most half of the time. An end,
            # or a reason not to wait, is told after the search.
            rest = Deadline(min(took, deadline.left()))
            with contextlib.suppress(EndpointClosedException, StillKept):
                while took > _BRIEF and not rest.passed and (
                        (data := channel.receive()) or _wait(channel, rest)):
                    seen += data
        begin, end, match = found
        return _plain(seen[:begin]), match
    finally:
        channel.put_back(_plain(seen[end:]))


def _receive(channel: Readable, pattern: Pattern, deadline: Deadline,
             seen: Data) -> Data:
    while True:
        try:
            data = channel.receive()
        except EndpointClosedException as error:
            tail = _plain(seen[-_TAIL:])
            raise EndpointClosedException(
                f'{channel!r} ended before {pattern!r}; seen last: {tail!r}',
                tail) from error
        if data:
            return data
        if not _wait(channel, deadline):
            raise _too_late(channel, pattern, deadline, seen)


def _wait(channel: Readable, deadline: Deadline) -> bool:
    """Wait for more; the other side may first need what is kept."""
    if not channel.can_wait:
        return False
    try:
        fd = channel.get_fd()
    except NotImplementedError:
        return False  # no descriptor tells when more comes
    masks = {fd: select.POLLIN}
    for layer in channel.layers():
        if layer.kept and layer.sink_fd >= 0:
            masks[layer.sink_fd] = masks.get(layer.sink_fd, 0) | select.POLLOUT
    return wait_for_any(masks, deadline)


def _too_late(channel: Readable, pattern: Pattern, deadline: Deadline,
              seen: Data) -> DeadlineExceeded:
    tail = _plain(seen[-_TAIL:])
    return DeadlineExceeded(
        f'{channel!r}: no {pattern!r} in {deadline.seconds} s; seen last: '
        f'{tail!r}', tail)


def _plain(seen: Data) -> Data:
    return seen if isinstance(seen, str) else bytes(seen)


def _searching(pattern: Pattern, kind: type[str] | type[bytes],
               ) -> Callable[[Data], tuple[int, int, Match] | None]:
    """A function that finds where a match begins and ends, and the match.

    It is called again and again, with all that was seen so far. It returns
    None as long as nothing matches.
    """
    text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    if not isinstance(text, kind):
        raise TypeError(f'the pattern of this channel is {kind.__name__}, '
                        f'not {pattern!r}')
    if isinstance(pattern, re.Pattern):
        def search(seen: Data) -> tuple[int, int, Match] | None:
            match = pattern.search(_plain(seen))
            return None if match is None else (*match.span(), match)
        return search
    if not pattern:
        raise ValueError('there is no pattern to read up to')
    start = 0

    def find(seen: Data) -> tuple[int, int, Match] | None:
        nonlocal start
        begin = seen.find(pattern, start)
        start = max(0, len(seen) - len(pattern) + 1)
        return None if begin < 0 else (begin, begin + len(pattern), pattern)
    return find
