import contextlib
import faulthandler
import logging
import os
import re
import signal
import tempfile
import threading
import unittest
from unittest import mock

from ZConfig.components.logger.loghandler import FileHandler

from gocept.runner import signals
from gocept.runner.signals import Shutdown, current_shutdown, handling
from gocept.runner.tests.support import SIGNALS, process_state


class ShutdownTests(unittest.TestCase):

    def test_a_wait_that_nobody_ends(self):
        with Shutdown() as shutdown:
            self.assertFalse(shutdown.wait(0.01))

    def test_a_request_ends_the_wait(self):
        with Shutdown() as shutdown:
            threading.Timer(0.01, shutdown.request).start()
            self.assertTrue(shutdown.wait(3600))
            self.assertTrue(shutdown.wait(3600))

    def test_a_request_holds_until_the_exit(self):
        shutdown = Shutdown()
        shutdown.request(signal.SIGTERM)
        with shutdown:
            self.assertTrue(shutdown.attend())
            self.assertEqual(signal.SIGTERM, shutdown.signum)
        self.assertFalse(shutdown.requested)
        self.assertIsNone(shutdown.signum)

    def test_a_wait_needs_the_poller(self):
        with self.assertRaisesRegex(RuntimeError, 'entered'):
            Shutdown().wait(0)

    def test_what_wakes_but_does_not_end_does_not_shorten_the_wait(self):
        with Shutdown() as shutdown, mock.patch.object(
                signals, '_reopen_logs') as reopen:
            shutdown.request_reopening()
            self.assertFalse(shutdown.wait(0.02))
        reopen.assert_called_once_with()

    def test_the_innermost_is_the_current_one(self):
        with Shutdown() as outer:
            with Shutdown() as inner, current_shutdown() as current:
                self.assertIs(inner, current)
            with current_shutdown() as current:
                self.assertIs(outer, current)
        with current_shutdown() as current:
            self.assertIsNot(outer, current)
            self.assertFalse(current.wait(0))

    def test_stopped_after_a_signal(self):
        with Shutdown() as shutdown:
            shutdown.request(signal.SIGTERM)
            shutdown.request()
            self.assertEqual(signal.SIGTERM, shutdown.signum)

    def test_one_log_of_many_that_cannot_be_reopened(self):
        with tempfile.TemporaryDirectory() as directory:
            paths = [f'{directory}/{name}/x.log' for name in 'abc']
            handlers = []
            for path in paths:
                os.mkdir(os.path.dirname(path))
                handlers.append(FileHandler(path))
            os.remove(paths[1])
            os.rmdir(os.path.dirname(paths[1]))
            os.rename(paths[2], paths[2] + '.1')
            with self.assertLogs('gocept.runner.signals', 'INFO') as logs:
                signals._reopen_logs()
            self.assertTrue(os.path.exists(paths[2]))
            for handler in handlers:
                with contextlib.suppress(ValueError):
                    handler.close()
        self.assertEqual(2, len(logs.output))
        self.assertIn(paths[1], logs.output[0])

    def test_a_wakeup_descriptor_that_was_closed(self):
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write)
        self.addCleanup(signal.set_wakeup_fd, -1)
        with Shutdown() as shutdown:
            os.close(write)
            os.close(read)
            self.assertFalse(shutdown.wait(0.001))
        self.assertEqual(-1, signal.set_wakeup_fd(-1))

    def test_each_thread_has_its_own(self):
        seen = []

        def look():
            with current_shutdown() as current:
                seen.append(current)
        with Shutdown() as mine:
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
        self.assertIsNot(mine, seen[0])

    def test_the_wakeup_descriptor_is_put_back(self):
        read, write = os.pipe()
        os.set_blocking(write, False)
        self.addCleanup(os.close, read)
        self.addCleanup(os.close, write)
        signal.set_wakeup_fd(write)
        self.addCleanup(signal.set_wakeup_fd, -1)
        with Shutdown() as shutdown:
            shutdown.wait(0.001)
        self.assertEqual(write, signal.set_wakeup_fd(-1))

    def test_can_wait_outside_the_main_thread(self):
        results = []

        def wait():
            with Shutdown() as shutdown:
                results.append(shutdown.wait(0.001))
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
        self.assertEqual([False], results)


class HandlingTests(unittest.TestCase):

    def setUp(self):
        before = process_state()
        self.addCleanup(
            lambda: self.assertEqual(before, process_state()))
        self.received = []

    def handler(self, signum, frame):
        self.received.append(signum)

    def test_handles_and_puts_back(self):
        with handling({signal.SIGUSR2: self.handler}):
            signal.raise_signal(signal.SIGUSR2)
            signal.raise_signal(signal.SIGUSR2)
        self.assertEqual([signal.SIGUSR2] * 2, self.received)

    def test_puts_back_after_an_exception(self):
        with self.assertRaises(ZeroDivisionError):
            with handling(dict.fromkeys(SIGNALS, self.handler)):
                raise ZeroDivisionError

    def test_the_system_itself_restores_the_default(self):
        # What Python believes is not what matters while C code runs.
        with handling({signal.SIGTERM: self.handler}):
            self.assertIn(signal.SIGTERM, caught_by_the_system())
            signal.raise_signal(signal.SIGTERM)
            self.assertNotIn(signal.SIGTERM, caught_by_the_system())
        self.assertEqual([signal.SIGTERM], self.received)

    def test_only_the_signals_that_end(self):
        with handling({signal.SIGUSR2: self.handler}):
            signal.raise_signal(signal.SIGUSR2)
            self.assertIn(signal.SIGUSR2, caught_by_the_system())

    def test_a_handler_that_c_code_installed_is_put_back(self):
        with tempfile.TemporaryFile() as file:
            faulthandler.register(signal.SIGTERM, file)
            self.addCleanup(faulthandler.unregister, signal.SIGTERM)
            with handling({signal.SIGTERM: self.handler}):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            self.assertEqual([signal.SIGTERM], self.received)
            file.seek(0)
            self.assertIn(b'most recent call first', file.read())

    def test_a_forked_child_has_no_loop(self):
        with handling({signal.SIGTERM: self.handler}):
            pid = os.fork()
            if not pid:
                signal.raise_signal(signal.SIGTERM)
                os._exit(0)
            _, status = os.waitpid(pid, 0)
        self.assertEqual(-signal.SIGTERM, os.waitstatus_to_exitcode(status))
        self.assertEqual([], self.received)

    def test_restore_defaults(self):
        with handling(dict.fromkeys(SIGNALS, self.handler)):
            signals.restore_defaults()
            self.assertEqual([signal.SIG_DFL] * 3,
                             [signal.getsignal(signum) for signum in SIGNALS])

    def test_outside_the_main_thread(self):
        def run():
            with handling({signal.SIGTERM: self.handler}):
                seen.append(signal.getsignal(signal.SIGTERM))
                signals.restore_defaults()
        seen = []
        with self.assertLogs('gocept.runner.signals', logging.DEBUG) as logs:
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        self.assertEqual([signal.getsignal(signal.SIGTERM)], seen)
        self.assertIn('Not in the main thread', logs.output[0])


def caught_by_the_system():
    """The signals with a handler, as the system sees it; see proc(5)."""
    with open('/proc/self/status') as file:
        mask = int(re.search(r'SigCgt:\s*(\w+)', file.read())[1], 16)
    return {signum for signum in signal.Signals if mask >> (signum - 1) & 1}
