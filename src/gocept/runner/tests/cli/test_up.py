import contextlib
import json
import os
import pty
import re
import select
import signal
import sys

from gocept.runner.tests.cli.ups import UpTestCase
from gocept.runner.tests.support import DEADLINE, child_environment


class UpTests(UpTestCase):
    """With real templates and workers."""

    def test_up(self):
        self.declare(
            '<runner:worker name="a" handler="shop:work" ticks="3600" />',
            '<runner:worker name="once" handler="shop:work" once="true" />')
        up = self.up()
        pids = []
        for _ in range(2):
            up.wait_for('INFO version 1 runs as ')
            pids.append(int(up.output.split()[-1]))
        up.send(signal.SIGTERM)
        self.assertEqual(0, up.end())
        self.assertRegex(up.output, r'(?m)^up +\| .* 2 workers: a, once$')
        for name in 'a', 'once':
            self.assertRegex(
                up.output, rf'(?m)^{name} +\| INFO version 1 runs as \d+$')
        self.assertEqual(3, len({up.pid, *pids}))
        for pid in pids:
            with self.assertRaises(ProcessLookupError):
                os.kill(pid, 0)

    def test_options_reach_the_workers(self):
        up = self.up('--dry-run', '--run-dir', 'run', '--no-lock', 'a')
        up.wait_for('a        | INFO version 1 runs')
        up.send(signal.SIGTERM)
        self.assertEqual(0, up.end())
        self.assertTrue([*(self.dir / 'run').glob('*.json')])
        self.assertIn('dry run', up.output.lower())

    def test_one_that_fails(self):
        self.declare('<runner:worker name="a" handler="shop:fail" '
                     'once="true" />')
        up = self.up()
        self.assertEqual(1, up.end())
        self.assertIn('a has ended with status 3; it runs once, and is not '
                      'restarted', up.output)

    def test_lines_of_json(self):
        up = self.up('--log-format', 'json')
        up.wait_for('version 1 runs as')
        up.send(signal.SIGTERM)
        self.assertEqual(0, up.end())
        lines = [json.loads(line) for line in up.output.splitlines()]
        self.assertEqual({None, 'a'}, {line['worker'] for line in lines})

    def assertMistake(self, status, expected, *argv):
        found, output = self.ended(['up', *argv])
        self.assertEqual(
            (status, f'gocept-runner up: error: {expected}\n'),
            (found, output.replace(str(self.dir), '')))

    def test_a_worker_that_is_not_declared(self):
        self.assertMistake(2, "no worker 'b' is declared; there are: a", 'b')

    def test_a_worker_that_is_named_twice(self):
        self.assertMistake(2, 'a worker is named twice', 'a', 'a')

    def test_nothing_is_declared(self):
        self.declare()
        self.assertMistake(
            2, 'no worker is declared, so there is nothing to run: ZCML '
            'declares one with <runner:worker>')

    def test_a_zope_conf_that_is_not_there(self):
        status, output = self.ended(['up', '--config', 'missing.conf'])
        self.assertEqual(78, status)
        self.assertRegex(
            output, r'^gocept-runner up: error: .*missing\.conf.*\n$')

    def test_bad_options(self):
        for argv in (['--shutdown-timeout', '-1'],
                     ['--shutdown-timeout', 'soon'],
                     ['--shutdown-timeout', 'inf'], ['--colour']):
            with self.subTest(argv):
                status, output = self.ended(['up', *argv])
                self.assertEqual(2, status)
                self.assertIn('usage: gocept-runner up', output)

    def test_only_one_at_a_time(self):
        up = self.up()
        up.wait_for('version 1 runs')
        self.assertMistake(
            75, f'process {up.pid} runs the workers of /zope.conf already: '
            f'"kill {up.pid}" ends it, and "gocept-runner reload" has it take '
            'new code')
        up.send(signal.SIGTERM)
        self.assertEqual(0, up.end())

    def test_help(self):
        status, output = self.ended(['up', '--help'])
        self.assertEqual(0, status)
        for each in '--shutdown-timeout', '--no-color', 'NAME', 'SIGUSR2':
            self.assertIn(each, output)


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, argv, cwd, **environment):
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.chdir(cwd)
            os.execve(argv[0], argv, child_environment(
                TERM='xterm', **environment))
        self.output = ''

    def wait_for(self, expected):
        while expected not in self.output:
            if not select.select([self.fd], [], [], DEADLINE)[0]:
                raise AssertionError(f'no {expected!r} in {self.output!r}')
            self.output += os.read(self.fd, 2 ** 16).decode()

    def hang_up(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def end(self):
        with contextlib.suppress(OSError):  # EIO is its end
            while data := os.read(self.fd, 2 ** 16):
                self.output += data.decode()
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def close(self):
        self.hang_up()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


class TerminalTests(UpTestCase):

    def terminal(self, *argv, **environment):
        self.write('program.py', '''
            import sys
            sys.path.insert(0, '.')
            from gocept.runner.cli import main
            sys.exit(main())
            ''')
        terminal = Terminal(
            [sys.executable, 'program.py', 'up', *argv], self.dir,
            **environment)
        self.addCleanup(terminal.close)
        return terminal

    def test_ctrl_c(self):
        up = self.terminal()
        up.wait_for('version 1 runs')
        os.write(up.fd, b'\x03')
        self.assertEqual(0, up.end())
        self.assertIn('Received SIGINT, ending', up.output)
        self.assertIn('\x1b[36ma        |\x1b[0m INFO version', up.output)

    def test_without_colours(self):
        for argv, environment in (['--no-color'], {}), ([], {'NO_COLOR': '1'}):
            with self.subTest(argv):
                up = self.terminal(*argv, **environment)
                up.wait_for('version 1 runs')
                os.write(up.fd, b'\x03')
                self.assertEqual(0, up.end())
                self.assertNotIn('\x1b', up.output)

    def test_a_window_that_is_closed_ends_it(self):
        up = self.terminal()
        up.wait_for('version 1 runs')
        [worker] = re.findall(r'runs as (\d+)', up.output)
        up.hang_up()
        self.assertEqual(0, up.end())
        with self.assertRaises(ProcessLookupError):
            os.kill(int(worker), 0)
