"""A kernel of its own for a test, and a client that speaks frames by hand."""

import contextlib
import errno
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

import gocept.runner.kernel
from gocept.runner.kernel.client.autostart import code
from gocept.runner.kernel.wire import frames
from gocept.runner.tests.leftovers import check_processes

PATIENCE = 30  # seconds for everything that is waited for

START = os.path.join(
    os.path.dirname(gocept.runner.kernel.__file__), 'start.py')


class Refused(Exception):
    """The daemon answered with an error."""


class RawKernel:
    """A kernel on a Unix socket in a directory of its own."""

    def __init__(self, script=START, prepare=None, **options):
        """`prepare` is a command of Bash that comes before."""
        self.directory = tempfile.mkdtemp(prefix='runner-kernel-')
        self.path = os.path.join(self.directory, 'kernel')
        self.log = os.path.join(self.directory, 'log')
        self.children = []
        self.keeper = 0
        options = {
            'address': self.path, 'log': self.log, 'python': sys.executable,
            'path': code()['path'], **options}
        command = [] if prepare is None else [
            'bash', '-c', f'{prepare}; exec "$@"', 'bash']
        done = subprocess.run(
            [*command, sys.executable, '-I', '-S', script],
            input=json.dumps(options).encode(), capture_output=True,
            timeout=2 * PATIENCE, close_fds=False)
        if done.returncode:
            raise RuntimeError(done.stderr.decode())
        self.keeper = int(done.stdout.split()[1])

    def connect(self, session=None):
        """A new client; waits for a successor of a daemon that has died."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return RawClient(self.path, session)
            except (ConnectionError, FileNotFoundError):
                os.kill(self.keeper, 0)  # nobody else could bring it back
                if time.monotonic() > deadline:
                    raise
                select.select([], [], [], 0.01)

    def kill_daemon(self):
        """Kill the daemon, and return its pid; it is gone by then."""
        with self.connect() as client:
            pid = client.do('status')['pid']
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        return pid

    def read_log(self):
        with open(self.log) as file:
            return file.read()

    def close(self):
        """End the kernel and all its processes."""
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self.directory)
            stack.callback(check_processes, self.directory)
            self._end()

    def _end(self):
        pids = [self.keeper]
        with contextlib.suppress(OSError, Refused), self.connect() as client:
            pids.append(client.do('status')['pid'])
            pids += [each['pid'] for each in client.do(
                'list-processes').values() if each['running']]
            client.do('stop', force=True)
        for pid in pids[2:]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for pid in pids[:2]:
            wait_for_end(pid)


class KernelLayer:
    """One kernel for many tests, each of which has names of its own."""

    kernel = None

    @classmethod
    def setUp(cls):
        cls.kernel = RawKernel()

    @classmethod
    def tearDown(cls):
        cls.kernel.close()

    @classmethod
    def testSetUp(cls):
        pass

    @classmethod
    def testTearDown(cls):
        pass


class KernelCase(unittest.TestCase):
    """A test with a client of the kernel of the layer."""

    layer = KernelLayer

    def setUp(self):
        self.kernel = KernelLayer.kernel
        self.client = self.connect()

    def connect(self):
        client = self.kernel.connect()
        self.addCleanup(client.close)
        return client


def wait_for_end(pid):
    """Wait until a process is gone; kill it if that takes too long."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([fd], [], [], PATIENCE)[0]:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            raise AssertionError(f'process {pid} did not end')
    finally:
        os.close(fd)


class RawClient:
    """One connection."""

    def __init__(self, path, session=None):
        self.session = session or os.urandom(16).hex()
        self.number = 0
        self.rest = b''
        self.others = []
        """Frames that came while an answer was waited for."""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        try:
            self.socket.connect(path)
            self.read_prompt()
            self.socket.sendall(f'frames 1 {self.session}\n'.encode())
            self.greeting = self.read_prompt()
        except BaseException:
            self.socket.close()
            raise

    def read_prompt(self):
        said = b''
        while not said.endswith(b'\n> '):
            data = self.socket.recv(4096)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, said.decode())
            said += data
        return said

    def send(self, op, params, data=b'', number=None):
        if number is None:
            self.number += 1
            number = self.number
        self.socket.sendall(frames.frame(number, [op, params], data))
        return number

    def _exactly(self, size):
        while len(self.rest) < size:
            data = self.socket.recv(1 << 20)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, 'end of stream')
            self.rest += data
        data, self.rest = self.rest[:size], self.rest[size:]
        return data

    def receive(self):
        """The next frame: its number, its content and data."""
        length, size, number = frames.HEADER.unpack(
            self._exactly(frames.HEADER.size))
        return number, json.loads(self._exactly(length)), self._exactly(size)

    def result(self, number):
        """The answer to that request."""
        while True:
            found, content, data = self.receive()
            if found == number and content[0] in ('ok', 'error'):
                if content[0] == 'error':
                    raise Refused(content[1])
                return content[1]
            self.others.append((found, content, data))

    def do(self, op, data=b'', **params):
        """Ask, and wait for the answer."""
        return self.result(self.send(op, params, data))

    def make(self, name, *args, **params):
        """Start a process."""
        return self.do('make-process', name=name, args=[*args], **params)

    def shell(self, name, script, **params):
        """Start a shell."""
        return self.make(name, '/bin/sh', '-c', script, **params)

    def watch(self, *names, **params):
        """Begin to watch; the connection is then for that only."""
        return RawWatch(self, self.do('watch', names=[*names], **params))

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *ignored):
        self.close()


class RawWatch:
    """What a client watches."""

    def __init__(self, client, result):
        self.client = client
        self.lives = result.get('processes', {})
        self.positions = {}
        self.out = {}
        self.err = {}
        self.missing = {}
        self.closed = {}
        self.over = ''
        self.stamps = []

    def read(self):
        """Take in one frame."""
        if self.client.others:
            _, content, data = self.client.others.pop(0)
        else:
            _, content, data = self.client.receive()
        if content[0] == 'over':
            self.over = content[1]
            return
        assert content[0] == 'output', content
        start = 0
        for name, life, kind, stamp, size, offset in content[1]:
            self.stamps.append(stamp)
            if kind == 'closed':
                self.closed[name] = size
            else:
                kept = self.out if kind == 'out' else self.err
                kept[name] = kept.get(name, b'') + data[start:start + size]
                start += size
            self.positions[name] = [life, offset, kind == 'closed']
        for name, size in content[2].items():
            self.missing[name] = self.missing.get(name, 0) + size

    def acknowledge(self, positions=None):
        """Say that all of it was seen."""
        self.client.send('acknowledge', {
            'positions': positions or self.positions}, number=0)

    def read_until(self, condition):
        """Read and acknowledge until it is true."""
        while not condition(self):
            self.read()
            self.acknowledge()

    def read_all(self):
        """Read and acknowledge until the watch is over."""
        self.read_until(lambda watch: watch.over)
        return self
