"""Several executors, side by side."""


from gocept.runner.executor import (
    ExecutorError,
    OutputExecutor,
    ProcessExitedWithError,
    ProcessFinishedWithError,
    SimpleExecutor,
    start_all,
    stop_all,
)
from gocept.runner.tests.executors import ExecutorTestCase
from gocept.runner.tests.victims import until, victim


class TogetherTests(ExecutorTestCase):

    def make(self, name: str, *requires: SimpleExecutor,
             command: str = 'exec sleep 100') -> OutputExecutor:
        order = self.dir / 'order'
        return OutputExecutor(
            f'echo {name} >> {order}; echo ready; {command}', 'ready',
            shell=True, requires=requires)

    def test_those_that_are_required_are_started_before(self) -> None:
        one = self.make('one')
        two = self.make('two', one)
        three = self.make('three', two, one)
        start_all([three])
        self.addCleanup(stop_all, [one, two, three])
        self.assertTrue(all(
            each.running() for each in (one, two, three)))
        self.assertEqual('one\ntwo\nthree\n', (self.dir / 'order').read_text())

    def test_what_runs_stays_as_it_is(self) -> None:
        one = self.make('one').start()
        two = self.make('two', one)
        process = one.process
        start_all([two])
        self.assertIs(process, one.process)
        stop_all([two])
        self.assertTrue(one.running())
        stop_all([one])

    def test_a_failure_stops_what_was_started(self) -> None:
        good = self.make('good')
        bad = OutputExecutor('exit 4', 'ready', shell=True, requires=[good])
        after = self.make('after', bad)
        with self.assertRaises(ProcessExitedWithError) as caught:
            start_all([after])
        self.assertIs(bad, caught.exception.executor)
        for each in (good, bad, after):
            self.assertIsNone(each.process)
        self.assertEqual('good\n', (self.dir / 'order').read_text())

    def test_several_failures_are_raised_as_a_group(self) -> None:
        bad = [OutputExecutor('exit 4', 'ready', shell=True)
               for _ in range(2)]
        with self.assertRaises(ExceptionGroup) as caught:
            start_all(bad)
        self.assertEqual(
            bad, [error.executor for error in caught.exception.exceptions
                  if isinstance(error, ExecutorError)])

    def test_executors_that_require_each_other_are_refused(self) -> None:
        one = self.make('one')
        two = self.make('two', one)
        one.requires = (two,)
        with self.assertRaisesRegex(ValueError, 'require each other'):
            start_all([one])
        one.requires = ()

    def test_all_are_stopped_even_if_one_fails(self) -> None:
        bad = self.make('bad', command="trap 'exit 5' TERM; "
                        'while :; do sleep 0.01; done')
        others = [self.make(str(number)) for number in range(5)]
        start_all([*others, bad])
        until(lambda: bad.process is not None)
        with self.assertRaises(ProcessFinishedWithError):
            stop_all([*others, bad])
        for each in (*others, bad):
            self.assertIsNone(each.process)

    def test_one_that_was_killed_in_time_is_no_error(self) -> None:
        stubborn = OutputExecutor(
            victim('ignore()\nsay("ready")\npause()'), 'ready',
            stop_timeout=0.1).start()
        stop_all([stubborn])
        self.assertIsNone(stubborn.process)

    def test_none_at_all(self) -> None:
        start_all([])
        stop_all([])
