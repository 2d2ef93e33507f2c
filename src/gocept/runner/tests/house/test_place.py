import os
import stat
from unittest import mock

from gocept.runner.cli.mistakes import UserError
from gocept.runner.house import record
from gocept.runner.house.place import directory_of, occupied
from gocept.runner.tests.house.test_record import STATE
from gocept.runner.tests.support import TestCase, open_descriptors


class PlaceTests(TestCase):

    def setUp(self):
        super().setUp()
        self.enterContext(mock.patch.dict(
            os.environ, XDG_STATE_HOME=str(self.dir / 'state')))
        os.environ.pop('GOCEPT_RUNNER_RUN_DIR', None)
        self.config = self.zope_conf()

    def occupied(self):
        return occupied(directory_of(self.config), self.config)

    def test_each_zope_conf_has_its_own(self):
        other = self.zope_conf(name='other.conf')
        self.assertNotEqual(directory_of(self.config), directory_of(other))
        (self.dir / 'link').symlink_to(self.config)
        self.assertEqual(directory_of(self.config),
                         directory_of(self.dir / 'link'))
        self.assertTrue(directory_of(self.config).startswith(
            f'{self.dir}/state/gocept.runner/houses/'))

    def test_where_the_environment_says(self):
        with mock.patch.dict(
                os.environ, GOCEPT_RUNNER_RUN_DIR=str(self.dir / 'run')):
            self.assertTrue(directory_of(self.config).startswith(
                f'{self.dir}/run/houses/'))

    def test_a_user_without_a_home(self):
        with mock.patch.dict(os.environ, XDG_STATE_HOME=''), mock.patch(
                'os.path.expanduser', lambda path: path):
            with self.assertRaisesRegex(UserError, 'no home directory') as it:
                directory_of(self.config)
        self.assertEqual(73, it.exception.status)

    def test_only_this_user_can_enter(self):
        with self.occupied():
            mode = os.stat(directory_of(self.config)).st_mode
        self.assertEqual(0o700, stat.S_IMODE(mode))

    def test_one_at_a_time(self):
        with self.occupied():
            with self.assertRaises(UserError) as caught, self.occupied():
                pass
            record.write(directory_of(self.config), STATE)
            with self.assertRaises(UserError) as again, self.occupied():
                pass
        self.assertEqual(
            (f'process runs the workers of {self.config} already: "kill" ends '
             'it, and "gocept-runner reload" has it take new code', 75),
            (str(caught.exception), caught.exception.status))
        self.assertIn('process 1 runs', str(again.exception))
        before = open_descriptors()
        with self.occupied():
            pass
        self.assertEqual(before, open_descriptors())

    def test_no_directory_can_be_made(self):
        self.write('state', 'a file')
        with self.assertRaisesRegex(
                UserError, 'the lock in .* cannot be made: ') as it:
            with self.occupied():
                pass
        self.assertEqual(73, it.exception.status)
