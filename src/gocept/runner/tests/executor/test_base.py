"""Start, stop and errors of executors."""

import gc
import math
import os
import select
import signal
import socket
import subprocess
import threading
import unittest
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest import mock

import zope.event
import zope.interface.verify

from gocept.runner.errors import RunnerError
from gocept.runner.events import ChildStarted
from gocept.runner.executor import (
    AlreadyRunning,
    Executor,
    ExecutorError,
    OutputExecutor,
    ProcessExitedWithError,
    ProcessFinishedWithError,
    SimpleExecutor,
    TCPExecutor,
    TimeoutExpired,
    base,
    exits_zero,
    stop_all,
    unix,
)
from gocept.runner.executor.base import _awaited
from gocept.runner.executor.conditions.base import Check
from gocept.runner.interfaces import (
    ICheckedExecutor,
    ICondition,
    IConditionExecutor,
    IExecutor,
)
from gocept.runner.poller import background
from gocept.runner.poller.thread import hand_over
from gocept.runner.process import Process, ending, procfs
from gocept.runner.tests.executors import (
    ExecutorTestCase,
    Starting,
    collect,
    is_gone,
)
from gocept.runner.tests.support import DEADLINE
from gocept.runner.tests.victims import losing_statuses, until, victim
from gocept.runner.waits.deadline import Deadline, wait_for


class SimpleTests(ExecutorTestCase):

    def test_they_keep_their_contracts(self) -> None:
        for contract, executor in (
                (IExecutor, SimpleExecutor('true')),
                (ICheckedExecutor, Executor('true')),
                (IConditionExecutor, OutputExecutor('true', 'x')),
                (IConditionExecutor, TCPExecutor('true', '127.0.0.1', 0)),
                (ICondition, unix('x'))):
            with self.subTest(executor):
                zope.interface.verify.verifyObject(contract, executor)

    def test_the_methods_return_the_executor(self) -> None:
        executor = SimpleExecutor('sleep 100')
        self.assertIs(executor, executor.start())
        self.assertIs(executor, executor.stop())
        self.assertIs(executor, executor.kill())
        self.assertIs(executor, executor.wait_for(lambda: True))

    def test_a_process_is_there_between_start_and_stop(self) -> None:
        executor = SimpleExecutor('sleep 100')
        self.assertIsNone(executor.child)
        with executor as entered:
            self.assertIs(executor, entered)
            process = executor.child
            assert process is not None
            self.assertTrue(executor.running())
            self.assertIsNone(process.poll())
            self.assertGreater(process.pid, 0)
        self.assertFalse(executor.running())
        self.assertIsNone(executor.child)
        self.assertEqual(-signal.SIGTERM, process.returncode)

    def test_a_second_start_does_nothing(self) -> None:
        with SimpleExecutor('sleep 100') as executor:
            process = executor.child
            self.assertIs(process, executor.start().child)

    def test_one_that_was_killed_is_started_anew(self) -> None:
        executor = self.stopping(SimpleExecutor('sleep 100').start())
        first = executor.child
        os.kill(first.pid, signal.SIGKILL)
        first.wait(DEADLINE)
        self.assertFalse(executor.running())
        executor.start()
        self.assertTrue(executor.running())
        self.assertNotEqual(first.pid, executor.child.pid)
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
            assert executor.child is not None
            self.assertEqual(
                "<SimpleExecutor 'sleep 100': running as "
                f'{executor.child.pid}>', repr(executor))
        self.assertEqual("<SimpleExecutor 'sleep 100': not running>",
                         repr(executor))

    def test_a_time_to_stop_that_was_not_given_is_that_of_the_start(
            self) -> None:
        # At our exit, Process tells one from the other.
        for options, seconds, at_exit in (
                ({}, 3600, 5), ({'timeout': 7}, 7, 5),
                ({'timeout': 2}, 2, 2),
                ({'timeout': 7, 'stop_timeout': 0}, 0, 0),
                ({'stop_timeout': 20}, 20, 20),
                ({'stop_timeout': 3600}, 3600, 30)):
            with self.subTest(**options):
                executor = SimpleExecutor('sleep 100', **options)
                self.assertIs('stop_timeout' in options,
                              'stop_timeout' in executor._options(None))
                with executor:
                    self.assertEqual(seconds, executor.child.stop_timeout)
                    self.assertEqual(at_exit, executor.child.exit_timeout)

    def test_what_cannot_be_meant_is_refused(self) -> None:
        for keyword in ('timeout', 'sleep', 'output_size', 'stop_timeout'):
            with self.assertRaisesRegex(ValueError, f'{keyword} must be'):
                SimpleExecutor('true', **{keyword: -1})

    def test_a_command_may_be_empty_until_the_start(self) -> None:
        for command in ('', [], '  '):
            executor = TCPExecutor(command, '127.0.0.1', 0)
            self.assertFalse(executor.running())
            self.assertIs(executor, executor.stop())
            with self.assertRaisesRegex(ValueError, 'has no command'):
                executor.start()
        executor.command_parts = ['cat']
        self.stopping(executor)._start()
        self.assertTrue(executor.running())

    def test_without_a_timeout_it_waits_as_long_as_it_takes(self) -> None:
        for timeout in (None, False):
            executor = self.stopping(OutputExecutor(
                'echo begun; read line; echo ready; exec sleep 100', 'ready',
                shell=True, timeout=timeout))
            starting = Starting(executor)
            until(executor.running)
            self.assertTrue(executor.check_timeout())
            starting.go_on()
            starting.wait()
            self.assertEqual(math.inf, executor.child.stop_timeout)
            self.assertIs(executor, executor.stop())

    def test_a_program_that_is_not_there_leaves_it_stopped(self) -> None:
        executor = SimpleExecutor('no-such-program-at-all')
        with self.assertRaises(FileNotFoundError):
            executor.start()
        self.assertIsNone(executor.child)
        self.assertIs(executor, executor.stop())

    def test_a_shell_runs_it(self) -> None:
        executor = self.stopping(SimpleExecutor(
            'echo $((40 + 2))', shell=True).start())
        self.assertEqual('42\n', executor.output().read())

    def test_what_cannot_be_meant_is_said_at_once(self) -> None:
        for error, command, options in (
                (TypeError, 'true', {'envvars': {'PORT': 80}}),
                (TypeError, 'true', {'envvars': ['PORT=80']}),
                (ValueError, 'true', {'envvars': {'A=B': 'x'}}),
                (ValueError, 'true', {'envvars': {'A': 'x\0'}}),
                (TypeError, ['sleep', 100], {}),
                (ValueError, ['echo', 'x\0'], {}),
                (ValueError, 'echo \0', {'shell': True})):
            with self.subTest(command, **options):
                self.assertRaises(error, SimpleExecutor, command, **options)
        self.assertRaises(TypeError, exits_zero, ['sleep', 100])
        self.assertRaises(ValueError, exits_zero, 'echo \0')

    def test_directory_environment_and_popen_keywords_reach_it(self) -> None:
        executor = self.stopping(SimpleExecutor(
            'echo $PWD $LINT $(umask)', shell=True, cwd=self.dir,
            envvars={'LINT': 'yes'}, popen_kwargs={'umask': 0o27}).start())
        self.assertEqual(f'{os.path.realpath(self.dir)} yes 0027\n',
                         executor.output().read())
        self.assertEqual('yes', executor.envvars['LINT'])
        self.assertEqual(os.environ['PATH'], executor.envvars['PATH'])

    def test_popen_keywords_reach_it_unchanged(self) -> None:
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        executor = self.stopping(SimpleExecutor(
            'ignored', popen_kwargs={
                'shell': False, 'cwd': self.dir, 'env': {'ONLY': 'this'},
                'executable': '/bin/sh', 'start_new_session': False,
                'bufsize': 0, 'text': True, 'stderr': subprocess.STDOUT,
                'umask': 0o27, 'pass_fds': [write]}))
        executor.command_parts = [
            'name', '-c', 'echo $0 $ONLY $PWD $(umask) >&2; '
            f'cut -d " " -f 5 /proc/$$/stat >&2; echo open > /dev/fd/{write}']
        executor.start()
        os.close(write)
        self.assertEqual(b'open\n', os.read(read, 100))
        self.assertEqual(
            f'name this {os.path.realpath(self.dir)} 0027\n',
            executor.output().readline())
        self.assertEqual(os.getpgrp(), int(executor.output().readline()))

    def test_parameters_come_before_popen_keywords(self) -> None:
        executor = self.stopping(SimpleExecutor(
            'echo $ONLY $MORE $PWD', cwd='/', shell=True,
            envvars={'ONLY': 'that'}, stderr=subprocess.STDOUT, popen_kwargs={
                'shell': False, 'cwd': self.dir, 'stderr': None,
                'env': {'ONLY': 'this', 'MORE': 'more'}}))
        self.assertEqual(subprocess.STDOUT, executor._popen_kwargs['stderr'])
        self.assertEqual('that more /\n', executor.start().output().read())

    def test_the_keywords_of_popen_can_be_looked_at_and_overridden(
            self) -> None:
        class Other(SimpleExecutor):
            @property
            def _popen_kwargs(self) -> dict[str, Any]:
                keywords = super()._popen_kwargs
                return {**keywords, 'env': {**keywords['env'], 'B': '2'}}

        executor = self.stopping(Other(
            'echo $A $B', shell=True, cwd='/', envvars={'A': '1'}))
        keywords = executor._popen_kwargs
        self.assertEqual('/', keywords['cwd'])
        self.assertTrue(keywords['shell'])
        self.assertEqual(os.environ['PATH'], keywords['env']['PATH'])
        self.assertEqual('1', keywords['env']['A'])
        self.assertEqual('1 2\n', executor.start().output().read())

    def test_what_runs_before_the_program_is_ignored(self) -> None:
        with self.assertWarnsRegex(UserWarning, 'preexec_fn, which is ignor'):
            executor = self.stopping(SimpleExecutor(
                'umask', shell=True,
                popen_kwargs={'preexec_fn': lambda: os.umask(0)}))
        before = os.umask(0o27)
        try:
            executor.start()
        finally:
            os.umask(before)
        self.assertEqual('0027\n', executor.output().read())

    def test_an_overridden_environment_is_the_childs(self) -> None:
        class Other(SimpleExecutor):
            @property
            def envvars(self) -> dict[str, str]:
                return {'ONLY': 'this', 'PATH': os.environ['PATH']}

        executor = self.stopping(Other(
            'echo $ONLY $MORE $HOME', shell=True,
            envvars={'ONLY': 'that', 'MORE': 'more'}).start())
        self.assertEqual('this\n', executor.output().read())

    def test_without_pipes_there_is_no_output(self) -> None:
        with SimpleExecutor('sleep 100', stdout=subprocess.DEVNULL) as one:
            self.assertIsNone(one.output())
            self.assertIsNone(one.err_output())

    def test_a_child_that_is_forgotten_is_ended(self) -> None:
        executor = SimpleExecutor('sleep 100').start()
        assert executor.child is not None
        process = executor.child
        del executor
        gc.collect()
        self.assertEqual(-signal.SIGKILL, process.wait(DEADLINE))

    def test_one_may_be_forgotten_under_any_lock(self) -> None:
        executor: Any = SimpleExecutor('sleep 100').start()
        process, captures = executor.child, executor._run.captures
        with executor._changing, captures['stdout']._reading, \
                captures['stdout']._changed:
            del executor
            gc.collect()
        self.assertEqual(-signal.SIGKILL, process.wait(DEADLINE))
        collect()
        self.assertTrue(process.channel.closed)

    def test_a_subscriber_cannot_start_what_is_being_started(self) -> None:
        def subscriber(event: object) -> None:
            if isinstance(event, ChildStarted):
                with self.assertRaisesRegex(RuntimeError, 'being started'):
                    executor.start()
                heard.append(event)

        heard: list[object] = []
        executor = self.stopping(SimpleExecutor('sleep 100'))
        with mock.patch.object(zope.event, 'subscribers', [subscriber]):
            executor.start()
        self.assertEqual(1, len(heard))
        self.assertTrue(executor.running())


class NameTests(ExecutorTestCase):

    def test_the_process_has_it(self) -> None:
        with SimpleExecutor('sleep 100', name='a name') as executor:
            self.assertEqual('a name', executor.name)
            self.assertEqual('a name', executor.child.name)
            self.assertIn("'a name'", repr(executor.child))

    def test_by_default_it_is_that_of_the_program(self) -> None:
        for command, name in (('/bin/sleep 100', 'sleep'),
                              (['sleep', '100'], 'sleep'),
                              ('env sleep 100', 'env')):
            self.assertEqual(name, SimpleExecutor(command).name)
        self.assertEqual(
            'sh', SimpleExecutor('exec sleep 100', shell=True).name)


class DieWithParentTests(ExecutorTestCase):

    def death_signal(self, **options: Any) -> int:
        """What the system sends the child when we end, see prctl(2)."""
        executor = self.stopping(SimpleExecutor(victim('''
            import ctypes
            number = ctypes.c_int()
            ctypes.CDLL(None).prctl(2, ctypes.byref(number))
            say(number.value)
            '''), **options).start())
        return int(executor.output().readline())

    def test_the_signal(self) -> None:
        self.assertEqual(0, self.death_signal())
        self.assertEqual(
            signal.SIGKILL, self.death_signal(die_with_parent=True))
        self.assertEqual(signal.SIGTERM, self.death_signal(
            die_with_parent=signal.SIGTERM))


class EnsureRunningTests(ExecutorTestCase):

    def make(self, name: str, *requires: SimpleExecutor) -> Any:
        return self.stopping(OutputExecutor(
            f'echo {name} >> {self.dir}/order; echo ready; exec sleep 100',
            'ready', shell=True, requires=requires, name=name))

    def order(self) -> list[str]:
        """Who was started, one after another."""
        return (self.dir / 'order').read_text().split()

    def test_it_is_started_once(self) -> None:
        executor = self.make('one')
        self.assertIs(executor, executor.ensure_running())
        process = executor.child
        self.assertIs(executor, executor.ensure_running())
        self.assertIs(process, executor.child)
        self.assertEqual(['one'], self.order())

    def test_one_that_has_ended_is_started_anew(self) -> None:
        executor = self.make('one').ensure_running()
        os.kill(executor.child.pid, signal.SIGKILL)
        executor.child.wait(DEADLINE)
        executor.ensure_running()
        self.assertTrue(executor.running())
        self.assertEqual(['one', 'one'], self.order())

    def test_what_it_requires_is_started_before(self) -> None:
        one = self.make('one')
        two = self.make('two', one)
        other = self.make('other')
        self.make('last', two, other, one).ensure_running()
        self.assertEqual(['one', 'two', 'other', 'last'], self.order())

    def test_what_it_requires_is_left_alone_if_it_is_up(self) -> None:
        one = self.make('one')
        two = self.make('two', one).ensure_running()
        one.stop()
        two.ensure_running()
        self.assertFalse(one.running())

    def test_what_runs_already_is_not_started_before(self) -> None:
        one = self.make('one').start()
        process = one.child
        self.make('two', one).ensure_running()
        self.assertIs(process, one.child)
        self.assertEqual(['one', 'two'], self.order())

    def test_it_is_not_started_if_what_it_requires_fails(self) -> None:
        bad = OutputExecutor('exit 4', 'ready', shell=True)
        executor = self.make('one', bad)
        self.assertRaises(ProcessExitedWithError, executor.ensure_running)
        self.assertIsNone(executor.child)

    def test_others_have_started_it_meanwhile(self) -> None:
        class Slow(OutputExecutor):
            def ensure_running(self) -> Any:
                executor.start()
                return super().ensure_running()

        slow = self.stopping(Slow(
            'echo ready; exec sleep 100', 'ready', shell=True))
        executor = self.make('one', slow)
        self.assertIs(executor, executor.ensure_running())
        self.assertEqual(['one'], self.order())


class StopTests(ExecutorTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.children = set(procfs.children(os.getpid()))

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
        self.assertIn('non-zero code: 7', str(caught.exception))
        self.assertIsNone(executor.child)

    def test_a_status_that_others_have_taken_is_no_error(self) -> None:
        with losing_statuses():
            executor = self.stopping(SimpleExecutor('sleep 100').start())
            process = executor.child
            executor.stop()
        self.assertTrue(process.lost)
        self.assertIn('ended with an unknown status', repr(process))

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
        process = executor.child
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
        process = executor.child
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
                executor._run.captures['stdout'].tail.splitlines()
                if line.startswith('child')]
        self.assertEqual(2, len(pids))
        executor.stop()
        self.assertTrue(all(map(is_gone, pids)))

    def test_several_threads_may_stop_it(self) -> None:
        for _ in range(10):
            executor = OutputExecutor('echo ready; exec sleep 100', 'ready',
                                      shell=True).start()
            with ThreadPoolExecutor(3) as threads:
                stops = [threads.submit(executor.stop) for _ in range(3)]
            for stop in stops:
                self.assertIs(executor, stop.result())
            self.assertFalse(executor.running())

    def test_threads_start_and_stop_it_side_by_side(self) -> None:
        executor = SimpleExecutor('sleep 100')

        def meddle(number: int) -> None:
            for _ in range(20):
                if number % 2:
                    executor.start()
                executor.stop()

        with ThreadPoolExecutor(4) as threads:
            for meddling in [threads.submit(meddle, number)
                             for number in range(4)]:
                meddling.result()
        executor.stop()
        self.assertEqual(self.children, set(procfs.children(os.getpid())))

    def test_several_threads_start_one_child(self) -> None:
        executor = self.stopping(SimpleExecutor('sleep 100'))
        with ThreadPoolExecutor(8) as threads:
            for _ in range(8):
                threads.submit(executor.start)
        self.assertEqual(self.children | {executor.child.pid},
                         set(procfs.children(os.getpid())))

    def test_a_start_ends_when_another_thread_stops_it(self) -> None:
        class Mine(Executor):
            def check_subprocess(self) -> bool:
                return False

        starting = Starting(Mine('sleep 100'))
        until(lambda: starting.executor.child)
        starting.executor.kill()
        self.assertRaisesRegex(
            ExecutorError, 'was stopped meanwhile', starting.wait)

    def test_what_is_not_its_own_is_left_alone(self) -> None:
        # Another's daemon is an orphan of ours, as we have adopted all.
        executor = self.stopping(SimpleExecutor('sleep 100').start())
        pids = []
        for leave in (subprocess.check_output, self.leave_detached,
                      self.leave_other):
            command = ('setsid sh -c "sleep 100 > /dev/null 2>&1 & '
                       'echo \\$!"')
            pid = int(leave(command, shell=True))
            pids.append(pid)
            until(lambda: procfs.stat(pid).parent == os.getpid())
        executor.stop()
        self.assertFalse(any(map(is_gone, pids)))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            until(lambda: is_gone(pid))

    def leave_detached(self, command: str, **options: Any) -> bytes:
        process = Process(command, stdin='null', stdout='pipe',
                          stderr='null', detached=True, **options)
        assert process.channel is not None
        output, _ = process.channel.read_until(b'\n', DEADLINE)
        process.wait(DEADLINE)
        process.channel.close()
        return bytes(output)

    def leave_other(self, command: str, **options: Any) -> bytes:
        process = Process(command, stdout='pipe', **options)
        assert process.channel is not None
        output, _ = process.channel.read_until(b'\n', DEADLINE)
        process.wait(DEADLINE)
        process.channel.close()
        return bytes(output)

    def test_a_forked_copy_leaves_the_output_to_us(self) -> None:
        executor = self.stopping(SimpleExecutor('cat').start())
        process = executor.child
        capture = executor._run.captures['stdout']
        background().unregister(capture)  # so that only the copy could read
        process.channel.write(b'a line\n')
        until(lambda: wait_for(capture.fileno(), select.POLLIN, Deadline(0)))
        copy = os.fork()
        if not copy:
            executor._run.abandon(signal.SIGKILL)
            os._exit(0)
        self.assertEqual(0, os.waitpid(copy, 0)[1])
        background().register(capture)
        self.assertEqual('a line\n', executor.output().readline())
        self.assertTrue(executor.running())

    def test_who_cannot_be_killed_in_time_does_not_hide_the_reason(
            self) -> None:
        executor = OutputExecutor(
            "trap '' TERM; echo begun; while :; do sleep 0.01; done", 'ready',
            shell=True, kill_signal=signal.SIGTERM)
        starting = Starting(executor)
        until(lambda: executor._run and executor._run.captures['stdout'].end)
        with mock.patch.object(ending, 'KILL_TIMEOUT', 0.05):
            executor._deadline = Deadline(0)
            with self.assertRaises(TimeoutExpired) as caught:
                starting.wait()
        self.assertIn('still there', caught.exception.__notes__[0])
        self.assertTrue(executor.running())  # and may be stopped once more
        executor.kill(sig=signal.SIGKILL)
        self.assertIsNone(executor.child)

    def test_killing_does_not_have_to_wait(self) -> None:
        executor = SimpleExecutor('sleep 100').start()
        process = executor.child
        assert process is not None
        executor.kill(wait=False)
        self.assertIsNone(executor.child)
        self.assertEqual(-signal.SIGKILL, process.wait(DEADLINE))

    def test_killing_with_another_signal(self) -> None:
        executor = SimpleExecutor('sleep 100').start()
        process = executor.child
        assert process is not None
        # Not SIGHUP, which "nohup" lets all programs ignore.
        executor.kill(sig=signal.SIGUSR1)
        self.assertEqual(-signal.SIGUSR1, process.returncode)

    def test_stopped_starts_it_again(self) -> None:
        with SimpleExecutor('sleep 100') as executor:
            with executor.stopped() as inside:
                self.assertIs(executor, inside)
                self.assertFalse(executor.running())
            self.assertTrue(executor.running())

    def test_stopped_starts_it_again_whatever_happens(self) -> None:
        with SimpleExecutor('sleep 100') as executor:
            with self.assertRaises(ZeroDivisionError), executor.stopped():
                raise ZeroDivisionError
            self.assertTrue(executor.running())

    def test_stopped_starts_nothing_that_did_not_run(self) -> None:
        executor = SimpleExecutor('sleep 100')
        ran = False
        with executor.stopped():
            ran = True
        self.assertTrue(ran)
        self.assertFalse(executor.running())


class OptionsTests(unittest.TestCase):

    def options(self, command: Any = ('true',), check: Check | None = None,
                **popen: Any) -> dict[str, Any]:
        class Other(SimpleExecutor):
            envvars = {'A': 'ours', 'B': 'ours'}  # type: ignore[assignment]

        executor = Other(
            command, shell=isinstance(command, str), stdin=None, stdout=None,
            envvars={'B': 'ours', 'C': 'ours'}, popen_kwargs=popen)
        return executor._options(check)

    def test_streams_are_those_of_popen(self) -> None:
        with open('/dev/null') as file:
            options = self.options(stdin=subprocess.PIPE, stdout=file,
                                   stderr=subprocess.STDOUT)
            self.assertEqual(['pipe', file, 'merge'], [
                options[name] for name in ('stdin', 'stdout', 'stderr')])
        self.assertEqual('inherit', self.options()['stdin'])
        self.assertEqual('null', self.options(
            stdin=subprocess.DEVNULL)['stdin'])

    def test_an_environment_that_is_overridden(self) -> None:
        options = self.options()
        self.assertEqual({'A': 'ours', 'B': 'ours'}, options['env'])
        self.assertEqual({}, options['extra_env'])

    def test_what_systemd_said_is_for_us_only(self) -> None:
        with mock.patch.dict(os.environ, {
                'LISTEN_FDS': '1', 'LISTEN_PORT': '2', 'NOTIFY_SOCKET': '3'}):
            executor = SimpleExecutor('true', envvars={'NOTIFY_SOCKET': '4'})
            environment = executor._options(None)['env']
        self.assertNotIn('LISTEN_FDS', environment)
        self.assertEqual(('2', '4'), (
            environment['LISTEN_PORT'], environment['NOTIFY_SOCKET']))

    def test_what_cannot_be_meant(self) -> None:
        for error, options in (
                (TypeError, {'envvars': {'PORT': 8080}}),
                (ValueError, {'envvars': {'A=B': '1'}}),
                (ValueError, {'envvars': {'A': '\0'}}),
                (TypeError, {'popen_kwargs': {'env': {'PORT': 8080}}}),
                (ValueError, {'command': ['true', '\0']}),
                (ValueError, {'command': 'true \0', 'shell': True}),
                (TypeError, {'command': ['sleep', 1]})):
            with self.subTest(options), self.assertRaises(error):
                SimpleExecutor(**({'command': 'true'} | options))

    def test_keywords_of_popen(self) -> None:
        options = self.options(
            env={'B': 'theirs'}, executable='/bin/true', user='nobody')
        self.assertEqual({'B': 'ours', 'C': 'ours'}, options['env'])
        self.assertEqual({}, options['extra_env'])
        self.assertEqual(
            {'executable': '/bin/true'}, options['popen_kwargs'])
        self.assertEqual('nobody', options['user'])

    def test_a_session_of_its_own_unless_something_else_is_said(self) -> None:
        self.assertTrue(self.options()['setsid'])
        self.assertFalse(self.options(process_group=0)['setsid'])
        options = self.options(start_new_session=False)
        self.assertFalse(options['setsid'])
        self.assertFalse(options['start_new_session'])

    def test_a_check_adds_its_own(self) -> None:
        check = Check()
        check.variables = {'NOTIFY_FD': '17'}
        check.pass_fds = [17]
        for command, expected in (
                ('a {notify_fd}', 'a 17'), (['{notify_fd}'], ['17'])):
            options = self.options(command, check=check, pass_fds=[5])
            self.assertEqual(expected, options['command'])
        self.assertEqual((5, 17), options['pass_fds'])
        self.assertEqual({'NOTIFY_FD': '17'}, options['extra_env'])


class Heard:
    """Notes down what is told of children."""

    def __init__(self, case: ExecutorTestCase, hear: Any = None) -> None:
        self.told: list[tuple[str, str]] = []
        self.hear = hear or (lambda kind, event: None)
        case.enterContext(
            mock.patch.object(zope.event, 'subscribers', [self.note]))

    def note(self, event: Any) -> None:
        kind = type(event).__name__.removeprefix('Child')
        self.told.append((event.name, kind))
        self.hear(kind, event)

    def of(self, executor: SimpleExecutor) -> list[str]:
        return [kind for name, kind in self.told if name == executor.name]


class EventTests(ExecutorTestCase):

    def test_they_come_in_order_for_each_child(self) -> None:
        heard = Heard(self)
        for executor in (
                SimpleExecutor('true', name='simple'),
                OutputExecutor('echo ready', 'ready', name='checked')):
            for _ in range(20):
                executor.start()
                executor.child.wait(DEADLINE)
                executor.stop()
                # By the thread that has noticed the end.
                until(lambda: heard.of(executor)[-1] == 'Ended')
            self.assertEqual(['Started', 'Ready', 'Ended'] * 20,
                             heard.of(executor))

    def test_a_daemon_ends_for_subscribers_when_it_is_ready(self) -> None:
        heard = Heard(self)
        executor = self.stopping(OutputExecutor(
            'exec 3<&0; (read line <&3; echo ready; exec sleep 100) &',
            'ready', shell=True, name='daemon'))
        starting = Starting(executor)
        until(lambda: executor.child
              and executor.child.poll() is not None)
        self.assertEqual(['Started'], heard.of(executor))
        starting.go_on()
        starting.wait()
        until(lambda: len(heard.of(executor)) == 3)
        executor.stop()
        self.assertEqual(['Started', 'Ready', 'Ended'], heard.of(executor))

    def test_a_child_that_was_never_ready_ends_as_well(self) -> None:
        heard = Heard(self)
        bad = OutputExecutor('exit 3', 'ready', shell=True, name='bad')
        self.assertRaises(ProcessExitedWithError, bad.start)
        late = OutputExecutor('sleep 100', 'ready', timeout=0.01, name='late')
        self.assertRaises(TimeoutExpired, late.start)
        gone = SimpleExecutor('sleep 100', log_file='/no/where', name='gone')
        self.assertRaises(FileNotFoundError, gone.start)
        for each in bad, late, gone:
            until(lambda: len(heard.of(each)) == 2)
            self.assertEqual(['Started', 'Ended'], heard.of(each))

    def test_a_subscriber_that_waits_for_the_end_does_not_turn_them(
            self) -> None:
        heard = Heard(self, lambda kind, event: (
            kind == 'Started' and event.process.wait(DEADLINE)))
        with SimpleExecutor('true') as executor:
            until(lambda: len(heard.of(executor)) == 3)
        self.assertEqual(['Started', 'Ready', 'Ended'], heard.of(executor))

    def test_the_log_tells_them(self) -> None:
        with self.assertLogs('gocept.runner.executor', 'INFO') as logged:
            with OutputExecutor('echo ready; exec sleep 100', 'ready',
                                shell=True, name='web') as executor:
                pid = executor.child.pid
            until(lambda: len(logged.output) == 3)
        started, ready, ended = logged.output
        self.assertEqual(
            'INFO:gocept.runner.executor:Started '
            f"<Process 'web' ({pid}): running>", started)
        self.assertRegex(
            ready, rf"Ready after \d+\.\d\d s: <Process 'web' \({pid}\): ")
        self.assertEqual(
            'INFO:gocept.runner.executor:'
            f"<Process 'web' ({pid}): ended with -15>", ended)

    def test_an_end_that_nobody_wants_is_a_warning_with_its_output(
            self) -> None:
        with self.assertLogs('gocept.runner.executor', 'WARNING') as logged:
            executor = self.stopping(SimpleExecutor(
                'echo the disk is full; exit 3', shell=True, name='web'))
            executor.start()
            until(lambda: executor._run._has_ended and logged.output)
        self.assertRegex(
            logged.output[0], r"'web' \(\d+\): ended with 3>; its stdout ends "
            'with:\nthe disk is full')

    def test_an_end_that_is_wanted_is_none(self) -> None:
        def end(executor: SimpleExecutor) -> None:
            stop_all([executor])

        for how in (SimpleExecutor.stop, SimpleExecutor.kill, end,
                    lambda executor: executor.kill(wait=False)):
            with self.assertNoLogs('gocept.runner.executor', 'WARNING'):
                executor = SimpleExecutor('sleep 100').start()
                process = executor.child
                how(executor)
                process.wait(DEADLINE)


class WaitingTests(ExecutorTestCase):
    """Several threads, and threads that must not wait."""

    def setUp(self) -> None:
        super().setUp()
        self.threads = self.enterContext(ThreadPoolExecutor(4))

    def executor(self, **options: Any) -> OutputExecutor:
        return self.stopping(OutputExecutor(
            'read line; echo ready; exec sleep 100', 'ready', shell=True,
            **options))

    def test_the_others_wait_until_it_is_ready(self) -> None:
        executor = self.executor()
        starting = Starting(executor)
        until(lambda: executor.child)
        others = [self.threads.submit(executor.ensure_running)
                  for _ in range(3)]
        until(lambda: len(_awaited) == 3)
        self.assertFalse(any(each.done() for each in others))
        starting.go_on()
        for each in others:
            self.assertIs(executor, each.result(DEADLINE))
        starting.wait()
        self.assertIs(executor, executor.ensure_running())

    def test_one_of_the_others_starts_it_after_a_failure(self) -> None:
        marker = self.dir / 'marker'
        executor = self.stopping(OutputExecutor(
            f'read line; if test -e {marker}; then echo ready; exec sleep 100;'
            ' fi; exit 3', 'ready', shell=True))
        starting = Starting(executor)
        until(lambda: executor.child)
        first = executor.child
        others = [self.threads.submit(executor.ensure_running)
                  for _ in range(3)]
        until(lambda: len(_awaited) == 3)
        starting.go_on()
        self.assertRaises(ProcessExitedWithError, starting.wait)
        marker.touch()
        until(lambda: executor.child not in (None, first))
        starting.go_on()
        for each in others:
            self.assertIs(executor, each.result(DEADLINE))

    def test_of_two_that_start_it_one_looks_whether_it_is_ready(self) -> None:
        looks = set()
        ready = threading.Event()

        class Mine(Executor):
            def after_start_check(self) -> bool:
                looks.add(threading.current_thread())
                return ready.is_set()

        executor = self.stopping(Mine('sleep 100'))
        started = [self.threads.submit(executor.start) for _ in range(2)]
        until(lambda: looks and _awaited)
        ready.set()
        for each in started:
            self.assertIs(executor, each.result(DEADLINE))
        self.assertEqual(1, len(looks))

    def test_another_thread_may_start_it_between_two_looks(self) -> None:
        executor = self.stopping(SimpleExecutor('sleep 100'))
        start = executor.start

        def start_twice() -> None:
            start()
            raise AlreadyRunning(executor)

        with mock.patch.object(executor, 'start', start_twice):
            self.assertIs(executor, executor.ensure_running())

    def test_another_thread_may_be_about_to_start_it(self) -> None:
        told, go_on = threading.Event(), threading.Event()

        def wait(kind: str, event: Any) -> None:
            if kind == 'Started':
                told.set()
                go_on.wait(DEADLINE)

        Heard(self, wait)
        executor = self.stopping(SimpleExecutor('sleep 100'))
        start = executor.start

        def start_second() -> None:
            other = self.threads.submit(start)
            told.wait(DEADLINE)
            waiting = self.threads.submit(until, lambda: _awaited)
            waiting.add_done_callback(lambda future: go_on.set())
            start()
            other.result(DEADLINE)

        with mock.patch.object(executor, 'start', start_second):
            self.assertIs(executor, executor.ensure_running())

    def test_a_subscriber_may_ask_for_what_is_being_started(self) -> None:
        executor = SimpleExecutor('sleep 100')
        asked = []
        Heard(self, lambda kind, event: asked.append(
            executor.ensure_running()))
        with executor:
            self.assertEqual([executor] * 2, asked)

    def test_two_that_wait_for_each_other_are_an_error(self) -> None:
        one, two = (self.stopping(SimpleExecutor('sleep 100', name=name))
                    for name in ('one', 'two'))
        both = threading.Barrier(2, timeout=DEADLINE)
        errors = []

        def start_the_other(kind: str, event: Any) -> None:
            if kind == 'Started':
                both.wait()
                try:
                    (two if event.name == 'one' else one).ensure_running()
                except ExecutorError as error:
                    errors.append(str(error))

        Heard(self, start_the_other)
        started = [self.threads.submit(each.start) for each in (one, two)]
        for each in started:
            each.result(DEADLINE)
        [error] = errors
        self.assertRegex(error, 'is being started by a thread that waits for '
                                '<SimpleExecutor .*, which this thread starts')

    def test_those_that_require_each_other_are_an_error(self) -> None:
        one, two = SimpleExecutor('sleep 1'), SimpleExecutor('sleep 2')
        one.requires, two.requires = (two,), (one,)
        self.assertRaisesRegex(
            ValueError, 'these require each other: .*sleep 1.*sleep 2',
            one.ensure_running)

    def in_background(self, function: Any) -> Any:
        """Call it in the background thread; returns what it does."""
        future: Future[Any] = Future()

        def call() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        background()
        hand_over(call)
        return future.result(DEADLINE)

    def test_the_background_thread_cannot_wait_for_itself(self) -> None:
        executor = self.executor()
        for method in (executor.start, executor.ensure_running,
                       executor.__enter__):
            self.assertRaisesRegex(
                RunnerError, 'would wait in the background thread',
                self.in_background, method)
            self.assertIsNone(executor.child)
        starting = Starting(executor)
        until(lambda: executor.child)
        self.assertRaisesRegex(
            RunnerError, 'would wait in the background thread',
            self.in_background, executor.ensure_running)
        starting.go_on()
        starting.wait()
        self.assertTrue(self.in_background(executor.is_up))
        self.in_background(executor.ensure_running)
        self.in_background(executor.stop)

    def test_an_output_is_not_awaited_in_the_background_thread(self) -> None:
        executor = self.stopping(SimpleExecutor('cat').start())
        reader = executor.output()
        for method in reader.read, reader.readline, lambda: [*reader]:
            self.assertRaisesRegex(
                RunnerError, 'reading the output .* would wait',
                self.in_background, method)
        executor.child.channel.write(b'one\ntwo\n')
        executor.child.channel.write_eof()
        until(lambda: executor._run.captures['stdout'].ended)
        self.assertEqual('one\n', self.in_background(reader.readline))
        self.assertEqual('two\n', self.in_background(reader.read))


class LostStatusTests(ExecutorTestCase):
    """Somebody else reaps the children."""

    def reap(self, executor: SimpleExecutor) -> None:
        """In place of the thread that does it."""
        process = executor.child
        with process._lock:
            process.handle.signal(signal.SIGKILL)
            os.waitpid(process.pid, 0)

    def test_it_is_no_failure(self) -> None:
        executor = self.stopping(SimpleExecutor('sleep 100').start())
        with self.assertLogs('gocept.runner', 'INFO') as logged:
            self.reap(executor)
            executor.stop()
        self.assertNotIn('ended with 255', str(logged.output))
        self.assertIn('an unknown status', str(logged.output))

    def test_a_real_255_is_one(self) -> None:
        executor = self.stopping(SimpleExecutor('exit 255', shell=True))
        executor.start()
        executor.child.wait(DEADLINE)
        self.assertRaisesRegex(
            ProcessFinishedWithError, 'non-zero code: 255; its status is 255',
            executor.stop)

    def test_who_waits_for_a_port_goes_on_waiting(self) -> None:
        starting = Starting(TCPExecutor('sleep 100', '127.0.0.1', 0))
        until(lambda: starting.executor.child)
        self.reap(starting.executor)
        until(lambda: starting.executor.child.poll() is not None)
        self.assertFalse(starting.executor.check_subprocess())
        starting.executor._deadline = Deadline(0)
        self.assertRaisesRegex(
            TimeoutExpired, 'its status is an unknown status; its stdout',
            starting.wait)

    def test_who_can_hear_no_more_says_so(self) -> None:
        starting = Starting(OutputExecutor('sleep 100', 'ready'))
        until(lambda: starting.executor.child)
        self.reap(starting.executor)
        with self.assertRaisesRegex(
                ProcessExitedWithError, 'exited with an unknown status; '
                '.*its status is an unknown status'):
            starting.wait()


class MessageTests(ExecutorTestCase):

    def timed_out(self, executor: SimpleExecutor) -> str:
        with self.assertRaises(TimeoutExpired) as caught:
            executor.start()
        return str(caught.exception)

    def test_a_command_that_does_not_know_its_port(self) -> None:
        for command, envvars, told in (
                ('sleep 100', {}, False), ('sleep 100; {port}', {}, True),
                ('sleep 100', {'PORT': '{port}'}, True)):
            executor = TCPExecutor(command, '127.0.0.1', 0, timeout=0.01,
                                   envvars=envvars, shell=True)
            self.assertIs(told, 'may not know that its port is'
                          not in self.timed_out(executor))

    def test_a_port_that_is_not_replaced(self) -> None:
        with socket.socket() as sock:
            sock.bind(('127.0.0.1', 0))
            self.assertIn('is replaced for port 0 only', self.timed_out(
                TCPExecutor('sleep 100; {port}', *sock.getsockname(),
                            shell=True, timeout=0.01)))
            self.assertRaisesRegex(
                ProcessExitedWithError, 'is replaced for port 0 only',
                TCPExecutor('exit 3; {port}', *sock.getsockname(),
                            shell=True).start)

    def test_errors_that_were_not_read(self) -> None:
        for stderr, told in ((None, True), (subprocess.PIPE, False),
                             (subprocess.STDOUT, False)):
            with self.assertRaises(ProcessExitedWithError) as caught:
                OutputExecutor('exit 3', 'ready', shell=True,
                               stderr=stderr).start()
            self.assertIs(told, 'stderr=PIPE' in str(caught.exception))

    def test_a_program_or_a_directory_that_is_not_there(self) -> None:
        for options, what in (
                ({'command': 'no-such-program'}, 'program'),
                ({'command': 'true', 'cwd': self.dir / 'no'}, 'directory')):
            executor = SimpleExecutor(**options, name='web')
            self.assertRaisesRegex(
                FileNotFoundError, f"the {what} of 'web'",
                executor.start)

    def test_a_long_wait_is_logged(self) -> None:
        executor = self.stopping(OutputExecutor(
            "printf 'rea'; read line; echo dy; exec sleep 100", '^rea$|^ready',
            shell=True))
        with mock.patch.object(base, '_PATIENCE', 0.01):
            # A log without what is INFO has it, too.
            with self.assertLogs('gocept.runner.executor', 'WARN') as logged:
                starting = Starting(executor)
                until(lambda: 'is not finished' in str(logged.output))
                starting.go_on()
                starting.wait()
        self.assertRegex(
            str(logged.output), r'still waiting; waited \d+\.\d\d s for .* in '
            'its output; seen last: the line .* is not finished')
