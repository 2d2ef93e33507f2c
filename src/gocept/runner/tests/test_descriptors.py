import os
import select
import tempfile
from unittest import mock

from gocept.runner.descriptors import Descriptors
from gocept.runner.tests.streams import StreamTestCase
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waiting import PollReadiness


class DescriptorsTests(StreamTestCase):

    def setUp(self):
        super().setUp()
        self.descriptors = self.make()
        self.addCleanup(self.descriptors.close)
        self.faucet, self.sink = self.pipe()

    def make(self):
        return Descriptors()

    def pipe(self):
        pair = os.pipe()
        for fd in pair:
            self.addCleanup(os.close, fd)
        return pair

    def ready(self):
        return {fd for fd, _ in self.descriptors.wait(0)}

    def test_readers(self):
        self.descriptors.add_reader(self.faucet, 'reader')
        self.assertEqual(set(), self.ready())
        os.write(self.sink, b'x')
        self.assertEqual({self.faucet}, self.ready())
        self.descriptors.remove_reader(self.faucet, 'another')
        self.assertEqual({self.faucet}, self.ready())
        self.descriptors.remove_reader(self.faucet, 'reader')
        self.assertEqual(set(), self.ready())

    def test_writers(self):
        self.descriptors.add_writer(self.sink, 'writer')
        self.descriptors.add_writer(self.sink, 'writer')
        self.assertEqual({self.sink}, self.ready())
        self.descriptors.remove_writer(self.sink, 'another')
        self.assertEqual({self.sink}, self.ready())
        self.descriptors.remove_writer(self.sink, 'writer')
        self.assertEqual(set(), self.ready())

    def test_no_descriptor_is_no_writer(self):
        self.descriptors.add_writer(-1, 'writer')
        self.assertEqual({}, self.descriptors.writers)

    def test_one_that_is_read_and_written(self):
        self.descriptors.add_reader(self.sink, 'reader')
        self.assertEqual(set(), self.ready())
        self.descriptors.add_writer(self.sink, 'writer')
        self.assertEqual({self.sink}, self.ready())
        self.descriptors.remove_writer(self.sink, 'writer')
        self.assertEqual(set(), self.ready())

    def test_what_is_closed_is_forgotten(self):
        self.descriptors.add_reader(self.sink, 'reader')
        self.descriptors.add_writer(self.sink, 'writer')
        self.descriptors.forget(self.sink)
        self.assertEqual(set(), self.ready())
        self.assertEqual({}, self.descriptors.readers)
        self.assertEqual({}, self.descriptors.writers)
        self.descriptors.forget(self.sink)

    def test_closed_without_a_word_and_used_again(self):
        faucet, sink = os.pipe()
        self.descriptors.add_reader(faucet, 'reader')
        os.close(faucet)
        os.close(sink)
        self.assertEqual(faucet, os.dup(self.faucet))
        self.addCleanup(os.close, faucet)
        os.write(self.sink, b'x')
        self.descriptors.add_writer(faucet, 'writer')
        self.assertIn(faucet, self.ready())

    def test_a_descriptor_that_is_not_open(self):
        faucet, sink = os.pipe()
        os.close(faucet)
        os.close(sink)
        with self.assertRaises(OSError):
            self.descriptors.add_reader(faucet, 'reader')
        self.assertEqual({}, self.descriptors.readers)

    def test_a_regular_file_cannot_be_waited_for(self):
        with tempfile.TemporaryFile() as file:
            self.descriptors.add_reader(file.fileno(), 'reader')
            self.assertEqual(
                {file.fileno(): 'reader'}, self.descriptors.files)
            self.descriptors.remove_reader(file.fileno(), 'reader')
            self.assertEqual({}, self.descriptors.files)
            self.descriptors.add_writer(file.fileno(), 'writer')
            self.assertEqual({}, self.descriptors.writers)

    def test_woken(self):
        self.assertFalse(self.descriptors.forget_wakeups())
        self.descriptors.wake()
        self.assertEqual(
            [(self.descriptors.wakeup_read, select.POLLIN)],
            self.descriptors.wait(DEADLINE))
        self.assertTrue(self.descriptors.forget_wakeups())
        self.assertEqual(set(), self.ready())

    def test_a_nudge_is_for_who_waits_and_no_wake_up(self):
        self.descriptors.nudge()
        self.assertEqual(set(), self.ready())
        self.descriptors.waiting = True
        self.descriptors.nudge()
        self.assertEqual({self.descriptors.wakeup_read}, self.ready())
        self.assertFalse(self.descriptors.forget_wakeups())

    def test_closed_twice(self):
        self.descriptors.close()
        self.descriptors.close()

    def test_nothing_is_left_when_it_cannot_be_made(self):
        with (mock.patch('os.pipe', side_effect=OSError(24, 'full')),
              self.assertRaises(OSError)):
            self.make()


class PollDescriptorsTests(DescriptorsTests):

    def make(self):
        with mock.patch('gocept.runner.descriptors.Readiness', PollReadiness):
            return Descriptors()

    def test_a_descriptor_that_is_not_open(self):
        faucet, sink = os.pipe()
        os.close(faucet)
        os.close(sink)
        # poll() takes it, and says so when it is asked.
        self.descriptors.add_reader(faucet, 'reader')
        self.assertEqual([(faucet, select.POLLNVAL)],
                         self.descriptors.wait(DEADLINE))

    def test_a_regular_file_cannot_be_waited_for(self):
        with tempfile.TemporaryFile() as file:
            self.descriptors.add_reader(file.fileno(), 'reader')
            self.assertEqual({file.fileno()}, self.ready())
            self.descriptors.forget(file.fileno())

    def test_changes_are_seen_by_who_waits(self):
        self.descriptors.waiting = True
        self.descriptors.add_reader(self.faucet, 'reader')
        self.assertEqual({self.descriptors.wakeup_read}, self.ready())
