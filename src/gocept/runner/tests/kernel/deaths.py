"""What the tests of storage need: deaths at chosen and at random instants."""

import contextlib
import os
import random
import resource
import select
import signal
import time
import unittest
import unittest.mock
from collections.abc import Callable, Iterator
from typing import Any

from gocept.runner.tests.support import DEADLINE

CALLS = ('pwrite', 'splice', 'ftruncate', 'lseek')
"""What changes a memfd."""


class Death(BaseException):
    """Stands for a SIGKILL."""


@contextlib.contextmanager
def death_at(count: int) -> Iterator[list[bool]]:
    """Let a `Death` be raised at the instant `count`.

    Each system call that changes a memfd has two instants, before and after
    it. The list that the context manager gives has an item once one died.
    """
    instants = 0
    deaths: list[bool] = []

    def dies() -> None:
        nonlocal instants
        if instants == count:
            deaths.append(True)
        instants += 1
        if deaths:
            raise Death

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            dies()
            result = function(*args, **keywords)
            dies()
            return result
        return call

    with contextlib.ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(unittest.mock.patch.object(
                os, name, wrap(getattr(os, name))))
        yield deaths


class Victim:
    """A forked process that is killed before long, and reports before."""

    def __init__(self, work: Callable[[Callable[[int], None]], None]) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)

        def report(number: int) -> None:
            os.write(writer, number.to_bytes(8, 'big'))

        self.pid = os.fork()
        if not self.pid:
            try:
                report(0)
                work(report)
                os._exit(0)
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(writer)
        self._pidfd = os.pidfd_open(self.pid)
        select.select([self._reader], [], [], DEADLINE)  # it has begun

    def wait(self, timeout: float, source: int | None = None,
             received: bytearray | None = None) -> None:
        """Wait for its end; read from `source` meanwhile."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if source is not None:
            poll.register(source, select.POLLIN)
        end = time.monotonic() + timeout
        while ready := poll.poll(max(0, end - time.monotonic()) * 1000):
            if received is not None and source is not None:
                with contextlib.suppress(BlockingIOError):
                    received += os.read(source, 1 << 20)
            if self._pidfd in dict(ready) or time.monotonic() > end:
                return

    def kill(self) -> tuple[bool, int]:
        """Kill it. Whether it had ended by itself, and its last report."""
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        reports = b''
        while piece := os.read(self._reader, 1 << 16):
            reports += piece
        os.close(self._reader)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL), code
        return code == 0, int.from_bytes(reports[-8:], 'big')


class KillingCase(unittest.TestCase):
    """Kills at random instants, the same ones of a seed where time allows."""

    def setUp(self) -> None:
        self.random = random.Random(14)

    def pipe(self) -> tuple[int, int]:
        """Both ends of a pipe, closed after the test if they are open then;
        reading does not block."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        self.addCleanup(close, reader)
        self.addCleanup(close, writer)
        return reader, writer

    def own(self, fd: int) -> int:
        """The descriptor, which is closed after the test if it is open."""
        self.addCleanup(close, fd)
        return fd


def close(fd: int) -> None:
    """Close the descriptor, if it is open."""
    with contextlib.suppress(OSError):
        os.close(fd)


def blocks(fd: int) -> int:
    """How many bytes of memory a memfd takes."""
    return os.fstat(fd).st_blocks * 512


@contextlib.contextmanager
def full_memory(size: int) -> Iterator[None]:
    """No file of this process can grow beyond that size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
