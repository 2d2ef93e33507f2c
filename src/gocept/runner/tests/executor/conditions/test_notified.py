"""The condition that a child says itself that it is ready."""

import os
import pwd
import socket
import unittest
from typing import Any
from unittest import mock

from gocept.runner.executor import (
    ConditionExecutor,
    ExecutorError,
    ProcessExitedWithError,
    SimpleExecutor,
    notified,
    start_all,
    stop_all,
)
from gocept.runner.executor.conditions.notified import _Messages
from gocept.runner.poller import Poller
from gocept.runner.process import Process
from gocept.runner.tests import services
from gocept.runner.tests.executors import ExecutorTestCase, Starting
from gocept.runner.tests.support import DEADLINE
from gocept.runner.tests.victims import VICTIM, until, victim
from gocept.runner.waits.deadline import NEVER

NOTIFIES = '''\
import socket

def write():
    os.write(int(os.environ['NOTIFY_FD']), b'\\n')

def close():
    os.close(int(os.environ['NOTIFY_FD']))

def send(*lines):
    """As sd_notify() does it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto('\\n'.join(lines).encode(),
                    '\\0' + os.environ['NOTIFY_SOCKET'][1:])

'''


class NotifiedTests(ExecutorTestCase):

    def executor(self, body: str, **options: Any) -> ConditionExecutor:
        return self.stopping(ConditionExecutor(
            victim(NOTIFIES + body), notified(), **options))

    def check_ready(self, *lines: str) -> None:
        """It waits for a line before it does that."""
        starting = Starting(self.executor('\n'.join([
            'sys.stdin.readline()', *lines, 'pause()'])))
        until(lambda: starting.executor.child)
        starting.go_on()
        starting.wait()
        starting.executor.stop()

    def test_a_newline_for_the_descriptor(self) -> None:
        self.check_ready('write()')

    def test_more_than_a_newline(self) -> None:
        self.check_ready('fd = int(os.environ["NOTIFY_FD"])',
                         'os.write(fd, b"ready")', 'os.write(fd, b"!\\n\\n")')

    def test_the_descriptor_may_be_in_the_command(self) -> None:
        for command in (
                'echo > /dev/fd/{notify_fd}; exec sleep 100',
                ['sh', '-c', 'echo > /dev/fd/$0; exec sleep 100',
                 '{notify_fd}']):
            with self.subTest(command):
                executor = self.stopping(ConditionExecutor(
                    command, notified(), shell=isinstance(command, str)))
                executor.start().stop()

    def test_a_message(self) -> None:
        self.check_ready('send("READY=1")')

    def test_a_message_among_others(self) -> None:
        self.check_ready(
            'send("STATUS=Looking")',
            'send("STATUS=Found", "READY=1", "MAINPID=1", "")')

    def test_a_message_with_a_descriptor(self) -> None:
        # Such are stored by a service manager; not here.
        self.check_ready(
            'sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)',
            'sock.connect("\\0" + os.environ["NOTIFY_SOCKET"][1:])',
            'socket.send_fds(sock, [b"FDSTORE=1\\nREADY=1"], [0, 1])')

    def test_a_message_of_a_grandchild(self) -> None:
        self.check_ready('close()', 'fork(send, "READY=1")')

    def test_a_message_of_a_daemon(self) -> None:
        for told in 'write()', 'send("READY=1")':
            with self.subTest(told):
                starting = Starting(self.executor(f'''
if not os.fork():
    signal.alarm(100)
    os.setsid()
    sys.stdin.readline()
    {told}
    pause()
'''))
                until(lambda: starting.executor.child
                      and starting.executor.child.poll() == 0)
                starting.go_on()
                starting.wait()
                starting.executor.stop()

    def test_other_messages_do_not_count(self) -> None:
        executor = self.executor('''
send('STATUS=READY=1')
send('READY=0', 'READY=11', 'X_READY=1')
os.write(int(os.environ['NOTIFY_FD']), b'ready')
''')
        self.assertRaises(ProcessExitedWithError, executor.start)

    def test_an_end_before_it_fails_at_once(self) -> None:
        for body, status in (('', 0), ('close()', 0), ('sys.exit(3)', 3)):
            with self.subTest(body):
                executor = self.executor(body)
                with self.assertRaises(ProcessExitedWithError) as caught:
                    executor.start()
                self.assertEqual(status, caught.exception.exit_code)
                self.assertIn('for its notification', str(caught.exception))
                self.assertIsNone(executor.child)

    def test_to_close_the_descriptor_is_no_failure(self) -> None:
        starting = Starting(self.executor('''
close()
say('closed')
sys.stdin.readline()
send('READY=1')
pause()
'''))
        until(lambda: starting.executor._run and
              starting.executor._run.captures['stdout'].tail == 'closed')
        starting.go_on()
        starting.wait()

    def test_it_may_end_when_it_has_said_so(self) -> None:
        for body in ('write()', 'send("READY=1")',
                     'for _ in range(8): send("STATUS=x")\nsend("READY=1")'):
            for status in (0, 3):
                with self.subTest(body, status=status):
                    executor = self.executor(f'{body}\nos._exit({status})')
                    executor.start().kill()

    def test_several_do_not_mix(self) -> None:
        good = [self.executor(f'{body}\npause()') for body in (
            'write()', 'send("READY=1")') for _ in range(3)]
        bad = self.executor('')
        with self.assertRaises(ExecutorError) as caught:
            start_all([*good, bad])
        self.assertIs(bad, caught.exception.executor)
        start_all(good)
        stop_all(good)

    def test_others_are_not_told_how(self) -> None:
        names = 'import os\nfor name in os.environ: print(name)'
        with mock.patch.dict(os.environ, NOTIFY_SOCKET='@ours'):
            executor = self.executor(
                'say(os.environ["NOTIFY_SOCKET"])\nwrite()\npause()').start()
            self.assertNotEqual('@ours\n', executor.output().readline())
            self.assertEqual('@ours', os.environ['NOTIFY_SOCKET'])
            other = self.stopping(SimpleExecutor(victim(names))).start()
            self.assertNotIn('NOTIFY_', other.output().read())

    def test_without_a_socket_nothing_is_left(self) -> None:
        for name in ('socket.socket.bind', 'os.pipe', 'socket.socket'):
            with self.subTest(name), mock.patch(
                    name, side_effect=OSError(24, 'too many')):
                self.assertRaisesRegex(
                    OSError, 'too many', self.executor('').start)


@unittest.skipUnless(os.geteuid() == 0, 'one user cannot become another')
class UserTests(ExecutorTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.python = [services.python_for_nobody(self, os.devnull),
                       '-I', '-S', '-c']

    def executor(self, body: str, **popen: Any) -> ConditionExecutor:
        return self.stopping(ConditionExecutor(
            [*self.python, VICTIM + NOTIFIES + body], notified(),
            cwd='/', popen_kwargs=popen))

    def nobody(self) -> dict[str, Any]:
        return {'user': 'nobody', 'group': pwd.getpwnam('nobody').pw_gid,
                'extra_groups': []}

    def test_the_user_of_the_child_counts(self) -> None:
        executor = self.executor(
            'send("READY=1")\npause()', **self.nobody())
        executor.start().stop()

    def test_the_child_opens_the_descriptor_by_its_name(self) -> None:
        executor = self.stopping(ConditionExecutor(
            'echo > /dev/fd/$NOTIFY_FD; exec sleep 100', notified(),
            shell=True, cwd='/', popen_kwargs=self.nobody()))
        executor.start().stop()

    def test_also_if_it_is_from_a_grandchild(self) -> None:
        executor = self.executor(
            'fork(send, "READY=1")\npause()', **self.nobody())
        executor.start().stop()

    def test_also_if_the_child_has_ended(self) -> None:
        check = notified().check()
        self.addCleanup(check.close)
        process = self.enterContext(Process(
            [*self.python, VICTIM + NOTIFIES + 'send("READY=1")'], cwd='/',
            extra_env=check.variables, **self.nobody()))
        self.assertEqual(0, process.wait(DEADLINE))
        check.begin(process, [], self.enterContext(Poller()), NEVER)
        self.assertTrue(check.holds())

    def test_the_child_may_become_another_user(self) -> None:
        executor = self.executor(
            'os.setuid(65534)\nfork(send, "READY=1")\npause()')
        executor.start().stop()

    def test_another_user_does_not_count(self) -> None:
        starting = Starting(self.executor('''
if not os.fork():
    os.setuid(65534)
    send('READY=1')
    os._exit(0)
os.wait()
sys.stdin.readline()
send('READY=1')
pause()
'''))
        starting.until_seen('by user 65534 was ignored')
        starting.go_on()
        starting.wait()


class MessagesTests(ExecutorTestCase):

    def test_one_look_takes_all_that_came(self) -> None:
        check = notified().check()
        self.addCleanup(check.close)
        check.begin(self.enterContext(Process('sleep 100')), [],
                    self.enterContext(Poller()), NEVER)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            for text in (b'STATUS=1', b'STATUS=2', b'READY=1'):
                sock.sendto(
                    text, '\0' + check.variables['NOTIFY_SOCKET'][1:])
        self.assertTrue(check.holds())

    def test_messages_without_end_do_not_keep_us(self) -> None:
        check = notified().check()
        self.addCleanup(check.close)
        with mock.patch.object(
                _Messages, 'collect', return_value=(
                    [(b'STATUS=x', 1, 0)], False)):
            self.assertFalse(check.holds())
