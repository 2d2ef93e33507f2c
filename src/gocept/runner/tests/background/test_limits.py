"""What is kept for clients, and what is logged on peers."""

import unittest
from unittest import mock

from gocept.runner.background import limits
from gocept.runner.background.limits import Account, Complaints, Limits
from gocept.runner.logs import Log


class LimitTests(unittest.TestCase):

    def test_two_of_the_longest_messages_have_room(self) -> None:
        self.assertLessEqual(2 * Limits().max_message, Limits().queue_bytes)


class AccountTests(unittest.TestCase):

    def test_room(self) -> None:
        account = Account(100)
        account.add(60)
        self.assertTrue(account.has_room(40))
        self.assertFalse(account.has_room(41))
        account.add(50)
        self.assertFalse(account.has_room())
        account.add(-110)
        self.assertEqual(0, account.total)
        self.assertTrue(account.has_room(100))


class ComplaintTests(unittest.TestCase):

    def test_one_line_of_each_kind(self) -> None:
        complaints = Complaints(Log('gocept.runner.background'))
        with self.assertLogs('gocept.runner.background') as logs:
            for number in range(5):
                complaints.warn('%s is strange', number)
                complaints.warn('%s is stranger', number)
        self.assertEqual(
            ['0 is strange (1 since the start)',
             '0 is stranger (1 since the start)'],
            [record.getMessage() for record in logs.records])

    def test_the_next_line_counts_all(self) -> None:
        complaints = Complaints(Log('gocept.runner.background'))
        with self.assertLogs('gocept.runner.background') as logs:
            with mock.patch.object(limits, '_SILENCE', 0):
                for number in range(2):
                    complaints.warn('%s is strange', number)
        self.assertEqual('1 is strange (2 since the start)',
                         logs.records[1].getMessage())
