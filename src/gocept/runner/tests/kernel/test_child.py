"""Processes that live in a kernel, as runners and executors have them."""

import contextlib
import logging
import os
import signal
import sys
import textwrap
import threading
import unittest
from typing import Any
from unittest import mock

import transaction
import zope.component
import zope.component.event

from gocept.runner.errors import (
    DeadlineExceeded,
    EndpointClosedException,
    ExecutorError,
    KernelError,
    ProcessExistsException,
    WriteBufferFull,
)
from gocept.runner.events import ChildEnded, hearing
from gocept.runner.executor import (
    ConditionExecutor,
    OutputExecutor,
    SimpleExecutor,
    TCPExecutor,
    all_of,
    http,
    tcp,
)
from gocept.runner.interfaces import IChildEnded, IProcess
from gocept.runner.kernel.child.child import KernelProcess, open_process
from gocept.runner.poller import Poller
from gocept.runner.process import LOST_STATUS
from gocept.runner.spawn import Runner
from gocept.runner.spawn.application import Application
from gocept.runner.testing import KernelLayer, private_kernel
from gocept.runner.tests.executors import ExecutorTestCase, is_gone
from gocept.runner.tests.kernels import free_port
from gocept.runner.tests.support import DEADLINE, Slow, end_background
from gocept.runner.tests.victims import until

KERNEL = KernelLayer('KERNEL')

# Says its number, and answers each line.
ECHO = '''
import os, sys
print(os.getpid(), flush=True)
for line in sys.stdin:
    print('got', line.strip(), flush=True)
print('over', flush=True)
'''


def python(text: str, *args: str) -> list[str]:
    return [sys.executable, '-u', '-c', textwrap.dedent(text), *args]


class LivingTestCase(ExecutorTestCase):
    """Each test has names of its own in the kernel of the layer."""

    layer = KERNEL

    def setUp(self) -> None:
        super().setUp()
        self.kernel = KERNEL.kernel
        self.instance = self.id().rpartition('.')[2]
        self.addCleanup(self.end_all)
        self.addCleanup(transaction.abort)
        self.records: list[logging.LogRecord] = []
        self.told = threading.Condition()
        handler = logging.Handler()
        handler.emit = self.note  # type: ignore[method-assign]
        logger = logging.getLogger('gocept.runner')
        logger.addHandler(handler)
        self.addCleanup(logger.removeHandler, handler)
        self.addCleanup(logger.setLevel, logger.level)
        logger.setLevel(logging.INFO)

    def note(self, record: logging.LogRecord) -> None:
        with self.told:
            self.records.append(record)
            self.told.notify_all()

    def logged(self, text: str) -> list[str]:
        return [record.getMessage() for record in self.records
                if text in record.getMessage()]

    def wait_logged(self, text: str, count: int = 1) -> None:
        with self.told:
            if not self.told.wait_for(
                    lambda: len(self.logged(text)) >= count, DEADLINE):
                self.fail(f'{text!r} was not logged {count} times: ' + '\n'
                          .join(self.logged('')))

    def end_all(self) -> None:
        end_background()  # it may have something to tell the kernel
        for entry in self.listed().values():
            if entry['running']:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(entry['pid'], signal.SIGKILL)
        for kind in 'processes', 'values':
            names = getattr(self.kernel, f'list_{kind}')(f'{self.instance}*')
            if names:
                with contextlib.suppress(KernelError):
                    getattr(self.kernel, f'remove_{kind}')(*names)
        self.kernel.close()

    def listed(self):
        return self.kernel.list_processes(f'{self.instance}*')

    def worker(self, command=(), **options):
        """A runner of a new program with one application."""
        runner = Runner(kernel=self.kernel, instance=self.instance)
        self.addCleanup(runner.close)
        runner.add('it', command or python(ECHO), **{
            'buffering': 'line', 'encoding': 'utf-8', **options})
        return runner

    def started(self, command=(), **options):
        runner = self.worker(command, **options)
        runner.start('it')
        return runner

    def read_line(self, channel) -> str:
        line, _ = channel.read_until('\n', DEADLINE)
        return line

    def read_lines(self, channel, count: int) -> list[str]:
        """Fetch so many lines from a poller, within the transaction."""
        lines: list[str] = []
        with Poller() as poller:
            poller.register(channel)
            while len(lines) < count:
                got = poller.poll(DEADLINE)
                self.assertTrue(got, lines)
                lines += [line for line, _ in got]
        return lines

    def fetch(self, channel) -> str:
        """The next line alone, within the transaction."""
        with Poller() as poller:
            while not (line := channel.read()):
                poller.register(channel)
                self.assertTrue(poller.pause(DEADLINE))
        return line

    def wait_listed(self, *names: str) -> None:
        """Wait until the others are forgotten, by the background thread."""
        until(lambda: {*names} == {*self.listed()})


class RunnerTests(LivingTestCase):

    def test_it_is_a_process(self) -> None:
        process = self.started().get_process('it')
        self.assertIsInstance(process, KernelProcess)
        self.assertTrue(IProcess.providedBy(process))
        self.assertTrue(process.in_kernel)
        self.assertFalse(process.was_found)
        self.assertEqual(f"<KernelProcess 'it' ({process.pid}): running>",
                         repr(process))
        entry = self.listed()[f'{self.instance}.it']
        self.assertEqual(process.pid, entry['pid'])
        self.assertEqual('block', entry['overflow'])

    def test_the_next_worker_finds_it(self) -> None:
        with self.started() as runner:
            channel = runner.get_channel('it')
            pid = int(self.read_line(channel))
            channel.write('one\n')
            self.assertEqual('got one', self.read_line(channel))
        runner = self.started()
        process = runner.get_process('it')
        self.assertEqual(pid, process.pid)
        self.assertTrue(process.was_found)
        channel = runner.get_channel('it')
        channel.write('two\n')
        self.assertEqual('got two', self.read_line(channel))
        self.assertEqual(1, len(self.logged('Found <KernelProcess')))

    def test_a_name_without_an_instance(self) -> None:
        runner = Runner(kernel=self.kernel)
        self.addCleanup(runner.close)
        runner.add('it', python(ECHO))
        name = f'{self.instance}-alone'
        runner.start('it', name)
        self.assertEqual([name], [*self.listed()])

    def test_what_was_said_meanwhile(self) -> None:
        with self.started() as runner:
            channel = runner.get_channel('it')
            self.read_line(channel)
            channel.write('one\ntwo\nthree\n')
            channel.flush(DEADLINE)
            self.assertEqual('got one', self.read_line(channel))
        channel = self.started().get_channel('it')
        self.assertEqual(['got two\n', 'got three\n'],
                         self.read_lines(channel, 2))

    def test_closing_does_not_end_it(self) -> None:
        process = self.started().get_process('it')
        process.close()
        self.assertFalse(is_gone(process.pid))

    def test_the_end(self) -> None:
        runner = self.started(python('''
            import sys
            print('last')
            sys.exit(7)
            '''))
        process = runner.get_process('it')
        self.assertEqual(7, process.wait(DEADLINE))
        self.assertEqual(7, runner.status('it'))
        channel = runner.get_channel('it')
        self.assertEqual(['last\n', ''], self.read_lines(channel, 2))
        self.wait_listed()
        self.assertEqual({}, self.kernel.list_values(f'{self.instance}*'))

    def test_a_signal_ends_it(self) -> None:
        process = self.started(['sleep', '1000']).get_process('it')
        process.send_signal(signal.SIGINT)
        self.assertEqual(-2, process.wait(DEADLINE))

    def test_its_group(self) -> None:
        process = self.started(['sh', '-c', 'sleep 1000 & wait']
                               ).get_process('it')
        process.signal_group(signal.SIGTERM)
        self.assertEqual(-15, process.wait(DEADLINE))

    def test_terminate_ends_what_it_has_left(self) -> None:
        runner = self.started(python('''
            import os, signal, subprocess, sys
            child = subprocess.Popen(
                ['sleep', '1000'], process_group=0, stdin=subprocess.DEVNULL)
            print(child.pid, flush=True)
            signal.pause()
            '''))
        pid = int(self.read_line(runner.get_channel('it')))
        runner.terminate('it')
        self.assertTrue(is_gone(pid))
        self.assertEqual(-15, runner.status('it'))
        self.assertEqual({}, self.listed())

    def test_another_thread_tells_the_end(self) -> None:
        slow, told = Slow(self), []

        def hear(event: object) -> None:
            if isinstance(event, ChildEnded):
                slow()
                told.append(event.status)
        runner = self.started(['sleep', '1000'])
        with hearing(hear):
            runner.get_process('it').send_signal(signal.SIGTERM)
            slow.wait_entered()
            runner.terminate('it')
            self.assertEqual([-15], told)

    def test_terminate_reaches_what_others_have_started(self) -> None:
        with self.started() as runner:
            pid = runner.get_process('it').pid
        runner = self.worker()
        runner.terminate('it')
        self.assertTrue(is_gone(pid))
        self.assertEqual({}, self.listed())

    def test_an_unknown_alias(self) -> None:
        runner = self.worker()
        with self.assertRaises(KeyError):
            runner.terminate('it')
        self.assertEqual({}, self.listed())

    def test_somebody_else_has_taken_its_status(self) -> None:
        process = self.started(['sleep', '1000']).get_process('it')
        self.kernel.remove_processes(f'{self.instance}.it')
        os.kill(process.pid, signal.SIGKILL)
        self.assertEqual(LOST_STATUS, process.wait(DEADLINE))
        self.assertTrue(process.lost)

    def test_standard_error_is_logged(self) -> None:
        self.started(['sh', '-c', 'echo oops >&2; read it'])
        self.wait_logged('it: oops')

    def test_standard_error_as_a_channel(self) -> None:
        runner = self.started(
            ['sh', '-c', 'echo out; echo err >&2; read it'], stderr='pipe')
        self.assertEqual('err', self.read_line(
            runner.get_channel('it', 'stderr')))
        self.assertEqual('out', self.read_line(runner.get_channel('it')))

    def test_it_ends_while_nobody_is_there(self) -> None:
        with self.started() as runner:
            self.read_line(runner.get_channel('it'))
            pid = runner.get_process('it').pid
            runner.get_channel('it').write('one\n')
            runner.get_channel('it').write_eof()
            runner.get_process('it').wait(DEADLINE)
        ended = []
        zope.component.provideHandler(ended.append, [IChildEnded])
        runner = self.started()
        self.assertEqual([('it', 0)], [
            (event.name, event.status) for event in ended])
        self.assertNotEqual(pid, runner.get_process('it').pid)
        rest = runner.get_channel('it')
        self.assertEqual(['got one\n', 'over\n', ''],
                         self.read_lines(rest, 3))
        channel = runner.get_channel('it')
        self.assertIsNot(rest, channel)
        self.assertEqual(str(runner.get_process('it').pid),
                         self.read_line(channel))
        runner.terminate('it')
        self.wait_listed()

    def test_a_new_worker_after_two_ends(self) -> None:
        for _ in range(2):
            with self.started(['echo', 'word']) as runner:
                runner.get_process('it').wait(DEADLINE)
        channel = self.started(['echo', 'word']).get_channel('it')
        self.assertEqual(['word\n', ''], self.read_lines(channel, 2))

    def test_restarts(self) -> None:
        runner = self.started(restart='always', restart_delay=0)
        first = runner.get_channel('it')
        pid = int(self.read_line(first))
        os.kill(pid, signal.SIGKILL)
        self.wait_logged('Started <KernelProcess', 2)
        process = runner.get_process('it')
        self.assertNotEqual(pid, process.pid)
        self.assertEqual(process.pid, int(self.read_line(
            runner.get_channel('it'))))

    def test_a_silent_one_is_forgotten_when_it_ends(self) -> None:
        streams = dict.fromkeys(('stdin', 'stdout', 'stderr'), 'null')
        with self.started(['true'], **streams) as runner:
            self.assertEqual(0, runner.get_process('it').wait(DEADLINE))
            self.wait_listed()
        self.assertEqual({}, self.kernel.list_values(f'{self.instance}*'))

    def test_a_silent_one_that_ends_while_it_is_started(self) -> None:
        ended = Application.ended

        def ended_later(*args: Any, **keywords: Any) -> Any:
            until(lambda: not self.listed()[f'{self.instance}.it']['running'])
            return ended(*args, **keywords)
        # Nobody polls this poller, so nobody has been told of the end yet.
        poller = self.enterContext(Poller())
        with (mock.patch.object(Application, 'ended', ended_later),
              Runner(kernel=self.kernel, instance=self.instance,
                     poller=poller) as runner):
            runner.add('it', ['true'], **dict.fromkeys(
                ('stdin', 'stdout', 'stderr'), 'null'))
            runner.start('it')
            self.assertEqual(0, runner.get_process('it').wait(DEADLINE))
            self.wait_listed()

    def test_silent_ones_that_ended_while_nobody_was_there(self) -> None:
        options = {'stdin': 'null', 'stdout': 'null', 'stderr': 'null'}
        with self.started(['sleep', '1000'], **options) as runner:
            process = runner.get_process('it')
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: not self.listed()[f'{self.instance}.it']['running'])
        self.started(['sleep', '1000'], **options)
        self.wait_listed(f'{self.instance}.it#2')

    def test_no_restart_after_a_close(self) -> None:
        with self.started(restart='always', restart_delay=0) as runner:
            process = runner.get_process('it')
        os.kill(process.pid, signal.SIGKILL)
        entry = self.listed()
        for _ in range(3):
            entry = self.listed()
        self.assertEqual([f'{self.instance}.it'], [*entry])

    def test_another_declaration_is_kept(self) -> None:
        with self.started() as runner:
            pid = runner.get_process('it').pid
        runner = self.started(python(ECHO, 'new'))
        self.assertEqual(pid, runner.get_process('it').pid)
        self.wait_logged('with another declaration')
        self.assertEqual(logging.WARNING, next(
            record.levelno for record in self.records
            if 'another declaration' in record.getMessage()))

    def test_another_environment_of_ours_is_no_other_declaration(self) -> None:
        with self.started() as runner:
            pid = runner.get_process('it').pid
        self.addCleanup(os.environ.pop, 'NEW_VARIABLE')
        os.environ['NEW_VARIABLE'] = '1'
        self.assertEqual(pid, self.started().get_process('it').pid)
        self.assertEqual([], self.logged('another declaration'))

    def test_another_declaration_replaces_it(self) -> None:
        with self.started() as runner:
            channel = runner.get_channel('it')
            pid = int(self.read_line(channel))
            channel.write('one\n')
            self.wait_said(f'{self.instance}.it', b'got one')
        runner = self.started(python(ECHO, 'new'), on_change='replace')
        self.assertTrue(is_gone(pid))
        self.assertNotEqual(pid, runner.get_process('it').pid)
        # Of the one before, all is read that was said.
        self.assertEqual(['got one\n', ''], self.read_lines(
            runner.get_channel('it'), 2))
        self.assertEqual(str(runner.get_process('it').pid), self.read_line(
            runner.get_channel('it')))

    def wait_said(self, key: str, what: bytes) -> None:
        said = b''
        with self.kernel.follow_processes(key) as watcher:
            while what not in said:
                said += b''.join(each.data for each in watcher.read()[0])

    def test_keywords_that_a_kernel_cannot_do(self) -> None:
        for options in (
                {'umask': 0o22}, {'pass_fds': [1]}, {'die_with_parent': True},
                {'adopt': True}, {'stdout': 'inherit'}, {'stdin': '/a/path'},
                {'stderr': '/a/path'}, {'popen_kwargs': {'bufsize': 1}}):
            with self.subTest(options), self.assertRaisesRegex(
                    ValueError, "application 'it': .*kernel"):
                self.worker(**options)

    def test_on_change_needs_a_kernel(self) -> None:
        with Runner() as runner, self.assertRaisesRegex(
                ValueError, 'only with a kernel'):
            runner.add('it', 'cat', on_change='replace')

    def test_a_program_that_is_not_there(self) -> None:
        with self.assertRaisesRegex(KernelError, 'no-such-program'):
            self.started(['/no-such-program'])
        self.assertEqual({}, self.listed())

    def test_a_socket(self) -> None:
        path = str(self.dir / 'socket')
        server = python('''
            import os, socket, sys
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(sys.argv[1])
            sock.listen()
            print('listening', flush=True)
            while True:
                client, _ = sock.accept()
                client.sendall(b'%d\\n' % os.getpid())
                client.close()
            ''', path)
        with self.started(server, type='socket', socket=path) as runner:
            pid = int(self.read_line(runner.get_channel('it')))
            self.wait_logged('it: listening')
        inode = os.stat(path).st_ino
        runner = self.started(server, type='socket', socket=path)
        self.assertEqual(pid, int(self.read_line(runner.get_channel('it'))))
        self.assertEqual(inode, os.stat(path).st_ino)
        runner.terminate('it')
        self.assertTrue(is_gone(pid))


class TransactionalTests(LivingTestCase):

    def counting(self):
        """Says three lines, and then answers."""
        return python('''
            import sys
            print('1\\n2\\n3', flush=True)
            for line in sys.stdin:
                print('got', line.strip(), flush=True)
            ''')

    def test_every_line_since_the_last_commit(self) -> None:
        with self.started(self.counting(), transactional=True) as runner:
            channel = runner.get_channel('it')
            self.assertEqual('1\n', self.fetch(channel))
            transaction.commit()
            self.assertEqual('2\n', self.fetch(channel))
            # The worker dies here.
            transaction.abort()
        with self.started(self.counting(), transactional=True) as runner:
            channel = runner.get_channel('it')
            self.assertEqual('2\n', self.fetch(channel))
            transaction.commit()
        channel = self.started(
            self.counting(), transactional=True).get_channel('it')
        self.assertEqual(['3\n'], self.read_lines(channel, 1))

    def test_lines_of_one_poll(self) -> None:
        with self.started(self.counting(), transactional=True) as runner:
            channel = runner.get_channel('it')
            self.assertEqual(['1\n', '2\n', '3\n'],
                             self.read_lines(channel, 3))
            transaction.commit()
            channel.write('x\n')
            transaction.commit()
            self.assertEqual(['got x\n'], self.read_lines(channel, 1))
            transaction.abort()
        channel = self.started(
            self.counting(), transactional=True).get_channel('it')
        self.assertEqual(['got x\n'], self.read_lines(channel, 1))

    def after_an_end(self, **options):
        """A runner, after that of a worker which has not read a word."""
        with self.started(['echo', 'word'], transactional=True) as runner:
            runner.get_process('it').wait(DEADLINE)
        return self.started(['sleep', '1000'], transactional=True, **options)

    def test_a_restart_takes_nothing_from_a_transaction(self) -> None:
        runner = self.after_an_end(restart='always', restart_delay=0)
        self.assertEqual('word\n', self.fetch(runner.get_channel('it')))
        os.kill(runner.get_process('it').pid, signal.SIGKILL)
        self.wait_logged('Started <KernelProcess', 3)
        transaction.abort()
        self.assertEqual('word\n', self.fetch(runner.get_channel('it')))

    def test_the_end_of_what_was_read_without_a_poller(self) -> None:
        name = f'{self.instance}.it'
        runner = self.after_an_end()
        channel = runner.get_channel('it')
        self.assertEqual('word\n', self.fetch(channel))
        self.assertIsNot(channel, runner.get_channel('it'))
        self.assertEqual({name, f'{name}#2'}, {*self.listed()})
        transaction.abort()
        self.assertIs(channel, runner.get_channel('it'))
        self.assertEqual('word\n', self.fetch(channel))
        transaction.commit()
        self.assertIsNot(channel, runner.get_channel('it'))
        self.wait_listed(f'{name}#2')

    def test_what_was_written_is_sent_with_the_commit(self) -> None:
        channel = self.started(transactional=True).get_channel('it')
        channel.write('no\n')
        transaction.abort()
        channel.write('yes\n')
        transaction.commit()
        self.assertEqual('got yes\n', self.read_lines(channel, 2)[1])

    def test_the_end_is_acknowledged_with_a_commit(self) -> None:
        command = ['echo', 'word']
        with self.started(command, transactional=True) as runner:
            runner.get_process('it').wait(DEADLINE)
            channel = runner.get_channel('it')
            self.assertEqual(['word\n', ''], self.read_lines(channel, 2))
            transaction.abort()
            self.assertEqual(1, len(self.listed()))
        runner = self.started(transactional=True)
        channel = runner.get_channel('it')
        with Poller() as poller:
            poller.register(channel)
            lines: list[str] = []
            while '' not in lines:
                lines += [line for line, _ in poller.poll(DEADLINE)]
            self.assertEqual(['word\n', ''], lines)
            self.assertEqual(2, len(self.listed()))
            transaction.commit()
        self.wait_listed(f'{self.instance}.it#2')

    def test_bytes_that_are_no_text(self) -> None:
        command = python('''
            import sys
            sys.stdout.buffer.write(b'a\\xff\\n\\xc3\\xa4\\nb\\n')
            sys.stdout.flush()
            sys.stdin.read()
            ''')
        for line in 'a\\xff\n', 'ä\n', 'b\n':
            with self.started(command, transactional=True) as runner:
                channel = runner.get_channel('it')
                self.assertEqual(line, self.fetch(channel))
                transaction.commit()

    def test_both_streams(self) -> None:
        command = python('''
            import os, sys
            for number in range(3):
                os.write(1, b'out %d\\n' % number)
                os.write(2, b'err %d\\n' % number)
            sys.stdin.read()
            ''')
        options = {'transactional': True, 'stderr': 'pipe'}
        for number in range(3):
            with self.started(command, **options) as runner:
                for stream, name in (None, 'out'), ('stderr', 'err'):
                    channel = runner.get_channel('it', stream)
                    self.assertEqual(f'{name} {number}\n',
                                     self.fetch(channel))
                transaction.commit()


class SuccessionTests(LivingTestCase):
    """A process has ended, and the next one of its name runs."""

    def end_away(self, **options):
        """One that ends while no program is there, with two lines left."""
        with self.started(**options) as runner:
            channel = runner.get_channel('it')
            channel.write('a\n', 'b\n')
            transaction.commit()
            self.fetch(channel)
            transaction.commit()
            process = runner.get_process('it')
            channel.write_eof()
            transaction.commit()
            channel.flush(DEADLINE)
            process.wait(DEADLINE)
        return process.pid

    def assert_nothing_left(self) -> None:
        self.assertEqual({}, self.listed())
        self.assertEqual({}, self.kernel.list_values(f'{self.instance}*'))

    def test_what_is_written_goes_to_the_one_that_runs(self) -> None:
        for options in {}, {'transactional': True}:
            with self.subTest(**options):
                self.end_away(**options)
                with self.started(**options) as runner:
                    channel = runner.get_channel('it')
                    channel.write('new\n')
                    transaction.commit()
                    for line in 'got a\n', 'got b\n', 'over\n':
                        self.assertEqual(line, self.fetch(channel))
                        transaction.commit()
                    with self.assertRaises(EndpointClosedException):
                        self.fetch(channel)
                    transaction.commit()
                    channel = runner.get_channel('it')
                    pid = runner.get_process('it').pid
                    for line in f'{pid}\n', 'got new\n':
                        self.assertEqual(line, self.fetch(channel))
                        transaction.commit()
                    runner.terminate('it')
                self.assert_nothing_left()

    def test_writing_after_a_restart(self) -> None:
        # A line of the old one is only committed with the answer to it.
        runner = self.started(transactional=True, restart='always',
                              restart_delay=0)
        channel = runner.get_channel('it')
        channel.write('a\n')
        transaction.commit()
        self.assertIn('got a\n', self.read_lines(channel, 2))
        transaction.abort()
        runner.get_process('it').send_signal(signal.SIGKILL)
        self.wait_logged('Started', 2)
        channel = runner.get_channel('it')
        self.assertIn('got a\n', self.read_lines(channel, 2))
        channel.write('answer\n')
        transaction.commit()
        until(lambda: runner.get_channel('it') is not channel)
        channel = runner.get_channel('it')
        self.assertIn('got answer\n', self.read_lines(channel, 2))

    def test_nobody_to_write_to(self) -> None:
        self.end_away()
        [ended] = self.kernel.ended_processes(
            f'{self.instance}.it', buffering='line')
        self.addCleanup(ended.let_go)
        for call in (ended.channel.write_eof, ended.channel.check_sink,
                     lambda: ended.channel.write(b'x')):
            with self.assertRaisesRegex(
                    EndpointClosedException, 'write to the next one'):
                call()

    def test_what_has_ended_is_forgotten_with_terminate(self) -> None:
        for transactional in False, True:
            self.end_away(transactional=transactional)
            runner = self.worker(transactional=transactional)
            runner.terminate('it')
            self.assert_nothing_left()
            with self.assertRaisesRegex(KeyError, 'nothing was started'):
                runner.terminate('it')

    def test_all_lives_are_forgotten_with_terminate(self) -> None:
        self.end_away()
        runner = self.started()
        self.wait_listed(f'{self.instance}.it', f'{self.instance}.it#2')
        runner.terminate('it')
        self.assert_nothing_left()

    def test_what_was_replaced_is_forgotten_when_it_was_read(self) -> None:
        command = python('print("one", flush=True); input()')
        with self.started(command) as runner:
            self.read_lines(runner.get_channel('it'), 1)
        with self.started(on_change='replace') as runner:
            channel = runner.get_channel('it')
            pid = runner.get_process('it').pid
            self.assertEqual([f'{pid}\n'], self.read_lines(channel, 1))
            self.wait_listed(f'{self.instance}.it#2')
            self.assertEqual(
                [f'{self.instance}.it#2.declaration'],
                [*self.kernel.list_values(f'{self.instance}*')])
            runner.terminate('it')
        self.assert_nothing_left()

    def test_a_start_that_fails_leaves_nothing(self) -> None:
        with self.assertRaises((KernelError, OSError)):
            self.started(['/nonexistent/program'])
        self.assert_nothing_left()

    def test_one_that_ends_at_once_is_restarted(self) -> None:
        runner = self.started(['false'], restart='on-failure',
                              restart_delay=0, restart_limit=3)
        self.wait_logged('given up')
        self.assertEqual('given-up', runner.state('it'))
        self.assertEqual([], self.logged('failed'))

    def test_the_end_is_told_after_the_channels_were_abandoned(self) -> None:
        runner = self.started()
        process = runner.get_process('it')
        tell_end, told = process._tell_end, []
        process._tell_end = lambda: told.append(True)
        runner.terminate('it')
        self.assertEqual([True], told)
        self.assert_nothing_left()
        tell_end()
        self.assert_nothing_left()

    def test_who_cannot_read_leaves_it_to_others(self) -> None:
        name = f'{self.instance}.it'
        self.started().close()
        with mock.patch('gocept.runner.kernel.child.notes.Notes.ahead',
                        side_effect=KernelError):
            try:
                self.started()
            except KernelError:
                # Here, the traceback has all that the start has made.
                self.assertFalse(self.listed()[name]['watched'])
            else:
                self.fail('it was started')

    def test_refuse(self) -> None:
        self.started()
        with self.assertRaisesRegex(ProcessExistsException, 'another command'):
            self.started(['sleep', '1000'], on_change='refuse')
        with self.assertRaisesRegex(ValueError, "'refuse', not 'ask'"):
            self.started(on_change='ask')
        with self.assertRaisesRegex(ValueError, "'refuse', not 'ask'"):
            self.kernel.open_process('it', ['true'], on_change='ask')

    def test_no_kernel(self) -> None:
        for call in (lambda: Runner(kernel='/path'),  # type: ignore[arg-type]
                     lambda: Runner().add('it', 'true', kernel='/path'),
                     lambda: SimpleExecutor(
                         'true', kernel='/path')):  # type: ignore[arg-type]
            with self.assertRaisesRegex(TypeError, r"use Kernel\('/path'\)"):
                call()


class WritingTests(LivingTestCase):

    def test_a_child_that_does_not_read(self) -> None:
        runner = self.started(python('''
            import sys
            print('ready', flush=True)
            sys.stdin.readline()
            print(1 + len(sys.stdin.read()), flush=True)
            '''), high_water=100_000)
        channel = runner.get_channel('it')
        self.read_line(channel)
        process = runner.get_process('it')
        process.send_signal(signal.SIGSTOP)
        line = b'x' * 99_999 + b'\n'
        count = 0
        with self.assertRaises(DeadlineExceeded):
            while count < 100:
                try:
                    channel.write(line)
                except WriteBufferFull:
                    # The kernel takes the first ones, if slowly.
                    channel.flush(0.5 if count > 10 else DEADLINE)
                else:
                    count += 1
        self.assertGreater(count, 10)
        self.assertGreaterEqual(channel.kept, 100_000)
        process.send_signal(signal.SIGCONT)
        channel.flush(DEADLINE)
        self.assertEqual(0, channel.kept)
        channel.write_eof()
        self.assertEqual(str(1 + (count - 1) * len(line)),
                         self.read_line(channel))

    def test_a_child_that_reads_no_more(self) -> None:
        runner = self.started(python('''
            import os, signal
            os.close(0)
            print('closed', flush=True)
            signal.pause()
            '''))
        channel = runner.get_channel('it')
        self.read_line(channel)
        with self.assertRaises(EndpointClosedException):
            while True:
                channel.write('x\n')
                channel.flush(DEADLINE)

    def test_without_a_standard_input(self) -> None:
        channel = self.started(stdin='null').get_channel('it')
        with self.assertRaises(NotImplementedError):
            channel.write('x\n')


class DyingKernelTests(LivingTestCase):

    def kill_daemon(self) -> None:
        pid = self.kernel.status()['pid']
        os.kill(pid, signal.SIGKILL)
        until(lambda: is_gone(pid))

    def test_reading_and_writing_go_on(self) -> None:
        runner = self.started()
        channel = runner.get_channel('it')
        self.assertEqual(str(runner.get_process('it').pid),
                         self.read_line(channel))
        for number in range(5):
            channel.write(f'{number}\n')
            self.kill_daemon()
            self.assertEqual(f'got {number}', self.read_line(channel))
        self.assertTrue(runner.running('it'))

    def test_nothing_is_written_twice(self) -> None:
        runner = self.started(python('''
            import sys
            print(len(sys.stdin.read()))
            '''))
        channel = runner.get_channel('it')
        for _ in range(8):
            channel.write('x' * 100_000)
            self.kill_daemon()
        channel.flush(DEADLINE)
        channel.write_eof()
        self.assertEqual('800000', self.read_line(channel))

    def test_it_ends_at_the_same_time(self) -> None:
        runner = self.started(python('input(); raise SystemExit(5)'))
        runner.get_channel('it').write('x\n')
        self.kill_daemon()
        self.assertEqual(5, runner.get_process('it').wait(DEADLINE))

    def test_a_commit(self) -> None:
        command = python('''
            import sys
            print('1\\n2\\n3', flush=True)
            sys.stdin.read()
            ''')
        for number in range(1, 4):
            with self.started(command, transactional=True) as runner:
                channel = runner.get_channel('it')
                self.assertEqual(f'{number}\n', self.fetch(channel))
                self.kill_daemon()
                transaction.commit()

    def test_the_kernel_ends_for_good(self) -> None:
        with private_kernel() as kernel:
            runner = Runner(kernel=kernel)
            runner.add('it', python(ECHO), buffering='line')
            runner.start('it')
            process = runner.get_process('it')
            channel = runner.get_channel('it')
            channel.read_until(b'\n', DEADLINE)
            status = kernel.status()
            kernel.autostart = False
            with contextlib.ExitStack() as stack:
                for pid in status['keeper'], status['pid']:
                    stack.callback(until, lambda pid=pid: is_gone(pid))
                for pid in status['keeper'], status['pid']:
                    os.kill(pid, signal.SIGSTOP)
                for pid in status['keeper'], status['pid']:
                    os.kill(pid, signal.SIGKILL)
            with self.assertRaises(EndpointClosedException):
                while True:
                    channel.read_until(b'\n', DEADLINE)
            os.kill(process.pid, signal.SIGKILL)
            self.assertEqual(LOST_STATUS, process.wait(DEADLINE))
            runner.close()


class DyingWorkerTests(LivingTestCase):

    def test_a_worker_that_is_killed(self) -> None:
        program = self.program(f'''
            import time
            from gocept.runner.kernel import Kernel
            from gocept.runner.spawn import Runner
            runner = Runner(kernel=Kernel({self.kernel.port_or_path!r}),
                            instance={self.instance!r})
            runner.add('it', {python(ECHO)!r}, buffering='line')
            runner.start('it')
            channel = runner.get_channel('it')
            print(channel.read_until(b'\\n')[0].decode())
            channel.write(b'one\\n')
            channel.flush()
            print('ready', flush=True)
            time.sleep(1000)
            ''')
        program.wait_for('ready')
        program.send(signal.SIGKILL)
        program.end()
        runner = self.started()
        pid = str(runner.get_process('it').pid)
        self.assertIn(pid, program.output)
        # The worker was killed before it has asked for more.
        self.assertEqual([f'{pid}\n', 'got one\n'],
                         self.read_lines(runner.get_channel('it'), 2))

    def test_a_worker_that_ends(self) -> None:
        program = self.program(f'''
            from gocept.runner.kernel import Kernel
            from gocept.runner.spawn import Runner
            runner = Runner(kernel=Kernel({self.kernel.port_or_path!r}),
                            instance={self.instance!r})
            runner.add('it', {python(ECHO)!r}, buffering='line')
            runner.start('it')
            print(runner.get_process('it').pid)
            ''')
        self.assertEqual(0, program.end(), program.output)
        self.assertEqual(int(program.output.split()[0]),
                         self.started().get_process('it').pid)


class ExecutorTests(LivingTestCase):

    def server(self) -> tuple[list[str], int]:
        port = free_port()
        return python('''
            import socket, sys
            sock = socket.create_server(('127.0.0.1', int(sys.argv[1])))
            print('ready', flush=True)
            while True:
                sock.accept()[0].close()
            ''', str(port)), port

    def executor(self, command=None, port=0, **options):
        if command is None:
            command, port = self.command, self.port
        return TCPExecutor(command, '127.0.0.1', port, **{
            'kernel': self.kernel, 'name': self.instance, 'timeout': DEADLINE,
            **options})

    def setUp(self) -> None:
        super().setUp()
        self.command, self.port = self.server()

    def test_it_is_found_ready(self) -> None:
        with self.executor() as executor:
            pid = executor.child.pid
            self.assertEqual('ready\n', executor.output().readline())
        self.assertFalse(is_gone(pid))
        with self.executor() as executor:
            self.assertEqual(pid, executor.child.pid)
            self.assertTrue(executor.child.was_found)
            executor.stop()
        self.assertTrue(is_gone(pid))
        self.assertEqual({}, self.listed())

    def test_stop_ends_one_that_others_have_started(self) -> None:
        with self.executor() as executor:
            pid = executor.child.pid
        self.executor().stop()
        self.assertTrue(is_gone(pid))

    def test_another_command(self) -> None:
        with self.executor():
            pass
        other, port = self.server()
        with self.assertRaisesRegex(
                ExecutorError, f'{self.instance}.*another command'):
            self.executor(other, port).start()

    def test_a_banner_is_not_said_again(self) -> None:
        def executor():
            return OutputExecutor(
                self.command, 'ready', kernel=self.kernel,
                name=self.instance, timeout=DEADLINE)
        with executor() as first:
            pid = first.child.pid
        with executor() as second:
            self.assertEqual(pid, second.child.pid)
            second.stop()

    def test_one_that_was_not_ready(self) -> None:
        options = {'kernel': self.kernel, 'name': self.instance,
                   'timeout': DEADLINE}
        with SimpleExecutor(self.command, **options) as executor:
            pid = executor.child.pid
        with self.executor() as executor:
            self.assertEqual(pid, executor.child.pid)
            executor.stop()

    def test_it_ended_meanwhile(self) -> None:
        with self.executor() as executor:
            pid = executor.child.pid
        os.kill(pid, signal.SIGKILL)
        self.wait_ended()
        with self.executor() as executor:
            self.assertNotEqual(pid, executor.child.pid)
            executor.stop()
        self.assertTrue(self.logged('without us'))

    def test_an_interrupted_start_lets_it_go_on(self) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt
        with (self.assertRaises(KeyboardInterrupt),
              self.executor() as executor):
            pid = executor.child.pid
            executor.wait_for(interrupt)
        self.assertIsNone(executor.child)
        with self.executor() as executor:
            self.assertEqual(pid, executor.child.pid)
            executor.stop()

    def test_what_was_found_outlives_a_start_that_fails(self) -> None:
        with self.executor() as executor:
            pid = executor.child.pid
        for error in KeyboardInterrupt, OSError:
            with (mock.patch('gocept.runner.executor.run.Capture',
                             side_effect=error), self.assertRaises(error)):
                self.executor().start()
        with self.executor() as executor:
            self.assertEqual(pid, executor.child.pid)
            executor.stop()

    def wait_ended(self) -> None:
        with self.kernel.follow_processes(self.instance) as watcher:
            while watcher and not watcher.read()[2]:
                pass

    def test_a_failing_start(self) -> None:
        executor = self.executor(['sh', '-c', 'echo oops >&2; exit 3'], 1)
        with self.assertRaisesRegex(
                ExecutorError, r'non-zero code: 3(.|\n)*oops'):
            executor.start()
        self.assertEqual({}, self.listed())

    def test_keywords(self) -> None:
        for options in {'die_with_parent': True}, {
                'popen_kwargs': {'close_fds': False}}:
            with self.subTest(options), self.assertRaises(ValueError):
                self.executor(**options)


class FreePortTests(unittest.TestCase):

    def test_it_would_never_be_found_again(self) -> None:
        kernel = self.enterContext(private_kernel())
        for condition in (tcp('127.0.0.1', 0), http('http://127.0.0.1:0/'),
                          all_of(tcp('127.0.0.1', 0))):
            with self.subTest(condition), self.assertRaisesRegex(
                    ValueError, "'it' .* needs a fixed port, not 0"):
                ConditionExecutor('serve --port {port}', condition, name='it',
                                  kernel=kernel)


class PrivateKernelTests(unittest.TestCase):

    def test_all_is_ended(self) -> None:
        self.addCleanup(end_background)
        with private_kernel() as kernel:
            path = kernel.port_or_path
            process = open_process(
                kernel, 'it', ['sh', '-c', 'trap "" TERM; echo; read it'],
                stdin='pipe', stdout='pipe', stderr='null')
            status = kernel.status()
            process.close()
        for pid in process.pid, status['pid'], status['keeper']:
            self.assertTrue(is_gone(pid))
        self.assertFalse(os.path.exists(os.path.dirname(path)))

    def test_a_layer_that_is_not_set_up(self) -> None:
        layer = KernelLayer('NAME')
        with self.assertRaisesRegex(RuntimeError, 'NAME is not set up'):
            layer.kernel
        self.assertEqual(f'<KernelLayer {__name__}.NAME>', repr(layer))
