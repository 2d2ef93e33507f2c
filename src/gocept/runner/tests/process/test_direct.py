"""The start of children by a daemon of one thread."""

import contextlib
import errno
import functools
import os
import pathlib
import resource
import select
import signal
import socket
import tempfile
import unittest
from unittest import mock

from gocept.runner.poller import Poller
from gocept.runner.process import direct, rlimits
from gocept.runner.process.mounts import Mounts
from gocept.runner.waits.standard import fill_standard

_PATIENCE = 30

_SHOW = ('ulimit -n; pwd; grep -E "SigBlk|SigIgn" /proc/self/status; '
         'ps -o sid= -p $$; ls /proc/self/fd')


class Children(unittest.TestCase):

    def setUp(self):
        fill_standard()
        self.null = os.open(os.devnull, os.O_RDWR)
        self.addCleanup(os.close, self.null)
        self.read, self.write = os.pipe()
        self.addCleanup(os.close, self.read)
        self.addCleanup(self.close_write)
        self.mounts = Mounts()
        self.addCleanup(self.mounts.close)

    def close_write(self):
        if self.write >= 0:
            os.close(self.write)
            self.write = -1

    def command(self, *args, env=None, **keywords):
        command = direct.Command(
            [os.fsencode(arg) for arg in args],
            env or {b'PATH': b'/usr/bin:/bin'}, **keywords)
        command.streams = (self.null, self.write, self.write)
        return command

    def assert_inherits_nothing(self, names):
        """Of our descriptors; whoever runs the tests may have let us have
        others."""
        for fd in {self.null, self.read}:
            self.assertNotIn(str(fd), set(names) - {'3'})

    def output(self, pid):
        """All that the child says, and its status."""
        self.close_write()
        said = b''
        while True:
            self.assertTrue(select.select([self.read], [], [], _PATIENCE)[0])
            data = os.read(self.read, 65536)
            if not data:
                break
            said += data
        return said.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class SpawnTests(Children):

    def test_the_child_has_what_it_was_given(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lower = min(soft, 200)
        with tempfile.TemporaryDirectory() as directory:
            here = os.getcwd()
            pid = direct.spawn(self.command(
                'sh', '-c', _SHOW, cwd=os.fsencode(directory),
                soft_limits={resource.RLIMIT_NOFILE: lower}))
            said, status = self.output(pid)
        self.assertEqual(0, status)
        lines = said.split('\n')
        self.assertEqual([str(lower), os.path.realpath(directory)], lines[:2])
        self.assertEqual('SigBlk:\t0000000000000000', lines[2])
        # The C library ignores two signals of its own.
        ignored = int(lines[3].split()[1], 16)
        self.assertEqual(0, ignored & ~(0b11 << 31))
        self.assertEqual(pid, int(lines[4]))
        self.assert_inherits_nothing(lines[5:])
        self.assertEqual((soft, hard),
                         resource.getrlimit(resource.RLIMIT_NOFILE))
        self.assertEqual(here, os.getcwd())

    def test_ignored_and_blocked_signals_are_not_inherited(self):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        self.addCleanup(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        said, _ = self.output(direct.spawn(self.command(
            'grep', '-E', 'SigBlk|SigIgn', '/proc/self/status')))
        masks = [int(line.split()[1], 16) for line in said.splitlines()]
        self.assertEqual(0, masks[0])
        self.assertEqual(0, masks[1] & 1 << signal.SIGHUP - 1)
        self.assertEqual(0, masks[1] & 1 << signal.SIGPIPE - 1)

    def test_errors_name_the_file(self):
        with self.assertRaises(FileNotFoundError) as caught:
            direct.spawn(self.command('no-such-program'))
        self.assertEqual('no-such-program', caught.exception.filename)
        with self.assertRaises(FileNotFoundError) as caught:
            direct.spawn(self.command('true', cwd=b'/no/such'))
        self.assertEqual(b'/no/such', caught.exception.filename)
        with tempfile.NamedTemporaryFile() as file:
            with self.assertRaises(PermissionError):
                direct.spawn(self.command(file.name))

    def test_an_empty_environment_has_a_path(self):
        said, _ = self.output(direct.spawn(self.command(
            'env', env={b'A': b'\xff'})))
        self.assertEqual('A=\udcff\n', said.encode(
            'utf-8', 'surrogateescape').decode('utf-8', 'surrogateescape'))

    def output(self, pid):
        self.close_write()
        with open(self.read, errors='surrogateescape', closefd=False) as file:
            return file.read(), os.waitstatus_to_exitcode(
                os.waitpid(pid, 0)[1])

    def test_a_descriptor_for_one_child(self):
        sock = socket.socket()
        self.addCleanup(sock.close)
        number = sock.fileno()
        command = self.command('sh', '-c', f'test -S /proc/self/fd/{number}')
        command.inherited = (number,)
        self.assertEqual(('', 0), self.output(direct.spawn(command)))
        self.assertFalse(os.get_inheritable(number))
        self.write = os.open(os.devnull, os.O_RDWR)
        command = self.command('sh', '-c', f'test -S /proc/self/fd/{number}')
        self.assertEqual(1, os.waitstatus_to_exitcode(
            os.waitpid(direct.spawn(command), 0)[1]))

    def test_more_descriptors_than_the_child_may_have(self):
        self.assertEqual(('20\n', 0), self.output(direct.spawn(self.command(
            'sh', '-c', 'ulimit -n',
            soft_limits={resource.RLIMIT_NOFILE: 20}))))

    def test_a_soft_limit_below_none(self):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limits[1] != resource.RLIM_INFINITY:
            self.skipTest('the hard limit of this process is finite')
        self.assertEqual(('1\nunlimited\n', 0), self.output(direct.spawn(
            self.command('bash', '-c', 'ulimit -Sf; ulimit -Hf',
                         soft_limits={resource.RLIMIT_FSIZE: 1024}))))
        self.assertEqual(limits, resource.getrlimit(resource.RLIMIT_FSIZE))


class PreparationTests(Children):

    def prepare(self, command, opens=True, **keywords):
        """Start it slowly; returns the report, and the pid."""
        preparation = direct.Preparation()
        self.addCleanup(preparation.close)
        reports = []
        with Poller() as poller:
            poller.register(direct.Reports(
                preparation.report_fd,
                lambda said: (reports.append(said), poller.wakeup())))
            pid = preparation.fork(command, **keywords)
            if opens:
                preparation.open_gate()
            else:
                preparation.close()
            while not reports:
                poller.poll(_PATIENCE)
        return direct.parsed(reports[0]), pid

    def test_limits_and_the_rest(self):
        for may_hang in (False, True):
            with self.subTest(may_hang=may_hang):
                self.write = (self.write if self.write >= 0
                              else os.open(os.devnull, os.O_RDWR))
                report, pid = self.prepare(self.command(
                    'sh', '-c', f'ulimit -c; {_SHOW}', cwd=b'/tmp',
                    rlimits={'core': (0, 0), 'nofile': (99, 99)}),
                    may_hang=may_hang)
                self.assertEqual({'user': None, 'group': None}, report)
                if may_hang:
                    os.waitpid(pid, 0)
                    continue
                said, status = self.output(pid)
                self.assertEqual(0, status)
                lines = said.split('\n')
                self.assertEqual(['0', '99', '/tmp'], lines[:3])
                self.assertEqual(
                    ['SigBlk:\t0000000000000000', 'SigIgn:\t0000000000000000'],
                    lines[3:5])
                self.assertEqual(pid, int(lines[5]))
                self.assert_inherits_nothing(lines[6:])

    def test_without_the_gate_it_is_never_the_program(self):
        report, pid = self.prepare(self.command('echo', 'bad'), opens=False)
        self.assertEqual('gate', report['step'])
        self.assertEqual(('', direct.FAILED), self.output(pid))

    def test_the_step_that_failed_is_told(self):
        for step, number, command in [
                ('command', errno.ENOENT, self.command('no-such-program')),
                ('working_dir', errno.ENOENT,
                 self.command('true', cwd=b'/no/such')),
                ('user', 0, self.command('true', user='no such user')),
                ('group', 0, self.command('true', group='no such group')),
                ('rlimit.core', 0,
                 self.command('true', rlimits={'core': (2, 1)}))]:
            with self.subTest(step=step):
                report, pid = self.prepare(command)
                os.waitpid(pid, 0)
                expected = 'user' if step == 'group' else step
                self.assertEqual(expected, report['step'])
                self.assertEqual(number, report['errno'])

    def test_the_own_user_needs_no_privileges(self):
        report, pid = self.prepare(self.command(
            'true', user=os.geteuid(), group=os.getegid(),
            rlimits={'core': (0, 0)}))
        self.assertEqual([os.geteuid(), os.getegid()],
                         [report['user'], report['group']])
        self.assertEqual(0, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    @unittest.skipIf(os.geteuid(), 'only root can be another user')
    def test_another_user(self):
        report, pid = self.prepare(self.command(
            'sh', '-c', 'id -un; id -G', user='nobody'))
        said, _ = self.output(pid)
        self.assertEqual('nobody', said.split()[0])
        self.assertNotIn('0', said.split()[1:])
        self.assertNotEqual(0, report['user'])

    @unittest.skipIf(os.geteuid(), 'only root can be another user')
    def test_a_directory_that_only_the_user_may_enter(self):
        with tempfile.TemporaryDirectory() as directory:
            os.chmod(directory, 0o755)
            inside = pathlib.Path(directory, 'inside')
            inside.mkdir(0o700)
            os.chown(inside, 65534, 65534)
            with mock.patch.object(
                    os, 'chdir', functools.partial(self.chdir, os.chdir)):
                report, pid = self.prepare(self.command(
                    'pwd', user=65534, group=65534,
                    cwd=os.fsencode(inside)))
            self.assertNotIn('step', report)
            self.assertEqual((f'{inside}\n', 0), self.output(pid))

    @staticmethod
    def chdir(real, path):
        if not os.geteuid():  # as on NFS, where root is nobody
            raise PermissionError(errno.EACCES, 'no', path)
        real(path)

    def test_one_that_hangs_has_nothing_of_the_daemon(self):
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        preparation = direct.Preparation()
        self.addCleanup(os.close, preparation.report_fd)
        self.addCleanup(preparation.close)
        pid = preparation.fork(self.command('true'))
        theirs.close()
        ours.settimeout(_PATIENCE)
        self.assertEqual(b'', ours.recv(1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class QuestionTests(unittest.TestCase):

    def ask(self, function, seconds=_PATIENCE):
        question = direct.Question(function, seconds)
        said = []
        with Poller() as poller:
            poller.register(direct.Reports(
                question.report_fd,
                lambda data: (said.append(data), poller.wakeup())))
            while not said:
                poller.poll(_PATIENCE)
        os.waitpid(question.pid, 0)
        return said[0]

    def test_answers(self):
        self.assertEqual(b'{"answer": [1, "2"]}', self.ask(lambda: [1, '2']))
        self.assertEqual(b'{"error": "no"}', self.ask(self.fail_it))

    @staticmethod
    def fail_it():
        raise LookupError('no')

    def test_it_ends_itself(self):
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        self.addCleanup(os.close, write)
        self.assertEqual(b'', self.ask(
            lambda: select.select([], [], [], 1000), 0.05))


class IdentityTests(unittest.TestCase):

    def test_nothing_changes(self):
        self.assertEqual((None, None, None), direct.identity(None, None))
        uid, _, groups = direct.identity(os.geteuid(), os.getegid())
        self.assertEqual((os.geteuid(), None), (uid, groups))

    def test_names(self):
        uid, gid, _ = direct.identity('nobody', None)
        self.assertEqual(uid, direct.identity(str(uid), None)[0])
        self.assertIsInstance(gid, int)
        for user, group in [('no such user', None), (None, 'no such group'),
                            (2 ** 31 - 7, None)]:
            with self.subTest(user=user), self.assertRaises(LookupError):
                direct.identity(user, group)

    def test_limits(self):
        self.assertEqual((1, 1), rlimits.limits_of('core', 1))
        self.assertEqual((1, 2), rlimits.limits_of('core', [1, 2]))
        for name, value in [('bogus', 1), ('CORE', 1), ('core', 'x')]:
            with contextlib.ExitStack() as stack:
                stack.enter_context(self.assertRaises(ValueError))
                rlimits.limits_of(name, value)
