"""One alias: the process that runs under it, and its channels."""

import contextlib
import fcntl
import functools
import logging
import signal
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from gocept.runner.channel import Channel, SocketChannel
from gocept.runner.errors import EndpointClosedException, StartError
from gocept.runner.events import ChildEnded, ChildReady, ChildStarted, Queue
from gocept.runner.poller import Poller, Timer, background
from gocept.runner.process import Process, unixsocket
from gocept.runner.process.output import Output
from gocept.runner.spawn.application import Application
from gocept.runner.waits.forks import Lock

log = logging.getLogger('gocept.runner.spawn')

_STABLE = 10.0
"""A child that runs so many seconds begins a new row of failures."""


class Instance:
    """Starts, restarts and connects; see `IRunner`.

    Code of users (subscribers, handlers of logs) is called by `_news`, which
    is filled with `_lock` held, and emptied without it. A stack `after` is for
    what else has to wait until the lock is released.
    """

    def __init__(self, alias: str, poller: Poller | None,
                 extra_paths: Sequence[str],
                 on_restart: Callable[[], object] = lambda: None) -> None:
        self.alias = alias
        self.process: Process | None = None
        self.ready: Process | None = None
        """The last process that was told to be ready."""
        self._on_restart = on_restart
        self._poller = poller
        self._extra_paths = extra_paths
        # Held by the thread that starts or connects, as long as that takes;
        # taken before the other lock.
        self._starting = Lock()
        # Guards the rest. Nobody waits for a child or a poller with it, as
        # the thread that polls takes it when a process has ended.
        self._lock = Lock()
        self._news = Queue()
        self._application: Application | None = None  # None: not to run
        self._output = Output(alias, None, log)
        self._is_socket = False
        # Whether the first start still waits for the socket. It then handles
        # the end of the process.
        self._is_awaited = False
        self._socket: SocketChannel | None = None
        self._kept: list[Channel] = []  # of the process before
        self._timer: Timer | None = None
        self._failures = 0
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

    def ensure_running(self, application: Application) -> bool:
        """Start the process, if it does not run; whether that was so."""
        if self._starting.held:
            return False  # asked by a subscriber that is told of the start
        with self._starting:
            self._end_rest()
            with contextlib.ExitStack() as after, self._lock:
                if self._runs:
                    return False
                process = self._start(application, after)
                self._stop_restarting()
                self._failures = 0
                self._is_awaited = self._is_socket
            if self._is_awaited:
                self._news.tell()
                self._await(process, application)
        self._news.tell()
        return True

    def _end_rest(self, signum: int | None = None,
                  timeout: float | None = None) -> None:
        """End what the process before has left behind, if it has ended."""
        process = self.process
        if process is not None and process.poll() is not None:
            process.terminate(signum, timeout)

    @property
    def _polled_by(self) -> Poller:
        return self._poller or background()

    def _start(self, application: Application,
               after: contextlib.ExitStack) -> Process:
        """Start a process in place of the one before; with the lock held.

        So its end is told after its start.
        """
        if application.type == 'socket':
            unixsocket.make_way(application.socket_path)
        process = Process(
            application.command, name=self.alias, poller=self._poller,
            on_end=self._tell_end, **application.keywords(self._extra_paths))
        self._news.put(ChildStarted.tell, process)
        output = Output(
            self.alias,
            process.channel if application.is_captured else None, log)
        try:
            output.drain(self._polled_by)
        except BaseException:
            after.callback(process.close)
            raise
        # What the process before has said may be read yet.
        for channel in self._kept:
            after.callback(channel.close)
        after.callback(self._output.read_rest)
        self._kept = [*self._channels()]
        self._socket = None
        self._started = time.monotonic()
        self.process = process
        self._application = application
        self._output = output
        self._is_socket = application.type == 'socket'
        self._news.put(log.info, 'Started %s', repr(process))
        if not self._is_socket:
            self._tell_ready(process)
        return process

    def _tell_ready(self, process: Process) -> None:
        self.ready = process
        self._news.put(ChildReady.tell, process)

    def _await(self, process: Process, application: Application) -> None:
        """Connect to a process that was just started, or end it."""
        try:
            self._connect(process, application)
        except BaseException:
            # Nobody could use the process.
            self.give_up()
            try:
                process.terminate()
            finally:
                self.close_channels(process)
            raise
        finally:
            with self._lock:
                self._is_awaited = False
                if process.returncode is not None:
                    self._ended(process)

    def _connect(self, process: Process, application: Application) -> None:
        output = self._output
        with Poller() as poller:
            # This may be the thread that otherwise polls the output.
            output.drain(poller)
            channel = SocketChannel(
                unixsocket.connect_when_listening(
                    application.socket_path, process, output,
                    application.start_timeout, poller),
                **application.channel)
        channel.name = repr(self.alias)
        with self._lock:
            is_wanted = (process is self.process
                         and self._application is not None)
            if is_wanted:
                self._socket = channel
                self._polled_by.send_for(channel)
                # Once, and not after its end.
                if self.ready is not process and self._runs:
                    self._tell_ready(process)
        if not is_wanted:
            channel.close()
            raise StartError(
                f'{self.alias!r} was ended by others when it began to listen '
                f'on {application.socket_path}', process.poll(), output.tail)

    def _tell_end(self, process: Process) -> None:
        with self._lock:
            self._news.put(ChildEnded.tell, process)
            self._ended(process)
        self._news.tell()

    def _ended(self, process: Process) -> None:
        """Restart it later, if that is wanted; with the lock held."""
        application, status = self._application, process.returncode
        if (process is not self.process or application is None
                or self._is_awaited or self._timer is not None):
            return
        if (status is None or _exiting()
                or not application.is_to_restart(status)):
            self._news.put(log.info, '%r', process)
            self._application = None
            return
        if time.monotonic() - self._started >= _STABLE:
            self._failures = 0
        self._restart_later(application, repr(process))

    def _restart_later(self, application: Application, reason: str) -> None:
        """Set the timer, if there are restarts left; with the lock held."""
        self._timer = None
        if self._failures >= application.restart_limit:
            self._news.put(
                log.error, '%s; given up after %d restarts in a row', reason,
                self._failures)
            self._application = None
            return
        delay = application.delay(self._failures)
        self._failures += 1
        self._news.put(log.warning, '%s; restarting in %s s', reason, delay)
        self._timer = Timer(delay)
        self._polled_by.register(
            self._timer, functools.partial(self._restart, application))

    def _restart(self, application: Application, expirations: int,
                 timer: Timer) -> None:
        """Called by the thread that polls, for which others wait: what takes
        long is left out."""
        if timer is not self._timer:
            return
        try:
            self._end_rest(signal.SIGKILL, 0)
            with contextlib.ExitStack() as after, self._lock:
                # Another thread may have started or given it up meanwhile.
                if timer is not self._timer or _exiting():
                    return
                self._start(application, after)
                self._timer = None
                self._news.put(self._on_restart)
        except Exception as error:  # of any kind, as it may be temporary
            with self._lock:
                if timer is self._timer:
                    self._restart_later(
                        application, f'{self.alias!r} cannot be restarted: '
                        f'{type(error).__name__}: {error}')
        self._news.tell()

    def _stop_restarting(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            self._polled_by.unregister(timer)

    def give_up(self) -> Process | None:
        """Do not restart it; returns the process, which the caller ends."""
        with self._lock:
            self._stop_restarting()
            self._application = None
            return self.process

    def get_channel(self, stream: str | None) -> Channel | None:
        """See `IRunner`."""
        running = self.running  # notices an end
        if (running and stream is None and self._is_unconnected
                and not self._starting.held):  # as in `ensure_running`
            with self._starting:
                process, application = self.process, self._application
                if (process is not None and process.returncode is None
                        and application is not None and self._is_unconnected):
                    self._connect(process, application)
            self._news.tell()
        with self._lock:
            channel = self._channel(stream)
            if channel is None or self._runs or _has_more(channel):
                return channel
            return None

    @property
    def _is_unconnected(self) -> bool:
        return (self._is_socket
                and (self._socket is None or self._socket.closed)
                and self._application is not None)

    def _channel(self, stream: str | None) -> Channel | None:
        if stream is None and self._is_socket:
            return self._socket
        if self.process is None:
            return None
        if stream == 'stderr':
            return self.process.stderr
        channel = self.process.channel
        if (channel is not None and self._output.reads(channel)
                and channel.sink_fd < 0):
            return None
        return channel

    def _channels(self) -> Iterator[Channel]:
        if self.process is not None:
            yield from self.process.channels()
        if self._socket is not None:
            yield self._socket

    def close_channels(self, process: Process | None) -> None:
        """Close all channels of `process` and of those before it."""
        with contextlib.ExitStack() as after, self._lock:
            channels, self._kept = self._kept, []
            # Another process may have been started meanwhile.
            if process is self.process:
                channels += self._channels()
            for channel in channels:
                after.callback(channel.close)
            if process is self.process and (
                    process is None or process.is_ours):
                after.callback(self._output.read_rest)  # before it is closed


def _exiting() -> bool:
    """Whether the interpreter exits, and ends all children."""
    return not threading.main_thread().is_alive()


def _has_more(channel: Channel) -> bool:
    """Whether there is something left to read."""
    if channel.unread:
        return True
    try:
        return any(fcntl.ioctl(channel.get_fd(), termios.FIONREAD, bytes(4)))
    except (EndpointClosedException, NotImplementedError, OSError, ValueError):
        return False  # closed, or nothing to read from
