import math
import time
import unittest

import zope.interface.verify

from gocept.runner.interfaces import ITimer
from gocept.runner.poller.timer import Schedule, Timer


def started(*args):
    timer = Timer(*args)
    timer.start()
    return timer


class TimerTests(unittest.TestCase):

    def test_keeps_its_contract(self):
        zope.interface.verify.verifyObject(ITimer, Timer(1))

    def test_due_once(self):
        self.assertEqual(((1,), True), started(0).collect())
        self.assertEqual(((1,), True), started(-5).collect())

    def test_not_due(self):
        self.assertEqual(((), False), started(1e9).collect())
        self.assertEqual(((), False), started(math.inf).collect())

    def test_due_again_and_again(self):
        # Late by two and a half intervals: the first one, and two more.
        timer = started(-2.5e6, 1e6)
        before = timer.due
        self.assertEqual(((3,), False), timer.collect())
        self.assertEqual(before + 3e6, timer.due)
        self.assertEqual(((), False), timer.collect())

    def test_due_after_an_instant(self):
        timer = started(1e6)
        self.assertEqual(timer.due, timer.due_after(-math.inf))
        self.assertEqual(timer.due, timer.due_after(timer.due - 1))
        self.assertEqual(math.inf, timer.due_after(timer.due))
        self.assertEqual(math.inf, timer.due_after(timer.due + 1))

    def test_due_again_after_an_instant(self):
        timer = started(1e6, 10)
        self.assertEqual(timer.due, timer.due_after(timer.due - 1))
        for late, expected in (0, 10), (1, 10), (9, 10), (10, 20), (25, 30):
            self.assertAlmostEqual(
                expected, timer.due_after(timer.due + late) - timer.due, 3)

    def test_due_before_it_was_started(self):
        for interval in None, 10:
            before = time.monotonic()
            timer = started(-5, interval)
            self.assertEqual(timer.due, timer.due_after(before - 1))
            self.assertGreater(
                timer.due_after(time.monotonic()), time.monotonic())

    def test_never_due(self):
        self.assertEqual(math.inf, started(math.inf).due_after(-math.inf))
        self.assertEqual(math.inf, started(math.inf, 1).due_after(0))

    def test_no_numbers(self):
        for seconds, interval in ((math.nan, None), (1, math.nan), (1, 0),
                                  (1, -1)):
            with self.assertRaises(ValueError):
                Timer(seconds, interval)

    def test_has_no_descriptor(self):
        self.assertEqual(-1, Timer(1).fileno())

    def test_shows_itself(self):
        self.assertEqual('Timer(1)', repr(Timer(1)))
        self.assertEqual('Timer(1, 2.5)', repr(Timer(1, 2.5)))


class ScheduleTests(unittest.TestCase):

    def setUp(self):
        self.schedule = Schedule()

    def add(self, *args):
        timer = started(*args)
        self.schedule.add(timer)
        return timer

    def test_nothing_to_wait_for(self):
        self.assertEqual(math.inf, self.schedule.left())
        self.assertEqual([], self.schedule.take_due())

    def test_the_next_one_counts(self):
        for seconds in (3e6, 1e6, 2e6):
            self.add(seconds)
        self.assertGreater(self.schedule.left(), 9e5)
        self.assertLessEqual(self.schedule.left(), 1e6)

    def test_takes_out_what_is_due(self):
        self.add(1e6)
        second, first = self.add(0), self.add(-1)
        self.assertEqual(0, self.schedule.left())
        self.assertEqual([first, second], self.schedule.take_due())
        self.assertEqual([], self.schedule.take_due())
        self.assertEqual(1, len(self.schedule))

    def test_nothing_to_wait_for_after_an_instant(self):
        self.assertEqual(math.inf, self.schedule.left_after(-math.inf))

    def test_those_that_were_due_at_the_instant_do_not_count(self):
        one, _ = self.add(0), self.add(1e6)
        self.assertEqual(0, self.schedule.left_after(one.due - 1))
        now = time.monotonic()
        self.assertGreater(self.schedule.left_after(now), 9e5)
        self.assertLessEqual(self.schedule.left_after(now), 1e6)
        self.add(0, 2e6)
        self.add(0, 3e5)
        now = time.monotonic()
        self.assertGreater(self.schedule.left_after(now), 2e5)
        self.assertLessEqual(self.schedule.left_after(now), 3e5)
        self.assertEqual(4, len(self.schedule))

    def test_dropped(self):
        timers = [self.add(number) for number in (5e6, 1e6, 4e6, 2e6, 3e6)]
        self.schedule.drop(timers[1])
        self.schedule.drop(timers[1])
        self.assertGreater(self.schedule.left(), 1.5e6)
        self.assertEqual(4, len(self.schedule))

    def test_due_at_the_same_time(self):
        timers = [Timer(0) for _ in range(5)]
        for timer in timers:  # never started: due since ever
            self.schedule.add(timer)
        self.assertEqual(timers, self.schedule.take_due())
