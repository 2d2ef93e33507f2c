"""How the output of a child is read."""

import os
import select
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

from gocept.runner.errors import DeadlineExceeded, RunnerError
from gocept.runner.executor import OutputExecutor, SimpleExecutor
from gocept.runner.executor.reader import Reader
from gocept.runner.poller.thread import hand_over
from gocept.runner.tests.executors import CaptureTestCase, Starting
from gocept.runner.tests.support import DEADLINE
from gocept.runner.tests.victims import until
from gocept.runner.waits.deadline import Deadline
from gocept.runner.waits.readable import Readable


class ReadTests(CaptureTestCase):

    def test_so_many_characters(self) -> None:
        self.write('äb\nc'.encode())
        self.assertEqual('', self.reader.read(0))
        self.assertEqual('ä', self.reader.read(1))
        self.assertEqual('b\nc', self.reader.read(3))
        self.write(b'd')
        self.capture.close()
        self.assertEqual('d', self.reader.read(3))
        self.assertEqual('', self.reader.read(3))
        self.assertEqual('', self.reader.read())

    def test_a_part_of_a_line(self) -> None:
        self.write(b'abc\nde')
        self.assertEqual('', self.reader.readline(0))
        self.assertEqual('ab', self.reader.readline(2))
        self.assertEqual('c\n', self.reader.readline(5))
        self.assertEqual('d', self.reader.readline(1))
        self.write(b'f\n')
        self.assertEqual(['ef\n'], [self.reader.readline(None)])

    def test_lines_in_many_pieces(self) -> None:
        for _ in range(30):
            self.write(b'x' * 900)
            with self.assertRaises(DeadlineExceeded):
                self.reader.take_all(Deadline(0))
        self.write(b'\nrest')
        self.assertEqual('x' * 27_000 + '\n', self.reader.readline())
        self.capture.close()
        self.assertEqual(['rest'], self.reader.readlines())

    def test_characters_and_line_ends_that_come_in_two_pieces(self) -> None:
        for piece in (b'\xc3', b'\xa4\r', b'\nb\r', b'c\xc3'):
            self.write(piece)
            with self.assertRaises(DeadlineExceeded):
                self.reader.take_all(Deadline(0))
        self.capture.close()
        self.assertEqual(['ä\n', 'b\n', 'c\\xc3'], list(self.reader))

    def test_bytes(self) -> None:
        reader = self.make_reader(is_text=False)
        self.write(b'a\r\n\xff\nb')
        self.assertEqual(b'a\r\n', reader.readline())
        self.assertEqual(b'\xff', reader.read(1))
        self.capture.close()
        self.assertEqual([b'\n', b'b'], list(reader))
        self.assertIsNone(reader.encoding)

    def test_of_bytes_that_are_lost(self) -> None:
        reader = self.make_reader(is_text=False)
        for _ in range(3):
            self.write(b'x' * 10_000)
        lost = self.capture.dropped
        self.assertEqual(b'\n', reader.readline())
        self.assertEqual(b'[%d bytes were not kept]\n' % lost,
                         reader.readline())

    def test_nothing_is_lost_while_it_is_kept(self) -> None:
        with self.reader.keeping():
            for _ in range(10):
                self.write(b'x' * 9_999 + b'\n')
            self.assertEqual(0, self.capture.dropped)
            self.assertEqual(10_000, len(self.reader.readline()))
        self.assertGreater(self.capture.dropped, 10_000)

    def test_what_was_taken_is_not_lost_when_a_call_fails(self) -> None:
        executor = self.stopping(SimpleExecutor(
            'printf begun; read line; echo " done"', shell=True).start())
        until(lambda: executor._run.captures['stdout'].end == 5)
        failed: list[Any] = []
        done = threading.Event()

        def read() -> None:
            try:
                executor.output().readline()
            except RunnerError as error:
                failed.append(error)
            done.set()

        hand_over(read)
        done.wait(DEADLINE)
        self.assertIn('background thread', str(failed[0]))
        executor.process.stdin.write('\n')
        self.assertEqual('begun done\n', executor.output().readline())

    def test_who_reads_meanwhile_delays_no_start(self) -> None:
        executor = self.stopping(OutputExecutor(
            'read line; printf "ready> "; read line; echo $line; echo next',
            'ready>', shell=True))
        starting = Starting(executor)
        until(executor.output)
        with ThreadPoolExecutor(1) as threads:
            reading = threads.submit(executor.output().readline)
            until(lambda: executor._run.captures['stdout']._changed._waiters)
            starting.go_on()
            starting.wait()
            executor.process.stdin.write('line\n')
            self.assertIn(  # as it is read or left out, whichever is first
                reading.result(DEADLINE), ('ready> line\n', 'next\n'))

    def test_who_reads_meanwhile_delays_no_deadline(self) -> None:
        with ThreadPoolExecutor(1) as threads:
            reading = threads.submit(self.reader.readline)
            until(lambda: self.capture._changed._waiters)
            with self.assertRaisesRegex(DeadlineExceeded, 'another thread'):
                self.reader.take_all(Deadline(0))
            self.write(b'one\n')
            self.assertEqual('one\n', reading.result(DEADLINE))

    def test_after_it_was_closed(self) -> None:
        self.write(b'a\n')
        self.reader.fileno()
        self.reader.close()
        self.reader.close()
        for call in (self.reader.read, self.reader.readline,
                     self.reader.fileno):
            self.assertRaises(ValueError, call)


class DescriptorTests(CaptureTestCase):
    """The descriptor that is readable as long as `readline` does not wait."""

    def ready(self, reader: Reader | None = None) -> bool:
        return bool(select.select([reader or self.reader], [], [], 0)[0])

    def test_lines(self) -> None:
        self.write(b'one\ntw')
        self.assertTrue(self.ready())
        self.assertEqual(self.reader.fileno(), self.reader.fileno())
        self.assertEqual('one\n', self.reader.readline())
        self.assertFalse(self.ready())
        self.write(b'o')
        self.assertFalse(self.ready())
        self.write(b'\nthree\n')
        self.assertTrue(self.ready())
        self.assertEqual('two\n', self.reader.readline())
        self.assertTrue(self.ready())
        self.assertEqual('three\n', self.reader.readline())
        self.assertFalse(self.ready())

    def test_threads_that_ask_at_once_get_the_same(self) -> None:
        both = threading.Barrier(2)

        def make() -> Readable:
            both.wait(DEADLINE)
            return Readable()
        with (mock.patch('gocept.runner.executor.reader.Readable', make),
              ThreadPoolExecutor(2) as threads):
            asked = [threads.submit(self.reader.fileno) for _ in range(2)]
            fds = {each.result(DEADLINE) for each in asked}
        self.assertEqual({self.reader.fileno()}, fds)
        self.write(b'one\n')
        self.assertTrue(self.ready())

    def test_the_end(self) -> None:
        later = self.make_reader()
        self.write(b'rest')
        self.assertFalse(self.ready())
        self.capture.close()
        for reader in (self.reader, later):
            for line in ('rest', '', ''):
                self.assertTrue(self.ready(reader))
                self.assertEqual(line, reader.readline())

    def test_line_ends_of_texts_and_bytes(self) -> None:
        other = self.make_reader(is_text=False)
        self.write(b'a\r')
        self.assertFalse(self.ready())  # a \n may follow
        self.write(b'b')
        self.assertTrue(self.ready())
        self.assertFalse(self.ready(other))
        self.assertEqual('a\n', self.reader.readline())
        self.assertFalse(self.ready())

    def test_the_rest_of_a_line_that_is_left_out(self) -> None:
        self.write(b'ready on')
        self.reader.skip_to(5, True)
        self.write(b' 7\n')
        self.assertFalse(self.ready())
        self.write(b'next\n')
        self.assertTrue(self.ready())
        self.assertEqual('next\n', self.reader.readline())

    def test_a_loop_over_select(self) -> None:
        executor = self.stopping(OutputExecutor(
            'echo ready; for i in 1 2 3; do echo $i; read line; done',
            'ready', shell=True)).start()
        lines = []
        while not lines or lines[-1]:
            self.assertTrue(
                select.select([executor.output()], [], [], DEADLINE)[0])
            lines.append(executor.output().readline())
            if lines[-1]:
                executor.process.stdin.write('\n')
        self.assertEqual(['1\n', '2\n', '3\n', ''], lines)

    def test_the_stop(self) -> None:
        executor = self.stopping(SimpleExecutor('sleep 100').start())
        reader = executor.output()
        with ThreadPoolExecutor(1) as threads:
            selected = threads.submit(select.select, [reader], [], [])
            executor.stop()
            self.assertTrue(selected.result(DEADLINE)[0])
        self.assertEqual('', reader.readline())

    def test_a_forked_child_does_not_take_from_it(self) -> None:
        self.write(b'one\n')
        self.assertTrue(self.ready())

        def in_child() -> None:
            assert self.reader._readable is None
            assert self.reader.readline() == 'one\n'
            assert self.ready()

        pid = os.fork()
        if not pid:
            status = 1
            try:
                in_child()
                status = 0
            finally:
                os._exit(status)
        self.assertEqual(0, os.waitpid(pid, 0)[1])
        self.assertTrue(self.ready())
        self.assertEqual('one\n', self.reader.readline())
        self.assertFalse(self.ready())
