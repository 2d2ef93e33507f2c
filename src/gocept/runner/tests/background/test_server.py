"""Tests of servers, from the start to the end."""

import concurrent.futures
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from unittest import mock

from gocept.runner.background import (
    BackgroundError,
    ConnectionLost,
    NoResponse,
    NotDecoded,
    NotInitialized,
    RemoteTaskError,
    Server,
    ServerInsecure,
    ServerNotRunning,
    ServerNotStarted,
    ServerOccupied,
    frames,
    roster,
)
from gocept.runner.background.tokens import VARIABLE
from gocept.runner.background.values import encode
from gocept.runner.errors import DeadlineExceeded
from gocept.runner.process import Process, terminate_all
from gocept.runner.tests.background import calls
from gocept.runner.tests.background.servers import TestCase
from gocept.runner.tests.kernels import HOST
from gocept.runner.tests.support import (
    DEADLINE,
    child_environment,
    end_background,
    rest_of,
)

TASKS = calls.init, calls.execute, calls.end


class ServerCase(TestCase):

    def begin(self, **options):
        """A client of a server that has tasks."""
        self.pid = self.start(**options)
        client = self.client(token=options.get('token'))
        client.initialize(*TASKS)
        return client

    def ask(self, client, *args):
        return client.execute(args, await_response=True)

    def assertFree(self):
        socket.create_server((HOST, self.port)).close()


class EndTest(ServerCase):

    def test_terminate(self):
        client = self.begin()
        entry, = roster.servers()
        self.assertEqual((HOST, self.port, self.pid), entry[:3])
        client.execute(['flags'])
        path = self.dir / 'end'
        self.assertEqual({'message': "Received 'EXIT'"},
                         client.terminate([str(path)]))
        self.assertFree()
        self.assertEqual('1', path.read_text())
        self.assertEqual([], roster.servers())
        self.wait_until_ended(self.pid)
        for event in 'is initialized', 'is told to end':
            self.assertRegex(self.log(), rf'{event} by 127.0.0.1:\d+\n')

    def test_the_response_of_the_exit_task(self):
        client = self.begin()
        self.assertEqual(0, client.terminate(await_response=True))
        self.assertFree()

    def test_a_server_follows_at_once(self):
        for _ in range(3):
            client = self.begin()
            self.assertEqual(0, client.terminate(await_response=True))

    def test_signals(self):
        os.environ['END_FILE'] = str(self.dir / 'end')
        for signum in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
            with self.subTest(signum=signum):
                pid = self.start()
                self.client().initialize(
                    calls.init, calls.execute, calls.end_in_file)
                os.kill(pid, signum)
                self.wait_until_ended(pid)
                self.assertEqual("{'calls': 0} {}",
                                 (self.dir / 'end').read_text())
                (self.dir / 'end').unlink()
                self.assertFree()
                self.assertEqual([], roster.servers())

    def test_a_signal_before_there_are_tasks(self):
        pid = self.start()
        os.kill(pid, signal.SIGTERM)
        self.wait_until_ended(pid)
        self.assertIn('is told to end', self.log())

    def test_a_task_is_completed_before_a_signal_ends_the_server(self):
        client = self.begin()
        began, fifo = self.dir / 'began', self.dir / 'fifo'
        os.mkfifo(fifo)
        pending = client.submit(
            ['touch_and_read', str(began), str(fifo)])
        writer = os.open(fifo, os.O_WRONLY)  # waits for the task
        os.kill(self.pid, signal.SIGTERM)
        os.close(writer)
        self.assertEqual('done', pending.result(DEADLINE))
        self.wait_until_ended(self.pid)

    def test_requests_that_wait_when_a_signal_comes(self):
        client = self.begin()
        fifo = self.dir / 'fifo'
        os.mkfifo(fifo)
        client.submit(['touch_and_read', str(fifo) + '.began', str(fifo)])
        writer = os.open(fifo, os.O_WRONLY)  # waits for the task
        pending = client.submit(['flags'])
        client.execute(['flags'])
        os.kill(self.pid, signal.SIGTERM)
        os.close(writer)
        with self.assertRaises(BackgroundError):
            pending.result(DEADLINE)
        self.wait_until_ended(self.pid)
        self.assertIn('2 requests are not run', self.log())

    def test_a_request_during_the_exit_task(self):
        self.start()
        client, other = self.client(), self.client()
        client.initialize(calls.init, calls.execute, calls.wait_for_fifo)
        fifo = self.dir / 'fifo'
        os.mkfifo(fifo)
        other.status()
        thread = threading.Thread(
            target=client.terminate, args=(str(fifo),))
        thread.start()
        writer = os.open(fifo, os.O_WRONLY)  # waits for the task
        try:
            for awaits in True, False:
                with self.assertRaisesRegex(BackgroundError, 'server ends'):
                    other.execute(['flags'], awaits)
        finally:
            os.close(writer)
            thread.join(DEADLINE)
        self.assertFree()

    def test_a_request_behind_the_end_is_not_confirmed(self):
        # It will not be run, so its client must not be told "received".
        client = self.begin()
        fifo = self.dir / 'fifo'
        os.mkfifo(fifo)
        client.submit(['touch_and_read', str(fifo) + '.began', str(fifo)])
        writer = os.open(fifo, os.O_WRONLY)  # waits for the task
        session = client._session
        session.send(session.pending(frames.EXIT, 0, encode(())[0]), ...)
        pending = client.submit(['flags'], False)
        os.close(writer)
        with self.assertRaisesRegex(ServerNotRunning, 'has ended before'):
            pending.result(DEADLINE)
        self.wait_until_ended(self.pid)
        self.assertIn('1 requests are not run', self.log())

    def test_an_end_that_is_refused(self):
        client = self.begin()
        session = client._session
        end = session.pending(frames.EXIT, 0, [b'no pickle'])
        session.send(end, ...)
        pending = client.submit(['flags'], False)
        with self.assertRaises(NotDecoded):
            end.result(DEADLINE)
        for each in pending, client.submit(['flags'], False):
            self.assertEqual({'message': "Received 'EXEC'"},
                             each.result(DEADLINE))

    def test_requests_during_the_exit_task_of_a_signal(self):
        fifo, busy = str(self.dir / 'fifo'), str(self.dir / 'busy')
        os.mkfifo(fifo)
        os.mkfifo(busy)

        def end(socket, state, args):
            with open(fifo, 'rb') as file:
                file.read()
        pid = self.start()
        client, other = self.client(), self.client()
        client.initialize(calls.init, calls.execute, end)
        other.status()
        client.submit(['touch_and_read', busy + '.began', busy])
        writer = os.open(busy, os.O_WRONLY)  # waits for the task
        pending = other.submit(['flags'])
        os.kill(pid, signal.SIGTERM)
        os.close(writer)
        writer = os.open(fifo, os.O_WRONLY)  # waits for the exit task
        try:
            with self.assertRaises(ServerNotRunning):
                pending.result(DEADLINE)
            with self.assertRaisesRegex(ServerNotRunning, 'server ends'):
                other.execute(['flags'], True, timeout=DEADLINE)
        finally:
            os.close(writer)
        self.wait_until_ended(pid)

    def test_what_a_task_has_done_to_the_handlers(self):
        client = self.begin()
        self.ask(client, 'change_handlers')
        self.ask(client, 'flags')  # the handlers are there again
        os.kill(self.pid, signal.SIGTERM)
        self.wait_until_ended(self.pid)
        self.assertIn('has ended', self.log())

    def test_a_task_that_runs_an_event_loop(self):
        client = self.begin()
        for _ in range(2):
            self.assertEqual('looped', self.ask(client, 'run_loop'))
        self.ask(client, 'flags')
        os.kill(self.pid, signal.SIGTERM)
        self.wait_until_ended(self.pid)
        self.assertIn('has ended', self.log())

    def test_a_task_that_ends_the_process(self):
        client = self.begin()
        with self.assertRaises(ConnectionLost):
            self.ask(client, 'leave', 3)
        self.wait_until_ended(self.pid)
        self.assertEqual([], roster.servers())
        with self.assertRaises(ServerNotRunning):
            self.ask(self.client(), 'flags')
        self.assertEqual(0, self.begin().terminate(await_response=True))

    def test_an_exit_is_an_error_of_the_task(self):
        client = self.begin()
        with self.assertRaises(RemoteTaskError) as raised:
            self.ask(client, 'exit_by_exception')
        self.assertEqual('SystemExit', raised.exception.type)
        self.assertEqual(2, client.terminate(await_response=True) + 1)

    def test_a_second_end(self):
        client = self.begin()
        client.terminate()
        with self.assertRaises(ServerNotRunning):
            self.client().terminate()


class TaskTest(ServerCase):

    def test_what_a_task_prints_and_logs(self):
        client = self.begin(log_level='WARNING')
        self.ask(client, 'say', 'hello')
        client.terminate()
        self.wait_until_ended(self.pid)
        lines = self.log().splitlines()
        self.assertEqual(2, lines.count('hello'))
        self.assertIn('logged hello', self.log())
        self.assertNotIn('quiet', self.log())

    def test_each_line_once(self):
        # Standard error is the log file, to which an eventlog may write, too.
        conf = self.dir / 'zope.conf'
        for path in 'STDERR', str(self.dir / 'other'):
            self.log_file = self.dir / f'log of {len(path)}'
            conf.write_text(f'''
                <zodb>
                  <mappingstorage />
                </zodb>
                <eventlog>
                  <logfile>
                    path {path}
                  </logfile>
                </eventlog>
                ''')
            client = self.begin(zope_conf=str(conf))
            self.ask(client, 'log', 'so it is \udc80')
            client.terminate()
            self.wait_until_ended(self.pid)
            self.assertEqual(1, self.log().count('so it is \\udc80'))
            self.assertEqual(1, self.log().count('has ended'))

    def test_without_a_log_file(self):
        client = self.begin(log_file=None)
        self.ask(client, 'say', 'hello')
        client.execute(['exit_by_exception'])
        self.ask(client, 'close_standard')
        client.execute(['exit_by_exception'])
        self.ask(client, 'flags')
        self.assertEqual(2, client.status()['failures'])

    def test_a_task_that_calls_its_own_server(self):
        client = self.begin()
        for wait in 'execute', 'submit', 'terminate':
            with self.subTest(wait), self.assertRaises(
                    RemoteTaskError) as raised:
                self.ask(client, 'call_itself', self.port, wait)
            self.assertIn('BackgroundError', raised.exception.type)
        self.assertEqual({'message': "Received 'EXEC'"},
                         self.ask(client, 'call_itself', self.port, 'send'))
        self.assertEqual('exec_task',
                         self.ask(client, 'call_itself', self.port, 'status'))
        # With what was submitted, and what was sent.
        self.assertEqual(7, client.terminate(await_response=True))

    def test_an_alarm_that_a_task_has_left_behind(self):
        client = self.begin()
        fifo = self.dir / 'fifo'
        os.mkfifo(fifo)
        self.ask(client, 'leave_alarm', str(fifo))
        self.assertEqual('', fifo.read_text())  # it comes
        self.assertEqual(2, client.terminate(await_response=True) + 1)
        self.assertIn('the job takes too long', self.log())

    def test_the_token_is_in_no_environment(self):
        os.environ[VARIABLE] = 'a secret'
        client = self.begin()
        del os.environ[VARIABLE]
        with self.assertRaises(PermissionError):
            self.ask(self.client(), 'flags')
        self.assertIsNone(self.ask(client, 'variable', VARIABLE))
        with open(f'/proc/{self.pid}/environ', 'rb') as environ:
            self.assertNotIn(b'a secret', environ.read())
        self.assertEqual([], [*self.dir.glob('**/*.token')])

    def test_a_child_that_a_task_forks_holds_nothing(self):
        client = self.begin()
        child = self.ask(client, 'fork_and_stay')
        self.addCleanup(os.kill, child, signal.SIGKILL)
        client.terminate()
        self.assertFree()
        self.assertEqual([], roster.servers())

    def test_a_child_that_a_task_forks_is_no_server(self):
        client = self.begin()
        self.assertEqual(1, self.ask(client, 'fork_and_return'))
        self.assertEqual(1, client.terminate(await_response=True))
        self.assertIn('in the child', self.log())

    def test_a_task_that_closes_the_descriptors_of_the_server(self):
        client = self.begin()
        with contextlib.suppress(ConnectionLost):
            self.ask(client, 'close_descriptors')
        self.wait_until_ended(self.pid)
        self.assertFree()

    def test_a_task_closes_standard_streams(self):
        client = self.begin()
        self.ask(client, 'close_standard')
        others = [self.client() for _ in range(3)]
        for other in others:
            self.ask(other, 'flags')
        names = self.ask(client, 'descriptors')
        self.assertEqual([os.devnull] * 3, [names[fd] for fd in range(3)])
        for other in others:
            self.ask(other, 'say', 'this is no answer')
        self.assertEqual(8, client.terminate(await_response=True))

    def test_a_session_of_its_own(self):
        client = self.begin()
        session, group, parent, pid = self.ask(client, 'session')
        self.assertNotEqual(os.getsid(0), session)
        self.assertNotEqual(os.getpgrp(), group)
        self.assertNotEqual(os.getpid(), parent)
        self.assertEqual(self.pid, pid)

    def test_nothing_is_inherited(self):
        with open(self.dir / 'lock', 'w') as file:
            os.set_inheritable(file.fileno(), True)
            client = self.begin()
        found = self.ask(client, 'descriptors')
        self.assertNotIn(str(self.dir / 'lock'), found.values())
        self.assertEqual('/dev/null', found[0])
        self.assertEqual([str(self.log_file)] * 2, [found[1], found[2]])


class BeforeInitTest(ServerCase):

    def test_a_request_is_an_error(self):
        pid = self.start()
        client = self.client()
        for awaits in True, False:
            with self.assertRaises(NotInitialized):
                client.execute(['flags'], await_response=awaits)
        with self.assertRaises(RemoteTaskError):
            client.initialize(calls.fail, calls.execute, calls.end)
        with self.assertRaises(NotInitialized):
            client.execute(['flags'])
        client.initialize(*TASKS)
        self.assertEqual({'message': "Received 'EXEC'"},
                         client.execute(['flags']))
        self.assertEqual(1, client.terminate(await_response=True))
        self.wait_until_ended(pid)

    def test_without_an_exit_task(self):
        self.start()
        client = self.client()
        client.initialize(calls.init, calls.execute)
        with self.assertRaises(NoResponse):
            client.terminate(await_response=True)
        self.assertFree()


class StartTest(ServerCase):

    def test_one_of_several_at_once_wins(self):
        def start(number):
            try:
                return self.server().run_background(DEADLINE)
            except ServerOccupied as error:
                return error
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = [*pool.map(start, range(4))]
        winner, = (each for each in found if isinstance(each, int))
        self.hold(winner)
        for error in found:
            if error != winner:
                self.assertEqual(winner, error.pid)
                self.assertIn(f'process {winner}', str(error))

    def test_another_program_listens(self):
        with socket.create_server((HOST, self.port)):
            with self.assertRaisesRegex(
                    ServerOccupied, 'another program') as raised:
                self.start()
        self.assertEqual(0, raised.exception.pid)

    def test_addresses_that_others_can_reach(self):
        for options, missing in (
                ({}, 'needs a token'), ({'token': 'a'}, 'needs TLS')):
            server = Server('0.0.0.0', self.port, **options)
            with self.assertRaisesRegex(ServerInsecure, missing):
                server.run_background(DEADLINE)
            with self.assertRaisesRegex(ServerInsecure, missing):
                server.run()

    def test_a_token_of_the_environment_stays_with_the_server(self):
        server = self.server()
        with mock.patch.dict(os.environ, {VARIABLE: 'given'}):
            for _ in range(2):
                with contextlib.ExitStack() as stack:
                    self.assertEqual('given', server._take_place(stack)[1])
                self.assertNotIn(VARIABLE, os.environ)

    def test_localhost_is_the_address_that_it_is_listed_at(self):
        # The system may prefer ::1, and clients of 127.0.0.1 find nobody.
        found = socket.getaddrinfo

        def prefer_ipv6(host, *args, **options):
            return found('::1' if host == 'localhost' else host,
                         *args, **options)
        with mock.patch('socket.getaddrinfo', prefer_ipv6):
            sock = Server('localhost', self.port)._bind()
        with sock:
            self.assertEqual((HOST, self.port), sock.getsockname())

    def test_an_address_of_another_machine(self):
        with self.assertRaisesRegex(ServerNotStarted, '192.0.2.1'):
            Server('192.0.2.1', self.port).run_background(DEADLINE)

    def test_a_log_that_cannot_be_written(self):
        for path in '/dev/null', str(self.dir), str(self.dir / 'no' / 'log'):
            with self.assertRaisesRegex(ServerNotStarted, 'the log'):
                self.start(log_file=path)

    def test_without_a_state_directory(self):
        (self.dir / 'file').touch()
        os.environ['XDG_STATE_HOME'] = str(self.dir / 'file')
        with self.assertRaisesRegex(ServerNotStarted, 'Not a directory'):
            self.start()
        client = self.begin(token='a secret')
        self.assertEqual([], roster.servers())
        self.assertEqual(0, client.terminate(await_response=True))
        self.assertIn('is in no list of servers', self.log())

    def test_mistakes(self):
        for options in ({'log_level': 'LOUD'}, {'principal': 'somebody'}):
            with self.assertRaises(ValueError):
                self.server(**options)
        for name, value in (('port', 0), ('max_message', 0),
                            ('queue_size', 0), ('queue_bytes', -1)):
            with self.assertRaisesRegex(ValueError, name):
                Server(**{name: value})
        for name, value in ('port', '80'), ('host', 5), ('max_message', '5'):
            with self.assertRaisesRegex(TypeError, name):
                Server(**{name: value})

    def test_from_a_directory_that_is_gone(self):
        directory = self.dir / 'gone'
        directory.mkdir()
        with contextlib.chdir(directory):
            directory.rmdir()
            client = self.begin()
        self.assertIsNotNone(self.ask(client, 'flags'))

    def test_its_log_is_a_standard_stream_as_others(self):
        client = self.begin()
        self.assertTrue(self.ask(client, 'is_blocking', 2))

    def test_flags_of_the_interpreter(self):
        code = (
            'import sys\n'
            'from gocept.runner.background import Server\n'
            f'print(Server({HOST!r}, {self.port}).run_background())')
        pid = int(subprocess.run(
            [sys.executable, '-OO', '-B', '-c', code], check=True,
            env=child_environment(), stdout=subprocess.PIPE).stdout)
        self.hold(pid)
        client = self.client()
        client.initialize(*TASKS)
        self.assertEqual((2, True), self.ask(client, 'flags'))


class OutliveTest(ServerCase):

    def test_the_starter_and_its_terminal(self):
        script = self.dir / 'start.py'
        script.write_text(textwrap.dedent(f'''
            import os
            from gocept.runner.background import Server
            assert os.isatty(0)
            pid = Server({HOST!r}, {self.port}).run_background()
            with open({str(self.dir / 'pid')!r}, 'w') as file:
                file.write(str(pid))
            input()
        '''))
        import pty
        pid, terminal = pty.fork()
        if not pid:
            os.execve(sys.executable, [sys.executable, str(script)],
                      child_environment())
        os.write(terminal, b'\n')
        with contextlib.suppress(OSError):
            while os.read(terminal, 4096):
                pass
        os.close(terminal)  # the terminal hangs up
        os.waitpid(pid, 0)
        self.hold(int((self.dir / 'pid').read_text()))
        client = self.client()
        client.initialize(*TASKS)
        self.assertEqual(0, client.terminate(await_response=True))


    def test_a_process_above_and_its_descendants(self):
        self.addCleanup(end_background)
        process = Process([sys.executable, '-c', textwrap.dedent(f"""
            from gocept.runner.background import Server
            from gocept.runner.process import Process
            child = Process(['sleep', '1000'])
            print(child.pid, Server({HOST!r}, {self.port}).run_background(),
                  flush=True)
            input()
        """)], stdin='pipe', stdout='pipe', adopt=True,
            env=child_environment())
        with process:
            child, pid = map(int, process.channel.read_until(
                b'\n', DEADLINE)[0].split())
            self.hold(pid)
            terminate_all([process])
        self.wait_until_ended(child)
        client = self.client()
        client.initialize(*TASKS)
        self.assertEqual(0, client.terminate(await_response=True))

    def test_where_children_are_not_reaped(self):
        script = textwrap.dedent(f"""
            import signal
            from gocept.runner.background import Server
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            for port in {self.port}, {self.port}:
                try:
                    print(Server({HOST!r}, port).run_background())
                except OSError:
                    raise
                except Exception as error:
                    print(error)
        """)
        lines = subprocess.run(
            [sys.executable, '-c', script], env=child_environment(),
            stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()
        self.hold(int(lines[0]))
        self.assertIn(f'process {lines[0]}', lines[1])


class InitFileTest(ServerCase):

    def write(self, text):
        path = self.dir / 'tasks_of_file.py'
        path.write_text(textwrap.dedent(text))
        return str(path)

    def test_it_defines_the_tasks(self):
        (self.dir / 'helper_of_file.py').write_text('VALUE = 5')
        self.start(init_file=self.write('''
            from gocept.runner.background import respond

            def init_task():
                import helper_of_file
                return {'value': helper_of_file.VALUE}

            def exec_task(socket, state, args):
                respond(socket, [state['value'], args])
                return state

            def exit_task(socket, state, args):
                respond(socket, 'bye')
        '''))
        client = self.client()
        self.assertEqual([5, 6], client.execute(6, await_response=True))
        self.assertEqual({'message': 'Already initialized.'},
                         client.initialize(*TASKS))
        self.assertEqual('bye', client.terminate(await_response=True))

    def test_without_an_exit_task(self):
        for end in '', 'exit_task = None':
            pid = self.start(init_file=self.write(
                f'def init_task(): return {{}}\n'
                f'def exec_task(socket, state, args): return state\n{end}'))
            self.client().terminate()
            self.wait_until_ended(pid)

    def test_a_child_that_it_forks_is_no_server(self):
        self.start(init_file=self.write('''
            import os
            from gocept.runner.background import respond

            pid = os.fork()

            def init_task():
                return {'pid': pid}

            def exec_task(socket, state, args):
                respond(socket, os.waitpid(state['pid'], 0)[1])
                return state

            exit_task = exec_task
        '''))
        self.assertEqual(0, self.client().execute({}, await_response=True))

    def test_mistakes(self):
        for text, message in (
                ('', 'its init_task is missing'),
                ('def init_task(): return {}\nexec_task = init_task\n'
                 'exit_task = 5', 'its exit_task is no function, but 5'),
                ('def init_task(): pass\nexec_task = exit_task = init_task',
                 'has to return a dict'),
                ('def init_task(): return {"a": 1 / 0}\n'
                 'exec_task = exit_task = init_task', 'ZeroDivisionError'),
                ('import no_such_module',
                 r'no_such_module.* \(/.*tasks_of_file.py, line 1\)$'),
                ('\ndef init_task(): raise ValueError("no model")\n'
                 'exec_task = init_task',
                 r'no model \(/.*tasks_of_file.py, line 2\)$'),
                ('raise SystemExit(3)', r'of_file.py raises SystemExit\(3\)'),
                ('(', 'SyntaxError')):
            with self.subTest(message=message):
                with self.assertRaisesRegex(ServerNotStarted, message):
                    self.start(init_file=self.write(text))
                self.assertEqual([], roster.servers())
        with self.assertRaisesRegex(ServerNotStarted, 'no_such_file'):
            self.start(init_file=str(self.dir / 'no_such_file.py'))

    def test_its_children_have_nothing_of_the_starter(self):
        # Its token was on standard input, and it reads standard output.
        self.start(token='secret', init_file=self.write('''
            import os, subprocess
            from gocept.runner.background import respond

            def init_task():
                forked = os.fork()
                if not forked:
                    os.execvp('sleep', ['sleep', '1000'])
                children = [
                    forked, subprocess.Popen(['sleep', '1000']).pid]
                print('printed early', flush=True)
                return {'children': children, 'had': [
                    os.readlink(f'/proc/{pid}/fd/{fd}')
                    for pid in children for fd in (0, 1, 2)]}

            def exec_task(socket, state, args):
                respond(socket, state)
                return state

            exit_task = exec_task
        '''))
        state = self.client(token='secret').execute(1, await_response=True)
        for pid in state['children']:
            self.hold(pid)
        self.assertEqual(2 * ['/dev/null', *2 * [str(self.log_file)]],
                         state['had'])
        self.assertIn('printed early', self.log())

    def test_one_that_does_not_come_to_an_end(self):
        path = self.write('''
            import os, pathlib, signal
            pathlib.Path(__file__ + '.pid').write_text(str(os.getpid()))
            signal.pause()
        ''')
        with self.assertRaises(DeadlineExceeded):
            self.server(init_file=path).run_background(8)
        self.wait_until_ended(int(pathlib.Path(path + '.pid').read_text()))
        self.assertFree()


class ForegroundTest(ServerCase):

    def test_run(self):
        script = self.dir / 'run.py'
        script.write_text(textwrap.dedent(f'''
            import logging, os, signal
            from gocept.runner.background import Server
            before = signal.getsignal(signal.SIGTERM)
            Server({HOST!r}, {self.port}).run()
            assert signal.getsignal(signal.SIGTERM) is before
            assert signal.set_wakeup_fd(-1) == -1
            assert not logging.getLogger().handlers
            fds = {{os.readlink(f'/proc/self/fd/{{fd}}').split(':')[0]
                    for fd in os.listdir('/proc/self/fd') if int(fd) > 2
                    and os.path.exists(f'/proc/self/fd/{{fd}}')}}
            print(sorted(fds))
        '''))
        process = subprocess.Popen(
            [sys.executable, str(script)], env=child_environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        line = process.stderr.readline()
        self.assertIn('A server listens at', line)
        client = self.client()
        client.initialize(*TASKS)
        self.assertEqual(process.pid, self.ask(client, 'session')[3])
        process.send_signal(signal.SIGTERM)
        output, errors = rest_of(process)
        self.assertEqual((0, '[]\n'), (process.returncode, output), errors)
        self.assertIn('has ended', errors)

    def test_stop(self):
        server = self.server()
        server.stop()  # does nothing
        ready = threading.Event()
        thread = threading.Thread(target=server.serve, args=(ready.set,))
        thread.start()
        try:
            self.assertTrue(ready.wait(DEADLINE))
            with self.assertRaises(RuntimeError):
                server.serve(lambda: None)
        finally:
            server.stop()
            thread.join(DEADLINE)
        self.assertFree()
