"""Packets with descriptors."""

import os
import resource
import socket

from gocept.runner.tests.support import TestCase
from gocept.runner.waits.packets import (
    LONGEST,
    MOST_DESCRIPTORS,
    Packets,
    pair,
)


class PacketsTests(TestCase):

    def setUp(self):
        super().setUp()
        self.one, self.other = map(Packets, pair())
        self.addCleanup(self.one.close)
        self.addCleanup(self.other.close)

    def open_files(self):
        return len(os.listdir('/proc/self/fd'))

    def test_borders_are_kept(self):
        for data in b'a', b'b' * LONGEST, b'c':
            self.one.send(data)
        self.assertEqual([b'a', b'b' * LONGEST, b'c'], [
            self.other.receive().data for _ in range(3)])
        with self.assertRaises(BlockingIOError):
            self.other.receive()

    def test_descriptors(self):
        before = self.open_files()
        fds = [os.memfd_create('it') for _ in range(MOST_DESCRIPTORS)]
        self.one.send(b'them', fds)
        packet = self.other.receive()
        self.assertTrue(packet.complete)
        self.assertEqual([os.fstat(fd).st_ino for fd in fds],
                         [os.fstat(fd).st_ino for fd in packet.descriptors])
        self.assertFalse(any(map(os.get_inheritable, packet.descriptors)))
        packet.discard()
        for fd in fds:
            os.close(fd)
        self.assertEqual(before, self.open_files())

    def test_what_was_sent_outlives_its_sender(self):
        self.other.send(b'unread')
        self.one.send(b'last')
        self.one.close()
        self.assertEqual(b'last', self.other.receive().data)
        self.assertIsNone(self.other.receive())
        with self.assertRaises(ConnectionError):
            self.other.send(b'to nobody')

    def test_a_full_queue(self):
        with self.assertRaises(BlockingIOError):
            while True:
                self.one.send(b'x' * LONGEST)

    def test_what_is_cut_off(self):
        self.one.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 ** 18)
        self.one.send(b'x' * (LONGEST + 1))
        self.assertFalse(self.other.receive().complete)

    def test_no_number_is_left_for_a_descriptor(self):
        fds = [os.memfd_create('it') for _ in range(3)]
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.one.send(b'them', fds)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(fds) + 2, limits[1]))
        try:
            packet = self.other.receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        self.assertFalse(packet.complete)
        self.assertLess(len(packet.descriptors), 3)
        packet.discard()
        for fd in fds:
            os.close(fd)
