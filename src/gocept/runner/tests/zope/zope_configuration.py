"""Reading the zope.conf of a Zope."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import unittest
from typing import Any
from unittest import mock

import ZConfig

from gocept.runner.boot import environments
from gocept.runner.boot.environments import NOTHING_SAID
from gocept.runner.boot.messages import message
from gocept.runner.boot.zope.environment import ZopeEnvironment
from gocept.runner.errors import ConfigurationError
from gocept.runner.operation.place import Place, place_of

ROOT = """\
<zodb_db main>
  <mappingstorage/>
  mount-point /
</zodb_db>
"""


class LoadTests(unittest.TestCase):

    def setUp(self) -> None:
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)
        # Zope tells itself where its instance is when it is imported.
        self.enterContext(mock.patch.dict(os.environ))

    def load(self, text: str = ROOT) -> Any:
        conf = self.dir / 'zope.conf'
        conf.write_text(f'instancehome {self.dir}\n{text}')
        return ZopeEnvironment(NOTHING_SAID).load(conf)

    def assertMistake(self, expected: str, text: str) -> None:
        with self.assertRaises(
                (ZConfig.ConfigurationError, ConfigurationError)) as raised:
            self.load(text)
        line = message(raised.exception)
        self.assertIn(expected, line)
        self.assertIn(f'{self.dir}/zope.conf', line)
        self.assertNotIn('\n', line)

    def test_what_all_applications_have(self) -> None:
        options = self.load()
        self.assertEqual(f'{self.dir}/zope.conf', options.configfile)
        self.assertFalse(options.built_in)

    def test_the_place_of_the_database_with_the_root(self) -> None:
        (self.dir / 'var').mkdir()
        storage = '<filestorage>\npath {}/{}.fs\n</filestorage>\n'
        options = self.load(''.join(
            f'<zodb_db {name}>\n{storage.format(self.dir / "var", name)}'
            f'mount-point {mount}\n</zodb_db>\n'
            for name, mount in (('catalog', '/catalog'), ('main', '/'))))
        environment = ZopeEnvironment(NOTHING_SAID)
        self.assertEqual(
            'main', environment.main_database(options).getName())
        with mock.patch.object(environments, 'current', lambda: environment):
            self.assertEqual(
                Place(os.path.realpath(self.dir / 'var'), 'main.fs.'),
                place_of(options))

    def test_the_zcml_of_the_instance(self) -> None:
        self.assertRegex(self.load().site_definition,
                         '/Zope2/utilities/skel/etc/site.zcml$')
        path = self.dir / 'etc' / 'site.zcml'
        path.parent.mkdir()
        path.touch()
        self.assertEqual(str(path), self.load().site_definition)

    def test_nothing_in_the_process_is_changed(self) -> None:
        self.load()
        with mock.patch.dict(os.environ):
            os.environ.pop('ZEO_TMP', None)
            before = dict(os.environ)
            self.load(f'<environment>\nCOLOUR red\n</environment>\n{ROOT}')
            self.assertEqual(before, dict(os.environ))
            os.environ['ZEO_TMP'] = '/tmp'
            self.load()
            self.assertEqual('/tmp', os.environ['ZEO_TMP'])

    def test_a_host_without_an_address(self) -> None:
        from gocept.runner.boot.zope.configuration import apply
        options = self.load()
        options.handlers = mock.Mock(side_effect=OSError('unknown host'))
        with contextlib.ExitStack() as undo, self.assertRaisesRegex(
                ConfigurationError, 'zope.conf: trusted-proxy: unknown host'):
            apply(options, undo)

    def test_words(self) -> None:
        self.assertMistake("line 2: 'nonsense' is not a known key name",
                           f'nonsense on\n{ROOT}')
        self.assertMistake('line 2: ', f'debug-mode perhaps\n{ROOT}')
        self.assertMistake(
            'line 4: The object named by \'no.such\' could not be imported',
            ROOT.replace('  mount', '  connection-class no.such\n  mount'))

    def test_databases(self) -> None:
        self.assertMistake('one <zodb_db> section needs "mount-point /"', '')
        self.assertMistake('one <zodb_db> section needs "mount-point /"',
                           ROOT.replace('point /', 'point /a'))
        self.assertMistake('the section <zodb_db main> needs a storage',
                           ROOT.replace('<mappingstorage/>', ''))
        self.assertMistake(
            'line 2: the section of a database needs a name, as in <zodb_db ',
            ROOT.replace('zodb_db main', 'zodb_db'))
        self.assertMistake(
            'a <zodb_db> section is needed; <zodb> is of no use here',
            f'{ROOT}<zodb other>\n<mappingstorage/>\n</zodb>\n')
        self.assertMistake('both configured to use the same mount point',
                           ROOT + ROOT.replace('main', 'other'))
        self.assertMistake(
            'put "%import relstorage" before it',
            ROOT.replace('<mappingstorage/>',
                         '<relstorage>\n<sqlite3>\ndata-dir x\n</sqlite3>\n'
                         '</relstorage>'))

    def test_caches_of_zeo_clients(self) -> None:
        from gocept.runner.boot.zope.databases import use_own_caches
        [database] = self.load(f"""\
%import ZEO
<zodb_db main>
  <demostorage>
    <mappingstorage/>
    <clientstorage>
      server localhost:1
      cache-path {self.dir}/cache
    </clientstorage>
  </demostorage>
  mount-point /
</zodb_db>
""").databases
        use_own_caches([database])
        _, client = database.config.storage.config.factories
        self.assertIsNone(client.config.cache_path)
        [database] = self.load(ROOT.replace(
            '<mappingstorage/>', '<zeoclient>\nserver localhost:1\n'
            'client web\n</zeoclient>')).databases
        use_own_caches([database])
        self.assertIsNone(database.config.storage.config.client)
