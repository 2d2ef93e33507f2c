"""Attributes of executors with a name: what they are at a start counts."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

from gocept.runner.executor import (
    AlreadyRunning,
    HTTPExecutor,
    OutputExecutor,
    PidExecutor,
    ProcessExitedWithError,
    SimpleExecutor,
    TCPExecutor,
    UnixSocketExecutor,
)
from gocept.runner.tests.executors import (
    ExecutorTestCase,
    Starting,
    collect,
    is_gone,
    server,
)
from gocept.runner.tests.kernels import free_port
from gocept.runner.tests.victims import until

HOST = '127.0.0.1'

LISTENING = server('sock = listen({port})\npause()')

WEB = [sys.executable, '-m', 'http.server', '--bind', HOST, '{port}']


class AttributeTests(ExecutorTestCase):
    """Those that were changed after the construction."""

    def test_a_banner(self) -> None:
        executor = self.stopping(OutputExecutor(
            'echo ready; exec sleep 100', 'never', shell=True))
        self.assertEqual('never', executor.banner)
        executor.banner = 'read(y)'
        executor.start()

    def test_a_failure(self) -> None:
        executor = self.stopping(OutputExecutor(
            'echo alas; exec sleep 100', 'never', shell=True))
        self.assertIsNone(executor.failure)
        executor.failure = 'alas'
        self.assertRaisesRegex(Exception, "has said 'alas'", executor.start)

    def test_a_port(self) -> None:
        executor = self.stopping(TCPExecutor(LISTENING, 'localhost', 1))
        with socket.create_server((HOST, 0)) as there:
            executor.port = there.getsockname()[1]
            self.assertRaises(AlreadyRunning, executor.start)
            self.assertTrue(executor.pre_start_check())
        self.assertFalse(executor.pre_start_check())

    def test_a_port_that_was_chosen_stays_held(self) -> None:
        executor = self.stopping(TCPExecutor(LISTENING, HOST, 0))
        port = executor.port
        self.assertIn(str(port), executor.command_parts[-1])
        executor.host = 'localhost'
        executor._refresh()
        self.assertEqual('localhost', executor.condition.host)
        self.assertEqual(port, executor.port)
        with self.assertRaises(OSError), socket.socket() as sock:
            sock.bind((HOST, port))
        executor.start()
        socket.create_connection((HOST, port)).close()
        executor.stop()
        executor.port = 0
        executor.start()
        self.assertNotIn(executor.port, (0, port))
        self.assertIn(str(executor.port), executor.command)
        executor.stop()
        executor.port = free_port()
        executor.start()

    def test_a_file_name(self) -> None:
        path = self.dir / 'there'
        executor = self.stopping(PidExecutor(
            f'echo $$ > {path}; exec sleep 100', 'elsewhere', shell=True))
        self.assertEqual('elsewhere', executor.filename)
        executor.filename = path
        executor.start()

    def test_the_path_of_a_socket(self) -> None:
        path = str(self.dir / 's')
        executor = self.stopping(UnixSocketExecutor('sleep 100', 'elsewhere'))
        self.assertEqual('elsewhere', executor.socket)
        self.assertFalse(executor.pre_start_check())
        with socket.socket(socket.AF_UNIX) as there:
            there.bind(path)
            there.listen()
            executor.socket = path
            self.assertTrue(executor.pre_start_check())

    def test_the_command_and_the_rest(self) -> None:
        executor = self.stopping(OutputExecutor('false', 'ready'))
        executor.command_parts = [
            '/bin/sh', '-c', 'pwd; echo ready; exec sleep 100']
        executor._cwd = self.dir
        executor._stop_signal = signal.SIGINT
        executor._timeout = 59
        executor.start()
        self.assertEqual(signal.SIGINT, executor.child.stop_signal)
        self.assertEqual(59, executor.child.stop_timeout)
        executor.stop()

    def test_the_command_alone(self) -> None:
        for options in {'shell': True}, {}:
            with self.subTest(options):
                executor = self.stopping(SimpleExecutor('', **options))
                for words in 'one', 'two':
                    executor.command = f'echo {words}'
                    process = executor.start().process
                    self.assertEqual(f'{words}\n', process.communicate()[0])
                    executor.stop()
        executor.command = 'echo \0'
        self.assertRaises(ValueError, executor.start)
        executor.command_parts = ['echo', 'th ree']
        executor.command = 'of ones own'
        process = executor.start().process
        self.assertEqual('th ree\n', process.communicate()[0])
        self.assertEqual('of ones own', executor.command)

    def test_the_port_in_a_variable(self) -> None:
        executor = self.stopping(TCPExecutor(
            'sleep 100', HOST, 0, envvars={'PORT': '{port}'}))
        self.assertEqual(str(executor.port), executor.envvars['PORT'])
        executor.port = 0
        executor._refresh()
        self.assertEqual(str(executor.port), executor.envvars['PORT'])

    def test_names_that_plugins_have_set_before(self) -> None:
        class Noop(TCPExecutor):
            def __init__(self, host: str, port: int) -> None:
                self.host, self.port, self.timeout = host, port, 3
                super().__init__([], host, port, timeout=self.timeout)
                self.looks = iter([False, True])

            def start(self) -> Any:
                self._set_timeout()
                self.wait_for(lambda: next(self.looks))
                return self

        with Noop(HOST, 1) as executor:
            self.assertFalse(executor.running())
        self.assertEqual([], [*executor.looks])

    def test_one_that_is_forgotten_is_ended(self) -> None:
        path = self.dir / 'pid'
        for make in (
                lambda: PidExecutor(f'echo $$ > {path}; exec sleep 100', path,
                                    shell=True),
                lambda: TCPExecutor(LISTENING, HOST, 0),
                lambda: OutputExecutor('echo ready; exec sleep 100', 'ready',
                                       shell=True)):
            executor = make().start()
            with self.subTest(repr(executor)):
                pid = executor.child.pid
                self.assertFalse(is_gone(pid))
                del executor
                collect()
                self.assertTrue(is_gone(pid))

    def test_what_names_no_file(self) -> None:
        for filename in (None, ''):
            self.assertRaises(ValueError, PidExecutor, 'true', filename)

    def test_a_constructor_that_was_left_early(self) -> None:
        executor = object.__new__(TCPExecutor)
        self.assertFalse(executor.running())
        executor.__del__()


class URLTests(ExecutorTestCase):

    def test_its_attributes(self) -> None:
        executor = HTTPExecutor('true', 'http://localhost:81/a?b', 200,
                                'POST', {'c': 'd'}, {'E': 'f'})
        self.assertEqual(urlsplit('http://localhost:81/a?b'), executor.url)
        self.assertEqual(('localhost', 81), (executor.host, executor.port))
        self.assertEqual('200', executor.status)
        self.assertTrue(executor.status_re.match('200'))
        self.assertEqual(('POST', {'c': 'd'}, {'E': 'f'}), (
            executor.method, executor.payload, executor.headers))
        self.assertIsInstance(executor, TCPExecutor)
        self.assertIsNone(HTTPExecutor('true', 'http://a').payload)

    def test_a_url_without_a_port(self) -> None:
        class Other(HTTPExecutor):
            DEFAULT_PORT = 8080

        self.assertEqual(80, HTTPExecutor.DEFAULT_PORT)
        for class_, url, port, shown in (
                (HTTPExecutor, 'http://a/b', 80, 'http://a/b'),
                (Other, 'http://u@a/b', 8080, 'http://u@a:8080/b'),
                (Other, 'http://[::1]/b', 8080, 'http://[::1]:8080/b'),
                (HTTPExecutor, 'https://a/b', 443, 'https://a/b'),
                (Other, 'https://a/b', 443, 'https://a/b')):
            with self.subTest(url, class_=class_):
                executor = class_('true', url)
                self.assertEqual(port, executor.port)
                self.assertEqual(port, executor.condition.port)
                self.assertEqual(url, executor.url.geturl())
                self.assertEqual(shown, executor.condition.url.geturl())

    def test_a_port_that_was_chosen(self) -> None:
        executor = HTTPExecutor('true {port}', 'http://127.0.0.1:0/a')
        port = executor.port
        self.assertEqual(f'http://127.0.0.1:{port}/a', executor.url.geturl())
        executor.status = '404'
        executor._refresh()
        self.assertEqual(port, executor.port)
        self.assertEqual(f'true {port}', executor.command)
        self.assertEqual('x', executor._replaced('x'))
        self.assertEqual(str(port), executor._replaced('{port}'))

    def test_what_is_changed_before_the_start(self) -> None:
        executor = HTTPExecutor('true', 'http://localhost:81/a', '2..')
        for name, value, expected in (
                ('url', 'http://127.0.0.1:82/b', {
                    'target': '/b', 'host': HOST, 'port': 82}),
                ('url', urlsplit('http://127.0.0.1:83/b'), {'port': 83}),
                ('port', 84, {'port': 84, 'target': '/b'}),
                ('host', 'localhost', {'host': 'localhost', 'port': 84}),
                ('status', 404, {'status': '404'}),
                ('method', 'GET', {'method': 'GET'}),
                ('payload', {'a': 'b'}, {'body': 'a=b'}),
                ('headers', {'A': 'b'}, {'headers': {
                    'A': 'b', 'Content-Type':
                    'application/x-www-form-urlencoded'}}),
                ('request_timeout', 3, {'request_timeout': 3})):
            with self.subTest(name):
                setattr(executor, name, value)
                executor._refresh()
                condition = executor.condition
                self.assertEqual(expected, {
                    each: getattr(condition, each) for each in expected})
        executor.payload['c'] = 'd'
        executor._refresh()
        self.assertEqual('a=b&c=d', executor.condition.body)
        condition = executor.condition
        executor._refresh()
        self.assertIs(condition, executor.condition)
        executor.status_re = mock.Mock()
        executor._refresh()
        self.assertIs(executor.status_re, executor.condition.status_re)


class CheckTests(ExecutorTestCase):
    """Checks that users call themselves."""

    def check(self, executor: Any, expected: bool) -> None:
        self.assertIs(expected, executor.after_start_check())
        self.assertIs(expected, executor.check_subprocess())

    def test_before_the_start_and_after_the_end(self) -> None:
        for executor in (
                OutputExecutor('echo ready; exec sleep 100', 'ready',
                               shell=True),
                PidExecutor(f'echo 1 > {self.dir}/pid; exec sleep 100',
                            self.dir / 'pid', shell=True),
                TCPExecutor(LISTENING, HOST, 0),
                HTTPExecutor(WEB, f'http://{HOST}:0/')):
            with self.subTest(executor):
                self.stopping(executor)
                self.check(executor, False)
                executor.start()
                self.check(executor, True)
                os.kill(executor.child.pid, signal.SIGKILL)
                executor.child.wait()
                self.check(executor, False)
                executor.kill()
                self.check(executor, False)

    def test_a_server_that_listens_no_more(self) -> None:
        executor = self.stopping(TCPExecutor(server(
            'sock = listen({port})\nsys.stdin.readline()\nsock.close()\n'
            'say("closed")\npause()'), HOST, 0)).start()
        self.check(executor, True)
        executor.process.stdin.write('\n')
        self.assertEqual('closed\n', executor.output().readline())
        self.check(executor, False)

    def test_an_answer_that_is_wrong_now(self) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            status = 200

            def do_HEAD(self) -> None:
                self.send_response(self.status)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        with http.server.HTTPServer((HOST, 0), Handler) as there:
            thread = threading.Thread(target=there.serve_forever)
            thread.start()
            self.addCleanup(thread.join)
            self.addCleanup(there.shutdown)
            executor = self.stopping(HTTPExecutor(
                'sleep 100', f'http://{HOST}:{there.server_port}/'))
            executor.pre_start_check = lambda: False
            executor.start()
            self.check(executor, True)
            Handler.status = 503
            self.check(executor, False)

    def test_they_may_be_assigned_to_the_object(self) -> None:
        executor = self.stopping(TCPExecutor('sleep 100', HOST, 1))
        executor.pre_start_check = lambda: True
        self.assertRaises(AlreadyRunning, executor.start)
        executor.pre_start_check = lambda: False
        executor.after_start_check = mock.Mock(side_effect=[False, True])
        executor.start()
        self.assertEqual(2, executor.after_start_check.call_count)
        executor.stop()
        executor.check_subprocess = mock.Mock(side_effect=[False, True])
        executor.start()
        self.assertEqual(2, executor.check_subprocess.call_count)

    def test_a_child_that_fails_before_it_is_ready_is_an_error(self) -> None:
        executor = self.stopping(TCPExecutor('exit 3', HOST, 1, shell=True))
        self.assertRaises(ProcessExitedWithError, executor.start)

    def test_while_it_starts(self) -> None:
        executor = self.stopping(OutputExecutor(
            'read line; echo ready; exec sleep 100', 'ready', shell=True,
            stderr=subprocess.PIPE))
        starting = Starting(executor)
        until(executor.running)
        self.check(executor, False)
        starting.go_on()
        starting.wait()
        self.check(executor, True)
