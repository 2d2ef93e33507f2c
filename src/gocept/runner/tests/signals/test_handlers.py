import ctypes
import faulthandler
import logging
import os
import re
import signal
import tempfile
import threading
import unittest
from unittest import mock

from gocept.runner.signals import handlers
from gocept.runner.signals.handlers import handling
from gocept.runner.tests.support import SIGNALS, process_state


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

    def test_without_the_c_library(self):
        for error in OSError, AttributeError:
            handlers._sigaction.cache_clear()
            self.addCleanup(handlers._sigaction.cache_clear)
            with mock.patch.object(ctypes, 'CDLL', side_effect=error):
                with handling({signal.SIGTERM: self.handler}):
                    signal.raise_signal(signal.SIGTERM)
        self.assertEqual([signal.SIGTERM] * 2, self.received)

    def test_restore_defaults(self):
        with handling(dict.fromkeys(SIGNALS, self.handler)):
            handlers.restore_defaults()
            self.assertEqual([signal.SIG_DFL] * 3,
                             [signal.getsignal(signum) for signum in SIGNALS])

    def test_outside_the_main_thread(self):
        def run():
            with handling({signal.SIGTERM: self.handler}):
                seen.append(signal.getsignal(signal.SIGTERM))
                handlers.restore_defaults()
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
