import contextlib
import os
import sys
import textwrap

import zc.lockfile
from ZODB.FileStorage.FileStorage import FileStorageFormatError

from gocept.runner.boot import zopeconf
from gocept.runner.boot.messages import message
from gocept.runner.boot.toolkit import Toolkit
from gocept.runner.tests.support import TestCase

INCLUDE = '<include package="gocept.runner" />'

MODULES = {
    'shop_imports': 'import os\n\nimport nothing_here\n',
    'shop_broken': 'x = 1\ny = undefined_name\n',
    'shop_deep': 'import shop_broken\n',
    'shop_json': 'import json\njson.loads("no")\n',
    'shop_syntax': 'x = 1\ndef f(:\n',
    'shop_good': 'def work():\n    pass\n',
}


class ZCMLTests(TestCase):
    """One line names the ZCML, and the code that failed."""

    def setUp(self) -> None:
        super().setUp()
        path = list(sys.path)
        self.addCleanup(sys.path.__setitem__, slice(None), path)
        for name, text in MODULES.items():
            self.write(f'{name}.py', text)
            self.addCleanup(sys.modules.pop, name, None)

    def assertMistake(self, zcml: str, *expected: str,
                      include: str = INCLUDE) -> str:
        path = self.write('site.zcml', '')
        path.write_text(
            '<configure xmlns="http://namespaces.zope.org/zope" '
            'xmlns:runner="http://namespaces.gocept.com/runner">\n'
            f'{include}\n{textwrap.dedent(zcml)}\n</configure>\n')
        options = zopeconf.load(self.zope_conf(
            f'path {self.dir}\nsite-definition {path}\n'
            '<eventlog>\n</eventlog>\n'))
        with self.assertRaises(Exception) as caught:
            with Toolkit().configured(options):
                pass
        assert isinstance(caught.exception, Exception)
        line = message(caught.exception)
        self.assertNotIn('\n', line)
        for text in (f'{self.dir}/site.zcml', *expected):
            self.assertIn(text, line)
        return line

    def a_worker(self, handler: str, more: str = '') -> str:
        return f'<runner:worker name="w" handler="{handler}" {more}/>'

    def test_a_module_that_cannot_be_found(self) -> None:
        self.assertMistake(
            self.a_worker('shop_typo:work'), 'line 3.0',
            "Invalid value for 'handler'",
            "ImportError: Couldn't import shop_typo, No module named "
            "'shop_typo' (is it installed, or does $PYTHONPATH name its "
            'directory?)')

    def test_a_module_that_its_package_does_not_have(self) -> None:
        line = self.assertMistake(
            self.a_worker('zope.event.typo:work'),
            "No module named 'zope.event.typo'")
        self.assertNotIn('is it installed', line)

    def test_a_package_that_is_not_installed(self) -> None:
        self.assertMistake(
            '<include package="zope.nothing_here" file="meta.zcml" />',
            'ImportError: Module zope has no global nothing_here (is the '
            'package zope.nothing_here installed?)')

    def test_a_name_that_the_module_does_not_have(self) -> None:
        self.assertMistake(
            self.a_worker('shop_good:nothing'),
            'ImportError: Module shop_good has no global nothing')

    def test_a_module_that_cannot_import_another(self) -> None:
        self.assertMistake(
            self.a_worker('shop_imports:work'), 'line 3.0',
            "ModuleNotFoundError: No module named 'nothing_here' (in the "
            f'module shop_imports: {self.dir}/shop_imports.py, line 3)')

    def test_a_module_that_fails(self) -> None:
        for name in 'shop_broken', 'shop_deep':
            self.assertMistake(
                self.a_worker(f'{name}.work'),
                "NameError: name 'undefined_name' is not defined (in the "
                f'module shop_broken: {self.dir}/shop_broken.py, line 2)')
            sys.modules.pop(name, None)

    def test_a_module_that_misuses_python(self) -> None:
        self.assertMistake(
            self.a_worker('shop_json:work'),
            f'(in the module shop_json: {self.dir}/shop_json.py, line 2)')

    def test_attributes_of_a_worker(self) -> None:
        for more in 'arguments="a b"', 'schedule="@daily" timezone="Mars"':
            self.assertNotIn('in the module', self.assertMistake(
                self.a_worker('zope.event.notify', more)))

    def test_directives_of_others(self) -> None:
        self.assertMistake(
            '<utility name="x" component="shop_broken.work" '
            'provides="zope.interface.Interface" />',
            f'(in the module shop_broken: {self.dir}/shop_broken.py, line 2)',
            include='<include package="zope.component" />')

    def test_a_syntax_error(self) -> None:
        self.assertMistake(
            self.a_worker('shop_syntax:work'), 'SyntaxError: invalid syntax',
            f'File "{self.dir}/shop_syntax.py", line 2')

    def test_a_missing_include(self) -> None:
        self.assertMistake(
            '<runner:app name="a" command="cat" />',
            "unknown directive 'app' of http://namespaces.gocept.com/runner",
            'line 3.0', ': is <include package="gocept.runner" /> missing '
            'before it?', include='')

    def test_an_unknown_directive(self) -> None:
        self.assertMistake(
            '<runner:ap name="a" command="cat" />',
            "unknown directive 'ap' of http://namespaces.gocept.com/runner",
            'line 3.0', ': there are app, executor, kernel, server, worker')

    def test_an_unknown_attribute(self) -> None:
        self.assertMistake('<runner:app name="a" command="cat" bufer="x" />',
                           "unknown attributes 'bufer' File", 'line 3.0')

    def test_a_wrong_value(self) -> None:
        self.assertMistake(
            self.a_worker('shop_good:work', 'ticks="often" '), 'line 3.0',
            "Invalid value for 'ticks'",
            "'often' is no number of seconds >= 0")

    def test_a_wrong_regular_expression(self) -> None:
        for name, kind in ('banner', 'output'), ('failure', 'output'), (
                'status', 'http'):
            self.assertMistake(
                f'<runner:executor name="e" command="cat" type="{kind}" '
                f'{name}="(" />', f"Invalid value for '{name}'",
                "'(' is no regular expression: missing ), unterminated "
                'subpattern')

    def test_mistakes_in_xml(self) -> None:
        self.assertMistake(
            '<configure>', 'site.zcml:5:0: no element found')
        self.assertMistake('<runner:app', 'site.zcml:4:0: not well-formed')
        self.assertMistake(
            '<shop:app />', 'site.zcml:3:0: unbound prefix: does <configure> '
            'have an xmlns:... for each prefix?')

    def test_the_traceback_is_a_debug_message(self) -> None:
        with self.assertLogs('gocept.runner.environment', 'DEBUG') as logs:
            self.assertMistake(self.a_worker('shop_deep:work'))
        [line] = [line for line in logs.output if 'ends the program' in line]
        self.assertIn('shop_deep.py", line 1, in <module>', line)
        self.assertIn('shop_broken.py", line 2, in <module>', line)


class OtherTests(TestCase):

    def test_a_lock(self) -> None:
        lock = str(self.dir / 'Data.fs.lock')
        with contextlib.closing(zc.lockfile.LockFile(lock)):
            with self.assertRaises(zc.lockfile.LockError) as caught:
                zc.lockfile.LockFile(lock)
            self.assertIn(
                f"'{lock}': another process ({os.getpid()}) has the database "
                'open;', message(caught.exception))
        os.remove(lock)
        self.assertIn(': another process has the database open;',
                      message(caught.exception))

    def test_a_file_that_is_no_database(self) -> None:
        self.assertEqual(
            f'{os.getcwd()}/parcels.py is no database of a <filestorage>',
            message(FileStorageFormatError('parcels.py')))
