import errno
import gc
import math
import os
import time
import unittest
from unittest import mock

import zope.interface.verify

from gocept.runner.interfaces import IWallTimer
from gocept.runner.poller import Poller, WallTimer
from gocept.runner.poller.walltimer import LOOK
from gocept.runner.tests.support import DEADLINE, open_descriptors

HOUR = 3600


class WallTimerTests(unittest.TestCase):

    def timer(self, at: float) -> WallTimer:
        return self.enterContext(WallTimer(at))

    def polled(self, at: float) -> tuple[WallTimer, Poller]:
        timer = self.timer(at)
        poller = self.enterContext(Poller())
        poller.register(timer)
        return timer, poller

    def test_keeps_its_contract(self) -> None:
        zope.interface.verify.verifyObject(IWallTimer, self.timer(0))

    def test_is_due_when_the_clock_has_come_there(self) -> None:
        at = time.time() + 0.01
        timer, poller = self.polled(at)
        self.assertEqual([(1, timer)], poller.poll(DEADLINE))
        self.assertGreaterEqual(time.time(), at)
        self.assertEqual([], poller.poll(0))  # once

    def test_is_due_at_once_if_the_instant_has_passed(self) -> None:
        for at in time.time() - HOUR, 0, -HOUR, -math.inf:
            timer, poller = self.polled(at)
            self.assertEqual([(1, timer)], poller.poll(DEADLINE), at)

    def test_ends_a_pause(self) -> None:
        _, poller = self.polled(time.time() - HOUR)
        self.assertTrue(poller.pause(DEADLINE))

    def test_is_not_due_before(self) -> None:
        # 2**62 nanoseconds are less than 2**40 seconds.
        for at in time.time() + HOUR, 2.0 ** 32, 2.0 ** 50, math.inf:
            timer, poller = self.polled(at)
            self.assertEqual(((), False), timer.collect(), at)
            self.assertFalse(poller.pause(0))
            self.assertEqual([], poller.poll(0))

    def test_is_due_when_the_clock_is_set(self) -> None:
        # The clock of this machine is that of others, too: a stand-in has a
        # descriptor with something to read, and read() says what the system
        # says when somebody has set the clock. See timerfd_create(2).
        faucet, sink = os.pipe()
        self.addCleanup(os.close, sink)
        with mock.patch('gocept.runner.poller.walltimer._timerfd',
                        return_value=faucet):
            timer, poller = self.polled(time.time() + HOUR)
        self.assertFalse(poller.pause(0))
        os.write(sink, b'.')
        self.assertTrue(poller.pause(DEADLINE))
        with mock.patch('os.read', side_effect=OSError(
                errno.ECANCELED, 'Operation canceled')):
            self.assertEqual(((1,), True), timer.collect())

    def test_another_error_is_none_of_a_clock(self) -> None:
        timer = self.timer(0)
        with mock.patch('os.read', side_effect=OSError(errno.EIO, 'I/O')):
            with self.assertRaises(OSError):
                timer.collect()

    def test_asks_for_cancellation_when_the_clock_is_set(self) -> None:
        with mock.patch('gocept.runner.waits.libc.call', side_effect=[
                os.open('/', os.O_RDONLY), 0]) as call:
            self.timer(1.25)
        _, settime = call.call_args_list
        self.assertEqual(1 | 2, settime.args[2])
        value = settime.args[3]._obj.value
        self.assertEqual((1, 250_000_000), (value.seconds, value.nanoseconds))

    def test_looks_each_second_where_there_is_no_such_timer(self) -> None:
        now = time.time()
        for error in (NotImplementedError(), OSError(errno.EMFILE, 'many'),
                      OSError(errno.EINVAL, 'flags')):
            with mock.patch('gocept.runner.poller.walltimer._timerfd',
                            side_effect=error):
                self.assertEqual(LOOK, self.timer(now + HOUR).seconds)
                self.assertEqual(0, self.timer(now - HOUR).seconds)
                self.assertLessEqual(self.timer(now + LOOK / 2).seconds,
                                     LOOK / 2)
                timer, poller = self.polled(now + HOUR)
            self.assertEqual(-1, timer.fileno())
            self.assertFalse(poller.pause(0))
            self.assertTrue(poller.pause(DEADLINE))
            self.assertEqual([(1, timer)], poller.poll(DEADLINE))

    def test_no_descriptor_is_left(self) -> None:
        gc.collect()
        before = open_descriptors()
        timer = WallTimer(time.time() + HOUR)
        poller = self.enterContext(Poller())
        poller.register(timer)
        timer.close()
        timer.close()
        self.assertEqual(-1, timer.fileno())
        self.assertEqual([], poller.poll(0))
        poller.close()
        self.assertEqual(before, open_descriptors())
        # Nor where the system refuses to start it.
        with mock.patch(
                'gocept.runner.waits.libc.call', side_effect=[
                    os.open('/', os.O_RDONLY), OSError(errno.EINVAL, '')]):
            WallTimer(0).close()
        self.assertEqual(before, open_descriptors())

    def test_to_forget_an_open_one_is_a_mistake(self) -> None:
        before = open_descriptors()
        timer = WallTimer(0)
        with self.assertWarnsRegex(ResourceWarning, r'unclosed WallTimer\(0'):
            del timer
            gc.collect()
        self.assertEqual(before, open_descriptors())

    def test_a_forked_child_has_no_timer(self) -> None:
        timer = self.timer(time.time() + HOUR)
        pid = os.fork()
        if not pid:
            os._exit(timer.fileno() + 1)
        self.assertEqual(0, os.waitpid(pid, 0)[1])
        self.assertGreater(timer.fileno(), 2)

    def test_needs_an_instant(self) -> None:
        with self.assertRaises(ValueError):
            WallTimer(math.nan)
