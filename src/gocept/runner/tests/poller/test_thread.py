import gc
import logging
import os
import sys
import threading
from unittest import mock

from gocept.runner.errors import RunnerError, ShortageError
from gocept.runner.logs import Log
from gocept.runner.poller import Timer, background, thread
from gocept.runner.tests.declaring import DeclaringTestCase
from gocept.runner.tests.poller.test_poller import Fallback
from gocept.runner.tests.streams import StreamTestCase, wait_readable
from gocept.runner.tests.support import DEADLINE, TestCase, settle
from gocept.runner.waits.threads import in_background, refuse_to_wait

LARGE = bytes(2 ** 22)

LOGGER = 'gocept.runner.poller'


class BackgroundTestCase(StreamTestCase):

    def setUp(self):
        self.end_background()  # that of tests before
        super().setUp()
        self.addCleanup(self.end_background)

    def end_background(self):
        if thread._background is not None:
            thread._background.close()
        for each in background_threads():
            each.join(DEADLINE)


class BackgroundTests(BackgroundTestCase):

    def test_one_thread(self):
        pollers, barrier = [], threading.Barrier(8)

        def ask():
            barrier.wait()
            pollers.append(background())
        threads = [self.start(ask) for _ in range(8)]
        for each in threads:
            each.join()
        self.assertEqual(1, len({*pollers}))
        [daemon] = background_threads()
        self.assertTrue(daemon.daemon)
        self.assertIs(background(), pollers[0])

    def test_it_calls_and_sends(self):
        channel, peer = self.open_pipes()
        called = threading.Event()
        names = []

        def callback(data, channel):
            names.append(threading.current_thread().name)
            called.set()
        background().register(channel, callback)
        peer.send(b'x')
        self.assertTrue(called.wait(DEADLINE))
        self.assertEqual(['gocept.runner.poller'], names)
        channel.write(LARGE)
        self.assertEqual(len(LARGE), len(peer.receive(len(LARGE))))

    def test_sends_for_one_that_is_read_by_another(self):
        channel, peer = self.open_sockets()
        background().send_for(channel)
        channel.write(LARGE)
        self.assertEqual(len(LARGE), len(peer.receive(len(LARGE))))
        peer.send(b'x')
        wait_readable(channel)
        self.assertEqual(b'x', channel.read())

    def test_again_after_it_was_closed(self):
        first = background()
        [daemon] = background_threads()
        first.close()
        daemon.join(DEADLINE)
        self.assertFalse(daemon.is_alive())
        second = background()
        self.assertIsNot(first, second)
        self.assertEqual(1, len(background_threads()))
        timer, called = Timer(0), threading.Event()
        second.register(timer, lambda *result: called.set())
        self.assertTrue(called.wait(DEADLINE))

    def test_a_thread_that_cannot_be_started_is_started_later(self):
        with mock.patch('threading.Thread.start', side_effect=RuntimeError(
                "can't start new thread")):
            with self.assertRaisesRegex(ShortageError, 'new thread'):
                background()
        called = threading.Event()
        background().register(Timer(0), lambda *result: called.set())
        self.assertTrue(called.wait(DEADLINE))

    def test_its_end_is_quiet(self):
        failures = []
        with mock.patch.object(threading, 'excepthook', failures.append):
            for _ in range(50):
                background().close()
                for each in background_threads():
                    each.join(DEADLINE)
        self.assertEqual([], failures)

    def test_a_callback_cannot_end_it(self):
        def leave(*result):
            raise SystemExit
        poller, called = background(), threading.Event()
        with self.assertLogs(LOGGER, 'ERROR') as logs:
            poller.register(Timer(0), leave)
            poller.register(Timer(0.001), lambda *result: called.set())
            self.assertTrue(called.wait(DEADLINE))
        self.assertIn('callback of Timer', logs.output[0])
        self.assertIs(poller, background())


    def test_whatever_a_callback_raises_the_others_go_on(self):
        # Several items for one callback: none of them is lost.
        channel, peer = self.open_pipes(buffering='line')
        got, done = [], threading.Event()

        def callback(line, channel):
            got.append(line)
            if line == b'4\n':
                done.set()
            raise (SystemExit, KeyboardInterrupt, GeneratorExit,
                   MemoryError, BaseException)[len(got) - 1]
        with self.assertLogs(LOGGER, 'ERROR') as logs:
            background().register(channel, callback)
            peer.send(b''.join(b'%d\n' % number for number in range(5)))
            self.assertTrue(done.wait(DEADLINE))
            settle()
        self.assertEqual([b'%d\n' % number for number in range(5)], got)
        self.assertEqual(5, len(logs.output))
        self.assertEqual(1, len(background_threads()))

    def test_a_log_handler_that_raises_does_not_end_it(self):
        class Broken(logging.Handler):
            def emit(self, record):
                raise SystemExit
        handler = Broken()
        logger = logging.getLogger(LOGGER)
        logger.addHandler(handler)
        self.addCleanup(logger.removeHandler, handler)
        background()
        daemon, = background_threads()
        with (mock.patch.object(logger, 'propagate', False),
              mock.patch.object(Log, 'has_failed', True)):  # it says no more
            for _ in range(3):
                background().register(Timer(0), lambda *result: 1 / 0)
                thread.hand_over(lambda: 1 / 0)
                settle()
        self.assertEqual([daemon], background_threads())

    def test_nobody_else_polls_it(self):
        with self.assertRaisesRegex(RunnerError, 'only the background'):
            background().poll(0)
        with self.assertRaisesRegex(RunnerError, 'does not pause'):
            background().pause(0)

    def test_what_would_wait_for_itself_is_an_error(self):
        answers, done = [], threading.Event()

        def callback(*result):
            answers.append(in_background())
            try:
                refuse_to_wait('start()')
            except RunnerError as error:
                answers.append(str(error))
            done.set()
        refuse_to_wait('start()')
        self.assertFalse(in_background())
        background().register(Timer(0), callback)
        self.assertTrue(done.wait(DEADLINE))
        self.assertTrue(answers[0])
        self.assertIn('start() would wait in the background thread',
                      answers[1])

    def test_a_child_that_it_forks_may_wait(self):
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        self.addCleanup(os.close, write)

        def callback(*result):
            pid = os.fork()
            if not pid:
                os.write(write, b'%d' % in_background())
                os._exit(0)
            os.waitpid(pid, 0)
        background().register(Timer(0), callback)
        self.assertEqual(b'0', os.read(read, 1))


class FallbackBackgroundTests(Fallback, BackgroundTests):
    pass


class HandOverTests(BackgroundTestCase):

    def test_the_thread_calls_it(self):
        background()
        names, called = [], threading.Event()
        thread.hand_over(lambda: (
            names.append(threading.current_thread().name), called.set()))
        self.assertTrue(called.wait(DEADLINE))
        self.assertEqual(['gocept.runner.poller'], names)

    def test_no_thread_is_begun_but_the_next_one_calls_it(self):
        called = threading.Event()
        thread.hand_over(called.set)
        self.assertEqual([], background_threads())
        background()
        self.assertTrue(called.wait(DEADLINE))

    def test_one_that_fails_is_logged_and_the_next_is_called(self):
        called = threading.Event()
        with self.assertLogs(LOGGER, 'ERROR') as logs:
            thread.hand_over(lambda: 1 / 0)
            thread.hand_over(called.set)
            background()
            self.assertTrue(called.wait(DEADLINE))
        self.assertIn('ZeroDivisionError', logs.output[0])

    def test_in_a_finalizer_under_the_locks_it_could_need(self):
        poller, called = background(), threading.Event()

        class Cycle:

            def __init__(self):
                self.it = self

            def __del__(self):
                thread.hand_over(called.set)
        with thread._lock, poller._lock:
            Cycle()
            gc.collect()
        self.assertTrue(called.wait(DEADLINE))

    def test_a_forked_child_calls_nothing_of_its_parent(self):
        called = []
        thread.hand_over(lambda: called.append(os.getpid()))
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                thread._call_handed_over()
                os.write(write, b'x' * (1 + len(called)))
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        self.assertEqual(b'x', os.read(read, 2))
        os.close(read)
        os.close(write)
        thread._call_handed_over()
        self.assertEqual([os.getpid()], called)

    def test_not_while_the_interpreter_ends(self):
        with mock.patch.object(sys, 'is_finalizing', lambda: True):
            thread.hand_over(self.fail)
        thread._call_handed_over()


class CountTests(DeclaringTestCase):

    def test_a_worker_with_an_app_has_two_pollers(self):
        conf = self.conf("""
            <runner:app name="cat" command="cat" start="eager"
                        stdin="pipe" stdout="pipe" />
            """)
        program = self.program("""
            import gc
            import sys
            from zope.component import getUtility
            from gocept.runner import Exit, appmain
            from gocept.runner.interfaces import IPoller, IRunner
            from gocept.runner.poller import Poller

            ticks = []

            @appmain(ticks=3600)
            def work():
                channel = getUtility(IRunner).get_channel('cat')
                if not ticks:
                    getUtility(IPoller).register(channel)
                    channel.write(b'x')
                ticks.append([each for each in gc.get_objects()
                              if isinstance(each, Poller)
                              and not each.closed])
                if len(ticks) > 1:
                    print(list(map(len, ticks)))
                    return Exit

            work(None, sys.argv[1])
            """, conf)
        self.assertEqual(0, program.end(), program.output)
        self.assertEqual('[2, 2]\n', program.output)


class ProgramTests(TestCase):

    def test_others_close_all_descriptors_by_their_numbers(self):
        for close in ('background().register(Timer(0), close)',
                      'close()'):  # while the thread waits
            program = self.program(f"""
import os, threading
from gocept.runner.poller import Timer, background
from gocept.runner.process import Process
DEADLINE = {DEADLINE}
closed = threading.Event()
def close(*result):
    os.closerange(3, 100)
    files.extend(open(str(number), 'w') for number in range(12))
    closed.set()
files = []
background()
[thread] = [each for each in threading.enumerate()
            if each is not threading.main_thread()]
done = threading.Event()
background().register(Timer(0), lambda *result: done.set())
done.wait(DEADLINE)
{close}
assert closed.wait(DEADLINE)
if files and {'Timer' in close}:
    thread.join(DEADLINE)
    assert not thread.is_alive()
with Process('true', stdin='null') as child:
    assert child.wait(DEADLINE) == 0
assert not any(os.fstat(each.fileno()).st_size for each in files)
""")
            self.assertEqual(0, program.end(), program.output)

    def test_ends_while_it_is_served(self):
        program = self.program('''
            from gocept.runner.poller import background
            background()
            print('well')
        ''', environment={'PYTHONDEVMODE': '1'})
        self.assertEqual(0, program.end())
        self.assertEqual('well\n', program.output)


def background_threads():
    return [each for each in threading.enumerate()
            if each.name == 'gocept.runner.poller']
