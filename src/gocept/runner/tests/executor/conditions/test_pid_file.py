"""The condition that a child writes a file."""

import os
import pathlib
from unittest import mock

from gocept.runner.executor import (
    AlreadyRunning,
    PidExecutor,
    SimpleExecutor,
    TimeoutExpired,
    pid_file,
)
from gocept.runner.executor.conditions import pid_file as module
from gocept.runner.poller import Poller
from gocept.runner.process import Process
from gocept.runner.tests.executors import ExecutorTestCase, Starting
from gocept.runner.tests.victims import until, victim
from gocept.runner.waits.deadline import NEVER, Deadline


def expire(starting: Starting) -> None:
    """Have the time of a start be over now."""
    starting.executor._deadline = Deadline(0)


class PidFileTests(ExecutorTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.path = self.dir / 'pid'

    def executor(self, body: str = '''
            with open(path, 'w') as file:
                file.write(str(os.getpid()))
            ''', path: pathlib.Path | None = None) -> PidExecutor:
        """Its child does that when it has read a line."""
        lines = body.strip().splitlines()
        indented = '\n'.join(line[12:] if line[:12].isspace() else line
                             for line in lines)
        command = victim('path = sys.argv[1]\nsys.stdin.readline()\n'
                         + indented + '\npause()\n')
        return self.stopping(PidExecutor(
            [*command, str(self.path)], path or self.path))

    def check_written(self, executor: SimpleExecutor, before: str) -> None:
        starting = Starting(executor)
        starting.until_seen(before)
        until(lambda: executor.process)  # as it is seen before the start, too
        starting.go_on()
        starting.wait()

    def test_ready_when_it_is_written(self) -> None:
        executor = self.executor()
        self.check_written(executor, 'there is none')
        self.assertEqual(str(executor.process.pid), self.path.read_text())

    def test_a_path_that_is_relative_to_ours(self) -> None:
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.dir)
        self.check_written(
            self.executor(path=pathlib.Path('pid')), 'there is none')

    def test_a_stale_one_does_not_count(self) -> None:
        with Process('true') as process:
            process.wait()
        self.path.write_text(str(process.pid))
        self.check_written(self.executor(), 'it is stale')

    def test_a_stale_one_that_is_touched_otherwise_does_not_count(
            self) -> None:
        self.path.write_text('1000000000')
        executor = self.executor()
        check = executor.condition.check()
        self.path.chmod(0o600)
        os.link(self.path, self.dir / 'other')
        self.assertFalse(check.holds())
        self.path.write_text('1000000001')
        self.assertTrue(check.holds())

    def test_one_that_is_older_than_its_process_is_stale(self) -> None:
        self.path.write_text(str(os.getpid()))
        os.utime(self.path, (1, 1))
        self.check_written(self.executor(), 'it is stale')

    def test_who_runs_is_in_the_way(self) -> None:
        for more in ('', '\n', '\n/var/lib/some/where\n5432\n'):
            with self.subTest(more):
                self.path.write_text(f'{os.getpid()}{more}')
                executor = self.executor()
                self.assertRaisesRegex(
                    AlreadyRunning, f'process {os.getpid()} runs, which '
                    f'{self.path} names', executor.start)
                self.assertIsNone(executor.process)

    def test_what_names_nobody_is_not_in_the_way(self) -> None:
        for text in ('', '\n', 'me', '0', '-1', '9' * 40, 'x' * 10 ** 6):
            with self.subTest(text[:40]):
                self.path.write_text(text)
                self.check_written(self.executor(), 'it is stale')

    def test_one_that_cannot_be_read_is_not_in_the_way(self) -> None:
        self.path.write_text(str(os.getpid()))
        self.path.chmod(0)
        condition = pid_file(self.path)
        with Poller() as poller, mock.patch.object(
                module, 'open', create=True, side_effect=PermissionError):
            self.assertEqual('', condition.holds_already(poller, NEVER))

    def test_one_that_cannot_be_read_counts(self) -> None:
        self.check_written(self.executor('''
            os.close(os.open(path + '.new', os.O_CREAT | os.O_WRONLY, 0))
            os.rename(path + '.new', path)
            '''), 'there is none')

    def test_one_that_is_replaced_counts(self) -> None:
        self.path.write_text('1234567')
        self.check_written(self.executor('''
            with open(path + '.new', 'w') as file:
                file.write('1234567')
            os.rename(path + '.new', path)
            '''), 'it is stale')

    def test_the_same_content_counts(self) -> None:
        self.path.write_text('me')
        self.check_written(self.executor('''
            with open(path, 'w') as file:
                file.write('me')
            '''), 'it is stale')

    def test_a_directory_that_is_made_later(self) -> None:
        self.path = self.dir / 'run' / 'pid'
        self.check_written(self.executor('''
            os.mkdir(os.path.dirname(path))
            with open(path, 'w') as file:
                file.write('me')
            '''), 'there is none')

    def test_a_link_to_what_is_made_later(self) -> None:
        (self.dir / 'run').mkdir()
        self.path.symlink_to(self.dir / 'run' / 'pid')
        self.check_written(self.executor(), 'there is none')

    def test_something_else_in_its_place(self) -> None:
        for make in (os.mkdir, os.mkfifo):
            with self.subTest(make):
                self.path = self.dir / make.__name__
                make(self.path)
                starting = Starting(self.executor())
                starting.until_seen('it is no regular file')
                expire(starting)
                self.assertRaises(TimeoutExpired, starting.wait)

    def test_an_empty_one_may_be_written_next(self) -> None:
        check = pid_file(self.path).check()
        self.path.touch()
        self.assertFalse(check.holds())
        self.path.write_text('1')
        self.assertTrue(check.holds())

    def test_one_that_stays_empty_counts(self) -> None:
        self.check_written(
            self.executor("open(path, 'w').close()"), 'there is none')

    def test_without_inotify(self) -> None:
        with mock.patch.object(module, 'Directory', side_effect=OSError):
            self.check_written(self.executor(), 'there is none')

    def test_a_path_is_needed(self) -> None:
        self.assertRaisesRegex(ValueError, 'path of a pid file', pid_file, '')
