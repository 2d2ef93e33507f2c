import gc
import os
import signal
import threading
import unittest

from gocept.runner.process.roster import roster
from gocept.runner.tests.process.test_child import (
    Fallback,
    ProcessTestCase,
)
from gocept.runner.waits.sigaction import SA_NOCLDWAIT, Action, action


class RosterTests(unittest.TestCase):

    def test_as_long_as_one_is_being_started_it_is_not_complete(self):
        self.assertTrue(roster.is_complete())
        with roster.starting():
            self.assertFalse(roster.is_complete())
        self.assertTrue(roster.is_complete())

    def test_members(self):
        self.assertNotIn(1, roster)
        roster.add(1, self)
        self.assertIn(1, roster)
        roster.discard(1)
        self.assertNotIn(1, roster)

    def test_one_that_was_forgotten_is_no_member(self):
        roster.add(1, type('Process', (), {})())
        gc.collect()
        self.assertNotIn(1, roster)


class IgnoredTests(ProcessTestCase):
    """SIGCHLD is ignored, so that children are not to be reaped."""

    def setUp(self):
        super().setUp()
        self.addCleanup(signal.signal, signal.SIGCHLD, signal.signal(
            signal.SIGCHLD, signal.SIG_IGN))

    def assertIgnored(self):
        self.assertEqual(signal.SIG_IGN, action(signal.SIGCHLD).handler)

    def start_here(self, command='exit 3', **options):
        with self.assertLogs('gocept.runner.process', 'WARNING') as logs:
            child = self.start(command, shell=True, **options)
        self.assertIn('SIGCHLD is ignored', logs.output[0])
        return child

    def test_statuses_are_known(self):
        self.assertEqual(3, self.start_here().wait())
        self.assertIgnored()

    def test_in_a_thread(self):
        found = []
        thread = threading.Thread(
            target=lambda: found.append(self.start_here().wait()))
        thread.start()
        thread.join()
        self.assertEqual([3], found)
        self.assertIgnored()

    def test_ignored_again_after_the_last(self):
        first = self.start_here('exec sleep 100')
        with self.assertNoLogs('gocept.runner.process'):
            second = self.start('exit 4', shell=True)
        self.assertEqual(4, second.wait())
        self.assertIsNone(action(signal.SIGCHLD).handler)
        first.terminate()
        self.assertIgnored()

    def test_after_a_start_that_fails(self):
        with self.assertLogs('gocept.runner.process', 'WARNING'):
            with self.assertRaises(FileNotFoundError):
                self.start('/does/not/exist')
        self.assertIgnored()

    def test_another_action_that_was_installed_meanwhile_stays(self):
        child = self.start_here('exec sleep 100')
        signal.signal(signal.SIGCHLD, lambda *args: None)
        handler = action(signal.SIGCHLD).handler
        child.terminate()
        self.assertEqual(handler, action(signal.SIGCHLD).handler)

    def test_a_handler_that_wants_no_zombies(self):
        signal.signal(signal.SIGCHLD, lambda *args: None)
        now = action(signal.SIGCHLD)
        handler = now.handler
        now.flags |= SA_NOCLDWAIT
        action(signal.SIGCHLD, now)
        child = self.start_here('exec sleep 100')
        now = action(signal.SIGCHLD)
        self.assertEqual((handler, 0),
                         (now.handler, now.flags & SA_NOCLDWAIT))
        child.terminate()
        self.assertEqual(-signal.SIGTERM, child.returncode)
        self.assertTrue(action(signal.SIGCHLD).flags & SA_NOCLDWAIT)
        action(signal.SIGCHLD, Action())

    def test_a_fork_ignores_it_again(self):
        self.start_here('exec sleep 100')
        pid = os.fork()
        if not pid:
            os._exit(action(signal.SIGCHLD).handler or 0)
        self.assertEqual(
            signal.SIG_IGN,
            os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


class FallbackIgnoredTests(Fallback, IgnoredTests):
    pass


del ProcessTestCase
