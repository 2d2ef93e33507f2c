import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

from gocept.runner.errors import ShortageError
from gocept.runner.process import forker
from gocept.runner.tests.streams import Alarms
from gocept.runner.tests.support import DEADLINE, TestCase, end_background


def in_a_thread(function):
    """What a call from a thread returns or raises; the thread has ended."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(forker.call, function).result(DEADLINE)


def fail():
    raise ZeroDivisionError('its own')


class CallTests(TestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(end_background)

    def test_the_main_thread_calls_itself(self):
        self.assertIs(threading.main_thread(),
                      forker.call(threading.current_thread))
        with self.assertRaisesRegex(ZeroDivisionError, 'its own'):
            forker.call(fail)

    def test_others_have_one_thread_that_calls(self):
        threads = {in_a_thread(threading.current_thread) for _ in range(3)}
        [thread] = threads
        self.assertEqual('gocept.runner.forker', thread.name)
        self.assertTrue(thread.is_alive())
        # It does not keep the process from its end.
        self.assertTrue(thread.daemon)
        # Nor does it call for the main thread, unless that wants it.
        self.assertIs(thread, forker.call(
            threading.current_thread, also_main=True))

    def test_it_blocks_what_the_caller_blocks(self):
        def blocked():
            return signal.pthread_sigmask(signal.SIG_BLOCK, ())

        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        try:
            self.assertEqual({signal.SIGUSR2}, in_a_thread(blocked))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
        self.assertEqual(set(), in_a_thread(blocked))

    def test_a_signal_handler_interrupts_the_call(self):
        called = []

        def function():
            os.kill(os.getpid(), signal.SIGUSR1)
            interrupted.wait(DEADLINE)
            called.append(1)

        def handler(signum, frame):
            interrupted.set()
            raise InterruptedError

        interrupted = threading.Event()
        self.addCleanup(signal.signal, signal.SIGUSR1,
                        signal.signal(signal.SIGUSR1, handler))
        with self.assertRaises(InterruptedError), Alarms():
            forker.call(function, also_main=True)
        self.assertEqual([1], called)  # nothing is left behind

    def test_there_can_be_no_thread(self):
        with mock.patch('threading.Thread.start',
                        side_effect=RuntimeError("can't start new thread")):
            with self.assertRaisesRegex(ShortageError, "can't start"):
                forker.call(int, also_main=True)
        self.assertEqual(7, forker.call(lambda: 7, also_main=True))

    def test_exceptions_are_raised_where_it_is_called(self):
        for error in ZeroDivisionError('x'), SystemExit(3), KeyboardInterrupt:
            def fail(error=error):
                raise error
            with self.assertRaises(BaseException) as caught:
                in_a_thread(fail)
            self.assertIsInstance(
                caught.exception, error if isinstance(error, type)
                else type(error))
        # It goes on.
        self.assertEqual(7, in_a_thread(lambda: 7))

    def test_many_at_once(self):
        with ThreadPoolExecutor(8) as threads:
            calls = [threads.submit(forker.call, lambda number=number: (
                number, threading.current_thread())) for number in range(100)]
        self.assertEqual(list(range(100)),
                         [call.result()[0] for call in calls])
        self.assertEqual(1, len({call.result()[1] for call in calls}))

    def test_a_call_within_a_call_of_the_main_thread(self):
        self.assertEqual(7, forker.call(lambda: forker.call(lambda: 7)))


class ForkTests(TestCase):

    program_text = '''
        import os
        import threading
        import warnings
        from concurrent.futures import ThreadPoolExecutor
        from gocept.runner.process import forker
        # Of a fork beside threads: it is what is tested.
        warnings.filterwarnings('ignore', 'This process', DeprecationWarning)

        def call():
            with ThreadPoolExecutor(1) as threads:
                return threads.submit(
                    forker.call,
                    lambda: (threading.current_thread(), os.getpid())
                    ).result(60)

        def in_child(check):
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    status = 0 if check() else 2
                finally:
                    os._exit(status)
            _, status = os.waitpid(pid, 0)
            assert status == 0, status

        '''

    def run_program(self, text):
        program = self.program(self.program_text + text)
        self.assertEqual(0, program.end(), program.output)
        self.assertEqual('well\n', program.output)

    def test_a_fork_has_its_own(self):
        self.run_program('''
        thread, pid = call()
        assert pid == os.getpid()

        def another():
            mine, pid = call()
            return (mine is not thread and pid == os.getpid()
                    and call()[0] is mine)
        in_child(another)
        in_child(lambda: in_child(another) or another())
        assert call()[0] is thread
        print('well')
        ''')

    def test_a_fork_while_others_call(self):
        self.run_program('''
        begun, go_on = threading.Event(), threading.Event()

        def hold():
            with forker._lock:
                begun.set()
                go_on.wait()
        threading.Thread(target=hold).start()
        begun.wait()

        def call_beside_others():
            # One of them is given the number of the thread that held it.
            for _ in range(9):
                threading.Thread(
                    target=threading.Event().wait, daemon=True).start()
            return call()[1] == os.getpid()
        in_child(call_beside_others)
        go_on.set()
        # One that is called just now is called once.
        calls = []

        def slow():
            calls.append(os.getpid())
            begun.set()
            go_on.wait()
        begun.clear()
        go_on.clear()
        thread = threading.Thread(target=forker.call, args=[slow])
        thread.start()
        begun.wait()
        in_child(lambda: call()[1] == os.getpid() and len(calls) == 1)
        go_on.set()
        thread.join()
        assert len(calls) == 1
        print('well')
        ''')

    def test_the_end_of_the_program_is_not_held_up(self):
        self.run_program('''
        begun = threading.Event()

        def never():
            begun.set()
            threading.Event().wait()
        threading.Thread(target=forker.call, args=[never],
                         daemon=True).start()
        begun.wait()
        print('well')
        ''')
