import errno
import fcntl
import os
import threading
import unittest
from unittest import mock

from gocept.runner.house.writer import Writer
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import Deadline

SIZE = 4096  # of the pipe


class WriterTests(unittest.TestCase):

    most = 3 * SIZE

    def setUp(self):
        self.read, self.write = os.pipe()
        fcntl.fcntl(self.write, fcntl.F_SETPIPE_SZ, SIZE)
        self.addCleanup(lambda: [os.close(fd) for fd in (
            self.read, self.write) if fd >= 0])
        self.writer = Writer(self.write, self.most)
        self.addCleanup(self.close)

    def close(self):
        self.close_reader()
        self.writer.close(Deadline(DEADLINE))
        self.assertNotIn('output of the house', [
            thread.name for thread in threading.enumerate()])

    def close_reader(self):
        if self.read >= 0:
            os.close(self.read)
            self.read = -1

    def read_lines(self, count):
        """Read so many lines."""
        data = b''
        while data.count(b'\n') < count:
            data += os.read(self.read, 2 ** 16)
        return data.splitlines()

    def test_lines_come_in_order(self):
        for number in range(100):
            self.writer.write(b'%d\n' % number)
        self.assertEqual([b'%d' % number for number in range(100)],
                         self.read_lines(100))
        self.assertTrue(self.writer.flush(Deadline(DEADLINE)))

    def test_nobody_reads(self):
        line = b'x' * 1023 + b'\n'
        for _ in range(50):
            self.writer.write(line)  # which does not wait
        lost = self.writer.lost
        self.assertGreaterEqual(lost, 50 - (SIZE + self.most) // 1024)
        self.assertLessEqual(lost, 50 - self.most // 1024)
        self.assertEqual([line[:-1]] * (50 - lost),
                         self.read_lines(50 - lost))
        self.writer.flush(Deadline(DEADLINE))
        self.writer.write(b'again\n')
        self.assertEqual(
            [b'... %d lines are left out here, as nobody has read the output'
             % lost, b'again'], self.read_lines(2))

    def test_a_line_that_is_longer_than_all_that_may_wait(self):
        line = b'x' * 2 * self.most + b'\n'
        self.writer.write(line)
        self.assertEqual([line[:-1]], self.read_lines(1))

    def test_the_reader_has_gone(self):
        self.close_reader()
        self.writer.write(b'1\n')
        self.assertTrue(self.writer.flush(Deadline(DEADLINE)))
        self.assertTrue(self.writer.gone)
        self.writer.write(b'2\n')
        self.assertEqual(2, self.writer.lost)

    def test_the_reader_goes_meanwhile(self):
        for _ in range(12):
            self.writer.write(b'x' * 1023 + b'\n')
        self.close_reader()
        self.assertTrue(self.writer.flush(Deadline(DEADLINE)))
        self.assertTrue(self.writer.gone)
        self.assertGreater(self.writer.lost, 0)

    def test_a_descriptor_that_others_have_made_non_blocking(self):
        os.set_blocking(self.write, False)
        line = b'x' * 2 * SIZE + b'\n'
        self.writer.write(line)
        self.assertEqual([line[:-1]], self.read_lines(1))

    def test_a_full_disk_loses_what_it_does_not_take(self):
        write, full = os.write, [OSError(errno.ENOSPC, 'No space left')]

        def fail_once(fd, data):
            if fd == self.write and full:
                raise full.pop()
            return write(fd, data)
        with mock.patch('os.write', fail_once):
            self.writer.write(b'1\n')
            self.writer.flush(Deadline(DEADLINE))
            self.writer.write(b'2\n')
            self.assertEqual([b'2'], self.read_lines(1))
        self.assertEqual((1, False), (self.writer.lost, self.writer.gone))

    def test_the_end_does_not_wait_for_a_reader_for_ever(self):
        for _ in range(12):
            self.writer.write(b'x' * 1023 + b'\n')
        self.writer.close(Deadline(0.01))
        self.writer.write(b'too late\n')
        self.assertGreaterEqual(self.writer.lost, 1)

    def test_closed_without_a_line(self):
        self.writer.close(Deadline(DEADLINE))
