"""The condition that a program finds the child ready."""

import os
import signal
from unittest import mock

from gocept.runner.executor import (
    ConditionExecutor,
    TimeoutExpired,
    all_of,
    exits_zero,
    tcp,
)
from gocept.runner.executor.conditions.base import Pauses
from gocept.runner.poller import Poller
from gocept.runner.process import Process
from gocept.runner.tests.executors import ExecutorTestCase, Starting, is_gone
from gocept.runner.tests.victims import until
from gocept.runner.waits.deadline import NEVER, Deadline


def expire(starting: Starting) -> None:
    """Have the time of a start be over now."""
    starting.executor._deadline = Deadline(0)


class ExitsZeroTests(ExecutorTestCase):

    def executor(self, *probe: str) -> ConditionExecutor:
        return self.stopping(ConditionExecutor('sleep 100', exits_zero(probe)))

    def test_a_probe_is_repeated_until_it_ends_with_zero(self) -> None:
        starting = Starting(self.executor('test', '-e', str(self.dir / 'on')))
        starting.until_seen('it ended with 1')
        (self.dir / 'on').touch()
        starting.wait()

    def test_an_error_says_how_it_ended(self) -> None:
        starting = Starting(self.executor('sh', '-c', 'exit 3'))
        starting.until_seen('it ended with 3')
        expire(starting)
        self.assertRaisesRegex(
            TimeoutExpired, "for \"sh -c 'exit 3'\" to end with 0; seen last: "
            'it ended with 3;', starting.wait)

    def test_it_runs_as_the_child_does(self) -> None:
        (self.dir / 'here').touch()
        with mock.patch.dict(os.environ, OURS='1', LISTEN_FDS='3'):
            executor = self.stopping(ConditionExecutor(
                'sh -c "echo $MINE; exec sleep 100"',
                all_of(port := tcp('127.0.0.1', 0), exits_zero([
                    'sh', '-c', 'test -e here && echo $OURS $MINE $1 '
                    '$LISTEN_FDS; exit 3', 'sh', '{port}'])),
                cwd=self.dir, envvars={'MINE': 'on {port}'}))
            starting = Starting(executor)
            starting.until_seen('it ended with 3')
        self.assertEqual(f'on {port.port}', executor.envvars['MINE'])
        expire(starting)
        self.assertRaisesRegex(
            TimeoutExpired,
            f"it ended with 3, and said '1 on {port.port} {port.port}'",
            starting.wait)

    def test_an_environment_of_its_own(self) -> None:
        for envvars, popen in (({'A': '1'}, {'env': {'B': '2'}}),
                               ({'A': '1', 'B': '2'}, {})):
            starting = Starting(self.stopping(ConditionExecutor(
                'sleep 100', exits_zero(['/bin/sh', '-c', 'echo $A $B; exit 3'
                                         ]),
                envvars=envvars, popen_kwargs=popen)))
            starting.until_seen("'1 2'")
            expire(starting)
            self.assertRaises(TimeoutExpired, starting.wait)

    def test_the_end_of_what_it_says_is_in_the_message(self) -> None:
        starting = Starting(self.executor(
            'sh', '-c', 'seq 100000; echo error >&2; exit 3'))
        starting.until_seen('it ended with 3, and said')
        expire(starting)
        with self.assertRaises(TimeoutExpired) as caught:
            starting.wait()
        self.assertRegex(str(caught.exception), r"\\n100000\\nerror'")
        self.assertLess(len(str(caught.exception)), 3000)

    def test_a_failed_one_is_not_run_again_at_once(self) -> None:
        with mock.patch.multiple(Pauses, _FIRST=1000.0, _LAST=1000.0):
            starting = Starting(self.executor('sh', '-c', 'exit 3'))
            starting.until_seen('it ended with 3')
            check = starting.executor._run.check
            for _ in range(3):
                self.assertFalse(check.holds())
            self.assertIsNone(check._probe)
            expire(starting)
            self.assertRaises(TimeoutExpired, starting.wait)

    def test_an_unknown_status_is_no_success(self) -> None:
        check = exits_zero('true').check()
        check.begin(Process('true'), [], self.enterContext(Poller()), NEVER)
        with self.assertLogs('gocept.runner.process', 'WARNING'):
            check._probe = probe = Process('sleep 100', stdout='pipe')
            with probe._lock:
                probe.handle.signal(signal.SIGKILL)
                os.waitpid(probe.pid, 0)
            self.assertFalse(check.holds())
        self.assertEqual('it ended with an unknown status', check.seen)
        check.process.close()

    def test_one_that_hangs_is_killed_with_what_it_has_started(self) -> None:
        pids = self.dir / 'pids'
        starting = Starting(self.executor(
            'sh', '-c', f'sleep 100 & echo $$ $! > {pids}.new; '
            f'mv {pids}.new {pids}; wait'))
        until(pids.exists)
        expire(starting)
        self.assertRaisesRegex(
            TimeoutExpired, 'seen last: it runs still;', starting.wait)
        for pid in pids.read_text().split():
            self.assertTrue(is_gone(int(pid)))

    def test_a_probe_that_is_not_there(self) -> None:
        executor = self.executor('no-such-program-at-all')
        self.assertRaisesRegex(
            FileNotFoundError, 'no-such-program-at-all', executor.start)
        self.assertIsNone(executor.child)

    def test_a_command_is_needed(self) -> None:
        for wrong in ('', []):
            self.assertRaisesRegex(
                ValueError, 'needs a command', exits_zero, wrong)
