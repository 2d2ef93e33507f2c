"""States in files."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import tempfile
import threading
import unittest
from collections.abc import Iterator
from unittest import mock

from gocept.runner.operation import state as form
from gocept.runner.tests.operation.states import state


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Only what is there can be written over."""
    def open_if_there(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, 'No space left on device')
        return really(path, flags, mode)
    really = os.open
    with mock.patch('os.open', open_if_there):
        yield


class StateTestCase(unittest.TestCase):

    def setUp(self) -> None:
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)
        self.path = self.dir / 'nightly.json'


class WriteTests(StateTestCase):

    def test_what_is_written_is_read(self) -> None:
        found = state(worker='nächtlich', children=[
            {'name': 'x"\\', 'pid': 1, 'state': 'ready'}])
        form.write(str(self.path), found)
        self.assertEqual(found, form.read(str(self.path)))
        self.assertEqual(found, json.loads(self.path.read_text()))

    def test_nothing_else_is_left(self) -> None:
        form.write(str(self.path), state())
        form.write(str(self.path), state(tick=4))
        self.assertEqual([self.path], [*self.dir.iterdir()])
        self.assertEqual(4, form.read(str(self.path))['tick'])

    def test_a_reader_sees_one_or_the_other(self) -> None:
        form.write(str(self.path), state(tick=0, worker='x' * 10000))
        over = threading.Event()
        seen: list[int] = []

        def read() -> None:
            while not over.is_set():
                found = form.read(str(self.path))
                seen.append(len(found['worker']) - 10000 - found['tick'])
        thread = threading.Thread(target=read)
        thread.start()
        try:
            for number in range(300):
                form.write(str(self.path), state(
                    tick=number, worker='x' * (10000 + number)))
        finally:
            over.set()
            thread.join()
        self.assertEqual({0}, {*seen})

    def test_a_full_disk(self) -> None:
        form.write(str(self.path), state(tick=4, worker='x' * 5000))
        before = self.path.stat()
        with full_disk():
            form.write(str(self.path), state(tick=5))
        after = self.path.stat()
        self.assertEqual((before.st_ino, before.st_size),
                         (after.st_ino, after.st_size))
        self.assertEqual(5, form.read(str(self.path))['tick'])
        self.assertEqual([self.path], [*self.dir.iterdir()])

    def test_a_full_disk_and_no_state(self) -> None:
        with full_disk(), self.assertRaises(OSError) as caught:
            form.write(str(self.path), state())
        self.assertEqual(errno.ENOSPC, caught.exception.errno)

    def test_a_full_disk_and_a_longer_state(self) -> None:
        form.write(str(self.path), state())
        with full_disk(), self.assertRaises(OSError):
            form.write(str(self.path), state(worker='x' * 5000))
        self.assertEqual('nightly', form.read(str(self.path))['worker'])

    def test_half_a_file_is_not_left(self) -> None:
        def write(fd: int, text: bytes) -> int:
            raise OSError(errno.ENOSPC, 'No space left on device')
        with mock.patch('os.write', write), self.assertRaises(OSError):
            form.write(str(self.path), state())
        self.assertEqual([], [*self.dir.iterdir()])

    def test_no_directory(self) -> None:
        with self.assertRaises(FileNotFoundError):
            form.write(str(self.dir / 'missing' / 'x.json'), state())


class ReadTests(StateTestCase):

    def assertUnreadable(self, expected: str) -> None:
        with self.assertRaises(form.Unreadable) as caught:
            form.read(str(self.path))
        self.assertIn(expected, str(caught.exception))

    def test_no_file(self) -> None:
        with self.assertRaises(form.Missing):
            form.read(str(self.path))

    def test_what_is_damaged(self) -> None:
        form.write(str(self.path), state())
        whole = self.path.read_bytes()
        for text in b'', b'\0' * 4096, whole[:100], whole[:-2000] + b'x', (
                b'\xff' + whole):
            with self.subTest(text[:10]):
                self.path.write_bytes(text)
                self.assertUnreadable('is damaged: it is no JSON')

    def test_what_is_no_state(self) -> None:
        for text in '[]', '{}', '7', '{"format": "1"}', 'null':
            with self.subTest(text):
                self.path.write_text(text)
                self.assertUnreadable('is no state of a worker')

    def test_fields_of_another_kind(self) -> None:
        for name in state():
            for value in (None, 'text', 7, 0.5, [], {}):
                if name == 'format':
                    continue
                with self.subTest(name=name, value=value):
                    self.path.write_text(json.dumps(state(**{name: value})))
                    with contextlib.suppress(form.Unreadable):
                        found = form.read(str(self.path))
                        self.assertEqual(value, found[name])

    def test_numbers_that_nobody_can_calculate_with(self) -> None:
        for changes in (
                {'since': {'realtime': 1.0, 'monotonic': 10 ** 400}},
                {'tick_timeout': float('inf')}, {'deadline': float('nan')},
                {'memory': -10 ** 400}, {'counts': {'aborts': 1e300}},
                {'counts': {'aborts': None}}):
            with self.subTest(changes):
                self.path.write_text(json.dumps(state(**changes)))
                self.assertUnreadable('is damaged: fields')

    def test_children_of_another_kind(self) -> None:
        for child in 1, None, {}, {'state': 1}:
            with self.subTest(child):
                self.path.write_text(json.dumps(state(children=[child])))
                self.assertUnreadable('is damaged: fields')

    def test_what_may_be_missing(self) -> None:
        minute = {'at': 1, 'ticks': 2, 'failed': 0, 'longest': 0.5}
        total = {'counts': {'ticks': 2}, 'durations': [0, 2], 'seconds': 0.5}
        error = {'tick': 1, 'time': 0.5, 'error': 'x', 'traceback': 'y'}
        whole = {'hour': [minute], 'total': total, 'last_error': error}
        self.path.write_text(json.dumps(state(**whole)))
        found = form.read(str(self.path))
        self.assertEqual(whole, {name: found[name] for name in whole})
        for changes in (
                {'hour': None}, {'hour': {}}, {'hour': [1]},
                {'hour': [{**minute, 'at': 'x'}]},
                {'hour': [{**minute, 'longest': 1e300}]}, {'total': None},
                {'total': {}}, {'total': {**total, 'counts': {'ticks': 'x'}}},
                {'total': {**total, 'durations': [0.5]}},
                {'last_error': {**error, 'traceback': None}}):
            with self.subTest(changes):
                self.path.write_text(json.dumps(state(**{**whole, **changes})))
                self.assertUnreadable('is damaged: fields')

    def test_a_deep_one(self) -> None:
        self.path.write_text('[' * 200_000)
        self.assertUnreadable('is damaged: it is no JSON')

    def test_a_field_that_is_missing(self) -> None:
        for name in state():
            if name != 'format':
                found = state()
                del found[name]
                self.path.write_text(json.dumps(found))
                self.assertUnreadable('is damaged: fields')

    def test_a_newer_version(self) -> None:
        self.path.write_text(json.dumps({'format': form.FORMAT + 1}))
        self.assertUnreadable(
            'newer version of gocept.runner: its format is 2, and this '
            'version knows 1')

    def test_new_fields_of_the_same_format(self) -> None:
        self.path.write_text(json.dumps(state(news='x')))
        self.assertEqual('nightly', form.read(str(self.path))['worker'])

    def test_what_is_no_plain_file(self) -> None:
        os.mkfifo(self.path)
        self.assertUnreadable('is no plain file')

    def test_a_directory(self) -> None:
        self.path.mkdir()
        self.assertUnreadable('is no plain file')

    def test_a_file_that_is_too_long(self) -> None:
        with self.path.open('wb') as file:
            file.truncate(1 << 30)
        self.assertUnreadable('is too long')

    def test_a_file_of_somebody_else(self) -> None:
        with mock.patch('os.open', side_effect=PermissionError(
                errno.EACCES, 'Permission denied')):
            self.assertUnreadable('cannot be read: Permission denied')

    def test_without_the_scanner_in_c(self) -> None:
        form.write(str(self.path), state())
        with mock.patch.dict('sys.modules', {'_json': None}):
            self.assertEqual(state(), form.read(str(self.path)))
