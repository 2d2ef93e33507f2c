"""Conditions of one's own, and several at once."""

import os
import subprocess
import unittest
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

from gocept.runner.executor import (
    AlreadyRunning,
    Check,
    Condition,
    ConditionExecutor,
    ExecutorError,
    ProcessExitedWithError,
    SimpleExecutor,
    TimeoutExpired,
    all_of,
    notified,
    output,
    pid_file,
    tcp,
    unix,
)
from gocept.runner.executor.capture import Capture
from gocept.runner.executor.conditions.base import Pauses
from gocept.runner.poller import Poller
from gocept.runner.process import Process
from gocept.runner.tests.executors import ExecutorTestCase, Starting, server
from gocept.runner.tests.victims import until, victim
from gocept.runner.waits.deadline import Deadline

HOST = '127.0.0.1'


class PausesTests(unittest.TestCase):

    def test_they_grow_up_to_the_longest(self) -> None:
        pauses = Pauses()
        self.assertTrue(pauses.over)
        seconds = []
        for _ in range(6):
            pauses.begin()
            seconds.append(pauses._deadline.seconds)
        self.assertEqual([0.01, 0.02, 0.04, 0.08, 0.1, 0.1], seconds)
        self.assertFalse(pauses.over)


class Mine(Condition):
    """Holds at the looks it is told."""

    def __init__(self, *answers: bool, name: str = 'mine') -> None:
        self.answers = iter(answers)
        self.name = name
        self.checks: list[MyCheck] = []
        self.obstacle = ''

    def check(self) -> 'MyCheck':
        self.checks.append(MyCheck(self))
        return self.checks[-1]

    def holds_already(self, poller: Poller, deadline: Deadline) -> str:
        return self.obstacle

    def replaced(self, text: str) -> str:
        return text.replace('{mine}', '100')

    def servers(self) -> Iterator[int]:
        yield os.getpid()


class MyCheck(Check):

    def __init__(self, condition: Mine) -> None:
        self.condition = condition
        self.awaited = condition.name
        self.seen = f'{condition.name} not yet'
        self.variables = {'MINE': condition.name}
        self.begun = self.closed = False

    def begin(self, process: Process, captures: Sequence[Capture],
              poller: Poller, deadline: Deadline) -> None:
        super().begin(process, captures, poller, deadline)
        self.begun = True

    def holds(self) -> bool:
        assert self.begun and not self.closed
        return next(self.condition.answers)

    def close(self) -> None:
        self.closed = True


class OwnTests(ExecutorTestCase):

    def test_it_is_asked_until_it_holds(self) -> None:
        condition = Mine(False, False, True)
        executor = ConditionExecutor('sleep {mine}', condition)
        self.assertEqual('sleep 100', executor.command)
        with executor:
            self.assertEqual([], list(condition.answers))
            [check] = condition.checks
            self.assertTrue(check.closed)

    def test_each_start_makes_another_check(self) -> None:
        condition = Mine(True, True)
        executor = ConditionExecutor('sleep 100', condition)
        executor.start().stop()
        executor.start().stop()
        self.assertEqual(2, len(condition.checks))

    def test_its_variables_reach_the_child(self) -> None:
        executor = self.stopping(ConditionExecutor(
            'echo $MINE', Mine(True), shell=True)).start()
        self.assertEqual('mine\n', executor.output().read())

    def test_it_may_find_somebody(self) -> None:
        condition = Mine()
        condition.obstacle = 'my friend is there'
        executor = ConditionExecutor('sleep 100', condition)
        self.assertRaisesRegex(
            AlreadyRunning, 'my friend is there', executor.start)
        self.assertEqual([], condition.checks)

    def test_an_error_of_it_ends_the_child(self) -> None:
        condition = Mine()
        executor = ConditionExecutor('sleep 100', condition)
        self.assertRaises(StopIteration, executor.start)
        self.assertIsNone(executor.child)
        self.assertTrue(condition.checks[0].closed)

    def test_a_class_may_name_it(self) -> None:
        class MyExecutor(SimpleExecutor):
            condition = Mine()

        with MyExecutor(['sleep', '{mine}']) as executor:
            self.assertEqual('sleep 100', executor.command)

    def test_without_a_check_it_is_none(self) -> None:
        executor = ConditionExecutor('sleep 100', Condition())
        self.assertRaises(NotImplementedError, executor.start)
        self.assertIsNone(executor.child)


class AllTests(ExecutorTestCase):

    def executor(self, command: Any, *conditions: Condition,
                 **options: Any) -> ConditionExecutor:
        return self.stopping(ConditionExecutor(
            command, all_of(*conditions), **options))

    def test_each_needs_to_hold_once(self) -> None:
        one, two = Mine(False, True), Mine(True)
        three = Mine(False, False, False, True)
        self.executor('sleep 100', one, all_of(two, three)).start().stop()
        for each in (one, two, three):
            self.assertEqual([], list(each.answers))
            self.assertTrue(each.checks[0].closed)

    def test_one_deadline_covers_all_and_only_the_late_are_named(self) -> None:
        early, late, later = (
            Mine(True, name='early'), Mine(name='late'), Mine(name='later'))
        late.answers = later.answers = iter(bool, True)
        executor = self.executor(
            'sleep 100', early, all_of(late, later), timeout=0.1)
        self.assertRaisesRegex(
            TimeoutExpired,
            r'after 0\.1 seconds; waited \d+\.\d\d s for late and later; '
            'seen last: late not yet; later not yet; ', executor.start)
        for each in (early, late, later):
            self.assertTrue(each.checks[0].closed)

    def test_somebody_may_be_there_for_one_of_them(self) -> None:
        there = Mine()
        there.obstacle = 'my friend is there'
        executor = self.executor('sleep 100', Mine(), all_of(there))
        self.assertRaisesRegex(
            AlreadyRunning, 'my friend is there', executor.start)

    def test_what_only_the_child_can_say(self) -> None:
        """Its end is an error as long as it has something to say."""
        executor = self.executor('exit 0', Mine(*[False] * 10 ** 4),
                                 output('ready'), shell=True)
        self.assertRaises(ProcessExitedWithError, executor.start)
        executor = self.executor(
            'echo ready', output('ready'), Mine(*[False] * 9, True))
        executor.start().stop()

    def test_a_failure_of_one_ends_the_wait(self) -> None:
        executor = self.executor(
            'echo oops; exec sleep 100', pid_file(self.dir / 'pid'),
            all_of(output('ready', 'oops')), shell=True)
        self.assertRaisesRegex(
            ExecutorError, "has said 'oops'", executor.start)

    def test_a_banner_and_a_port(self) -> None:
        port = tcp(HOST, 0)
        executor = self.executor(server('''
            say('ready')
            say('next')
            sys.stdin.readline()
            sock = listen(int('{port}'))
            pause()
            '''), output('ready'), port)
        starting = Starting(executor)
        starting.until_seen(f'{HOST}:{port.port}: Connection refused')
        starting.go_on()
        starting.wait()
        self.assertEqual('next\n', executor.output().readline())

    def test_several_banners(self) -> None:
        """Reading continues behind the last of them."""
        for first, second in (('one', 'two'), ('two', 'one')):
            with self.subTest(first):
                executor = self.executor(
                    'echo one; echo two; echo next; exec sleep 100',
                    output(first), output(second), shell=True)
                executor.start()
                self.assertEqual('next\n', executor.output().readline())
                executor.stop()

    def test_one_banner_in_each_stream(self) -> None:
        executor = self.executor(
            'echo one; echo next; echo two >&2; echo more >&2',
            output('one'), output('two'), shell=True, stderr=subprocess.PIPE)
        executor.start()
        self.assertEqual('next\n', executor.output().readline())
        self.assertEqual('more\n', executor.err_output().readline())

    def test_a_notification_and_a_file(self) -> None:
        path = self.dir / 'pid'
        executor = self.executor(victim(f'''
            os.write(int(os.environ['NOTIFY_FD']), b'\\n')
            sys.stdin.readline()
            with open({str(path)!r}, 'w') as file:
                file.write('1')
            pause()
            '''), notified(), pid_file(path))
        starting = Starting(executor)
        until(lambda: executor._run
              and executor._run.check.awaited == f'the file {path}')
        starting.go_on()
        starting.wait()

    def test_one_that_cannot_be_checked_leaves_nothing(self) -> None:
        with mock.patch.object(
                unix, 'check', side_effect=OSError(24, 'too many')):
            executor = self.executor(
                'sleep 100', notified(), unix(self.dir / 'socket'))
            self.assertRaisesRegex(OSError, 'too many', executor.start)
        self.assertIsNone(executor.child)

    def test_conditions_are_needed(self) -> None:
        self.assertRaisesRegex(ValueError, 'needs a condition', all_of)
        wrong: Any = 'tcp'
        self.assertRaisesRegex(
            TypeError, "'tcp' is no condition", all_of, tcp(HOST, 1), wrong)

    def test_a_command_has_one_port(self) -> None:
        one = tcp(HOST, 0)
        all_of(one, tcp(HOST, 1))
        with self.assertRaisesRegex(ValueError, 'only one'):
            all_of(one, tcp(HOST, 0))

    def test_a_child_has_one_notification(self) -> None:
        executor = ConditionExecutor(
            'sleep 100', all_of(notified(), all_of(notified())))
        self.assertRaisesRegex(ValueError, 'one notification', executor.start)
        self.assertIsNone(executor.child)
