import errno
import io
import os
import sys
import threading
import unittest
from unittest import mock

from gocept.runner.poller import Poller
from gocept.runner.tests.test_logs import failing_handler
from gocept.runner.waits.forks import (
    Lock,
    OneProcess,
    becoming_program,
    tell_forks,
)


class TellForksTests(unittest.TestCase):

    def test_told_in_the_child_only_and_only_while_it_is_there(self):
        class Told:
            def __init__(self):
                self.pids = []

            def after_fork(self):
                self.pids.append(os.getpid())

        told, forgotten = Told(), Told()
        tell_forks(told)
        tell_forks(forgotten)
        del forgotten
        pid = os.fork()
        if not pid:
            os._exit(0 if told.pids == [os.getpid()] else 1)
        self.assertEqual((pid, 0), os.waitpid(pid, 0))
        self.assertEqual([], told.pids)

    def test_a_child_that_becomes_a_program_has_nothing_anew(self):
        class Told:
            told = False

            def after_fork(self):
                self.told = True
        told = Told()
        tell_forks(told)
        with becoming_program():
            self.assertTrue(forked(lambda: not told.told))
        self.assertTrue(forked(lambda: told.told))

    def test_one_that_fails_keeps_nothing_from_the_others(self):
        class Told:
            told = False

            def after_fork(self):
                self.told = True
                raise OSError('no descriptors are left')
        both = Told(), Told()
        for each in both:
            tell_forks(each)
        with mock.patch.object(sys, 'unraisablehook'):
            self.assertTrue(forked(lambda: all(each.told for each in both)))

    def test_a_poller_without_descriptors_is_closed(self):
        with Poller() as poller, mock.patch.object(sys, 'unraisablehook'):
            with mock.patch('os.pipe', side_effect=OSError(errno.EMFILE)):
                self.assertTrue(forked(lambda: poller.closed))
            self.assertFalse(poller.closed)


class OneProcessTests(unittest.TestCase):

    def status_of(self, in_child):
        """The status of a child that comes to the end of a block."""
        with OneProcess() as process:
            pid = os.fork()
            if not pid:
                sys.stderr = io.StringIO()
                in_child()
                process.check()
                os._exit(99)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def test_the_status(self):
        def fail():
            raise ImportError
        for status, in_child in [
                (0, int), (1, fail), (0, sys.exit), (3, lambda: sys.exit(3)),
                (1, lambda: sys.exit('text')), (255, lambda: sys.exit(-1)),
                (7, lambda: os._exit(7))]:
            self.assertEqual(status, self.status_of(in_child))

    def test_a_child_of_a_child(self):
        self.assertEqual(5, self.status_of(
            lambda: sys.exit(self.status_of(lambda: sys.exit(5)))))

    def test_a_block_of_the_child(self):
        def enter():
            with OneProcess():
                pass
            os._exit(6)
        self.assertEqual(6, self.status_of(enter))

    def test_a_log_handler_that_fails(self):
        with failing_handler():
            self.assertEqual(0, self.status_of(int))

    def test_the_process_itself_goes_on(self):
        with self.assertRaises(KeyError), OneProcess() as process:
            process.check()
            raise KeyError


def forked(check):
    """Whether `check` returns true in a forked child."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitpid(pid, 0) == (pid, 0)


class LockTests(unittest.TestCase):

    def test_one_thread_at_a_time(self):
        lock, order = Lock(), []

        def take():
            with lock:
                order.append('other')
        with lock:
            thread = threading.Thread(target=take)
            thread.start()
            order.append('mine')
        thread.join()
        self.assertEqual(['mine', 'other'], order)

    def test_to_take_it_twice_is_an_error_and_no_hang(self):
        lock = Lock()
        with lock:
            with self.assertRaisesRegex(RuntimeError, 'holds the lock'):
                with lock:
                    self.fail('it has it')
        with lock:
            pass

    def test_whether_this_thread_holds_it(self):
        lock = Lock()
        self.assertFalse(lock.held)
        with lock:
            self.assertTrue(lock.held)
            others = []
            thread = threading.Thread(target=lambda: others.append(lock.held))
            thread.start()
            thread.join()
            self.assertEqual([False], others)
        self.assertFalse(lock.held)

    def test_a_forked_child_has_it_anew(self):
        lock = Lock()
        held, release = threading.Event(), threading.Event()

        def hold():
            with lock:
                held.set()
                release.wait()
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        self.assertFalse(lock.acquire(False))
        self.assertTrue(forked(lambda: lock.acquire(False)))
        self.assertFalse(lock.acquire(False))
        release.set()
        thread.join()
        self.assertTrue(lock.acquire(False))
        lock.release()

    def test_who_forks_with_it_gives_it_back_on_both_sides(self):
        lock = Lock()
        pid = -1
        try:
            with lock:
                pid = os.fork()
            if not pid:
                os._exit(0 if lock.acquire(False) else 1)
        finally:
            if not pid:
                os._exit(2)
        self.assertEqual((pid, 0), os.waitpid(pid, 0))

    def test_is_renewed_before_others_are_told_of_a_fork(self):
        class Told:
            def __init__(self):
                self.lock = Lock()
                self.taken = False

            def after_fork(self):
                self.taken = self.lock.acquire(False)

        told = Told()
        tell_forks(told)
        held, release = threading.Event(), threading.Event()

        def hold():
            with told.lock:
                held.set()
                release.wait()
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        self.assertTrue(forked(lambda: told.taken))
        release.set()
        thread.join()
