"""The wheel, and what an index shows of it."""

import ast
import atexit
import email.message
import email.parser
import functools
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import unittest
import zipfile
from pathlib import Path

from gocept.runner.tests.support import DEADLINE, child_environment
from gocept.runner.tests.test_documents import CHECKOUT, PACKAGE

SOURCES = ('setup.py', 'pyproject.toml', 'README.rst', 'CHANGES.rst',
           'LICENSE.txt', 'MANIFEST.in', 'src')

BUILD = 'from setuptools import build_meta; build_meta.build_wheel(".")'


@functools.cache
def build_wheel() -> Path:
    """Build a wheel of a copy of the checkout; returns its path.

    Needs setuptools, and no index. All tests of a run share the wheel.
    """
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory)
    for name in SOURCES:
        if (CHECKOUT / name).is_dir():
            shutil.copytree(
                CHECKOUT / name, directory / name,
                ignore=shutil.ignore_patterns('__pycache__', '*.egg-info'))
        else:
            shutil.copy(CHECKOUT / name, directory)
    subprocess.run(
        [sys.executable, '-c', BUILD], cwd=directory, check=True,
        env=child_environment(), timeout=DEADLINE, capture_output=True)
    [wheel] = directory.glob('*.whl')
    return wheel


ZOPE = frozenset({
    'AccessControl', 'Acquisition', 'App', 'OFS', 'Products', 'ZPublisher',
    'Zope2', 'zExceptions', 'zope.globalrequest', 'zope.traversing'})
"""What comes with the extras zope5, zope6 and plone."""


def imports(tree: ast.AST) -> set[str]:
    """The modules that this code imports, inside of functions as well.

    What is imported from a module may be a module, too.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f'{node.module}.{each.name}' for each in node.names}
    return found


class WheelTests(unittest.TestCase):

    level = 2

    def setUp(self) -> None:
        with zipfile.ZipFile(build_wheel()) as archive:
            self.names = set(archive.namelist())
            [name] = (name for name in self.names
                      if name.endswith('.dist-info/METADATA'))
            self.metadata: email.message.Message = (
                email.parser.BytesParser().parsebytes(archive.read(name)))
            self.entry_points = archive.read(
                name.replace('METADATA', 'entry_points.txt')).decode()

    def test_it_has_all_files_but_the_tests(self) -> None:
        expected = {
            path.relative_to(PACKAGE.parents[1]).as_posix()
            for path in PACKAGE.rglob('*')
            if path.is_file() and '__pycache__' not in path.parts
            and PACKAGE / 'tests' not in path.parents}
        self.assertEqual(expected, {
            name for name in self.names if '.dist-info/' not in name})

    def test_an_old_pip_can_build_it(self) -> None:
        project = tomllib.loads((CHECKOUT / 'pyproject.toml').read_text())
        self.assertEqual('setuptools.build_meta',
                         project['build-system']['build-backend'])

    def test_it_needs_what_it_imports(self) -> None:
        modules = set()
        for path in PACKAGE.rglob('*.py'):
            room = path.relative_to(PACKAGE)
            if room.parts[0] not in ('example', 'tests'):
                found = imports(ast.parse(path.read_text()))
                if room.is_relative_to('boot/zope'):
                    found = {module for module in found if not any(
                        f'{module}.'.startswith(f'{name}.') for name in ZOPE)}
                modules |= found
        needed = {re.split(r'[\[>;]', each)[0] for each in
                  self.metadata.get_all('Requires-Dist', ())
                  if 'extra ==' not in each
                  or re.search(r'"(pytest|metrics|zeo)"', each)}
        needed.remove('tzdata')  # the zones of zoneinfo
        foreign = {module for module in modules
                   if module.partition('.')[0] not in {
                       'gocept', *sys.stdlib_module_names}}
        for module in foreign:
            with self.subTest(module):
                self.assertTrue(any(
                    f'{module}.'.startswith(f'{name}.') for name in needed))
        for name in needed:
            with self.subTest(name):
                self.assertTrue(any(
                    f'{module}.'.startswith(f'{name}.') for module in foreign))

    def test_what_it_needs_has_a_lower_bound(self) -> None:
        needed = [each for each in self.metadata.get_all('Requires-Dist', ())
                  if ';' not in each]
        self.assertLess(15, len(needed))
        for each in needed:
            self.assertRegex(each, r'^[\w.]+(\[\w+\])?>=[\d.]+$')

    def test_each_zope_has_an_extra_and_constraints(self) -> None:
        for name in 'zope5', 'zope6', 'plone':
            with self.subTest(name):
                self.assertIn(
                    name, self.metadata.get_all('Provides-Extra', ()))
                pins = (CHECKOUT / 'constraints' / f'{name}.txt').read_text()
                self.assertRegex(pins, '(?m)^Zope==')

    def test_pytest_finds_the_plugin_by_the_name_of_its_module(self) -> None:
        name = 'gocept.runner.testing.plugin'
        self.assertIn(f'[pytest11]\n{name} = {name}\n', self.entry_points)

    def test_it_has_addresses(self) -> None:
        self.assertRegex(self.metadata['Home-page'], '^https://')
        self.assertRegex(self.metadata['Project-URL'],
                         '^Changelog, https://.*/CHANGES.rst$')

    def test_an_index_can_show_the_description(self) -> None:
        from docutils.core import publish_string
        self.assertEqual(
            'text/x-rst', self.metadata['Description-Content-Type'])
        text = self.metadata.get_payload(decode=True)
        assert isinstance(text, bytes)
        # Without what readers of strangers' text switch off, and strictly.
        page = publish_string(
            text.decode(), writer='html5', settings_overrides={
                'file_insertion_enabled': False, 'raw_enabled': False,
                'halt_level': 2, 'output_encoding': 'unicode'})
        targets = re.findall('href="([^"]*)"', page)
        anchors = set(re.findall('id="([^"]*)"', page))
        for target in targets:
            with self.subTest(target):
                # Other files are not there.
                if not target.startswith('https://'):
                    self.assertIn(target.removeprefix('#'), anchors)
        self.assertIn('docs/design.rst', page)
