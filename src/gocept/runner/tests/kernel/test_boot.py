"""The start of a kernel, by a client and otherwise."""

import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import unittest

from gocept.runner.errors import KernelError
from gocept.runner.kernel.client import autostart
from gocept.runner.kernel.keeper.revival import revive
from gocept.runner.process.pidfd import hold
from gocept.runner.tests.kernel.releases import KernelCase
from gocept.runner.tests.kernels import free_port
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import Deadline, wait_for


class AutostartTests(KernelCase):

    def start_at_once(self, count):
        """As so many clients at one time; returns what each of them heard."""
        commands = [subprocess.Popen(
            self.options.command(), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(count)]
        config = json.dumps(self.options.to_json())
        for each in commands:
            each.stdin.write(config)
            each.stdin.close()
        outputs = []
        for each in commands:
            with each:
                outputs.append(each.stdout.read())
                self.assertEqual('', each.stderr.read())
                self.assertEqual(0, each.wait(DEADLINE))
        self.addCleanup(self.end)
        return outputs

    def test_many_at_once_on_a_path(self):
        outputs = self.start_at_once(50)
        self.assertEqual(49, outputs.count('exists\n'))
        self.assertEqual(1, self.ask('add'))

    def test_many_at_once_on_a_port(self):
        self.options = self.options._replace(address=free_port())
        outputs = self.start_at_once(20)
        self.assertEqual(19, outputs.count('exists\n'))
        self.assertEqual(1, self.ask('add'))

    def test_a_port_that_the_system_chooses(self):
        port = self.start(address=0)
        self.assertNotEqual(0, port)
        self.assertEqual(1, self.ask('add'))
        self.assertEqual(port, self.ask('who')['options']['address'])

    def test_a_second_kernel_finds_the_first(self):
        self.start()
        self.assertEqual(
            (False, self.path), autostart.start(self.options, DEADLINE))

    def test_another_path_is_another_kernel(self):
        self.start()
        self.ask('add')
        self.start(address=self.path + '2')
        self.assertEqual(1, self.ask('add'))
        self.options = self.options._replace(address=self.path)
        self.assertEqual(2, self.ask('add'))

    def test_only_the_user_can_connect(self):
        self.start()
        self.assertEqual(0o600, os.stat(self.path).st_mode & 0o777)
        self.assertEqual(0o600, os.stat(self.path + '.lock').st_mode & 0o777)

    def test_where_users_are_allowed_they_can_connect(self):
        self.start(allow_users=(65534,))
        self.assertEqual(0o666, os.stat(self.path).st_mode & 0o777)
        self.assertEqual(0o600, os.stat(self.path + '.lock').st_mode & 0o777)

    def test_a_long_path(self):
        directory = self.dir / ('long' * 30)
        directory.mkdir(0o700)
        self.start(address=str(directory / 'kernel'))
        self.assertEqual(1, self.ask('add'))

    def test_a_name_that_is_too_long(self):
        self.path = str(self.dir / ('n' * 120))
        self.options = self.options._replace(address=self.path)
        with self.assertRaisesRegex(
                KernelError, 'bytes too long: choose a shorter one'):
            autostart.start(self.options, DEADLINE)

    def test_too_few_open_files(self):
        code = (
            'import resource; '
            'from gocept.runner.kernel.client import autostart; '
            'from gocept.runner.kernel.keeper.options import Options; '
            'resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); '
            f'autostart.start(Options(address={self.path!r}), {DEADLINE})')
        done = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True,
            env={'PYTHONPATH': os.pathsep.join(sys.path)})
        self.assertIn('the limit of open files is 40, and a kernel needs at '
                      'least 64: raise it', done.stderr)

    def test_the_error_of_the_kernel_is_told(self):
        self.options = self.options._replace(
            address=str(self.dir / 'missing' / 'kernel'))
        with self.assertRaisesRegex(KernelError, (
                'no kernel could be started on .*/missing/kernel: the kernel '
                'cannot listen on .*/missing/kernel: .*No such file')):
            autostart.start(self.options, DEADLINE)

    def test_broken_code_is_told_and_leaves_nothing(self):
        self.options = self.options._replace(path=self.make_release(
            'two', code='import gone')['path'])
        with self.assertRaisesRegex(KernelError, "No module named 'gone'"):
            autostart.start(self.options, DEADLINE)
        self.options = self.options._replace(path=self.release['path'])
        self.start()

    def test_a_log_that_would_block(self):
        os.mkfifo(self.dir / 'fifo')
        self.options = self.options._replace(log=str(self.dir / 'fifo'))
        with self.assertRaisesRegex(KernelError, 'fifo'):
            autostart.start(self.options, DEADLINE)

    def test_no_code(self):
        self.options = self.options._replace(path=(str(self.dir),))
        with self.assertRaisesRegex(KernelError, 'not in a directory of sys'):
            autostart.start(self.options, DEADLINE)

    def test_a_kernel_that_takes_too_long_is_ended(self):
        self.options = self.options._replace(path=self.make_release(
            'two', code='import signal; signal.pause()')['path'])
        with self.assertRaisesRegex(KernelError, 'does not listen on .* after '
                                    '0.1 s'):
            autostart.start(self.options, 0.1)


class ImportTests(unittest.TestCase):

    def imported(self, statement):
        """The modules that there are after a statement, in a kernel."""
        return subprocess.run(
            [sys.executable, '-I', '-S', '-c', (
                f'import sys; sys.path += {autostart.code()["path"]!r}; '
                f'{statement}; print(*sys.modules)')],
            check=True, capture_output=True, text=True).stdout.split()

    def test_a_kernel_imports_little(self):
        found = self.imported(
            'from gocept.runner.kernel.keeper import boot, program\n'
            'from gocept.runner.kernel.daemon import daemon')
        for name in ('logging', 'zope.interface', 'ZODB', 'subprocess',
                     'traceback', 'gocept.runner.interfaces',
                     'gocept.runner.kernel.client', 'gocept.runner.channel'):
            self.assertNotIn(name, found)

    def test_the_start_of_a_kernel_imports_little(self):
        found = self.imported(
            'from gocept.runner.kernel.client import autostart')
        for name in ('logging', 'zope.interface', 'subprocess', 'ctypes',
                     'socket'):
            self.assertNotIn(name, found)


class InheritanceTests(KernelCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(self.end)

    def client(self, before='', **keywords):
        """Start the kernel from a program of its own."""
        config = json.dumps(self.options.to_json())
        script = self.write('client.py', f'''
            import sys
            sys.path[:] = {sys.path!r}
            import json, os, signal, fcntl
            from gocept.runner.kernel.client import autostart
            from gocept.runner.kernel.keeper.options import Options
            {before}
            autostart.start(Options.from_json(json.loads({config!r})), 60)
            ''')
        subprocess.run([sys.executable, script, 'SECRET'], check=True,
                       timeout=DEADLINE, **keywords)
        return self.ask('environment')

    def test_nothing_of_the_client(self):
        lock = self.dir / 'Data.fs.lock'
        found = self.client('; '.join((
            f'fd = os.open({str(lock)!r}, os.O_RDWR | os.O_CREAT)',
            'fcntl.flock(fd, fcntl.LOCK_EX)', 'os.set_inheritable(fd, True)',
            'os.dup2(fd, 77)', 'os.umask(0)',
            'signal.signal(signal.SIGTERM, signal.SIG_IGN)',
            'signal.signal(signal.SIGCHLD, signal.SIG_IGN)',
            'signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})')),
            cwd=self.dir, env={
                'SECRET': '1', 'PATH': '/bin', 'TZ': 'UTC', 'HOME': '/tmp'})
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.assertEqual('/', found['cwd'])
        self.assertLessEqual(
            found['environ'].keys(), {'PATH', 'TZ', 'HOME', 'LC_CTYPE'})
        self.assertNotIn('SECRET', ' '.join(found['command']))
        self.assertIn(self.path, found['command'])
        self.assertEqual(0o27, found['signals']['Umask'])
        self.assertEqual(0, found['signals']['SigBlk'])
        ignored = {each for each in signal.valid_signals()
                   if found['signals']['SigIgn'] >> each - 1 & 1}
        self.assertLessEqual(ignored, {signal.SIGPIPE, signal.SIGXFSZ})
        self.assertNotIn(str(lock), found['files'].values())
        self.assertEqual('/dev/null', found['files']['0'])
        self.assertEqual(self.log, found['files']['1'])
        self.assertEqual(self.log, found['files']['2'])
        self.assertNotEqual(os.getsid(0), found['session'])
        with open(f'/proc/{self.ask("who")["keeper"]}/environ') as file:
            self.assertNotIn('SECRET', file.read())

    def test_a_client_without_standard_streams(self):
        found = self.client('os.closerange(0, 3)')
        self.assertEqual('/dev/null', found['files']['0'])
        self.assertEqual(self.log, found['files']['2'])

    def test_no_terminal(self):
        self.client()
        self.assertIn('No such device', self.ask('environment', True))

    def test_limits_are_raised_and_remembered(self):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self.client('import resource; resource.setrlimit('
                    f'resource.RLIMIT_NOFILE, (99, {hard})); '
                    'resource.setrlimit(resource.RLIMIT_FSIZE, (9999, -1))')
        who = self.ask('who')
        self.assertEqual([99, hard], who['options']['open_files'])
        self.assertEqual([9999, -1], who['options']['file_size'])
        for role in ('pid', 'keeper'):
            self.assertEqual((hard, hard), resource.prlimit(
                who[role], resource.RLIMIT_NOFILE))
            self.assertEqual((-1, -1), resource.prlimit(
                who[role], resource.RLIMIT_FSIZE))

    def test_only_the_descriptors_of_the_table(self):
        self.client()
        who = self.ask('who')
        keeper = [os.readlink(f'/proc/{who["keeper"]}/fd/{fd}').split(':')[0]
                  for fd in os.listdir(f'/proc/{who["keeper"]}/fd')]
        # The control socket and the link; both ends of the pipe for signals.
        self.assertEqual(sorted([
            '/dev/null', self.log, self.log, self.path + '.lock', '/memfd',
            'pipe', 'pipe', 'socket', 'socket']), sorted(keeper))

    def test_the_keeper_adopts(self):
        self.client()
        self.assertEqual(0, self.ask('subreaper'))


class ControlTests(KernelCase):

    def error(self):
        with self.assertRaises(KernelError) as caught:
            autostart.start(self.options, DEADLINE)
        return str(caught.exception)

    def test_a_stale_socket_is_replaced(self):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(self.path)
        self.start()
        self.assertEqual(1, self.ask('add'))

    def test_both_died_and_the_next_one_starts(self):
        self.start()
        self.end()
        self.assertTrue(os.path.exists(self.path))
        self.start()
        self.assertEqual(1, self.ask('add'))

    def test_a_live_socket_stays(self):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(self.path)
            sock.listen(0)
            inode = os.stat(self.path).st_ino
            self.assertEqual(
                (False, self.path), autostart.start(self.options, DEADLINE))
            self.assertEqual(inode, os.stat(self.path).st_ino)
            with contextlib.ExitStack() as clients:
                with contextlib.suppress(BlockingIOError):
                    while True:  # until its backlog is full
                        client = clients.enter_context(
                            socket.socket(socket.AF_UNIX))
                        client.setblocking(False)
                        client.connect(self.path)
                self.assertFalse(autostart.start(self.options, DEADLINE)[0])

    def test_a_file_in_the_way_stays(self):
        self.write('kernel', 'precious')
        self.assertIn('is in the way, and is no socket', self.error())
        self.assertFalse(os.path.exists(self.path + '.lock'))
        self.assertTrue(os.path.exists(self.path))

    def test_a_lock_that_is_a_link(self):
        self.write('other', '')
        os.symlink(self.dir / 'other', self.path + '.lock')
        self.assertIn('Too many levels of symbolic links', self.error())

    def test_a_lock_that_is_a_fifo(self):
        os.mkfifo(self.path + '.lock')
        self.assertIn('or is no file', self.error())

    def test_a_directory_that_others_may_write_to(self):
        self.addCleanup(os.chmod, self.dir, 0o700)
        for mode in (0o777, 0o770):
            os.chmod(self.dir, mode)
            self.assertIn(f'others may write to the directory {self.dir} '
                          f'(mode {mode:o})', self.error())
        os.chmod(self.dir, 0o1777)
        self.start()

    @unittest.skipIf(os.getuid(), 'only root can give files away')
    def test_what_belongs_to_others(self):
        self.write('kernel.lock', '')
        os.chown(self.path + '.lock', 65534, 65534)
        self.assertIn('belongs to user 65534', self.error())
        os.unlink(self.path + '.lock')
        os.chown(self.dir, 65534, 65534)
        self.assertIn('belongs to user 65534', self.error())

    def test_a_socket_that_was_removed(self):
        self.start()
        self.ask('add')
        who = self.ask('who')
        os.unlink(self.path)
        self.assertEqual(
            (False, self.path), autostart.start(self.options, DEADLINE))
        self.assertEqual(who['keeper'], self.ask('who')['keeper'])
        self.assertEqual(2, self.ask('add'))
        self.assertEqual(0o600, os.stat(self.path).st_mode & 0o777)
        self.kill(self.ask('who')['keeper'])
        self.assertEqual(3, self.ask('add'))
        os.unlink(self.path)
        self.assertEqual(
            (False, self.path), autostart.start(self.options, DEADLINE))
        self.assertEqual(4, self.ask('add'))

    def test_a_socket_that_was_removed_and_a_keeper_that_hangs(self):
        self.be_impatient('one', 'keeper/revival', '_PATIENCE')
        self.start()
        who = self.ask('who')
        os.kill(who['keeper'], signal.SIGSTOP)
        os.unlink(self.path)
        with self.assertRaisesRegex(
                KernelError, 'socket .* was removed.* held by process '):
            autostart.start(self.options, DEADLINE)
        os.kill(who['keeper'], signal.SIGCONT)
        self.wait_for_log('Somebody has removed ')
        self.assertEqual(who['keeper'], self.ask('who')['keeper'])

    def test_a_kernel_that_ends_is_not_revived(self):
        lock = self.path + '.lock'
        with open(lock, 'w') as file:
            os.unlink(lock)
            with open(lock, 'w'):  # of the next kernel
                self.assertFalse(revive(self.path, lock, file.fileno()))

    def test_the_signal_that_revives_does_nothing_else(self):
        self.start()
        who = self.ask('who')
        os.kill(who['keeper'], signal.SIGUSR1)
        self.assertEqual(who, self.ask('who'))

    def test_a_lock_file_that_was_removed(self):
        self.start()
        os.unlink(self.path + '.lock')  # as a cleaner of /tmp does
        self.assertEqual(
            (False, self.path), autostart.start(self.options, DEADLINE))
        self.assertEqual(1, self.ask('add'))


class ForegroundTests(KernelCase):

    def setUp(self):
        super().setUp()
        self.notified = self.enterContext(
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self.notified.bind(str(self.dir / 'notify'))
        self.notified.settimeout(DEADLINE)

    def run_kernel(self, sockets=(), names=''):
        config = json.dumps(self.options.to_json())
        script = self.write('foreground.py', textwrap.dedent(f'''
            import sys
            sys.path[:] = {sys.path!r}
            import json, os
            for number, fd in enumerate({[s.fileno() for s in sockets]!r}):
                os.dup2(fd, 3 + number)
                os.set_inheritable(3 + number, True)
            os.environ['LISTEN_PID'] = str(os.getpid())
            from gocept.runner.kernel.client import autostart
            from gocept.runner.kernel.keeper.options import Options
            autostart.become(Options.from_json(json.loads({config!r})))
            '''))
        process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            pass_fds=[s.fileno() for s in sockets], env={
                **os.environ, 'NOTIFY_SOCKET': str(self.dir / 'notify'),
                'LISTEN_FDS': str(len(sockets)), 'LISTEN_FDNAMES': names})
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.addCleanup(self.end)
        self.assertEqual(
            f'READY=1\nMAINPID={process.pid}', self.notified.recv(99).decode())
        return process

    def test_the_process_is_the_keeper(self):
        process = self.run_kernel()
        self.assertEqual(process.pid, self.ask('who')['keeper'])
        environ = self.ask('environment')['environ']
        self.assertNotIn('LISTEN_FDS', environ)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(b'STOPPING=1', self.notified.recv(99))
        self.assertEqual(0, process.wait(DEADLINE))
        self.assertFalse(os.path.exists(self.path))

    def test_the_end_of_the_terminal(self):
        process = self.run_kernel()
        process.send_signal(signal.SIGHUP)
        self.assertEqual(0, process.wait(DEADLINE))

    def test_log_lines_go_to_standard_error(self):
        self.options = self.options._replace(log='')
        process = self.run_kernel()
        self.kill(self.ask('who')['pid'])
        self.assertIn('was killed by SIGKILL', process.stdout.readline())

    def test_a_new_keeper_is_told(self):
        self.run_kernel()
        who = self.ask('who')
        handle = hold(who['keeper'])
        handle.signal(signal.SIGKILL)
        self.assertTrue(wait_for(handle.fileno(), 1, Deadline(DEADLINE)))
        handle.close()
        self.assertEqual(
            f'READY=1\nMAINPID={who["pid"]}', self.notified.recv(99).decode())

    def test_sockets_of_the_manager(self):
        with (socket.socket() as one, socket.socket() as two,
              socket.socket(socket.AF_UNIX) as control):
            for each in (one, two):
                each.bind(('127.0.0.1', 0))
                each.listen()
            control.bind(self.path)
            control.listen()
            self.run_kernel([one, control, two], 'web:control:web')
            inodes = [os.fstat(each.fileno()).st_ino
                      for each in (one, control, two)]
        table = self.ask('table')
        self.assertEqual(inodes, [table[key] for key in (
            'systemd:web', 'listen:0', 'systemd:web.1')])
        self.assertNotIn('lock', table)

    def test_a_second_one_in_the_foreground(self):
        self.start()
        self.options = self.options._replace(log='')
        result = subprocess.run(
            self.options.command(), text=True, capture_output=True,
            input=json.dumps(
                self.options._replace(foreground=True).to_json()))
        self.assertEqual((71, ''), (result.returncode, result.stdout))
        self.assertEqual(f'a kernel, or another program, listens on '
                         f'{self.options.describe()} already\n', result.stderr)
