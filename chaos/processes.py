"""What the system tells of processes, to find those that a run has started."""

import contextlib
import ctypes
import os
import pathlib
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from gocept.runner.kernel import Kernel
from gocept.runner.process import procfs

MARKER = b'GOCEPT_RUNNER_CHILD='

PATIENCE = 5.0
"""How long after it has begun to work a program may take to end by a signal
that it may never have seen, in seconds."""

T = TypeVar('T')


def side_by_side(run: Callable[[T], str], choices: Iterable[T],
                 ) -> Iterator[str]:
    """Run each choice, as many at once as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        yield from threads.map(run, choices)


def descriptors() -> list[str]:
    """What is open, but for what the library keeps in reserve."""
    found = []
    for fd in os.listdir('/proc/self/fd'):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f'/proc/self/fd/{fd}')
            if int(fd) <= 2 or target != os.devnull:
                found.append(target)
    return found


def ignores(process: 'subprocess.Popen[Any]', works: Callable[[], bool],
            seconds: float) -> bool:
    """Whether a program works that was sent SIGINT while it started.

    Before the program has handlers of its own, Python and C code, such as that
    of BTrees while it is imported, may drop the KeyboardInterrupt. So this
    waits for its end, or for its work and some time more; some `seconds` at
    most.
    """
    deadline = time.monotonic() + seconds
    while not works():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    return process.poll() is None


def kill(pid: int, seconds: float) -> bool:
    """Kill a process, and wait for its end; whether that comes in time."""
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


def words(pid: int) -> bytes:
    """Arguments and environment of a process."""
    with contextlib.suppress(OSError):
        return (pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()
                + pathlib.Path(f'/proc/{pid}/environ').read_bytes())
    return b''


def alive(word: str) -> Iterator[int]:
    """Processes with that word, but this one and the dead."""
    for pid in procfs.pids():
        if pid != os.getpid() and word.encode() in words(pid):
            now = procfs.stat(pid)
            if now is not None and now.state not in 'ZX':
                yield pid


def marks(pid: int) -> list[bytes]:
    """What the library knows a process by."""
    for each in words(pid).split(b'\0'):
        if each.startswith(MARKER):
            return each.removeprefix(MARKER).split()
    return []


def described(pid: int) -> str:
    """A process, for messages."""
    return f'process {pid}, {procfs.stat(pid)}: {words(pid)[:2000]!r}'


def arguments(pid: int) -> bytes:
    """The arguments of a process alone."""
    with contextlib.suppress(OSError):
        return pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()
    return b''


def working_in(directory: pathlib.Path) -> Iterator[int]:
    """Processes whose working directory is below that one, but the dead.

    So those are found that have overwritten their environment.
    """
    for pid in procfs.pids():
        with contextlib.suppress(OSError):
            where = pathlib.Path(os.readlink(f'/proc/{pid}/cwd'))
            now = procfs.stat(pid)
            if (where.is_relative_to(directory) and now is not None
                    and now.state not in 'ZX'):
                yield pid


def end_kernel(kernel: Kernel, directory: pathlib.Path) -> None:
    """End a kernel, and all that works below a directory."""
    with contextlib.suppress(Exception):
        kernel.stop(force=True)
    kernel.close()
    for _ in range(100):  # one of the two may have brought the other one back
        for pid in working_in(directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


_PR_SET_CHILD_SUBREAPER = 36


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Be the parent of those who lose their own.

    Nobody else may reap them at once, and as long as PostgreSQL, say, finds
    the one that was before, if only dead, it refuses to start.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0)


def adopted() -> list[int]:
    """Reap the children that are dead, and return the others.

    Nobody else may have children now.
    """
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return procfs.children(os.getpid())
