"""Modules that are imported before a fork."""

import subprocess
import sys
import types

from gocept.runner.boot import preload as module
from gocept.runner.boot.zopeconf import load
from gocept.runner.tests.support import (
    DEADLINE,
    TestCase,
    child_environment,
    sqlite_conf,
)


class PreloadTests(TestCase):

    def modules(self, conf, **decorator):
        """The modules that are imported for such a zope.conf."""
        self.write('zope.conf', conf)
        self.write('program.py', f'''
            import sys, types
            from gocept.runner.boot import zopeconf
            from gocept.runner.boot.preload import preload
            options = zopeconf.load('zope.conf')
            preload(options, 'toolkit', [types.SimpleNamespace(**{decorator})])
            print(*sys.modules)
            ''')
        return subprocess.run(
            [sys.executable, 'program.py'], cwd=self.dir, check=True,
            env=child_environment(), stdout=subprocess.PIPE, text=True,
            timeout=DEADLINE).stdout.split()

    def test_storages(self):
        modules = self.modules('''
            <zodb>
              <demostorage>
                <zeoclient>
                  server localhost:1
                </zeoclient>
              </demostorage>
            </zodb>
            ''')
        for name in ('ZEO.ClientStorage', 'ZODB.DemoStorage',
                     'gocept.runner.operation.recorder', 'zope.site.folder'):
            self.assertIn(name, modules)
        for name in ('relstorage', 'gocept.runner.schedule.agenda',
                     'gocept.runner.operation.watchdog'):
            self.assertNotIn(name, modules)

    def test_a_file_that_a_server_may_have(self):
        # A template opens no database, so zope.conf alone tells.
        modules = self.modules(
            '<zodb>\n<filestorage>\npath Data.fs\n</filestorage>\n</zodb>')
        for name in 'ZODB.FileStorage', 'gocept.runner.boot.zeoclient':
            self.assertIn(name, modules)
        self.assertFalse((self.dir / 'Data.fs').exists())

    def test_adapters_of_relstorage(self):
        self.assertIn('relstorage.adapters.sqlite.adapter',
                      self.modules(sqlite_conf(self.dir)))

    def test_what_workers_have(self):
        modules = self.modules(
            '<zodb>\n<mappingstorage>\n</mappingstorage>\n</zodb>',
            schedule='* * * * *', tick_timeout=3, lock=True, watch=True)
        for names in module._OF_OPTIONS.values():
            for name in names:
                self.assertIn(name, modules)

    def test_what_is_not_installed_is_left_out(self):
        path = self.zope_conf()
        before = dict(module._OF_SECTIONS)
        self.addCleanup(module._OF_SECTIONS.update, before)
        module._OF_SECTIONS['ZODB.config.FileStorage'] = ('no.such.module',)
        module.preload(load(path), 'toolkit', [types.SimpleNamespace()])
        self.assertFalse((self.dir / 'Data.fs').exists())
