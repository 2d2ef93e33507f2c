"""Executors that wait until a child is ready."""

import itertools
import signal
import threading
import unittest.mock
from collections.abc import Callable
from typing import Any

from gocept.runner.executor import (
    AlreadyRunning,
    Check,
    Condition,
    ConditionExecutor,
    Executor,
    ExecutorError,
    OutputExecutor,
    PidExecutor,
    ProcessExitedWithError,
    SimpleExecutor,
    TCPExecutor,
    TimeoutExpired,
)
from gocept.runner.tests.executors import ExecutorTestCase, Starting
from gocept.runner.tests.support import DEADLINE
from gocept.runner.tests.victims import until
from gocept.runner.waits.deadline import Deadline


class CheckedTests(ExecutorTestCase):

    def test_without_checks_it_is_a_simple_one(self) -> None:
        with Executor('sleep 100') as executor:
            self.assertTrue(executor.running())
        for check in (executor.pre_start_check, executor.after_start_check):
            self.assertRaises(NotImplementedError, check)

    def test_checks_of_ones_own(self) -> None:
        looks = iter([False, False, True])

        class Mine(Executor):
            def pre_start_check(self) -> bool:
                return False

            def after_start_check(self) -> bool:
                return next(looks)

        with Mine('sleep 100'):
            self.assertEqual([], list(looks))

    def test_a_look_at_the_child_of_ones_own(self) -> None:
        looks = iter([False, False, True])

        class Mine(Executor):
            def check_subprocess(self) -> bool:
                return next(looks)

        with Mine('sleep 100'):
            self.assertEqual([], list(looks))

    def test_somebody_is_there_already(self) -> None:
        class Mine(Executor):
            def pre_start_check(self) -> bool:
                return True

        executor = Mine('sleep 100')
        with self.assertRaises(AlreadyRunning) as caught:
            executor.start()
        self.assertIs(executor, caught.exception.executor)
        self.assertIsNone(executor.child)

    def test_a_subclass_overrides_what_mirakuru_lets_it(self) -> None:
        called = []

        class Mine(TCPExecutor):
            def start(self) -> 'Mine':
                called.append('start')
                return super().start()

            def stop(self, *args: Any, **kwargs: Any) -> 'Mine':
                called.append('stop')
                return super().stop(*args, **kwargs)

            def running(self) -> bool:
                return super().running()

            def check_subprocess(self) -> bool:
                called.append('check')
                self._set_timeout()
                assert self._timeout == 5
                return True

            def __del__(self) -> None:
                super().__del__()

        with Mine('sleep 100', host='127.0.0.1', port=0, timeout=5) as mine:
            self.assertIsInstance(mine.port, int)
            self.assertEqual('127.0.0.1', mine.host)
        self.assertEqual(['start', 'check', 'stop'], called)

    def test_one_that_asks_its_service_whether_it_runs(self) -> None:
        # As where a control program starts it, and ends at once.
        class Mine(TCPExecutor):
            runs = True

            def running(self) -> bool:
                return self.runs

        mine = Mine('sleep 100', host='127.0.0.1', port=0, timeout=0.1)
        self.assertRaises(TimeoutExpired, mine.start)
        self.assertIn('not running', repr(mine))
        with mine.stopped():
            mine.runs = False
            mine.start = unittest.mock.Mock()  # type: ignore[method-assign]
        mine.start.assert_called_once_with()

    def test_an_error_of_a_check_ends_the_child(self) -> None:
        class Mine(Executor):
            def pre_start_check(self) -> bool:
                return False

            def after_start_check(self) -> bool:
                seen.append(self.child)
                raise ZeroDivisionError

        seen: list[Any] = []
        executor = Mine('sleep 100')
        self.assertRaises(ZeroDivisionError, executor.start)
        self.assertIsNone(executor.child)
        self.assertEqual(-signal.SIGKILL, seen[0].returncode)

    def test_the_time_is_over(self) -> None:
        executor = OutputExecutor(
            'echo something; exec sleep 100', 'else', shell=True,
            timeout=DEADLINE)
        starting = Starting(executor)
        until(lambda: executor._run
              and executor._run.captures['stdout'].end == 10)
        executor._deadline = Deadline(0)
        with self.assertRaises(TimeoutExpired) as caught:
            starting.wait()
        self.assertEqual(DEADLINE, caught.exception.timeout)
        self.assertIsInstance(caught.exception, TimeoutError)
        self.assertRegex(
            str(caught.exception),
            r"timed out after 60 seconds; waited \d+\.\d\d s for 'else' in "
            r'its output; its stdout ends with:\nsomething$')
        self.assertIsNone(executor.child)

    def test_the_clock_may_be_set_back(self) -> None:
        with unittest.mock.patch(
                'time.time', side_effect=itertools.count(0, -1)):
            executor = OutputExecutor('sleep 100', 'ready', timeout=0.05)
            self.assertRaises(TimeoutExpired, executor.start)

    def test_wait_for_kills_when_the_time_is_over(self) -> None:
        executor = SimpleExecutor('sleep 100', timeout=DEADLINE).start()
        process = executor.child
        assert process is not None
        self.assertTrue(executor.check_timeout())
        executor._deadline = Deadline(0.05)
        with self.assertRaises(TimeoutExpired):
            executor.wait_for(lambda: False)
        self.assertEqual(-signal.SIGKILL, process.returncode)

    def test_a_failure_ends_the_wait_at_once(self) -> None:
        executor = PidExecutor('echo sorry; exit 3', self.dir / 'pid',
                               shell=True)
        with self.assertRaises(ProcessExitedWithError) as caught:
            executor.start()
        self.assertEqual(3, caught.exception.exit_code)
        self.assertRegex(
            str(caught.exception),
            r'code: 3; waited .* for the file .*; seen last: there is none; '
            r'its status is 3; its stdout ends with:\nsorry$')

    def test_a_condition_is_needed(self) -> None:
        wrong: Any = 'tcp'
        with self.assertRaisesRegex(TypeError, "'tcp' is no condition"):
            ConditionExecutor('true', wrong)
        with self.assertRaisesRegex(TypeError, 'a banner needs'):
            OutputExecutor('true', 'x', stdout=None)

    def looked_at(self, look: Callable[[], object],
                  ) -> tuple[Any, list[str]]:
        """An executor whose check does so, and what is called."""
        calls = []

        class Looks(Check):
            def holds(self) -> bool:
                calls.append('looks')
                look()
                calls.append('has looked')
                return False

            def close(self) -> None:
                calls.append('closed')

        class Looked(Condition):
            def check(self) -> Check:
                return Looks()

        return self.stopping(ConditionExecutor('sleep 100', Looked())), calls

    def test_nothing_is_closed_while_a_thread_looks(self) -> None:
        looking, go_on = threading.Event(), threading.Event()
        executor, calls = self.looked_at(
            lambda: looking.set() or go_on.wait(DEADLINE))
        self.addCleanup(go_on.set)
        starting = Starting(executor)
        self.assertTrue(looking.wait(DEADLINE))
        self.assertFalse(executor.after_start_check())  # nor does it look
        executor.stop()
        self.assertEqual(['looks'], calls)
        go_on.set()
        self.assertRaisesRegex(
            ExecutorError, 'stopped meanwhile', starting.wait)
        self.assertEqual(['looks', 'has looked', 'closed'], calls)

    def test_a_look_may_stop_it(self) -> None:
        executor, calls = self.looked_at(lambda: executor.stop())
        self.assertRaisesRegex(
            ExecutorError, 'stopped meanwhile', executor.start)
        self.assertEqual(['looks', 'has looked', 'closed'], calls)

    def test_who_runs_is_not_started_again(self) -> None:
        with OutputExecutor('echo ready; exec sleep 100', 'ready',
                            shell=True) as executor:
            pid = executor.child and executor.child.pid
            with self.assertRaisesRegex(
                    AlreadyRunning, f'its own process {pid} runs'):
                executor.start()
            self.assertTrue(executor.running())
