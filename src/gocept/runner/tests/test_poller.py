import contextlib
import gc
import math
import os
import signal
import threading
import time
import unittest
import warnings

from gocept.runner.poller import Poller
from gocept.runner.tests.support import open_descriptors


class PollerTests(unittest.TestCase):

    def setUp(self):
        self.before = open_descriptors()
        self.poller = Poller()
        self.addCleanup(self.poller.close)

    def test_time_is_over(self):
        started = time.monotonic()
        self.assertFalse(self.poller.wait(0.02))
        self.assertGreaterEqual(time.monotonic() - started, 0.02)

    def test_no_time_at_all(self):
        self.assertFalse(self.poller.wait(0))
        self.assertFalse(self.poller.wait(-1))

    def test_woken_up_before_the_wait(self):
        self.poller.wakeup()
        self.assertTrue(self.poller.wait())

    def test_one_wake_up_is_one(self):
        for _ in range(3):
            self.poller.wakeup()
        self.assertTrue(self.poller.wait(0))
        self.assertFalse(self.poller.wait(0))

    def test_more_wake_ups_than_a_pipe_holds(self):
        for _ in range(100_000):
            self.poller.wakeup()
        self.assertTrue(self.poller.wait(0))
        self.assertFalse(self.poller.wait(0))

    def test_woken_up_from_another_thread(self):
        thread = threading.Timer(0.01, self.poller.wakeup)
        thread.start()
        self.assertTrue(self.poller.wait(math.inf))
        thread.join()

    def test_woken_up_by_a_signal_handler(self):
        def handler(signum, frame):
            self.poller.wakeup()
        previous = signal.signal(signal.SIGALRM, handler)
        self.addCleanup(signal.signal, signal.SIGALRM, previous)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        self.assertTrue(self.poller.wait(1e9))

    def test_woken_up_through_the_descriptor(self):
        os.write(self.poller.wakeup_fd, b'\0')
        self.assertTrue(self.poller.wait())

    def test_closes_its_descriptors(self):
        self.assertEqual(3, len(open_descriptors()) - len(self.before))
        self.poller.close()
        self.poller.close()
        self.assertEqual(self.before, open_descriptors())

    def test_descriptors_are_not_inherited(self):
        new = open_descriptors().keys() - self.before.keys()
        self.assertEqual([False] * 3,
                         [os.get_inheritable(int(fd)) for fd in new])

    def test_a_late_wake_up_writes_to_nobody(self):
        self.poller.close()
        read, write = os.pipe()  # gets the descriptors just closed
        with open(read, 'rb') as faucet, open(write, 'wb'):
            os.set_blocking(read, False)
            self.poller.wakeup()
            self.assertIsNone(faucet.read(1))

    def test_left_open_is_a_resource_warning(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            Poller()
            gc.collect()
        self.assertEqual([ResourceWarning], [w.category for w in caught])
        self.assertIn('unclosed <gocept.runner.poller.Poller',
                      str(caught[0].message))

    def test_is_a_context_manager(self):
        with contextlib.closing(self.poller), Poller() as other:
            self.assertFalse(other.wait(0))
        self.assertEqual(self.before, open_descriptors())
