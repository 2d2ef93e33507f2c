"""What a timer of systemd makes of a cron expression."""

import os
import random
import re
import subprocess
import unittest
from datetime import datetime

from cronsim import CronSim

from gocept.runner.schedule import Schedule
from gocept.runner.schedule.calendar import on_calendar
from gocept.runner.schedule.expression import Expression
from gocept.runner.tests.services import need
from gocept.runner.tests.support import DEADLINE

START = datetime(2027, 2, 27, 12, 34, 56)
COUNT = 40

ELAPSE = re.compile(r'(?:Next elapse|Iter. #\d+): \w+ (.*) UTC')

DAYS = '*', '*/2', '1', '15', '1-7', '31', '5,10-12', 'L', 'LW', '1,L', '*/9'
WEEKDAYS = ('*', 'mon-fri', 'sun', '0', '7', '*/2', '1,3', '5L', '5#2', '0#5',
            'mon,5L')


class CalendarTests(unittest.TestCase):

    def test_examples(self):
        for expression, expected in (
                ('* * * * *', ['*-*-* *:*:00']),
                ('*/15 2-5 * * mon-fri',
                 ['Mon..Fri *-*-* 02..05:00,15,30,45:00']),
                ('@daily', ['*-*-* 00:00:00']),
                ('0 0 1 jan,jul *', ['*-01,07-01 00:00:00']),
                ('0 0 * * 0,6', ['Sat..Sun *-*-* 00:00:00']),
                ('0 0 * * 1,2,4', ['Mon..Tue,Thu *-*-* 00:00:00']),
                ('0 0 L * *', ['*-*~01 00:00:00']),
                ('0 0 * * 5L', ['Fri *-*~07/1 00:00:00']),
                ('0 0 * * 5#2', ['Fri *-*-08..14 00:00:00'])):
            with self.subTest(expression=expression):
                self.assertEqual(expected, on_calendar(expression))

    def test_either_of_two_days_needs_two_lines(self):
        self.assertEqual(
            ['*-*-13 00:00:00', 'Fri *-*-* 00:00:00'],
            on_calendar('0 0 13 * fri'))
        self.assertEqual(
            ['Mon..Fri *-*~01 00:00:00', 'Fri *-*~02,03 00:00:00'],
            on_calendar('0 0 LW * *'))

    def test_a_zone(self):
        self.assertEqual(['*-*-* 02:30:00 Europe/Berlin'],
                         on_calendar('30 2 * * *', 'Europe/Berlin'))

    def test_what_cannot_be_said(self):
        with self.assertRaisesRegex(ValueError, 'from the end of a month'):
            on_calendar('0 0 */2 * 5L')

    def test_no_expression(self):
        with self.assertRaisesRegex(ValueError, 'needs five fields'):
            on_calendar('0 0')

    def test_the_times_are_those_of_cron(self):
        analyze = need(self, 'systemd-analyze')
        generator = random.Random(18)
        for days in DAYS:
            for weekdays in WEEKDAYS:
                minute = generator.choice(['0', '*/20', '7,8,9', '59'])
                hour = generator.choice(['0', '*/6', '2-5', '23'])
                month = generator.choice(['*', '*/5', '2', '1-3,12'])
                expression = f'{minute} {hour} {days} {month} {weekdays}'
                with self.subTest(expression=expression):
                    self.check(analyze, expression)

    def check(self, analyze, expression):
        try:
            Schedule(expression, 'UTC')
        except ValueError:  # no month has such a day
            return
        try:
            specifications = on_calendar(expression)
        except ValueError:
            self.assertRegex(expression, 'L')
            return
        done = subprocess.run(
            [analyze, 'calendar', f'--iterations={COUNT}',
             f'--base-time={START} UTC', *specifications],
            env=os.environ | {'TZ': 'UTC', 'LC_ALL': 'C'},
            capture_output=True, text=True, timeout=DEADLINE)
        self.assertEqual('', done.stderr)
        found = sorted({datetime.fromisoformat(time)
                        for time in ELAPSE.findall(done.stdout)})[:COUNT]
        times = CronSim(Expression(expression).fields, START)
        self.assertEqual([next(times) for _ in found], found)
        self.assertLess(4, len(found))  # some are too rare for systemd
