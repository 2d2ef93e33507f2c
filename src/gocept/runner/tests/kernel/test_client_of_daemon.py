"""The client with the daemon itself, as the seed of the kernel shows both."""

import contextlib
import os
import pathlib
import pwd
import select
import shutil
import signal
import socket
import sys
import tempfile
import unittest
from typing import Any
from unittest import mock

import transaction

from gocept.runner.kernel import PIPE, STDOUT, Error, Kernel, Watcher
from gocept.runner.kernel.client.autostart import code
from gocept.runner.poller import Poller
from gocept.runner.tests.kernel.raw import wait_for_end
from gocept.runner.tests.leftovers import check_processes
from gocept.runner.tests.support import DEADLINE, end_background

WRITE_THREE_LINES = '''
import sys
sys.stdout.write('Version: %s\\n' % sys.version_info[0])
sys.stdout.write('Executable: %s\\n' % bool(sys.executable))
sys.stdout.write('Args: %s\\n' % ' '.join(sys.argv[1:]))
'''


class KernelCase(unittest.TestCase):
    """A kernel of its own, which the client has started."""

    def setUp(self) -> None:
        self.addCleanup(end_background)
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.dir = pathlib.Path(stack.enter_context(
            tempfile.TemporaryDirectory()))
        stack.callback(check_processes, self.dir)
        self.path = str(self.dir / 'kernel')
        self.kernel = stack.enter_context(
            Kernel(self.path, DEADLINE, log=self.dir / 'log'))
        stack.callback(self.end)

    def end(self) -> None:
        status = self.kernel.status()
        for each in self.kernel.list_processes().values():
            if each['running']:
                os.killpg(each['pid'], signal.SIGKILL)
        self.kernel.stop(force=True)
        wait_for_end(status['keeper'])
        wait_for_end(status['pid'])

    def kill(self) -> None:
        """Kill the daemon."""
        os.kill(self.kernel.status()['pid'], signal.SIGKILL)

    def script(self, text: str) -> str:
        path = self.dir / 'script.py'
        path.write_text(text)
        return str(path)

    def make(self, script: str, *args: str, **keywords: Any) -> Any:
        return self.kernel.make_process(
            'p', sys.executable, ('-u', self.script(script), *args),
            env=os.environ, **keywords)

    def read_all(self, watcher: Watcher) -> tuple[bytes, bytes]:
        out = err = b''
        with watcher:
            while watcher:
                output = watcher.read()
                assert output is not None
                out += b''.join(each.data for each in output[0])  # type: ignore
                err += b''.join(each.data for each in output[1])  # type: ignore
        return out, err


class SeedTests(KernelCase):

    def test_the_kernel_is_started_once(self) -> None:
        with Kernel(self.path, autostart=False) as other:
            self.assertEqual(
                self.kernel.status()['pid'], other.status()['pid'])

    def test_process_of_our_own_user(self) -> None:
        made = self.kernel.make_process(
            'write3', sys.executable, args=self.script(WRITE_THREE_LINES),
            working_dir=str(self.dir),
            uid=pwd.getpwuid(os.getuid()).pw_name, env=os.environ)
        self.assertGreater(made['pid'], 1)  # type: ignore
        out, _ = self.read_all(self.kernel.watch_processes('write3'))
        self.assertEqual(b'Version: 3\nExecutable: True\nArgs: \n', out)
        self.assertEqual({}, self.kernel.list_processes())

    def test_watch_immediately(self) -> None:
        out, err = self.read_all(self.make(
            'import sys\nprint(sys.argv[1:])\nprint("e", file=sys.stderr)',
            'a b', '', 'c\nd', watch_immediately=True))
        self.assertEqual((b"['a b', '', 'c\\nd']\n", b'e\n'), (out, err))

    def test_merged_streams(self) -> None:
        out, err = self.read_all(self.make(
            'import os\nos.write(1, b"1")\nos.write(2, b"2")',
            stderr=STDOUT, watch_immediately=True))
        self.assertEqual((b'12', b''), (out, err))

    def test_several_watchers_are_selected(self) -> None:
        for name in 'a', 'b.1', 'b.2':
            self.kernel.make_process(name, '/bin/echo', name)
        watchers = [self.kernel.watch_processes('a'),
                    self.kernel.watch_processes('b.*')]
        seen = []
        while watchers:
            for watcher in select.select(watchers, [], [], DEADLINE)[0]:
                output = watcher.read()
                seen += [each.data for each in output[0]]
                watcher.acknowledge()
                if not watcher:
                    watcher.close()
                    watchers.remove(watcher)
        self.assertEqual({b'a\n', b'b.1\n', b'b.2\n'}, {*seen})

    def test_sockets(self) -> None:
        made = self.kernel.make_socket('web', family=socket.AF_INET6)
        self.assertEqual(('inet6', '::1'), (made['family'], made['host']))
        self.assertEqual(
            made, self.kernel.make_socket('web', family=socket.AF_INET6))
        with self.assertRaises(Error):
            self.kernel.make_socket('web', backlog=77)
        path = str(self.dir / 'web')
        self.kernel.make_socket('unix', path=path)
        out, _ = self.read_all(self.make(
            'import socket, sys\n'
            'print(socket.socket(fileno=int(sys.argv[1])).getsockname()[1],'
            ' sys.argv[2])',
            '$(socket.web.fileno)', '$(socket.web.port)',
            watch_immediately=True))
        self.assertEqual(b'%d %d\n' % (made['port'], made['port']), out)
        self.assertEqual({'unix', 'web'}, {*self.kernel.list_sockets()})
        self.assertTrue(self.kernel.remove_sockets('*'))
        self.assertEqual({}, self.kernel.list_sockets())

    def test_values(self) -> None:
        for value in ('1', '', 'a\nb', '\udcff', 'Error: x', '\0'):
            self.kernel.set('v', value)
            self.assertEqual(value, self.kernel.get('v'))
        self.assertEqual({'v': '\0'}, self.kernel.list_values('v*'))
        with self.assertRaises(Error):
            self.kernel.remove_values('*')
        self.kernel.remove_values('v')
        self.assertIsNone(self.kernel.get('v'))

    def test_errors_of_processes(self) -> None:
        for keywords in ({'executable': '/no/such'},
                         {'executable': None, 'args': ['/no/such']},
                         {'executable': '/bin/true', 'working_dir': '/no'},
                         {'executable': '/bin/true', 'rlimits': {'x': 1}}):
            with self.subTest(**keywords):
                with self.assertRaises(Error):
                    self.kernel.make_process('p', **keywords)  # type: ignore
        self.assertEqual({}, self.kernel.list_processes())

    def test_the_same_process_again(self) -> None:
        made = self.make('input()', stdin=PIPE)
        again = self.make('input()', stdin=PIPE)
        self.assertEqual(made['pid'], again['pid'])
        with self.assertRaises(Error):
            self.make('input()')
        self.kernel.close_stdin('p')
        self.read_all(self.kernel.watch_processes('p'))

    def test_standard_input(self) -> None:
        self.kernel.make_process('cat', '/bin/cat', stdin=PIPE)
        data = os.urandom(300_000)
        self.kernel.write_process('cat', data)
        self.kill()
        self.kernel.write_process('cat', data)
        self.kernel.close_stdin('cat')
        out, _ = self.read_all(self.kernel.watch_processes('cat'))
        self.assertEqual(2 * data, out)

    def test_exit_if_idle(self) -> None:
        status = self.kernel.status()
        self.kernel.set('a', '1')
        self.assertFalse(self.kernel.exit_if_idle())
        self.kernel.remove_values('a')
        self.assertTrue(self.kernel.exit_if_idle())
        wait_for_end(status['keeper'])
        self.assertIsNone(self.kernel.get('a'))  # of a new one
        self.assertNotEqual(status['pid'], self.kernel.status()['pid'])


class DeathTests(KernelCase):

    LINES = ('import sys, time\n'
             'for number in range(200):\n'
             '    print(number)\n'
             '    time.sleep(0.002)\n')

    def lines(self) -> list[bytes]:
        return [b'%d' % number for number in range(200)]

    def test_nothing_is_lost_and_nothing_comes_twice(self) -> None:
        with self.make(self.LINES, watch_immediately=True) as watcher:
            seen = b''
            killed = 0
            while watcher:
                out, _, _ = watcher.read()
                seen += b''.join(each.data for each in out)
                if len(seen) > 100 * (killed + 1) and killed < 3:
                    self.kill()
                    killed += 1
        self.assertEqual(self.lines(), seen.split())
        self.assertEqual({'p': 0}, watcher.exit_code)
        self.assertEqual({}, self.kernel.list_processes())
        # Three, unless a busy machine has shown much of it at once.
        self.assertGreater(killed, 0)
        self.assertEqual(killed, self.kernel.status()['deaths'])

    def test_a_poller(self) -> None:
        watcher = self.make(self.LINES, watch_immediately=True)
        seen = b''
        with Poller() as poller, watcher:
            poller.register(watcher)
            self.kill()
            while not watcher.exit_code:
                for item, _ in poller.poll(DEADLINE):
                    seen += b''.join(each.data for each in item[0])
        self.assertEqual(self.lines(), seen.split())

    def test_a_transactional_worker(self) -> None:
        # It is killed after commits, and so is the daemon.
        self.addCleanup(transaction.abort)
        self.make(self.LINES)
        seen, position, ended = b'', {}, False
        rounds = 0
        while not ended:
            rounds += 1
            watcher = self.kernel.watch_processes(
                'p', after=position, transactional=True)
            for _ in range(3):
                if rounds % 4 == 1:
                    self.kill()
                found = b''.join(
                    each.data for each in watcher.read()[0])  # type: ignore
                if rounds % 3 == 1:
                    transaction.abort()
                    continue
                seen += found
                position = watcher.position
                ended = bool(watcher.exit_code)
                if ended or rounds % 2:
                    break
                transaction.commit()
            self.leave(watcher)
        self.assertEqual(self.lines(), seen.split())
        self.assertGreater(self.kernel.status()['deaths'], 0)
        watcher = self.kernel.watch_processes('p', after=position)
        self.assertFalse(watcher)
        self.assertEqual({}, self.kernel.list_processes())

    def leave(self, watcher: Watcher) -> None:
        """Let a watcher end without a word, as its process was killed."""
        watcher._transport.close()
        watcher.closed = True
        with contextlib.suppress(Exception):
            transaction.abort()

    def test_a_flood(self) -> None:
        size = 30_000_000
        for overflow in 'drop', 'block':
            count = missing = 0
            watcher = self.make(
                'import os\n'
                f'for _ in range({size // 50_000}):\n'
                '    os.write(1, bytes(50_000))',
                overflow=overflow, watch_immediately=True)
            killed = False
            with watcher:
                while watcher:
                    out, _, _ = watcher.read()
                    count += sum(len(each.data) for each in out)
                    missing += watcher.missing.get('p', 0)
                    if count > size // 4 and not killed:
                        killed = True
                        self.kill()
            self.assertEqual(size, count + missing)
            if overflow == 'block':
                self.assertEqual(0, missing)

    def test_an_upgrade(self) -> None:
        watcher = self.make(self.LINES, watch_immediately=True)
        pid = self.kernel.status()['pid']
        self.kernel.upgrade()
        self.assertNotEqual(pid, self.kernel.status()['pid'])
        out, _ = self.read_all(watcher)
        self.assertEqual(self.lines(), out.split())

    def test_an_upgrade_to_code_that_fails_after_its_trial(self) -> None:
        config = code()
        root, *more = config['path']  # type: ignore[misc]
        shutil.copytree(
            pathlib.Path(root, 'gocept', 'runner'),
            self.dir / 'new' / 'gocept' / 'runner',
            ignore=lambda directory, names: [
                each for each in names if each == 'tests'])
        path = self.dir / 'new/gocept/runner/kernel/daemon/daemon.py'
        with open(path, 'a') as file:
            file.write('def run(*ignored): raise ZeroDivisionError\n')
        config['path'] = (str(self.dir / 'new'), *more)
        self.kernel.set('a', '1')
        with mock.patch('gocept.runner.kernel.client.autostart.code',
                        return_value=config):
            with self.assertRaisesRegex(Error, 'does not start, so the old'):
                self.kernel.upgrade()
        self.assertEqual('1', self.kernel.get('a'))
        self.kernel.upgrade()
        self.assertEqual(1, self.kernel.status()['failed_upgrades'])
        self.kernel.remove_values('a')


class OwnerTests(KernelCase):

    def test_a_second_watcher_takes_over(self) -> None:
        self.kernel.make_process('cat', '/bin/cat', stdin=PIPE)
        self.kernel.write_process('cat', b'1\n')
        first = self.kernel.watch_processes('cat')
        self.assertEqual(b'1\n', self.one(first))
        second = self.kernel.watch_processes('cat')
        self.addCleanup(second.close)
        self.assertEqual(b'1\n', self.one(second))
        first.close(acknowledge=False)
        self.kernel.write_process('cat', b'2\n')
        self.assertEqual(b'2\n', self.one(second))
        second.acknowledge()
        second.close()
        third = self.kernel.watch_processes('cat')
        self.kernel.close_stdin('cat')
        self.assertEqual((b'', b''), self.read_all(third))

    def one(self, watcher: Watcher) -> bytes:
        output = watcher.read()
        assert output is not None
        return b''.join(each.data for each in output[0])  # type: ignore


