import collections
import contextlib
import errno
import os
import re
import resource
import signal
import threading
import unittest
from unittest import mock

from gocept.runner.errors import DeadlineExceeded, ShortageError
from gocept.runner.process import descendants, ending, procfs
from gocept.runner.process.ending import Ending, end
from gocept.runner.process.pidfd import PidAndStart
from gocept.runner.tests import support
from gocept.runner.tests.process.test_child import Fallback, ProcessTestCase
from gocept.runner.tests.victims import (
    DEADLINE,
    STUBBORN,
    adopt_no_more,
    ended,
    lines,
    looks_for_marks,
    until,
)


class EndingTests(ProcessTestCase):

    def ending(self, process, signum=signal.SIGTERM, timeout=10):
        it = Ending(process, signum, timeout)
        self.addCleanup(it.close)
        return it

    def test_it_has_a_deadline(self):
        it = self.ending(self.start(), timeout=10)
        self.assertFalse(it.over)
        self.assertLess(it.left, 10.1)
        self.assertGreater(it.left, 1)

    def test_nobody_to_end(self):
        it = self.ending(None)
        self.assertTrue(it.over)
        end([it])
        self.assertFalse(it.failed)

    def test_who_is_known_is_taken_in_once(self):
        child = self.start_victim('fork(int)\npause()')
        [grandchild] = self.children_of(child)
        it = self.ending(child)
        self.assertTrue(it.add(descendants.hold_if(
            grandchild.pid, lambda _: True)))
        for pid in grandchild.pid, child.pid:
            self.assertFalse(it.add(descendants.hold_if(pid, lambda _: True)))
        self.assertFalse(it.over)

    def test_ends_that_are_no_event_are_looked_for(self):
        child = self.start_victim('fork(int)\npause()')
        [grandchild] = self.children_of(child)
        it = self.ending(child)
        it.add(PidAndStart(grandchild.pid))
        self.assertLess(it.left, 0.1)
        end([it])
        self.assertFalse(it.failed)
        self.assertTrue(ended(grandchild))

    def test_strays(self):
        child = self.start_victim('leave(ignore)')
        [leaver] = self.children_of(child)
        child.wait()
        strays = self.ending(None, timeout=0.05)
        end([strays])
        self.assertTrue(ended(leaver))
        self.assertFalse(strays.failed)

    def test_a_signal_that_is_refused_does_not_keep_others_from_theirs(self):
        children = [self.start(), self.start()]
        endings = [self.ending(child, timeout=0.05) for child in children]
        refused = mock.patch.object(
            children[0], 'signal_group', side_effect=PermissionError(1, 'no'))
        with refused, mock.patch.object(ending, 'KILL_TIMEOUT', 0.05):
            with self.assertLogs('gocept.runner.process', 'WARNING') as logs:
                end(endings)
        self.assertEqual([True, False], [it.failed for it in endings])
        self.assertEqual(-signal.SIGTERM, children[1].returncode)
        self.assertIn(f'Process {children[0].pid} cannot be sent signal 15',
                      logs.output[0])

    def test_who_was_not_ours_when_he_was_looked_at_again(self):
        child = self.start()
        stranger = self.start()
        # The number of a descendant that has ended meanwhile.
        with mock.patch('gocept.runner.process.procfs.children',
                        return_value=[stranger.pid]):
            child.terminate()
        self.assertIsNone(stranger.poll())

    def test_one_look_for_marks_serves_all(self):
        children = [self.start() for _ in range(5)]
        with looks_for_marks() as looks:
            end([self.ending(child) for child in children])
        self.assertEqual(1, looks.call_count)
        self.assertEqual([-signal.SIGTERM] * 5,
                         [child.returncode for child in children])

    def test_an_orphan_that_is_becoming_another_program(self):
        self.addCleanup(adopt_no_more)
        child = self.start_victim('leave()\npause()', adopt=True)
        [orphan] = self.children_of(child)
        until(lambda: procfs.stat(orphan.pid).parent == os.getpid())
        looks = iter(range(20))
        variable = procfs.variable

        def becoming(pid, name):
            if pid == orphan.pid and next(looks, None) is not None:
                return None
            return variable(pid, name)
        with mock.patch.object(procfs, 'variable', becoming), (
                mock.patch.object(ending, '_BECOMING', DEADLINE)):
            child.terminate()
        self.assertTrue(orphan.has_ended())
        self.assertEqual([], list(looks))

    def test_an_orphan_that_never_becomes_another_program(self):
        self.addCleanup(adopt_no_more)
        child = self.start_victim('leave()\npause()', adopt=True)
        [orphan] = self.children_of(child)
        until(lambda: procfs.stat(orphan.pid).parent == os.getpid())
        with mock.patch.object(procfs, 'variable', return_value=None), (
                mock.patch.object(ending, '_BECOMING', 0.05)):
            child.terminate()
        self.assertFalse(child.finished)
        orphan.signal(signal.SIGKILL)
        self.assertTrue(ended(orphan))

    def test_the_dead_of_a_parent_that_does_not_reap_them(self):
        self.addCleanup(adopt_no_more)
        child = self.start_victim('fork(os.setsid)\npause()', adopt=True)
        [grandchild] = self.children_of(child)
        grandchild.signal(signal.SIGKILL)
        until(lambda: procfs.stat(grandchild.pid).state == 'Z')
        child.terminate()
        self.assertIsNone(procfs.stat(grandchild.pid))

    def test_an_exception_leaves_nothing_open(self):
        child = self.start_victim('fork(int)\npause()')
        self.children_of(child)
        it = self.ending(child)
        before = collections.Counter(self.state()['descriptors'])
        with mock.patch.object(Ending, 'step', side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                end([it])
        after = collections.Counter(self.state()['descriptors'])
        self.assertFalse(after - before)

    def test_again_after_an_exception(self):
        child = self.start(STUBBORN, shell=True, stdout='pipe')
        lines(child, 1)
        with mock.patch.object(Ending, 'step', side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                child.terminate()
        self.assertEqual(-signal.SIGKILL, child.terminate(timeout=0.01))

    def test_stopped_descendants_are_continued(self):
        child = self.start_victim('''
            leave(lambda: signal.signal(signal.SIGTERM, lambda *args: (
                say('told'), os._exit(0))))
            pause()
            ''')
        [leaver] = self.children_of(child)
        leaver.signal(signal.SIGSTOP)
        until(lambda: procfs.stat(leaver.pid).state == 'T')
        child.terminate()
        self.assertEqual([['told']], lines(child, 1))


class FallbackEndingTests(Fallback, EndingTests):
    pass


class DescriptorTests(ProcessTestCase):
    """No descriptor is left when the end begins."""

    @contextlib.contextmanager
    def none_left(self):
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(map(int, support.open_descriptors()))
        taken = []
        try:
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (highest + 5, limits[1]))
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in taken:
                os.close(fd)

    def test_descendants_end_too(self):
        child = self.start_victim('''
            leave(ignore)
            fork(ignore)
            pause()
            ''')
        handles = self.children_of(child, 2)
        with self.none_left():
            child.terminate(timeout=0.05)
        self.assertEqual(-signal.SIGTERM, child.returncode)
        self.assertAllEnded(handles)
        self.assertTrue(child.finished)

    def test_the_channels_are_closed(self):
        child = self.start_victim('leave()\npause()')
        [leaver] = self.children_of(child)
        with self.none_left():
            child.terminate()
        self.assertTrue(child.channel.closed)
        self.assertTrue(leaver.has_ended())

    def test_who_is_stubborn_is_killed(self):
        child = self.start_stubborn()
        with self.none_left():
            child.terminate(timeout=0.05)
        self.assertEqual(-signal.SIGKILL, child.returncode)

    def test_two_ends_at_once(self):
        children = [self.start_victim('''
            fork(ignore)
            leave(ignore)
            pause()
            ''') for _ in range(2)]
        handles = [handle for child in children
                   for handle in self.children_of(child, 2)]
        with self.none_left():
            threads = [threading.Thread(
                target=child.terminate, kwargs={'timeout': 0.1})
                for child in children]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(DEADLINE)
        self.assertEqual([-signal.SIGTERM] * 2,
                         [child.returncode for child in children])
        self.assertEqual([True] * 2, [child.finished for child in children])
        self.assertAllEnded(handles)

    def test_a_child_is_waited_for(self):
        child = self.start_victim('sys.stdin.readline()', stdin='pipe')
        with self.none_left():
            self.assertRaises(DeadlineExceeded, child.wait, 0.01)
            child.channel.write(b'\n')
            self.assertEqual(0, child.wait(DEADLINE))

    def test_a_signal_for_all_misses_nobody_in_silence(self):
        child = self.start_victim('leave()\npause()')
        [leaver] = self.children_of(child)
        with self.none_left():
            with self.assertRaisesRegex(ShortageError, 'no descriptor is'):
                child.signal_all(signal.SIGKILL)
            self.assertEqual(-signal.SIGKILL, child.wait(DEADLINE))
        self.assertFalse(leaver.has_ended())

    def test_not_even_one_is_given_back(self):
        # Nobody can be looked for: the end of the child is a success, but the
        # next call looks for its descendants.
        child = self.start_victim('leave()\npause()')
        [leaver] = self.children_of(child)
        with self.assertLogs(
                'gocept.runner.process', 'WARNING') as logs, (
                self.none_left()), mock.patch.object(
                ending, '_BECOMING', 0.05), mock.patch(
                'gocept.runner.process.procfs.is_readable',
                return_value=False), mock.patch(
                'gocept.runner.process.procfs.words', return_value=[]), (
                mock.patch('gocept.runner.process.procfs.pids',
                           return_value=iter(()))):
            self.assertEqual(-signal.SIGTERM, child.terminate())
        self.assertIn('may be left', logs.output[0])
        self.assertFalse(child.finished)
        self.assertFalse(leaver.has_ended())
        child.terminate()
        self.assertTrue(child.finished)
        self.assertTrue(leaver.has_ended())

    def test_another_error_is_no_reason_for_pauses(self):
        child = self.start()
        with mock.patch('gocept.runner.process.ending.Poller',
                        side_effect=OSError(errno.ENOMEM, 'none')):
            with self.assertRaises(OSError):
                child.terminate()
        self.assertEqual(-signal.SIGTERM, child.terminate())


class FallbackDescriptorTests(Fallback, DescriptorTests):

    level = 1


class PrivilegeTests(ProcessTestCase):

    @unittest.skipUnless(os.geteuid() == 0, 'needs root')
    def test_a_child_that_we_may_not_signal(self):
        output = self.run_program('''
            import logging
            from gocept.runner.process import ending
            from gocept.runner.errors import DeadlineExceeded
            logging.basicConfig(stream=sys.stdout, format='%(message)s')
            ending.KILL_TIMEOUT = 0.05
            child, other = Process('sleep 100'), Process('sleep 100')
            os.setresuid(65534, 65534, 0)
            try:
                child.terminate(timeout=0.01)
            except DeadlineExceeded as error:
                print(error)
            os.setresuid(0, 0, 0)
            print(child.poll(), child.terminate(), other.terminate())
            ''')
        self.assertIn('cannot be sent signal 15', output[0])
        self.assertIn('cannot be sent signal 9', output[1])
        self.assertEqual(
            ["still there: <Process 'sleep' (...): running>, killed 0.05 s "
             'ago', 'None -15 -15'],
            [re.sub(r'\(\d+\)', '(...)', line) for line in output[-2:]])

    @unittest.skipUnless(os.geteuid() == 0, 'needs root')
    def test_it_reads_the_end_of_its_input_first(self):
        output = self.run_program('''
            child = Process('cat', stdin='pipe', stdout='pipe')
            os.setresuid(65534, 65534, 0)
            say(child.terminate(timeout=DEADLINE), child.killed)
            ''')
        self.assertEqual('0 False', output[-1])

    def test_the_others_are_told(self):
        child = self.start_victim('''
            fork(int)
            fork(int)
            leave()
            pause()
            ''')
        told = []
        first, *others = self.children_of(child, 3)

        def send(handle, signum):
            if not told or handle.pid == told[0]:
                told.append(handle.pid)
                raise PermissionError(errno.EPERM, 'refused')
            told.append(handle.pid)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle.fileno(), signum)
        with mock.patch('gocept.runner.process.pidfd.Handle.signal', send):
            with self.assertRaises(PermissionError):
                child.signal_all(signal.SIGKILL)
        self.assertEqual(child.pid, told[0])
        for handle in (first, *others):
            self.assertTrue(ended(handle))

