"""One alias: the process that runs under it, and its channels."""

import contextlib
import fcntl
import logging
import signal
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from gocept.runner.channel import Channel, SocketChannel
from gocept.runner.errors import (
    EndpointClosedException,
    ProcessExistsException,
    StartError,
)
from gocept.runner.events import child_ended, child_ready, child_started
from gocept.runner.poller import Poller, Timer, background
from gocept.runner.process import Process, unixsocket
from gocept.runner.process.output import Output
from gocept.runner.spawn.application import Application
from gocept.runner.waits.forks import tell_forks

log = logging.getLogger('gocept.runner.spawn')

_STABLE = 10.0  # who runs that long, in seconds, is not in a row of failures


class Instance:
    """Starts, restarts and connects; see `IRunner`."""

    def __init__(self, alias: str, poller: Poller | None,
                 extra_paths: Sequence[str],
                 on_restart: Callable[[], object] = lambda: None) -> None:
        self.alias = alias
        self._on_restart = on_restart
        self.process: Process | None = None
        self._poller = poller
        self._extra_paths = extra_paths
        # Held by who starts or connects, as long as that takes; taken before
        # the other one.
        self._starting = threading.RLock()
        # Guards the rest. Nobody waits for anything with it, as the thread
        # that polls takes it when a process has ended.
        self._lock = threading.RLock()
        self._application: Application | None = None  # None: not to run
        self._output = Output(alias, None, log)
        self._is_socket = False
        self._is_awaited = False  # by its first start, which tells its end
        self._socket: SocketChannel | None = None
        self._connected: Process | None = None  # the last one that was
        self._kept: list[Channel] = []  # of the process before
        self._timer: Timer | None = None
        self._failures = 0
        self._started = 0.0
        tell_forks(self)

    def after_fork(self) -> None:
        """In a forked child: other threads may have had the locks."""
        self._starting, self._lock = threading.RLock(), threading.RLock()

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        process = self.process
        return process is not None and process.poll() is None

    @property
    def status(self) -> int | None:
        """What it has ended with."""
        return None if self.process is None else self.process.poll()

    def start(self, application: Application) -> None:
        """Start it; ProcessExistsException if it runs."""
        if not self.ensure_running(application):
            raise ProcessExistsException(
                f'{self.alias!r} runs already: {self.process!r}')

    def ensure_running(self, application: Application) -> bool:
        """Start it, if it does not run; whether that was so."""
        with self._starting:
            self._end_rest()
            with self._lock:
                if self.running:
                    return False
                process = self._start(application)
                self._stop_restarting()
                self._failures = 0
                self._is_awaited = self._is_socket
            if self._is_awaited:
                self._await(process, application)
        return True

    def _end_rest(self, signum: int | None = None,
                  timeout: float | None = None) -> None:
        """End what a process has left behind, or it would be in the way."""
        process = self.process
        if process is not None and process.poll() is not None:
            process.terminate(signum, timeout)

    @property
    def _polled_by(self) -> Poller:
        return self._poller or background()

    def _start(self, application: Application) -> Process:
        if application.type == 'socket':
            unixsocket.make_way(application.socket_path)
        started = time.monotonic()
        process = Process(
            application.command, name=self.alias, poller=self._poller,
            on_start=child_started, on_end=self._tell_end,
            **application.keywords(self._extra_paths))
        with contextlib.ExitStack() as undo:
            undo.callback(process.close)
            output = Output(
                self.alias,
                process.channel if application.is_captured else None, log)
            output.drain(self._polled_by)
            undo.pop_all()
        self._put_channels_aside()
        self._started = started
        self.process = process
        self._application = application
        self._output = output
        self._is_socket = application.type == 'socket'
        log.info('Started %r', process)
        if not self._is_socket:
            child_ready(process)
        return process

    def _await(self, process: Process, application: Application) -> None:
        """Connect to one that was just started, or end it."""
        try:
            self._connect(process, application, self._output)
        except BaseException:
            # Nobody could use it, so it is not to stay.
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

    def _connect(self, process: Process, application: Application,
                 output: Output) -> None:
        with Poller() as poller:
            # Whoever polls it otherwise may be the one that waits here.
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
                is_first, self._connected = (
                    self._connected is not process, process)
        if not is_wanted:
            channel.close()
            raise StartError(
                f'{self.alias!r} was ended by others when it began to listen '
                f'on {application.socket_path}', process.poll(), output.tail)
        if is_first:
            child_ready(process)

    def _tell_end(self, process: Process) -> None:
        child_ended(process)
        self._ended(process)

    def _ended(self, process: Process) -> None:
        with self._lock:
            application = self._application
            if (process is not self.process or application is None
                    or self._is_awaited or self._timer is not None):
                return
            status = process.returncode
            if (status is None or _exiting()
                    or not application.is_to_restart(status)):
                log.info('%r', process)
                self._application = None
                return
            if time.monotonic() - self._started >= _STABLE:
                self._failures = 0
            self._restart_later(application, repr(process))

    def _restart_later(self, application: Application, reason: str) -> None:
        if self._failures >= application.restart_limit:
            log.error('%s; given up after %d restarts in a row', reason,
                      self._failures)
            self._application = None
            return
        delay = application.delay(self._failures)
        self._failures += 1
        log.warning('%s; restarting in %s s', reason, delay)
        self._timer = Timer(delay)
        self._polled_by.register(self._timer, self._restart)

    def _restart(self, expirations: int, timer: Timer) -> None:
        with self._lock:
            application = self._application
            if timer is not self._timer or application is None or _exiting():
                return
            self._timer = None
            try:
                # At once, as others wait for the thread that polls.
                self._end_rest(signal.SIGKILL, 0)
                self._start(application)
            except Exception as error:  # whatever it is, it may pass
                self._restart_later(
                    application, f'{self.alias!r} cannot be restarted: '
                    f'{type(error).__name__}: {error}')
                return
        self._on_restart()

    def _stop_restarting(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            self._polled_by.unregister(timer)

    def give_up(self) -> Process | None:
        """Restart it no more; returns the process that is to be ended."""
        with self._lock:
            self._stop_restarting()
            self._application = None
            return self.process

    def get_channel(self, stream: str | None) -> Channel | None:
        """See `IRunner`."""
        if stream is None and self._is_unconnected:
            with self._starting:
                self._connect_again()
        with self._lock:
            channel = self._channel(stream)
            if channel is None or self.running or _has_more(channel):
                return channel
            return None

    @property
    def _is_unconnected(self) -> bool:
        return (self._is_socket
                and (self._socket is None or self._socket.closed)
                and self._application is not None and self.running)

    def _connect_again(self) -> None:
        with self._lock:
            process, application, output = (
                self.process, self._application, self._output)
            if (not self._is_unconnected or process is None
                    or application is None):
                return
        self._connect(process, application, output)

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

    def _put_channels_aside(self) -> None:
        """Keep what the process before has said, as it may be read yet."""
        for channel in self._kept:
            channel.close()
        self._output.read_rest()
        self._kept = [*self._channels()]
        self._socket = None

    def _channels(self) -> Iterator[Channel]:
        if self.process is not None:
            yield from self.process.channels()
        if self._socket is not None:
            yield self._socket

    def close_channels(self, process: Process | None) -> None:
        """Close all that were handed out, up to those of `process`."""
        with self._lock:
            channels, self._kept = self._kept, []
            # There may be another one, which was started meanwhile.
            if process is self.process:
                if process is None or process.is_ours:
                    self._output.read_rest()
                channels += self._channels()
            for channel in channels:
                channel.close()


def _exiting() -> bool:
    """Whether the interpreter exits, and ends all children."""
    return not threading.main_thread().is_alive()


def _has_more(channel: Channel) -> bool:
    """Whether there is something left to read."""
    if channel.unread:
        return True
    try:
        answer: bytes = fcntl.ioctl(
            channel.get_fd(), termios.FIONREAD, bytes(4))
    except (EndpointClosedException, NotImplementedError, OSError, ValueError):
        return False  # closed, or nothing to read from
    return any(answer)
