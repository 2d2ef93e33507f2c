"""Children that misbehave, for the tests that start and end them.

Programs of tests import this as well, so it needs to be quick.
"""

import contextlib
import os
import select
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar
from unittest import mock

from gocept.runner.process import Process, descendants, ending, pidfd, procfs
from gocept.runner.process.adoption import adoption
from gocept.runner.process.pidfd import Handle
from gocept.runner.waits.deadline import Deadline, wait_for

T = TypeVar('T')

DEADLINE = 60
"""How long a test waits for an event, in seconds, before it fails."""

PYTHON = (sys.executable, '-I', '-S', '-c')

STUBBORN = "trap '' TERM; echo ready; exec sleep 100"

# Each line that a victim writes is one that somebody waits for. None outlives
# a test by much, whatever is wrong with what is tested.
VICTIM = '''\
import os, select, signal, sys

signal.alarm(100)
# Ends it at once, also if it comes just before a system call.
signal.signal(signal.SIGINT, signal.SIG_DFL)

def say(*what):
    os.write(1, (' '.join(map(str, what)) + '\\n').encode())

def ignore(*signals):
    for signum in signals or (signal.SIGTERM,):
        signal.signal(signum, signal.SIG_IGN)

def pause():
    """Handle signals, also one that comes just before the wait."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    while True:
        os.read(read, 1)

def readable(source):
    """Wait for it, and return it; handle signals as `pause` does."""
    while not select.select([source], [], [], 0.05)[0]:
        pass
    return source

def wait_at(path):
    """Wait for a byte in a FIFO, and take it; handle signals meanwhile."""
    with open(path, 'rb', buffering=0) as fifo:
        readable(fifo).read(1)

def overwrite():
    """Have no environment any more, as setproctitle() does it."""
    import ctypes
    with open('/proc/self/stat') as file:
        fields = file.read().rpartition(')')[2].split()
    start, end = int(fields[47]), int(fields[48])
    ctypes.memset(start, 0, end - start)

def fork(function, *args):
    """A child that pauses in the end; returns when it has said its number."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(100)
        function(*args)
        say('child', os.getpid())
        os.write(write, b'.')
        pause()
    os.close(write)
    os.read(read, 1)
    os.close(read)
    return pid

def leave(function=int):
    """A grandchild whose parent has ended, in a session of its own."""
    pid = os.fork()
    if not pid:
        os.setsid()
        fork(function)
        os._exit(0)
    os.waitpid(pid, 0)

'''


def victim(body: str) -> list[str]:
    """The command of a Python child with the names above."""
    return [*PYTHON, VICTIM + textwrap.dedent(body)]


def say(*what: object) -> None:
    """Write a line at once, whatever happens next."""
    os.write(1, (' '.join(map(str, what)) + '\n').encode())


def wait_at(path: str) -> None:
    """Wait until a test writes a byte to a FIFO, and take it.

    Signals are handled meanwhile. Python would not see one that comes just
    before a system call until this is over.
    """
    with open(path, 'rb', buffering=0) as fifo:
        while not select.select([fifo], [], [], 0.05)[0]:
            pass
        fifo.read(1)


def lines(child: Process, count: int) -> list[list[str]]:
    """The words of so many lines that a child has written."""
    assert child.channel is not None
    return [child.channel.read_until(b'\n', DEADLINE)[0].decode().split()
            for _ in range(count)]


def until(condition: Callable[[], T], seconds: float = DEADLINE) -> T:
    """Wait until a condition holds that no event tells; returns its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f'not within {seconds} s: {condition}')
        time.sleep(0.005)
    return value


def ended(handle: Handle) -> bool:
    """Wait until a process has ended; a zombie has."""
    if handle.fileno() >= 0:
        return wait_for(handle.fileno(), select.POLLIN, Deadline(DEADLINE))
    return until(handle.has_ended)


def marked(marks: Iterable[str]) -> list[int]:
    """The processes that carry one of the marks."""
    wanted = set(marks)
    return [pid for pid in procfs.pids()
            if wanted & set(descendants.marks(pid))]


@contextlib.contextmanager
def looks_for_marks() -> Iterator[Any]:
    """A mock that counts the looks through all processes.

    None comes before all children have ended, as long as that may take.
    """
    with mock.patch.object(
            descendants, 'marked', wraps=descendants.marked) as looks, (
            mock.patch.object(ending, '_PATIENCE', DEADLINE)):
        yield looks


def adopt_no_more() -> None:
    """Reap the dead, and leave the orphans of other tests to init again."""
    adoption.reap_all()


@contextlib.contextmanager
def losing_statuses() -> Iterator[None]:
    """As with a library that reaps all children."""
    def reap(handle: Handle) -> int | None:
        if reap_really(handle) is not None:
            raise ChildProcessError
        return None
    reap_really = Handle.reap
    with mock.patch.object(Handle, 'reap', reap):
        yield


@contextlib.contextmanager
def without_pidfds() -> Iterator[None]:
    """As on a system that has none."""
    with mock.patch.object(pidfd, 'has_pidfds', lambda: False):
        yield
