"""Clients of a server that does what the test says."""

import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import tempfile
import threading
import time
import unittest
import unittest.mock
import warnings
from unittest import mock

from gocept.runner.background import link
from gocept.runner.background.client import Client
from gocept.runner.background.frames import (
    AWAIT,
    BY_VALUE,
    ERROR,
    EXEC,
    EXIT,
    INIT,
    PING,
    PONG,
    REPORT,
    STATUS,
)
from gocept.runner.background.tokens import token_file
from gocept.runner.errors import (
    BackgroundError,
    ConnectionLost,
    DeadlineExceeded,
    NoResponse,
    NotDecoded,
    NotInitialized,
    ProtocolError,
    RemoteTaskError,
    ServerBusy,
    ServerNotRunning,
    ServerRefused,
    ShortageError,
    VersionMismatch,
)
from gocept.runner.tests.background.scripted import (
    TOKEN,
    ScriptedServer,
)
from gocept.runner.tests.kernels import free_port
from gocept.runner.tests.streams import Alarms
from gocept.runner.tests.support import DEADLINE

OTHER_PYTHON = 3, 99


class Nameless:

    def __repr__(self):
        raise ValueError


def echo(conversation):
    conversation.agree().echo()


def silent(conversation):
    conversation.sock.recv(1)


@contextlib.contextmanager
def used_up_descriptors():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as file:
        resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno(), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class ClientTestCase(unittest.TestCase):

    def serve(self, *scripts):
        server = ScriptedServer(*scripts)
        self.addCleanup(server.close)
        return server

    def client(self, *scripts, **options):
        server = self.serve(*scripts)
        client = Client('127.0.0.1', server.port, **{
            'token': TOKEN, 'timeout': DEADLINE, **options})
        client.server = server
        self.addCleanup(client.close)
        return client


class CallTests(ClientTestCase):

    def test_value_there_and_back(self):
        client = self.client(echo)
        for value in ({'x': 1}, None, b'x' * 100_000, 'again'):
            self.assertEqual(value, client.execute(value, True))
        self.assertEqual(1, client.server.connections)

    def test_kinds_and_flags(self):
        seen = []

        def script(conversation):
            conversation.agree()
            for _ in range(5):
                request = conversation.receive()
                seen.append((request.kind, request.flags))
                if request.kind == STATUS:
                    conversation.answer(REPORT, request.id, b'{"pid": 5}')
                elif request.flags & AWAIT:
                    conversation.respond(request, 'done')
                else:
                    conversation.receipt(request)

        client = self.client(script)
        self.assertEqual('done', client.initialize(len, len))
        self.assertEqual({'pid': 5}, client.status())
        self.assertEqual({'message': "Received 'EXEC'"}, client.execute({}))
        self.assertEqual('done', client.execute({}, await_response=True))
        self.assertEqual({'message': "Received 'EXIT'"}, client.terminate())
        self.assertEqual(
            [(INIT, AWAIT), (STATUS, AWAIT), (EXEC, 0), (EXEC, AWAIT),
             (EXIT, 0)], seen)

    def test_errors_of_the_server(self):
        for error, expected in (
                ('task', RemoteTaskError), ('not_dict', RemoteTaskError),
                ('no_response', NoResponse), ('busy', ServerBusy),
                ('not_initialized', NotInitialized),
                ('not_decoded', NotDecoded), ('version', VersionMismatch),
                ('ending', ServerNotRunning), ('not_allowed', ServerRefused),
                ('too_large', BackgroundError), ('odd', BackgroundError)):
            with self.subTest(error=error):
                def script(conversation, error=error):
                    conversation.agree()
                    conversation.fail(conversation.receive(), error, 'why',
                                      type='OddError', traceback='line 1')
                    conversation.echo()
                client = self.client(script)
                with self.assertRaisesRegex(expected, 'why') as raised:
                    client.execute({}, True)
                if expected is RemoteTaskError:
                    self.assertEqual('OddError', raised.exception.type)
                    self.assertIn('line 1', raised.exception.traceback)
                self.assertEqual(7, client.execute(7, True))

    def test_response_that_is_an_error(self):
        def script(conversation):
            conversation.agree()
            conversation.respond(conversation.receive(), [5], ERROR)
            conversation.echo()
        client = self.client(script)
        with self.assertRaises(RemoteTaskError) as raised:
            client.execute({}, True)
        self.assertEqual([5], raised.exception.response)

    def test_response_without_a_text_that_is_an_error(self):
        def script(conversation):
            conversation.agree()
            for value in Nameless(), 'x' * 10_000:
                conversation.respond(conversation.receive(), value, ERROR)
            conversation.echo()
        client = self.client(script)
        for text in 'a Nameless that has no text', 'x{999}[.]{3}$':
            with self.assertRaisesRegex(RemoteTaskError, text):
                client.execute({}, True)

    def test_code_for_another_python(self):
        def script(conversation):
            conversation.agree(python=OTHER_PYTHON)
            conversation.respond(conversation.receive(), 5, BY_VALUE)
            conversation.echo()
        client = self.client(script)
        with self.assertRaisesRegex(VersionMismatch, r'3\.99'):
            client.execute(lambda: 5, True)  # is not sent
        with self.assertRaisesRegex(VersionMismatch, r'3\.99'):
            client.execute(5, True)  # is not decoded
        self.assertEqual(6, client.execute(6, True))

    def test_too_large(self):
        client = self.client(echo, max_message=10_000)
        with self.assertRaisesRegex(BackgroundError, 'max_message'):
            client.execute(b'x' * 20_000)

        def script(conversation):
            conversation.agree()
            conversation.respond(conversation.receive(), b'x' * 20_000)
            conversation.echo()
        client = self.client(script, max_message=10_000)
        with self.assertRaisesRegex(BackgroundError, 'max_message'):
            client.execute(1, True)
        self.assertEqual(2, client.execute(2, True))

    def test_what_cannot_be_encoded(self):
        client = self.client(echo)
        with self.assertRaises(TypeError):
            client.execute(threading.Lock(), True)
        self.assertEqual(2, client.execute(2, True))

    def test_both_send_much(self):
        big = os.urandom(100) * 200_000
        client = self.client(echo)
        first = client.submit(big)
        second = client.submit(big)
        self.assertEqual(big, first.result())
        self.assertEqual(big, second.result())

    def test_wrong_arguments(self):
        with self.assertRaisesRegex(TypeError, 'port'):
            Client('127.0.0.1', '80')
        with self.assertRaisesRegex(ValueError, 'port'):
            Client('127.0.0.1', 70_000)
        with self.assertRaisesRegex(TypeError, 'host'):
            Client(5, 5)
        for name, value in (
                ('heartbeat', 0), ('heartbeat', -1), ('max_message', 0)):
            with self.assertRaisesRegex(ValueError, name):
                Client(**{name: value})
        with self.assertRaisesRegex(TypeError, 'modules'):
            Client(by_value=['os'])

    def test_closed(self):
        client = self.client(echo)
        client.execute(1, True)
        pending = client.submit(1)
        client.close()
        client.close()
        with self.assertRaisesRegex(ConnectionLost, 'closed'):
            pending.result()
        with self.assertRaisesRegex(BackgroundError, 'closed'):
            client.execute(1, True)


class PendingTests(ClientTestCase):

    def test_pipeline(self):
        client = self.client(echo)
        pending = [client.submit(number) for number in range(50)]
        self.assertEqual(49, pending[-1].result())
        self.assertTrue(all(each.done for each in pending))
        self.assertEqual([*range(50)], [each.result() for each in pending])
        self.assertEqual(0, pending[0].result())

    def test_receive(self):
        go_on = threading.Event()

        def script(conversation):
            conversation.agree()
            request = conversation.receive()
            go_on.wait(DEADLINE)
            conversation.respond(request, 5)
            silent(conversation)
        client = self.client(script)
        pending = client.submit({})
        self.assertFalse(pending.done)
        self.assertEqual([], client.receive())
        with self.assertRaises(DeadlineExceeded):
            pending.result(timeout=0.01)
        go_on.set()
        client_socket = socket.socket(fileno=os.dup(client.fileno()))
        with client_socket:
            client_socket.settimeout(DEADLINE)
            client_socket.recv(1, socket.MSG_PEEK)
        self.assertEqual([pending], client.receive())
        self.assertTrue(pending.done)
        self.assertEqual(5, pending.result())

    def test_errors_come_again(self):
        def script(conversation):
            conversation.agree()
            conversation.fail(conversation.receive(), 'task', 'bad')
            silent(conversation)
        pending = self.client(script).submit({})
        for _ in range(2):
            with self.assertRaisesRegex(RemoteTaskError, 'bad'):
                pending.result()

    def test_several_threads(self):
        client = self.client(echo)
        failures = []

        def use(start):
            try:
                for number in range(start, start + 50):
                    if number % 2:
                        assert client.execute(number, True) == number
                    else:
                        assert client.submit(number).result() == number
            except BaseException as error:
                failures.append(error)
        threads = [threading.Thread(target=use, args=(1000 * each,))
                   for each in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([], failures)

    def test_a_thread_gets_what_another_receives(self):
        go_on = threading.Event()

        def script(conversation):
            conversation.agree()
            first, second = conversation.receive(), conversation.receive()
            conversation.respond(first, 1)
            go_on.wait(DEADLINE)
            conversation.respond(second, 2)
            silent(conversation)
        client = self.client(script)
        first, second = client.submit({}), client.submit({})
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(second.result())),
            threading.Thread(target=lambda: results.append(first.result()))]
        for thread in threads:
            thread.start()
        threads[1].join(DEADLINE)
        self.assertEqual([1], results)
        go_on.set()
        threads[0].join(DEADLINE)
        self.assertEqual([1, 2], results)


class TimeTests(ClientTestCase):

    def test_late_answer_is_dropped(self):
        go_on = threading.Event()

        def script(conversation):
            conversation.agree()
            conversation.respond(conversation.receive(), 'connected')
            request = conversation.receive()
            go_on.wait(DEADLINE)
            conversation.respond(request, 'late')
            conversation.echo()
        client = self.client(script)
        client.execute('first', True)  # so the time is not that to connect
        with self.assertRaisesRegex(DeadlineExceeded, 'may still run'):
            client.execute('slow', True, timeout=0.3)
        go_on.set()
        self.assertEqual('next', client.execute('next', True))
        self.assertEqual('more', client.execute('more', True))
        self.assertEqual(1, client.server.connections)

    def test_late_answer_while_the_next_one_is_sent_at_once(self):
        def script(conversation):
            conversation.agree()
            conversation.respond(conversation.receive(), 'connected')
            requests = [conversation.receive() for _ in range(3)]
            for request in requests:
                conversation.respond(request, request.id)
            conversation.echo()
        client = self.client(script)
        client.execute('first', True)
        for _ in range(2):
            with self.assertRaisesRegex(DeadlineExceeded, 'may still run'):
                client.execute('slow', True, timeout=0.2)
        self.assertEqual(4, client.execute('last', True))

    def test_request_that_is_not_taken(self):
        def script(conversation):
            conversation.agree()
            stop.wait(DEADLINE)
        stop = threading.Event()
        client = self.client(script, echo)
        self.addCleanup(stop.set)
        with self.assertRaisesRegex(DeadlineExceeded, 'not run'):
            client.execute(b'x' * 50_000_000, True, timeout=0.2)
        self.assertEqual(1, client.execute(1, True))
        self.assertEqual(2, client.server.connections)

    def test_heartbeat(self):
        pings = []

        def script(conversation):
            conversation.agree()
            request = conversation.receive()
            for _ in range(5):
                ping = conversation.receive()
                pings.append(ping.kind)
                conversation.answer(PONG, ping.id)
            conversation.respond(request, 'done')
            silent(conversation)
        with mock.patch.object(link, 'SILENCES', DEADLINE / 0.1):
            client = self.client(script, heartbeat=0.1)
            self.assertEqual('done', client.execute({}, True))
        self.assertEqual([PING] * 5, pings)

    def test_server_that_hangs(self):
        def script(conversation):
            conversation.agree()
            while conversation.sock.recv(1000):
                pass
        client = self.client(script, heartbeat=0.02)
        with self.assertRaisesRegex(ConnectionLost, 'silent'):
            client.execute({}, True)

    def test_signals_do_not_prolong_it(self):
        def script(conversation):
            conversation.agree()
            conversation.respond(conversation.receive(), 1)
            while conversation.sock.recv(2 ** 16):
                pass
        client = self.client(script)
        client.execute(1, True)
        with Alarms() as alarms:
            for value in b'at once', b'x' * 50_000:
                with self.assertRaises(DeadlineExceeded):
                    client.execute(value, True, timeout=0.1)
        self.assertTrue(alarms.count)

    def test_connection_takes_too_long(self):
        client = self.client(silent, connect_timeout=0.05)
        with self.assertRaisesRegex(DeadlineExceeded, 'TLS'):
            client.execute(1)
        client = self.client(silent)
        with self.assertRaisesRegex(DeadlineExceeded, 'TLS'):
            client.execute(1, timeout=0.05)

    def test_turn_of_another_thread(self):
        go_on = threading.Event()
        received = threading.Event()

        def script(conversation):
            conversation.agree()
            request = conversation.receive()
            received.set()
            go_on.wait(DEADLINE)
            conversation.respond(request, 5)
            silent(conversation)
        client = self.client(script)
        thread = threading.Thread(
            target=client.execute, args=({},),
            kwargs={'await_response': True})
        thread.start()
        received.wait(DEADLINE)
        with self.assertRaisesRegex(DeadlineExceeded, 'other threads'):
            client.execute({}, timeout=0.01)
        go_on.set()
        thread.join(DEADLINE)


class GreetingTests(ClientTestCase):

    def assertSays(self, kind, *words, script, **options):
        client = self.client(script, connect_timeout=DEADLINE, **options)
        with self.assertRaises(kind) as raised:
            client.execute(1, True)
        text = str(raised.exception)
        self.assertNotIn('\n', text)
        for word in (*words, str(client.server.port)):
            self.assertIn(word, text)

    def test_nobody(self):
        with self.assertRaisesRegex(ServerNotRunning, 'initialize'):
            Client('127.0.0.1', free_port()).execute(1)

    def test_no_descriptor_is_left(self):
        with used_up_descriptors(), self.assertRaises(ShortageError) as raised:
            Client('127.0.0.1', 9, TOKEN).execute({})
        self.assertEqual(errno.EMFILE, raised.exception.errno)

    def test_unknown_host(self):
        with self.assertRaisesRegex(ServerNotRunning, 'not known'):
            Client('a..b', 80).execute(1)

    def test_wrong_token(self):
        self.assertSays(ServerRefused, 'token', script=echo, token='other')

    def test_wrong_token_says_where_it_is_from(self):
        state = self.enterContext(tempfile.TemporaryDirectory())
        self.enterContext(unittest.mock.patch.dict(
            os.environ, XDG_STATE_HOME=state, GOCEPT_RUNNER_TOKEN='other'))
        self.assertSays(ServerRefused, 'given: give token=', script=echo,
                        token='other')
        self.assertSays(ServerRefused, 'unset GOCEPT_RUNNER_TOKEN',
                        script=echo, token=None)
        del os.environ['GOCEPT_RUNNER_TOKEN']
        server = self.serve(echo)
        path = token_file('127.0.0.1', server.port)
        os.makedirs(os.path.dirname(path))
        with open(path, 'w') as file:
            os.fchmod(file.fileno(), 0o600)
            file.write('other')
        with self.assertRaisesRegex(ServerRefused, path):
            Client('127.0.0.1', server.port).execute(1)

    def test_silence_is_one_of_all_errors(self):
        with self.assertRaisesRegex(
                BackgroundError, 'no request was sent') as raised:
            self.client(silent, connect_timeout=0.05).execute(1)
        self.assertIsInstance(raised.exception, DeadlineExceeded)
        self.assertIsNone(raised.exception.__cause__)

    def test_no_token(self):
        self.enterContext(unittest.mock.patch.dict(
            os.environ, {'XDG_STATE_HOME': '/nowhere'}))
        os.environ.pop('GOCEPT_RUNNER_TOKEN', None)
        self.assertSays(ServerRefused, 'GOCEPT_RUNNER_TOKEN', '/nowhere',
                        script=echo, token=None)

    def test_ssh(self):
        def script(conversation):
            conversation.sock.sendall(b'SSH-2.0-OpenSSH_9.2\r\n')
            silent(conversation)
        self.assertSays(ProtocolError, '"SSH-2.0-OpenSSH_9.2"', script=script)

    def test_http(self):
        def script(conversation):
            conversation.sock.sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n')
        self.assertSays(ProtocolError, 'HTTP/1.1 400', script=script)

    def test_closes_at_once(self):
        self.assertSays(ServerNotRunning, 'TLS', script=lambda each: None)

    def test_impostor(self):
        def script(conversation):
            conversation.agree(token='of somebody else')
        self.assertSays(ServerRefused, 'token', script=script)


class LossTests(ClientTestCase):

    def test_idle_connection(self):
        closed = threading.Event()

        def script(conversation):
            conversation.agree()
            conversation.respond(conversation.receive(), 1)
            conversation.sock.close()
            closed.set()
        client = self.client(script, echo)
        client.execute(1, True)
        closed.wait(DEADLINE)
        client._session._link.looked -= 1  # as if some time had passed
        self.assertEqual(2, client.execute(2, True))

    def test_reset_while_idle(self):
        def script(conversation):
            conversation.agree()
            conversation.respond(conversation.receive(), 1)
            conversation.receive()
            conversation.reset()
        client = self.client(script, echo)
        client.execute(1, True)
        with self.assertRaisesRegex(ConnectionLost, 'is not known'):
            client.execute(2, True)
        self.assertEqual(3, client.execute(3, True))

    def test_one_that_is_closed_at_once(self):
        calls = []
        ask = socket.socket.getpeername

        def getpeername(sock):
            if threading.current_thread() is threading.main_thread():
                calls.append(sock)
                if len(calls) == 1:
                    raise OSError(errno.ENOTCONN, 'not connected')
            return ask(sock)
        client = self.client(lambda conversation: None, echo)
        with unittest.mock.patch.object(
                socket.socket, 'getpeername', getpeername):
            self.assertEqual(1, client.execute(1, True))
        self.assertEqual(2, client.server.connections)

    def test_retry(self):
        def script(conversation):
            conversation.agree().receive()
        client = self.client(script, script, echo, retry=True)
        self.assertEqual(2, client.execute(2, True))
        self.assertEqual(3, client.server.connections)

    def test_retry_of_what_ends_the_server(self):
        def script(conversation):
            conversation.agree().receive()
        client = self.client(script, retry=True)
        with self.assertRaisesRegex(ConnectionLost, 'sent 5 times'):
            client.execute(2, True)

    def test_sent_in_part(self):
        def script(conversation):
            conversation.agree().sock.recv(100)
            conversation.reset()
        client = self.client(script, echo)
        big = b'x' * 50_000_000
        self.assertEqual(big, client.execute(big, True))
        self.assertEqual(2, client.server.connections)

    def test_each_of_a_pipeline(self):
        def script(conversation):
            conversation.agree()
            first = conversation.receive()
            for _ in range(9):
                conversation.receive()
            conversation.respond(first, 1)
        client = self.client(script, echo)
        pending = [client.submit(each) for each in range(10)]
        self.assertEqual(1, pending[0].result())
        for each in pending[1:]:
            with self.assertRaises(ConnectionLost):
                each.result()

    def test_half_a_frame(self):
        def script(conversation):
            conversation.agree()
            request = conversation.receive()
            conversation.sock.sendall(
                conversation.sealer.seal(PONG, 0, request.id)[:9])
        client = self.client(script, echo)
        with self.assertRaises(ConnectionLost):
            client.execute(1, True)

    def test_changed_on_the_way(self):
        def script(conversation):
            conversation.agree()
            request = conversation.receive()
            frame = bytearray(conversation.sealer.seal(PONG, 0, request.id))
            frame[-1] ^= 1
            conversation.sock.sendall(frame)
            silent(conversation)
        client = self.client(script, echo)
        with self.assertRaises(ProtocolError):
            client.execute(1, True)
        self.assertEqual(2, client.execute(2, True))

    def test_restarted_server(self):
        def script(conversation):
            conversation.agree(life=b'1111')
            conversation.respond(conversation.receive(), 1)

        def again(conversation):
            conversation.agree(life=b'2222')
            conversation.fail(
                conversation.receive(), 'not_initialized', 'no tasks')
            conversation.echo()
        client = self.client(script, again)
        client.execute(1, True)
        client._session._link.looked -= 1
        client.server._threads[-1].join(DEADLINE)
        with self.assertLogs('gocept.runner.background', logging.WARNING):
            with self.assertRaisesRegex(NotInitialized, 'anew'):
                client.execute(2, True)

    def test_request_that_comes_after_the_end(self):
        # What the server has not answered when it ends, it has not run.
        def script(conversation):
            conversation.agree()
            first, second = conversation.receive(), conversation.receive()
            conversation.respond(second, 'run')
            conversation.fail(first._replace(id=0), 'ending', 'has ended')
        client = self.client(script)
        first, second = client.submit(1), client.submit(2)
        self.assertEqual('run', second.result())
        with self.assertRaisesRegex(ServerNotRunning, 'has ended'):
            first.result()

    def test_comes_back_later(self):
        server = ScriptedServer(echo)
        client = Client('127.0.0.1', server.port, TOKEN, timeout=DEADLINE,
                        connect_timeout=DEADLINE, patient=True)
        self.addCleanup(client.close)
        client.execute(1, True)
        server.close()
        client._session._link.looked -= 1
        results = []
        thread = threading.Thread(
            target=lambda: results.append(client.execute(2, True)))
        thread.start()
        thread.join(0.1)
        with ScriptedServer(echo, port=server.port):
            thread.join(DEADLINE)
            self.assertEqual([2], results)

    def test_does_not_come_back(self):
        server = ScriptedServer(echo)
        client = Client('127.0.0.1', server.port, TOKEN, connect_timeout=1,
                        patient=True)
        self.addCleanup(client.close)
        client.execute(1, True)
        server.close()
        client._session._link.looked -= 1
        with self.assertRaisesRegex(
                ServerNotRunning, r'attempts in 1 s\)'):
            client.execute(1, True)

    def test_on_this_machine_it_is_gone_at_once(self):
        # Unless a restart is expected, by who says `retry` for instance.
        server = ScriptedServer(echo)
        client = Client('127.0.0.1', server.port, TOKEN)
        self.addCleanup(client.close)
        client.execute(1, True)
        server.close()
        client._session._link.looked -= 1
        client._session._closing.wait = self.fail
        with self.assertRaises(ServerNotRunning):
            client.execute(1, True)
        for options, patient in (
                ({}, False), ({'retry': True}, True),
                ({'host': '192.0.2.1'}, True),
                ({'host': '192.0.2.1', 'patient': False}, False)):
            self.assertIs(patient, Client(**options)._session._patient)

    def test_closed_by_another_thread(self):
        received = threading.Event()

        def script(conversation):
            conversation.agree().receive()
            received.set()
            silent(conversation)
        client = self.client(script)
        failures = []

        def use():
            try:
                client.execute({}, True)
            except ConnectionLost as error:
                failures.append(error)
        thread = threading.Thread(target=use)
        thread.start()
        received.wait(DEADLINE)
        client.close()
        thread.join(DEADLINE)
        self.assertEqual(1, len(failures))


class InterruptionTests(ClientTestCase):

    def setUp(self):
        for signum in signal.SIGUSR1, signal.SIGALRM:
            self.addCleanup(
                signal.signal, signum, signal.signal(signum, self.interrupt))

    def interrupt(self, signum, frame):
        raise KeyboardInterrupt

    def test_while_it_waits(self):
        def script(conversation):
            conversation.agree()
            request = conversation.receive()
            os.kill(os.getpid(), signal.SIGUSR1)
            second = conversation.receive()
            conversation.respond(request, 'late')
            conversation.respond(second, 2)
            silent(conversation)
        client = self.client(script, echo)
        with self.assertRaises(KeyboardInterrupt), Alarms():
            client.execute(1, True)
        self.assertEqual(2, client.execute(2, True))

    def test_anywhere(self):
        # A socket that is interrupted as it is made is closed by Python.
        self.enterContext(warnings.catch_warnings(
            action='ignore', category=ResourceWarning))
        client = self.client(echo)
        big = b'x' * 300_000
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        interrupted = 0
        end = time.monotonic() + DEADLINE
        number = 0
        while interrupted < 100 and time.monotonic() < end:
            number += 1
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (number % 700 + 1))
                with contextlib.suppress(ConnectionLost):
                    if number % 3 == 0:
                        found = client.execute((number, big), True)[0]
                    elif number % 3 == 1:
                        found = client.execute(number, True)
                    else:
                        found = client.submit(number).result()
                    self.assertEqual(number, found)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
        self.assertEqual('works', client.execute('works', True))

    def test_handler_that_uses_the_client(self):
        def use(signum, frame):
            client.execute(5, True)

        def script(conversation):
            conversation.agree().receive()
            os.kill(os.getpid(), signal.SIGUSR1)
            silent(conversation)
        client = self.client(script)
        signal.signal(signal.SIGUSR1, use)
        with (self.assertRaisesRegex(RuntimeError, 'client of its own'),
              Alarms()):
            client.execute(1, True)


class ForkTests(ClientTestCase):

    def test_child_has_its_own_connection(self):
        client = self.client(echo)
        pending = client.submit(1)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                assert client.execute('child', True) == 'child'
                try:
                    pending.result()
                except ConnectionLost:
                    status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        self.assertEqual(0, status)
        self.assertEqual(1, pending.result())
        self.assertEqual('parent', client.execute('parent', True))
        self.assertEqual(2, client.server.connections)
