"""The daemon: what survives which death, and how it ends."""

import contextlib
import os
import pathlib
import select
import signal
import socket
import sys
import time
import unittest

from gocept.runner.kernel.client.autostart import code
from gocept.runner.kernel.daemon.version import VERSION
from gocept.runner.process import procfs
from gocept.runner.tests.kernel.raw import (
    PATIENCE,
    RawKernel,
    Refused,
    wait_for_end,
)


class VersionTests(unittest.TestCase):

    def test_it_is_that_of_the_project(self):
        setup = pathlib.Path(__file__).parents[5] / 'setup.py'
        if not setup.exists():
            self.skipTest('this is an installed release')
        self.assertIn(f"version='{VERSION}'", setup.read_text())


class Deaths(unittest.TestCase):

    def setUp(self):
        self.kernel = RawKernel()
        self.addCleanup(self.kernel.close)
        self.client = self.connect()

    def connect(self, session=None):
        client = self.kernel.connect(session)
        self.addCleanup(client.close)
        return client

    def kill_daemon(self):
        self.kernel.kill_daemon()
        self.client = self.connect()

    def kill_keeper(self):
        """Kill the keeper; the daemon takes its place."""
        keeper, self.kernel.keeper = self.kernel.keeper, self.client.do(
            'status')['pid']
        os.kill(keeper, signal.SIGKILL)
        wait_for_end(keeper)
        while True:
            try:
                self.client = self.connect()
                if self.client.do('status')['keeper'] == self.kernel.keeper:
                    break
            except ConnectionError:
                pass

    def test_everything_survives_the_daemon(self):
        self.client.do('set', name='value', value='a\nb')
        self.client.shell('early', 'echo early; exit 4')
        self.client.shell('late', 'echo one; read x; echo $x; exit 5',
                          stdin='pipe')
        for number in range(20):
            self.client.do('make-socket', name=f's{number}')
        self.client.do('remove-sockets', names=['s1', 's3', 's1*'])
        path = os.path.join(self.kernel.directory, 'socket')
        self.client.do('make-socket', name='path', path=path)
        before = self.client.do('list-sockets')
        self.kill_daemon()
        self.assertEqual(before, self.client.do('list-sockets'))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
        self.assertEqual('a\nb', self.client.do('get', name='value'))
        self.client.do('write', name='late', data=b'two\n')
        self.kill_daemon()
        watch = self.connect().watch('*').read_all()
        self.assertEqual({'early': b'early\n', 'late': b'one\ntwo\n'},
                         watch.out)
        self.assertEqual({'early': 4, 'late': 5}, watch.closed)
        self.assertEqual(2, self.client.do('status')['deaths'])

    def test_a_child_has_the_sockets_under_their_numbers(self):
        numbers = [self.client.do('make-socket', name=f's{number}')['fileno']
                   for number in range(5)]
        self.client.do('remove-sockets', names=['s0', 's2'])
        kept = {numbers[1], numbers[3], numbers[4]}
        for _ in range(3):
            self.kill_daemon()
            self.client.shell('child', 'ls /proc/self/fd')
            watch = self.connect().watch('child').read_all()
            inherited = {*map(int, watch.out['child'].split())} - {0, 1, 2, 3}
            self.assertEqual(kept, inherited)

    def test_an_answer_is_given_again(self):
        made = self.client.shell('once', 'exit 0')
        number = self.client.number
        self.connect().watch('once').read_all()
        session = self.client.session
        self.kill_daemon()
        again = self.connect(session)
        self.assertEqual(made['life'], again.result(again.send(
            'make-process', {'name': 'once', 'args': ['/bin/sh', '-c',
                                                      'exit 0']},
            number=number))['life'])
        self.assertEqual({}, again.do('list-processes'))

    def test_a_write_is_not_done_twice(self):
        self.client.make('cat', 'cat', stdin='pipe')
        number = self.client.send('write', {'name': 'cat'}, b'abc')
        self.assertIsNone(self.client.result(number))
        session = self.client.session
        self.kill_daemon()
        again = self.connect(session)
        self.assertIsNone(again.result(again.send(
            'write', {'name': 'cat'}, b'abc', number=number)))
        again.number = number
        again.do('close-stdin', name='cat')
        watch = self.connect().watch('cat').read_all()
        self.assertEqual(b'abc', watch.out['cat'])

    def test_everything_survives_the_keeper(self):
        self.client.do('set', name='value', value='x')
        self.client.shell('child', 'echo one; read x; exit 5', stdin='pipe')
        before = self.client.do('make-socket', name='socket')
        self.kill_keeper()
        self.assertEqual('x', self.client.do('get', name='value'))
        self.assertEqual({'socket': before}, self.client.do('list-sockets'))
        self.kill_daemon()
        self.client.do('close-stdin', name='child')
        watch = self.connect().watch('child').read_all()
        self.assertEqual(b'one\n', watch.out['child'])
        self.assertEqual({'child': 5}, watch.closed)

    def test_the_status_of_an_adopted_child_is_lost_with_its_keeper(self):
        for name in ('before', 'between', 'after'):
            self.client.shell(name, 'echo $$; read x; exit 5', stdin='pipe')
        pids = {name: each['pid'] for name, each in self.client.do(
            'list-processes').items()}
        os.kill(pids['before'], signal.SIGKILL)
        wait_for_end(pids['before'])
        self.kill_daemon()  # the keeper has the children now
        daemon = self.client.do('status')['pid']
        keeper = self.kernel.keeper
        os.kill(daemon, signal.SIGSTOP)
        os.kill(keeper, signal.SIGKILL)
        wait_for_end(keeper)
        os.kill(pids['between'], signal.SIGKILL)
        self.kernel.keeper = daemon
        os.kill(daemon, signal.SIGCONT)
        while True:
            with contextlib.suppress(ConnectionError):
                self.client = self.connect()
                if self.client.do('status')['keeper'] == daemon:
                    break
        self.client.do('close-stdin', name='after')
        watch = self.connect().watch('*').read_all()
        self.assertEqual({'before': -9, 'between': None, 'after': None},
                         watch.closed)

    def test_numbered_output_is_complete_over_many_deaths(self):
        self.client.shell(
            'count', 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo $i; '
                     'done', overflow='block', bufsize=50000)
        said, position, deaths = b'', None, 0
        over = False
        while not over:
            client = self.connect()
            try:
                watch = client.watch('count', **(
                    {'after': {'count': position}} if position else {}))
                while not watch.over:
                    watch.out.clear()
                    watch.read()
                    self.assertEqual({}, watch.missing)
                    said += watch.out.get('count', b'')
                    position = watch.positions.get('count', position)
                    if deaths < 10 and len(said) > 10000 * (deaths + 1):
                        deaths += 1
                        self.kernel.kill_daemon()
                    watch.acknowledge()
                over = True
            except ConnectionError:
                pass
            except Refused:  # its end was acknowledged just before
                over = True
        self.assertGreater(deaths, 1)
        self.assertEqual([*range(1, 20001)], [*map(int, said.split())])


class Ends(unittest.TestCase):

    def setUp(self):
        self.kernel = RawKernel()
        self.addCleanup(self.kernel.close)
        self.client = self.kernel.connect()
        self.addCleanup(self.client.close)

    def connect(self):
        client = self.kernel.connect()
        self.addCleanup(client.close)
        return client

    def ends(self):
        """Whether keeper and daemon end."""
        for pid in (self.kernel.keeper, self.pid):
            wait_for_end(pid)

    def test_a_removed_process_writes_on(self):
        file = os.path.join(self.kernel.directory, 'done')
        os.mkfifo(file)
        self.client.shell(
            'flood', 'read x; head -c 3000000 /dev/zero && head -c 300000 '
                     f'/dev/zero >&2 && echo fine > {file}', stdin='pipe')
        self.client.do('remove-processes', names=['flood'])
        self.client.do('write', name='flood', data=b'\n')
        with open(file) as reader:
            self.assertEqual('fine\n', reader.read())
        while self.client.do('list-processes'):
            pass

    def test_after_a_stop_by_force_children_write_on(self):
        self.pid = self.client.do('status')['pid']
        file = os.path.join(self.kernel.directory, 'done')
        os.mkfifo(file)
        self.client.shell(
            'flood', 'read x; head -c 3000000 /dev/zero && head -c 300000 '
                     f'/dev/zero >&2 && echo fine > {file}', stdin='pipe')
        with self.assertRaisesRegex(Refused, 'not idle'):
            self.client.do('stop')
        self.client.do('stop', force=True)
        wait_for_end(self.kernel.keeper)
        self.assertFalse(os.path.exists(self.kernel.path))
        with open(file) as reader:
            self.assertEqual('fine\n', reader.read())
        wait_for_end(self.pid)

    def test_a_stop_after_a_death_ends_with_the_children(self):
        self.client.shell('child', 'read x; head -c 300000 /dev/zero; exit 1',
                          stdin='pipe')
        self.kernel.kill_daemon()
        with self.kernel.connect() as client:
            self.pid = client.do('status')['pid']
            client.do('stop', force=True)
        self.ends()

    def test_it_stops_when_idle(self):
        self.pid = self.client.do('status')['pid']
        self.assertIsNone(self.client.do('stop'))
        self.ends()

    def test_it_exits_if_idle(self):
        self.pid = self.client.do('status')['pid']
        self.client.do('set', name='a', value='1')
        self.assertIs(False, self.client.do('exit-if-idle'))
        self.client.do('remove-values', names=['a'])
        self.assertIs(True, self.client.do('exit-if-idle'))
        self.client.close()
        self.ends()

    def test_a_client_that_comes_meanwhile_keeps_it(self):
        self.assertIs(True, self.client.do('exit-if-idle'))
        with self.kernel.connect() as other:
            self.client.close()
            self.assertIsNone(other.do('ping'))
        with self.kernel.connect() as other:
            self.assertIsNone(other.do('ping'))

    def test_a_sigterm_stops_it_by_force(self):
        self.pid = self.client.do('status')['pid']
        self.client.shell('child', 'read x', stdin='pipe')
        os.kill(self.pid, signal.SIGTERM)
        self.ends()  # the child, too, as its input has ended

    def test_an_upgrade_keeps_everything(self):
        made = self.client.shell('child', 'echo one; read x; exit 6',
                                 stdin='pipe')
        self.client.do('make-socket', name='socket')
        before = self.client.do('list-sockets')
        self.client.do('set', name='value', value='x')
        status = self.client.do('status')
        self.assertIsNone(self.client.do(
            'upgrade', python=sys.executable, path=code()['path']))
        wait_for_end(status['pid'])
        with self.kernel.connect() as client:
            after = client.do('status')
            self.assertEqual(status['keeper'], after['keeper'])
            self.assertEqual(1, after['upgrades'])
            self.assertEqual(0, after['deaths'])
            self.assertEqual(made['pid'],
                             client.do('list-processes')['child']['pid'])
            self.assertEqual(before, client.do('list-sockets'))
            self.assertEqual('x', client.do('get', name='value'))
            client.do('close-stdin', name='child')
            watch = client.watch('child').read_all()
            self.assertEqual(b'one\n', watch.out['child'])
            self.assertEqual({'child': 6}, watch.closed)

    def test_an_upgrade_to_broken_code_changes_nothing(self):
        before = self.client.do('status')['pid']
        broken = os.path.join(self.kernel.directory, 'broken')
        package = os.path.join(broken, 'gocept', 'runner', 'kernel')
        os.makedirs(package)
        with open(os.path.join(package, 'start.py'), 'w') as file:
            file.write('raise SystemExit("broken")')
        with self.assertRaisesRegex(Refused, 'cannot take over.*broken'):
            self.client.do('upgrade', python=sys.executable, path=[broken])
        self.assertEqual(before, self.client.do('status')['pid'])

    def test_after_a_failed_upgrade_children_have_the_sockets(self):
        number = self.client.do('make-socket', name='socket')['fileno']
        with self.assertRaisesRegex(Refused, 'cannot take over'):
            self.client.do('upgrade', python='/bin/false',
                           path=code()['path'])
        self.client.shell('child', f'test -S /proc/self/fd/{number}')
        watch = self.connect().watch('child').read_all()
        self.assertEqual({'child': 0}, watch.closed)

    def test_a_stop_by_force_during_an_upgrade(self):
        self.pid = self.client.do('status')['pid']
        places = {}
        for name in ('trial', 'go', 'done'):
            places[name] = os.path.join(self.kernel.directory, name)
            os.mkfifo(places[name])
        python = pathlib.Path(self.kernel.directory, 'python')
        python.write_text(f'#!/bin/sh\nread x <{places["trial"]}; echo ok\n')
        python.chmod(0o755)
        self.client.shell(
            'child', f'read x <{places["go"]}; head -c 300000 /dev/zero && '
            f'echo fine >{places["done"]}', env={'PATH': os.environ['PATH']})
        self.client.send('upgrade', {
            'python': str(python), 'path': [*code()['path']]})
        os.kill(self.kernel.keeper, signal.SIGSTOP)  # it is slow to end
        self.client.do('stop', force=True)
        with open(places['trial'], 'w') as file:
            trial = os.pidfd_open(self.trial())
            file.write('\n')
        self.addCleanup(os.close, trial)
        self.assertTrue(select.select([trial], [], [], PATIENCE)[0])
        os.kill(self.kernel.keeper, signal.SIGCONT)
        wait_for_end(self.kernel.keeper)
        with open(places['go'], 'w') as file:
            file.write('\n')
        with open(places['done']) as file:
            self.assertEqual('fine\n', file.read())
        wait_for_end(self.pid)

    def trial(self):
        """The child of the daemon that tries other code."""
        [pid] = [pid for pid in procfs.children(self.pid)
                 if '--trial' in procfs.command_line(pid)]
        return pid

    def test_two_upgrades_at_once(self):
        params = {'python': sys.executable, 'path': [*code()['path']]}
        number = self.client.send('upgrade', params)
        with self.kernel.connect() as other:
            try:
                other.do('upgrade', **params)
            except Refused as error:
                self.assertIn('under way', str(error))
            except ConnectionError:
                pass
        self.assertIsNone(self.client.result(number))
        with self.kernel.connect() as client:
            self.assertEqual(1, client.do('status')['upgrades'])


class Passed(unittest.TestCase):

    def test_sockets_of_systemd_are_sockets_of_the_kernel(self):
        with socket.create_server(('127.0.0.1', 0)) as sock:
            port = sock.getsockname()[1]
            number = os.dup(sock.fileno())
            os.set_inheritable(number, True)
            try:
                kernel = RawKernel(
                    prepare=f'exec 3<&{number}; LISTEN_PID=$$; LISTEN_FDS=1; '
                            'LISTEN_FDNAMES=web; export LISTEN_PID LISTEN_FDS '
                            'LISTEN_FDNAMES')
            finally:
                os.close(number)
        self.addCleanup(kernel.close)
        with kernel.connect() as client:
            found = client.do('list-sockets')
            self.assertEqual(
                ['inet', 'stream', '127.0.0.1', port],
                [found['web'][key]
                 for key in ('family', 'type', 'host', 'port')])
            client.make('child', '/bin/sh', '-c',
                        'test -S /proc/self/fd/$0; echo $?; env',
                        '$(socket.web.fileno)')
            watch = kernel.connect().watch('child')
            self.addCleanup(watch.client.close)
            watch.read_all()
            self.assertEqual(b'0', watch.out['child'][:1])
            self.assertNotIn(b'LISTEN', watch.out['child'])
        kernel.kill_daemon()
        with kernel.connect() as client:
            self.assertEqual(found, client.do('list-sockets'))
        socket.create_connection(('127.0.0.1', port)).close()


class Descriptors(unittest.TestCase):

    def test_nothing_is_left_open(self):
        kernel = RawKernel()
        self.addCleanup(kernel.close)
        with kernel.connect() as client:
            status = client.do('status')

            def count():
                return [len(os.listdir(f'/proc/{status[key]}/fd'))
                        for key in ('pid', 'keeper')]

            client.shell('first', 'echo x')
            with kernel.connect() as other:
                other.watch('first').read_all()
            before = count()
            for number in range(20):
                client.shell(f'p{number}', 'echo x; cat', stdin='pipe',
                             **({'rlimits': {'core': 0}} if number % 2
                                else {}))
                client.do('write', name=f'p{number}', data=b'abc')
                client.do('close-stdin', name=f'p{number}')
            with kernel.connect() as other:
                other.watch('p*').read_all()
            client.do('make-socket', name='s')
            client.do('remove-sockets', names=['s'])
            client.do('ping')
            deadline = time.monotonic() + PATIENCE
            while count() > before and time.monotonic() < deadline:
                client.do('ping')
            self.assertLessEqual(count(), before)

    def test_a_successor_has_some_left(self):
        kernel = RawKernel(prepare='ulimit -n 120')
        self.addCleanup(kernel.close)
        with kernel.connect() as client:
            names = []
            with self.assertRaisesRegex(Refused, 'Too many open files'):
                for number in range(100):
                    name = f'p{number}'
                    client.shell(name, 'read x', stdin='pipe')
                    names.append(name)
            with self.assertRaisesRegex(Refused, 'Too many open files'):
                for number in range(100):
                    client.do('make-socket', name=f's{number}')
        self.assertGreater(len(names), 5)
        for _ in range(3):
            kernel.kill_daemon()
        with kernel.connect() as client:
            found = client.do('list-processes')
            self.assertEqual({*names}, {*found})
            self.assertTrue(all(each['running'] for each in found.values()))
