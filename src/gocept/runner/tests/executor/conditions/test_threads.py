"""Calls that may hang."""

import threading
from concurrent.futures import Future
from typing import Any
from unittest import mock

from gocept.runner.errors import ShortageError
from gocept.runner.executor.conditions.threads import in_thread
from gocept.runner.poller import Poller
from gocept.runner.tests.executors import ExecutorTestCase
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import Deadline


class ThreadTestCase(ExecutorTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.poller = self.enterContext(Poller())
        self.go_on = threading.Event()
        self.addCleanup(self.end_threads)

    def threads(self) -> list[threading.Thread]:
        return [each for each in threading.enumerate()
                if each.name == 'gocept.runner.executor']

    def end_threads(self) -> None:
        self.go_on.set()
        for each in self.threads():
            each.join(DEADLINE)
            self.assertFalse(each.is_alive())

    def wait(self) -> str:
        """What may hang."""
        self.assertTrue(self.go_on.wait(DEADLINE))
        return 'gone on'


class InThreadTests(ThreadTestCase):

    def test_no_thread_can_be_started_now(self) -> None:
        with mock.patch.object(threading.Thread, 'start', side_effect=(
                RuntimeError("can't start new thread"))):
            future = in_thread(self.wait, self.poller)
        self.assertRaises(ShortageError, future.result, 0)

    def test_its_end_wakes_the_poller(self) -> None:
        future = in_thread(self.wait, self.poller)
        self.assertFalse(future.done())
        self.go_on.set()
        deadline = Deadline(DEADLINE)
        while not future.done() and not deadline.passed:
            self.poller.poll(2 * DEADLINE)
        self.assertFalse(deadline.passed)
        self.assertEqual('gone on', future.result())

    def test_what_it_raises_is_raised_where_the_result_is_taken(self) -> None:
        for kind in OSError, SystemExit, KeyboardInterrupt:
            with self.subTest(kind), mock.patch(
                    'threading.excepthook') as complain:
                future: Future[Any] = in_thread(
                    mock.Mock(side_effect=kind('sorry')), self.poller)
                self.end_threads()
                self.assertTrue(future.done())
                self.assertRaisesRegex(kind, 'sorry', future.result)
                self.assertFalse(complain.called)

    def test_nobody_waits_longer_than_he_wants(self) -> None:
        for seconds in 0, 0.05:
            with self.subTest(seconds), self.assertRaises(TimeoutError):
                in_thread(self.wait, self.poller).result(seconds)
        self.assertEqual(2, len(self.threads()))

    def test_it_is_not_called_here(self) -> None:
        future = in_thread(threading.current_thread, self.poller)
        self.assertIsNot(threading.current_thread(), future.result(DEADLINE))

    def test_the_poller_may_be_closed_meanwhile(self) -> None:
        with mock.patch('threading.excepthook') as complain:
            with Poller() as poller:
                future = in_thread(self.wait, poller)
            self.end_threads()
        self.assertEqual('gone on', future.result())
        self.assertFalse(complain.called)

    def test_one_that_hangs_does_not_delay_the_exit(self) -> None:
        program = self.program('''
            import threading
            from gocept.runner.executor.conditions.threads import in_thread
            from gocept.runner.poller import Poller
            poller = Poller()
            begun = threading.Event()
            in_thread(lambda: begun.set() or threading.Event().wait(), poller)
            begun.wait()
            poller.close()
            ''')
        watchdog = threading.Timer(DEADLINE, program.process.kill)
        watchdog.start()
        self.addCleanup(watchdog.join)
        self.addCleanup(watchdog.cancel)
        self.assertEqual((0, ''), (program.end(), program.output))
