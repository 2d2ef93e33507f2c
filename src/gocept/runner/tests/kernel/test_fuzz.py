"""Clients that send anything, or stop anywhere, and one that is right."""

import contextlib
import itertools
import os
import re
import secrets
import signal
import socket
import struct
import unittest
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from gocept.runner.kernel import STDOUT, Error, Kernel
from gocept.runner.kernel.wire.frames import Reader, frame
from gocept.runner.tests.kernels import Daemon, end, wait_until_ended
from gocept.runner.tests.victims import until

quick = settings(deadline=None, derandomize=True, max_examples=60,
                 suppress_health_check=[*HealthCheck])

GREETED = b'\n> '

COMMANDS = (
    b'set a 1\n'
    b'get a\n'
    b'l v\n'
    b'\n'
    b'nothing like that\n'
    b'set b two\\ words and more\n'
    b'l v a b\n'
    b'm s s path=%s\n'
    b'm p p env.A=b\\ c /bin/echo x\\ y\n'
    b'r p p\n'
    b'w p ended\n'
    b'\n'
    b'r s s\n'
    b'r v a b\n'
    b'q\n')
"""With a place for the path of a socket."""

CHANGING = re.compile(rb'(?<=pid=)\d+|(?<=started=)[\d.]+|(?<=fileno=)\d+|'
                      rb'(?<=ended:)[\d.]+|\r+(?=\n)')
"""With what fills the first batch, as times are not of one length."""


class FuzzTestCase(unittest.TestCase):
    """One daemon for all examples."""

    def setUp(self) -> None:
        self.daemon = Daemon(self)
        self.kernel = self.enterContext(self.daemon.kernel())
        self.descriptors = self.count_descriptors()

    def count_descriptors(self) -> int:
        """How many the daemon has open."""
        return len(os.listdir(f'/proc/{self.kernel.status()["pid"]}/fd'))

    def assert_unimpressed(self) -> None:
        """It answers, and nothing is left of other clients."""
        self.kernel.set('fuzz', 'x')
        self.assertEqual('x', self.kernel.get('fuzz'))
        self.kernel.set('fuzz', None)
        until(lambda: self.count_descriptors() <= self.descriptors)

    @contextlib.contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """A client that was greeted."""
        with self.daemon.connect() as sock:
            greeting = b''
            while not greeting.endswith(GREETED):
                greeting += received(sock)
            yield sock

    def talk(self, *pieces: bytes) -> bytes:
        """Send one piece after the other; returns all that is answered."""
        with self.connected() as sock:
            for piece in pieces:
                sock.sendall(piece)
                self.kernel.get('none')  # the piece has been seen by then
            sock.shutdown(socket.SHUT_WR)
            return b''.join(iter(lambda: received(sock), b''))


def received(sock: socket.socket) -> bytes:
    """What has come; nothing if it was closed."""
    try:
        return sock.recv(65536)
    except ConnectionError:
        return b''


class GarbageTests(FuzzTestCase):

    @quick
    @given(st.lists(st.binary(max_size=300), max_size=5))
    @example([b'\0' * 300])
    @example([b'frames 1 ' + b'0' * 32 + b'\n', b'\xff' * 100])
    @example([b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'])
    def test_any_bytes(self, pieces: list[bytes]) -> None:
        self.send_and_leave(pieces)

    @quick
    @given(st.lists(st.sampled_from(
        [word for word in COMMANDS.decode().replace('\n', ' \n ').split(' ')
         if '%' not in word]
        + ['frames 1 ' + 'a' * 32, '=', 'x=', '=x', 'env.', 'rlimit.x=1',
           'watch=1', '$(socket.', '*', '\\', 'bufsize=-1', 'uid=nobody_']),
        max_size=20))
    def test_words_in_any_order(self, words: list[str]) -> None:
        self.send_and_leave([' '.join(words).encode()])
        self.clear()

    @settings(quick, max_examples=30)
    @given(st.lists(st.tuples(
        st.integers(0, 2 ** 64 - 1),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5)
            | st.floats(allow_nan=False),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                st.sampled_from(['name', 'names', 'value', 'args', 'env',
                                 'path', 'follow', 'after', 'x']),
                inner, max_size=3), max_leaves=6)
        | st.tuples(st.sampled_from(
            ['get', 'set', 'list-values', 'make-socket', 'make-process',
             'watch', 'acknowledge', 'unwatch', 'write', 'close-stdin', 'bye',
             'ping', 'remove-sockets', 'remove-processes', 'nothing']),
            st.dictionaries(
                st.sampled_from(['name', 'names', 'value', 'args', 'env',
                                 'path', 'follow', 'after', 'positions']),
                st.none() | st.booleans() | st.integers()
                | st.text(max_size=3)
                | st.lists(st.text(max_size=3), max_size=2)
                | st.dictionaries(st.text(max_size=3),
                                  st.lists(st.integers(), max_size=3),
                                  max_size=2), max_size=5)),
        st.binary(max_size=20)), max_size=5))
    def test_frames_with_any_content(
            self, requests: list[tuple[int, Any, bytes]]) -> None:
        self.send_and_leave([self.framed()] + [
            frame(*request) for request in requests])
        self.clear()

    def framed(self) -> bytes:
        return b'frames 1 %s\n' % secrets.token_hex(16).encode()

    def send_and_leave(self, pieces: list[bytes]) -> None:
        with self.connected() as sock:
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    sock.sendall(piece)
        self.assert_unimpressed()

    def clear(self) -> None:
        """Remove what was made by chance."""
        for name, each in self.kernel.list_processes().items():
            with contextlib.suppress(Error):
                if each['running']:
                    end(each['pid'])
                self.kernel.remove_processes(name)
        for name in self.kernel.list_sockets():
            self.kernel.remove_sockets(name)
        for name in self.kernel.list_values():
            self.kernel.set(name, None)
        until(lambda: not self.kernel.list_processes())
        self.descriptors = self.count_descriptors()

    def test_frames_that_are_too_long(self) -> None:
        for sizes in (2 ** 32 - 1, 0), (0, 2 ** 32 - 1), (2 ** 31, 2 ** 31):
            self.send_and_leave(
                [self.framed(), struct.pack('!IIQ', *sizes, 1), b'x' * 100])

    def test_json_that_is_nested_deeply(self) -> None:
        body = b'[' * 100_000
        self.send_and_leave([
            self.framed(), struct.pack('!IIQ', len(body), 0, 1) + body])

    def test_line_of_ten_megabytes(self) -> None:
        before = self.memory()
        with self.connected() as sock:
            with contextlib.suppress(ConnectionError):
                for _ in range(160):
                    sock.sendall(b'x' * 65536)
                    self.kernel.get('none')
            answer = received(sock)
        self.assertTrue(answer.startswith(b'Error: '), answer)
        self.assertEqual(1, answer.count(b'\n'), answer)
        self.assert_unimpressed()
        self.assertLess(self.memory() - before, 8 << 20)

    def memory(self) -> int:
        """Bytes of the daemon."""
        pid = self.kernel.status()['pid']
        with open(f'/proc/{pid}/status') as status:
            for line in status:
                if line.startswith('VmRSS:'):
                    return int(line.split()[1]) << 10
        raise AssertionError('a daemon without memory')

    def test_client_that_never_reads(self) -> None:
        self.kernel.set('big', 'x' * 100_000)
        before = self.memory()
        with self.connected() as sock:
            sock.settimeout(0.01)
            with contextlib.suppress(ConnectionError, TimeoutError):
                for _ in range(1000):
                    sock.sendall(b'get big\n' * 100)
                    self.kernel.get('none')
            self.assertLess(self.memory() - before, 64 << 20)
            self.assertEqual('x' * 100_000, self.kernel.get('big'))
        self.kernel.set('big', None)
        self.assert_unimpressed()


class SplitTests(FuzzTestCase):
    """What is answered does not depend on how it was cut."""

    def commands(self) -> bytes:
        return COMMANDS % os.fsencode(f'{self.daemon.directory}/s')

    def answer(self, *pieces: bytes) -> bytes:
        """Without what is another one each time."""
        self.kernel.make_process(
            'ended', '/bin/echo', ('x y',), stderr=STDOUT)
        until(lambda: not self.kernel.list_processes('ended')[
            'ended']['running'])
        return CHANGING.sub(b'', self.talk(*pieces))

    def test_text_cut_at_every_byte(self) -> None:
        commands = self.commands()
        expected = self.answer(commands)
        self.assertIn(b'x y', expected)
        for at in range(1, len(commands)):
            with self.subTest(at=at):
                self.assertEqual(
                    expected, self.answer(commands[:at], commands[at:]))

    def test_text_byte_by_byte(self) -> None:
        commands = self.commands()
        self.assertEqual(self.answer(commands), self.answer(
            *(commands[at:at + 1] for at in range(len(commands)))))

    def requests(self) -> tuple[bytes, bytes]:
        """A line that asks for frames, and frames."""
        session = secrets.token_hex(16).encode()
        return b'frames 1 %s\n' % session, b''.join([
            frame(1, ['set', {'name': 'a', 'value': 'x\ny'}]),
            frame(2, ['get', {'name': 'a'}]),
            frame(3, ['nothing', {}]),
            frame(4, ['list-values', {'names': []}]),
            frame(5, ['remove-values', {'names': ['a']}]),
            frame(0, ['bye', {}])])

    def test_frames_cut_at_every_byte(self) -> None:
        line, requests = self.requests()
        expected = self.frames(self.talk(line, requests))
        self.assertEqual([1, 2, 3, 4, 5], [number for number, _ in expected])
        self.assertEqual(['ok', 'x\ny'], expected[1][1])
        for at in range(1, len(line) + len(requests)):
            with self.subTest(at=at):
                line, requests = self.requests()
                both = line + requests
                self.assertEqual(expected, self.frames(
                    self.talk(both[:at], both[at:])))

    def frames(self, data: bytes) -> list[tuple[int, Any]]:
        """Numbers and answers."""
        line, _, rest = data.partition(GREETED)
        self.assertTrue(line.startswith(b'frames 1 '), line)
        return [(each.number, each.value) for each in Reader().feed(rest)]


class AbortTests(FuzzTestCase):
    """Of a client that leaves, complete commands are done, in order.

    Its last ones may get lost, as nobody waits for their answers.
    """

    def leave(self, data: bytes, *, abruptly: bool) -> dict[str, str]:
        """Send that, and close the connection at once; returns the values."""
        with self.connected() as sock:
            sock.sendall(data)
            if abruptly:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                struct.pack('ii', 1, 0))
        until(lambda: self.count_descriptors() <= self.descriptors + bool(
            self.kernel.list_sockets()))
        found = self.kernel.list_values()
        self.kernel.remove_values('a', 'b')
        for name in self.kernel.list_sockets():
            self.kernel.remove_sockets(name)
        self.assert_unimpressed()
        return found

    def test_at_every_byte_of_text(self) -> None:
        commands = b'set a 1\nset b 2\nm s s\nr s s\nset a 3\n'
        states = [{}, {'a': '1'}, {'a': '1', 'b': '2'},
                  {'a': '1', 'b': '2'}, {'a': '1', 'b': '2'},
                  {'a': '3', 'b': '2'}]
        for at, abruptly in itertools.product(
                range(len(commands) + 1), (False, True)):
            with self.subTest(at=at, abruptly=abruptly):
                found = self.leave(commands[:at], abruptly=abruptly)
                self.assertIn(found, states[:commands[:at].count(b'\n') + 1])

    def test_at_every_byte_of_frames(self) -> None:
        whole = [frame(1, ['set', {'name': 'a', 'value': '1'}]),
                 frame(2, ['set', {'name': 'b', 'value': '2'}])]
        states = [{}, {'a': '1'}, {'a': '1', 'b': '2'}]
        for at in range(sum(map(len, whole)) + 1):
            with self.subTest(at=at):
                line = b'frames 1 %s\n' % secrets.token_hex(16).encode()
                found = self.leave(line + b''.join(whole)[:at], abruptly=False)
                complete = (at >= len(whole[0])) + (
                    at == sum(map(len, whole)))
                self.assertIn(found, states[:complete + 1])

    def test_while_it_watches(self) -> None:
        self.kernel.make_process(
            'p', 'sh', ('-c', 'echo hello; exec sleep 1000'),
            env={'PATH': os.environ['PATH']})
        until(lambda: self.kernel.list_processes()['p']['buffered'])
        self.descriptors = self.count_descriptors()
        for at in range(len(b'w p p\n\n') + 1):
            for abruptly in (False, True):
                self.leave(b'w p p\n'[:at], abruptly=abruptly)
                self.assert_unimpressed()
        with self.kernel.watch_processes('p') as watcher:
            self.assertEqual([b'hello\n'],
                             [each.data for each in watcher.read()[0]])


NAMES = ('a', 'a.b', 'a.c', 'ü')

names = st.sampled_from(NAMES)

values = st.text(st.characters(exclude_categories=()), min_size=1, max_size=8)

lines = st.lists(st.binary(max_size=30), max_size=4)


class Model(RuleBasedStateMachine):
    """What a kernel does, beside what it should do."""

    daemon: Daemon

    @initialize()
    def begin(self) -> None:
        self.clients = [self.daemon.kernel() for _ in range(2)]
        self.values: dict[str, str] = {}
        self.sockets: dict[str, int] = {}
        self.processes: dict[str, tuple[bytes, int]] = {}
        """What each writes, and its status."""

    def teardown(self) -> None:
        with self.daemon.kernel() as kernel:
            for name in kernel.list_values():
                kernel.set(name, None)
            for name in kernel.list_sockets():
                kernel.remove_sockets(name)
            for name in kernel.list_processes():
                kernel.remove_processes(name)
        for client in self.clients:
            client.close()

    @property
    def client(self) -> Kernel:
        """Now one, now the other."""
        self.clients.reverse()
        return self.clients[0]

    @rule(name=names, value=values)
    def set_value(self, name: str, value: str) -> None:
        self.client.set(name, value)
        self.values[name] = value

    @rule(name=names)
    def clear_value(self, name: str) -> None:
        self.client.set(name, None)
        self.values.pop(name, None)

    @rule(name=names)
    def get_value(self, name: str) -> None:
        assert self.client.get(name) == self.values.get(name)

    @rule(prefix=st.sampled_from(['a', 'a.', 'ü']))
    def remove_values(self, prefix: str) -> None:
        self.client.remove_values(f'{prefix}*')
        for name in list(self.values):
            if name.startswith(prefix):
                del self.values[name]

    @rule(name=names)
    def make_socket(self, name: str) -> None:
        port = self.client.make_socket(name)['port']
        assert self.sockets.setdefault(name, port) == port

    @rule(name=names)
    def make_other_socket(self, name: str) -> None:
        if name in self.sockets:
            with self.refused():
                self.client.make_socket(name, backlog=77)

    @rule(name=names)
    def remove_socket(self, name: str) -> None:
        if name in self.sockets:
            self.client.remove_sockets(name)
            del self.sockets[name]
        else:
            with self.refused():
                self.client.remove_sockets(name)

    @contextlib.contextmanager
    def refused(self) -> Iterator[None]:
        try:
            yield
        except Error:
            return
        raise AssertionError('that was not refused')

    @rule(name=names, output=lines, status=st.integers(0, 255))
    def make_process(self, name: str, output: list[bytes], status: int,
                     ) -> None:
        data = b'\n'.join(output)
        script = ''.join(f'\\{byte:03o}' for byte in data)
        make = {'executable': 'sh', 'args': (
            '-c', f"printf '%b' '{script}'; exit {status}".replace(
                '\\', '\\0')), 'env': {'PATH': os.environ['PATH']}}
        wanted = (data, status)
        if self.processes.get(name, wanted) != wanted:
            with self.refused():
                self.client.make_process(name, **make)
        else:
            self.client.make_process(name, **make)
            self.processes[name] = wanted

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), leaves=st.booleans())
    def read_process(self, data: Any, leaves: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.processes)))
        if leaves:  # nothing of what it has seen is acknowledged
            with self.daemon.connect() as sock:
                sock.sendall(f'w p {name}\n'.encode())
                seen = b''
                while not seen.endswith(b'] '):
                    seen += received(sock)
        found, statuses = b'', []
        with self.client.watch_processes(name) as watcher:
            while watcher:
                out, _, closed = watcher.read()
                found += b''.join(each.data for each in out)
                statuses += [each.data for each in closed]
        assert (found, statuses) == (
            self.processes[name][0], [self.processes[name][1]])
        del self.processes[name]

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def remove_process(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.processes)))
        self.client.remove_processes(name)
        del self.processes[name]
        until(lambda: name not in self.client.list_processes())

    @rule(garbage=st.binary(max_size=50))
    def send_garbage(self, garbage: bytes) -> None:
        with self.daemon.connect() as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(b'?' + garbage.replace(b'\n', b'') + b'\n')

    @rule()
    def kill_daemon(self) -> None:
        pid = self.client.status()['pid']
        os.kill(pid, signal.SIGKILL)
        wait_until_ended(pid)

    @rule(name=names)
    def kill_keeper(self, name: str) -> None:
        keeper = self.client.status()['keeper']
        os.kill(keeper, signal.SIGKILL)
        self.make_socket(name)  # of which a keeper has to know
        until(lambda: self.client.status()['keeper'] != keeper)

    @invariant()
    def all_is_there(self) -> None:
        client = self.client
        assert client.list_values() == self.values
        assert {name: each['port'] for name, each
                in client.list_sockets().items()} == self.sockets
        assert {*client.list_processes()} == {*self.processes}


class ModelTests(unittest.TestCase):

    def test_kernel_does_what_the_model_does(self) -> None:
        case = type('Case', (Model,), {'daemon': Daemon(self)}).TestCase
        case.settings = settings(
            quick, max_examples=15, stateful_step_count=25)
        case('runTest').debug()
