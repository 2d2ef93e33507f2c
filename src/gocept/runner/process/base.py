"""What a program watches and ends: a child of ours, or one in a kernel.

The thread that first notices the end of a process takes its status: one that
waits for the process, or the one that polls its poller, which is
`gocept.runner.poller.background` unless the user has passed another.
"""

import contextlib
import errno
import os
import select
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from gocept.runner.channel import Channel
from gocept.runner.errors import (
    DeadlineExceeded,
    EndpointClosedException,
    ShortageError,
)
from gocept.runner.events import PATIENCE, Queue
from gocept.runner.logs import Log
from gocept.runner.poller import Poller, background
from gocept.runner.process import descendants, procfs
from gocept.runner.process.ending import Pauses
from gocept.runner.process.launch import Command
from gocept.runner.process.numbers import Instant
from gocept.runner.process.pidfd import Handle, Handles
from gocept.runner.process.registry import terminate_all
from gocept.runner.waits.closing import Closing
from gocept.runner.waits.deadline import Deadline, wait_for
from gocept.runner.waits.forks import Lock
from gocept.runner.waits.source import Source
from gocept.runner.waits.threads import survived

log = Log('gocept.runner.process')

LOST_STATUS = 255
"""The status of a process that somebody else has reaped: it is not known."""


class Kernel(Protocol):
    """What keeps processes; see `IKernel`."""

    def check_process(self, command: Command, **keywords: Any) -> None: ...

    def open_process(self, key: str, command: Command, *,
                     make_way: Callable[[], object] = ..., on_change: str,
                     **keywords: Any) -> 'BaseProcess': ...

    def has_process(self, key: str) -> bool: ...

    def ended_processes(self, key: str, **keywords: Any,
                        ) -> 'Sequence[BaseProcess]': ...


ON_CHANGE = 'keep', 'replace', 'refuse'
"""What `Kernel.open_process` does with what was declared in another way."""


def checked_kernel(kernel: Kernel | None) -> Kernel | None:
    """Return `kernel`; TypeError if that is none, such as its path."""
    if kernel is None or hasattr(kernel, 'open_process'):
        return kernel
    hint = (f': use Kernel({kernel!r}) of gocept.runner.kernel'
            if isinstance(kernel, str | int) else '')
    raise TypeError(f'kernel is an IKernel, not {kernel!r}{hint}')


class BaseProcess(Source, Closing, ABC):
    """See `IProcess`.

    A subclass knows how the process is started and how its status is taken.
    """

    args: Sequence[str]
    handle: Handle
    before_start: Instant
    started_at: int
    detached: bool
    leads_group: bool
    adopts = False
    mark = ''
    in_kernel = False
    was_found = False
    was_ready = False

    def __init__(self, name: str, *, stop_signal: int = signal.SIGTERM,
                 stop_timeout: float | None = None,
                 kill_signal: int = signal.SIGKILL,
                 poller: Poller | None = None,
                 on_end: Callable[..., object] | None = None) -> None:
        self.name = name
        self.stop_signal = signal.Signals(stop_signal)
        self.stop_timeout, self.exit_timeout = _timeouts(stop_timeout)
        self.kill_signal = signal.Signals(kill_signal)
        self.killed = False
        self.finished = False
        self.pid = 0
        self.returncode: int | None = None
        self.lost = False
        self.ended_at = 0
        self.channel: Channel | None = None
        self.stderr: Channel | None = None
        self._poller = poller
        self._on_end = on_end
        self._owner = os.getpid()
        self._lock = Lock()  # around the reaping, and what is left behind
        self._news = Queue()  # of the end; told without the lock
        self._left = Handles()

    @abstractmethod
    def _take_status(self) -> int | None:
        """The status, if the process has ended; with the lock held."""

    def _note_end(self) -> None:
        """The status was taken; with the lock held."""

    def _signal_own_group(self, signum: int) -> None:
        """Send a signal to the group that the process leads; with the lock
        held. ProcessLookupError if there is no such group.
        """
        # The child is not reaped, so this is its own group.
        os.killpg(self.pid, signum)

    def _set_end_at_exit(self, wanted: bool) -> None:
        """Whether the process, or what it has left, is to be ended at exit."""

    @property
    def status_text(self) -> str:
        """See `IProcess`."""
        return 'an unknown status' if self.lost else str(self.returncode)

    def channels(self) -> Iterator[Channel]:
        """See `IProcess`."""
        for channel in (self.channel, self.stderr):
            if channel is not None:
                yield channel

    def fileno(self) -> int:
        return self.handle.fileno()

    def layers(self) -> Iterator[Source]:
        yield self
        yield self.handle

    def collect(self) -> tuple[Sequence[int], bool]:
        status = self.poll()
        return ((), False) if status is None else ((status,), True)

    def poll(self) -> int | None:
        """See `IProcess`."""
        if self.returncode is None and self.is_ours:
            try:
                with self._lock:
                    if self.returncode is None:
                        self._reap()
            finally:  # a signal handler may have raised meanwhile
                if self.returncode is not None:
                    self._news.tell()
        return self.returncode

    def settle(self, seconds: float = PATIENCE) -> bool:
        """Wait until the end was told, if there was one; False if that takes
        longer.

        Another thread may have noticed it, and be telling it.
        """
        return self.returncode is None or self._news.settle(seconds)

    def _reap(self) -> None:
        """Take the status, if the child has ended; with the lock held."""
        status = self._take_status()
        if status is None:
            return
        self._news.put(self._tell_end)
        try:
            self._note_end()
            self.ended_at = descendants.clock()
            if self.leads_group:
                for handle in descendants.group(self, self.ended_at):
                    self._left.add(handle)
            if self.adopts:
                for _, handle in descendants.Adopted([self]).look():
                    self._left.add(handle)
        finally:
            # A thread that sees this may change what is left behind.
            self.returncode = status

    def _tell_end(self) -> None:
        # Which tells the pollers. So it must not be under a lock: a thread
        # that is in a poller may want to send a signal.
        self.handle.close()
        if self.lost:
            log.warning('%r: somebody else has reaped it', self)
        self._watch_left()
        if self._on_end is not None:
            try:
                self._on_end(self)
            except survived():  # it is not that of the thread that reaps
                log.exception('on_end of %r failed', self)

    def _watch_left(self) -> None:
        """Let go of processes that are left behind as soon as they end."""
        with self._lock:
            left = list(self._left.values())
            if not left and not self._has_servers:
                self._set_end_at_exit(False)
        for handle in left:
            # The poller may be closed, or not be made without descriptors.
            with contextlib.suppress(RuntimeError, OSError):
                self._polled_by.register(handle, self._forget)

    @property
    def _polled_by(self) -> Poller:
        return self._poller or background()

    def _forget(self, ended: bool, handle: Handle) -> None:
        with self._lock:
            is_known = self._left.get(handle.pid) is handle
            if is_known:
                del self._left[handle.pid]
                descendants.reap(handle)
            if not self._left and self.returncode is not None:
                self._set_end_at_exit(False)
        if is_known:
            handle.close()

    def wait(self, timeout: float | None = None) -> int:
        """See `IProcess`."""
        self.require_ours()
        if self.poll() is None:
            poller = None
            if self._poller is None:
                with contextlib.suppress(RuntimeError, OSError):  # no thread
                    poller = background()
            try:
                if poller is not None:
                    poller.release(self)
                self._wait(Deadline(timeout))
            finally:
                if poller is not None and self.returncode is None:
                    poller.regain(self)
        assert self.returncode is not None
        return self.returncode

    def _wait(self, deadline: Deadline) -> None:
        while self.poll() is None:
            with self._lock:
                if self.returncode is not None:
                    break
                # Another thread may reap the child, and close the handle.
                fd = _duplicate(self.handle.fileno())
            if fd is None:
                pauses = Pauses()
                pauses.register(self.handle)
                ended = bool(pauses.poll(deadline.left()))
            else:
                try:
                    ended = wait_for(fd, select.POLLIN, deadline)
                finally:
                    os.close(fd)
            if not ended and self.poll() is None:
                raise DeadlineExceeded(
                    f'{self!r} has not ended in {deadline}')

    def send_signal(self, signum: int) -> None:
        """See `IProcess`."""
        # A signal handler may have interrupted this thread with the lock held.
        # Then nobody else reaps the child, and closes its handle, meanwhile.
        with (contextlib.nullcontext() if self._lock.held else self._lock):
            if self.returncode is None:
                self.handle.signal(signum)

    def signal_group(self, signum: int) -> None:
        """See `IProcess`."""
        with self._lock:
            self._signal_group(signum)

    def _signal_group(self, signum: int) -> None:
        """Do the same, with the lock held."""
        with _all_told() as tell:
            for handle in self._left.values():
                tell(handle.signal, signum)
            if self.returncode is not None:
                return
            if self.leads_group:
                with contextlib.suppress(ProcessLookupError):
                    self._signal_own_group(signum)
                    return
            tell(self.handle.signal, signum)

    def signal_all(self, signum: int) -> None:
        """See `IProcess`."""
        self.require_ours()
        can_look = procfs.is_readable()
        with (contextlib.closing(descendants.of(self)) as others,
              _all_told() as tell):
            with self._lock:
                # Who gets the signal with the group does not get it again.
                told = set(self._left)
                if self.leads_group and self.returncode is None:
                    told |= {pid for pid in others
                             if procfs.look(pid).group == self.pid}
                tell(self._signal_group, signum)
            # The child may have ended, and have become a daemon.
            self.find_servers()  # or another thread finds them now
            with self._lock:
                for handle in (*others.values(), *self._left.values()):
                    if handle.pid not in told:
                        told.add(handle.pid)
                        tell(handle.signal, signum)
        if not can_look:
            raise ShortageError(
                errno.EMFILE, 'no descriptor is left to look for descendants '
                f'of {self!r}')

    @property
    def has_left(self) -> bool:
        """Whether the child has ended, and a descendant of it runs."""
        self.find_servers()
        with self._lock:
            return self.returncode is not None and bool(self._left)

    def take_left(self) -> list[Handle]:
        with self._lock:
            left, self._left = self._left, Handles()
        return list(left.values())

    def put_left(self, handles: Iterable[Handle]) -> None:
        with self._lock:
            # While the child runs, they are found again.
            rest = [each for each in handles
                    if self.returncode is None or not self._left.add(each)]
            if self._left:
                self._set_end_at_exit(True)
        for handle in rest:
            handle.close()
        if self.returncode is not None:
            self._watch_left()

    @property
    def _has_servers(self) -> bool:
        """Whether there is somebody to ask for daemons."""
        return False

    def find_servers(self) -> list[Handle]:
        """Look for daemons that the process has become; returns new ones."""
        return []

    def forget_servers(self) -> None:
        """Ask for daemons no more, also not at exit."""

    def terminate(self, signum: int | None = None,
                  timeout: float | None = None) -> int:
        """See `IProcess`."""
        terminate_all([self], signum, timeout)
        assert self.returncode is not None
        return self.returncode

    @property
    def is_ours(self) -> bool:
        """See `IProcess`."""
        return self._owner == os.getpid()

    def require_ours(self) -> None:
        if not self.is_ours:
            raise RuntimeError(
                f'{self!r} is a child of process {self._owner}, of which this '
                'is a fork: it cannot be waited for here')

    def close(self) -> None:
        """See `IProcess`."""
        try:
            if self.is_ours:
                self.terminate()
        finally:
            self.close_channels()

    def close_input(self) -> None:
        for channel in self.channels():
            # It may have none, or one that is closed.
            with contextlib.suppress(
                    NotImplementedError, EndpointClosedException, OSError):
                channel.write_eof()

    def close_channels(self) -> None:
        for channel in self.channels():
            channel.close()

    def let_go(self) -> None:
        """Watch it no more, if it goes on without us; close its channels."""
        self.close_channels()

    def abandon_channels(self) -> None:
        """Close them, as nobody wants what is left to read."""
        for channel in self.channels():
            channel.abandon()

    def note_ready(self) -> None:
        """Remember that it was ready, for those who find it."""

    def __repr__(self) -> str:
        state = ('running' if self.returncode is None
                 else f'ended with {self.status_text}')
        return f'<{type(self).__name__} {self.name!r} ({self.pid}): {state}>'


@contextlib.contextmanager
def _all_told() -> Iterator[Callable[[Callable[[int], None], int], None]]:
    """Send several signals, though one is refused; raise that error then."""
    refused: list[PermissionError] = []

    def tell(send: Callable[[int], None], signum: int) -> None:
        try:
            send(signum)
        except PermissionError as error:  # a process of another user
            refused.append(error)
    yield tell
    if refused:
        raise refused[0]


def _duplicate(fd: int) -> int | None:
    """A copy of a descriptor; None if there are too many."""
    try:
        return os.dup(fd)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        return None


def _timeouts(stop_timeout: float | None) -> tuple[float, float]:
    """Seconds that a child has in `terminate`, and at our exit."""
    if stop_timeout is None:
        return 10.0, 5.0
    if not isinstance(stop_timeout, int | float) or not stop_timeout >= 0:
        raise ValueError('stop_timeout must be a number of seconds >= 0, '
                         f'not {stop_timeout!r}')
    return stop_timeout, min(stop_timeout, 30.0)
