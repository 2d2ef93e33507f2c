"""Many clients, strangers and requests on one wire."""

import contextlib
import json
import os
import resource
import socket
import threading
from unittest import mock

from gocept.runner.background.frames import (
    AWAIT,
    EXEC,
    EXIT,
    INIT,
    PING,
    PONG,
    RECEIPT,
    REPORT,
    RESPONSE,
    STATUS,
)
from gocept.runner.background.handshake import (
    ANSWER_SIZE,
    CHALLENGE_SIZE,
    STATUS_KEY,
    prove,
    refuse,
)
from gocept.runner.background.limits import Limits
from gocept.runner.background.queue import Request
from gocept.runner.errors import ProtocolError, ServerBusy, ServerRefused
from gocept.runner.tests.background.wires import (
    HOST,
    KEYS,
    RawClient,
    WireTestCase,
    joined,
    until,
)
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import Deadline

LOGGER = 'gocept.runner.background'


class RequestTests(WireTestCase):

    def test_a_response(self) -> None:
        client = self.connect()
        for number in range(100):
            word = b'%d' % number
            self.assertEqual(word, client.ask(word))

    def test_who_has_sent_it(self) -> None:
        client = self.connect()
        requests: list[Request] = []

        def work(request: Request) -> None:
            requests.append(request)
            request.respond([])

        self.work = work
        client.ask(b'a', kind=INIT)
        request, = requests
        self.assertEqual((INIT, AWAIT, 1, b'a'), (
            request.kind, request.flags, request.id, joined(request)))
        self.assertEqual(
            ':'.join(map(str, client.sock.getsockname())),
            request.connection.address)
        self.assertEqual(0, request.connection.key_number)
        self.assertEqual(os.sys.version_info[:2], request.connection.python)
        self.assertIn('Request 1', repr(request))

    def test_order_over_connections(self) -> None:
        clients = [self.connect() for _ in range(5)]
        expected = [b'busy']
        with self.busy():
            for turn in range(10):
                for number, client in enumerate(clients):
                    word = b'%d %d' % (turn, number)
                    client.send(EXEC, 0, word)
                    answer = client.hear()
                    assert answer is not None
                    self.assertEqual(RECEIPT, answer.kind)
                    expected.append(word)
        until(lambda: len(self.seen) == len(expected))
        self.assertEqual(expected, self.seen)

    def test_requests_stay_when_their_client_goes(self) -> None:
        with self.busy():
            for number in range(10):
                client = self.connect()
                client.send(EXEC, AWAIT if number % 2 else 0, b'%d' % number)
                (client.reset if number % 3 else client.close)()
            until(lambda: len(self.wire.queue) == 10)
        until(lambda: len(self.seen) == 11)
        self.assertEqual({b'%d' % number for number in range(10)},
                         {*self.seen[1:]})
        self.assertEqual(b'x', self.connect().ask(b'x'))

    def test_what_was_sent_before_the_end_is_received(self) -> None:
        client = self.connect()
        with self.busy():
            client.sock.sendall(b''.join(
                client.sealed(EXEC, AWAIT, b'%d' % number)
                for number in range(500)))
            client.close()
        until(lambda: len(self.seen) == 501)

    def test_to_answer_a_client_that_has_gone_is_no_error(self) -> None:
        answers: list[bool] = []
        gone = threading.Event()

        def work(request: Request) -> None:
            assert gone.wait(DEADLINE)
            until(lambda: not len(self.wire))
            answers.extend((request.respond([b'x']), request.receipt(),
                            request.fail('task', 'It failed')))

        self.work = work
        client = self.connect()
        client.send()
        until(lambda: self.seen)
        client.close()
        gone.set()
        until(lambda: len(answers) == 3)
        self.assertEqual([False] * 3, answers)

    def test_answers_from_other_threads(self) -> None:
        threads = []

        def work(request: Request) -> None:
            thread = threading.Thread(target=self.echo, args=(request,))
            thread.start()
            threads.append(thread)

        self.work = work
        client = self.connect()
        numbers = {client.send(EXEC, AWAIT, b'x' * 10_000)
                   for _ in range(200)}
        answers = [client.hear() for _ in range(200)]
        self.assertEqual(numbers, {each.id for each in answers if each})
        for thread in threads:
            thread.join()

    def test_confirmations(self) -> None:
        client = self.connect()
        self.work = lambda request: request.receipt()
        for kind in EXEC, EXIT:
            client.send(kind, 0)
            answer = client.hear()
            assert answer is not None
            self.assertEqual((RECEIPT, client.number),
                             (answer.kind, answer.id))
            if kind == EXEC:  # the task confirms it once more
                client.hear()

    def test_a_failure(self) -> None:
        self.work = lambda request: request.fail(
            'task', 'Ä', 'ValueError', 'Traceback')
        self.assertEqual(
            {'error': 'task', 'message': 'Ä', 'type': 'ValueError',
             'traceback': 'Traceback'},
            json.loads(self.connect().ask()))

    def test_next_without_a_wait(self) -> None:
        self.stop()
        self.wire._stopping = False
        self.assertIsNone(self.wire.next(wait=False))
        thread = threading.Thread(target=lambda: self.connect().send())
        thread.start()
        until(lambda: self.wire.next(wait=False))
        thread.join()
        self.assertIsNone(self.wire.next(wait=False))


class StatusTests(WireTestCase):

    def test_a_report(self) -> None:
        client = self.connect()
        for _ in range(2):
            client.send(STATUS, 0)
            answer = client.hear()
            assert answer is not None
            self.assertEqual(REPORT, answer.kind)
            self.assertEqual({'pid': os.getpid()}, json.loads(joined(answer)))
            with self.busy():
                client.send(STATUS, 0)
                self.assertIsNotNone(client.hear())

    def test_the_key_for_the_status_allows_nothing_else(self) -> None:
        client = self.visit().shake_hands(STATUS_KEY)
        for kind in INIT, EXEC, EXIT:
            client.send(kind)
            self.assertEqual('not_allowed', client.hear_error())
        client.send(PING, 0)
        client.send(STATUS, 0)
        self.assertEqual([PONG, REPORT],
                         [each.kind for each in (client.hear(), client.hear())
                          if each])
        self.assertEqual([], self.seen)

    def test_a_report_that_fails(self) -> None:
        self.wire.report = lambda: 1 / 0  # type: ignore[assignment,return-value]
        other, client = self.connect(), self.connect()
        with self.assertLogs(LOGGER, 'ERROR'):
            client.send(STATUS, 0)
            self.assertTrue(client.is_closed())
        self.assertEqual(b'x', other.ask(b'x'))


class QueueTests(WireTestCase):

    limits = Limits(max_message=2 ** 20, queue_size=5,
                    queue_bytes=2 * 2 ** 20 + 1000)

    def test_a_full_queue_refuses(self) -> None:
        client, other = self.connect(), self.connect()
        with self.busy():
            for number in range(8):
                client.send(EXEC, AWAIT, b'%d' % number)
            self.assertEqual(['busy'] * 3,
                             [client.hear_error() for _ in range(3)])
            other.send(EXEC, 0)
            self.assertEqual('busy', other.hear_error())
        self.assertEqual([b'0', b'1', b'2', b'3', b'4'], [
            joined(each) for each in (client.hear() for _ in range(5))
            if each])
        self.assertEqual(b'x', client.ask(b'x'))
        self.assertEqual(b'x', other.ask(b'x'))

    def test_a_queue_full_of_bytes_refuses(self) -> None:
        client, other = self.connect(), self.connect()
        large = bytes(2 ** 20 - 1)
        with self.busy():
            for _ in range(3):
                client.send(EXEC, AWAIT, large)
            self.assertEqual('busy', client.hear_error())
            other.send(PING, 0)
            self.assertIsNotNone(other.hear())
            other.send(EXEC, AWAIT, bytes(2000))
            self.assertEqual('busy', other.hear_error())
        for _ in range(2):
            answer = client.hear()
            assert answer is not None
            self.assertEqual(large, joined(answer))
        self.assertEqual(large, client.ask(large))
        until(lambda: not self.wire.account.total)
        self.assertEqual(0, self.wire.queue.bytes)

    def test_half_received_messages_count(self) -> None:
        # No client alone has sent more than it may.
        clients = [self.connect() for _ in range(4)]
        large = bytes(2 ** 20 - 1)
        sealed = [client.sealed(EXEC, AWAIT, large) for client in clients]
        with self.busy():
            for client, data in zip(clients, sealed, strict=True):
                client.sock.sendall(data[:-1000])
            until(lambda: self.wire.account.total)
            errors = []
            for client, data in zip(clients, sealed, strict=True):
                client.sock.sendall(data[-1000:])
        for client in clients:
            answer = client.hear()
            assert answer is not None
            errors.append(answer.kind != RESPONSE)
        self.assertTrue(any(errors))
        self.assertFalse(all(errors))
        for client in clients:
            self.assertEqual(large, client.ask(large))
        until(lambda: not self.wire.account.total)

    def test_a_request_that_is_too_large(self) -> None:
        client = self.connect()
        client.send(EXEC, AWAIT, bytes(3 * 2 ** 20))
        self.assertEqual('too_large', client.hear_error())
        self.assertEqual(b'x', client.ask(b'x'))
        self.assertEqual([b'x'], self.seen)


class ClientTests(WireTestCase):

    limits = Limits(connections=3)

    def test_there_may_be_too_many(self) -> None:
        clients = [self.connect() for _ in range(3)]
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            with self.assertRaises(ServerBusy):
                self.connect()
            with self.assertRaises(ServerBusy):
                self.connect()
        self.assertEqual(1, len(logs.output))
        clients.pop().close()
        until(lambda: len(self.wire) == 2)
        self.assertEqual(b'x', self.connect().ask(b'x'))

    def test_their_connections_notice_a_dead_host(self) -> None:
        self.connect()
        connection, = self.wire._clients
        for level, name, value in (
                (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
                (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
                (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)):
            self.assertEqual(value, connection.socket.getsockopt(level, name))

    def test_a_wrong_token(self) -> None:
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            for number in 0, 1, 2:
                with self.assertRaises(ServerRefused):
                    self.visit().shake_hands(number, b'wrong')
        self.assertEqual(1, len(logs.output))  # a minute


class StrangerTests(WireTestCase):

    limits = Limits(strangers=4)

    def setUp(self) -> None:
        super().setUp()
        self.enterContext(self.assertLogs(LOGGER, 'WARNING'))
        # So that there is a line in any case.
        with contextlib.suppress(ServerRefused):
            self.visit().shake_hands(0, b'wrong')

    def test_the_oldest_goes_first(self) -> None:
        strangers = [self.visit() for _ in range(4)]
        for each in strangers:
            each.read(CHALLENGE_SIZE)
        more = [self.visit() for _ in range(2)]
        for each in more:
            each.read(CHALLENGE_SIZE)
        self.assertTrue(strangers[0].is_closed())
        self.assertTrue(strangers[1].is_closed())
        self.assertEqual(4, len(self.wire._strangers))
        client = self.connect()
        self.assertTrue(strangers[2].is_closed())
        self.assertEqual(b'x', client.ask(b'x'))

    def test_a_flood_keeps_no_client_out(self) -> None:
        over = threading.Event()
        count = 0

        def flood() -> None:
            nonlocal count
            socks: list[socket.socket] = []
            while not over.is_set():
                with contextlib.suppress(OSError):
                    socks.append(socket.create_connection(
                        self.address, DEADLINE))
                    count += 1
                if len(socks) > 100:
                    socks.pop(0).close()
            for sock in socks:
                sock.close()

        client = self.connect()
        thread = threading.Thread(target=flood)
        thread.start()
        try:
            until(lambda: count > 10)
            deadline = Deadline(DEADLINE)
            came_in = 0
            while came_in < 5 and not deadline.passed:
                self.assertEqual(b'x', client.ask(b'x'))
                # The flood may have cost it its place.
                with contextlib.suppress(OSError, ProtocolError):
                    self.assertEqual(b'y', self.connect().ask(b'y'))
                    came_in += 1
            self.assertEqual(5, came_in)
            self.assertLessEqual(len(self.wire._strangers), 4)
        finally:
            over.set()
            thread.join()

    def test_garbage(self) -> None:
        other = self.connect()
        for garbage in (b'GET / HTTP/1.1\r\n\r\n', b'\0', b'\x80\x04.',
                        os.urandom(1000).replace(b'G', b'x'),
                        b'GRunBg2\n', b'GRunBg1\n' + bytes(72)):
            client = self.visit()
            client.read(CHALLENGE_SIZE)
            client.sock.sendall(garbage)
            if len(garbage) == 80:
                self.assertEqual(refuse(), client.read(ANSWER_SIZE))
            self.assertTrue(client.is_closed(), garbage)
        self.assertEqual(b'x', other.ask(b'x'))
        self.assertEqual({}, self.wire._strangers)
        self.assertIsNone(self.wire._timer)

    def test_a_pickle_before_the_handshake(self) -> None:
        client = self.visit()
        client.sock.sendall(b'cbuiltins\nprint\n(Vcanary\ntR.')
        client.read(CHALLENGE_SIZE)
        self.assertTrue(client.is_closed())
        self.assertEqual([], self.seen)

    def test_half_a_proof(self) -> None:
        for size in range(80):
            client = self.visit()
            proof = prove(client.read(CHALLENGE_SIZE), 0, KEYS[0]).data
            client.sock.sendall(proof[:size])
            (client.reset if size % 2 else client.close)()
        until(lambda: not self.wire._strangers)
        self.assertEqual(b'x', self.connect().ask(b'x'))

    def test_a_proof_byte_by_byte(self) -> None:
        client = self.visit()
        proof = prove(client.read(CHALLENGE_SIZE), 0, KEYS[0])
        for number in range(80):
            client.sock.sendall(proof.data[number:number + 1])
        proof.check(client.read(ANSWER_SIZE))

    def test_a_replayed_proof(self) -> None:
        client = self.visit()
        proof = prove(client.read(CHALLENGE_SIZE), 0, KEYS[0])
        client.sock.sendall(proof.data)
        proof.check(client.read(ANSWER_SIZE))
        other = self.visit()
        other.read(CHALLENGE_SIZE)
        other.sock.sendall(proof.data)
        self.assertEqual(refuse(), other.read(ANSWER_SIZE))
        self.assertTrue(other.is_closed())


class PatienceTests(WireTestCase):

    limits = Limits(patience=1)

    def test_it_ends(self) -> None:
        client = self.connect()
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            silent, half = self.visit(), self.visit()
            half.sock.sendall(b'GRun')
            for each in silent, half:
                each.read(CHALLENGE_SIZE)
                self.assertTrue(each.is_closed())
        self.assertIn('1 seconds', logs.output[0])
        self.assertIsNone(self.wire._timer)
        self.assertEqual(b'x', client.ask(b'x'))

    def test_it_ends_during_a_task(self) -> None:
        with self.busy(), self.assertLogs(LOGGER, 'WARNING'):
            silent = self.visit()
            silent.read(CHALLENGE_SIZE)
            self.assertTrue(silent.is_closed())


class ShortageTests(WireTestCase):

    def test_no_descriptor_for_a_client(self) -> None:
        client = self.connect()
        silent = self.visit()
        silent.read(CHALLENGE_SIZE)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        sock = socket.socket()
        self.addCleanup(sock.close)
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            resource.setrlimit(resource.RLIMIT_NOFILE, (sock.fileno(), hard))
            try:
                sock.connect(self.address)
                # The stranger has to go.
                self.assertTrue(silent.is_closed())
                sock.settimeout(DEADLINE)
                self.assertEqual(CHALLENGE_SIZE, len(sock.recv(1000)))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        self.assertIn('too many others', logs.output[0])
        self.assertEqual(b'x', client.ask(b'x'))

    def test_none_at_all(self) -> None:
        client = self.connect()
        failing = mock.Mock(side_effect=OSError(24, 'none'))
        listener = self.wire._listener
        sock = listener.socket
        with self.assertLogs('gocept.runner.poller', 'WARNING'):
            with mock.patch.object(listener, 'socket') as fake:
                fake.accept = failing
                fake.fileno = sock.fileno
                other = self.visit()
                until(lambda: failing.called)
                self.assertEqual(b'x', client.ask(b'x'))
        self.assertEqual(b'x', other.shake_hands().ask(b'x'))

    def test_no_thread(self) -> None:
        client = self.connect()
        with mock.patch('threading.Thread.start', side_effect=RuntimeError(
                'none')), self.assertLogs(LOGGER, 'WARNING'):
            self.assertEqual(b'x', client.ask(b'x'))
        self.assertEqual(b'x', client.ask(b'x'))


class EndTests(WireTestCase):

    def test_the_port_is_free(self) -> None:
        client = self.connect()

        def work(request: Request) -> None:
            self.wire.close_listener()
            request.receipt()

        self.work = work
        client.send(EXIT, 0)
        self.assertIsNotNone(client.hear())
        with socket.create_server(self.address):
            pass
        self.work = self.echo
        self.assertEqual(b'x', client.ask(b'x'))

    def test_what_waits_is_refused(self) -> None:
        clients = [self.connect() for _ in range(3)]
        with self.busy():
            for client in clients:
                client.send()
            until(lambda: len(self.wire.queue) == 3)
            self.wire.stop()
        self.main.join()
        self.wire.close(Deadline(DEADLINE))
        for client in clients:
            self.assertEqual('ending', client.hear_error())
            self.assertTrue(client.is_closed())
        self.assertEqual([b'busy'], self.seen)

    def test_what_was_answered_is_sent(self) -> None:
        client = self.connect(buffer=4096)
        large = os.urandom(2 ** 22)
        client.send(EXEC, AWAIT, large)
        until(lambda: self.seen and self.wire.account.total)
        heard = []
        thread = threading.Thread(
            target=lambda: heard.append(client.hear()))
        self.stop()
        thread.start()
        self.wire.close(Deadline(DEADLINE))
        thread.join()
        self.assertEqual(large, joined(heard[0]))

    def test_whoever_does_not_read_is_not_waited_for_long(self) -> None:
        client = self.connect(buffer=4096)
        client.send(EXEC, AWAIT, bytes(2 ** 22))
        until(lambda: self.seen and self.wire.account.total)
        self.stop()
        self.wire.close(Deadline(0.1))
        self.assertEqual(0, len(self.wire))
        self.assertEqual(0, self.wire.account.total)

    def test_requests_at_the_end(self) -> None:
        slow, client = self.connect(buffer=4096), self.connect()
        slow.send(EXEC, AWAIT, bytes(2 ** 22))
        until(lambda: self.seen and self.wire.account.total)
        self.stop()
        thread = threading.Thread(
            target=self.wire.close, args=(Deadline(DEADLINE),))
        thread.start()
        until(lambda: self.wire._ending)
        client.send()
        self.assertEqual('ending', client.hear_error())
        slow.hear()
        thread.join()

    def test_stop_ends_a_wait(self) -> None:
        self.stop()
        self.assertIsNone(self.wire.next())

    def test_stop_during_everything(self) -> None:
        over = threading.Event()

        def talk() -> None:
            while not over.is_set():
                with contextlib.suppress(Exception), contextlib.closing(
                        RawClient(self.address)) as client:
                    client.shake_hands()
                    for _ in range(5):
                        client.ask(b'x' * 1000)

        threads = [threading.Thread(target=talk) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: len(self.seen) > 20)
        self.stop()
        self.wire.close(Deadline(0.1))
        over.set()
        for thread in threads:
            thread.join()

    def test_to_close_it_again_does_nothing(self) -> None:
        self.stop()
        self.wire.close()
        self.wire.close()

    def test_no_clients(self) -> None:
        with self.assertRaises(ConnectionRefusedError):
            self.stop()
            self.wire.close()
            socket.create_connection((HOST, self.address[1]), DEADLINE)
