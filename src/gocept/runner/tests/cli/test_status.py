"""How workers are, as a command shows it."""

import contextlib
import errno
import io
import itertools
import json
import os
import pathlib
import pty
import random
import re
import select
import signal
import subprocess
import sys
from typing import Any
from unittest import mock

from gocept.runner import errors
from gocept.runner.cli import status, status_parser
from gocept.runner.operation import directory, health, state, vitals
from gocept.runner.tests.operation.states import StateCase, own_state
from gocept.runner.tests.support import (
    DEADLINE,
    child_environment,
    ignore_nothing,
)

MAIN = 'import sys, gocept.runner.cli; sys.exit(gocept.runner.cli.main())'

SLOW = {
    'ZODB', 'argparse', 'collections', 'contextlib', 'datetime', 'enum',
    'functools', 'json', 'logging', 're', 'shutil', 'threading', 'typing',
    'zope'}
"""What takes longer to import than a probe has, if Python itself has not
imported it at its start."""


class StatusTestCase(StateCase):

    def setUp(self) -> None:
        super().setUp()
        self.states = self.dir / 'run'
        self.states.mkdir()

    def put(self, name: str = 'nightly', **changes: Any) -> pathlib.Path:
        """Write a state of this process, changed somehow."""
        path = self.states / f'{name}.json'
        state.write(str(path), own_state(worker=name, **changes))
        return path

    def run_status(self, *argv: str) -> tuple[int, str, str]:
        """The status, and what was written to standard output and error."""
        with (contextlib.redirect_stdout(io.StringIO()) as stdout,
              contextlib.redirect_stderr(io.StringIO()) as stderr):
            try:
                code = status.status(argv)
            except SystemExit as error:
                code = error.code  # type: ignore[assignment]
        return code, stdout.getvalue(), stderr.getvalue()

    def long_ago(self) -> dict[str, float]:
        """A moment so long ago that nothing is in doubt."""
        return {clock: instant - 1000
                for clock, instant in vitals.now().items()}

    def overdue(self, seconds: float) -> dict[str, Any]:
        """What makes a state that of a tick that was due before."""
        at = vitals.now()['monotonic'] - seconds
        return {'written': self.long_ago(), 'next_tick': {
            'clock': 'monotonic', 'at': at, 'realtime': 0.0}}


class TableTests(StatusTestCase):

    def rows(self, *argv: str) -> list[list[str]]:
        code, output, error = self.run_status(*argv, str(self.states))
        self.assertEqual((0, ''), (code, error))
        return [re.split(r'  +', line) for line in output.splitlines()]

    def test_one_that_waits(self) -> None:
        self.put(site='shop/news')
        titles, row = self.rows()
        self.assertEqual(
            ['WORKER', 'PID', 'STATE', 'LAST TICK', 'NEXT TICK', 'TICKS',
             'FAILED', 'CHILDREN', 'MEMORY', 'NOTE'], titles)
        self.assertEqual(
            ['nightly@shop/news', str(os.getpid()), 'waiting'], row[:3])
        self.assertRegex(row[4], 'in (59 min 5. s|1 h 00 min)')
        self.assertEqual(['3', '0', '0', '1.0 MiB', '-'], row[5:])

    def test_one_that_fails(self) -> None:
        now = vitals.now()['realtime']
        self.put(failures=2, last_error={
            'tick': 3, 'time': now - 61, 'error': 'ValueError: a\nb'},
            last_tick={'number': 3, 'ended': now - 61, 'duration': 2.5,
                       'outcome': 'aborted'})
        _, row = self.rows()
        self.assertEqual('waiting, 2 failed', row[2])
        self.assertEqual('1 min 01 s ago, 2.50 s, aborted', row[3])
        self.assertEqual('1 min 01 s ago, tick 3: ValueError: a\\nb', row[-1])

    def test_what_they_do(self) -> None:
        now = vitals.now()['monotonic']
        tick = {'phase': 'tick', 'next_tick': None,
                'since': {'realtime': 0.0, 'monotonic': now - 90},
                'written': self.long_ago()}
        self.put('a', **tick, deadline=now + 60)
        self.put('b', **tick)
        self.put('c', **tick, deadline=now - 60)
        self.put('d', **self.overdue(90))
        self.put('e', start=1)
        self.put('f', phase='ended', status=3, start=1)
        self.put('g', phase='ended', status=0)
        self.put('h', namespaces='pid:[1]')
        self.assertEqual(
            ['ticking 1 min 30 s', 'late 1 min 30 s', 'hanging 1 min 30 s',
             'overdue 1 min 30 s', 'dead', 'ended 3', 'ending 0', 'unknown'],
            [row[2] for row in self.rows()[1:]])
        self.assertIn(f'process {os.getpid()} is another one by now',
                      self.rows()[5][-1])

    def test_children_that_live(self) -> None:
        children = [{'name': 'web', 'pid': 2, 'state': 'ready'},
                    {'name': 'db', 'pid': 3, 'state': 'ended 1'}]
        self.put(children=children)
        self.assertEqual('1', self.rows()[1][7])
        self.put(children=children, start=1)
        self.assertEqual('0', self.rows()[1][7])

    def test_two_of_one_name(self) -> None:
        self.put()
        other = self.dir / 'other'
        other.mkdir()
        state.write(f'{other}/x.json', own_state(worker='nightly', failures=1))
        _, output, _ = self.run_status(str(self.states), str(other))
        self.assertIn(f'in {self.states}\n', output)
        self.assertIn(f'in {other}\n', output)
        (other / 'x.json').unlink()
        state.write(f'{other}/x.json', own_state(worker='nightly', start=1))
        _, output, _ = self.run_status(
            '--check', str(self.states), str(other))
        self.assertIn(f'not healthy: 1 of 2: nightly in {other} (pid ', output)

    def test_what_cannot_be_read(self) -> None:
        self.put('a')
        (self.states / 'b.json').write_text('{}')
        (self.states / 'no state').write_text('{}')
        code, output, error = self.run_status(str(self.states))
        self.assertEqual((errors.NO_DATA, ''), (code, error))
        self.assertIn('is no state of a worker', output)
        self.assertEqual(3, output.count('\n'))

    def test_control_characters(self) -> None:
        self.put('\x1b[2J')
        self.assertNotIn('\x1b', self.run_status(str(self.states))[1])

    def test_colours(self) -> None:
        self.put('a')
        self.put('b', failures=1)
        self.put('c', start=1)
        self.put('d', start=1, phase='ended', status=0)
        _, output, _ = self.run_status('--color', 'always', str(self.states))
        _, *lines = output.splitlines()
        self.assertEqual(
            ['', '\x1b[33m', '\x1b[31m', '\x1b[2m'],
            [line[:line.find('m') + 1] if line[0] == '\x1b' else ''
             for line in lines])
        _, output, _ = self.run_status(str(self.states))
        self.assertNotIn('\x1b', output)


class FuzzTests(StatusTestCase):

    JUNK = (None, True, -1, 7, 10 ** 30, 10 ** 400, 1e300, float('nan'),
            float('inf'), '', 'x', '\x1b', '\ud800', [], [7], {}, {'x': 7})

    def test_any_state(self) -> None:
        # Neither a traceback nor an escape sequence, whatever stands there.
        randomly = random.Random(1)
        for number in range(300):
            found: Any = own_state(
                phase=randomly.choice(['pause', 'tick', 'starting', 'ended']),
                last_error={'tick': 1, 'time': 0.0, 'error': 'x'},
                children=[{'name': 'web', 'pid': 2, 'state': 'ready'}])
            for _ in range(randomly.randrange(1, 4)):
                place = found
                while True:
                    names = [*(range(len(place)) if isinstance(place, list)
                               else place)]
                    name = randomly.choice(names or [None])
                    if name is None or not isinstance(
                            place[name], dict | list) or (
                                randomly.random() < 0.5):
                        break
                    place = place[name]
                if name is not None:
                    place[name] = randomly.choice(self.JUNK)
            (self.states / 'x.json').write_text(json.dumps(found))
            mode = randomly.choice([
                ['--check'], ['--json'], [], ['--check', '--max-age', '1']])
            with (self.subTest(number=number, found=found, mode=mode),
                  mock.patch.object(status, '_pause', lambda seconds: None)):
                code, output, _ = self.run_status(*mode, str(self.states))
                self.assertIn(code, (0, 1, errors.NO_DATA))
                self.assertNotIn('\x1b', output)


class PlacesTests(StatusTestCase):

    def test_nothing_is_registered(self) -> None:
        code, output, error = self.run_status()
        self.assertEqual((errors.NO_STATE, ''), (code, output))
        self.assertIn('no worker of this user has registered a state', error)
        self.assertEqual(1, error.count('\n'))

    def test_what_is_registered(self) -> None:
        self.put()
        directory.register(str(self.states))
        self.assertIn('nightly', self.run_status()[1])

    def test_the_directory_of_the_variable(self) -> None:
        self.put()
        with mock.patch.dict(os.environ, {
                directory.VARIABLE: str(self.states)}):
            self.assertIn('nightly', self.run_status()[1])

    def test_one_file_is_shown_once(self) -> None:
        path = self.put()
        _, output, _ = self.run_status(str(path), str(self.states))
        self.assertEqual(2, output.count('\n'))

    def test_nothing_there(self) -> None:
        for path, expected in (
                (self.dir / 'missing', 'is not there'),
                (self.states, 'there is no state of a worker in ')):
            code, output, error = self.run_status(str(path))
            self.assertEqual((errors.NO_STATE, ''), (code, output))
            self.assertIn(expected, error)

    def test_a_directory_of_somebody_else(self) -> None:
        with mock.patch('os.listdir', side_effect=PermissionError(
                13, 'Permission denied')):
            code, _, error = self.run_status(str(self.states))
        self.assertEqual(errors.NO_STATE, code)
        self.assertIn('cannot be read: Permission denied', error)

    def test_one_that_is_registered_hides_no_others(self) -> None:
        self.put()
        directory.register(str(self.states))
        closed = self.dir / 'closed'
        closed.mkdir()
        directory.register(str(closed))
        look = os.listdir

        def listdir(path: str) -> list[str]:
            if path == str(closed):
                raise PermissionError(13, 'Permission denied')
            return look(path)
        with mock.patch('os.listdir', listdir):
            _, output, _ = self.run_status()
            self.assertIn('nightly', output)
            self.assertRegex(output, 'closed .*cannot be read')
            self.assertEqual(1, self.run_status('--check')[0])


class CheckTests(StatusTestCase):

    def check(self, *argv: str) -> tuple[int, str]:
        """The status, and the line without the number of this process."""
        code, output, error = self.run_status(
            '--check', *argv, str(self.states))
        self.assertEqual(('', 1), (error, output.count('\n')))
        return code, output.replace(str(os.getpid()), 'PID').strip()

    def test_one_that_is_healthy(self) -> None:
        self.put(next_tick={'clock': 'monotonic', 'realtime': 0.0,
                            'at': vitals.now()['monotonic'] + 60.9})
        self.assertEqual(
            (0, 'healthy: nightly (pid PID) waits 1 min 00 s for its next '
                'tick'), self.check())

    def test_one_that_is_dead(self) -> None:
        self.put(start=1)
        self.assertEqual(
            (1, 'not healthy: nightly (pid PID) is dead, and wrote its state '
                '0 s ago: process PID is another one by now'), self.check())

    def test_one_that_was_restarted_since(self) -> None:
        self.put(boot='x')
        self.assertIn('the machine was started anew', self.check()[1])

    def test_one_that_is_overdue(self) -> None:
        self.put(**self.overdue(20))
        code, line = self.check()
        self.assertEqual(1, code)
        self.assertIn('has not begun its next tick, which is overdue by 20 s',
                      line)

    def test_several(self) -> None:
        self.put('a')
        self.put('b')
        self.assertEqual((0, 'healthy: 2 workers'), self.check())
        self.put('c', start=1)
        code, line = self.check()
        self.assertEqual(1, code)
        self.assertIn('not healthy: 1 of 3: c (pid PID) is dead', line)

    def test_what_is_damaged(self) -> None:
        (self.states / 'a.json').write_text('{}')
        code, line = self.check()
        self.assertEqual(1, code)
        self.assertIn('is no state of a worker', line)

    def test_nothing_there(self) -> None:
        self.assertEqual(
            (1, f'not healthy: there is no state of a worker in {self.states}',
             ), self.check())

    def test_the_age_of_the_last_success(self) -> None:
        self.put(last_success=self.long_ago(), written=self.long_ago())
        self.assertEqual(0, self.check('--max-age', '2000')[0])
        code, line = self.check('--max-age', '999')
        self.assertEqual(1, code)
        self.assertIn('had its last success 16 min 4', line)

    def test_no_success_yet(self) -> None:
        self.put(last_success=None, started=self.long_ago(),
                 written=self.long_ago())
        self.assertIn('has had no success since its start, 16 min 4',
                      self.check('--max-age', '999')[1])

    def test_one_that_hangs(self) -> None:
        now = vitals.now()['monotonic']
        tick = {'phase': 'tick', 'next_tick': None, 'tick_timeout': 1.5,
                'since': {'realtime': 0.0, 'monotonic': now - 90},
                'written': self.long_ago(), 'deadline': now - 60}
        self.put(**tick)
        self.assertIn('hangs: it has been in tick 3 for 1 min 30 s, and its '
                      'tick_timeout is 1.5 s', self.check()[1])
        self.put(**{**tick, 'phase': 'starting', 'deadline': None})
        self.assertRegex(self.check()[1], (
            'hangs: it has written nothing for 16 min .*, and may be in '
            'tick 4; its tick_timeout is 1.5 s'))

    def test_a_change_that_comes_late(self) -> None:
        # What was overdue has begun, and is written a moment later.
        path = self.put(**{**self.overdue(11), 'written': vitals.now()})
        pauses = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                state.write(str(path), own_state())
        with mock.patch.object(status, '_pause', pause):
            self.assertEqual(0, self.check()[0])
        self.assertEqual(3, len(pauses))

    def test_what_the_next_table_may_correct(self) -> None:
        self.put(**{**self.overdue(11), 'written': vitals.now()})
        options = status.Options()
        options.paths, options.color = [str(self.states)], 'always'
        page = status._page(options, 80, 24)
        self.assertIn('overdue 11 s?', page)
        self.assertIn('\x1b[33m', page)
        with mock.patch.object(status, '_pause'):
            output = self.run_status(
                '--color', 'always', str(self.states))[1]
        self.assertNotIn('?', output)
        self.assertIn('\x1b[31m', output)

    def test_a_change_that_does_not_come(self) -> None:
        self.put(**{**self.overdue(11), 'written': vitals.now()})
        pauses: list[float] = []
        with mock.patch.object(status, '_pause', pauses.append):
            self.assertEqual(1, self.check()[0])
        self.assertAlmostEqual(health.SETTLED, sum(pauses))


class JSONTests(StatusTestCase):

    def test_what_is_printed(self) -> None:
        path = self.put('a')
        self.put('b', start=1)
        code, output, _ = self.run_status('--json', str(self.states))
        first, second = json.loads(output)
        self.assertEqual(
            (0, str(path), True, 'waiting', None, 'a'),
            (code, first['path'], first['healthy'], first['verdict'],
             first['reason'], first['state']['worker']))
        self.assertEqual((False, 'dead'),
                         (second['healthy'], second['verdict']))

    def test_what_is_damaged(self) -> None:
        (self.states / 'a.json').write_text('{}')
        code, output, _ = self.run_status('--json', str(self.states))
        self.assertEqual((errors.NO_DATA, 'is no state of a worker'),
                         (code, json.loads(output)[0]['problem']))


class ForgetTests(StatusTestCase):

    def test_a_link_that_this_user_may_not_follow(self) -> None:
        self.put('a')
        with mock.patch('os.path.realpath', side_effect=PermissionError(
                errno.EACCES, 'Permission denied')):
            self.assertEqual(
                0, self.run_status('--check', str(self.states))[0])

    def test_what_is_removed(self) -> None:
        alive = self.put('a')
        for name, changes in (
                ('b', {'start': 1}),
                ('c', {'start': 1, 'phase': 'ended', 'status': 0})):
            self.put(name, **changes)
        unknown = self.put('d', namespaces='pid:[1]')
        directory.register(str(self.dir / 'gone'))
        code, output, _ = self.run_status('--forget', str(self.states))
        self.assertEqual((0, 2), (code, output.count('; removed ')))
        self.assertEqual([alive, unknown], sorted(self.states.iterdir()))
        self.assertEqual([], [*(self.dir / 'home').glob('*/workers/*')])

    def test_what_cannot_be_removed(self) -> None:
        unlink = os.unlink

        def fail(path: str) -> None:
            if path.endswith('a.json'):
                unlink(path)  # as by another one
            elif path.endswith('b.json'):
                raise PermissionError(errno.EACCES, 'Permission denied')
            unlink(path)
        for name in 'abc':
            self.put(name, start=1)
        self.enterContext(mock.patch.object(os, 'unlink', fail))
        code, output, error = self.run_status('--forget', str(self.states))
        self.assertEqual((errors.NO_STATE, 1), (
            code, output.count('; removed ')))
        self.assertIn('b.json cannot be removed: Permission denied\n', error)
        self.assertEqual(1, error.count('\n'))


class OptionsTests(StatusTestCase):

    def test_the_quick_way_is_that_of_the_parser(self) -> None:
        words = ('--check', '--watch', '--json', '--forget', '--max-age', '5',
                 'x', '-1', '--color', 'always', '', '--', '--max-age=7')
        for count in range(4):
            for argv in itertools.product(words, repeat=count):
                quick, slow = status.Options(), status.Options()
                if status._quick(argv, quick):
                    with self.subTest(argv):
                        vars(slow).update(status_parser.options_of([*argv]))
                        self.assertEqual(vars(slow), vars(quick))

    def test_mistakes(self) -> None:
        for argv in (['--check', '--json'], ['--max-age', 'x'],
                     ['--max-age'], ['--max-age', '-1'], ['--chekc'],
                     ['--max-age', 'nan']):
            with self.subTest(argv):
                code, _, error = self.run_status(*argv)
                self.assertEqual(2, code)
                self.assertIn('gocept-runner status: error: ', error)

    def test_the_help(self) -> None:
        code, output, _ = self.run_status('--help')
        self.assertEqual(0, code)
        for expected in '--max-age SECONDS', ' 66  there is no state':
            self.assertIn(expected, output)


class ProcessTests(StatusTestCase):
    """The command as a process of its own."""

    def setUp(self) -> None:
        super().setUp()
        ignore_nothing()

    def command(self, *argv: str) -> list[str]:
        return [sys.executable, '-c', MAIN, 'status', *argv]

    def test_what_is_imported(self) -> None:
        self.put()
        output = subprocess.run(
            [sys.executable, '-c', 'import sys; before = {*sys.modules}\n'
             'from gocept.runner.cli import main\n'
             'status = main(sys.argv[1:])\n'
             'print(status, *sorted({*sys.modules} - before))',
             'status', '--check', '--max-age', '9', str(self.states)],
            env=child_environment(), stdout=subprocess.PIPE, text=True,
            check=True).stdout.splitlines()
        code, *modules = output[1].split()
        self.assertEqual('0', code)
        self.assertEqual(set(), {*modules} & SLOW)

    def test_an_encoding_without_umlauts(self) -> None:
        self.put('nächtlich')
        output = subprocess.run(
            self.command(str(self.states)), check=True,
            stdout=subprocess.PIPE, env=child_environment(
                PYTHONIOENCODING='ascii:strict')).stdout
        self.assertIn(rb'n\xe4chtlich', output)

    def test_a_process_that_lives_and_dies(self) -> None:
        with subprocess.Popen(
                [sys.executable, '-I', '-S', '-c', 'input()'],
                stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as worker:
            found = vitals.process(worker.pid)
            assert found is not None
            self.put(pid=worker.pid, start=found.start)
            check = ('--check', str(self.states))
            self.assertEqual(0, self.run_status(*check)[0])
            worker.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, worker.pid, os.WSTOPPED)
            code, output, _ = self.run_status(*check)
            self.assertEqual(1, code)
            self.assertIn('is stopped: by a signal', output)
            worker.send_signal(signal.SIGCONT)
            os.waitid(os.P_PID, worker.pid, os.WCONTINUED)
            self.assertEqual(0, self.run_status(*check)[0])
            worker.kill()
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
            self.assertIn('its parent does not care',
                          self.run_status(*check)[1])
        self.assertIn('there is no process', self.run_status(*check)[1])

    def watch(self, *argv: str, columns: int, lines: int) -> tuple[int, str]:
        """The status of --watch after Ctrl-C, and what a terminal got."""
        import fcntl
        import struct
        import termios
        leader, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ,
                    struct.pack('4H', lines, columns, 0, 0))
        output = b''
        with subprocess.Popen(
                self.command('--watch', *argv), env=child_environment(
                    TERM='xterm', NO_COLOR=''), stdin=terminal,
                stdout=terminal, stderr=terminal,
                start_new_session=True) as process:
            os.close(terminal)
            try:
                while output.count(b'\x1b[H') < 2 and (
                        select.select([leader], [], [], DEADLINE)[0]):
                    output += os.read(leader, 65536)
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(OSError):  # of a closed terminal
                    while more := os.read(leader, 65536):
                        output += more
                code = process.wait(DEADLINE)
            finally:
                process.kill()
                os.close(leader)
        return code, output.decode()

    def test_watch(self) -> None:
        for name in 'abcdef':
            self.put(name, failures=1, last_error={
                'tick': 1, 'time': 0.0, 'error': 'x' * 300})
        for columns, lines in (80, 24), (200, 5), (20, 24), (1, 1), (40, 2):
            with self.subTest(columns=columns, lines=lines):
                code, output = self.watch(
                    str(self.states), columns=columns, lines=lines)
                self.assertEqual(errors.INTERRUPTED, code)
                self.assertTrue(output.startswith('\x1b[?25l'), output)
                self.assertTrue(output.rstrip().endswith('\x1b[?25h'), output)
                page = output.split('\x1b[H')[1].split('\x1b[J')[0]
                shown = re.sub(r'\x1b\[\d*[mK]', '', page).split('\r\n')
                self.assertLessEqual(len(shown), max(lines, 1))
                self.assertLessEqual(max(map(len, shown)), columns)

    def test_watch_without_a_terminal(self) -> None:
        self.put()
        with subprocess.Popen(
                self.command('--watch', str(self.states)),
                env=child_environment(), stdout=subprocess.PIPE,
                start_new_session=True, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(5)]
            process.send_signal(signal.SIGINT)
            self.assertEqual(errors.INTERRUPTED, process.wait(DEADLINE))
        self.assertEqual(lines[0], lines[3])

    def test_watch_nothing_yet(self) -> None:
        _, output = self.watch(str(self.states), columns=80, lines=24)
        self.assertIn('not yet: there is no state', output)
