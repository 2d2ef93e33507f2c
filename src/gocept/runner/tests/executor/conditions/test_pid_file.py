"""The condition that a child writes a file."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any
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
from gocept.runner.process import Process, procfs
from gocept.runner.process.launch import Command
from gocept.runner.tests.executors import ExecutorTestCase, Starting, is_gone
from gocept.runner.tests.victims import DEADLINE, until, victim
from gocept.runner.waits.deadline import NEVER, Deadline


def expire(starting: Starting) -> None:
    """Have the time of a start be over now."""
    starting.executor._deadline = Deadline(0)


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class PidFileTests(ExecutorTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.path = self.dir / 'pid'
        # So that no child is taken for one that writes nothing.
        self.enterContext(mock.patch.object(module, '_BRIEFLY', DEADLINE))

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
        until(lambda: executor.child)  # as it is seen before the start, too
        starting.go_on()
        starting.wait()

    def test_ready_when_it_is_written(self) -> None:
        executor = self.executor()
        self.check_written(executor, 'there is none')
        self.assertEqual(str(executor.child.pid), self.path.read_text())

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
        # What is written in the same tick of a clock has the same time.
        os.utime(self.path, (1, 1))
        executor = self.executor()
        check = executor.condition.check()
        self.path.chmod(0o600)
        os.link(self.path, self.dir / 'other')
        self.assertFalse(check.holds())
        self.path.write_text('1000000001')
        self.assertTrue(check.holds())

    def stranger(self, command: Sequence[str]) -> int:
        """A process that is no child of ours."""
        pid = int(subprocess.run(
            ['sh', '-c', 'setsid "$@" > /dev/null 2>&1 < /dev/zero & echo $!',
             'sh', *command], stdout=subprocess.PIPE, check=True).stdout)
        self.addCleanup(end, pid)
        # Until then it is a fork of the shell.
        until(lambda: procfs.command_line(pid) == [*command])
        return pid

    def obstacle(self, command: Command, **options: Any) -> str:
        """What is in the way of a start."""
        executor = PidExecutor(command, self.path, **options)
        self.assertEqual(executor.pre_start_check(), bool(executor._obstacle))
        return executor._obstacle

    def test_the_server_that_runs_is_in_the_way_whatever_clocks_say(
            self) -> None:
        executor = self.executor()
        pid = self.stranger(executor.command_parts)
        for more in ('', '\n', '\n/var/lib/some/where\n5432\n'):
            for changed in (1, time.time(), 2 ** 32):
                with self.subTest(more, changed=changed):
                    self.path.write_text(f'{pid}{more}')
                    os.utime(self.path, (changed, changed))
                    self.assertRaisesRegex(
                        AlreadyRunning,
                        f'process {pid} runs, which {self.path} names: '
                        f'{sys.executable} -I -S -c .*; if this is '
                        f'another program, remove {self.path}$',
                        executor.start)
                    self.assertIsNone(executor.child)

    def test_another_program_is_stale(self) -> None:
        self.path.write_text(str(self.stranger(['sleep', '100'])))
        self.check_written(self.executor(), 'it is stale')

    def test_a_program_that_may_be_the_one_is_in_the_way(self) -> None:
        pid = self.stranger(['sleep', '100'])
        self.path.write_text(str(pid))
        (self.dir / 'link').symlink_to(str(shutil.which('sleep')))
        for name, text in (('script', '#!/bin/sh\nexec sleep 100\n'),
                           ('helped', '#!/usr/bin/env sleep\n')):
            (self.dir / name).write_text(text)
            (self.dir / name).chmod(0o700)
        for command in ('sleep 100', '/bin/sleep 1', 'env sleep 3',
                        './script', 'sh script', './helped', './link',
                        'su -c "sleep 10"'):
            with self.subTest(command):
                self.assertRegex(
                    self.obstacle(command, cwd=self.dir),
                    f'^process {pid} runs, .*: sleep 100; if')
        self.assertTrue(self.obstacle('exec "$SLEEP" 1', shell=True))
        self.assertEqual('', self.obstacle('tail -f /dev/null 100'))

    def test_a_server_that_another_program_has_started_is_in_the_way(
            self) -> None:
        self.path.write_text(str(self.stranger(
            ['tail', '-f', '/dev/null', '--pid', '1', str(self.path)])))
        self.assertTrue(self.obstacle(
            ['control', f'--data={self.path}/', 'start']))

    def test_we_and_our_ancestors_are_stale(self) -> None:
        for pid in (os.getpid(), os.getppid(), 1):
            with self.subTest(pid):
                self.path.write_text(str(pid))
                self.assertEqual('', self.obstacle(
                    procfs.command_line(pid) or 'true'))

    def test_another_child_of_ours_is_stale(self) -> None:
        executor = self.executor()
        with Process(executor.command_parts, stdin='pipe') as process:
            self.path.write_text(str(process.pid))
            self.assertEqual('', self.obstacle(executor.command_parts))
        with subprocess.Popen(['sleep', '100']) as child:
            self.addCleanup(child.kill)
            self.path.write_text(str(child.pid))
            # What is started closes its descriptors before it has arguments.
            until(lambda: procfs.command_line(child.pid) == ['sleep', '100'])
            self.assertEqual('', self.obstacle('sleep 1000'))
            # It may be from before an exec() of this program.
            self.assertTrue(self.obstacle('sleep 100'))
            with mock.patch.object(procfs, 'command_line', return_value=[]):
                self.assertTrue(self.obstacle('sleep 1000'))  # in an exec()
            child.kill()

    def test_a_daemon_that_we_have_adopted_may_be_the_server(self) -> None:
        self.stopping(SimpleExecutor('sleep 100')).start()  # it adopts
        pid = self.stranger(['tail', '-f', '/dev/null'])
        self.assertEqual(os.getpid(), procfs.look(pid).parent)
        self.path.write_text(str(pid))
        self.assertTrue(self.obstacle('tail --pid 1'))
        self.assertEqual('', self.obstacle('sleep 100'))
        os.kill(pid, signal.SIGKILL)

    def test_the_child_of_another_executor_with_the_file_is_in_the_way(
            self) -> None:
        first = self.executor()
        self.check_written(first, 'there is none')
        self.assertRaisesRegex(
            AlreadyRunning, 'which .* names', self.executor('pass').start)

    def test_its_daemon_is_in_the_way(self) -> None:
        daemon = '''
            if not os.fork():
                signal.alarm(100)
                os.setsid()
                with open(path, 'w') as file:
                    file.write(str(os.getpid()))
                pause()
            os._exit(0)
            '''
        executor = self.executor(daemon)
        self.check_written(executor, 'there is none')
        assert executor.child is not None
        executor.child.wait()
        for each in executor, self.executor(daemon):
            self.assertRaisesRegex(
                AlreadyRunning, 'which .* names', each.start)
        executor.stop()
        self.assertEqual('', self.obstacle(executor.command_parts))

    def test_the_exit_ends_its_daemon(self) -> None:
        command = victim('''
            if not os.fork():
                os.setsid()
                overwrite()
                with open('pid', 'w') as file:
                    print(os.getpid(), file=file)
                pause()
            os._exit(0)
            ''')
        program = self.program(f'''
            from gocept.runner.executor import PidExecutor
            executor = PidExecutor({command!r}, 'pid').start()
            executor.child.wait()
            ''')
        self.assertEqual((0, ''), (program.end(), program.output))
        until(lambda: is_gone(int(self.path.read_text())))

    def test_a_stale_one_does_not_name_a_daemon(self) -> None:
        with subprocess.Popen(['sleep', '100']) as child:
            self.addCleanup(child.kill)
            self.path.write_text(str(child.pid))
            starting = Starting(self.stopping(PidExecutor('true', self.path)))
            executor = starting.executor
            until(lambda: executor.child and executor.child.poll() == 0)
            expire(starting)
            self.assertRaises(TimeoutExpired, starting.wait)
            self.assertIsNone(child.poll())
            child.kill()

    def test_who_cannot_be_looked_at_is_in_the_way(self) -> None:
        self.path.write_text(str(self.stranger(['sleep', '100'])))
        with mock.patch.multiple(
                procfs, command_line=lambda pid: [], program=lambda pid: '',
                name=lambda pid: ''):
            self.assertRegex(self.obstacle('true'),
                             'its command line cannot be read')

    def test_who_is_hidden_is_in_the_way(self) -> None:
        self.path.write_text('1000000')
        with mock.patch.object(os, 'kill', side_effect=PermissionError):
            self.assertRegex(self.obstacle('true'), 'process 1000000 runs')

    def test_what_names_nobody_is_not_in_the_way(self) -> None:
        for text in ('', '\n', 'me', '0', '-1', '9' * 40, 'x' * 10 ** 6):
            with self.subTest(text[:40]):
                self.path.write_text(text)
                self.check_written(self.executor(), 'it is stale')

    def test_one_that_cannot_be_read_is_not_in_the_way(self) -> None:
        self.path.write_text(str(self.stranger(['sleep', '100'])))
        self.path.chmod(0)
        condition = pid_file(self.path)
        with Poller() as poller, mock.patch.object(
                module, 'open', create=True, side_effect=PermissionError):
            self.assertEqual('', condition.holds_already(poller, NEVER))

    def test_one_that_cannot_be_read_counts(self) -> None:
        self.check_written(self.executor('''
            fd = os.open(path + '.new', os.O_CREAT | os.O_WRONLY, 0)
            os.write(fd, b'me')
            os.close(fd)
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
        with mock.patch.object(module, '_BRIEFLY', 0.01):
            self.check_written(
                self.executor("open(path, 'w').close()"), 'there is none')

    def test_without_inotify(self) -> None:
        with mock.patch.object(module, 'Directory', side_effect=OSError):
            self.check_written(self.executor(), 'there is none')

    def test_a_path_is_needed(self) -> None:
        self.assertRaisesRegex(ValueError, 'path of a pid file', pid_file, '')
