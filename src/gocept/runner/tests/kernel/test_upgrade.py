"""An upgrade: other code goes on with the state and the descriptors."""

import os
import select
import shutil
import signal

from gocept.runner.process import procfs
from gocept.runner.process.pidfd import hold
from gocept.runner.tests.kernel.releases import KernelCase
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import Deadline, wait_for


class UpgradeTests(KernelCase):

    def setUp(self):
        super().setUp()
        self.start()
        self.ask('add')
        self.before = self.ask('who')

    def upgrade(self, config):
        """Ask for it, and for the daemon that answers then."""
        answer = self.ask('upgrade', config)
        if answer == 'upgraded':
            self.wait_for_log('Upgrade: ')
        return answer

    def assert_old(self):
        who = self.ask('who')
        self.assertEqual(self.before, who)
        self.assertEqual(2, self.ask('add'))

    def assert_new(self):
        who = self.ask('who')
        self.assertEqual('fake 2', who['version'])
        self.assertEqual(self.before['keeper'], who['keeper'])
        self.assertEqual(0, who['deaths'])
        self.assertEqual(2, self.ask('add'))

    def test_to_another_path(self):
        child, _ = self.ask('spawn')
        table = self.ask('table')
        self.assertEqual('upgraded', self.upgrade(
            self.make_release('two', 'fake 2')))
        self.assert_new()
        self.assertEqual(table, self.ask('table'))
        self.assertEqual(
            self.before['keeper'], procfs.look(child).parent)
        self.kill(child, 10)
        self.ask_until([[child, 7]].__eq__, 'statuses')

    def test_what_comes_after_it(self):
        self.upgrade(self.make_release('two', 'fake 2'))
        self.assert_new()
        shutil.rmtree(self.dir / 'one')
        shutil.rmtree(self.dir / 'two')
        who = self.ask('who')
        self.kill(who['pid'])
        self.kill(self.ask('who')['keeper'])
        self.assertEqual(3, self.ask('add'))
        self.assertEqual('fake 2', self.ask('who')['version'])
        self.upgrade(self.make_release('three', 'fake 3'))
        self.assertEqual(4, self.ask('add'))
        self.assertEqual('fake 3', self.ask('who')['version'])

    def test_descriptors_are_not_inherited_by_children(self):
        self.upgrade(self.make_release('two', 'fake 2'))
        self.assert_new()
        keeper = self.ask('who')['keeper']
        for fd in os.listdir(f'/proc/{keeper}/fd'):
            if int(fd) > 2:
                with open(f'/proc/{keeper}/fdinfo/{fd}') as file:
                    flags = int(file.read().split('flags:')[1].split()[0], 8)
                self.assertTrue(flags & os.O_CLOEXEC, fd)

    def test_to_code_that_cannot_be_loaded(self):
        for code, error in (('1 +', 'SyntaxError: invalid syntax'),
                            ('import gone', "No module named 'gone'")):
            answer = self.upgrade(self.make_release(
                f'two{len(code)}', code=code))
            self.assertIn('so this one goes on: ', answer)
            self.assertIn(error, answer)
        self.assert_old()

    def test_to_code_that_cannot_read_the_state(self):
        answer = self.upgrade(self.make_release('two', code='''
def trial(table, options):
    raise KernelError('the state is of version 1, and not of version 2')
'''))
        self.assertIn('so this one goes on: the state is of version 1, and '
                      'not of version 2', answer)
        self.assert_old()

    def test_to_no_code(self):
        answer = self.upgrade({**self.release, 'path': [str(self.dir)]})
        self.assertIn(
            'the upgrade needs a sys.path with gocept.runner', answer)
        self.assert_old()

    def test_to_no_python(self):
        answer = self.upgrade({**self.release, 'python': '/no/python'})
        self.assertIn('/no/python cannot be run: ', answer)
        self.assert_old()

    def test_to_a_daemon_that_does_not_start(self):
        self.upgrade(self.make_release('two', 'fake 2', '''
def run(table, link, options):
    raise ZeroDivisionError
'''))
        self.wait_for_log('The new code does not start: going back to ')
        who = self.ask('who')
        self.assertEqual(self.before['keeper'], who['keeper'])
        self.assertEqual('fake 1', who['version'])
        self.assertEqual(2, self.ask('add'))

    def test_to_code_that_is_broken_after_the_trial(self):
        self.upgrade(self.make_release('two', 'fake 2', '''
import sys
if '--handover' in sys.argv:
    raise ZeroDivisionError
'''))
        who = self.ask('who')
        self.assertEqual(self.before['keeper'], who['keeper'])
        self.assertEqual('fake 1', who['version'])
        self.assertEqual(2, self.ask('add'))

    def test_to_code_that_is_gone_after_the_trial(self):
        self.upgrade(self.make_release('two', 'fake 2', f'''
import atexit, shutil, sys
if '--trial' in sys.argv:
    atexit.register(shutil.rmtree, {str(self.dir / 'two')!r})
'''))
        self.assertEqual('fake 1', self.ask('who')['version'])
        self.assertEqual(2, self.ask('add'))

    def test_to_a_daemon_that_hangs(self):
        self.upgrade(self.make_release('two', 'fake 2', '''
import gocept.runner.kernel.keeper.keeper
gocept.runner.kernel.keeper.keeper._PATIENCE = 0.1

def run(table, link, options):
    signal.pause()
'''))
        self.wait_for_log('hangs: it has not begun to serve in 0.1 s')
        self.wait_for_log('The new code does not start: going back to ')
        self.assertEqual('fake 1', self.ask('who')['version'])
        self.assertEqual(2, self.ask('add'))

    def change_code(self, code=''):
        """Begin an upgrade, which waits where the keeper loads the code.

        Returns the path of what it reads then.
        """
        fifo = str(self.dir / 'fifo')
        os.mkfifo(fifo)
        self.upgrade(self.make_release('two', 'fake 2', f'''
import sys
if '--handover' in sys.argv:
    open({fifo!r}).read()
{code}'''))
        return fifo

    def test_the_keeper_dies_while_it_changes_its_code(self):
        child, _ = self.ask('spawn')
        fifo = self.change_code()
        with open(fifo, 'w'):  # it has been opened there
            self.kill(self.before['keeper'])
        who = self.ask('who')
        self.assertEqual('fake 1', who['version'])
        self.assertEqual(self.before['pid'], who['keeper'])
        self.assertEqual(2, self.ask('add'))
        self.kill(child, signal.SIGUSR1)
        self.ask_until([[child, 7]].__eq__, 'statuses')

    def test_the_daemon_dies_while_the_keeper_changes_its_code(self):
        child, _ = self.ask('spawn')
        fifo = self.change_code()
        with open(fifo, 'w'):
            self.kill(self.before['pid'])
        self.assert_new()
        self.kill(child, signal.SIGUSR1)
        self.ask_until([[child, 7]].__eq__, 'statuses')

    def test_the_daemon_is_stopped_while_the_keeper_changes_its_code(self):
        fifo = self.change_code('''
import gocept.runner.kernel.keeper.keeper
gocept.runner.kernel.keeper.keeper._LEAVE = 0.3
''')
        with open(fifo, 'w'):
            os.kill(self.before['pid'], signal.SIGSTOP)
        self.assert_new()

    def test_the_kernel_is_ended_while_the_keeper_changes_its_code(self):
        fifo = self.change_code()
        keeper = hold(self.before['keeper'])
        self.addCleanup(keeper.close)
        with open(fifo, 'w'):
            keeper.signal(signal.SIGTERM)
        self.assertTrue(wait_for(
            keeper.fileno(), select.POLLIN, Deadline(DEADLINE)))
        self.assertFalse(os.path.exists(self.path))

    def test_two_at_once(self):
        fifo = str(self.dir / 'fifo')
        os.mkfifo(fifo)
        config = self.make_release('two', 'fake 2', f'''
import sys
if '--trial' in sys.argv:
    open({fifo!r}).read()
''')
        with self.connect() as sock:
            self.send(sock, 'upgrade', config)
            self.assertIn('an upgrade is going on already',
                          self.ask('upgrade', config))
            with open(fifo, 'w'):
                pass
            with sock.makefile() as file:
                self.assertEqual('"upgraded"\n', file.readline())
        self.wait_for_log('Upgrade: ')
        self.assert_new()

    def test_the_daemon_serves_during_the_trial(self):
        fifo = str(self.dir / 'fifo')
        os.mkfifo(fifo)
        config = self.make_release('two', 'fake 2', f'''
import sys
if '--trial' in sys.argv:
    open({fifo!r}).read()
''')
        with self.connect() as sock:
            self.send(sock, 'upgrade', config)
            with open(fifo, 'w'):
                self.assert_old()
