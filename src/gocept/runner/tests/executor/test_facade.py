"""What is shown of a child in place of a `subprocess.Popen`."""

import signal
import subprocess
import sys
import unittest
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest import mock

from zope.interface.verify import verifyObject

from gocept.runner.errors import RunnerError
from gocept.runner.executor import OutputExecutor, SimpleExecutor
from gocept.runner.executor.facade import Popen
from gocept.runner.interfaces import IPopen
from gocept.runner.poller.thread import hand_over
from gocept.runner.tests.support import DEADLINE, end_background
from gocept.runner.tests.victims import until


class PopenTests(unittest.TestCase):

    executor: Any

    def setUp(self) -> None:
        self.addCleanup(end_background)

    def start(self, command: Any = 'cat', **options: Any) -> Popen:
        self.executor = SimpleExecutor(command, **options)
        self.addCleanup(self.executor.kill)
        process = self.executor.start().process
        assert process is not None
        return process

    def test_it_is_there_while_the_child_is(self) -> None:
        process = self.start()
        verifyObject(IPopen, process)
        self.assertIs(process, self.executor.process)
        self.executor.stop()
        self.assertIsNone(self.executor.process)
        self.assertIsNotNone(process.returncode)
        self.assertIsNone(SimpleExecutor('true').process)

    def test_its_attributes_are_those_of_the_child(self) -> None:
        process = self.start(['cat', '-u'])
        assert self.executor.child is not None
        self.assertEqual(['cat', '-u'], process.args)
        self.assertEqual(self.executor.child.pid, process.pid)
        self.assertIsNone(process.returncode)
        self.assertIsNone(process.poll())
        self.assertIsNone(process.stderr)
        self.assertIs(self.executor.output(), process.stdout)
        self.assertEqual("<Popen: returncode: None args: ['cat', '-u']>",
                         repr(process))

    def test_with_a_shell_args_is_the_command(self) -> None:
        self.assertEqual('exit 3', self.start('exit 3', shell=True).args)

    def test_a_wait_that_takes_too_long_is_an_error_of_subprocess(
            self) -> None:
        process = self.start()
        with self.assertRaises(subprocess.TimeoutExpired) as caught:
            process.wait(timeout=0)
        self.assertEqual(['cat'], caught.exception.cmd)
        self.assertEqual(0, caught.exception.timeout)

    def test_to_terminate_only_sends_the_signal(self) -> None:
        process = self.start("trap 'echo told' TERM; echo begun; "
                             'while :; do sleep 0.01; done', shell=True)
        assert process.stdout is not None and process.stdin is not None
        self.assertEqual('begun\n', process.stdout.readline())
        process.terminate()
        self.assertEqual('told\n', process.stdout.readline())
        process.kill()
        self.assertEqual(-signal.SIGKILL, process.wait())
        process.kill()  # it has ended, so nothing happens

    def test_its_streams_are_the_kept_output(self) -> None:
        process = self.start('cat; echo end >&2', shell=True,
                             stderr=subprocess.PIPE)
        assert process.stdin and process.stdout and process.stderr
        text = 'ä' * 100_000
        process.stdin.write(text)
        process.stdin.close()
        process.stdin.close()
        self.assertEqual(text, process.stdout.read())
        self.assertEqual('end\n', process.stderr.read())
        with self.assertRaises(ValueError):
            process.stdin.write('more')

    def test_nobody_reads_its_input(self) -> None:
        process = self.start('exec <&-; echo closed; exec sleep 100',
                             shell=True)
        assert process.stdin and process.stdout
        process.stdout.readline()
        with self.assertRaises(BrokenPipeError):
            process.stdin.write('a')

    def test_an_input_that_is_no_pipe(self) -> None:
        self.assertIsNone(self.start(stdin=subprocess.DEVNULL).stdin)

    def test_to_communicate(self) -> None:
        process = self.start('cat; echo end >&2', shell=True,
                             stderr=subprocess.PIPE, output_size=1000)
        text = 'äöü\n' * 1_000_000
        self.assertEqual((text, 'end\n'), process.communicate(text))
        self.assertEqual(0, process.returncode)
        self.assertEqual((text, 'end\n'), process.communicate())
        assert process.stdin is not None
        self.assertTrue(process.stdin.closed)

    def test_to_communicate_with_a_child_that_does_not_read(self) -> None:
        process = self.start('true')
        self.assertEqual(('', None), process.communicate('x' * 2 ** 20))
        process = self.start('echo out', shell=True, stdin=subprocess.DEVNULL,
                             stderr=subprocess.PIPE)
        self.assertEqual(('out\n', ''), process.communicate('nobody'))

    def test_to_communicate_again_when_it_took_too_long(self) -> None:
        process = self.start('printf begun; read line; cat', shell=True)
        assert process.stdin is not None
        capture = self.executor._run.captures['stdout']
        until(lambda: capture.end == 5)
        for text in ('line\n' + 'x' * 2 ** 20, None):
            with self.assertRaises(subprocess.TimeoutExpired) as caught:
                process.communicate(text, timeout=0)
            assert caught.exception.output is not None
            self.assertEqual(b'begun', caught.exception.output[:5])
            self.assertIsNone(caught.exception.stderr)
        self.assertEqual(('begun' + 'x' * 2 ** 20, None),
                         process.communicate(timeout=DEADLINE))

    def test_to_communicate_when_its_streams_were_closed(self) -> None:
        process = self.start('echo out; cat', shell=True)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        self.assertRaises(ValueError, process.communicate, 'lost')
        self.assertEqual(('', None), process.communicate(timeout=DEADLINE))
        process = self.start()
        assert process.stdout is not None
        process.stdout.close()
        with self.assertRaises(subprocess.TimeoutExpired) as caught:
            with mock.patch.object(process, 'stdin', None):
                process.communicate(timeout=0)
        self.assertIsNone(caught.exception.output)

    def test_errors_of_the_encoding(self) -> None:
        process = self.start(
            popen_kwargs={'encoding': 'ascii', 'errors': 'surrogateescape'})
        assert process.stdin is not None
        self.assertEqual('surrogateescape', process.stdin.errors)
        self.assertEqual(('a\udcff', None), process.communicate('a\udcff'))
        process = self.start(popen_kwargs={'encoding': 'ascii'})
        assert process.stdin is not None
        self.assertRaises(UnicodeError, process.stdin.write, '\xe4')

    def test_threads_that_communicate_get_the_same(self) -> None:
        process = self.start('read line; echo $line', shell=True)
        with ThreadPoolExecutor(2) as threads:
            said = [threads.submit(process.communicate, 'a\n')
                    for _ in range(2)]
        self.assertEqual([('a\n', None)] * 2,
                         [each.result() for each in said])

    def test_in_the_background_thread(self) -> None:
        process = self.start('cat; exec sleep 100', shell=True)
        assert process.stdin is not None and process.stdout is not None

        def run(call: Any, *args: Any, **options: Any) -> Any:
            done: Future[Any] = Future()

            def in_background() -> None:
                try:
                    done.set_result(call(*args, **options))
                except Exception as error:
                    done.set_exception(error)
            hand_over(in_background)
            return done.result(DEADLINE)

        for call in process.wait, process.communicate:
            with self.assertRaisesRegex(RunnerError, 'background thread'):
                run(call)
        with self.assertRaises(subprocess.TimeoutExpired):
            run(process.wait, timeout=0)
        text = 'x' * 2 ** 19 + '\n'
        self.assertEqual(len(text), run(process.stdin.write, text))
        self.assertEqual(text, process.stdout.readline())
        with ThreadPoolExecutor(1) as threads:
            said = threads.submit(process.communicate)
            until(lambda: process.stdin.closed)
            with self.assertRaisesRegex(RunnerError, 'background thread'):
                run(process.communicate)
            process.kill()
            self.assertEqual(('', None), said.result(DEADLINE))
        self.assertEqual(('', None), run(process.communicate))
        self.assertEqual(-9, run(process.wait))

    def test_an_encoding_that_has_a_mark_at_the_beginning(self) -> None:
        process = self.start('cat', popen_kwargs={'encoding': 'utf-16'})
        assert process.stdin is not None
        for text in ('a\n', 'ä\n'):
            process.stdin.write(text)
        self.assertEqual(('a\nä\n', None), process.communicate())

    def test_bytes_if_popen_is_told_so(self) -> None:
        for options in ({'text': False}, {'universal_newlines': False}):
            process = self.start('cat', popen_kwargs=options)
            self.assertEqual((b'\xff\r\n', None),
                             process.communicate(b'\xff\r\n'))
            assert process.stdin is not None
            with self.assertRaises(TypeError):
                process.stdin._encoded('a')
        process = self.start('cat', popen_kwargs={
            'text': False, 'encoding': 'latin-1'})
        self.assertEqual(('ä', None), process.communicate('ä'))
        assert process.stdin is not None
        with self.assertRaises(TypeError):
            process.stdin._encoded(b'a')

    def test_as_a_context_manager_it_waits_for_the_end(self) -> None:
        with self.start() as process:
            pass
        self.assertEqual(0, process.returncode)

    def test_to_forget_its_input_does_not_close_it(self) -> None:
        executor = OutputExecutor(
            [sys.executable, '-c', 'print("ready", flush=True); input()'],
            'ready')
        with executor:
            assert executor.process and executor.process.stdin
            executor.process.stdin.__del__()
            self.assertFalse(executor.process.stdin.closed)
            executor.process.stdin.write('\n')
            self.assertEqual(0, executor.process.wait())
