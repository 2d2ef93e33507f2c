"""One client of a server: what it sends, what it gets, and how it goes."""

import contextlib
import os
import select
import socket
import ssl
import subprocess
import tempfile
import threading

from gocept.runner.background.frames import (
    AWAIT,
    EXEC,
    PING,
    PONG,
    Sealer,
)
from gocept.runner.background.handshake import CHALLENGE_SIZE, STATUS_KEY
from gocept.runner.background.limits import Limits
from gocept.runner.background.queue import Request
from gocept.runner.background.tls import client_context, server_context
from gocept.runner.tests import services
from gocept.runner.tests.background.wires import (
    HOST,
    RawClient,
    WireTestCase,
    joined,
    until,
)
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import Deadline, wait_for

LOGGER = 'gocept.runner.background'

MIB = 2 ** 20


class FrameTests(WireTestCase):

    def test_values_of_many_sizes(self) -> None:
        client = self.connect()
        for size in (0, 1, 2047, 2048, 2049, 2 ** 16 - 1, 2 ** 16 + 1,
                     2 ** 18 - 32, 2 ** 18, 2 ** 18 + 1, MIB, 5 * MIB):
            data = os.urandom(size)
            self.assertTrue(data == client.ask(data), size)
        until(lambda: not self.wire.account.total)

    def test_a_frame_in_two_pieces(self) -> None:
        client = self.connect()
        for cut in range(1, 40):
            data = client.sealed(EXEC, AWAIT, b'12345678')
            client.sock.sendall(data[:cut])
            until(lambda: self.is_read(client))
            client.sock.sendall(data[cut:])
            answer = client.hear()
            assert answer is not None
            self.assertEqual(b'12345678', joined(answer))

    def is_read(self, client: RawClient) -> bool:
        """Whether the server has read all that the client has sent."""
        connection, = self.wire._clients
        try:
            return not connection.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True

    def test_an_end_at_every_byte(self) -> None:
        other = self.connect()
        for cut in range(41):
            client = self.connect()
            data = client.sealed(EXEC, AWAIT, b'12345678')
            client.sock.sendall(data[:cut])
            (client.reset if cut % 2 else client.close)()
        until(lambda: len(self.wire) == 1)
        self.assertEqual(b'x', other.ask(b'x'))
        self.assertIn(self.seen[:-1], ([], [b'12345678']))

    def test_a_ping_within_a_message(self) -> None:
        client = self.connect()
        for number, frame in enumerate(client.sealer.frames(
                EXEC, AWAIT, 1, [bytes(MIB)])):
            client.sock.sendall(b''.join(frame))
            if number < 3:
                client.sock.sendall(client.sealer.seal(PING, 0, 100 + number))
                answer = client.hear()
                assert answer is not None
                self.assertEqual((PONG, 100 + number),
                                 (answer.kind, answer.id))
        answer = client.hear()
        assert answer is not None
        self.assertEqual(bytes(MIB), joined(answer))

    def test_what_is_no_frame(self) -> None:
        other = self.connect()
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            for change in self.changes():
                client = self.connect()
                data = bytearray(client.sealed(EXEC, AWAIT, b'12345678'))
                change(data)
                client.sock.sendall(data)
                self.assertTrue(client.is_closed())
        self.assertEqual(1, len(logs.output))  # a minute
        self.assertEqual([], self.seen)
        self.assertEqual(b'x', other.ask(b'x'))

    @staticmethod
    def changes():
        for number in range(40):
            if number in (2, 3):  # a longer payload: more has to come
                continue

            def flip(data: bytearray, number: int = number) -> None:
                data[number] ^= 0x80

            yield flip

    def test_a_replayed_frame(self) -> None:
        client = self.connect()
        data = client.sealed(EXEC, AWAIT, b'x')
        with self.assertLogs(LOGGER, 'WARNING'):
            client.sock.sendall(data)
            client.hear()
            client.sock.sendall(data)
            self.assertTrue(client.is_closed())
        self.assertEqual([b'x'], self.seen)

    def test_a_frame_with_another_key(self) -> None:
        client = self.connect()
        client.sealer = Sealer(bytes(32))
        with self.assertLogs(LOGGER, 'WARNING'):
            client.send(EXEC, AWAIT, b'x')
            self.assertTrue(client.is_closed())
        self.assertEqual([], self.seen)


class SlowReaderTests(WireTestCase):

    limits = Limits(max_message=8 * MIB, queue_bytes=32 * MIB)

    def test_others_do_not_wait_for_it(self) -> None:
        slow, client = self.connect(buffer=4096), self.connect()
        slow.send(EXEC, AWAIT, bytes(8 * MIB))
        until(lambda: self.seen)
        self.assertEqual(b'x', client.ask(b'x'))
        answer = slow.hear()
        assert answer is not None
        self.assertEqual(bytes(8 * MIB), joined(answer))
        self.assertEqual(b'y', slow.ask(b'y'))
        until(lambda: not self.wire.account.total)

    def test_no_more_is_read_from_it(self) -> None:
        slow, client = self.connect(buffer=4096), self.connect()
        slow.send(EXEC, AWAIT, bytes(8 * MIB))
        until(lambda: self.seen)
        for _ in range(3):
            slow.send(EXEC, AWAIT, b'more')
        for _ in range(10):
            client.ask(b'x')
        until(lambda: any(
            each.suspended for each in self.wire._clients))
        self.assertLessEqual(self.seen.count(b'more'), 3)
        for _ in range(4):
            self.assertIsNotNone(slow.hear())
        self.assertEqual(3, self.seen.count(b'more'))
        until(lambda: not any(
            each.suspended for each in self.wire._clients))

    def test_it_costs_bounded_memory(self) -> None:
        # Each answer is larger than what is asked for.
        self.work = lambda request: request.respond([bytes(7 * MIB)])
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            slow = [self.connect(buffer=4096) for _ in range(6)]
            for each in slow:
                each.send()
            until(lambda: len(self.wire) == 4)
        self.assertIn('does not read its answers', logs.output[0])
        self.assertLess(self.wire.account.total, 33 * MIB)
        # The others get theirs.
        sizes = []
        for each in slow:
            with contextlib.suppress(ConnectionResetError):
                if (answer := each.hear()) is not None:
                    sizes.append(answer.size)
        self.assertEqual([7 * MIB] * 4, sizes)
        until(lambda: not self.wire.account.total)

    def test_it_goes(self) -> None:
        for close in RawClient.close, RawClient.reset:
            slow = self.connect(buffer=4096)
            slow.send(EXEC, AWAIT, bytes(8 * MIB))
            until(lambda: self.wire.account.total > 8 * MIB)
            close(slow)
            until(lambda: not (len(self.wire) or self.wire._stuck))
            self.assertEqual(0, self.wire.account.total)

    def test_who_does_not_even_ask(self) -> None:
        """Pings without end, whose answers nobody reads."""
        silent, client = self.connect(buffer=4096), self.connect()
        silent.sock.setblocking(False)
        ping = b''.join(silent.sealer.seal(PING, 0, number + 1)
                        for number in range(1000))
        with contextlib.suppress(BlockingIOError):
            while True:
                ping = ping[silent.sock.send(ping):] or b''.join(
                    silent.sealer.seal(PING, 0, number + 1)
                    for number in range(1000))
        self.assertEqual(b'x', client.ask(b'x'))
        self.assertLess(self.wire.account.total, 64 * MIB)


class StandInTests(WireTestCase):

    def test_a_task_that_waits(self) -> None:
        client = self.connect()
        with self.busy():
            client.send(PING, 0)
            self.assertIsNotNone(client.hear())
            client.send(EXEC, AWAIT, b'x')
            other = self.connect()
            other.send(PING, 0)
            self.assertIsNotNone(other.hear())
        answer = client.hear()
        assert answer is not None
        self.assertEqual(b'x', joined(answer))

    def test_a_task_that_computes(self) -> None:
        over = threading.Event()

        def work(request: Request) -> None:
            number = 0
            while not over.is_set():
                for _ in range(10_000):
                    number += 1
            request.respond([])

        client, other = self.connect(), self.connect()
        self.work = work
        client.send()
        try:
            until(lambda: self.seen)
            for _ in range(5):
                other.send(PING, 0)
                self.assertIsNotNone(other.hear())
            self.assertIsNotNone(self.connect())
        finally:
            over.set()
        client.hear()

    def test_answers_of_the_task_itself(self) -> None:
        """A large answer during a task that goes on is sent."""
        over = threading.Event()

        def work(request: Request) -> None:
            request.respond([bytes(8 * MIB)])
            assert over.wait(DEADLINE)

        self.work = work
        client = self.connect()
        client.send()
        answer = client.hear()
        over.set()
        assert answer is not None
        self.assertEqual(8 * MIB, answer.size)

    def test_many_changes(self) -> None:
        """Tasks as long as the stand-in waits."""
        pause = threading.Event()

        def work(request: Request) -> None:
            pause.wait(0.05)
            self.echo(request)

        self.work = work
        clients = [self.connect() for _ in range(4)]
        for number in range(10):
            for client in clients:
                client.send(EXEC, AWAIT, b'%d' % number)
            for client in clients:
                client.send(PING, 0)
            for client in clients:
                answers = {each.kind for each in (
                    client.hear(), client.hear()) if each}
                self.assertEqual(2, len(answers))

    def test_a_task_that_fails_the_wire(self) -> None:
        client, other = self.connect(), self.connect()
        poll = self.wire._poller.poll
        failed = threading.Event()

        def fail() -> None:
            self.wire._standin._look = poll
            failed.set()
            raise OSError('lost')

        self.wire._standin._look = fail
        with self.assertLogs(LOGGER, 'ERROR'), self.busy():
            assert failed.wait(DEADLINE)
            other.send(PING, 0)
            self.assertIsNotNone(other.hear())
        self.assertEqual(b'x', client.ask(b'x'))


class ForkTests(WireTestCase):

    def test_a_child_of_a_task_has_no_connections(self) -> None:
        def work(request: Request) -> None:
            until(lambda: self.wire._standin._serves)
            faucet, sink = os.pipe()
            pid = os.fork()
            if not pid:
                try:
                    answered = request.respond([b'child'])
                    self.wire.close()
                    os.write(sink, repr((
                        answered, len(self.wire.queue),
                        [each for each in os.listdir('/proc/self/fd')
                         if is_inet(int(each))])).encode())
                finally:
                    os._exit(0)
            os.close(sink)
            with open(faucet, 'rb') as file:
                said = file.read()
            os.waitpid(pid, 0)
            request.respond([said])

        client, other = self.connect(), self.connect()
        self.visit().read(CHALLENGE_SIZE)
        mine = [str(each.sock.fileno()) for each in self.clients]
        with self.busy():
            other.send(EXEC, AWAIT, b'waits')
            until(lambda: self.wire.queue)
            self.work = work
        other.hear()
        said = eval(client.ask(b'fork'))
        self.assertEqual((False, 0), said[:2])
        self.assertEqual({*mine}, {*said[2]})
        self.work = self.echo
        for each in client, other:
            self.assertEqual(b'x', each.ask(b'x'))

    def test_a_child_that_comes_back_ends(self) -> None:
        children = []

        def work(request: Request) -> None:
            pid = os.fork()
            if pid:
                children.append(pid)
                request.respond([])

        client = self.connect()
        self.work = work
        client.ask(b'x')
        self.work = self.echo
        self.assertEqual(b'y', client.ask(b'y'))
        self.assertEqual(0, os.waitpid(children[0], 0)[1])
        self.assertEqual(b'z', client.ask(b'z'))


def is_inet(fd: int) -> bool:
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            return sock.family == socket.AF_INET
    except OSError:
        return False


class TLSTests(WireTestCase):

    def prepare(self) -> None:
        self.openssl = services.need(self, 'openssl')
        self.directory = self.enterContext(
            tempfile.TemporaryDirectory(prefix='background-tls'))
        for name in 'server', 'client':
            self.make_certificate(name)
        self.tls = server_context(*self.paths('server', 'client'))
        self.client_tls = client_context(*self.paths('client', 'server'))

    def make_certificate(self, name: str) -> None:
        """A certificate that signs itself, for `HOST`."""
        subprocess.run(
            [self.openssl, 'req', '-x509', '-nodes', '-days', '2',
             '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1',
             '-subj', f'/CN={name}', '-addext', f'subjectAltName=IP:{HOST}',
             '-keyout', f'{self.directory}/{name}.key',
             '-out', f'{self.directory}/{name}.pem'],
            check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def paths(self, own: str, other: str) -> tuple[str, str, str]:
        """The certificate and key of one side, and the one it trusts."""
        return (f'{self.directory}/{own}.pem', f'{self.directory}/{own}.key',
                f'{self.directory}/{other}.pem')

    def test_requests(self) -> None:
        client = self.connect()
        for size in 0, 1, 2 ** 14, 2 ** 16, 2 ** 18 + 1, 5 * MIB:
            data = os.urandom(size)
            self.assertTrue(data == client.ask(data), size)
        client.send(PING, 0)
        self.assertIsNotNone(client.hear())
        until(lambda: not self.wire.account.total)

    def test_many_requests_at_once(self) -> None:
        client = self.connect()
        data = b''.join(client.sealed(EXEC, AWAIT, bytes(1000))
                        for _ in range(500))
        client.sock.sendall(data)
        for number in range(500):
            answer = client.hear()
            assert answer is not None
            self.assertEqual(number + 1, answer.id)

    def test_a_slow_reader(self) -> None:
        slow, client = self.connect(buffer=4096), self.connect()
        data = os.urandom(8 * MIB)
        slow.send(EXEC, AWAIT, data)
        until(lambda: self.seen)
        self.assertEqual(b'x', client.ask(b'x'))
        answer = slow.hear()
        assert answer is not None
        self.assertTrue(data == joined(answer))

    def test_both_send_at_once(self) -> None:
        client = self.connect()
        data = os.urandom(MIB)
        unsent = memoryview(b''.join(
            client.sealed(EXEC, AWAIT, data) for _ in range(20)))
        client.sock.setblocking(False)
        while len(client.heard) < 20:
            mask = select.POLLIN
            try:
                unsent = unsent[client.sock.send(unsent[:2 ** 16]):]
            except ssl.SSLWantWriteError:
                mask |= select.POLLOUT
            try:
                client.heard += client.opener.feed(client.sock.recv(2 ** 16))
            except ssl.SSLWantReadError:
                if not unsent or mask != select.POLLIN:
                    self.assertTrue(wait_for(
                        client.sock.fileno(), mask, Deadline(DEADLINE)))
        for answer in client.heard:
            self.assertTrue(data == joined(answer))

    def test_a_silent_peer_blocks_nobody(self) -> None:
        silent = RawClient(self.address)
        self.clients.append(silent)
        half = RawClient(self.address)
        self.clients.append(half)
        half.sock.sendall(b'\x16\x03\x01')
        self.assertEqual(b'x', self.connect().ask(b'x'))
        self.assertEqual(2, len(self.wire._strangers))

    def test_a_client_without_tls(self) -> None:
        with self.assertLogs(LOGGER, 'WARNING'):
            client = RawClient(self.address)
            self.clients.append(client)
            client.sock.sendall(b'GRunBg1\n' + bytes(72))
            with contextlib.suppress(ConnectionResetError):
                self.assertNotEqual(b'GRunBg1\n', client.sock.recv(8))
        self.assertEqual(b'x', self.connect().ask(b'x'))

    def test_other_certificates(self) -> None:
        self.make_certificate('other')
        own = client_context(*self.paths('client', 'server'))
        without = ssl.create_default_context(
            cafile=self.paths('client', 'server')[2])
        wrong = client_context(*self.paths('other', 'server'))
        for context in without, wrong:
            with self.assertLogs(LOGGER, 'WARNING'):
                with self.assertRaises(OSError):
                    client = RawClient(self.address, tls=context)
                    self.clients.append(client)
                    if not client.read(CHALLENGE_SIZE):
                        raise ConnectionResetError
                until(lambda: not self.wire._strangers)
            self.wire.complaints._kinds.clear()
        self.client_tls = own
        self.assertEqual(b'x', self.connect().ask(b'x'))

    def test_an_end_during_the_handshake(self) -> None:
        for size in range(0, 300, 20):
            client = RawClient(self.address)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            assert self.client_tls is not None
            half = self.client_tls.wrap_bio(
                incoming, outgoing, server_hostname=HOST)
            with contextlib.suppress(ssl.SSLWantReadError):
                half.do_handshake()
            client.sock.sendall(outgoing.read()[:size])
            (client.reset if size % 3 else client.close)()
        until(lambda: not self.wire._strangers)
        self.assertEqual(b'x', self.connect().ask(b'x'))

    def test_the_token_is_asked_for_as_well(self) -> None:
        client = self.visit().shake_hands(STATUS_KEY)
        client.send(EXEC)
        self.assertEqual('not_allowed', client.hear_error())

    def test_answers_during_a_task(self) -> None:
        client = self.connect()

        def work(request: Request) -> None:
            until(lambda: len(self.wire.queue) == 3)
            self.echo(request)

        self.work = work
        client.send(EXEC, AWAIT, b'first')
        client.send(PING, 0)
        answer = client.hear()
        assert answer is not None
        self.assertEqual(PONG, answer.kind)
        for _ in range(3):
            client.send(EXEC, AWAIT, b'')
        self.work = self.echo
        for _ in range(4):
            self.assertIsNotNone(client.hear())

