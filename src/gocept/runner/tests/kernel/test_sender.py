"""What is written to a process of a kernel, and interruptions of that."""

import itertools
import select
import unittest

from gocept.runner.errors import EndpointClosedException, KernelError
from gocept.runner.kernel import PIPE
from gocept.runner.kernel.child.sender import Sender
from gocept.runner.testing import private_kernel
from gocept.runner.tests.kernel.interruption import (
    Interruption,
    allow_forgotten,
)
from gocept.runner.tests.kernel.test_client_of_daemon import KernelCase
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import Deadline, wait_for


class InterruptionTests(KernelCase):

    def setUp(self) -> None:
        super().setUp()
        allow_forgotten(self)
        self.kernel.make_process('p', '/bin/cat', stdin=PIPE)
        self.sender = Sender(self.kernel, 'p')
        self.addCleanup(self.sender.close)

    def written(self) -> bytes:
        """All that the process got."""
        self.sender.add_end()
        self.sender.flush(Deadline(DEADLINE))
        said = b''
        with self.kernel.watch_processes('p') as watcher:
            while output := watcher.read():
                said += b''.join(
                    each.data for each in output[0])  # type: ignore[misc]
        return said

    def test_what_is_written_is_whole_or_missing(self) -> None:
        sure = []
        for number in itertools.count():
            with Interruption(number) as interruption:
                self.sender.add(b'%d,' % number)
                sure.append(b'%d,' % number)
            self.sender.flush(Deadline(DEADLINE))
            self.assertEqual(0, self.sender.size)
            if not interruption.done:
                break
        self.assertGreater(number, 10)
        words = self.written().split(b',')[:-1]
        numbers = [*map(int, words)]
        self.assertEqual(sorted({*numbers}), numbers)
        self.assertLessEqual({*sure}, {word + b',' for word in words})

    def test_what_was_taken_is_written_once(self) -> None:
        expected = b''
        for number in itertools.count():
            expected += b'%d,' % number
            self.sender.add(b'%d,' % number)
            with Interruption(number) as interruption:
                self.sender.flush(Deadline(DEADLINE))
            self.sender.flush(Deadline(DEADLINE))
            self.assertEqual(0, self.sender.size)
            if not interruption.done:
                break
        self.assertGreater(number, 10)
        self.assertEqual(expected, self.written())


class SessionTests(KernelCase):

    def test_the_requests_of_others_do_not_count(self) -> None:
        self.kernel.make_process('p', '/bin/cat', stdin=PIPE)
        sender = Sender(self.kernel, 'p')
        self.addCleanup(sender.close)
        sender.add(b'once')
        self.assertTrue(wait_for(
            sender.fileno(), select.POLLIN, Deadline(DEADLINE)))
        self.kernel.set('other', 'request')
        sender._transport.spoil()  # the answer is lost
        sender.add_end()
        sender.flush(Deadline(DEADLINE))
        said = b''
        with self.kernel.watch_processes('p') as watcher:
            while output := watcher.read():
                said += b''.join(
                    each.data for each in output[0])  # type: ignore[misc]
        self.assertEqual(b'once', said)


class GoneTests(unittest.TestCase):

    def test_what_has_failed_is_not_sent_later(self) -> None:
        self.enterContext(self.assertLogs('gocept.runner.kernel'))
        with private_kernel() as kernel:
            kernel.make_process('p', '/bin/cat', stdin=PIPE)
            sender = Sender(kernel, 'p')
            self.addCleanup(sender.close)
            sender.open()
            kernel.stop(force=True)
            sender.add(b'kept')
            with self.assertRaises(KernelError):
                sender.flush(Deadline(DEADLINE))
            with self.assertRaises(KernelError):
                sender.add(b'refused')
            self.assertEqual(0, sender.size)
            with self.assertRaises(EndpointClosedException):
                sender.add(b'refused')
