"""One alias: the process that runs under it, and its channels."""

import contextlib
import functools
import operator
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from gocept.runner.channel import Channel, SocketChannel
from gocept.runner.errors import (
    DeadlineExceeded,
    EndpointClosedException,
    ShortageError,
    StartError,
)
from gocept.runner.events import (
    PATIENCE,
    ChildEnded,
    ChildReady,
    ChildStarted,
    Queue,
)
from gocept.runner.logs import Log
from gocept.runner.poller import Poller, Timer, background
from gocept.runner.process import unixsocket
from gocept.runner.process.base import BaseProcess
from gocept.runner.process.output import Output, unread
from gocept.runner.process.shortages import shortages
from gocept.runner.spawn.application import Application
from gocept.runner.spawn.former import Former
from gocept.runner.waits.deadline import is_broken
from gocept.runner.waits.forks import Lock

log = Log('gocept.runner.spawn')

RUNNING, RESTARTING, GIVEN_UP, ENDED = (
    'running', 'restarting', 'given-up', 'ended')

_SHORTAGE, _LONGEST_SHORTAGE = 0.1, 10.0
"""The first and the longest pause, in seconds, when this process lacks what a
child needs."""

_STABLE = 10.0
"""A child that runs so many seconds begins a new row of failures."""


class Instance:
    """Starts, restarts and connects; see `IRunner`.

    Code of users (subscribers, handlers of logs) is called by `_news`, which
    is filled with `_lock` held, and emptied without it. A stack `after` is for
    what else has to wait until the lock is released.

    No thread waits for another one, which may be in code of users, but for the
    second of `settle`. Of several that wait for a socket, the first one that
    can connect does it for all.
    """

    def __init__(self, alias: str, poller: Poller | None,
                 extra_paths: Sequence[str],
                 on_restart: Callable[[], object] = lambda: None,
                 on_give_up: Callable[[], object] = lambda: None,
                 home: str | None = None, key: str = '') -> None:
        self.alias = alias
        self._key = key or alias  # in a kernel
        self.process: BaseProcess | None = None
        self.ready: BaseProcess | None = None
        """The last process that was told to be ready."""
        self._on_restart = on_restart
        self._on_give_up = on_give_up
        self._poller = poller
        self._extra_paths = extra_paths
        self._home = home
        # Nobody waits for a child or a poller with it, as the thread that
        # polls takes it when a process has ended.
        self._lock = Lock()
        self._news = Queue()
        self._application: Application | None = None  # None: not to run
        self._output = Output(alias, None, log)
        self._is_socket = False
        # Whether the first start still waits for the socket. It then handles
        # the end of the process.
        self._is_awaited = False
        self._is_given_up = False  # as it has failed
        self._deaf: BaseProcess | None = None  # ended, as it listened no more
        # By the channels of the process, what users get in their place.
        self._handed_out: dict[Channel, Channel] = {}
        self._socket: Channel | None = None
        self._replaced: Channel | None = None  # the one before, if there is
        self._former = Former()
        self._timer: Timer | None = None
        self._failures = 0
        self._shortages = 0  # since the last start
        self._started = 0.0

    @property
    def running(self) -> bool:
        """Whether the process runs. Not with the lock held."""
        return self.process is not None and self.process.poll() is None

    @property
    def status(self) -> int | None:
        """What the process has ended with."""
        return None if self.process is None else self.process.poll()

    @property
    def _runs(self) -> bool:
        """Whether nobody has noticed its end yet; with the lock held.

        `running` notices, and calls `_tell_end`, which takes the lock.
        """
        return self.process is not None and self.process.returncode is None

    @property
    def state(self) -> str:
        """See `IRunner`."""
        if self.running:
            return RUNNING
        with self._lock:
            if self._timer is not None:
                return RESTARTING
            # Another thread may have started it just now.
            return (RUNNING if self._runs else
                    GIVEN_UP if self._is_given_up else self._next_state())

    def _next_state(self) -> str:
        """What it will be as soon as the end of the process is told.

        Another thread may just be about to do so.
        """
        process, application = self.process, self._application
        if process is None or application is None or self._is_awaited:
            return ENDED
        status = 0 if process.lost else process.returncode
        if status is None:
            return ENDED
        return (RESTARTING if application.is_to_restart(status)
                else GIVEN_UP if status else ENDED)

    def ensure_running(self, application: Application) -> bool:
        """Start the process, if it does not run; whether that was so."""
        self._end_rest()
        with contextlib.ExitStack() as after, self._lock:
            is_up = self._runs
            if not is_up:
                process = self._start(application, after)
                self._stop_restarting()
                self._failures = 0
                self._is_awaited = self._is_socket
            is_awaited = self._is_awaited
        if is_up:
            # A subscriber that is told of the start would wait for itself.
            if is_awaited and not self._news.is_telling:
                self._connect()
            return False
        if is_awaited:
            self._await(process)
        self._news.tell()
        return True

    def _end_rest(self, signum: int | None = None,
                  timeout: float | None = None) -> None:
        """End what the process before has left behind, if it has ended."""
        process = self.process
        if (process is not None and process.is_ours
                and process.poll() is not None):
            process.terminate(signum, timeout)

    @property
    def _polled_by(self) -> Poller:
        return self._poller or background()

    def _start(self, application: Application,
               after: contextlib.ExitStack) -> BaseProcess:
        """Start a process in place of the one before; with the lock held.

        So its end is told after its start.
        """
        if self._home is not None:
            application = application.seen_from(self._home)
        try:
            with shortages():
                process = application.open(
                    self.alias, self._key, self._extra_paths,
                    poller=self._poller, on_end=self._tell_end)
        except OSError as error:
            raise self._explained(error, application) from None
        self._news.put(ChildStarted.tell, process)
        output = Output(self.alias, application.captured(process), log)
        try:
            output.drain(self._polled_by)
        except BaseException:
            after.callback(process.close)
            raise
        # What the process before has said may be read yet.
        for channel in self._former.take_done():
            after.callback(channel.abandon)
        after.callback(self._output.read_rest)
        self._former.add(
            [*self._channels()], self._channel(None), application.transactional
            and self.process is not None and self.process.in_kernel)
        if self.process is None:
            self._take_in_ended(application, process)
        self._handed_out = _handed_out(process, application, output)
        self._socket = self._replaced = None
        self._started = time.monotonic()
        self._shortages = 0
        self._is_given_up = False
        self.process = process
        self._application = application
        self._output = output
        self._is_socket = application.type == 'socket'
        if not self._is_socket:
            self._former.write_to(self._channel(None))
        self._news.put(log.info, '%s %s', (
            'Found' if process.was_found else 'Started'), repr(process))
        if not self._is_socket:
            self._tell_ready(process)
        return process

    def _take_in_ended(self, application: Application,
                       started: BaseProcess) -> None:
        """Have read what processes have left that ended without a worker.

        `started` may have ended by now, but not without one.
        """
        for process in application.ended(
                self.alias, self._key, self._extra_paths, besides=started):
            self._news.put(ChildEnded.tell, process)
            self._news.put(log.info, 'Found %r', process)
            if not any(each.has_more for each in process.channels()):
                process.abandon_channels()
                continue
            output = Output(self.alias, application.captured(process), log)
            output.drain(self._polled_by)
            channels = _handed_out(process, application, output)
            self._former.add(
                channels.values(), None if process.channel is None
                else channels[process.channel], in_kernel=True)

    def _explained(self, error: OSError, application: Application) -> OSError:
        """The same error, but one line says what was not found for whom."""
        cwd, missing = application.options.get('cwd'), error.filename
        if missing is None:
            reason = error.strerror or str(error)
        elif cwd is not None and os.fspath(missing) == os.fspath(cwd):
            reason = (f'cannot start in the directory '
                      f'{os.path.abspath(cwd)!r}: {error.strerror}')
        elif missing == application.program:
            reason = f'cannot run {missing!r}: {error.strerror}'
        else:
            reason = f'{missing!r}: {error.strerror}'
        return type(error)(error.errno, f'app {self.alias!r}: {reason}')

    def _tell_ready(self, process: BaseProcess) -> None:
        self.ready = process
        self._news.put(ChildReady.tell, process)

    def _await(self, process: BaseProcess) -> None:
        """Connect to a process that was just started, or end it."""
        try:
            self._news.tell()
            self._connect(process)
        except BaseException as error:
            # Nobody could use the process.
            with self._lock:
                was_let_go = process.in_kernel and (
                    self._application is None
                    or not isinstance(error, Exception))
                if process is self.process:
                    self._stop_restarting()
                    self._application = None
                    self._is_given_up = True
            if not was_let_go:
                try:
                    process.terminate()
                finally:
                    self.abandon_channels(process)
            raise
        finally:
            with self._lock:
                if process is self.process:
                    self._is_awaited = False
                    if process.returncode is not None:
                        self._ended(process)
            self._news.tell()

    def _connect(self, started: BaseProcess | None = None) -> None:
        """Wait until the channel of a socket is connected.

        `started` is the process that this thread has started, if it has.
        """
        with self._lock:
            process, application, output = (
                started or self.process, self._application, self._output)
            is_wanted = process is self.process and application is not None
        assert process is not None
        if is_wanted:
            assert application is not None
            with Poller() as poller:
                # This may be the thread that otherwise polls the output.
                output.drain(poller)
                try:
                    unixsocket.connect_when_listening(
                        application.socket_paths, process, output,
                        application.start_timeout, poller, functools.partial(
                            self._connect_now, process, application))
                except DeadlineExceeded as error:
                    # A busy one may answer later.
                    if process is self.ready and process.is_ours and (
                            not isinstance(error.__cause__, BlockingIOError)):
                        self._end_deaf(process, error)
                    raise
            with self._lock:
                if process is self.process and self._application is not None:
                    return
        raise StartError(
            f'{self.alias!r} was ended by others when it began to listen',
            process.poll(), output.tail)

    def _end_deaf(self, process: BaseProcess, error: DeadlineExceeded) -> None:
        """End a server that listens no more, as one that has failed.

        Others may have removed its socket, so nobody can reach it again.
        """
        self._deaf = process
        log.warning('%s; it has listened there before, so it is ended', error)
        process.terminate()

    def _connect_now(self, process: BaseProcess, application: Application,
                     paths: Sequence[str]) -> None:
        """Connect without waiting, if that is still wanted.

        The errors are those of `unixsocket.connect_to`.
        """
        with self._lock:
            if process is not self.process or self._is_connected:
                return
            if process.in_kernel and self._application is None:
                return  # it goes on without us
            poller = self._polled_by
            sock = unixsocket.connect_to(paths, process)
            if self._application is None:  # it is being ended
                sock.close()
                return
            channel = SocketChannel(sock, **application.channel)
            channel.name = repr(self.alias)
            self._replace_socket(application.handed_out(channel))
            self._is_awaited = False
            poller.send_for(channel)
            # Once, and not after its end.
            if self.ready is not process and self._runs:
                self._tell_ready(process)

    def _replace_socket(self, channel: Channel) -> None:
        """Connected anew; with the lock held.

        As after a restart, the one before is closed with the next one: a
        transaction may still give back what it has fetched there.
        """
        before, self._replaced = self._replaced, self._socket
        self._socket = channel
        if before is not None and not self._former.keep_replaced(before):
            self._news.put(before.close)
        if self._replaced is not None:
            self._former.add((), self._replaced)

    def _tell_end(self, process: BaseProcess) -> None:
        with self._lock:
            self._news.put(ChildEnded.tell, process)
            self._ended(process)
        self._news.tell()

    def _ended(self, process: BaseProcess) -> None:
        """Restart it later, if that is wanted; with the lock held."""
        application = self._application
        # A failure is only what is known to be one.
        status = 0 if process.lost else process.returncode
        if process is self._deaf:
            status = status or 1
        if (process is not self.process or self._is_awaited
                or self._timer is not None):
            return
        if application is None:  # it was given up
            self._news.put(log.info, '%r', process)
            return
        if (status is None or _exiting()
                or not application.is_to_restart(status)):
            self._application = None
            if status in (None, 0) or _exiting():
                self._news.put(log.info, '%r', process)
                # Somebody else may hold the output, so that no end comes.
                self._news.put(self._on_give_up)
            else:
                self._give_up(log.warning, f'{process!r}; it is not restarted')
            return
        if time.monotonic() - self._started >= _STABLE:
            self._failures = 0
        self._restart_later(application, repr(process))

    def _restart_later(self, application: Application, reason: str,
                       counts: bool = True) -> None:
        """Set the timer, if there are restarts left; with the lock held."""
        self._timer = None
        if counts and self._failures >= application.restart_limit:
            self._give_up(log.error, f'{reason}; given up after '
                                     f'{self._failures} restarts in a row')
            return
        if counts:
            delay = application.delay(self._failures)
            self._failures += 1
        else:
            delay = min(_SHORTAGE * 2.0 ** self._shortages, _LONGEST_SHORTAGE)
            self._shortages += 1
        self._news.put(log.warning, '%s; restarting in %s s', reason, delay)
        self._set_timer(delay, functools.partial(self._restart, application))

    def _give_up(self, say: Callable[[str], object], reason: str) -> None:
        """Let it be, as it has failed; with the lock held."""
        self._application = None
        self._is_given_up = True
        process, output = self.process, self._output

        def tell() -> None:
            output.read_rest()
            said = (str(output) if output.is_kept or process is None
                    else unread(process.channels()))
            say(f'{reason}; its output {said}' if said else reason)
        self._news.put(tell)
        self._news.put(self._on_give_up)

    def _set_timer(self, delay: float,
                   restart: Callable[[int, Timer], object]) -> None:
        self._timer = Timer(delay)
        self._polled_by.register(self._timer, restart)

    def _restart(self, application: Application, expirations: int,
                 timer: Timer) -> None:
        """Called by the thread that polls, for which others wait.

        So another thread ends what the process before has left behind.
        """
        process = self.process
        if timer is not self._timer or process is None or _exiting():
            return
        if process.finished:
            self._start_again(application, 1, timer)
            return
        try:
            threading.Thread(target=self._clear, args=(application, timer),
                             daemon=True, name='gocept.runner.spawn').start()
        except RuntimeError as error:  # there are too many threads now
            self._try_again(application, timer, error)

    def _clear(self, application: Application, timer: Timer) -> None:
        """End the rest, and let the thread that polls start it again."""
        try:
            self._end_rest(signal.SIGKILL, 0)
            with self._lock:
                if timer is self._timer:
                    self._set_timer(0, functools.partial(
                        self._start_again, application))
        except Exception as error:
            self._try_again(application, timer, error)
        self._news.tell()

    def _start_again(self, application: Application, expirations: int,
                     timer: Timer) -> None:
        try:
            with contextlib.ExitStack() as after, self._lock:
                # Another thread may have started or given it up meanwhile.
                if timer is not self._timer or _exiting():
                    return
                self._start(application, after)
                self._timer = None
                self._news.put(self._on_restart)
        except Exception as error:  # of any kind, as it may be temporary
            self._try_again(application, timer, error)
        self._news.tell()

    def _try_again(self, application: Application, timer: Timer,
                   error: Exception) -> None:
        with self._lock:
            if timer is self._timer:
                self._restart_later(
                    application, f'{self.alias!r} cannot be restarted: '
                    f'{type(error).__name__}: {error}', not _is_ours(error))
        self._news.tell()

    def _stop_restarting(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            self._polled_by.unregister(timer)

    def give_up(self) -> BaseProcess | None:
        """Do not restart it; returns the process, which the caller ends."""
        with self._lock:
            self._stop_restarting()
            self._application = None
            return self.process

    def settle(self, seconds: float = PATIENCE) -> None:
        """Wait for the thread that tells what has happened here."""
        self._news.settle(seconds)

    def get_channel(self, stream: str | None) -> Channel | None:
        """See `IRunner`."""
        if stream is None and self.running:  # notices an end
            with self._lock:
                # A subscriber that is told of the start would wait for itself.
                waits = (
                    self._runs and self._is_socket and not self._is_connected
                    and self._application is not None
                    and not (self._is_awaited and self._news.is_telling))
                process = self.process
                was_ready = process is not None and process is self.ready
            if waits:
                try:
                    self._connect()
                except StartError:
                    # It may have closed the connection as it was ending.
                    assert process is not None
                    if not was_ready or process.poll() is None:
                        raise
                self._news.tell()
        with contextlib.ExitStack() as after, self._lock:
            unread = None if stream else self._former.find_unread()
            for former in self._former.take_read():
                after.callback(former.abandon)
            if unread is not None:
                return unread
            channel = self._channel(stream)
            if channel is None or self._runs or channel.has_more:
                return channel
            return None

    @property
    def _is_connected(self) -> bool:
        """Whether the server has not closed the connection, nor have we."""
        channel = self._socket
        try:
            return channel is not None and (
                not is_broken(channel.get_fd()) or channel.has_more)
        except EndpointClosedException:
            return False

    def _channel(self, stream: str | None) -> Channel | None:
        if stream is None and self._is_socket:
            return self._socket
        if self.process is None:
            return None
        channel = (self.process.stderr if stream == 'stderr'
                   else self.process.channel)
        if channel is None or (
                not channel.is_writable and self._output.reads(channel)):
            return None
        return self._handed_out[channel]

    def _channels(self) -> Iterator[Channel]:
        if self.process is not None:
            yield from self._handed_out.values()
        for channel in self._socket, self._replaced:
            if channel is not None:
                yield channel

    def close_channels(self, process: BaseProcess | None) -> None:
        """Close all channels of `process` and of those before it.

        What a kernel keeps of them is left for the next worker.
        """
        self._close_channels(process, operator.methodcaller('close'))

    def abandon_channels(self, process: BaseProcess | None) -> None:
        """Close them, as nobody wants what is left to read."""
        self._close_channels(process, operator.methodcaller('abandon'))

    def _close_channels(self, process: BaseProcess | None,
                        close: Callable[[Channel], object]) -> None:
        with contextlib.ExitStack() as after, self._lock:
            channels = self._former.take_all()
            if process is not None and process.in_kernel:
                after.callback(process.let_go)
            # Another process may have been started meanwhile.
            if process is self.process:
                channels += self._channels()
            for channel in channels:
                after.callback(close, channel)
            if process is self.process and (
                    process is None or process.is_ours):
                after.callback(self._output.read_rest)  # before it is closed


def _is_ours(error: Exception) -> bool:
    """Whether it says that this process lacks something for now."""
    return isinstance(error, MemoryError | ShortageError) or (
        isinstance(error, RuntimeError) and 'new thread' in str(error))


def _exiting() -> bool:
    """Whether the interpreter exits, and ends all children."""
    return not threading.main_thread().is_alive()


def _handed_out(process: BaseProcess, application: Application,
                output: Output) -> dict[Channel, Channel]:
    """What users get, by the channels of a process."""
    channels = {channel: application.handed_out(channel)
                for channel in process.channels()}
    for channel in channels:
        if output.reads(channel):
            channel.waits_for_commit = False
    return channels
