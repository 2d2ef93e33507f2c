import os
import pathlib
import resource

from gocept.runner.executor.logfile import LogFile
from gocept.runner.tests.support import TestCase, open_descriptors


class LogFileTests(TestCase):

    def setUp(self) -> None:
        super().setUp()
        before = open_descriptors()
        self.addCleanup(
            lambda: self.assertEqual(before, open_descriptors()))
        self.path = self.dir / 'log'

    def open(self, path: pathlib.Path | str | None = None) -> LogFile:
        file = LogFile(path or self.path)
        self.addCleanup(file.close)
        return file

    def test_it_is_appended_to(self) -> None:
        self.path.write_text('before\n')
        file = self.open()
        self.assertEqual('', file.write(b'out\n'))
        self.assertEqual('', file.close())
        self.assertEqual('before\nout\n', self.path.read_text())

    def test_it_cannot_be_opened_at_first(self) -> None:
        with self.assertRaises(FileNotFoundError):
            LogFile(self.dir / 'no' / 'log')

    def test_another_file_gets_the_name(self) -> None:
        file = self.open()
        file.write(b'1')
        os.rename(self.path, self.dir / 'old')
        self.assertEqual('', file.write(b'2'))
        self.path.unlink()
        self.path.write_text('3')
        self.assertEqual('', file.write(b'4'))
        self.assertEqual(['1', '34'], [
            each.read_text() for each in (self.dir / 'old', self.path)])

    def test_its_directory_is_away_for_a_while(self) -> None:
        directory = self.dir / 'logs'
        directory.mkdir()
        file = self.open(directory / 'log')
        os.rename(directory, self.dir / 'away')
        self.assertIn(f'is not written to {directory}/log any more',
                      file.write(b'four'))
        self.assertEqual('', file.write(b'five!'))  # said once
        directory.mkdir()
        self.assertIn('again; 9 bytes are lost', file.write(b'more\n'))
        self.assertEqual('', file.write(b'end\n'))
        self.assertEqual('\n[9 bytes were not written]\nmore\nend\n',
                         (directory / 'log').read_text())

    def test_a_disk_that_takes_a_part(self) -> None:
        file = self.open()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        self.addCleanup(
            resource.setrlimit, resource.RLIMIT_FSIZE, (soft, hard))
        self.assertIn('any more: ', file.write(b'x' * 25))
        self.assertEqual(15, file.lost)
        file.write(b'y')
        self.assertEqual(16, file.lost)
        self.assertIn('16 bytes of the output could not be written',
                      file.close())
        self.assertEqual('x' * 10, self.path.read_text())

    def test_a_fifo_whose_reader_stands_still(self) -> None:
        os.mkfifo(self.path)
        with self.assertRaisesRegex(OSError, f'Nobody reads .*{self.path}'):
            LogFile(self.path)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        file = self.open()
        self.assertEqual('', file.write(b'said\n'))
        self.assertIn('any more', file.write(b'x' * 2_000_000))
        taken = len(os.read(reader, 2_000_000)) - 5
        self.assertEqual(2_000_000 - taken, file.lost)
        self.assertIn('are lost', file.write(b'more'))
        self.assertTrue(os.read(reader, 100).endswith(b'written]\nmore'))
        os.close(reader)
        self.assertIn('any more: ', file.write(b'nobody'))
        file.close()
