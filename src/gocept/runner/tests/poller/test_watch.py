import unittest

from gocept.runner.poller.watch import Watch
from gocept.runner.waits.source import Source


class WatchTests(unittest.TestCase):

    def setUp(self):
        self.called = []
        self.results = []
        self.watch = Watch(Source(), 'label', self.call)

    def call(self, item, label):
        self.called.append((item, label))
        if isinstance(item, BaseException):
            raise item

    def test_each_item_is_handed_over(self):
        self.watch.call([1, 2], self.results)
        self.assertEqual([(1, 'label'), (2, 'label')], self.called)
        self.assertEqual([], self.results)

    def test_an_error_is_logged_and_the_others_go_on(self):
        with self.assertLogs('gocept.runner.poller', 'ERROR') as logs:
            self.watch.call([ValueError('no'), 2], self.results)
        self.assertEqual(2, len(self.called))
        self.assertIn("'label' failed", logs.output[0])
        self.assertIn('ValueError: no', logs.output[0])

    def test_what_ends_the_program_leaves_the_others(self):
        with self.assertRaises(SystemExit):
            self.watch.call([1, SystemExit(), 2, 3], self.results)
        self.assertEqual([(2, 'label'), (3, 'label')], self.results)

    def test_a_callback_that_removes_itself(self):
        self.watch.callback = lambda item, label: setattr(
            self.watch, 'callback', None)
        self.watch.call([1, 2], self.results)
        self.assertEqual([(2, 'label')], self.results)
