"""Executors that wait for TCP ports and Unix sockets."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

from gocept.runner.executor import (
    AlreadyRunning,
    ExecutorError,
    PidExecutor,
    ProcessExitedWithError,
    TCPExecutor,
    TimeoutExpired,
    UnixSocketExecutor,
    start_all,
    stop_all,
    tcp,
    unix,
)
from gocept.runner.executor.conditions import listeners
from gocept.runner.executor.conditions.base import Pauses
from gocept.runner.executor.conditions.network import _is_itself
from gocept.runner.process import descendants, ending, procfs, registry
from gocept.runner.tests.executors import (
    ExecutorTestCase,
    Starting,
    is_gone,
    server,
)
from gocept.runner.tests.support import DEADLINE
from gocept.runner.tests.victims import until

HOST = '127.0.0.1'

LISTENS_LATER = '''
    sys.stdin.readline()
    sock = listen({port}, {host!r})
    pause()
    '''

RESOLVE = 'gocept.runner.executor.conditions.network.resolve'


@contextlib.contextmanager
def listening(host: str = HOST) -> Iterator[int]:
    """A port on which this process listens."""
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as sock:
        yield sock.getsockname()[1]


@contextlib.contextmanager
def busy() -> Iterator[socket.socket]:
    """A socket that listens, but takes no more connections."""
    with socket.create_server((HOST, 0), backlog=0) as sock, \
            contextlib.ExitStack() as clients:
        for _ in range(3):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(sock.getsockname())
        yield sock


class Unhindered(TCPExecutor):
    """Does not look for others before its start."""

    def pre_start_check(self) -> bool:
        return False


class TCPTests(ExecutorTestCase):

    def executor(self, body: str, host: str = HOST,
                 **options: Any) -> TCPExecutor:
        return self.stopping(TCPExecutor(
            server(body.replace('{host!r}', repr(host))), host, 0, **options))

    def check_late(self, executor: TCPExecutor) -> None:
        """Nobody listens at first."""
        starting = Starting(executor)
        starting.until_seen('refused')
        starting.go_on()
        starting.wait()
        socket.create_connection((executor.host, executor.port)).close()
        executor.stop()

    def test_ready_when_it_listens(self) -> None:
        self.check_late(self.executor(LISTENS_LATER))

    def test_ipv6(self) -> None:
        executor = self.executor(LISTENS_LATER, '::1')
        self.check_late(executor)
        with listening('::1') as port:
            there = TCPExecutor('sleep 100', '::1', port)
            self.assertRaisesRegex(
                AlreadyRunning, f'process {os.getpid()} ', there.start)

    def test_a_name_is_looked_up_once(self) -> None:
        with mock.patch('socket.getaddrinfo',
                        side_effect=socket.getaddrinfo) as looked_up:
            self.check_late(self.executor(LISTENS_LATER, 'localhost'))
        asked = [call.args[:2] for call in looked_up.call_args_list]
        port = asked[-1][1]
        # To choose a port, and in the start; the last one connects here.
        self.assertEqual(
            [('localhost', 0), ('localhost', port), ('localhost', port)],
            asked)

    def test_one_of_the_addresses_of_a_name_is_enough(self) -> None:
        executor = self.executor(LISTENS_LATER)
        nobody = tcp('127.0.0.2', 0)
        with mock.patch(RESOLVE, return_value=[
                (socket.AF_INET, ('127.0.0.2', nobody.port)),
                (socket.AF_INET, (HOST, executor.port))]):
            self.check_late(executor)

    def test_a_name_that_cannot_be_looked_up(self) -> None:
        with mock.patch(RESOLVE, side_effect=socket.gaierror(
                socket.EAI_NONAME, 'who is that?')):
            starting = Starting(self.executor('pause()'))
            starting.expire_when_seen('who is that')
            self.assertRaisesRegex(
                TimeoutExpired, "'127.0.0.1': .*who is that", starting.wait)
        self.assertIsNone(starting.executor.child)

    def test_a_name_is_not_looked_up_again_at_once(self) -> None:
        with mock.patch(RESOLVE, side_effect=socket.gaierror(
                socket.EAI_NONAME, 'who is that?')) as resolve:
            with mock.patch.multiple(Pauses, _FIRST=1000.0, _LAST=1000.0):
                starting = Starting(self.executor('pause()'))
                starting.until_seen('who is that?')
                for _ in range(3):
                    starting.executor._run.check.holds()
                starting.executor.kill()
                self.assertRaises(ExecutorError, starting.wait)
        self.assertEqual(2, resolve.call_count)  # one is before the start

    def test_looking_up_a_name_may_hang(self) -> None:
        executor = self.executor('pause()', timeout=0.2)
        go_on = threading.Event()
        self.addCleanup(go_on.set)
        with mock.patch(RESOLVE, side_effect=lambda *args: go_on.wait()):
            self.assertRaisesRegex(
                TimeoutExpired, "the name '127.0.0.1' is looked up",
                executor.start)

    def test_who_listens_already_is_named(self) -> None:
        with listening() as port:
            executor = TCPExecutor('sleep 100', HOST, port)
            with self.assertRaisesRegex(
                    AlreadyRunning, r'seems to be already running: .*; '
                    rf'process {os.getpid()} \(.+\) listens on port {port}$'):
                executor.start()
            self.assertIsNone(executor.child)

    def test_who_listens_already_may_be_too_busy_to_answer(self) -> None:
        sock = self.enterContext(busy())
        executor = TCPExecutor('sleep 100', *sock.getsockname())
        self.assertRaisesRegex(
            AlreadyRunning, f'process {os.getpid()} ', executor.start)

    def busy_child(self, body: str, **options: Any) -> 'Unhindered':
        """One that listens already when it is started."""
        sock = self.enterContext(busy())
        return self.stopping(Unhindered(
            server(f'sock = socket.socket(fileno={sock.fileno()})\n' + body),
            *sock.getsockname(), **options,
            popen_kwargs={'pass_fds': [sock.fileno()]}))

    def test_a_child_that_is_too_busy_to_answer(self) -> None:
        starting = Starting(self.busy_child("""
sys.stdin.readline()
while True:
    sock.accept()
"""))
        starting.until_seen('no answer')
        starting.go_on()
        starting.wait()
        starting.executor.stop()

    def test_a_child_that_never_answers_cannot_outlive_the_deadline(
            self) -> None:
        executor = self.busy_child('pause()')
        starting = Starting(executor)
        starting.expire_when_seen('no answer')
        self.assertRaisesRegex(
            TimeoutExpired, f'connections to {HOST} port {executor.port}; '
            f'seen last: {HOST}:{executor.port}: no answer', starting.wait)

    def test_a_child_that_is_stopped(self) -> None:
        executor = self.executor('os.kill(os.getpid(), signal.SIGSTOP)')
        starting = Starting(executor)
        until(lambda: executor.child
              and procfs.look(executor.child.pid).state == 'T')
        starting.expire_when_seen('Connection refused')
        self.assertRaisesRegex(
            TimeoutExpired, 'Connection refused', starting.wait)
        self.assertIsNone(executor.child)

    def test_one_that_is_stopped_later_can_be_ended(self) -> None:
        executor = self.executor('sock = listen({port})\npause()').start()
        process = executor.child
        os.kill(process.pid, signal.SIGSTOP)
        executor.stop()
        self.assertEqual(-signal.SIGTERM, process.returncode)

    def test_a_child_that_fails_is_not_waited_for(self) -> None:
        executor = self.executor("print('sorry'); sys.exit(3)")
        with self.assertRaisesRegex(
                ProcessExitedWithError,
                r'non-zero code: 3; waited \d+\.\d\d s '
                r'for connections .*stdout ends with:\nsorry$') as caught:
            executor.start()
        self.assertEqual(3, caught.exception.exit_code)

    def test_a_child_that_is_killed_is_not_waited_for(self) -> None:
        executor = self.executor('os.kill(os.getpid(), signal.SIGKILL)')
        self.assertRaisesRegex(
            ProcessExitedWithError, 'non-zero code: -9', executor.start)

    def test_a_daemon_may_be_coming_up(self) -> None:
        executor = self.executor('''
            if not os.fork():
                with open('go'):
                    sock = listen({port})
                pause()
            ''', cwd=self.dir)
        os.mkfifo(self.dir / 'go')
        starting = Starting(executor)
        until(lambda: executor.child and executor.child.poll() == 0)
        starting.until_seen('refused')
        with open(self.dir / 'go', 'w'):
            starting.wait()
        executor.stop()

    def test_no_daemon_comes_up(self) -> None:
        executor = self.executor('')
        starting = Starting(executor)
        until(lambda: executor.child and executor.child.poll() == 0)
        starting.expire_when_seen('refused')
        self.assertRaisesRegex(
            TimeoutExpired, 'its status is 0; its stdout is empty',
            starting.wait)

    def test_a_port_is_chosen_and_replaced_in_the_command(self) -> None:
        for executor in (
                TCPExecutor(['serve', '{port}', 'x{port}'], HOST, 0),
                TCPExecutor('serve {port} x{port}', HOST, 0)):
            self.assertEqual(
                ['serve', f'{executor.port}', f'x{executor.port}'],
                executor.command_parts)
        executor = TCPExecutor('serve {port}', HOST, 80)
        self.assertEqual('serve {port}', executor.command)

    def test_a_chosen_port_is_held_until_the_child_listens(self) -> None:
        conditions = [tcp(HOST, 0) for _ in range(100)]
        self.assertEqual(100, len({each.port for each in conditions}))
        executor = self.executor(LISTENS_LATER)
        other = TCPExecutor('sleep 100', HOST, executor.port)
        self.assertFalse(other.pre_start_check())
        with socket.socket() as sock, self.assertRaises(OSError):
            sock.bind((HOST, executor.port))
        for _ in range(2):
            starting = Starting(executor)
            starting.until_seen('refused')
            with socket.socket() as sock, self.assertRaises(OSError):
                sock.bind((HOST, executor.port))
            starting.go_on()
            starting.wait()
            executor.stop()
            # Nobody holds it now.
            listeners.reserve(HOST, executor.port).close()
            socket.create_server((HOST, executor.port)).close()

    def test_a_chosen_port_may_be_taken_between_two_starts(self) -> None:
        executor = self.executor('sock = listen({port})\npause()').start()
        executor.stop()
        with socket.create_server((HOST, executor.port)):
            self.assertRaises(AlreadyRunning, executor.start)
        executor.start().stop()

    def test_without_a_daemon_no_table_is_read(self) -> None:
        with mock.patch.object(procfs, 'table') as read:
            self.assertEqual([], list(tcp(HOST, 80).servers()))
        self.assertFalse(read.called)

    def test_a_port_is_a_number(self) -> None:
        for port in (-1, 65536, '80', None):
            with self.subTest(port), self.assertRaisesRegex(
                    ValueError, f'not {port!r}'):
                tcp(HOST, port)  # type: ignore[arg-type]

    def test_a_socket_may_be_connected_with_itself(self) -> None:
        # As happens when the near port is chosen to be the far one.
        with socket.socket() as sock:
            sock.bind((HOST, 0))
            sock.connect(sock.getsockname())
            self.assertTrue(_is_itself(sock))


class UnixSocketTests(ExecutorTestCase):

    def executor(self, body: str, **options: Any) -> UnixSocketExecutor:
        path = self.dir / 'a socket'
        return self.stopping(UnixSocketExecutor(
            server(body.replace('PATH', repr(str(path)))), path, **options))

    def test_ready_when_it_listens(self) -> None:
        executor = self.executor('''
            sys.stdin.readline()
            sock = listen(PATH)
            sys.stdin.readline()
            ''')
        for _ in range(2):
            starting = Starting(executor)
            starting.until_seen('No such file')
            starting.go_on()
            starting.wait()
            self.assertRaisesRegex(
                AlreadyRunning, 'its own process', executor.start)
            executor.stop()
            executor.socket.unlink()

    def test_a_stale_one_is_no_readiness(self) -> None:
        executor = self.executor('os.unlink(PATH)\nsock = listen(PATH)\n'
                                 'pause()')
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(executor.socket))
            sock.listen()
            self.assertRaisesRegex(
                AlreadyRunning, rf'process {os.getpid()} \(.+\) listens on '
                f'{executor.socket}$', executor.start)
        executor.start().stop()

    def test_who_listens_already_may_be_too_busy_to_answer(self) -> None:
        executor = self.executor('pause()')
        with (socket.socket(socket.AF_UNIX) as sock,
              socket.socket(socket.AF_UNIX) as client):
            sock.bind(str(executor.socket))
            sock.listen(0)
            client.connect(str(executor.socket))
            self.assertRaises(AlreadyRunning, executor.start)

    def test_a_child_that_never_answers(self) -> None:
        executor = self.executor('''
            sock = listen('elsewhere', backlog=0)
            client = socket.socket(socket.AF_UNIX)
            client.connect('elsewhere')
            os.rename('elsewhere', PATH)
            pause()
            ''', cwd=self.dir)
        starting = Starting(executor)
        starting.expire_when_seen('temporarily unavailable')
        self.assertRaisesRegex(
            TimeoutExpired, 'temporarily unavailable', starting.wait)

    def test_a_name_that_is_no_path(self) -> None:
        name = f'\0gocept.runner.{os.getpid()}'
        executor = self.stopping(UnixSocketExecutor(
            server(f'sock = listen({name!r})\npause()'), name)).start()
        executor.stop()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(name)
            sock.listen()
            self.assertRaisesRegex(
                AlreadyRunning, f'process {os.getpid()}', executor.start)

    def test_a_path_is_needed(self) -> None:
        self.assertRaises(ValueError, unix, '')


class DaemonTests(ExecutorTestCase):
    """Without a mark, and in a session of its own."""

    DAEMON = '''
        def serve():
            global sock
            os.setsid()
            overwrite()
            sock = WHAT
            with open('pid', 'w') as file:
                print(os.getpid(), file=file)

        fork(serve)
        MORE
        '''

    def command(self, what: str, more: str = '') -> list[str]:
        return server(
            self.DAEMON.replace('WHAT', what).replace('MORE', more))

    def test_it_is_known_by_what_it_serves(self) -> None:
        wheres = [self.dir / name for name in 'abc']
        for where in wheres:
            where.mkdir()
        executors = [
            TCPExecutor(self.command('listen({port})'), HOST, 0,
                        cwd=wheres[0]),
            UnixSocketExecutor(self.command("listen('socket')"),
                               wheres[1] / 'socket', cwd=wheres[1]),
            PidExecutor(self.command('None'), wheres[2] / 'pid',
                        cwd=wheres[2])]
        for each in executors:
            self.stopping(each)
        start_all(executors)
        for where in wheres:  # one may write it after it listens
            until(lambda path=where / 'pid':  # type: ignore[misc]
                  path.exists() and path.read_text())
        pids = [int((where / 'pid').read_text()) for where in wheres]
        self.assertFalse(any(map(is_gone, pids)))
        executors[0].stop()
        self.assertEqual([True, False, False], list(map(is_gone, pids)))
        process = executors[1].child
        executors[1].kill(wait=False)
        until(lambda: is_gone(pids[1]))
        until(lambda: process not in registry.processes)  # it is noticed
        stop_all(executors)
        self.assertTrue(is_gone(pids[2]))

    def test_one_that_becomes_one_while_it_is_ended(self) -> None:
        def goes_on_at(owner: object, name: str) -> Any:
            """Have the child end when a function is called."""
            function = getattr(owner, name)

            def end_first(*args: Any) -> Any:
                process.channel.write(b'\n')
                process.wait(DEADLINE)
                return function(*args)
            return mock.patch.object(owner, name, end_first)

        for end, looking in (
                (TCPExecutor.stop, (ending.Ending, 'begin')),
                (TCPExecutor.kill, (ending.Ending, 'begin')),
                (lambda executor: executor.kill(wait=False),
                 (descendants, 'of')),
                (lambda executor: stop_all([executor]),
                 (ending.Ending, 'begin'))):
            executor = self.stopping(TCPExecutor(
                self.command('listen({port})', 'sys.stdin.readline()'),
                HOST, 0, cwd=self.dir))
            executor.start()
            until(lambda: (self.dir / 'pid').exists()
                  and (self.dir / 'pid').read_text())
            pid = int((self.dir / 'pid').read_text())
            self.assertTrue(executor.running())
            self.assertFalse(is_gone(pid))
            process = executor.child
            with goes_on_at(*looking):
                end(executor)
            until(lambda: is_gone(pid))
            until(lambda: process not in registry.processes)
            (self.dir / 'pid').unlink()

    def test_the_exit_ends_one_that_it_has_become_since(self) -> None:
        command = server('''
            sock = listen({port})
            sys.stdin.readline()
            if not os.fork():
                signal.alarm(100)
                os.setsid()
                overwrite()
                with open('pid', 'w') as file:
                    print(os.getpid(), file=file)
                say('daemon')
                pause()
            sys.stdin.readline()
            ''')
        program = self.program(f'''
            from gocept.runner.executor import TCPExecutor
            executor = TCPExecutor({command!r}, {HOST!r}, 0).start()
            executor.child.channel.write(b'\\n')
            assert executor.output().readline() == 'daemon\\n'
            executor.child.channel.write(b'\\n')
            executor.child.wait()
            ''')
        self.assertEqual((0, ''), (program.end(), program.output))
        until(lambda: is_gone(int((self.dir / 'pid').read_text())))

    def test_the_exit_ends_it(self) -> None:
        command = server('''
            import time
            parent = os.getpid()
            if not os.fork():
                signal.alarm(100)
                os.setsid()
                overwrite()
                while os.getppid() == parent:
                    time.sleep(0.001)
                with open('pid', 'w') as file:
                    print(os.getpid(), file=file)
                sock = listen({port})
                pause()
            ''')
        program = self.program(f'''
            from gocept.runner.executor import TCPExecutor
            executor = TCPExecutor({command!r}, {HOST!r}, 0).start()
            ''')
        self.assertEqual((0, ''), (program.end(), program.output))
        until(lambda: is_gone(int((self.dir / 'pid').read_text())))
