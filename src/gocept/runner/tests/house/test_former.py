import json
import os
import types

from gocept.runner.house import record
from gocept.runner.house.former import Former
from gocept.runner.house.rounds import Rounds
from gocept.runner.operation import vitals
from gocept.runner.process import Process
from gocept.runner.process.procfs import look
from gocept.runner.tests.house.test_record import STATE
from gocept.runner.tests.support import (
    DEADLINE,
    TestCase,
    end_background,
    open_descriptors,
)
from gocept.runner.waits.deadline import NEVER


class FormerTests(TestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(end_background)
        self.child = Process(['cat'], stdin='pipe', stdout='null')
        self.addCleanup(self.child.close)
        self.before = open_descriptors()
        self.poller = self.enterContext(Rounds())
        self.house = types.SimpleNamespace(
            directory=str(self.dir), poller=self.poller)
        self.former = Former()

    def write_record(self, pid, start, boot=None, life=None):
        record.write(str(self.dir), {
            **STATE, 'pid': 99, 'boot': boot or vitals.boot(),
            'workers': [{'name': 'a', 'pid': pid, 'start': start,
                         'life': life}]})

    def test_it_waits_for_their_end(self):
        self.write_record(self.child.pid, look(self.child.pid).start)
        with self.assertLogs('gocept.runner.house', 'WARNING') as logs:
            self.former.start(self.house)
        self.assertIn(
            'An "up" that has run these workers has died; waiting until they '
            f'end: a ({self.child.pid})', logs.output[0])
        self.assertFalse(self.former.ready)
        self.child.channel.write_eof()
        while not self.former.ready:
            self.poller.poll(DEADLINE)
        self.assertTrue(self.former.ended)

    def test_one_whose_number_was_not_written_any_more(self):
        pipe = os.stat(f'/proc/{self.child.pid}/fd/0').st_ino
        self.write_record(None, None, life=pipe)
        # This process has its other end, and is not meant.
        with self.assertLogs('gocept.runner.house', 'WARNING') as logs:
            self.former.start(self.house)
        self.assertIn(f'until they end: a ({self.child.pid})', logs.output[0])
        self.child.channel.write_eof()
        while not self.former.ready:
            self.poller.poll(DEADLINE)

    def test_one_that_a_house_has_waited_for_that_was_killed(self):
        self.write_record(self.child.pid, look(self.child.pid).start)
        with self.assertLogs('gocept.runner.house', 'WARNING'):
            self.former.start(self.house)
        self.write_record(None, None)  # that of the house that waits
        self.former.stop(NEVER)
        self.former = Former()
        with self.assertLogs('gocept.runner.house', 'WARNING') as logs:
            self.former.start(self.house)
        self.assertIn(f'until they end: a ({self.child.pid})', logs.output[0])
        self.child.channel.write_eof()
        while not self.former.ready:
            self.poller.poll(DEADLINE)
        self.assertEqual(['house.json'], os.listdir(self.dir))

    def test_what_a_house_has_waited_for_is_of_no_use(self):
        for text in ('', '[', '7', '{}', '{"boot": 1}', json.dumps(
                {'boot': vitals.boot(), 'workers': [7]})):
            (self.dir / 'former.json').write_text(text)
            with self.subTest(text):
                self.assertNobody()

    def test_it_cannot_be_written_who_is_waited_for(self):
        self.write_record(self.child.pid, look(self.child.pid).start)
        (self.dir / 'former.json').mkdir()
        with self.assertLogs('gocept.runner.house', 'WARNING') as logs:
            self.former.start(self.house)
        self.assertIn('former.json, which tells the next "up" of these '
                      'workers if this one is killed, cannot be written: Is a '
                      'directory', logs.output[1])
        self.former.stop(NEVER)

    def test_nobody_has_the_pipe(self):
        self.write_record(None, None, life=1)
        self.assertNobody()

    def assertNobody(self):
        self.former.start(self.house)
        self.assertTrue(self.former.ready)

    def test_there_was_no_house(self):
        self.assertNobody()

    def test_there_was_another_boot(self):
        self.write_record(self.child.pid, look(self.child.pid).start, 'other')
        self.assertNobody()

    def test_another_process_has_the_number(self):
        self.write_record(self.child.pid, look(self.child.pid).start - 1)
        self.assertNobody()

    def test_nobody_has_the_number(self):
        self.child.close()
        self.write_record(self.child.pid, 1)
        self.assertNobody()

    def test_one_that_had_no_process(self):
        self.write_record(None, None)
        self.assertNobody()

    def test_the_end_does_not_wait(self):
        self.write_record(self.child.pid, look(self.child.pid).start)
        with self.assertLogs('gocept.runner.house', 'WARNING'):
            self.former.start(self.house)
        self.former.stop(NEVER)
        self.former.kill()
        self.assertTrue(self.former.ended)
        self.poller.close()
        self.assertEqual(self.before, open_descriptors())
        os.kill(self.child.pid, 0)
