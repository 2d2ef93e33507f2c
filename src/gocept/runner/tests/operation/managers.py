"""A stand-in for systemd, by sd_notify(3) and systemd.service(5)."""

import contextlib
import math
import os
import pathlib
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Sequence

from gocept.runner.tests.support import (
    DEADLINE,
    child_environment,
    ignore_nothing,
)

_CREDENTIALS = struct.Struct('3i')


class Manager:
    """Starts one service with ``Type=notify``, and obeys what it says.

    Like systemd, it takes messages of the main process only, kills with
    SIGABRT who is silent for `watchdog` seconds after ``READY=1``, and with
    SIGKILL who has not ended `timeout` seconds after `stop` or
    ``STOPPING=1``, unless ``EXTEND_TIMEOUT_USEC`` asks for more. All of this
    happens in `until`, as long as a test waits. If `patience` is given, it
    waits for so long, and tells the service of `watchdog` seconds.
    """

    process: subprocess.Popen[bytes]

    def __init__(self, directory: pathlib.Path, *,
                 watchdog: float | None = None,
                 patience: float | None = None, timeout: float = DEADLINE,
                 abstract: bool = False) -> None:
        self.watchdog, self.timeout = watchdog, timeout
        self.patience = watchdog if patience is None else patience
        self.state, self.result = 'inactive', ''
        self.messages: list[str] = []
        self.status = ''
        self._silent_at = self.killed_at = math.inf
        self._output = directory / 'output'
        address = str(directory / 'notify')
        if abstract:
            address = f'@gocept.runner.tests.{os.getpid()}.{id(self)}'
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(f'\0{address[1:]}' if abstract else address)

    def start(self, command: Sequence[str], cwd: pathlib.Path) -> None:
        """Start the main process, whose output goes to a file."""
        ignore_nothing()
        environment = child_environment(NOTIFY_SOCKET=self.address)
        script = 'exec "$@"'
        if self.watchdog is not None:
            environment['WATCHDOG_USEC'] = str(int(self.watchdog * 1_000_000))
            script = f'export WATCHDOG_PID=$$; {script}'
        with open(self._output, 'wb') as output:
            self.process = subprocess.Popen(
                ['/bin/sh', '-c', script, 'sh', *command], cwd=cwd,
                env=environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, process_group=0)
        self.state = 'activating'

    @property
    def output(self) -> str:
        """What the service has written."""
        return self._output.read_text(errors='replace')

    def stop(self) -> None:
        """As ``systemctl stop`` with ``KillMode=mixed`` begins."""
        self.process.send_signal(signal.SIGTERM)
        self._begin_to_stop()

    def until(self, condition: Callable[[], object]) -> None:
        """Serve the service until a condition holds."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            now = time.monotonic()
            left = min(deadline, self._silent_at, self.killed_at) - now
            select.select([self._socket], [], [], max(0.0, min(left, 0.02)))
            self._receive()
            self._act(time.monotonic())
            if time.monotonic() > deadline:
                raise AssertionError(
                    f'not within {DEADLINE} s; {self.state} {self.result}, '
                    f'{self.messages[-20:]}\n{self.output}')

    def until_told(self, text: str) -> None:
        """Serve the service until a message that comes now has a line."""
        known = len(self.messages)
        self.until(lambda: any(text in message.split('\n') for message
                               in self.messages[known:]))

    def until_state(self, *states: str) -> None:
        """Serve the service until it is in one of the states."""
        self.until(lambda: self.state in states)

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()

    def kill(self) -> None:
        """End what is left."""
        self.close()
        if self.state != 'inactive' and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(DEADLINE)

    def _receive(self) -> None:
        while True:
            try:
                data, controls, _, _ = self._socket.recvmsg(
                    8192, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return
            pid = _CREDENTIALS.unpack(controls[0][2])[0]
            if pid == self.process.pid:
                self._obey(data.decode())

    def _obey(self, message: str) -> None:
        self.messages.append(message)
        lines = message.split('\n')
        told = dict(line.split('=', 1) for line in lines)
        if 'STATUS' in told:
            self.status = told['STATUS']
        if 'RELOADING' in told and self.state == 'active':
            int(told['MONOTONIC_USEC'])
            self.state = 'reloading'
        if 'READY' in told and self.state in ('activating', 'reloading'):
            self.state = 'active'
        if 'STOPPING' in told:
            self._begin_to_stop()
        if 'EXTEND_TIMEOUT_USEC' in told:
            extended = time.monotonic() + int(
                told['EXTEND_TIMEOUT_USEC']) / 1_000_000
            if self.killed_at < math.inf:
                self.killed_at = max(self.killed_at, extended)
        if 'READY' in told or 'WATCHDOG' in told:
            self._silent_at = (
                time.monotonic() + self.patience
                if self.patience is not None and self.state == 'active'
                else math.inf)

    def _begin_to_stop(self) -> None:
        if self.state != 'deactivating':
            self.state, self._silent_at = 'deactivating', math.inf
            self.killed_at = time.monotonic() + self.timeout

    def _act(self, now: float) -> None:
        status = self.process.poll()
        if status is not None:
            self._receive_last(status)
        elif now > self._silent_at:
            self._silent_at = math.inf
            self.result = 'watchdog'
            self.process.send_signal(signal.SIGABRT)
        elif now > self.killed_at:
            self.killed_at = math.inf
            self.result = 'timeout'
            self.process.kill()

    def _receive_last(self, status: int) -> None:
        self._receive()
        self.state = 'dead'
        if not self.result:
            self.result = ('success' if status == 0 else 'signal'
                           if status < 0 else 'exit-code')
