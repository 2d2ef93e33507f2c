import math
import os
import select
import threading
import time
import unittest
from unittest import mock

from gocept.runner.tests.streams import Alarms, StreamTestCase
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import (
    Deadline,
    PollReadiness,
    Readiness,
    wait_for,
    wait_for_any,
)


class DeadlineTests(unittest.TestCase):

    def test_never(self):
        for deadline in (Deadline(), Deadline(math.inf)):
            self.assertFalse(deadline.passed)
            self.assertGreater(deadline.left(), DEADLINE)

    def test_now(self):
        for seconds in (0, 0.0, -1, -math.inf):
            deadline = Deadline(seconds)
            self.assertTrue(deadline.passed)
            self.assertEqual(0, deadline.left())
            self.assertEqual(seconds, deadline.seconds)

    def test_later(self):
        deadline = Deadline(DEADLINE)
        self.assertFalse(deadline.passed)
        self.assertLessEqual(deadline.left(), DEADLINE)

    def test_one_wait_is_no_longer_than_the_system_allows(self):
        for seconds in (None, 1e300, math.inf):
            self.assertLess(Deadline(seconds).left() * 1000, 2 ** 31)

    def test_a_clock_that_a_test_of_a_user_has_stopped(self):
        with mock.patch('time.monotonic', return_value=time.monotonic()):
            deadline = Deadline(0.001)
            with select.epoll() as nothing:
                while not deadline.passed:
                    nothing.poll(deadline.left())

    def test_in_a_message(self):
        for seconds, text in (
                (2.999961969, '3 s'), (0.25, '0.25 s'), (30, '30 s'),
                (3600, '3600 s'), (None, 'any time')):
            self.assertEqual(text, str(Deadline(seconds)))

    def test_no_number(self):
        with self.assertRaises(ValueError):
            Deadline(math.nan)


class WaitForTests(StreamTestCase):

    def setUp(self):
        super().setUp()
        self.faucet, self.sink = os.pipe()
        self.addCleanup(os.close, self.faucet)
        self.addCleanup(os.close, self.sink)

    def test_not_ready(self):
        deadline = Deadline(0.002)
        self.assertFalse(wait_for(self.faucet, select.POLLIN, deadline))
        self.assertTrue(deadline.passed)
        self.assertFalse(wait_for(self.faucet, select.POLLIN, Deadline(0)))

    def test_ready(self):
        self.assertTrue(wait_for(self.sink, select.POLLOUT, Deadline(0)))
        self.start(os.write, self.sink, b'x')
        self.assertTrue(wait_for(self.faucet, select.POLLIN, Deadline()))

    def test_one_of_two(self):
        masks = {self.faucet: select.POLLIN, self.sink: 0}
        self.assertFalse(wait_for_any(masks, Deadline(0)))
        masks[self.sink] = select.POLLOUT
        self.assertTrue(wait_for_any(masks, Deadline(0)))

    def test_signals_do_not_end_it(self):
        with Alarms() as alarms:
            self.assertFalse(
                wait_for(self.faucet, select.POLLIN, Deadline(0.02)))
        self.assertTrue(alarms.count)


class ReadinessTests(StreamTestCase):

    Readiness = staticmethod(Readiness)

    def setUp(self):
        super().setUp()
        self.readiness = self.Readiness()
        self.addCleanup(self.readiness.close)
        self.faucet, self.sink = os.pipe()
        self.addCleanup(os.close, self.faucet)
        self.addCleanup(os.close, self.sink)

    def test_nothing_to_wait_for(self):
        self.assertEqual([], self.readiness.poll(0.001))

    def test_ready(self):
        self.readiness.register(self.faucet, select.POLLIN)
        self.assertEqual([], self.readiness.poll(0))
        os.write(self.sink, b'x')
        self.assertEqual([(self.faucet, select.POLLIN)],
                         self.readiness.poll(DEADLINE))

    def test_changed(self):
        self.readiness.register(self.sink, select.POLLIN)
        self.readiness.modify(self.sink, select.POLLOUT)
        self.assertEqual([(self.sink, select.POLLOUT)],
                         self.readiness.poll(DEADLINE))
        self.readiness.unregister(self.sink)
        self.assertEqual([], self.readiness.poll(0))

    def test_what_is_not_registered(self):
        with self.assertRaises(FileNotFoundError):
            self.readiness.modify(self.faucet, select.POLLIN)
        with self.assertRaises((OSError, KeyError)):
            self.readiness.unregister(self.faucet)

    def test_registered_from_another_thread_for_the_next_time(self):
        os.write(self.sink, b'x')
        thread = threading.Thread(
            target=self.readiness.register, args=(self.faucet, select.POLLIN))
        thread.start()
        thread.join()
        self.assertEqual(1, len(self.readiness.poll(DEADLINE)))


class PollReadinessTests(ReadinessTests):

    Readiness = PollReadiness
