import os
import signal
import subprocess
import sys
import unittest

import zope.interface.verify

from gocept.runner.channel import Channel, LineChannel
from gocept.runner.errors import DeadlineExceeded, EndpointClosedException
from gocept.runner.executor import OutputExecutor, ProcessExitedWithError
from gocept.runner.interfaces import IExecutorLayer, ITestChannel
from gocept.runner.poller import Poller
from gocept.runner.testing import ExecutorLayer, TestChannel
from gocept.runner.tests.executors import ExecutorTestCase, is_gone
from gocept.runner.tests.support import DEADLINE, child_environment


class TestChannelTests(unittest.TestCase):

    def test_keeps_its_contract(self):
        channel = TestChannel()
        zope.interface.verify.verifyObject(ITestChannel, channel)
        self.assertIsInstance(channel, Channel)

    def test_reads_what_was_put(self):
        channel = TestChannel()
        self.assertEqual(b'', channel.read())
        channel.put(b'a', bytearray(b'b'))
        channel.put(b'c')
        self.assertEqual(b'abc', channel.read())
        self.assertEqual(b'', channel.read())

    def test_gets_what_was_written(self):
        channel = TestChannel()
        self.assertEqual(b'', channel.get())
        channel.write(b'a', b'b')
        channel.write(b'c')
        self.assertEqual(b'abc', channel.get())
        self.assertEqual(b'', channel.get())

    def test_lines(self):
        channel = TestChannel(buffering='line', limit=4)
        channel.put(b'a\nb')
        self.assertEqual([b'a\n', b''], [channel.read(), channel.read()])
        channel.put(b'\nabcdefg')
        self.assertEqual(b'b\n', channel.read())
        self.assertEqual(b'abcd', channel.read())
        self.assertTrue(channel.partial)
        channel.put_eof()
        self.assertEqual(b'efg', channel.read())
        self.assertFalse(channel.partial)
        with self.assertRaises(EndpointClosedException):
            channel.read()

    def test_text(self):
        for encoding in ('utf-8', 'utf-16', 'iso2022_jp'):
            with self.subTest(encoding):
                channel = TestChannel(encoding=encoding)
                self.assertEqual(('', ''), (channel.read(), channel.get()))
                for text in ('日', '本'):
                    channel.put(text, '\n')
                    channel.write(text, '\n')
                    self.assertEqual(f'{text}\n', channel.read())
                    self.assertEqual(f'{text}\n', channel.get())

    def test_bytes_in_a_stream_of_text(self):
        channel = TestChannel(encoding='utf-8')
        channel.put('\xe4'.encode()[:1])
        self.assertEqual('', channel.read())
        channel.put('\xe4'.encode()[1:], b'\xff')
        self.assertEqual('\xe4\\xff', channel.read())

    def test_text_needs_an_encoding(self):
        for call in (TestChannel().put, TestChannel().write):
            with self.assertRaises(TypeError):
                call('a')

    def test_closed(self):
        channel = TestChannel()
        channel.put(b'a')
        channel.write(b'b')
        channel.close()
        channel.close()
        self.assertTrue(channel.closed)
        self.assertEqual('<TestChannel: closed>', repr(channel))
        self.assertEqual(b'a', channel.read())
        self.assertEqual(b'b', channel.get())
        for call in (channel.read, lambda: channel.write(b'c'),
                     lambda: channel.put(b'd')):
            with self.assertRaises(EndpointClosedException):
                call()

    def test_ended_by_the_other_side(self):
        channel = TestChannel()
        channel.put(b'a')
        channel.put_eof()
        self.assertEqual(b'a', channel.read())
        with self.assertRaises(EndpointClosedException):
            channel.read()
        with self.assertRaises(EndpointClosedException):
            channel.put(b'b')
        channel.write(b'c')
        self.assertEqual(b'c', channel.get())

    def test_ended_for_the_other_side(self):
        with TestChannel() as channel:
            channel.write(b'a')
            channel.write_eof()
            with self.assertRaises(EndpointClosedException):
                channel.write(b'b')
            self.assertEqual(b'a', channel.get())
            channel.put(b'c')
            self.assertEqual(b'c', channel.read())
        self.assertTrue(channel.closed)

    def test_within_another(self):
        inner = TestChannel()
        channel = LineChannel(inner)
        inner.put(b'a\nb')
        self.assertEqual(b'a\n', channel.read())
        channel.write(b'c')
        self.assertEqual(b'c', inner.get())

    def test_reads_up_to_what_was_put(self):
        channel = TestChannel()
        channel.put(b'login: ')
        self.assertEqual((b'', b'login:'), channel.read_until(b'login:'))
        with self.assertRaises(DeadlineExceeded):
            channel.read_until(b'password:')
        self.assertEqual(b' ', channel.read())

    def test_cannot_be_polled(self):
        channel = TestChannel()
        with Poller() as poller:
            with self.assertRaises(NotImplementedError):
                poller.register(channel)

    def test_buffers_nothing_of_what_is_sent(self):
        channel = TestChannel()
        channel.write(b'a')
        channel.flush()
        self.assertEqual(0, channel.kept)


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
        process = layer.executor.process
        os.kill(process.pid, signal.SIGKILL)
        process.wait(DEADLINE)
        layer.testSetUp()
        self.assertIsNot(process, layer.executor.process)
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
