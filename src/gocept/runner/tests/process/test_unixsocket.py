"""Sockets that children listen on, or do not."""

import contextlib
import os
import signal
import socket
import threading
from unittest import mock

from gocept.runner.errors import DeadlineExceeded, StartError
from gocept.runner.process import procfs
from gocept.runner.process.unixsocket import connect, make_way
from gocept.runner.tests.spawn.test_runner import (
    ECHO,
    RELUCTANT_DESCENDANT,
    SpawnTestCase,
    settle,
)
from gocept.runner.tests.streams import Alarms
from gocept.runner.tests.support import DEADLINE


class ListeningTestCase(SpawnTestCase):

    def setUp(self):
        super().setUp()
        self.path = self.dir / 'socket'

    def bound(self, path=None, kind=socket.SOCK_STREAM):
        """A socket of ours that is there, but on which nobody listens."""
        sock = self.enterContext(socket.socket(socket.AF_UNIX, kind))
        sock.bind(str(path or self.path))
        return sock


class MakeWayTests(ListeningTestCase):

    def assertRemoved(self):
        make_way(str(self.path))
        self.assertFalse(os.path.lexists(self.path))

    def assertLeftAlone(self, expected):
        before = os.lstat(self.path)
        with self.assertRaisesRegex(StartError, expected):
            make_way(str(self.path))
        # A look at it may change the time of the last access.
        self.assertTrue(os.path.samestat(before, os.lstat(self.path)))
        # So it is when it is started.
        self.add_server()
        with self.assertRaises(StartError):
            self.runner.start('server')
        self.assertEqual([], self.runner.aliases())

    def test_nothing(self):
        self.assertRemoved()

    def test_an_empty_file(self):
        self.path.touch()
        self.assertRemoved()

    def test_a_stale_socket(self):
        self.bound().close()
        self.assertRemoved()

    def test_a_socket_on_which_nobody_listens_yet(self):
        self.bound()
        self.assertLeftAlone('another process has bound .*socket, and is')

    def test_one_that_was_bound_by_a_name_in_its_directory(self):
        with contextlib.chdir(self.dir):
            self.bound('socket')
        self.assertLeftAlone('another process has bound')

    def test_one_of_the_same_name_that_is_elsewhere(self):
        (self.dir / 'other').mkdir()
        self.bound(self.dir / 'other' / 'socket')
        self.bound().close()
        self.assertRemoved()

    def test_a_file(self):
        self.path.write_text('x')
        self.assertLeftAlone('not a socket')

    def test_a_directory(self):
        self.path.mkdir()
        self.assertLeftAlone('not a socket')

    def test_a_link(self):
        (self.dir / 'file').touch()
        self.path.symlink_to(self.dir / 'file')
        self.assertLeftAlone('not a socket')
        self.assertTrue((self.dir / 'file').exists())

    def test_a_link_to_nothing(self):
        self.path.symlink_to(self.dir / 'file')
        self.assertLeftAlone('not a socket')

    def test_a_named_pipe(self):
        os.mkfifo(self.path)
        self.assertLeftAlone('not a socket')

    def test_a_server(self):
        self.bound().listen()
        self.assertLeftAlone('another process listens on .*socket already')

    def test_a_server_that_is_busy(self):
        server = self.bound()
        server.listen(0)
        self.enterContext(connect(str(self.path)))
        with self.assertRaises(BlockingIOError):
            connect(str(self.path))
        self.assertLeftAlone('another process listens on .*socket already')

    def test_a_socket_of_another_kind(self):
        self.bound(kind=socket.SOCK_DGRAM)
        self.assertLeftAlone('is in the way: .*Protocol wrong type')

    def test_a_name_that_is_seen_from_another_directory(self):
        elsewhere = self.dir / 'elsewhere'
        elsewhere.mkdir()
        self.bound().close()  # a stale one
        with contextlib.chdir(elsewhere):
            self.bound(self.path.name)
            make_way(str(self.path))
            self.assertFalse(self.path.exists())
        with contextlib.chdir(self.dir):
            self.bound(self.path.name)
            self.assertLeftAlone('another process has bound .*socket, and')

    def test_one_of_ours_that_runs(self):
        self.add_server()
        self.runner.start('server')
        with self.assertRaisesRegex(StartError, 'another process listens'):
            self.runner.start('server', 'another')
        self.assertEqual(['server'], self.runner.aliases())
        self.assertTrue(self.runner.running('server'))

    def test_no_such_directory(self):
        make_way(str(self.dir / 'x' / 'y'))

    def test_one_that_has_just_ended_is_not_in_the_way(self):
        self.bound().close()
        row = b'0: 00000002 00000000 00000000 0001 01 999 socket\n'
        for later in b'', row:
            with (self.subTest(later), mock.patch.object(
                    procfs, 'table', side_effect=[row, later])):
                if later:
                    self.assertRaises(StartError, make_way, str(self.path))
                else:
                    make_way(str(self.path))
                    self.assertFalse(self.path.exists())
                    self.bound().close()


class ConnectTests(ListeningTestCase):

    def test_nobody(self):
        with self.assertRaises(FileNotFoundError):
            connect(str(self.path))
        self.bound()
        with self.assertRaises(ConnectionRefusedError):
            connect(str(self.path))

    def test_the_longest_path_and_longer_ones(self):
        for length in (107, 108, 150, 300):
            directory = str(self.dir)
            while length - len(directory) > 60:
                directory += '/' + 'd' * 50
            os.makedirs(directory, exist_ok=True)
            name = 's' * (length - len(directory) - 1)
            self.assertEqual(length, len(f'{directory}/{name}'))
            with self.subTest(length), contextlib.chdir(directory):
                with self.assertRaises(FileNotFoundError):
                    connect(f'{directory}/{name}')
                server = self.bound(name)
                server.listen()
                with self.assertRaisesRegex(StartError, 'listens'):
                    make_way(f'{directory}/{name}')
                connect(f'{directory}/{name}').close()
                server.close()
                make_way(f'{directory}/{name}')
                self.assertFalse(os.path.exists(name))

    def test_bytes_count(self):
        directory = self.dir / ('ä' * 40)
        directory.mkdir()
        with contextlib.chdir(directory):
            self.bound('socket').listen()
        connect(f'{directory}/socket').close()

    def test_a_name_that_nobody_could_bind(self):
        with self.assertRaisesRegex(OSError, 'too long'):
            connect(f'{self.dir}/{"s" * 200}')


class StartTests(ListeningTestCase):
    """When `start` returns, and how else it ends."""

    def assertNothingThere(self, name='server'):
        self.assertFalse(self.runner.running(name))
        self.assertIsNone(self.runner.get_channel(name))
        self.runner.terminate(name)

    def test_one_that_binds_late(self):
        self.add_server(body="say('here'); wait();" + ECHO)
        start = self.thread(self.runner.start, 'server')
        self.log.wait_for('server: here')
        self.assertTrue(start.is_alive())
        self.let_go()
        start.result()
        self.assertEqual(str(self.process('server').pid),
                         self.read_line('server'))

    def test_one_that_binds_but_does_not_listen_yet(self):
        self.add_server(body='''
            server = bind()
            say('here')
            wait()
            echo(server)
            ''')
        start = self.thread(self.runner.start, 'server')
        self.log.wait_for('server: here')
        self.assertTrue(self.path.exists())
        self.assertTrue(start.is_alive())
        self.let_go()
        start.result()
        self.read_line('server')

    def test_one_whose_directory_is_not_there_yet(self):
        self.add_server(body='''
            say('here')
            wait()
            os.mkdir('run')
            echo(bind('run/socket'))
            ''', socket='run/socket')
        start = self.thread(self.runner.start, 'server')
        self.log.wait_for('server: here')
        self.let_go()
        start.result()
        self.read_line('server')

    def test_a_path_that_is_known_at_the_start(self):
        path = str(self.path)
        self.add('server', ECHO, type='socket')
        with self.assertRaises(KeyError):
            self.runner.terminate('server')  # it was never started
        for start in self.runner.start, self.runner.ensure_running:
            self.add('server', ECHO, type='socket')
            with self.assertRaisesRegex(
                    ValueError, "'server': type='socket' needs socket=PATH"):
                start('server')
            self.assertIsNone(self.runner.get_channel('server'))
            start('server', socket=path)
            self.read_line('server')
            self.runner.ensure_running('server', socket=path)
            self.runner.terminate('server')
            self.add('server', ECHO)
            start('server', type='socket', socket=path)
            self.read_line('server')
            self.runner.terminate('server')

    def test_a_path_seen_from_our_directory(self):
        self.enterContext(contextlib.chdir(self.dir.parent))
        path = f'{self.dir.name}/socket'
        for cwd in self.dir.name, self.dir:
            self.path.unlink(missing_ok=True)
            self.bound().close()  # a stale one
            self.add_server(cwd=cwd, socket=path)
            self.runner.start('server')
            self.assertEqual(str(self.process('server').pid),
                             self.read_line('server'))
            self.runner.terminate('server')

    def test_others_that_are_seen_from_our_directory(self):
        # What is not at the path that the process sees is not ours to judge.
        home = self.dir / 'home'
        home.mkdir()
        self.enterContext(contextlib.chdir(home))
        (home / 'file').touch()
        self.bound('listens').listen()
        self.bound('busy')
        for name in 'file', 'listens', 'busy':
            self.add_server(
                body=f'say("here"); wait(); echo(bind({name!r}))', socket=name)
            start = self.thread(self.runner.start, 'server')
            self.log.wait_for('server: here')
            self.let_go()
            start.result()
            self.assertEqual(str(self.process('server').pid),
                             self.read_line('server'))
            self.runner.terminate('server')
            self.assertTrue((home / name).exists())

    def test_one_that_is_busy(self):
        # Others were there before, and its queue is full.
        self.add_server(body='''
            server = bind()
            server.listen(0)
            client = socket.socket(socket.AF_UNIX)
            client.connect('socket')
            say('here')
            wait()
            server.accept()
            echo(server)
            ''')
        start = self.thread(self.runner.start, 'server')
        self.log.wait_for('server: here')
        self.assertTrue(start.is_alive())
        self.let_go()
        start.result()
        self.read_line('server')

    def test_ends_before(self):
        self.add_server(body='''
            say('cannot work')
            os.write(2, b'today')
            sys.exit(3)
            ''', start_timeout=3600)
        with self.assertRaises(StartError) as caught:
            self.runner.start('server')
        self.assertEqual(3, caught.exception.returncode)
        self.assertEqual(b'cannot work\ntoday', caught.exception.output)
        self.assertEqual(
            f"'server' ended with 3 before it listened on {self.path} or "
            f'{os.getcwd()}/socket; its output ends with:\ncannot work\n'
            'today', str(caught.exception))
        self.assertEqual(3, self.runner.status('server'))
        self.assertNothingThere()

    def test_ends_before_and_says_nothing(self):
        self.add_server(body='os.kill(os.getpid(), 9)')
        with self.assertRaisesRegex(StartError, 'its output is empty$') as c:
            self.runner.start('server')
        self.assertEqual(-signal.SIGKILL, c.exception.returncode)

    def test_is_not_restarted_if_it_never_listened(self):
        self.add_server(body='sys.exit(3)', restart='always', restart_delay=0)
        with self.assertRaises(StartError):
            self.runner.start('server')
        settle()
        self.assertEqual([], self.log.having('restarting'))

    def test_ends_but_leaves_a_descendant(self):
        self.add_server(body=RELUCTANT_DESCENDANT + 'sys.exit(3)',
                        start_timeout=3600, stop_timeout=0)
        with self.assertRaises(StartError):
            self.runner.start('server')
        self.assertNothingThere()

    def test_a_descendant_that_listens_instead(self):
        # It is not what we have started.
        self.add_server(body='''
            server = bind()
            if not os.fork():
                wait()
                echo(server)
            sys.exit(0)
            ''')
        start = self.thread(self.runner.start, 'server')
        with self.assertRaises(StartError) as caught:
            start.result()
        self.assertEqual(0, caught.exception.returncode)
        self.assertNothingThere()

    def test_a_stranger_that_was_there_before_listens_instead(self):
        self.add_server(body="say('here'); pause()")
        start = self.thread(self.runner.start, 'server')
        self.log.wait_for('server: here')
        self.bound().listen()
        with self.assertRaisesRegex(
                StartError, rf'^process {os.getpid()} \(.+\) listens on .*'
                "socket in place of 'server'"):
            start.result()
        self.assertNothingThere()

    def test_a_child_of_another_start_listens_instead(self):
        self.add_server(body="bind(); say('here'); pause()")
        start = self.thread(self.runner.start, 'server')
        self.log.wait_for('server: here')
        self.add('other', "os.unlink('socket');" + ECHO)
        self.runner.start('other')
        with self.assertRaisesRegex(
                StartError, rf'^process {self.process("other").pid} '):
            start.result()
        self.assertNothingThere()

    def test_a_descendant_with_the_same_socket(self):
        self.add_server(body='''
            server = bind()
            if os.fork():
                pause()
            echo(server)
            ''')
        self.runner.start('server')
        self.assertNotEqual(str(self.process('server').pid),
                            self.read_line('server'))

    def test_deadline(self):
        self.add_server(body='''
            if not os.fork():
                say(os.getpid())
                pause()
            say('still busy')
            pause()
            ''', start_timeout=0.3)
        with self.assertRaises(DeadlineExceeded) as caught:
            self.runner.start('server')
        self.assertRegex(
            str(caught.exception),
            f"^'server' has not listened on {self.path} or "
            f'{os.getcwd()}/socket after 0.3 s; its '
            'output (ends with:\n|is empty)')
        self.assertNothingThere()
        self.assertEqual(-signal.SIGTERM, self.runner.status('server'))
        for line in caught.exception.seen.split():
            if line.isdigit():
                now = procfs.stat(int(line))
                self.assertTrue(now is None or now.state in 'ZX', now)

    def test_deadline_and_a_stubborn_one(self):
        self.add_server(body='''
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            pause()
            ''', start_timeout=0.2, stop_timeout=0.01)
        with self.assertRaises(DeadlineExceeded):
            self.runner.start('server')
        self.assertIn(self.runner.status('server'),
                      (-signal.SIGKILL, -signal.SIGTERM))

    def test_no_time_at_all(self):
        self.add_server(body='pause()', start_timeout=0)
        with self.assertRaises(DeadlineExceeded):
            self.runner.start('server')
        self.assertNothingThere()

    def test_again_after_a_failure(self):
        self.add_server(body='wait();' + ECHO, start_timeout=0)
        with self.assertRaises(DeadlineExceeded):
            self.runner.start('server')
        self.let_go()
        self.runner.ensure_running('server', start_timeout=DEADLINE)
        self.read_line('server')

    def test_a_path_that_cannot_be(self):
        self.add_server(body='pause()', socket='s' * 200)
        with self.assertRaisesRegex(StartError, 'bytes too long'):
            self.runner.start('server')
        self.assertNothingThere()

    def test_a_directory_that_is_a_file(self):
        (self.dir / 'file').touch()
        self.add_server(socket='file/socket')
        with self.assertRaises((StartError, NotADirectoryError)):
            self.runner.start('server')

    def test_what_is_in_the_way_is_removed(self):
        self.bound().close()
        self.add_server()
        self.runner.start('server')
        self.process('server').send_signal(signal.SIGKILL)
        self.wait('server')
        self.assertTrue(self.path.exists())
        self.runner.start('server')
        self.runner.terminate('server')
        self.path.unlink()
        self.path.touch()
        self.runner.start('server')
        self.assertEqual(str(self.process('server').pid),
                         self.read_line('server'))

    def test_an_absolute_path(self):
        self.add_server(body=f'echo(bind({str(self.path)!r}))', cwd='/',
                        socket=self.path)
        self.runner.start('server')
        self.read_line('server')

    def test_a_relative_directory(self):
        with contextlib.chdir(self.dir.parent):
            self.add_server(cwd=self.dir.name)
            self.runner.start('server')
        self.read_line('server')

    def test_a_long_path(self):
        directory = self.dir / ('d' * 100) / ('d' * 100)
        directory.mkdir(parents=True)
        self.add_server(cwd=directory)
        for _ in range(2):
            self.runner.start('server')
            self.read_line('server')
            self.process('server').send_signal(signal.SIGKILL)
            self.wait('server')

    def test_an_interrupted_start(self):
        # As by Ctrl-C; nobody could use what was started.
        class Interrupted(BaseException):
            pass

        def handler(*args):
            raise Interrupted
        previous = signal.signal(signal.SIGUSR1, handler)
        self.addCleanup(signal.signal, signal.SIGUSR1, previous)
        self.add_server(body='''
            os.kill(os.getppid(), signal.SIGUSR1)
            pause()
            ''', start_timeout=3600)
        with Alarms(), self.assertRaises(Interrupted):
            self.runner.start('server')
        self.assertNothingThere()


class OutputTests(ListeningTestCase):
    """What a server says."""

    def test_much_before_it_listens(self):
        self.add_server(body='''
            for _ in range(100):
                os.write(1, b'x' * 9999 + b'\\n')
            say('listening')
            ''' + ECHO)
        self.runner.start('server')
        self.log.wait_for('server: listening')
        self.assertEqual(300, len(self.log.having('server: x')))

    def test_much_before_it_fails(self):
        self.add_server(body='''
            for number in range(100):
                os.write(1, b'x' * 9999 + b'\\n')
            say('last words')
            sys.exit(1)
            ''')
        with self.assertRaises(StartError) as caught:
            self.runner.start('server')
        self.assertEqual(2 ** 14, len(caught.exception.output))
        self.assertTrue(caught.exception.output.endswith(b'\nlast words\n'))

    def test_much_afterwards(self):
        self.add_server(body='''
            server = bind()
            server.listen()
            client = server.accept()[0]
            client.recv(1)
            for _ in range(100):
                os.write(2, b'x' * 9999 + b'\\n')
            client.send(b'done\\n')
            pause()
            ''')
        self.runner.start('server')
        self.runner.get_channel('server').write(b'.')
        self.assertEqual('done', self.read_line('server'))
        self.log.wait_for('server: x', 300)

    def test_it_may_go_elsewhere(self):
        self.add_server(body="say('out'); os.write(2, b'err');" + ECHO)
        self.runner.start('server', stdout=self.dir / 'out', stderr='null')
        self.read_line('server')
        self.assertEqual(b'out\n', (self.dir / 'out').read_bytes())
        self.assertEqual([], self.log.having('server: '))

    def test_a_failure_whose_output_went_elsewhere(self):
        self.add_server(body='sys.exit(1)')
        with self.assertRaisesRegex(StartError, 'output was not kept'):
            self.runner.start('server', stdout='null')

    def test_channels_of_its_own(self):
        self.add_server(body='''
            say('out')
            os.write(2, 'ä\\n'.encode())
            ''' + ECHO, stdout='pipe', stderr='pipe', encoding='utf-8')
        self.runner.start('server')
        pipe = self.runner.get_channel('server', 'stdout')
        self.assertEqual(('', 'out\n'), pipe.read_until('out\n', DEADLINE))
        pipe = self.runner.get_channel('server', 'stderr')
        self.assertEqual(('', 'ä\n'), pipe.read_until('ä\n', DEADLINE))
        channel = self.runner.get_channel('server')
        self.assertIsNot(pipe, channel)
        channel.read_until('\n', DEADLINE)
        channel.write('ö\n')
        self.assertEqual(('', 'ö\n'), channel.read_until('ö\n', DEADLINE))

    def test_standard_error_beside_the_log(self):
        self.add_server(body='''
            say('out')
            os.write(2, b'err')
            ''' + ECHO, stderr='pipe')
        self.runner.start('server')
        self.log.wait_for('server: out')
        pipe = self.runner.get_channel('server', 'stderr')
        self.assertEqual((b'', b'err'), pipe.read_until(b'err', DEADLINE))

    def test_unread_answers_of_one_that_has_ended(self):
        self.add_server(body='''
            server = bind()
            server.listen()
            client = server.accept()[0]
            client.send(b'one\\ntwo')
            client.close()
            ''')
        self.runner.start('server')
        self.wait('server')
        channel = self.runner.get_channel('server')
        self.assertEqual([b'one\n', b'two'], [channel.read(), channel.read()])
        self.assertIsNone(self.runner.get_channel('server'))


class ManyTests(ListeningTestCase):

    level = 2

    def test_many_at_once(self):
        names = [str(number) for number in range(30)]
        for name in names:
            self.add_server(name, f'echo(bind({name!r}))', socket=name,
                            start_timeout=DEADLINE)
        barrier = threading.Barrier(len(names))

        def start(name):
            barrier.wait(DEADLINE)
            self.runner.start(name)
            return self.read_line(name)
        calls = {name: self.thread(start, name) for name in names}
        for name, call in calls.items():
            self.assertEqual(call.result(), str(self.process(name).pid))
