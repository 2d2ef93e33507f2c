"""Which run is due, by a clock that the test moves."""

import datetime
import random
import time
import unittest
from unittest import mock

from gocept.runner.schedule import Schedule
from gocept.runner.schedule.agenda import NEVER, Agenda

LOGGER = 'gocept.runner.runner'


def at(text):
    """The instant of a time in a January, in UTC."""
    return datetime.datetime.fromisoformat(f'2026-01-{text}+00:00').timestamp()


class AgendaCase(unittest.TestCase):

    def setUp(self):
        self.now, self.monotonic = at('10 12:00:00'), 1000.0
        self.enterContext(mock.patch.object(time, 'time', lambda: self.now))
        self.enterContext(mock.patch.object(
            time, 'monotonic', lambda: self.monotonic))
        self.logs = self.enterContext(self.assertLogs(LOGGER, 'INFO'))
        self.logs.output.append('')  # there may be none
        self.logs.records.append(None)

    def agenda(self, missed='skip', expression='0 * * * *', jitter=0):
        return Agenda(Schedule(expression, 'UTC', jitter), missed,
                      "worker 'crawl'")

    def go(self, seconds):
        self.now += seconds
        self.monotonic += seconds

    def assertWaits(self, until, agenda):
        self.assertIsNone(agenda.due)
        self.assertEqual(('realtime', at(until)), agenda.start)

    def assertDue(self, run, agenda):
        self.assertEqual((None, at(run)), (agenda.start, agenda.due))

    def assertTold(self, message):
        self.assertEqual(message, self.logs.records[-1].getMessage())


class NextTests(AgendaCase):

    def test_one_that_has_never_run(self):
        for missed in 'skip', 'once':
            agenda = self.agenda(missed)
            agenda.look(NEVER)
            self.assertWaits('10 13:00', agenda)

    def test_a_time_comes(self):
        agenda = self.agenda()
        agenda.look(NEVER)
        self.go(3599)
        agenda.look(NEVER)
        self.assertWaits('10 13:00', agenda)
        self.go(1)
        agenda.look(NEVER)
        self.assertDue('10 13:00', agenda)
        self.go(10)
        agenda.done()
        agenda.look(at('10 13:00'))
        self.assertWaits('10 14:00', agenda)
        self.assertEqual(1, len(self.logs.records))

    def test_it_is_seen_late(self):
        # As on a machine that was suspended.
        for missed in 'skip', 'once':
            self.now = at('10 12:00')
            agenda = self.agenda(missed)
            agenda.look(NEVER)
            self.go(2 * 3600 + 5)
            agenda.look(NEVER)
            self.assertDue('10 14:00', agenda)

    def test_it_was_done_elsewhere(self):
        agenda = self.agenda()
        agenda.look(at('10 12:00'))
        self.go(3601)
        agenda.look(at('10 13:00'))
        self.assertWaits('10 14:00', agenda)
        self.assertTold(
            "The run of worker 'crawl' at 2026-01-10 13:00:00+00:00"
            ' was done already, elsewhere')

    def test_nothing_was_missed(self):
        for missed in 'skip', 'once':
            agenda = self.agenda(missed)
            agenda.look(at('10 12:00'))
            self.assertWaits('10 13:00', agenda)
        self.assertEqual(1, len(self.logs.records))

    def test_missed_runs_are_left_out(self):
        agenda = self.agenda()
        agenda.look(at('10 04:00'))
        self.assertWaits('10 13:00', agenda)
        self.assertTold(
            "The run of worker 'crawl' at 2026-01-10 12:00:00+00:00"
            " was missed, and is left out (missed='skip')")

    def test_one_run_for_all_that_were_missed(self):
        agenda = self.agenda('once')
        agenda.look(at('10 04:00'))
        self.assertDue('10 12:00', agenda)
        self.assertTold(
            "The run of worker 'crawl' at 2026-01-10 12:00:00+00:00"
            ' was missed, and is done now')
        agenda.done()
        agenda.look(at('10 12:00'))
        self.assertWaits('10 13:00', agenda)

    def test_runs_missed_in_a_long_tick(self):
        for missed, due in ('skip', None), ('once', '10 15:00'):
            self.now = at('10 12:00')
            agenda = self.agenda(missed)
            agenda.look(NEVER)
            self.go(3600)
            agenda.look(NEVER)
            self.go(2 * 3600 + 1)
            agenda.done()
            agenda.look(at('10 13:00'))
            if due:
                self.assertDue(due, agenda)
            else:
                self.assertWaits('10 16:00', agenda)

    def test_jitter(self):
        agenda = self.agenda(jitter=60)
        agenda.look(NEVER)
        start = agenda.start.at
        self.assertTrue(at('10 13:00') <= start < at('10 13:01'))
        self.now = start - 0.001
        self.assertTrue(agenda.is_current())
        self.now = start
        agenda.look(NEVER)
        self.assertDue('10 13:00', agenda)

    def test_a_jitter_where_clocks_change(self):
        agenda = Agenda(Schedule('15 2,3 * * *', 'Europe/Berlin', 1800),
                        'skip', 'x')
        self.now = datetime.datetime(
            2026, 3, 29, tzinfo=datetime.UTC).timestamp()
        with mock.patch('random.SystemRandom.random', return_value=0.999):
            agenda.look(NEVER)
        # At 03:00, in place of 02:15; the next one is that of 03:15.
        self.assertEqual(self.now + 3600 + 900, agenda.latest_start)

    def test_a_run_by_hand(self):
        agenda = self.agenda()
        self.go(1800)
        agenda.hurry()
        self.assertDue('10 12:00', agenda)


class FailureTests(AgendaCase):

    def due(self, missed='skip', expression='0 * * * *'):
        agenda = self.agenda(missed, expression)
        agenda.look(NEVER)
        self.go(3600)
        agenda.look(NEVER)
        self.assertDue('10 13:00', agenda)
        return agenda

    def test_it_is_tried_again(self):
        for missed in 'skip', 'once':
            self.now = at('10 12:00')
            agenda = self.due(missed)
            agenda.failed(7, 3)
            self.assertEqual(('monotonic', self.monotonic + 7), agenda.start)
            self.assertTold(
                "The run of worker 'crawl' at 2026-01-10 13:00:00+00:00 will "
                'be tried again in 7 s, after 3 errors in a row')
            self.go(7)
            agenda.look(NEVER)
            self.assertDue('10 13:00', agenda)

    def test_it_was_done_elsewhere_meanwhile(self):
        agenda = self.due()
        agenda.failed(7, 1)
        self.go(7)
        agenda.look(at('10 13:00'))
        self.assertWaits('10 14:00', agenda)

    def test_it_is_given_up_for_the_next_one(self):
        for missed in 'skip', 'once':
            self.now = at('10 12:00')
            agenda = self.due(missed)
            self.go(3595)
            agenda.failed(7, 9)
            self.assertWaits('10 14:00', agenda)
            self.assertTold(
                "The run of worker 'crawl' at 2026-01-10 13:00:00+00:00 is "
                'given up, since the next one is due at 2026-01-10 '
                '14:00:00+00:00')
            self.go(5)
            agenda.look(NEVER)
            self.assertDue('10 14:00', agenda)

    def test_the_next_one_has_come_in_the_tick(self):
        agenda = self.due()
        self.go(2 * 3600 + 1)
        agenda.failed(7, 1)
        self.assertWaits('10 16:00', agenda)
        self.now = at('10 12:00')
        agenda = self.due('once')
        self.go(2 * 3600 + 1)
        agenda.failed(7, 1)
        self.assertEqual('monotonic', agenda.start.clock)
        self.go(7)
        agenda.look(NEVER)
        self.assertDue('10 15:00', agenda)

    def test_a_run_that_may_be_committed_in_part(self):
        for missed in 'skip', 'once':
            self.now = at('10 12:00')
            agenda = self.due(missed)
            agenda.failed(7, 1, uncertain=True)
            self.assertWaits('10 14:00', agenda)
            self.assertIn('not tried again', self.logs.output[-1])
            self.go(100)
            agenda.look(NEVER)  # woken early, by a signal say
            self.assertWaits('10 14:00', agenda)

    def test_the_database_cannot_be_read(self):
        agenda = self.agenda()
        agenda.postpone(5)
        self.assertEqual('monotonic', agenda.start.clock)
        self.go(5)
        agenda.look(NEVER)
        self.assertWaits('10 13:00', agenda)
        self.now = at('10 13:00')
        agenda.postpone(5)
        self.go(5)
        agenda.look(NEVER)
        self.assertDue('10 13:00', agenda)


class ExtraTests(AgendaCase):

    def run_asks_for(self, pause, missed='skip'):
        agenda = self.agenda(missed)
        agenda.look(NEVER)
        self.go(3600)
        agenda.look(NEVER)
        agenda.done(pause)
        return agenda

    def test_another_tick(self):
        agenda = self.run_asks_for(5)
        self.assertEqual(('monotonic', self.monotonic + 5), agenda.start)
        self.go(5)
        agenda.look(at('10 13:00'))
        self.assertEqual((None, None), (agenda.start, agenda.due))
        agenda.done(0)
        agenda.look(at('10 13:00'))
        self.assertEqual((None, None), (agenda.start, agenda.due))
        agenda.done()
        agenda.look(at('10 13:00'))
        self.assertWaits('10 14:00', agenda)

    def test_it_comes_after_the_next_run(self):
        agenda = self.run_asks_for(7200)
        self.assertWaits('10 14:00', agenda)
        self.go(3600)
        agenda.look(at('10 13:00'))
        self.assertDue('10 14:00', agenda)

    def test_it_fails(self):
        agenda = self.run_asks_for(5)
        self.go(5)
        agenda.look(at('10 13:00'))
        agenda.failed(9, 1)
        self.assertEqual(('monotonic', self.monotonic + 9), agenda.start)
        self.go(9)
        agenda.look(at('10 13:00'))
        self.assertEqual((None, None), (agenda.start, agenda.due))

    def test_a_dry_run_stores_nothing(self):
        agenda = self.run_asks_for(None, 'once')
        agenda.look(NEVER)
        self.assertWaits('10 14:00', agenda)


class ClockTests(AgendaCase):

    def test_it_is_put_forward(self):
        agenda = self.agenda()
        agenda.look(NEVER)
        self.now = at('10 15:30')
        agenda.look(NEVER)
        self.assertDue('10 15:00', agenda)

    def test_it_is_put_forward_before_another_attempt(self):
        agenda = self.agenda()
        agenda.look(NEVER)
        self.go(3600)
        agenda.look(NEVER)
        agenda.failed(600, 10)
        self.assertFalse(agenda.has_started())
        self.now = at('10 14:00')
        self.assertTrue(agenda.has_started())
        agenda.look(NEVER)
        self.assertDue('10 14:00', agenda)

    def test_it_is_put_forward_before_another_tick(self):
        agenda = self.agenda()
        agenda.look(NEVER)
        self.go(3600)
        agenda.look(NEVER)
        agenda.done(1800)
        self.now = at('10 14:00')
        self.assertTrue(agenda.has_started())
        agenda.look(at('10 13:00'))
        self.assertDue('10 14:00', agenda)

    def test_it_is_set_back(self):
        agenda = self.agenda()
        agenda.look(NEVER)
        self.now = at('10 11:59')
        self.assertFalse(agenda.is_current())
        agenda.look(NEVER)
        self.assertWaits('10 12:00', agenda)

    def test_it_is_set_back_less(self):
        agenda = self.agenda()
        agenda.look(NEVER)
        self.go(600)
        self.now = at('10 12:05')
        self.assertTrue(agenda.is_current())

    def test_the_last_run_lies_in_the_future(self):
        agenda = self.agenda('once')
        for _ in range(2):
            agenda.look(at('12 07:00'))
            self.assertWaits('12 08:00', agenda)
        self.assertTold(
            "The last run of worker 'crawl' is that of 2026-01-12 "
            '07:00:00+00:00, which is in the future: the clock was set back. '
            'The next run is due at 2026-01-12 08:00:00+00:00')
        self.assertEqual(2, len(self.logs.records))  # and the empty one
        self.assertTrue(agenda.is_current())
        self.now = at('12 08:00')
        agenda.look(at('12 07:00'))
        self.assertDue('12 08:00', agenda)

    def test_a_run_is_not_done_twice(self):
        agenda = self.agenda()
        agenda.look(NEVER)
        self.go(3600)
        agenda.look(NEVER)
        self.now -= 60
        agenda.done()
        agenda.look(at('10 13:00'))
        self.assertWaits('10 14:00', agenda)


class Hours:
    """What is used of `ISchedule`: each hour, without a search."""

    def after(self, instant):
        return (instant // 3600 + 1) * 3600

    def before(self, instant):
        return instant // 3600 * 3600

    def delay(self):
        return 0

    def clock(self, instant):
        return datetime.datetime.fromtimestamp(instant, datetime.UTC)


class RandomTests(AgendaCase):
    """Runs that succeed, fail, are killed and are done by others."""

    def test_no_run_is_done_twice_or_too_soon(self):
        for seed in range(300):
            with self.subTest(seed=seed):
                self.simulate(random.Random(seed))

    def simulate(self, chance):
        self.now, self.stored = at('10 12:00:00'), NEVER
        self.missed = chance.choice(['skip', 'once'])
        agenda = self.restarted()
        for _ in range(60):
            if agenda.start is not None:
                self.wait(agenda, chance)
            if chance.random() < 0.1:  # another machine
                self.stored = max(self.stored, Hours().before(self.now))
            agenda.look(self.stored)
            if agenda.start is None:
                agenda = self.tick(agenda, chance)
            elif agenda.start.clock == 'realtime':
                last = max(self.stored, self.uncertain)
                self.assertEqual(Hours().after(max(self.now, last)),
                                 agenda.start.at)
                if self.missed == 'once' and last > NEVER:
                    self.assertGreaterEqual(last, Hours().before(self.now))

    def restarted(self):
        self.uncertain = NEVER  # only the process knows it
        return Agenda(Hours(), self.missed, "worker 'crawl'")

    def wait(self, agenda, chance):
        if chance.random() < 0.2:  # it is woken early, or the clock is set
            self.go(chance.uniform(0, agenda.start.left() + 1))
            self.now += chance.choice([0, 0, 0, 5000, -5000])
        else:
            self.go(max(0, agenda.start.left())
                    + chance.choice([0, 0.01, 10, 4000]))

    def tick(self, agenda, chance):
        run = agenda.due
        self.go(chance.choice([0.1, 30, 3500, 9000]))
        if run is not None and self.stored >= run:
            agenda.done()  # as `AlreadyRun` does
            return agenda
        outcome = chance.choice(['done', 'done', 'more', 'failed',
                                 'uncertain', 'killed'])
        if outcome in ('done', 'more') and run is not None:
            self.assertEqual(run, Hours().before(run))
            self.assertGreater(run, self.stored)
            self.stored = run
        if outcome == 'killed':
            return self.restarted()
        if outcome == 'uncertain' and run is not None:
            self.uncertain = max(self.uncertain, run)
        if outcome in ('failed', 'uncertain'):
            agenda.failed(chance.choice([1, 60]), 1,
                          uncertain=outcome == 'uncertain')
        else:
            agenda.done(chance.choice([0, 100]) if outcome == 'more'
                        else None)
        return agenda
