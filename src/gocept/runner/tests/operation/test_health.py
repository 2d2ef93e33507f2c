"""Who is healthy."""

import unittest
from typing import Any

from gocept.runner.operation.health import HEALTHY, by, judge
from gocept.runner.operation.vitals import HIDDEN, Process
from gocept.runner.tests.operation.states import (
    NOW,
    due,
    facts,
    moment,
    state,
)


def word(changes: dict[str, Any], **facts_: Any) -> str:
    return judge(state(**changes), facts(**facts_)).word


class ProcessTests(unittest.TestCase):

    def test_one_that_waits(self) -> None:
        verdict = judge(state(), facts())
        self.assertTrue(verdict.healthy)
        self.assertEqual(('waiting', 60, ''), (
            verdict.word, verdict.seconds, verdict.reason))

    def test_the_end_of_the_process(self) -> None:
        for process in (
                None,  # there is none
                Process('S', 8),  # another one has its number
                Process('Z', 7), Process('X', 7)):
            with self.subTest(vars(process) if process else None):
                self.assertEqual('dead', word({}, process=process))

    def test_one_that_is_stopped(self) -> None:
        for letter in 'Tt':
            self.assertEqual('stopped', word({}, process=Process(letter, 7)))

    def test_one_that_waits_for_a_disk_is_alive(self) -> None:
        self.assertEqual('waiting', word({}, process=Process('D', 7)))

    def test_after_a_boot(self) -> None:
        # Another process may have the same number, and the same start.
        self.assertEqual('dead', word({}, boot='second'))

    def test_on_another_machine(self) -> None:
        self.assertEqual('unknown', word({}, boot='second', host='there'))

    def test_in_another_container(self) -> None:
        for namespaces in 'pid:[2]', '':
            self.assertEqual('unknown', word({}, namespaces=namespaces))
            self.assertEqual('ended', word({'phase': 'ended'},
                                           namespaces=namespaces))

    def test_a_process_that_is_hidden(self) -> None:
        self.assertEqual('unknown', word({}, process=Process(HIDDEN, None)))

    def test_a_system_without_proc(self) -> None:
        nothing = {'boot': '', 'namespaces': ''}
        self.assertEqual('waiting', word(
            {**nothing, 'start': None}, process=Process(HIDDEN, None),
            **nothing))
        self.assertEqual('dead', word(
            {**nothing, 'start': None}, process=None, **nothing))

    def test_one_that_has_ended(self) -> None:
        ended = {'phase': 'ended', 'status': 0, 'next_tick': None}
        self.assertEqual('ending', word(ended))
        self.assertEqual('ended', word(ended, process=None))
        self.assertEqual('ended', word(ended, process=Process('S', 8)))
        self.assertEqual('ended', word(ended, process=Process('Z', 7)))
        self.assertEqual('ended', word(ended, boot='second'))
        self.assertNotIn('ended', HEALTHY)
        self.assertNotIn('ending', HEALTHY)


class LoopTests(unittest.TestCase):

    def test_one_whose_tick_is_overdue(self) -> None:
        for clock in 'monotonic', 'realtime':
            for ago, expected in (
                    (-86400, 'waiting'), (0, 'waiting'), (9.9, 'waiting'),
                    (10.1, 'overdue'), (1e6, 'overdue')):
                with self.subTest((clock, ago)):
                    self.assertEqual(
                        expected, word({'next_tick': due(-ago, clock)}))

    def test_the_other_clock_does_not_matter(self) -> None:
        # The clock on the wall was set, or the machine was suspended.
        for step in -1e6, -3600, 3600, 1e6:
            stepped = {**NOW, 'realtime': NOW['realtime'] + step}
            self.assertEqual('waiting', word({}, now=stepped))
        later = {**NOW, 'monotonic': NOW['monotonic'] + 1e6}
        self.assertEqual('waiting', word(
            {'next_tick': due(60, 'realtime')}, now=later))

    def test_a_tick_that_may_hold_the_interpreter_since_its_time(self) -> None:
        # Nothing was written since: the tick may run.
        for timeout, ago, expected in (
                (2, 1.9, 'waiting'), (2, 2.1, 'overdue'),
                (60, 59, 'waiting'), (60, 61, 'overdue')):
            with self.subTest((timeout, ago)):
                self.assertEqual(expected, word(
                    {'tick_timeout': timeout, 'next_tick': due(-ago),
                     'written': moment(1000)}))

    def test_a_tick_that_was_not_begun_has_no_time_of_its_own(self) -> None:
        changes = {'tick_timeout': 60, 'next_tick': due(-11),
                   'written': moment(6)}
        self.assertEqual('overdue', word(changes))

    def test_a_tick_in_progress(self) -> None:
        tick = {'phase': 'tick', 'next_tick': None, 'since': moment(9)}
        self.assertEqual('ticking', word(tick))
        self.assertEqual('ticking', word({
            **tick, 'deadline': NOW['monotonic'] + 1}))
        self.assertEqual('hanging', word({
            **tick, 'deadline': NOW['monotonic'] - 0.1}))

    def test_a_tick_without_a_deadline_is_late_and_healthy(self) -> None:
        for passed, last, expected in (
                (9, 0.1, 'ticking'), (11, 0.1, 'late'), (11, 8, 'ticking'),
                (1e5, 8, 'late')):
            with self.subTest((passed, last)):
                found = state(phase='tick', next_tick=None,
                              since=moment(passed))
                found['last_tick']['duration'] = last  # type: ignore[index]
                verdict = judge(found, facts())
                self.assertEqual(expected, verdict.word)
                self.assertTrue(verdict.healthy)

    def test_one_that_is_silent_hangs_since_it_wrote(self) -> None:
        verdict = judge(state(
            phase='between', next_tick=None, since=moment(9),
            written=moment(3), tick_timeout=1), facts())
        self.assertEqual(('hanging', 3), (verdict.word, verdict.seconds))

    def test_before_the_first_tick(self) -> None:
        for passed, written, timeout, expected in (
                (1, 1, None, 'starting'), (11, 11, None, 'late'),
                (9, 0.9, 1, 'starting'), (9, 1.1, 1, 'hanging'),
                (59, 59, 60, 'late'), (61, 61, 60, 'hanging')):
            with self.subTest((passed, written, timeout)):
                self.assertEqual(expected, word({
                    'phase': 'starting', 'next_tick': None,
                    'since': moment(passed), 'written': moment(written),
                    'tick_timeout': timeout}))

    def test_between_a_tick_and_the_pause(self) -> None:
        self.assertEqual('ticking', word({
            'phase': 'between', 'next_tick': None, 'since': moment(1)}))

    def test_the_age_of_the_last_success(self) -> None:
        for success, started, max_age, expected in (
                (40, 1000, 39, 'old'), (40, 1000, 41, 'waiting'),
                (None, 1000, 999, 'old'), (None, 1000, 1001, 'waiting')):
            with self.subTest((success, started, max_age)):
                found = state(
                    started=moment(started), last_success=(
                        None if success is None else moment(success)))
                self.assertEqual(
                    expected, judge(found, facts(), max_age).word)

    def test_one_that_is_ill_anyway_is_not_only_old(self) -> None:
        self.assertEqual(
            'dead', judge(state(), facts(process=None), 1).word)


class DoubtTests(unittest.TestCase):

    OVERDUE = {'next_tick': due(-20)}

    def test_what_was_written_just_before_may_change(self) -> None:
        for ago, expected in (0.1, True), (1.9, True), (2.1, False):
            verdict = judge(
                state(**self.OVERDUE, written=moment(ago)), facts())
            self.assertEqual(('overdue', expected),
                             (verdict.word, verdict.is_doubtful))

    def test_a_limit_that_has_passed_just_before(self) -> None:
        # The next item may have begun, and its limit be written late.
        for ago, expected in (0.5, True), (1.9, True), (2.1, False):
            deadline = NOW['monotonic'] - ago
            for changes, word in (
                    ({'phase': 'tick', 'next_tick': None, 'tick_timeout': 5,
                      'deadline': deadline}, 'hanging'),
                    ({'phase': 'starting', 'next_tick': None,
                      'tick_timeout': 40 - ago}, 'hanging'),
                    ({'next_tick': due(-ago - 5), 'tick_timeout': 5},
                     'overdue')):
                with self.subTest(word, ago=ago):
                    verdict = judge(state(**changes), facts())
                    self.assertEqual((word, expected),
                                     (verdict.word, verdict.is_doubtful))
            verdict = judge(state(), facts(), 40 - ago)
            self.assertEqual(('old', expected),
                             (verdict.word, verdict.is_doubtful))

    def test_after_the_clock_was_set(self) -> None:
        # The worker wakes up within a second.
        stepped = {**NOW, 'realtime': NOW['realtime'] + 3600}
        verdict = judge(state(next_tick=due(60, 'realtime')),
                        facts(now=stepped))
        self.assertEqual(('overdue', True),
                         (verdict.word, verdict.is_doubtful))

    def test_who_is_healthy_is_not_in_doubt(self) -> None:
        self.assertFalse(judge(state(written=moment()), facts()).is_doubtful)


class ClockTests(unittest.TestCase):

    def test_the_clocks(self) -> None:
        self.assertEqual(2, by('monotonic', {'realtime': 1, 'monotonic': 2}))
        self.assertEqual(1, by('realtime', {'realtime': 1, 'monotonic': 2}))
