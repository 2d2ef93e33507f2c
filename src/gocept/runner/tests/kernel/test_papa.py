"""The client library papa 1.0.6, which talks to our daemon."""

import contextlib
import os
import select
import signal
import socket
import sys
import unittest
from collections.abc import Iterator
from typing import Any
from unittest import mock

import papa

from gocept.runner.tests.kernels import HOST, Daemon, free_port
from gocept.runner.tests.support import DEADLINE, TestCase
from gocept.runner.tests.victims import until

ENVIRONMENT = {'PATH': os.environ['PATH']}

SHOW = '''
import os, socket, sys
with socket.socket(fileno=int(sys.argv[1])) as sock:
    print(*sock.getsockname(), sys.argv[2:])
'''

SERVE = '''
import os, socket, sys
with socket.socket(fileno=int(sys.argv[1])) as sock:
    print(os.fstat(int(sys.argv[1])).st_ino, sock.getsockname()[1], flush=True)
    sock.accept()[0].close()
'''


class PapaTestCase(TestCase):
    """A daemon, and a client of papa's."""

    tcp = False

    def setUp(self) -> None:
        super().setUp()
        # It would fork this process if it could not connect.
        spawned, papa.Papa.spawned = papa.Papa.spawned, True
        self.addCleanup(setattr, papa.Papa, 'spawned', spawned)
        self.daemon = Daemon(self, tcp=self.tcp)
        self.papa = self.connect()

    def connect(self) -> Any:
        """One more client."""
        return self.enterContext(papa.Papa(self.daemon.where, DEADLINE))

    def sh(self, name: str, script: str, **options: Any) -> Any:
        """Have the shell run something."""
        return self.papa.make_process(
            name, 'sh', ('-c', script), env=ENVIRONMENT, **options)

    @contextlib.contextmanager
    def watch(self, *names: str) -> Iterator[Any]:
        """A watcher of a client of its own."""
        watcher = self.connect().watch_processes(*names)
        yield watcher
        watcher.close()

    def read(self, *names: str) -> tuple[bytes, bytes, dict[str, int]]:
        """All that processes write, and how they end."""
        with self.watch(*names) as watcher:
            return drained(watcher)


def drained(watcher: Any) -> tuple[bytes, bytes, dict[str, int]]:
    """What a watcher gives until it is done, acknowledged."""
    out, err, closed = [], [], []
    while watcher:
        found = watcher.read()
        if found is not None:
            for total, some in zip((out, err, closed), found, strict=True):
                total += some
    return (b''.join(each.data for each in out),
            b''.join(each.data for each in err),
            {each.name: each.data for each in closed})


class ValueTests(PapaTestCase):

    def test_value_is_kept(self) -> None:
        self.assertIsNone(self.papa.set('count', '5'))
        self.assertEqual('5', self.papa.get('count'))
        self.assertEqual({'count': '5'}, self.papa.list_values())

    def test_value_is_text_of_any_script(self) -> None:
        self.papa.set('größe', '\N{SNOWMAN} and  more  =x')
        self.assertEqual('\N{SNOWMAN} and  more  =x', self.papa.get('größe'))

    def test_there_is_no_value(self) -> None:
        self.assertIsNone(self.papa.get('count'))
        self.assertEqual({}, self.papa.list_values())
        self.assertEqual({}, self.papa.list_values('count', 'c*'))

    def test_none_clears(self) -> None:
        self.papa.set('count', '5')
        self.papa.set('count', None)
        self.assertIsNone(self.papa.get('count'))
        self.assertEqual({}, self.papa.list_values())

    def test_wildcards(self) -> None:
        for name in 'circus.a', 'circus.b', 'other':
            self.papa.set(name, name)
        self.assertEqual({'circus.a': 'circus.a', 'circus.b': 'circus.b'},
                         self.papa.list_values('circus.*'))
        self.assertEqual({'circus.a', 'other'},
                         {*self.papa.list_values('circus.a', 'o*', 'x')})
        self.assertIs(True, self.papa.remove_values('circus.*', 'nothing'))
        self.assertEqual({'other': 'other'}, self.papa.list_values())

    def test_all_values_cannot_be_removed(self) -> None:
        self.papa.set('count', '5')
        for names in (), ('*',):
            with self.assertRaises(papa.Error):
                self.papa.remove_values(*names)
        self.assertEqual('5', self.papa.get('count'))

    def test_other_client_sees_it(self) -> None:
        self.papa.set('count', '5')
        self.assertEqual('5', self.connect().get('count'))


class SocketTests(PapaTestCase):

    def test_default(self) -> None:
        made = self.papa.make_socket('web')
        self.assertEqual(
            {'family': 'inet', 'type': 'stream', 'backlog': 5,
             'host': HOST, 'port': made['port'], 'fileno': made['fileno']},
            made)
        self.assertEqual({'web': made}, self.papa.list_sockets())
        socket.create_connection((HOST, made['port'])).close()

    def test_same_parameters_give_the_same(self) -> None:
        port = free_port()
        made = self.papa.make_socket('web', port=port, backlog=7)
        self.assertEqual(port, made['port'])
        self.assertEqual(
            made, self.papa.make_socket('web', port=port, backlog=7))
        self.assertEqual(made, self.papa.make_socket('web', backlog=7))
        with self.assertRaises(papa.Error):
            self.papa.make_socket('web', port=port, backlog=8)

    def test_unix(self) -> None:
        path = f'{self.daemon.directory}/web'
        made = self.papa.make_socket('web', path=path, umask=0o077)
        self.assertEqual('unix', made['family'])
        self.assertEqual(path, made['path'])
        self.assertEqual('63', made['umask'])
        self.assertEqual(0o700, os.stat(path).st_mode & 0o777)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
        self.papa.remove_sockets('web')
        self.assertFalse(os.path.exists(path))

    def test_family_type_and_host(self) -> None:
        if not socket.has_ipv6:
            self.skipTest('there is no IPv6')
        made = self.papa.make_socket(
            'web', host='::1', family=socket.AF_INET6,
            socket_type=socket.SOCK_STREAM)
        self.assertEqual(('inet6', 'stream', '::1'), (
            made['family'], made['type'], made['host']))
        socket.create_connection(('::1', made['port'])).close()

    def test_port_that_is_taken(self) -> None:
        with socket.create_server((HOST, 0)) as sock:
            with self.assertRaises(papa.Error):
                self.papa.make_socket('web', port=sock.getsockname()[1])
        self.assertEqual({}, self.papa.list_sockets())

    def test_wildcards(self) -> None:
        for name in 'circus.a', 'circus.b', 'other':
            self.papa.make_socket(name)
        self.assertEqual({'circus.a', 'circus.b'},
                         {*self.papa.list_sockets('circus.*')})
        self.assertIs(True, self.papa.remove_sockets('circus.*'))
        self.assertEqual({'other'}, {*self.papa.list_sockets()})

    def test_unknown_cannot_be_removed(self) -> None:
        with self.assertRaises(papa.Error):
            self.papa.remove_sockets('nothing')

    def test_process_gets_the_descriptor(self) -> None:
        script = self.write('show.py', SHOW)
        made = self.papa.make_socket('web')
        for name, fileno in [('by_name', '$(socket.web.fileno)'),
                             ('literal', str(made['fileno']))]:
            with self.subTest(name):
                self.papa.make_process(
                    name, sys.executable,
                    ('-I', '-S', str(script), fileno, 'x$(socket.web.port)y',
                     f'fd://{fileno}'))
                self.assertEqual((
                    f'{HOST} {made["port"]} '
                    f"['x{made['port']}y', 'fd://{made['fileno']}']\n"
                    .encode(), b'', {name: 0}), self.read(name))

    def test_unknown_socket(self) -> None:
        for argument in ('$(socket.nothing.port)', '$(socket.web.name)',
                         '$(socket.web.port'):
            with self.assertRaises(papa.Error):
                self.sh('hello', argument)
        self.assertEqual({}, self.papa.list_processes())


class ReusePortTests(PapaTestCase):

    def test_each_process_has_its_own(self) -> None:
        made = self.papa.make_socket('web', reuseport=True)
        self.assertNotIn('fileno', made)
        self.assertTrue(made['reuseport'])
        script = self.write('serve.py', SERVE)
        found = set()
        for name in 'one', 'two':
            self.papa.make_process(
                name, sys.executable,
                ('-I', '-S', str(script), '$(socket.web.fileno)'))
            with self.watch(name) as watcher:
                inode, port = watcher.read()[0][0].data.split()
            self.assertEqual(made['port'], int(port))
            found.add(inode)
        self.assertEqual(2, len(found))


class ProcessTests(PapaTestCase):

    def test_output_and_exit_code(self) -> None:
        made = self.sh('hello', 'echo out; echo err >&2; exit 3')
        self.assertEqual((b'out\n', b'err\n', {'hello': 3}),
                         self.read('hello'))
        self.assertIsInstance(made['pid'], int)
        self.assertIsInstance(made['started'], float)
        self.assertIs(True, made['running'])
        self.assertEqual({}, self.papa.list_processes())

    def test_what_is_listed(self) -> None:
        made = self.sh('hello', 'exec sleep 1000')
        self.assertEqual({'hello': made}, self.papa.list_processes())
        self.assertEqual('sh -c exec sleep 1000', made['args'])
        self.assertEqual({'hello': made}, self.papa.list_processes('h*'))
        self.assertEqual({}, self.papa.list_processes('x', 'x*'))

    def test_ended_process_is_listed_until_it_is_acknowledged(self) -> None:
        self.sh('hello', 'exit 3')
        until(lambda: not self.papa.list_processes()['hello']['running'])
        with self.watch('hello') as watcher:
            _out, _err, closed = watcher.read()
            self.assertEqual([('hello', 3)],
                             [(each.name, each.data) for each in closed])
            self.assertEqual({'hello': 3}, watcher.exit_code)
            self.assertIn('hello', self.papa.list_processes())
            self.assertTrue(watcher)
            self.assertIsNone(watcher.read())
            self.assertFalse(watcher)
        self.assertEqual({}, self.papa.list_processes())

    def test_killed_by_a_signal(self) -> None:
        made = self.sh('hello', 'exec sleep 1000')
        os.kill(made['pid'], signal.SIGKILL)
        self.assertEqual((b'', b'', {'hello': -9}), self.read('hello'))

    def test_same_parameters_give_the_same(self) -> None:
        made = self.sh('hello', 'exec sleep 1000')
        self.assertEqual(made, self.sh('hello', 'exec sleep 1000'))
        with self.assertRaises(papa.Error):
            self.sh('hello', 'exec sleep 1001')

    def test_no_environment_is_an_empty_one(self) -> None:
        self.papa.make_process('none', '/usr/bin/env')
        self.papa.make_process('some', '/usr/bin/env',
                               env={'A': 'b c', 'D': 'e=f\\'})
        self.assertEqual((b'', b'', {'none': 0}), self.read('none'))
        self.assertEqual((b'A=b c\nD=e=f\\\n', b'', {'some': 0}),
                         self.read('some'))

    def test_argument_with_spaces(self) -> None:
        self.papa.make_process('hello', '/bin/echo', ('a  b', 'c d', ' e'))
        self.assertEqual((b'a  b c d e\n', b'', {'hello': 0}), self.read('hello'))  # noqa: E501

    def test_one_argument(self) -> None:
        self.papa.make_process('hello', '/bin/echo', 'a  b')
        self.assertEqual(b'a  b\n', self.read('hello')[0])

    def test_working_directory(self) -> None:
        self.sh('hello', 'pwd', working_dir=str(self.dir))
        self.assertEqual(os.fsencode(f'{self.dir}\n'), self.read('hello')[0])

    def test_limits(self) -> None:
        self.sh('hello', 'ulimit -n; ulimit -c',
                rlimits={'nofile': 77, 'core': 0})
        self.assertEqual(b'77\n0\n', self.read('hello')[0])

    def test_user_and_group(self) -> None:
        if os.getuid():
            self.skipTest('only root can become another user')
        made = self.sh('hello', 'echo $(id -u) $(id -g); exec sleep 1000',
                       uid='nobody', gid='daemon', working_dir='/')
        self.assertEqual(('65534', '1'), (made['uid'], made['gid']))
        with self.watch('hello') as watcher:
            self.assertEqual(b'65534 1\n', watcher.read()[0][0].data)

    def test_output_to_nowhere(self) -> None:
        for name, options in [('out', {'stdout': papa.DEVNULL}),
                              ('err', {'stderr': papa.DEVNULL}),
                              ('both', {'bufsize': 0}),
                              ('one', {'stderr': papa.STDOUT})]:
            self.sh(name, 'echo out; echo err >&2', **options)
        found = {name: self.read(name)[:2]
                 for name in ('out', 'err', 'both', 'one')}
        self.assertEqual({'out': (b'', b'err\n'), 'err': (b'out\n', b''),
                          'both': (b'', b''), 'one': (b'out\nerr\n', b'')},
                         found)

    def test_small_buffer_keeps_the_newest(self) -> None:
        os.mkfifo(self.dir / 'go')
        self.sh('hello', 'while read x; do echo line $x; done < go',
                bufsize='14', working_dir=str(self.dir))
        with self.daemon.kernel() as kernel, open(self.dir / 'go', 'w') as go:
            for number in range(1, 5):
                print(number, file=go, flush=True)
                until(lambda number=number: kernel.list_processes(
                    'hello')['hello']['end'] == 7 * number)
        until(lambda: not self.papa.list_processes()['hello']['running'])
        out, _, _ = self.read('hello')
        self.assertEqual(b'line 3\nline 4\n', out)

    def test_no_command(self) -> None:
        for words in ('nothing/there',), (str(self.dir),), ('', ()):
            with self.assertRaises(papa.Error):
                self.papa.make_process('hello', *words)
        with self.assertRaises(papa.Error):
            self.sh('hello', 'true', working_dir='/nothing/there')
        self.assertEqual({}, self.papa.list_processes())

    def test_removed_process_goes_on_and_leaves_the_list(self) -> None:
        os.mkfifo(self.dir / 'go')
        made = self.sh(
            'hello', 'read x < go; for i in $(seq 1000); do echo $(seq 1000); '
            'done; echo done > done; exec sleep 1000',
            working_dir=str(self.dir))
        self.assertIs(True, self.papa.remove_processes('hello'))
        (self.dir / 'go').write_bytes(b'\n')
        until((self.dir / 'done').exists)
        os.kill(made['pid'], signal.SIGKILL)
        until(lambda: not self.papa.list_processes())

    def test_no_names_are_all_processes(self) -> None:
        for name in 'one', 'two':
            self.sh(name, 'true')
        self.assertIs(True, self.papa.remove_processes())
        until(lambda: not self.papa.list_processes())

    def test_unknown_process(self) -> None:
        with self.assertRaises(papa.Error):
            self.papa.remove_processes('nothing')
        for names in ('nothing',), ('n*',), ():
            with self.assertRaises(papa.Error):
                self.connect().watch_processes(*names)


class WatcherTests(PapaTestCase):

    def test_watch_immediately(self) -> None:
        watcher = self.sh('hello', 'echo hello', watch_immediately=True)
        self.assertEqual((b'hello\n', b'', {'hello': 0}), drained(watcher))

    def test_watcher_is_ready_if_the_output_came_with_the_answer(
            self) -> None:
        self.sh('hello', 'echo hello; exec sleep 1000')

        def receive(sock: socket.socket, size: int = 1024) -> bytes:
            until(lambda: sock.recv(2 ** 16, socket.MSG_PEEK)
                  .endswith((b'] ', b'> ')))
            return sock.recv(size)

        client = self.connect()
        with mock.patch('papa.recv_with_retry', receive):
            watcher = client.watch_processes('hello')
        self.assertEqual(([watcher], [], []),
                         select.select([watcher], [], [], 0))
        out, _, _ = watcher.read()
        self.assertEqual([('hello', b'hello\n')],
                         [(each.name, each.data) for each in out])
        watcher.close()

    def test_several(self) -> None:
        for name in 'a.1', 'a.2', 'b':
            self.sh(name, f'echo {name}')
        out, _, closed = self.read('a.*', 'b')
        self.assertEqual({'a.1', 'a.2', 'b'}, {*closed})
        self.assertEqual({b'a.1', b'a.2', b'b'}, {*out.split()})

    def test_what_is_not_acknowledged_is_offered_again(self) -> None:
        self.sh('hello', 'echo hello; exec sleep 1000')
        for _ in range(2):
            client = self.connect()
            watcher = client.watch_processes('hello')
            out, _, _ = watcher.read()
            self.assertEqual([('hello', b'hello\n')],
                             [(each.name, each.data) for each in out])
            watcher.connection.close()

    def test_what_is_acknowledged_is_gone(self) -> None:
        os.mkfifo(self.dir / 'go')
        self.sh('hello', 'echo hello; read x < go; echo world; '
                'exec sleep 1000', working_dir=str(self.dir))
        with self.watch('hello') as watcher:
            self.assertEqual(b'hello\n', watcher.read()[0][0].data)
        (self.dir / 'go').write_bytes(b'\n')
        with self.watch('hello') as watcher:
            self.assertEqual(b'world\n', watcher.read()[0][0].data)

    def test_connection_is_given_back(self) -> None:
        self.sh('hello', 'echo hello; exec sleep 1000')
        watcher = self.papa.watch_processes('hello')
        self.assertIsNone(self.papa.connection)
        connection = watcher.connection
        watcher.read()
        watcher.close()
        self.assertIs(connection, self.papa.connection)
        self.assertIn('hello', self.papa.list_processes())

    def test_connection_is_given_back_at_the_end(self) -> None:
        self.sh('hello', 'echo hello')
        watcher = self.papa.watch_processes('hello')
        connection = watcher.connection
        drained(watcher)
        self.assertIs(connection, self.papa.connection)
        self.assertEqual({}, self.papa.list_processes())

    def test_other_commands_while_it_watches(self) -> None:
        self.sh('hello', 'echo hello; exec sleep 1000')
        watcher = self.papa.watch_processes('hello')
        self.papa.set('count', '5')
        self.assertEqual(b'hello\n', watcher.read()[0][0].data)
        self.assertEqual('5', self.papa.get('count'))
        watcher.close()
        self.assertEqual('5', self.papa.get('count'))

    def test_it_can_be_selected(self) -> None:
        os.mkfifo(self.dir / 'go')
        self.sh('hello', 'read x < go; echo hello; exec sleep 1000',
                working_dir=str(self.dir))
        with self.watch('hello') as watcher:
            self.assertEqual([], select.select([watcher], [], [], 0)[0])
            (self.dir / 'go').write_bytes(b'\n')
            self.assertEqual(
                [watcher], select.select([watcher], [], [], DEADLINE)[0])
            self.assertEqual(b'hello\n', watcher.read()[0][0].data)

    def test_any_bytes(self) -> None:
        data = bytes(range(256)) * 500 + b'\n> \n] closed:x:1:2\nError: no'
        (self.dir / 'data').write_bytes(data)
        self.sh('hello', 'cat data; cat data >&2', working_dir=str(self.dir))
        self.assertEqual((data, data, {'hello': 0}), self.read('hello'))

    def test_much(self) -> None:
        watcher = self.sh(
            'hello', 'i=0; while [ $i -lt 30000 ]; do i=$((i+1)); echo $i; '
            'done', bufsize='10m', watch_immediately=True)
        out, _, _ = drained(watcher)
        self.assertEqual([*range(1, 30001)], [*map(int, out.split())])


class IdleTests(PapaTestCase):

    def test_something_is_left(self) -> None:
        self.papa.set('count', '5')
        self.assertIs(False, self.papa.exit_if_idle())
        self.assertEqual('5', self.papa.get('count'))

    def test_nothing_is_left(self) -> None:
        self.assertIs(True, self.papa.exit_if_idle())


def over_tcp(case: type[PapaTestCase]) -> type[PapaTestCase]:
    """The same by TCP."""
    return type(f'TCP{case.__name__}', (case,), {'tcp': True})


TCPValueTests, TCPWatcherTests, TCPIdleTests = map(
    over_tcp, (ValueTests, WatcherTests, IdleTests))


if __name__ == '__main__':
    unittest.main()
