import json
import os

from gocept.runner.house import record
from gocept.runner.tests.support import TestCase

STATE = {
    'pid': 1, 'start': 2, 'boot': 'b', 'config': '/c',
    'started': {'realtime': 1.0, 'monotonic': 1.0}, 'phase': 'running',
    'template': None, 'successor': None, 'parts': [], 'workers': []}


class RecordTests(TestCase):

    def test_what_was_written_is_read(self):
        record.write(str(self.dir), STATE)
        self.assertEqual(STATE, record.read(str(self.dir)))
        self.assertEqual([record.NAME], os.listdir(self.dir))

    def test_there_is_nothing(self):
        self.assertIsNone(record.read(str(self.dir)))

    def test_there_is_nothing_of_use(self):
        for text in '', '[]', '{}', '[' * 10_000, json.dumps(
                {**STATE, 'pid': 1})[:-20]:
            with self.subTest(text=text[:20]):
                self.write(record.NAME, text)
                self.assertIsNone(record.read(str(self.dir)))

    def test_a_write_that_fails_leaves_the_old_one(self):
        record.write(str(self.dir), STATE)
        (self.dir / f'{record.NAME}.new').symlink_to('/dev/full')
        with self.assertRaises(OSError):
            record.write(str(self.dir), {**STATE, 'pid': 3})
        self.assertEqual(STATE, record.read(str(self.dir)))
        self.assertEqual([record.NAME], os.listdir(self.dir))
