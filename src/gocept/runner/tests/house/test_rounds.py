import os
import socket
import unittest

from gocept.runner.house.rounds import Rounds
from gocept.runner.poller import Timer
from gocept.runner.tests.support import DEADLINE


class RoundsTests(unittest.TestCase):

    def setUp(self):
        self.poller = self.enterContext(Rounds())
        self.called = []

    def test_a_callback_ends_the_wait(self):
        self.poller.register(Timer(0), lambda *args: self.called.append(args))
        self.assertEqual([], self.poller.poll(DEADLINE))
        self.assertEqual(1, len(self.called))

    def test_one_that_fails_as_well(self):
        self.poller.register(Timer(0), lambda *args: 1 / 0)
        with self.assertLogs('gocept.runner.poller', 'ERROR'):
            self.assertEqual([], self.poller.poll(DEADLINE))

    def test_clients_of_a_server(self):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f'\0{os.getpid()}.rounds')
            server.listen()
            self.poller.add_server(
                server, lambda *args: self.called.append(args))
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(server.getsockname())
                self.assertEqual([], self.poller.poll(DEADLINE))
            [((_, channel), _)] = self.called
            self.addCleanup(channel.close)

    def test_without_a_callback(self):
        timer = Timer(0)
        self.poller.register(timer)
        self.assertEqual([(1, timer)], self.poller.poll(DEADLINE))
