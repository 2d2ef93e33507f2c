"""What the tests of executors need."""

import gc
import os
import textwrap
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gocept.runner.channel import PipeChannel
from gocept.runner.executor import SimpleExecutor
from gocept.runner.executor.capture import Capture
from gocept.runner.executor.reader import Reader
from gocept.runner.poller import background
from gocept.runner.poller.thread import hand_over
from gocept.runner.process import procfs
from gocept.runner.tests.support import (
    DEADLINE,
    TestCase,
    end_background,
    open_descriptors,
)
from gocept.runner.tests.victims import adopt_no_more, until, victim


class ExecutorTestCase(TestCase):
    """No child and no descriptor may be left."""

    def setUp(self) -> None:
        super().setUp()
        end_background()
        before = open_descriptors().keys(), set(procfs.children(os.getpid()))
        self.addCleanup(self.check_left, before)
        self.addCleanup(end_background)

    def check_left(self, before: Any) -> None:
        for thread in threading.enumerate():
            if thread.name in ('gocept.runner.executor',
                               'gocept.runner.inotify'):
                thread.join(DEADLINE)
        collect()
        end_background()
        adopt_no_more()
        left = self.left_descriptors(before[0])
        if left:  # the thread may have kept garbage alive until its end
            collect()
            end_background()
            left = self.left_descriptors(before[0])
        children = set(procfs.children(os.getpid())) - before[1]
        self.assertEqual(({}, set()), (left, children))

    def left_descriptors(self, before: Collection[str]) -> dict[str, str]:
        # What is kept back to end processes with is kept for ever.
        return {fd: target for fd, target in open_descriptors().items()
                if fd not in before and target != os.devnull}

    def stopping(self, executor: SimpleExecutor) -> Any:
        self.addCleanup(executor.kill)
        return executor


class CaptureTestCase(ExecutorTestCase):
    """Read step by step, as no other thread does it."""

    def setUp(self) -> None:
        super().setUp()
        read, self.sink = os.pipe()
        self.addCleanup(os.close, self.sink)
        self.capture = Capture(PipeChannel(read), 10_000)
        self.addCleanup(self.capture.close)
        self.reader = self.make_reader()

    def write(self, data: bytes) -> None:  # type: ignore[override]
        os.write(self.sink, data)
        self.capture.read_rest()

    def make_reader(self, **options: Any) -> Reader:
        reader = Reader(self.capture, **options)
        self.addCleanup(reader.close)
        return reader


def collect() -> None:
    """Collect garbage, and wait until what was forgotten has ended."""
    gc.collect()
    done = threading.Event()
    background()
    hand_over(done.set)
    if not done.wait(DEADLINE):
        raise AssertionError('the background thread does not answer')


def is_gone(pid: int) -> bool:
    now = procfs.stat(pid)
    return now is None or now.state in 'ZX'


SERVER = '''\
import socket

def listen(port, host='127.0.0.1', backlog=100):
    """A socket that listens; `port` may be a path."""
    if isinstance(port, str):
        family, address = socket.AF_UNIX, port
    else:
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        address = host, port
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    sock.listen(backlog)
    return sock

'''


def server(body: str) -> list[str]:
    """The command of a victim that can listen."""
    return victim(SERVER + textwrap.dedent(body))


class Starting:
    """A start in a thread; what it raises is raised by `wait`."""

    def __init__(self, executor: SimpleExecutor) -> None:
        self.executor = executor
        self._threads = ThreadPoolExecutor(1)
        self._started = self._threads.submit(executor.start)
        self._threads.shutdown(wait=False)

    def until_seen(self, what: str) -> None:
        """Wait until a look at the child has had that result."""
        until(lambda: self._started.done() or (
            (run := self.executor._run) and run.check
            and what in run.check.seen))
        if self._started.done():
            raise AssertionError(f'{what!r} was not seen: {self._started}')

    def expire_when_seen(self, what: str) -> None:
        """Have its deadline pass when a look has had that result."""
        self.until_seen(what)
        self.executor._timeout = 0
        self.executor._set_timeout()

    def go_on(self) -> None:
        """Have the child read a line."""
        assert self.executor.child is not None
        assert self.executor.child.channel is not None
        self.executor.child.channel.write(b'\n')

    def wait(self) -> None:
        """For its end."""
        self._started.result(DEADLINE)
