import os
import signal
import time
from unittest import mock

from gocept.runner.process import descendants, registry, terminate_all
from gocept.runner.tests.process.test_child import Fallback, ProcessTestCase
from gocept.runner.tests.support import DEADLINE


class UnfinishedTests(ProcessTestCase):

    def test_until_it_has_ended(self):
        child = self.start()
        self.assertIn(child, registry.processes)
        child.terminate()
        self.assertNotIn(child, registry.processes)

    def test_all_are_ended(self):
        children = [self.start() for _ in range(3)]
        registry.end_all(os.getpid())
        self.assertFalse(any(each.returncode is None for each in children))

    def test_a_fork_ends_nothing(self):
        child = self.start()
        registry.end_all(os.getpid() + 1)
        self.assertIsNone(child.poll())


class FinishedTests(ProcessTestCase):

    def test_who_was_ended_is_not_looked_for_again(self):
        children = [self.start(stdout='pipe') for _ in range(5)]
        self.assertFalse(any(child.finished for child in children))
        with mock.patch.object(
                descendants, 'marked', side_effect=descendants.marked) as look:
            terminate_all(children)
            for child in children:
                child.terminate()
                child.close()
            terminate_all(children)
        self.assertEqual(1, look.call_count)
        self.assertTrue(all(child.finished for child in children))

    def test_who_has_ended_by_himself_is(self):
        child = self.start_victim('leave()')
        [leaver] = self.children_of(child)
        child.wait(DEADLINE)
        self.assertFalse(child.finished)
        child.terminate()
        self.assertTrue(leaver.has_ended())
        self.assertTrue(child.finished)

    def test_after_an_exception_it_is_not(self):
        child = self.start()
        with mock.patch('gocept.runner.process.registry.end',
                        side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                child.terminate()
        self.assertFalse(child.finished)


class AtMostTests(ProcessTestCase):
    """A time for all, however long each of them may take."""

    def test_who_would_take_longer_is_killed(self):
        children = [self.start_stubborn(stop_timeout=3600) for _ in range(3)]
        terminate_all(children, at_most=0.05)
        self.assertEqual([-signal.SIGKILL] * 3,
                         [each.returncode for each in children])
        self.assertEqual([True] * 3, [each.killed for each in children])

    def test_who_obeys_is_not(self):
        child = self.start(stop_timeout=3600)
        terminate_all([child], at_most=DEADLINE)
        self.assertEqual(-signal.SIGTERM, child.returncode)
        self.assertFalse(child.killed)

    def test_it_takes_that_long(self):
        child = self.start_stubborn(stop_timeout=3600)
        began = time.monotonic()
        terminate_all([child], at_most=0.05)
        self.assertGreaterEqual(time.monotonic() - began, 0.05)

    def test_the_time_of_a_child_may_be_shorter(self):
        child = self.start_stubborn(stop_timeout=0)
        terminate_all([child], at_most=3600)
        self.assertTrue(child.killed)

    def test_the_time_of_the_call_may_be_longer(self):
        child = self.start_stubborn()
        terminate_all([child], timeout=3600, at_most=0)
        self.assertTrue(child.killed)
        child = self.start_stubborn()
        terminate_all([child], timeout=0, at_most=3600)
        self.assertTrue(child.killed)


class FallbackAtMostTests(Fallback, AtMostTests):
    pass
