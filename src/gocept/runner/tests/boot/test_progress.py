import unittest
from unittest import mock

from gocept.runner.boot import progress
from gocept.runner.boot.counts import Counts


class LinesTests(unittest.TestCase):

    def test_a_line_a_minute(self) -> None:
        times = iter([1000.0, 1059, 1060, 1119, 1121])
        lines = progress.Lines('x', Counts(8, 2, 0), 90, times.__next__)
        with self.assertLogs('gocept.runner', 'INFO') as logs:
            for count in 5, 5, 10, 20:
                lines(count)
        self.assertEqual(
            ['x: 10 of 90 items, 0.167 a second, about 0:08:00 left '
             '(8 done, 2 failed, 0 skipped)',
             'x: 40 of 90 items, 0.331 a second, about 0:02:31 left '
             '(8 done, 2 failed, 0 skipped)'],
            [record.getMessage() for record in logs.records])

    def test_nobody_knows_how_long(self) -> None:
        for total, expected in (None, '^x: 2 items, 2 a second \\('), (
                1, '^x: 2 of 1 items, 2 a second \\('):
            times = iter([0.0, 1])
            with (mock.patch.object(progress, 'INTERVAL', 1),
                  self.assertLogs('gocept.runner', 'INFO') as logs):
                progress.Lines('x', Counts(), total, times.__next__)(2)
            self.assertRegex(logs.records[0].getMessage(), expected)

    def test_where_the_time_left_cannot_be_told(self) -> None:
        for total, count, expected in (
                (20, 0, '^x: 0 of 20 items, 0 a second \\('),
                (10 ** 15, 1, '^x: 1 of 10{15} items, 1 a second \\('),
                (10 ** 400, 1, '^x: 1 of 10{400} items, 1 a second \\(')):
            times = iter([0.0, 1])
            with (mock.patch.object(progress, 'INTERVAL', 1),
                  self.assertLogs('gocept.runner', 'INFO') as logs):
                progress.Lines('x', Counts(), total, times.__next__)(count)
            self.assertRegex(logs.records[0].getMessage(), expected)
