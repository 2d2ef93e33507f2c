"""Start, stop, output and errors of executors."""

import gc
import os
import signal
import subprocess
import sys
import threading
import unittest.mock
from typing import Any

from gocept.runner import proc
from gocept.runner.executor import (
    AlreadyRunning,
    ConditionExecutor,
    Executor,
    ExecutorError,
    OutputExecutor,
    PidExecutor,
    ProcessExitedWithError,
    ProcessFinishedWithError,
    SimpleExecutor,
    TCPExecutor,
    TimeoutExpired,
    start_all,
    stop_all,
)
from gocept.runner.tests.support import (
    DEADLINE,
    TestCase,
    end_background,
    open_descriptors,
)
from gocept.runner.tests.victims import adopt_no_more, until, victim


class ExecutorTestCase(TestCase):
    """No child and no descriptor may be left."""

    def setUp(self) -> None:
        super().setUp()
        end_background()
        before = open_descriptors().keys(), set(proc.children(os.getpid()))
        self.addCleanup(self.check_left, before)
        self.addCleanup(end_background)

    def check_left(self, before: Any) -> None:
        gc.collect()
        end_background()
        adopt_no_more()
        # What is kept back to end processes with is kept for ever.
        left = {fd: target for fd, target in open_descriptors().items()
                if fd not in before[0] and target != os.devnull}
        children = set(proc.children(os.getpid())) - before[1]
        self.assertEqual(({}, set()), (left, children))

    def stopping(self, executor: SimpleExecutor) -> Any:
        self.addCleanup(executor.kill)
        return executor


def is_gone(pid: int) -> bool:
    now = proc.stat(pid)
    return now is None or now.state in 'ZX'


class SimpleTests(ExecutorTestCase):

    def test_the_methods_return_the_executor(self) -> None:
        executor = SimpleExecutor('sleep 100')
        self.assertIs(executor, executor.start())
        self.assertIs(executor, executor.stop())
        self.assertIs(executor, executor.kill())
        self.assertIs(executor, executor.wait_for(lambda: True))

    def test_a_process_is_there_between_start_and_stop(self) -> None:
        executor = SimpleExecutor('sleep 100')
        self.assertIsNone(executor.process)
        with executor as entered:
            self.assertIs(executor, entered)
            process = executor.process
            assert process is not None
            self.assertTrue(executor.running())
            self.assertIsNone(process.poll())
            self.assertGreater(process.pid, 0)
        self.assertFalse(executor.running())
        self.assertIsNone(executor.process)
        self.assertEqual(-signal.SIGTERM, process.returncode)

    def test_a_second_start_does_nothing(self) -> None:
        with SimpleExecutor('sleep 100') as executor:
            process = executor.process
            self.assertIs(process, executor.start().process)

    def test_one_that_was_killed_is_started_anew(self) -> None:
        executor = self.stopping(SimpleExecutor('sleep 100').start())
        first = executor.process
        os.kill(first.pid, signal.SIGKILL)
        first.wait(DEADLINE)
        self.assertFalse(executor.running())
        executor.start()
        self.assertTrue(executor.running())
        self.assertNotEqual(first.pid, executor.process.pid)
        executor.stop()

    def test_the_command_is_a_string_or_a_list(self) -> None:
        text = SimpleExecutor("echo 'a b' c")
        self.assertEqual("echo 'a b' c", text.command)
        self.assertEqual(['echo', 'a b', 'c'], text.command_parts)
        parts = SimpleExecutor(('echo', 'a b', 'c'))
        self.assertEqual("echo 'a b' c", parts.command)
        self.assertEqual(('echo', 'a b', 'c'), parts.command_parts)

    def test_str_and_repr_say_what_it_runs(self) -> None:
        with SimpleExecutor('sleep 100') as executor:
            self.assertEqual("<SimpleExecutor 'sleep 100'>", str(executor))
            assert executor.process is not None
            self.assertEqual(
                "<SimpleExecutor 'sleep 100': running as "
                f'{executor.process.pid}>', repr(executor))
        self.assertEqual("<SimpleExecutor 'sleep 100': not running>",
                         repr(executor))

    def test_what_cannot_be_meant_is_refused(self) -> None:
        for command in ('', [], '  '):
            with self.assertRaisesRegex(ValueError, 'no program'):
                SimpleExecutor(command)
        for keyword in ('timeout', 'sleep', 'output_size', 'stop_timeout'):
            with self.assertRaisesRegex(ValueError, f'{keyword} must be'):
                SimpleExecutor('true', **{keyword: -1})

    def test_a_program_that_is_not_there_leaves_it_stopped(self) -> None:
        executor = SimpleExecutor('no-such-program-at-all')
        with self.assertRaises(FileNotFoundError):
            executor.start()
        self.assertIsNone(executor.process)
        self.assertIs(executor, executor.stop())

    def test_a_shell_runs_it(self) -> None:
        executor = self.stopping(SimpleExecutor(
            'echo $((40 + 2))', shell=True).start())
        self.assertEqual('42\n', executor.output().read())

    def test_directory_environment_and_popen_keywords_reach_it(self) -> None:
        executor = self.stopping(SimpleExecutor(
            'echo $PWD $LINT $(umask)', shell=True, cwd=self.dir,
            envvars={'LINT': 'yes'}, popen_kwargs={'umask': 0o27}).start())
        self.assertEqual(f'{os.path.realpath(self.dir)} yes 0027\n',
                         executor.output().read())
        self.assertEqual('yes', executor.envvars['LINT'])
        self.assertEqual(os.environ['PATH'], executor.envvars['PATH'])

    def test_an_overridden_environment_is_the_childs(self) -> None:
        class Other(SimpleExecutor):
            @property
            def envvars(self) -> dict[str, str]:
                return {'ONLY': 'this', 'PATH': os.environ['PATH']}

        executor = self.stopping(Other('echo $ONLY $HOME', shell=True).start())
        self.assertEqual('this\n', executor.output().read())

    def test_without_pipes_there_is_no_output(self) -> None:
        with SimpleExecutor('sleep 100', stdout=subprocess.DEVNULL) as one:
            self.assertIsNone(one.output())
            self.assertIsNone(one.err_output())

    def test_a_child_that_is_forgotten_is_ended(self) -> None:
        executor = SimpleExecutor('sleep 100').start()
        assert executor.process is not None
        process = executor.process
        del executor
        gc.collect()
        self.assertEqual(-signal.SIGKILL, process.returncode)


class StopTests(ExecutorTestCase):

    def test_a_status_other_than_expected_is_an_error(self) -> None:
        executor = OutputExecutor(victim('''
            signal.signal(signal.SIGTERM, lambda *args: sys.exit(7))
            say('ready')
            pause()
            '''), 'ready').start()
        with self.assertRaises(ProcessFinishedWithError) as caught:
            executor.stop()
        self.assertEqual(7, caught.exception.exit_code)
        self.assertIs(executor, caught.exception.executor)
        self.assertIn('ended with 7', str(caught.exception))
        self.assertIsNone(executor.process)

    def test_a_status_may_be_expected(self) -> None:
        command = victim('''
            signal.signal(signal.SIGINT, lambda *args: sys.exit(7))
            say('ready')
            pause()
            ''')
        OutputExecutor(command, 'ready').start().stop(signal.SIGINT, 7)
        OutputExecutor(command, 'ready', stop_signal=signal.SIGINT,
                       expected_returncode=7).start().stop()

    def test_one_that_does_not_obey_is_killed_without_an_error(self) -> None:
        executor = OutputExecutor(victim('''
            ignore()
            say('ready')
            pause()
            '''), 'ready', stop_timeout=0.1).start()
        process = executor.process
        assert process is not None
        executor.stop()
        self.assertEqual(-signal.SIGKILL, process.returncode)
        self.assertTrue(process.killed)

    def test_the_kill_signal_is_a_choice(self) -> None:
        executor = OutputExecutor(victim('''
            ignore()
            say('ready')
            pause()
            '''), 'ready', stop_timeout=0.1,
            kill_signal=signal.SIGINT).start()
        process = executor.process
        assert process is not None
        executor.stop()
        self.assertIn(process.returncode, (1, -signal.SIGINT))

    def test_descendants_end_wherever_they_are(self) -> None:
        executor = self.stopping(OutputExecutor(victim('''
            leave(ignore)
            fork(int)
            say('ready')
            pause()
            '''), 'ready', stop_timeout=0.1).start())
        pids = [int(line.split()[1]) for line in
                executor._captures['stdout'].tail.splitlines()
                if line.startswith('child')]
        self.assertEqual(2, len(pids))
        executor.stop()
        self.assertTrue(all(map(is_gone, pids)))

    def test_killing_does_not_have_to_wait(self) -> None:
        executor = SimpleExecutor('sleep 100').start()
        process = executor.process
        assert process is not None
        executor.kill(wait=False)
        self.assertIsNone(executor.process)
        self.assertEqual(-signal.SIGKILL, process.wait(DEADLINE))

    def test_killing_with_another_signal(self) -> None:
        executor = SimpleExecutor('sleep 100').start()
        process = executor.process
        assert process is not None
        executor.kill(sig=signal.SIGHUP)
        self.assertEqual(-signal.SIGHUP, process.returncode)

    def test_stopped_starts_it_again(self) -> None:
        with SimpleExecutor('sleep 100') as executor:
            with executor.stopped() as inside:
                self.assertIs(executor, inside)
                self.assertFalse(executor.running())
            self.assertTrue(executor.running())

    def test_stopped_starts_nothing_that_did_not_run(self) -> None:
        executor = SimpleExecutor('sleep 100')
        ran = False
        with executor.stopped():
            ran = True
        self.assertTrue(ran)
        self.assertFalse(executor.running())


class OutputTests(ExecutorTestCase):

    def test_reading_waits_for_a_line_and_for_the_end(self) -> None:
        executor = self.stopping(SimpleExecutor('cat').start())
        threading.Timer(0.01, executor.process.channel.write,
                        [b'a line\nrest']).start()
        self.assertEqual('a line\n', executor.output().readline())
        threading.Timer(0.01, executor.process.channel.write_eof).start()
        self.assertEqual('rest', executor.output().read())
        self.assertEqual('', executor.output().read())

    def test_standard_error_is_read_as_well(self) -> None:
        executor = self.stopping(SimpleExecutor(
            'echo out; echo err >&2', shell=True,
            stderr=subprocess.PIPE).start())
        self.assertEqual('out\n', executor.output().read())
        self.assertEqual('err\n', executor.err_output().read())

    def test_a_talkative_child_never_waits(self) -> None:
        executor = self.stopping(SimpleExecutor(
            [sys.executable, '-c', "print('x' * 9_999_999)"],
            output_size=100_000).start())
        self.assertEqual(0, executor.process.wait(DEADLINE))
        output = executor.output().read()
        note, rest = output.split(' bytes were not kept]\n')
        dropped = int(note.removeprefix('\n['))
        self.assertEqual(dropped, executor.dropped)
        self.assertEqual(10_000_000, dropped + len(rest))
        self.assertGreaterEqual(len(rest), 100_000)

    def test_a_file_keeps_all_of_it(self) -> None:
        log = self.dir / 'log'
        log.write_text('before\n')
        executor = self.stopping(SimpleExecutor(
            [sys.executable, '-c', "print('x' * 999_999)"],
            output_size=1000, log_file=log).start())
        executor.process.wait(DEADLINE)
        executor.stop()
        self.assertEqual('before\n' + 'x' * 999_999 + '\n', log.read_text())

    def test_what_cannot_be_decoded_is_shown(self) -> None:
        executor = self.stopping(SimpleExecutor(
            "printf '\\377\\n'", shell=True).start())
        self.assertEqual('\\xff\n', executor.output().readline())

    def test_an_encoding_is_a_keyword_of_popen(self) -> None:
        executor = self.stopping(SimpleExecutor(
            "printf '\\344\\n'", shell=True,
            popen_kwargs={'encoding': 'latin-1'}).start())
        self.assertEqual('ä\n', executor.output().readline())


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

    def test_somebody_is_there_already(self) -> None:
        class Mine(Executor):
            def pre_start_check(self) -> bool:
                return True

        executor = Mine('sleep 100')
        with self.assertRaises(AlreadyRunning) as caught:
            executor.start()
        self.assertIs(executor, caught.exception.executor)
        self.assertIsNone(executor.process)

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

    def test_an_error_of_a_check_ends_the_child(self) -> None:
        class Mine(Executor):
            def pre_start_check(self) -> bool:
                return False

            def after_start_check(self) -> bool:
                seen.append(self.process)
                raise ZeroDivisionError

        seen: list[Any] = []
        executor = Mine('sleep 100')
        self.assertRaises(ZeroDivisionError, executor.start)
        self.assertIsNone(executor.process)
        self.assertEqual(-signal.SIGKILL, seen[0].returncode)

    def test_the_time_is_over(self) -> None:
        executor = OutputExecutor(
            'echo something; exec sleep 100', 'else', shell=True, timeout=0.2)
        with self.assertRaises(TimeoutExpired) as caught:
            executor.start()
        self.assertEqual(0.2, caught.exception.timeout)
        self.assertIsInstance(caught.exception, TimeoutError)
        self.assertRegex(
            str(caught.exception),
            r"was not ready after 0\.2 s; waited 0\.\d\d s for 'else' in its "
            r'output; its stdout ends with:\nsomething$')
        self.assertIsNone(executor.process)

    def test_the_clock_may_be_set_back(self) -> None:
        with unittest.mock.patch('time.time', side_effect=range(0, -99, -1)):
            executor = OutputExecutor('sleep 100', 'ready', timeout=0.05)
            self.assertRaises(TimeoutExpired, executor.start)

    def test_wait_for_kills_when_the_time_is_over(self) -> None:
        executor = SimpleExecutor('sleep 100', timeout=0.05).start()
        process = executor.process
        assert process is not None
        self.assertTrue(executor.check_timeout())
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
            r'ended with 3; waited .* for the file .*; seen last: there is '
            r'none; its status is 3; its stdout ends with:\nsorry$')

    def test_a_condition_is_needed(self) -> None:
        wrong: Any = 'tcp'
        with self.assertRaisesRegex(TypeError, "'tcp' is no condition"):
            ConditionExecutor('true', wrong)
        with self.assertRaisesRegex(TypeError, 'a banner needs'):
            OutputExecutor('true', 'x', stdout=None)

    def test_who_runs_is_not_started_again(self) -> None:
        with OutputExecutor('echo ready; exec sleep 100', 'ready',
                            shell=True) as executor:
            pid = executor.process and executor.process.pid
            with self.assertRaisesRegex(
                    AlreadyRunning, f'its own process {pid} runs'):
                executor.start()
            self.assertTrue(executor.running())


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
