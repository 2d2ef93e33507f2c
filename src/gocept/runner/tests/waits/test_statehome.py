import os
import unittest
from unittest import mock

from gocept.runner.waits.statehome import state_home


class StateHomeTests(unittest.TestCase):

    def home(self, **environment: str) -> str:
        with mock.patch.dict(os.environ, environment):
            return state_home()

    def test_as_xdg_says(self) -> None:
        self.assertEqual('/srv/state/gocept.runner',
                         self.home(XDG_STATE_HOME='/srv/state'))
        for path in '', 'relative':
            self.assertEqual('/home/me/.local/state/gocept.runner', self.home(
                XDG_STATE_HOME=path, HOME='/home/me'))

    def test_a_user_without_a_home(self) -> None:
        with self.assertRaisesRegex(ValueError, 'no home directory: set '
                                    r'\$XDG_STATE_HOME'):
            with mock.patch('os.path.expanduser', lambda path: path):
                self.home(XDG_STATE_HOME='')
