"""Several executors, side by side."""

import functools
import os
import signal
import socket
import sys
import threading
from typing import Any
from unittest import mock

from gocept.runner.errors import DeadlineExceeded, Terminated
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
from gocept.runner.process import ending
from gocept.runner.signals import Shutdown
from gocept.runner.signals.shutdown import requesting
from gocept.runner.tests.executors import ExecutorTestCase, is_gone, server
from gocept.runner.tests.streams import Alarms
from gocept.runner.tests.support import DEADLINE
from gocept.runner.tests.victims import until, victim


class TogetherTestCase(ExecutorTestCase):

    def make(self, name: str, *requires: SimpleExecutor, before: str = ':',
             command: str = 'exec sleep 100') -> OutputExecutor:
        order = self.dir / 'order'
        return OutputExecutor(
            f'echo {name} >> {order}; {before}; echo ready; {command}',
            'ready', shell=True, requires=requires)

    def make_bad(self, name: str) -> OutputExecutor:
        """One that ends with 5 when it is stopped."""
        return self.make(name, before="trap 'exit 5' TERM",
                         command='while :; do sleep 0.01; done')

    def make_stubborn(self, kind: Any = OutputExecutor) -> Any:
        """One that is to be killed, or else it takes an hour."""
        return self.stopping(kind(
            victim('ignore()\nsay("ready")\npause()'), 'ready',
            stop_timeout=3600))


class TogetherTests(TogetherTestCase):

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
        process = one.child
        start_all([two])
        self.assertIs(process, one.child)
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
            self.assertIsNone(each.child)
        self.assertEqual('good\n', (self.dir / 'order').read_text())

    def test_one_that_ends_badly_does_not_hide_a_failure(self) -> None:
        bad = OutputExecutor('exit 4', 'ready', shell=True,
                             requires=[self.make_bad('ends badly')])
        with self.assertRaises(ProcessExitedWithError) as caught:
            start_all([bad])
        self.assertEqual(4, caught.exception.exit_code)
        self.assertIn('non-zero code: 5', caught.exception.__notes__[0])

    def test_several_failures_are_raised_as_a_group(self) -> None:
        bad = [self.make_bad(name) for name in 'ab']
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
            self.assertIsNone(each.child)
        self.assertEqual('good\n', (self.dir / 'order').read_text())

    def test_in_a_thread_that_outlives_the_main_thread(self) -> None:
        program = self.program('''
            import os
            import threading
            from gocept.runner.executor import (
                OutputExecutor, start_all, stop_all)

            class Mine(OutputExecutor):
                def stop(self):
                    os.write(1, b'stop\\n')
                    return super().stop()

            def later():
                threading.main_thread().join()
                all = [Mine('echo ready; exec sleep 100', 'ready', shell=True)
                       for _ in range(2)]
                stop_all(start_all(all))

            threading.Thread(target=later).start()
            ''')
        self.assertEqual(0, program.end())
        if sys.version_info[:2] == (3, 12):  # begins no thread there
            self.assertRegex(program.output, "^stop\nstop\n$|can't create new "
                             'thread at interpreter shutdown')
        else:
            self.assertEqual('stop\nstop\n', program.output)

    def test_an_interrupt_before_all_have_begun(self) -> None:
        many = [self.make(str(number)) for number in range(3)]
        start = threading.Thread.start
        calls = iter(range(2))

        def interrupted(thread: threading.Thread) -> None:
            if thread.name == 'gocept.runner.groups' and (
                    next(calls, None) is None):
                raise KeyboardInterrupt
            start(thread)
        with mock.patch.object(threading.Thread, 'start', interrupted):
            self.assertRaises(KeyboardInterrupt, start_all, many)
        self.assertEqual([None] * 3, [each.child for each in many])

    def test_one_that_cannot_be_ended_is_not_waited_for_twice(self) -> None:
        stubborn = self.make('stubborn', before="trap '' TERM",
                             command='while :; do sleep 0.01; done')
        stubborn._kill_signal, stubborn._stop_timeout = signal.SIGTERM, 0
        others = [self.make(name) for name in 'ab']
        start_all([stubborn, *others])
        self.addCleanup(stubborn.kill, sig=signal.SIGKILL)
        process = stubborn.child
        with mock.patch.object(ending, 'KILL_TIMEOUT', 0.05):
            self.assertRaises(
                DeadlineExceeded, stop_all, [stubborn, *others])
        self.assertIs(process, stubborn.child)
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
        until(lambda: daemon.child.poll() == 0)
        self.assertFalse(daemon.running())
        self.assertTrue(daemon.is_up())
        process = daemon.child
        start_all([self.stopping(self.make('two', daemon))])
        self.assertIs(process, daemon.child)
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
        bad = self.make_bad('bad')
        others = [self.make(str(number)) for number in range(5)]
        start_all([*others, bad])
        with self.assertRaises(ProcessFinishedWithError):
            stop_all([*others, bad])
        for each in (*others, bad):
            self.assertIsNone(each.child)

    def test_one_that_was_killed_in_time_is_no_error(self) -> None:
        stubborn = OutputExecutor(
            victim('ignore()\nsay("ready")\npause()'), 'ready',
            stop_timeout=0.1).start()
        stop_all([stubborn])
        self.assertIsNone(stubborn.child)

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
            until(lambda: good.running() and never.child)
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
        with Alarms():
            self.assertRaises(Enough, start_all, [good, after, runs])
        self.assertEqual([None] * 3, [
            each.child for each in (good, never, after)])
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
                for pid in each._run.captures['stdout'].tail.split()[:3]]
        self.assertEqual(60, len(pids))
        self.assertFalse(any(map(is_gone, pids)))
        stop_all(many)
        self.assertTrue(all(map(is_gone, pids)))

    def test_none_at_all(self) -> None:
        self.assertEqual([], start_all([]))
        stop_all([])


class ShutdownTests(TogetherTestCase):
    """A start that is ended by a request."""

    def setUp(self) -> None:
        super().setUp()
        self.shutdown = self.enterContext(Shutdown())
        self.good = self.make('good')
        self.never = OutputExecutor('exec sleep 100', 'ready', shell=True)
        self.after = self.make('after', self.never)

    def meanwhile(self, call: Any, *args: Any) -> None:
        """Have another thread call it when just one is not ready yet."""
        def run() -> None:
            until(lambda: self.good.running() and self.never.child
                  and (self.dir / 'order').exists())
            call(*args)
        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(thread.join, DEADLINE)

    def assertTerminated(self, signum: int, **options: Any) -> None:
        with self.assertRaises(Terminated) as caught:
            start_all([self.good, self.after], shutdown=self.shutdown,
                      **options)
        self.assertEqual(signum, caught.exception.signum)
        for each in (self.good, self.never, self.after):
            self.assertIsNone(each.child)
        self.assertEqual('good\n', (self.dir / 'order').read_text())

    def test_another_thread_requests_it(self) -> None:
        self.meanwhile(self.shutdown.request, signal.SIGHUP)
        self.assertTerminated(signal.SIGHUP)
        # It holds until the loop has seen it.
        self.assertTrue(self.shutdown.requested)

    def test_a_request_without_a_signal(self) -> None:
        self.meanwhile(self.shutdown.request)
        self.assertTerminated(signal.SIGTERM)

    def test_a_signal(self) -> None:
        with requesting(self.shutdown):
            self.meanwhile(os.kill, os.getpid(), signal.SIGTERM)
            self.assertTerminated(signal.SIGTERM)

    def test_wake_ups_do_not_end_it(self) -> None:
        def wake_and_request() -> None:
            for _ in range(10):
                self.shutdown.wakeup()
            self.shutdown.request()
        self.meanwhile(wake_and_request)
        self.assertTerminated(signal.SIGTERM)

    def test_what_ran_before_is_left_alone(self) -> None:
        runs = self.stopping(OutputExecutor(
            'echo ready; exec sleep 100', 'ready', shell=True).start())
        self.never.requires = (runs,)
        self.meanwhile(self.shutdown.request)
        self.assertTerminated(signal.SIGTERM)
        self.assertTrue(runs.running())

    def test_what_takes_longer_to_stop_is_killed(self) -> None:
        stubborn = self.make_stubborn()
        self.never.requires = (stubborn,)
        self.meanwhile(self.shutdown.request)
        self.assertTerminated(signal.SIGTERM, stop=functools.partial(
            stop_all, timeout=0.05))
        self.assertIsNone(stubborn.child)

    def test_one_that_ends_badly_does_not_hide_it(self) -> None:
        self.never.requires = (OutputExecutor(
            "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done",
            'ready', shell=True),)
        self.meanwhile(self.shutdown.request)
        with self.assertRaises(Terminated) as caught:
            start_all([self.good, self.never], shutdown=self.shutdown)
        self.assertIn('non-zero code: 5', caught.exception.__notes__[0])

    def test_requested_before(self) -> None:
        self.shutdown.request(signal.SIGINT)
        with self.assertRaises(Terminated) as caught:
            start_all([self.after], shutdown=self.shutdown)
        self.assertEqual(signal.SIGINT, caught.exception.signum)
        self.assertIsNone(self.never.child)

    def test_without_a_request_all_is_started(self) -> None:
        other = self.make('other', self.good)
        started = start_all([other], shutdown=self.shutdown)
        self.assertEqual([self.good, other], started)
        stop_all(started)
        self.assertFalse(self.shutdown.requested)

    def test_nothing_is_to_be_started(self) -> None:
        self.good.start()
        self.addCleanup(self.good.kill)
        self.assertEqual([], start_all([self.good], shutdown=self.shutdown))

    def test_a_failure(self) -> None:
        bad = OutputExecutor('exit 4', 'ready', shell=True,
                             requires=[self.good])
        with self.assertRaises(ProcessExitedWithError) as caught:
            start_all([self.after, bad], shutdown=self.shutdown)
        self.assertIs(bad, caught.exception.executor)
        for each in (self.good, self.never, self.after, bad):
            self.assertIsNone(each.child)


class Slow(OutputExecutor):
    """One that stops in its own way, and takes its time."""

    stopping = False

    def stop(self, *args: Any, **kwargs: Any) -> 'Slow':
        self.stopping = True
        return super().stop(*args, **kwargs)


class StopTimeoutTests(TogetherTestCase):

    def test_what_takes_longer_is_killed(self) -> None:
        started = start_all([self.make_stubborn() for _ in range(3)])
        processes = [each.child for each in started]
        stop_all(started, timeout=0.05)
        self.assertEqual([None] * 3, [each.child for each in started])
        self.assertEqual([-signal.SIGKILL] * 3,
                         [each.returncode for each in processes])

    def test_so_is_what_has_a_stop_of_its_own(self) -> None:
        started = start_all([self.make_stubborn(Slow) for _ in range(3)])
        processes = [each.child for each in started]
        stop_all([*started, *start_all([self.make('good')])], timeout=0.05)
        self.assertEqual([None] * 3, [each.child for each in started])
        self.assertEqual([-signal.SIGKILL] * 3,
                         [each.returncode for each in processes])
        self.assertTrue(all(each.stopping for each in started))

    def test_an_error_of_one_that_was_in_time(self) -> None:
        bad = Slow(victim('''
            signal.signal(signal.SIGTERM, lambda *args: sys.exit(7))
            say('ready')
            pause()
            '''), 'ready')
        with self.assertRaises(ProcessFinishedWithError) as caught:
            stop_all(start_all([bad]), timeout=DEADLINE)
        self.assertEqual(7, caught.exception.exit_code)

    def test_one_that_hangs_without_a_child(self) -> None:
        done = threading.Event()

        class Hanging(Slow):
            def kill(self, *args: Any, **kwargs: Any) -> Any:
                done.set()
                return super().kill(*args, **kwargs)

            def stop(self, *args: Any, **kwargs: Any) -> Any:
                super().stop(*args, **kwargs)
                if not done.wait(DEADLINE):
                    raise AssertionError('nobody has killed it')
                return self
        stop_all(start_all([Hanging(
            'echo ready; exec sleep 100', 'ready', shell=True)]), 0.05)
        self.assertTrue(done.is_set())

    def test_who_obeys_is_not_killed(self) -> None:
        started = start_all([self.make('one'), Slow(
            'echo ready; exec sleep 100', 'ready', shell=True)])
        processes = [each.child for each in started]
        stop_all(started, timeout=DEADLINE)
        self.assertEqual([-signal.SIGTERM] * 2,
                         [each.returncode for each in processes])
