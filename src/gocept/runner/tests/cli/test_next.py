"""``gocept-runner next``, in this process."""

import datetime
from unittest import mock

from gocept.runner import runner
from gocept.runner.tests.cli.test_declared import CommandTestCase

HERE = __name__

NOW = '2026-10-24T12:00:15+02:00'


@runner.appmain(schedule='30 2 * * *', timezone='Europe/Berlin', jitter=90)
def nightly() -> None:
    """A worker at a time that the clock shows twice on one day."""


@runner.appmain(ticks=7)
def often() -> None:
    """A worker without a schedule."""


@runner.once()
def once() -> None:
    """A worker that runs one tick."""


class NextTests(CommandTestCase):

    def setUp(self) -> None:
        super().setUp()
        clock = self.enterContext(mock.patch('gocept.runner.cli.next.time'))
        clock.time.return_value = datetime.datetime.fromisoformat(
            NOW).timestamp()

    def declare(self, *names: str, more: str = '') -> None:
        self.conf('\n'.join(
            f'<runner:worker name="{name}" handler="{HERE}:{name}" {more} />'
            for name in names))

    def test_the_next_five_times(self) -> None:
        self.declare('nightly')
        self.assertEqual(0, self.command('next', 'nightly'))
        self.assertEqual('', self.errors)
        self.assertEqual('''\
TIME                  UTC     IN
Sun 2026-10-25 02:30  +02:00  14 h 29 min
Mon 2026-10-26 02:30  +01:00  1 d 15 h
Tue 2026-10-27 02:30  +01:00  2 d 15 h
Wed 2026-10-28 02:30  +01:00  3 d 15 h
Thu 2026-10-29 02:30  +01:00  4 d 15 h
A run starts up to 90 s later: the jitter.
''', self.output)
        self.assertFalse(self.has_database)

    def test_the_command_line_has_the_last_word(self) -> None:
        self.declare('nightly', 'often')
        for argv, expected in {
                ('nightly', '--timezone', 'America/New_York'):
                    'Sun 2026-10-25 02:30  -04:00  20 h 29 min',
                ('nightly', '--schedule', '@monthly'):
                    'Sun 2026-11-01 00:00  +01:00  7 d 12 h',
                ('often', '--schedule=0 0 * * *', '--timezone=UTC'):
                    'Sun 2026-10-25 00:00  +00:00  13 h 59 min',
        }.items():
            with self.subTest(argv):
                self.assertEqual(0, self.command('next', *argv), self.errors)
                self.assertEqual(expected, self.output.splitlines()[1])

    def test_zcml_says_when(self) -> None:
        self.declare('often', more='schedule="@hourly" timezone="UTC"')
        self.assertEqual(0, self.command('next', 'often'), self.errors)
        self.assertEqual('Sat 2026-10-24 11:00  +00:00  59 min 45 s',
                         self.output.splitlines()[1])

    def test_more_times(self) -> None:
        self.assertEqual(0, self.command(
            'next', '--schedule', '0 0 29 2 *', '--count', '25'))
        self.assertEqual(26, self.output.count('\n'))
        for count in '0', '-1', 'x', '1.5', '1001':
            self.assertBadUsage('next', '--schedule', '@daily', '--count',
                                count, expected='not a number from 1 to 100')

    def test_no_zope_conf_is_needed_to_try_a_schedule(self) -> None:
        self.assertEqual(0, self.command(
            'next', '--schedule', '*/30 * * * *', '--timezone',
            'Europe/Berlin', '--count', '1'))
        self.assertEqual('Sat 2026-10-24 12:30  +02:00  29 min 45 s',
                         self.output.splitlines()[1])
        self.assertBadUsage('next', expected='NAME or --schedule is needed')

    def test_what_is_not_understood(self) -> None:
        self.declare('nightly', 'often', 'once')
        for argv, expected in {
                ('weekly',): "no worker 'weekly' is declared; there are: "
                             'nightly, often, once',
                ('often',): 'often has no schedule, it runs every 7 s',
                ('often', '--timezone', 'UTC'): 'often has no schedule',
                ('once',): 'once has no schedule, it runs one tick',
                ('once', '--schedule', '@daily'): 'once runs one tick',
                ('nightly', '--schedule', '61 * * * *'): "bad minute '61'",
                ('nightly', '--timezone', 'Berlin'): 'there is no time zone',
                ('--schedule', '0 0 30 2 *'): 'names no time',
        }.items():
            with self.subTest(argv):
                self.assertMistake(2, 'next', *argv, expected=(expected,))

    def test_without_a_zope_conf(self) -> None:
        self.assertMistake(78, 'next', 'nightly',
                           expected=('no such file: ./zope.conf',))
