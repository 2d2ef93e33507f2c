"""A seeded part of what ``bin/chaos schedule`` compares."""

import datetime
import os
import random
import time
import unittest

from gocept.runner.tests.schedule.reference import (
    DECADES,
    Reference,
    clock,
    compare,
    decade,
)


class ReferenceTests(unittest.TestCase):

    def test_schedules_agree_with_it(self) -> None:
        before = os.environ.get('TZ'), time.tzname
        randomly = random.Random(18)
        zones, number = set(), 0
        for _ in range(30):
            reference = Reference(randomly)
            number += compare(reference, randomly)
            zones.add(reference.zone)
        self.assertGreater(number, 500)
        self.assertGreater(len(zones), 5)
        self.assertEqual(before, (os.environ.get('TZ'), time.tzname))

    def test_it_knows_the_changes_of_the_clock(self) -> None:
        for zone in DECADES:
            begin, end = decade(zone)
            changes = [change for change in clock(zone)
                       if begin < change.begin < end]
            with self.subTest(zone):
                self.assertEqual(
                    zone in ('UTC', 'Asia/Kathmandu'), not changes)
        [skipped] = (change for change in clock('Pacific/Apia')
                     if change.begin == datetime.datetime(
                         2011, 12, 30, 10, tzinfo=datetime.UTC).timestamp())
        self.assertEqual(14 * 3600, skipped.offset)
