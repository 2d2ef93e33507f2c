"""Directories of the user, and what programs register there."""

import os
import pathlib
import shutil
import tempfile
import unittest
from unittest import mock

from gocept.runner.operation import directory


class RegisterTests(unittest.TestCase):

    def setUp(self) -> None:
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)
        self.enterContext(mock.patch.dict(
            os.environ, {'XDG_STATE_HOME': str(self.dir)}))
        self.states = self.dir / 'states\n'
        self.states.mkdir()

    def links(self) -> list[pathlib.Path]:
        return [*(self.dir / 'gocept.runner' / 'workers').iterdir()]

    def test_nothing_is_registered(self) -> None:
        self.assertEqual([], directory.registered())

    def test_what_is_registered(self) -> None:
        for _ in range(2):
            directory.register(str(self.states))
        self.assertEqual([str(self.states)], directory.registered())
        self.assertEqual(1, len(self.links()))

    def test_the_directory_is_private(self) -> None:
        directory.register(str(self.states))
        self.assertEqual(
            0o700, self.links()[0].parent.stat().st_mode & 0o777)

    def test_what_is_gone_is_forgotten(self) -> None:
        directory.register(str(self.states))
        self.states.rmdir()
        self.assertEqual([], directory.registered())
        directory.forget_missing()
        self.assertEqual([], self.links())

    def test_what_is_gone_is_forgotten_by_the_next_one(self) -> None:
        directory.register(str(self.states))
        self.states.rmdir()
        other = self.dir / 'other'
        other.mkdir()
        directory.register(str(other))
        self.assertEqual([str(other)], directory.registered())
        self.assertEqual(1, len(self.links()))

    def test_no_home(self) -> None:
        with (mock.patch.dict(os.environ, {'XDG_STATE_HOME': ''}),
              mock.patch('os.path.expanduser', lambda path: path)):
            self.assertEqual([], directory.registered())
            directory.forget_missing()
            with self.assertRaises(ValueError):
                directory.register('/x')
