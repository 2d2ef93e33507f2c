"""A background server for the time of one block."""

import io
import os
import signal
import sys

from gocept.runner.errors import (
    ConnectionLost,
    RemoteTaskError,
)
from gocept.runner.testing import private_kernel, private_server
from gocept.runner.tests.executors import ExecutorTestCase, is_gone


def begin():
    return {'pid': os.getpid()}


def tell(client_socket, state, request):
    if request == 'die':
        os.kill(os.getpid(), signal.SIGKILL)
    client_socket.respond(state['pid'])
    return state


def fork_and_leave():
    """A child comes to the end of the block of its parent."""
    pid = os.fork()
    if not pid:
        sys.stderr = io.StringIO()
        sys.exit()
    os.waitpid(pid, 0)


class PrivateServerTests(ExecutorTestCase):

    def test_it_lives_as_long_as_the_block(self):
        with private_server(begin, tell) as client:
            pid = client.execute('a', True)
            self.assertFalse(is_gone(pid))
        self.assertTrue(is_gone(pid))

    def test_a_forked_child_ends_nothing(self):
        with private_server(begin, tell) as client:
            server = client.execute('a', True)
            fork_and_leave()
            self.assertEqual(server, client.execute('a', True))
        with private_kernel() as kernel:
            fork_and_leave()
            self.assertTrue(kernel.status()['pid'])

    def test_two_at_once(self):
        with (private_server(begin, tell) as one,
              private_server(begin, tell) as two):
            self.assertNotEqual(one.execute('a', True),
                                two.execute('a', True))

    def test_another_one_after_its_death(self):
        with private_server(begin, tell) as client:
            pid = client.execute('a', True)
            with self.assertRaises(ConnectionLost):
                client.execute('die', True)
            self.assertNotEqual(pid, client.execute('a', True))
            with self.assertRaises(ConnectionLost):
                client.execute('die', True)

    def test_an_init_task_that_fails(self):
        with (self.assertRaisesRegex(RemoteTaskError, 'divi'),
              private_server(lambda: 1 / 0, tell)):
            self.fail('not reached')
