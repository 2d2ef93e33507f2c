"""Real services: started, used, killed, started anew, stopped."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
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
    PostgreSQLExecutor,
    ProcessExitedWithError,
    RedisExecutor,
    SimpleExecutor,
    TCPExecutor,
    TimeoutExpired,
    UnixSocketExecutor,
    all_of,
    exits_zero,
    output,
    postgresql,
    start_all,
    stop_all,
)
from gocept.runner.process import procfs
from gocept.runner.process.pidfd import hold
from gocept.runner.testing import private_kernel
from gocept.runner.tests import services
from gocept.runner.tests.executors import (
    ExecutorTestCase,
    Starting,
    is_gone,
)
from gocept.runner.tests.kernels import free_port
from gocept.runner.tests.support import DEADLINE, child_environment
from gocept.runner.tests.test_documents import PACKAGE
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


def connected(where: int | str) -> socket.socket:
    """A client of a port or a Unix socket."""
    client = socket.socket(
        socket.AF_INET if isinstance(where, int) else socket.AF_UNIX)
    client.settimeout(DEADLINE)
    client.connect((HOST, where) if isinstance(where, int) else where)
    return client


def query(where: int | str, text: str) -> bytes:
    """What a PostgreSQL answers to a client that comes at once."""
    with connected(where) as client, client.makefile('rb') as file:
        def messages(*sent: bytes) -> bytes:
            kind, content = sent
            client.sendall(kind + (len(content) + 4).to_bytes(4) + content)
            answer = b''
            while kind != b'Z':
                kind = file.read(1)
                body = file.read(int.from_bytes(file.read(4)) - 4)
                if kind == b'E':
                    raise AssertionError(body)
                answer += body
            return answer
        messages(b'', b'\0\3\0\0user\0postgres\0\0')
        return messages(b'Q', text.encode() + b'\0')


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
        child = executor.child
        assert child is not None
        kill(killed := main() if main else child.pid)
        until(lambda: not executor.is_up())
        executor.start()
        probe()
        assert executor.child is not None
        self.assertIsNot(child, executor.child)
        self.assertNotEqual(killed, main() if main else executor.child.pid)
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
        self.addCleanup(services.free_memory, self.data)
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

    def executor(self, *more: str, **options: Any) -> PostgreSQLExecutor:
        return self.stopping(PostgreSQLExecutor(
            self.command('-h', HOST, '-p', '{port}', *more), HOST, 0,
            **self.options(**options)))

    def test_it_lets_clients_in(self) -> None:
        executor = self.executor()
        self.check_service(
            executor, self.probe(HOST, executor.port, at_once=True))

    def test_it_lets_clients_in_at_its_socket(self) -> None:
        executor = PostgreSQLExecutor(
            self.command('-h', '', '-p', '5433'), str(self.home), 5433,
            **self.options())
        self.check_service(
            executor, self.probe(self.home, executor.port, at_once=True))

    def test_clients_that_come_at_once(self) -> None:
        executor = self.executor()
        for _ in range(20):
            with executor:
                self.assertIn(b'42', query(executor.port, 'select 6 * 7'))

    def test_how_clients_are_authenticated_does_not_matter(self) -> None:
        hba = self.home / 'hba'
        executor = self.executor('-c', f'hba_file={hba}', user='nobody',
                                 dbname='nothing')
        for method in 'trust', 'scram-sha-256', 'md5', 'password', 'reject':
            with self.subTest(method):
                hba.write_text(f'host all all {HOST}/32 {method}\n')
                with executor:
                    pass

    def test_the_recipe_of_the_manual(self) -> None:
        recipe = re.search(
            r'^    import contextlib\n(?:    .*\n|\n)*',
            (PACKAGE / 'executor' / 'executor.rst').read_text(), re.MULTILINE)
        assert recipe is not None
        names: dict[str, Any] = {}
        exec(textwrap.dedent(recipe[0]).replace(
            '/usr/lib/postgresql/15/bin', str(self.bin)), names)
        with names['temporary_postgresql']() as server:
            self.assertIn(b'42', query(
                f'{server.host}/.s.PGSQL.{server.port}', 'select 6 * 7'))
        self.assertFalse(os.path.exists(server.host))

    def test_nothing_is_wrong_in_its_log(self) -> None:
        executor = self.executor(stderr=subprocess.PIPE,
                                 log_file=self.dir / 'log')
        for _ in range(3):
            with executor:
                pass
        # The others if it has not noticed the end of our session when it is
        # told to stop, as its processes are.
        told = re.sub('FATAL:  (the database system is starting up|'
                      'terminating connection due to administrator command)|'
                      'ERROR:  canceling statement due to user request',
                      '', (self.dir / 'log').read_text())
        self.assertRegex(told, 'LOG: .*ready to accept')
        self.assertNotRegex(told, 'FATAL|ERROR|WARNING|could not|unexpected')

    def test_one_that_lets_nobody_in(self) -> None:
        (self.data / 'standby.signal').touch()
        starting = Starting(self.executor('-c', 'hot_standby=off'))
        starting.expire_when_seen(
            'answered FATAL 57P03 the database system is not accepting')
        self.assertRaises(TimeoutExpired, starting.wait)

    def test_one_that_recovers(self) -> None:
        executor = self.executor().start()
        query(executor.port, 'create table t as '
              'select generate_series(1, 300000)')
        executor.stop(signal.SIGQUIT, 2)
        with executor:
            self.assertIn(b'300000', query(
                executor.port, 'select count(*) from t'))

    def test_it_is_one_of_several_conditions(self) -> None:
        ready = postgresql(HOST, 0)
        executor = self.stopping(ConditionExecutor(
            self.command('-h', HOST, '-p', '{port}'),
            all_of(output('ready to accept connections'), ready),
            **self.options(stderr=subprocess.PIPE)))
        with executor:
            self.assertIn(b'42', query(ready.port, 'select 6 * 7'))

    def pg_ctl(self, kind: type[TCPExecutor | PostgreSQLExecutor] = (
            TCPExecutor)) -> Any:
        """It ends at once, well before the daemon is ready."""
        return kind(
            [str(self.bin / 'pg_ctl'), 'start', '--no-wait', '-s',
             '-D', str(self.data), '-l', str(self.home / 'log'),
             '-o', f'-F -h {HOST} -p {{port}} -k {self.home}'], HOST, 0,
            **self.options())

    def test_a_daemon(self) -> None:
        executor = self.pg_ctl()
        self.check_service(
            executor, self.probe(HOST, executor.port),
            lambda: pid_in(self.data / 'postmaster.pid'))

    def test_a_daemon_that_lets_clients_in(self) -> None:
        executor = self.pg_ctl(PostgreSQLExecutor)
        self.check_service(
            executor, self.probe(HOST, executor.port, at_once=True),
            lambda: pid_in(self.data / 'postmaster.pid'))

    def test_a_daemon_that_runs_is_in_the_way(self) -> None:
        executor = self.stopping(self.pg_ctl()).start()
        process = executor.child
        self.assertEqual(0, process.wait(DEADLINE))
        self.assertRaises(AlreadyRunning, executor.start)
        self.probe(HOST, executor.port)()
        self.assertIs(process, executor.child)
        self.check_stop(executor)


class RedisTests(ServiceTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.redis = services.need(self, 'redis-server')
        self.port = free_port()

    def command(self, *more: str) -> list[str]:
        return [self.redis, '--bind', HOST, '--save', '', *more]

    def probe(self, where: int | str) -> Probe:
        def ask() -> None:
            with connected(where) as client:
                client.sendall(b'SET key 42\r\nGET key\r\n')
                with client.makefile('rb') as file:
                    self.assertEqual(b'+OK\r\n$2\r\n42\r\n', file.read(13))
        return ask

    def test_its_port(self) -> None:
        executor = TCPExecutor(
            self.command('--port', '{port}'), HOST, 0, **self.options())
        self.check_service(executor, self.probe(executor.port))

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

    def executor(self, *more: str, password: str = '', **options: Any,
                 ) -> RedisExecutor:
        return self.stopping(RedisExecutor(
            self.command('--port', '{port}', *more), HOST, 0,
            password=password, **self.options(**options)))

    def test_it_answers(self) -> None:
        executor = self.executor()
        self.check_service(executor, self.probe(executor.port))

    def test_several_are_started_side_by_side(self) -> None:
        first = self.executor(name='first')
        executors = [first, *(self.executor(requires=[first])
                              for _ in range(5))]
        start_all(executors)
        for each in executors:
            self.probe(each.port)()
        stop_all(executors)

    def test_it_answers_at_its_socket(self) -> None:
        command, path = self.on_a_socket()
        self.check_service(
            RedisExecutor(command, path, **self.options()), self.probe(path))

    def test_it_answers_who_knows_the_password(self) -> None:
        executor = self.executor('--requirepass', 'the "secret" one',
                                 password='the "secret" one')
        with executor:
            pass

    def test_another_password(self) -> None:
        starting = Starting(self.executor(
            '--requirepass', 'a', password='b'))
        starting.expire_when_seen("answered '-WRONGPASS")
        self.assertRaises(TimeoutExpired, starting.wait)

    def test_a_password_that_nobody_has_told_us(self) -> None:
        with self.executor('--requirepass', 'secret'):
            pass

    def fill(self, count: int = 200, pause: int = 1000) -> list[str]:
        """Have it begin with so many keys; returns options that make this
        slow, with a pause of so many microseconds for each key."""
        with self.executor('--enable-debug-command', 'yes') as executor, \
                connected(executor.port) as client, \
                client.makefile('rb') as file:
            client.sendall(b'DEBUG POPULATE %d\r\nSAVE\r\n' % count)
            self.assertEqual(b'+OK\r\n+OK\r\n', file.read(10))
        return ['--key-load-delay', str(pause),
                '--loading-process-events-interval-bytes', '1024']

    def test_it_loads_its_data(self) -> None:
        slowly = self.fill(4000, 5000)
        for password in '', 'secret':
            more = ['--requirepass', password] if password else []
            with self.subTest(password):
                executor = self.executor(*slowly, *more, password=password)
                starting = Starting(executor)
                starting.until_seen('-LOADING Redis is loading')
                with connected(executor.port) as client:
                    client.sendall(b'AUTH secret\r\n' * bool(password)
                                   + b'CONFIG SET key-load-delay 0\r\n')
                    starting.wait()
                executor.stop()

    def test_it_fails_after_it_listens(self) -> None:
        slowly = self.fill()
        data = self.dir / 'dump.rdb'
        data.write_bytes(data.read_bytes()[:-100])
        executor = self.executor(*slowly)
        for _ in range(5):
            with self.assertRaisesRegex(
                    ProcessExitedWithError, 'non-zero code: 1'):
                executor.start()

    def test_its_master_is_away(self) -> None:
        starting = Starting(self.executor(
            '--replica-serve-stale-data', 'no', '--replicaof', HOST, '1'))
        starting.expire_when_seen('-MASTERDOWN Link with MASTER is down')
        self.assertRaises(TimeoutExpired, starting.wait)

    def test_it_lives_in_a_kernel(self) -> None:
        kernel = self.enterContext(private_kernel())
        pids = []
        for _ in range(2):
            executor = RedisExecutor(
                self.command('--port', str(self.port)), HOST, self.port,
                kernel=kernel, name='redis', **self.options())
            with executor:
                assert executor.child is not None
                pids.append(executor.child.pid)
                self.probe(self.port)()
        self.assertEqual(1, len({*pids}))
        executor.stop()

    # A daemon overwrites its environment and leads its own session.

    def daemon(self, *more: str) -> list[str]:
        return self.command('--daemonize', 'yes', '--pidfile',
                            str(self.dir / 'pid'), '--logfile',
                            str(self.dir / 'log'), *more)

    def test_the_port_of_a_daemon(self) -> None:
        executor = TCPExecutor(
            self.daemon('--port', '{port}'), HOST, 0, **self.options())
        self.check_service(executor, self.probe(executor.port),
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
        self.probe(two.port)()
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
