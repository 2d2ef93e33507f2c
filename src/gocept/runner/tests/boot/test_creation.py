import os

import ZODB
import ZODB.config

from gocept.runner.boot import zopeconf
from gocept.runner.boot.toolkit import Toolkit
from gocept.runner.errors import DatabaseMissing
from gocept.runner.tests.support import TestCase

LOG = 'gocept.runner.environment'

FILE = '<filestorage>\npath {path}\n{more}\n</filestorage>\n'


def storage(path, more=''):
    return FILE.format(path=path, more=more)


class CreationTests(TestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.dir)

    def options(self, *storages):
        """The options of a zope.conf with so many databases."""
        return zopeconf.load(self.write('zope.conf', ''.join(
            f'<zodb {name}>\n{text}</zodb>\n'
            for name, text in zip(['', 'other'], storages))))

    def open(self, *storages, create=True):
        with Toolkit().opened(self.options(*storages), create=create):
            pass

    def assertCreated(self, names, *storages):
        """A dry run refuses it; else each new file is a warning, once."""
        before = {*os.listdir(), 'zope.conf'}
        with self.assertNoLogs(LOG), self.assertRaisesRegex(
                DatabaseMissing, f'there is no database {self.dir}/{names[0]}'
                ', and a dry run creates none'):
            self.open(*storages, create=False)
        self.assertEqual(before, {*os.listdir()})
        with self.assertLogs(LOG) as logs:
            self.open(*storages)
        self.assertEqual(
            [f'WARNING:{LOG}:Created a new, empty database: {self.dir}/{name}'
             for name in names], logs.output)
        with self.assertNoLogs(LOG):
            self.open(*storages)
            self.open(*storages, create=False)

    def test_a_relative_path(self):
        self.assertCreated(['Data.fs'], storage('Data.fs'))

    def test_several_databases(self):
        self.assertCreated(['Data.fs', 'Other.fs'],
                           storage('Data.fs'), storage('Other.fs'))

    def test_the_second_one_only(self):
        self.open(storage('Data.fs'))
        self.assertCreated(['Other.fs'],
                           storage('Data.fs'), storage('Other.fs'))

    def test_a_directory_of_blobs(self):
        self.assertCreated(['Data.fs', 'blobs'],
                           storage('Data.fs', 'blob-dir blobs'))

    def test_in_a_blobstorage(self):
        self.assertCreated(
            ['Data.fs', 'blobs'], '<blobstorage>\nblob-dir blobs\n'
            + storage('Data.fs') + '</blobstorage>\n')

    def test_in_a_demostorage(self):
        self.open(storage('Base.fs'))
        self.assertCreated(
            ['Changes.fs'], '<demostorage>\n' + storage('Base.fs')
            + storage('Changes.fs').replace('<filestorage>',
                                            '<filestorage changes>')
            + '</demostorage>\n')

    def test_one_that_is_created_each_time(self):
        self.open(storage('Data.fs'))
        for _ in range(2):
            with self.assertLogs(LOG) as logs:
                self.open(storage('Data.fs', 'create yes'))
            self.assertIn('Created a new', logs.output[0])
        with self.assertRaises(DatabaseMissing):
            self.open(storage('Data.fs', 'create yes'), create=False)

    def test_one_that_cannot_be_created(self):
        os.mkdir('Data.fs.lock')
        with self.assertNoLogs(LOG), self.assertRaises(OSError):
            self.open(storage('Data.fs'))

    def test_in_memory(self):
        for text in ('<mappingstorage>\n</mappingstorage>\n',
                     '<demostorage>\n</demostorage>\n'):
            with self.assertNoLogs(LOG):
                self.open(text)
                self.open(text, create=False)

    def test_an_empty_one(self):
        ZODB.DB('Data.fs').close()
        with self.assertNoLogs(LOG), self.assertRaisesRegex(
                DatabaseMissing, f'the database {self.dir}/Data.fs is empty'):
            self.open(storage('Data.fs'), create=False)
        with self.assertLogs(LOG) as logs:
            self.open(storage('Data.fs'))
        self.assertEqual(
            [f'WARNING:{LOG}:The database {self.dir}/Data.fs is empty: '
             'creating its root folder'], logs.output)
