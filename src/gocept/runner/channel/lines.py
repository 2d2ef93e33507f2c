"""Lines out of pieces that were split anywhere.

The cost is linear in the data: each byte is copied a fixed number of times,
however the pieces were split and however long the lines are.
"""

import io
from typing import Any

Data = Any
"""bytes; with an encoding str."""


class Lines:
    """Takes pieces of bytes, or of text, and gives lines.

    A line ends with a newline, and with nothing else. One that is longer than
    `limit`, with its newline, is cut: all its pieces but the last are `limit`
    long and end without one.
    """

    def __init__(self, limit: int, text: bool = False) -> None:
        if limit < 1:
            raise ValueError(f'a line needs a limit of 1 or more, not {limit}')
        self.limit = limit
        self.newline: Data = '\n' if text else b'\n'
        self.nothing: Data = self.newline[:0]
        self._rest: list[Data] = []
        self.size = 0
        """How long the line is that has begun."""

    def feed(self, data: Data) -> list[Data]:
        """The lines that `data` completes, and pieces of too long ones."""
        size = self.size + len(data)
        if self.newline not in data and size < self.limit:
            self._rest.append(data)
            self.size = size
            return []
        lines = self._read_lines(data)
        if self._rest:
            lines[0] = self.nothing.join([*self._rest, lines[0]])
        if size > self.limit:
            lines = [piece for line in lines for piece in self._cut(line)]
        # A piece as long as the limit is not the beginning of another.
        self._rest = []
        if (not lines[-1].endswith(self.newline)
                and len(lines[-1]) < self.limit):
            self._rest.append(lines.pop())
        self.size = sum(map(len, self._rest))
        return lines

    def take_rest(self) -> Data:
        """What is left without a newline; it is forgotten here."""
        rest = self.nothing.join(self._rest)
        self._rest, self.size = [], 0
        return rest

    def _read_lines(self, data: Data) -> list[Data]:
        # Written in C, and other than splitlines() they know one line end.
        if isinstance(data, str):
            return io.StringIO(data, newline='\n').readlines()
        return io.BytesIO(data).readlines()

    def _cut(self, line: Data) -> list[Data]:
        if len(line) <= self.limit:
            return [line]
        return [line[start:start + self.limit]
                for start in range(0, len(line), self.limit)]
