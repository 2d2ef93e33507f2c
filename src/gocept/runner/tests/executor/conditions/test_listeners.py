"""Who listens where; and ports that are free."""

import contextlib
import errno
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any
from unittest import mock

from gocept.runner.executor.conditions import listeners
from gocept.runner.process import Process
from gocept.runner.tests.executors import ExecutorTestCase, server
from gocept.runner.tests.victims import lines

HOST = '127.0.0.1'


def inode(sock: socket.socket) -> str:
    return str(os.fstat(sock.fileno()).st_ino)


class ReserveTests(ExecutorTestCase):

    def reserve(self, host: str = HOST, port: int = 0) -> socket.socket:
        return self.enterContext(listeners.reserve(host, port))

    def test_each_gets_another_port(self) -> None:
        held = [self.reserve() for _ in range(50)]
        self.assertEqual(50, len({sock.getsockname() for sock in held}))

    def test_nobody_else_is_given_it(self) -> None:
        for host in HOST, '::1', 'localhost':
            with self.subTest(host):
                held = self.reserve(host)
                with socket.socket(held.family) as sock, \
                        self.assertRaises(OSError):
                    sock.bind(held.getsockname()[:2])

    def test_it_is_no_standard_stream(self) -> None:
        program = self.program('''
            import os
            from gocept.runner.executor.conditions import listeners
            os.close(0)
            assert listeners.reserve('127.0.0.1').fileno() > 2
            ''')
        self.assertEqual(0, program.end(), program.output)

    def test_nobody_listens(self) -> None:
        held = self.reserve()
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(held.getsockname())
        self.assertEqual([], listeners.on_port(held.getsockname()[1]))

    def test_a_server_may_bind_it_and_listen(self) -> None:
        for host in HOST, '::1':
            with self.subTest(host):
                held = self.reserve(host)
                address = held.getsockname()[:2]
                with socket.create_server(address, family=held.family):
                    socket.create_connection(address).close()
                    held.close()
                    socket.create_connection(address).close()

    def test_a_port_that_is_named(self) -> None:
        held = self.reserve()
        port = held.getsockname()[1]
        held.close()
        self.assertEqual((HOST, port), self.reserve(HOST, port).getsockname())

    def test_a_port_that_is_taken(self) -> None:
        with socket.create_server((HOST, 0)) as sock:
            with self.assertRaises(OSError) as caught:
                self.reserve(*sock.getsockname())
        self.assertEqual(errno.EADDRINUSE, caught.exception.errno)

    def test_an_address_of_another_machine(self) -> None:
        with self.assertRaises(OSError) as caught:
            self.reserve('192.0.2.1')  # which is nobody's; see RFC 5737
        self.assertEqual(errno.EADDRNOTAVAIL, caught.exception.errno)

    def test_a_name_one_of_whose_addresses_is_of_no_use(self) -> None:
        here = socket.getaddrinfo(HOST, 0, type=socket.SOCK_STREAM)
        there = socket.getaddrinfo('192.0.2.1', 0, type=socket.SOCK_STREAM)
        with mock.patch('socket.getaddrinfo', return_value=there + here):
            self.assertEqual(HOST, self.reserve('name').getsockname()[0])

    def test_a_name_on_one_of_whose_addresses_the_port_is_taken(self) -> None:
        with socket.create_server((HOST, 0)) as sock:
            port = sock.getsockname()[1]
            addresses = [each for host in (HOST, '127.0.0.2')
                         for each in socket.getaddrinfo(
                             host, port, type=socket.SOCK_STREAM)]
            with mock.patch('socket.getaddrinfo', return_value=addresses), \
                    self.assertRaises(OSError):
                self.reserve('name', port)


class ListenerTests(ExecutorTestCase):

    @contextlib.contextmanager
    def bound(self, address: Any, listening: bool = True,
              ) -> Iterator[socket.socket]:
        """A Unix socket in the directory."""
        with contextlib.chdir(self.dir), socket.socket(
                socket.AF_UNIX) as sock:
            sock.bind(address)
            if listening:
                sock.listen()
            yield sock

    def child(self, body: str) -> Process:
        """One that has said that it listens."""
        child = Process(server(body), stdout='pipe', cwd=self.dir)
        self.addCleanup(child.close)
        lines(child, 1)
        return child

    def test_on_a_port(self) -> None:
        for host, family in ((HOST, socket.AF_INET), ('::1', socket.AF_INET6)):
            with self.subTest(host), socket.create_server(
                    (host, 0), family=family) as sock:
                port = sock.getsockname()[1]
                # Neither of these is a listener.
                with socket.create_connection((host, port)) as client:
                    accepted, _ = sock.accept()
                    with accepted:
                        self.assertEqual(
                            [inode(sock)], listeners.on_port(port))
                        self.assertEqual(
                            [], listeners.on_port(client.getsockname()[1]))

    def test_on_a_port_of_several_addresses(self) -> None:
        with socket.create_server((HOST, 0)) as one:
            port = one.getsockname()[1]
            with socket.create_server(('127.0.0.2', port)) as other:
                self.assertEqual({inode(one), inode(other)},
                                 set(listeners.on_port(port)))

    def test_on_a_path(self) -> None:
        for name in ('socket', 'a  socket', ' socket ', '\u00e4', 'a\nsocket',
                     'a\rsocket', 'a+.*', '\u2003socket', '\udcff'):
            with self.subTest(repr(name)):
                # Sockets of other programs may have the same relative path.
                path = f'{self.dir}/{name}'
                with self.bound(path) as sock:
                    self.assertEqual([inode(sock)], listeners.on_path(path))
                    for other in path[:-1], '.' * len(path):
                        self.assertEqual([], listeners.on_path(other))
                self.assertEqual([], listeners.on_path(path))
                os.unlink(path)

    def test_on_an_absolute_path(self) -> None:
        path = self.dir / 'a socket'
        with self.bound(str(path)) as sock:
            for each in str(path), os.fsencode(path):
                self.assertEqual([inode(sock)], listeners.on_path(each))

    def test_on_a_name_that_is_no_path(self) -> None:
        for name in (f'\0gocept.runner.{os.getpid()}',
                     f'\0gocept runner\0{os.getpid()}'):
            with self.subTest(name), self.bound(name) as sock:
                self.assertEqual([inode(sock)], listeners.on_path(name))
                self.assertEqual([], listeners.on_path(name[1:]))

    def test_who_is_bound_does_not_listen_yet(self) -> None:
        path = str(self.dir / 'socket')
        with self.bound(path, listening=False) as sock:
            self.assertEqual([], listeners.on_path(path))
            sock.listen()
            self.assertEqual([inode(sock)], listeners.on_path(path))

    def test_the_paths_of_others_may_be_anything(self) -> None:
        path = str(self.dir / 'socket')
        with self.bound(path) as sock, self.bound('x\ny\n\n1 2 3 4 5 6'), \
                self.bound(b'\xff\xfe\x80'):
            self.assertEqual([inode(sock)], listeners.on_path(path))

    def test_no_path(self) -> None:
        with socket.socket(socket.AF_UNIX):
            self.assertEqual([], listeners.on_path(''))

    def test_a_system_that_does_not_tell(self) -> None:
        with socket.create_server((HOST, 0)) as sock, self.bound('socket'), \
                mock.patch('builtins.open', side_effect=FileNotFoundError):
            self.assertEqual([], listeners.on_port(sock.getsockname()[1]))
            self.assertEqual([], listeners.on_path('socket'))

    def test_among_processes(self) -> None:
        path = str(self.dir / 'socket')
        child = self.child(f'sock = listen({path!r})\nsay("ready")\npause()')
        gone = Process('true')
        gone.wait()
        with socket.create_server((HOST, 0)) as ours:
            [its] = listeners.on_path(path)
            pids = [1, gone.pid, child.pid, os.getpid()]
            for expected, inodes in (
                    ([], []), ([], ['0']), ([child.pid], [its]),
                    ([os.getpid()], [inode(ours)]),
                    ([child.pid, os.getpid()], [inode(ours), its])):
                with self.subTest(inodes):
                    self.assertEqual(
                        expected, list(listeners.among(pids, inodes)))
            self.assertEqual([], list(listeners.among([], [its])))

    def test_the_holder_is_named(self) -> None:
        self.assertEqual('', listeners.holder([], 'there'))
        self.assertEqual('a process of somebody else listens on there',
                         listeners.holder(['0'], 'there'))
        with self.bound('socket') as sock:
            name = pathlib.Path('/proc/self/comm').read_text().strip()
            self.assertEqual(
                f'process {os.getpid()} ({name}) listens on there',
                listeners.holder([inode(sock)], 'there'))

    def test_the_holder_may_have_any_name(self) -> None:
        path = str(self.dir / 'socket')
        child = self.child(rf'''
            with open('/proc/self/comm', 'wb') as file:
                file.write(b'\xff name')
            sock = listen({path!r})
            say('ready')
            pause()
            ''')
        self.assertEqual(
            f'process {child.pid} (\ufffd name) listens on there',
            listeners.holder(listeners.on_path(path), 'there'))

    def test_the_holder_may_end_meanwhile(self) -> None:
        gone = Process('true')
        gone.wait()
        with mock.patch.object(listeners, 'among', return_value=[gone.pid]):
            self.assertEqual(
                f'process {gone.pid} (ended meanwhile) listens on there',
                listeners.holder(['0'], 'there'))

    def test_the_peer(self) -> None:
        path = str(self.dir / 'socket')
        child = self.child(f'sock = listen({path!r})\nsay("ready")\npause()')
        with contextlib.chdir(self.dir):
            self.assertEqual(child.pid, listeners.at('socket'))
            self.assertRaises(FileNotFoundError, listeners.at, 'other')
