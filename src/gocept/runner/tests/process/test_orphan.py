"""Children that another child has forked for us."""

import os
import signal
import threading

from gocept.runner.poller import Poller
from gocept.runner.process import procfs, terminate_all
from gocept.runner.process.adoption import adoption
from gocept.runner.process.orphan import Expected, Orphan
from gocept.runner.tests.process.orphans import Forking
from gocept.runner.tests.process.test_child import ProcessTestCase
from gocept.runner.tests.victims import (
    adopt_no_more,
    ended,
    lines,
    until,
    without_pidfds,
)

MARK = '''os.environ['GOCEPT_RUNNER_CHILD'] = {mark!r}; '''


class OrphanTests(Forking, ProcessTestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(adopt_no_more)
        self.child = self.start_forking()

    def test_status_and_signals(self):
        orphan = self.fork(self.child)
        self.assertIsNone(orphan.poll())
        self.assertTrue(orphan.is_ours)
        orphan.send_signal(signal.SIGUSR1)
        self.assertEqual(-signal.SIGUSR1, orphan.wait(60))
        self.assertEqual(7, self.fork(self.child, 'os._exit(7)').wait(60))
        orphan = self.fork(self.child)
        self.assertRegex(
            repr(orphan), r"<Orphan 'worker' \(\d+\): running>")
        orphan.signal_group(signal.SIGKILL)
        self.assertEqual(-9, orphan.wait(60))
        self.assertEqual([], list(orphan.channels()))

    def test_the_end_is_an_event_of_a_poller(self):
        ends = []
        with Poller() as poller:
            orphan = self.fork(self.child, 'os._exit(3)', poller=poller,
                               on_end=ends.append)
            self.assertEqual([(3, orphan)], poller.poll(60))
        self.assertEqual([orphan], ends)

    def test_the_background_thread_notices_the_end(self):
        ended = threading.Event()
        self.fork(self.child, 'pass', on_end=lambda it: ended.set())
        self.assertTrue(ended.wait(60))

    def test_pidfd_that_came_along(self):
        expected = Expected()
        _, pid, _ = self.ask(self.child, 'signal.pause()')
        orphan = Orphan(expected, 'worker', int(pid), os.pidfd_open(int(pid)))
        self.assertEqual(-15, orphan.terminate(timeout=60))

    def test_without_pidfds(self):
        with without_pidfds():
            orphan = self.fork(self.child)
            orphan.send_signal(signal.SIGTERM)
            self.assertEqual(-15, orphan.wait(60))

    def test_a_status_is_not_lost_however_late_we_learn_of_it(self):
        with Expected() as expected:
            _, pid, _ = self.ask(self.child, 'os._exit(5)')
            until(lambda: procfs.look(int(pid)).state == 'Z')
            adoption.look()  # as the background thread does each second
            orphan = Orphan(expected, 'worker', int(pid))
        self.addCleanup(orphan.close)
        adoption.look()
        self.assertEqual((5, False), (orphan.wait(60), orphan.lost))

    def test_what_is_not_expected_any_more_is_reaped(self):
        with Expected():
            _, pid, _ = self.ask(self.child, 'os._exit(5)')
            until(lambda: procfs.look(int(pid)).state == 'Z')
        until(lambda: adoption.look() or not procfs.look(int(pid)).start)

    def test_somebody_else_has_reaped_it(self):
        with Expected() as expected:
            _, pid, _ = self.ask(self.child, 'os._exit(5)')
            os.waitpid(int(pid), 0)
            orphan = Orphan(expected, 'worker', int(pid))
        self.addCleanup(orphan.close)
        self.assertEqual((255, True), (orphan.wait(60), orphan.lost))

    def test_it_outlives_the_child_that_has_forked_it(self):
        orphan = self.fork(self.child)
        self.child.terminate()
        self.assertIsNone(orphan.poll())
        other = self.start_forking()
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.terminate()
        self.assertIsNone(orphan.poll())
        self.assertEqual(-15, orphan.terminate())

    def test_it_ends_with_its_descendants(self):
        with Expected() as expected:
            words = self.ask(self.child, (
                MARK.format(mark=expected.mark)
                + 'import subprocess; subprocess.Popen('
                  '["sh", "-c", "setsid sleep 100 & echo $!"]); '
                  'signal.pause()'))
            words = [words, *lines(self.child, 1)]
            [pid] = (each[1] for each in words if each[0] == 'forked')
            [[below]] = (each for each in words if len(each) == 1)
            orphan = Orphan(expected, 'worker', int(pid))
        below = self.hold(below)
        # Until then they descend from the child.
        until(lambda: procfs.look(int(pid)).parent == os.getpid())
        self.child.terminate()
        self.assertFalse(below.has_ended())
        orphan.send_signal(signal.SIGKILL)
        orphan.wait(60)
        self.assertFalse(below.has_ended())
        orphan.terminate()
        self.assertTrue(ended(below))

    def test_several_end_side_by_side(self):
        orphans = [self.fork(self.child) for _ in range(5)]
        orphans.append(self.fork(
            self.child, 'signal.signal(15, signal.SIG_IGN); '
            f'open({str(self.dir / "deaf")!r}, "w"); '
            '[signal.pause() for _ in iter(int, 1)]'))
        until((self.dir / 'deaf').exists)
        terminate_all([*orphans, self.child], timeout=0.1)
        self.assertEqual([-15] * 5 + [-9],
                         [each.returncode for each in orphans])
        self.assertTrue(orphans[-1].killed)

    def test_it_is_ended_at_the_exit(self):
        program = self.program('''
            from gocept.runner.process import Process
            from gocept.runner.tests.process.orphans import Forking

            class Test(Forking):
                start = staticmethod(Process)

                def addCleanup(self, *args):
                    """The exit does it."""

                def assertEqual(self, one, other):
                    assert one == other

            test = Test()
            child = test.start_forking()
            orphan = test.fork(child)
            print(orphan.pid, flush=True)
            ''')
        pid = int(program.process.stdout.readline())
        self.assertEqual(0, program.end(), program.output)
        self.assertNotEqual('S', procfs.look(pid).state)

    def test_in_a_fork_it_is_no_child(self):
        orphan = self.fork(self.child)
        pid = os.fork()
        if not pid:
            os._exit(orphan.is_ours or orphan.poll() is not None)
        self.assertEqual(0, os.waitpid(pid, 0)[1])
        self.assertIsNone(orphan.poll())
