"""Numbers of workers: what they are, and those of a state."""

import unittest

from gocept.runner.operation.numbers import (
    BUCKETS,
    Durations,
    added,
    numbers_of,
)
from gocept.runner.operation.state import LARGEST
from gocept.runner.tests.operation.states import NOW, state


class DurationTests(unittest.TestCase):

    def test_buckets(self) -> None:
        durations = Durations()
        for seconds in 0, BUCKETS[0], BUCKETS[-1], BUCKETS[-1] + 1:
            durations.add(seconds)
        self.assertEqual([2, 1, 1], [
            durations.counts[0], *durations.counts[-2:]])
        self.assertEqual(sum(BUCKETS[::len(BUCKETS) - 1]) + BUCKETS[-1] + 1,
                         durations.sum)


class AddedTests(unittest.TestCase):

    def total(self, number, **changes):
        """What a program may have counted."""
        return {'counts': {'ticks': number, 'aborts': 0},
                'durations': [number] * (len(BUCKETS) + 1),
                'seconds': number / 2, **changes}

    def test_no_program_before(self):
        self.assertEqual(self.total(3), added(self.total(3), None))

    def test_a_program_before(self):
        self.assertEqual(
            self.total(7), added(self.total(3), self.total(4)))

    def test_a_program_of_another_version(self):
        before = self.total(4, counts={'ticks': 4, 'naps': 2}, durations=[4])
        self.assertEqual(
            self.total(3, counts={'ticks': 7, 'aborts': 0}),
            added(self.total(3), before))

    def test_the_sum_is_one_that_can_be_read(self):
        found = added(self.total(LARGEST), self.total(LARGEST))
        self.assertEqual((LARGEST, LARGEST), (
            found['counts']['ticks'], found['seconds']))


class StateTests(unittest.TestCase):

    def test_a_state_of_the_first_versions(self):
        numbers = numbers_of(state(counts={
            'ticks': 6, 'commits': 3, 'aborts': 2, 'uncertain': 1,
            'conflicts': 5, 'retries': 4, 'timed_out': 7, 'items_done': 8,
            'items_failed': 9, 'items_skipped': 10, 'items_uncertain': 11}))
        self.assertEqual(
            ('nightly', '/', '4.0', NOW['realtime'] - 1000),
            (numbers.worker, numbers.site, numbers.version, numbers.started))
        self.assertEqual({'committed': 3, 'aborted': 2, 'uncertain': 1,
                          'skipped': 0}, numbers.ticks)
        self.assertEqual({'done': 8, 'failed': 9, 'skipped': 10,
                          'uncertain': 11}, numbers.items)
        self.assertEqual((5, 4, 7, 0), (
            numbers.conflicts, numbers.retries, numbers.timed_out,
            numbers.child_starts))
        self.assertEqual((0.5, NOW['realtime'] - 40, NOW['realtime'] + 60), (
            numbers.last_duration, numbers.last_success, numbers.next_tick))
        self.assertEqual((0, None), (
            sum(numbers.durations.counts), numbers.tick_started))

    def test_what_programs_before_have_counted(self):
        durations = [0] * len(BUCKETS) + [2]
        numbers = numbers_of(state(site='shop', total={
            'counts': {'commits': 10, 'elsewhere': 2, 'child_starts': 5,
                       'child_restarts': 4, 'items_done': 7},
            'durations': durations, 'seconds': 20.5}))
        self.assertEqual({'committed': 10, 'aborted': 0, 'uncertain': 0,
                          'skipped': 2}, numbers.ticks)
        self.assertEqual(('shop', 5, 4, 7, durations, 20.5), (
            numbers.site, numbers.child_starts, numbers.child_restarts,
            numbers.items['done'], numbers.durations.counts,
            numbers.durations.sum))

    def test_durations_of_another_version(self):
        numbers = numbers_of(state(total={
            'counts': {}, 'durations': [7], 'seconds': 20.5}))
        self.assertEqual(Durations(), numbers.durations)

    def test_a_tick_in_progress(self):
        children = [{'name': 'a', 'pid': 1, 'state': 'ready'},
                    {'name': 'b', 'pid': 2, 'state': 'ended 0'}]
        numbers = numbers_of(state(
            phase='tick', next_tick=None, children=children))
        self.assertEqual((1, None, NOW['realtime'] - 40), (
            numbers.children, numbers.next_tick, numbers.tick_started))
        numbers = numbers_of(state(phase='ended', children=children))
        self.assertEqual((0, None, None), (
            numbers.children, numbers.next_tick, numbers.tick_started))

    def test_nothing_yet(self):
        numbers = numbers_of(state(last_tick=None, last_success=None))
        self.assertEqual((None, None), (
            numbers.last_duration, numbers.last_success))
