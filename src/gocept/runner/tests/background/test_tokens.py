"""Tokens, and the files in which they are kept."""

import os
import stat
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from gocept.runner.background import tokens
from gocept.runner.background.roster import own_token
from gocept.runner.errors import BackgroundError


class TokenTests(unittest.TestCase):

    def test_a_new_one(self) -> None:
        self.assertRegex(tokens.token_create(), r'\A[A-Za-z0-9]{64}\Z')
        self.assertRegex(tokens.token_create(7), r'\A[A-Za-z0-9]{7}\Z')
        self.assertRegex(tokens.token_create(length=1), r'\A[A-Za-z0-9]\Z')
        self.assertNotEqual(tokens.token_create(), tokens.token_create())
        for length in 0, -1:
            with self.assertRaises(ValueError):
                tokens.token_create(length)

    def test_which_one_is_given(self) -> None:
        environ = {'GOCEPT_RUNNER_TOKEN': 'of the environment'}
        self.assertEqual('mine', tokens.given_token('mine', environ))
        self.assertEqual(
            'of the environment', tokens.given_token(None, environ))
        self.assertIsNone(tokens.given_token(None, {}))
        self.assertIsNone(
            tokens.given_token(None, {'GOCEPT_RUNNER_TOKEN': ''}))
        with self.assertRaises(BackgroundError) as caught:
            tokens.given_token('', environ)
        self.assertIn('empty', str(caught.exception))
        with self.assertRaises(TypeError):
            tokens.given_token(b'mine', {})  # type: ignore[arg-type]
        with self.assertRaisesRegex(BackgroundError, 'RUNNER_TOKEN is no tex'):
            tokens.given_token(None, {'GOCEPT_RUNNER_TOKEN': 'a\udcff'})


class FindTests(unittest.TestCase):
    """With a state directory of its own."""

    def setUp(self) -> None:
        self.home = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.enterContext(mock.patch.dict(
            os.environ, XDG_STATE_HOME=str(self.home)))
        self.directory = self.home / 'gocept.runner' / 'servers'
        self.path = self.directory / '127.0.0.1_54321.token'

    def test_where_it_is(self) -> None:
        self.assertEqual(str(self.directory), tokens.state_directory())
        for unset in '', 'relative/path':
            with mock.patch.dict(
                    os.environ, XDG_STATE_HOME=unset, HOME='/home/me'):
                self.assertEqual('/home/me/.local/state/gocept.runner/servers',
                                 tokens.state_directory())

    def test_nobody_has_a_home(self) -> None:
        with mock.patch.dict(os.environ, XDG_STATE_HOME=''), (
                mock.patch.object(os.path, 'expanduser', str)), (
                self.assertRaisesRegex(BackgroundError, 'home directory')):
            self.find()

    def test_places(self) -> None:
        self.assertEqual('127.0.0.1_54321', tokens.place('127.0.0.1', 54321))
        self.assertEqual('127.0.0.1_54321', tokens.place('localhost', 54321))
        self.assertEqual('127.0.0.1_54321', tokens.place('LocalHost', 54321))
        self.assertEqual('::1_1', tokens.place('::1', 1))
        self.assertEqual('..-..-x_1', tokens.place('../../x', 1))

    def write(self) -> None:
        self.directory.mkdir(parents=True)
        self.path.write_text('of the server\n')
        self.path.chmod(0o600)

    def find(self, host: str = '127.0.0.1', port: int = 54321) -> str | None:
        return tokens.find_token(host, port)

    def test_nothing_is_there(self) -> None:
        self.assertIsNone(self.find())
        self.assertEqual([], os.listdir(self.home))

    def test_one_that_a_server_has_made(self) -> None:
        self.write()
        self.assertEqual('of the server', self.find())
        self.assertEqual('of the server', self.find('localhost'))
        self.assertIsNone(self.find(port=54322))
        self.assertIsNone(self.find('127.0.0.2'))

    def test_one_of_a_real_server(self) -> None:
        made = own_token('127.0.0.1', 54321)
        self.assertRegex(made, r'\A[A-Za-z0-9]{64}\Z')
        self.assertEqual(made, self.find())
        self.assertEqual(0o600, stat.S_IMODE(self.path.stat().st_mode))

    def test_one_that_others_can_read_or_write(self) -> None:
        self.write()
        for mode in 0o640, 0o604, 0o620, 0o602:
            self.path.chmod(mode)
            self.assertIsNone(self.find())

    def test_an_empty_one(self) -> None:
        self.write()
        for text in '', '\n':
            self.path.write_text(text)
            self.assertIsNone(self.find())

    def test_a_link(self) -> None:
        self.write()
        moved = self.path.rename(self.home / 'other')
        self.path.symlink_to(moved)
        self.assertIsNone(self.find())

    def test_a_fifo_blocks_nobody(self) -> None:
        self.directory.mkdir(parents=True)
        os.mkfifo(self.path, 0o600)
        self.assertIsNone(self.find())

    def test_a_directory(self) -> None:
        self.path.mkdir(parents=True, mode=0o700)
        self.assertIsNone(self.find())

    @unittest.skipIf(os.geteuid(), 'only root can give files away')
    def test_a_file_of_somebody_else(self) -> None:
        self.write()
        os.chown(self.path, 65534, 65534)
        self.assertIsNone(self.find())

    def test_a_long_file_is_not_read_whole(self) -> None:
        self.write()
        self.path.write_text('x' * 2 ** 17)
        self.assertEqual('x' * 65536, self.find())
