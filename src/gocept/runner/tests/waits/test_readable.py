"""A descriptor that is readable when another one is."""

import os
import select
import unittest

from gocept.runner.tests.support import open_descriptors
from gocept.runner.waits.deadline import Deadline, wait_for
from gocept.runner.waits.readable import Readable


class ReadableTests(unittest.TestCase):

    def setUp(self) -> None:
        before = open_descriptors()
        self.addCleanup(
            lambda: self.assertEqual(before, open_descriptors()))
        self.readable = Readable()
        self.addCleanup(self.readable.close)
        self.faucet, self.sink = self.pipe()

    def pipe(self) -> tuple[int, int]:
        fds = os.pipe()
        for fd in fds:
            self.addCleanup(os.close, fd)
        return fds

    def is_readable(self) -> bool:
        return wait_for(self.readable.fileno(), select.POLLIN, Deadline(0))

    def test_when_the_other_one_is(self) -> None:
        self.readable.follow(self.faucet)
        self.assertFalse(self.is_readable())
        os.write(self.sink, b'.')
        self.assertTrue(self.is_readable())
        os.read(self.faucet, 1)
        self.assertFalse(self.is_readable())

    def test_it_is_replaced(self) -> None:
        self.readable.follow(self.faucet)
        faucet, sink = self.pipe()
        os.dup2(faucet, self.faucet)
        os.write(sink, b'.')
        self.assertFalse(self.is_readable())
        for _ in range(2):
            self.readable.follow(self.faucet)
        self.assertTrue(self.is_readable())

    def test_when_we_say_so(self) -> None:
        self.readable.follow(self.faucet)
        for _ in range(2):
            self.readable.say(True)
        self.assertTrue(self.is_readable())
        for _ in range(2):
            self.readable.say(False)
        self.assertFalse(self.is_readable())

    def test_it_is_closed(self) -> None:
        self.readable.say(True)
        for _ in range(2):
            self.readable.close()
        self.assertEqual(-1, self.readable.fileno())
        self.readable.say(False)
