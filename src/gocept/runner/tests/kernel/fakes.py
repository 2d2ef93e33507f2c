"""A kernel without processes: it speaks, and a test says what happens."""

import itertools
import pathlib
import queue
import socket
import tempfile
import threading
import time
import unittest
from collections.abc import Callable
from typing import Any

from gocept.runner.errors import KernelError
from gocept.runner.kernel.wire.clients import Clients, Listener
from gocept.runner.kernel.wire.connection import Connection
from gocept.runner.kernel.wire.conversation import Request
from gocept.runner.kernel.wire.frames import OutRecord
from gocept.runner.kernel.wire.limits import Limits
from gocept.runner.kernel.wire.peers import Peers
from gocept.runner.poller import Poller
from gocept.runner.tests.support import DEADLINE

_lives = itertools.count(1)


class FakeProcess:
    """What a process has written, as the kernel keeps it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.life = f'{next(_lives):016x}'
        self.pieces: list[OutRecord] = []
        self.end = 0
        self.begin = 0
        self.status: OutRecord | None = None

    def write(self, data: bytes, kind: str = 'out') -> None:
        self.end += len(data)
        self.pieces.append(OutRecord(
            self.name, self.life, kind, time.time(), data, None, self.end))

    def exit(self, status: int | None = 0) -> None:
        self.status = OutRecord(self.name, self.life, 'closed', time.time(),
                                b'', status, self.end)

    def acknowledge(self, offset: int) -> None:
        self.begin = max(self.begin, offset)
        self.pieces = [
            piece for piece in self.pieces if piece.offset > self.begin]


class FakeWatch:
    """A watch of all that it names, sent at once."""

    def __init__(self, kernel: 'FakeKernel', connection: Connection,
                 places: dict[str, int], params: dict[str, Any]) -> None:
        self.kernel = kernel
        self.connection = connection
        self.places = places
        self.missing: dict[str, int] = {}
        self.ended: set[str] = set()
        self.params = params

    def send(self) -> None:
        records = []
        for name, place in [*self.places.items()]:
            process = self.kernel.processes.get(name)
            if process is None:
                continue
            for piece in process.pieces:
                if piece.offset > place:
                    start = piece.offset - len(piece.data)
                    if start > place:
                        self.missing[name] = (
                            self.missing.get(name, 0) + start - place)
                    records.append(piece._replace(
                        data=piece.data[max(0, place - start):]))
                    place = piece.offset
            self.places[name] = place
            if process.status is not None and name not in self.ended:
                self.ended.add(name)
                records.append(process.status)
        if records or self.missing:
            missing, self.missing = self.missing, {}
            self.connection.send_output(self, records, missing)

    def acknowledge(self, positions: Any) -> None:
        if positions is None:
            positions = {
                name: [self.kernel.processes[name].life, place,
                       name in self.ended]
                for name, place in self.places.items()}
        for name, (life, offset, ended) in positions.items():
            process = self.kernel.processes.get(name)
            if process is None or process.life != life:
                continue
            if not self.params.get('follow'):
                process.acknowledge(offset)
                if ended:
                    del self.kernel.processes[name]
            if ended:
                self.places.pop(name, None)
        self.kernel.acknowledged.append(positions)
        if not self.places:
            self.kernel.watches.remove(self)
            self.connection.finish_watch('Nothing left to watch')
        elif not self.connection.framed:
            self.send()

    def stop(self, positions: Any) -> None:
        self.acknowledge(positions)
        if self in self.kernel.watches:
            self.kernel.watches.remove(self)
            self.connection.finish_watch('Stopped watching')

    def drained(self) -> None:
        pass

    def disconnected(self) -> None:
        if self in self.kernel.watches:
            self.kernel.watches.remove(self)


class FakeKernel:
    """Serves clients in a thread, until it is closed."""

    def __init__(self, address: str | None = None) -> None:
        self.values: dict[str, str] = {}
        self.processes: dict[str, FakeProcess] = {}
        self.watches: list[FakeWatch] = []
        self.acknowledged: list[Any] = []
        self.requests: list[Request] = []
        self.answers: dict[str, tuple[int, Any]] = {}
        self.deaths: list[str] = []
        """After which operations it is to die, with no answer."""
        self.results: dict[str, Any] = {}
        """Answers to further operations."""
        if address is None:
            self.sock = socket.socket()
            self.sock.bind(('127.0.0.1', 0))
            self.place: int | str = self.sock.getsockname()[1]
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.bind(address)
            self.place = address
        self.sock.listen(100)
        self.clients = self._clients()
        self._calls: queue.SimpleQueue[Callable[[], None]] = (
            queue.SimpleQueue())
        self._open = True
        self._poller = Poller()
        self.listener = Listener(self.sock, self.clients)
        self._poller.register(self.listener, lambda *client: None)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _clients(self) -> Clients:
        self._peers = Peers()
        return Clients(self, Limits(), self._peers, '1.0')

    def _run(self) -> None:
        while self._open:
            self._poller.poll()
            while not self._calls.empty():
                self._poller.poll(0)  # first, what was sent before the call
                self._calls.get()()
        self.clients.close()
        self._peers.close()
        self._poller.close()
        self.sock.close()

    def call(self, function: Callable[[], Any]) -> Any:
        """Have the thread of the kernel call it; returns what it returns."""
        results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.put(lambda: results.put(function()))
        self._poller.wakeup()
        return results.get(timeout=DEADLINE)

    def change(self, function: Callable[[], Any]) -> None:
        """Let something happen to processes, and send what is new."""
        def call() -> None:
            function()
            for watch in [*self.watches]:
                watch.send()
        self.call(call)

    def die(self) -> None:
        """Lose all clients, as a kernel that is killed and comes back."""
        self.call(self.clients.close)

    def close(self) -> None:
        def close() -> None:
            self._open = False
        if self._open:
            self.call(close)
            self._thread.join()

    def handle(self, request: Request) -> None:
        self.requests.append(request)
        op, params = request.op, request.params
        known = self.answers.get(request.session)
        if request.id and known is not None and known[0] == request.id:
            request.answer(known[1])
            return
        result = self._result(request, op, params)
        if result is not None:
            result = result[0]
            if request.session and request.id:
                self.answers[request.session] = request.id, result
            if op in self.deaths:
                self.deaths.remove(op)
                self.clients.close()
            else:
                request.answer(result)

    def _result(self, request: Request, op: str, params: Any) -> Any:
        names = params.get('names')
        if op == 'get':
            return [self.values.get(params['name'])]
        if op == 'set':
            if params['value'] is None:
                self.values.pop(params['name'], None)
            else:
                self.values[params['name']] = params['value']
            return [None]
        if op == 'list-values':
            return [self.values]
        if op == 'list-processes':
            return [{name: {'pid': 1, 'running': each.status is None,
                            'started': 1.5, 'life': each.life}
                     for name, each in self.processes.items()
                     if not names or name in names}]
        if op == 'make-process':
            name = params['name']
            process = self.processes.setdefault(name, FakeProcess(name))
            details = {'pid': 1, 'running': True, 'started': 1.5,
                       'life': process.life}
            if not params.get('watch'):
                return [details]
            if op in self.deaths:
                self.deaths.remove(op)
                self.answers[request.session] = request.id, details
                self.clients.close()
                return None
            self._watch(request, [name], details)
            return None
        if op == 'watch':
            found = [name for name in self.processes
                     if name in names or '*' in names]
            if not found:
                raise KernelError('Nothing to watch')
            self._watch(request, found, {'processes': {
                name: self.processes[name].life for name in found}})
            return None
        if op == 'bye':
            return [None]
        if op in self.results:
            return [self.results[op]]
        raise KernelError(f'no operation {op}')

    def _watch(self, request: Request, names: list[str], result: Any) -> None:
        after = request.params.get('after', {})
        places = {}
        ended = set()
        acknowledges = request.params.get('acknowledge', True)
        for name in names:
            process = self.processes[name]
            places[name] = process.begin
            if name in after and after[name][0] == process.life:
                places[name] = max(process.begin, after[name][1])
                if after[name][1] < process.begin:
                    places[name] = after[name][1]
                if not acknowledges and after[name][2]:
                    ended.add(name)
                if acknowledges and not request.params.get('follow'):
                    process.acknowledge(after[name][1])
        watch = FakeWatch(self, request.connection, places, request.params)
        watch.ended = ended
        self.watches.append(watch)
        request.begin_watch(watch, result)
        watch.send()


class TestCase(unittest.TestCase):
    """A directory, in which a fake kernel can listen."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = pathlib.Path(directory.name)

    def fake(self) -> FakeKernel:
        kernel = FakeKernel(str(self.dir / 'kernel'))
        self.addCleanup(kernel.close)
        return kernel
