"""What a process says, on its way from a watcher to several channels."""

import itertools
import unittest
from collections.abc import Mapping

from gocept.runner.errors import EndpointClosedException
from gocept.runner.kernel.child.intake import Intake
from gocept.runner.kernel.wire.frames import OutRecord
from gocept.runner.tests.kernel.interruption import Interruption
from gocept.runner.waits.readable import Readable


class FakeWatcher:
    """Has records, and notes what is acknowledged."""

    def __init__(self) -> None:
        self.fd = Readable()
        self.records: list[OutRecord] = []
        self.acknowledged: list[tuple[int, bool]] = []
        self.closed = False
        self.offset = 0

    def fileno(self) -> int:
        return self.fd.fileno()

    def say(self, kind: str, data: bytes = b'', life: str = 'life') -> None:
        self.offset += len(data)
        self.records.append(OutRecord(
            'it', life, kind, 0.0, data, None, self.offset))

    def receive(self) -> list[OutRecord]:
        records, self.records = self.records, []
        return records

    def acknowledge_to(self, positions: Mapping[str, tuple]) -> None:
        (name, (life, offset, ended)), = positions.items()
        assert (name, life) == ('it', 'life')
        self.acknowledged.append((offset, ended))

    def close(self) -> None:
        self.closed = True


class FakeNotes:

    def __init__(self, **ahead: int) -> None:
        self.now = ahead
        self.is_cleared = False

    def ahead(self, life: str) -> dict[str, int]:
        return self.now

    def set_ahead(self, life: str, ahead: Mapping[str, int]) -> None:
        self.now = dict(ahead)

    def clear(self) -> None:
        self.is_cleared = True


class IntakeTestCase(unittest.TestCase):

    streams = ('out', 'err')

    def setUp(self) -> None:
        self.watcher = FakeWatcher()
        self.addCleanup(self.watcher.fd.close)
        self.told: list[str] = []
        self.notes = FakeNotes()
        self.intake = self.make()

    def make(self) -> Intake:
        intake = Intake(self.watcher, 'it', 'life', 0, 0, self.notes)
        self.readable = {}
        for stream in self.streams:
            self.readable[stream] = Readable()
            self.addCleanup(self.readable[stream].close)
            intake.add(stream, self.readable[stream],
                     lambda stream=stream: self.told.append(stream))
        return intake

    def take(self, stream: str, size: int = 100) -> bytes:
        return self.intake.take(stream, size)


class ReceivingTests(IntakeTestCase):

    def test_each_stream_gets_its_own(self) -> None:
        self.watcher.say('out', b'one')
        self.watcher.say('err', b'two')
        self.watcher.say('out', b'three')
        self.assertEqual(b'onethree', self.take('out'))
        self.assertEqual(['err'], self.told)
        self.assertTrue(self.intake.has('err'))
        self.assertEqual(b'two', self.take('err'))
        self.assertEqual(b'', self.take('err'))

    def test_a_part(self) -> None:
        self.watcher.say('out', b'abcdef')
        self.assertEqual(b'abcd', self.take('out', 4))
        self.assertEqual(['out'], self.told)
        self.assertEqual(b'ef', self.take('out', 4))

    def test_the_end_comes_last(self) -> None:
        self.watcher.say('err', b'word')
        self.watcher.say('closed')
        with self.assertRaises(EndpointClosedException):
            self.take('out')
        self.assertEqual(['err'], self.told)
        self.assertEqual(b'word', self.take('err'))
        with self.assertRaises(EndpointClosedException):
            self.take('err')

    def test_what_comes_twice(self) -> None:
        self.watcher.say('out', b'abc')
        self.take('out')
        self.watcher.records = [
            OutRecord('it', 'life', 'out', 0.0, b'abcde', None, 5)]
        self.assertEqual(b'de', self.take('out'))

    def test_an_interruption_anywhere(self) -> None:
        for number in itertools.count():
            self.watcher.offset, self.notes.now = 0, {}
            self.intake = self.make()
            for word in b'one', b'two', b'three':
                self.watcher.say('out', word)
                self.watcher.say('err', word)
            with Interruption(number) as interruption:
                self.intake.has_more('out')
            self.intake.has_more('out')
            for stream in self.streams:
                said = b''
                while self.intake.has(stream):
                    said += self.take(stream)
                self.assertEqual(b'onetwothree', said, number)
            self.intake.acknowledge('out', 11, False)
            self.intake.acknowledge('err', 6, False)
            self.assertEqual((17, False), self.watcher.acknowledged[-1])
            if not interruption.done:
                break
        self.assertGreater(number, 10)

    def test_another_life(self) -> None:
        self.watcher.say('out', b'abc', life='other')
        self.assertEqual(b'', self.take('out'))


class AcknowledgingTests(IntakeTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.watcher.say('out', b'abc')
        self.watcher.say('err', b'defgh')
        self.watcher.say('out', b'ij')
        self.take('out')
        self.take('err')

    def test_up_to_what_is_read(self) -> None:
        self.intake.acknowledge('out', 2, False)
        self.intake.acknowledge('out', 2, False)
        self.assertEqual([(2, False)], self.watcher.acknowledged)

    def test_not_beyond_what_the_other_stream_has_read(self) -> None:
        self.intake.acknowledge('out', 5, False)
        self.assertEqual([(3, False)], self.watcher.acknowledged)
        self.assertEqual({'out': 10}, self.notes.now)
        self.intake.acknowledge('err', 4, False)
        self.assertEqual((7, False), self.watcher.acknowledged[-1])
        self.intake.acknowledge('err', 5, False)
        self.assertEqual((10, False), self.watcher.acknowledged[-1])

    def test_the_next_reader_skips_what_was_read_ahead(self) -> None:
        self.intake.acknowledge('err', 3, False)
        self.assertEqual([], self.watcher.acknowledged)
        self.assertEqual({'err': 6}, self.notes.now)
        self.intake = self.make()
        self.watcher.offset = 0
        self.watcher.say('out', b'abc')
        self.watcher.say('err', b'defgh')
        self.watcher.say('out', b'ij')
        self.assertEqual(b'gh', self.take('err'))
        self.assertEqual(b'abcij', self.take('out'))
        self.intake.acknowledge('out', 5, False)
        self.assertEqual([(6, False)], self.watcher.acknowledged)
        self.intake.acknowledge('err', 2, False)
        self.assertEqual((10, False), self.watcher.acknowledged[-1])

    def end(self) -> None:
        self.watcher.say('closed')
        for stream in self.streams:
            with self.assertRaises(EndpointClosedException):
                self.take(stream)

    def test_the_end(self) -> None:
        self.end()
        self.intake.acknowledge('out', 5, True)
        self.intake.acknowledge('err', 5, True)
        self.assertEqual((10, False), self.watcher.acknowledged[-1])
        self.assertFalse(self.notes.is_cleared)
        self.intake.note_end()
        self.assertEqual((10, True), self.watcher.acknowledged[-1])
        self.assertTrue(self.notes.is_cleared)

    def test_what_nobody_wants(self) -> None:
        self.intake.note_end()
        self.intake.abandon('out')
        self.assertEqual([(3, False)], self.watcher.acknowledged)
        self.intake.abandon('err')
        self.assertEqual((10, True), self.watcher.acknowledged[-1])

    def test_a_process_that_runs_is_not_forgotten(self) -> None:
        self.intake.abandon('out')
        self.intake.abandon('err')
        self.assertNotIn(True, [
            ended for _, ended in self.watcher.acknowledged])

    def test_the_last_channel_closes_the_watcher(self) -> None:
        self.intake.remove('out')
        self.assertFalse(self.watcher.closed)
        self.intake.remove('err')
        self.assertTrue(self.watcher.closed)
