import os
import socket
from unittest import mock

from gocept.runner.house.service import Service
from gocept.runner.tests.support import TestCase, open_descriptors


class ServiceTests(TestCase):

    def setUp(self):
        super().setUp()
        self.before = open_descriptors()
        self.path = str(self.dir / 'notify')
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.sock.close)
        self.sock.bind(self.path)
        self.sock.setblocking(False)
        self.enterContext(mock.patch.dict(os.environ,
                                          NOTIFY_SOCKET=self.path))
        self.service = Service()

    def said(self):
        return self.sock.recv(1000).decode().splitlines()

    def test_the_phases(self):
        with self.service.told():
            self.assertNotIn('NOTIFY_SOCKET', os.environ)
            self.service.tell('starting', 'a')
            self.assertEqual(['STATUS=a'], self.said())
            self.service.tell('running', 'b')
            self.assertEqual(['READY=1', 'STATUS=b'], self.said())
            self.service.tell('reloading', 'b')
            *said, time = self.said()
            self.assertEqual(['RELOADING=1', 'STATUS=b'], said)
            self.assertRegex(time, r'^MONOTONIC_USEC=\d+$')
            self.service.tell('ending', 'b')
            self.assertEqual(['STOPPING=1', 'STATUS=b'], self.said())
        self.assertIn('NOTIFY_SOCKET', os.environ)
        self.sock.close()
        self.assertEqual(self.before, open_descriptors())

    def test_only_what_is_new(self):
        with self.service.told():
            self.service.tell('running', 'a')
            self.said()
            self.service.tell('running', 'a')
            self.assertRaises(BlockingIOError, self.said)

    def test_nobody_listens(self):
        os.unlink(self.path)
        with self.service.told():
            self.service.tell('running', 'a')
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.addCleanup(self.sock.close)
            self.sock.bind(self.path)
            self.service.tell('running', 'a')  # which was not told yet
            self.assertEqual(['READY=1', 'STATUS=a'], self.said())

    def test_what_is_no_address(self):
        os.environ['NOTIFY_SOCKET'] = 'vsock:1:2'
        with self.assertLogs('gocept.runner.house', 'WARNING') as logs:
            with self.service.told():
                self.service.tell('running', 'a')
        self.assertIn('vsock:1:2', logs.output[0])

    def test_no_service(self):
        del os.environ['NOTIFY_SOCKET']
        with self.service.told():
            self.service.tell('running', 'a')
        self.assertRaises(BlockingIOError, self.said)
