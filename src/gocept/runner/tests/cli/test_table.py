"""Tables of text."""

import unittest

from gocept.runner.cli import table


class TableTests(unittest.TestCase):

    def test_cells_stand_below_each_other(self) -> None:
        self.assertEqual(
            ['NAME   SIZE  WHAT', 'a         1  x y', 'bcdef  1000'],
            [*table.lines([('NAME', 'SIZE', 'WHAT'), ('a', '1', 'x y'),
                           ('bcdef', '1000', '')], right=[1])])

    def test_no_rows(self) -> None:
        self.assertEqual([], [*table.lines([])])

    def test_the_last_cell_is_cut_at_the_width_of_the_terminal(self) -> None:
        rows = [('name', 'x' * 50)]
        for columns, expected in (
                (None, 50), (56, 50), (55, 49), (30, 24), (5, 12)):
            with self.subTest(columns=columns):
                line, = table.lines(rows, columns)
                cell = line.removeprefix('name  ')
                self.assertEqual(expected, len(cell))
                self.assertEqual(expected < 50, cell.endswith('…'))

    def test_what_cannot_be_printed_is_escaped(self) -> None:
        for text, expected in (
                ('plain ünïcode', 'plain ünïcode'), ('', ''),
                ('a\nb\r\t', r'a\nb\r\t'),
                ('\x1b[31mred\x07', r'\x1b[31mred\x07'),
                ('\x9b1m', r'\x9b1m'), ('left\u202eright', r'left\u202eright'),
                (b'\xff'.decode(errors='surrogateescape'), r'\xff'),
                ('\ud800', r'\ud800'), ('\U000e0001', r'\U000e0001')):
            with self.subTest(expected):
                self.assertEqual(expected, table.shown(text))

    def test_wide_and_combining_characters(self) -> None:
        self.assertEqual(4, table.width('日本'))
        self.assertEqual(2, table.width('e\u0301x'))
        self.assertEqual(['日本  b', 'abcd  c'],
                         [*table.lines([('日本', 'b'), ('abcd', 'c')])])
        self.assertEqual('日…', table.cut('日本語', 4))
        self.assertEqual('日本…', table.cut('日本語語', 5))
        self.assertEqual('abcd', table.cut('abcd', 4))
