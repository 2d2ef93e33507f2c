import os
import signal
import unittest
from unittest import mock

from gocept.runner.operation import alarm
from gocept.runner.operation.alarm import Alarm
from gocept.runner.tests.support import DEADLINE

SIGNAL, OTHER = signal.SIGRTMIN + 2, signal.SIGRTMIN + 3


class AlarmTests(unittest.TestCase):

    def setUp(self):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL, OTHER])
        self.addCleanup(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        self.addCleanup(self.wait, 0)

    def alarm(self, *args):
        return self.enterContext(Alarm(*args))

    def wait(self, seconds=DEADLINE):
        """Whether the signal has come."""
        return signal.sigtimedwait([SIGNAL], seconds) is not None

    def test_sends_its_signal_each_time_that_it_is_set(self):
        it = self.alarm(0.01, SIGNAL)
        for _ in range(2):
            it.set()
            self.assertTrue(self.wait())

    def test_no_time_is_too_short_or_too_long(self):
        self.alarm(1e-12, SIGNAL).set()
        self.assertTrue(self.wait())
        it = self.alarm(1e9, SIGNAL)
        self.assertEqual(0, it.set())
        self.assertEqual(0, it.clear())

    def test_it_may_come_again_until_it_is_cleared_or_closed(self):
        for name in 'clear', 'close':
            with self.subTest(name):
                it = self.alarm(0.01, SIGNAL, 0.01)
                it.set()
                for _ in range(3):
                    self.assertTrue(self.wait())
                getattr(it, name)()
                self.wait(0)  # for one that has come meanwhile
                # A signal that is pending already is not sent again.
                self.alarm(0.05, OTHER).set()
                self.assertTrue(signal.sigtimedwait([OTHER], DEADLINE))
                self.assertFalse(self.wait(0))

    def test_it_can_be_closed_twice(self):
        it = self.alarm(1, SIGNAL)
        it.close()
        it.close()

    def test_the_signal_of_one_that_cannot_be_made_is_an_error(self):
        with self.assertRaisesRegex(OSError, 'Invalid argument'):
            Alarm(1, 1000)

    def test_a_system_without_one_says_so(self):
        with (mock.patch.object(
                alarm, '_library', alarm._library.__wrapped__),
              mock.patch.object(alarm.sys, 'platform', 'plan9'),
              self.assertRaisesRegex(OSError, 'no timer of plan9')):
            Alarm(1, SIGNAL)

    def test_a_forked_child_deletes_no_timer_of_its_own(self):
        it = self.alarm(0.01, SIGNAL)
        pid = os.fork()
        if not pid:
            own = Alarm(0.05, SIGNAL)  # it has the number of the other
            own.set()
            it.close()
            os._exit(0 if self.wait() else 1)
        self.assertEqual(0, os.waitpid(pid, 0)[1])
