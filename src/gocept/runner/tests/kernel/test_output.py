import contextlib
import fcntl
import os
import re
import resource
import select
import struct
import unittest.mock

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon.output import START, Output, check_output
from gocept.runner.tests.kernel.deaths import (
    Death,
    KillingCase,
    Victim,
    blocks,
    death_at,
    full_memory,
)

OUT, ERR = 1, 2

TOTAL = struct.Struct('<QQ')  # a stream, and the number of bytes written to it


class OutputCase(KillingCase):

    def setUp(self):
        super().setUp()
        self.reader, self.writer = self.pipe()
        self.error_reader, self.error_writer = self.pipe()

    def make(self, capacity=1 << 20, overflow='drop', fd=-1, **keywords):
        output = Output(capacity, overflow, fd, **keywords)
        self.addCleanup(output.close)
        return output

    def successor(self, output):
        return self.make(output.capacity, output.overflow,
                         os.dup(output.fd))

    def write(self, output, data, stream=OUT):
        os.write(self.writer if stream == OUT else self.error_writer, data)
        return output.take_in(
            stream, self.reader if stream == OUT else self.error_reader)

    def contents(self, output, start=0, limit=1 << 30):
        return [(record.stream, record.offset, bytes(record.data))
                for record in output.records(start, limit)]

    def assert_same(self, expected, output):
        for name in ('begin', 'end', 'dropped', 'room'):
            self.assertEqual(getattr(expected, name), getattr(output, name))
        self.assertEqual(expected.records(0, 1 << 30),
                         output.records(0, 1 << 30))


class OutputTests(OutputCase):

    def test_records(self):
        output = self.make()
        self.assertEqual([], output.records(0, 100))
        self.assertEqual(3, self.write(output, b'abc'))
        self.assertEqual(4, self.write(output, b'defg', ERR))
        self.assertEqual(1, self.write(output, b'h'))
        self.assertEqual((0, 8, 0), (output.begin, output.end,
                                     output.dropped))
        records = output.records(0, 100)
        self.assertEqual([(1, 0, b'abc'), (2, 3, b'defg'), (1, 7, b'h')],
                         self.contents(output))
        self.assertEqual([3, 7, 8], [record.end for record in records])
        times = [record.timestamp for record in records]
        self.assertEqual(sorted(times), times)
        self.assertEqual([(2, 4, b'ef')], self.contents(output, 4, 2))
        self.assertEqual([(2, 6, b'g'), (1, 7, b'h')],
                         self.contents(output, 6, 5))
        self.assertEqual([], output.records(8, 100))
        self.assertEqual([], output.records(800, 100))
        self.assert_same(output, self.successor(output))

    def test_acknowledge(self):
        output = self.make(100)
        for data in (b'abc', b'defg', b'h'):
            self.write(output, data)
        output.acknowledge(0)
        output.acknowledge(5)
        self.assertEqual((5, 8, 97), (output.begin, output.end, output.room))
        self.assertEqual([(1, 5, b'fg'), (1, 7, b'h')],
                         self.contents(output))
        self.assert_same(output, self.successor(output))
        output.acknowledge(2)
        output.acknowledge(7)
        self.assertEqual([(1, 7, b'h')], self.contents(output))
        output.acknowledge(100)
        self.assertEqual((8, 8, 0), (output.begin, output.end,
                                     output.dropped))
        self.assertEqual([], output.records(0, 100))
        self.assert_same(output, self.successor(output))
        self.write(output, b'more')
        self.assertEqual([(1, 8, b'more')], self.contents(output))
        self.assert_same(output, self.successor(output))

    def test_the_pipe(self):
        output = self.make()
        with self.assertRaises(BlockingIOError):
            output.take_in(OUT, self.reader)
        self.write(output, b'a')
        with self.assertRaises(BlockingIOError):
            output.take_in(ERR, self.error_reader)
        self.assert_same(output, self.successor(output))
        os.close(self.error_writer)
        self.assertEqual(0, output.take_in(ERR, self.error_reader))
        self.assertEqual(0, output.take_in(ERR, self.error_reader))
        self.assert_same(output, self.successor(output))
        self.write(output, b'b')
        self.assertEqual([(1, 0, b'a'), (1, 1, b'b')], self.contents(output))
        self.assert_same(output, self.successor(output))

    def test_memory_is_made_with_the_first_byte(self):
        events = []

        def create(fd):
            events.append((fd, os.fstat(self.reader).st_size))
            successor = self.make(fd=os.dup(fd))
            self.assertEqual((0, 0), (successor.begin, successor.end))

        output = self.make(on_create=create)
        self.assertEqual(-1, output.fd)
        self.write(output, b'abc')
        self.write(output, b'abc')
        self.assertEqual([output.fd], [fd for fd, _ in events])
        self.assertFalse(os.get_inheritable(output.fd))

    def test_the_keeper_does_not_take_it(self):
        def fail(fd):
            raise BrokenPipeError
        output = self.make(on_create=fail)
        with self.assertRaises(BrokenPipeError):
            self.write(output, b'abc')
        self.assertEqual(-1, output.fd)
        self.assertEqual(b'abc', os.read(self.reader, 10))

    def test_a_view_is_a_copy(self):
        output = self.make(14)
        self.write(output, b'a' * 10)
        record, = output.records(0, 100)
        output.acknowledge(10)
        for _ in range(10):
            self.write(output, b'b' * 10)
        self.assertEqual(b'a' * 10, bytes(record.data))

    def test_a_call_is_bounded(self):
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 1 << 20)
        output = self.make()
        os.write(self.writer, b'x' * 600_000)
        self.assertEqual(
            [262_144, 262_144, 75_712],
            [output.take_in(OUT, self.reader) for _ in range(3)])

    def test_overflow_is_checked(self):
        with self.assertRaisesRegex(ValueError, 'not wait'):
            Output(10, 'wait')

    def test_what_is_no_pipe(self):
        path = f'/proc/self/fd/{self.own(os.memfd_create("file"))}'
        with open(path, 'r+b', buffering=0) as file:
            file.write(b'x' * 100)
            file.seek(0)
            output = self.make()
            self.assertEqual(100, output.take_in(OUT, file.fileno()))
            self.assertEqual(0, output.take_in(OUT, file.fileno()))
            self.write(output, b'abc', ERR)
            self.assertEqual([(1, 0, b'x' * 100), (2, 100, b'abc')],
                             self.contents(output))
            self.assert_same(output, self.successor(output))
            file.write(b'y' * 10)
            file.seek(100)
            output = self.make()
            with full_memory(4096):
                with self.assertRaisesRegex(KernelError, 'no memory'):
                    output.take_in(OUT, file.fileno())
            self.assertEqual(0, output.end)
            self.assertEqual(10, output.take_in(OUT, file.fileno()))
            self.assertEqual([(1, 0, b'y' * 10)], self.contents(output))


class OverflowTests(OutputCase):

    def test_drop(self):
        output = self.make(10)
        self.write(output, b'abc')
        self.write(output, b'defg', ERR)
        self.write(output, b'hij')
        self.assertEqual((0, 0), (output.begin, output.dropped))
        self.write(output, b'kl', ERR)
        self.assertEqual((3, 12, 3),
                         (output.begin, output.end, output.dropped))
        self.write(output, b'mnopq')
        self.assertEqual((7, 17, 7),
                         (output.begin, output.end, output.dropped))
        self.assertEqual([(1, 7, b'hij'), (2, 10, b'kl'), (1, 12, b'mnopq')],
                         self.contents(output))
        self.assert_same(output, self.successor(output))

    def test_drop_after_a_part_was_acknowledged(self):
        output = self.make(10)
        self.write(output, b'abcdef')
        self.write(output, b'ghi')
        output.acknowledge(4)
        self.write(output, b'jklm')
        self.assertEqual((4, 0), (output.begin, output.dropped))
        self.write(output, b'n')
        self.assertEqual((4, 0), (output.begin, output.dropped))
        self.write(output, b'o')
        self.assertEqual((6, 2), (output.begin, output.dropped))

    def test_the_newest_record_is_kept(self):
        output = self.make(14)
        self.write(output, b'abc')
        self.write(output, b'x' * 20)
        self.assertEqual([(1, 3, b'x' * 20)], self.contents(output))
        self.assertEqual(3, output.dropped)
        self.write(output, b'y')
        self.assertEqual([(1, 23, b'y')], self.contents(output))
        self.assertEqual(23, output.dropped)
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 1 << 20)
        os.write(self.writer, b'z' * 1_000_000)
        while output.end < 1_000_024:
            self.assertLessEqual(output.take_in(OUT, self.reader), 65536)
        self.assertEqual(1_000_024, output.dropped + output.end
                         - output.begin)
        self.assertLessEqual(output.end - output.begin, 65536)
        self.assert_same(output, self.successor(output))
        self.assertLess(blocks(output.fd), 200_000)

    def test_block(self):
        output = self.make(14, 'block')
        self.assertEqual(10, self.write(output, b'a' * 10))
        self.assertEqual(4, output.room)
        self.assertEqual(4, self.write(output, b'b' * 10))
        self.assertEqual(0, output.room)
        self.assertEqual(-1, output.take_in(OUT, self.reader))
        self.assertEqual(-1, output.take_in(ERR, self.error_reader))
        output.acknowledge(3)
        self.assertEqual(3, output.take_in(OUT, self.reader))
        output.acknowledge(output.end)
        self.assertEqual(3, output.take_in(OUT, self.reader))
        with self.assertRaises(BlockingIOError):
            output.take_in(OUT, self.reader)
        self.assertEqual(0, output.dropped)
        self.assert_same(output, self.successor(output))

    def test_no_capacity(self):
        output = self.make(0, 'block')
        self.assertEqual(-1, self.write(output, b'abc'))
        output = self.make(0)
        self.assertEqual(3, output.take_in(OUT, self.reader))

    def test_a_flood_is_counted_exactly(self):
        output = self.make(100_000)
        written = 0
        seen = 0
        for number in range(2000):
            size = self.random.randrange(1, 5000)
            written += size
            self.write(output, b'x' * size, self.random.choice((OUT, ERR)))
            if not number % 17:
                for record in output.records(0, 20_000):
                    seen += len(record.data)
                    output.acknowledge(record.end)
        self.assertEqual(written, output.end)
        self.assertEqual(written,
                         seen + output.dropped + output.end - output.begin)
        self.assertLessEqual(output.end - output.begin, 100_000)
        self.assertLess(blocks(output.fd), 400_000)
        self.assert_same(output, self.successor(output))


class SlotTests(OutputCase):

    def alternate(self, output, count):
        for number in range(count):
            self.write(output, b'%d' % (number % 10), 1 + number % 2)

    def test_single_bytes_of_one_stream_are_joined(self):
        output = self.make(1 << 15)
        expected = b''
        for number in range(10_000):
            data = b'%d' % (number % 10)
            expected += data
            self.write(output, data)
        records = output.records(0, 1 << 20)
        self.assertLess(len(records), 600)
        self.assertEqual(expected, b''.join(
            bytes(record.data) for record in records))
        times = [record.timestamp for record in records]
        self.assertEqual(sorted(times), times)
        self.assertLess(len(output._starts), 600)
        self.assert_same(output, self.successor(output))

    def test_joined_after_what_was_no_record(self):
        output = self.make(1 << 12)
        for _ in range(100):
            self.write(output, b'a')
        with self.assertRaises(BlockingIOError):
            output.take_in(ERR, self.error_reader)
        self.write(output, b'b')
        self.write(output, b'c')
        self.write(output, b'd', ERR)
        self.write(output, b'e')
        self.assert_same(output, self.successor(output))

    def test_no_slot_is_left_drop(self):
        output = self.make(1 << 12)
        self.alternate(output, 1000)
        self.assertEqual(1000 - 119, output.dropped)
        self.assertEqual(119, len(output.records(0, 1 << 20)))
        self.assert_same(output, self.successor(output))

    def test_nothing_is_dropped_for_nothing(self):
        output = self.make(1 << 12)
        self.alternate(output, 119)
        with self.assertRaises(BlockingIOError):
            output.take_in(OUT, self.reader)
        os.close(self.writer)
        self.assertEqual(0, output.take_in(OUT, self.reader))
        self.assertEqual(0, output.dropped)

    def test_no_slot_is_left_block(self):
        output = self.make(1 << 12, 'block')
        self.alternate(output, 119)
        self.assertEqual(0, output.room)
        self.assertEqual(-1, self.write(output, b'x'))
        self.assertEqual(-1, self.write(output, b'x', ERR))
        self.assert_same(output, self.successor(output))
        output.acknowledge(1)
        self.assertEqual((1 << 12) - 118, output.room)
        self.assertEqual(1, output.take_in(ERR, self.error_reader))
        self.assertEqual(0, output.room)

    def test_slots_are_used_again(self):
        output = self.make(1 << 15)
        for number in range(5000):
            self.write(output, b'%d' % (number % 10), 1 + number % 2)
            output.acknowledge(number - 500)
        self.assertEqual(501, len(output.records(0, 1 << 20)))
        self.assert_same(output, self.successor(output))
        output.acknowledge(output.end)
        self.assertLess(blocks(output.fd), 10_000)
        self.alternate(output, 700)
        self.assertEqual(700, len(output.records(0, 1 << 20)))
        self.assert_same(output, self.successor(output))


class MemoryTests(OutputCase):

    def test_all_is_given_back(self):
        output = self.make()
        for _ in range(5):
            while output.end - output.begin < 900_000:
                self.write(output, b'x' * 60_000)
            self.assertGreater(blocks(output.fd), 900_000)
            output.acknowledge(output.end)
            self.assertLess(blocks(output.fd), 10_000)
            self.assert_same(output, self.successor(output))

    def test_a_flood_keeps_its_memory_until_a_pause(self):
        now = 1000.0
        self.enterContext(
            unittest.mock.patch('time.time', side_effect=lambda: now))
        output = self.make()

        def write():
            for _ in range(4):
                self.write(output, b'x' * 60_000)
            output.acknowledge(output.end)
            self.assert_same(output, self.successor(output))
            return blocks(output.fd)

        self.assertLess(write(), 10_000)
        for _ in range(5):
            now += 0.05
            self.assertGreater(write(), 240_000)
            self.assertLess(blocks(output.fd), 270_000)
        now += 0.2
        self.write(output, b'abc')
        output.acknowledge(output.end)
        self.assertLess(blocks(output.fd), 10_000)
        self.assertLess(write(), 270_000)

    def test_a_line_costs_a_page_or_two(self):
        output = self.make()
        for _ in range(1000):
            self.write(output, b'a line of text\n')
            self.assertLess(blocks(output.fd), 16_000)
            output.acknowledge(output.end)

    def test_pages_are_given_back_while_there_is_more(self):
        output = self.make(1 << 30)
        self.write(output, b'x' * 60_000)
        for _ in range(200):
            self.write(output, b'y' * 60_000)
            output.acknowledge(output.end - 60_000)
        self.assertLess(blocks(output.fd), 3_000_000)
        self.assertEqual(1, len(output.records(0, 1 << 20)))
        self.assert_same(output, self.successor(output))
        self.assertEqual(b'y' * 60_000, bytes(output.records(0, 1 << 20)[
            0].data))

    def test_a_huge_capacity_costs_nothing(self):
        output = self.make(1 << 40)
        self.write(output, b'abc')
        self.assertLess(blocks(output.fd), 10_000)
        self.assert_same(output, self.successor(output))

    def test_no_descriptor_to_give_back(self):
        output = self.make(1 << 20)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        for _ in range(10):
            self.write(output, b'y' * 60_000)
        resource.setrlimit(resource.RLIMIT_NOFILE, (
            max(map(int, os.listdir('/proc/self/fd'))), limits[1]))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        spare = []
        try:
            while True:
                spare.append(os.dup(0))
        except OSError:
            pass
        output.acknowledge(500_000)
        for fd in spare:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        self.assertGreater(blocks(output.fd), 600_000)
        output.acknowledge(500_001)
        self.assertLess(blocks(output.fd), 200_000)

    def test_full_memory(self):
        output = self.make()
        os.write(self.writer, b'abc')
        with full_memory(0):
            with self.assertRaisesRegex(KernelError, 'no memory'):
                output.take_in(OUT, self.reader)
        self.assertEqual(-1, output.fd)
        self.assertEqual(3, output.take_in(OUT, self.reader))
        os.write(self.writer, b'x' * 10_000)
        size = os.fstat(output.fd).st_size
        with full_memory(size + 6_000):
            self.assertEqual(6_000, output.take_in(OUT, self.reader))
            for _ in range(2):
                with self.assertRaisesRegex(KernelError, 'no memory'):
                    output.take_in(OUT, self.reader)
            self.assertEqual((0, 6_003), (output.begin, output.end))
            self.assert_same(output, self.successor(output))
        self.assertEqual(4_000, output.take_in(OUT, self.reader))
        self.assertEqual(
            [(1, 0, b'abc'), (1, 3, b'x' * 6_000), (1, 6_003, b'x' * 4_000)],
            self.contents(output))
        self.assert_same(output, self.successor(output))


class VersionTests(OutputCase):

    def test_another_version(self):
        output = self.make()
        self.write(output, b'a')
        check_output(output.fd)
        os.pwrite(output.fd, START.pack(b'grkoutpt', 99, 120), 0)
        fd = self.own(os.dup(output.fd))
        for check in (check_output, lambda fd: Output(10, 'drop', fd)):
            with self.assertRaisesRegex(KernelError, 'version 99.*version 1:'):
                check(fd)
        os.fstat(fd)

    def test_something_else(self):
        fd = self.own(os.memfd_create('other'))
        with self.assertRaisesRegex(KernelError, 'something else'):
            Output(10, 'drop', fd)

    def test_damaged(self):
        output = self.make()
        self.write(output, b'a')
        os.pwrite(output.fd, b'\xff' * 128, 64)
        fd = self.own(os.dup(output.fd))
        with self.assertRaisesRegex(KernelError, 'damaged'):
            Output(10, 'drop', fd)

    def test_one_header_is_torn(self):
        output = self.make()
        self.write(output, b'abc')
        output.acknowledge(1)
        for offset in (64, 128):
            before = os.pread(output.fd, 64, offset)
            os.pwrite(output.fd, b'\xff' * 30, offset)
            self.assertIn(self.successor(output).begin, (0, 1))
            os.pwrite(output.fd, before, offset)


class Lines:
    """Numbered lines of two streams, and what a watcher got of them."""

    def __init__(self):
        self.written = {OUT: 0, ERR: 0}
        self.received = {OUT: bytearray(), ERR: bytearray()}
        self.position = self.missing = self.count = 0

    def next(self, stream, size):
        start = self.written[stream]
        self.written[stream] += size
        return self.expected(start, size)

    def expected(self, start, size):
        first, last = start // 10, (start + size) // 10 + 1
        lines = b''.join(b'%09d\n' % number for number in range(first, last))
        return lines[start - first * 10:][:size]

    def collect(self, output, limit=1 << 30):
        for record in output.records(self.position, limit):
            if record.offset > self.position:
                self.missing += record.offset - self.position
                for received in self.received.values():
                    received += b'?'
            self.position = record.end
            self.count += len(record.data)
            self.received[record.stream] += record.data

    def check(self, case):
        for stream, data in self.received.items():
            # Not assertEqual, which would show megabytes.
            case.assertTrue(
                self.expected(0, self.written[stream]) == bytes(data))


class DeathTests(OutputCase):

    def test_at_each_instant(self):
        self._die('block', 1 << 20, self._steps(40))

    def test_at_each_instant_of_drops(self):
        lines = self._die('drop', 8192, self._steps(40))
        self.assertLess(0, lines.missing)

    def test_at_instants_of_small_records(self):
        steps = []
        for number in range(250):
            steps.append((1 + number % 2, 1, None))
            if number % 100 == 70:
                steps.append((None, 40, 5))
        steps.append((None, 1000, 0))
        steps += self._steps(5)
        self._die('block', 8192, steps, 7)

    def _steps(self, count):
        """What is done: a stream and the bytes that its child writes, or else
        how many bytes are collected and how many of these acknowledged not."""
        steps = []
        for number in range(count):
            steps.append((1 + number // 2 % 2, 1 + number * 397 % 6000, None))
            if number % 5 == 2:
                steps.append((None, 3000, 10))
            elif number % 5 == 4:
                steps.append((None, 1 << 30, 0))
        return steps

    def _die(self, overflow, capacity, steps, stride=1):
        instant = 0
        while self._dies_at(instant, overflow, capacity, steps):
            instant += stride
        self.assertGreater(instant, 200)
        return self._lines

    def _dies_at(self, instant, overflow, capacity, steps):
        held = []
        output = Output(capacity, overflow,
                        on_create=lambda fd: held.append(os.dup(fd)))
        self._lines = lines = Lines()
        left = [*steps]
        with death_at(instant) as deaths:
            with contextlib.suppress(Death):
                self._work(output, lines, left)
        if deaths:
            output.close()
            output = Output(capacity, overflow, held.pop() if held else -1)
            self._work(output, lines, left)
        lines.collect(output)
        self.assertEqual(sum(lines.written.values()), lines.position)
        self.assertEqual(lines.position, lines.count + lines.missing)
        if overflow == 'block':
            lines.check(self)
        self.assertLessEqual(lines.missing, output.dropped)
        output.close()
        for fd in held:
            os.close(fd)
        return bool(deaths)

    def _work(self, output, lines, left):
        """Do the steps that are left; one that is repeated writes nothing."""
        while left:
            stream, size, kept = left[0]
            if stream is None:
                lines.collect(output, size)
                output.acknowledge(lines.position - kept)
            else:
                reader, writer = (
                    (self.reader, self.writer) if stream == OUT else
                    (self.error_reader, self.error_writer))
                if size:
                    os.write(writer, lines.next(stream, size))
                    left[0] = stream, 0, None
                with contextlib.suppress(BlockingIOError):
                    while True:
                        output.take_in(stream, reader)
            del left[0]

    def test_at_random_instants(self):
        lines = self._kill('block', 500_000)
        lines.check(self)
        self.assertEqual(0, lines.missing)

    def test_at_random_instants_of_drops(self):
        lines = self._kill('drop', 100_000)
        self.assertEqual(lines.position, lines.count + lines.missing)
        for received in lines.received.values():
            numbers = re.findall(rb'(?<=\n)\d{9}(?=\n)', received)
            self.assertTrue(sorted(set(numbers)) == numbers)

    def _kill(self, overflow, capacity):
        """Kill 40 takers of what two children write, and take the rest."""
        lines = Lines()
        output = self.make(capacity, overflow)
        output._create()
        stop, totals = os.pipe(), os.pipe()
        children = [self._child(stream, stop, totals) for stream in (OUT, ERR)]
        for fd in (self.writer, self.error_writer, stop[0], totals[1]):
            os.close(fd)
        kills = 0
        while kills < 40:
            victim = Victim(lambda report, output=output:
                            self._take(output, lines.position))
            victim.wait(self.random.uniform(0, 0.004))
            ended, _ = victim.kill()
            kills += not ended
            predecessor, output = output, self.successor(output)
            predecessor.close()
            lines.collect(output, self.random.randrange(1, 300_000))
        os.close(stop[1])
        while self._take(output, lines.position):
            lines.collect(output)
        lines.collect(output)
        for pid in children:
            os.waitpid(pid, 0)
            stream, lines.written[stream] = TOTAL.unpack(
                os.read(totals[0], TOTAL.size))
        os.close(totals[0])
        self.assertEqual(sum(lines.written.values()), lines.position)
        return lines

    def _child(self, stream, stop, totals):
        """Write numbered lines until `stop` has no writers."""
        pid = os.fork()
        if not pid:
            os.close(stop[1])
            os.set_blocking(stop[0], False)
            writer = (self.writer, self.error_writer)[stream - 1]
            lines = Lines()
            while True:
                data = lines.next(stream, self.random.randrange(
                    1, self.random.choice((10, 1000, 20_000))))
                while data:
                    data = data[os.write(writer, data):]
                with contextlib.suppress(BlockingIOError):
                    os.read(stop[0], 1)
                    break
            os.write(totals[1], TOTAL.pack(stream, lines.written[stream]))
            os._exit(0)
        return pid

    def _take(self, output, seen):
        """The work of a daemon: False when the children have ended, and True
        when there is no room until more was seen."""
        readers = {self.reader: OUT, self.error_reader: ERR}
        poll = select.poll()
        for reader in readers:
            poll.register(reader, select.POLLIN)
        while readers:
            for reader, _ in poll.poll():
                try:
                    size = output.take_in(readers[reader], reader)
                except BlockingIOError:
                    continue
                if not size:
                    poll.unregister(reader)
                    del readers[reader]
                if size < 0 and output.begin >= seen:
                    return True
            output.acknowledge(self.random.randint(0, seen))
            if not self.random.randrange(3):
                output.acknowledge(seen)
        return False
