import os
import unittest

from gocept.runner.house.output import LONGEST_LINE, Output
from gocept.runner.poller import Poller
from gocept.runner.tests.support import open_descriptors


class OutputTests(unittest.TestCase):

    def setUp(self):
        self.before = open_descriptors()
        read, self.write = os.pipe()
        self.lines = []
        self.output = Output(read, self.lines.append)
        self.poller = self.enterContext(Poller())
        self.poller.register(self.output)
        self.addCleanup(self.output.close)

    def end(self):
        os.close(self.write)
        self.poller.poll(0)

    def say(self, data):
        os.write(self.write, data)
        self.poller.poll(0)

    def test_whole_lines_only(self):
        self.say(b'one\ntwo')
        self.assertEqual([b'one'], self.lines)
        self.say(b' more\r\n\n')
        self.assertEqual([b'one', b'two more', b''], self.lines)
        self.end()

    def test_the_end(self):
        self.say(b'one\ntwo')
        self.end()
        self.assertEqual([b'one', b'two'], self.lines)
        self.poller.close()
        self.assertEqual(self.before, open_descriptors())

    def test_a_line_that_is_too_long(self):
        self.say(b'x' * LONGEST_LINE)
        self.say(b'y\n')
        self.assertEqual([b'x' * LONGEST_LINE, b'y'], self.lines)
        self.end()

    def test_the_rest_does_not_wait_for_a_descendant(self):
        os.write(self.write, b'one\nlast words')
        self.output.read_rest()
        self.assertEqual([b'one', b'last words'], self.lines)
        self.say(b'of the descendant\n')
        self.assertEqual(b'of the descendant', self.lines[-1])
        self.end()

    def test_a_descendant_that_writes_for_ever(self):
        reads = []
        self.output._read = lambda: reads.append(1) or 1
        self.output.read_rest()
        self.assertEqual(64, len(reads))
        os.close(self.write)

    def test_closed(self):
        self.output.close()
        self.output.close()
        self.output.read_rest()
        self.assertEqual((-1, ((), True)),
                         (self.output.fileno(), self.output.collect()))
        with self.assertRaises(BrokenPipeError):
            os.write(self.write, b'.')
        os.close(self.write)
