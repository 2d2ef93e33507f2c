"""A small daemon, in the place of the real one in the tests of the keeper.

It keeps a number and the statuses of its children in memfds. Each connection
brings one line, a command, and gets one line of JSON.
"""

import contextlib
import ctypes
import json
import mmap
import os
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any

from gocept.runner.errors import KernelError
from gocept.runner.kernel.keeper.link import Link, Outcome
from gocept.runner.kernel.keeper.options import Options
from gocept.runner.kernel.keeper.trial import Trial
from gocept.runner.poller.poller import Poller
from gocept.runner.process import procfs
from gocept.runner.waits.source import Source

VERSION = 'fake 1'


class Listener(Source):
    """Gives clients."""

    def __init__(self, fd: int) -> None:
        self.sock = socket.socket(fileno=os.dup(fd))
        self.sock.setblocking(False)

    def fileno(self) -> int:
        return self.sock.fileno()

    def collect(self) -> tuple[Sequence[socket.socket], bool]:
        try:
            client, _ = self.sock.accept()
        except BlockingIOError:
            return (), False
        client.setblocking(True)
        return (client,), False


class Memory:
    """JSON in a memfd, which is whole at each instant but one."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, 1 << 16)

    def get(self) -> Any:
        return json.loads(self._map[:].rstrip(b'\0') or b'null')

    def put(self, value: object) -> None:
        data = json.dumps(value).encode()
        self._map[:len(data) + 1] = data + b'\0'
        self._map[len(data):] = bytes(len(self._map) - len(data))


class Daemon:

    def __init__(self, table: dict[str, int], link: Link,
                 options: Options) -> None:
        self.table = table
        self.link = link
        self.options = options
        self.outcome: Outcome | None = None
        self.poller = Poller()
        self.trial: tuple[Trial, socket.socket] | None = None
        if 'state' not in table:
            fd = os.memfd_create('state')
            os.truncate(fd, 1 << 16)
            link.hold({'state': fd})
            Memory(fd).put({'number': 0, 'statuses': []})
        self.memory = Memory(table['state'])
        self.listener = Listener(table['listen:0'])
        self.poller.register(self.listener, self.serve)
        self.poller.register(link, self.hear)

    def finish(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.poller.wakeup()

    def hear(self, item: tuple[Any, ...], link: object) -> None:
        match item:
            case ('status', pid, code):
                state = self.memory.get()
                if [pid, code] not in state['statuses']:
                    state['statuses'].append([pid, code])
                    self.memory.put(state)
                self.link.known(pid)
            case ('stop',):
                self.link.stop()
                self.finish('ended')
            case ('keeper died',):
                self.finish('become keeper')

    def serve(self, client: socket.socket, listener: object) -> None:
        try:
            line = client.makefile('rb').readline().decode().split(' ', 1)
            reply = getattr(self, 'do_' + line[0].strip())(
                json.loads(line[1]) if line[1:] else None, client)
        except Exception as error:
            reply = f'error: {error!r}'
        if reply is not None:
            self.answer(client, reply)

    def answer(self, client: socket.socket, reply: object) -> None:
        with contextlib.suppress(OSError):
            client.sendall(json.dumps(reply).encode() + b'\n')
        client.close()

    def do_who(self, argument: Any, client: object) -> Any:
        return {'pid': os.getpid(), 'keeper': self.link.keeper,
                'deaths': self.link.deaths, 'version': VERSION,
                'keeper_deaths': self.link.keeper_deaths,
                'options': self.options.to_json()}

    def do_add(self, argument: Any, client: object) -> Any:
        state = self.memory.get()
        state['number'] += 1
        self.memory.put(state)
        return state['number']

    def do_statuses(self, argument: Any, client: object) -> Any:
        return self.memory.get()['statuses']

    def do_sorted_statuses(self, argument: Any, client: object) -> Any:
        return sorted(self.do_statuses(argument, client))

    def do_adopted(self, argument: Any, client: object) -> Any:
        return [pid for pid in procfs.children(self.link.keeper)
                if pid != os.getpid()]

    def do_table(self, argument: Any, client: object) -> Any:
        return {key: os.fstat(fd).st_ino for key, fd in self.table.items()}

    def do_hold(self, key: str, client: object) -> Any:
        fd = os.memfd_create(key)
        self.link.hold({key: fd})
        return os.fstat(fd).st_ino

    def do_hold_many(self, count: int, client: object) -> Any:
        for number in range(count):
            self.do_hold(f'many:{number}', client)
        return len(self.table)

    def do_release(self, keys: list[str], client: object) -> Any:
        descriptors = [self.table[key] for key in keys]
        self.link.release(keys)
        for fd in descriptors:
            os.close(fd)
        return len(self.table)

    def do_spawn(self, argument: Any, client: object) -> Any:
        """A child that ends with 7 on SIGUSR1; with `orphan`, after it has
        left a child that is as long as the pipe is."""
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.setsid()
            signal.signal(signal.SIGUSR1, lambda *ignored: os._exit(7))
            if argument == 'orphan' and not os.fork():
                signal.signal(signal.SIGUSR1, signal.SIG_DFL)
                os.write(write, b'%d' % os.getpid())
            elif argument != 'orphan':
                os.write(write, b'0')
            for fd in range(3, 200):
                with contextlib.suppress(OSError):
                    os.close(fd)
            while True:  # as a signal may come just before a wait begins
                time.sleep(0.05)
        os.close(write)
        other = int(os.read(read, 20))
        os.close(read)
        return [pid, other]

    def do_environment(self, argument: Any, client: object) -> Any:
        with open('/proc/self/cmdline') as file:
            command = file.read().split('\0')[:-1]
        signals = {}
        with open('/proc/self/status') as file:
            for line in file:
                name, _, value = line.partition(':')
                if name in ('SigIgn', 'SigBlk', 'Umask'):
                    signals[name] = int(value, 8 if name == 'Umask' else 16)
        return {
            'environ': dict(os.environ), 'cwd': os.getcwd(),
            'command': command, 'session': os.getsid(0), 'signals': signals,
            'tty': os.open('/dev/tty', os.O_RDWR) if argument else -1,
            'files': {fd: os.readlink(f'/proc/self/fd/{fd}')
                      for fd in os.listdir('/proc/self/fd')
                      if os.path.exists(f'/proc/self/fd/{fd}')
                      or fd in '012'}}

    def do_subreaper(self, argument: Any, client: object) -> Any:
        flag = ctypes.c_int()
        ctypes.CDLL(None).prctl(37, ctypes.byref(flag))
        return flag.value

    def do_stop(self, argument: Any, client: object) -> Any:
        self.link.stop()
        self.finish('ended')
        return 'stopping'

    def do_exit(self, status: int, client: socket.socket) -> Any:
        self.answer(client, 'exiting')
        os._exit(status)

    def do_upgrade(self, config: Any, client: socket.socket) -> Any:
        if self.trial:
            raise KernelError('an upgrade is going on already')

        def end(error: str) -> None:
            self.trial = None
            if error:
                self.answer(client, error)
                return
            self.link.upgrade(config)
            self.finish('ended')
            self.answer(client, 'upgraded')
        self.trial = Trial(self.poller, config, self.options, {
            'state': self.table['state']}, end), client

    def serve_all(self) -> Outcome:
        self.link.ready()
        while self.outcome is None:
            self.poller.poll()
        return self.outcome

    def close(self) -> None:
        self.poller.close()
        self.listener.sock.close()


def run(table: dict[str, int], link: Link, options: Options) -> Outcome:
    daemon = Daemon(table, link, options)
    try:
        return daemon.serve_all()
    finally:
        daemon.close()


def trial(table: dict[str, int], options: Options) -> str:
    state = Memory(table['state']).get()
    if not isinstance(state['number'], int):
        raise KernelError('the state is of another version')
    return VERSION
