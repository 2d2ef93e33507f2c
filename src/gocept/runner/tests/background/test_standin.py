"""The thread that looks while the main thread works."""

import threading
import unittest
from unittest import mock

from gocept.runner.background import standin
from gocept.runner.background.standin import StandIn
from gocept.runner.tests.background.wires import until
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.forks import Lock


class StandInTests(unittest.TestCase):

    def setUp(self) -> None:
        self.enterContext(mock.patch.object(standin, '_LONG', 0.01))
        self.woken = threading.Semaphore(0)
        self.looked = 0
        self.standin = StandIn(self.look, self.woken.release, Lock())
        self.addCleanup(self.standin.close)

    def look(self) -> None:
        self.looked += 1
        self.assertTrue(self.standin.turn.held)
        assert self.woken.acquire(timeout=DEADLINE)

    def test_a_long_task(self) -> None:
        self.standin.task_begins()
        until(lambda: self.looked == 1)
        self.woken.release()
        until(lambda: self.looked == 2)
        self.standin.task_over()
        with self.standin.turn:
            self.assertEqual(2, self.looked)

    def test_it_does_not_wake_while_nobody_works(self) -> None:
        self.standin.task_begins()
        until(lambda: self.looked)
        self.standin.task_over()
        until(lambda: not self.standin._armed)
        self.assertTrue(self.standin._calls.empty())
        self.standin.task_begins()
        until(lambda: self.looked == 2)

    def test_short_tasks(self) -> None:
        """It begins once, and looks at nothing."""
        arm = mock.Mock(wraps=self.standin._arm)
        self.standin._arm = arm  # type: ignore[method-assign]
        with mock.patch.object(standin, '_LONG', DEADLINE):
            for _ in range(1000):
                self.standin.task_begins()
                self.standin.task_over()
                self.standin.looks += 1
            self.assertEqual(1, arm.call_count)
            self.assertEqual(0, self.looked)
            self.standin.close()

    def test_the_main_thread_is_not_kept_waiting(self) -> None:
        for turn in range(20):
            self.standin.task_begins()
            if turn % 2:
                looked = self.looked
                until(lambda looked=looked: self.looked > looked)
            self.standin.task_over()
            with self.standin.turn:
                self.standin.looks += 1

    def test_no_thread_before_the_first_task(self) -> None:
        self.assertIsNone(self.standin._thread)
        self.standin.close()
        self.standin.close()
