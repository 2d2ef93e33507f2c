"""Values of any kind come out as they went in."""

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
import threading
import tracemalloc
import types
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import cloudpickle
from hypothesis import given
from hypothesis import strategies as st

from gocept.runner.background import values
from gocept.runner.background.frames import BY_VALUE, Opener, Piece, Sealer
from gocept.runner.background.values import decode, encode
from gocept.runner.errors import NotDecoded
from gocept.runner.tests.properties import steady
from gocept.runner.tests.support import (
    DEADLINE,
    child_environment,
    replaced_modules,
)

MIB = 2 ** 20


def cut(pieces: list[bytes], size: int) -> list[Piece]:
    """The same bytes in other pieces."""
    data = b''.join(pieces)
    return [data[start:start + size] for start in range(0, len(data), size)]


def round_trip(value: object) -> Any:
    pieces, _ = encode(value)
    return decode([*pieces])


class Holder:
    """Of this module, so that it travels by name."""

    def __init__(self, value: object) -> None:
        self.value = value


class Bad:
    """It does not want to be a value."""

    def __reduce__(self) -> Any:
        raise RuntimeError('not me')


def fail_with(error: BaseException) -> None:
    raise error


class Failing:
    """It cannot be decoded."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return fail_with, (self.error,)


class ValueTests(unittest.TestCase):

    def test_plain_values(self) -> None:
        for value in (None, 1, 'text', b'bytes', {'command': 'increase'},
                      [1, (2, {3})], 2 ** 1000, 1.5, range(3)):
            pieces, flags = encode(value)
            self.assertEqual(0, flags)
            self.assertEqual(1, len(pieces))
            self.assertEqual(pickle.dumps(value, 5), pieces[0])
            self.assertEqual(value, decode([*pieces]))

    def test_an_empty_value_is_an_error(self) -> None:
        with self.assertRaises(NotDecoded):
            decode([])

    @steady(max_examples=200)
    @given(st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20)
        | st.binary(max_size=20)
        | st.integers(60_000, 200_000).map(bytes)
        | st.integers(60_000, 200_000).map(lambda size: 'ä' * size)
        | st.integers(60_000, 200_000).map(lambda size: bytearray(size)),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6), st.sampled_from([1, 7, 1000, 65536, 2 ** 18]))
    def test_any_values_in_any_pieces(self, value: object, size: int) -> None:
        pieces, flags = encode(value)
        self.assertEqual(0, flags)
        data = b''.join(pieces)
        if len(data) > 100_000:
            size = max(size, 1000)
        self.assertEqual(value, decode(cut(pieces, size)))
        with self.assertRaises(NotDecoded):
            decode(cut([data[:-1]], size))

    def test_old_protocols_are_read_from_pieces(self) -> None:
        value = ['a', 'b' * 100, {'c': 1.5}]
        for protocol in range(6):
            data = pickle.dumps(value, protocol)
            for size in 1, 10, 1000:
                self.assertEqual(value, decode(cut([data], size)))

    def test_the_types_of_pieces(self) -> None:
        value = {'x': b'y' * 100_000, 'z': 1}
        data = b''.join(encode(value)[0])
        for kind in bytes, bytearray, memoryview:
            pieces: list[Piece] = [
                kind(piece) for piece in cut([data], 30_000)]
            self.assertEqual(value, decode(pieces))
            self.assertEqual([], pieces)
            self.assertEqual([1], decode([kind(pickle.dumps([1]))]))

    def test_what_cannot_be_a_value(self) -> None:
        for value in Bad(), threading.Lock(), (each for each in ""):
            with self.subTest(value=value):
                with self.assertRaises(
                        (RuntimeError, TypeError, pickle.PicklingError)):
                    encode(value)


class LargeValueTests(unittest.TestCase):

    def test_large_bytes_are_not_copied(self) -> None:
        value = os.urandom(MIB)
        text = 'x' * MIB
        pieces, flags = encode({'a': value, 'b': text})
        self.assertEqual(0, flags)
        self.assertTrue(any(piece is value for piece in pieces))

    def test_what_may_change_is_copied(self) -> None:
        value = bytearray(MIB)
        buffer = pickle.PickleBuffer(bytearray(MIB))
        pieces, _ = encode([value, buffer])
        self.assertEqual({bytes}, {*map(type, pieces)})
        before = b''.join(pieces)
        value[:] = b'x' * MIB
        self.assertEqual(before, b''.join(pieces))

    def test_a_large_value_is_not_held_twice(self) -> None:
        size = 32 * MIB
        for value in os.urandom(size), [os.urandom(MIB) for _ in range(32)]:
            sealer, opener = Sealer(bytes(32)), Opener(bytes(32))
            tracemalloc.start()
            try:
                pieces, flags = encode(value)
                messages = []
                for frame in sealer.frames(2, flags, 1, pieces):
                    # This is where the sender's memory becomes ours.
                    messages += opener.feed(b''.join(frame))
                self.assertLess(tracemalloc.get_traced_memory()[1],
                                size + 3 * MIB)
                tracemalloc.reset_peak()
                decoded = decode(messages.pop().pieces)
                self.assertLess(tracemalloc.get_traced_memory()[1],
                                size + size + 3 * MIB)
            finally:
                tracemalloc.stop()
            self.assertEqual(value, decoded)

    def test_pieces_are_dropped_as_they_are_read(self) -> None:
        pieces: list[Piece] = [*encode([os.urandom(MIB) for _ in range(8)])[0]]
        left = []
        real = pickle.Unpickler.__init__

        class Watching(values._Reader):
            def readinto(self, buffer: memoryview) -> int:
                done = super().readinto(buffer)
                left.append(len(self._pieces))
                return done

        self.assertTrue(callable(real))
        with mock.patch.object(values, '_Reader', Watching):
            decode(pieces)
        self.assertEqual(8, len(left))
        self.assertEqual(sorted(left, reverse=True), left)
        self.assertLessEqual(left[-1], 2)


class CodeTests(unittest.TestCase):

    def test_functions_of_modules_travel_by_name(self) -> None:
        for value in textwrap.dedent, Holder, os.path.join, len, dict:
            pieces, flags = encode(value)
            self.assertEqual(0, flags)
            self.assertIs(value, decode([*pieces]))
            self.assertLess(len(b''.join(pieces)), 200)

    def test_lambdas_and_closures_travel_by_value(self) -> None:
        base = 40

        def add(number: int) -> int:
            return base + number

        doubled: Callable[[int], int] = lambda number: 2 * number  # noqa: E731
        for function, result in ((add, 42), (doubled, 4)):
            pieces, flags = encode({'exec': function})
            self.assertEqual(BY_VALUE, flags)
            decoded = decode([*pieces])
            assert isinstance(decoded, dict)
            self.assertIsNot(function, decoded['exec'])
            self.assertEqual(result, decoded['exec'](2))

    def test_a_traceback_names_the_file_of_code(self) -> None:
        pieces, _ = encode(lambda: [lambda: 1])
        function = decode(pieces)
        for each in function, *function():  # type: ignore[operator]
            self.assertEqual(__file__, each.__code__.co_filename)

    def test_inner_classes_travel_by_value(self) -> None:
        class Inner:
            x = 3

        self.assertEqual(BY_VALUE, encode(Inner)[1])
        self.assertEqual(BY_VALUE, encode([Inner()])[1])
        self.assertEqual(3, round_trip(Inner()).x)

    def test_code_travels_by_value(self) -> None:
        self.assertEqual(BY_VALUE, encode(compile('1', '', 'eval'))[1])

    def test_words_are_no_code(self) -> None:
        for text in '__main__', 'cloudpickle of __main__', b'__main__':
            pieces, flags = encode({'text': text})
            self.assertEqual(0, flags)
            self.assertEqual({'text': text}, decode([*pieces]))

    def test_words_in_large_data_are_not_looked_for(self) -> None:
        for data in (b'__main__' * 10_000, '__main__' * 10_000,
                     bytearray(b'__main__' * 10_000)):
            with mock.patch.object(values, '_encode_code') as code:
                encode(['x', data, 'y'])
            code.assert_not_called()

    def test_a_class_of_main_beside_large_data(self) -> None:
        main = sys.modules['__main__']
        data = b'x' * 100_000
        made = type('Made', (), {'__module__': '__main__'})
        with mock.patch.object(main, 'Made', made, create=True):
            for value in ([data, made], [made, data], [data, made, data]):
                self.assertEqual(BY_VALUE, encode(value)[1])

    def test_functions_of_main(self) -> None:
        # The server has a __main__, too, in which they are not.
        script = textwrap.dedent('''
            import sys
            from gocept.runner.background.values import encode

            STEP = 40

            class Mine:
                def __init__(self, x):
                    self.x = x

            def add(mine):
                return mine.x + STEP

            pieces, flags = encode([add, Mine(2)])
            sys.stdout.buffer.write(bytes((flags,)) + b''.join(pieces))
            ''')
        result = subprocess.run(
            [sys.executable, '-c', script], env=child_environment(),
            stdout=subprocess.PIPE, timeout=DEADLINE, check=True).stdout
        self.assertEqual(BY_VALUE, result[0])
        decoded = decode([result[1:]])
        assert isinstance(decoded, list)
        self.assertEqual(42, decoded[0](decoded[1]))


    def test_functions_of_main_in_a_child_of_multiprocessing(self) -> None:
        script = types.ModuleType('__mp_main__')
        exec('def add(number):\n    return number + 40\n', script.__dict__)
        with replaced_modules({'__mp_main__': script}):
            pieces, flags = encode(script.add)
        self.assertEqual(BY_VALUE, flags)
        decoded = decode(pieces)
        assert callable(decoded)
        self.assertEqual(42, decoded(2))


class ModuleTests(unittest.TestCase):
    """Modules that only one side has."""

    def setUp(self) -> None:
        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        package = directory / 'only_the_client'
        package.mkdir()
        (package / '__init__.py').write_text('def f():\n    return 42\n')
        (package / 'inner.py').write_text(
            'from only_the_client import f\n\n'
            'class C:\n    def g(self):\n        return f()\n')
        self.enterContext(mock.patch.object(
            sys, 'path', [str(directory), *sys.path]))
        importlib.invalidate_caches()
        self.addCleanup(self.forget)
        self.inner = importlib.import_module('only_the_client.inner')
        self.package = sys.modules['only_the_client']

    def forget(self) -> None:
        for name in 'only_the_client', 'only_the_client.inner':
            sys.modules.pop(name, None)

    def elsewhere(self, pieces: list[bytes]) -> Any:
        """Decode it where the modules are not."""
        self.forget()
        with mock.patch.object(sys, 'path', sys.path[1:]):
            importlib.invalidate_caches()
            return decode([*pieces])

    def test_the_error_names_the_module(self) -> None:
        pieces, flags = encode(self.package.f)
        self.assertEqual(0, flags)
        with self.assertRaises(NotDecoded) as caught:
            self.elsewhere(pieces)
        self.assertIn("no module 'only_the_client'", str(caught.exception))
        self.assertIn('by_value=', str(caught.exception))

    def test_a_module_by_value(self) -> None:
        before = cloudpickle.list_registry_pickle_by_value()
        pieces, flags = encode(
            [self.package.f, self.inner.C()], by_value=[self.package])
        self.assertEqual(BY_VALUE, flags)
        function, it = self.elsewhere(pieces)
        self.assertEqual((42, 42), (function(), it.g()))
        self.assertEqual(before, cloudpickle.list_registry_pickle_by_value())

    def test_by_value_without_code(self) -> None:
        pieces, flags = encode({'x': 1}, by_value=[self.package])
        self.assertEqual(({'x': 1}, 0), (decode([*pieces]), flags))

    def test_what_users_have_registered_stays(self) -> None:
        cloudpickle.register_pickle_by_value(self.package)
        self.addCleanup(
            cloudpickle.unregister_pickle_by_value, self.package)
        encode(self.package.f, by_value=[self.package])
        self.assertIn('only_the_client',
                      cloudpickle.list_registry_pickle_by_value())

    def test_one_call_within_another(self) -> None:
        package = self.package
        results = []

        class Nested:
            def __reduce__(self) -> Any:
                results.append(encode(package.f, by_value=[package])[1])
                return str, ()

        results.append(
            encode([Nested(), package.f], by_value=[package])[1])
        self.assertEqual([BY_VALUE, BY_VALUE], results)
        self.assertNotIn('only_the_client',
                         cloudpickle.list_registry_pickle_by_value())

    def test_an_error_leaves_nothing_registered(self) -> None:
        for module in self.package, types.ModuleType('not_imported'):
            with self.assertRaises((RuntimeError, ValueError)):
                encode(Bad(), by_value=[self.package, module])
            self.assertNotIn('only_the_client',
                             cloudpickle.list_registry_pickle_by_value())
        self.assertFalse(values._registered)


class NotDecodedTests(unittest.TestCase):
    """What cannot be decoded ends nothing."""

    def test_no_pickle(self) -> None:
        for data in (b'', b'x', b'\x80\x05', b'\x80\xff.', b'GET / HTTP/1.1',
                     b'\x80\x05\x8e' + b'\xff' * 8, b'\x80\x05\x8e'
                     + (2 ** 50).to_bytes(8, 'little') + b'x',
                     b'\x80\x05\x95' + b'\xff' * 8):
            for pieces in [data], [data[:1], data[1:]]:
                with self.subTest(pieces=pieces):
                    with self.assertRaises(NotDecoded):
                        decode([*pieces])

    def test_errors_of_code(self) -> None:
        for error in (ValueError('no'), RecursionError(), MemoryError(),
                      AttributeError('gone'), ImportError('cannot')):
            with self.assertRaises(NotDecoded) as caught:
                round_trip(Failing(error))
            self.assertIn(type(error).__name__, str(caught.exception))
            self.assertIs(type(error), type(caught.exception.__cause__))

    def test_a_name_that_is_not_there(self) -> None:
        data = pickle.dumps(Holder).replace(b'Holder', b'Nobody')
        with self.assertRaises(NotDecoded) as caught:
            decode([data])
        self.assertIn('Nobody', str(caught.exception))

    def test_the_user_may_interrupt(self) -> None:
        for error in KeyboardInterrupt(), SystemExit():
            with self.assertRaises(type(error)):
                round_trip(Failing(error))
