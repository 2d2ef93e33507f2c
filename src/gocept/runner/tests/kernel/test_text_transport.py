"""Our client with an old kernel: the server of papa 1.0.6 itself."""

import contextlib
import itertools
import os
import random
import select
import socket
import subprocess
import sys
import unittest
from collections.abc import Callable, Iterator

from gocept.runner.kernel import DEVNULL, PIPE, STDOUT, Error, Kernel, Watcher
from gocept.runner.kernel.client.text_transport import TextTransport
from gocept.runner.poller import Poller
from gocept.runner.tests.kernel.fakes import TestCase
from gocept.runner.tests.kernel.interruption import (
    Interruption,
    allow_forgotten,
)
from gocept.runner.tests.support import DEADLINE

try:
    import papa.server
except ImportError:
    papa = None

SERVER = '''
import socket, sys
from papa.server import socket_server
listen = socket.socket.listen
def listen_and_tell(*args):
    listen(*args)
    print('listens', flush=True)
socket.socket.listen = listen_and_tell
socket_server(sys.argv[1])
'''


class GarbageTests(unittest.TestCase):

    def test_what_is_no_output(self) -> None:
        for said in (b'out:p:now:3', b'out:p:1.0:x', b'out:p:1.0:-1',
                     b'out:p:1.0:%d' % 2 ** 40):
            ours, theirs = socket.socketpair()
            with (self.subTest(said), theirs,
                  contextlib.closing(TextTransport(ours, 'here')) as it):
                theirs.sendall(said + b'\n')
                with self.assertRaisesRegex(
                        Error, 'at here has sent what is no output'):
                    it.batch()


@unittest.skipIf(papa is None, 'papa is not installed')
class PapaCase(TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.path = str(self.dir / 'papa')
        self.server = subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-c', SERVER, self.path],
            env=os.environ | {
                'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.addCleanup(self.server.wait)
        self.addCleanup(self.server.kill)
        assert self.server.stdout is not None
        self.addCleanup(self.server.stdout.close)
        self.server.stdout.readline()
        self.kernel = Kernel(self.path, DEADLINE, autostart=False)
        self.addCleanup(self.kernel.close)

    def output_of(self, *args: object, **keywords: object) -> bytes:
        seen = b''
        with self.kernel.make_process(  # type: ignore
                'process', *args, watch_immediately=True, **keywords
                ) as watcher:
            while watcher:
                out, _, _ = watcher.read()
                seen += b''.join(each.data for each in out)
        self.assertEqual({'process': 0}, watcher.exit_code)
        return seen


def texts() -> Iterator[str]:
    """Words of characters that the text protocol may take for its own."""
    characters = ' \\"=\n\t\'a\r\0'
    for size in 1, 2, 3:
        yield from map(''.join, itertools.product(characters, repeat=size))
    source = random.Random(1)
    for _ in range(500):
        yield ''.join(source.choices(characters + '$()é>:', k=8))


class TextTests(PapaCase):

    def test_values_arrive_or_are_refused(self) -> None:
        refused = 0
        for value in texts():
            try:
                self.kernel.set('name', value)
            except Error as error:
                self.assertIn('old one', str(error))
                refused += 1
            else:
                self.assertEqual(value, self.kernel.get('name'))
                self.assertEqual(
                    {'name': value}, self.kernel.list_values())
        self.assertLess(100, refused)
        for value in ('a b', 'a  b', '"a"', 'k=v', 'a\\b', 'é'):
            self.kernel.set('name', value)

    def test_what_no_value_can_be(self) -> None:
        for value in ('', 'a\nb', 'Error: x', '\udcff', ' a', 'a\\'):
            with self.subTest(value=value):
                with self.assertRaisesRegex(Error, 'old one'):
                    self.kernel.set('name', value)
        self.assertEqual({}, self.kernel.list_values())

    def test_arguments_arrive_or_are_refused(self) -> None:
        arrived = []
        for arg in texts():
            if '\0' in arg or '$' in arg:
                continue
            assert self.kernel._transport is not None
            try:
                self.kernel._transport.line('make-process', {  # type: ignore
                    'name': 'process', 'args': ['printf', arg]})
            except Error:
                continue
            arrived.append(arg)
        self.assertLess(100, len(arrived))
        self.assertEqual(
            [each.encode() for each in arrived],
            self.output_of('/usr/bin/printf', ['%s\\0', *arrived]
                           ).split(b'\0')[:-1])

    def test_variables_arrive_or_are_refused(self) -> None:
        env = {}
        for number, value in enumerate(texts()):
            if '\0' in value:
                continue
            assert self.kernel._transport is not None
            try:
                self.kernel._transport.line('make-process', {  # type: ignore
                    'name': 'process', 'args': ['env'],
                    'env': {'a': value}})
            except Error:
                continue
            env[f'V{number}'] = value
        env['EMPTY'] = ''
        self.assertIn('a\\', env.values())  # in quotes
        seen = dict(each.split(b'=', 1) for each in self.output_of(
            '/usr/bin/env', '-0', env).split(b'\0')[:-1])
        self.assertEqual(
            {key.encode(): value.encode() for key, value in env.items()},
            seen)

    def test_names(self) -> None:
        for name in ('a b', 'a\nb', 'a\tb', ' ', '>'):
            with self.assertRaisesRegex(Error, 'the name'):
                self.kernel.set(name, '1')
        self.kernel.set('a:b', '1')
        self.assertEqual('1', self.kernel.get('a:b'))
        with self.assertRaisesRegex(Error, "the name 'a:b'"):
            self.kernel.make_process('a:b', '/bin/true')

    def test_what_is_lacking(self) -> None:
        kernel = self.kernel
        for call in (
                lambda: kernel.make_process('p', '/bin/true', stdin=PIPE),
                lambda: kernel.make_process('p', 'true', overflow='block'),
                lambda: kernel.make_process('p', 'a=b'),
                lambda: kernel.make_process('p', 'a', rlimits={'cpu': (1, 2)}),
                lambda: kernel.follow_processes('p'),
                lambda: kernel.watch_processes('p', after={'p': ('a', 1)}),
                lambda: kernel.write_process('p', b'1'),
                kernel.status, kernel.stop, kernel.upgrade):
            with self.assertRaisesRegex(Error, 'old one'):
                call()
        self.assertEqual({}, kernel.list_processes())


class KernelTests(PapaCase):

    def test_sockets(self) -> None:
        made = self.kernel.make_socket('web')
        self.assertEqual(
            {'family': 'inet', 'type': 'stream', 'backlog': 5,
             'host': '127.0.0.1'},
            {key: made[key] for key in ('family', 'type', 'backlog', 'host')})
        self.assertIsInstance(made['port'], int)
        self.assertIsInstance(made['fileno'], int)
        self.assertEqual({'web': made}, self.kernel.list_sockets('w*'))
        path = str(self.dir / 'with a space')
        self.kernel.make_socket('unix', path=path, umask=0o77)
        self.assertEqual(path, self.kernel.list_sockets()['unix']['path'])
        with self.assertRaises(Error):
            self.kernel.make_socket('web', backlog=6)
        self.assertEqual(
            f'{made["fileno"]} {made["port"]}\n'.encode(),
            self.output_of('/bin/echo', ('$(socket.web.fileno)',
                                         '$(socket.web.port)')))
        self.assertTrue(self.kernel.remove_sockets('web', 'unix'))
        with self.assertRaises(Error):
            self.kernel.remove_sockets('web')

    def test_processes(self) -> None:
        made = self.kernel.make_process(
            'p', '/bin/sh', ('-c', 'echo pid=1 shell=x; exec sleep 60'),
            working_dir='/', rlimits={'NOFILE': 100}, bufsize='2m',
            stdout=PIPE, stderr=STDOUT)
        assert isinstance(made, dict)
        self.addCleanup(os.kill, made['pid'], 9)
        self.assertEqual({'p': made}, self.kernel.list_processes())
        self.assertEqual("/bin/sh -c echo pid=1 shell=x; exec sleep 60",
                         made['args'])
        self.assertIs(True, made['running'])
        self.assertIsInstance(made['started'], float)
        self.assertTrue(self.kernel.remove_processes('p'))

    def test_streams(self) -> None:
        script = 'echo out; echo err >&2'
        self.assertEqual(b'out\n', self.output_of(
            None, ['/bin/sh', '-c', script], stderr=DEVNULL))
        self.assertEqual(b'', self.output_of(
            '/bin/sh', ['-c', script], stdout=DEVNULL))
        self.assertEqual(b'', self.output_of(
            '/bin/sh', ['-c', script], bufsize=0))

    def talker(self) -> Callable[[], object]:
        """Start a process which writes two times; returns what lets it go on.
        """
        fifo = self.dir / 'fifo'
        os.mkfifo(fifo)
        self.kernel.make_process('p', '/bin/sh', (
            '-c', f'echo 1; read x < {fifo}; echo 2 >&2; exit 3'))
        return lambda: fifo.write_text('')

    def test_watch(self) -> None:
        fd = self.kernel.fileno()
        go_on = self.talker()
        watcher = self.kernel.watch_processes('p')
        self.assertEqual(fd, watcher.fileno())
        seen = []
        while watcher:
            self.assertTrue(select.select([watcher], [], [], DEADLINE)[0])
            self.assertTrue(watcher.ready)
            out, err, closed = watcher.read()  # type: ignore
            seen += [each.data for each in (*out, *err, *closed)]
            # An old kernel sends nothing more before.
            watcher.acknowledge()
            if seen == [b'1\n']:
                go_on()
        self.assertEqual([b'1\n', b'2\n', 3], seen)
        self.assertEqual({'p': 3}, watcher.exit_code)
        self.assertEqual({}, watcher.missing)
        self.assertEqual(fd, self.kernel.fileno())
        self.assertEqual({}, self.kernel.list_processes())

    def test_an_interrupted_read(self) -> None:
        allow_forgotten(self)
        self.kernel.make_process('p', '/bin/sh', ('-c', 'echo 1; exit 3'))
        for number in itertools.count():
            watcher = self.kernel.watch_processes('p')
            with Interruption(number) as interruption:
                watcher.read()
            if not interruption.done:
                break
            try:
                output = watcher.read()
            except Error as error:
                self.assertRegex(str(error), 'has interrupted .* watch again')
                self.assertFalse(watcher)
            else:
                assert output is not None
                self.assertEqual(b'1\n', output[0][0].data)
                watcher.close(acknowledge=False)
        self.assertGreater(number, 20)
        watcher.close()

    def test_closing_a_watcher(self) -> None:
        made = self.kernel.make_process('p', '/bin/cat', '/dev/zero')
        assert isinstance(made, dict)
        self.addCleanup(os.kill, made['pid'], 9)
        watcher = self.kernel.watch_processes('p')
        watcher.read()
        watcher.close()
        self.assertIsNotNone(self.kernel.fileno())
        watcher = self.kernel.watch_processes('p')
        watcher.close()  # nothing was read
        self.assertIsNone(self.kernel.fileno())
        self.assertIn('p', self.kernel.list_processes())

    def test_errors(self) -> None:
        for call in (lambda: self.kernel.watch_processes('p'),
                     lambda: self.kernel.make_process(
                         'p', '/no/such/program', watch_immediately=True),
                     lambda: self.kernel.remove_processes('p'),
                     lambda: self.kernel.remove_values('*')):
            with self.assertRaises(Error):
                call()
        self.assertIsNone(self.kernel.get('a'))

    def test_poller(self) -> None:
        watcher = self.kernel.make_process(
            'p', '/bin/echo', '1', watch_immediately=True)
        assert isinstance(watcher, Watcher)
        with Poller() as poller, watcher:
            poller.register(watcher)
            (item, _), *_ = poller.poll(DEADLINE)  # the end may come with it
            self.assertEqual(b'1\n', item[0][0].data)

    def test_a_poller_acknowledges(self) -> None:
        go_on = self.talker()
        with Poller() as poller, self.kernel.watch_processes('p') as watcher:
            poller.register(watcher)
            [(item, _)] = poller.poll(DEADLINE)
            self.assertEqual([b'1\n'], [each.data for each in item[0]])
            go_on()
            seen = []
            while 'p' not in watcher.exit_code:
                results = poller.poll(DEADLINE)
                self.assertTrue(results)
                for (_, err, closed), _ in results:
                    seen += [each.data for each in (*err, *closed)]
            self.assertEqual([b'2\n', 3], seen)

    def test_a_pause_goes_on_when_an_old_kernel_has_more(self) -> None:
        go_on = self.talker()
        with Poller() as poller, self.kernel.watch_processes('p') as watcher:
            poller.register(watcher)
            seen = []
            while 'p' not in watcher.exit_code:
                self.assertTrue(poller.pause(DEADLINE))
                for (out, err, closed), _ in poller.poll(0):
                    seen += [each.data for each in (*out, *err, *closed)]
                    if seen == [b'1\n']:
                        go_on()
            self.assertEqual([b'1\n', b'2\n', 3], seen)

    def test_the_kernel_is_gone(self) -> None:
        watcher = self.kernel.make_process(
            'p', '/bin/sleep', '60', watch_immediately=True)
        assert isinstance(watcher, Watcher)
        # With a connection of its own.
        pid = self.kernel.list_processes()['p']['pid']
        self.addCleanup(os.kill, pid, 9)
        self.server.kill()
        with self.assertRaisesRegex(Error, 'has closed the connection'):
            watcher.read()
        self.assertFalse(watcher)
        with self.assertRaisesRegex(Error, 'not known whether'):
            self.kernel.make_socket('a')

    def test_exit_if_idle(self) -> None:
        self.kernel.set('a', '1')
        self.assertIs(False, self.kernel.exit_if_idle())
        self.kernel.remove_values('a')
        self.assertIs(True, self.kernel.exit_if_idle())
        self.assertEqual(0, self.server.wait(DEADLINE))
