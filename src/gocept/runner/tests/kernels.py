"""Kernels for tests: each has a daemon of its own, which ends with the test."""  # noqa: E501

import atexit
import contextlib
import fcntl
import functools
import itertools
import os
import pathlib
import select
import shutil
import signal
import socket
import tempfile
import unittest
from collections.abc import Iterator
from typing import Any

from gocept.runner.kernel import Kernel
from gocept.runner.tests.leftovers import check_processes
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import Deadline, wait_for

HOST = '127.0.0.1'


class Daemon:
    """A daemon at a path of its own, or on a port, until the test ends."""

    def __init__(self, test: unittest.TestCase, *, tcp: bool = False) -> None:
        # Short, as the path of a socket must be.
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix='kernel'))
        test.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        test.addCleanup(check_processes, self.directory)
        self.where: str | int = (
            free_port() if tcp else str(self.directory / 'sock'))
        with Kernel(self.where) as kernel:
            status = kernel.status()
        self.pids = {status['pid'], status['keeper']}
        test.addCleanup(self.stop)

    def kernel(self, **options: Any) -> Kernel:
        """A client; the caller closes it."""
        return Kernel(self.where, **options)

    def connect(self) -> socket.socket:
        """A connection that has read nothing."""
        if isinstance(self.where, int):
            return socket.create_connection((HOST, self.where), DEADLINE)
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(DEADLINE)
        sock.connect(self.where)
        return sock

    def stop(self) -> None:
        """Kill what it has started, and end it."""
        with Kernel(self.where) as kernel:
            for each in kernel.list_processes().values():
                if each['running']:
                    end(each['pid'])
            status = kernel.status()
            kernel.stop(force=True)
        for pid in (status['pid'], status['keeper']):
            wait_until_ended(pid)


def free_port() -> int:
    """A port that nobody listens on, and that no other run is given."""
    while True:
        port = next(_ports())
        with (contextlib.suppress(OSError),
              socket.create_server((HOST, port))):
            return port


@functools.cache
def _ports() -> Iterator[int]:
    """The ports of this run, again and again.

    Those that the system gives to whoever asks for any port are above them, so
    nobody else gets one of these before the test uses it.
    """
    size = 500  # so that it takes a while until one is used again
    for first in range(20000, 32000, size):
        # A name that is in use up to the end of this process, even if that
        # is killed.
        with contextlib.suppress(OSError):
            _block.bind(f'\0gocept.runner.tests.ports.{first}')
            return itertools.cycle(range(first, first + size))
    raise AssertionError('too many runs of the tests beside each other')


def _high_socket() -> socket.socket:
    """One whose descriptor does not move those of tests up."""
    with socket.socket(socket.AF_UNIX) as sock:
        return socket.socket(fileno=fcntl.fcntl(
            sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 100))


_block = _high_socket()
"""Tells other runs which block of ports is that of this run."""

atexit.register(_block.close)


def end(pid: int) -> None:
    """Kill a child of a daemon, and the children in its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def wait_until_ended(pid: int) -> None:
    """Wait for the end of a process that is nobody's we know."""
    with contextlib.suppress(ProcessLookupError):
        with open(os.pidfd_open(pid), 'rb', 0) as held:
            if not wait_for(held.fileno(), select.POLLIN, Deadline(DEADLINE)):
                raise AssertionError(f'process {pid} has not ended')
