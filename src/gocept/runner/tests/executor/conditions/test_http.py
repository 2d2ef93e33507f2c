"""Executors that wait for the answer to a request."""

import ast
import os
import socket
import ssl
import subprocess
import textwrap
import threading
import warnings
from concurrent.futures import Future
from typing import Any
from unittest import mock

from gocept.runner.executor import (
    AlreadyRunning,
    ExecutorError,
    HTTPExecutor,
    ProcessExitedWithError,
    TimeoutExpired,
    http,
)
from gocept.runner.executor.conditions.base import Pauses
from gocept.runner.executor.conditions.network import TCPCheck, resolve
from gocept.runner.poller import Poller
from gocept.runner.tests import services
from gocept.runner.tests.executor.conditions.test_network import (
    HOST,
    RESOLVE,
    busy,
    listening,
)
from gocept.runner.tests.executors import ExecutorTestCase, Starting, server
from gocept.runner.tests.support import DEADLINE
from gocept.runner.tests.victims import until
from gocept.runner.waits.deadline import Deadline

SERVE = '''
import select

def request(conn):
    """The head of a request, and its body."""
    data = b''
    while b'\\r\\n\\r\\n' not in data and (more := conn.recv(4096)):
        data += more
    head, _, body = data.partition(b'\\r\\n\\r\\n')
    _, _, length = head.lower().partition(b'content-length:')
    while len(body) < int((length.split() or [0])[0]):
        body += conn.recv(4096)
    return head.decode(), body.decode()

def answer(conn, status=200, body=b''):
    conn.sendall(b'HTTP/1.1 %d So\\r\\nContent-Length: %d\\r\\n\\r\\n%b'
                 % (status, len(body), body))

def told():
    """Whether it is to go on."""
    return bool(select.select([0], [], [], 0)[0])

def drip(conn):
    """As long as somebody listens."""
    conn.sendall(b'HTTP/1.1 200 ')
    while not select.select([conn], [], [], 0.01)[0]:
        conn.sendall(b'x')

def encrypted():
    import ssl
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain('certificate.pem', 'key.pem')
    return lambda conn: context.wrap_socket(conn, server_side=True)

def serve(handle, host='127.0.0.1', wrap=lambda conn: conn, sock=None):
    sock = sock or listen({port}, host)
    while True:
        conn, _ = sock.accept()
        try:
            with wrap(conn) as conn:
                handle(conn)
        except OSError:  # the client has gone, or does not like us
            conn.close()

'''

LATER = 'request(conn); answer(conn, 200 if told() else 503)'

ECHO = 'say(request(conn)); answer(conn)'


def serving(handling: str, *options: str, before: str = '') -> list[str]:
    """A victim that does so with each connection."""
    return server('\n'.join([
        SERVE, before, 'def handle(conn):',
        textwrap.indent(textwrap.dedent(handling), '    '),
        f'serve({", ".join(("handle", *options))})']))


class WebTestCase(ExecutorTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.end_threads)

    def end_threads(self) -> None:
        """Those that ask end a bit after whom they ask for."""
        for each in threading.enumerate():
            if each.name == 'gocept.runner.executor':
                each.join(DEADLINE)
                self.assertFalse(each.is_alive())

    def executor(self, handling: str, url: str = f'http://{HOST}:0/',
                 serve: tuple[str, ...] = (), before: str = '',
                 **options: Any) -> HTTPExecutor:
        return self.stopping(HTTPExecutor(
            serving(handling, *serve, before=before), url, **options))

    def check_late(self, executor: HTTPExecutor, seen: str = '503') -> None:
        """Ready when it is told to go on, not before."""
        starting = Starting(executor)
        starting.until_seen(seen)
        starting.go_on()
        starting.wait()
        self.assertTrue(executor.running())
        executor.stop()

    def check_expired(self, executor: HTTPExecutor, seen: str,
                      message: str) -> None:
        """Its deadline passes when that has been seen."""
        starting = Starting(executor)
        starting.expire_when_seen(seen)
        self.assertRaisesRegex(TimeoutExpired, message, starting.wait)
        self.assertIsNone(executor.child)


class StatusTests(WebTestCase):

    def test_ready_when_the_status_is_right(self) -> None:
        self.check_late(self.executor(LATER))

    def test_a_wrong_status_is_told(self) -> None:
        self.check_expired(
            self.executor(LATER), '503',
            r'after 0 seconds; waited .* for an answer with status \^2.* to '
            rf'HEAD http://{HOST}:\d+/; seen last: answered with 503 So')

    def test_after_a_wrong_status_it_is_not_asked_at_once(self) -> None:
        for handling, seen in (
                ('request(conn); answer(conn, 404)', 'answered with 404'),
                ('request(conn)', 'RemoteDisconnected')):
            with self.subTest(seen), mock.patch.multiple(
                    Pauses, _FIRST=1000.0, _LAST=1000.0):
                executor = self.executor(handling)
                starting = Starting(executor)
                starting.until_seen(seen)
                check = executor._run.check
                for _ in range(3):
                    self.assertFalse(check.holds())
                self.assertIsNone(check._asking)
                executor.kill()
                self.assertRaises(ExecutorError, starting.wait)

    def test_which_status_is_right(self) -> None:
        executor = self.executor('''
            head, _ = request(conn)
            answer(conn, int(head.split()[1][1:]))
            ''', f'http://{HOST}:0/200').start()
        default = http('http://localhost').status
        for status, right, wrong in (
                (default, (200, 204, 299), (302, 404, 500)),
                (404, (404,), (200, 403, 405)),
                ('404', (404,), (200, 403)),
                ('(200|404)', (200, 404), (201, 500)),
                ('^(2|4)00$', (200, 400), (204, 404)),
                ('4..', (400, 499), (200, 500))):
            for answered in right + wrong:
                with self.subTest(status=status, answered=answered):
                    condition = http(
                        f'http://{HOST}:{executor.port}/{answered}', status)
                    self.assertEqual(
                        (answered in right, f'answered with {answered} So'),
                        condition.ask(socket.create_connection(
                            (executor.host, executor.port))))

    def test_what_is_expected(self) -> None:
        asked = []

        def expect(response: Any) -> bool:
            asked.append(response.status)
            return bool(response.read() == b'ready')

        handling = '''
            request(conn)
            answer(conn, 200, b'ready' if told() else b'soon')
            '''
        self.check_late(self.executor(
            handling, expect=expect, method='GET'), 'not as expected')
        self.assertGreaterEqual(len(asked), 2)
        self.check_expired(
            self.executor(handling, expect=lambda response: None), 'not as',
            'seen last: the answer with 200 is not as expected')

    def test_of_a_wrong_status_nothing_is_expected(self) -> None:
        expect = mock.Mock(return_value=True)
        self.check_late(self.executor(LATER, expect=expect))
        self.assertEqual(1, expect.call_count)

    def test_who_expects_may_fail(self) -> None:
        executor = self.executor(LATER, status=503, expect=mock.Mock(
            side_effect=KeyError('no such thing')))
        self.assertRaisesRegex(KeyError, 'no such thing', executor.start)
        self.assertIsNone(executor.child)

    def test_there_is_no_thread_for_it(self) -> None:
        executor = self.executor('pass')
        executor.pre_start_check = lambda: False
        executor.condition.looked_up = Future()
        executor.condition.looked_up.set_result(
            resolve(HOST, executor.port))
        start = threading.Thread.start
        asking = mock.Mock()

        def refuse(thread: threading.Thread) -> None:
            if thread.name == 'gocept.runner.executor':
                asking()
                raise RuntimeError("can't start new thread")
            start(thread)
        with mock.patch('threading.Thread.start', refuse):
            with warnings.catch_warnings():
                warnings.simplefilter('error')
                with mock.patch('sys.unraisablehook') as complain:
                    self.check_expired(executor, 'ShortageError', 'new thread')
        self.assertTrue(asking.called)
        self.assertFalse(complain.called)

    def test_who_expects_may_hang(self) -> None:
        go_on = threading.Event()
        self.addCleanup(go_on.set)
        executor = self.executor(
            LATER, status=503, expect=lambda response: go_on.wait(DEADLINE))
        self.check_expired(executor, 'no answer yet', 'no answer yet')


class RequestTests(WebTestCase):

    def ask(self, url: str, *serve: str, **options: Any) -> Any:
        """The first line, the fields and the body of what is asked."""
        self.started = self.executor(ECHO, url, serve, **options).start()
        output = self.started.output()
        assert output is not None
        head, body = ast.literal_eval(output.readline())
        self.started.stop()
        first, *fields = head.split('\r\n')
        return first, dict(each.lower().split(': ') for each in fields), body

    def test_the_method(self) -> None:
        for method in 'HEAD', 'GET', 'POST', 'OPTIONS':
            with self.subTest(method):
                first, _, body = self.ask(f'http://{HOST}:0', method=method)
                self.assertEqual(f'{method} / HTTP/1.1', first)
                self.assertEqual('', body)

    def test_the_payload_is_sent_as_a_form(self) -> None:
        payload = {'a key': 'a&b', 'more': '\u00e4'}
        for method in 'HEAD', 'GET', 'POST':
            with self.subTest(method):
                _, fields, body = self.ask(
                    f'http://{HOST}:0/', method=method, payload=payload)
                self.assertEqual('a+key=a%26b&more=%C3%A4', body)
                self.assertEqual('application/x-www-form-urlencoded',
                                 fields['content-type'])

    def test_headers(self) -> None:
        headers = {'X-Some': 'thing', 'content-Type': 'x/y'}
        _, fields, _ = self.ask(f'http://{HOST}:0/', method='POST',
                                headers=headers, payload={'a': 'b'})
        self.assertEqual(('thing', 'x/y'),
                         (fields['x-some'], fields['content-type']))
        self.assertEqual({'X-Some': 'thing', 'content-Type': 'x/y'}, headers)

    def test_what_of_the_url_is_sent(self) -> None:
        for path, sent in (
                ('', '/'), ('/', '/'), ('/a/b;c=1?d=2&e', '/a/b;c=1?d=2&e'),
                ('?a=b', '/?a=b'), ('/a#b', '/a'), ('//a/b', '//a/b'),
                ('/%20', '/%20')):
            with self.subTest(path):
                first, _, _ = self.ask(f'http://{HOST}:0{path}')
                self.assertEqual(f'HEAD {sent} HTTP/1.1', first)

    def test_ipv6(self) -> None:
        _, fields, _ = self.ask('http://[::1]:0/a', 'host="::1"')
        port = self.started.port
        self.assertEqual(('::1', f'http://[::1]:{port}/a'),
                         (self.started.host, self.started.url.geturl()))
        self.assertEqual(f'[::1]:{port}', fields['host'])

    def test_a_port_is_chosen_and_replaced(self) -> None:
        for before in '', 'user@', 'user:0@', 'a:b@c:d@':
            with self.subTest(before):
                executor = HTTPExecutor(
                    'serve {port} x{port}', f'http://{before}{HOST}:0/{{port}}')
                port = executor.port
                self.assertEqual(f'serve {port} x{port}', executor.command)
                self.assertEqual(f'http://{before}{HOST}:{port}/{{port}}',
                                 executor.url.geturl())
                self.assertEqual((HOST, port), (executor.url.hostname,
                                                executor.url.port))
        executor = HTTPExecutor('serve {port}', f'http://{HOST}:8000')
        self.assertEqual('serve {port}', executor.command)

    def test_the_user_is_no_part_of_the_host(self) -> None:
        _, fields, _ = self.ask(f'http://user:0@{HOST}:0/')
        self.assertEqual(f'{HOST}:{self.started.port}', fields['host'])

    def test_the_usual_port(self) -> None:
        for url, port in (('http://localhost', 80), ('https://localhost', 443),
                          ('https://localhost:80', 80), ('HTTP://[::1]/', 80),
                          (f'http://{HOST}:/', 80)):
            with self.subTest(url):
                self.assertEqual(port, HTTPExecutor('serve', url).port)

    def test_what_cannot_be_asked(self) -> None:
        for url, options, message in (
                ('ftp://localhost', {}, 'ftp://localhost.* is no URL'),
                ('localhost:0/a', {}, "^'localhost:0/a' is no URL as http:"),
                ('localhost:80', {}, 'is no URL'), ('', {}, 'is no URL'),
                ('http://', {}, 'is no URL'), ('http:///a', {}, 'is no URL'),
                ('http://:80/', {}, 'is no URL'),
                ('http://localhost:65536/', {}, 'ort'),
                ('http://localhost:-1/', {}, 'ort'),
                ('http://localhost:x/', {}, 'ort'),
                ('http://localhost', {'request_timeout': -1}, 'not -1'),
                ('http://localhost', {'request_timeout': float('nan')},
                 'not nan')):
            with self.subTest(url, **options), self.assertRaisesRegex(
                    ValueError, message):
                HTTPExecutor('serve', url, **options)


class Unhindered(HTTPExecutor):
    """Does not look for others before its start."""

    def pre_start_check(self) -> bool:
        return False


class MisbehaviourTests(WebTestCase):

    def check_cut_short(self, executor: HTTPExecutor, message: str) -> None:
        """Its deadline passes soon after it has connected."""
        def connect(check: TCPCheck) -> socket.socket | None:
            sock = connect_really(check)
            if sock is not None:
                check.deadline = executor._deadline = Deadline(0.1)
            return sock
        connect_really = TCPCheck.connect
        with mock.patch.object(TCPCheck, 'connect', connect):
            self.assertRaisesRegex(TimeoutExpired, message, executor.start)

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
            with self.subTest(url):
                self.check_cut_short(
                    self.silent(url), 'after .* seconds; .*; seen last: '
                    'connected.*, but no answer .*; its stdout is empty$')

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

    def test_a_request_that_the_deadline_cuts_tells_nothing(self) -> None:
        with listening() as port, Poller() as poller:
            condition = http(f'http://{HOST}:{port}/')
            answers = iter([(False, 'answered with 404 So')])

            def ask(sock: socket.socket) -> tuple[bool, str]:
                sock.close()
                for answer in answers:
                    return answer
                raise TimeoutError
            with (mock.patch.object(condition, 'ask', ask),
                  condition.check() as check):
                check.begin(mock.Mock(), (), poller, Deadline(DEADLINE))
                until(lambda: check.holds() or check.seen.endswith(
                    '404 So'))
                until(lambda: check.holds() or 'then connected' in check.seen)
                check.deadline = Deadline(0)
                until(lambda: check.holds() or not check.looking)
            self.assertRegex(
                check.seen, r'^answered with 404 So; then connected to \S+, '
                'but no answer yet$')

    def test_without_a_time_of_its_own_a_request_has_that_of_the_start(
            self) -> None:
        for none in None, 0:
            with self.subTest(none):
                self.check_cut_short(self.silent(request_timeout=none),
                                     'seen last: connected.* no answer')

    def test_a_host_that_never_answers(self) -> None:
        with busy() as sock, mock.patch(RESOLVE, return_value=[
                (socket.AF_INET, sock.getsockname())]):
            self.check_expired(self.executor(LATER), 'no answer',
                               rf'seen last: {HOST}:\d+: no answer;')

    def test_who_is_there_already(self) -> None:
        with listening() as port:
            executor = HTTPExecutor('sleep 100', f'http://{HOST}:{port}/')
            self.assertRaisesRegex(
                AlreadyRunning, rf'process {os.getpid()} \(.+\) listens on '
                f'port {port}$', executor.start)

    def test_a_child_that_fails_is_not_waited_for(self) -> None:
        executor = self.executor('request(conn); sys.exit(3)')
        self.assertRaisesRegex(
            ProcessExitedWithError, 'code: 3; waited ', executor.start)

    def test_a_child_that_fails_while_it_is_asked(self) -> None:
        # A child of its own keeps the connection.
        executor = self.executor("""
            fork(int)
            os.kill(os.getpid(), signal.SIGKILL)
            """)
        self.assertRaisesRegex(
            ProcessExitedWithError, 'non-zero code: -9; .* no answer yet;',
            executor.start)

    def test_a_daemon_may_be_coming_up(self) -> None:
        executor = self.executor("""
            request(conn)
            answer(conn, 200 if os.path.exists('ready') else 503)
            """, before='if os.fork(): os._exit(0)', cwd=self.dir)
        starting = Starting(executor)
        starting.until_seen('503')
        self.assertEqual(0, executor.child and executor.child.wait(
            DEADLINE))
        (self.dir / 'ready').touch()
        starting.wait()
        executor.stop()

    def test_no_daemon_comes_up(self) -> None:
        executor = self.stopping(HTTPExecutor('true', f'http://{HOST}:0/'))
        starting = Starting(executor)
        until(lambda: executor.child and executor.child.poll() == 0)
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
