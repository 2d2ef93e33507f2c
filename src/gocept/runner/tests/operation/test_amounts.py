"""Numbers of bytes and times in tables."""

import unittest

from gocept.runner.operation import amounts


class NumberTests(unittest.TestCase):

    def test_sizes(self) -> None:
        for count, expected in (
                (0, '0 B'), (1023, '1023 B'), (1024, '1.0 KiB'),
                (1 << 20, '1.0 MiB'), (1023 << 20, '1.0 GiB'),
                (5 << 50, '5120.0 TiB'), (None, '-')):
            with self.subTest(expected):
                self.assertEqual(expected, amounts.size(count))

    def test_durations(self) -> None:
        for seconds, expected in (
                (0, '0 s'), (59.9, '59 s'), (60, '1 min 00 s'),
                (3599, '59 min 59 s'), (3600, '1 h 00 min'),
                (86399, '23 h 59 min'), (86400, '1 d 00 h'),
                (8640000, '100 d 00 h')):
            with self.subTest(expected):
                self.assertEqual(expected, amounts.duration(seconds))
