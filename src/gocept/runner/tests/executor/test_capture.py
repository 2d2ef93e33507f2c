"""What the children of executors write."""

import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from gocept.runner.channel import PipeChannel
from gocept.runner.executor import (
    ConditionExecutor,
    SimpleExecutor,
    pid_file,
)
from gocept.runner.executor.capture import Capture
from gocept.runner.tests.executors import CaptureTestCase, ExecutorTestCase
from gocept.runner.tests.support import DEADLINE
from gocept.runner.tests.victims import until


class OutputTests(ExecutorTestCase):

    def test_reading_waits_for_a_line_and_for_the_end(self) -> None:
        executor = self.stopping(SimpleExecutor('cat').start())
        threading.Timer(0.01, executor.child.channel.write,
                        [b'a line\nrest']).start()
        self.assertEqual('a line\n', executor.output().readline())
        threading.Timer(0.01, executor.child.channel.write_eof).start()
        self.assertEqual('rest', executor.output().read())
        self.assertEqual('', executor.output().read())

    def test_standard_error_is_read_as_well(self) -> None:
        executor = self.stopping(SimpleExecutor(
            'echo out; echo err >&2', shell=True,
            stderr=subprocess.PIPE).start())
        self.assertEqual('out\n', executor.output().read())
        self.assertEqual('err\n', executor.err_output().read())

    def test_a_talkative_child_never_waits(self) -> None:
        executor = self.stopping(SimpleExecutor(
            [sys.executable, '-c', "print('x' * 9_999_999)"],
            output_size=100_000).start())
        self.assertEqual(0, executor.child.wait(DEADLINE))
        until(lambda: executor._run.captures['stdout'].ended)
        output = executor.output().read()
        note, rest = output.split(' bytes were not kept]\n')
        dropped = int(note.removeprefix('\n['))
        self.assertEqual(dropped, executor.dropped)
        self.assertEqual(10_000_000, dropped + len(rest))
        self.assertGreaterEqual(len(rest), 100_000)

    def test_a_file_keeps_all_of_it(self) -> None:
        log = self.dir / 'log'
        log.write_text('before\n')
        executor = self.stopping(SimpleExecutor(
            [sys.executable, '-c', "print('x' * 999_999)"],
            output_size=1000, log_file=log).start())
        executor.child.wait(DEADLINE)
        executor.stop()
        self.assertEqual('before\n' + 'x' * 999_999 + '\n', log.read_text())

    def test_what_cannot_be_decoded_is_shown(self) -> None:
        executor = self.stopping(SimpleExecutor(
            "printf '\\377\\n'", shell=True).start())
        self.assertEqual('\\xff\n', executor.output().readline())

    def test_an_encoding_is_a_keyword_of_popen(self) -> None:
        executor = self.stopping(SimpleExecutor(
            "printf '\\344\\n'", shell=True,
            popen_kwargs={'encoding': 'latin-1'}).start())
        self.assertEqual('ä\n', executor.output().readline())

    def test_so_is_what_happens_to_other_bytes(self) -> None:
        executor = self.stopping(SimpleExecutor(
            "printf '\\344\\n'", shell=True, popen_kwargs={
                'encoding': 'ascii', 'errors': 'replace'}).start())
        self.assertEqual('\ufffd\n', executor.output().readline())

    def test_line_ends_are_those_of_text_files(self) -> None:
        executor = self.stopping(SimpleExecutor(
            "printf 'one\\r\\ntwo\\rthree\\n'", shell=True).start())
        self.assertEqual(['one\n', 'two\n', 'three\n'],
                         list(executor.output()))

    def test_several_threads_may_read(self) -> None:
        executor = self.stopping(
            SimpleExecutor(['seq', '300000'], output_size=2 ** 22).start())
        with ThreadPoolExecutor(3) as threads:
            read = [threads.submit(list, executor.output()) for _ in range(3)]
        numbers = [int(line) for each in read for line in each.result()]
        self.assertEqual(list(range(1, 300_001)), sorted(numbers))

    def test_who_reads_at_the_stop_gets_the_end(self) -> None:
        executor = self.stopping(SimpleExecutor(
            'echo out; echo err >&2; exec sleep 100', shell=True,
            stderr=subprocess.PIPE).start())
        with ThreadPoolExecutor(2) as threads:
            readers = executor.output(), executor.err_output()
            self.assertEqual(['out\n', 'err\n'],
                             [each.readline() for each in readers])
            read = [threads.submit(each.readline) for each in readers]
            executor.stop()
            self.assertEqual(
                ['', ''], [each.result(DEADLINE) for each in read])

    def test_what_was_not_read_stays_after_the_stop(self) -> None:
        executor = self.stopping(SimpleExecutor('echo text').start())
        reader = executor.output()
        executor.child.wait(DEADLINE)
        executor.stop()
        self.assertEqual('text\n', reader.read())
        self.assertIsNone(executor.output())

    def test_each_run_has_an_output_of_its_own(self) -> None:
        executor = self.stopping(SimpleExecutor('echo $$', shell=True))
        for _ in range(2):
            executor.start()
            self.assertEqual(f'{executor.child.pid}\n',
                             executor.output().read())
            executor.stop()

    def test_what_was_read_in_the_start_is_not_read_again(self) -> None:
        class Mine(ConditionExecutor):
            def after_start_check(self) -> bool:
                return 'ready' in self.output().readline()

        executor = self.stopping(Mine(
            'echo one; echo ready; echo next', pid_file(self.dir / 'pid'),
            shell=True)).start()
        self.assertEqual('next\n', executor.output().read())

    def test_what_is_dropped_is_that_of_both_streams(self) -> None:
        executor = self.stopping(SimpleExecutor(
            'echo out; echo error >&2', shell=True, stderr=subprocess.PIPE,
            output_size=0).start())
        executor.output().read()
        executor.err_output().read()
        self.assertEqual(10, executor.dropped)

    def test_nothing_needs_to_be_kept(self) -> None:
        executor = self.stopping(
            SimpleExecutor('echo text', output_size=0).start())
        self.assertEqual('\n[5 bytes were not kept]\n',
                         executor.output().read())


class LogFileTests(ExecutorTestCase):

    def test_both_streams_are_kept(self) -> None:
        log = self.dir / 'log'
        executor = self.stopping(SimpleExecutor(
            'echo out; echo err >&2', shell=True, stderr=subprocess.PIPE,
            log_file=log).start())
        executor.child.wait(DEADLINE)
        executor.stop()
        self.assertEqual({'out', 'err'}, set(log.read_text().split()))

    def test_a_full_disk_is_logged_and_the_child_goes_on(self) -> None:
        executor = self.stopping(SimpleExecutor('cat', log_file='/dev/full'))
        with self.assertLogs('gocept.runner.executor', 'ERROR') as logged:
            executor.start()
            for text in ('one\n', 'two\n'):
                executor.child.channel.write(text.encode())
                self.assertEqual(text, executor.output().readline())
            executor.stop()
        failure, loss = logged.output
        self.assertIn('is not written to /dev/full any more', failure)
        self.assertIn('No space left', failure)
        self.assertIn('8 bytes of the output could not be written', loss)

    def test_a_fifo_that_nobody_reads_any_more(self) -> None:
        path = self.dir / 'fifo'
        os.mkfifo(path)
        executor = SimpleExecutor('cat', log_file=path)
        with self.assertRaisesRegex(OSError, 'Nobody reads'):
            executor.start()
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.stopping(executor.start())
        with self.assertLogs('gocept.runner.executor', 'ERROR'):
            # More than any pipe takes.
            executor.child.channel.write(b'x' * 2_000_000 + b'\n')
            executor.child.channel.write_eof()
            self.assertEqual(0, executor.child.wait(DEADLINE))
            executor.stop()
        os.close(reader)

    def test_one_that_cannot_be_opened_leaves_nothing(self) -> None:
        executor = SimpleExecutor(
            'sleep 100', log_file=self.dir / 'missing' / 'log')
        self.assertRaises(FileNotFoundError, executor.start)
        self.assertIsNone(executor.child)


class CaptureTests(CaptureTestCase):

    def test_little_at_a_time_makes_few_pieces(self) -> None:
        for number in range(20_000):
            self.write(b'%d' % (number % 10))
        self.assertLess(len(self.capture._pieces), 5)
        self.assertEqual('0123456789' * 400, self.capture.tail[-4000:])
        self.assertLess(self.capture.dropped, 10_001)

    def test_what_was_dropped_is_shown_where_it_was(self) -> None:
        self.write(b'one\n')
        self.assertEqual('one\n', self.reader.readline())
        for _ in range(3):
            self.write(b'x' * 9_999 + b'\n')
        dropped = self.capture.dropped
        self.assertGreater(dropped, 10_000)
        self.assertEqual('\n', self.reader.readline())
        self.assertEqual(f'[{dropped - 4} bytes were not kept]\n',
                         self.reader.readline())
        self.write(b'last\n')
        self.capture.close()
        rest = self.reader.read()
        self.assertEqual(30_009, dropped + len(rest))
        self.assertTrue(rest.endswith('x\nlast\n'))

    def test_several_may_listen(self) -> None:
        heard: list[tuple[str, int, bytes]] = []

        def one(begin: int, data: bytes) -> None:
            heard.append(('one', begin, data))

        def two(begin: int, data: bytes) -> None:
            heard.append(('two', begin, data))

        self.write(b'abc')
        self.capture.listen(one)
        self.write(b'd')
        self.capture.listen(two)
        self.capture.listen_no_more(one)
        self.write(b'e')
        self.assertEqual([('one', 0, b'abc'), ('one', 3, b'd'),
                          ('two', 0, b'abcd'), ('two', 4, b'e')], heard)

    def test_a_listener_runs_without_a_lock(self) -> None:
        heard: list[bytes] = []

        def listener(begin: int, data: bytes) -> None:
            heard.append(data)
            self.capture.read_rest()
            self.capture.listen_no_more(listener)
            self.capture.listen(lambda begin, data: heard.append(data))

        self.capture.listen(listener)
        self.write(b'a')
        self.write(b'b')
        self.assertEqual([b'a', b'a', b'b'], heard)

    def test_the_fault_of_a_listener_is_logged(self) -> None:
        heard: list[bytes] = []

        def listener(begin: int, data: bytes) -> None:
            raise ValueError('a fault of the listener')

        self.capture.listen(listener)
        self.capture.listen(lambda begin, data: heard.append(data))
        with self.assertLogs('gocept.runner.executor', 'ERROR') as logged:
            self.write(b'a')
        self.assertIn('a fault of the listener', logged.output[0])
        self.assertEqual([b'a'], heard)

    def test_one_that_takes_long_keeps_nobody_from_reading(self) -> None:
        heard: list[bytes] = []
        begun, go_on = threading.Event(), threading.Event()

        def listener(begin: int, data: bytes) -> None:
            begun.set()
            go_on.wait(DEADLINE)
            heard.append(data)

        self.capture.listen(listener)
        with ThreadPoolExecutor(1) as thread:
            reading = thread.submit(self.write, b'a')
            begun.wait(DEADLINE)
            self.write(b'b')
            self.assertEqual('ab', self.capture.tail)
            go_on.set()
            reading.result(DEADLINE)
        self.assertEqual([b'a', b'b'], heard)

    def test_what_is_logged_is_logged_without_a_lock(self) -> None:
        test = self

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                test.capture.close()  # as a program does that gives up

        log = logging.getLogger('gocept.runner.executor')
        handler = Handler()
        log.addHandler(handler)
        self.addCleanup(log.removeHandler, handler)
        read, sink = os.pipe()
        self.addCleanup(os.close, sink)
        self.capture = Capture(PipeChannel(read), 10, '/dev/full')
        os.write(sink, b'x')
        self.capture.read_rest()
        self.assertTrue(self.capture.ended)

    def test_a_listener_hears_where_the_rest_begins(self) -> None:
        heard: list[int] = []
        for _ in range(3):
            self.write(b'x' * 9_000)
        self.capture.listen(lambda begin, data: heard.append(begin))
        self.assertEqual([self.capture.dropped], heard)


class ExecutorCaptureTests(ExecutorTestCase):

    def test_one_reader_whoever_asks(self) -> None:
        executor = self.stopping(
            SimpleExecutor('cat', stderr=subprocess.PIPE).start())
        self.assertIs(executor.output(), executor.output())
        self.assertIs(executor.err_output(), executor.err_output())
        self.assertIsNot(executor.output(), executor.err_output())

    def test_a_start_has_its_own(self) -> None:
        executor = SimpleExecutor('echo x')
        self.assertIsNone(executor.output())
        self.assertIsNone(executor.err_output())
        self.assertEqual(0, executor.dropped)
        readers = []
        for _ in range(2):
            executor.start()
            readers.append(executor.output())
            self.assertEqual('x\n', readers[-1].read())
            executor.stop()
            self.assertIsNone(executor.output())
        self.assertIsNot(*readers)

    def test_what_cannot_be_captured_starts_nothing(self) -> None:
        for error, options in (
                (LookupError, {'popen_kwargs': {'encoding': 'nonsense'}}),
                (FileNotFoundError, {'log_file': self.dir / 'no' / 'log'})):
            executor = SimpleExecutor(
                'sleep 100', stderr=subprocess.PIPE, **options)
            self.assertRaises(error, executor.start)
            self.assertIsNone(executor.child)
            self.assertIsNone(executor.output())
