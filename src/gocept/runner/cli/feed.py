"""The output of processes, as lines that a person reads."""

import datetime
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

from gocept.runner.cli import table
from gocept.runner.cli.cells import DIM, RED, coloured
from gocept.runner.cli.inventory import state

if TYPE_CHECKING:
    from gocept.runner.kernel.client.reading import ProcessOutput

LONGEST = 64 * 1024
"""Bytes of a line, before a part of it is shown as a line."""

COLOURS = 36, 32, 33, 34, 35, 96, 92, 93, 94, 95
"""Of the names, one after the other; red is for standard error."""


Records = Sequence['ProcessOutput']


class Feed:
    """Writes each line with its time and the name of its process.

    A part of a line is kept until its end comes. With `colour`, a name has a
    colour of its own. With `escape`, characters that cannot be printed stand
    as in a string of Python, so that no process can control the terminal. If
    `last` is not None, `catch_up` writes as many lines of each process, and
    later lines are written as they come.
    """

    def __init__(self, output: BinaryIO, names: Iterable[str] = (), *,
                 colour: bool = False, escape: bool = False,
                 last: int | None = None) -> None:
        self._output = output
        self._colour, self._escape = colour, escape
        self._colours: dict[str, int] = {}
        self._parts: dict[tuple[str, str], tuple[float, bytes]] = {}
        self._last = last
        self._backlog: dict[str, deque[tuple[int, bytes]]] = {}
        self._count = 0  # of the lines in it, and before it
        self._width = 0
        for name in names:
            self._know(name)

    def show(self, out: Records, err: Records, closed: Records,
             missing: Mapping[str, int]) -> None:
        """Write what a watcher has read, in the order of time."""
        for name, count in sorted(missing.items()):
            self._line(None, name, '~', f'{count} bytes are missing here')
        pieces = [*((each, '|') for each in out),
                  *((each, '!') for each in err)]
        # Pieces of one stream, and only these, stand in their order already.
        for piece, mark in sorted(pieces, key=lambda pair: pair[0].timestamp):
            self._piece(piece.name, piece.timestamp, _bytes(piece), mark)
        for end in closed:
            self._finish(end.name)
            self._line(end.timestamp, end.name, '=', state(end.data))
        self._output.flush()

    def catch_up(self) -> None:
        """What comes from now on is new."""
        lines = sorted(each for lines in self._backlog.values()
                       for each in lines)
        self._output.writelines(line for _, line in lines)
        self._output.flush()
        self._last, self._backlog = None, {}

    def close(self) -> None:
        """Write the parts of lines, too."""
        for name, _ in [*self._parts]:
            self._finish(name)
        self.catch_up()

    def _piece(self, name: str, now: float, data: bytes, mark: str) -> None:
        since, part = self._parts.pop((name, mark), (now, b''))
        *lines, rest = data.split(b'\n')
        for line in lines:
            self._line(since, name, mark, part + line)
            since, part = now, b''
        part += rest
        while len(part) > LONGEST:
            self._line(since, name, mark, part[:LONGEST])
            since, part = now, part[LONGEST:]
        if part:
            self._parts[name, mark] = since, part

    def _finish(self, name: str) -> None:
        for mark in '|', '!':
            since, part = self._parts.pop((name, mark), (0, b''))
            if part:
                self._line(since, name, mark, part)

    def _know(self, name: str) -> int:
        if name not in self._colours:
            self._colours[name] = COLOURS[len(self._colours) % len(COLOURS)]
            self._width = max(self._width, table.width(table.shown(name)))
        return self._colours[name]

    def _line(self, timestamp: float | None, name: str, mark: str,
              text: bytes | str) -> None:
        colour = self._know(name)
        time = ' ' * len(_time(0)) if timestamp is None else _time(timestamp)
        label = table.shown(name)
        label += ' ' * (self._width - table.width(label))
        if isinstance(text, bytes) and self._escape:
            text = visible(text)
        if isinstance(text, str):
            text = text.encode(errors='surrogateescape')
        line = b'%s %s %s %s\n' % (
            self._in(DIM, time), self._in(colour, label),
            self._in(RED if mark in '!~' else colour, mark), text)
        if self._last is None:
            self._output.write(line)
        else:
            self._count += 1
            self._backlog.setdefault(name, deque(maxlen=self._last)).append(
                (self._count, line))

    def _in(self, colour: int, text: str) -> bytes:
        text = coloured(colour, text) if self._colour else text
        return text.encode(errors='surrogateescape')


class RawFeed:
    """Writes the bytes of all processes, as they came."""

    def __init__(self, output: BinaryIO, errors: BinaryIO) -> None:
        self._output, self._errors = output, errors

    def show(self, out: Records, err: Records, closed: Records,
             missing: Mapping[str, int]) -> None:
        """See `Feed.show`."""
        pieces = [*((each, self._output) for each in out),
                  *((each, self._errors) for each in err)]
        for name, count in sorted(missing.items()):
            self._errors.write(b'%d bytes of %s are missing here\n' % (
                count, table.shown(name).encode()))
        for piece, output in sorted(pieces, key=lambda it: it[0].timestamp):
            output.write(_bytes(piece))
        self._output.flush()
        self._errors.flush()

    def catch_up(self) -> None:
        """There are no lines to count."""

    def close(self) -> None:
        """There are no parts of lines."""


def _bytes(piece: 'ProcessOutput') -> bytes:
    assert isinstance(piece.data, bytes)
    return piece.data


def visible(line: bytes) -> str:
    """A line of a process, as a terminal can show it without harm."""
    text = line.removesuffix(b'\r').decode(errors='surrogateescape')
    return '\t'.join(map(table.shown, text.split('\t')))


def _time(timestamp: float) -> str:
    return datetime.datetime.fromtimestamp(timestamp).isoformat(
        ' ', 'milliseconds')
