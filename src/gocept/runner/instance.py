"""One alias: the process that runs under it, and its channels."""

import fcntl
import logging
import termios
import threading
import time
from collections.abc import Iterator, Sequence

from gocept.runner import listening
from gocept.runner.application import Application
from gocept.runner.channel import Channel, SocketChannel
from gocept.runner.errors import ProcessExistsException, RunnerError
from gocept.runner.output import Output
from gocept.runner.poller import Poller, Timer, background
from gocept.runner.process import Process

log = logging.getLogger('gocept.runner.spawn')

_LONGEST_DELAY = 60.0  # of a restart, in seconds

_STABLE = 10.0  # who runs that long, in seconds, is not in a row of failures


class Instance:
    """Starts, restarts and connects; see `IRunner`."""

    def __init__(self, alias: str, poller: Poller | None,
                 extra_paths: Sequence[str]) -> None:
        self.alias = alias
        self.process: Process | None = None
        self._poller = poller
        self._extra_paths = extra_paths
        # Held also while it waits until a socket is there. The thread that
        # polls asks for it only when the process has ended, and with it that
        # wait.
        self._lock = threading.RLock()
        self._application: Application | None = None  # None: not to run
        self._output = Output(alias, None, log)
        self._is_socket = False
        self._socket: SocketChannel | None = None
        self._kept: list[Channel] = []  # of the process before
        self._timer: Timer | None = None
        self._failures = 0
        self._started = 0.0

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self.status is None and self.process is not None

    @property
    def status(self) -> int | None:
        """What it has ended with."""
        return None if self.process is None else self.process.poll()

    def ensure_running(self, application: Application) -> None:
        """Start it, if it does not run."""
        with self._lock:
            if not self.running:
                self.start(application)

    def start(self, application: Application) -> None:
        """Start it; ProcessExistsException if it runs."""
        with self._lock:
            if self.running:
                raise ProcessExistsException(
                    f'{self.alias!r} runs already: {self.process!r}')
            self._stop_restarting()
            self._failures = 0
            process = self._start(application)
            if application.type == 'socket':
                try:
                    with Poller() as poller:
                        self._output.drain(poller)
                        self._connect(application, process, poller)
                except BaseException:
                    # Nobody could use it, so it is not to stay.
                    self.give_up()
                    process.terminate()
                    self.close_channels()
                    raise
            self._output.drain(self._polled_by)

    @property
    def _polled_by(self) -> Poller:
        return self._poller or background()

    def _start(self, application: Application) -> Process:
        if application.type == 'socket':
            listening.make_way(application.socket_path)
        self._put_channels_aside()
        self._started = time.monotonic()
        process = Process(
            application.command, name=self.alias, poller=self._poller,
            on_end=self._ended, **application.keywords(self._extra_paths))
        self.process = process
        self._application = application
        self._is_socket = application.type == 'socket'
        self._output = Output(
            self.alias, process.channel if application.is_captured else None,
            log)
        log.info('Started %r', process)
        return process

    def _connect(self, application: Application, process: Process,
                 poller: Poller) -> None:
        channel = SocketChannel(
            listening.connect_when_listening(
                application.socket_path, process, self._output,
                application.start_timeout, poller),
            **application.channel)
        channel.name = repr(self.alias)
        self._polled_by.send_for(channel)
        self._socket = channel

    # Its end.

    def _ended(self, process: Process) -> None:
        with self._lock:
            application = self._application
            if process is not self.process or application is None:
                return
            status = process.returncode
            if status is None or not application.is_to_restart(status):
                log.info('%r', process)
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
        delay = min(application.restart_delay * 2 ** self._failures,
                    _LONGEST_DELAY)
        self._failures += 1
        log.warning('%s; restarting in %s s', reason, delay)
        self._timer = Timer(delay)
        self._polled_by.register(self._timer, self._restart)

    def _restart(self, expirations: int, timer: Timer) -> None:
        with self._lock:
            application = self._application
            if timer is not self._timer or application is None:
                return
            self._timer = None
            try:
                self._start(application)
            except (OSError, RunnerError) as error:
                self._restart_later(application, f'{self.alias!r}: {error}')
            else:
                self._output.drain(self._polled_by)

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

    # Its channels.

    def get_channel(self, stream: str | None) -> Channel | None:
        """See `IRunner`."""
        with self._lock:
            process, application = self.process, self._application
            if process is None:
                return None
            if stream == 'stderr':
                channel: Channel | None = process.stderr
            elif stream is None and self._is_socket:
                if self._socket is None and self.running and application:
                    with Poller() as poller:
                        self._connect(application, process, poller)
                channel = self._socket
            else:
                channel = process.channel
            if channel is None or self.running or _has_more(channel):
                return channel
            return None

    def _put_channels_aside(self) -> None:
        """Keep what the process before has said, as it may be read yet."""
        for channel in self._kept:
            channel.close()
        self._kept = [*self._channels()]
        self._socket = None

    def _channels(self) -> Iterator[Channel]:
        if self.process is not None:
            yield from self.process.channels()
        if self._socket is not None:
            yield self._socket

    def close_channels(self) -> None:
        """Close all that were handed out."""
        with self._lock:
            for channel in (*self._kept, *self._channels()):
                channel.close()
            self._kept = []


def _has_more(channel: Channel) -> bool:
    """Whether there is something left to read."""
    if channel.closed or channel.unread:
        return channel.unread
    answer: bytes = fcntl.ioctl(channel.fileno(), termios.FIONREAD, bytes(4))
    return any(answer)
