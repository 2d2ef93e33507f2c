"""What the children of executors write."""

import subprocess
import sys
import threading

from gocept.runner.executor import (
    SimpleExecutor,
)
from gocept.runner.tests.executors import ExecutorTestCase
from gocept.runner.tests.support import DEADLINE


class OutputTests(ExecutorTestCase):

    def test_reading_waits_for_a_line_and_for_the_end(self) -> None:
        executor = self.stopping(SimpleExecutor('cat').start())
        threading.Timer(0.01, executor.process.channel.write,
                        [b'a line\nrest']).start()
        self.assertEqual('a line\n', executor.output().readline())
        threading.Timer(0.01, executor.process.channel.write_eof).start()
        self.assertEqual('rest', executor.output().read())
        self.assertEqual('', executor.output().read())

    def test_standard_error_is_read_as_well(self) -> None:
        executor = self.stopping(SimpleExecutor(
            'echo out; echo err >&2', shell=True,
            stderr=subprocess.PIPE).start())
        self.assertEqual('out\n', executor.output().read())
        self.assertEqual('err\n', executor.err_output().read())

    def test_a_talkative_child_never_waits(self) -> None:
        executor = self.stopping(SimpleExecutor(
            [sys.executable, '-c', "print('x' * 9_999_999)"],
            output_size=100_000).start())
        self.assertEqual(0, executor.process.wait(DEADLINE))
        output = executor.output().read()
        note, rest = output.split(' bytes were not kept]\n')
        dropped = int(note.removeprefix('\n['))
        self.assertEqual(dropped, executor.dropped)
        self.assertEqual(10_000_000, dropped + len(rest))
        self.assertGreaterEqual(len(rest), 100_000)

    def test_a_file_keeps_all_of_it(self) -> None:
        log = self.dir / 'log'
        log.write_text('before\n')
        executor = self.stopping(SimpleExecutor(
            [sys.executable, '-c', "print('x' * 999_999)"],
            output_size=1000, log_file=log).start())
        executor.process.wait(DEADLINE)
        executor.stop()
        self.assertEqual('before\n' + 'x' * 999_999 + '\n', log.read_text())

    def test_what_cannot_be_decoded_is_shown(self) -> None:
        executor = self.stopping(SimpleExecutor(
            "printf '\\377\\n'", shell=True).start())
        self.assertEqual('\\xff\n', executor.output().readline())

    def test_an_encoding_is_a_keyword_of_popen(self) -> None:
        executor = self.stopping(SimpleExecutor(
            "printf '\\344\\n'", shell=True,
            popen_kwargs={'encoding': 'latin-1'}).start())
        self.assertEqual('ä\n', executor.output().readline())
