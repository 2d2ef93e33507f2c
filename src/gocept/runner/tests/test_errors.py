"""The project's own errors."""

import copy
import pickle
import unittest

from gocept.runner.errors import (
    AlreadyRunning,
    ExecutorError,
    ProcessExitedWithError,
    ProcessFinishedWithError,
    TimeoutExpired,
)
from gocept.runner.executor import Executor, SimpleExecutor
from gocept.runner.tests.support import end_background


class ExecutorErrorTests(unittest.TestCase):

    def setUp(self) -> None:
        self.addCleanup(end_background)

    def errors(self) -> list[ExecutorError]:
        executor = SimpleExecutor('true')
        errors = [
            ExecutorError(executor, 'has said no'),
            TimeoutExpired(executor, 2.5),
            AlreadyRunning(executor),
            ProcessExitedWithError(executor, 3),
            ProcessFinishedWithError(executor, -9)]
        errors[-1].situation = '; and so on'
        return errors

    def test_the_message(self) -> None:
        self.assertEqual([
            "<SimpleExecutor 'true'> has said no",
            "Executor <SimpleExecutor 'true'> timed out after 2.5 seconds",
            "Executor <SimpleExecutor 'true'> seems to be already running: "
            'end what runs there, or have this one use another place',
            "The process invoked by the <SimpleExecutor 'true'> executor has "
            'exited with a non-zero code: 3',
            "The process invoked by the <SimpleExecutor 'true'> executor has "
            'exited with a non-zero code: -9; and so on',
        ], list(map(str, self.errors())))

    def test_what_is_no_number(self) -> None:
        executor = SimpleExecutor('true')
        self.assertTrue(str(TimeoutExpired(executor, None)).endswith(
            ' timed out'))
        for status, text, expected in (
                (0, '0', 'with 0'),
                (255, 'an unknown status', 'with an unknown status')):
            self.assertTrue(str(ProcessExitedWithError(
                executor, status, text)).endswith(f'exited {expected}'))

    def test_one_that_is_copied(self) -> None:
        for error in self.errors():
            error.add_note('noted')
            copied = copy.copy(error)
            self.assertIs(type(error), type(copied))
            self.assertEqual(str(error), str(copied))
            self.assertEqual(vars(error), vars(copied))
            self.assertEqual(error.args, copied.args)

    def test_one_that_is_pickled(self) -> None:
        for error in self.errors():
            error.add_note('noted')
            for copied in pickle.loads(pickle.dumps(error)), copy.deepcopy(
                    error):
                self.assertIs(type(error), type(copied))
                self.assertEqual(str(error), str(copied))
                self.assertEqual(
                    {**vars(error), 'executor': "<SimpleExecutor 'true'>"},
                    vars(copied))

    def test_an_error_of_ones_own_gets_the_situation(self) -> None:
        class Mine(Executor):
            def after_start_check(self) -> bool:
                assert self.child is not None
                self.child.wait()
                raise ExecutorError(self)

        with self.assertRaises(ExecutorError) as caught:
            Mine('echo sorry').start()
        self.assertEqual(
            "<Mine 'echo sorry'> has failed; its status is 0; its stdout ends "
            'with:\nsorry', str(caught.exception))
