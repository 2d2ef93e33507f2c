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
from gocept.runner.waits import sigaction


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

    def test_signals_that_were_blocked(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self.addCleanup(signal.pthread_sigmask, signal.SIG_UNBLOCK, SIGNALS)
        before = process_state()
        # It waits until it is handled; another thread would not block it.
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        with handling({signal.SIGTERM: self.handler}):
            self.assertEqual([signal.SIGTERM], self.received)
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            self.assertEqual({*SIGNALS} - {signal.SIGTERM}, blocked)
        self.assertEqual(before, process_state())

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
            sigaction._sigaction.cache_clear()
            self.addCleanup(sigaction._sigaction.cache_clear)
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


class Request:

    def __init__(self, requested=False):
        self.requested = requested


class KeepTests(unittest.TestCase):
    """Handlers that code of a tick has replaced."""

    def setUp(self):
        before = process_state()
        self.addCleanup(
            lambda: self.assertEqual(before, process_state()))
        self.received = []

    def handler(self, signum, frame):
        self.received.append(signum)

    @property
    def all(self):
        return dict.fromkeys((*SIGNALS, signal.SIGUSR2), self.handler)

    def test_nothing_is_said_where_all_are_in_place(self):
        with handling(self.all) as keep:
            with self.assertNoLogs('gocept.runner.signals'):
                keep(Request())

    def test_removed_ones_are_put_back(self):
        for found in signal.SIG_DFL, signal.default_int_handler:
            for signum in self.all:
                with self.subTest(found=found, signum=signum):
                    with handling(self.all) as keep:
                        signal.signal(signum, found)
                        with self.assertLogs(
                                'gocept.runner.signals', 'INFO') as logs:
                            keep(Request())
                        self.assertEqual(
                            [f'INFO:gocept.runner.signals:The handler of '
                             f'{signum.name} was removed in a tick: it is in '
                             'place again'], logs.output)
                        signal.raise_signal(signum)
                        self.assertEqual([signum], self.received)
                        self.received.clear()
                        # As the first one, it is the last.
                        self.assertEqual(
                            signum == signal.SIGUSR2,
                            signum in caught_by_the_system())

    def test_not_once_the_end_is_requested(self):
        with handling(self.all) as keep:
            handlers.restore_defaults()
            with self.assertNoLogs('gocept.runner.signals'):
                keep(Request(True))
            self.assertEqual([signal.SIG_DFL] * 3,
                             [signal.getsignal(signum) for signum in SIGNALS])

    def test_an_end_that_is_requested_meanwhile(self):
        class Late(Request):
            asked = 0

            @property
            def requested(self):
                self.asked += 1
                return self.asked > 1

            @requested.setter
            def requested(self, value):
                pass

        with handling(self.all) as keep:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            keep(Late())
            self.assertIs(signal.SIG_DFL, signal.getsignal(signal.SIGTERM))

    def test_one_of_others_stays_and_is_reported_once(self):
        def foreign(signum, frame):
            seen.append(signum)
        seen = []
        with handling(self.all) as keep:
            signal.signal(signal.SIGTERM, foreign)
            with self.assertLogs('gocept.runner.signals', 'INFO') as logs:
                keep(Request())
                keep(Request())
            [line] = logs.output
            self.assertIn('WARNING:gocept.runner.signals:SIGTERM does not end '
                          'the loop any more', line)
            self.assertIn('foreign', line)
            signal.raise_signal(signal.SIGTERM)
        self.assertEqual([signal.SIGTERM], seen)

    def test_outside_the_main_thread(self):
        def run():
            with handling(self.all) as keep:
                keep(Request())
                done.append(True)
        done = []
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        self.assertEqual([True], done)


def caught_by_the_system():
    """The signals with a handler, as the system sees it; see proc(5)."""
    with open('/proc/self/status') as file:
        mask = int(re.search(r'SigCgt:\s*(\w+)', file.read())[1], 16)
    return {signum for signum in signal.Signals if mask >> (signum - 1) & 1}
