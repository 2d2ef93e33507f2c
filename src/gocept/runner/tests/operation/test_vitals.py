"""What the system says of processes."""

import os
import signal
import subprocess
import sys
import time
import unittest
from unittest import mock

from gocept.runner.operation import vitals
from gocept.runner.process import procfs
from gocept.runner.tests.victims import until


def state_of(pid: int) -> str | None:
    found = vitals.process(pid)
    return None if found is None else found.state


class ProcessTests(unittest.TestCase):

    def test_this_process(self) -> None:
        found, expected = vitals.process(os.getpid()), procfs.look(os.getpid())
        assert found is not None
        self.assertEqual(expected.start, found.start)

    def test_the_life_of_a_process(self) -> None:
        with subprocess.Popen(['sleep', '100']) as process:
            try:
                pid = process.pid
                process.send_signal(signal.SIGSTOP)
                until(lambda: state_of(pid) == 'T')
                process.send_signal(signal.SIGCONT)
                until(lambda: state_of(pid) == 'S')
            finally:
                process.kill()
            until(lambda: state_of(pid) == 'Z')
            process.wait()
            self.assertIsNone(vitals.process(pid))

    def test_numbers_of_no_process(self) -> None:
        for pid in 2 ** 22 + 1, 2 ** 100:
            self.assertIsNone(vitals.process(pid))

    def test_a_name_with_brackets(self) -> None:
        with subprocess.Popen([
                sys.executable, '-I', '-S', '-c', 'import sys\n'
                'open("/proc/self/comm", "w").write(") Z 1")\n'
                'print(flush=True)\nsys.stdin.read()'],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            found = vitals.process(process.pid)
            process.kill()
        assert found is not None
        self.assertIn(found.state, 'SRD')

    def test_a_process_that_the_system_hides(self) -> None:
        with mock.patch.object(vitals, '_content', lambda path: ''):
            found = vitals.process(os.getpid())
        assert found is not None
        self.assertEqual((vitals.HIDDEN, None), (found.state, found.start))


class SystemTests(unittest.TestCase):

    def test_the_facts(self) -> None:
        facts = vitals.facts_about(os.getpid())
        self.assertEqual(os.uname().nodename, facts.host)
        self.assertEqual(36, len(facts.boot))
        self.assertIn('pid:[', facts.namespaces)
        self.assertLess(0, vitals.memory())
        self.assertLessEqual(facts.now['monotonic'], time.monotonic())

    def test_the_proc_of_another_namespace(self) -> None:
        with mock.patch('os.readlink', lambda path: '1'):
            self.assertEqual('', vitals.namespaces())

    def test_no_proc(self) -> None:
        with (mock.patch('os.readlink', side_effect=FileNotFoundError),
              mock.patch('os.open', side_effect=FileNotFoundError)):
            self.assertEqual(
                ('', '', None),
                (vitals.namespaces(), vitals.boot(), vitals.memory()))
