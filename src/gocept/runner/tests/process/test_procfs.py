import os
import resource
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

from gocept.runner.process import descendants, procfs
from gocept.runner.tests import support
from gocept.runner.tests.victims import until


class ProcTests(support.TestCase):

    def start(self, *command, **options):
        process = subprocess.Popen(command, **options)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def test_what_a_process_is(self):
        before = descendants.clock()
        child = self.start('sleep', '100', start_new_session=True)
        stat = procfs.stat(child.pid)
        self.assertEqual((os.getpid(), child.pid, child.pid),
                         (stat.parent, stat.group, stat.session))
        self.assertIn(stat.state, 'RSD')
        self.assertLessEqual(before, stat.start)
        self.assertLessEqual(stat.start, descendants.clock())

    def test_a_name_that_is_made_to_confuse(self):
        program = self.dir / 'a) Z 1 ('
        program.symlink_to('/bin/sleep')
        child = self.start(str(program), '100')
        self.assertEqual(os.getpid(), procfs.stat(child.pid).parent)

    def test_what_a_process_uses(self):
        before = procfs.usage(os.getpid())
        used = time.process_time()
        while time.process_time() < used + 0.1:
            pass
        after = procfs.usage(os.getpid())
        self.assertGreaterEqual(after.cpu, before.cpu + 0.05)
        self.assertLessEqual(after.cpu, time.process_time() + 0.1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.assertTrue(1 << 20 < after.memory < peak + (1 << 20), after)

    def test_a_zombie(self):
        child = self.start('true')
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        self.assertEqual('Z', procfs.stat(child.pid).state)

    def test_a_stopped_one(self):
        child = self.start('sleep', '100')
        child.send_signal(signal.SIGSTOP)
        until(lambda: procfs.stat(child.pid).state == 'T')

    def test_none(self):
        child = self.start('true')
        child.wait()
        self.assertIsNone(procfs.stat(child.pid))
        self.assertIsNone(procfs.usage(child.pid))
        self.assertEqual([], procfs.children(child.pid))
        self.assertEqual('', procfs.variable(child.pid, 'PATH'))

    def test_children_of_all_threads(self):
        child = self.start(sys.executable, '-I', '-S', '-c', '''if True:
            import os, signal, threading
            def fork():
                if not os.fork():
                    signal.alarm(100)
                    signal.pause()
                os.write(1, b'.')
                signal.pause()
            threading.Thread(target=fork, daemon=True).start()
            fork()
            ''', stdout=subprocess.PIPE, process_group=0)
        self.addCleanup(child.stdout.close)
        self.addCleanup(os.killpg, child.pid, signal.SIGKILL)
        child.stdout.read(2)
        children = procfs.children(child.pid)
        self.assertEqual(2, len(children))
        for pid in children:
            self.assertEqual(child.pid, procfs.stat(pid).parent)

    def test_our_children(self):
        children = []
        thread = threading.Thread(
            target=lambda: children.append(self.start('sleep', '100')))
        thread.start()
        thread.join()
        self.assertIn(children[0].pid, procfs.children(os.getpid()))

    def test_all_processes(self):
        child = self.start('sleep', '100')
        self.assertLessEqual({1, os.getpid(), child.pid}, set(procfs.pids()))

    def variable(self, child, name):
        """Of a child that may still be on its way to its program."""
        until(lambda: procfs.variable(child.pid, name) is not None)
        return procfs.variable(child.pid, name)

    def test_variables(self):
        child = self.start('sleep', '100', env={
            'XA': '1', 'A': '2=3', 'E': '', 'N': 'a\nA=5', 'U': '\udcff'})
        self.assertEqual('2=3', self.variable(child, 'A'))
        self.assertEqual('', self.variable(child, 'E'))
        self.assertEqual('a\nA=5', self.variable(child, 'N'))
        self.assertEqual('\ufffd', self.variable(child, 'U'))
        self.assertEqual('', self.variable(child, 'X'))

    def test_a_process_that_is_becoming_another_program(self):
        # It has closed what the system closes for a new program, but has no
        # environment yet. Not caused each time, but never confused.
        for _ in range(50):
            child = self.start('true', env={'A': '1'})
            self.assertIn(procfs.variable(child.pid, 'A'), ('1', None, ''))
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            self.assertEqual('', procfs.variable(child.pid, 'A'))  # a zombie

    def test_one_that_has_just_become_another_program(self):
        child = self.start('sleep', '100', env={'A': '1'})
        self.assertEqual('1', self.variable(child, 'A'))
        environment = procfs._environment
        with mock.patch.object(procfs, '_environment', side_effect=[
                b'', environment(child.pid)]):
            self.assertEqual('1', procfs.variable(child.pid, 'A'))
        with mock.patch.object(procfs, '_environment', return_value=b''):
            self.assertIsNone(procfs.variable(child.pid, 'A'))

    def test_no_environment_at_all(self):
        child = self.start('sleep', '100', env={})
        self.assertEqual('', self.variable(child, 'A'))

    def test_the_first_variable_and_the_last(self):
        for name in 'A', 'B':
            child = self.start('sleep', '100', env={'A': '1', 'B': '1'})
            self.assertEqual('1', self.variable(child, name))

    def test_a_system_without_it(self):
        missing = {'side_effect': FileNotFoundError}
        with (mock.patch('builtins.open', **missing),
              mock.patch('os.open', **missing),
              mock.patch('os.listdir', **missing)):
            self.assertIsNone(procfs.stat(os.getpid()))
            self.assertEqual([], procfs.children(os.getpid()))
            self.assertEqual([], list(procfs.pids()))
            self.assertEqual('', procfs.variable(os.getpid(), 'PATH'))

    HEADLESS = '''
import ctypes, os, threading, time
def run():
    while open('/proc/self/stat').read().rpartition(')')[2].split()[0] != 'Z':
        time.sleep(0.001)
    os.write(1, b'ready')
    time.sleep(100)
threading.Thread(target=run, daemon=True).start()
ctypes.CDLL(None).pthread_exit(None)
'''

    def test_one_whose_main_thread_has_ended(self):
        child = self.start(
            sys.executable, '-c', self.HEADLESS, stdout=subprocess.PIPE,
            env=os.environ | {'A': '1'})
        self.addCleanup(child.stdout.close)
        self.assertEqual(b'ready', os.read(child.stdout.fileno(), 5))
        with open(f'/proc/{child.pid}/stat') as file:
            self.assertIn(') Z ', file.read())
        now = procfs.stat(child.pid)
        self.assertNotIn(now.state, 'ZX')
        self.assertNotEqual(0, now.image)
        self.assertEqual(os.getpid(), now.parent)
        self.assertEqual('1', procfs.variable(child.pid, 'A'))
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        until(lambda: procfs.stat(child.pid).state == 'Z')
        self.assertEqual('', procfs.variable(child.pid, 'A'))

    def test_children_where_the_system_does_not_list_them(self):
        children = {self.start('sleep', '100').pid for _ in range(3)}
        with mock.patch.object(procfs, '_lists_children', lambda: False):
            self.assertLessEqual(children, set(procfs.children(os.getpid())))
            for pid in children:
                self.assertEqual([], procfs.children(pid))
