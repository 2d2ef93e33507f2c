"""Tables of text, for people and for terminals of any width."""

TYPE_CHECKING = False  # not that of `typing`, whose import takes long
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SHORTEST = 12
"""A last column that is cut has at least this width."""


def lines(rows: 'Iterable[Sequence[str]]', columns: int | None = None,
          right: 'Iterable[int]' = ()) -> 'Iterator[str]':
    """The rows, with aligned cells.

    `right` has the numbers of the columns whose cells stand at the right, as
    numbers do. If `columns` is not None, the last cell of a row is cut so that
    the row fits into as many columns of a terminal, where that is possible.
    """
    rows = [[*map(shown, row)] for row in rows]
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    right = {*right}
    for row in rows:
        line = ''
        for number, cell in enumerate(row[:-1]):
            gap = ' ' * (widths[number] - width(cell))
            line += (gap + cell if number in right else cell + gap) + '  '
        last = row[-1]
        if columns is not None:
            last = cut(last, max(SHORTEST, columns - width(line)))
        yield (line + last).rstrip()


def shown(text: str) -> str:
    """The text without what would change a terminal or a table.

    Line ends, escape sequences and other characters that cannot be printed
    stand as in a string of Python: a newline as ``\\n``. A byte that is no
    UTF-8, and that a surrogate stands for, is shown as ``\\xff``.
    """
    return text if text.isprintable() else ''.join(map(_shown, text))


_SHORT = {'\n': r'\n', '\r': r'\r', '\t': r'\t'}


def _shown(character: str) -> str:
    code = ord(character)
    if character.isprintable():
        return character
    if 0xdc80 <= code <= 0xdcff:
        code -= 0xdc00
    if code < 0x100:
        return _SHORT.get(character) or f'\\x{code:02x}'
    return f'\\u{code:04x}' if code < 0x10000 else f'\\U{code:08x}'


def width(text: str) -> int:
    """How many columns of a terminal the text takes."""
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(character: str) -> int:
    import unicodedata  # most text is ASCII
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in 'WF' else 1


def cut(text: str, columns: int) -> str:
    """The beginning of the text, with an ellipsis, if it is too long."""
    if width(text) <= columns:
        return text
    end, room = 0, columns - 1
    while end < len(text) and (room := room - _width(text[end])) >= 0:
        end += 1
    return text[:end] + '…'
