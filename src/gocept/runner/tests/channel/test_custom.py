"""Channels of other classes, and what they share with ours."""

import os

import transaction

from gocept.runner.channel import (
    Channel,
    EndpointClosedException,
    LineChannel,
    PipeChannel,
    TransactionalChannel,
)
from gocept.runner.channel.custom import as_channel
from gocept.runner.poller import Poller
from gocept.runner.testing import TestChannel
from gocept.runner.tests.streams import StreamTestCase


class Plain:
    """A class that knows nothing of ours; `reads` end with the stream."""

    def __init__(self, *reads):
        self.reads = [*reads]
        self.written = []
        self.closed = False

    def read(self):
        if not self.reads:
            raise EndpointClosedException
        return self.reads.pop(0)

    def write(self, *data):
        self.written += data

    def close(self):
        self.closed = True


class Polled(Plain):

    def __init__(self, *reads):
        super().__init__(*reads)
        self.faucet, self.sink = os.pipe()
        os.write(self.sink, b'x')  # it is always readable

    def get_fd(self):
        return self.faucet

    def close(self):
        if not self.closed:
            os.close(self.faucet)
            os.close(self.sink)
        super().close()


class Derived(Plain, Channel):
    """One with `read` instead of `_read`, and a constructor of its own."""

    read = Plain.read


class Mixed(Plain, Channel):
    """One that has its `read` from a class that is no channel."""


class DerivedLines(Polled, Channel):

    @property
    def buffering(self):
        return 'line'


class CustomTests(StreamTestCase):

    classes = Plain, Derived, Mixed

    def setUp(self):
        super().setUp()
        self.addCleanup(transaction.abort)

    def test_lines_of_it(self):
        for class_ in self.classes:
            with self.subTest(class_.__name__):
                custom = class_(b'a\nb', b'', b'c\nd')
                channel = LineChannel(custom)
                self.assertEqual([b'a\n', b'', b'bc\n', b'd'],
                                 [channel.read() for _ in range(4)])
                with self.assertRaises(EndpointClosedException):
                    channel.read()
                channel.write(b'x', b'y')
                self.assertEqual(b'xy', b''.join(custom.written))
                self.assertFalse(channel.closed)
                channel.close()
                self.assertTrue(custom.closed)
                self.assertTrue(channel.closed)

    def test_lines_of_text(self):
        for class_ in self.classes:
            channel = LineChannel(class_('ä\nö'.encode()), encoding='utf-8')
            self.assertEqual(['ä\n', 'ö'], [channel.read(), channel.read()])

    def test_reads_up_to(self):
        for class_ in self.classes:
            channel = as_channel(class_(b'a', b'bcd'))
            self.assertEqual((b'a', b'bc'), channel.read_until(b'bc'))
            with self.assertRaises(EndpointClosedException):
                channel.read_until(b'e')
            self.assertEqual(b'd', LineChannel(channel).read())

    def test_transactional(self):
        for class_ in self.classes:
            with self.subTest(class_.__name__):
                custom = class_(b'a')
                channel = TransactionalChannel(custom)
                for _ in range(2):
                    transaction.abort()
                    channel.write(b'x')
                    self.assertEqual(b'a', channel.read())
                self.assertEqual([], custom.written)
                transaction.commit()
                self.assertEqual([b'x'], custom.written)

    def test_polled_without_a_descriptor(self):
        with Poller() as poller:
            for class_ in self.classes:
                with self.assertRaises(NotImplementedError):
                    poller.register(class_())

    def test_polled(self):
        lines = type('Lines', (Polled,), {'buffering': 'line'})
        for class_, first in (
                (Polled, [b'a\n']), (lines, [b'a\n', b'b\n']),
                (type('DerivedBytes', (Polled, Channel), {}), [b'a\n']),
                (DerivedLines, [b'a\n', b'b\n'])):
            with self.subTest(class_.__name__), Poller() as poller:
                custom = class_(b'a\n', b'b\n', b'', b'c')
                poller.register(custom)
                poller.register(custom)
                items = []
                while (b'', custom) not in items:
                    polled = poller.poll(0)
                    if not items:
                        self.assertEqual([(each, custom) for each in first],
                                         polled)
                    items += polled
                self.assertEqual([(each, custom) for each in (
                    b'a\n', b'b\n', b'c', b'')], items)
                custom.reads.append(b'more')
                self.assertEqual([], poller.poll(0))
                poller.register(custom)
                poller.unregister(custom)
                self.assertEqual([], poller.poll(0))
                poller.register(custom)
                poller.close_all()
                self.assertTrue(custom.closed)

    def test_polled_in_transactions(self):
        lines = type('Lines', (Polled,), {'buffering': 'line'})
        for class_ in lines, DerivedLines:
            with self.subTest(class_.__name__), Poller() as poller:
                channel = TransactionalChannel(class_(b'a\n', b'b'))
                with channel:
                    poller.register(channel)
                    for _ in range(2):
                        transaction.abort()
                        self.assertEqual(
                            [(b'a\n', channel), (b'b', channel),
                             (b'', channel)], poller.poll(0))
                    transaction.commit()
                    self.assertEqual([], poller.poll(0))

    def test_lines_before_an_error_are_not_lost(self):
        def fail(self):
            if not self.reads:
                raise OSError('broken')
            return self.reads.pop(0)
        for wrap in as_channel, TransactionalChannel:
            for base in Polled, DerivedLines:
                class_ = type('Failing', (base,), {
                    'buffering': 'line', 'read': fail})
                with (self.subTest((wrap, base)), Poller() as poller,
                      wrap(class_(b'a\n', b'b\n')) as channel):
                    poller.register(channel)
                    with self.assertLogs('gocept.runner.channel') as logs:
                        items = poller.poll(0)
                    self.assertEqual([b'a\n', b'b\n', b''],
                                     [data for data, _ in items])
                    self.assertIn('broken', logs.output[0])
                    transaction.commit()
                    self.assertEqual([], poller.poll(0))

    def test_a_subclass_whose_read_is_another(self):
        class Shouting(PipeChannel):
            def read(self):
                return super().read().upper()
        faucet, sink = os.pipe()
        with Poller() as poller, Shouting(faucet, sink) as channel:
            channel.write(b'a')
            poller.register(channel)
            self.assertEqual([(b'A', channel)], poller.poll(0))

    def test_nothing_as_none(self):
        for class_ in self.classes:
            self.assertEqual(b'', LineChannel(class_(None)).read())

    def test_what_is_no_channel(self):
        for thing in object(), None, 1, b'', StreamTestCase:
            with self.assertRaisesRegex(TypeError, 'read.., write.. and cl'):
                LineChannel(thing)
            with Poller() as poller:
                with self.assertRaisesRegex(TypeError, 'add_server'):
                    poller.register(thing)

    def test_one_that_cannot_be_read(self):
        class Printer(Channel):
            write = close = Plain.close
        with self.assertRaisesRegex(NotImplementedError, 'to read from'):
            Printer().read()


class LinenessTests(StreamTestCase):

    def test_each_channel_of_lines_is_a_line_channel(self):
        with PipeChannel(*os.pipe(), buffering='line') as channel:
            self.assertIsInstance(channel, LineChannel)
            self.assertIsInstance(channel, PipeChannel)
        for channel in (TestChannel(buffering='line'),
                        LineChannel(TestChannel()), LineChannel(Plain()),
                        TransactionalChannel(TestChannel(buffering='line'))):
            self.assertIsInstance(channel, LineChannel)
            self.assertEqual('line', channel.buffering)
        for channel in (TestChannel(), TestChannel(buffering='bytes'),
                        TransactionalChannel(TestChannel())):
            self.assertNotIsInstance(channel, LineChannel)
            self.assertEqual('bytes', channel.buffering)
        self.assertNotIsInstance(Plain(), LineChannel)
        self.assertNotIsInstance(TestChannel(buffering='line'),
                                 type('Own', (LineChannel,), {}))

    def test_buffering_is_read_only(self):
        with self.assertRaises(AttributeError):
            TestChannel().buffering = 'line'


class LastLineTests(StreamTestCase):
    """A loop that ends with b'' gets the last line before."""

    def setUp(self):
        super().setUp()
        self.addCleanup(transaction.abort)

    def channels(self, data):
        """Of each kind, channels that have `data` and their end."""
        for make in (lambda **options: self.pipe(data, **options),
                     lambda **options: self.fake(data, **options)):
            yield make(buffering='line')
            yield LineChannel(make())
            yield LineChannel(make(encoding='utf-8'))
            yield LineChannel(make(), encoding='utf-8')
            yield TransactionalChannel(make(buffering='line'))
            yield TransactionalChannel(LineChannel(make(), encoding='utf-8'))

    def pipe(self, data, **options):
        faucet, sink = os.pipe()
        os.write(sink, data)
        os.close(sink)
        return self.enterContext(PipeChannel(faucet, **options))

    def fake(self, data, **options):
        channel = self.enterContext(TestChannel(**options))
        channel.put(data)
        channel.put_eof()
        return channel

    def test_is_read_before_the_end_is_raised(self):
        for data in (b'end', b'a\n\nend', b'\n', b'a\n\n', b'end\xc3'):
            for channel in self.channels(data):
                with self.subTest(repr(channel), data=data):
                    text = data.decode('utf-8', 'backslashreplace')
                    lines = (text if channel.is_text else data).splitlines(
                        keepends=True)
                    read = []
                    with self.assertRaises(EndpointClosedException):
                        while line := channel.read():
                            read.append(line)
                    self.assertEqual(lines, read)

    def test_a_part_of_a_character(self):
        channel = self.pipe(b'\xc3', encoding='utf-8')
        self.assertEqual('\\xc3', channel.read())

    def test_is_polled(self):
        for channel in self.channels(b'a\nend'):
            with self.subTest(repr(channel)), Poller() as poller:
                poller.register(channel)
                read = []
                while not read or read[-1]:
                    read += [line for line, _ in poller.poll(0)]
                self.assertEqual(
                    ['a\n', 'end', ''] if channel.is_text
                    else [b'a\n', b'end', b''], read)

    def test_of_a_stream_that_goes_on_is_kept(self):
        faucet, sink = os.pipe()
        with PipeChannel(faucet, sink, buffering='line') as channel:
            channel.write(b'a\nb')
            self.assertEqual([b'a\n', b''], [channel.read(), channel.read()])
            channel.write(b'c\n')
            self.assertEqual(b'bc\n', channel.read())
