"""What the program tells that reads a zope.conf for `up`."""

import contextlib
import io
import json
from typing import Any

from gocept.runner.house import storages
from gocept.runner.tests.support import TestCase, replaced_modules


class StoragesTests(TestCase):

    def told(self, config: str, status: int = 0) -> dict[str, Any]:
        """What the program writes about this zope.conf."""
        with contextlib.redirect_stdout(io.StringIO()) as output:
            self.assertEqual(status, storages.run(
                {'config': config, 'application': None}))
        words: dict[str, Any] = json.loads(output.getvalue())
        return words

    def conf(self, text: str) -> str:
        return str(self.write('zope.conf', f'<zodb>\n{text}\n</zodb>\n'))

    def test_a_file_with_its_options(self) -> None:
        told = self.told(self.conf(f'''
            <filestorage>
              path {self.dir}/Data.fs
              blob-dir {self.dir}/blobs
              quota 1MB
              pack-gc off
              pack-keep-old off
              packer my.module:pack
              create on
            </filestorage>
            '''))
        self.assertEqual({'has_zeo': True, 'files': [{
            'path': f'{self.dir}/Data.fs', 'options': {
                'path': f'{self.dir}/Data.fs', 'create': True,
                'blob_dir': f'{self.dir}/blobs', 'quota': 2 ** 20,
                'pack_gc': False, 'pack_keep_old': False,
                'packer': 'my.module:pack', 'read_only': None}}]}, told)

    def test_the_blobs_of_the_section_around_it(self) -> None:
        told = self.told(self.conf(f'''
            <blobstorage>
              blob-dir {self.dir}/blobs
              <filestorage>
                path {self.dir}/Data.fs
              </filestorage>
            </blobstorage>
            '''))
        [file] = told['files']
        self.assertEqual(f'{self.dir}/blobs', file['options']['blob_dir'])
        self.assertEqual(f'{self.dir}/Data.fs', file['path'])

    def test_a_file_that_any_number_of_processes_can_open(self) -> None:
        told = self.told(self.conf(f'''
            <filestorage>
              path {self.dir}/Data.fs
              read-only on
            </filestorage>
            '''))
        self.assertEqual([], told['files'])

    def test_zeo_is_not_installed(self) -> None:
        with replaced_modules({'ZEO': None}):
            self.assertFalse(self.told(self.zope_conf())['has_zeo'])

    def test_a_zope_conf_that_is_missing(self) -> None:
        config = str(self.dir / 'missing.conf')
        told = self.told(config, 78)
        self.assertEqual(78, told['status'])
        self.assertIn(f'no such file: {config}', told['error'])
