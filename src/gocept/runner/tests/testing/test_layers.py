"""Layers of zope.testrunner."""

import os
import signal
import subprocess
import sys

import zope.interface.verify

from gocept.runner.executor import OutputExecutor, ProcessExitedWithError
from gocept.runner.interfaces import IExecutorLayer
from gocept.runner.testing import ExecutorLayer
from gocept.runner.tests.executors import ExecutorTestCase, is_gone
from gocept.runner.tests.support import DEADLINE, child_environment


def sleeper(**options):
    return OutputExecutor(
        'echo ready; exec sleep 100', 'ready', shell=True, **options)


class ExecutorLayerTests(ExecutorTestCase):

    def make_layer(self, make=sleeper, **options):
        layer = ExecutorLayer('SERVICE', make, **options)
        self.addCleanup(layer.tearDown)
        return layer

    def test_keeps_its_contract(self):
        layer = self.make_layer()
        layer.setUp()
        zope.interface.verify.verifyObject(IExecutorLayer, layer)
        self.assertEqual((__name__, 'SERVICE', ()), (
            layer.__module__, layer.__name__, layer.__bases__))
        other = self.make_layer(bases=[layer], module='elsewhere')
        self.assertEqual((layer,), other.__bases__)
        self.assertEqual('<ExecutorLayer elsewhere.SERVICE>', repr(other))

    def test_there_is_an_executor_while_it_is_set_up(self):
        layer = self.make_layer()
        for _ in range(2):
            self.assertRaisesRegex(RuntimeError, 'SERVICE is not set up',
                                   lambda: layer.executor)
            layer.setUp()
            executor = layer.executor
            self.assertTrue(executor.running())
            layer.tearDown()
            self.assertFalse(executor.running())

    def test_what_it_requires_is_started_and_stopped_unless_it_runs(self):
        for runs in False, True:
            with self.subTest(runs):
                base = self.stopping(sleeper())
                if runs:
                    base.start()
                layer = self.make_layer(lambda: sleeper(requires=[base]))
                layer.setUp()
                self.assertTrue(base.running())
                layer.tearDown()
                self.assertEqual(runs, base.running())

    def test_a_test_that_has_ended_it_does_not_spoil_the_next(self):
        layer = self.make_layer()
        layer.setUp()
        layer.testSetUp()
        process = layer.executor.child
        os.kill(process.pid, signal.SIGKILL)
        process.wait(DEADLINE)
        layer.testSetUp()
        self.assertIsNot(process, layer.executor.child)
        layer.executor.stop()
        layer.testSetUp()
        self.assertTrue(layer.executor.running())

    def test_a_failure_leaves_it_as_it_was(self):
        layer = self.make_layer(
            lambda: OutputExecutor('exit 3', 'ready', shell=True))
        self.assertRaises(ProcessExitedWithError, layer.setUp)
        self.assertRaises(RuntimeError, lambda: layer.executor)

    def test_a_test_runner_sets_it_up_once(self):
        (self.dir / 'tests').mkdir()
        self.write('tests/__init__.py', '')
        self.write('tests/test_it.py', """
            import unittest
            from gocept.runner.executor import OutputExecutor
            from gocept.runner.testing import ExecutorLayer

            SERVICE = ExecutorLayer('SERVICE', lambda: OutputExecutor(
                'echo $$ >> starts; echo ready; exec sleep 100', 'ready',
                shell=True))

            class Tests(unittest.TestCase):
                layer = SERVICE

                def test_one(self):
                    self.assertTrue(self.layer.executor.running())

                def test_two(self):
                    self.assertTrue(self.layer.executor.running())
            """)
        done = subprocess.run(
            [sys.executable, '-m', 'zope.testrunner', '--test-path',
             str(self.dir)], cwd=self.dir, env=child_environment(),
            timeout=DEADLINE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
        self.assertEqual(0, done.returncode, done.stdout)
        self.assertIn('Running tests.test_it.SERVICE tests', done.stdout)
        self.assertIn('Ran 2 tests with 0 failures', done.stdout)
        [pid] = (self.dir / 'starts').read_text().split()
        self.assertTrue(is_gone(int(pid)))
