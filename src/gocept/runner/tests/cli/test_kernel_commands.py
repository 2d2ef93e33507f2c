"""``gocept-runner kernel`` with a kernel, as its user sees it."""

import contextlib
import errno
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
from collections.abc import Iterator

from gocept.runner.kernel import Kernel
from gocept.runner.testing import private_kernel
from gocept.runner.tests.support import (
    DEADLINE,
    child_environment,
    end_background,
    ignore_nothing,
    rest_of,
)

COMMAND = [sys.executable, '-c',
           'import sys; from gocept.runner.cli import main; sys.exit(main())',
           'kernel']

OTHER = 65534  # the user nobody

OTHER_PYTHON = shutil.which('python3', path='/usr/bin:/bin')

GREET = '''
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    sys.stdout.write(sock.makefile().readline())
'''

SLOW = 'echo begun; exec sleep 1000'


class CommandTests(unittest.TestCase):

    level = 2

    def setUp(self) -> None:
        self.addCleanup(end_background)
        self.kernel: Kernel = self.enterContext(private_kernel())
        self.path = str(self.kernel.port_or_path)

    def command(self, name: str, *args: str) -> list[str]:
        return [*COMMAND, name, '--path', self.path, *args]

    def call(self, name: str, *args: str) -> tuple[int, str, str]:
        """The status, and what was written to standard output and error."""
        process = subprocess.run(
            self.command(name, *args), env=child_environment(), text=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE)
        return process.returncode, process.stdout, process.stderr

    def begin(self, name: str, *args: str) -> 'subprocess.Popen[str]':
        ignore_nothing()
        process = subprocess.Popen(
            self.command(name, *args), env=child_environment(), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def make(self, name: str, script: str, **options: object) -> None:
        self.kernel.make_process(name, 'sh', ['-c', script], **options,
                                 env=os.environ)

    def wait_for(self, name: str) -> None:
        """Until it has ended."""
        with self.kernel.follow_processes(name) as watcher:
            while watcher:
                watcher.read()

    def test_run_and_stop(self) -> None:
        status, output, _ = self.call('run', 'web', 'sh', '-c', SLOW)
        pid = self.kernel.list_processes('web')['web']['pid']
        self.assertEqual((0, f'web runs with pid {pid}\n'), (status, output))
        self.addCleanup(os.kill, pid, signal.SIGKILL)
        status, output, message = self.call('stop')
        self.assertEqual((1, '', 1), (status, output, message.count('\n')))
        self.assertIn('not idle', message)
        self.assertEqual(
            (0, f'The kernel on {self.path} has ended.\n'
             f'These run on, without it: web ({pid})\n', ''),
            self.call('stop', '--force'))
        os.kill(pid, 0)
        for name in 'status', 'stop', 'upgrade':
            status, output, message = self.call(name)
            self.assertEqual((69, ''), (status, output))
            self.assertIn(f'kernel start --path {self.path}"', message)

    def test_a_log_that_cannot_be_written(self) -> None:
        other = f'{self.path}2'
        directory = os.path.dirname(self.path)
        for log, reason in (('missing/log', 'No such file or directory'),
                            ('.', 'Is a directory')):
            log = os.path.normpath(os.path.join(directory, log))
            self.assertEqual((
                71, '', 'gocept-runner kernel start: error: no kernel could '
                f'be started on {other}: the log {log} cannot be written: '
                f'{reason}; name a file in a directory that exists and in '
                'which this user can write\n'),
                self.call('start', '--path', other, '--log', log))

    def test_run_again_and_remove(self) -> None:
        self.call('run', 'job', 'sh', '-c', 'echo one; exit 3')
        self.wait_for('job')
        status, output, message = self.call(
            'run', 'job', 'sh', '-c', 'echo one; exit 3')
        self.assertEqual((1, '', 1), (status, output, message.count('\n')))
        self.assertIn('job was run before (ended 3)', message)
        status, _, message = self.call('stop')
        self.assertEqual((1, 1), (status, message.count('\n')))
        remove = f'kernel remove --path {self.path}'
        self.assertIn(remove, message)
        self.kernel.set('value', 'x')
        self.kernel.make_socket('socket', path=self.path + '.s')
        for argv in ['job'], ['--values', 'value'], ['--sockets', 'socket']:
            self.assertEqual((0, '', ''), self.call('remove', *argv))
        self.assertEqual(1, self.call('remove', 'job')[0])
        self.assertEqual(0, self.call('stop')[0])

    def test_a_program_that_is_no_kernel(self) -> None:
        with socket.create_server(('127.0.0.1', 0)) as server:
            port = str(server.getsockname()[1])
            thread = threading.Thread(target=self.talk, args=(server,))
            thread.start()
            result = subprocess.run(
                [*COMMAND, 'start', '--port', port], env=child_environment(),
                text=True, capture_output=True, timeout=DEADLINE)
            server.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE)
        self.assertEqual((71, ''), (result.returncode, result.stdout))
        self.assertIn(
            f'no kernel can be started on port {port}', result.stderr)

    def talk(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # until it is shut down
            while True:
                client, _ = server.accept()
                with client:
                    client.sendall(b'SSH-2.0-none\r\n' + bytes(5000))

    @unittest.skipUnless(os.geteuid() == 0 and OTHER_PYTHON,
                         'needs root, and a Python that others can run')
    def test_a_user_who_is_allowed(self) -> None:
        directory = self.enterContext(tempfile.TemporaryDirectory())
        os.chmod(directory, 0o755)
        path = f'{directory}/kernel'
        for users, expected in ([], b''), ([str(OTHER)], b'Papa is home'):
            with self.subTest(users):
                subprocess.run(
                    [*COMMAND, 'start', '--path', path, *(
                        word for user in users
                        for word in ('--allow-user', user))],
                    env=child_environment(), check=True, timeout=DEADLINE,
                    stdout=subprocess.DEVNULL)
                with Kernel(path, autostart=False) as kernel:
                    try:
                        result = subprocess.run(
                            [str(OTHER_PYTHON), '-c', GREET, path], cwd='/',
                            user=OTHER, capture_output=True, timeout=DEADLINE)
                    finally:
                        kernel.stop()
                self.assertEqual(expected, result.stdout[:12])

    def test_a_program_that_cannot_be_run(self) -> None:
        status, output, message = self.call('run', 'x\ny', 'no such\nprogram')
        self.assertEqual((1, '', 1), (status, output, message.count('\n')))
        self.assertIn('no such\\nprogram', message)

    def test_status(self) -> None:
        self.make('web', SLOW)
        self.kernel.set('a', 'b' * 200)
        self.kernel.make_socket('s', path=self.path + '.s')
        _, output, _ = self.call('status')
        self.assertRegex(output, rf'\ns +\d+  unix stream  {self.path}\.s\n')
        self.assertIn('\na         200  ' + 'b' * 100 + '…\n', output)
        self.assertRegex(output, r'\nweb +\d+  running .* MiB .* sh -c ')
        _, output, _ = self.call('status', '--json')
        found = json.loads(output)
        self.assertEqual(['s'], [*found['sockets']])
        self.assertGreater(found['processes']['web']['memory'], 0)

    def test_tail_acknowledges_nothing(self) -> None:
        self.make('job', 'echo one; echo two >&2; exit 3')
        self.wait_for('job')
        for options in [], ['-f'], ['-n', '9']:
            with self.subTest(options):
                _, output, _ = self.call('tail', *options, 'job')
                self.assertEqual(
                    ['job ! two', 'job = ended 3', 'job | one'],
                    sorted(line[24:] for line in output.splitlines()))
        self.assertIn('job', self.kernel.list_processes())

    def test_tail_of_no_process(self) -> None:
        for name in 'x', 'x*':
            status, output, message = self.call('tail', name)
            self.assertEqual((1, '', 1), (status, output, message.count('\n')))

    def test_tail_goes_on_after_the_death_of_the_daemon(self) -> None:
        self.make('web', 'echo one; read line; echo $line; exit 2', stdin=-1)
        tail = self.begin('tail', '-f', 'web')
        assert tail.stdout is not None
        self.assertIn('web | one', tail.stdout.readline())
        os.kill(self.kernel.status()['pid'], signal.SIGKILL)
        self.kernel.write_process('web', b'two\n')
        output, message = rest_of(tail)
        self.assertEqual(['web | two', 'web = ended 2'],
                         [line[24:] for line in output.splitlines()])
        self.assertEqual((0, ''), (tail.returncode, message))

    def test_tail_ends_when_its_reader_does(self) -> None:
        self.make('web', SLOW)
        tail = self.begin('tail', '-f', 'web')
        assert tail.stdout is not None
        self.assertIn('begun', tail.stdout.readline())
        tail.stdout.close()  # and nothing is written any more
        self.assertEqual(141, tail.wait(DEADLINE))
        assert tail.stderr is not None
        self.assertEqual('', tail.stderr.read())
        tail.stdout = None

    def test_an_interrupt_ends_tail(self) -> None:
        self.make('web', 'printf "begun\\npart"; exec sleep 1000')
        tail = self.begin('tail', '-f', 'web')
        assert tail.stdout is not None
        self.assertIn('begun', tail.stdout.readline())
        tail.send_signal(signal.SIGINT)
        output, message = rest_of(tail)
        self.assertEqual((130, ''), (tail.returncode, message))
        self.assertIn('web | part', output)

    def test_on_a_terminal(self) -> None:
        self.make('\x1b[2J', 'printf "\\033]0;title\\007\\n"')
        self.wait_for('\x1b[2J')
        output = self.on_terminal('tail', '*', columns=80)
        self.assertIn('\x1b[36m\\x1b[2J\x1b[0m \x1b[36m|\x1b[0m '
                      '\\x1b]0;title\\x07\r\n', output)
        for columns in 90, 120:
            lines = self.on_terminal('status', columns=columns).split('\r\n')
            for line in lines:
                if self.path not in line:  # which may be long
                    self.assertLessEqual(len(line), columns)
            self.assertIn('\\x1b[2J', lines[-2])
        self.assertIn('\x1b[36m', self.on_terminal('tail', '*', columns=80))
        self.assertNotIn('\x1b', self.on_terminal(
            'tail', '*', columns=80, NO_COLOR='1'))

    def on_terminal(self, name: str, *args: str, columns: int,
                    **environment: str) -> str:
        """What a command writes to a terminal."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            self.command(name, *args), stdin=theirs, stdout=theirs,
            stderr=theirs, env=child_environment(**{
                'COLUMNS': str(columns), 'TERM': 'xterm', 'NO_COLOR': '',
                **environment}))
        os.close(theirs)
        data = b''.join(self.read(ours))
        self.assertEqual(0, process.wait(DEADLINE), data)
        return data.decode()

    def read(self, fd: int) -> Iterator[bytes]:
        """What comes from a terminal, which is closed at the end."""
        try:
            while data := os.read(fd, 4096):
                yield data
        except OSError as error:
            if error.errno != errno.EIO:  # the end, on Linux
                raise
        finally:
            os.close(fd)
