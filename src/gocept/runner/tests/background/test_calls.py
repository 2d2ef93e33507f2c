"""Clients of real servers."""

import concurrent.futures
import contextlib
import importlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import unittest.mock
from unittest import mock

from gocept.runner.background import (
    BackgroundTimeout,
    Client,
    Server,
    execute,
    initialize,
    link,
    respond,
    terminate,
)
from gocept.runner.background.calls import _order
from gocept.runner.background.frames import PONG
from gocept.runner.errors import (
    ConnectionLost,
    DeadlineExceeded,
    NoResponse,
    NotInitialized,
    ProtocolError,
    RemoteTaskError,
    ServerNotRunning,
    ServerOccupied,
)
from gocept.runner.tests.background.scripted import ScriptedServer
from gocept.runner.tests.kernels import free_port
from gocept.runner.tests.support import DEADLINE, TestCase, child_environment
from gocept.runner.waits.deadline import READABLE, Deadline, wait_for


def init():
    return {'seen': []}


def execute_all(client_socket, state, args):
    """Do what is asked for, and respond with what was asked so far."""
    state['seen'].append(args.get('name'))
    if 'bell' in args:
        pathlib.Path(args['bell']).write_text('x')
    if 'fifo' in args:
        with open(args['fifo'], 'rb') as file:
            file.read()
    if args.get('fails'):
        raise ValueError('as it was told')
    if not args.get('silent'):
        respond(client_socket, args.get('value', state['seen']))
    return state


class ServerTestCase(TestCase):

    def setUp(self):
        super().setUp()
        self.enterContext(unittest.mock.patch.dict(
            os.environ, {'XDG_STATE_HOME': str(self.dir / 'state')}))
        os.environ.pop('GOCEPT_RUNNER_TOKEN', None)
        self.port = free_port()
        self.pidfds = {}
        self.addCleanup(self.end_servers)

    def end_servers(self):
        for pidfd in self.pidfds.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)

    def start(self, *tasks):
        """Initialize a server; returns what this says."""
        said = initialize(*(tasks or (init, execute_all)), port=self.port)
        self.remember()
        return said

    def remember(self, **options):
        """Have the server ended with the test; its pid."""
        with Client(port=self.port, timeout=DEADLINE, **options) as client:
            pid = client.status()['pid']
        if pid not in self.pidfds:
            self.pidfds[pid] = os.pidfd_open(pid)
        return pid

    def kill(self, pid):
        signal.pidfd_send_signal(self.pidfds[pid], signal.SIGKILL)
        self.assertTrue(
            wait_for(self.pidfds[pid], READABLE, Deadline(DEADLINE)))

    def client(self, **options):
        client = Client(port=self.port, **{'timeout': DEADLINE, **options})
        self.addCleanup(client.close)
        return client

    def fifo(self, name='fifo'):
        path = str(self.dir / name)
        os.mkfifo(path)
        return path

    def check_long_task(self, **options):
        """The server answers during a task more often than it needs to."""
        pongs = 0

        def keep(it, messages):
            nonlocal pongs
            pongs += sum(each.kind == PONG for each in messages)
            keep_really(it, messages)
        keep_really = link.Link._keep
        needed, fifo = link.SILENCES, self.fifo()
        # On a busy machine an answer may take longer than three heartbeats.
        with (mock.patch.object(link, 'SILENCES', DEADLINE / 0.1),
              mock.patch.object(link.Link, '_keep', keep),
              self.client(heartbeat=0.1, **options) as client):
            pending = client.submit({'fifo': fifo})
            while pongs <= needed:
                with self.assertRaises(DeadlineExceeded):
                    pending.result(timeout=0.5)
            open(fifo, 'wb').close()
            self.assertEqual([None], pending.result())

    def bell(self):
        """A path; another process writes there to end `wait_for_bell`."""
        path = self.fifo('bell')
        self.bell_fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.addCleanup(os.close, self.bell_fd)
        return path

    def wait_for_bell(self):
        self.assertTrue(
            wait_for(self.bell_fd, READABLE, Deadline(DEADLINE)))


class ExampleTests(ServerTestCase):

    SEED = '''
        # Import example tasks, same as defined in the section above
        from gocept.runner.background.example.tasks import (
            init_task, exec_task, exit_task)

        from gocept.runner.background import initialize, execute, terminate

        # Start background process and initialize
        initialize(init_task, exec_task, exit_task)

        # Execute command "increase" on server
        execute({"command": "increase", "value_change": 10})

        # Execute command "decrease" on server
        execute({"command": "decrease", "value_change": 100})

        # Terminate and wait for second response
        args = terminate(await_response=True)
        '''

    PORT = """
        from gocept.runner.background import calls
        calls.PORT = {port}
        for call in calls.execute, calls.terminate:
            call.__defaults__ = tuple(
                {port} if each == 54321 else each
                for each in call.__defaults__)
        """

    def test_seed(self):
        """Word for word; but the port is one that nobody uses."""
        script = textwrap.dedent(self.PORT.format(port=self.port))
        script += textwrap.dedent(self.SEED) + 'print(args)\n'
        done = subprocess.run(
            [sys.executable, '-c', script], env=child_environment(),
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=DEADLINE)
        self.assertEqual('', done.stderr)
        self.assertEqual(
            "{'request_count': 3, 'value': 910, 'status': 'Exited.'}\n",
            done.stdout)


class InitializeTests(ServerTestCase):

    def test_answers(self):
        self.assertEqual(
            {'message': 'Initialization successful.'}, self.start())
        self.assertEqual({'message': 'Already initialized.'}, self.start())
        self.assertEqual({'message': "Received 'EXEC'"},
                         execute({}, port=self.port))
        self.assertEqual([None, 'b'], execute(
            {'name': 'b'}, await_response=True, port=self.port))
        self.assertEqual({'message': "Received 'EXIT'"},
                         terminate(port=self.port))
        socket.create_server(('127.0.0.1', self.port)).close()  # it is free

    def test_other_tasks_than_those_of_the_server(self):
        path = self.dir / 'tasks_that_change.py'
        path.write_text('def init(): return {}\n'
                        'def run(socket, state, args): return state\n')
        self.enterContext(unittest.mock.patch.object(
            sys, 'path', [*sys.path, str(self.dir)]))
        self.addCleanup(sys.modules.pop, path.stem, None)
        module = importlib.import_module(path.stem)
        self.start(module.init, module.run)
        for tasks, reason in (
                ((init, module.run), rf'its init_task is {path.stem}:init, '
                 rf'and not {__name__}:init'),
                ((module.init, module.run), f'{path} was changed later')):
            with (self.subTest(reason),
                  self.assertLogs('gocept.runner.background') as log):
                if tasks[0] is module.init:
                    os.utime(path, times=(2 ** 32, 2 ** 32))
                self.assertEqual({'message': 'Already initialized.'},
                                 self.start(*tasks))
            self.assertRegex(log.output[0], reason)
        self.assertNotIn('and not', log.output[0])

    def test_second_form(self):
        self.assertEqual(
            {'message': 'Initialization successful.'},
            initialize('127.0.0.1', self.port, init, execute_all, None))
        self.remember()

    def test_wrong_arguments(self):
        self.assertEqual('host', _order(('localhost',))[0])
        with self.assertRaisesRegex(TypeError, 'takes 6'):
            initialize(*range(7))
        with self.assertRaisesRegex(TypeError, 'needs init_task'):
            initialize()
        with self.assertRaisesRegex(TypeError, 'twice'):
            initialize(init, execute_all, None, exit_task=None)
        for tasks, name in ((1, len), 'init'), ((len, None), 'exec'), (
                (len, len, 0), 'exit'):
            with self.assertRaisesRegex(TypeError, f'{name}_task is a func'):
                initialize(*tasks, port=self.port)
        with self.assertRaisesRegex(TypeError, 'unknown'):
            initialize(init, execute_all, port=self.port, unknown=5)

    def test_closures(self):
        number = 42
        self.start(lambda: {'x': 1}, lambda client_socket, state, args: (
            respond(client_socket, number), state)[1])
        self.assertEqual(42, execute({}, True, port=self.port))

    def test_failing_init_task_may_be_repeated(self):
        with self.assertRaisesRegex(RemoteTaskError, 'zero'):
            initialize(lambda: {'x': 1 / 0}, execute_all, port=self.port)
        self.remember()
        with self.assertRaisesRegex(NotInitialized, str(self.port)):
            execute({}, True, port=self.port)
        self.start()

    def test_not_to_be_started(self):
        with self.assertRaises(ServerNotRunning):
            initialize(init, execute_all, port=self.port, start=False)

    def test_several_at_once(self):
        script = textwrap.dedent(f"""
            from gocept.runner.background import initialize
            print(initialize(lambda: {{}}, len, port={self.port}))
            """)
        programs = [subprocess.Popen(
            [sys.executable, '-c', script], env=child_environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
            for _ in range(3)]
        said = [each.communicate(timeout=DEADLINE)[0] for each in programs]
        self.remember()
        self.assertEqual(1, sum('successful' in each for each in said))
        self.assertEqual(2, sum('Already' in each for each in said))

    def test_port_of_another_program(self):
        with ScriptedServer(lambda conversation: conversation.sock.sendall(
                b'SSH-2.0-OpenSSH')) as server:
            with self.assertRaisesRegex(ProtocolError, 'SSH'):
                initialize(init, execute_all, port=server.port)


class TaskTests(ServerTestCase):

    def test_errors(self):
        self.start()
        with self.client() as client:
            with self.assertRaisesRegex(RemoteTaskError, 'as it was told') as (
                    raised):
                client.execute({'fails': True}, True)
            self.assertRegex(
                str(raised.exception), '^ValueError: as it was told\n')
            self.assertIn('execute_all', raised.exception.traceback)
            self.assertEqual('ValueError', raised.exception.type)
            with self.assertRaises(NoResponse):
                client.execute({'silent': True}, True)
            client.execute({'fails': True})  # that is in the log
            with self.assertRaises(TypeError):
                client.execute({'value': threading.Lock()}, True)
            self.assertEqual(5, client.execute({'value': 5}, True))

    def test_pipeline_of_large_values(self):
        self.start()
        big = os.urandom(2 ** 20) * 8
        with self.client() as client:
            pending = [client.submit({'value': big}) for _ in range(6)]
            for each in pending:
                self.assertEqual(big, each.result())

    def test_long_task_is_no_silence(self):
        self.start()
        self.check_long_task()

    def test_a_long_init_task_is_waited_for_again(self):
        fifo, bell = self.fifo(), self.bell()

        def slow():
            pathlib.Path(bell).write_text('x')
            with open(fifo, 'rb') as file:
                file.read()
            return {'seen': []}
        Server(port=self.port).run_background(DEADLINE)
        self.remember()
        # The time is over when the task runs.
        with mock.patch.object(
                link.Link, 'wait', lambda *args: self.wait_for_bell()), (
                self.assertRaisesRegex(
                    BackgroundTimeout, r'after 60 s: .*initialize\(\) again')):
            initialize(slow, execute_all, port=self.port, timeout=DEADLINE)
        thread = threading.Thread(target=lambda: open(fifo, 'wb').close())
        thread.start()
        self.assertIn('Already', initialize(
            slow, execute_all, port=self.port)['message'])
        thread.join(DEADLINE)

    def test_timeouts_that_are_none(self):
        for timeout, kind in (0, ValueError), (-1, ValueError), (
                '5', TypeError):
            for call in (
                    lambda timeout: initialize(
                        init, execute_all, port=self.port, timeout=timeout),
                    Server(port=self.port).run_background,
                    lambda timeout: Client(timeout=timeout),
                    lambda timeout: Client(connect_timeout=timeout),
                    lambda timeout: Client(port=self.port).execute(
                        1, timeout=timeout)):
                with self.assertRaisesRegex(kind, 'timeout is'):
                    call(timeout)

    def test_port_that_is_bound_but_nobody_listens(self):
        with socket.socket() as sock:
            sock.bind(('127.0.0.1', self.port))
            with self.assertRaisesRegex(ServerOccupied, 'another program'):
                initialize(init, execute_all, port=self.port, timeout=None)

    def test_while_another_client_ends_the_server(self):
        fifo = self.fifo()

        def end(client_socket, state, args):
            with open(fifo, 'rb') as file:
                file.read()
        self.start(init, execute_all, end)
        old = self.remember()
        thread = threading.Thread(target=terminate, kwargs={'port': self.port})
        thread.start()
        writer = os.open(fifo, os.O_WRONLY)  # waits for the exit task
        with self.assertRaisesRegex(ServerNotRunning, 'server ends'):
            initialize(init, execute_all, port=self.port, start=False)
        waits = threading.Event()

        class Watched(Client):

            def wait_for_end(self, deadline):
                waits.set()
                super().wait_for_end(deadline)
        with unittest.mock.patch(
                'gocept.runner.background.calls.Client', Watched), (
                concurrent.futures.ThreadPoolExecutor()) as pool:
            future = pool.submit(
                initialize, init, execute_all, port=self.port)
            self.assertTrue(waits.wait(DEADLINE))
            os.close(writer)
            self.assertEqual({'message': 'Initialization successful.'},
                             future.result(DEADLINE))
        thread.join(DEADLINE)
        self.assertNotEqual(old, self.remember())


class DeadServerTests(ServerTestCase):

    def test_while_nothing_is_asked(self):
        self.start()
        client = self.client(connect_timeout=DEADLINE)
        client.execute({}, True)
        self.kill(self.remember())
        client._session._link.looked -= 1  # as if some time had passed
        self.start()
        with self.assertLogs('gocept.runner.background', 'WARNING') as logs:
            self.assertEqual([None], client.execute({}, True))
        self.assertIn('anew', logs.output[0])

    def test_new_one_is_not_initialized(self):
        self.start()
        client = self.client(connect_timeout=DEADLINE)
        client.execute({}, True)
        self.kill(self.remember())
        client._session._link.looked -= 1
        with self.assertRaises(RemoteTaskError):
            self.start(lambda: 1 / 0, execute_all)
        self.remember()
        with self.assertLogs('gocept.runner.background', 'WARNING'):
            with self.assertRaisesRegex(NotInitialized, 'started anew'):
                client.execute({}, True)

    def test_during_a_request(self):
        self.start()
        pid = self.remember()
        client = self.client()
        running = client.submit({'bell': self.bell(), 'fifo': self.fifo()})
        waiting = client.submit({})
        self.wait_for_bell()
        self.kill(pid)
        for pending in running, waiting:
            with self.assertRaisesRegex(ConnectionLost, 'is not known'):
                pending.result()
        self.assertEqual(
            {'message': 'Initialization successful.'}, self.start())
        self.assertEqual([None], client.execute({}, True))

    def test_while_a_request_is_sent(self):
        self.start()
        pid = self.remember()
        client = self.client(connect_timeout=5)
        client.execute({}, True)
        os.kill(pid, signal.SIGSTOP)  # so that the request is sent in part
        with self.assertRaises(DeadlineExceeded):
            client.execute({'value': b'x' * 50_000_000}, True, timeout=0.1)
        self.kill(pid)
        with self.assertRaises(ServerNotRunning):
            client.execute({}, True)

    def test_before_the_handshake(self):
        self.start()
        pid = self.remember()
        os.kill(pid, signal.SIGSTOP)
        with self.assertRaises((DeadlineExceeded, ServerNotRunning)):
            self.client(timeout=0.2).execute({}, True)


class DeadClientTests(ServerTestCase):
    """Whatever a client dies in, the server goes on."""

    def setUp(self):
        super().setUp()
        self.start()
        self.bell_path = self.bell()

    def run_and_kill(self, script):
        """Kill a client when it, or its task, has rung the bell."""
        program = subprocess.Popen(
            [sys.executable, '-c', textwrap.dedent(f"""
                import pathlib, socket
                from gocept.runner.background import Client
                client = Client(port={self.port})
                def tell():
                    pathlib.Path({self.bell_path!r}).write_text('x')
                """) + textwrap.dedent(script)], env=child_environment())
        try:
            self.wait_for_bell()
        finally:
            program.kill()
            program.wait()

    def assertGoesOn(self, seen):
        with self.client() as client:
            self.assertEqual([*seen, 'last'],
                             client.execute({'name': 'last'}, True))

    def test_before_the_handshake(self):
        self.run_and_kill(f"""
            sock = socket.create_connection(('127.0.0.1', {self.port}))
            tell()
            sock.recv(1000, socket.MSG_WAITALL)
            """)
        self.assertGoesOn([])

    def test_idle(self):
        self.run_and_kill("""
            client.execute({'name': 'first'}, True)
            tell()
            client._session._link._sock.recv(1)
            """)
        self.assertGoesOn(['first'])

    def test_half_a_request(self):
        self.run_and_kill("""
            client.execute({'name': 'first'}, True)
            link = client._session._link
            frame = link._seal(2, 2, 2, b'x' * 1000)
            link._sock.setblocking(True)
            link._sock.sendall(frame[:500])
            tell()
            link._sock.recv(1)
            """)
        self.assertGoesOn(['first'])

    def test_request_that_runs_and_one_that_waits(self):
        fifo = self.fifo()
        self.run_and_kill(f"""
            client.submit({{'name': 'first',
                            'bell': {self.bell_path!r},
                            'fifo': {fifo!r}}})
            client.execute({{'name': 'second'}})
            client.submit({{}}).result()
            """)
        open(fifo, 'wb').close()
        # Not all may have been sent when the client was killed.
        with self.client() as client:
            seen = client.execute({'name': 'last'}, True)
        self.assertEqual('last', seen.pop())
        self.assertIn(
            seen, (['first'], ['first', 'second'], ['first', 'second', None]))
