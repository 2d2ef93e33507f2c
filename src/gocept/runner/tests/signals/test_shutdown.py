import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
import unittest
import weakref
from unittest import mock

import transaction
import ZODB
import zope.interface.verify
from ZConfig.components.logger import loghandler
from ZConfig.components.logger.loghandler import FileHandler

from gocept.runner.errors import Terminated
from gocept.runner.interfaces import IShutdown
from gocept.runner.poller import Poller, Timer
from gocept.runner.signals import Shutdown, current_shutdown
from gocept.runner.signals import shutdown as shutdown_module
from gocept.runner.signals.handlers import handlers
from gocept.runner.signals.shutdown import (
    booting,
    raising,
    requesting,
)
from gocept.runner.tests.poller.test_server import no_descriptors_left
from gocept.runner.tests.support import (
    DEADLINE,
    SIGNALS,
    open_descriptors,
    process_state,
)
from gocept.runner.tests.victims import until


class ShutdownTests(unittest.TestCase):

    def test_a_wait_that_nobody_ends(self):
        with Shutdown() as shutdown:
            self.assertFalse(shutdown.wait(0.01))

    def test_a_request_ends_the_wait(self):
        with Shutdown() as shutdown:
            timer = threading.Timer(0.01, shutdown.request)
            timer.start()
            self.assertTrue(shutdown.wait(3600))
            self.assertTrue(shutdown.wait(3600))
            timer.join()

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
                shutdown_module, '_reopen_logs') as reopen:
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

    def test_a_listener_is_told(self):
        told = []

        class Listener:
            def note_request(self):
                told.append(('requested', shutdown.requested))

            @contextlib.contextmanager
            def reopening(self):
                told.append('before')
                yield
                told.append('after')
        with Shutdown() as shutdown, mock.patch.object(
                shutdown_module, '_reopen_logs',
                lambda: told.append('reopened')):
            shutdown.listener = Listener()
            shutdown.request_reopening()
            self.assertEqual([], told)
            shutdown.attend()
            shutdown.request(signal.SIGTERM)
        self.assertEqual(
            ['before', 'reopened', 'after', ('requested', True)], told)

    def test_one_log_of_many_that_cannot_be_reopened(self):
        with (tempfile.TemporaryDirectory() as directory,
              # Other tests may have left handlers of their own.
              mock.patch.object(loghandler, '_reopenable_handlers', [])):
            paths = [f'{directory}/{name}/x.log' for name in 'abc']
            handlers = []
            for path in paths:
                os.mkdir(os.path.dirname(path))
                handlers.append(FileHandler(path))
            os.remove(paths[1])
            os.rmdir(os.path.dirname(paths[1]))
            os.rename(paths[2], paths[2] + '.1')
            with self.assertLogs('gocept.runner.signals', 'INFO') as logs:
                shutdown_module._reopen_logs()
            self.assertTrue(os.path.exists(paths[2]))
            for handler in handlers:
                with contextlib.suppress(ValueError):
                    handler.close()
        self.assertEqual(1, len(logs.output))  # not all are reopened
        self.assertIn(paths[1], logs.output[0])

    def test_a_wakeup_descriptor_that_was_closed(self):
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write)
        self.addCleanup(signal.set_wakeup_fd, -1)
        with Shutdown() as shutdown, Poller() as poller:
            os.close(write)
            os.close(read)
            self.assertFalse(shutdown.wait(0.001, poller))
        self.assertEqual(-1, signal.set_wakeup_fd(-1))

    def test_signals_of_a_forked_child_write_to_no_pipe_of_its_parent(self):
        statuses = []

        def fork():
            until(lambda: shutdown._wakeup_fd >= 0)
            pid = os.fork()
            if not pid:
                os._exit(signal.set_wakeup_fd(-1) + 1)
            statuses.append(os.waitpid(pid, 0)[1])
            shutdown.request()

        thread = threading.Thread(target=fork)
        with Shutdown() as shutdown:
            thread.start()
            self.assertTrue(shutdown.wait(DEADLINE))
        thread.join()
        self.assertEqual([0], statuses)

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


class PauseTests(unittest.TestCase):

    def setUp(self):
        self.shutdown = self.enterContext(Shutdown())

    def meanwhile(self, call, *args, poller=None):
        """Have another thread call it as soon as this one waits."""
        def is_waiting():
            waiting = poller or self.shutdown._pausing
            return waiting is not None and waiting._descriptors.waiting

        def run():
            until(is_waiting)
            call(*args)
        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(thread.join, DEADLINE)

    def test_keeps_its_contract(self):
        zope.interface.verify.verifyObject(IShutdown, self.shutdown)

    def test_the_time_is_over(self):
        started = time.monotonic()
        self.assertFalse(self.shutdown.pause(0.02))
        self.assertGreaterEqual(time.monotonic() - started, 0.02)

    def test_a_wake_up_ends_it(self):
        self.meanwhile(self.shutdown.wakeup)
        self.assertFalse(self.shutdown.pause())
        self.shutdown.wakeup()
        self.assertFalse(self.shutdown.pause())

    def test_woken_up_before_the_first_pause(self):
        self.shutdown.wakeup()
        self.assertFalse(self.shutdown.pause())

    def test_it_has_a_poller_only_if_it_pauses_without_one(self):
        before = open_descriptors()
        with Shutdown() as shutdown:
            with Poller() as poller:
                shutdown.pause(0, poller)
            self.assertEqual(before, open_descriptors())
            shutdown.wait(0)
            self.assertEqual(before, open_descriptors())

    def test_no_descriptor_is_left_to_wait_with(self):
        with no_descriptors_left():
            self.assertFalse(self.shutdown.wait(DEADLINE))
            with self.assertRaises(OSError):
                self.shutdown.pause(DEADLINE)

    def test_a_wait_with_another_poller(self):
        with Poller() as poller:
            poller.wakeup()
            poller.register(Timer(0))
            self.assertFalse(self.shutdown.wait(0.01, poller))
            self.meanwhile(self.shutdown.request, poller=poller)
            self.assertTrue(self.shutdown.wait(3600, poller))

    def test_but_no_wait(self):
        self.meanwhile(lambda: (
            self.shutdown.wakeup(),
            until(lambda: not self.shutdown._woken),  # it has heard
            self.shutdown.request()))
        self.assertTrue(self.shutdown.wait(3600))

    def test_a_request_ends_it(self):
        self.meanwhile(self.shutdown.request)
        self.assertTrue(self.shutdown.pause())
        self.assertTrue(self.shutdown.pause())
        self.assertTrue(self.shutdown.wait(3600))

    def test_a_signal_ends_it(self):
        for poller in None, self.enterContext(Poller()):
            with Shutdown() as self.shutdown, requesting(self.shutdown):
                self.meanwhile(os.kill, os.getpid(), signal.SIGTERM,
                               poller=poller)
                self.assertTrue(self.shutdown.pause(None, poller))
                self.assertEqual(signal.SIGTERM, self.shutdown.signum)

    def test_another_poller_ends_it(self):
        with Poller() as poller:
            poller.register(Timer(0))
            self.assertFalse(self.shutdown.pause(None, poller))
            self.meanwhile(poller.wakeup, poller=poller)
            self.assertFalse(self.shutdown.pause(None, poller))
            started = time.monotonic()
            self.assertFalse(self.shutdown.pause(0.02, poller))
            self.assertGreaterEqual(time.monotonic() - started, 0.02)

    def test_a_request_ends_the_pause_of_another_poller(self):
        with Poller() as poller:
            self.meanwhile(self.shutdown.request, poller=poller)
            self.assertTrue(self.shutdown.pause(None, poller))
            self.assertTrue(self.shutdown.pause(None, poller))

    def test_it_has_no_business_with_that_one_thereafter(self):
        with Poller() as poller:
            poller.wakeup()
            self.assertFalse(self.shutdown.pause(None, poller))
            self.shutdown.request()
            self.assertFalse(poller.pause(0))
        self.assertTrue(self.shutdown.pause())

    def test_logs_are_reopened_meanwhile(self):
        reopened = threading.Event()
        with Poller() as poller, mock.patch.object(
                shutdown_module, '_reopen_logs', reopened.set):
            self.meanwhile(lambda: (
                self.shutdown.request_reopening(), reopened.wait(DEADLINE),
                poller.wakeup()), poller=poller)
            self.assertFalse(self.shutdown.pause(None, poller))
        self.assertTrue(reopened.is_set())

    def test_signals_write_to_the_poller_meanwhile(self):
        seen = []

        class Looking(Poller):
            def pause(self, *args):
                seen.append(signal.set_wakeup_fd(-1))
                signal.set_wakeup_fd(seen[0])
                return super().pause(*args)
        with Looking() as poller:
            self.shutdown.pause(0, poller)
            self.assertEqual([poller.wakeup_fd], seen)
        self.assertEqual(-1, signal.set_wakeup_fd(-1))

    def test_it_has_to_be_entered(self):
        shutdown = Shutdown()
        for poller in None, self.enterContext(Poller()):
            with self.assertRaisesRegex(RuntimeError, 'entered'):
                shutdown.pause(0, poller)
        shutdown.wakeup()
        with shutdown:
            self.assertFalse(shutdown.pause(0))
        shutdown.wakeup()


class NestedTests(unittest.TestCase):

    def test_a_signal_of_the_inner_one_is_handed_on(self):
        with Shutdown() as outer, requesting(outer):
            with Shutdown() as inner, requesting(inner):
                signal.raise_signal(signal.SIGHUP)
                self.assertTrue(inner.requested)
                self.assertFalse(outer.requested)
            self.assertTrue(outer.wait(3600))
            self.assertEqual(signal.SIGHUP, outer.signum)
            # It was the first one, so the second one has its default action.
            self.assertEqual([signal.SIG_DFL] * 3,
                             [signal.getsignal(signum) for signum in SIGNALS])

    def test_a_request_without_a_signal_is_not(self):
        with Shutdown() as outer:
            with Shutdown() as inner:
                inner.request()
            self.assertFalse(outer.requested)

    def test_a_signal_of_the_outer_one_is_taken_over(self):
        with Shutdown() as outer:
            outer.request(signal.SIGINT)
            with Shutdown() as inner:
                self.assertFalse(inner.requested)
                inner.join_outer()
                self.assertTrue(inner.wait(3600))
                self.assertEqual(signal.SIGINT, inner.signum)

    def test_nothing_to_take_over(self):
        with Shutdown() as outer:
            outer.join_outer()
            self.assertFalse(outer.requested)
            with Shutdown() as inner:
                inner.join_outer()
                self.assertFalse(inner.requested)
            outer.request()
            with Shutdown() as inner:
                inner.join_outer()
                self.assertFalse(inner.requested)


class DroppedTests(unittest.TestCase):
    """What a signal raises where Python drops it."""

    def setUp(self):
        for signum in SIGNALS:
            self.addCleanup(signal.signal, signum, signal.getsignal(signum))
            signal.signal(signum, signal.SIG_DFL)
        self.shown = []
        self.enterContext(
            mock.patch('sys.unraisablehook', self.shown.append))
        before = process_state()
        self.addCleanup(lambda: self.assertEqual(before, process_state()))
        self.addCleanup(
            lambda: self.assertEqual(self.shown.append, sys.unraisablehook))

    def blocks(self):
        """The blocks in which a signal raises."""
        yield booting()
        yield raising(handlers())

    def drop(self, action):
        """Do it in a finalizer, and in the callback of a weak reference."""
        class Finalized:
            def __del__(self):
                action()

        class Referred:
            pass
        if not self.in_callback:
            Finalized()
            return
        referred = Referred()
        reference = weakref.ref(referred, lambda reference: action())
        del referred
        self.assertIsNone(reference())

    def test_it_is_raised_at_the_end(self):
        for self.in_callback in False, True:
            for signum in SIGNALS:
                for block in self.blocks():
                    done = []
                    with self.assertRaises(Terminated) as caught, block:
                        self.drop(lambda: signal.raise_signal(signum))
                        done.append(signum)
                    self.assertEqual([signum], done)
                    self.assertEqual(signum, caught.exception.signum)
        self.assertEqual([], self.shown)

    def test_it_is_raised_at_the_end_if_code_has_caught_it(self):
        for block in self.blocks():
            with self.assertRaises(Terminated), block:
                with contextlib.suppress(BaseException):
                    signal.raise_signal(signal.SIGTERM)

    def test_an_interrupt_is_raised_at_the_end_of_booting(self):
        def caught():
            with contextlib.suppress(BaseException):
                signal.raise_signal(signal.SIGINT)

        def dropped():
            self.drop(lambda: signal.raise_signal(signal.SIGINT))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for self.in_callback in False, True:
            for swallow in caught, dropped:
                done = []
                with self.assertRaises(KeyboardInterrupt), booting():
                    swallow()
                    done.append(swallow)
                    self.assertEqual([signal.SIG_DFL] * 3, [
                        signal.getsignal(each) for each in SIGNALS])
                self.assertEqual([swallow], done)
        self.assertEqual([], self.shown)
        self.assertIs(signal.default_int_handler,
                      signal.getsignal(signal.SIGINT))
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def test_an_interrupt_is_raised_at_once(self):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with self.assertRaises(KeyboardInterrupt), booting():
            signal.raise_signal(signal.SIGINT)
            self.fail('too late')
        with self.assertRaises(Terminated), booting():
            signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def test_an_error_of_the_block_comes_first(self):
        for self.in_callback in False, True:
            for block in self.blocks():
                with self.assertRaises(ValueError), block:
                    self.drop(lambda: signal.raise_signal(signal.SIGTERM))
                    raise ValueError
        self.assertEqual([], self.shown)

    def test_other_errors_are_shown(self):
        for self.in_callback in False, True:
            for block in self.blocks():
                with block:
                    self.drop(lambda: 1 / 0)
        self.assertEqual(
            [ZeroDivisionError] * 4, [each.exc_type for each in self.shown])
        self.shown.clear()

    def test_a_hook_that_code_of_the_block_has_installed_stays(self):
        for block in self.blocks():
            def theirs(dropped):
                pass
            with block:
                sys.unraisablehook = theirs
            self.assertIs(theirs, sys.unraisablehook)
            sys.unraisablehook = self.shown.append

    def test_another_thread_changes_no_hook(self):
        def run():
            for block in self.blocks():
                with block:
                    hooks.append(sys.unraisablehook)
        hooks = []
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(DEADLINE)
        self.assertEqual([self.shown.append] * 2, hooks)


class Committing:
    """A data manager that a signal interrupts in a step of the commit."""

    transaction_manager = transaction.manager

    def __init__(self, step, signum):
        self.step = step
        self.signum = signum
        self.done = []

    def _do(self, step):
        if step == self.step:
            signal.raise_signal(self.signum)
        self.done.append(step)

    def sortKey(self):
        return ''

    def abort(self, txn):
        self._do('abort')

    def tpc_begin(self, txn):
        self._do('begin')

    def commit(self, txn):
        self._do('commit')

    def tpc_vote(self, txn):
        self._do('vote')

    def tpc_finish(self, txn):
        self._do('finish')

    def tpc_abort(self, txn):
        self._do('tpc_abort')


class CommitTests(unittest.TestCase):
    """A signal that comes in a commit while a program boots."""

    def setUp(self):
        for signum in SIGNALS:
            self.addCleanup(signal.signal, signum, signal.getsignal(signum))
            signal.signal(signum, signal.SIG_DFL)
        before = process_state()
        self.addCleanup(lambda: self.assertEqual(before, process_state()))

    def test_it_ends_the_program_after_all_steps(self):
        steps = ['begin', 'commit', 'vote', 'finish']
        for step in steps:
            for signum in SIGNALS:
                manager = transaction.TransactionManager()
                resource = Committing(step, signum)
                with self.assertRaises(Terminated) as caught, booting():
                    manager.get().join(resource)
                    manager.commit()
                    self.assertIs(signal.SIG_DFL, signal.getsignal(signum))
                self.assertEqual(signum, caught.exception.signum)
                self.assertEqual(steps, resource.done)

    def test_an_interrupt_ends_the_program_after_all_steps(self):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        manager = transaction.TransactionManager()
        resource = Committing('vote', signal.SIGINT)
        with self.assertRaises(KeyboardInterrupt), booting():
            manager.get().join(resource)
            manager.commit()
        self.assertEqual(
            ['begin', 'commit', 'vote', 'finish'], resource.done)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def test_an_error_of_the_commit_is_raised(self):
        class Failing(Committing):
            def tpc_vote(self, txn):
                super().tpc_vote(txn)
                raise ValueError
        manager = transaction.TransactionManager()
        resource = Failing('commit', signal.SIGTERM)
        with self.assertRaises(ValueError), booting():
            manager.get().join(resource)
            manager.commit()
        self.assertEqual('tpc_abort', resource.done[-1])

    def test_a_new_database_is_whole(self):
        path = os.path.join(
            self.enterContext(tempfile.TemporaryDirectory()), 'Data.fs')

        def interrupted(fd):
            signal.raise_signal(signal.SIGTERM)
            fsync(fd)
        fsync = os.fsync
        with (mock.patch('ZODB.FileStorage.FileStorage.fsync', interrupted),
              self.assertNoLogs(level='CRITICAL'),
              self.assertRaises(Terminated), booting()):
            ZODB.DB(path).close()
        self.assertTrue(os.path.getsize(path))


class InstallingTests(unittest.TestCase):
    """`requesting` and `raising`."""

    def setUp(self):
        # Some may be ignored, by nohup say.
        for signum in SIGNALS:
            self.addCleanup(signal.signal, signum, signal.getsignal(signum))
            signal.signal(signum, signal.SIG_DFL)
        before = process_state()
        self.addCleanup(lambda: self.assertEqual(before, process_state()))

    def test_each_signal_requests_once(self):
        for signum in SIGNALS:
            with Shutdown() as shutdown, requesting(shutdown):
                signal.raise_signal(signum)
                self.assertTrue(shutdown.requested)
                self.assertEqual(signum, shutdown.signum)
                self.assertEqual([signal.SIG_DFL] * 3, [
                    signal.getsignal(each) for each in SIGNALS])

    def raise_signal(self, signum):
        """Send it where signals raise, as they do within `init`."""
        before = handlers()
        with Shutdown() as shutdown, requesting(shutdown):
            try:
                with raising(before):
                    signal.raise_signal(signum)
            except BaseException:
                # It was the first one.
                self.assertEqual([signal.SIG_DFL] * 3, [
                    signal.getsignal(each) for each in SIGNALS])
                raise
            self.assertFalse(shutdown.requested)
            # Again there is the request.
            signal.raise_signal(signal.SIGTERM)
            self.assertTrue(shutdown.requested)

    def test_each_signal_raises_once(self):
        for signum in SIGNALS:
            with self.assertRaises(Terminated) as caught:
                self.raise_signal(signum)
            self.assertEqual(signum, caught.exception.signum)
            self.assertEqual(128 + signum, caught.exception.code)

    def test_a_handler_from_before_is_called_instead(self):
        received = []
        signal.signal(signal.SIGHUP, lambda *args: received.append(args))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        before = process_state()
        self.raise_signal(signal.SIGHUP)
        self.assertEqual(1, len(received))
        self.assertRaises(
            KeyboardInterrupt, self.raise_signal, signal.SIGINT)
        self.assertRaises(Terminated, self.raise_signal, signal.SIGTERM)
        self.assertEqual(before, process_state())
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_DFL)

    def test_what_was_ignored_is_ignored(self):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.raise_signal(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    def test_a_signal_that_has_come_before_it_can_raise(self):
        before = handlers()
        with Shutdown() as shutdown, requesting(shutdown):
            signal.raise_signal(signal.SIGHUP)
            with self.assertRaises(Terminated) as caught, raising(before):
                self.fail('too late')
            self.assertEqual(signal.SIGHUP, caught.exception.signum)

    def test_nothing_raises_outside_the_main_thread(self):
        def run():
            with raising(handlers()):
                seen.append(handlers())
        seen = []
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(DEADLINE)
        self.assertEqual([handlers()], seen)
