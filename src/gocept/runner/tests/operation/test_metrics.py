"""What is counted of a worker."""

import dataclasses
import json
import sys
import time
from unittest import mock

from ZODB.POSException import ConflictError

from gocept.runner import Exit, transaction_per_item
from gocept.runner.errors import AlreadyRun, CannotStart, UsageError
from gocept.runner.events import (
    ChildStarted,
    TickAborted,
    TickStarted,
    notify,
)
from gocept.runner.operation import metrics
from gocept.runner.operation.asked import Asked
from gocept.runner.operation.attach import Watched, attached
from gocept.runner.operation.metrics import Counting
from gocept.runner.runner import MainLoop
from gocept.runner.tests.support import replaced_modules
from gocept.runner.tests.test_mainloop import LoopCase
from gocept.runner.waits.instants import Instant


class CountingTests(LoopCase):

    def counted(self, loop):
        counting = Counting(loop, 'expire', None)
        with counting.hearing():
            loop()
        return counting.numbers()

    def test_ticks(self):
        before = time.time()
        numbers = self.counted(self.loop(0, ValueError, 0))
        self.assertEqual(
            {'committed': 3, 'aborted': 1, 'uncertain': 0, 'skipped': 0},
            numbers.ticks)
        self.assertEqual(4, sum(numbers.durations.counts))
        self.assertLessEqual(numbers.last_duration, numbers.durations.sum)
        self.assertLessEqual(before, numbers.last_success)
        self.assertIsNone(numbers.tick_started)
        self.assertIsNone(numbers.next_tick)

    def test_conflicts_and_retries(self):
        numbers = self.counted(
            self.loop(ConflictError, 0, *[ConflictError] * 3))
        self.assertEqual((4, 3), (numbers.conflicts, numbers.retries))
        self.assertEqual(1, numbers.ticks['aborted'])

    def test_a_run_that_was_done_elsewhere(self):
        loop = self.loop()
        counting = Counting(loop, 'expire', None)
        with counting.hearing():
            notify(TickStarted(loop))
            notify(TickAborted(loop, AlreadyRun()))
        numbers = counting.numbers()
        self.assertEqual((1, 0), (numbers.ticks['skipped'],
                                  numbers.ticks['aborted']))
        self.assertIsNotNone(numbers.last_success)

    def test_time_limits(self):
        loop = self.loop()
        loop.timed_out = 2
        self.assertEqual(
            2, Counting(loop, 'expire', None).numbers().timed_out)

    def test_items(self):
        seen = []

        def fail():
            raise ValueError

        @transaction_per_item
        def items():
            for each in int, fail, int:
                yield each
                seen.append(dict(counting.numbers().items))
            if len(seen) < 4:
                raise ConflictError  # and so all of it is repeated
        loop = MainLoop(self.app, 0, items, once=True)
        counting = Counting(loop, 'items', None)
        with counting.hearing():
            loop()
        self.assertEqual([1, 1, 2, 3, 3, 4], [each['done'] for each in seen])
        # What a retry takes back is counted when the tick has ended.
        self.assertEqual({0}, {each['failed'] for each in seen})
        self.assertEqual({'done': 4, 'failed': 1, 'skipped': 0,
                          'uncertain': 0}, counting.numbers().items)

    def test_a_tick_in_progress(self):
        before, seen = time.time(), []
        loop = self.loop(lambda: seen.append(counting.numbers()) or Exit)
        counting = Counting(loop, 'expire', None)
        with counting.hearing():
            loop()
        [numbers] = seen
        self.assertLessEqual(before, numbers.tick_started)
        self.assertIsNone(numbers.next_tick)

    def test_a_pause(self):
        loop = self.loop()
        counting = Counting(loop, 'expire', 'shop/de/')
        for instant in (Instant('monotonic', time.monotonic() + 1000),
                        Instant('realtime', time.time() + 1000)):
            loop.next_tick = instant
            self.assertAlmostEqual(time.time() + 1000,
                                   counting.numbers().next_tick, delta=500)
        self.assertEqual('shop/de', counting.numbers().site)

    def test_children(self):
        counting = Counting(self.loop(), 'expire', None)
        children = [mock.Mock(returncode=None) for _ in range(3)]
        for child, name in zip(children, ('mail', 'search', 'mail'),
                               strict=True):
            child.name = name
        with counting.hearing():
            for child in children[:2]:
                notify(ChildStarted(child))
            children[0].returncode = -15
            self.assertEqual(1, counting.numbers().children)
            notify(ChildStarted(children[2]))
        numbers = counting.numbers()
        self.assertEqual((2, 3, 1), (
            numbers.children, numbers.child_starts, numbers.child_restarts))

    def test_names_of_children_are_forgotten(self):
        counting = Counting(self.loop(), 'expire', None)
        self.enterContext(mock.patch.object(metrics, '_MOST_NAMES', 2))
        with counting.hearing():
            for name in 'abca':
                child = mock.Mock(returncode=0)
                child.name = name
                notify(ChildStarted(child))
        self.assertEqual(0, counting.numbers().child_restarts)

    def test_numbers_are_plain(self):
        numbers = self.counted(self.loop(0))
        values = dataclasses.asdict(numbers)
        self.assertEqual(values, json.loads(json.dumps(values)))


class AttachedTests(LoopCase):

    def attach(self, where):
        with attached(Watched(self.loop(), 'expire', None, None,
                              Asked(metrics=where), 30, int)):
            self.fail('it was attached')

    def test_without_the_package(self):
        self.enterContext(replaced_modules({
            'prometheus_client': None,
            'gocept.runner.operation.exposition': None}))
        del sys.modules['gocept.runner.operation.exposition']
        with self.assertRaisesRegex(
                UsageError, r'^--metrics needs .*: pip install '
                            r'"gocept.runner\[metrics\]"$'):
            self.attach('0')

    def test_no_place(self):
        with self.assertRaisesRegex(UsageError, '^--metrics: not .*PORT'):
            self.attach('here')
        with self.assertRaisesRegex(CannotStart, 'another place'):
            self.attach('192.0.2.1:1')
