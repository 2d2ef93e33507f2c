import argparse
import unittest
from collections.abc import Sequence
from typing import Any

import gocept.runner
from gocept.runner.boot.program import Program
from gocept.runner.cli import times
from gocept.runner.cli.worker import Probe
from gocept.runner.runner import appmain, once


def program(decorator: appmain | None = None) -> Program:
    def worker() -> None:
        pass
    return (decorator or appmain())(worker)


def parsed(*argv: str) -> argparse.Namespace:
    parser = Probe(allow_abbrev=False)
    times.add_options(parser, None)
    return parser.parse_args(argv)


class TimesTests(unittest.TestCase):

    def loop(self, decorator: appmain, *argv: str) -> Any:
        """A loop with the times of this command line."""
        made, options = program(decorator), parsed(*argv)
        times.check(made, options)
        loop = decorator.loop(object(), made.worker, ())  # type: ignore
        times.apply(options, decorator, loop)
        return loop

    def test_nothing_is_said(self) -> None:
        loop = self.loop(appmain(schedule='0 2 * * *', timezone='UTC',
                                 tick_timeout=5))
        self.assertEqual('0 2 * * *', loop.schedule.expression)
        self.assertEqual(5, loop.tick_timeout)
        self.assertIsNone(self.loop(appmain()).schedule)

    def test_ticks_in_place_of_a_schedule(self) -> None:
        loop = self.loop(appmain(schedule='0 2 * * *'), '--ticks', '5')
        self.assertIsNone(loop.schedule)
        self.assertEqual(5, loop.ticks)

    def test_a_schedule(self) -> None:
        for decorator in appmain(ticks=5), appmain(schedule='0 2 * * *'):
            schedule = self.loop(
                decorator, '--schedule', '0 3 * * *').schedule
            self.assertEqual(('0 3 * * *', None),
                             (schedule.expression, schedule.timezone))

    def test_the_rest_is_as_the_worker_says(self) -> None:
        decorator = appmain(schedule='0 2 * * *', timezone='Asia/Tokyo',
                            jitter=7, missed='once')
        for args, expected in {
                ('--schedule', '0 3 * * *'): ('0 3 * * *', 'Asia/Tokyo'),
                ('--timezone', 'UTC'): ('0 2 * * *', 'UTC')}.items():
            loop = self.loop(decorator, *args)
            self.assertEqual((*expected, 7), (
                loop.schedule.expression, loop.schedule.timezone,
                loop.schedule.jitter))
            self.assertEqual('once', loop.missed)

    def test_a_limit_of_time(self) -> None:
        for decorator in appmain(tick_timeout=3), once():
            loop = self.loop(decorator, '--tick-timeout', '0.5')
            self.assertEqual(0.5, loop.tick_timeout)

    def assertRefused(self, pattern: str, decorator: appmain,
                      *argv: str) -> None:
        with self.assertRaisesRegex(ValueError, pattern) as caught:
            times.check(program(decorator), parsed(*argv))
        self.assertNotIn('\n', str(caught.exception))

    def test_contradictions(self) -> None:
        plain, schedule = appmain(), ('--schedule', '0 2 * * *')
        zone, ticks = ('--timezone', 'UTC'), ('--ticks', '1')
        self.assertRefused('^--ticks and --schedule exclude each other',
                           plain, *schedule, *ticks)
        self.assertRefused('^--ticks and --timezone exclude each other',
                           appmain(schedule='0 2 * * *'), *ticks, *zone)
        self.assertRefused('^--timezone: worker has no schedule; give one ',
                           plain, *zone)
        self.assertRefused('^--schedule: worker watches the database',
                           appmain(watch=lambda site: ()), *schedule)
        for words in schedule, zone, ticks:
            for decorator in once(), appmain(gocept.runner.Exit):
                self.assertRefused(
                    f'^{words[0]}: worker runs one tick, and ends$',
                    decorator, *words)

    def test_values_that_are_wrong(self) -> None:
        self.assertRefused("^schedule 'x \\* \\* \\* \\*': bad minute",
                           appmain(), '--schedule', 'x * * * *')
        self.assertRefused('cron expression|fields|needs',
                           appmain(schedule='0 2 * * *'), '--schedule', '')
        self.assertRefused("^there is no time zone 'Mars'", appmain(),
                           '--schedule', '0 2 * * *', '--timezone', 'Mars')

    def test_numbers_that_are_wrong(self) -> None:
        for words, pattern in {
                ('--ticks', '-1'): 'not a number >= 0: ',
                ('--ticks', 'x'): 'not a number >= 0: ',
                ('--tick-timeout', '0'): 'not a number > 0: ',
                ('--tick-timeout', 'nan'): 'not a number > 0: '}.items():
            with self.assertRaisesRegex(Exception, pattern):
                parsed(*words)

    def help(self, decorator: appmain | None) -> Sequence[str]:
        parser = argparse.ArgumentParser()
        times.add_options(parser, decorator)
        return ' '.join(parser.format_help().split()).split('times: ')

    def test_the_help_tells_defaults(self) -> None:
        _, text = self.help(appmain(schedule='0 2 * * *', timezone='UTC'))
        for default in ('two ticks (default: none)', '(default: 0 2 * * *)',
                        '(default: UTC)', '(default: as long as it takes)'):
            self.assertIn(default, text)
        _, text = self.help(appmain(ticks=5, tick_timeout=7))
        for default in '(default: 5)', '(default: none)', '(default: 7)':
            self.assertIn(default, text)
        _, text = self.help(None)
        self.assertEqual(4, text.count('(default: as the worker says)'))

    def test_the_help_of_one_that_runs_once(self) -> None:
        _, text = self.help(once())
        self.assertIn('--tick-timeout', text)
        self.assertNotIn('--schedule', text)
