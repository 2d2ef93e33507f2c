"""How a service manager is told, whoever it is."""

import os
import socket
import unittest
from unittest import mock

from gocept.runner.signals.systemd import ServiceManager, taken_variables
from gocept.runner.tests.support import (
    DEADLINE,
    TestCase,
    open_descriptors,
)


class ServiceManagerTests(TestCase):

    def setUp(self):
        super().setUp()
        self.path = str(self.dir / 'notify')
        self.socket = self.listen(self.path)

    def listen(self, address):
        sock = self.enterContext(
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        sock.bind(address)
        sock.settimeout(DEADLINE)
        return sock

    def manager(self, address):
        manager = ServiceManager(address)
        self.addCleanup(manager.close)
        return manager

    def test_messages_come_at_a_path(self):
        manager = self.manager(self.path)
        manager.send('READY=1')
        manager.send('STATUS=schön')
        self.assertEqual(b'READY=1', self.socket.recv(99))
        self.assertEqual('STATUS=schön', self.socket.recv(99).decode())

    def test_messages_come_at_an_abstract_address(self):
        name = f'gocept.runner.tests.{os.getpid()}.{id(self)}'
        sock = self.listen(f'\0{name}')
        self.manager(f'@{name}').send('READY=1')
        self.assertEqual(b'READY=1', sock.recv(99))

    def test_other_addresses(self):
        for address in ('vsock:2:1234', 'relative', '', '/', '@'):
            with (self.subTest(address=address),
                  self.assertRaisesRegex(ValueError, 'told nothing')):
                ServiceManager(address)

    def test_nobody_listens(self):
        (self.dir / 'file').write_text('')
        os.mkfifo(self.dir / 'fifo')
        with socket.socket(socket.AF_UNIX) as stream:
            stream.bind(str(self.dir / 'stream'))
            before = open_descriptors()
            for name in ('gone', 'file', 'fifo', 'stream', 'x' * 200):
                with self.subTest(name=name), self.assertRaises(OSError):
                    self.manager(str(self.dir / name)).send('READY=1')
            self.assertEqual(before, open_descriptors())

    def test_a_manager_that_does_not_read(self):
        manager = self.manager(self.path)
        with self.assertRaises(BlockingIOError):
            for _ in range(10_000):
                manager.send('WATCHDOG=1')
        self.socket.recv(99)
        manager.send('READY=1')  # there is room again

    def test_a_manager_that_listens_anew(self):
        manager = self.manager(self.path)
        manager.send('READY=1')
        self.socket.close()
        with self.assertRaises(ConnectionRefusedError):
            manager.send('STATUS=lost')
        os.unlink(self.path)
        with self.assertRaises(FileNotFoundError):
            manager.send('STATUS=lost')
        sock = self.listen(self.path)
        manager.send('STATUS=heard')
        self.assertEqual(b'STATUS=heard', sock.recv(99))


class VariableTests(unittest.TestCase):

    def taken(self, **variables):
        environ = {'HOME': '/', **variables}
        with taken_variables(environ) as wishes:
            self.assertEqual({'HOME': '/'}, environ)
        self.assertEqual({'HOME': '/', **variables}, environ)
        return tuple(wishes)

    def test_none(self):
        self.assertEqual(('', None), self.taken())

    def test_an_address(self):
        self.assertEqual(('@a', None), self.taken(NOTIFY_SOCKET='@a'))

    def test_a_watchdog(self):
        me = str(os.getpid())
        for pid, micros, expected in (
                (me, '1500000', 1.5), ('', '1500000', 1.5),
                ('1' + me, '1500000', None), ('x', '1', None),
                (me, '', None), (me, '0', None), (me, '-1', None),
                (me, 'x', None), (me, '\u0661', None)):
            with self.subTest(pid=pid, micros=micros):
                self.assertEqual(('', expected), self.taken(
                    WATCHDOG_PID=pid, WATCHDOG_USEC=micros))

    def test_a_watchdog_without_a_pid(self):
        self.assertEqual(('', 2.0), self.taken(WATCHDOG_USEC='2000000'))

    def test_what_others_have_set_meanwhile_stays(self):
        environ = {'NOTIFY_SOCKET': '@a'}
        with taken_variables(environ):
            environ['NOTIFY_SOCKET'] = '@b'
        self.assertEqual({'NOTIFY_SOCKET': '@b'}, environ)

    def test_of_this_process(self):
        with (mock.patch.dict(os.environ, NOTIFY_SOCKET='@a'),
              taken_variables(os.environ)):
            self.assertNotIn('NOTIFY_SOCKET', os.environ)
