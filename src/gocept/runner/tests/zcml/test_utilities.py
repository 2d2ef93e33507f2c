"""The poller and the runner that ``configure.zcml`` registers."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import zope.component
import zope.event
from zope.interface.verify import verifyObject

from gocept.runner import process
from gocept.runner.channel import PipeChannel
from gocept.runner.errors import DeadlineExceeded, StartError
from gocept.runner.events import ChildReady, ChildStarted
from gocept.runner.executor import ProcessExitedWithError
from gocept.runner.interfaces import IChildEvent, IExecutor, IPoller, IRunner
from gocept.runner.poller import Poller, Timer
from gocept.runner.process import unixsocket
from gocept.runner.tests.declaring import DeclaringTestCase
from gocept.runner.tests.executors import ExecutorTestCase, is_gone
from gocept.runner.tests.support import DEADLINE, open_descriptors, settle
from gocept.runner.tests.victims import until
from gocept.runner.waits.deadline import Deadline
from gocept.runner.zcml import utilities
from gocept.runner.zcml.supervisor import Supervisor
from gocept.runner.zcml.utilities import WorkerPoller, WorkerRunner


class WorkerPollerTests(ExecutorTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.poller: Any = WorkerPoller()
        self.addCleanup(self.poller.close)

    def a_channel(self) -> tuple[PipeChannel, int]:
        """A channel, and the descriptor that it is written to."""
        read, write = os.pipe()
        channel = PipeChannel(read)
        self.addCleanup(channel.close)
        self.addCleanup(lambda: os.close(write))
        return channel, write

    def test_the_interface(self) -> None:
        verifyObject(IPoller, self.poller)

    def test_it_opens_at_its_first_use(self) -> None:
        before = open_descriptors()
        poller: Any = WorkerPoller()
        self.assertEqual(before, open_descriptors())
        self.assertFalse(poller.closed)
        self.assertEqual([], poller.poll(0))
        self.assertNotEqual(before, open_descriptors())
        poller.close()
        self.assertEqual(before, open_descriptors())

    def test_it_polls(self) -> None:
        channel, write = self.a_channel()
        self.poller.register(channel)
        os.write(write, b'news')
        self.assertEqual([(b'news', channel)], self.poller.poll(DEADLINE))

    def test_it_is_one(self) -> None:
        self.assertEqual(self.poller.wakeup_fd, self.poller.wakeup_fd)
        self.poller.wakeup()
        self.assertTrue(self.poller.pause(DEADLINE))

    def test_it_is_woken_by_another_thread(self) -> None:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(self.poller.wakeup)
            self.assertTrue(self.poller.pause(DEADLINE))

    def test_it_closes_what_is_registered(self) -> None:
        channel, _ = self.a_channel()
        child = process.Process('sleep 100')
        self.addCleanup(child.close)
        self.poller.register(channel)
        self.poller.register(child)
        self.poller.register(Timer(3600))
        self.poller.close()
        self.assertTrue(channel.closed)
        self.assertIsNone(child.poll())

    def test_closing_again_does_nothing(self) -> None:
        self.poller.poll(0)
        before = open_descriptors()
        self.poller.close()
        after = open_descriptors()
        self.assertNotEqual(before, after)
        self.poller.close()
        self.assertEqual(after, open_descriptors())

    def test_it_opens_again(self) -> None:
        first, _ = self.a_channel()
        second, write = self.a_channel()
        self.poller.register(first)
        self.poller.close()
        self.poller.register(second)
        os.write(write, b'news')
        self.assertEqual([(b'news', second)], self.poller.poll(DEADLINE))

    def test_a_context_manager(self) -> None:
        channel, _ = self.a_channel()
        with WorkerPoller() as poller:
            self.assertIsInstance(poller, WorkerPoller)
            poller.register(channel)
        self.assertTrue(channel.closed)

    def test_what_it_has_not(self) -> None:
        before = open_descriptors()
        for name in ('_news', '__len__'):
            self.assertRaises(AttributeError, getattr, self.poller, name)
        self.assertEqual(before, open_descriptors())
        self.assertRaises(AttributeError, getattr, self.poller, 'nonsense')

    def test_two_threads_open_it_at_once(self) -> None:
        both = threading.Barrier(2, timeout=DEADLINE)
        before = open_descriptors().keys()

        def opened(*args: Any, **options: Any) -> Poller:
            poller = Poller()
            both.wait()
            return poller
        with (ThreadPoolExecutor(2) as threads,
              mock.patch.object(utilities, 'Poller', opened)):
            fds = {each.result(DEADLINE) for each in [
                threads.submit(lambda: self.poller.wakeup_fd)
                for _ in range(2)]}
        self.assertEqual(1, len(fds))
        self.poller.close()
        self.assertEqual(before, open_descriptors().keys())

    def test_a_forked_child_has_it_empty(self) -> None:
        channel, write = self.a_channel()
        self.poller.register(channel)
        os.write(write, b'news')
        pid = os.fork()
        if not pid:
            signal.alarm(DEADLINE)
            os._exit(len(self.poller.poll(0)))
        self.assertEqual(0, os.waitpid(pid, 0)[1])


class WorkerRunnerTests(DeclaringTestCase):

    def assertNotes(self, *expected: str) -> None:
        self.assertEqual([*expected], self.notes)

    def test_the_interface(self) -> None:
        verifyObject(IRunner, WorkerRunner())

    def test_the_first_use_starts_it_and_what_it_requires(self) -> None:
        for use in (lambda: self.runner.get_channel('c'),
                    lambda: self.runner.get_channel('c', 'stdout'),
                    lambda: self.runner.get_channel('c', 'stderr'),
                    lambda: self.runner.start('c'),
                    lambda: self.runner.ensure_running('c'),
                    lambda: self.runner.start('c', 'another', [])):
            (self.dir / 'notes').unlink(missing_ok=True)
            with self.load(
                    self.an_executor('a')
                    + self.an_app('b', requires='a')
                    + self.an_app('c', requires='b', stderr='pipe')
                    ).running(DEADLINE):
                self.assertNotes()
                use()
                self.assertNotes('a started', 'b started', 'c started')
            self.assertEqual('a ended', self.notes[-1])

    def test_a_channel_to_a_lazy_one(self) -> None:
        with self.load('<runner:app name="a" command="cat" buffering="line"'
                       ' encoding="utf-8" />').running(DEADLINE):
            channel = self.runner.get_channel('a')
            channel.write('hello\n')
            self.assertEqual(('', 'hello\n'),
                             channel.read_until('hello\n', DEADLINE))
            self.assertIs(channel, self.runner.get_channel('a'))

    def test_the_second_use_starts_nothing(self) -> None:
        with self.load(self.an_app('a')).running(DEADLINE):
            for _ in range(3):
                self.assertIsNotNone(self.runner.get_channel('a'))
            self.assertNotes('a started')

    def test_one_that_has_ended_is_not_started_again(self) -> None:
        with self.load(self.an_app('a')).running(DEADLINE):
            self.runner.get_channel('a')
            self.runner.get_process('a').terminate()
            self.assertIsNone(self.runner.get_channel('a'))
            self.assertNotes('a started', 'a ended')
            self.runner.ensure_running('a')
            self.assertIsNotNone(self.runner.get_channel('a'))

    def test_one_that_was_terminated_is_not_started_again(self) -> None:
        with self.load(self.an_app('a')).running(DEADLINE):
            self.runner.get_channel('a')
            self.runner.terminate('a')
            self.assertIsNone(self.runner.get_channel('a'))
            self.assertNotes('a started', 'a ended')

    def test_what_it_has_said_before_its_end_can_be_read(self) -> None:
        with self.load('<runner:app name="a" command="echo news" />'
                       ).running(DEADLINE):
            self.runner.get_channel('a')
            self.runner.get_process('a').wait(DEADLINE)
            self.assertEqual(
                (b'news', b'\n'),
                self.runner.get_channel('a').read_until(b'\n', DEADLINE))

    def test_what_it_requires_is_started_again(self) -> None:
        with self.load(self.an_executor('a') + self.an_app('b', requires='a')
                       ).running(DEADLINE):
            self.runner.get_channel('b')
            a = self.executor('a')
            a.stop()
            self.runner.ensure_running('b')
            self.assertTrue(a.is_up())
            self.assertNotes('a started', 'b started', 'a ended', 'a started')

    def executor(self, name: str) -> Any:
        return zope.component.getUtility(IExecutor, name)

    def test_an_executor_starts_what_it_requires(self) -> None:
        with self.load(self.an_app('a')
                       + self.an_executor('b', requires='a')
                       + self.an_executor('c', requires='b')
                       ).running(DEADLINE):
            c = self.executor('c')
            self.assertIs(c, c.ensure_running())
            self.assertNotes('a started', 'b started', 'c started')
            c.ensure_running()
            self.assertNotes('a started', 'b started', 'c started')
        self.assertNotes('a started', 'b started', 'c started',
                         'c ended', 'b ended', 'a ended')

    def test_an_unknown_one(self) -> None:
        with self.load('').running(DEADLINE):
            self.assertRaises(KeyError, self.runner.get_channel, 'nobody')
            self.assertRaises(KeyError, self.runner.start, 'nobody')
            self.assertRaises(KeyError, self.runner.state, 'nobody')
            self.assertRaises(ValueError, self.runner.get_channel, 'x', 'y')

    def test_a_mistyped_one(self) -> None:
        with self.load(self.an_app('shout')).running(DEADLINE):
            self.runner.start('shout', 'loudly')
            with self.assertRaisesRegex(
                    KeyError, "declared or was started as 'shuot'; there are: "
                              'loudly, shout'):
                self.runner.get_channel('shuot')
            # Or else a loop that waits for it never ends.
            for method in self.runner.running, self.runner.state:
                with self.assertRaisesRegex(
                        KeyError, "as 'shuot'; there are: loudly, shout"):
                    method('shuot')
            self.assertFalse(self.runner.running('shout'))

    def test_a_channel_that_will_never_be(self) -> None:
        with self.load('<runner:app name="a" command="cat" />'
                       '<runner:app name="b" command="cat" stderr="pipe" />'
                       ).running(DEADLINE):
            with self.assertRaisesRegex(
                    ValueError, '\'a\' has no .* stderr="pipe"'):
                self.runner.get_channel('a', 'stderr')
            self.assertIsNotNone(self.runner.get_channel('b', 'stderr'))

    def test_the_state(self) -> None:
        with self.load('<runner:app name="a" command="false" />'
                       ).running(DEADLINE):
            poller = zope.component.getUtility(IPoller)
            self.assertEqual('ended', self.runner.state('a'))
            with self.assertLogs('gocept.runner.spawn', 'WARNING') as logs:
                self.runner.start('a')
                # Who waits for its channel is woken.
                self.assertTrue(poller.pause(DEADLINE))
            self.assertEqual('given-up', self.runner.state('a'))
            self.assertIn('ended with 1', logs.output[0])

    def test_a_worker_is_woken_when_the_last_restart_has_failed(self) -> None:
        with self.load('<runner:app name="a" command="false" '
                       'restart="always" restart_delay="0" restart_limit="1"/>'
                       ).running(DEADLINE):
            poller = zope.component.getUtility(IPoller)
            with self.assertLogs('gocept.runner.spawn', 'ERROR'):
                self.runner.start('a')
                while self.runner.state('a') != 'given-up':
                    self.assertTrue(poller.pause(DEADLINE))
                settle()

    def test_one_that_is_not_declared(self) -> None:
        with self.load('').running(DEADLINE):
            self.runner.add('a', 'cat')
            self.assertIsNone(self.runner.get_channel('a'))
            self.runner.start('a')
            self.assertIsNotNone(self.runner.get_channel('a'))

    def test_what_it_requires_cannot_be_started(self) -> None:
        with self.load(self.an_executor('a', 'os._exit(3)')
                       + self.an_app('b', requires='a')).running(DEADLINE):
            for _ in range(2):
                with self.assertRaisesRegex(ProcessExitedWithError,
                                            'non-zero code: 3'):
                    self.runner.get_channel('b')
            self.assertNotes('a started', 'a started')

    def test_the_next_use_tries_again_what_could_not_be_started(self) -> None:
        mended = self.dir / 'mended'
        for body, error, timeout in (
                ('os._exit(3)', StartError, DEADLINE),
                ('pause()', DeadlineExceeded, 0.2)):
            mended.unlink(missing_ok=True)
            with self.load(self.an_app(
                    'a', f'if not os.path.exists({str(mended)!r}): {body}',
                    start_timeout=str(DEADLINE))).running(DEADLINE):
                with mock.patch.object(unixsocket, 'Deadline',
                                       lambda _, it=timeout: Deadline(it)):
                    for _ in range(2):
                        self.assertRaises(error, self.runner.get_channel, 'a')
                mended.write_text('')
                self.assertIsNotNone(self.runner.get_channel('a'))

    def test_a_program_that_is_not_there_yet(self) -> None:
        program = self.dir / 'program'
        with self.load(f'<runner:app name="a" command="{program}" />'
                       ).running(DEADLINE):
            for _ in range(2):
                self.assertRaises(OSError, self.runner.get_channel, 'a')
            program.symlink_to('/bin/cat')
            self.assertIsNotNone(self.runner.get_channel('a'))

    def test_two_threads_use_it_at_once(self) -> None:
        with self.load(
                self.an_executor('a', 'wait()')
                + self.an_app('b', 'wait()', requires='a')
                ).running(DEADLINE), ThreadPoolExecutor(2) as threads:
            uses = [threads.submit(self.runner.get_channel, 'b')]
            until(lambda: self.notes)
            uses += [threads.submit(self.runner.get_channel, 'b')]
            # What it requires runs, but is not ready.
            self.assertRaises(TimeoutError, uses[1].result, 0.1)
            self.assertNotes('a started')
            self.let_child_go()
            self.let_child_go()
            channels = [use.result(DEADLINE) for use in uses]
            self.assertIsNotNone(channels[0])
            self.assertIs(*channels)
            self.assertNotes('a started', 'b started')

    def test_a_subscriber_waits_for_one_that_needs_the_same(self) -> None:
        # The other thread has what the subscriber wants: a lock of a user.
        theirs, told = threading.Lock(), threading.Event()

        def take(event: Any) -> None:
            if isinstance(event, ChildReady) and event.name == 'a':
                told.set()
                self.assertTrue(theirs.acquire(timeout=DEADLINE))
                theirs.release()
        zope.event.subscribers.append(take)
        self.addCleanup(zope.event.subscribers.remove, take)
        with self.load(
                self.an_executor('a')
                + '<runner:app name="b" command="cat" requires="a" />'
                + '<runner:app name="c" command="cat" requires="a" />'
                ).running(DEADLINE), ThreadPoolExecutor(1) as threads:
            with (self.assertNoLogs('gocept.runner.events'), theirs):
                use = threads.submit(self.runner.get_channel, 'b')
                self.assertTrue(told.wait(DEADLINE))
                self.assertIsNotNone(self.runner.get_channel('c'))
            self.assertIsNotNone(use.result(DEADLINE))

    def test_a_subscriber_asks_for_channels_while_it_is_started(self) -> None:
        channels: dict[tuple[str, type], Any] = {}

        def ask(event: Any) -> None:
            if IChildEvent.providedBy(event) and event.name != 'a':
                channels[event.name, type(event)] = self.runner.get_channel(
                    event.name)
                self.runner.get_channel('d')
        zope.event.subscribers.append(ask)
        self.addCleanup(zope.event.subscribers.remove, ask)
        with self.load(self.an_executor('a') + self.an_app('b', requires='a')
                       + '<runner:app name="c" command="cat" requires="b" />'
                       + '<runner:app name="d" command="cat" requires="a" />'
                       ).running(DEADLINE):
            with self.assertNoLogs('gocept.runner.events'):
                c = self.runner.get_channel('c')
            self.assertNotes('a started', 'b started')
            self.assertIs(c, channels['c', ChildStarted])
            self.assertIs(self.runner.get_channel('b'),
                          channels['b', ChildReady])

    def test_it_is_restarted_as_it_is_declared(self) -> None:
        with self.load(self.an_app(
                'a', restart='on-failure', restart_delay='0')
                ).running(DEADLINE):
            first = self.runner.get_channel('a')
            self.runner.get_process('a').send_signal(
                signal.SIGKILL)
            until(lambda: self.notes == ['a started'] * 2)
            second = self.runner.get_channel('a')
            self.assertIsNot(first, second)
            second.write(b'.')

    def test_close_ends_all_and_forgets_it(self) -> None:
        with self.load(self.an_app('a')).running(DEADLINE):
            self.runner.get_channel('a')
            process = self.runner.get_process('a')
            self.runner.close()
            self.assertTrue(is_gone(process.pid))
            self.assertEqual([], self.runner.aliases())
            self.assertIsNotNone(self.runner.get_channel('a'))
            self.assertNotes('a started', 'a ended', 'a started')

    def test_after_the_end_its_channels_are_closed(self) -> None:
        channels = []
        with self.load('<runner:app name="a" command="cat" stderr="pipe" />'
                       + self.an_app('b')).running(DEADLINE):
            channels += [self.runner.get_channel('a'),
                         self.runner.get_channel('a', 'stderr'),
                         self.runner.get_channel('b')]
        self.assertEqual([True] * 3, [each.closed for each in channels])


class NothingOpenTests(ExecutorTestCase):
    """Where ZCML is read but no worker runs."""

    def test_the_utilities(self) -> None:
        before, threads = open_descriptors(), {*threading.enumerate()}
        made = WorkerPoller(), WorkerRunner(), Supervisor()
        self.assertEqual(before, open_descriptors())
        self.assertLessEqual({*threading.enumerate()}, threads)
        self.assertEqual(3, len(made))


class SystemTests(DeclaringTestCase):

    def test_a_worker_without_children_needs_no_linux(self) -> None:
        conf = self.conf('<runner:worker name="w" once="true"'
                         ' handler="os.getpid" />')
        program = self.program(f"""
            import ctypes, os, select, signal, time
            for module, name in (
                    (os, 'pidfd_open'), (os, 'P_PIDFD'), (select, 'epoll'),
                    (signal, 'pidfd_send_signal'), (time, 'CLOCK_BOOTTIME')):
                delattr(module, name)

            class CDLL(ctypes.CDLL):
                def __getattr__(self, name):
                    if name in ('sigaction', 'prctl', 'inotify_init1'):
                        raise AttributeError(name)
                    return super().__getattr__(name)
            ctypes.CDLL = CDLL
            from gocept.runner.cli import main
            main(['run', 'w', '--config', {conf!r}])
            """)
        self.assertEqual(0, program.end(), program.output)
