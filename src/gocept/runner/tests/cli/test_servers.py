"""The commands for background servers, as their user sees them."""

import contextlib
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from unittest import mock

from gocept.runner import cli
from gocept.runner.background import Client, roster, token_create
from gocept.runner.cli import server_parser, servers
from gocept.runner.tests.background.servers import TestCase
from gocept.runner.tests.kernels import HOST
from gocept.runner.tests.support import (
    DEADLINE,
    child_environment,
    ignore_nothing,
)
from gocept.runner.waits.deadline import Deadline

TASKS = '''
import time
from gocept.runner.background import respond

def init_task():
    return {'count': 0}

def exec_task(client_socket, state, args):
    state['count'] += 1
    if 'error' in args:
        raise ValueError(args['error'])
    if 'wrong' in args:
        respond(client_socket, args['wrong'], error=True)
    elif 'code' in args:
        respond(client_socket, eval(args['code']))
    elif 'silent' not in args:
        respond(client_socket, {**args, 'count': state['count']})
    return state

def exit_task(client_socket, state, args):
    if 'error' in args:
        {}[args['error']]
    if 'wait' in args:
        open(args['started'], 'wb').close()
        open(args['wait'], 'rb').read()
    if 'say' in args:
        respond(client_socket, args['say'])
'''

COMMAND = [sys.executable, '-c',
           'import sys; from gocept.runner.cli import main; sys.exit(main())']


class Case(TestCase):

    def call(self, command: str, *args: str) -> tuple[int, str, str]:
        """The status, and what was written to standard output and error."""
        with (contextlib.redirect_stdout(io.StringIO()) as stdout,
              contextlib.redirect_stderr(io.StringIO()) as stderr):
            try:
                status = cli.main([command, *args])
            except SystemExit as error:
                status = error.code  # type: ignore[assignment]
        return status, stdout.getvalue(), stderr.getvalue()

    def place(self, command: str, *args: str) -> tuple[int, str, str]:
        """A command for the server of this test."""
        return self.call(command, HOST, str(self.port), *args)

    def write(self, name: str, text: str, mode: int = 0o600) -> str:
        path = self.dir / name
        path.write_text(text)
        path.chmod(mode)
        return str(path)

    def start_server(self, *args: str) -> int:
        """Start the server of this test; returns the pid."""
        status, output, message = self.place(
            'server', '--init-file', self.write('job.py', TASKS), *args)
        self.assertEqual((0, ''), (status, message))
        pid = int(output.rstrip('.\n').rpartition(' ')[2])
        self.hold(pid)
        self.assertEqual(f'A server runs at {HOST}:{self.port} now, with pid '
                         f'{pid}.\n', output)
        return pid

    def assertMistake(self, status: int, expected: str,
                      found: tuple[int, str, str]) -> None:
        """One line says what is wrong."""
        self.assertEqual((status, ''), found[:2], found)
        self.assertIn(expected, found[2])
        lines = [line for line in found[2].splitlines()
                 if not line.startswith('usage: ')]
        self.assertEqual(1, len(lines), found[2])

    def assertTooSlow(self, expected: str, command: str, *args: str) -> None:
        """A server that has heard of it takes longer than `--timeout`."""
        seconds, found = 0.5, (0, '', '')
        # On a busy machine, the way to the server may take longer.
        while expected not in found[2] and seconds < DEADLINE:
            found = self.place(command, '--timeout', str(seconds), *args)
            seconds *= 2
        self.assertMistake(124, expected, found)


class ServerTests(Case):

    def test_start_and_end(self) -> None:
        pid = self.start_server()
        self.assertMistake(
            71, f'taken by a background server of this user, process {pid}: ',
            self.place('server'))
        self.assertEqual(
            (0, f'The server at {HOST}:{self.port} has ended.\n', ''),
            self.place('terminate'))
        self.wait_until_ended(pid)
        self.assertMistake(
            69, f'listens at {HOST}:{self.port}: "gocept-runner servers"',
            self.call('terminate', f'{HOST}:{self.port}'))
        for command in 'terminate', 'call':
            self.assertMistake(
                69, f'no server listens at {HOST}:{self.port}: ',
                self.place(command))

    def test_the_port_of_another_program(self) -> None:
        with socket.create_server((HOST, self.port)):
            self.assertMistake(
                71, 'is taken by another program, or by a server with another '
                'XDG_STATE_HOME: use another port',
                self.place('server'))
            self.assertMistake(
                124, 'has said nothing in ',
                self.place('terminate', '--timeout', '0.2'))

    def test_the_log(self) -> None:
        log = str(self.dir / 'server.log')
        self.start_server('--log-file', log, '--log-level', 'error')
        self.place('call', '--no-wait', 'error=lost')
        self.place('terminate')
        with open(log) as file:
            text = file.read()
        self.assertIn('ValueError: lost', text)
        self.assertNotIn('INFO', text)

    def test_an_address_that_others_can_reach(self) -> None:
        self.assertMistake(
            78, 'needs a token: give --token-file, or set GOCEPT_RUNNER_TOKEN',
            self.call('server', '0.0.0.0', str(self.port)))
        self.assertMistake(
            78, 'needs TLS: give --tls-cert, --tls-key and --tls-ca, or '
            '--insecure if',
            self.call('server', '0.0.0.0', str(self.port), '--token', 'abc'))

    def test_a_host_that_cannot_be(self) -> None:
        for host in '..', 'a b':
            for options in (), ('--foreground',):
                self.assertMistake(
                    71, f'no server can be started at {host}:{self.port}: ',
                    self.call('server', host, str(self.port), *options))
            self.assertMistake(
                69, 'is not known', self.call('call', host, str(self.port)))

    def test_a_token_in_a_file(self) -> None:
        token = token_create()
        path = self.write('token', f'{token}\n')
        self.start_server('--token-file', path)
        self.assertMistake(77, 'the server knows another token',
                           self.place('call', '--token', 'other'))
        for options in ('--token', token), ('--token-file', path):
            self.assertEqual(0, self.place('call', *options)[0])
        with mock.patch.dict(os.environ, GOCEPT_RUNNER_TOKEN=token):
            self.assertEqual(0, self.place('call')[0])
        done = subprocess.run(
            [*COMMAND, 'call', HOST, str(self.port), '--token-file', '-'],
            env=child_environment(), input=token, text=True, timeout=DEADLINE,
            capture_output=True)
        self.assertEqual((0, ''), (done.returncode, done.stderr))

    def test_files_that_hold_no_token(self) -> None:
        for path, expected in (
                (self.write('open', 'x', 0o644),
                 'other users may read or write '),
                (self.write('shared', 'x', 0o620),
                 'other users may read or write '),
                (self.write('empty', ' \n'), 'there is no token in '),
                ('/nowhere/token', '/nowhere/token cannot be read: No such'),
                (str(self.dir), 'cannot be read: Is a directory')):
            for command in 'server', 'call', 'terminate':
                self.assertMistake(
                    2, expected, self.place(command, '--token-file', path))
        (self.dir / 'binary').write_bytes(b'\xff')
        (self.dir / 'binary').chmod(0o600)
        self.assertMistake(2, 'is no text in UTF-8', self.place(
            'call', '--token-file', str(self.dir / 'binary')))
        self.assertMistake(2, 'the token is empty',
                           self.place('call', '--token', ''))

    def test_an_init_file_that_fails(self) -> None:
        wrong = self.write('wrong.py', '1 / 0')
        self.assertMistake(1, 'ZeroDivisionError: division by zero',
                           self.place('server', '--init-file', wrong))
        self.assertMistake(71, 'its exec_task is missing', self.place(
            'server', '--init-file',
            self.write('half.py', 'def init_task(): return {}')))

    def test_one_that_is_not_ready_in_time(self) -> None:
        path = self.write('slow.py', 'import signal; signal.pause()')
        self.assertMistake(
            124, 'was not ready after 0.5 s',
            self.place('server', '--init-file', path, '--timeout', '0.5'))

    @contextlib.contextmanager
    def foreground(self, *args: str) -> Iterator['subprocess.Popen[str]']:
        """A server that is a child of ours; it has to end in the block."""
        ignore_nothing()
        with subprocess.Popen(
                [*COMMAND, 'server', HOST, str(self.port), '--foreground',
                 *args], env=child_environment(), stderr=subprocess.PIPE,
                text=True) as process:
            self.addCleanup(process.kill)
            assert process.stderr is not None
            for line in process.stderr:
                if f'A server listens at {HOST}:{self.port}' in line:
                    break
            yield process

    def test_in_the_foreground(self) -> None:
        with self.foreground() as process:
            self.assertEqual([process.pid], self.listed())
            process.send_signal(signal.SIGTERM)
            self.assertEqual(0, process.wait(DEADLINE))

    def test_what_is_printed_in_the_foreground(self) -> None:
        log = self.dir / 'log'
        code = (f'import os; from gocept.runner.cli import servers\n'
                f'with servers._printing_to({str(log)!r}):\n'
                f'    print("a"); os.system("echo b; echo c >&2")\n'
                f'print("d", len(os.listdir("/proc/self/fd")))')
        done = subprocess.run(
            [sys.executable, '-c', code], env=child_environment(), text=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE)
        self.assertEqual(('d 4\n', ''), (done.stdout, done.stderr))
        self.assertEqual('a\nb\nc\n', log.read_text())
        self.assertMistake(71, 'the init file ', self.place(
            'server', '--foreground', '--init-file',
            self.write('empty.py', ''), '--log-file', str(log)))

    def test_a_database_that_has_closed_itself(self) -> None:
        conf = self.write(
            'zope.conf', f'<zodb>\n<filestorage>\npath {self.dir}/Data.fs\n'
            '</filestorage>\n</zodb>\n')
        with self.foreground('--config', conf, '--init-file',
                             self.write('job.py', TASKS)) as process:
            code = ('[__import__("zope.component.hooks").component.hooks'
                    '.getSite()._p_jar.db().storage.close(), 1 / 0]')
            self.assertMistake(1, 'ZeroDivisionError',
                               self.place('call', f'code={code}'))
            _, text = process.communicate(timeout=DEADLINE)
        self.assertEqual(69, process.returncode)
        self.assertRegex(
            text, '\ngocept-runner server: error: the database .* has closed '
            'itself after an error, so .*\n$')

    def test_each_line_of_a_zope_conf_once(self) -> None:
        for eventlog in '', ('<eventlog>\n<logfile>\npath STDERR\n'
                             '</logfile>\n</eventlog>\n'):
            conf = self.write(
                'zope.conf', '<zodb>\n<mappingstorage>\n</mappingstorage>\n'
                f'</zodb>\n{eventlog}')
            with self.foreground('--config', conf) as process:
                process.send_signal(signal.SIGINT)
                _, text = process.communicate(timeout=DEADLINE)
            self.assertEqual(0, process.returncode, text)
            self.assertNotIn('listens', text)
            self.assertEqual(1, text.count('has ended'))

    def listed(self) -> list[int]:
        """The pids of those that run."""
        _, output, _ = self.call('servers', '--json')
        return [each['pid'] for each in json.loads(output)]

    def test_tls(self) -> None:
        cert, key = self.dir / 'certificate.pem', self.dir / 'key.pem'
        subprocess.run(
            ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes',
             '-days', '2', '-subj', '/CN=here', '-addext',
             f'subjectAltName=IP:{HOST}', '-keyout', key, '-out', cert],
            check=True, stderr=subprocess.DEVNULL)
        tls = ('--tls-cert', str(cert), '--tls-key', str(key),
               '--tls-ca', str(cert))
        self.start_server(*tls)
        status, output, message = self.place('call', *tls, 'a=1')
        self.assertEqual((0, {'a': 1, 'count': 1}, ''),
                         (status, json.loads(output), message))
        _, output, _ = self.call('servers', *tls)
        self.assertRegex(output.splitlines()[1], r' 2 +0  -$')
        _, output, _ = self.call('servers')
        self.assertIn('(needs --tls-cert, --tls-key and --tls-ca)', output)
        self.place('terminate', *tls)
        self.start_server()
        _, output, _ = self.call('servers', *tls)
        self.assertRegex(output.splitlines()[1], r' 1 +0  -$')
        self.assertMistake(2, 'TLS needs --tls-key and --tls-ca too',
                           self.place('call', '--tls-cert', str(cert)))

    def test_in_the_component_architecture(self) -> None:
        conf = self.write('zope.conf', f'''
            <zodb>
              <filestorage>
                path {self.dir}/Data.fs
              </filestorage>
            </zodb>
            ''')
        for status, expected, options in (
                (67, 'knows the principal nobody', ('--principal', 'nobody')),
                (66, "no object 'shop'", ('--site', 'shop'))):
            self.assertMistake(status, expected, self.place(
                'server', '--config', conf, *options))
        self.assertMistake(2, '--site needs --config',
                           self.place('server', '--site', 'shop'))
        self.start_server('--config', conf, '--principal', 'zope.mgr')
        code = ('__import__("zope.security.management").security.management.'
                'getInteraction().participations[0].principal.id')
        self.assertEqual((0, '"zope.mgr"\n', ''),
                         self.place('call', f'code={code}'))


class CallTests(Case):

    def setUp(self) -> None:
        super().setUp()
        self.start_server()

    def test_values(self) -> None:
        status, output, message = self.place(
            'call', 'a=1', 'b=x=y', 'c=["ä"]', 'd=', 'e="1"', 'f=NaN')
        self.assertEqual((0, ''), (status, message))
        self.assertEqual(
            {'a': 1, 'b': 'x=y', 'c': ['ä'], 'd': '', 'e': '1', 'f': 'NaN',
             'count': 1}, json.loads(output))
        self.assertIn('"ä"', output)

    def test_options_may_stand_anywhere(self) -> None:
        for args in (('--timeout', '60', 'a=1', 'b=2'),
                     ('a=1', '--timeout', '60', 'b=2')):
            self.assertEqual(0, self.place('call', *args)[0])

    def test_what_is_no_json(self) -> None:
        for code, expected in (
                ('None', 'null'), ('b"x"', "b'x'"), ('{1, }', '{1}'),
                ('float("nan")', 'nan'), ('[*(1,)]', '[\n  1\n]'),
                ('chr(155)', '"\\u009b"'), ('chr(0xd800)', '"\\ud800"'),
                ('(b"", chr(155))', "(b'', '\\x9b')")):
            self.assertEqual((0, f'{expected}\n', ''),
                             self.place('call', f'code={code}'), code)

    def test_a_task_that_fails(self) -> None:
        found = self.place('call', 'error=bad\n\x1bluck')
        self.assertMistake(
            1, 'gocept-runner call: error: the task has failed: ValueError: '
            'bad\\n\\x1bluck (--traceback shows where)', found)
        status, output, message = self.place(
            'call', '--traceback', 'error=bad luck')
        self.assertEqual((1, ''), (status, output))
        self.assertIn('job.py", line ', message)
        self.assertTrue(message.endswith(
            '\nValueError: bad luck\ngocept-runner call: error: the task has '
            'failed: ValueError: bad luck\n'), message)

    def test_a_task_that_says_so(self) -> None:
        self.assertMistake(1, "has responded with an error: 'no'",
                           self.place('call', 'wrong=no'))

    def test_a_task_that_does_not_respond(self) -> None:
        self.assertMistake(
            1, 'the task has ended without a response: with --no-wait, none '
            'is awaited', self.place('call', 'silent=1'))
        self.assertEqual((0, 'The server has the request.\n', ''),
                         self.place('call', '--no-wait', 'silent=1'))

    def test_a_task_that_takes_too_long(self) -> None:
        code = '__import__("signal").sigtimedwait([], 60)'
        self.assertTooSlow(
            'it may still run the request', 'call', f'code={code}')

    def test_a_server_without_tasks(self) -> None:
        self.place('terminate')
        _, output, _ = self.place('server')
        self.hold(int(output.rstrip('.\n').rpartition(' ')[2]))
        self.assertMistake(
            1, 'initialize() first, from Python, or start it with --init-file',
            self.place('call'))
        self.assertEqual(0, self.place('terminate')[0])

    def test_a_server_that_is_killed(self) -> None:
        code = '__import__("os").kill(__import__("os").getpid(), 9)'
        found = self.place('call', f'code={code}')
        self.assertMistake(74, 'is not known', found)
        self.assertNotIn('retry=', found[2])

    def test_mistakes(self) -> None:
        for expected, args in (
                ('not a number from 1 to 65535: \'0\'', (HOST, '0')),
                ('not a number from 1 to 65535: \'٣\'', (HOST, '٣')),
                ("not like KEY=VALUE: 'a'", (HOST, '1', 'a')),
                ("not like KEY=VALUE: '=1'", (HOST, '1', '=1')),
                ("'a' is given more than once", (HOST, '1', 'a=1', 'a=2')),
                ("not a number of seconds: 'x'",
                 (HOST, '1', '--timeout', 'x')),
                ("not a number of seconds: '0'",
                 (HOST, '1', '--timeout', '0')),
                ('HOST is empty', ('', '1')),
                ('HOST is empty', (':1',)),
                ("not a number from 1 to 65535: '70000'", ('here:70000',)),
                ('the following arguments are required: PORT', (HOST,))):
            self.assertMistake(2, expected, self.call('call', *args))


class TerminateTests(Case):

    def test_the_response_of_the_exit_task(self) -> None:
        pid = self.start_server()
        status, output, message = self.place('terminate', 'say=[1]')
        self.assertEqual((0, ''), (status, message))
        first, _, response = output.partition('\n')
        self.assertIn('has ended', first)
        self.assertEqual([1], json.loads(response))
        self.wait_until_ended(pid)

    def test_an_exit_task_that_fails(self) -> None:
        pid = self.start_server()
        self.assertMistake(
            1, 'has ended, but its exit task has failed: KeyError: ',
            self.place('terminate', 'error=key'))
        self.wait_until_ended(pid)

    def test_twice(self) -> None:
        fifo, started = str(self.dir / 'fifo'), str(self.dir / 'started')
        os.mkfifo(fifo)
        os.mkfifo(started)
        self.start_server()
        first = subprocess.Popen(
            [*COMMAND, 'terminate', HOST, str(self.port), f'wait={fifo}',
             f'started={started}'], stdout=subprocess.DEVNULL,
            env=child_environment(XDG_STATE_HOME=str(self.dir / 'state')))
        self.addCleanup(first.wait)
        open(started, 'rb').close()  # when the exit task runs
        self.assertTooSlow('has not ended in ', 'terminate')
        with mock.patch.object(
                Client, 'terminate', side_effect=KeyboardInterrupt):
            self.assertMistake(130, 'may end all the same',
                               self.place('terminate'))
        wait = Client.wait_for_end

        def release(client: Client, deadline: Deadline) -> None:
            open(fifo, 'wb').close()
            wait(client, deadline)
        with mock.patch.object(Client, 'wait_for_end', release):
            self.assertIn('has ended', self.place('terminate')[1])
        self.assertEqual(0, first.wait(DEADLINE))

    def test_files_for_tls(self) -> None:
        nowhere = str(self.dir / 'nowhere')
        with socket.create_server((HOST, self.port)):
            self.assertMistake(78, 'nowhere cannot be read', self.place(
                'terminate', '--tls-cert', nowhere, '--tls-key', nowhere,
                '--tls-ca', nowhere))


class ServersTests(Case):

    def test_none(self) -> None:
        nothing = 'No background server of this user runs on this machine.\n'
        self.assertEqual((0, nothing, ''), self.call('servers'))
        self.assertEqual((0, '[]\n', ''), self.call('servers', '--json'))
        with mock.patch.dict(os.environ, XDG_STATE_HOME='/dev/null'):
            self.assertEqual((0, nothing, ''), self.call('servers'))

    def test_a_table(self) -> None:
        pid = self.start_server()
        _, output, _ = self.call('servers')
        title, line = output.splitlines()
        self.assertEqual(['ADDRESS', 'PID', 'AGE', 'STATE', 'REQUESTS',
                          'FAILURES', 'LAST', 'ERROR'], title.split())
        self.assertRegex(
            line, rf'^{HOST}:{self.port} +{pid} +.* s +idle +1 +0  -$')
        self.place('call', '--no-wait', 'error=bad\nluck')
        self.place('call', 'a=1')
        _, output, _ = self.call('servers')
        self.assertRegex(
            output.splitlines()[1],
            r' 3 +1  .* s ago, exec_task: ValueError: bad\\nluck$')
        _, output, _ = self.call('servers', '--json')
        found, = json.loads(output)
        self.assertEqual(
            (HOST, self.port, pid, 3, 1, 'bad\nluck'),
            (*(found[key] for key in (
                'host', 'port', 'pid', 'requests', 'failures')),
             found['last_error']['message']))

    def test_states(self) -> None:
        for status, expected in (
                ({'initialized': False, 'waiting': 0}, 'no tasks'),
                ({'initialized': True, 'waiting': 0, 'running': ''}, 'idle'),
                ({'initialized': True, 'waiting': 3, 'running': 'exec_task'},
                 'exec_task, 3 waiting'),
                ({'silent': 'hangs'}, '-')):
            self.assertEqual(expected, servers._state(status))

    def test_the_width_of_a_terminal(self) -> None:
        self.start_server()
        self.place('call', '--no-wait', f'error={"x" * 200}')
        self.place('call', 'a=1')
        for options, fits in ((), True), (('--wide',), False):
            ours, theirs = pty.openpty()
            with open(ours, 'rb', 0) as screen:
                done = subprocess.run(
                    [*COMMAND, 'servers', *options],
                    env=child_environment(COLUMNS='80'), stdout=theirs,
                    timeout=DEADLINE)
                os.close(theirs)
                lines = screen.read(65536).decode().splitlines()
            self.assertEqual(0, done.returncode)
            self.assertEqual(fits, all(len(line) <= 80 for line in lines))

    def test_one_that_hangs(self) -> None:
        pid = self.start_server()
        os.kill(pid, signal.SIGSTOP)
        with mock.patch.object(servers, '_PATIENCE', 0.2):
            status, output, message = self.call('servers')
        self.assertEqual((0, ''), (status, message))
        self.assertRegex(
            output, rf'{HOST}:{self.port} +{pid} +.* s +- +- +-  \(no answer '
            r'in 0\.2 s: it hangs\)')

    def test_all_are_asked_at_once(self) -> None:
        meeting = threading.Barrier(3)

        def status(entry: roster.Entry, tls: object) -> dict[str, object]:
            meeting.wait(DEADLINE)
            return {'requests': entry.port}
        with contextlib.ExitStack() as stack:
            for port in 1, 2, 3:
                stack.enter_context(roster.Place(roster.new_entry(HOST, port)))
            with mock.patch.object(servers, '_status', status):
                _, output, _ = self.call('servers', '--json')
        self.assertEqual([1, 2, 3], [
            each['requests'] for each in json.loads(output)])

    def test_one_that_was_killed(self) -> None:
        pid = self.start_server()
        os.kill(pid, signal.SIGKILL)
        self.wait_until_ended(pid)
        self.assertIn('No background server', self.call('servers')[1])

    def test_a_state_directory_that_others_may_write_to(self) -> None:
        self.start_server()
        self.place('terminate')
        directory = self.dir / 'state/gocept.runner/servers'
        directory.chmod(0o777)
        self.assertMistake(1, f'{directory} is not safe, as others may write ',
                           self.place('server'))


class VersionTests(Case):

    def test_it(self) -> None:
        status, output, message = self.call('version')
        self.assertEqual((0, ''), (status, message))
        self.assertEqual((0, output, ''), self.call('--version'))
        program, python, protocol = output.splitlines()
        self.assertRegex(program, r'^gocept\.runner +\S')
        self.assertEqual(
            ['Python', '.'.join(map(str, sys.version_info[:3])),
             f'({sys.executable})'], python.split(maxsplit=2))
        self.assertEqual(['protocol', 'GRunBg1'], protocol.split())


class HelpTests(Case):

    def test_each_status_has_a_meaning(self) -> None:
        for make in (server_parser.server_parser, server_parser.call_parser,
                     server_parser.terminate_parser,
                     server_parser.servers_parser,
                     server_parser.version_parser):
            with mock.patch.dict(os.environ, COLUMNS='80'):
                text = make().format_help()
            self.assertTrue(all(len(line) <= 80 for line in text.splitlines()))
            self.assertIn('\n   0  success\n', text)
