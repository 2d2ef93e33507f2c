"""The output of processes, as lines that a person reads."""

import io
import os
import time
import unittest
from typing import NamedTuple
from unittest import mock

from gocept.runner.cli import feed


class Piece(NamedTuple):
    name: str
    timestamp: float
    data: bytes


class End(NamedTuple):
    name: str
    timestamp: float
    data: int | None


class FeedTestCase(unittest.TestCase):

    def setUp(self) -> None:
        self.enterContext(mock.patch.dict(os.environ, {'TZ': 'UTC'}))
        time.tzset()
        self.addCleanup(time.tzset)
        self.output = io.BytesIO()

    def text(self) -> str:
        """What was written since the last call, without the date."""
        text = self.output.getvalue().decode(errors='surrogateescape')
        self.output.seek(0)
        self.output.truncate()
        return text.replace('1970-01-01 00:00:', '')


class FeedTests(FeedTestCase):

    def test_lines_have_a_time_a_name_and_a_mark(self) -> None:
        it = feed.Feed(self.output, ['a', 'longer'])
        it.show([Piece('a', 1.5, b'one\ntwo\n'), Piece('longer', 3, b'x\n')],
                [Piece('a', 2, b'bad\n')], [End('a', 4, 3)], {})
        self.assertEqual(
            '01.500 a      | one\n'
            '01.500 a      | two\n'
            '02.000 a      ! bad\n'
            '03.000 longer | x\n'
            '04.000 a      = ended 3\n', self.text())

    def test_the_time_is_complete(self) -> None:
        it = feed.Feed(self.output)
        it.show([Piece('a', 1e9, b'x\n')], [], [], {})
        self.assertEqual('2001-09-09 01:46:40.000 a | x\n', self.text())

    def test_a_line_is_shown_when_it_is_complete(self) -> None:
        it = feed.Feed(self.output)
        it.show([Piece('a', 1, b'on')], [Piece('a', 2, b'err')], [], {})
        self.assertEqual('', self.text())
        it.show([Piece('a', 3, b'e\ntw')], [], [], {})
        self.assertEqual('01.000 a | one\n', self.text())
        it.show([Piece('a', 4, b'o')], [], [End('a', 5, 0)], {})
        self.assertEqual('03.000 a | two\n02.000 a ! err\n'
                         '05.000 a = ended 0\n', self.text())

    def test_parts_are_shown_at_the_end(self) -> None:
        it = feed.Feed(self.output)
        it.show([Piece('a', 1, b'prompt> ')], [], [], {})
        it.close()
        self.assertEqual('01.000 a | prompt> \n', self.text())

    def test_a_line_without_an_end_is_bounded(self) -> None:
        it = feed.Feed(self.output)
        for _ in range(3):
            it.show([Piece('a', 1, b'x' * feed.LONGEST)], [], [], {})
        self.assertEqual([11 + feed.LONGEST] * 2, [
            *map(len, self.text().splitlines())])

    def test_missing_output(self) -> None:
        it = feed.Feed(self.output)
        it.show([Piece('a', 1, b'x\n')], [], [], {'a': 70})
        self.assertEqual(
            ' ' * 23 + ' a ~ 70 bytes are missing here\n01.000 a | x\n',
            self.text())

    def test_the_last_lines(self) -> None:
        it = feed.Feed(self.output, last=2)
        it.show([Piece('a', 1, b'1\n2\n3\n4\n5')], [], [], {})
        self.assertEqual('', self.text())
        it.catch_up()
        self.assertEqual('01.000 a | 3\n01.000 a | 4\n', self.text())
        it.show([Piece('a', 2, b'\n6\n7\n')], [], [], {})
        self.assertEqual('01.000 a | 5\n02.000 a | 6\n02.000 a | 7\n',
                         self.text())

    def test_the_last_lines_of_each_process(self) -> None:
        it = feed.Feed(self.output, last=1)
        it.show([Piece('a', 1, b'1\n2\n'), Piece('b', 2, b'1\n'),
                 Piece('c', 3, b'1\npart')], [], [End('b', 4, 0)], {})
        it.close()
        self.assertEqual('01.000 a | 2\n04.000 b = ended 0\n'
                         '03.000 c | part\n', self.text())

    def test_colours(self) -> None:
        it = feed.Feed(self.output, ['a', 'b'], colour=True)
        it.show([Piece('b', 0, b'x\n'), Piece('a', 0, b'y\n')],
                [Piece('a', 0, b'z\n')], [], {})
        self.assertEqual(
            '\x1b[2m00.000\x1b[0m \x1b[32mb\x1b[0m \x1b[32m|\x1b[0m x\n'
            '\x1b[2m00.000\x1b[0m \x1b[36ma\x1b[0m \x1b[36m|\x1b[0m y\n'
            '\x1b[2m00.000\x1b[0m \x1b[36ma\x1b[0m \x1b[31m!\x1b[0m z\n',
            self.text())

    def test_bytes_are_kept_in_a_pipe(self) -> None:
        it = feed.Feed(self.output)
        it.show([Piece('a', 0, b'\x1b[2J\xff\r\n')], [], [], {})
        self.assertEqual('00.000 a | \x1b[2J\udcff\r\n', self.text())

    def test_no_program_controls_the_terminal(self) -> None:
        it = feed.Feed(self.output, escape=True)
        it.show([Piece('\x1b]0;\x07', 0, b'\x1b[2J\xff\tx\x9b\r\n')], [], [],
                {})
        self.assertEqual(
            '00.000 \\x1b]0;\\x07 | \\x1b[2J\\xff\tx\\x9b\n', self.text())


class RawFeedTests(FeedTestCase):

    def test_bytes_as_they_came(self) -> None:
        errors = io.BytesIO()
        it = feed.RawFeed(self.output, errors)
        it.show([Piece('a', 1, b'on'), Piece('b', 3, b'e\xff')],
                [Piece('a', 2, b'bad')], [End('a', 4, 3)], {'a\n': 7})
        it.catch_up()
        it.close()
        self.assertEqual('one\udcff', self.text())
        self.assertEqual(b'7 bytes of a\\n are missing here\nbad',
                         errors.getvalue())
