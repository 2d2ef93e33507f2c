"""The condition that a child says something."""

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

from gocept.runner.channel import PipeChannel
from gocept.runner.executor import (
    ConditionExecutor,
    ExecutorError,
    OutputExecutor,
    ProcessExitedWithError,
    TimeoutExpired,
    output,
)
from gocept.runner.executor.capture import Capture
from gocept.runner.executor.conditions import output as module
from gocept.runner.executor.conditions.base import Check
from gocept.runner.poller import Poller, Timer, background
from gocept.runner.process import Process
from gocept.runner.tests.executors import ExecutorTestCase, Starting, is_gone
from gocept.runner.tests.victims import DEADLINE, until, victim
from gocept.runner.waits.deadline import NEVER, Deadline


class BannerTests(ExecutorTestCase):

    def started(self, pieces: Sequence[bytes], banner: str,
                **options: Any) -> OutputExecutor:
        """One that has started; each piece is read before the next comes."""
        executor = self.stopping(OutputExecutor(victim(f'''
            for piece in {pieces!r}:
                os.write(1, piece)
                sys.stdin.readline()
            '''), banner, **options))
        starting = Starting(executor)
        size = 0
        for piece in pieces:
            size += len(piece)
            until(lambda: executor._run
                  and executor._run.captures['stdout'].end == size)
            starting.go_on()
        starting.wait()
        return executor

    def test_a_callback_that_keeps_the_background_thread(self) -> None:
        # It may wait for this very start.
        kept, may_go = threading.Event(), threading.Event()
        self.addCleanup(may_go.set)
        background().register(Timer(0), lambda *result: (
            kept.set(), may_go.wait(DEADLINE)))
        self.assertTrue(kept.wait(DEADLINE))
        self.stopping(OutputExecutor(
            ['sh', '-c', 'echo ready; exec sleep 100'], 'ready',
            timeout=DEADLINE / 2)).start()
        may_go.set()

    def test_reading_continues_behind_the_line_of_the_banner(self) -> None:
        for banner, text, rest in (
                ('ready', b'ready\n', ''),
                ('ready', b'ready', ''),
                ('ready', b'ready\nnext\n', 'next\n'),
                ('ready', b'before\nI am ready now\nnext\nlast', 'next\nlast'),
                ('ready', b'ready\n\nready\n', '\nready\n'),
                ('ready', b'ready\r\nnext\r\n', 'next\n'),
                ('^ready$', b'not ready\nready?\nready\nnext\n', 'next\n'),
                ('^ready$', b'not ready\r\nready\r\nnext\r\n', 'next\n'),
                ('.*ready', b'it is ready now\nnext\n', 'next\n'),
                ('.*up|ready', b'it is ready now\nnext\n', 'next\n'),
                ('ready\n', b'ready\nnext\n', 'next\n'),
                ('a\nb', b'-\na\nbc\nnext\n', 'next\n'),
                ('(?i)READY', b'\xff\xfe ready\nnext\n', 'next\n')):
            with self.subTest(banner, text=text):
                executor = self.started([text], banner)
                self.assertEqual(rest, executor.output().read())

    def test_the_banner_may_be_split_anywhere(self) -> None:
        text = b'before\nI am ready now\r\nnext\n'
        for place in range(1, len(text)):
            with self.subTest(place):
                executor = self.started(
                    [text[:place], text[place:]], 'am ready')
                self.assertEqual('next\n', executor.output().read())

    def test_the_banner_may_come_byte_by_byte(self) -> None:
        text = 'wäre\nIch wäre so weit ✓\nnächste\n'.encode()
        for banner in ('^Ich wäre so weit ✓$', 'so weit ✓'):
            with self.subTest(banner):
                executor = self.started(
                    [bytes([each]) for each in text], banner)
                self.assertEqual('nächste\n', executor.output().read())

    def test_a_line_that_is_not_finished_has_no_end(self) -> None:
        for banner, pieces, rest in (
                ('^workers ready: 1$',
                 [b'workers ready: 1', b'0 of 10\nworkers ready: 1\n', b'x'],
                 'x'),
                ('ready$', [b'ready', b'?\nready\r', b'\nx'], 'x'),
                (r'ready\Z', [b'ready', b'?\nready'], ''),
                (r'ready(?=\W)', [b'ready', b'?'], ''),
                (r'port \d+\D', [b'port 1', b'23 ', b'x\nx'], 'x'),
                ('(?:ready|done)$|up', [b'ready', b' or up', b'x\nx'], 'x'),
                ('^$', [b'x', b'\n', b'\nx'], 'x'),
                ('(?m)ready$', [b'ready', b'?\nready\n', b'x'], 'x')):
            with self.subTest(banner):
                executor = self.started(pieces, banner)
                self.assertEqual(rest, executor.output().read())

    def test_one_that_is_not_finished_may_match_otherwise(self) -> None:
        for banner in ('ready', '^ready', 'ready.*', r'ready\b', r'.*ready',
                       'ready(?! not)', '[a-z]+', 'ready|ready$'):
            with self.subTest(banner):
                self.started([b'ready'], banner)

    def test_a_failure_that_is_not_finished_has_no_end(self) -> None:
        self.started([b'error', b's: 0\nready\n'], 'ready', failure='error$')

    def test_an_unfinished_line_is_in_the_message(self) -> None:
        executor = self.stopping(OutputExecutor(
            victim("os.write(1, b'up\\nready > '); pause()"), 'ready > $'))
        starting = Starting(executor)
        starting.until_seen('is not finished')
        executor._deadline = Deadline(0)
        self.assertRaisesRegex(
            TimeoutExpired, r"seen last: the line 'ready > ' is not finished: "
            r'without \$, which is the end of a whole line, it would match; '
            'its stdout', starting.wait)

    def test_the_banner_is_text_in_the_encoding_of_the_executor(self) -> None:
        text = 'nicht\r\nwäre bereit\r\nnächste\n'
        for encoding in ('latin-1', 'utf-16-le', 'cp037', 'utf-8'):
            data = text.encode(encoding)
            for size in (1, 7, 1000):
                with self.subTest(encoding, size=size):
                    executor = self.started(
                        [data[at:at + size]
                         for at in range(0, len(data), size)], '^wäre.*t$',
                        popen_kwargs={'encoding': encoding})
                    self.assertEqual('nächste\n', executor.output().read())

    def test_on_standard_error(self) -> None:
        executor = self.stopping(OutputExecutor(
            'echo out; echo ready >&2; echo next >&2', 'ready', shell=True,
            stderr=subprocess.PIPE).start())
        self.assertEqual('next\n', executor.err_output().read())
        self.assertEqual('out\n', executor.output().read())

    def test_standard_error_may_be_merged(self) -> None:
        executor = self.stopping(OutputExecutor(
            'echo ready >&2', 'ready', shell=True,
            stderr=subprocess.STDOUT).start())
        self.assertEqual('', executor.output().read())

    def test_it_may_end_when_it_has_said_so(self) -> None:
        executor = self.stopping(OutputExecutor('echo ready', 'ready'))
        self.assertEqual('', executor.start().output().read())

    def test_an_end_before_the_banner_fails_at_once(self) -> None:
        for status in (0, 3):
            with self.subTest(status):
                executor = OutputExecutor(
                    f'echo sorry; exit {status}', 'ready', shell=True)
                with self.assertRaises(ProcessExitedWithError) as caught:
                    executor.start()
                self.assertEqual(status, caught.exception.exit_code)
                self.assertRegex(str(caught.exception), '\nsorry$')

    def test_a_child_that_closes_its_output_fails_at_once(self) -> None:
        executor = OutputExecutor(victim('''
            say(os.getpid())
            os.close(1)
            pause()
            '''), 'ready')
        with self.assertRaisesRegex(
                ExecutorError, 'has closed its output') as caught:
            executor.start()
        self.assertIs(ExecutorError, type(caught.exception))
        self.assertTrue(is_gone(int(str(caught.exception).split('\n')[1])))

    def test_one_that_ends_a_while_after_its_output(self) -> None:
        # As on a busy machine.
        self.enterContext(mock.patch.object(module, '_BRIEFLY', DEADLINE))
        starting = Starting(self.stopping(OutputExecutor(victim('''
            os.close(1)
            sys.stdin.readline()
            os._exit(3)
            '''), 'ready')))
        until(lambda: starting.executor._run
              and starting.executor._run.captures['stdout'].ended)
        starting.go_on()
        with self.assertRaises(ProcessExitedWithError) as caught:
            starting.wait()
        self.assertEqual(3, caught.exception.exit_code)

    def test_a_daemon_may_say_it_later(self) -> None:
        executor = self.stopping(OutputExecutor(victim('''
            if not os.fork():
                signal.alarm(100)
                os.setsid()
                sys.stdin.readline()
                say('ready')
                say(os.getpid())
                pause()
            '''), 'ready'))
        starting = Starting(executor)
        until(lambda: executor.child and executor.child.poll() == 0)
        starting.go_on()
        starting.wait()
        daemon = int(executor.output().readline())
        executor.stop()
        self.assertTrue(is_gone(daemon))

    def test_silence_ends_at_the_deadline(self) -> None:
        executor = OutputExecutor('sleep 100', '.*ready', timeout=0.1)
        self.assertRaisesRegex(
            TimeoutExpired, r"for '\.\*ready' in its output; its stdout is "
            'empty$', executor.start)

    def test_a_failure_ends_the_wait_at_once(self) -> None:
        executor = OutputExecutor(
            'echo "error: no disk"; exec sleep 100', 'ready', shell=True,
            failure='error: .*')
        self.assertRaisesRegex(
            ExecutorError, "has said 'error: no disk'", executor.start)
        self.assertIsNone(executor.child)

    def test_without_pipes_nothing_can_be_said(self) -> None:
        executor = ConditionExecutor(
            'sleep 100', output('ready'), stdout=subprocess.DEVNULL)
        self.assertRaisesRegex(
            ExecutorError, 'neither is a pipe', executor.start)


class LookTests(ExecutorTestCase):
    """What is read between two questions."""

    def setUp(self) -> None:
        super().setUp()
        read, self.sink = os.pipe()
        self.addCleanup(self.close_sink)
        self.capture = Capture(PipeChannel(read), 2 ** 20)
        self.addCleanup(self.capture.close)
        self.poller = self.enterContext(Poller())
        self.process = self.enterContext(Process('sleep 100'))

    def close_sink(self) -> None:
        if self.sink >= 0:
            os.close(self.sink)
            self.sink = -1

    def check(self, *texts: bytes) -> Check:
        check = output('ready', 'error').check()
        check.begin(self.process, [self.capture], self.poller, NEVER)
        self.addCleanup(check.close)
        self.assertEqual('', check.hopeless)
        for text in texts:
            os.write(self.sink, text)
            self.capture.read_rest()
        return check

    def test_a_failure_is_remembered(self) -> None:
        check = self.check(b'error\n', b'and so on\n', b'ready\n')
        self.assertFalse(check.holds())
        self.assertEqual("has said 'error'", check.hopeless)

    def test_what_it_says_afterwards_wakes_nobody(self) -> None:
        check = self.check(b'ready\n')
        self.assertEqual([], self.poller.poll(0))
        self.assertFalse(self.poller.pause(0))
        os.write(self.sink, b'more\n')
        self.capture.read_rest()
        self.assertFalse(self.poller.pause(0))
        self.assertTrue(check.holds())

    def test_a_failure_before_the_banner_counts(self) -> None:
        check = self.check(b'error: not ready\n')
        self.assertFalse(check.holds())
        self.assertEqual("has said 'error'", check.hopeless)

    def test_a_failure_after_the_banner_does_not_count(self) -> None:
        self.assertTrue(self.check(b'ready\nerror\n').holds())

    def test_the_banner_may_come_with_the_end(self) -> None:
        check = self.check()
        self.assertFalse(check.holds())
        os.write(self.sink, b'ready')
        self.close_sink()
        self.capture.read_rest()
        with mock.patch.object(module, '_BRIEFLY', 0):
            self.assertEqual('', check.hopeless)
        self.assertTrue(check.holds())

    def test_a_last_line_is_whole_at_the_end_of_the_output(self) -> None:
        check = output('ready$').check()
        check.begin(self.process, [self.capture], self.poller, NEVER)
        self.addCleanup(check.close)
        os.write(self.sink, b'ready')
        self.capture.read_rest()
        self.assertFalse(check.holds())
        self.close_sink()
        self.capture.read_rest()
        self.assertTrue(check.holds())
        self.assertEqual('', check.hopeless)

    def test_nothing_is_hopeless_while_another_thread_searches(self) -> None:
        check = self.check()
        news = self.capture._news
        with ThreadPoolExecutor(1) as thread, news._telling:
            os.write(self.sink, b'ready')
            self.close_sink()
            self.process.terminate(signal.SIGKILL, 0)
            thread.submit(self.capture.read_rest).result(DEADLINE)
            self.assertFalse(check.holds())
            self.assertTrue(check.pending)
            self.assertEqual('', check.hopeless)
        self.capture.read_rest()
        self.assertTrue(check.holds())
        self.assertFalse(check.pending)

    def test_the_end_of_the_output_mostly_is_that_of_the_child(self) -> None:
        check = self.check()
        self.close_sink()
        self.capture.read_rest()
        self.assertEqual('', check.hopeless)
        self.process.terminate(signal.SIGKILL, 0)
        self.assertEqual('has closed its output', check.hopeless)


class TalkativeTests(ExecutorTestCase):

    def test_100_mb_before_the_banner_and_after_it(self) -> None:
        executor = self.stopping(OutputExecutor(victim('''
            block = (b'x' * 99 + b'\\n') * 10_000
            for _ in range(100):
                os.write(1, block)
            say('ready')
            for _ in range(100):
                os.write(1, block)
            say('over')
            pause()
            '''), 'ready')).start()
        capture = executor._run.captures['stdout']
        until(lambda: capture.tail.endswith('\nover'))
        total = 200_000_000 + len('ready\nover\n')
        kept = total - executor.dropped
        self.assertGreaterEqual(kept, 2 ** 20)
        self.assertLess(kept, 2 ** 21)
        reader = executor.output()
        self.assertEqual('\n', reader.readline())
        note = reader.readline()
        self.assertRegex(note, r'^\[\d+ bytes were not kept\]$')
        size = 0
        for line in reader:
            size += len(line)
            if line == 'over\n':
                break
        self.assertEqual(kept, size)
        self.assertEqual(
            100_000_005, size + int(note[1:].split()[0]))

    def test_100_mb_without_an_end_of_the_line(self) -> None:
        for banner in ('ready$', '.*ready'):
            with self.subTest(banner):
                executor = self.stopping(OutputExecutor(victim('''
                    for _ in range(100):
                        os.write(1, b'x' * 1_000_000)
                    say('ready')
                    say('next')
                    '''), banner))
                starting = Starting(executor)
                starting.wait()
                self.assertEqual('next\n', executor.output().read())
