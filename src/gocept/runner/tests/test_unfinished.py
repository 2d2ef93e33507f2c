import os

from gocept.runner import unfinished
from gocept.runner.tests.test_process import ProcessTestCase


class UnfinishedTests(ProcessTestCase):

    def test_until_it_has_ended(self):
        child = self.start()
        self.assertIn(child, unfinished.processes)
        child.terminate()
        self.assertNotIn(child, unfinished.processes)

    def test_all_are_ended(self):
        children = [self.start() for _ in range(3)]
        unfinished.end_all(os.getpid())
        self.assertFalse(any(each.returncode is None for each in children))

    def test_a_fork_ends_nothing(self):
        child = self.start()
        unfinished.end_all(os.getpid() + 1)
        self.assertIsNone(child.poll())
