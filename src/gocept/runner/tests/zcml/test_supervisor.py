"""The life of what ZCML declares: its start, its end, and who is inside."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest import mock

import zope.component
import zope.event

from gocept.runner import errors
from gocept.runner.boot import zopeconf
from gocept.runner.boot.toolkit import Toolkit
from gocept.runner.channel import PipeChannel
from gocept.runner.errors import CannotStart, Terminated
from gocept.runner.events import ChildEnded, ChildReady, hearing
from gocept.runner.executor import (
    ProcessExitedWithError,
    SimpleExecutor,
    TimeoutExpired,
)
from gocept.runner.interfaces import IPoller, ISupervisor
from gocept.runner.poller import background
from gocept.runner.poller.timer import Timer
from gocept.runner.process import ending
from gocept.runner.runner import MainLoop, init
from gocept.runner.signals import current_shutdown
from gocept.runner.tests.declaring import (
    SITE,
    DeclaringTestCase,
    attributes,
    zcml,
)
from gocept.runner.tests.executors import is_gone
from gocept.runner.tests.streams import Alarms
from gocept.runner.tests.support import (
    DEADLINE,
    SIGNALS,
    Slow,
    open_descriptors,
)
from gocept.runner.tests.victims import looks_for_marks, until

EAGER = {'start': 'eager'}

STUBBORN = 'signal.signal(signal.SIGTERM, signal.SIG_IGN)\n'

ENDS_BADLY = 'signal.signal(signal.SIGTERM, lambda *args: os._exit(5))\n'

TAKES_ITS_TIME = '''
def end_slowly(signum, frame):
    import time
    time.sleep(0.2)
    end()
signal.signal(signal.SIGTERM, end_slowly)
'''

WAITS_TO_END = '''
def end_later(signum, frame):
    note('told')
    wait()
    end()
signal.signal(signal.SIGTERM, end_later)
'''


class LifeTestCase(DeclaringTestCase):

    @property
    def supervisor(self) -> Any:
        return zope.component.getUtility(ISupervisor)

    @contextlib.contextmanager
    def running(self, timeout: float = DEADLINE) -> Iterator[Any]:
        """Inside they run; afterwards none does."""
        pids: set[int] = set()
        try:
            with self.supervisor.running(timeout):
                try:
                    yield self.supervisor
                finally:
                    pids.update(self.pids())
        finally:
            self.assertEqual([], [pid for pid in pids if not is_gone(pid)])
            self.assertEqual(set(), self.pids())

    def pids(self) -> set[int]:
        return {each.it.child.pid
                for each in self.supervisor.children.values()
                if each.it.child is not None}

    def process(self, name: str) -> Any:
        process = self.supervisor.children[name].it.child
        assert process is not None
        return process

    def up(self) -> list[str]:
        """The names of those that run."""
        return sorted(name for name, each in self.supervisor.children.items()
                      if each.it.is_up())


class StartTests(LifeTestCase):

    def test_nothing_is_declared(self) -> None:
        self.load('')
        with self.assertPutBack(), self.running():
            pass

    def test_eager_ones_in_the_order_in_which_they_require_each_other(
            self) -> None:
        # Declared in another one.
        self.load(self.an_app('c', requires='b', **EAGER)
                  + self.an_executor('d', requires='c a', **EAGER)
                  + self.an_executor('b', requires='a', **EAGER)
                  + self.an_app('a', **EAGER))
        with self.running():
            self.assertEqual([f'{name} started' for name in 'abcd'],
                             self.notes)
            self.assertEqual([*'abcd'], self.up())

    def test_each_is_ready_before_those_that_require_it(self) -> None:
        for a in (self.an_app, self.an_executor):
            with self.subTest(a):
                (self.dir / 'notes').unlink(missing_ok=True)
                self.load(a('a', "note('waits')\nwait()\nnote('is ready')\n",
                            **EAGER)
                          + self.an_executor('b', requires='a', **EAGER))
                with ThreadPoolExecutor(1) as threads:
                    threads.submit(lambda: (until(
                        lambda: 'a waits' in self.notes), self.let_child_go()))
                    with self.running():
                        self.assertEqual(
                            ['a started', 'a waits', 'a is ready',
                             'b started'], self.notes)

    def test_side_by_side(self) -> None:
        for name in ('one', 'two'):
            os.mkfifo(self.dir / name)
        # Each waits for the other one, so that none can be the first.
        one, two = (str(self.dir / name) for name in ('one', 'two'))
        self.load(
            self.an_executor('a', timeout=str(DEADLINE), **EAGER,
                             body=f'open({one!r}, "w")\nopen({two!r})')
            + self.an_app('b', start_timeout=str(DEADLINE), **EAGER,
                          body=f'open({one!r})\nopen({two!r}, "w")'))
        with self.running():
            self.assertEqual(['a', 'b'], self.up())

    def test_lazy_ones_are_not_started(self) -> None:
        self.load(self.an_app('a') + self.an_executor('b')
                  + self.an_executor('c', start='lazy')
                  + self.an_app('d', **EAGER))
        with self.running():
            self.assertEqual(['d started'], self.notes)

    def test_lazy_ones_that_an_eager_one_requires(self) -> None:
        self.load(self.an_app('a') + self.an_executor('b', requires='a')
                  + self.an_app('c', requires='b', **EAGER)
                  + self.an_app('d'))
        with self.running():
            self.assertEqual(['a started', 'b started', 'c started'],
                             self.notes)

    def test_what_runs_already_is_left_as_it_is(self) -> None:
        self.load(self.an_app('a', **EAGER) + self.an_executor('b', **EAGER))
        for each in self.supervisor.children.values():
            each.it.start()
        before = self.pids()
        with self.running():
            self.assertEqual(before, self.pids())

    def test_a_daemon(self) -> None:
        path = str(self.dir / 'sock')
        self.load('<runner:executor ' + attributes(
            name='a', type='unix', socket_name=path, start='eager',
            command=self.noting('a', f'''
                def serve():
                    global sock
                    os.setsid()
                    note(os.getpid())
                    sock = listen({path!r})
                fork(serve)
                ''')) + ' />')
        with self.running():
            pid = int(self.notes[-1].split()[-1])
            self.assertEqual(['a'], self.up())
            self.assertFalse(is_gone(pid))
        self.assertTrue(is_gone(pid))


class StopTests(LifeTestCase):

    def test_in_reverse_order(self) -> None:
        self.load(self.an_app('a', **EAGER)
                  + self.an_executor('b', TAKES_ITS_TIME, requires='a',
                                     **EAGER)
                  + self.an_app('c', TAKES_ITS_TIME, requires='b', **EAGER)
                  + self.an_executor('d', TAKES_ITS_TIME, requires='c a',
                                     **EAGER))
        with self.running():
            pass
        self.assertEqual([f'{name} ended' for name in 'dcba'],
                         self.notes[4:])

    def test_side_by_side(self) -> None:
        for name in ('one', 'two'):
            os.mkfifo(self.dir / name)
        one, two = (str(self.dir / name) for name in ('one', 'two'))
        ending = ('def meet(signum, frame):\n    {}; {}\n    end()\n'
                  'signal.signal(signal.SIGTERM, meet)\n')
        self.load(
            self.an_executor('a', ending.format(
                f'open({one!r}, "w")', f'open({two!r})'), **EAGER)
            + self.an_app('b', ending.format(
                f'open({one!r})', f'open({two!r}, "w")'), **EAGER))
        with self.running():
            pass
        self.assertEqual({'a ended', 'b ended'}, {*self.notes[2:]})

    def test_one_that_ignores_the_signal_is_killed_in_time(self) -> None:
        # Neither may take its own time, which is an hour for the executor.
        self.load(self.an_executor('a', STUBBORN, **EAGER)
                  + self.an_app('b', STUBBORN, stop_timeout='3600', **EAGER))
        with self.assertNoLogs('gocept.runner.supervisor'), self.running(0.2):
            processes = [self.process(name) for name in 'ab']
            began = time.monotonic()
        self.assertLess(time.monotonic() - began, DEADLINE / 2)
        self.assertEqual([(-signal.SIGKILL, True)] * 2, [
            (each.returncode, each.killed) for each in processes])

    def test_it_does_not_take_the_time_of_what_it_requires(self) -> None:
        self.load(self.an_app('a', TAKES_ITS_TIME, **EAGER)
                  + self.an_executor('b', STUBBORN, requires='a', **EAGER)
                  + self.an_executor('c', STUBBORN, requires='a', **EAGER))
        with self.running(6):
            a, b = self.process('a'), self.process('b')
        self.assertTrue(b.killed)
        self.assertEqual((False, 0), (a.killed, a.returncode))
        self.assertIn('a ended', self.notes)

    def test_one_deadline_for_all(self) -> None:
        names = 'abcdef'
        self.load(''.join(
            self.an_executor(name, STUBBORN, requires=' '.join(
                names[:number]), **EAGER)
            for number, name in enumerate(names)))
        with self.running(0.6):
            began = time.monotonic()
        self.assertLess(time.monotonic() - began, DEADLINE / 2)

    def test_who_ends_soon_leaves_its_time_to_the_others(self) -> None:
        # 'd' and 'c' end at once, so that 'b' may have half of all.
        self.load(self.an_app('a', **EAGER)
                  + self.an_executor('b', TAKES_ITS_TIME.replace('0.2', '2.2'),
                                     requires='a', **EAGER)
                  + self.an_executor('c', requires='b', **EAGER)
                  + self.an_executor('d', requires='c', **EAGER))
        with self.running(8):
            b = self.process('b')
        self.assertFalse(b.killed)

    def test_no_time_at_all(self) -> None:
        self.load(self.an_app('a', STUBBORN, **EAGER)
                  + self.an_executor('b', STUBBORN, **EAGER))
        with self.running(0):
            pass

    def test_time_without_end(self) -> None:
        self.load(self.an_app('a', TAKES_ITS_TIME, **EAGER)
                  + self.an_executor('b', TAKES_ITS_TIME, **EAGER))
        with self.running(float('inf')):
            pass
        self.assertEqual({'a ended', 'b ended'}, {*self.notes[2:]})

    def test_aliases_that_code_has_started(self) -> None:
        self.load(self.an_executor('a')
                  + '<runner:app name="b" command="cat" requires="a" />')
        with self.running():
            self.runner.start('b', 'another')
            self.runner.start('b', 'and another')
            self.runner.add('c', 'cat')
            self.runner.start('c')
            processes = [self.runner.get_process(alias) for alias in (
                'another', 'and another', 'c')]
            self.assertEqual(['a'], self.up())
        self.assertEqual([-signal.SIGTERM] * 3,
                         [each.returncode for each in processes])
        self.assertEqual(['a started', 'a ended'], self.notes)
        self.assertEqual([], self.runner.aliases())

    def test_aliases_end_before_what_is_declared(self) -> None:
        self.load(self.an_executor('a', **EAGER)
                  + self.an_executor('b', requires='a', **EAGER))
        with self.running():
            self.runner.add('c', self.noting(
                'c', TAKES_ITS_TIME + "say('ready')\npause()"))
            self.runner.start('c')
            self.runner.get_channel('c').read_until(b'ready\n', DEADLINE)
        self.assertEqual('a ended', self.notes[-1])
        self.assertEqual({'b ended', 'c ended'}, {*self.notes[-3:-1]})

    def test_many_apps_are_ended_by_one_look_through_all_processes(
            self) -> None:
        self.load(''.join(
            f'<runner:app name="{name}" command="cat" start="eager" />'
            for name in 'abcde'))
        with looks_for_marks() as looks:
            with self.running():
                looks.assert_not_called()
        looks.assert_called_once()

    def test_an_alias_that_is_called_as_an_executor_is(self) -> None:
        self.load(self.an_executor('a') + self.an_executor('b', **EAGER)
                  + '<runner:app name="c" command="sleep 100" />')
        with self.running():
            for alias in 'ab':
                self.runner.start('c', alias)
            processes = [self.runner.get_process(alias) for alias in 'ab']
        self.assertEqual([-signal.SIGTERM] * 2,
                         [each.returncode for each in processes])
        self.assertEqual(['b started', 'b ended'], self.notes)

    def test_five_apps_with_one_look_at_all_processes(self) -> None:
        self.load(''.join(self.an_app(name, **EAGER) for name in 'abcde'))
        with looks_for_marks() as looks:
            with self.running():
                looks.assert_not_called()
        looks.assert_called_once()
        self.assertEqual(5, len(self.notes[5:]))

    def test_their_descendants(self) -> None:
        self.load(self.an_app('a', 'note(fork(ignore))', **EAGER)
                  + self.an_executor('b', 'note(fork(os.setsid))', **EAGER))
        with self.running(1):
            pids = [int(note.split()[1]) for note in self.notes
                    if note.split()[1].isdecimal()]
            self.assertEqual(2, len(pids))
        self.assertTrue(all(map(is_gone, pids)))

    def test_one_that_has_ended_before(self) -> None:
        self.load(self.an_app('a', **EAGER) + self.an_executor('b', **EAGER))
        with self.running():
            for name in 'ab':
                self.process(name).terminate()

    def test_other_threads_tell_the_ends(self) -> None:
        self.load(self.an_app('a', **EAGER) + self.an_executor('b', **EAGER))
        for name in 'ab':
            slow, told = Slow(self), []

            def hear(event: object) -> None:
                if isinstance(event, ChildEnded):
                    if event.name == name:
                        slow()
                    told.append(event.name)
            with hearing(hear):
                with self.running():
                    self.process(name).send_signal(signal.SIGTERM)
                    slow.wait_entered()
                self.assertEqual(['a', 'b'], sorted(told))

    def test_those_that_end_badly_are_logged(self) -> None:
        self.load(self.an_executor('a', ENDS_BADLY, **EAGER)
                  + self.an_executor('b', ENDS_BADLY, **EAGER)
                  + self.an_executor('c', ENDS_BADLY, requires='b', **EAGER)
                  + self.an_executor('d', **EAGER))
        with self.assertLogs('gocept.runner.supervisor', 'WARNING') as logs:
            with self.running():
                pass
        self.assertEqual(3, len(logs.output), logs.output)
        for name in 'abc':
            self.assertTrue(any(
                f'{name}.py' in line and 'non-zero code: 5' in line
                for line in logs.output), logs.output)

    def test_an_exception_inside(self) -> None:
        for error in (RuntimeError('mine'), SystemExit(3),
                      KeyboardInterrupt()):
            with self.subTest(error):
                self.load(self.an_app('a', **EAGER)
                          + self.an_executor('b', requires='a', **EAGER))
                with self.assertRaises(type(error)) as caught:
                    with self.running():
                        raise error
                self.assertIs(error, caught.exception)
                self.assertEqual(['b ended', 'a ended'], self.notes[-2:])

    def test_what_cannot_be_ended(self) -> None:
        # As it ignores what it would be killed with.
        self.load(
            self.an_app('a', STUBBORN, kill_signal='TERM', **EAGER)
            + self.an_executor('b', STUBBORN, kill_signal='TERM', **EAGER)
            + self.an_executor('c', **EAGER))
        with mock.patch.object(ending, 'KILL_TIMEOUT', 0.05), self.assertLogs(
                'gocept.runner.supervisor', 'WARNING') as logs:
            with self.supervisor.running(2):
                app, executor = self.process('a'), self.process('b')
                began = time.monotonic()
            # Nobody has waited for it once more, as long as it may take.
            self.assertLess(time.monotonic() - began, app.stop_timeout)
            try:
                self.assertEqual(1, len(logs.output))
                for each in (app, executor):
                    self.assertIsNone(each.poll())
                    self.assertIn(str(each.pid), logs.output[0])
                self.assertIn('c ended', self.notes)
            finally:
                for each in (app, executor):
                    each.terminate(signal.SIGKILL)
        self.supervisor.children['b'].it.kill()

    def test_the_poller_and_what_is_registered(self) -> None:
        self.load('<runner:app name="a" command="cat" start="eager" />')
        poller = zope.component.getUtility(IPoller)
        read, write = os.pipe()
        self.addCleanup(os.close, write)
        mine = PipeChannel(read)
        with self.running():
            channel = self.runner.get_channel('a')
            for each in (mine, channel):
                poller.register(each)
            channel.write(b'news')
            self.assertEqual([(b'news', channel)], poller.poll(DEADLINE))
        self.assertTrue(mine.closed and channel.closed)
        # It can be used in another life.
        self.assertEqual([], poller.poll(0))
        with self.running():
            pass
        self.assertEqual({}, poller._opened)


class RestartTests(LifeTestCase):

    ALWAYS = {'restart': 'always', 'restart_delay': '0',
              'restart_limit': '1000', **EAGER}

    def test_none_while_it_is_ended(self) -> None:
        self.load(self.an_app('a', **self.ALWAYS))
        with self.running():
            pass
        self.assertEqual(['a started', 'a ended'], self.notes)

    def test_none_after_a_start_that_has_failed(self) -> None:
        self.load(self.an_app('a', **self.ALWAYS) + (
            '<runner:executor name="bad" command="no-such-program" '
            'start="eager" requires="a" />'))
        with self.assertLogs('gocept.runner.spawn') as logs:
            with self.assertRaises(CannotStart), self.running():
                self.fail('not reached')
        self.assertIn('Started', logs.output[0])
        self.assertNotIn('restarting', ' '.join(logs.output))

    def test_none_of_one_that_ends_while_others_are_ended(self) -> None:
        self.load(
            self.an_app('a', **self.ALWAYS)
            + self.an_executor('b', WAITS_TO_END, requires='a', **EAGER))
        def end_a(process: Any) -> bool:
            """Whether it stays so."""
            until(lambda: 'b told' in self.notes)
            process.send_signal(signal.SIGKILL)
            until(lambda: process.returncode is not None)
            # What follows its end happens in this thread.
            for _ in range(2):
                done = threading.Event()
                background().register(Timer(0), lambda *due: done.set())
                done.wait(DEADLINE)
            stays = process is self.process('a')
            self.let_child_go()
            return stays
        with ThreadPoolExecutor(1) as threads:
            with self.running():
                stays = threads.submit(end_a, self.process('a'))
            self.assertTrue(stays.result(DEADLINE))
        self.assertEqual('b ended', self.notes[-1])
        self.assertEqual(1, self.notes.count('a started'))

    def test_none_after_the_end_of_one_that_waits_for_it(self) -> None:
        self.load(self.an_app('a', **{
            **self.ALWAYS, 'restart_delay': '3600'}))
        with self.assertLogs('gocept.runner.spawn', 'WARNING') as logs:
            with self.running():
                self.process('a').send_signal(signal.SIGKILL)
                until(lambda: logs.output)
        self.assertIn('restarting in ', logs.output[0])
        self.assertEqual(['a started'], self.notes)

    def test_one_that_was_restarted_is_ended(self) -> None:
        self.load(self.an_app('a', **self.ALWAYS))
        with self.running():
            first = self.process('a')
            first.send_signal(signal.SIGKILL)
            until(lambda: self.process('a') is not first)
            second = self.process('a')
            until(lambda: self.notes.count('a started') == 2)
        self.assertIsNotNone(second.returncode)
        self.assertEqual(['a started', 'a started'], self.notes[:2])


class FailingStartTests(LifeTestCase):

    def assertFails(self, *expected: str) -> CannotStart:
        with self.assertRaises(CannotStart) as caught:
            with self.running():
                self.fail('it runs')
        for text in expected:
            self.assertIn(text, str(caught.exception))
        self.assertEqual(71, caught.exception.status)
        self.assertEqual([], self.up())
        return caught.exception

    def test_one_that_ends(self) -> None:
        self.load(self.an_executor('bad', "say('sorry')\nos._exit(3)",
                                   **EAGER))
        error = self.assertFails(
            "executor 'bad': ", 'non-zero code: 3', 'sorry')
        self.assertIsInstance(error.__cause__, ProcessExitedWithError)

    def test_one_that_takes_too_long(self) -> None:
        self.load(self.an_executor('bad', 'pause()', timeout='0.05', **EAGER))
        error = self.assertFails("executor 'bad': ",
                                 'timed out after 0.05 seconds')
        self.assertIsInstance(error.__cause__, TimeoutExpired)
        self.load(self.an_app('bad', 'pause()', start_timeout='0.05', **EAGER))
        self.assertFails("app 'bad': ", 'has not listened on')

    def test_a_program_that_is_not_there(self) -> None:
        for kind in ('app', 'executor'):
            self.load(f'<runner:{kind} name="bad" start="eager"'
                      ' command="/no/such/program" />')
            self.assertFails(f"{kind} 'bad': ", '/no/such/program')

    def test_what_was_started_before_is_stopped(self) -> None:
        self.load(
            self.an_app('a', **EAGER)
            + self.an_executor('b', requires='a', **EAGER)
            + self.an_executor('bad', 'os._exit(3)', requires='b', **EAGER)
            + self.an_executor('after', requires='bad', **EAGER))
        self.assertFails("executor 'bad': ")
        self.assertEqual(['a started', 'b started', 'bad started'],
                         self.notes[:3])
        self.assertEqual({'a ended', 'b ended'}, {*self.notes[3:]})

    def test_nobody_waits_for_the_others(self) -> None:
        self.load(
            self.an_executor('bad', 'os._exit(3)', **EAGER)
            + self.an_executor('slow', 'pause()', **EAGER)
            + self.an_app('slower', 'pause()', start_timeout='3600', **EAGER))
        self.assertFails("executor 'bad': ")

    def test_those_that_ignore_the_signal_are_killed_in_time(self) -> None:
        self.load(self.an_executor('a', STUBBORN, **EAGER)
                  + self.an_executor('bad', 'os._exit(3)', requires='a',
                                     **EAGER))
        began = time.monotonic()
        with self.assertRaises(CannotStart):
            with self.running(0.1):
                pass
        self.assertLess(time.monotonic() - began, DEADLINE / 2)

    def test_one_that_ends_badly_for_that(self) -> None:
        self.load(self.an_executor('good', ENDS_BADLY, **EAGER)
                  + self.an_executor('bad', 'os._exit(3)', requires='good',
                                     **EAGER))
        with self.assertLogs('gocept.runner.supervisor', 'WARNING') as logs:
            self.assertFails("executor 'bad': ", 'non-zero code: 3')
        self.assertIn('good.py', logs.output[0])
        self.assertIn('non-zero code: 5', logs.output[0])

    def test_those_that_were_started_end_in_order(self) -> None:
        self.load(self.an_app('a', **EAGER)
                  + self.an_executor('b', TAKES_ITS_TIME, requires='a',
                                     **EAGER)
                  + self.an_executor('bad', 'os._exit(3)', requires='b',
                                     **EAGER))
        self.assertFails("executor 'bad': ")
        self.assertEqual(['b ended', 'a ended'], self.notes[-2:])

    def test_one_that_a_lazy_one_requires_is_none(self) -> None:
        self.load(self.an_executor('bad', 'os._exit(3)')
                  + self.an_app('a', requires='bad'))
        with self.running():
            self.assertEqual([], self.notes)

    def test_a_start_after_one_that_failed(self) -> None:
        self.load(self.an_app('a', **EAGER) + self.an_executor(
            'b', f'os.path.exists({str(self.dir / "mended")!r})'
            ' or os._exit(3)', requires='a', **EAGER))
        self.assertFails("executor 'b'")
        self.write('mended', '')
        with self.running():
            self.assertEqual(['a', 'b'], self.up())


class SignalTests(LifeTestCase):

    def load_slow(self) -> None:
        self.load(
            self.an_app('a', **EAGER)
            + self.an_executor('b', "note('waits')\npause()", requires='a',
                               **EAGER)
            + self.an_app('c', "note('waits')\npause()", requires='a',
                          start_timeout='3600', **EAGER))

    def send_when(self, signum: int, condition: Callable[[], Any]) -> None:
        def send() -> None:
            until(condition)
            os.kill(os.getpid(), signum)
        thread = threading.Thread(target=send)
        thread.start()
        self.addCleanup(thread.join)

    def test_during_the_start(self) -> None:
        for signum in SIGNALS:
            with self.subTest(signum):
                (self.dir / 'notes').unlink(missing_ok=True)
                self.load_slow()
                self.send_when(signum, lambda: {'b waits', 'c waits'} <= {
                    *self.notes})
                before = {each: signal.getsignal(each) for each in SIGNALS}
                with self.assertRaises(Terminated) as caught, Alarms():
                    with self.running():
                        self.fail('it runs')
                self.assertEqual((signum, 128 + signum), (
                    caught.exception.signum, caught.exception.code))
                self.assertEqual(before, {
                    each: signal.getsignal(each) for each in SIGNALS})
                self.assertIn('a ended', self.notes)

    def test_inside(self) -> None:
        self.load(self.an_app('a', **EAGER))
        before = {each: signal.getsignal(each) for each in SIGNALS}
        with self.running():
            with current_shutdown() as shutdown:
                self.assertFalse(shutdown.requested)
                os.kill(os.getpid(), signal.SIGTERM)
                until(lambda: shutdown.requested)
                self.assertEqual(signal.SIGTERM, shutdown.signum)
                # A second one ends the process.
                self.assertEqual({signal.SIG_DFL}, {
                    signal.getsignal(each) for each in SIGNALS})
        self.assertEqual(before, {
            each: signal.getsignal(each) for each in SIGNALS})

    def test_a_loop_inside_knows_of_one_that_came_before_it(self) -> None:
        self.load('')
        ticks: list[None] = []
        conf = zopeconf.load(self.zope_conf())
        with Toolkit().opened(conf) as root, self.running():
            os.kill(os.getpid(), signal.SIGTERM)
            MainLoop(root, 3600, lambda: ticks.append(None))()
        self.assertEqual([], ticks)

    def test_two_pollers_are_open_in_a_loop(self) -> None:
        # That of the worker, and that of the background thread.
        self.load(self.an_app('a', **EAGER))
        pollers: list[int] = []

        def work() -> None:
            pollers.append([*open_descriptors().values()].count(
                'anon_inode:[eventpoll]'))
            if len(pollers) == 3:
                loop.stop()
        conf = zopeconf.load(self.zope_conf())
        with Toolkit().opened(conf) as root, self.running():
            loop = MainLoop(root, 0.001, work)
            loop()
        self.assertEqual([2] * 3, pollers)

    def test_in_another_thread_there_are_no_handlers(self) -> None:
        self.load(self.an_app('a', **EAGER))
        before = {each: signal.getsignal(each) for each in SIGNALS}

        def inside() -> Any:
            with self.running():
                return {each: signal.getsignal(each) for each in SIGNALS}
        with ThreadPoolExecutor(1) as threads:
            self.assertEqual(before, threads.submit(inside).result(DEADLINE))


class AgainTests(LifeTestCase):

    def test_a_second_life(self) -> None:
        self.load(
            self.an_app('a', **EAGER)
            + self.an_executor('b', requires='a', **EAGER)
            + '<runner:executor ' + attributes(
                name='c', type='tcp', host='127.0.0.1', port='0',
                requires='b', start='eager', command=self.noting(
                    'c', 'sock = listen(int(sys.argv[1]))\npause()')
                + ' {port}') + ' />')
        pids = []
        for _ in range(3):
            with self.running():
                self.assertEqual(['a', 'b', 'c'], self.up())
                self.runner.get_channel('a').write(b'.')
                pids += self.pids()
        self.assertEqual(9, len({*pids}))
        self.assertEqual(
            ['a started', 'b started', 'c started',
             'c ended', 'b ended', 'a ended'] * 3, self.notes)

    def test_in_a_process_that_has_read_its_zcml(self) -> None:
        self.write('site.zcml', '').write_text(zcml(
            SITE + self.an_app('a', **EAGER)
            + self.an_executor('b', requires='a', **EAGER)))
        conf = self.zope_conf(f'''
            site-definition {self.dir}/site.zcml
            <eventlog>
            </eventlog>
            ''')
        for count in range(1, 3):
            with init(None, conf):
                self.assertEqual(
                    count, self.notes.count('b started'))
            self.assertEqual('a ended', self.notes[-1])
            self.assertEqual(count, self.notes.count('b ended'))

    def test_one_inside_another(self) -> None:
        self.load(self.an_app('a', **EAGER))
        with self.running():
            process = self.process('a')
            with self.supervisor.running(DEADLINE):
                self.assertIs(process, self.process('a'))
            self.assertIsNone(process.poll())
        self.assertEqual(['a started', 'a ended'], self.notes)


class ThreadTests(LifeTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.threads = ThreadPoolExecutor(3)
        self.addCleanup(self.threads.shutdown)

    def inside(self) -> tuple['Future[Any]', threading.Event, threading.Event]:
        """A thread that is inside until the event is set."""
        entered, leave = threading.Event(), threading.Event()
        self.addCleanup(leave.set)

        def be_inside() -> None:
            with self.supervisor.running(DEADLINE):
                entered.set()
                leave.wait(DEADLINE)
        return self.threads.submit(be_inside), entered, leave

    def test_the_last_one_out_stops(self) -> None:
        self.load(self.an_app('a', **EAGER))
        other, entered, leave = self.inside()
        self.assertTrue(entered.wait(DEADLINE))
        process = self.process('a')
        with self.supervisor.running(DEADLINE):
            self.assertIs(process, self.process('a'))
        self.assertIsNone(process.poll())
        leave.set()
        other.result(DEADLINE)
        self.assertEqual(['a started', 'a ended'], self.notes)
        self.assertEqual(0, process.poll())

    def test_also_if_that_is_this_one(self) -> None:
        self.load(self.an_app('a', **EAGER))
        other, entered, leave = self.inside()
        self.assertTrue(entered.wait(DEADLINE))
        with self.running():
            leave.set()
            other.result(DEADLINE)
            self.assertEqual(['a'], self.up())

    def test_who_comes_while_others_start_waits_for_that(self) -> None:
        self.load(self.an_app('a', 'wait()', **EAGER)
                  + self.an_executor('b', 'wait()', **EAGER))
        _, first_entered, _ = self.inside()
        until(lambda: len(self.notes) == 2)
        _, second_entered, _ = self.inside()
        self.assertFalse(second_entered.wait(0.1))
        self.let_child_go()
        self.let_child_go()
        for entered in (first_entered, second_entered):
            self.assertTrue(entered.wait(DEADLINE))
        self.assertEqual(2, len(self.notes))

    def test_who_comes_while_a_subscriber_is_told_of_a_start(self) -> None:
        # The subscriber may even wait for who comes.
        inside: list[str] = []

        def be_inside() -> None:
            with self.supervisor.running(DEADLINE):
                inside.extend(self.up())

        def wait_for_another(event: Any) -> None:
            if isinstance(event, ChildReady):
                self.threads.submit(be_inside).result(DEADLINE)
        self.load(self.an_executor('a', **EAGER))
        zope.event.subscribers.append(wait_for_another)
        self.addCleanup(zope.event.subscribers.remove, wait_for_another)
        with self.assertNoLogs('gocept.runner.events'), self.running():
            pass
        self.assertEqual(['a'], inside)

    def test_who_comes_while_it_is_stopped_waits_for_that(self) -> None:
        self.load(self.an_app('a', WAITS_TO_END, stop_timeout=str(DEADLINE),
                              **EAGER))
        first, first_entered, leave = self.inside()
        self.assertTrue(first_entered.wait(DEADLINE))
        leave.set()
        until(lambda: 'a told' in self.notes)
        _, second_entered, _ = self.inside()
        self.assertFalse(second_entered.wait(0.1))
        self.let_child_go()
        self.assertTrue(second_entered.wait(DEADLINE))
        first.result(DEADLINE)
        self.assertEqual(['a'], self.up())
        self.assertEqual(['a started', 'a told', 'a ended', 'a started'],
                         self.notes)
        self.let_child_go()  # as it is told once more

    def test_a_start_that_fails_beside_another_thread(self) -> None:
        self.load(self.an_app('a', **EAGER) + self.an_executor('b', **EAGER))
        other, entered, leave = self.inside()
        self.assertTrue(entered.wait(DEADLINE))
        b = self.supervisor.children['b'].it
        assert isinstance(b, SimpleExecutor)
        b.stop()
        with mock.patch.object(b, '_set_timeout', side_effect=OSError('no')):
            with self.assertRaisesRegex(errors.CannotStart, "'b': no"):
                with self.supervisor.running(DEADLINE):
                    self.fail('it runs')
        self.assertEqual(['a'], self.up())  # which the other one uses
        leave.set()
        other.result(DEADLINE)
        self.assertEqual([], self.up())


class ForkTests(LifeTestCase):

    def test_a_fork_ends_nothing(self) -> None:
        self.load(self.an_app('a', **EAGER) + self.an_executor('b', **EAGER))
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.supervisor.running(DEADLINE))
            self.runner.add('cat', 'cat')
            self.runner.start('cat')
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    with self.assertNoLogs('gocept.runner', 'WARNING'):
                        stack.close()
                    status = 0
                finally:
                    os._exit(status)
            self.assertEqual(0, os.waitpid(pid, 0)[1])
            self.assertEqual(['a', 'b'], self.up())
            self.assertTrue(self.runner.running('cat'))
        self.assertEqual([], self.up())
