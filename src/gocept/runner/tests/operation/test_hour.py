"""How long the ticks of the last hour took."""

import unittest

from gocept.runner.operation.hour import MINUTES, Hour, recent

NOW = 1_000_000 * 60.0


def minute(ago, ticks=1, failed=0, longest=1.0):
    """What was noted so many minutes before `NOW`."""
    return {'at': 1_000_000 - ago, 'ticks': ticks, 'failed': failed,
            'longest': longest}


class HourTests(unittest.TestCase):

    def test_ticks_of_one_minute(self):
        hour = Hour()
        for seconds, failed in (1.5, False), (3.0, True), (2.0, False):
            hour.add(NOW + 59 - seconds, seconds, failed)
        self.assertEqual([minute(0, 3, 1, 3.0)], hour.after((), NOW))

    def test_any_number_of_ticks_takes_as_much_room(self):
        hour = Hour()
        for number in range(10 * 60 * 3):
            hour.add(NOW + number * 20, number, False)
        now = NOW + 10 * 3600 - 1
        found = hour.after((), now)
        self.assertEqual(MINUTES, len(found))
        self.assertEqual(MINUTES, len(hour._minutes))
        self.assertEqual({3}, {each['ticks'] for each in found})
        self.assertEqual(10 * 60 * 3 - 1, found[-1]['longest'])

    def test_what_is_older_than_an_hour(self):
        hour = Hour()
        hour.add(NOW, 1.0, False)
        self.assertEqual([minute(0)], hour.after((), NOW + 3599))
        self.assertEqual([], hour.after((), NOW + 3600))

    def test_the_clock_was_set_back(self):
        hour = Hour()
        hour.add(NOW + 600, 1.0, False)
        hour.add(NOW, 1.0, False)
        self.assertEqual([minute(0)], hour.after((), NOW + 600))

    def test_programs_before(self):
        hour = Hour()
        hour.add(NOW, 4.0, True)
        hour.add(NOW + 60, 5.0, False)
        earlier = [minute(70), minute(3), minute(0, 2, 1, 3.0)]
        self.assertEqual(
            [minute(3), minute(0, 3, 2, 4.0), minute(-1, 1, 0, 5.0)],
            hour.after(earlier, NOW + 60))

    def test_a_reader_meanwhile(self):
        # What another thread goes through does not change under its feet.
        hour = Hour()
        hour.add(NOW, 1.0, False)
        reader = iter(hour._minutes.items())
        next(reader)
        hour.add(NOW + 1, 2.0, False)
        hour.add(NOW + 60, 2.0, False)
        self.assertEqual([], list(reader))

    def test_recent(self):
        self.assertEqual([minute(59), minute(0)], recent(
            [minute(60), minute(59), minute(0), minute(-1)], NOW))
