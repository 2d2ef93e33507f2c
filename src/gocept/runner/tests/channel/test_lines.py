import unittest

from hypothesis import example, given
from hypothesis import strategies as st

from gocept.runner.channel.lines import Lines
from gocept.runner.tests.properties import steady

quick = steady(max_examples=200)


@st.composite
def pieces(draw, alphabet=b'ab\n\n\r'):
    """Data that was split somewhere; some of the pieces are empty."""
    whole = bytes(draw(st.lists(st.sampled_from(alphabet), max_size=40)))
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    return [whole[begin:end]
            for begin, end in zip([0, *cuts], [*cuts, len(whole)])]


def lines_of(data, limit):
    """The lines of `data` and the rest, in the plainest way."""
    lines = []
    while data:
        end = data.find(b'\n') + 1
        if not end and len(data) < limit:
            break
        end = min(end or limit, limit)
        lines.append(data[:end])
        data = data[end:]
    return lines, data


class Copies(Lines):
    """Counts the bytes that it copies."""

    copied = 0

    def __init__(self, limit):
        super().__init__(limit)
        self.nothing = self

    def join(self, parts):
        joined = b''.join(parts)
        self.copied += len(joined)
        return joined

    def _read_lines(self, data):
        self.copied += len(data)
        return super()._read_lines(data)

    def _cut(self, line):
        self.copied += len(line)
        return super()._cut(line)


class LinesTests(unittest.TestCase):

    @quick
    @given(pieces(), st.integers(1, 8) | st.just(1000))
    @example([b'a\r\nb\x0bc\x0cd\x1ce\x85f\n'], 1000)
    def test_the_lines_do_not_depend_on_the_pieces(self, pieces, limit):
        lines = Lines(limit)
        got, received = [], b''
        for piece in pieces:
            got += lines.feed(piece)
            received += piece
            # None of them waits for more.
            self.assertEqual(lines_of(received, limit)[0], got)
        self.assertEqual(lines_of(received, limit)[1], lines.take_rest())

    @quick
    @given(pieces(), st.integers(1, 8) | st.just(1000))
    def test_text_like_bytes(self, pieces, limit):
        as_bytes, as_text = Lines(limit), Lines(limit, text=True)
        for piece in pieces:
            self.assertEqual(
                [line.decode() for line in as_bytes.feed(piece)],
                as_text.feed(piece.decode()))
        self.assertEqual(as_bytes.take_rest().decode(), as_text.take_rest())

    def test_a_newline_is_the_only_line_end_of_text(self):
        data = 'a\rb\r\nc\x0bd\x0ce\x1cf\x85g\u2028h\n'
        self.assertEqual(['a\rb\r\n', data[5:]],
                         Lines(1000, text=True).feed(data))

    def test_what_is_too_long_comes_in_pieces(self):
        lines = Lines(4)
        self.assertEqual([b'abc\n'], lines.feed(b'abc\n'))
        self.assertEqual([b'abcd', b'\n'], lines.feed(b'abcd\n'))
        self.assertEqual([], lines.feed(b'abc'))
        self.assertEqual([b'abcd', b'efgh'], lines.feed(b'defghi'))
        self.assertEqual([b'ij\n'], lines.feed(b'j\nk'))
        self.assertEqual(b'k', lines.take_rest())

    def test_the_rest_is_forgotten(self):
        lines = Lines(4)
        lines.feed(b'abc')
        self.assertEqual(b'abc', lines.take_rest())
        self.assertEqual(b'', lines.take_rest())
        self.assertEqual([], lines.feed(b'abc'))

    def test_no_line_is_short_enough(self):
        with self.assertRaisesRegex(ValueError, '1 or more, not 0'):
            Lines(0)

    def test_the_cost_does_not_depend_on_the_pieces(self):
        data = (b'x' * 99_999 + b'\n') * 10
        for limit in (100, 70_000, 2 ** 20):
            for size in (100, 7_777, 65_536, 1_000_000):
                with self.subTest(limit=limit, size=size):
                    lines, got = Copies(limit), []
                    for start in range(0, len(data), size):
                        got += lines.feed(data[start:start + size])
                    self.assertEqual(data, b''.join(got))
                    self.assertLess(lines.copied, 4 * len(data))

    def test_the_cost_of_single_bytes(self):
        lines = Copies(2 ** 20)
        for _ in range(100_000):
            lines.feed(b'x')
        self.assertEqual(0, lines.copied)
        lines.feed(b'\n')
        self.assertLessEqual(lines.copied, 100_002)
