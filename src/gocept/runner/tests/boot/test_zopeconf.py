import os
import pathlib
import textwrap
import unittest.mock

import ZConfig

from gocept.runner.boot import zopeconf
from gocept.runner.boot.messages import message as line_of
from gocept.runner.errors import ConfigurationError
from gocept.runner.tests.support import TestCase

ZODB = """
    <zodb>
      <mappingstorage>
      </mappingstorage>
    </zodb>
    """


class LoadTests(TestCase):

    def test_a_minimal_file(self):
        options = zopeconf.load(self.zope_conf(''))
        self.assertTrue(options.site_definition.endswith('site.zcml'))
        self.assertTrue(os.path.isabs(options.site_definition))
        self.assertIsNone(options.eventlog)

    def test_a_path_object(self):
        zopeconf.load(pathlib.Path(self.zope_conf()))

    def test_a_missing_file(self):
        with self.assertRaisesRegex(ZConfig.ConfigurationError,
                                    'no such file: missing.conf'):
            zopeconf.load('missing.conf')

    def test_an_unknown_key_names_file_and_line(self):
        conf = self.zope_conf('sit-definition x')
        with self.assertRaises(ZConfig.ConfigurationError) as caught:
            zopeconf.load(conf)
        self.assertIn("'sit-definition' is not a known key name",
                      str(caught.exception))
        self.assertIn(f'line 6 in file://{conf}', str(caught.exception))

    def test_an_unknown_section(self):
        with self.assertRaisesRegex(ZConfig.ConfigurationError, 'zoddb'):
            zopeconf.load(self.zope_conf('<zoddb>\n</zoddb>'))

    def test_a_database_is_required(self):
        path = self.write('empty.conf', '')
        with self.assertRaises(ZConfig.ConfigurationError):
            zopeconf.load(path)

    def test_two_databases_of_one_name(self):
        for name in ('', ' other'):
            section = (f'<zodb{name}>\n<mappingstorage>\n</mappingstorage>\n'
                       '</zodb>\n')
            path = self.write('two.conf', section * 2)
            with self.assertRaises((ConfigurationError,
                                    ZConfig.ConfigurationError)) as caught:
                zopeconf.load(path)
            self.assertIn(repr(name.strip()), str(caught.exception))

    def test_storages(self):
        for text in ('<mappingstorage>\n</mappingstorage>',
                     '<demostorage>\n</demostorage>',
                     '<zeoclient>\nserver localhost:1\n</zeoclient>'):
            with self.subTest(text):
                path = self.write('other.conf',
                                  f'<zodb>\n{text}\n</zodb>\n')
                self.assertEqual(1, len(zopeconf.load(path).databases))

    def test_a_directory(self):
        with self.assertRaisesRegex(ZConfig.ConfigurationError,
                                    f'^{self.dir} is a directory; name a '):
            zopeconf.load(self.dir)

    def test_a_missing_file_that_the_environment_names(self):
        with unittest.mock.patch.dict(os.environ, ZOPE_CONF='wrong.conf'):
            with self.assertRaisesRegex(
                    ZConfig.ConfigurationError,
                    f'^no such file: wrong.conf in {os.getcwd()}, which '
                    r'\$ZOPE_CONF names; name a zope.conf with --config'):
                zopeconf.load('wrong.conf')


class MistakeTests(TestCase):
    """Each error names the file, and the line if there is one."""

    def assertMistake(self, text, expected, name='zope.conf', coding='utf-8'):
        path = self.dir / name
        path.write_bytes(textwrap.dedent(text).lstrip('\n').encode(coding))
        with self.assertRaises(
                (ZConfig.ConfigurationError, ConfigurationError)) as caught:
            zopeconf.load(path)
        message = line_of(caught.exception)
        self.assertTrue(message.startswith(str(self.dir)), message)
        self.assertIn(expected, message)

    def test_no_database(self):
        self.assertMistake('', '/zope.conf: a <zodb> section is needed')

    def test_a_database_without_a_storage(self):
        self.assertMistake(
            '<zodb>\n</zodb>\n',
            '/zope.conf: a <zodb> section needs a storage')

    def test_a_file_of_a_web_server(self):
        self.assertMistake(
            '[app:zope]\nuse = egg:Zope#main\n',
            '/zope.ini, line 1: value did not match regular expression: '
            "'[app:zope]' (is this a file of a web server? Name the zope.conf "
            'that it names)', 'zope.ini')

    def test_another_encoding(self):
        expected = "is not in UTF-8: 'utf-8' codec can't decode byte 0xe9"
        self.assertMistake(ZODB + '# \xe9', expected, coding='latin-1')
        self.assertMistake('%include zope.conf', '/zope.conf ' + expected,
                           'other.conf')

    def test_a_byte_order_mark(self):
        expected = '/zope.conf, line 1: the file begins with a byte order mark'
        self.assertMistake(ZODB, expected, coding='utf-8-sig')
        self.assertMistake('%include zope.conf', expected, 'other.conf')

    def test_storages_that_have_to_be_imported(self):
        for name, package in (
                ('relstorage', 'relstorage'), ('clientstorage', 'ZEO')):
            self.assertMistake(
                f"""
                <zodb>
                  <{name}>
                  </{name}>
                </zodb>
                """, f"/zope.conf, line 2: unknown type name: '{name}': put "
                f'"%import {package}" before it')

    def test_an_import_that_is_not_there(self):
        self.assertMistake(
            '%import nothing\n' + ZODB,
            '/zope.conf, line 1: could not load package nothing')

    def test_an_include_that_is_not_there(self):
        self.assertMistake(
            '%include nothing.conf\n' + ZODB, '/zope.conf, line 1: '
            f'error opening file {self.dir}/nothing.conf')

    def test_a_wrong_value(self):
        self.assertMistake(
            'devmode perhaps\n' + ZODB,
            "/zope.conf, line 1: not a valid boolean value: 'perhaps'")

    def test_a_name_that_is_not_defined(self):
        self.assertMistake('path $nowhere\n' + ZODB,
                           "/zope.conf, line 1: no replacement for 'nowhere'")


class HereTests(TestCase):
    """The directory of the file is ``$here``."""

    def paths(self, text, name='zope.conf'):
        path = self.dir / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return zopeconf.load(os.path.relpath(path)).path

    def test_relative_to_the_file(self):
        self.assertEqual([f'{self.dir}/lib', f'{self.dir}/x'], self.paths(
            'path $here/lib\npath ${HERE}/x\n' + ZODB))

    def test_a_directory_with_unusual_characters(self):
        self.assertEqual([f'{self.dir}/a b%20ä/lib'], self.paths(
            'path $here/lib\n' + ZODB, 'a b%20ä/zope.conf'))

    def test_in_an_included_file(self):
        self.paths('path $here\n' + ZODB, 'part/one.conf')
        self.assertEqual(
            [str(self.dir), f'{self.dir}/part', str(self.dir)],
            self.paths('path $here\n%include $here/part/one.conf\n'
                       'path $here'))

    def test_a_file_that_defines_it_itself(self):
        self.assertEqual(['/srv/app', '/srv/app', '/srv/app/lib'], self.paths(
            '%define HERE /srv/app\npath $here\n%define lib $here/lib\n'
            '%define here /srv/app\npath $here\npath $lib\n' + ZODB))

    def test_what_a_file_defines_holds_in_those_it_includes(self):
        self.paths('path $here\n%define more x\n' + ZODB, 'part/one.conf')
        self.assertEqual(
            ['/srv/app', 'x'], self.paths(
                '%define here /srv/app\n%include part/one.conf\n'
                'path $more\n'))
