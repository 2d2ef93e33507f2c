import os
import pathlib
from unittest import mock

from gocept.runner.boot import environments
from gocept.runner.boot.toolkit import Toolkit
from gocept.runner.operation.place import Place, file_of, key_of, place_of
from gocept.runner.tests.support import TestCase


class PlaceTests(TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.home = self.dir / 'state' / 'gocept.runner'
        self.enterContext(mock.patch.dict(
            os.environ, XDG_STATE_HOME=str(self.dir / 'state')))

    def place(self, storage: str, name: str = 'zope.conf', more: str = '',
              ) -> Place:
        """The place of a zope.conf with this storage."""
        path = self.write(name, '').resolve()
        path.write_text(f'{more}\n<zodb>\n{storage}\n</zodb>\n')
        return place_of(Toolkit().load(str(path)))

    def assertOfUser(self, place: Place, word: str) -> None:
        directory = pathlib.Path(place.directory)
        self.assertEqual(self.home, directory.parent)
        self.assertRegex(directory.name, rf'^{word}-[0-9a-f]{{8}}$')
        self.assertTrue(place.is_of_user)
        self.assertFalse(self.home.exists())

    def test_a_file_storage(self) -> None:
        expected = Place(str(self.dir), 'Data.fs.')
        text = f'<filestorage>\npath {self.dir}/Data.fs\n</filestorage>'
        self.assertEqual(expected, self.place(text))
        self.assertFalse(expected.is_of_user)
        os.symlink(self.dir, self.dir / 'link')
        self.assertEqual(expected, self.place(
            f'<filestorage>\npath {self.dir}/link/Data.fs\n</filestorage>'))

    def test_a_file_storage_within_another(self) -> None:
        self.assertEqual(Place(str(self.dir), 'Data.fs.'), self.place(
            f'<blobstorage>\nblob-dir {self.dir}/blobs\n<filestorage>\n'
            f'path {self.dir}/Data.fs\n</filestorage>\n</blobstorage>'))

    def test_the_first_database_is_that_of_the_root(self) -> None:
        self.assertEqual(Place(str(self.dir), 'Data.fs.'), self.place(
            f'<filestorage>\npath {self.dir}/Data.fs\n</filestorage>\n'
            '</zodb>\n<zodb other>\n<filestorage>\n'
            f'path {self.dir}/Other.fs\n</filestorage>'))

    def test_zeo(self) -> None:
        text = '<zeoclient>\nserver localhost:8100\n{}\n</zeoclient>'
        place = self.place(text.format('storage main'))
        self.assertOfUser(place, 'zeo')
        self.assertEqual(place, self.place(
            text.format('storage main\ncache-size 20MB'), 'other.conf'))
        self.assertEqual(place, self.place(
            text.format('storage main').replace('zeoclient', 'clientstorage'),
            'other.conf', '%import ZEO'))
        others = {self.place(text.format(each)) for each in (
            '', 'server localhost:8200\nstorage main')}
        self.assertEqual(2, len(others - {place}))

    def test_relstorage(self) -> None:
        os.mkdir(self.dir / 'sqlite')
        text = ('<relstorage>\n{}\n<sqlite3>\ndata-dir %s\n{}\n</sqlite3>\n'
                '</relstorage>' % (self.dir / 'sqlite'))
        place = self.place(text.format('', ''), more='%import relstorage')
        self.assertOfUser(place, 'relstorage')
        self.assertEqual(place, self.place(
            text.format('cache-local-mb 5', '<pragmas>\nthreads 2\n</pragmas>'
                        ), 'other.conf', '%import relstorage'))

    def test_a_relstorage_whose_password_changes(self) -> None:
        text = ('<relstorage>\n<postgresql>\ndsn dbname=zodb {}\n'
                '</postgresql>\n</relstorage>')
        places = {self.place(text.format(each), more='%import relstorage')
                  for each in ("password='a b'", 'password=c', 'host=db')}
        self.assertEqual(2, len(places))

    def test_storages_in_memory(self) -> None:
        for text in '<mappingstorage>\n</mappingstorage>', (
                '<demostorage>\n<filestorage>\n'
                f'path {self.dir}/Data.fs\n</filestorage>\n</demostorage>'):
            with self.subTest(text):
                place = self.place(text)
                self.assertOfUser(place, 'zope')
                self.assertEqual(place, self.place(text))
                self.assertOfUser(self.place(text, 'my-app.conf'), 'my-app')

    def test_a_kind_of_application_that_does_not_tell(self) -> None:
        other = mock.Mock(spec=['name'])
        with mock.patch.object(environments, 'current', lambda: other):
            self.assertOfUser(self.place(
                f'<filestorage>\npath {self.dir}/Data.fs\n</filestorage>'),
                'zope')

    def test_keys(self) -> None:
        for site in None, '', '/':
            self.assertEqual('convert', key_of('convert', site))
        for site in 'intranet/news', '/intranet//news/':
            self.assertEqual('convert@intranet%2Fnews',
                             key_of('convert', site))
        self.assertNotEqual(key_of('a@b', None), key_of('a', 'b'))
        self.assertEqual('..%2Fa', key_of('../a', None))

    def test_names_of_files(self) -> None:
        self.assertEqual('a@b', file_of('a', 'b'))
        names = {file_of('ä' * length, site) for length in (200, 201)
                 for site in (None, 'x', 'x' * 4000)}
        self.assertEqual(6, len(names))
        for name in names:
            self.assertLessEqual(len(name), 128)
