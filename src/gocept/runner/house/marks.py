"""Whose line it is: the mark of each line.

All marks of a house are equally wide, so that lines stand below each other.
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime

_COLOURS = 36, 33, 32, 35, 34, 96, 93, 92, 95, 94
"""Of ANSI terminals. Red is not among them, as it looks like an error."""

_DIM = 2

_WIDEST = 24
"""Characters. A longer name makes its own lines longer, and no others."""


class Marks:
    """What the lines of each name begin with, in bytes.

    The colours are given in the order in which names are added.
    """

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours
        self._names: dict[str, int] = {}
        self._marks: dict[str, bytes] = {}

    def add(self, names: Iterable[str], *, dim: bool = False) -> None:
        """Make room for these names; `dim` ones have no colour of a worker."""
        for name in names:
            if name not in self._names:
                used = sum(colour != _DIM for colour in self._names.values())
                self._names[name] = (
                    _DIM if dim else _COLOURS[used % len(_COLOURS)])
                self._marks.clear()

    def line(self, name: str, line: bytes) -> bytes:
        """A line of this name, with its mark and its newline."""
        return self._mark(name) + line + b'\n'

    def _mark(self, name: str) -> bytes:
        if name not in self._names:
            self.add([name])
        mark = self._marks.get(name)
        if mark is None:
            width = max(len(each) for each in self._names
                        if len(each) <= _WIDEST or each == name)
            text = f'{name:{width}} |'
            if self._colours:
                text = f'\x1b[{self._names[name]}m{text}\x1b[0m'
            mark = self._marks[name] = f'{text} '.encode(
                'utf-8', 'backslashreplace')
        return mark


class JSONMarks(Marks):
    """For logs in JSON: a line that is an object stays as it is.

    What else a worker writes, such as what it prints, becomes the message of
    an object that has the same keys as a line of the log.
    """

    def __init__(self) -> None:
        super().__init__(colours=False)

    def line(self, name: str, line: bytes) -> bytes:
        """See `Marks`."""
        if line.startswith(b'{'):
            return line + b'\n'
        now = datetime.now(UTC).isoformat(timespec='microseconds')
        return json.dumps({
            'time': now.replace('+00:00', 'Z'), 'level': 'INFO',
            'logger': 'gocept.runner.house',
            'message': line.decode('utf-8', 'backslashreplace'),
            'worker': name, 'tick': None, 'attempt': None, 'principal': None,
            'transaction': None, 'exception': None, 'process': None,
        }).encode() + b'\n'
