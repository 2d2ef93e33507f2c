"""The sockets that the daemon keeps."""

import contextlib
import os
import pathlib
import random
import socket
import stat
import unittest

from gocept.runner.kernel.daemon.sockets import restore_numbers
from gocept.runner.kernel.daemon.state import State
from gocept.runner.kernel.keeper.link import Link
from gocept.runner.tests.kernel.raw import KernelCase, Refused
from gocept.runner.waits.packets import pair


class Sockets(KernelCase):

    def make(self, name, **params):
        self.addCleanup(self.remove, name)
        return self.client.do('make-socket', name=name, **params)

    def remove(self, name):
        with contextlib.suppress(Refused):
            self.client.do('remove-sockets', names=[name])

    def path(self, name):
        return os.path.join(self.kernel.directory, name)

    def test_by_default_it_listens_on_a_free_port_of_this_machine(self):
        made = self.make('a1')
        self.assertEqual(
            {'family': 'inet', 'type': 'stream', 'backlog': 5,
             'host': '127.0.0.1', 'port': made['port'],
             'fileno': made['fileno']}, made)
        self.assertGreaterEqual(made['fileno'], 64)
        socket.create_connection(('127.0.0.1', made['port'])).close()

    def test_the_same_parameters_give_what_exists(self):
        made = self.make('b1', backlog=7)
        self.assertEqual(made, self.make('b1', backlog=7))
        self.assertEqual(made, self.make('b1', backlog=7, port=made['port']))
        for change, differ in (
                ({}, 'backlog'), ({'backlog': 8}, 'backlog'),
                ({'backlog': 7, 'port': 1}, 'port'),
                ({'backlog': 7, 'host': '127.0.0.2'}, 'host'),
                ({'backlog': 7, 'family': 'inet6'}, 'family, host'),
                ({'backlog': 7, 'path': self.path('b1')},
                 'family, path, host')):
            with self.subTest(change=change):
                with self.assertRaisesRegex(
                        Refused, f'other parameters: .*differs in {differ};'):
                    self.make('b1', **change)

    def test_a_unix_socket(self):
        path = self.path('c1')
        made = self.make('c1', path=path, umask=0o117)
        self.assertEqual(
            {'family': 'unix', 'type': 'stream', 'backlog': 5, 'path': path,
             'umask': str(0o117), 'fileno': made['fileno']}, made)
        self.assertEqual(0o660, stat.S_IMODE(os.stat(path).st_mode))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
        with self.assertRaisesRegex(Refused, 'has the path'):
            self.make('c1b', path=path)
        self.client.do('remove-sockets', names=['c1'])
        self.assertFalse(os.path.exists(path))

    def test_a_stale_socket_is_replaced_and_nothing_else(self):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            path = self.path(f'd{kind}')
            with socket.socket(socket.AF_UNIX, kind) as sock:
                sock.bind(path)
                if kind == socket.SOCK_STREAM:
                    sock.listen()
                with self.assertRaisesRegex(Refused, 'another process has'):
                    self.make('d', path=path)
            self.make(f'd{kind}', path=path)
        path = pathlib.Path(self.path('file'))
        path.write_text('mine')
        with self.assertRaisesRegex(Refused, 'no socket'):
            self.make('d', path=str(path))
        self.assertEqual('mine', path.read_text())

    def test_wrong_types(self):
        for params in ({'host': 5}, {'interface': [1]}, {'family': {}},
                       {'type': 5}, {'path': 5}, {'backlog': 'x'},
                       {'backlog': float('inf')}):
            [key] = params
            with self.assertRaisesRegex(Refused, f'^the {key} of a socket'):
                self.make('t', **params)
        for name in (None, '', 5, 'x*'):
            with self.assertRaisesRegex(Refused, 'name'):
                self.client.do('make-socket', name=name)

    def test_a_name_that_is_too_long_for_the_keeper(self):
        before = self.client.do('status')
        for name in ('x' * 70_000, '\xe4' * 12_000, 'x' * 1_000_000):
            with self.assertRaisesRegex(Refused, 'too long'):
                self.make(name)
        after = self.client.do('status')
        for role in ('pid', 'keeper'):
            self.assertEqual(before[role], after[role])

    def test_the_file_of_somebody_else_is_not_removed(self):
        path = self.path('e1')
        self.make('e1', path=path)
        os.unlink(path)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            self.client.do('remove-sockets', names=['e1'])
            self.assertTrue(os.path.exists(path))

    def test_errors(self):
        for expected, params in [
                ('needs the absolute path', {'path': 'relative'}),
                ('needs the absolute path', {'family': 'unix'}),
                ('needs the absolute path', {'path': '/tmp/'}),
                ('at most 107 bytes', {'path': '/' + 'x' * 200}),
                ('No such file', {'path': '/no/such/directory/socket'}),
                ('family of a socket is one of', {'family': 'bogus'}),
                ('type of a socket is one of', {'type': 'bogus'}),
                ('port of a socket is a number', {'port': 70000}),
                ('port of a socket is a number', {'port': 'x'}),
                ('umask of a socket is a number',
                 {'path': '/tmp/x', 'umask': 9999}),
                ('no address of the family inet', {'host': '::1'}),
                ('the host no.such.invalid: ', {'host': 'no.such.invalid'}),
                ('Bind failed on 192.0.2.1', {'host': '192.0.2.1'}),
                ('No such device', {'interface': 'no-such-0'})]:
            with self.subTest(expected=expected, params=params):
                with self.assertRaisesRegex(Refused, expected):
                    self.make('error', **params)
        with self.assertRaisesRegex(Refused, 'needs a name'):
            self.client.do('make-socket')
        self.assertEqual({}, self.client.do('list-sockets', names=['error']))

    def test_a_host_by_name(self):
        made = self.make('f1', host='localhost')
        self.assertEqual('localhost', made['host'])
        socket.create_connection(('127.0.0.1', made['port'])).close()

    def test_datagrams(self):
        made = self.make('g1', type='dgram')
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b'abc', ('127.0.0.1', made['port']))
        self.client.make(
            'g1', '/bin/sh', '-c',
            'exec python3 -c "import socket, sys; print(socket.socket('
            'fileno=int(sys.argv[1])).recv(10))" $0', '$(socket.g1.fileno)',
            env={'PATH': os.environ['PATH']})
        watch = self.connect().watch('g1').read_all()
        self.assertEqual(b"b'abc'\n", watch.out.get('g1'), watch.err)

    def test_an_interface(self):
        made = self.make('h1', interface='lo')
        self.assertEqual(['0.0.0.0', 'lo'], [made['host'], made['interface']])
        socket.create_connection(('127.0.0.1', made['port'])).close()

    def test_the_port_of_one_with_reuseport_is_kept(self):
        made = self.make('i1', reuseport=True)
        self.assertEqual('1', made['reuseport'])
        self.assertNotIn('fileno', made)
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(('127.0.0.1', made['port']))
        self.assertEqual(made, self.make('i1', reuseport=True))

    def test_names_and_numbers(self):
        made = {f'j.{number}': self.make(f'j.{number}')
                for number in range(3)}
        self.assertEqual(made, self.client.do('list-sockets', names=['j.*']))
        number = str(made['j.1']['fileno'])
        self.assertEqual(
            {'j.1': made['j.1']},
            self.client.do('list-sockets', names=[number]))
        self.client.do('remove-sockets', names=[number])
        self.client.do('remove-sockets', names=['j.*', 'j.*'])
        self.assertEqual({}, self.client.do('list-sockets', names=['j.*']))
        with self.assertRaisesRegex(Refused, 'j.1 not found'):
            self.client.do('remove-sockets', names=['j.1'])


class NumberTests(unittest.TestCase):

    def test_all_get_their_numbers_again_wherever_the_others_are(self):
        ours, theirs = pair()
        self.addCleanup(ours.close)
        link = Link(theirs, {}, os.getpid())
        self.addCleanup(link.close)
        state = State()
        self.addCleanup(state.close)
        count = 12
        link.move(300)
        first = link.fileno() + 1
        numbers = [*range(first, first + count)]
        random.Random(14).shuffle(numbers)
        table, files = {}, {}
        numbers[0] = link.fileno()
        for place in range(first, first + 2 * count):
            key = f'key:{place}'
            if place >= first + count // 2 and numbers:
                key = f'socket:{place}'
                state.put('socket', str(place),
                          [None, None, numbers.pop(), None])
            fd = os.memfd_create(key)
            os.dup2(fd, place, inheritable=False)
            os.close(fd)
            table[key] = place
            files[key] = os.fstat(place).st_ino
        restore_numbers(table, state, link)
        for fd in table.values():
            self.addCleanup(os.close, fd)
        self.assertEqual(
            files, {key: os.fstat(fd).st_ino for key, fd in table.items()})
        self.assertEqual(len(table), len({*table.values()}))
        for name, record in state.items('socket'):
            self.assertEqual(record[2], table[f'socket:{name}'])
        self.assertFalse(any(map(os.get_inheritable, table.values())))
        link.ready()
        self.assertIn(b'ready', ours.recv(100))
