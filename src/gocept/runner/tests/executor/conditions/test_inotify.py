"""What changes in a directory, as an event."""

import errno
import os
from unittest import mock

from gocept.runner.executor.conditions.inotify import Directory
from gocept.runner.poller import Poller
from gocept.runner.tests.executors import ExecutorTestCase
from gocept.runner.tests.support import DEADLINE, open_descriptors


class DirectoryTests(ExecutorTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.path = self.dir / 'watched'
        self.path.mkdir()

    def watched(self) -> tuple[Directory, Poller]:
        directory = Directory(str(self.path))
        self.addCleanup(directory.close)
        poller = self.enterContext(Poller())
        poller.register(directory)
        self.assertFalse(poller.pause(0))
        return directory, poller

    def check_told(self, directory: Directory, poller: Poller) -> None:
        """Once, and no more."""
        [(_, source)] = poller.poll(DEADLINE)
        self.assertIs(directory, source)
        self.assertEqual([], poller.poll(0))

    def test_a_file_is_made(self) -> None:
        directory, poller = self.watched()
        (self.path / 'new').touch()
        self.check_told(directory, poller)

    def test_a_file_is_moved_there(self) -> None:
        (self.dir / 'new').touch()
        directory, poller = self.watched()
        (self.dir / 'new').rename(self.path / 'new')
        self.check_told(directory, poller)

    def test_a_file_is_linked_there(self) -> None:
        (self.dir / 'new').touch()
        directory, poller = self.watched()
        (self.path / 'new').hardlink_to(self.dir / 'new')
        self.check_told(directory, poller)

    def test_a_file_is_written(self) -> None:
        with open(self.path / 'old', 'wb', buffering=0) as file:
            directory, poller = self.watched()
            file.write(b'1')
            self.check_told(directory, poller)
        self.check_told(directory, poller)  # that it was closed

    def test_many_changes_at_once(self) -> None:
        directory, poller = self.watched()
        for number in range(1000):
            (self.path / f'{number:0100}').touch()
        while poller.poll(0):
            pass
        (self.path / 'last').touch()
        self.check_told(directory, poller)

    def test_nobody_is_told_when_a_file_is_read(self) -> None:
        (self.path / 'old').write_text('1')
        _, poller = self.watched()
        (self.path / 'old').read_text()
        self.assertFalse(poller.pause(0))

    def test_the_directory_may_vanish(self) -> None:
        _, poller = self.watched()
        self.path.rmdir()
        while poller.poll(0):
            pass

    def test_what_is_no_directory_cannot_be_watched(self) -> None:
        (self.dir / 'file').touch()
        for name, number in (('missing', errno.ENOENT),
                             ('file/x', errno.ENOTDIR)):
            with self.subTest(name):
                with self.assertRaises(OSError) as caught:
                    Directory(str(self.dir / name))
                self.assertEqual(number, caught.exception.errno)

    def test_a_system_with_too_many_watches(self) -> None:
        with mock.patch('gocept.runner.waits.libc.call', side_effect=[
                os.open('/', os.O_RDONLY), OSError(errno.ENOSPC, 'full')]):
            with self.assertRaises(OSError) as caught:
                Directory(str(self.path))
        self.assertEqual(errno.ENOSPC, caught.exception.errno)

    def test_closing_while_no_thread_can_be_started(self) -> None:
        before = open_descriptors()
        directory = Directory(str(self.path))
        with mock.patch('threading.Thread.start', side_effect=RuntimeError):
            directory.close()
        self.assertEqual(before, open_descriptors())

    def test_closing(self) -> None:
        directory, poller = self.watched()
        (self.path / 'new').touch()
        directory.close()
        directory.close()
        self.assertEqual(-1, directory.fileno())
        self.assertEqual(((), True), directory.collect())
        self.assertEqual([], poller.poll(0))
