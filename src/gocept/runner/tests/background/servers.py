"""Servers for tests: each ends with its test."""

import contextlib
import os
import pathlib
import select
import shutil
import signal
import tempfile
import unittest
from unittest import mock

from gocept.runner.background import Client, Server
from gocept.runner.background.tokens import VARIABLE
from gocept.runner.tests.kernels import HOST, free_port
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import Deadline, wait_for


class TestCase(unittest.TestCase):
    """A port, a directory, and a state directory of its own."""

    def setUp(self) -> None:
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.enterContext(mock.patch.dict(
            os.environ, XDG_STATE_HOME=str(self.dir / 'state')))
        os.environ.pop(VARIABLE, None)
        self.port = free_port()
        self.log_file = self.dir / 'log'

    def server(self, **options) -> Server:
        """A server that was not started."""
        return Server(HOST, self.port, **{
            'log_file': str(self.log_file), **options})

    def start(self, **options) -> int:
        """Start a server in the background; returns the pid."""
        return self.hold(self.server(**options).run_background(DEADLINE))

    def hold(self, pid: int) -> int:
        """Have a server end with the test, whose pid is returned."""
        fd = os.pidfd_open(pid)
        self.addCleanup(os.close, fd)
        self.addCleanup(wait_for, fd, select.POLLIN, Deadline(DEADLINE))
        self.addCleanup(kill, fd)
        return pid

    def client(self, **options) -> Client:
        """A client that is closed with the test."""
        return self.enterContext(Client(HOST, self.port, **{
            'timeout': DEADLINE, **options}))

    def wait_until_ended(self, pid: int) -> None:
        """Wait for the end of a process that may be gone already."""
        with contextlib.suppress(ProcessLookupError):
            with open(os.pidfd_open(pid), 'rb', 0) as held:
                self.assertTrue(wait_for(
                    held.fileno(), select.POLLIN, Deadline(DEADLINE)),
                    f'process {pid} does not end')

    def log(self) -> str:
        """What the server has logged."""
        return self.log_file.read_text()


def kill(fd: int) -> None:
    """Kill the process of a pidfd."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(fd, signal.SIGKILL)
