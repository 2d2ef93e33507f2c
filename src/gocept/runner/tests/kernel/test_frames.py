"""Messages with a length in front."""

import itertools
import json
import os
import unittest

from hypothesis import example, given
from hypothesis import strategies as st

from gocept.runner.errors import KernelError
from gocept.runner.kernel.wire import frames
from gocept.runner.kernel.wire.frames import HEADER, Frame, Reader
from gocept.runner.tests.properties import steady

STRINGS = st.binary(max_size=20).map(os.fsdecode) | st.text(
    st.characters(exclude_categories=['Cs']), max_size=20)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | STRINGS
    | st.floats(allow_nan=False),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(
        STRINGS, values, max_size=4), max_leaves=10)

FRAMES = st.lists(st.tuples(
    st.integers(0, 2 ** 64 - 1), VALUES, st.binary(max_size=40)), max_size=5)


class TestFrames(unittest.TestCase):

    @steady()
    @given(STRINGS)
    @example(os.fsdecode(bytes(range(256))))
    @example('\U0001f40d\0\n"\\')
    def test_any_string_passes(self, text: str) -> None:
        self.assertEqual(text, frames.decode(frames.encode(text)))

    @steady()
    @given(VALUES)
    def test_the_json_is_json(self, value: object) -> None:
        encoded = frames.encode(value)
        self.assertTrue(encoded.isascii())
        self.assertEqual(value, json.loads(encoded))
        self.assertEqual(value, frames.decode(encoded))

    @steady()
    @given(VALUES, st.binary(max_size=20))
    def test_an_answer_is_a_frame(self, result: object, data: bytes) -> None:
        self.assertEqual(frames.frame(7, ('ok', result), data),
                         frames.answer(7, result, data))

    def test_what_is_no_json_is_refused(self) -> None:
        for data in (b'', b'{', b'[1', b'1 2', b'\xff', b'nonsense', b' 1',
                     b'[' * 100_000, b'9' * 5000):
            with self.assertRaises(KernelError):
                frames.decode(data)
        with self.assertRaises(TypeError):
            frames.encode(object())


class TestReader(unittest.TestCase):

    def setUp(self) -> None:
        self.reader = Reader()

    @steady()
    @given(FRAMES, st.lists(st.integers(0, 300), max_size=6))
    def test_frames_survive_any_cut(
            self, sent: list[tuple[int, object, bytes]],
            cuts: list[int]) -> None:
        stream = b''.join(frames.frame(*each) for each in sent)
        reader = Reader()
        came = []
        bounds = [0, *sorted(cut for cut in cuts if cut < len(stream)),
                  len(stream)]
        for start, stop in itertools.pairwise(bounds):
            came += reader.feed(stream[start:stop])
        self.assertEqual([Frame(*each) for each in sent], came)
        self.assertTrue(reader.empty)

    def test_frames_arrive_byte_by_byte(self) -> None:
        sent = [frames.frame(1, ('get', {'name': 'a'})),
                frames.frame(2, ['x'], b'data'), frames.frame(3, None)]
        counts = [len(self.reader.feed(bytes([byte])))
                  for byte in b''.join(sent)]
        self.assertEqual(3, sum(counts))
        ends = [number for number, count in enumerate(counts, 1) if count]
        self.assertEqual(
            [sum(map(len, sent[:number])) for number in (1, 2, 3)], ends)

    def test_a_frame_that_is_too_long_is_refused_at_its_header(self) -> None:
        with self.assertRaisesRegex(KernelError, 'frame of 17825793 bytes'):
            self.reader.feed(HEADER.pack(2 ** 20, 2 ** 24 + 1, 1))

    def test_a_begun_frame_is_seen(self) -> None:
        self.reader.feed(b'\0')
        self.assertFalse(self.reader.empty)
