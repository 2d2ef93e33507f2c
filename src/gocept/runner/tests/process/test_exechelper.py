import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import unittest
from unittest import mock

from gocept.runner.process import Process, exechelper, procfs
from gocept.runner.process.pidfd import hold
from gocept.runner.tests import support
from gocept.runner.tests.victims import (
    DEADLINE,
    ended,
    lines,
    until,
    victim,
)


class HelperTests(unittest.TestCase):
    """The script, as `Launch` runs it."""

    options = {
        'rlimits': {}, 'user': None, 'group': None, 'extra_groups': None,
        'death_signal': 0, 'restored_signals': [], 'locale': None}

    def run_helper(self, *command, **options):
        """Returns the status, the output and what has failed."""
        read, write = os.pipe()
        options = self.options | {
            'report': write, 'parent': os.getpid()} | options
        with open(read) as report:
            process = subprocess.Popen(
                [sys.executable, '-I', '-S', exechelper.__file__,
                 json.dumps(options), *command],
                pass_fds=[write], stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT)
            os.close(write)
            output, _ = process.communicate(timeout=DEADLINE)
            self.report = report.read()
            return (process.returncode, output.decode(),
                    json.loads(self.report.strip() or 'null'))

    def test_it_becomes_the_program(self):
        self.assertEqual((3, 'called so\n', None), self.run_helper(
            '/bin/sh', 'called so', '-c', 'echo "called so"; exit 3'))

        self.assertEqual(exechelper.EXEC.decode(), self.report)

    def test_the_program_cannot_be_run(self):
        self.assertEqual(
            (exechelper.FAILED, '',
             ['', 2, mock.ANY]),
            self.run_helper('/does/not/exist', 'x'))
        # Only the program has failed.
        self.assertTrue(self.report.startswith(exechelper.EXEC.decode()))

    def test_a_limit_cannot_be_set(self):
        self.assertEqual(
            (exechelper.FAILED, '',
             ['rlimit nofile', None, mock.ANY]),
            self.run_helper('true', 'true', rlimits={'nofile': [2, 1]}))
        self.assertFalse(self.report.startswith(exechelper.EXEC.decode()))

    def test_each_step_is_named(self):
        calls = {'groups': 'os.setgroups', 'group': 'os.setregid',
                 'user': 'os.setreuid', 'rlimit core': 'resource.setrlimit',
                 'die_with_parent': f'{exechelper.__name__}._die_with'}
        options = self.options | {
            'user': 1, 'group': 1, 'extra_groups': [],
            'rlimits': {'core': [0, 0]}, 'death_signal': 9,
            'parent': os.getpid(), 'report': 2}

        class Exited(BaseException):
            pass

        for step, call in calls.items():
            reports = []
            with mock.patch('os.set_inheritable'), mock.patch(
                    'os.write', lambda fd, text: reports.append(
                        json.loads(text))), mock.patch(
                    'os._exit', side_effect=Exited), mock.patch(
                    'os.execvpe') as execvpe, mock.patch.object(
                    sys, 'argv', ['', json.dumps(options), 'true', 'true']):
                with mock.patch('os.setgroups'), mock.patch(
                        'os.setregid'), mock.patch('os.setreuid'), mock.patch(
                        'resource.setrlimit'), mock.patch(
                        f'{exechelper.__name__}._die_with'), mock.patch(
                        call, side_effect=PermissionError(1, 'no')):
                    with self.assertRaises(Exited):
                        exechelper.main()
            self.assertEqual(
                [[step, 1, '[Errno 1] no']], reports)
            self.assertFalse(execvpe.called)

    def test_the_program_does_not_get_the_pipe(self):
        status, output, _ = self.run_helper(
            'ls', 'ls', '/proc/self/fd')
        self.assertEqual((0, ['0', '1', '2', '3']), (status, output.split()))

    def test_the_parent_has_died_before(self):
        status, _, report = self.run_helper(
            'sleep', 'sleep', '100', parent=1, death_signal=signal.SIGTERM)
        self.assertEqual((-signal.SIGTERM, None), (status, report))


class DieWithParentTests(support.TestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(support.end_background)

    def test_it_outlives_the_thread_that_has_started_it(self):
        children = []
        thread = threading.Thread(target=lambda: children.append(
            Process(victim('say("ready")\npause()'), die_with_parent=True,
                    stdin='pipe', stdout='pipe')))
        thread.start()
        thread.join(DEADLINE)
        [child] = children
        self.addCleanup(child.close)
        lines(child, 1)
        # Whatever the end of the thread has sent it would be there by now.
        self.assertIsNone(child.poll())
        self.assertEqual(signal.SIGTERM, -child.terminate())

    def test_a_chosen_signal(self):
        program = self.program(textwrap.dedent('''
            import signal
            from gocept.runner.process import Process
            from gocept.runner.tests.victims import *
            child = Process(victim("""
                signal.signal(signal.SIGUSR1, lambda *args: (
                    say('told'), os._exit(0)))
                say('ready')
                pause()
                """), die_with_parent=signal.SIGUSR1)
            signal.pause()
            '''))
        program.wait_for('ready')
        program.send(signal.SIGKILL)
        program.end()
        self.assertEqual('ready\ntold\n', program.output)

    def test_the_parent_is_killed(self):
        program = self.program(textwrap.dedent('''
            import os, signal
            from gocept.runner.process import Process
            from gocept.runner.tests.victims import *
            child = Process('sleep 100', die_with_parent=True, stdin='pipe')
            if os.getuid() == 0:
                other = Process('sleep 100', die_with_parent=True,
                                user='nobody')
            else:
                other = child
            say(child.pid, other.pid)
            signal.pause()
            '''))
        program.wait_for(' ')
        handles = [hold(int(pid)) for pid in program.output.split()]
        for handle in handles:
            self.addCleanup(handle.close)
            self.addCleanup(handle.signal, signal.SIGKILL)
            self.assertFalse(handle.has_ended())
        program.send(signal.SIGKILL)
        for handle in handles:
            self.assertTrue(ended(handle))

    def test_no_other_than_the_child_dies(self):
        program = self.program(textwrap.dedent('''
            import signal
            from gocept.runner.process import Process
            from gocept.runner.tests.victims import *
            child = Process(victim('say(os.getpid(), fork(int)); pause()'),
                            die_with_parent=True)
            signal.pause()
            '''))
        program.wait_for('child')
        program.wait_for(' ')
        child, grandchild = (
            hold(int(pid))
            for pid in program.output.splitlines()[-1].split())
        for handle in (child, grandchild):
            self.addCleanup(handle.close)
            self.addCleanup(handle.signal, signal.SIGKILL)
        program.send(signal.SIGKILL)
        self.assertTrue(ended(child))
        self.assertFalse(grandchild.has_ended())

    def test_ended_as_any_other(self):
        child = Process(victim('say("ready")\npause()'), stdout='pipe',
                        die_with_parent=True)
        lines(child, 1)
        until(lambda: procfs.stat(child.pid).state == 'S')
        child.close()
        self.assertEqual(-signal.SIGTERM, child.returncode)
