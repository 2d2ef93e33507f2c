"""Frames: what arrives is what was sent, once, in order, or nothing at all."""

import hashlib
import itertools
import os
import random
import struct
import unittest
import warnings
from collections.abc import Sequence
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from gocept.runner.background import pages
from gocept.runner.background.frames import (
    ANSWERS,
    AWAIT,
    EXEC,
    EXIT,
    HASHED,
    INIT,
    MORE,
    OVERHEAD,
    PIECE,
    PING,
    RECEIPT,
    REPORT,
    REQUESTS,
    RESPONSE,
    STATUS,
    Message,
    Opener,
    Piece,
    Sealer,
)
from gocept.runner.errors import ProtocolError
from gocept.runner.tests.properties import steady

MIB = 2 ** 20

KEY = bytes(range(32))

OTHER_KEY = KEY[::-1]

Arrived = tuple[int, int, int, bytes, int]


def arrived(messages: Sequence[Message]) -> list[Arrived]:
    """The messages, with their pieces in one."""
    return [(each.kind, each.flags, each.id, b''.join(each.pieces), each.size)
            for each in messages]


def feed(opener: Opener, data: bytes, size: int) -> list[Arrived]:
    """What arrives if it comes in parts of that size."""
    return [message for start in range(0, len(data), size)
            for message in arrived(opener.feed(data[start:start + size]))]


def tagged(data: bytes, counter: int, key: bytes = KEY) -> bytes:
    """A frame made by hand, of a header and a payload."""
    payload = data[16:]
    if len(payload) > 2048:
        payload = hashlib.sha256(payload).digest()
    return data + hashlib.blake2b(
        struct.pack('!Q', counter) + data[:16] + payload, key=key,
        digest_size=16).digest()


def header(length: int, kind: int = EXEC, flags: int = 0, zero: int = 0,
           number: int = 1) -> bytes:
    return struct.pack('!IBBHQ', length, kind, flags, zero, number)


class FramesTestCase(unittest.TestCase):

    def setUp(self) -> None:
        self.sealer = Sealer(KEY)
        self.opener = Opener(KEY)

    def assert_refused(self, data: bytes, opener: Opener | None = None,
                       ) -> None:
        """It is noticed, however it is cut, and nothing comes of it."""
        opener = opener or self.opener
        with self.assertRaises(ProtocolError):
            opener.feed(data)
        # The connection is over.
        for more in data, Sealer(KEY).seal(EXEC, 0, 1, b'x'):
            with self.assertRaises(ProtocolError):
                opener.feed(more)


class FrameTests(FramesTestCase):

    def setUp(self) -> None:
        super().setUp()
        # The first test with Hypothesis has it read all modules, and papa has
        # this warning.
        self.enterContext(warnings.catch_warnings())
        warnings.filterwarnings('ignore', 'invalid escape sequence')

    def test_the_bytes(self) -> None:
        # As the narrative has them, so that others can write a client.
        for counter, payload in enumerate(
                (b'', b'abc', b'x' * HASHED, b'y' * (HASHED + 1))):
            made = self.sealer.seal(EXEC, AWAIT, 7, payload)
            self.assertEqual(tagged(
                header(len(payload), EXEC, AWAIT, number=7) + payload,
                counter), made)

    def test_without_tags(self) -> None:
        sealer, opener = Sealer(None), Opener(None)
        for payload in b'', b'abc', b'x' * (HASHED + 1):
            made = sealer.seal(EXEC, AWAIT, 7, payload)
            self.assertEqual(
                header(len(payload), EXEC, AWAIT, number=7) + payload, made)
            self.assertEqual([(EXEC, AWAIT, 7, payload, len(payload))],
                             arrived(opener.feed(made)))

    def test_one_by_one(self) -> None:
        for size in (0, 1, 100, HASHED - 1, HASHED, HASHED + 1, PIECE):
            payload = os.urandom(size)
            self.assertEqual(
                [(EXEC, AWAIT, 2 ** 64 - 1, payload, size)],
                arrived(self.opener.feed(
                    self.sealer.seal(EXEC, AWAIT, 2 ** 64 - 1, payload))))

    def test_a_frame_has_a_piece_at_most(self) -> None:
        with self.assertRaises(ValueError):
            self.sealer.seal(EXEC, 0, 1, bytes(PIECE + 1))

    def conversation(self, key: bytes | None) -> tuple[bytes, list[Arrived]]:
        sealer = Sealer(key)
        large = os.urandom(PIECE + 70_000)
        small = os.urandom(300)
        longer = os.urandom(HASHED + 300)
        frames = [*sealer.frames(EXEC, AWAIT, 4, [small, large, b'.'])]
        self.assertEqual(2, len(frames))
        data = b''.join((
            sealer.seal(INIT, 0, 1, small),
            sealer.seal(PING, 0, 0),
            sealer.seal(EXEC, 0, 2),
            sealer.seal(EXEC, 0, 3, longer)))
        # The frames of the long message have lower numbers.
        data = b''.join(piece for frame in frames for piece in frame) + data
        return data, [
            (EXEC, AWAIT, 4, small + large + b'.', len(large) + 301),
            (INIT, 0, 1, small, 300), (PING, 0, 0, b'', 0),
            (EXEC, 0, 2, b'', 0), (EXEC, 0, 3, longer, len(longer))]

    def test_however_they_are_cut(self) -> None:
        for key in KEY, None:
            data, expected = self.conversation(key)
            for size in (15, 33, 100, 4095, 4096, 4097, 65536, PIECE,
                         PIECE + OVERHEAD, len(data)):
                with self.subTest(key=key, size=size):
                    self.assertEqual(
                        expected, feed(Opener(key), data, size))

    def test_cut_at_each_byte(self) -> None:
        sealer = Sealer(KEY)
        data = b''.join((sealer.seal(INIT, 0, 1, b'abc'),
                         sealer.seal(PING, 0, 0),
                         *sealer.pieces(EXIT, AWAIT, 2, [b'd', b'', b'ef']),
                         sealer.seal(STATUS, 0, 3)))
        expected = arrived(Opener(KEY).feed(data))
        self.assertEqual(4, len(expected))
        for at in range(len(data)):
            opener = Opener(KEY)
            self.assertEqual(expected, arrived(
                [*opener.feed(data[:at]), *opener.feed(data[at:])]))

    @steady(max_examples=100)
    @given(st.lists(st.tuples(
        st.sampled_from([INIT, EXEC, EXIT]), st.sampled_from([0, AWAIT]),
        st.integers(1, 2 ** 64 - 1),
        st.lists(st.binary(max_size=20) | st.integers(0, 3 * PIECE).map(
            bytes), max_size=4)), max_size=4), st.randoms(), st.booleans())
    def test_any_messages(
            self, messages: list[tuple[int, int, int, list[Piece]]],
            randomly: random.Random, tls: bool) -> None:
        key = None if tls else KEY
        sealer, opener = Sealer(key), Opener(key, kinds=REQUESTS)
        data = b''.join(
            piece for message in messages for piece in sealer.pieces(*message))
        result, start = [], 0
        while start < len(data):
            end = start + randomly.choice((1, 20, 5000, PIECE, 2 * PIECE))
            result += arrived(opener.feed(data[start:end]))
            start = end
        self.assertEqual([
            (kind, flags, number, b''.join(pieces), len(b''.join(pieces)))
            for kind, flags, number, pieces in messages], result)
        self.assertEqual(0, opener.kept)


class LongMessageTests(FramesTestCase):

    def test_large_bytes_are_not_copied(self) -> None:
        value = os.urandom(3 * PIECE)
        views = [piece for frame in self.sealer.frames(
                     EXEC, 0, 1, [b'head', value, b'tail'])
                 for piece in frame if isinstance(piece, memoryview)]
        self.assertEqual({id(value)}, {id(view.obj) for view in views})
        self.assertEqual(len(value), sum(map(len, views)))

    def test_received_bytes_are_not_copied(self) -> None:
        payload = os.urandom(PIECE)
        data = self.sealer.seal(EXEC, 0, 1, payload)
        [message] = self.opener.feed(data[:200_000]) or self.opener.feed(
            data[200_000:])
        self.assertEqual([memoryview] * 2, [*map(type, message.pieces)])
        self.assertEqual(payload, b''.join(message.pieces))

    def test_a_short_part_does_not_keep_what_came_with_it(self) -> None:
        [first, _] = self.opener.feed(
            self.sealer.seal(EXEC, 0, 1, bytes(5000))
            + self.sealer.seal(EXEC, 0, 2, bytes(100_000)))
        self.assertEqual([bytes], [*map(type, first.pieces)])

    def test_a_very_long_message(self) -> None:
        value = random.Random(1).randbytes(11 * MIB)
        pings = 0
        new_region = pages.new_region
        for size in PIECE + OVERHEAD, 12 * MIB:
            for there in [True], [False], [True, False], [False, False, True]:
                turns = itertools.cycle(there)
                with mock.patch.object(
                        pages, 'new_region',
                        lambda: new_region() if next(turns) else None):
                    sealer, opener = Sealer(KEY), Opener(KEY)
                    data = bytearray()
                    for frame in sealer.frames(EXEC, 0, 1, [value, b'end']):
                        data += b''.join(frame)
                        data += sealer.seal(PING, 0, 1)
                    *others, last, _ = [
                        message for start in range(0, len(data), size)
                        for message in opener.feed(
                            bytes(data[start:start + size]))]
                pings += len(others)
                self.assertEqual(value + b'end', b''.join(last.pieces))
                self.assertEqual(0, opener.kept)
        self.assertEqual(8 * 44, pings)

    def test_a_very_long_message_that_is_not_wanted(self) -> None:
        frames = self.sealer.frames(EXEC, 0, 1, [bytes(9 * MIB)])
        for _ in range(20):
            self.assertEqual([], self.opener.feed(b''.join(next(frames))))
        data = b''.join(next(frames))
        self.assertEqual([], self.opener.feed(data[:1000]))
        self.assertEqual(1, self.opener.discard())
        self.assertEqual([], self.opener.feed(data[1000:]))
        for frame in frames:
            self.assertEqual([], self.opener.feed(b''.join(frame)))
        self.assertEqual([(EXEC, 0, 2, b'x', 1)], arrived(
            self.opener.feed(self.sealer.seal(EXEC, 0, 2, b'x'))))

    def test_a_very_long_message_that_is_changed(self) -> None:
        frames = [b''.join(frame) for frame in self.sealer.frames(
            EXEC, 0, 1, [bytes(4 * MIB)])]
        for number in 3, 12, 15:
            opener = Opener(KEY)
            for frame in frames[:number]:
                opener.feed(frame)
            changed = bytearray(frames[number])
            changed[10_000] ^= 1
            self.assert_refused(bytes(changed), opener)
            self.assertEqual(0, opener.kept)

    def test_pieces_byte_by_byte_are_put_together(self) -> None:
        for number, byte in enumerate(b'x' * 5000):
            flags = MORE if number < 4999 else 0
            messages = self.opener.feed(
                self.sealer.seal(EXEC, flags, 1, bytes((byte,))))
        self.assertEqual(1, len(messages[0].pieces))
        self.assertEqual([(EXEC, 0, 1, b'x' * 5000, 5000)], arrived(messages))

    def test_pings_between_the_frames(self) -> None:
        frames = self.sealer.frames(EXEC, 0, 1, [bytes(PIECE), b'end'])
        self.assertEqual([], self.opener.feed(b''.join(next(frames))))
        self.assertEqual([(PING, 0, 9, b'', 0)], arrived(
            self.opener.feed(self.sealer.seal(PING, 0, 9))))
        self.assertEqual(PIECE, self.opener.kept)
        [message] = self.opener.feed(b''.join(next(frames)))
        self.assertEqual(bytes(PIECE) + b'end', b''.join(message.pieces))
        self.assertEqual(0, self.opener.kept)
        self.assertEqual([], [*frames])

    def test_frames_are_made_when_they_are_asked_for(self) -> None:
        frames = self.sealer.frames(EXEC, 0, 2, [b'x'])
        first = self.sealer.seal(EXEC, 0, 1)
        self.assertEqual(1, len(self.opener.feed(first)))
        self.assertEqual(1, len(self.opener.feed(b''.join(next(frames)))))

    def test_a_message_that_is_too_long(self) -> None:
        for size, pieces in (
                (101, [b'x' * 101]), (PIECE + 1, [b'x' * PIECE, b'x']),
                (PIECE, [b'x' * (3 * PIECE), b'x'])):
            opener = Opener(KEY, longest=100)
            sealer = Sealer(KEY)
            messages = feed(opener, b''.join(
                sealer.pieces(EXEC, AWAIT, 1, pieces)), 5000)
            self.assertEqual(1, len(messages))
            kind, flags, number, kept, told = messages[0]
            self.assertEqual(
                (EXEC, AWAIT, 1, b''), (kind, flags, number, kept))
            self.assertGreater(told, 100)
            self.assertEqual(0, opener.kept)
            # The connection goes on.
            self.assertEqual([(EXEC, 0, 2, b'y' * 100, 100)], arrived(
                opener.feed(sealer.seal(EXEC, 0, 2, b'y' * 100))))

    def test_a_message_that_is_too_long_in_the_middle(self) -> None:
        opener = Opener(KEY, longest=100)
        results = [arrived(opener.feed(self.sealer.seal(
            EXEC, flags, 1, b'x' * 60))) for flags in (MORE, MORE, MORE, 0)]
        self.assertEqual([[], [(EXEC, 0, 1, b'', 120)], [], []], results)

    def test_a_message_that_is_not_wanted(self) -> None:
        self.assertEqual(0, self.opener.discard())
        for flags in MORE, MORE:
            self.assertEqual([], self.opener.feed(
                self.sealer.seal(EXEC, flags, 5, b'x' * 60)))
        self.assertEqual(120, self.opener.kept)
        self.assertEqual(5, self.opener.discard())
        self.assertEqual(0, self.opener.kept)
        for flags in MORE, 0:
            self.assertEqual([], self.opener.feed(
                self.sealer.seal(EXEC, flags, 5, b'x' * 60)))
        self.assertEqual([(EXEC, 0, 6, b'y', 1)], arrived(
            self.opener.feed(self.sealer.seal(EXEC, 0, 6, b'y'))))
        self.assertEqual(0, self.opener.discard())


class WrongFrameTests(FramesTestCase):
    """The tags are right, but nobody may say this."""

    def test_headers(self) -> None:
        for head in (
                header(0, kind=0), header(0, kind=6), header(0, kind=21),
                header(0, kind=255), header(0, flags=16),
                header(0, flags=128), header(0, zero=1),
                header(0, zero=0xffff), header(0, flags=MORE),
                header(0, kind=PING, flags=MORE),
                header(0, kind=STATUS, flags=MORE)):
            self.assert_refused(tagged(head, 0), Opener(KEY))
            self.assert_refused(head, Opener(None))

    def test_payloads_where_there_is_none(self) -> None:
        for kind in PING, STATUS, RECEIPT:
            self.assert_refused(
                tagged(header(1, kind) + b'x', 0), Opener(KEY))

    def test_the_kinds_of_the_other_side(self) -> None:
        for kinds, others in (REQUESTS, ANSWERS), (ANSWERS, REQUESTS):
            for kind in others:
                self.assert_refused(Sealer(KEY).seal(kind, 0, 1),
                                    Opener(KEY, kinds=kinds))
            for kind in kinds:
                Opener(KEY, kinds=kinds).feed(Sealer(KEY).seal(kind, 0, 1))

    def test_a_length_is_refused_before_the_payload_comes(self) -> None:
        for length in PIECE + 1, 2 ** 31, 2 ** 32 - 1:
            self.assert_refused(header(length), Opener(KEY))
            self.assert_refused(header(length), Opener(None))

    def test_messages_within_one_another(self) -> None:
        for kind, flags, number in (
                (EXEC, 0, 2), (EXIT, 0, 1), (STATUS, 0, 1), (EXEC, MORE, 2),
                (RESPONSE, 0, 1), (REPORT, 0, 1)):
            sealer, opener = Sealer(KEY), Opener(KEY)
            opener.feed(sealer.seal(EXEC, MORE, 1, b'x'))
            self.assert_refused(
                sealer.seal(kind, flags, number, b'' if kind == STATUS
                            else b'y'), opener)


class AttackTests(FramesTestCase):
    """Somebody between the two, who knows no key."""

    def setUp(self) -> None:
        super().setUp()
        long = os.urandom(HASHED + 1)
        self.frames = [
            self.sealer.seal(INIT, 0, 1, b'tasks'),
            self.sealer.seal(EXEC, 0, 2, b'one'),
            self.sealer.seal(EXEC, 0, 2, b'one'),
            self.sealer.seal(EXEC, AWAIT, 3, long),
            *(b''.join(frame) for frame in self.sealer.frames(
                EXEC, 0, 4, [bytes(PIECE), b'end'])),
            self.sealer.seal(EXIT, AWAIT, 5, b'exit')]
        self.expected = arrived(Opener(KEY).feed(b''.join(self.frames)))

    def attack(self, frames: Sequence[bytes]) -> None:
        """What arrives is a beginning of what was sent, and then nothing."""
        for size in 2 ** 30, 1000:
            opener = Opener(KEY)
            result: list[Arrived] = []
            data = b''.join(frames)
            with self.assertRaises(ProtocolError):
                for start in range(0, len(data), size):
                    result += arrived(opener.feed(data[start:start + size]))
            self.assertEqual(self.expected[:len(result)], result)
            with self.assertRaises(ProtocolError):
                opener.feed(self.frames[-1])

    def test_each_byte_is_changed(self) -> None:
        for number in 0, 1, 3:
            frame = self.frames[number]
            for at in range(len(frame)):
                changed = bytearray(frame)
                changed[at] ^= 1 << at % 8
                opener = Opener(KEY)
                for before in self.frames[:number]:
                    opener.feed(before)
                try:
                    # A length that is longer waits for more.
                    result = opener.feed(
                        bytes(changed) + bytes(PIECE + OVERHEAD))
                except ProtocolError:
                    continue
                self.fail(f'byte {at} of frame {number}: {result}')

    def test_replay(self) -> None:
        for number, frame in enumerate(self.frames):
            self.attack([*self.frames[:number + 1], frame])
            self.attack([*self.frames[:number + 1], *self.frames])

    def test_reorder(self) -> None:
        for number in range(1, len(self.frames)):
            if self.frames[number][:-16] != self.frames[number - 1][:-16]:
                self.attack([*self.frames[:number - 1], self.frames[number],
                             self.frames[number - 1]])
        # Two that say the same are not the same.
        first, second = self.frames[1:3]
        self.attack([self.frames[0], second, first])

    def test_cut(self) -> None:
        for number in range(len(self.frames) - 1):
            self.attack(self.frames[:number] + self.frames[number + 1:])
            frame = self.frames[number]
            for gone in 1, 15, 16, 17, len(frame) - 1:
                # The rest of the data is taken for the rest of the frame.
                self.attack([*self.frames[:number], frame[:-gone],
                             *self.frames[number + 1:], bytes(2 * PIECE)])
                self.attack([*self.frames[:number], frame[gone:],
                             *self.frames[number + 1:], bytes(2 * PIECE)])

    def test_the_end_is_cut_off(self) -> None:
        data = b''.join(self.frames)
        for gone in 1, 16, 30, 1000:
            result = arrived(Opener(KEY).feed(data[:-gone]))
            self.assertEqual(self.expected[:len(result)], result)
            self.assertLess(len(result), len(self.expected))

    def test_inject(self) -> None:
        for made in (
                bytes(OVERHEAD), tagged(header(1) + b'x', 0, OTHER_KEY),
                tagged(header(1) + b'x', 0, bytes(32)),
                header(1) + b'x' + bytes(16), os.urandom(100) + bytes(PIECE),
                header(1, flags=MORE) + b'x' + bytes(16),
                hashlib.blake2b(header(0)).digest()[:16] + bytes(PIECE)):
            for number in range(len(self.frames)):
                self.attack([*self.frames[:number], made,
                             *self.frames[number:]])

    def test_reflect(self) -> None:
        # What a client has sent comes back to it.
        opener = Opener(OTHER_KEY)
        for frame in self.frames:
            self.assert_refused(frame, opener)
        # The keys of the directions are others, but even if they were not:
        for frame in self.frames:
            self.assert_refused(frame, Opener(KEY, kinds=ANSWERS))

    def test_another_connection(self) -> None:
        # Its keys are others, as both sides have fresh nonces.
        for frame in self.frames:
            self.assert_refused(frame, Opener(os.urandom(32)))

    def test_nothing_is_given_before_the_tag_was_checked(self) -> None:
        data = b''.join(self.sealer.pieces(EXEC, 0, 6, [bytes(2 * PIECE)]))
        opener = Opener(KEY)
        opener.feed(b''.join(self.frames))
        self.assertEqual([], opener.feed(data[:-1]))
        self.assert_refused(bytes((data[-1] ^ 1,)), opener)

    def test_nobody_waits_for_what_is_no_frame(self) -> None:
        for said in b'GET / HTTP/1.1\r\n\r\n', b'\x80\x05\x95' + b'x' * 20:
            self.assert_refused(said, Opener(KEY))


class FuzzTests(unittest.TestCase):

    many = steady(max_examples=1500)
    some = settings(many, max_examples=400)

    sizes = st.sampled_from([1, 16, 100, 10 ** 6])

    def feed_all(self, opener: Opener, data: bytes, size: int,
                 ) -> list[Message]:
        """All that arrives, up to an error."""
        result: list[Message] = []
        try:
            for start in range(0, len(data), size):
                result += opener.feed(data[start:start + size])
        except ProtocolError:
            with self.assertRaises(ProtocolError):
                opener.feed(data)
        return result

    @many
    @given(st.binary(max_size=300), sizes)
    def test_any_bytes(self, data: bytes, size: int) -> None:
        self.assertEqual(
            [], self.feed_all(Opener(KEY, kinds=REQUESTS), data, size))

    @some
    @given(st.lists(st.builds(
        lambda length, kind, flags, zero, number, payload: struct.pack(
            '!IBBHQ', len(payload) if length is None else length, kind, flags,
            zero, number) + payload,
        st.none() | st.integers(0, 2 ** 32 - 1) | st.integers(0, 40),
        st.integers(0, 25) | st.integers(0, 255),
        st.integers(0, 15) | st.integers(0, 255),
        st.just(0) | st.integers(0, 2 ** 16 - 1),
        st.integers(0, 2 ** 64 - 1), st.binary(max_size=40)),
        max_size=4), sizes)
    def test_any_frames_without_tags(
            self, frames: list[bytes], cut: int) -> None:
        # As with TLS: the other side has the token, but is out of order.
        opener = Opener(None, longest=50, kinds=REQUESTS)
        for message in self.feed_all(opener, b''.join(frames), cut):
            self.assertIn(message.kind, REQUESTS)
            size = sum(map(len, message.pieces))
            self.assertEqual(
                message.size if message.size <= 50 else 0, size)
        self.assertLessEqual(opener.kept, 50)

    @some
    @given(st.integers(0, 300), st.integers(0, 60),
           st.none() | st.binary(max_size=50), sizes)
    def test_a_stream_that_is_changed(
            self, start: int, length: int, put: bytes | None, cut: int,
            ) -> None:
        sealer = Sealer(KEY)
        stream = b''.join((
            sealer.seal(INIT, 0, 1, b'tasks'), sealer.seal(PING, 0, 0),
            *sealer.pieces(EXEC, AWAIT, 2, [b'x' * 30]),
            sealer.seal(EXEC, MORE, 3, b'a'), sealer.seal(EXEC, 0, 3, b'b'),
            sealer.seal(EXIT, 0, 4, b'end')))
        expected = arrived(Opener(KEY).feed(stream))
        start = min(start, len(stream))
        part = stream[start:start + length]
        for new in [put] if put is not None else [b'', 2 * part, part[::-1]]:
            changed = stream[:start] + new + stream[start + length:]
            result = arrived(self.feed_all(Opener(KEY), changed, cut))
            self.assertEqual(expected[:len(result)], result)
