"""Named applications, and what goes wrong with them.

The base of these tests is used by those of the other modules as well.
"""

import contextlib
import logging
import os
import pathlib
import pwd
import shutil
import signal
import sys
import tempfile
import textwrap
import threading
import unittest
from collections import Counter
from unittest import mock

import zope.interface.verify

from gocept.runner.errors import (
    DeadlineExceeded,
    EndpointClosedException,
    ProcessExistsException,
    StartError,
)
from gocept.runner.interfaces import IRunner
from gocept.runner.poller import Poller, Timer, background
from gocept.runner.process import Process, procfs
from gocept.runner.spawn import Runner
from gocept.runner.tests import support
from gocept.runner.tests.streams import read_to_end
from gocept.runner.tests.support import DEADLINE, open_descriptors, settle
from gocept.runner.tests.victims import VICTIM, until
from gocept.runner.waits.deadline import Deadline

# What children do. What they write is what a test waits for.
CHILD = VICTIM + '''\
import socket

signal.alarm(1000)  # some tests take minutes on a busy machine

def wait():
    """Wait until the test calls `let_go`."""
    wait_at('go')

def bind(path='socket'):
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    return server

def echo(server):
    """Say who we are, and send back what comes; to one client at a time."""
    server.listen(5)
    while True:
        client = readable(server).accept()[0]
        client.send(b'%d\\n' % os.getpid())
        while data := readable(client).recv(1000):
            client.send(data)

'''

ECHO = 'echo(bind())'

STUBBORN = '''
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say('ready', os.getpid())
    pause()
    '''

# A descendant that hears of the signal, but stays until it may go.
RELUCTANT_DESCENDANT = '''
    read, write = os.pipe()
    if not os.fork():
        os.close(read)
        signal.signal(signal.SIGTERM, lambda *args: (
            os.close(os.open('told', os.O_CREAT)), wait(), os._exit(0)))
        os.write(write, b'.')
        pause()
    os.read(read, 1)
    '''


def python(body):
    """A command that runs Python, with the functions above."""
    return [sys.executable, '-I', '-S', '-c', CHILD + textwrap.dedent(body)]


class Log(logging.Handler):
    """Collects messages, and waits for them."""

    def __init__(self):
        super().__init__()
        self.messages = []
        self.records = []
        self._more = threading.Condition()

    def emit(self, record):
        with self._more:
            self.messages.append(record.getMessage())
            self.records.append(record)
            self._more.notify_all()

    def having(self, text):
        return [message for message in list(self.messages)
                if text in message]

    def wait_for(self, text, count=1):
        """Return the last of so many messages."""
        with self._more:
            if not self._more.wait_for(
                    lambda: len(self.having(text)) >= count, DEADLINE):
                raise AssertionError(f'{text!r} is not there {count} times: '
                                     f'{self.messages}')
            return self.having(text)[count - 1]


class SpawnTestCase(unittest.TestCase):
    """A runner, which leaves no descriptor, process or thread behind."""

    def setUp(self):
        self.enterContext(support.quiet_children())
        self.addCleanup(support.end_background)
        settle()  # and begin the one thread that may stay
        self.before = self.state()
        self.addCleanup(self.assertNothingLeft)
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)
        os.mkfifo(self.dir / 'go')
        # Open for reading as well, so that no write waits for a reader.
        self._go = os.open(self.dir / 'go', os.O_RDWR)
        self.addCleanup(os.close, self._go)
        self.log = Log()
        for name in ('spawn', 'process', 'poller', 'ending', 'channel'):
            logger = logging.getLogger(f'gocept.runner.{name}')
            for attribute, value in (('propagate', False),
                                     ('level', logging.DEBUG)):
                patch = mock.patch.object(logger, attribute, value)
                patch.start()
                self.addCleanup(patch.stop)
            logger.addHandler(self.log)
            self.addCleanup(logger.removeHandler, self.log)
            logger.manager._clear_cache()
            self.addCleanup(logger.manager._clear_cache)
        self.runner = self.enterContext(Runner())

    def state(self):
        # Some null devices are kept back for when no descriptors are left.
        return (sorted(target for target in open_descriptors().values()
                       if target != os.devnull),
                procfs.children(os.getpid()),
                [thread for thread in threading.enumerate()
                 if thread.name != 'gocept.runner.forker'])

    def assertNothingLeft(self):
        settle()
        for thread in threading.enumerate():
            if thread.name == 'gocept.runner.spawn':  # one that ends others
                thread.join(DEADLINE)
        # Whoever has noticed an end first may be a bit behind.
        with contextlib.suppress(AssertionError):
            until(lambda: not any(self.left()))
        self.assertEqual([[], [], []], self.left())

    def left(self):
        """What was not there before; what was there may end meanwhile."""
        return [[*(Counter(now) - Counter(before)).elements()]
                for now, before in zip(self.state(), self.before, strict=True)]

    def let_go(self):
        """End a `wait` of a child; or else the next one."""
        os.write(self._go, b'.')

    def add(self, name, body, **kwargs):
        """An application in Python, in our directory."""
        self.runner.add(name, python(body), **{'cwd': self.dir} | kwargs)

    def add_server(self, name='server', body=ECHO, **kwargs):
        self.add(name, body, **{'type': 'socket', 'socket': 'socket',
                                'buffering': 'line'} | kwargs)

    def process(self, alias):
        return self.runner.get_process(alias)

    def wait(self, alias):
        return self.process(alias).wait(DEADLINE)

    def output(self, app_name, alias=None, with_args=None, **kwargs):
        """What an application says up to its end."""
        self.runner.start(app_name, alias, with_args, **kwargs)
        reads = read_to_end(self.runner.get_channel(alias or app_name))
        self.wait(alias or app_name)
        return b''.join(reads).decode()

    def read_line(self, alias, stream=None):
        channel = self.runner.get_channel(alias, stream)
        before, match = channel.read_until(b'\n', DEADLINE)
        return (before + match).decode().strip()

    def thread(self, target, *args, **kwargs):
        """A thread, and what becomes of the call."""
        call = Call(target, args, kwargs)
        # In reverse order: what it needs is closed later.
        self.addCleanup(call.join, DEADLINE)
        call.start()
        return call


class Call(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, target, args, kwargs):
        super().__init__(daemon=True)
        self._call = lambda: target(*args, **kwargs)
        self._value = self._error = None

    def run(self):
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def result(self):
        self.join(DEADLINE)
        if self.is_alive():
            raise AssertionError('a thread hangs')
        try:
            if self._error is not None:
                raise self._error
            return self._value
        finally:
            self._error = None


class SeedTests(SpawnTestCase):

    def test_stdio(self):
        self.runner.update_config({'cat': {'command': 'cat',
                                           'type': 'stdio'}})
        self.runner.ensure_running('cat')
        channel = self.runner.get_channel('cat')
        channel.write(b'hello, world')
        self.assertEqual((b'', b'hello, world'),
                         channel.read_until(b'hello, world', DEADLINE))

    def test_socket(self):
        self.runner.update_config({'server': {
            'command': python(ECHO), 'type': 'socket', 'socket': 'socket',
            'cwd': str(self.dir)}})
        self.runner.ensure_running('server')
        channel = self.runner.get_channel('server')
        channel.write(b'hello, ', b'world')
        channel.read_until(b'hello, world', DEADLINE)

    def test_a_closed_channel_to_a_socket_is_connected_again(self):
        self.add_server()
        self.runner.start('server')
        pid = self.read_line('server')
        self.runner.get_channel('server').close()
        self.assertEqual(pid, self.read_line('server'))

    def test_a_fork_ends_nothing(self):
        self.runner.add('cat', 'cat', buffering='line')
        self.runner.start('cat')
        pid = os.fork()
        if not pid:
            try:
                self.runner.close()
                os._exit(0)
            finally:
                os._exit(1)
        self.assertEqual((pid, 0), os.waitpid(pid, 0))
        channel = self.runner.get_channel('cat')
        self.assertFalse(os.get_blocking(channel.get_fd()))
        channel.write(b'still here\n')
        self.assertEqual('still here', self.read_line('cat'))

    def test_what_one_has_left_behind_ends_before_it_starts_anew(self):
        self.add('forks', '''
            pid = os.fork()
            if not pid:
                pause()
            say(pid)
            sys.exit(1)
            ''')
        self.runner.start('forks')
        pid = int(self.read_line('forks'))
        self.wait('forks')
        self.runner.ensure_running('forks')
        self.assertIn(getattr(procfs.stat(pid), 'state', 'X'), 'ZX')
        pid = int(self.read_line('forks'))
        self.wait('forks')
        self.runner.start('forks', restart='on-failure', restart_limit=1,
                          restart_delay=0)
        self.assertIn(getattr(procfs.stat(pid), 'state', 'X'), 'ZX')
        pid = int(self.read_line('forks'))
        self.log.wait_for('given up')
        self.assertIn(getattr(procfs.stat(pid), 'state', 'X'), 'ZX')

    def test_contract(self):
        zope.interface.verify.verifyObject(IRunner, self.runner)

    def test_terminate(self):
        self.runner.add('cat', 'cat')
        self.runner.start('cat')
        channel = self.runner.get_channel('cat')
        self.runner.terminate('cat')
        self.assertIsNone(self.runner.get_channel('cat'))
        self.assertTrue(channel.closed)
        self.assertEqual(-signal.SIGTERM, self.runner.status('cat'))

    def test_line_buffering(self):
        self.runner.add('cat', 'cat', buffering='line')
        self.runner.start('cat')
        channel = self.runner.get_channel('cat')
        channel.write(b'one\ntwo\nthr')
        channel.write_eof()
        self.assertEqual([b'one\n', b'two\n', b'thr'], read_to_end(channel))


class NamesTests(SpawnTestCase):

    def setUp(self):
        super().setUp()
        self.runner.add('echo', ['echo', 'one'])

    def test_with_args(self):
        self.assertEqual('one two  three\n',
                         self.output('echo', with_args=['two', ' three']))

    def test_with_args_and_a_string(self):
        self.runner.add('echo', "echo 'o  ne'")
        self.assertEqual("o  ne t w o '\n",
                         self.output('echo', with_args=['t w o', "'"]))

    def test_with_args_and_a_shell(self):
        self.runner.add('echo', 'echo $0; echo', shell=True)
        self.assertEqual('/bin/sh\n$0 ;\n',
                         self.output('echo', with_args=['$0', ';']))

    def test_with_no_args(self):
        self.assertEqual('one\n', self.output('echo', with_args=[]))

    def test_with_a_path(self):
        self.assertEqual(f'one {self.dir}\n',
                         self.output('echo', with_args=[self.dir]))

    def test_args_that_are_none(self):
        for args, expected in (('two', "not 'two'"), ('', "not ''"),
                               ([2], 'with_args: .*not int')):
            with self.subTest(args):
                with self.assertRaisesRegex(TypeError, expected):
                    self.runner.start('echo', with_args=args)
        with self.assertRaisesRegex(ValueError, 'with_args: no argument'):
            self.runner.start('echo', with_args=['a\0b'])
        self.assertEqual([], self.runner.aliases())

    def test_an_environment_that_cannot_be_meant(self):
        for error, env in (TypeError, {'A': 1}), (ValueError, {'A=': '1'}):
            with self.assertRaisesRegex(
                    error, "application 'echo': extra_env: "):
                self.runner.add('echo', 'echo', extra_env=env)

    def test_overrides(self):
        self.assertEqual('two\n', self.output('echo', command='echo two'))
        self.assertEqual('one\n', self.output('echo'))

    def test_aliases(self):
        self.runner.add('cat', 'cat')
        self.runner.start('cat')
        self.runner.start('cat', 'dog')
        self.assertEqual(['cat', 'dog'], self.runner.aliases())
        for alias in 'cat', 'dog':
            self.runner.get_channel(alias).write(alias.encode() + b'\n')
        self.assertEqual('dog', self.read_line('dog'))
        self.assertEqual('cat', self.read_line('cat'))
        self.runner.terminate('cat')
        self.assertFalse(self.runner.running('cat'))
        self.assertTrue(self.runner.running('dog'))
        self.assertIsNone(self.runner.status('dog'))
        self.assertEqual(['cat', 'dog'], self.runner.aliases())

    def test_add_replaces(self):
        self.runner.add('echo', 'echo three')
        self.assertEqual('three\n', self.output('echo'))

    def test_update_config_does_all_or_nothing(self):
        with self.assertRaisesRegex(ValueError, "'bad': restart must be"):
            self.runner.update_config({
                'echo': {'command': 'echo two'},
                'new': {'command': 'echo'},
                'bad': {'command': 'echo', 'restart': 'sometimes'}})
        self.assertEqual('one\n', self.output('echo'))
        with self.assertRaisesRegex(
                KeyError, "no application 'new'; there are: echo"):
            self.runner.start('new')

    def test_a_configuration_that_is_changed_later(self):
        config = {'command': 'echo two'}
        self.runner.update_config({'echo': config})
        config['command'] = 'echo three'
        self.assertEqual('two\n', self.output('echo'))

    def test_bad_overrides(self):
        with self.assertRaisesRegex(TypeError, "'echo': 'colour' is no key"):
            self.runner.ensure_running('echo', colour='red')
        self.assertEqual([], self.runner.aliases())

    def test_unknown_names(self):
        with self.assertRaisesRegex(
                KeyError, "no application 'x'; there are: echo"):
            self.runner.ensure_running('x')
        self.assertIsNone(self.runner.get_channel('x'))
        self.assertFalse(self.runner.running('x'))
        for call in (self.runner.status, self.runner.terminate,
                     self.runner.get_process):
            with self.assertRaisesRegex(KeyError, 'started were: none'):
                call('x')
        self.runner.start('echo')
        with self.assertRaisesRegex(KeyError, "as 'x'; started were: echo"):
            self.runner.status('x')

    def test_unknown_stream(self):
        with self.assertRaisesRegex(ValueError, "not 'stdin'"):
            self.runner.get_channel('echo', 'stdin')

    def test_a_program_that_is_not_there(self):
        self.runner.add('x', str(self.dir / 'x'))
        with self.assertRaises(FileNotFoundError):
            self.runner.start('x')
        self.assertEqual([], self.runner.aliases())
        self.assertFalse(self.runner.running('x'))
        self.assertIsNone(self.runner.get_channel('x'))


class RunningTests(SpawnTestCase):

    def setUp(self):
        super().setUp()
        self.runner.add('cat', 'cat')

    def test_start_of_one_that_runs(self):
        self.runner.start('cat')
        with self.assertRaisesRegex(ProcessExistsException,
                                    "'cat' runs already: .*running"):
            self.runner.start('cat')
        self.assertTrue(self.runner.running('cat'))

    def test_ensure_running(self):
        self.runner.ensure_running('cat')
        process = self.process('cat')
        self.runner.ensure_running('cat')
        self.assertIs(process, self.process('cat'))
        self.runner.get_channel('cat').write_eof()
        self.assertEqual(0, self.wait('cat'))
        self.runner.ensure_running('cat')
        self.assertIsNot(process, self.process('cat'))
        self.assertTrue(self.runner.running('cat'))
        self.assertIsNone(self.runner.status('cat'))

    def test_start_after_terminate(self):
        for _ in range(3):
            self.runner.start('cat')
            self.runner.get_channel('cat').write(b'x\n')
            self.assertEqual('x', self.read_line('cat'))
            self.runner.terminate('cat')

    def test_the_end_is_noticed_without_a_question(self):
        self.runner.start('cat')
        process = self.process('cat')
        self.runner.get_channel('cat').write_eof()
        self.log.wait_for("'cat'", 2)
        self.assertEqual(0, process.returncode)

    def test_many_threads_start_one(self):
        self.add_server()
        for name in 'cat', 'server':
            barrier = threading.Barrier(8)

            def ensure():
                barrier.wait(DEADLINE)
                self.runner.ensure_running(name)
                return self.process(name), self.runner.get_channel(name)
            results = {call.result() for call in [
                self.thread(ensure) for _ in range(8)]}
            self.assertEqual(1, len(results))
            self.assertEqual(1, len(self.log.having(f"Started <Process "
                                                    f"'{name}'")))

    def test_output_of_one_that_has_ended(self):
        self.runner.add('echo', 'echo hello')
        for count in range(20):
            self.runner.ensure_running('echo')
            if count % 2:
                self.wait('echo')
            channel = self.runner.get_channel('echo')
            self.assertEqual([b'hello\n'], read_to_end(channel))
            self.wait('echo')
            self.assertIsNone(self.runner.get_channel('echo'))

    def test_lines_of_one_that_has_ended(self):
        self.runner.add('echo', 'printf one\\ntwo\\nthree', shell=True,
                        buffering='line')
        self.runner.add('echo', ['printf', 'one\\ntwo\\nthree'],
                        buffering='line', encoding='utf-8')
        self.runner.start('echo')
        self.wait('echo')
        for line in ('one\n', 'two\n', 'three'):
            self.assertEqual(line, self.runner.get_channel('echo').read())
        self.assertIsNone(self.runner.get_channel('echo'))

    def test_ended_without_a_stream_to_read(self):
        self.runner.start('cat', stdout='null')
        channel = self.runner.get_channel('cat')
        channel.write_eof()
        self.wait('cat')
        self.assertIsNone(self.runner.get_channel('cat'))

    def test_ended_and_closed_by_the_reader(self):
        self.runner.add('echo', 'echo hello')
        self.runner.start('echo')
        self.runner.get_channel('echo').close()
        self.wait('echo')
        self.assertIsNone(self.runner.get_channel('echo'))

    def test_no_pipes_at_all(self):
        self.runner.start('cat', stdin=self._go, stdout='null')
        self.assertTrue(self.runner.running('cat'))
        for stream in (None, 'stdout', 'stderr'):
            self.assertIsNone(self.runner.get_channel('cat', stream))

    def test_terminate_with_a_signal(self):
        self.add('stubborn', STUBBORN)
        self.runner.start('stubborn')
        self.read_line('stubborn')
        self.runner.terminate('stubborn', signal.SIGUSR1)
        self.assertEqual(-signal.SIGUSR1, self.runner.status('stubborn'))

    def test_terminate_with_a_timeout(self):
        self.add('stubborn', STUBBORN)
        self.runner.start('stubborn')
        self.read_line('stubborn')
        self.runner.terminate('stubborn', timeout=0)
        self.assertEqual(-signal.SIGKILL, self.runner.status('stubborn'))
        self.runner.terminate('stubborn')

    def test_close_ends_all_side_by_side(self):
        # Each ends when the other one was told.
        for name in 'ab':
            os.mkfifo(self.dir / name)
        for ours, other in 'ab', 'ba':
            self.add(ours, f'''
                ours = os.open({ours!r}, os.O_RDWR)
                other = os.open({other!r}, os.O_RDWR)
                def told(*args):
                    os.write(other, b'.')
                    os.read(ours, 1)
                    os._exit(0)
                signal.signal(signal.SIGTERM, told)
                say('ready')
                pause()
                ''', stop_timeout=DEADLINE)
        self.add('stubborn', STUBBORN, stop_timeout=0.01)
        for name in ('a', 'b', 'stubborn'):
            self.runner.start(name)
            self.read_line(name)
        self.runner.close()
        self.assertEqual([0, 0, -signal.SIGKILL],
                         [self.runner.status(name)
                          for name in self.runner.aliases()])
        self.assertFalse(self.runner.running('a'))
        self.runner.close()

    def test_close_takes_descendants_along(self):
        self.runner.add('sh', 'cat & echo $!; wait', shell=True)
        self.runner.start('sh', stdin=self._go)
        cat = int(self.read_line('sh'))
        self.runner.close()
        now = procfs.stat(cat)
        self.assertTrue(now is None or now.state in 'ZX', now)


class ExtraPathsTests(SpawnTestCase):

    def setUp(self):
        super().setUp()
        self.bin = self.dir / 'bin'
        self.bin.mkdir()
        program = self.bin / 'their-own-program'
        program.write_text('#!/bin/sh\necho "$PATH"\n')
        program.chmod(0o700)
        self.runner = self.enterContext(
            Runner(extra_paths=[self.bin, '/more']))

    def assertPath(self, expected, **kwargs):
        self.runner.add('program', 'their-own-program', **kwargs)
        self.assertEqual(f'{expected}\n', self.output('program'))

    def test_the_program_is_found_there(self):
        self.assertPath(f'{os.environ["PATH"]}:{self.bin}:/more')

    def test_with_limits(self):
        self.assertPath(f'{os.environ["PATH"]}:{self.bin}:/more',
                        rlimits={'core': 0})

    def test_with_a_path_of_its_own(self):
        self.assertPath(f'/bin:{self.bin}:/more', env={'PATH': '/bin'})
        self.assertPath(f'/usr:{self.bin}:/more', env={'PATH': '/bin'},
                        extra_env={'PATH': '/usr'})

    def test_without_any(self):
        self.assertPath(f'{os.defpath}:{self.bin}:/more', env={})

    def test_an_empty_one_is_not_the_current_directory(self):
        self.assertPath(f'{self.bin}:/more', env={'PATH': ''})

    def test_it_is_last(self):
        program = self.bin / 'cat'
        program.write_text('#!/bin/sh\necho wrong\n')
        program.chmod(0o700)
        self.runner.add('cat', 'cat')
        self.runner.start('cat')
        self.runner.get_channel('cat').write(b'right\n')
        self.assertEqual('right', self.read_line('cat'))

    def test_no_list(self):
        with self.assertRaisesRegex(TypeError, "not '/bin'"):
            Runner('/bin')


class StreamsTests(SpawnTestCase):

    def setUp(self):
        super().setUp()
        self.runner.add('sh', 'echo out; echo err >&2', shell=True)

    def test_stderr_is_ours(self):
        self.runner.add('sh', 'readlink /proc/self/fd/2', shell=True)
        self.assertEqual(os.readlink('/proc/self/fd/2') + '\n',
                         self.output('sh'))
        self.assertIsNone(self.runner.get_channel('sh', 'stderr'))

    def test_merged(self):
        self.assertEqual('out\nerr\n', self.output('sh', stderr='merge'))
        self.assertIsNone(self.runner.get_channel('sh', 'stderr'))

    def test_null(self):
        self.assertEqual('out\n', self.output('sh', stderr='null'))

    def test_a_channel_of_its_own(self):
        self.runner.start('sh', stderr='pipe')
        self.wait('sh')
        self.assertEqual('err', self.read_line('sh', 'stderr'))
        self.assertEqual('out', self.read_line('sh', 'stdout'))
        self.assertIsNone(self.runner.get_channel('sh', 'stderr'))

    def test_lines_of_text(self):
        self.runner.add('sh', r"printf 'a\303\244\nb'; printf 'c\377\nd' >&2",
                        shell=True)
        self.runner.start('sh', stderr='pipe', buffering='line',
                          encoding='utf-8')
        self.assertEqual(['aä\n', 'b'],
                         read_to_end(self.runner.get_channel('sh')))
        self.assertEqual(['c\\xff\n', 'd'],
                         read_to_end(self.runner.get_channel('sh', 'stderr')))

    def test_limit_and_high_water(self):
        self.runner.add('cat', 'cat', limit=2, buffering='line', high_water=0)
        self.runner.start('cat')
        channel = self.runner.get_channel('cat')
        channel.write(b'abc\n')
        channel.write_eof()
        self.assertEqual([b'ab', b'c\n'], read_to_end(channel))

    def test_a_file(self):
        self.runner.start('sh', stdout=self.dir / 'out',
                          stderr=str(self.dir / 'err'))
        self.wait('sh')
        self.assertEqual(b'out\n', (self.dir / 'out').read_bytes())
        self.assertEqual(b'err\n', (self.dir / 'err').read_bytes())

    def test_kept_bytes_are_sent_without_a_question(self):
        self.add('count', '''
            wait()
            size = 0
            while data := os.read(0, 100_000):
                size += len(data)
            say(size)
            ''')
        self.runner.start('count')
        channel = self.runner.get_channel('count')
        channel.write(b'x' * 500_000)
        self.assertTrue(channel.kept)
        channel.write_eof()
        self.let_go()
        # By the background thread, as nobody else does.
        self.assertEqual(0, self.wait('count'))
        self.assertEqual('500000', self.read_line('count'))


class ProcessKeywordsTests(SpawnTestCase):

    def assertSays(self, expected, body, **kwargs):
        self.add('child', body)
        self.assertEqual(expected, self.output('child', **kwargs).strip())
        self.assertEqual(0, self.runner.status('child'))

    def test_rlimits(self):
        self.assertSays('(64, 128)', '''
            import resource
            say(resource.getrlimit(resource.RLIMIT_NOFILE))
            ''', rlimits={'nofile': (64, 128)})

    def test_umask(self):
        self.assertSays('0o27', 'say(oct(os.umask(0)))', umask=0o27)

    def test_process_groups(self):
        say = 'say(os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid())'
        self.assertSays('False False', say)
        self.assertSays('True False', say, setpgrp=True)
        self.assertSays('True True', say, setsid=True)

    def test_environment(self):
        self.assertSays('1 None', '''
            say(os.environ['X'], os.environ.get('PATH'))
            ''', env={'Y': '1'}, extra_env={'X': '1'})

    def test_user(self):
        # Our own needs no privileges.
        entry = (pwd.getpwnam('nobody') if not os.getuid()
                 else pwd.getpwuid(os.getuid()))
        self.runner.add('id', 'id -u', user=entry.pw_name)
        self.assertEqual(f'{entry.pw_uid}\n', self.output('id'))

    def test_descriptors(self):
        self.assertSays('True', f'''
            os.fstat({self._go})
            say(True)
            ''', pass_fds=[self._go])

    def test_die_with_parent(self):
        self.assertSays('9', '''
            import ctypes
            number = ctypes.c_int()
            ctypes.CDLL(None).prctl(2, ctypes.byref(number))
            say(number.value)
            ''', die_with_parent=True)

    def test_adopt(self):
        # In a process of its own, since it adopts from then on.
        program = support.Program(
            pathlib.Path('-c'), '''if True:
                from gocept.runner.process import procfs
                from gocept.runner.spawn import Runner
                with Runner() as runner:
                    runner.add('sh', ['sh', '-c', 'sleep 1000 & echo $!'],
                               adopt=True, setsid=True)
                    runner.start('sh')
                    line = runner.get_channel('sh').read_until(b'\\n')[0]
                    print(runner.get_process('sh').wait(60))
                    runner.terminate('sh')
                    print(procfs.stat(int(line)))
                ''', cwd=self.dir)
        self.addCleanup(program.close)
        self.assertEqual(0, program.end(), program.output)
        self.assertEqual('0\nNone\n', program.output)

    def test_working_directory(self):
        self.assertSays('/', 'say(os.getcwd())', cwd='/')

    def test_keywords_of_popen(self):
        self.assertSays('True', '''
            with open('/proc/self/cmdline') as file:
                say('another' in file.read())
            ''', command=['another', *python('say(True)')[1:]],
            executable=sys.executable)

    def test_how_it_ends(self):
        self.add('stubborn', STUBBORN, stop_signal=signal.SIGUSR2,
                 stop_timeout=DEADLINE)
        self.runner.start('stubborn')
        self.read_line('stubborn')
        process = self.process('stubborn')
        self.assertEqual(DEADLINE, process.stop_timeout)
        self.runner.terminate('stubborn')
        self.assertEqual(-signal.SIGUSR2, process.returncode)

    def test_detached(self):
        self.runner.add('cat', 'cat', detached=True)
        self.runner.start('cat')
        process = self.process('cat')
        self.assertTrue(process.detached)
        self.assertTrue(process.leads_group)

    def test_limits_that_are_refused(self):
        with self.assertRaises((OSError, ValueError)):
            self.runner.add('cat', 'cat', rlimits={'nofile': (2, 1)})
            self.runner.start('cat')
        self.assertFalse(self.runner.running('cat'))


class OwnPollerTests(SpawnTestCase):

    def setUp(self):
        super().setUp()
        self.poller = self.enterContext(Poller())
        self.runner = self.enterContext(Runner(poller=self.poller))

    def poll_until(self, condition):
        """Poll, and return the pairs that came meanwhile."""
        pairs = []
        deadline = Deadline(DEADLINE)
        while not condition():
            self.assertFalse(deadline.passed)
            pairs += self.poller.poll(0.01)  # it may give nothing
        return pairs

    def test_the_end_is_a_pair(self):
        self.runner.add('true', 'true')
        self.runner.start('true')
        process = self.process('true')
        self.assertEqual([(0, process)], self.poller.poll(DEADLINE))

    def test_restarts_happen_in_it(self):
        self.runner.add('false', 'false', restart='always',
                        restart_delay=0.001, restart_limit=2)
        threads = []
        self.log.emit = mock.Mock(side_effect=lambda record: threads.append(
            threading.current_thread()))
        self.runner.start('false')
        process = self.process('false')
        pairs = self.poll_until(
            lambda: self.process('false') is not process)
        self.assertEqual((1, process), pairs[0])
        self.assertEqual({threading.current_thread()}, set(threads))

    def test_without_polling_there_is_no_restart(self):
        self.runner.add('false', 'false', restart='always', restart_delay=0)
        self.runner.start('false')
        process = self.process('false')
        process.wait(DEADLINE)
        settle()
        self.assertIs(process, self.process('false'))
        self.poll_until(lambda: self.process('false') is not process)

    def test_output_is_drained(self):
        self.add_server(body='''
            server = bind()
            server.listen()
            wait()
            os.write(2, b'x' * 300_000 + b'\\n')
            say('done')
            pause()
            ''')
        self.runner.start('server')
        self.let_go()
        self.assertEqual([], self.poll_until(
            lambda: self.log.having('server: done')))
        # What it says is not for others.
        self.assertFalse(self.runner.get_channel('server').closed)
        self.poller.close_all()
        self.assertTrue(self.runner.running('server'))

    def test_who_connects_drains_the_output(self):
        # Nobody else polls meanwhile.
        self.add_server(body='''
            os.write(1, b'x' * 300_000)
            server = bind()
            say('listening')
            echo(server)
            ''', restart='on-failure', restart_delay=0)
        self.runner.start('server')
        process = self.process('server')
        process.send_signal(signal.SIGKILL)
        self.poll_until(lambda: self.process('server') is not process)
        self.assertEqual(str(self.process('server').pid),
                         self.read_line('server'))

    def test_no_thread_is_started(self):
        program = support.Program(
            pathlib.Path('-c'), '''if True:
                import threading
                from gocept.runner.poller import Poller
                from gocept.runner.spawn import Runner
                with Poller() as poller, Runner(poller=poller) as runner:
                    runner.add('echo', 'echo hello', restart='always',
                               restart_delay=0)
                    runner.add('cat', 'cat')
                    runner.start('echo')
                    runner.start('cat')
                    first = runner.get_process('echo')
                    while runner.get_process('echo') is first:
                        poller.poll()
                    runner.get_channel('cat').write(b'x' * 100_000)
                    runner.terminate('cat')
                for thread in threading.enumerate():
                    if thread.name == 'gocept.runner.spawn':
                        thread.join()  # it ends others, for a restart
                print(threading.enumerate())
                ''', cwd=self.dir)
        self.addCleanup(program.close)
        self.assertEqual(0, program.end(), program.output)
        self.assertRegex(program.output, r'(?m)^\[<_MainThread[^,]*, [^,]*\]$')


class AtExitTests(SpawnTestCase):

    def test_nothing_is_restarted_any_more(self):
        # It is still ended when the other ones have ended.
        program = support.Program(
            pathlib.Path('-c'), '''if True:
                import logging, sys
                logging.basicConfig(level='INFO', stream=sys.stdout)
                from gocept.runner.spawn import Runner
                runner = Runner()
                runner.add('cat', 'cat', restart='always', restart_delay=0,
                           restart_limit=1000000)
                runner.add('sh', "trap '' TERM; echo; cat <&3", shell=True,
                           stop_timeout=0.2, pass_fds=[3])
                import os
                read, write = os.pipe()
                os.dup2(read, 3)
                runner.start('cat')
                runner.start('sh')
                runner.get_channel('sh').read_until(b'\\n')
                ''', cwd=self.dir)
        self.addCleanup(program.close)
        self.assertEqual(0, program.end(), program.output)
        self.assertEqual(2, program.output.count('Started'), program.output)
        self.assertNotIn('restarting', program.output)


class ThreadsTests(SpawnTestCase):

    def test_terminate_during_a_start(self):
        self.add_server(body="say('here'); pause()", start_timeout=3600)
        start = self.thread(self.runner.start, 'server')
        self.log.wait_for('server: here')
        self.runner.terminate('server')
        with self.assertRaises(StartError) as caught:
            start.result()
        self.assertEqual(-signal.SIGTERM, caught.exception.returncode)
        self.assertIsNone(self.runner.get_channel('server'))

    def test_close_during_starts(self):
        for name in 'abc':
            self.add_server(name, "say('here'); pause()", socket=name,
                            start_timeout=3600, restart='always')
        starts = [self.thread(self.runner.start, name) for name in 'abc']
        for name in 'abc':
            self.log.wait_for(f'{name}: here')
        self.runner.close()
        for start in starts:
            with self.assertRaises(StartError):
                start.result()
        self.assertEqual([], self.log.having('restarting'))

    def test_terminate_when_it_begins_to_listen(self):
        # Between the connection and its being handed out.
        self.add_server()
        connect = self.patch_connect(lambda: self.runner.terminate('server'))
        with connect, self.assertRaisesRegex(StartError, 'ended by others'):
            self.runner.start('server')
        self.assertIsNone(self.runner.get_channel('server'))

    def patch_connect(self, afterwards):
        from gocept.runner.process import unixsocket
        original = unixsocket.connect_when_listening

        def connect(*args):
            sock = original(*args)
            afterwards()
            return sock
        return mock.patch.object(unixsocket, 'connect_when_listening', connect)

    def test_the_end_right_after_the_connection(self):
        self.add_server(restart='on-failure', restart_delay=3600)

        def kill():
            self.process('server').send_signal(signal.SIGKILL)
            self.wait('server')
            settle()
        with self.patch_connect(kill):
            self.runner.start('server')
        self.log.wait_for('restarting in 60.0 s')
        self.assertEqual(1, len(self.log.having('restarting')))

    def test_a_start_that_fails_slowly_delays_nobody(self):
        self.add_server(body=RELUCTANT_DESCENDANT + 'sys.exit(3)',
                        stop_timeout=3600)
        start = self.thread(self.runner.start, 'server')
        self.addCleanup(self.let_go)
        while not (self.dir / 'told').exists():
            settle()
        settle()
        self.runner.add('true', 'true')
        self.runner.start('true')
        self.log.wait_for("'true'", 2)
        self.let_go()
        with self.assertRaises(StartError) as caught:
            start.result()
        self.assertEqual(3, caught.exception.returncode)

    def test_started_anew_while_it_is_terminated(self):
        self.runner.add('cat', 'cat')
        self.runner.start('cat')
        channel = self.runner.get_channel('cat')

        def end_and_start(*args):
            patch.stop()
            Process.terminate(*args)
            self.thread(self.runner.start, 'cat').result()
        patch = mock.patch.object(Process, 'terminate', end_and_start)
        patch.start()
        self.runner.terminate('cat')
        self.assertTrue(channel.closed)
        self.runner.get_channel('cat').write(b'still here\n')
        self.assertEqual('still here', self.read_line('cat'))

    def test_get_channel_waits_for_a_start(self):
        self.add_server(body="say('here'); wait();" + ECHO)
        start = self.thread(self.runner.start, 'server')
        self.log.wait_for('server: here')
        get = self.thread(self.runner.get_channel, 'server')
        self.assertTrue(self.runner.running('server'))
        self.assertIsNone(self.runner.status('server'))
        self.assertIsNone(self.runner.get_channel('server', 'stdout'))
        self.let_go()
        start.result()
        self.assertIs(get.result(), self.runner.get_channel('server'))

    def test_calls_from_the_background_thread(self):
        self.runner.add('cat', 'cat')
        self.add_server(restart='always', restart_delay=0)
        done = threading.Event()
        results = []

        def act(*result):
            try:
                self.runner.ensure_running('cat')
                results.append(self.runner.get_channel('cat'))
                self.runner.ensure_running('server')
                results.append(self.runner.get_channel('server'))
                self.runner.terminate('cat')
                results.append(self.runner.status('cat'))
                self.runner.close()
                results.append(self.runner.running('server'))
            finally:
                done.set()
        background().register(Timer(0), act)
        self.assertTrue(done.wait(DEADLINE))
        self.assertEqual([-signal.SIGTERM, False], results[2:])
        self.assertTrue(results[1].closed)

    def test_a_log_handler_that_asks(self):
        # It is called by whoever notices the end.
        self.runner.add('false', 'false', restart='always', restart_delay=0,
                        restart_limit=3)
        emit = self.log.emit

        def ask(record):
            self.runner.status('false')
            self.runner.get_channel('false')
            emit(record)
        self.runner.start('false')
        with mock.patch.object(self.log, 'emit', ask):
            self.log.wait_for('given up')

    def test_many_threads_and_aliases(self):
        self.runner.add('cat', 'cat', buffering='line')
        self.add_server(restart='always', restart_delay=0,
                        restart_limit=10 ** 6)
        barrier = threading.Barrier(6)

        def work(number):
            app_name = 'server' if number % 2 else 'cat'
            alias = f'{app_name} {number}'
            barrier.wait(DEADLINE)
            for count in range(4):
                self.runner.ensure_running(app_name, alias, **(
                    {'socket': f's{number}'} | {'with_args': None}
                    if number % 2 else {}), **(
                    {'command': python(f'echo(bind("s{number}"))')}
                    if number % 2 else {}))
                channel = self.runner.get_channel(alias)
                channel.write(b'%d\n' % count)
                channel.read_until(b'%d\n' % count, DEADLINE)
                if count % 2:
                    self.runner.terminate(alias)
                else:
                    self.process(alias).terminate()
                self.runner.aliases()
        for call in [self.thread(work, number) for number in range(6)]:
            call.result()
        self.assertEqual(6, len(self.runner.aliases()))

    def test_many_threads_and_one_alias(self):
        self.add_server(restart='always', restart_delay=0,
                        restart_limit=10 ** 6, start_timeout=DEADLINE)
        barrier = threading.Barrier(5)
        tolerated = (StartError, ProcessExistsException, KeyError)

        def start():
            self.runner.start('server')

        def talk():
            channel = self.runner.get_channel('server')
            if channel is not None:
                with contextlib.suppress(EndpointClosedException):
                    channel.read()

        def kill():
            self.process('server').send_signal(signal.SIGKILL)

        def ask():
            self.runner.status('server'), self.runner.running('server')

        def end():
            self.runner.terminate('server')

        def repeat(action):
            barrier.wait(DEADLINE)
            for _ in range(8):
                with contextlib.suppress(*tolerated):
                    action()
        for call in [self.thread(repeat, action)
                     for action in (start, talk, kill, ask, end)]:
            call.result()
        self.assertEqual([], self.log.having('failed'))
        self.runner.close()
        settle()
        self.assertFalse(self.runner.running('server'))

    def test_close_while_many_end(self):
        self.runner.add('true', 'true', restart='always', restart_delay=0,
                        restart_limit=10 ** 6)
        for _ in range(5):
            for number in range(10):
                self.runner.ensure_running('true', str(number))
            self.runner.close()
            settle()
            started = len(self.log.having('Started'))
            settle()
            self.assertEqual(started, len(self.log.having('Started')))
        self.assertEqual([], self.log.having('failed'))


class ManyTests(SpawnTestCase):

    level = 2

    def test_many_threads_and_many_aliases(self):
        self.add('echo', '''
            while data := os.read(0, 1000):
                os.write(1, data)
            ''')

        def work(number):
            for count in range(20):
                alias = f'{number} {count % 3}'
                self.runner.ensure_running('echo', alias)
                channel = self.runner.get_channel(alias)
                channel.write(b'hello\n')
                channel.read_until(b'hello\n', DEADLINE)
                if count % 4 == 3:
                    self.runner.terminate(alias)
        for call in [self.thread(work, number) for number in range(16)]:
            call.result()
        self.assertEqual(48, len(self.runner.aliases()))

    def test_a_thousand_restarts(self):
        self.runner.add('true', 'true', restart='always', restart_delay=0,
                        restart_limit=1000)
        self.runner.start('true')
        for count in range(100, 1001, 100):  # each has its time
            self.log.wait_for('restarting', count)
        self.log.wait_for('given up after 1000 restarts')
        self.assertEqual(1001, len(self.log.having('Started')))

    def test_deadline_of_many(self):
        for number in range(10):
            self.add_server(str(number), 'pause()', socket=str(number),
                            start_timeout=0.1)
        calls = [self.thread(self.runner.start, str(number))
                 for number in range(10)]
        for call in calls:
            with self.assertRaises(DeadlineExceeded):
                call.result()
