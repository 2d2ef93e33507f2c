"""Processes that a test has started and that have not ended with it."""

import contextlib
import os
import pathlib
import signal
from collections.abc import Iterator

from gocept.runner.process.pidfd import Handle, hold
from gocept.runner.waits.deadline import Deadline, wait_for

_PATIENCE = 10  # seconds in which what ends already may end


def processes_of(directory: str | pathlib.Path) -> Iterator[tuple[int, str]]:
    """The pid and the command of each process that uses a directory.

    Its command names a file there, or it has one open.
    """
    prefix = f'{directory}/'
    for name in os.listdir('/proc'):
        if name.isdecimal() and int(name) != os.getpid():
            # It may end at any time, or belong to another user.
            with contextlib.suppress(OSError):
                command = pathlib.Path(f'/proc/{name}/cmdline').read_text(
                    errors='replace').replace('\0', ' ')
                if command and (
                        prefix in command or _has_open(name, prefix)):
                    yield int(name), command


def _has_open(pid: str, prefix: str) -> bool:
    directory = f'/proc/{pid}/fd'
    for fd in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f'{directory}/{fd}').startswith(prefix):
                return True
    return False


def end_processes(directory: str | pathlib.Path) -> None:
    """Kill all processes that use a directory, and wait for their ends.

    A kernel ends as well: all are stopped before one dies, so the keeper and
    the daemon start no successor of each other.
    """
    with contextlib.ExitStack() as stack:
        stopped: dict[int, Handle] = {}
        while new := [pid for pid, command in processes_of(directory)
                      if pid not in stopped]:
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    handle = hold(pid)
                    stack.callback(handle.close)
                    stopped[pid] = handle
                    handle.signal(signal.SIGSTOP)
        for handle in stopped.values():
            handle.signal(signal.SIGKILL)
        for handle in stopped.values():
            wait_for(handle.fileno(), 1, Deadline(_PATIENCE))


def check_processes(directory: str | pathlib.Path) -> None:
    """Fail if a process uses a directory and does not end; end it then."""
    left = []
    for pid, command in processes_of(directory):
        with contextlib.suppress(ProcessLookupError):
            handle = hold(pid)
            with contextlib.closing(handle):
                if not wait_for(handle.fileno(), 1, Deadline(_PATIENCE)):
                    left.append(command)
    end_processes(directory)
    if left:
        raise AssertionError(f'processes are left: {left}')
