"""Whose process has the other end of a connection."""

import contextlib
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Iterator
from unittest import mock

from gocept.runner.errors import KernelError
from gocept.runner.kernel.wire import peers
from gocept.runner.kernel.wire.peers import Peers
from gocept.runner.tests.kernel.wire import WireTestCase
from gocept.runner.tests.support import DEADLINE, child_environment

NOBODY = 65534

PYTHON = shutil.which('python3', path='/usr/bin:/bin') or ''
"""One that another user may run: that of the tests may be hidden."""

CLIENT = '''\
import socket, sys
kind, address, words, then = sys.argv[1:]
if kind == 'unix':
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address)
else:
    sock = socket.create_connection(('127.0.0.1', int(address)))
sock.sendall(words.encode())
if then == 'abort':
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\\1' + bytes(7))
    sock.close()
elif then == 'close':
    sock.close()
else:
    answer = b''
    try:
        if then == 'shut':
            sock.shutdown(socket.SHUT_WR)
        while piece := sock.recv(1000):
            answer += piece
    except ConnectionResetError:
        answer += b' reset'
    print(answer.decode())
'''

NAMESPACE = '''\
import fcntl, socket, struct
from gocept.runner.kernel.wire.peers import Peers, owner_of_listener
with socket.socket() as sock:  # let the loopback interface be up
    fcntl.ioctl(sock, 0x8914, struct.pack('16sh22x', b'lo', 0x49))
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
sock, _ = server.accept()
with Peers() as peers:
    print(peers.user_of(sock), owner_of_listener(*server.getsockname()))
'''

needs_root = unittest.skipUnless(
    os.geteuid() == 0 and PYTHON, 'only root can be another user')


class PairTestCase(unittest.TestCase):

    def setUp(self) -> None:
        self.peers = Peers()
        self.addCleanup(self.peers.close)

    @contextlib.contextmanager
    def pair(self, host: str = '127.0.0.1', to: str = '',
             ) -> Iterator[tuple[socket.socket, socket.socket]]:
        """A socket of the kernel, and that of its client."""
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        try:
            server = socket.create_server(
                (host, 0), family=family, dualstack_ipv6=host == '::')
        except OSError as error:
            self.skipTest(f'no {host} here: {error}')
        with server, socket.create_connection(
                (to or host, server.getsockname()[1])) as client:
            sock, _ = server.accept()
            with sock:
                yield sock, client

    def set_diag(self, works: bool) -> None:
        if not works:
            diag = self.peers._diag._socket
            self.assertIsNotNone(diag)
            assert diag is not None
            diag.close()
            self.peers._diag._socket = None


class TestUsers(PairTestCase):

    def test_tcp(self) -> None:
        for works in (True, False):
            self.set_diag(works)
            for host, to in (('127.0.0.1', ''), ('::1', ''),
                             ('::', '127.0.0.1')):
                with self.subTest(host=host, works=works), (
                        self.pair(host, to)) as (sock, client):
                    self.assertEqual(os.geteuid(), self.peers.user_of(sock))
                    self.assertEqual(os.geteuid(), self.peers.user_of(client))
                    self.assertEqual('', self.peers.refusal(sock))
                    self.assertFalse(self.peers.is_gone(sock))

    def test_sock_diag_is_asked(self) -> None:
        with self.pair() as (sock, _):
            self.peers.user_of(sock)
            if not self.peers._diag.works:
                self.skipTest('this system has no sock_diag')
            with mock.patch.object(peers, '_search') as search:
                self.peers.user_of(sock)
        search.assert_not_called()

    def test_a_client_that_has_shut_its_side_has_a_user(self) -> None:
        for works in (True, False):
            self.set_diag(works)
            with self.pair() as (sock, client):
                client.shutdown(socket.SHUT_WR)
                self.assertEqual(os.geteuid(), self.peers.user_of(sock))
                self.assertFalse(self.peers.is_gone(sock))

    def test_a_client_that_is_gone_has_none(self) -> None:
        for works in (True, False):
            self.set_diag(works)
            for linger in (bytes(8), b'\1' + bytes(7)):
                with self.pair() as (sock, client):
                    client.sendall(b'get a\n')
                    client.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    client.close()
                    with contextlib.suppress(OSError):
                        with self.assertRaisesRegex(
                                KernelError, 'has closed the connection'):
                            self.peers.user_of(sock)
                    self.assertTrue(self.peers.refusal(sock))
                    self.assertTrue(self.peers.is_gone(sock))

    def test_only_loopback_counts(self) -> None:
        with self.pair() as (sock, _):
            elsewhere = mock.Mock(spec=socket.socket, family=socket.AF_INET)
            elsewhere.getsockname.return_value = sock.getsockname()
            elsewhere.getpeername.return_value = ('192.0.2.1', 7)
            self.assertIn('comes from 192.0.2.1',
                          self.peers.refusal(elsewhere))

    def test_a_stranger_with_the_same_port_is_not_the_client(self) -> None:
        # When no connection is found, the system offers what listens.
        with socket.create_server(('127.0.0.1', 0)) as server:
            address = server.getsockname()
            for works in (True, False):
                self.set_diag(works)
                self.assertIsNone(
                    self.peers._diag.find(address, ('127.0.0.1', 7)))

    def test_unix(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.assertEqual(os.geteuid(), self.peers.user_of(ours))
            self.assertEqual(os.geteuid(), peers.user_of(ours))
            self.assertFalse(self.peers.is_gone(ours))
            theirs.shutdown(socket.SHUT_WR)
            self.assertFalse(self.peers.is_gone(ours))
            theirs.close()
            self.assertTrue(self.peers.is_gone(ours))

    def test_others_are_told_how_to_be_let_in(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, mock.patch.object(
                peers, 'unix_user', lambda sock: 4711):
            self.assertRegex(
                self.peers.refusal(ours),
                rf'serves user {os.geteuid()}, and you are user 4711: .*'
                '--allow-user')
            with Peers([4711]) as kinder:
                self.assertEqual('', kinder.refusal(ours))

    def test_an_answer_of_sock_diag_that_is_an_error(self) -> None:
        if self.peers._diag._socket is None:
            self.skipTest('this system has no sock_diag')
        broken = struct.Struct('=IHHIIi').pack(20, 2, 0, 1, 0, -1)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        theirs.send(broken)
        self.peers._diag._socket.close()
        self.peers._diag._socket = ours
        with theirs, self.pair() as (sock, _):
            with self.assertLogs('gocept.runner.kernel', 'WARNING') as logs:
                self.assertEqual(os.geteuid(), self.peers.user_of(sock))
        self.assertIn('Operation not permitted', logs.output[0])


class TestListeners(PairTestCase):

    def test_who_listens(self) -> None:
        for diag in (True, False):
            with contextlib.ExitStack() as stack:
                if not diag:
                    stack.enter_context(mock.patch.object(
                        peers._Diag, '_ask', side_effect=OSError))
                    stack.enter_context(self.assertLogs(
                        'gocept.runner.kernel'))
                for host in ('127.0.0.1', '0.0.0.0'):
                    with socket.create_server((host, 0)) as server:
                        port = server.getsockname()[1]
                        self.assertEqual(
                            os.geteuid(),
                            peers.owner_of_listener('127.0.0.1', port))
                    self.assertIsNone(
                        peers.owner_of_listener('127.0.0.1', port))

    @needs_root
    def test_another_user_who_listens_is_seen(self) -> None:
        with subprocess.Popen(
                [PYTHON, '-c', 'import socket\n'
                 's = socket.create_server(("127.0.0.1", 0))\n'
                 'print(s.getsockname()[1], flush=True)\ninput()'],
                user=NOBODY, group=NOBODY, extra_groups=[], cwd='/',
                stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdin is not None
            port = int(process.stdout.readline())
            self.assertEqual(NOBODY,
                             peers.owner_of_listener('127.0.0.1', port))
            process.communicate(b'\n', timeout=DEADLINE)


class TestNamespaces(unittest.TestCase):

    def test_a_kernel_in_another_network_knows_its_clients(self) -> None:
        unshare = shutil.which('unshare')
        if unshare is None or subprocess.run(
                [unshare, '--net', 'true'], stderr=subprocess.DEVNULL,
                check=False).returncode:
            self.skipTest('no network namespace can be made here')
        done = subprocess.run(
            [unshare, '--net', sys.executable, '-c', NAMESPACE],
            env=child_environment(), capture_output=True, text=True,
            timeout=DEADLINE, check=False)
        self.assertEqual((f'{os.geteuid()} {os.geteuid()}\n', ''),
                         (done.stdout, done.stderr))


@needs_root
class TestAnotherUser(WireTestCase):
    """A process of nobody talks to the kernel of root."""

    family = socket.AF_INET

    def setUp(self) -> None:
        super().setUp()
        self.operations.values['a'] = 'secret'

    def talk(self, words: str, then: str = '') -> str:
        if self.family == socket.AF_UNIX:
            directory = pathlib.Path(str(self.address)).parent
            directory.chmod(0o755)
            os.chmod(self.address, 0o666)
            where = ['unix', str(self.address)]
        else:
            where = ['tcp', str(self.address[1])]
        arrived = self.clients.arrived + self.clients.refused
        with tempfile.TemporaryFile('w+') as output, subprocess.Popen(
                [PYTHON, '-c', CLIENT, *where, words, then],
                user=NOBODY, group=NOBODY, extra_groups=[], cwd='/',
                stdout=output) as process:
            self.wait(lambda: (self.clients.arrived + self.clients.refused
                               > arrived and not len(self.clients)))
            self.assertEqual(0, process.wait(DEADLINE))
            self.idle()
            output.seek(0)
            return output.read()

    def test_it_is_refused_in_one_line(self) -> None:
        for then in ('', 'shut'):
            self.assertEqual(
                'Error: this kernel serves user 0, and you are user 65534: if '
                'you may run anything as user 0, it is to be started with '
                '--allow-user\n\n', self.talk('set b 1\nget a\n', then))
        self.assertEqual({'a': 'secret'}, self.operations.values)

    def test_it_is_refused_if_it_closes_at_once(self) -> None:
        for then in ('close', 'abort'):
            self.talk('set b 1\n', then)
        self.assertEqual({'a': 'secret'}, self.operations.values)
        self.assertEqual(0, self.operations.handled)

    def test_it_can_be_allowed(self) -> None:
        self.peers.allowed |= {NOBODY}
        self.assertIn('secret\n> ok\n', self.talk('get a\nquit\n'))

    def test_who_asks_and_listens_on_is_answered(self) -> None:
        self.peers.allowed |= {NOBODY}
        self.assertTrue(self.talk('get a\n', 'shut').endswith('secret\n> \n'))


class TestAnotherUserOnUnix(TestAnotherUser):

    family = socket.AF_UNIX


del WireTestCase, PairTestCase
