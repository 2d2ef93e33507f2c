"""What may go wrong while an executor waits for the answer to a request."""

import os
import socket
import ssl
import subprocess
from typing import Any
from unittest import mock

from gocept.runner.executor import (
    AlreadyRunning,
    HTTPExecutor,
    ProcessExitedWithError,
    TimeoutExpired,
)
from gocept.runner.tests import services
from gocept.runner.tests.executor.conditions.test_http import (
    LATER,
    WebTestCase,
)
from gocept.runner.tests.executor.conditions.test_network import (
    HOST,
    RESOLVE,
    busy,
    listening,
)
from gocept.runner.tests.executors import Starting
from gocept.runner.tests.support import DEADLINE
from gocept.runner.tests.victims import until


class Unhindered(HTTPExecutor):
    """Does not look for others before its start."""

    def pre_start_check(self) -> bool:
        return False


class MisbehaviourTests(WebTestCase):

    def silent(self, url: str = f'http://{HOST}:%d/',
               **options: Any) -> HTTPExecutor:
        """One whose child listens from its start, and says nothing."""
        sock = self.enterContext(socket.create_server((HOST, 0)))
        return self.stopping(Unhindered(
            'sleep 100', url % sock.getsockname()[1], **options,
            popen_kwargs={'pass_fds': [sock.fileno()]}))

    def test_no_answer_that_can_be_understood(self) -> None:
        for handling, seen, options in (
                ('conn.sendall(b"220 mail\\r\\n")', 'BadStatusLine', {}),
                ('conn.sendall(b"\\0" * 100_000)', 'LineTooLong', {}),
                ('pass', 'RemoteDisconnected: Remote end closed', {}),
                ('conn.sendall(b"HTTP/1.1 200 O\\r\\nContent-Length: 9\\r\\n"'
                 'b"\\r\\nshort")', 'IncompleteRead',
                 {'method': 'GET', 'expect': lambda answer: [answer.read()]})):
            with self.subTest(handling):
                self.check_late(self.executor(f"""
                    request(conn)
                    if told():
                        answer(conn)
                    else:
                        {handling}
                    """, **options), seen)

    def test_the_connection_is_closed_at_once(self) -> None:
        executor = self.executor("""
            if told():
                request(conn)
                answer(conn)
            else:
                say('closed')
            """)
        starting = Starting(executor)
        output = until(executor.output)
        for _ in range(2):  # it is asked again
            self.assertEqual('closed\n', output.readline())
        starting.go_on()
        starting.wait()

    def test_who_says_nothing_cannot_outlive_the_deadline(self) -> None:
        for url in f'http://{HOST}:%d/', f'https://{HOST}:%d/':
            with self.subTest(url), self.assertRaisesRegex(
                    TimeoutExpired, 'after 0.3 s; .*; seen last: connected.*'
                    ', but no answer .*; its stdout is empty$'):
                self.silent(url, timeout=0.3).start()

    def test_who_says_little_cannot_outlive_the_deadline(self) -> None:
        self.check_expired(self.executor('request(conn); drip(conn)'),
                           'no answer yet', 'no answer yet')

    def test_who_says_nothing_or_little_is_asked_again(self) -> None:
        for handling in 'select.select([0], [], [])', 'drip(conn)':
            with self.subTest(handling):
                self.check_late(self.executor(f"""
                    request(conn)
                    answer(conn) if told() else {handling}
                    """, request_timeout=0.05), 'no answer in 0.05 s')

    def test_what_was_answered_before_is_told_as_well(self) -> None:
        self.check_expired(
            self.executor("""
                request(conn)
                answer(conn, 503)
                conn, _ = sock.accept()
                pause()
                """, before='sock = listen({port})', serve=('sock=sock',)),
            'then', 'seen last: answered with 503 So; then connected to .*, '
            'but no answer yet;')

    def test_without_a_time_of_its_own_a_request_has_that_of_the_start(
            self) -> None:
        for none in None, 0:
            with self.subTest(none), self.assertRaisesRegex(
                    TimeoutExpired, 'seen last: connected.* no answer'):
                self.silent(timeout=0.1, request_timeout=none).start()

    def test_a_host_that_never_answers(self) -> None:
        executor = self.executor(LATER, timeout=0.3)
        with busy() as sock, mock.patch(RESOLVE, return_value=[
                (socket.AF_INET, sock.getsockname())]):
            self.assertRaisesRegex(
                TimeoutExpired, rf'seen last: {HOST}:\d+: no answer;',
                executor.start)

    def test_who_is_there_already(self) -> None:
        with listening() as port:
            executor = HTTPExecutor('sleep 100', f'http://{HOST}:{port}/')
            self.assertRaisesRegex(
                AlreadyRunning, rf'process {os.getpid()} \(.+\) listens on '
                f'port {port}$', executor.start)

    def test_a_child_that_fails_is_not_waited_for(self) -> None:
        executor = self.executor('request(conn); sys.exit(3)')
        self.assertRaisesRegex(
            ProcessExitedWithError, 'ended with 3; waited ', executor.start)

    def test_a_child_that_fails_while_it_is_asked(self) -> None:
        # A child of its own keeps the connection.
        executor = self.executor("""
            fork(int)
            os.kill(os.getpid(), signal.SIGKILL)
            """)
        self.assertRaisesRegex(
            ProcessExitedWithError, 'ended with -9; .* no answer yet;',
            executor.start)

    def test_a_daemon_may_be_coming_up(self) -> None:
        executor = self.executor("""
            request(conn)
            answer(conn, 200 if os.path.exists('ready') else 503)
            """, before='if os.fork(): os._exit(0)', cwd=self.dir)
        starting = Starting(executor)
        starting.until_seen('503')
        self.assertEqual(0, executor.process and executor.process.wait(
            DEADLINE))
        (self.dir / 'ready').touch()
        starting.wait()
        executor.stop()

    def test_no_daemon_comes_up(self) -> None:
        executor = self.stopping(HTTPExecutor('true', f'http://{HOST}:0/'))
        starting = Starting(executor)
        until(lambda: executor.process and executor.process.poll() == 0)
        starting.until_seen('refused')
        executor._timeout = 0
        executor._set_timeout()
        self.assertRaisesRegex(
            TimeoutExpired, 'refused; its status is 0', starting.wait)


class EncryptedTests(WebTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.certificate = self.dir / 'certificate.pem'
        subprocess.run(
            [services.need(self, 'openssl'), 'req', '-x509', '-nodes',
             '-days', '2', '-newkey', 'ec', '-pkeyopt',
             'ec_paramgen_curve:prime256v1', '-subj', '/CN=localhost',
             '-keyout', self.dir / 'key.pem',
             '-out', self.certificate,
             '-addext', f'subjectAltName=DNS:localhost,IP:{HOST},IP:::1'],
            check=True, stderr=subprocess.DEVNULL)

    def encrypted(self, url: str = f'https://{HOST}:0/', host: str = HOST,
                  **options: Any) -> HTTPExecutor:
        return self.executor(
            'request(conn); answer(conn, 200 if told() else 503)', url,
            (f'{host!r}', 'encrypted()'), cwd=self.dir, **options)

    @property
    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))

    def test_whom_we_trust(self) -> None:
        for url, host in ((f'https://{HOST}:0/', HOST),
                          ('https://[::1]:0/', '::1')):
            with self.subTest(url):
                self.check_late(self.encrypted(
                    url, host, ssl_context=self.trusting))

    def test_whom_nobody_trusts(self) -> None:
        self.check_expired(
            self.encrypted(), 'CERTIFICATE', 'seen last: '
            'SSLCertVerificationError: .*self.signed certificate')

    def test_the_certificate_of_another(self) -> None:
        executor = self.encrypted(
            'https://127.0.0.2:0/', '127.0.0.2', ssl_context=self.trusting)
        self.check_expired(executor, 'CERTIFICATE', "not valid for '127.0.0.2")

    def test_one_that_speaks_plainly(self) -> None:
        self.check_expired(
            self.executor('conn.sendall(b"HTTP/1.1 400 O\\r\\n\\r\\n")',
                          f'https://{HOST}:0/'),
            'SSLError', 'seen last: SSLError: .*WRONG_VERSION_NUMBER')
