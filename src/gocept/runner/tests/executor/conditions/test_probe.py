"""The condition that a program finds the child ready."""

from gocept.runner.executor import (
    ConditionExecutor,
    TimeoutExpired,
    exits_zero,
)
from gocept.runner.tests.executors import ExecutorTestCase, Starting, is_gone
from gocept.runner.tests.victims import until
from gocept.runner.waits.deadline import Deadline


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
        self.assertIsNone(executor.process)

    def test_a_command_is_needed(self) -> None:
        for wrong in ('', []):
            self.assertRaisesRegex(
                ValueError, 'needs a command', exits_zero, wrong)
