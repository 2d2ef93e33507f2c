"""Tests of the list of servers."""

import contextlib
import json
import os
import pathlib
import resource
import shutil
import signal
import tempfile
import unittest
from unittest import mock

from gocept.runner.background import roster
from gocept.runner.background.tokens import state_directory
from gocept.runner.errors import BackgroundError

HOST = '127.0.0.1'


class TestCase(unittest.TestCase):

    def setUp(self):
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        self.enterContext(mock.patch.dict(
            os.environ, XDG_STATE_HOME=directory))
        self.directory = pathlib.Path(state_directory())


class PlaceTest(TestCase):

    def test_a_server_is_there_as_long_as_it_lives(self):
        self.assertEqual([], roster.servers())
        entry = roster.new_entry(HOST, 4)
        with roster.Place(entry):
            self.assertEqual([entry], roster.servers())
            self.assertEqual(os.getpid(), entry.pid)
            path, = self.directory.iterdir()
            self.assertEqual(0o600, path.stat().st_mode & 0o777)
            self.assertEqual(0o700, self.directory.stat().st_mode & 0o777)
        self.assertEqual([], roster.servers())
        self.assertEqual([], [*self.directory.iterdir()])

    def test_the_entry_of_a_dead_server_is_removed(self):
        with roster.Place(roster.new_entry(HOST, 4)):
            path, = self.directory.iterdir()
            text = path.read_bytes()
        path.touch(0o600)
        path.write_bytes(text)
        self.assertEqual([], roster.servers())
        self.assertFalse(path.exists())

    def test_a_successor_keeps_its_entry(self):
        first = roster.Place(roster.new_entry(HOST, 4))
        with roster.Place(roster.new_entry(HOST, 4)._replace(started=8.0)):
            first.close()
            entry, = roster.servers()
            self.assertEqual(8.0, entry.started)

    def test_a_forked_child_does_not_keep_it(self):
        with roster.Place(roster.new_entry(HOST, 4)):
            read, write = os.pipe()
            pid = os.fork()
            if not pid:
                os.close(write)
                os.read(read, 1)
                os._exit(0)
            os.close(read)
        path = self.directory / '127.0.0.1_4.json'
        path.touch(0o600)
        try:
            self.assertEqual([], roster.servers())
        finally:
            os.close(write)
            os.waitpid(pid, 0)

    def test_files_of_others_are_nothing(self):
        with roster.Place(roster.new_entry(HOST, 4)) as place:
            path = self.directory / '127.0.0.1_4.json'
            os.chmod(path, 0o666)
            self.assertEqual([], roster.servers())
            os.chmod(path, 0o600)
            for text in '', '[]', json.dumps({'host': HOST}):
                os.truncate(place._fd, 0)
                os.pwrite(place._fd, text.encode(), 0)
                self.assertEqual([], roster.servers())
        os.symlink('/etc/passwd', self.directory / '127.0.0.1_5.json')
        self.assertEqual([], roster.servers())

    def test_who_listens_at_a_port(self):
        with roster.Place(roster.new_entry('0.0.0.0', 4)):
            self.assertEqual('0.0.0.0', roster.server_at(HOST, 4).host)
            with roster.Place(roster.new_entry(HOST, 4)):
                self.assertEqual(HOST, roster.server_at('localhost', 4).host)
            self.assertIsNone(roster.server_at(HOST, 5))

    def test_a_directory_of_others_is_refused(self):
        self.directory.mkdir(0o700, parents=True)
        os.chmod(self.directory, 0o777)
        with self.assertRaisesRegex(BackgroundError, 'others may write'):
            roster.Place(roster.new_entry(HOST, 4))


@contextlib.contextmanager
def limited_files(size):
    """No file may have more bytes; an error tells, and no signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


class OwnTokenTest(TestCase):

    def test_it_stays(self):
        token = roster.own_token(HOST, 4)
        self.assertEqual(64, len(token))
        self.assertEqual(token, roster.own_token(HOST, 4))
        self.assertEqual(token, roster.own_token('localhost', 4))
        self.assertNotEqual(token, roster.own_token(HOST, 5))
        path = self.directory / '127.0.0.1_4.token'
        self.assertEqual(0o600, path.stat().st_mode & 0o777)

    def test_one_that_others_can_read_is_refused(self):
        roster.own_token(HOST, 4)
        os.chmod(self.directory / '127.0.0.1_4.token', 0o644)
        with self.assertRaisesRegex(BackgroundError, 'is not safe'):
            roster.own_token(HOST, 4)

    def test_one_that_is_no_plain_file_is_refused(self):
        self.directory.mkdir(0o700, parents=True)
        path = self.directory / '127.0.0.1_4.token'
        for make, remove in (
                (path.mkdir, path.rmdir),
                (lambda: os.mkfifo(path), path.unlink),
                (lambda: path.symlink_to('/etc/hostname'), path.unlink)):
            make()
            with self.assertRaisesRegex(BackgroundError, 'is not safe'):
                roster.own_token(HOST, 4)
            remove()

    def test_one_that_is_no_text_is_refused(self):
        roster.own_token(HOST, 4)
        path = self.directory / '127.0.0.1_4.token'
        path.write_bytes(b'\xff')
        with self.assertRaisesRegex(BackgroundError, 'is no text'):
            roster.own_token(HOST, 4)

    def test_no_room_for_it(self):
        with mock.patch.object(
                roster, 'token_create', side_effect=lambda: 'x' * 2 ** 20):
            self.enterContext(limited_files(2 ** 10))
            with self.assertRaisesRegex(BackgroundError, 'cannot be kept'):
                roster.own_token(HOST, 4)
        self.assertEqual([], [*self.directory.iterdir()])

    def test_the_directories_are_private_whatever_the_umask(self):
        before = os.umask(0)
        try:
            roster.own_token(HOST, 4)
        finally:
            os.umask(before)
        for each in self.directory, self.directory.parent:
            self.assertEqual(0o700, each.stat().st_mode & 0o777)

    def test_without_a_home(self):
        with mock.patch.dict(os.environ, XDG_STATE_HOME=''), (
                mock.patch.object(os.path, 'expanduser', str)):
            self.assertEqual([], roster.servers())
            with self.assertRaisesRegex(BackgroundError, 'home directory'):
                roster.own_token(HOST, 4)

    def test_an_empty_one_is_made_anew(self):
        roster.own_token(HOST, 4)
        os.truncate(self.directory / '127.0.0.1_4.token', 0)
        self.assertEqual(64, len(roster.own_token(HOST, 4)))
