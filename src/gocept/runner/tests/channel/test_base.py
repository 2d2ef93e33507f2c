import codecs
import unittest

import zope.interface.verify
from hypothesis import example, given
from hypothesis import strategies as st

from gocept.runner.channel import Channel, LineChannel
from gocept.runner.errors import EndpointClosedException
from gocept.runner.interfaces import IChannel
from gocept.runner.poller import Poller
from gocept.runner.testing import TestChannel
from gocept.runner.tests.properties import steady
from gocept.runner.tests.streams import StreamTestCase, read_to_end

ENCODINGS = ('ascii', 'utf-8', 'utf-8-sig', 'utf-16', 'utf-16-be', 'utf-32',
             'latin-1', 'shift_jis', 'iso2022_jp', 'gb18030', 'utf-7')

quick = steady(max_examples=100)


class Custom(Channel):
    """The least that a channel needs."""

    def __init__(self, *reads, **options):
        super().__init__(**options)
        self.reads = [*reads]
        self.written = b''

    def _read(self):
        if self.closed or not self.reads:
            raise EndpointClosedException
        return self.reads.pop(0)

    def write(self, *data):
        self.written += self._encoded(data)

    def close(self):
        self.closed = True


def cut(data, places):
    """Pieces of `data`, cut at some places."""
    places = sorted({place % (len(data) + 1) for place in places})
    return [data[begin:end]
            for begin, end in zip([0, *places], [*places, len(data)])]


def lines_of(text, limit):
    return [line[start:start + limit]
            for line in text.splitlines(keepends=True)
            for start in range(0, len(line), limit)]


class PiecesTests(unittest.TestCase):

    @quick
    @given(st.binary(max_size=40), st.sampled_from(ENCODINGS),
           st.lists(st.integers(0, 40), max_size=10))
    @example(b'\n\0\0\0a\0b\0', 'utf-16', [1])
    @example(b'a', 'utf-32', [])
    def test_any_bytes_are_text_wherever_they_are_split(
            self, data, encoding, places):
        whole = ''.join(read_all(Custom(data, encoding=encoding)))
        split = ''.join(read_all(Custom(*cut(data, places),
                                        encoding=encoding)))
        self.assertEqual(whole, split)

    @quick
    @given(st.text(alphabet='a\xe4\u65e5\U0001f600\n', max_size=30),
           st.sampled_from(['utf-8', 'utf-16', 'utf-16-le', 'utf-32',
                            'gb18030', 'utf-7']),
           st.lists(st.integers(0, 130), max_size=10),
           st.sampled_from([1, 2, 5, 1000]))
    def test_lines_of_text_wherever_they_are_split(
            self, text, encoding, places, limit):
        pieces = cut(text.encode(encoding), places)
        expected = lines_of(text, limit)
        for channel in (
                Custom(*pieces, encoding=encoding, buffering='line',
                       limit=limit),
                LineChannel(Custom(*pieces), encoding=encoding, limit=limit),
                LineChannel(Custom(*pieces, encoding=encoding), limit=limit)):
            self.assertEqual(expected, read_all(channel))

    @quick
    @given(st.text(alphabet='a\xe4\u65e5\n', max_size=20),
           st.lists(st.integers(0, 60), max_size=10))
    def test_a_character_does_not_wait_for_more(self, text, places):
        channel = TestChannel(encoding='utf-8')
        decoder = codecs.getincrementaldecoder('utf-8')()
        for piece in cut(text.encode(), places):
            channel.put(piece)
            self.assertEqual(decoder.decode(piece), channel.read())

    @quick
    @given(st.text(alphabet='ab\n', max_size=40),
           st.lists(st.integers(0, 40), max_size=10), st.integers(1, 5))
    def test_partial_until_the_last_piece(self, text, places, limit):
        channel = Custom(*cut(text.encode(), places), buffering='line',
                         limit=limit)
        line, lines = b'', []
        while True:
            try:
                data = channel.read()
            except EndpointClosedException:
                break
            line += data
            if data and not channel.partial:
                lines.append(line)
                line = b''
        if line:  # it ended after a piece that was as long as the limit
            lines.append(line)
        self.assertEqual(text.encode().splitlines(keepends=True), lines)


def read_all(channel):
    """All reads up to the end, but those of nothing."""
    reads = []
    try:
        while True:
            reads += filter(None, [channel.read()])
    except EndpointClosedException:
        return reads


class CustomChannelTests(StreamTestCase):

    def test_keeps_the_contract(self):
        zope.interface.verify.verifyObject(IChannel, Custom())

    def test_bytes(self):
        channel = Custom(b'a', b'', b'b\n')
        self.assertEqual([b'a', b'', b'b\n'],
                         [channel.read() for _ in range(3)])
        with self.assertRaises(EndpointClosedException):
            channel.read()

    def test_lines(self):
        for channel in (Custom(b'a\nb', b'c\n', buffering='line'),
                        LineChannel(Custom(b'a\nb', b'c\n'))):
            self.assertEqual([b'a\n', b'bc\n'], read_to_end(channel))

    def test_writes(self):
        channel = Custom(encoding='utf-8')
        channel.write('a', b'b')
        self.assertEqual(b'ab', channel.written)
        self.assertEqual(0, channel.kept)
        channel.flush(0)

    def test_what_it_does_not_do(self):
        channel = Custom()
        with Poller() as poller:
            for call in (channel.get_fd, channel.fileno, channel.write_eof,
                         lambda: poller.register(channel),
                         lambda: poller.register(LineChannel(channel))):
                with self.assertRaises(NotImplementedError):
                    call()
            self.assertEqual([], poller.poll(0))

    def test_is_a_context_manager(self):
        with Custom() as channel:
            pass
        self.assertTrue(channel.closed)
        self.assertEqual(-1, channel.fileno())

    def test_reads_up_to(self):
        channel = Custom(b'a', b'bcd')
        self.assertEqual((b'a', b'bc'), channel.read_until(b'bc'))
        with self.assertRaises(EndpointClosedException) as caught:
            channel.read_until(b'e')
        self.assertEqual(b'd', caught.exception.seen)
        self.assertEqual(b'd', channel.read())

    def test_an_error_of_its_own(self):
        class Broken(Custom):
            def _read(self):
                raise ZeroDivisionError
        for channel in (Broken(), Broken(buffering='line')):
            with self.assertRaises(ZeroDivisionError):
                channel.read()

    def test_the_end_comes_once_more_after_the_rest(self):
        channel = Custom(b'a', buffering='line')
        self.assertEqual(b'a', channel.read())
        for _ in range(2):
            with self.assertRaises(EndpointClosedException):
                channel.read()

    def test_needs_what_it_is_for(self):
        with self.assertRaises(TypeError):
            Channel()


class OptionsTests(unittest.TestCase):

    def test_buffering(self):
        for buffering in (None, 'bytes', 'line'):
            self.assertEqual(buffering or 'bytes',
                             Custom(buffering=buffering).buffering)
        for buffering in ('lines', '', 1, 0, True):
            with self.assertRaisesRegex(ValueError, "None, 'bytes' or"):
                Custom(buffering=buffering)

    def test_encoding(self):
        self.assertEqual('latin-1', Custom(encoding='latin-1').encoding)
        self.assertIsNone(Custom().encoding)
        with self.assertRaises(LookupError):
            Custom(encoding='utf-99')

    def test_limit(self):
        with self.assertRaises(ValueError):
            Custom(buffering='line', limit=0)

    def test_utf_16_without_its_mark(self):
        channel = Custom(b'a', b'\0\n', b'\0b\0', encoding='utf-16-le')
        other = Custom(b'a', b'\0\n', b'\0b\0', encoding='utf-16')
        self.assertEqual('a\nb', ''.join(read_all(channel)))
        self.assertIn(''.join(read_all(other)), ('a\nb', '\u6100\u0a00\u6200'))


class WrappedTests(unittest.TestCase):

    def test_lines_of_lines(self):
        inner = Custom(b'a\nb\nc\nd', buffering='line')
        channel = LineChannel(inner)
        self.assertEqual([b'a\n', b'b\n', b'c\n', b'd'], read_all(channel))

    def test_it_knows_what_the_other_one_has(self):
        inner = TestChannel(buffering='line')
        channel = LineChannel(inner)
        inner.put(b'a\nb\nc\n')
        for left in (True, True, False):
            self.assertTrue(channel.read())
            self.assertEqual(left, channel.buffered)

    def test_sources(self):
        inner = Custom()
        middle = LineChannel(inner)
        outer = LineChannel(middle)
        self.assertEqual([outer, middle, inner], [*outer.layers()])
