"""The socket between the keeper and the daemon."""

import json
import os

from gocept.runner.errors import KernelError
from gocept.runner.kernel.keeper.link import End, KeeperGone, Link
from gocept.runner.poller import Poller
from gocept.runner.tests.support import TestCase
from gocept.runner.waits.packets import pair


class LinkTests(TestCase):

    def setUp(self):
        super().setUp()
        ours, theirs = pair()
        self.keeper = End(ours)
        self.addCleanup(self.keeper.close)
        self.link = Link(theirs, {}, os.getpid())
        self.addCleanup(self.link.close)

    def receive(self):
        message = self.keeper.receive()
        for fd in message.descriptors:
            self.addCleanup(os.close, fd)
        return message

    def test_what_is_held(self):
        fd = os.memfd_create('held')
        self.addCleanup(os.close, fd)
        self.link.hold({'a': fd, 'b': fd})
        self.assertEqual({'a': fd, 'b': fd}, self.link.table)
        message = self.receive()
        self.assertEqual(('hold', ['a', 'b'], 1), (
            message.operation, message.argument, message.version))
        for each in message.descriptors:
            self.assertTrue(os.path.sameopenfile(fd, each))
            self.assertFalse(os.get_inheritable(each))
        self.link.release(['a', 'unknown'])
        self.assertEqual({'b': fd}, self.link.table)
        self.assertEqual(['a', 'unknown'], self.receive().argument)

    def test_a_full_queue_keeps_what_has_to_be_told(self):
        self.link.ready()
        count = 1
        while not self.link.kept:
            self.link.known(count)
            count += 1
        with self.assertRaisesRegex(KernelError, 'takes nothing: it is stop'):
            self.link.hold({'a': 0})
        self.assertEqual({}, self.link.table)
        with Poller() as poller:
            poller.register(self.link)
            messages = []
            while self.link.kept:
                messages.append(self.receive())
                poller.poll(0)
            self.link.hold({'a': 0})
            with self.assertRaises(BlockingIOError):
                while True:
                    messages.append(self.receive())
        self.assertEqual(
            ['ready', *['known'] * (count - 1), 'hold'],
            [message.operation for message in messages])

    def test_statuses_come_before_the_end(self):
        self.keeper.send('status', [1, -9])
        self.keeper.send('status', [2, 3])
        self.keeper.close()
        self.link.known(1)  # to nobody
        self.assertEqual(
            ([('status', 1, -9), ('status', 2, 3), ('keeper died',)], True),
            self.link.collect())
        with self.assertRaisesRegex(KeeperGone, 'has died'):
            self.link.hold({'a': 0})

    def test_the_end_of_a_keeper_that_was_to_stop(self):
        self.keeper.send('stop')
        self.keeper.close()
        self.assertEqual(([('stop',)], True), self.link.collect())

    def test_the_end_of_a_keeper_that_was_told_to_stop(self):
        self.link.stop()
        self.keeper.close()
        self.assertEqual(([], True), self.link.collect())

    def test_another_number(self):
        self.link.move(200)
        self.assertGreaterEqual(self.link.fileno(), 200)
        self.link.ready()
        self.assertEqual('ready', self.receive().operation)

    def test_an_upgrade(self):
        self.link.upgrade({'path': ['x' * 100_000]})
        message = self.receive()
        self.assertEqual('upgrade', message.operation)
        self.assertEqual(
            {'path': ['x' * 100_000]}, json.loads(os.pread(
                message.descriptors[0], 200_000, 0)))
