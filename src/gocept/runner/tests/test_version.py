"""The version of this package."""

import importlib.metadata
import pathlib
import shutil
import tempfile
import unittest
from unittest import mock

from gocept.runner import version


class VersionTests(unittest.TestCase):

    def setUp(self) -> None:
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)
        self.enterContext(mock.patch.object(
            version, '__file__',
            str(self.dir / 'gocept' / 'runner' / 'version.py')))

    def put(self, *names: str, text: str = 'Name: x\nVersion: 4.7\n') -> None:
        path = self.dir.joinpath(*names)
        path.parent.mkdir(parents=True)
        path.write_text(text)

    def test_what_is_beside_the_package(self) -> None:
        for names in (('gocept.runner-4.7.dist-info', 'METADATA'),
                      ('gocept_runner-4.7.dist-info', 'METADATA'),
                      ('gocept.runner.egg-info', 'PKG-INFO'),
                      ('EGG-INFO', 'PKG-INFO')):
            with self.subTest(names):
                self.put(*names)
                self.assertEqual('4.7', version.version())
                shutil.rmtree(self.dir / names[0])

    def test_what_is_elsewhere(self) -> None:
        self.put('gocept.runner.egg-info', 'PKG-INFO', text='Name: x\n')
        self.put('gocept.recipe-1.dist-info', 'METADATA')
        self.assertEqual(importlib.metadata.version('gocept.runner'),
                         version.version())

    def test_nothing(self) -> None:
        with mock.patch('importlib.metadata.version', side_effect=(
                importlib.metadata.PackageNotFoundError)):
            self.assertEqual('of no installed distribution',
                             version.version())


class InstalledTests(unittest.TestCase):

    def test_this_one(self) -> None:
        self.assertEqual(importlib.metadata.version('gocept.runner'),
                         version.version())
