"""Tests of the path on which modules are found."""

import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
import unittest
from unittest import mock

from gocept.runner.waits.modules import module_path

OURS = str(pathlib.Path(__file__).parents[4])


class ModulePathTest(unittest.TestCase):

    def setUp(self):
        directory = os.path.realpath(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        self.enterContext(contextlib.chdir(directory))
        self.directory = directory

    def path(self, *entries):
        with mock.patch.object(sys, 'path', [*entries]):
            return module_path()

    def test_what_is_relative(self):
        self.assertEqual(
            [self.directory, f'{self.directory}/lib', '/abs/lib', OURS],
            self.path('', 'lib', '/abs/../abs/lib'))

    def test_what_is_no_text(self):
        self.assertEqual(
            ['/a', OURS],
            self.path(None, b'/b', pathlib.Path('/c'), 5, '/a'))

    def test_a_directory_that_is_gone(self):
        os.rmdir(self.directory)
        self.assertEqual(['/a', OURS], self.path('', 'lib', '/a'))

    def test_ours_may_be_found_by_a_hook_alone(self):
        self.assertIn('gocept', os.listdir(OURS))
        self.assertEqual([OURS], self.path())
        self.assertEqual([OURS, '/a'], self.path(OURS, '/a'))
