"""Colours in tables."""

import os
import unittest
from unittest import mock

from gocept.runner.cli import cells


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
