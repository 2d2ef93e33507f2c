import datetime
import math
import os
import time
import unittest
import unittest.mock

import zope.interface.verify

from gocept.runner.interfaces import ISchedule
from gocept.runner.schedule import Schedule


def instant(text: str) -> float:
    """The seconds since the epoch, of a time with its offset."""
    return datetime.datetime.fromisoformat(text).timestamp()


def runs(schedule: Schedule, begin: str, end: str) -> list[str]:
    """The times of the runs after `begin`, and until `end`."""
    found = []
    now = schedule.after(instant(begin))
    while now <= instant(end):
        found.append(f'{schedule.clock(now):%d %H:%M %z}')
        now = schedule.after(now)
    return found


class ScheduleTest(unittest.TestCase):

    def test_it_fulfils_its_contract(self) -> None:
        zope.interface.verify.verifyObject(ISchedule, Schedule('@daily'))

    def test_the_next_run_is_later_than_the_instant(self) -> None:
        schedule = Schedule('*/15 2-5 * * mon-fri', 'Europe/Berlin')
        self.assertEqual(
            instant('2026-11-30T02:00:00+01:00'),
            schedule.after(instant('2026-11-27T05:45:00+01:00')))
        self.assertEqual(
            instant('2026-11-27T05:45:00+01:00'),
            schedule.after(instant('2026-11-27T05:44:59.999+01:00')))

    def test_the_last_run_is_not_later_than_the_instant(self) -> None:
        schedule = Schedule('*/15 2-5 * * mon-fri', 'Europe/Berlin')
        for now in ('2026-11-27T05:45:00+01:00', '2026-11-27T05:45:00.5+01:00',
                    '2026-11-30T01:59:59.999+01:00'):
            self.assertEqual(instant('2026-11-27T05:45:00+01:00'),
                             schedule.before(instant(now)), now)

    def test_a_run_at_a_skipped_time_is_due_when_the_clock_goes_on(
            self) -> None:
        schedule = Schedule('30 2 * * *', 'Europe/Berlin')
        self.assertEqual(
            ['28 02:30 +0100', '29 03:00 +0200', '30 02:30 +0200'],
            runs(schedule, '2026-03-28T00:00+01:00', '2026-03-31T00:00+02:00'))

    def test_a_run_at_a_repeated_time_is_due_the_first_time(self) -> None:
        schedule = Schedule('30 2 * * *', 'Europe/Berlin')
        self.assertEqual(
            ['24 02:30 +0200', '25 02:30 +0200', '26 02:30 +0100'],
            runs(schedule, '2026-10-24T00:00+02:00', '2026-10-27T00:00+01:00'))

    def test_runs_in_each_hour_follow_the_clock(self) -> None:
        schedule = Schedule('30 * * * *', 'Europe/Berlin')
        self.assertEqual(
            ['29 01:30 +0100', '29 03:30 +0200'],
            runs(schedule, '2026-03-29T01:00+01:00', '2026-03-29T04:00+02:00'))
        self.assertEqual(
            ['25 01:30 +0200', '25 02:30 +0200', '25 02:30 +0100',
             '25 03:30 +0100'],
            runs(schedule, '2026-10-25T01:00+02:00', '2026-10-25T04:00+01:00'))

    def test_a_clock_may_move_by_half_an_hour(self) -> None:
        schedule = Schedule('*/10 2 * * *', 'Australia/Lord_Howe')
        self.assertEqual(
            ['04 02:30 +1100', '04 02:40 +1100', '04 02:50 +1100'],
            runs(schedule, '2026-10-04T00:00+10:30', '2026-10-05T00:00+11:00'))
        schedule = Schedule('*/20 1 * * *', 'Australia/Lord_Howe')
        self.assertEqual(
            ['05 01:00 +1100', '05 01:20 +1100', '05 01:40 +1100',
             '05 01:40 +1030'],
            runs(schedule, '2026-04-05T00:00+11:00', '2026-04-06T00:00+10:30'))
        schedule = Schedule('*/30 3 * * *', 'Australia/Lord_Howe')
        self.assertEqual(
            ['04 03:00 +1100', '04 03:30 +1100'],
            runs(schedule, '2026-10-04T00:00+10:30', '2026-10-05T00:00+11:00'))

    def test_a_zone_may_skip_a_day(self) -> None:
        self.assertEqual(
            ['29 12:00 -1000', '31 00:00 +1400', '31 12:00 +1400'],
            runs(Schedule('0 12 * * *', 'Pacific/Apia'),
                 '2011-12-29T00:00-10:00', '2012-01-01T00:00+14:00'))

    def test_a_day_may_begin_without_midnight(self) -> None:
        self.assertEqual(
            ['24 00:00 +0200', '25 01:00 +0300', '26 00:00 +0300'],
            runs(Schedule('@daily', 'Africa/Cairo'),
                 '2025-04-23T12:00+02:00', '2025-04-26T12:00+03:00'))

    def test_29_february_of_a_weekday_is_found(self) -> None:
        schedule = Schedule('0 0 * 2 mon#5', 'UTC')
        self.assertEqual(
            instant('2112-02-29T00:00+00:00'),
            schedule.after(instant('2072-02-29T00:00+00:00')))

    def test_shortcuts_are_understood(self) -> None:
        now = instant('2026-11-28T18:00+00:00')
        for shortcut, expected in {
                '@hourly': '2026-11-28T19:00', '@daily': '2026-11-29T00:00',
                ' @MIDNIGHT ': '2026-11-29T00:00',
                '@weekly': '2026-11-29T00:00', '@monthly': '2026-12-01T00:00',
                '@yearly': '2027-01-01T00:00', '@annually': '2027-01-01T00:00',
        }.items():
            self.assertEqual(instant(f'{expected}+00:00'),
                             Schedule(shortcut, 'UTC').after(now), shortcut)

    def test_without_a_timezone_it_is_that_of_the_system(self) -> None:
        self.addCleanup(time.tzset)
        self.enterContext(unittest.mock.patch.dict(
            os.environ, TZ='CET-1CEST,M3.5.0,M10.5.0/3'))
        time.tzset()
        schedule = Schedule('30 2 * * *')
        self.assertEqual(
            ['28 02:30 +0100', '29 03:00 +0200', '30 02:30 +0200'],
            runs(schedule, '2026-03-28T00:00+01:00', '2026-03-31T00:00+02:00'))

    def test_a_system_whose_clock_python_cannot_name(self) -> None:
        self.addCleanup(time.tzset)
        self.enterContext(unittest.mock.patch.dict(os.environ, TZ='XXX+24'))
        time.tzset()
        with self.assertRaisesRegex(ValueError, r'^timezone: .*name a zone$'):
            Schedule('@daily')
        Schedule('@daily', 'UTC')

    def test_the_delay_is_less_than_the_jitter(self) -> None:
        self.assertEqual(0, Schedule('@daily').delay())
        delays = {Schedule('@daily', jitter=10).delay() for _ in range(100)}
        self.assertTrue(all(0 <= delay < 10 for delay in delays))
        self.assertGreater(len(delays), 50)

    def test_it_is_shown_as_it_was_given(self) -> None:
        self.assertEqual('0 4 * * *', str(Schedule(' 0  4 * * * ')))
        self.assertEqual('0 4 * * * (Europe/Berlin)',
                         str(Schedule('0 4 * * *', 'Europe/Berlin')))

    def test_what_cannot_be_meant_is_refused(self) -> None:
        for expression, message in {
                '61 * * * *': "bad minute '61', needs 0 to 59",
                '* 24 * * *': "bad hour '24'",
                '* * 0 * *': "bad day of the month '0'",
                '* * * foo *': "bad month 'foo'",
                '* * * * fri-mon': "bad day of the week 'fri-mon'",
                '*/0 * * * *': "bad minute '*/0'",
                '* * * * ' + '1' * 5000: 'bad day of the week',
                '* * * *': 'needs five fields',
                '0 * * * * *': 'has 6; there is none for seconds or years',
                '': 'needs five fields',
                '@reboot': 'there is no such shortcut; there are @yearly, ',
                '0 0 30 2 *': 'names no time in the next 50 years',
                '0 0 * 2 7#5 *': 'needs five fields',
                '* * */20 * 1L': 'names no time',
                '*/5 2 * 3 7L': 'names no time',  # the clock skips it
                15: 'needs a cron expression, not 15',
        }.items():
            with self.subTest(expression), self.assertRaises(
                    ValueError) as raised:
                Schedule(expression, 'Europe/Berlin')
            self.assertIn(message, str(raised.exception))
            self.assertNotIn('\n', str(raised.exception))

    def test_a_zone_that_does_not_exist_is_refused(self) -> None:
        for name, message in {
                'europe/berlin': "(did you mean 'Europe/Berlin'?)",
                '': "(an example is 'Europe/Berlin')",
                'Europe': 'there is no time zone',
                '../localtime': 'there is no time zone',
                '/etc/passwd': 'there is no time zone',
                'a\0b': 'there is no time zone',
                'a\nb': r"there is no time zone 'a\nb'",
                1: 'needs the name of a zone, not 1',
        }.items():
            with self.subTest(name), self.assertRaises(ValueError) as raised:
                Schedule('@daily', name)
            self.assertIn(message, str(raised.exception))
            self.assertNotIn('\n', str(raised.exception))

    def test_a_jitter_does_not_mix_up_runs(self) -> None:
        for expression, jitter in {
                '* * * * *': 60, '@hourly': 3600, '0 2,4 * * *': 3600,
                '0 0 * 2 mon#5': 86400}.items():
            Schedule(expression, 'UTC', jitter)
        for expression, jitter in {
                '* * * * *': 61, '@hourly': 3601, '0 2,4 * * *': 7201,
                '59 23,0 * * *': 3601, '*/15 2-5 * * mon': 1000}.items():
            with self.subTest(expression), self.assertRaisesRegex(
                    ValueError, rf'jitter: {jitter} s are more than the '):
                Schedule(expression, 'UTC', jitter)

    def test_a_jitter_is_right_on_any_day(self) -> None:
        for month, day in (11, 28), (3, 20), (3, 28):  # they change on 29
            now = datetime.datetime(2026, month, day).timestamp()
            with unittest.mock.patch('time.time', return_value=now):
                Schedule('15 2,3 * * *', 'Europe/Berlin', 1800)

    def test_a_jitter_is_a_number_of_seconds(self) -> None:
        for jitter in -1, math.nan, math.inf, '5', None, True:
            with self.subTest(jitter), self.assertRaisesRegex(
                    ValueError, 'jitter: needs a number of seconds'):
                Schedule('@daily', jitter=jitter)
