import errno
import os
import unittest

from gocept.runner.waits import libc


class CallTests(unittest.TestCase):

    def test_returns_what_the_function_returns(self) -> None:
        self.assertEqual(os.getpid(), libc.call('getpid'))

    def test_tells_why_it_has_failed(self) -> None:
        with self.assertRaises(OSError) as caught:
            libc.call('close', -1)
        self.assertEqual(errno.EBADF, caught.exception.errno)
        self.assertEqual(os.strerror(errno.EBADF), caught.exception.strerror)

    def test_tells_what_the_system_does_not_have(self) -> None:
        with self.assertRaisesRegex(NotImplementedError, 'no frobnicate'):
            libc.call('frobnicate')
