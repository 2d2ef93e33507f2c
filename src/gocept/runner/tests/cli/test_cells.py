"""Numbers, times and colours in tables."""

import os
import unittest
from unittest import mock

from gocept.runner.cli import cells


class NumberTests(unittest.TestCase):

    def test_sizes(self) -> None:
        for count, expected in (
                (0, '0 B'), (1023, '1023 B'), (1024, '1.0 KiB'),
                (1 << 20, '1.0 MiB'), (1023 << 20, '1.0 GiB'),
                (5 << 50, '5120.0 TiB'), (None, '-')):
            with self.subTest(expected):
                self.assertEqual(expected, cells.size(count))

    def test_durations(self) -> None:
        for seconds, expected in (
                (0, '0 s'), (59.9, '59 s'), (60, '1 min 00 s'),
                (3599, '59 min 59 s'), (3600, '1 h 00 min'),
                (86399, '23 h 59 min'), (86400, '1 d 00 h'),
                (8640000, '100 d 00 h')):
            with self.subTest(expected):
                self.assertEqual(expected, cells.duration(seconds))


class ColourTests(unittest.TestCase):

    def test_when_there_are_colours(self) -> None:
        for choice, terminal, environment, expected in (
                ('auto', True, {}, True), ('auto', False, {}, False),
                ('auto', True, {'NO_COLOR': '1'}, False),
                ('auto', True, {'NO_COLOR': ''}, True),
                ('auto', True, {'TERM': 'dumb'}, False),
                ('always', False, {'NO_COLOR': '1'}, True),
                ('never', True, {}, False)):
            with self.subTest((choice, terminal, environment)):
                with mock.patch.dict(
                        os.environ, {'TERM': 'xterm', **environment}):
                    if not environment:
                        os.environ.pop('NO_COLOR', None)
                    self.assertEqual(
                        expected, cells.wants_colour(choice, terminal))
