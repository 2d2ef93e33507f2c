"""The examples of the document that the kernel was made from, as written.

What they are written for lies in the working directory; in place of a port and
of a path that anybody might use there are some of the test.
"""

import contextlib
import getpass
import io
import os
import select
import sys
from typing import Any

from gocept.runner import kernel
from gocept.runner.kernel import Kernel
from gocept.runner.kernel.client.defaults import defaults
from gocept.runner.tests.kernels import Daemon, free_port
from gocept.runner.tests.support import TestCase
from gocept.runner.tests.victims import until

UWSGI = '''#!/bin/sh
echo "$@"
'''

HTTP = '''
import sys
print('port', sys.argv[1])
'''

WRITE_THREE = '''
for number in 'one', 'two', 'three':
    print(number, flush=True)
'''


class SeedTests(TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.daemon = Daemon(self)
        self.addCleanup(setattr, defaults, 'place', defaults.place)
        kernel.set_default_path(self.daemon.where)
        self.here = str(self.dir)
        (self.dir / 'env/bin').mkdir(parents=True)
        (self.dir / 'executables').mkdir()
        self.write('env/bin/uwsgi', UWSGI).chmod(0o755)
        self.write('http.py', HTTP)
        self.write('executables/write_three_lines.py', WRITE_THREE)
        self.p = self.enterContext(Kernel())
        self.saved: list[Any] = []

    def save(self, out: Any, err: Any, closed: Any) -> None:
        self.saved += [*out, *err, *closed]

    def saved_of(self, name: str) -> list[bytes | int]:
        """What was saved of one, in one piece."""
        data = [each.data for each in self.saved if each.name == name]
        return [b''.join(each for each in data if isinstance(each, bytes)),
                *(each for each in data if isinstance(each, int))]

    def make(self, *names: str) -> None:
        for name in names:
            self.p.make_process(
                name, sys.executable, args='executables/write_three_lines.py',
                working_dir=self.here, env=os.environ)

    def test_long_lived_connection(self) -> None:
        here = self.here

        class MyObject:
            def __init__(self):
                self.papa = Kernel()

            def start_stuff(self):
                self.papa.make_socket('uwsgi')
                self.papa.make_process('uwsgi', 'env/bin/uwsgi', args=('--ini', 'uwsgi.ini', '--socket', 'fd://$(socket.uwsgi.fileno)'), working_dir=here, env=os.environ)  # noqa: E501
                self.papa.make_process('http_receiver', sys.executable, args=('http.py', '$(socket.uwsgi.port)'), working_dir=here, env=os.environ)  # noqa: E501

            def close(self):
                self.papa.close()

        it = MyObject()
        it.start_stuff()
        it.close()
        made = self.p.list_sockets('uwsgi')['uwsgi']
        with self.p.watch_processes('uwsgi', 'http_receiver') as watcher:
            while watcher:
                self.save(*watcher.read())
        self.assertEqual(
            [f'--ini uwsgi.ini --socket fd://{made["fileno"]}\n'.encode(), 0],
            self.saved_of('uwsgi'))
        self.assertEqual([f'port {made["port"]}\n'.encode(), 0],
                         self.saved_of('http_receiver'))

    def test_with_statement(self) -> None:
        port = free_port()
        with contextlib.redirect_stdout(io.StringIO()) as output:
            with Kernel() as p:
                print(p.list_sockets())
                print(p.make_socket('uwsgi', port=port))
                print(p.list_sockets())
                print(p.make_process('uwsgi', 'env/bin/uwsgi', args=('--ini', 'uwsgi.ini', '--socket', 'fd://$(socket.uwsgi.fileno)'), working_dir=self.here, env=os.environ))  # noqa: E501
                print(p.make_process('http_receiver', sys.executable, args=('http.py', '$(socket.uwsgi.port)'), working_dir=self.here, env=os.environ))  # noqa: E501
                print(p.list_processes())
        first, made, sockets, *_, processes = (
            output.getvalue().splitlines())
        self.assertEqual('{}', first)
        self.assertIn(f"'port': {port}", made)
        self.assertIn(made, sockets)
        self.assertIn("'http_receiver': {", processes)

    def test_sockets(self) -> None:
        p = self.p
        path = f'{self.daemon.directory}/uwsgi.sock'
        p.make_socket('circus.uwsgi', port=free_port())
        p.make_socket('circus.nginx.1', path=path)
        p.make_socket('circus.logger')
        self.assertEqual(3, len(p.list_sockets()))
        self.assertEqual(3, len(p.list_sockets('circus.*')))
        self.assertEqual(3, len(p.list_sockets(
            'circus.uwsgi', 'circus.nginx.*', 'circus.logger')))
        with self.assertRaises(kernel.Error):
            p.make_socket('circus.uwsgi', path=path)
        with self.assertRaises(kernel.Error):
            p.make_socket('circus.other', path='uwsgi.sock')
        p.remove_sockets('circus.uwsgi', 'circus.nginx.*', 'circus.logger')
        self.assertEqual({}, p.list_sockets())

    def test_values(self) -> None:
        p = self.p
        value = 'some value'
        p.set('circus.uswgi', value)
        self.assertEqual(value, p.get('circus.uswgi'))
        self.assertIsNone(p.get('circus.uwsgi'))
        p.set('circus.uwsgi', 'other')
        self.assertEqual({'circus.uswgi': value, 'circus.uwsgi': 'other'},
                         p.list_values())
        self.assertEqual(p.list_values(), p.list_values('circus.*'))
        self.assertEqual({'circus.uwsgi': 'other'}, p.list_values(
            'circus.uwsgi', 'circus.nginx.*', 'circus.logger'))
        p.set('circus.uwsgi', None)
        self.assertIsNone(p.get('circus.uwsgi'))
        p.remove_values('circus.uwsgi', 'circus.nginx.*', 'circus.logger')
        p.remove_values('circus.*')
        self.assertEqual({}, p.list_values())
        for names in (), ('*',):
            with self.assertRaises(kernel.Error):
                p.remove_values(*names)

    def test_processes(self) -> None:
        p, here = self.p, self.here
        os.environ.setdefault('LOGNAME', getpass.getuser())
        p.make_process('write3', sys.executable, args='executables/write_three_lines.py', working_dir=here, uid=os.environ['LOGNAME'], env=os.environ)  # noqa: E501
        p.make_process('limited', sys.executable,
                       args='executables/write_three_lines.py',
                       working_dir=here, env=os.environ, bufsize='2m',
                       rlimits={'cpu': 2, 'nofile': 1024})
        self.assertEqual({'write3', 'limited'}, {*p.list_processes()})
        with p.watch_processes('write3', 'limited') as watcher:
            while watcher:
                self.save(*watcher.read())
        for name in 'write3', 'limited':
            self.assertEqual([b'one\ntwo\nthree\n', 0], self.saved_of(name))
        self.assertEqual({}, p.list_processes())

    def test_remove_processes(self) -> None:
        p = self.p
        self.make('circus.logger', 'circus.uwsgi', 'circus.nginx.1')
        p.remove_processes('circus.logger')
        p.remove_processes('circus.uwsgi', 'circus.nginx.*')
        until(lambda: not p.list_processes())

    def test_watcher_without_a_context_manager(self) -> None:
        test = self

        class MyLogger:
            def __init__(self, watcher):
                self.watcher = watcher

            def save_stuff(self):
                if self.watcher and self.watcher.ready:
                    out, err, closed = self.watcher.read()
                    test.save(out, err, closed)
                    self.watcher.acknowledge()  # remove it from the buffer

            def close(self):
                self.watcher.close()

        self.make('aack')
        logger = MyLogger(self.p.watch_processes('aack'))

        def is_over() -> bool:
            logger.save_stuff()
            return not logger.watcher
        until(is_over)
        logger.close()
        self.assertEqual([b'one\ntwo\nthree\n', 0], self.saved_of('aack'))

    def test_watcher_with_a_context_manager(self) -> None:
        p = self.p
        self.make('aack')
        with p.watch_processes('aack') as watcher:
            while watcher:
                out, err, closed = watcher.read()  # block until something arrives  # noqa: E501
                self.save(out, err, closed)
                watcher.acknowledge()  # remove it from the buffer
        self.assertEqual([b'one\ntwo\nthree\n', 0], self.saved_of('aack'))

    def test_watch_immediately(self) -> None:
        with self.p.make_process(
                'aack', sys.executable, 'executables/write_three_lines.py',
                env=os.environ, working_dir=self.here,
                watch_immediately=True) as watcher:
            while watcher:
                self.save(*watcher.read())
        self.assertEqual([b'one\ntwo\nthree\n', 0], self.saved_of('aack'))

    def test_several_watchers(self) -> None:
        p = self.p
        self.make('circus.uwsgi', 'circus.nginx', 'circus.mongos.1',
                  'circus.mongos.2')
        watchers = []

        watchers.append(p.watch_processes('circus.uwsgi'))
        watchers.append(p.watch_processes('circus.nginx'))
        watchers.append(p.watch_processes('circus.mongos.*'))

        while watchers:
            ready_watchers = select.select(watchers, [], [])[0]  # wait for one of these  # noqa: E501
            for watcher in ready_watchers:  # iterate through all that are ready  # noqa: E501
                out, err, closed = watcher.read()
                self.save(out, err, closed)
                watcher.acknowledge()
                if not watcher:  # if it is done, remove this watcher from the list  # noqa: E501
                    watcher.close()
                    watchers.remove(watcher)
        for name in ('circus.uwsgi', 'circus.nginx', 'circus.mongos.1',
                     'circus.mongos.2'):
            self.assertEqual([b'one\ntwo\nthree\n', 0], self.saved_of(name))

    def test_one_watcher_of_several(self) -> None:
        p = self.p
        self.make('circus.uwsgi', 'circus.nginx', 'circus.mongos.1',
                  'circus.mongos.2')
        with p.watch_processes('circus.uwsgi', 'circus.nginx', 'circus.mongos.*') as watcher:  # noqa: E501
            while watcher:
                out, err, closed = watcher.read()
                self.save(out, err, closed)
                # watcher.acknowledge() - no need since watcher.read will do it for us  # noqa: E501
        for name in ('circus.uwsgi', 'circus.nginx', 'circus.mongos.1',
                     'circus.mongos.2'):
            self.assertEqual([b'one\ntwo\nthree\n', 0], self.saved_of(name))

    def test_shutting_down(self) -> None:
        p = self.p
        self.make('myapp.one')
        p.make_socket('myapp.one')
        p.set('myapp.one', '1')
        self.assertFalse(p.exit_if_idle())
        until(lambda: not p.list_processes()['myapp.one']['running'])
        p.remove_processes('myapp.*')
        p.remove_sockets('myapp.*')
        p.remove_values('myapp.*')
        with contextlib.redirect_stdout(io.StringIO()) as output:
            if p.exit_if_idle():
                print('Papa says it will shutdown!')
        self.assertIn('will shutdown', output.getvalue())
