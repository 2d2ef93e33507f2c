"""A server that whoever asks cannot harm."""

import socket
import unittest
from http import HTTPStatus
from unittest import mock

from gocept.runner.house import http
from gocept.runner.house.http import Answer, Refusal, names_of, request_of
from gocept.runner.tests.house.clients import answer_of, serving
from gocept.runner.tests.victims import until
from gocept.runner.waits.names import listening

GET = b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'


class RequestTests(unittest.TestCase):

    def request(self, line=b'GET / HTTP/1.1', *lines, host=b'localhost'):
        return request_of(b'\r\n'.join([line, *(
            [] if host is None else [b'Host: ' + host]), *lines]),
            names_of('127.0.0.1'))

    def assertRefused(self, status, *args, **keywords):
        with self.assertRaises(Refusal) as raised:
            self.request(*args, **keywords)
        answer = raised.exception.answer
        self.assertEqual(status, answer.status.value, answer.body)
        self.assertTrue(answer.body.startswith(b'%d ' % status))
        self.assertEqual(1, answer.body.count(b'\n'))

    def test_what_a_client_asks_for(self):
        request = self.request(
            b'HEAD /a%20b?c=d HTTP/1.1', b'X-Name:   some value\t',
            b'Empty:', b'accept: \xe4')
        self.assertEqual(
            ('HEAD', '/a%20b', 'c=d', 'some value', '', '\xe4'),
            (request.method, request.path, request.query,
             *(request.headers[name] for name in (
                 'x-name', 'empty', 'accept'))))

    def test_lines_that_end_with_a_newline_alone(self):
        self.assertEqual('/x', request_of(
            b'GET /x HTTP/1.0\nHost: localhost', names_of('')).path)

    def test_lines_that_are_none(self):
        for line in (
                b'', b'GET', b'GET /', b'GET / HTTP/1', b'GET  / HTTP/1.1',
                b' GET / HTTP/1.1', b'GET / HTTP/1.1 ', b'G\xc4T / HTTP/1.1',
                b'GET /\xff HTTP/1.1', b'GET /\0 HTTP/1.1', b'GET / FTP/1.1',
                b'GET / http/1.1', b'GET /\x7f HTTP/1.1', b'GET / HTTP/1.1\r',
                b'\x16\x03\x01\x02\x00\x01\x00', b'G(T / HTTP/1.1',
                b'GET / HTTP/11.1', b'GET /\rX: HTTP/1.1'):
            with self.subTest(line):
                self.assertRefused(400, line)

    def test_heads_that_are_none(self):
        for line in (
                b'no colon', b': value', b' folded: value', b'na me: x',
                b'name : x', b'\tx', b'name: \0', b'name: a\rb', b'n\xe4: x',
                b'name: \x7f', b'GET / HTTP/1.1'):
            with self.subTest(line):
                self.assertRefused(400, b'GET / HTTP/1.1', line)

    def test_too_many_fields(self):
        fields = [b'x: %d' % number for number in range(http.MOST_FIELDS - 1)]
        self.request(b'GET / HTTP/1.1', *fields)
        self.assertRefused(431, b'GET / HTTP/1.1', *fields, b'x: y')

    def test_versions(self):
        self.request(b'GET / HTTP/1.9')
        for version in b'0.9', b'2.0', b'3.0':
            self.assertRefused(505, b'GET / HTTP/' + version)

    def test_methods(self):
        for method in b'POST', b'OPTIONS', b'PUT', b'get', b'CONNECT', b'PRI':
            with self.subTest(method):
                self.assertRefused(405, method + b' / HTTP/1.1')
        with self.assertRaises(Refusal) as raised:
            self.request(b'POST / HTTP/1.1')
        self.assertEqual({'Allow': 'GET, HEAD'},
                         raised.exception.answer.headers)

    def test_bodies(self):
        self.request(b'GET / HTTP/1.1', b'Content-Length: 0')
        for line in (b'Content-Length: 1', b'Content-Length: x',
                     b'content-length: 00001', b'Transfer-Encoding: chunked',
                     b'Transfer-Encoding:'):
            with self.subTest(line):
                self.assertRefused(413, b'GET / HTTP/1.1', line)

    def test_paths(self):
        for target in b'*', b'localhost:80', b'x/y', b'?x', b'ftp://x/':
            with self.subTest(target):
                self.assertRefused(400, b'GET ' + target + b' HTTP/1.1')

    def test_a_whole_url(self):
        for url, expected in (
                (b'http://127.0.0.1:80/x?y', ('/x', 'y')),
                (b'HTTP://LOCALHOST', ('/', '')),
                (b'https://[::1]/#z', ('/', ''))):
            # The host of the URL counts.
            request = self.request(b'GET ' + url + b' HTTP/1.1', host=b'evil')
            self.assertEqual(expected, (request.path, request.query))
        self.assertRefused(421, b'GET http://evil/ HTTP/1.1')
        self.assertRefused(400, b'GET http:/// HTTP/1.1')

    def test_hosts(self):
        for host in (b'localhost', b'LOCALHOST:8080', b'127.0.0.1:80',
                     b'[::1]', b'[::1]:80', b'10.1.2.3', b'[fe80::1]:1',
                     b'localhost.', b'localhost:'):
            with self.subTest(host):
                self.request(host=host)

    def test_hosts_of_others(self):
        # Such a name may point to this machine: DNS rebinding.
        for host in (b'evil.example', b'evil.example:80', b'localhost.evil',
                     b'127.0.0.1.evil.example', b'evillocalhost', b'0x7f.1',
                     b'2130706433', b'127.1', b'\xe4', b'localhost,evil'):
            with self.subTest(host):
                self.assertRefused(421, host=host)

    def test_hosts_that_are_none(self):
        for host in (b'', b':80', b'a b', b'user@localhost', b'localhost/',
                     b'[::1', b'::1', b'localhost:x', b'localhost:80:80',
                     b'[localhost]', b'localhost#', b'localhost?'):
            with self.subTest(host):
                self.assertRefused(400, host=host)

    def test_several_hosts(self):
        self.assertRefused(400, b'GET / HTTP/1.1', b'host: localhost')

    def test_no_host(self):
        self.assertRefused(400, host=None)
        self.request(b'GET / HTTP/1.0', host=None)
        self.assertRefused(421, b'GET / HTTP/1.0', host=b'evil')

    def test_names(self):
        self.assertIn('shop.example', names_of('Shop.Example'))
        self.assertNotIn('', names_of(''))
        self.assertIn('localhost', names_of('10.0.0.1'))


class ServerCase(unittest.TestCase):

    def setUp(self):
        self.requests = []
        self.answer = Answer(b'body')

    def handle(self, request, reply):
        self.requests.append(request)
        reply(self.answer)

    def serve(self, handler=None, **options):
        return self.enterContext(serving(handler or self.handle, **options))

    def assertStatus(self, status, answer):
        self.assertEqual(b'%d' % status, answer[0][9:12], answer)


class ServerTests(ServerCase):

    def test_an_answer(self):
        self.answer = Answer(b'ab', HTTPStatus.NOT_FOUND, 'text/x',
                             {'X-More': 'yes'})
        head, body = self.serve().get('/x?y')
        first, *lines = head.split(b'\r\n')
        self.assertEqual(b'HTTP/1.1 404 Not Found', first)
        self.assertLessEqual(
            {b'Connection: close', b'Content-Type: text/x', b'X-More: yes',
             b'Content-Length: 2', b'Cache-Control: no-store',
             b'X-Content-Type-Options: nosniff'}, set(lines))
        self.assertEqual(b'ab', body)
        [request] = self.requests
        self.assertEqual(('/x', 'y'), (request.path, request.query))

    def test_head(self):
        served = self.serve()
        head, body = served.ask(GET.replace(b'GET', b'HEAD'))
        self.assertIn(b'Content-Length: 4\r\n', head)
        self.assertEqual(b'', body)

    def test_a_request_in_pieces(self):
        served = self.serve()
        with served.connect() as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number in range(len(GET)):
                client.sendall(GET[number:number + 1])
            self.assertStatus(200, answer_of(client))

    def test_empty_lines_before_a_request(self):
        self.assertStatus(200, self.serve().ask(b'\r\n\n\r\n' + GET))

    def test_several_requests_at_once(self):
        head, body = self.serve().ask(GET * 3)
        self.assertStatus(200, (head, body))
        self.assertEqual((b'body', 1), (body, len(self.requests)))

    def test_a_request_that_is_none(self):
        self.assertStatus(400, self.serve().ask(b'hello\r\n\r\n'))
        self.assertEqual([], self.requests)

    def test_a_body_behind_the_head(self):
        post = GET.replace(b'GET', b'POST') + b'x' * 100_000
        self.assertStatus(405, self.serve().ask(post))

    def test_a_first_line_that_is_too_long(self):
        self.assertStatus(414, self.serve().ask(b'GET /' + b'x' * 9000))

    def test_a_head_that_is_too_long(self):
        self.assertStatus(431, self.serve().ask(
            GET[:-2] + b'x: ' + b'x' * 9000))
        self.assertStatus(431, self.serve().ask(
            GET[:-2] + b'x: ' + b'x' * 9000 + b'\r\n\r\n'))

    def test_a_client_that_sends_without_end(self):
        for beginning in GET, b'\r\n':
            with self.subTest(beginning), self.serve().connect() as client:
                client.sendall(beginning)
                with self.assertRaises(ConnectionError):
                    while True:
                        client.sendall(b'\r\n' * 50_000)

    def test_a_large_answer(self):
        self.answer = Answer(b'x' * 5_000_000)
        _, body = self.serve().get('/')
        self.assertEqual(5_000_000, len(body))

    def test_a_client_that_closes_its_side(self):
        served = self.serve()
        with served.connect() as client:
            client.sendall(GET[:10])
            client.shutdown(socket.SHUT_WR)
            self.assertEqual((b'', b''), answer_of(client))
        until(lambda: served.server.is_idle)

    def test_a_client_that_resets(self):
        served = self.serve()
        for data in b'', GET[:10], GET:
            with self.subTest(data), served.connect() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                  b'\1\0\0\0\0\0\0\0')
                client.sendall(data)
        until(lambda: served.server.is_idle)
        self.assertStatus(200, served.get('/'))

    def test_a_handler_that_fails(self):
        def fail(request, reply):
            raise ValueError('no')
        with self.assertLogs('gocept.runner.house', 'ERROR'):
            self.assertStatus(500, self.serve(fail).get('/'))

    def test_an_answer_that_comes_later(self):
        replies = []
        served = self.serve(
            lambda request, reply: replies.append(reply))
        with served.connect() as client:
            client.sendall(GET)
            until(lambda: replies)
            self.assertStatus(200, self.serve().get('/'))
            served.polled.call(lambda: replies[0](self.answer))
            self.assertStatus(200, answer_of(client))
        until(lambda: served.server.is_idle)
        served.polled.call(lambda: replies[0](self.answer))  # is ignored

    def test_the_host(self):
        served = self.serve(names=frozenset(['shop']))
        self.assertStatus(200, served.get('/', 'shop:80'))
        head, body = served.get('/', 'evil.example')
        self.assertStatus(421, (head, body))
        self.assertIn(b'--http evil.example:PORT', body)


class PatienceTests(ServerCase):
    """Clients that are slow."""

    def setUp(self):
        super().setUp()
        self.enterContext(mock.patch.object(http, 'PATIENCE', 0.2))

    def test_a_client_that_says_nothing(self):
        with self.serve().connect() as client:
            self.assertEqual((b'', b''), answer_of(client))

    def test_a_client_that_sends_little_by_little(self):
        client = self.enterContext(self.serve().connect())
        client.sendall(GET[:-2] + b'x: ')
        client.settimeout(0.01)
        answer = b''
        while not answer:
            try:
                client.sendall(b'x')
                answer = client.recv(65536)
            except TimeoutError:
                continue
        self.assertIn(b'HTTP/1.1 408 Request Timeout', answer)

    def test_an_answer_that_does_not_come(self):
        served = self.serve(lambda request, reply: None)
        answer = served.get('/')
        self.assertStatus(503, answer)
        self.assertIn(b'there was no answer within 0.2 s', answer[1])

    def test_a_client_that_does_not_read(self):
        self.answer = Answer(b'x' * 10_000_000)
        served = self.serve()
        with self.assertNoLogs('gocept.runner', 'INFO'):
            client = self.enterContext(served.connect())
            client.sendall(GET)
            until(lambda: self.requests)
            until(lambda: served.server.is_idle)
        self.assertLess(len(answer_of(client)[1]), 10_000_000)

    def test_a_client_that_does_not_close(self):
        served = self.serve()
        client = self.enterContext(served.connect())
        client.sendall(GET)
        self.assertStatus(200, answer_of(client))
        until(lambda: served.server.is_idle)


class ManyTests(ServerCase):
    """More clients than are wanted."""

    def setUp(self):
        super().setUp()
        self.enterContext(mock.patch.object(http, 'MOST_CONNECTIONS', 3))

    def test_the_oldest_make_way(self):
        served = self.serve()
        clients = [self.enterContext(served.connect()) for _ in range(10)]
        for client in clients[:7]:
            self.assertEqual((b'', b''), answer_of(client))
        for client in clients[7:]:
            client.sendall(GET)
            self.assertStatus(200, answer_of(client))

    def test_many_that_say_nothing_keep_nobody_waiting(self):
        served = self.serve()
        for _ in range(50):
            self.enterContext(served.connect())
        self.assertStatus(200, served.get('/'))


class EndTests(ServerCase):

    def test_the_end(self):
        served = self.serve()
        silent = self.enterContext(served.connect())
        silent.sendall(b'GET')
        until(lambda: not served.server.is_idle)
        served.polled.call(served.server.stop)
        self.assertEqual((b'', b''), answer_of(silent))
        self.assertTrue(served.server.is_idle)
        with self.assertRaises(ConnectionRefusedError):
            served.connect()
        with socket.create_server(('127.0.0.1', served.port)):
            pass  # the port is free

    def test_an_answer_on_its_way_is_sent(self):
        self.answer = Answer(b'x' * 10_000_000)
        served = self.serve()
        with served.connect() as client:
            client.sendall(GET)
            until(lambda: self.requests)
            served.polled.call(served.server.stop)
            self.assertFalse(served.server.is_idle)
            self.assertEqual(10_000_000, len(answer_of(client)[1]))
        until(lambda: served.server.is_idle)

    def test_the_deadline_of_the_end(self):
        self.answer = Answer(b'x' * 10_000_000)
        served = self.serve()
        with served.connect() as client:
            client.sendall(GET)
            until(lambda: self.requests)
            served.polled.call(served.server.stop)
            served.polled.call(served.server.close)
            self.assertTrue(served.server.is_idle)


class LoopbackTests(unittest.TestCase):

    def test_who_can_connect(self):
        for host, expected in (('127.0.0.1', True), ('127.0.0.2', True),
                               ('0.0.0.0', False)):
            with listening(host, 0) as sock:
                self.assertEqual(expected, http.is_loopback(sock))
        sock = mock.Mock(getsockname=lambda: ('fe80::1%eth0', 80, 0, 0))
        self.assertFalse(http.is_loopback(sock))
