"""Another process that ends our children if we end without doing that.

A process that is killed, or ended by a signal while C code holds the
interpreter, ends nobody itself. So there is a guardian as long as somebody
asks for it and a child may run. It waits for our end, looks for the marks of
our children in all processes, and ends those that have one.
"""

import contextlib
import json
import os
import select
import signal
from collections.abc import Iterator

from gocept.runner.logs import Log
from gocept.runner.process import guardian
from gocept.runner.process.direct import Command, spawn
from gocept.runner.process.launch import python
from gocept.runner.process.marks import our_mark
from gocept.runner.process.pidfd import Handle, hold
from gocept.runner.waits.deadline import Deadline, wait_for
from gocept.runner.waits.forks import Lock, tell_forks
from gocept.runner.waits.modules import module_path
from gocept.runner.waits.standard import fill_standard

log = Log('gocept.runner.process')

_END_TIMEOUT = 5.0  # seconds for a process that was killed


class _Guard:

    def __init__(self) -> None:
        self._lock = Lock()
        self._users = 0
        self._pipe = -1  # that is closed when we end, or become a program
        self._guardian: Handle | None = None
        tell_forks(self)

    @contextlib.contextmanager
    def wanted(self) -> Iterator[None]:
        """Have a guardian in the block, from the next `begin` on."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                # In a forked child nobody has asked.
                self._users = max(0, self._users - 1)
                if not self._users:
                    self._dismiss()

    def begin(self) -> None:
        """There is a child, or will be one: start the guardian, if wanted.

        The first process of a PID namespace needs none, as all others end
        with it.
        """
        if not self._users or os.getpid() == 1:
            return
        with self._lock:
            if self._guardian is not None and not self._guardian.has_ended():
                return
            self._dismiss()
            try:
                self._start()
            except OSError as error:
                log.warning('No process can be started that ends the children '
                            'of this one if it is killed: %s', error)

    def _start(self) -> None:
        fill_standard()
        command = Command(
            [*map(os.fsencode, (
                python(), '-I', '-S', '-X', 'utf8', guardian.__file__,
                json.dumps({'parent': os.getpid(), 'mark': our_mark(),
                            'path': module_path()})))],
            dict(os.environb))
        # Where a signal handler raises an exception, nothing is lost.
        mask = signal.pthread_sigmask(
            signal.SIG_BLOCK, signal.valid_signals())
        try:
            with contextlib.ExitStack() as theirs:
                read, self._pipe = os.pipe()
                theirs.callback(os.close, read)
                null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                theirs.callback(os.close, null)
                error = os.dup(2)
                theirs.callback(os.close, error)
                command.streams = read, null, error
                self._guardian = hold(spawn(command))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _dismiss(self) -> None:
        if self._guardian is not None:
            guardian, self._guardian = self._guardian, None
            guardian.signal(signal.SIGKILL)
            if guardian.fileno() >= 0:
                wait_for(guardian.fileno(), select.POLLIN,
                         Deadline(_END_TIMEOUT))
            with contextlib.suppress(ChildProcessError):  # others reaped it
                guardian.reap()
            guardian.close()
        if self._pipe >= 0:
            pipe, self._pipe = self._pipe, -1
            os.close(pipe)

    def after_fork(self) -> None:
        """In a child, whose own end concerns no other process."""
        self._users = 0
        guardian, self._guardian = self._guardian, None
        if guardian is not None:
            guardian.close()
        self._dismiss()


guard = _Guard()
