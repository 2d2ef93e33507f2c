import contextlib
import errno
import gc
import os
import signal
import threading
import unittest
from unittest import mock

from gocept.runner.poller import Poller
from gocept.runner.process import pidfd, procfs
from gocept.runner.process.pidfd import Handle, PidAndStart
from gocept.runner.tests import support
from gocept.runner.tests.victims import DEADLINE, ended, until
from gocept.runner.waits import source


class HandleTestCase(unittest.TestCase):

    hold: type

    def setUp(self):
        descriptors = support.open_descriptors()
        threads = {*threading.enumerate()}
        # The thread of the fallback ends a bit later.
        self.addCleanup(until, lambda: (
            descriptors == support.open_descriptors()
            and threads.issuperset(threading.enumerate())))

    def fork(self, status=None):
        """A child that ends with a status, or waits for a signal."""
        pid = os.fork()
        if not pid:
            if status is None:
                signal.alarm(DEADLINE)
                while True:
                    signal.pause()
            os._exit(status)
        return pid

    def held(self, status=None):
        handle = self.hold(self.fork(status))
        self.addCleanup(handle.close)
        if status is None:
            self.addCleanup(self.kill, handle)
        return handle

    def kill(self, handle):
        handle.signal(signal.SIGKILL)
        ended(handle)
        with contextlib.suppress(ChildProcessError):
            handle.reap()


class AnyHandle:

    def test_no_such_process(self):
        pid = self.fork(0)
        os.waitpid(pid, 0)
        with self.assertRaises(ProcessLookupError):
            self.hold(pid)

    def test_it_runs(self):
        handle = self.held()
        self.assertFalse(handle.has_ended())
        self.assertIsNone(handle.reap())

    def test_its_end(self):
        for status in 0, 1, 255:
            handle = self.held(status)
            self.assertTrue(ended(handle))
            self.assertTrue(handle.has_ended())
            self.assertEqual(status, handle.reap())
            self.assertTrue(handle.has_ended())

    def test_its_end_by_a_signal(self):
        for signum in signal.SIGTERM, signal.SIGKILL:
            handle = self.held()
            handle.signal(signum)
            ended(handle)
            self.assertEqual(-signum, handle.reap())

    def test_reaped_once(self):
        handle = self.held(3)
        ended(handle)
        self.assertEqual(3, handle.reap())
        with self.assertRaises(ChildProcessError):
            handle.reap()

    def test_reaped_by_somebody_else(self):
        handle = self.held(3)
        os.waitpid(handle.pid, 0)
        ended(handle)
        with self.assertRaises(ChildProcessError):
            handle.reap()

    def test_no_signal_once_it_was_reaped(self):
        handle = self.held(0)
        ended(handle)
        handle.reap()
        with mock.patch('os.kill') as kill:
            handle.signal(signal.SIGKILL)
        self.assertFalse(kill.called)

    def test_a_stopped_one_has_not_ended(self):
        handle = self.held()
        handle.signal(signal.SIGSTOP)
        until(lambda: procfs.stat(handle.pid).state == 'T')
        self.assertFalse(handle.has_ended())
        self.assertIsNone(handle.reap())

    def test_ourselves(self):
        handle = self.hold(os.getpid())
        self.addCleanup(handle.close)
        self.assertFalse(handle.has_ended())
        with self.assertRaises(ChildProcessError):
            handle.reap()

    def test_closed(self):
        handle = self.held(0)
        ended(handle)
        handle.reap()
        handle.close()
        handle.close()
        self.assertEqual(-1, handle.fileno())
        self.assertTrue(handle.has_ended())
        handle.signal(signal.SIGKILL)

    def test_forgotten(self):
        handle = self.hold(self.fork(0))
        ended(handle)
        handle.reap()
        del handle
        gc.collect()  # the descriptors are counted at the end

    def test_forgotten_whatever_locks_are_held(self):
        # The collector may run while one of these is held by its own thread.
        with mock.patch.object(source, '_attaching') as lock:
            handle = self.hold(os.getpid())
            del handle
            gc.collect()
        self.assertFalse(lock.__enter__.called)


class WatchedHandle(AnyHandle):

    def test_an_event_of_a_poller(self):
        with Poller() as poller:
            handle = self.held(0)
            poller.register(handle)
            self.assertEqual([(True, handle)], poller.poll(DEADLINE))
            self.assertEqual([], poller.poll(0))
            handle.reap()

    def test_closed_while_it_is_waited_for(self):
        with Poller() as poller:
            handle = self.held()
            poller.register(handle)
            self.assertEqual([], poller.poll(0))
            self.kill(handle)
            handle.close()
            self.assertEqual([(True, handle)], poller.poll(DEADLINE))

    def test_a_forked_copy_does_not_keep_its_end_back(self):
        read, write = os.pipe()
        handle = self.held()
        copy = os.fork()
        if not copy:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        os.close(read)
        handle.signal(signal.SIGKILL)
        self.assertTrue(ended(handle))
        handle.reap()
        os.close(write)
        os.waitpid(copy, 0)

    def test_no_descriptor_is_left(self):
        pid = self.fork(0)
        error = OSError(errno.EMFILE, 'none')
        with mock.patch('os.pidfd_open', side_effect=error), mock.patch(
                'os.pipe', side_effect=error):
            with self.assertRaises(OSError):
                self.hold(pid)
        os.waitpid(pid, 0)


class PidfdTests(WatchedHandle, HandleTestCase):

    def hold(self, pid):
        return Handle(pid, os.pidfd_open(pid))

    def test_close_on_exec(self):
        self.assertFalse(os.get_inheritable(self.held().fileno()))

    def test_what_is_closed_counts_as_ended(self):
        handle = self.hold(os.getpid())
        handle.close()
        self.assertTrue(handle.has_ended())


class WatchedPidTests(WatchedHandle, HandleTestCase):

    def hold(self, pid):
        handle = PidAndStart(pid)
        handle.watch()
        return handle

    def test_another_process_with_the_same_number(self):
        handle = self.hold(os.getpid())
        other = procfs.stat(os.getpid())
        with mock.patch('gocept.runner.process.procfs.stat',
                        return_value=other._replace(start=other.start + 1)):
            self.assertTrue(handle.has_ended())
            with mock.patch('os.kill') as kill:
                handle.signal(signal.SIGKILL)
        self.assertFalse(kill.called)

    def test_what_cannot_be_read_has_not_ended(self):
        # As when there is no descriptor left to read it.
        handle = self.hold(os.getppid())
        with mock.patch.object(procfs, 'stat', return_value=None):
            self.assertFalse(handle.has_ended())

    def test_no_thread_can_be_started(self):
        pid = self.fork(0)
        with mock.patch('threading.Thread.start', side_effect=RuntimeError):
            with self.assertRaises(RuntimeError):
                self.hold(pid)
        gc.collect()
        os.waitpid(pid, 0)


class PidAndStartTests(AnyHandle, HandleTestCase):

    hold = PidAndStart

    def test_takes_no_descriptor(self):
        with mock.patch('os.pidfd_open') as pidfd_open, mock.patch(
                'os.pipe') as pipe:
            handle = self.held()
        self.assertFalse(pidfd_open.called or pipe.called)
        self.assertEqual(-1, handle.fileno())

    def test_without_any_descriptor(self):
        for is_child in True, False:
            pid = self.fork()
            with mock.patch.object(procfs, 'stat', return_value=None):
                handle = self.hold(pid)
                handle._is_child = is_child
                self.assertFalse(handle.has_ended())
                handle.signal(signal.SIGKILL)
                if is_child:
                    until(handle.has_ended)
                    self.assertEqual(-signal.SIGKILL, handle.reap())
                else:
                    os.waitpid(pid, 0)
                self.assertTrue(handle.has_ended())


class ClosedTests(unittest.TestCase):

    def test_it_has_ended_and_nobody_knows_how(self):
        handle = Handle(os.getpid())
        self.assertTrue(handle.has_ended())
        self.assertEqual(((True,), True), handle.collect())
        with mock.patch('os.kill') as kill:
            handle.signal(signal.SIGKILL)
        self.assertFalse(kill.called)
        with self.assertRaises(ChildProcessError):
            handle.reap()


class ChoiceTests(unittest.TestCase):

    def has_pidfds(self):
        return pidfd.has_pidfds.__wrapped__()

    def test_this_system(self):
        self.assertTrue(self.has_pidfds())
        handle = pidfd.hold(os.getpid())
        self.addCleanup(handle.close)
        self.assertIs(Handle, type(handle))

    def test_an_old_system_or_a_sandbox(self):
        before = support.open_descriptors()
        for name in ('os.pidfd_open', 'signal.pidfd_send_signal',
                     'os.waitid'):
            for error in (AttributeError, OSError(errno.ENOSYS, 'none'),
                          PermissionError(errno.EPERM, 'refused'),
                          OSError(errno.EINVAL, 'of a pidfd?')):
                with self.subTest(name, error=error), mock.patch(
                        name, side_effect=error):
                    self.assertFalse(self.has_pidfds())
        self.assertEqual(before, support.open_descriptors())
        with mock.patch.object(pidfd, 'has_pidfds', return_value=False):
            self.assertIsInstance(pidfd.hold(os.getpid()), PidAndStart)

    def test_a_lack_of_descriptors_says_nothing(self):
        error = OSError(errno.EMFILE, 'none')
        with mock.patch('os.pidfd_open', side_effect=error):
            with self.assertRaises(OSError) as raised:
                self.has_pidfds()
        self.assertIs(error, raised.exception)
