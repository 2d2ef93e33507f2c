"""Several executors, side by side."""

import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

from gocept.runner import ending
from gocept.runner.errors import DeadlineExceeded
from gocept.runner.executor import (
    ExecutorError,
    OutputExecutor,
    ProcessExitedWithError,
    ProcessFinishedWithError,
    SimpleExecutor,
    TCPExecutor,
    start_all,
    stop_all,
)
from gocept.runner.tests.executors import ExecutorTestCase, is_gone, server
from gocept.runner.tests.support import DEADLINE
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
        bad = [self.make(name, command="trap 'exit 5' TERM; "
                         'while :; do sleep 0.01; done') for name in 'ab']
        start_all(bad)
        with self.assertRaises(ExceptionGroup) as caught:
            stop_all(bad)
        self.assertEqual(bad, [
            error.executor for error in caught.exception.exceptions
            if isinstance(error, ExecutorError)])

    def test_nobody_waits_for_others_after_a_failure(self) -> None:
        good = self.make('good')
        never = OutputExecutor('exec sleep 100', 'ready', shell=True)
        after = self.make('after', never)
        bad = OutputExecutor('exit 4', 'ready', shell=True, requires=[good])
        with self.assertRaises(ProcessExitedWithError) as caught:
            start_all([after, bad])
        self.assertIs(bad, caught.exception.executor)
        for each in (good, never, after, bad):
            self.assertIsNone(each.process)
        self.assertEqual('good\n', (self.dir / 'order').read_text())

    def test_an_interrupt_before_all_have_begun(self) -> None:
        many = [self.make(str(number)) for number in range(3)]
        submit = ThreadPoolExecutor.submit
        calls = iter(range(2))

        def interrupted(*args: Any) -> Any:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return submit(*args)
        with mock.patch.object(ThreadPoolExecutor, 'submit', interrupted):
            self.assertRaises(KeyboardInterrupt, start_all, many)
        self.assertEqual([None] * 3, [each.process for each in many])

    def test_one_that_cannot_be_ended_is_not_waited_for_twice(self) -> None:
        stubborn = self.make('stubborn', command="trap '' TERM; "
                             'while :; do sleep 0.01; done')
        stubborn._kill_signal, stubborn._stop_timeout = signal.SIGTERM, 0
        others = [self.make(name) for name in 'ab']
        start_all([stubborn, *others])
        self.addCleanup(stubborn.kill, sig=signal.SIGKILL)
        process = stubborn.process
        with mock.patch.object(ending, 'KILL_TIMEOUT', 0.05):
            self.assertRaises(
                DeadlineExceeded, stop_all, [stubborn, *others])
        self.assertIs(process, stubborn.process)
        self.assertFalse(any(each.running() for each in others))

    def test_a_daemon_that_is_up_serves_several(self) -> None:
        daemon = self.stopping(TCPExecutor(server('''
            def serve():
                global sock
                os.setsid()
                sock = listen({port})
            fork(serve)
            '''), '127.0.0.1', 0))
        start_all([self.stopping(self.make('one', daemon))])
        until(lambda: daemon.process.poll() == 0)
        self.assertFalse(daemon.running())
        self.assertTrue(daemon.is_up())
        process = daemon.process
        start_all([self.stopping(self.make('two', daemon))])
        self.assertIs(process, daemon.process)
        with daemon.stopped():
            self.assertFalse(daemon.is_up())
            socket.create_server(('127.0.0.1', daemon.port)).close()
        self.assertTrue(daemon.is_up())

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

    def test_what_was_started_is_told(self) -> None:
        one = self.stopping(self.make('one').start())
        two = self.make('two', one)
        three = self.make('three', two)
        started = start_all([one, three])
        self.assertEqual([two, three], started)
        stop_all(started)
        self.assertTrue(one.running())

    def test_a_signal_ends_the_waiting(self) -> None:
        class Enough(Exception):
            pass

        def enough(*args: Any) -> None:
            raise Enough

        def send() -> None:
            until(lambda: good.running() and never.process)
            signal.pthread_kill(threading.main_thread().ident or 0,
                                signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, enough)
        self.addCleanup(signal.signal, signal.SIGUSR1, before)
        runs = self.stopping(self.make('runs').start())
        good = self.make('good')
        never = OutputExecutor('exec sleep 100', 'ready', shell=True)
        after = self.make('after', never)
        sender = threading.Thread(target=send)
        sender.start()
        self.addCleanup(sender.join)
        self.assertRaises(Enough, start_all, [good, after, runs])
        self.assertEqual([None] * 3, [
            each.process for each in (good, never, after)])
        self.assertTrue(runs.running())

    def test_a_stop_of_ones_own_is_called_beside_the_others(self) -> None:
        both = threading.Barrier(2, timeout=DEADLINE)

        class Mine(OutputExecutor):
            def stop(self, *args: Any, **kwargs: Any) -> 'Mine':
                both.wait()  # for the other one
                return super().stop(*args, **kwargs)

        mine = [Mine('echo ready; exec sleep 100', 'ready', shell=True)
                for _ in range(2)]
        stop_all(start_all([*mine, self.make('one')]))
        self.assertFalse(any(each.running() for each in mine))

    def test_many_with_descendants_in_sessions_of_their_own(self) -> None:
        many = [OutputExecutor(
            'for i in 1 2 3; do setsid sleep 100 & echo $!; done; '
            'echo ready; wait', 'ready', shell=True) for _ in range(20)]
        start_all(many)
        pids = [int(pid) for each in many
                for pid in each._captures['stdout'].tail.split()[:3]]
        self.assertEqual(60, len(pids))
        self.assertFalse(any(map(is_gone, pids)))
        stop_all(many)
        self.assertTrue(all(map(is_gone, pids)))

    def test_none_at_all(self) -> None:
        self.assertEqual([], start_all([]))
        stop_all([])
