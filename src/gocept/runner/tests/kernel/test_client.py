import contextlib
import errno
import gc
import os
import pathlib
import socket
import subprocess
import sys
import threading
import unittest
from unittest import mock

import zope.interface.verify

from gocept.runner.errors import (
    KernelError,
    KernelNotRunning,
    KernelRefused,
    WriteBufferFull,
)
from gocept.runner.interfaces import IKernel
from gocept.runner.kernel import (
    DEVNULL,
    PIPE,
    STDOUT,
    Error,
    Kernel,
    set_default_connection_timeout,
    set_default_path,
    set_default_port,
)
from gocept.runner.kernel.client.address import Address
from gocept.runner.kernel.client.autostart import code
from gocept.runner.kernel.client.defaults import Defaults, defaults
from gocept.runner.kernel.daemon.version import VERSION
from gocept.runner.tests.kernel.fakes import FakeKernel, TestCase
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import Deadline


class KernelCase(TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.daemon = self.fake()
        self.kernel = Kernel(self.daemon.place, DEADLINE, autostart=False)
        self.addCleanup(self.kernel.close)

    def last(self) -> object:
        return self.daemon.requests[-1].params


class RequestTests(KernelCase):

    def test_interface(self) -> None:
        zope.interface.verify.verifyObject(IKernel, self.kernel)

    def test_who_removes_all_has_to_say_so(self) -> None:
        for remove, noun in ((self.kernel.remove_processes, 'processes'),
                             (self.kernel.remove_sockets, 'sockets')):
            with self.assertRaisesRegex(Error, rf'name the {noun}.*"\*"'):
                remove(*[])
        self.assertFalse(self.daemon.requests)

    def test_a_refusal_is_an_error_itself(self) -> None:
        with self.assertRaises(Error) as caught:
            self.kernel.remove_values('*')
        self.assertIs(Error, type(caught.exception))
        self.assertTrue(caught.exception.__suppress_context__)

    def test_bytes_are_written(self) -> None:
        with self.assertRaisesRegex(TypeError, "not text: encode 'abc'"):
            self.kernel.write_process('a', 'abc')  # type: ignore[arg-type]
        self.assertFalse(self.daemon.requests)

    def test_values_of_any_text(self) -> None:
        for value in ('1', '', 'a\nb', ' a  b ', '\\', '"', '\0', 'Error: x',
                      '\udcff', '\ud800', 'ä€𝄞', 'k=v'):
            with self.subTest(value=value):
                self.kernel.set('name', value)
                self.assertEqual(value, self.kernel.get('name'))
        self.kernel.set('name')
        self.assertIsNone(self.kernel.get('name'))

    def test_values_are_text(self) -> None:
        with self.assertRaisesRegex(TypeError, 'text'):
            self.kernel.set('name', 1)  # type: ignore[arg-type]

    def test_a_name_is_needed(self) -> None:
        for call in (lambda: self.kernel.set('', '1'),
                     lambda: self.kernel.get(''),
                     lambda: self.kernel.make_socket(''),
                     lambda: self.kernel.make_process('', 'true')):
            with self.assertRaisesRegex(Error, 'name'):
                call()

    def test_names_are_handed_on(self) -> None:
        self.daemon.results = {'list-sockets': {}, 'remove-sockets': None}
        self.assertEqual({}, self.kernel.list_sockets('a', 'b.*'))
        self.assertEqual({'names': ['a', 'b.*']}, self.last())
        self.assertIs(True, self.kernel.remove_sockets('a'))

    def test_errors_of_the_kernel(self) -> None:
        with self.assertRaisesRegex(Error, 'no operation list-sockets'):
            self.kernel.list_sockets()
        self.assertTrue(issubclass(Error, RuntimeError))
        self.assertIsNone(self.kernel.get('a'))  # the connection goes on

    def test_fileno_and_close(self) -> None:
        fd = self.kernel.fileno()
        assert fd is not None
        os.fstat(fd)
        self.kernel.close()
        self.kernel.close()
        self.assertIsNone(self.kernel.fileno())
        self.assertIsNone(self.kernel.get('a'))
        self.assertIsNotNone(self.kernel.fileno())

    def test_close_ends_the_session(self) -> None:
        session = self.daemon.call(lambda: [
            each.session for each in self.daemon.clients._connections])
        self.kernel.set('a', 'b')
        self.kernel.close()
        self.kernel.get('a')
        byes = [each for each in self.daemon.requests if each.op == 'bye']
        self.assertEqual([0], [each.id for each in byes])
        self.assertEqual(session, [each.session for each in byes])
        self.assertNotEqual(session, [self.daemon.requests[-1].session])

    def test_what_is_left_open_is_a_warning(self) -> None:
        def leave() -> None:
            Kernel(self.daemon.place, autostart=False)
        with self.assertWarnsRegex(ResourceWarning, 'unclosed'):
            leave()
            gc.collect()

    def test_several_threads(self) -> None:
        failures = []

        def run(number: int) -> None:
            for count in range(50):
                value = f'{number}.{count}'
                self.kernel.set(f'name{number}', value)
                if self.kernel.get(f'name{number}') != value:
                    failures.append(value)
        threads = [threading.Thread(target=run, args=(number,))
                   for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([], failures)

    def test_a_forked_child_has_its_own_connection(self) -> None:
        self.kernel.set('a', '1')
        pid = os.fork()
        if not pid:
            status = 1
            try:
                self.kernel.set('a', '2')
                status = 0 if self.kernel.get('a') == '2' else 2
            finally:
                os._exit(status)
        self.assertEqual((pid, 0), os.waitpid(pid, 0))
        self.assertEqual('2', self.kernel.get('a'))
        self.assertEqual(2, len({
            each.session for each in self.daemon.requests}))

    def test_a_signal_handler_leaves_no_half_answer(self) -> None:
        with mock.patch('gocept.runner.kernel.client.frame_transport.decode',
                        side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                self.kernel.get('a')
        self.kernel.set('a', '1')
        self.assertEqual('1', self.kernel.get('a'))

    def test_write(self) -> None:
        self.daemon.results = {'write': None, 'close-stdin': None}
        self.kernel.write_process('p', bytearray(b'a\0'))
        self.assertEqual(b'a\0', self.daemon.requests[-1].data)
        self.kernel.close_stdin('p')
        self.assertEqual({'name': 'p'}, self.last())

    def test_more_than_the_kernel_takes(self) -> None:
        for size in 20_000_000, 100_000_000:
            with self.assertRaisesRegex(Error, '--limit frame='):
                self.kernel.write_process('p', bytes(size))
        self.assertIsNone(self.kernel.get('a'))

    def test_write_without_waiting(self) -> None:
        def refuse(request: object, *_: object) -> object:
            raise KernelError('no room: p has read nothing')
        with mock.patch.object(self.daemon, '_result', refuse):
            with self.assertRaisesRegex(WriteBufferFull, 'no room'):
                self.kernel.write_process('p', b'a', wait=False)
            with self.assertRaisesRegex(Error, 'no room'):
                self.kernel.write_process('p', b'a')

    def test_exit_if_idle(self) -> None:
        self.daemon.results = {'exit-if-idle': False}
        self.assertIs(False, self.kernel.exit_if_idle())
        self.assertIsNotNone(self.kernel.fileno())
        self.daemon.results = {'exit-if-idle': True}
        self.assertIs(True, self.kernel.exit_if_idle())
        self.assertIsNone(self.kernel.fileno())

    def test_stop_that_is_not_answered(self) -> None:
        def stop(request: object, op: str, params: object) -> object:
            self.daemon.listener.close()
            self.daemon.clients.close()
            return None
        with mock.patch.object(self.daemon, '_result', stop):
            self.kernel.stop()
        with self.assertRaises(KernelNotRunning):
            self.kernel.get('a')

    def test_no_kernel_is_started_to_be_ended(self) -> None:
        self.kernel.close()
        self.daemon.close()
        with mock.patch(
                'gocept.runner.kernel.client.autostart.start') as start:
            self.kernel.autostart = True
            self.kernel.stop()
            self.assertIs(True, self.kernel.exit_if_idle())
        start.assert_not_called()

    def test_a_kernel_that_ends_while_another_one_starts(self) -> None:
        line = Address(self.daemon.place).connect('0' * 32, Deadline(DEADLINE))
        with (mock.patch(
                  'gocept.runner.kernel.client.autostart.start') as start,
              mock.patch.object(
                  Address, 'connect',
                  side_effect=[*[FileNotFoundError] * 3, line])):
            with Kernel(self.daemon.place, DEADLINE) as kernel:
                self.assertEqual(line.fileno(), kernel.fileno())
            self.assertEqual(3, start.call_count)

    def test_status_and_upgrade(self) -> None:
        self.daemon.results = {'status': {'pid': 1}, 'upgrade': None}
        self.assertEqual({'pid': 1}, self.kernel.status())
        self.kernel.upgrade()
        self.assertEqual(
            {'python': sys.executable, 'version': VERSION,
             'path': [*code()['path']]},  # type: ignore[misc]
            self.daemon.requests[-2].params)


class AgainTests(KernelCase):

    def test_a_successor_is_asked(self) -> None:
        self.kernel.set('a', '1')
        self.daemon.die()
        self.assertEqual('1', self.kernel.get('a'))
        self.assertEqual(1, len({
            each.session for each in self.daemon.requests}))

    def test_nothing_is_done_twice(self) -> None:
        self.daemon.deaths = ['set']
        self.kernel.set('a', '1')
        requests = [each for each in self.daemon.requests if each.op == 'set']
        self.assertEqual(2, len(requests))
        self.assertEqual(1, len({each.id for each in requests}))
        self.assertEqual('1', self.kernel.get('a'))

    def test_several_deaths(self) -> None:
        self.daemon.deaths = ['get', 'get', 'get']
        self.daemon.values['a'] = '1'
        self.assertEqual('1', self.kernel.get('a'))

    def test_a_kernel_that_has_ended(self) -> None:
        self.daemon.close()
        with self.assertRaises(KernelNotRunning):
            self.kernel.get('a')
        with self.assertRaises(KernelNotRunning):
            self.kernel.get('a')
        os.unlink(str(self.daemon.place))
        daemon = self.fake()
        daemon.values['a'] = '2'
        self.assertEqual('2', self.kernel.get('a'))


class ConnectTests(TestCase):

    def test_tcp(self) -> None:
        daemon = FakeKernel()
        self.addCleanup(daemon.close)
        with Kernel(daemon.place, autostart=False) as kernel:
            kernel.set('a', 'b')
            self.assertEqual('b', kernel.get('a'))
            assert kernel._transport is not None
            sock = socket.socket(fileno=os.dup(kernel._transport.fileno()))
            with sock:
                self.assertTrue(sock.getsockopt(
                    socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def test_a_connection_that_is_closed_at_once(self) -> None:
        daemon = FakeKernel()
        self.addCleanup(daemon.close)
        calls: list[socket.socket] = []
        ask = socket.socket.getpeername

        def getpeername(sock: socket.socket) -> object:
            if threading.current_thread() is threading.main_thread():
                calls.append(sock)
                if len(calls) == 1:
                    raise OSError(errno.ENOTCONN, 'not connected')
            return ask(sock)

        with mock.patch.object(socket.socket, 'getpeername', getpeername):
            Kernel(daemon.place, DEADLINE, autostart=False).close()
        self.assertEqual(2, len(calls))

    def test_a_long_path(self) -> None:
        directory = self.dir / ('d' * 200)
        directory.mkdir()
        fd = os.open(directory, os.O_PATH)
        self.addCleanup(os.close, fd)
        daemon = FakeKernel(f'/proc/self/fd/{fd}/kernel')
        self.addCleanup(daemon.close)
        with Kernel(str(directory / 'kernel'), autostart=False) as kernel:
            self.assertIsNone(kernel.get('a'))

    def test_the_socket_of_another_user(self) -> None:
        refusal = PermissionError(13, 'Permission denied')
        with mock.patch.object(Address, 'connect', side_effect=refusal):
            with self.assertRaisesRegex(KernelRefused, 'another user'):
                Kernel(str(self.dir / 'kernel'))

    def test_nobody_listens(self) -> None:
        path = str(self.dir / 'kernel')
        with self.assertRaisesRegex(KernelNotRunning, path):
            Kernel(path, autostart=False)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
        with self.assertRaises(KernelNotRunning):
            Kernel(path, autostart=False)
        with socket.socket() as sock:
            sock.bind(('127.0.0.1', 0))
            with self.assertRaises(KernelNotRunning):
                Kernel(sock.getsockname()[1], autostart=False)

    def serve(self, said: bytes, then: str = 'close') -> str:
        """Be no kernel."""
        path = str(self.dir / 'other')
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        left = contextlib.ExitStack()
        self.addCleanup(left.close)

        def serve() -> None:
            with listener:
                sock, _ = listener.accept()
            left.enter_context(sock)
            sock.sendall(said)
            if then == 'close':
                sock.close()
        thread = threading.Thread(target=serve)
        thread.start()
        self.addCleanup(thread.join)
        return path

    def test_a_refusal_is_shown(self) -> None:
        path = self.serve(b'Error: not for user 1\n')
        with self.assertRaisesRegex(KernelRefused, '^not for user 1$'):
            Kernel(path, autostart=False)

    def test_something_else_listens(self) -> None:
        path = self.serve(b'220 mail\r\n' * 1000, 'wait')
        with self.assertRaisesRegex(
                KernelNotRunning, 'is no kernel: it said "220 mail  220'):
            Kernel(path)

    def test_what_is_no_kernel_has_not_ended(self) -> None:
        daemon = self.fake()
        kernel = Kernel(daemon.place, DEADLINE, autostart=False)
        kernel.connection_timeout = 0.05
        kernel.close()
        daemon.close()
        os.unlink(str(daemon.place))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(daemon.place))
            listener.listen()
            for call in kernel.stop, kernel.exit_if_idle:
                with self.assertRaises(KernelNotRunning):
                    call()

    def test_a_timeout_is_a_number(self) -> None:
        with self.assertRaisesRegex(TypeError, "of seconds, not '/b'"):
            Kernel('/a', '/b')  # type: ignore[arg-type]

    def test_one_that_says_nothing(self) -> None:
        path = self.serve(b'', 'wait')
        with self.assertRaisesRegex(
                KernelNotRunning, 'is no kernel, or does not answer: '
                'in 0.05 s it said nothing$') as caught:
            Kernel(path, 0.05)
        self.assertEqual(69, caught.exception.status)

    def test_a_full_backlog(self) -> None:
        path = str(self.dir / 'full')
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(path)
            listener.listen(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    client = stack.enter_context(socket.socket(socket.AF_UNIX))
                    client.setblocking(False)
                    client.connect(path)
            with self.assertRaisesRegex(Error, 'not taken the connection'):
                Kernel(path, 0.05, autostart=False)

    def test_deaths_before_the_greeting(self) -> None:
        path = str(self.dir / 'kernel')
        daemon = FakeKernel(path)
        self.addCleanup(daemon.close)
        deaths = [1, 2, 3]
        welcome = daemon.clients.welcome

        def die(sock: socket.socket) -> object:
            if deaths:
                deaths.pop()
                sock.close()
                return None
            return welcome(sock)
        with mock.patch.object(daemon.clients, 'welcome', die):
            with Kernel(path, DEADLINE, autostart=False) as kernel:
                self.assertIsNone(kernel.get('a'))

    def test_the_kernel_of_another_user(self) -> None:
        daemon = self.fake()
        with mock.patch('os.geteuid', return_value=12345):
            if os.getuid():
                with self.assertRaisesRegex(KernelRefused, r'user=.*\)'):
                    Kernel(daemon.place, autostart=False)
            Kernel(daemon.place, user=os.getuid(), autostart=False).close()
        with mock.patch('gocept.runner.kernel.wire.peers.unix_user',
                        return_value=12345):
            with self.assertRaisesRegex(KernelRefused, '12345'):
                Kernel(daemon.place, autostart=False)
        with self.assertRaisesRegex(Error, "no user 'no such user'"):
            Kernel(daemon.place, user='no such user', autostart=False)

    def test_the_owner_of_a_port(self) -> None:
        daemon = FakeKernel()
        self.addCleanup(daemon.close)
        for owner in (12345, None):
            with mock.patch(
                    'gocept.runner.kernel.wire.peers.owner_of_listener',
                    return_value=owner):
                with self.assertRaises(KernelRefused):
                    Kernel(daemon.place, autostart=False)


class DefaultTests(TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(vars(defaults).update, vars(defaults).copy())

    def test_from_the_beginning(self) -> None:
        self.assertEqual((20202, 10.0), tuple(vars(Defaults()).values()))

    def test_path_and_timeout(self) -> None:
        daemon = self.fake()
        set_default_path(pathlib.Path(str(daemon.place)))
        set_default_connection_timeout(DEADLINE)
        with Kernel(autostart=False) as kernel:
            self.assertEqual(daemon.place, kernel.port_or_path)
            self.assertEqual(DEADLINE, kernel.connection_timeout)

    def test_port(self) -> None:
        daemon = FakeKernel()
        self.addCleanup(daemon.close)
        assert isinstance(daemon.place, int)
        set_default_port(daemon.place)
        with Kernel(autostart=False) as kernel:
            self.assertEqual(daemon.place, kernel.port_or_path)

    def test_places_that_cannot_be(self) -> None:
        with self.assertRaisesRegex(Error, 'absolute'):
            Kernel('kernel')
        with self.assertRaisesRegex(Error, 'no port'):
            set_default_port(65536)


class ImportTests(unittest.TestCase):

    def test_little_is_imported(self) -> None:
        code = ('import sys, gocept.runner.kernel as kernel\n'
                'assert "gocept.runner.kernel.client" not in sys.modules\n'
                'kernel.Kernel, kernel.Watcher, kernel.Error\n'
                'for name in ("ZODB", "transaction", "zope.schema", "ctypes",'
                ' "subprocess", "persistent"):\n'
                '    assert name not in sys.modules, name\n')
        subprocess.run([sys.executable, '-c', code], check=True, env={
            'PYTHONPATH': os.pathsep.join(filter(None, sys.path))})

    def test_constants_are_those_of_subprocess(self) -> None:
        self.assertEqual(
            (subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL),
            (PIPE, STDOUT, DEVNULL))

    def test_unknown_names(self) -> None:
        from gocept.runner import kernel
        with self.assertRaises(AttributeError):
            _ = kernel.Papa
        self.assertLessEqual({*kernel.__all__}, {*dir(kernel)})
