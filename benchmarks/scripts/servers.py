"""Servers of all sides, and clients for them that have one form.

The first argument of each script that uses this is the directory that has
execnet and rpyc, the second one that which has bgpy. A client asks a server to
change a number, or to send back some bytes. To be fair to rpyc, it is asked by
a method with plain arguments, since a dict would cost it further trips.
"""

import contextlib
import importlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any, NamedTuple, Protocol
from unittest.mock import patch

HOST = '127.0.0.1'

PATIENCE = 120.0
"""Seconds in which something has to come."""


class Mismatch(Exception):
    """Raised when a side did not do what it was asked for."""


class Client(Protocol):
    """A connection to a server."""

    def change(self) -> int:
        """Add 1 to the number that the server has; returns it."""

    def echo(self, data: bytes) -> Any:
        """Have the server send this back."""

    def close(self) -> None:
        """End the connection."""


class Server(Protocol):
    """A server that runs in another process."""

    pid: int

    def connect(self) -> Client:
        """A new client."""


class RawClient:
    """Sends as many bytes as a request of ours has."""

    MESSAGE = b'x' * 100

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection((HOST, port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._number = 0

    def change(self) -> int:
        self._sock.send(self.MESSAGE)
        if len(self._sock.recv(65536)) != len(self.MESSAGE):
            raise Mismatch('a part of the answer')
        self._number += 1
        return self._number

    def echo(self, data: bytes) -> Any:
        self._sock.sendall(struct.pack('!Q', len(data)))
        self._sock.sendall(data)
        answer = bytearray(len(data))
        rest = memoryview(answer)
        while rest:
            rest = rest[self._sock.recv_into(rest):]
        return answer

    def close(self) -> None:
        self._sock.close()


class ExecnetClient:
    """A channel; all channels are in one gateway."""

    def __init__(self, gateway: Any, making: Any) -> None:
        self._channel = gateway.newchannel()
        making.send(self._channel)
        making.receive()

    def change(self) -> int:
        self._channel.send({'command': 'increase', 'value_change': 1})
        value: int = self._channel.receive()['value']
        return value

    def echo(self, data: bytes) -> Any:
        self._channel.send({'command': 'echo', 'data': data})
        return self._channel.receive()['data']

    def close(self) -> None:
        self._channel.close()


_EXECNET_SERVER = '''
import os
value = 0
def serve(client):
    def call(request):
        global value
        if request['command'] == 'echo':
            client.send({'data': request['data']})
        else:
            value += request['value_change']
            client.send({'value': value})
    client.setcallback(call)
channel.send(os.getpid())
for client in channel:
    serve(client)
    channel.send(None)
'''


class RpycClient:
    """A connection, and the methods of the object at its other end."""

    def __init__(self, port: int) -> None:
        rpyc = importlib.import_module('rpyc')
        self._connection = rpyc.connect(
            HOST, port, config={'sync_request_timeout': PATIENCE})
        # To look up a method is a round trip of its own.
        self._change = self._connection.root.change
        self._echo = self._connection.root.echo

    def change(self) -> int:
        value: int = self._change(1)
        return value

    def echo(self, data: bytes) -> Any:
        return self._echo(data)

    def close(self) -> None:
        self._connection.close()


class ExecuteClient:
    """A client of ours, or of bgpy, which connects anew for each request."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def change(self) -> int:
        value: int = self._client.execute(
            {'command': 'increase', 'value_change': 1},
            await_response=True)['value']
        return value

    def echo(self, data: bytes) -> Any:
        return self._client.execute(
            {'command': 'echo', 'data': data}, await_response=True)['data']

    def close(self) -> None:
        if hasattr(self._client, 'close'):
            self._client.close()


class Found(NamedTuple):
    """A server that was started."""

    pid: int
    connect: Callable[[], Client]


@contextmanager
def serving(side: str) -> Iterator[Server]:
    """The server of a side, until the end of the context."""
    known = {'ours': ours, 'bgpy': _bgpy, 'execnet': _execnet}
    with known[side]() if side in known else _program(side) as server:
        yield server


@contextmanager
def servers(*sides: str) -> Iterator[dict[str, Server]]:
    """One of each. There is one state directory until the end."""
    with private_state(), ExitStack() as stack:
        yield {side: stack.enter_context(serving(side)) for side in sides}


@contextmanager
def private_state() -> Iterator[None]:
    """What our servers keep for the user is kept elsewhere."""
    with TemporaryDirectory(prefix='bench') as directory, patch.dict(
            os.environ, XDG_STATE_HOME=directory):
        yield


@contextmanager
def ours(tls: Any = None) -> Iterator[Server]:
    """Our server, with mutual certificates or without."""
    from benchmarks.scripts import tasks
    from gocept.runner.background import Client, Server
    port = free_port()
    pid = Server(HOST, port, tls=tls).run_background(PATIENCE)
    try:
        with Client(HOST, port, tls=tls) as client:
            client.initialize(
                tasks.init_task, tasks.exec_task, tasks.exit_task)
            yield Found(pid, lambda: ExecuteClient(
                Client(HOST, port, tls=tls, timeout=PATIENCE)))
            client.terminate()
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise


@contextmanager
def _bgpy() -> Iterator[Server]:
    client_class = bgpy_client()
    from benchmarks.scripts import bgpy_tasks as tasks
    port = free_port()
    with subprocess.Popen(
            ['bgpy', 'server', HOST, str(port), '--log-level', 'ERROR'],
            env=os.environ | {'PYTHONPATH': os.getcwd()}) as process:
        client = client_class(HOST, port, log_level='ERROR')
        wait_for_port(port)
        client.initialize(tasks.init_task, tasks.exec_task, tasks.exit_task)
        yield Found(process.pid, partial(ExecuteClient, client))
        client.terminate()


@contextmanager
def _execnet() -> Iterator[Server]:
    """What it is fastest with: one gateway with pipes, and callbacks."""
    sys.path.append(sys.argv[1])
    execnet = importlib.import_module('execnet')
    group = execnet.Group()
    gateway = group.makegateway('popen//execmodel=thread')
    making = gateway.remote_exec(_EXECNET_SERVER)
    try:
        yield Found(making.receive(), partial(ExecnetClient, gateway, making))
    finally:
        group.terminate(1)


@contextmanager
def _program(side: str) -> Iterator[Server]:
    sys.path.append(sys.argv[1])
    with subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.scripts.serving',
             side, sys.argv[1]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            port = int(process.stdout.readline())
            client = RpycClient if side == 'rpyc' else RawClient
            yield Found(process.pid, partial(client, port))
        finally:
            process.stdin.close()
            process.wait(PATIENCE)


def bgpy_client() -> Any:
    """The client of bgpy, whose command can be found from now on."""
    packages = Path(sys.argv[2])
    sys.path.append(str(packages))
    os.environ['PATH'] = f'{packages.parents[2]}/bin:{os.environ["PATH"]}'
    return importlib.import_module('bgpy.client').Client


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server((HOST, 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


def wait_for_port(port: int) -> None:
    """Wait until somebody listens there."""
    import time
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection((HOST, port)).close()
            return
        time.sleep(0.001)
    raise Mismatch(f'nobody listens on port {port}')


def cpu(server: Server) -> tuple[float, float]:
    """Seconds of the processor that we have used, and the server."""
    nanoseconds = 0
    for task in os.scandir(f'/proc/{server.pid}/task'):
        with contextlib.suppress(FileNotFoundError):
            nanoseconds += int(
                Path(task.path, 'schedstat').read_text().split()[0])
    return process_time(), nanoseconds / 1e9
