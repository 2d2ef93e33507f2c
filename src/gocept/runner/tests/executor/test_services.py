"""Real services: started, used, killed, started anew, stopped."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import ZEO

from gocept.runner.executor import (
    AlreadyRunning,
    ConditionExecutor,
    HTTPExecutor,
    OutputExecutor,
    PidExecutor,
    SimpleExecutor,
    TCPExecutor,
    UnixSocketExecutor,
    exits_zero,
)
from gocept.runner.process import procfs
from gocept.runner.process.pidfd import hold
from gocept.runner.tests import services
from gocept.runner.tests.executors import ExecutorTestCase, is_gone
from gocept.runner.tests.support import DEADLINE, child_environment
from gocept.runner.tests.victims import ended, until

HOST = '127.0.0.1'

Probe = Callable[[], object]


def working_in(directory: pathlib.Path) -> Iterator[int]:
    """Processes whose working directory is that one or below it."""
    top = directory.resolve()
    for pid in procfs.pids():
        with contextlib.suppress(OSError):
            where = pathlib.Path(os.readlink(f'/proc/{pid}/cwd'))
            if where.is_relative_to(top) and not is_gone(pid):
                yield pid


def about(pid: int) -> str:
    """What a failure says of a process that is left."""
    with contextlib.suppress(OSError), open(
            f'/proc/{pid}/environ', 'rb') as file:
        environment = file.read().strip(bytes(1))[:300]
        return f'process {pid}: {procfs.stat(pid)}, environ {environment!r}'
    return f'process {pid}: {procfs.stat(pid)}'


def kill(pid: int) -> None:
    """Kill a process that was started here; it may stay as a zombie."""
    with contextlib.closing(hold(pid)) as handle:
        os.kill(pid, signal.SIGKILL)
        ended(handle)  # with all its threads, which hold its port


def pid_in(path: pathlib.Path) -> int:
    """The number in the first line of a file, once it is there."""
    return int(until(lambda: path.read_text().split()
                     if path.exists() else [])[0])


class ServiceTestCase(ExecutorTestCase):
    """Services work in the directory, and none may be left there."""

    level = 2

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.check_nobody_works_here)

    def check_nobody_works_here(self) -> None:
        left = list(working_in(self.dir))
        told = [about(pid) for pid in left]
        for pid in left:
            kill(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self.assertEqual([], told)

    def options(self, **more: Any) -> dict[str, Any]:
        """What all executors here are given."""
        return {'cwd': self.dir, 'timeout': DEADLINE, **more}

    def check_service(self, executor: SimpleExecutor, probe: Probe,
                      main: Callable[[], int] | None = None) -> None:
        """A service's life; `main` tells its process, if not the child."""
        self.stopping(executor)
        executor.start()
        probe()
        self.assertTrue(list(working_in(self.dir)))
        child = executor.process
        assert child is not None
        kill(killed := main() if main else child.pid)
        until(lambda: not executor.is_up())
        executor.start()
        probe()
        assert executor.process is not None
        self.assertIsNot(child, executor.process)
        self.assertNotEqual(killed, main() if main else executor.process.pid)
        self.check_stop(executor)

    def check_stop(self, executor: SimpleExecutor) -> None:
        """All that it is made of ends."""
        parts = set(working_in(self.dir)) | set(procfs.children(os.getpid()))
        executor.stop()
        self.assertFalse(executor.running())
        self.assertEqual([], [about(pid) for pid in parts if not is_gone(pid)])


class PostgreSQLTests(ServiceTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.bin = pathlib.Path(services.need(self, 'postgres')).parent
        self.home = self.dir / 'home'  # the sockets are there as well
        self.home.mkdir()
        self.data = self.home / 'data'
        self.user: dict[str, Any] = {}
        if os.geteuid() == 0:  # who is refused
            self.user = dict.fromkeys(('user', 'group'), 'postgres')
            self.user['extra_groups'] = []
            self.dir.chmod(0o711)
            shutil.chown(self.home, 'postgres', 'postgres')
        subprocess.run(
            [self.bin / 'initdb', '--pgdata', self.data, '--no-locale',
             '--auth=trust', '--username=postgres', '--no-sync'],
            cwd=self.home, check=True, stdout=subprocess.DEVNULL, **self.user)

    def command(self, *more: str) -> list[str]:
        return [str(self.bin / 'postgres'), '-D', str(self.data), '-F',
                '-k', str(self.home), *more]

    def options(self, **more: Any) -> dict[str, Any]:
        # SIGTERM would wait for clients.
        return super().options(cwd=self.home, stop_signal=signal.SIGINT,
                               popen_kwargs=self.user, **more)

    def probe(self, host: object, port: int = 5432, *,
              at_once: bool = False) -> Probe:
        """Unless `at_once`, it may refuse clients until it has recovered."""
        def ask() -> bool:
            answer = subprocess.run(
                [self.bin / 'psql', '-X', '-A', '-t', '-h', str(host),
                 '-p', str(port), '-U', 'postgres', '-c', 'select 6 * 7'],
                check=at_once, capture_output=True, text=True)
            return answer.stdout == '42\n'
        return lambda: self.assertTrue(ask() if at_once else until(ask))

    def test_its_port(self) -> None:
        executor = TCPExecutor(
            self.command('-h', HOST, '-p', '{port}'), HOST, 0,
            **self.options())
        self.check_service(executor, self.probe(HOST, executor.port))

    def test_its_socket(self) -> None:
        executor = UnixSocketExecutor(
            self.command('-h', ''), self.home / '.s.PGSQL.5432',
            **self.options())
        self.check_service(executor, self.probe(self.home))

    def test_what_its_own_probe_says(self) -> None:
        ready = exits_zero([
            str(self.bin / 'pg_isready'), '-q', '-h', str(self.home),
            '-p', '5432'])
        executor = ConditionExecutor(
            self.command('-h', ''), ready, **self.options())
        self.check_service(executor, self.probe(self.home, at_once=True))

    def test_what_it_says(self) -> None:
        executor = OutputExecutor(
            self.command('-h', ''), 'ready to accept connections',
            **self.options(stderr=subprocess.PIPE))
        self.check_service(executor, self.probe(self.home, at_once=True))

    def pg_ctl(self) -> TCPExecutor:
        """It ends at once, well before the daemon is ready."""
        return TCPExecutor(
            [str(self.bin / 'pg_ctl'), 'start', '--no-wait', '-s',
             '-D', str(self.data), '-l', str(self.home / 'log'),
             '-o', f'-F -h {HOST} -p {{port}} -k {self.home}'], HOST, 0,
            **self.options())

    def test_a_daemon(self) -> None:
        executor = self.pg_ctl()
        self.check_service(
            executor, self.probe(HOST, executor.port),
            lambda: pid_in(self.data / 'postmaster.pid'))

    def test_a_daemon_that_runs_is_in_the_way(self) -> None:
        executor = self.stopping(self.pg_ctl()).start()
        process = executor.process
        self.assertEqual(0, process.wait(DEADLINE))
        self.assertRaises(AlreadyRunning, executor.start)
        self.probe(HOST, executor.port)()
        self.assertIs(process, executor.process)
        self.check_stop(executor)


class RedisTests(ServiceTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.redis = services.need(self, 'redis-server')

    def command(self, *more: str) -> list[str]:
        return [self.redis, '--bind', HOST, '--save', '', *more]

    def probe(self, address: Any) -> Probe:
        def ask() -> None:
            with socket.socket(socket.AF_INET if isinstance(address, tuple)
                               else socket.AF_UNIX) as client:
                client.settimeout(DEADLINE)
                client.connect(address)
                client.sendall(b'SET key 42\r\nGET key\r\n')
                with client.makefile('rb') as file:
                    self.assertEqual(b'+OK\r\n$2\r\n42\r\n', file.read(13))
        return ask

    def test_its_port(self) -> None:
        executor = TCPExecutor(
            self.command('--port', '{port}'), HOST, 0, **self.options())
        self.check_service(executor, self.probe((HOST, executor.port)))

    def on_a_socket(self, *more: str) -> tuple[list[str], str]:
        path = str(self.dir / 'socket')
        return self.command('--port', '0', '--unixsocket', path, *more), path

    def test_its_socket(self) -> None:
        command, path = self.on_a_socket()
        self.check_service(
            UnixSocketExecutor(command, path, **self.options()),
            self.probe(path))

    def test_what_it_says(self) -> None:
        command, path = self.on_a_socket()
        self.check_service(
            OutputExecutor(command, '(?i)ready to accept connections',
                           **self.options()), self.probe(path))

    def test_its_pid_file(self) -> None:
        pid_file = self.dir / 'pid'
        command, path = self.on_a_socket('--pidfile', str(pid_file))
        executor = PidExecutor(command, pid_file, **self.options())
        self.check_service(executor, self.probe(path),
                           lambda: pid_in(pid_file))

    # A daemon overwrites its environment and leads its own session.

    def daemon(self, *more: str) -> list[str]:
        return self.command('--daemonize', 'yes', '--pidfile',
                            str(self.dir / 'pid'), '--logfile',
                            str(self.dir / 'log'), *more)

    def test_the_port_of_a_daemon(self) -> None:
        executor = TCPExecutor(
            self.daemon('--port', '{port}'), HOST, 0, **self.options())
        self.check_service(executor, self.probe((HOST, executor.port)),
                           lambda: pid_in(self.dir / 'pid'))

    def test_the_pid_file_of_a_daemon(self) -> None:
        path = str(self.dir / 'socket')
        executor = PidExecutor(
            self.daemon('--port', '0', '--unixsocket', path),
            self.dir / 'pid', **self.options())
        self.check_service(executor, self.probe(path),
                           lambda: pid_in(self.dir / 'pid'))

    def test_the_daemons_of_two_executors(self) -> None:
        executors = []
        for name in ('one', 'two'):
            where = self.dir / name
            where.mkdir()
            executors.append(self.stopping(TCPExecutor(
                self.command('--daemonize', 'yes', '--pidfile',
                             str(where / 'pid'), '--port', '{port}'),
                HOST, 0, **self.options(cwd=where))).start())
        one, two = executors
        stays = pid_in(self.dir / 'two' / 'pid')
        one.stop()
        self.assertEqual([stays], list(working_in(self.dir)))
        self.probe((HOST, two.port))()
        self.check_stop(two)


class ZEOTests(ServiceTestCase):

    def test_its_port(self) -> None:
        executor = TCPExecutor(
            [sys.executable, '-m', 'ZEO.runzeo', '-a', f'{HOST}:{{port}}',
             '-f', str(self.dir / 'Data.fs')], HOST, 0,
            **self.options(envvars=child_environment()))
        commits = 0

        def probe() -> None:
            nonlocal commits
            with contextlib.closing(ZEO.DB(
                    (HOST, executor.port), wait_timeout=DEADLINE)
                    ) as db, db.transaction() as connection:
                root = connection.root()
                # What was committed before the server was killed.
                self.assertEqual(commits, root.get('commits', 0))
                commits += 1
                root['commits'] = commits
        self.check_service(executor, probe)
        self.assertEqual(2, commits)


CONFIGURATION = '''\
    daemon off; worker_processes 2; events {{}}
    pid {dir}/nginx.pid; error_log {dir}/error.log;
    http {{
        access_log {dir}/access.log; client_body_temp_path {dir}/body;
        proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
        uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
        server {{
            listen {host}:{port} {more}
            location / {{ return 200 "Hello\\n"; }}
            location /gone {{ return 410; }}
        }}
    }}
    '''


class NginxTests(ServiceTestCase):

    context: ssl.SSLContext | None = None

    def setUp(self) -> None:
        super().setUp()
        self.nginx = services.need(self, 'nginx')

    def executor(self, path: str = '/', *, more: str = ';', host: str = HOST,
                 scheme: str = 'http', **options: Any) -> HTTPExecutor:
        executor = HTTPExecutor(
            [self.nginx, '-p', str(self.dir), '-e', 'error.log',
             '-c', str(self.dir / 'nginx.conf')],
            f'{scheme}://{host}:0{path}', **self.options(**options))
        self.write('nginx.conf', CONFIGURATION.format(
            dir=self.dir, host=host, port=executor.port, more=more))
        return executor

    def probe(self, executor: HTTPExecutor) -> Probe:
        def ask() -> None:
            url = executor.url._replace(path='/').geturl()
            with urllib.request.urlopen(
                    url, timeout=DEADLINE,
                    context=self.context) as answer:
                self.assertEqual(b'Hello\n', answer.read())
        return ask

    def test_an_answer(self) -> None:
        executor = self.executor()
        self.check_service(executor, self.probe(executor))

    def test_a_status(self) -> None:
        executor = self.executor('/gone', status=r'4\d\d$')
        self.check_service(executor, self.probe(executor))

    def test_what_the_answer_says(self) -> None:
        executor = self.executor(
            method='GET', expect=lambda answer: answer.read() == b'Hello\n')
        self.check_service(executor, self.probe(executor))

    def encrypted(self, openssl: str, host: str) -> HTTPExecutor:
        certificate, key = self.dir / 'certificate.pem', self.dir / 'key.pem'
        subprocess.run(
            [openssl, 'req', '-x509', '-nodes', '-days', '2',
             '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1',
             '-subj', '/CN=localhost', '-keyout', key, '-out', certificate,
             '-addext', f'subjectAltName=DNS:localhost,IP:{HOST}'],
            check=True, stderr=subprocess.DEVNULL)
        self.context = ssl.create_default_context(cafile=str(certificate))
        return self.executor(
            scheme='https', host=host, ssl_context=self.context,
            more=f'ssl; ssl_certificate {certificate}; '
                 f'ssl_certificate_key {key};')

    def test_an_encrypted_answer(self) -> None:
        openssl = services.need(self, 'openssl')
        for host in (HOST, 'localhost'):
            with self.subTest(host):
                executor = self.encrypted(openssl, host)
                self.check_service(executor, self.probe(executor))
