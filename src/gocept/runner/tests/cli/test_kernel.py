"""``gocept-runner kernel``: its command line, with a kernel that is none."""

import contextlib
import io
import json
import os
import unittest
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from unittest import mock

import gocept.runner.kernel
from gocept.runner import cli, errors
from gocept.runner.kernel.client import autostart
from gocept.runner.kernel.keeper.options import Options
from gocept.runner.kernel.wire.limits import Limits


class Piece(NamedTuple):
    name: str
    timestamp: float
    data: Any


class FakeWatcher:
    """Gives what it was made with, one after the other."""

    missing: Mapping[str, int] = {}
    ready = True

    def __init__(self, *found: Any) -> None:
        self.found = [*found]
        self.position: dict[str, tuple[str, int, bool]] = dict.fromkeys(
            ('a', 'bb'), ('L', 0, False))

    def __bool__(self) -> bool:
        return bool(self.found)

    def __enter__(self) -> 'FakeWatcher':
        return self

    def __exit__(self, *ignored: object) -> None:
        pass

    def read(self) -> Any:
        next_ = self.found.pop(0)
        if isinstance(next_, BaseException):
            raise next_
        out, err, closed = next_
        for piece in (*out, *err):
            life, offset, _ = self.position[piece.name]
            self.position[piece.name] = life, offset + len(piece.data), False
        for end in closed:
            self.position[end.name] = *self.position[end.name][:2], True
        return next_


class FakeKernel:
    """Remembers how it was called."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, Any]] = {}
        self.calls: list[Any] = []
        self.watcher = FakeWatcher()
        self.versions = ['1.0', '1.1']
        self.error: Exception | None = None
        self.made: dict[str, Any] = {'pid': 7, 'running': True}

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls.append((*args, options))
        if self.error is not None:
            raise self.error
        return contextlib.nullcontext(self)

    def status(self) -> dict[str, Any]:
        return {'version': self.versions[0], 'python': '3.11.2', 'path': '/x',
                'pid': 2, 'keeper': 1, 'deaths': 0, 'clients': 1,
                'sockets': {}, 'values': {}, 'processes': self.entries}

    def stop(self, *, force: bool) -> None:
        self.calls.append(('stop', force))

    def remove_processes(self, *names: str) -> None:
        self.calls.append(('processes', *names))

    def remove_sockets(self, *names: str) -> None:
        self.calls.append(('sockets', *names))

    def remove_values(self, *names: str) -> None:
        self.calls.append(('values', *names))

    def upgrade(self) -> None:
        del self.versions[0]

    def list_processes(self, *names: str) -> dict[str, dict[str, Any]]:
        return {name: entry for name, entry in self.entries.items()
                if not names or name in names}

    def follow_processes(self, *names: str) -> FakeWatcher:
        self.calls.append(('follow', *names))
        return self.watcher

    def make_process(self, name: str, executable: str, **options: Any,
                     ) -> dict[str, Any]:
        self.calls.append((name, executable, options))
        return self.made


class KernelTestCase(unittest.TestCase):

    def setUp(self) -> None:
        self.kernel = FakeKernel()
        self.enterContext(mock.patch.object(
            gocept.runner.kernel, 'Kernel', self.kernel, create=True))

    def run_main(self, *argv: str) -> tuple[int, str, str]:
        """The status, and what was written to standard output and error."""
        out, err = (io.TextIOWrapper(io.BytesIO(), 'utf-8', write_through=True)
                    for _ in range(2))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = cli.main(('kernel', *argv))
            except SystemExit as error:
                status = error.code  # type: ignore[assignment]
        texts = [stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
                 for stream in (out, err)]
        return status, *texts

    def assertOutput(self, expected: str, *argv: str) -> None:
        self.assertEqual((0, expected, ''), self.run_main(*argv))

    def assertMistake(self, status: int, expected: str, *argv: str) -> None:
        """It ends with one line that says what is wrong."""
        found, output, message = self.run_main(*argv)
        self.assertEqual((status, ''), (found, output))
        self.assertEqual(
            f'gocept-runner kernel {argv[0]}: error: {expected}\n', message)

    def assertBadUsage(self, expected: str, *argv: str) -> None:
        status, output, message = self.run_main(*argv)
        self.assertEqual((2, ''), (status, output))
        self.assertIn(expected, message.splitlines()[-1])
        self.assertTrue(message.startswith('usage: gocept-runner kernel '))


class UsageTests(KernelTestCase):

    def test_the_help_of_each_command(self) -> None:
        for command in ('start', 'stop', 'status', 'tail', 'upgrade', 'run',
                        'remove'):
            with self.subTest(command):
                status, output, _ = self.run_main(command, '--help')
                self.assertEqual(0, status)
                prog = f'gocept-runner kernel {command} '
                self.assertTrue(output.startswith(f'usage: {prog}'), output)
                for expected in (
                        '--port N ', '(default: 20202)', '--path P ',
                        'examples:\n  gocept-runner kernel ',
                        '\n  69  no kernel runs there'):
                    self.assertIn(expected, output)

    def test_the_help_fits_into_80_columns(self) -> None:
        with mock.patch.dict(os.environ, {'COLUMNS': '80'}):
            for command in ('start', 'stop', 'status', 'tail', 'upgrade'):
                _, output, _ = self.run_main(command, '--help')
                for line in output.splitlines():
                    self.assertLess(len(line), 80, line)

    def test_the_help_says_what_it_means_to_allow_a_user(self) -> None:
        _, output, _ = self.run_main('start', '--help')
        self.assertIn('this user can then run any program as the user who',
                      ' '.join(output.split()))

    def test_the_help_shows_each_limit(self) -> None:
        _, output, _ = self.run_main('start', '--help')
        for name in Limits().meanings():
            self.assertRegex(output, rf'(?m)^  {name}=\d+[kmg]? +\w')

    def test_mistakes(self) -> None:
        for argv, expected in (
                ([], 'required: COMMAND'),
                (['stat'], "invalid choice: 'stat'"),
                (['status', 'web'], 'unrecognized arguments: web'),
                (['status', '--port', '0'], 'a number from 1 to 65535'),
                (['status', '--port', '70000'], 'a number from 1 to 65535'),
                (['status', '--port', '1', '--path', 'x'], 'not allowed with'),
                (['status', '--path', ''], 'the path is empty'),
                (['status', '--path', 'ü' * 60], 'at most 107 bytes'),
                (['status', '--pat', 'x'], 'unrecognized arguments: --pat'),
                (['tail'], 'required: NAME'),
                (['tail', 'x', '-n', 'y'], "from 0 on: 'y'"),
                (['tail', 'x', '-n', '1', '--raw'], 'not allowed with'),
                (['run'], 'required: NAME'),
                (['remove'], 'required: NAME'),
                (['remove', '--values', '--sockets', 'x'], 'not allowed'),
                (['run', '--env', 'x', 'a', 'b'], "not like NAME=VALUE: 'x'"),
                (['run', '--env', '=x', 'a', 'b'], 'not like NAME=VALUE'),
                (['run', '--bufsize', '1x', 'a', 'b'], "not '1x'"),
                (['start', '--limit', 'x=1'], "there is no limit 'x'"),
                (['start', '--limit', 'line'], "like NAME=VALUE: 'line'")):
            with self.subTest(argv):
                self.assertBadUsage(expected, *argv)

    def test_where_the_kernel_is(self) -> None:
        there = os.path.abspath('there')
        for argv, expected in (
                ([], (20202, None)), (['--port', '7'], (7, None)),
                (['--path', 'there'], (there, None)),
                (['--path', '/x', '--user', 'who'], ('/x', 'who'))):
            with self.subTest(argv):
                self.run_main('status', *argv)
                place, options = self.kernel.calls.pop()
                self.assertEqual(expected, (place, options['user']))

    def test_only_run_starts_a_kernel(self) -> None:
        self.kernel.error = errors.KernelNotRunning('there is none')
        start = self.enterContext(mock.patch.object(
            autostart, 'start', return_value=(True, 20202)))
        for argv in (['stop'], ['status'], ['upgrade'], ['tail', 'x'],
                     ['remove', 'x'], ['run', '--user', 'who', 'x', 'y']):
            with self.subTest(argv):
                self.assertMistake(69, 'there is none', *argv)
                self.assertIs(False, self.kernel.calls[-1][1]['autostart'])
        start.assert_not_called()
        start.side_effect = self.end_error
        self.assertOutput('A kernel was started on port 20202.\n'
                          'x runs with pid 7\n', 'run', 'x', 'y')
        self.kernel.error = errors.KernelSilent('it is no kernel')
        start.reset_mock()
        self.assertMistake(69, 'it is no kernel', 'run', 'x', 'y')
        start.assert_not_called()
        self.kernel.error = errors.KernelNotRunning('there is none')
        start.side_effect = errors.KernelError('no such directory')
        self.assertMistake(71, 'no such directory', 'run', 'x', 'y')

    def end_error(self, *ignored: object) -> tuple[bool, int]:
        self.kernel.error = None
        return True, 20202

    def test_an_error_of_the_kernel_is_one_line(self) -> None:
        self.kernel.error = errors.KernelError('that is too much')
        self.assertMistake(1, 'that is too much', 'status')
        self.kernel.error.status = 69
        self.assertMistake(69, 'that is too much', 'tail', 'x')

    def test_an_interrupt(self) -> None:
        self.kernel.error = KeyboardInterrupt()  # type: ignore[assignment]
        self.assertEqual(
            (130, '', 'gocept-runner kernel stop: interrupted\n'),
            self.run_main('stop'))


class StartTests(KernelTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.start = self.enterContext(mock.patch.object(
            autostart, 'start', return_value=(True, 20202)))
        self.become = self.enterContext(mock.patch.object(
            autostart, 'become', side_effect=SystemExit(7)))

    def test_in_the_background(self) -> None:
        self.assertOutput('A kernel runs on port 20202 now.\n', 'start')
        options, _ = self.start.call_args.args
        self.assertEqual(Options(), options)
        self.become.assert_not_called()

    def test_in_the_foreground(self) -> None:
        self.assertEqual(
            (7, '', ''), self.run_main('start', '--foreground', '--path', 'x'))
        options, = self.become.call_args.args
        self.assertEqual(Options(os.path.abspath('x')), options)

    def test_its_options(self) -> None:
        self.run_main(
            'start', '--port', '7', '--log', 'x.log', '--allow-user', 'root',
            '--allow-user', '77', '--limit', 'line=2m', '--limit', 'values=3')
        options, _ = self.start.call_args.args
        self.assertEqual(Options(
            7, log=os.path.abspath('x.log'), allow_users=(0, 77),
            limits={'line': 2 << 20, 'values': 3}), options)

    def test_one_runs_already(self) -> None:
        self.start.return_value = False, 20202
        self.assertOutput('A kernel runs on port 20202 already.\n', 'start')
        for option in (['--limit', 'line=2m'], ['--log', 'x'],
                       ['--allow-user', 'root']):
            self.assertMistake(
                1, 'a kernel runs on port 20202 already, and its options '
                'cannot be changed: stop it first', 'start', *option)

    def test_something_that_is_no_kernel_listens(self) -> None:
        self.start.return_value = False, 20202
        self.kernel.error = errors.KernelError('it is no kernel')
        self.assertMistake(
            71, 'no kernel can be started on port 20202: it is no kernel',
            'start')
        self.kernel.error = errors.KernelRefused('you are refused')
        self.assertMistake(77, 'you are refused', 'start')

    def test_it_cannot_be_started(self) -> None:
        self.start.side_effect = errors.KernelError('no such directory')
        self.assertMistake(71, 'no such directory', 'start')
        self.become.side_effect = errors.KernelError('no code')
        self.assertMistake(71, 'no code', 'start', '--foreground')

    def test_an_unknown_user(self) -> None:
        self.assertMistake(2, "there is no user 'nobody-at-all'", 'start',
                           '--allow-user', 'nobody-at-all')


class StatusTests(KernelTestCase):

    def test_a_table(self) -> None:
        self.kernel.entries = {'web': {
            'pid': 3, 'running': False, 'status': 1, 'command': ['x' * 300]}}
        status, output, _ = self.run_main('status', '--path', '/run/k')
        self.assertEqual(0, status)
        self.assertIn('/run/k: up -, the daemon has never died', output)
        self.assertIn('x' * 300, output)

    def test_json(self) -> None:
        _, output, _ = self.run_main('status', '--json')
        self.assertEqual('1.0', json.loads(output)['version'])

    @contextlib.contextmanager
    def terminal(self, columns: int) -> Iterator[None]:
        with (mock.patch('gocept.runner.cli.kernel.is_terminal',
                         return_value=True),
              mock.patch.dict(os.environ, {'COLUMNS': str(columns)})):
            yield

    def test_the_width_of_a_terminal(self) -> None:
        self.kernel.entries = {'web': {'command': ['x' * 300]}}
        for width in 100, 120:
            with self.terminal(width):
                _, output, _ = self.run_main('status')
            self.assertEqual(width, max(map(len, output.splitlines())))
        with self.terminal(100):
            _, output, _ = self.run_main('status', '--wide')
        self.assertIn('x' * 300, output)

    def test_an_encoding_that_is_poor(self) -> None:
        self.kernel.entries = {'wéb': {}}
        out = io.TextIOWrapper(io.BytesIO(), 'ascii', write_through=True)
        with contextlib.redirect_stdout(out):
            self.assertEqual(0, cli.main(['kernel', 'status']))
        self.assertIn(b'\nw\\xe9b ', out.buffer.getvalue())


class StopTests(KernelTestCase):

    def test_an_idle_one(self) -> None:
        self.assertOutput('The kernel on port 20202 has ended.\n', 'stop')
        self.assertEqual(('stop', False), self.kernel.calls[-1])

    def test_force(self) -> None:
        self.kernel.entries = {
            'b': {'pid': 3, 'running': True}, 'a': {'pid': 4, 'running': True},
            'c': {'pid': 5, 'running': False}}
        self.assertOutput(
            'The kernel on port 7 has ended.\n'
            'These run on, without it: a (4), b (3)\n',
            'stop', '--force', '--port', '7')
        self.assertEqual(('stop', True), self.kernel.calls[-1])


class UpgradeTests(KernelTestCase):

    def test_it_tells_both_versions(self) -> None:
        self.assertOutput(
            'The kernel on port 20202 was upgraded\n'
            '  from version 1.0, Python 3.11.2, /x\n'
            '    to version 1.1, Python 3.11.2, /x\n', 'upgrade')


class RunTests(KernelTestCase):

    def run_it(self, *argv: str) -> tuple[str, str, dict[str, Any]]:
        self.assertOutput('web runs with pid 7\n', 'run', *argv)
        name, executable, options = self.kernel.calls[-1]
        return name, executable, options

    def test_by_default_it_is_as_if_started_here(self) -> None:
        with mock.patch.dict(os.environ, {'HERE': 'yes'}):
            found = self.run_it('web', 'serve', '--port', '80', '--path', 'x')
            self.assertEqual(('web', 'serve', {
                'args': ['--port', '80', '--path', 'x'], 'env': {**os.environ},
                'working_dir': os.getcwd(), 'bufsize': 1 << 20,
                'overflow': 'drop'}), found)

    def test_options(self) -> None:
        _, _, options = self.run_it(
            '--cwd', 'x', '--clear-env', '--env', 'A=1', '--env', 'B=x=y',
            '--bufsize', '2k', '--overflow', 'block', 'web', 'serve')
        self.assertEqual({
            'args': [], 'env': {'A': '1', 'B': 'x=y'},
            'working_dir': os.path.abspath('x'), 'bufsize': 2048,
            'overflow': 'block'}, options)

    def test_a_variable_more(self) -> None:
        with mock.patch.dict(os.environ, {'HERE': 'yes', 'A': '0'}):
            _, _, options = self.run_it('--env', 'A=1', 'web', 'serve')
        self.assertEqual(('yes', '1'),
                         (options['env']['HERE'], options['env']['A']))

    def test_dashes_may_stand_before_the_program(self) -> None:
        for argv in (['web', '--', 'serve', '--', 'x'],
                     ['--', 'web', 'serve', '--', 'x']):
            with self.subTest(argv):
                _, executable, options = self.run_it(*argv)
                self.assertEqual(
                    ('serve', ['--', 'x']), (executable, options['args']))

    def test_no_program(self) -> None:
        for argv in ['web'], ['web', '--']:
            self.assertMistake(
                2, 'a COMMAND is needed after NAME', 'run', *argv)
        self.assertEqual([], self.kernel.calls)

    def test_it_runs_already(self) -> None:
        self.kernel.entries = {'web': {}}
        self.assertOutput('web runs already with pid 7\n', 'run', 'web', 'x')

    def test_it_has_ended(self) -> None:
        self.kernel.entries = {'web': {'life': 'L', 'pid': 7}}
        self.kernel.made = {
            'life': 'L', 'pid': 7, 'running': False, 'status': 3}
        self.assertMistake(
            1, 'web was run before (ended 3), and is not run again while the '
            'kernel keeps its output: gocept-runner kernel tail --port 7 web '
            'shows it, and gocept-runner kernel remove --port 7 web removes '
            'it', 'run', '--port', '7', 'web', 'x')

    def test_an_option_behind_the_name(self) -> None:
        self.assertMistake(
            2, '--path stands after NAME, where the COMMAND begins: put '
            'options before NAME', 'run', 'web', '--path', 'k', 'true')
        self.assertEqual([], self.kernel.calls)


class RemoveTests(KernelTestCase):

    def test_processes(self) -> None:
        self.kernel.entries = {
            name: {'pid': 7, 'running': name != 'b.1'}
            for name in ('a', 'b.1', 'b.2', 'c')}
        self.assertOutput(
            'These run on, and their output is thrown away: a (7), b.2 (7)\n',
            'remove', 'a', 'b.*')
        self.assertEqual(('processes', 'a', 'b.*'), self.kernel.calls[-1])

    def test_sockets_and_values(self) -> None:
        for kind in 'sockets', 'values':
            self.assertOutput('', 'remove', f'--{kind}', 'x')
            self.assertEqual((kind, 'x'), self.kernel.calls[-1])


class TailTests(KernelTestCase):

    def test_no_such_process(self) -> None:
        self.assertMistake(
            1, 'there is no process x: gocept-runner kernel status --path '
            "'/a b' shows what there is", 'tail', '--path', '/a b', 'x')

    def entries(self, **ends: int) -> None:
        self.kernel.entries = {
            name: {'life': 'L', 'end': end, 'buffered': end, 'closed': False}
            for name, end in ends.items()}

    def lines(self, *argv: str, status: int = 0) -> list[str]:
        found, output, message = self.run_main('tail', *argv)
        self.assertEqual((status, ''), (found, message))
        return [line[24:] for line in output.splitlines()]

    def out(self, name: str, data: bytes) -> object:
        return [Piece(name, 1, data)], [], []

    def test_what_is_there(self) -> None:
        self.entries(a=4, bb=2)
        self.kernel.watcher = FakeWatcher(
            self.out('a', b'1\n'), self.out('bb', b'x\n'),
            self.out('a', b'2\n3\n'), self.out('a', b'later\n'))
        self.assertEqual(['a  | 1', 'bb | x', 'a  | 2', 'a  | 3'],
                         self.lines('a', 'bb'))
        self.assertEqual(('follow', 'a', 'bb'), self.kernel.calls[-1])

    def test_there_is_nothing(self) -> None:
        self.entries(a=0)
        self.kernel.watcher = FakeWatcher(self.out('a', b'later\n'))
        self.assertEqual([], self.lines('a'))

    def test_it_has_ended(self) -> None:
        self.entries(a=2)
        self.kernel.entries['a']['closed'] = True
        self.kernel.watcher = FakeWatcher(
            self.out('a', b'1\n'), ([], [], [Piece('a', 2, 3)]))
        self.assertEqual(['a | 1', 'a = ended 3'], self.lines('a'))

    def test_it_was_started_anew_in_between(self) -> None:
        self.entries(a=100)
        self.kernel.watcher = FakeWatcher(self.out('a', b'new\n'))
        self.kernel.watcher.position['a'] = 'another life', 0, False
        self.assertEqual([], self.lines('a'))

    def test_follow(self) -> None:
        self.entries(a=2)
        self.kernel.watcher = FakeWatcher(
            self.out('a', b'1\n'), self.out('a', b'later\n'),
            ([], [], [Piece('a', 2, -15)]))
        self.assertEqual(['a | 1', 'a | later', 'a = SIGTERM'],
                         self.lines('-f', 'a'))

    def test_the_last_lines(self) -> None:
        self.entries(a=6)
        self.kernel.watcher = FakeWatcher(
            self.out('a', b'1\n2\n'), self.out('a', b'3\n'),
            self.out('a', b'4\n5\n'))
        self.assertEqual(['a | 3', 'a | 4', 'a | 5'],
                         self.lines('-n', '1', '-f', 'a'))

    def test_an_interrupt_is_the_usual_end(self) -> None:
        self.entries(a=2)
        self.kernel.watcher = FakeWatcher(
            self.out('a', b'1\npart'), KeyboardInterrupt())
        self.assertEqual(['a | 1', 'a | part'],
                         self.lines('-f', 'a', status=130))

    def test_raw(self) -> None:
        self.entries(a=3)
        self.kernel.watcher = FakeWatcher(
            ([Piece('a', 1, b'\x1bx')], [Piece('a', 1, b'e')], []))
        self.assertEqual((0, '\x1bx', 'e'),
                         self.run_main('tail', '--raw', 'a'))

    def test_colours_if_wanted(self) -> None:
        self.entries(a=2)
        self.kernel.watcher = FakeWatcher(self.out('a', b'1\n'))
        _, output, _ = self.run_main('tail', '--color', 'always', 'a')
        self.assertIn('\x1b[36ma\x1b[0m', output)
