"""The two streams of one child."""

import os
import subprocess
import types
from typing import Any

from gocept.runner.channel import PipeChannel
from gocept.runner.executor import SimpleExecutor
from gocept.runner.executor.captures import Captures
from gocept.runner.tests.executors import ExecutorTestCase
from gocept.runner.tests.victims import until


class CapturesTests(ExecutorTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.stdout, self.out = self.pipe()
        self.stderr, self.err = self.pipe()

    def pipe(self) -> tuple[PipeChannel, PipeChannel]:
        """Our end of a stream, and that of a child."""
        read, write = os.pipe()
        return (self.enterContext(PipeChannel(read)),
                self.enterContext(PipeChannel(None, write)))

    def take(self, size: int = 1000, log_file: Any = None,
             **options: Any) -> Captures:
        captures = Captures(**options)
        self.addCleanup(captures.close)
        process: Any = types.SimpleNamespace(
            channel=self.stdout, stderr=self.stderr)
        captures.take(process, size, log_file)
        return captures

    def test_none_before_the_start(self) -> None:
        captures = Captures()
        self.assertEqual(({}, {}), (captures, captures.readers))
        self.assertEqual(0, captures.dropped)
        self.assertEqual([], list(captures.tails()))
        for call in captures.begin, captures.read_rest, captures.close:
            call()

    def test_each_has_a_reader(self) -> None:
        captures = self.take()
        self.assertEqual(['stdout', 'stderr'], list(captures))
        self.out.write(b'out\n')
        self.err.write(b'err\n')
        captures.read_rest()
        self.assertEqual('out\n', captures.readers['stdout'].readline())
        self.assertEqual('err\n', captures.readers['stderr'].readline())

    def test_what_is_no_pipe_has_none(self) -> None:
        self.stderr = None  # type: ignore[assignment]
        self.assertEqual(['stdout'], list(self.take()))
        self.stdout = self.out  # what can only be written
        self.assertEqual([], list(self.take()))

    def test_the_encoding_is_that_of_the_readers(self) -> None:
        captures = self.take(encoding='ascii', errors='replace')
        self.out.write(b'\xe4\n')
        captures.read_rest()
        self.assertEqual('\ufffd\n', captures.readers['stdout'].readline())

    def test_they_are_read_in_the_background(self) -> None:
        captures = self.take()
        captures.begin()
        self.out.write(b'out\n')
        self.err.write(b'err\n')
        for capture, text in zip(captures.values(), ('out', 'err'),
                                 strict=True):
            until(lambda: capture.tail == text)

    def test_what_is_not_kept_any_more(self) -> None:
        captures = self.take(size=10)
        for _ in range(3):
            for sink in self.out, self.err:
                sink.write(bytes(5000))
                captures.read_rest()
        self.assertEqual(
            sum(capture.dropped for capture in captures.values()),
            captures.dropped)
        self.assertEqual(20_000, captures.dropped)

    def test_where_readers_begin(self) -> None:
        captures = self.take()
        self.out.write(b'one\ntwo\n')
        self.err.write(b'three\nfour\n')
        captures.read_rest()
        captures.skip_to(lambda capture: (
            (4, False) if capture is captures['stdout'] else (1, True)))
        self.assertEqual('two\n', captures.readers['stdout'].readline())
        self.assertEqual('four\n', captures.readers['stderr'].readline())

    def test_how_they_end(self) -> None:
        captures = self.take()
        self.out.write(b'last words\n')
        self.assertEqual(['its stdout ends with:\nlast words',
                          'its stderr is empty'], list(captures.tails()))

    def test_closed(self) -> None:
        captures = self.take()
        self.out.write(b'last words\n')
        captures.close()
        self.assertEqual('last words\n', captures.readers['stdout'].read())
        self.assertTrue(self.stdout.closed)
        self.assertTrue(self.stderr.closed)
        captures.close()

    def test_both_go_to_the_file(self) -> None:
        log = self.dir / 'log'
        captures = self.take(log_file=log)
        self.out.write(b'out\n')
        self.err.write(b'err\n')
        captures.read_rest()
        self.assertEqual('out\nerr\n', log.read_text())


class ExecutorTests(ExecutorTestCase):

    def test_one_reader_whoever_asks(self) -> None:
        executor = self.stopping(
            SimpleExecutor('cat', stderr=subprocess.PIPE).start())
        self.assertIs(executor.output(), executor.output())
        self.assertIs(executor.err_output(), executor.err_output())
        self.assertIsNot(executor.output(), executor.err_output())

    def test_a_start_has_its_own(self) -> None:
        executor = SimpleExecutor('echo x')
        self.assertIsNone(executor.output())
        readers = []
        for _ in range(2):
            executor.start()
            readers.append(executor.output())
            self.assertEqual('x\n', readers[-1].read())
            executor.stop()
            self.assertIsNone(executor.output())
        self.assertIsNot(*readers)

    def test_what_cannot_be_captured_starts_nothing(self) -> None:
        for error, options in (
                (LookupError, {'popen_kwargs': {'encoding': 'nonsense'}}),
                (FileNotFoundError, {'log_file': self.dir / 'no' / 'log'})):
            executor = SimpleExecutor(
                'sleep 100', stderr=subprocess.PIPE, **options)
            self.assertRaises(error, executor.start)
            self.assertIsNone(executor.process)
            self.assertIsNone(executor.output())
