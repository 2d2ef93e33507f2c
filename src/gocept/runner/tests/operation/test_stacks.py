import faulthandler
import logging
import os
import signal
import sys
import threading
from unittest import mock

from gocept.runner.operation import stacks
from gocept.runner.tests.support import TestCase
from gocept.runner.waits.sigaction import action


class SheetTests(TestCase):

    def test_has_what_was_written_last(self):
        with stacks.Sheet() as sheet:
            self.assertEqual('', sheet.read())
            for _ in range(2):
                sheet.clear()
                sheet.write()
                text = sheet.read()
                self.assertEqual(1, text.count('Current thread'))
                self.assertIn('test_stacks.py', text)

    def test_needs_no_name_where_there_are_no_files_in_memory(self):
        with mock.patch.object(os, 'memfd_create', create=True):
            del os.memfd_create
            with stacks.Sheet() as sheet:
                sheet.write()
                self.assertIn('test_stacks.py', sheet.read())

    def test_a_report_has_the_names_of_threads(self):
        go = threading.Event()
        other = threading.Thread(target=go.wait, name='other')
        other.start()
        try:
            with stacks.Sheet() as sheet:
                sheet.write()
                whole = stacks.report(sheet, other.ident)
                part = stacks.report(sheet, other.ident, threading.get_ident())
        finally:
            go.set()
            other.join()
        name = threading.current_thread().name
        self.assertIn('Thread other, in the tick (most recent', whole)
        self.assertIn(f'Thread {name} (most recent', whole)
        self.assertIn('Thread other, in the tick (most recent', part)
        self.assertNotIn(f'Thread {name}', part)


class SignalTests(TestCase):

    def setUp(self):
        super().setUp()
        self.sheet = self.enterContext(stacks.Sheet())

    def test_writes_the_stacks_when_it_comes(self):
        with stacks.Signal(self.sheet.fd) as it:
            signal.raise_signal(it.number)
            self.assertIn('test_stacks.py', self.sheet.read())

    def test_is_given_back(self):
        for fatal in False, True:
            with self.subTest(fatal), self.assertPutBack():
                it = stacks.Signal(self.sheet.fd, fatal=fatal)
                self.assertTrue(action(it.number).handler)
                it.close()
                it.close()
                self.assertIsNone(action(it.number).handler)

    def test_is_one_that_nobody_else_has(self):
        with stacks.Signal(self.sheet.fd) as first:
            before = signal.signal(first.number - 1, lambda *args: None)
            try:
                with stacks.Signal(self.sheet.fd, fatal=True) as second:
                    self.assertEqual(first.number - 2, second.number)
            finally:
                signal.signal(first.number - 1, before)

    def test_none_may_be_free(self):
        with (mock.patch.object(stacks, 'action', return_value=None),
              self.assertRaisesRegex(OSError, 'no real-time signal is free')):
            stacks.Signal(self.sheet.fd)

    def test_other_systems_have_none(self):
        with (mock.patch.object(sys, 'platform', 'plan9'),
              self.assertRaisesRegex(OSError, 'no signal of plan9')):
            stacks.Signal(self.sheet.fd)

    def test_is_let_through_meanwhile(self):
        with stacks.Signal(self.sheet.fd) as it:
            number = it.number
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        try:
            with stacks.Signal(self.sheet.fd) as it:
                self.assertEqual(number, it.number)
                signal.raise_signal(number)
                self.assertIn('test_stacks.py', self.sheet.read())
            self.assertIn(number, signal.pthread_sigmask(
                signal.SIG_BLOCK, ()))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def test_leaves_what_users_have_registered(self):
        faulthandler.register(signal.SIGUSR1, self.sheet.fd)
        try:
            with stacks.Signal(self.sheet.fd, fatal=True):
                pass
            signal.raise_signal(signal.SIGUSR1)
            self.assertIn('test_stacks.py', self.sheet.read())
        finally:
            faulthandler.unregister(signal.SIGUSR1)

    def end(self, body):
        """How a process ends whose fatal signal comes; what it has written."""
        program = self.program(f'''
            import faulthandler, resource, signal
            from gocept.runner.operation import stacks
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            {body}
            with stacks.Signal(2, fatal=True) as it:
                signal.raise_signal(it.number)
            ''')
        return program.end(), program.output

    def test_a_fatal_one_ends_the_process(self):
        for body in ('', 'faulthandler.enable()',
                     'signal.signal(signal.SIGABRT, lambda *args: None)',
                     'signal.signal(signal.SIGABRT, signal.SIG_IGN)'):
            with self.subTest(body):
                status, output = self.end(body)
                self.assertEqual(-signal.SIGABRT, status)
                self.assertIn('most recent call first', output)


class ErrorOutputTests(TestCase):

    def test_is_standard_error(self):
        with (mock.patch.object(stacks, '_is_null', return_value=False),
              stacks.error_output() as fd):
            self.assertEqual(2, fd)

    def test_or_a_log_file_if_nobody_reads_that(self):
        # As in each test, standard error is /dev/null.
        path = self.dir / 'log'
        handler = logging.FileHandler(path)
        logging.getLogger().addHandler(handler)
        try:
            with stacks.error_output() as fd:
                handler.close()
                os.write(fd, b'stacks')
        finally:
            logging.getLogger().removeHandler(handler)
        self.assertEqual('stacks', path.read_text())

    def test_where_there_is_no_dev_null(self):
        with (mock.patch.object(os, 'devnull', '/dev/missing'),
              stacks.error_output() as fd):
            self.assertEqual(2, fd)

    def test_without_a_log_file_it_is_standard_error_anyway(self):
        with stacks.error_output() as fd:
            self.assertEqual(2, fd)
