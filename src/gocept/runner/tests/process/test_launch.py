import contextlib
import errno
import grp
import json
import os
import pathlib
import pwd
import re
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import unittest
from unittest import mock

from gocept.runner.errors import ShortageError
from gocept.runner.process import (
    Process,
    exechelper,
    launch,
    procfs,
    registry,
    shortages,
)
from gocept.runner.process.launch import Launch
from gocept.runner.process.marks import MARKER, new_mark, our_mark
from gocept.runner.process.newborn import Newborn
from gocept.runner.tests import services, support
from gocept.runner.tests.victims import PYTHON

AS_ROOT = unittest.skipUnless(os.geteuid() == 0, 'needs root')


class LaunchTestCase(support.TestCase):
    """Starts each child itself; with `helped` all through the helper."""

    helped = {}

    def setUp(self):
        super().setUp()
        before = support.open_descriptors(), procfs.children(os.getpid())
        self.addCleanup(lambda: self.assertEqual(before, (
            support.open_descriptors(), procfs.children(os.getpid()))))
        self.addCleanup(support.end_background)

    def start(self, command, **options):
        launch = Launch(command, **(self.helped | options))
        newborn = Newborn('' if launch.detached else 'a-mark')
        try:
            with shortages.shortages():
                launch.start(newborn)
        except BaseException:
            newborn.abandon()
            raise
        return newborn

    def python_for_nobody(self):
        """One for children that cannot run ours, as it belongs to somebody."""
        return services.python_for_nobody(self, exechelper.__file__)

    def run_child(self, command, status=0, **options):
        """Returns what it writes to its standard output."""
        started = self.start(command, **({'stdout': 'pipe'} | options))
        with open(started.stdout, 'rb') as file:
            output = file.read()
        self.assertEnds(status, started)
        return output

    def assertEnds(self, status, started):
        _, result = os.waitpid(started.pid, 0)
        self.assertEqual(status, os.waitstatus_to_exitcode(result))

    def lines(self, *args, **options):
        return self.run_child(*args, **options).decode().splitlines()


class CommandTests(LaunchTestCase):

    def test_a_list(self):
        self.assertEqual(
            b'a b|*|$HOME|', self.run_child(
                ['printf', '%s|', 'a b', '*', '$HOME']))

    def test_paths_and_bytes(self):
        path = self.dir / 'x'
        self.assertEqual(
            f'{path}|\udcff|'.encode(errors='surrogateescape'),
            self.run_child([pathlib.Path('printf'), b'%s|', path, b'\xff']))

    def test_a_string_is_split_but_not_interpreted(self):
        self.assertEqual(
            b'a b|*|$HOME|c|', self.run_child(
                "printf '%s|' 'a b' * $HOME \"c\""))

    def test_a_shell(self):
        self.assertEqual(['1', '2'], self.lines(
            'echo 1 | cat; echo $((1 + 1))', shell=True))

    def test_strange_arguments(self):
        strange = [b'', b' ', b'\n', b'"\'\\', b'\xff\xfe\x80', 'ä€'.encode(),
                   b'-c', b'x' * 100_000, b'']
        output = self.run_child([
            *PYTHON, 'import os, sys; [os.write(1, os.fsencode(each) + '
            'b"\\0") for each in sys.argv[1:]]', *strange])
        self.assertEqual(b'\0'.join([*strange, b'']), output)

    def test_what_is_no_command(self):
        for command in '', [], ' ', [''], "'":
            with self.subTest(command), self.assertRaises(ValueError):
                Launch(command)
        for command in ['ls'], '', ' ':
            with self.subTest(command), self.assertRaises(ValueError):
                Launch(command, shell=True)

    def test_arguments_that_cannot_be_meant(self):
        for command in ['echo', 'a\0b'], [b'echo', b'\0'], 'echo \0':
            with self.subTest(command), self.assertRaisesRegex(
                    ValueError, 'command: no argument can be'):
                Launch(command)
        with self.assertRaisesRegex(ValueError, 'no argument can be'):
            Launch('echo \0', shell=True)
        with self.assertRaisesRegex(TypeError, 'command: .*not int'):
            Launch(['sleep', 1])

    def test_a_program_of_another_name(self):
        self.assertEqual(b'called so\n', self.run_child(
            ['called so', '-c', 'echo $0'], executable='/bin/sh')
            .replace(b'/bin/sh', b'called so'))

    def test_a_program_on_the_path_of_the_child(self):
        (self.dir / 'here').symlink_to('/bin/echo')
        self.assertEqual(b'1\n', self.run_child(
            'here 1', env={'PATH': f'/nowhere:{self.dir}'}))

    def test_the_directory(self):
        self.assertEqual([os.path.realpath(self.dir)],
                         self.lines('pwd', cwd=self.dir))
        (self.dir / 'here').symlink_to('/bin/echo')
        self.assertEqual(b'1\n', self.run_child('./here 1', cwd=self.dir))

    def test_a_program_that_cannot_be_run(self):
        directory = str(self.dir)
        script = self.write('script', 'no program')
        for program, error in (('/does/not/exist', FileNotFoundError),
                               ('does-not-exist', FileNotFoundError),
                               (directory, PermissionError),
                               (f'{script}/x', NotADirectoryError),
                               (str(script), PermissionError)):
            with self.subTest(program):
                with self.assertRaises(error) as raised:
                    self.start([program, 'x'], stdin='pipe', stderr='pipe')
                self.assertEqual(program, raised.exception.filename)

    def test_a_file_that_is_no_program(self):
        script = self.write('script', 'no program')
        script.chmod(0o700)
        with self.assertRaisesRegex(OSError, 'Exec format error.*script'):
            self.start([str(script)])

    def test_our_directory_is_gone(self):
        def run():
            gone = self.dir / 'gone'
            gone.mkdir()
            os.chdir(gone)
            gone.rmdir()
            for options in {}, {'detached': True}:
                started = self.start(
                    [sys.executable, '-S', '-c', 'print("out")'],
                    stdout='pipe', **({} if self.helped else options))
                os.waitpid(started.pid, 0)
                if os.read(started.stdout, 100) != b'out\n':
                    return b'nothing'
            return b'all went well'
        self.assertEqual(b'all went well', StreamTests.in_a_fork(self, run))

    def test_a_directory_that_does_not_exist(self):
        with self.assertRaises(FileNotFoundError) as raised:
            self.start('true', cwd='/does/not/exist')
        self.assertEqual('/does/not/exist', raised.exception.filename)

    def test_keywords_that_are_refused(self):
        for name in ('preexec_fn', 'text', 'encoding', 'errors', 'bufsize',
                     'universal_newlines', 'args', 'no_such'):
            with self.subTest(name), self.assertRaisesRegex(TypeError, name):
                Launch('true', **{name: None})

    def test_keywords_of_popen(self):
        with mock.patch('subprocess.Popen', side_effect=OSError) as popen:
            with self.assertRaises(OSError):
                self.start('true', restore_signals=False, umask=0o27)
        self.assertEqual(
            (False, 0o27), (popen.call_args.kwargs['restore_signals'],
                            popen.call_args.kwargs['umask']))

    def test_the_mask(self):
        self.assertEqual(['0027'], self.lines('umask', shell=True, umask=0o27))

    def test_groups_and_sessions(self):
        def ids(**options):
            fields = self.run_child('cat /proc/self/stat', **options).split()
            pid, group, session = (int(fields[i]) for i in (0, 4, 5))
            return group == pid, session == pid
        self.assertEqual((False, False), ids())
        self.assertEqual((True, False), ids(setpgrp=True))
        self.assertEqual((True, False), ids(process_group=0))
        self.assertEqual((True, True), ids(setsid=True))
        self.assertEqual((True, True), ids(setsid=True, setpgrp=True))
        self.assertEqual((True, True), ids(start_new_session=True))

    def test_who_leads_a_group(self):
        self.assertFalse(Launch('true').leads_group)
        for options in ({'setpgrp': True}, {'setsid': True},
                        {'process_group': 0}, {'start_new_session': True},
                        {'detached': True}):
            self.assertTrue(Launch('true', **options).leads_group)

    def test_signals_are_restored(self):
        # Python ignores some, and whoever started us may have ignored others.
        before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGUSR1, before)
        status = 'grep -E Sig(Blk|Ign|Cgt) /proc/self/status'
        expected = subprocess.run(status.split(), stdout=subprocess.PIPE)
        self.assertEqual(expected.stdout, self.run_child(status))
        ignored = int(re.search(rb'SigIgn:\s*(\w+)', expected.stdout)[1], 16)
        self.assertFalse(ignored >> (signal.SIGPIPE - 1) & 1)
        self.assertEqual(
            subprocess.run(status.split(), stdout=subprocess.PIPE,
                           restore_signals=False).stdout,
            self.run_child(status, restore_signals=False))

    def test_blocked_signals(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        self.addCleanup(signal.pthread_sigmask, signal.SIG_UNBLOCK,
                        [signal.SIGUSR2])
        self.assertEqual(
            [f'SigBlk:\t{1 << (signal.SIGUSR2 - 1):016x}'],
            self.lines('grep SigBlk /proc/self/status'))


class StreamTests(LaunchTestCase):

    def test_pipes(self):
        started = self.start('cat; echo err >&2', shell=True, stdin='pipe',
                             stdout='pipe', stderr='pipe')
        with open(started.stdin, 'wb') as file:
            file.write(b'hello')
        with open(started.stdout) as out, open(started.stderr) as err:
            self.assertEqual(('hello', 'err\n'), (out.read(), err.read()))
        self.assertEnds(0, started)

    def test_our_ends_are_not_inherited(self):
        started = self.start('cat', stdin='pipe', stdout='pipe')
        for fd in started.stdin, started.stdout:
            self.assertFalse(os.get_inheritable(fd))
            os.close(fd)
        self.assertEnds(0, started)

    def test_the_size_of_the_pipes(self):
        fcntl = launch.fcntl
        started = self.start('true', stdout='pipe', pipesize=4096)
        self.assertEqual(
            4096, fcntl.fcntl(started.stdout, fcntl.F_GETPIPE_SZ))
        os.close(started.stdout)
        self.assertEnds(0, started)

    def test_nothing(self):
        started = self.start('cat; echo out; echo err >&2', shell=True,
                             stdin='null', stdout='null', stderr='null')
        self.assertEqual(
            (-1, -1, -1), (started.stdin, started.stdout, started.stderr))
        self.assertEnds(0, started)

    def test_ours(self):
        read, write = os.pipe()
        saved = os.dup(1)
        os.dup2(write, 1)
        try:
            started = self.start('echo ours')
        finally:
            os.dup2(saved, 1)
            os.close(saved)
            os.close(write)
        with open(read) as file:
            self.assertEqual('ours\n', file.read())
        self.assertEnds(0, started)

    def test_files(self):
        path = self.write('in', 'given\n')
        out = self.write('out', 'before\n')
        for stream in out, str(out):
            self.assertEnds(0, self.start(
                'cat; echo err >&2', shell=True, stdin=str(path),
                stdout=stream, stderr=stream))
        self.assertEqual('before\n' + 'given\nerr\n' * 2, out.read_text())

    def test_a_fifo_that_nobody_has_opened(self):
        path = self.dir / 'fifo'
        os.mkfifo(path)
        # The child waits for somebody who writes, and so do not we.
        started = self.start('head -n 1', stdin=path, stdout='pipe')
        with open(path, 'w') as file:
            file.write('hello\n')
        with open(started.stdout) as file:
            self.assertEqual('hello\n', file.read())
        self.assertEnds(0, started)
        for name in 'stdout', 'stderr':
            with self.assertRaisesRegex(OSError, f'Nobody reads.*{path}'
                                        ) as caught:
                self.start('echo', **({'stdin': 'pipe'} | {name: path}))
            self.assertEqual(errno.ENXIO, caught.exception.errno)

    def test_a_fifo_that_somebody_reads(self):
        path = self.dir / 'fifo'
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        started = self.start([*PYTHON, '''if True:
            import os
            os.write(1, b'blocks: %d' % os.get_blocking(1))
            '''], stdout=path)
        self.assertEnds(0, started)
        self.assertEqual(b'blocks: 1', os.read(reader, 100))

    def test_a_file_that_cannot_be_opened(self):
        for name in 'stdin', 'stdout', 'stderr':
            with self.assertRaises(OSError):
                self.start('true', **({'stdin': 'pipe'}
                                      | {name: '/does/not/exist'}))

    def test_open_files_and_descriptors(self):
        with tempfile.TemporaryFile() as file:
            for stream in file, file.fileno():
                self.assertEnds(0, self.start(
                    'echo out; echo err >&2', shell=True, stdout=stream,
                    stderr=file))
            file.seek(0)
            self.assertEqual(b'out\nerr\n' * 2, file.read())

    def test_merged(self):
        for stdout in 'pipe', 'inherit':
            read, write = os.pipe()
            with open(read) as file:
                options = {'stdout': write} if stdout == 'inherit' else {}
                started = self.start(
                    'echo out; echo err >&2', shell=True,
                    **({'stdout': 'pipe'} | options), stderr='merge')
                os.close(write)
                if started.stdout >= 0:
                    with open(started.stdout) as out:
                        self.assertEqual('out\nerr\n', out.read())
                else:
                    self.assertEqual('out\nerr\n', file.read())
                self.assertEqual(-1, started.stderr)
                self.assertEnds(0, started)

    def test_what_is_no_stream(self):
        for name, stream in (
                ('stdin', 'merge'), ('stdout', 'merge'), ('stdout', 'file'),
                ('stderr', ''), ('stdin', None), ('stdout', -1),
                ('stderr', subprocess.PIPE)):
            with self.subTest(name, stream=stream), self.assertRaisesRegex(
                    ValueError, f'{name} must be'):
                Launch('true', **{name: stream})

    def test_descriptors_to_pass_on(self):
        read, write = os.pipe()
        other = os.dup(write)
        os.set_inheritable(other, True)
        started = self.start(
            [*PYTHON, f'''if True:
                import os
                os.write({write}, b'passed')
                try:
                    os.fstat({other})
                except OSError:
                    os.write({write}, b' alone')
                '''], pass_fds=[write])
        os.close(write)
        os.close(other)
        with open(read) as file:
            self.assertEqual('passed alone', file.read())
        self.assertEnds(0, started)

    def test_nothing_else_is_open(self):
        names = [*PYTHON, '''if True:
            import os
            for fd in range(100):
                try:
                    print(fd, os.fstat(fd).st_ino)
                except OSError:
                    pass
            ''']
        read, write = os.pipe()
        numbers = [line.split()[0] for line in self.lines(
            names, stdin='null', stderr=write)]
        os.close(read)
        os.close(write)
        self.assertEqual(['0', '1', '2'], numbers)

    def test_descriptors_that_are_not_closed(self):
        read, write = os.pipe()
        os.set_inheritable(write, True)
        started = self.start([*PYTHON, f'import os; os.write({write}, b"x")'],
                             close_fds=False)
        os.close(write)
        with open(read) as file:
            self.assertEqual('x', file.read())
        self.assertEnds(0, started)

    def test_we_have_no_standard_streams(self):
        # As in a daemon that has closed them; pipes get their numbers.
        for closed in (0,), (1,), (2,), (0, 1, 2):
            for options in ({'stdin': 'pipe', 'stdout': 'pipe',
                             'stderr': 'pipe'},
                            {'stdin': 'null', 'stdout': 'pipe',
                             'stderr': 'merge'}):
                with self.subTest(closed=closed, options=options):
                    self.assertEqual(b'out', self.in_a_fork(
                        lambda: self.talk(closed, options)))

    def talk(self, closed, options):
        for fd in closed:
            os.close(fd)
        try:
            self.start('/does/not/exist', **options)
        except FileNotFoundError:
            pass
        else:
            return b'it exists'
        started = self.start(
            'printf out; printf err >&2', shell=True,
            **(options | {'stderr': 'null'}))
        output = os.read(started.stdout, 100)
        os.waitpid(started.pid, 0)
        return output

    def in_a_fork(self, function):
        read, write = os.pipe()
        os.set_inheritable(write, True)
        pid = os.fork()
        if not pid:
            try:
                result = function()
            except BaseException as error:
                result = repr(error).encode()
            os.write(write, result)
            os._exit(0)
        os.close(write)
        with open(read, 'rb') as file:
            result = file.read()
        os.waitpid(pid, 0)
        return result


class EnvironmentTests(LaunchTestCase):

    def environment(self, **options):
        """As bytes, in its order, without the mark."""
        output = self.run_child(['cat', '/proc/self/environ'], **options)
        return [entry for entry in output.split(b'\0')[:-1]
                if not entry.startswith(MARKER.encode())]

    def test_ours(self):
        with mock.patch.dict(os.environ, {'OURS': '1'}):
            self.assertIn(b'OURS=1', self.environment())

    def test_another_thread_removes_a_variable_meanwhile(self):
        class Environment(dict):
            def __iter__(self):
                return iter([*super().__iter__(), b'GONE'])

        with mock.patch('os.environb', Environment(os.environb)):
            self.assertNotIn('GONE', launch.inherited())
            self.assertNotIn(
                b'GONE', Launch('true').environment('a-mark'))

    def test_replaced(self):
        self.assertEqual([b'A=1'], self.environment(env={'A': '1'}))
        self.assertEqual([], self.environment(env={}))

    def test_added_to(self):
        with mock.patch.dict(os.environ, {'OURS': '1', 'OTHER': '2'}):
            environment = self.environment(
                extra_env={'A': '', 'OURS': None, 'NO': None})
        self.assertIn(b'A=', environment)
        self.assertIn(b'OTHER=2', environment)
        self.assertFalse([each for each in environment
                          if each.startswith((b'OURS', b'NO='))])
        self.assertEqual([b'B=2'], self.environment(
            env={'A': '1', 'B': '1'}, extra_env={'A': None, 'B': '2'}))

    def names(self, **options):
        return {each.partition(b'=')[0].decode()
                for each in self.environment(**options)}

    def test_what_systemd_said_is_for_us_only(self):
        said = dict.fromkeys(
            ['NOTIFY_SOCKET', 'WATCHDOG_PID', 'WATCHDOG_USEC', 'LISTEN_PID',
             'LISTEN_PIDFDID', 'LISTEN_FDS', 'LISTEN_FDNAMES'], 'x')
        others = dict.fromkeys(
            ['LISTEN_PORT', 'LISTEN_', 'WATCHDOG_URL', 'NOTIFY_SOCKETS'], 'x')
        with mock.patch.dict(os.environ, said | others):
            for options in {}, {'detached': True}:
                names = self.names(**options)
                self.assertFalse(names & said.keys())
                self.assertLessEqual(others.keys(), names)
            self.assertIn(b'NOTIFY_SOCKET=mine', self.environment(
                extra_env={'NOTIFY_SOCKET': 'mine'}))
            # What the caller says itself is meant.
            self.assertEqual({*said, *others},
                             self.names(env=said | others))

    def test_variables_that_cannot_be_meant(self):
        for keyword in 'env', 'extra_env':
            for variables in ({'PORT': 8080}, {'A': b'x'}, {b'A': 'x'},
                              {1: 'x'}, 'A=1', [('A', '1')]):
                with self.subTest(keyword, variables=variables), \
                        self.assertRaisesRegex(TypeError, keyword):
                    Launch('true', **{keyword: variables})
            for variables in {'A=B': '1'}, {'': '1'}, {'A': '\0'}, {'\0': ''}:
                with self.subTest(keyword, variables=variables), \
                        self.assertRaisesRegex(ValueError, keyword):
                    Launch('true', **{keyword: variables})
        with self.assertRaisesRegex(TypeError, "env: the variable 'A'"):
            Launch('true', env={'A': None})

    def test_the_same_with_the_helper(self):
        for environment in (
                {}, {'LC_ALL': 'C'}, {'LC_CTYPE': 'C'}, {'LC_CTYPE': ''},
                {'LC_CTYPE': 'POSIX', 'LANG': 'C'}, {'LANG': 'C.UTF-8'},
                {'PYTHONHOME': '/nowhere', 'PYTHONUTF8': '0',
                 'PYTHONCOERCECLOCALE': 'warn', 'PYTHONDEVMODE': '1'},
                {'X': '\udcff\n=', 'ä': 'ä', 'PATH': '/bin', 'Z': '1'}):
            with self.subTest(environment):
                self.assertEqual(
                    sorted(os.fsencode(f'{name}={value}')
                           for name, value in environment.items()),
                    sorted(self.environment(env=environment)))

    def test_the_mark(self):
        def marks(**options):
            output = self.run_child(['cat', '/proc/self/environ'], **options)
            return re.findall(rb'%s=([^\0]*)' % MARKER.encode(), output)
        with mock.patch.dict(os.environ):
            os.environ.pop(MARKER, None)
            self.assertEqual([b'a-mark'], marks())
            self.assertEqual([b'a-mark'], marks(env={}))
            os.environ[MARKER] = 'outer'
            self.assertEqual([b'outer a-mark'], marks())
            self.assertEqual([b'outer a-mark'], marks(env={}))
            if not self.helped:
                self.assertEqual([], marks(detached=True))

    def test_marks_are_different(self):
        marks = {new_mark() for _ in range(10)}
        self.assertEqual(10, len(marks))
        for mark in marks:
            self.assertTrue(mark.startswith(our_mark()))

    def test_a_detached_python_program_gets_our_path(self):
        with mock.patch('sys.path', ['', '/x', '/y']):
            for program in sys.executable, '/opt/bin/python3.11':
                environment = Launch(
                    [program], detached=True).environment('')
                self.assertRegex(environment[b'PYTHONPATH'].decode(),
                                 f'^{os.getcwd()}:/x:/y:')  # and where we are
        self.assertNotIn(b'PYTHONPATH', Launch(
            ['true'], detached=True, env={}).environment(''))
        self.assertNotIn(b'PYTHONPATH', Launch(
            [sys.executable], env={}).environment(''))


class IdentityTests(LaunchTestCase):

    def who(self, **options):
        fields = (line.split() for line in self.lines(
            'grep -E ^(Uid|Gid|Groups) /proc/self/status', **options))
        return {name.rstrip(':'): [int(number) for number in numbers]
                for name, *numbers in fields}

    @AS_ROOT
    def test_a_user(self):
        entry = pwd.getpwnam('nobody')
        for user in 'nobody', entry.pw_uid:
            who = self.who(user=user)
            self.assertEqual([entry.pw_uid] * 4, who['Uid'])
            self.assertEqual([entry.pw_gid] * 4, who['Gid'])
            self.assertEqual(
                set(os.getgrouplist('nobody', entry.pw_gid)),
                set(who['Groups']))

    @AS_ROOT
    def test_the_environment_of_a_user(self):
        def variables(**options):
            return [self.run_child(['printenv', name], **options).decode()
                    for name in ('HOME', 'USER', 'LOGNAME')]
        ours = {'HOME': '/ours', 'USER': 'us', 'LOGNAME': 'us'}
        home = pwd.getpwnam('nobody').pw_dir + '\n'
        with mock.patch.dict(os.environ, ours):
            self.assertEqual([home, 'nobody\n', 'nobody\n'],
                             variables(user='nobody'))
            self.assertEqual(['/x\n', 'nobody\n', 'nobody\n'], variables(
                user='nobody', extra_env={'HOME': '/x'}))
            for options in ({}, {'user': os.getuid()},
                            {'user': 'nobody', 'env': ours},
                            {'user': 54321, 'group': 54321}):
                with self.subTest(options):
                    self.assertEqual(['/ours\n', 'us\n', 'us\n'],
                                     variables(**options))

    @AS_ROOT
    def test_a_user_opens_the_pipes_by_their_names(self):
        started = self.start(
            'cat /dev/fd/0 > /dev/fd/1; echo err > /dev/fd/2', shell=True,
            user='nobody', stdin='pipe', stdout='pipe', stderr='pipe')
        os.write(started.stdin, b'hello')
        os.close(started.stdin)
        with open(started.stdout) as out, open(started.stderr) as err:
            self.assertEqual(('hello', 'err\n'), (out.read(), err.read()))
        self.assertEnds(0, started)

    @AS_ROOT
    def test_a_group(self):
        nogroup = pwd.getpwnam('nobody').pw_gid
        name = grp.getgrgid(nogroup).gr_name
        for group in name, nogroup:
            who = self.who(group=group)
            self.assertEqual([0] * 4, who['Uid'])
            self.assertEqual([nogroup] * 4, who['Gid'])

    @AS_ROOT
    def test_groups(self):
        who = self.who(extra_groups=[1, grp.getgrgid(2).gr_name])
        self.assertEqual([1, 2], sorted(who['Groups']))
        self.assertEqual([], self.who(extra_groups=[])['Groups'])
        self.assertEqual([], self.who(
            user='nobody', extra_groups=[])['Groups'])

    @AS_ROOT
    def test_none_of_our_groups_remains(self):
        before = os.getgroups()
        os.setgroups([0, 1, 2])
        self.addCleanup(os.setgroups, before)
        for options in ({'user': 'nobody'}, {'user': 54321, 'group': 54321}):
            who = self.who(**options)
            self.assertFalse({0, 1, 2} & {*who['Groups'], *who['Gid']})
        self.assertEqual([], who['Groups'])

    @AS_ROOT
    def test_a_user_that_nobody_knows_needs_a_group(self):
        with self.assertRaisesRegex(LookupError, '54321.*name one'):
            Launch('true', user=54321)

    def test_who_does_not_exist(self):
        with self.assertRaisesRegex(LookupError, "no user 'no-such'"):
            Launch('true', user='no-such')
        for options in {'group': 'no-such'}, {'extra_groups': ['no-such']}:
            with self.assertRaisesRegex(LookupError, "no group 'no-such'"):
                Launch('true', **options)

    def test_numbers_that_mean_no_change(self):
        for number in -1, 2 ** 32 - 1, 2 ** 32:
            for options in ({'user': number}, {'group': number},
                            {'extra_groups': [number]}):
                with self.subTest(options), self.assertRaises(ValueError):
                    Launch('true', **options)

    def test_ourselves(self):
        for options in ({'user': os.getuid()}, {'group': os.getgid()},
                        {'user': pwd.getpwuid(os.getuid()).pw_name}):
            self.assertEqual(self.who(), self.who(**options))

    @AS_ROOT
    def test_ourselves_without_privileges(self):
        python = self.python_for_nobody() if self.helped else sys.executable
        entry = pwd.getpwnam('nobody')

        def run():
            os.setgroups([])
            os.setresgid(*[entry.pw_gid] * 3)
            os.setresuid(*[entry.pw_uid] * 3)
            sys.executable = python
            for options in ({'user': 'nobody'}, {'user': entry.pw_uid},
                            {'user': 'nobody', 'group': entry.pw_gid}):
                who = self.who(**options)
                if who != self.who() or who['Uid'] != [entry.pw_uid] * 4:
                    return repr(who).encode()
            try:
                self.start('true', user=0)
            except PermissionError:
                return b'refused'
            return b'we became root'
        self.assertEqual(b'refused', StreamTests.in_a_fork(self, run))


class ShortageTests(LaunchTestCase):

    def in_a_fork(self, text, **options):
        """What a program says that has run out of something."""
        program = self.program(textwrap.dedent('''
            import os, resource, signal, threading
            from gocept.runner.errors import ShortageError
            from gocept.runner.process import Process
            ''') + textwrap.dedent(text))
        self.assertEqual(0, program.end(), program.output)
        return program.output

    def test_descriptors(self):
        self.assertEqual('24\n' * 4, self.in_a_fork('''
            Process('true').close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
            held = []
            try:
                while True:
                    held.append(os.open('/dev/null', os.O_RDONLY))
            except OSError:
                pass
            for options in ({'stdin': 'pipe'}, {}, {'stdin': '/dev/null'},
                            {'rlimits': {'core': 0}}):
                try:
                    Process('true', **options).close()
                except ShortageError as error:
                    print(error.errno)
            '''))

    def test_forks(self):
        for options in {}, self.helped, {'user': os.getuid() + 1,
                                         'group': os.getgid()}:
            for number in shortages.SHORTAGES:
                with mock.patch('subprocess._fork_exec',
                                side_effect=OSError(number, 'too little')):
                    with self.assertRaises(ShortageError) as caught:
                        self.start('true', stdin='pipe', **options)
                self.assertEqual(number, caught.exception.errno)

    def test_nobody_waits_for_one_that_cannot_be_killed(self):
        newborn = Newborn('a-mark')
        newborn.pid = self.start('sleep 100').pid
        with mock.patch('os.kill', side_effect=PermissionError):
            newborn.abandon()
        os.kill(newborn.pid, signal.SIGKILL)
        self.assertEqual(-signal.SIGKILL, newborn.reap(newborn.pid))

    def test_what_the_child_says_of_itself(self):
        error = OSError(errno.ENOMEM, 'too little', 'true')
        with mock.patch('subprocess.Popen', side_effect=error):
            with self.assertRaises(OSError) as caught:
                self.start('true')
        self.assertIs(error, caught.exception)

    def test_threads(self):
        self.assertEqual('11\n', self.in_a_fork('''
            from unittest import mock
            from gocept.runner.poller import background
            background()
            with mock.patch('threading.Thread.start',
                            side_effect=RuntimeError("can't start")):
                try:
                    Process('true', detached=True)
                except ShortageError as error:
                    print(error.errno)
            Process('true', detached=True).wait()
            '''))


class InterruptionTests(LaunchTestCase):
    """A signal handler raises an exception where the child was just made."""

    def interrupted(self, **options):
        """Of the instant in which the number of the child is lost."""
        fork_exec = subprocess._fork_exec

        def interrupted(*args):
            self.child = fork_exec(*args)
            if not self.child:
                return 0
            signal.raise_signal(signal.SIGUSR1)
            return self.child

        def handler(signum, frame):
            raise InterruptedError

        before = signal.signal(signal.SIGUSR1, handler)
        self.addCleanup(signal.signal, signal.SIGUSR1, before)
        with mock.patch('subprocess._fork_exec', interrupted):
            with self.assertRaises(InterruptedError):
                Process(['sleep', '100'], stdin='pipe', stderr='pipe',
                        **self.helped, **options)
        with self.assertRaises(ChildProcessError):
            os.waitpid(self.child, 0)
        self.assertFalse([each for each in registry.processes
                          if each.pid == self.child])

    def test_the_child_is_ended(self):
        self.interrupted()

    def test_a_group_is_ended(self):
        self.interrupted(setpgrp=True)

    def test_a_child_without_a_mark(self):
        self.interrupted(detached=True)

    @AS_ROOT
    def test_another_user(self):
        self.interrupted(user='nobody')


class Helped:
    """The same through the helper."""

    helped = {'rlimits': {'core': 0}}


class HelpedCommandTests(Helped, CommandTests):
    pass


class HelpedStreamTests(Helped, StreamTests):
    pass


class HelpedEnvironmentTests(Helped, EnvironmentTests):
    pass


class HelpedIdentityTests(Helped, IdentityTests):
    pass


class HelpedInterruptionTests(Helped, InterruptionTests):
    pass


class HelperTests(LaunchTestCase):

    helped = Helped.helped

    def python(self, text):
        """A program in place of Python."""
        path = self.write('python', '#!/bin/sh\n' + text)
        path.chmod(0o700)
        return mock.patch('sys.executable', str(path))

    def test_it_says_nothing(self):
        for text, reason in (('exit 0', 'ended with 0'),
                             ('exit 7', 'ended with 7'),
                             ('kill -KILL $$', 'ended with -9')):
            with self.subTest(text), self.python(text):
                with self.assertRaisesRegex(
                        OSError, f'need a Python .*{reason}.*/python'
                        ) as caught:
                    self.start('true', stdin='pipe')
                self.assertNotIsInstance(caught.exception, ShortageError)

    def test_it_says_nothing_for_ever(self):
        with self.python('exec sleep 100'), mock.patch.object(
                launch, '_LONGEST_HELP', 0.1):
            with self.assertRaisesRegex(OSError, 'ended with -9'):
                self.start('true')

    def test_its_file_is_gone(self):
        with mock.patch.object(exechelper, '__file__', '/does/not/exist'):
            with self.assertRaisesRegex(
                    OSError, 'can run /does/not/exist: it ended with 2'):
                self.start('true', stderr='null')

    def test_there_is_no_python(self):
        with mock.patch('sys.executable', '/does/not/exist/python'):
            with self.assertRaisesRegex(OSError, 'need a Python'):
                self.start('true')

    def test_a_server_that_embeds_python(self):
        for executable in '/bin/echo', '', None:
            with mock.patch('sys.executable', executable):
                self.assertEqual(b'out\n', self.run_child('echo out'))

    def test_a_frozen_program(self):
        # It would begin once more.
        with mock.patch.object(sys, 'frozen', True, create=True), \
                mock.patch('sys.base_exec_prefix', '/does/not/exist'):
            with self.assertRaisesRegex(
                    OSError, 'need a Python .*/does/not/exist/bin/python'):
                self.start('true')

    def test_a_copy_of_us_keeps_the_pipe_open(self):
        read_report = launch._read_report

        def forked_meanwhile(fd):
            pid = os.fork()
            if not pid:
                signal.pause()
            self.addCleanup(os.waitpid, pid, 0)
            self.addCleanup(os.kill, pid, signal.SIGKILL)
            self.assertTrue(select.select([fd], [], [], support.DEADLINE)[0])
            return read_report(fd)
        with mock.patch.object(launch, '_read_report', forked_meanwhile), \
                mock.patch.object(launch, '_LONGEST_HELP', 0.1):
            self.assertEnds(0, self.start('true'))


class LimitTests(LaunchTestCase):

    def limits(self, name, **options):
        [line] = self.lines(['grep', '-i', f'^max {name} ',
                             '/proc/self/limits'], **options)
        return line.split()[-3:-1]

    def test_one_number(self):
        self.assertEqual(['40', '40'], self.limits(
            'open files', rlimits={'nofile': 40}))

    def test_a_pair(self):
        for pair in (40, 50), [40, 50]:
            self.assertEqual(['40', '50'], self.limits(
                'open files', rlimits={'nofile': pair}))

    def test_none(self):
        with contextlib.suppress(ValueError):  # it may be lower already
            self.assertEqual(['unlimited'] * 2, self.limits(
                'core file size', rlimits={'core': -1}))

    def test_several(self):
        rlimits = {'nofile': 40, 'core': 0, 'nproc': (1000, 2000)}
        self.assertEqual(['40', '40'], self.limits(
            'open files', rlimits=rlimits))
        self.assertEqual(['0', '0'], self.limits(
            'core file size', rlimits=rlimits))

    def test_what_is_no_limit(self):
        for name in 'no_such', 'NOFILE', 'infinity', '':
            with self.subTest(name), self.assertRaisesRegex(
                    ValueError, 'no resource limit.*nofile'):
                Launch('true', rlimits={name: 1})
        for value in None, '1', 1.5, (1,), (1, 2, 3), (1, None), 'ab':
            with self.subTest(value=value), self.assertRaisesRegex(
                    ValueError, "'nofile' needs a number or a pair"):
                Launch('true', rlimits={'nofile': value})

    def test_a_limit_that_is_refused(self):
        with self.assertRaisesRegex(ValueError, 'rlimit nofile: .*limit'):
            self.start('true', rlimits={'nofile': (50, 40)}, stdin='pipe')

    @AS_ROOT
    def test_who_may_not_change_the_user(self):
        python = self.python_for_nobody()

        def run():
            os.setresgid(*[65534] * 3)
            os.setresuid(*[65534] * 3)
            sys.executable = python
            try:
                self.start('true', rlimits={'core': 0}, user=0, group=0)
            except PermissionError as error:
                return str(error).encode()
            return b'we became root'
        self.assertIn(b'group', StreamTests.in_a_fork(self, run))

    def test_limits_come_first(self):
        # Of several that fail, the first is reported.
        is_root = os.geteuid() == 0
        python = self.python_for_nobody() if is_root else sys.executable

        def run():
            if is_root:
                os.setresgid(*[65534] * 3)
                os.setresuid(*[65534] * 3)
                sys.executable = python
            try:
                self.start('true', rlimits={'nofile': (50, 40)},
                           user=0, group=0, die_with_parent=True)
            except (ValueError, OSError) as error:
                return str(error).encode()
            return b'all went well'
        self.assertIn(b'rlimit nofile', StreamTests.in_a_fork(self, run))


class DeathTests(LaunchTestCase):

    def test_the_signal(self):
        for value, signum in ((True, signal.SIGKILL),
                              (signal.SIGTERM, signal.SIGTERM),
                              (int(signal.SIGHUP), signal.SIGHUP)):
            launch = Launch('true', die_with_parent=value)
            self.assertEqual(signum, launch._death_signal)
        self.assertEqual(0, Launch('true')._death_signal)

    def test_what_is_no_signal(self):
        with self.assertRaises(ValueError):
            Launch('true', die_with_parent=1000)

    def test_what_is_detached_does_not(self):
        with self.assertRaisesRegex(ValueError, 'leave out die_with_parent'):
            Launch('true', die_with_parent=True, detached=True)

    def test_options_are_small(self):
        # They are an argument, which has a limit.
        with mock.patch('subprocess.Popen', side_effect=OSError) as popen:
            with self.assertRaises(OSError):
                self.start('true', die_with_parent=True)
        options = json.loads(popen.call_args.args[0][-3])
        self.assertEqual(signal.SIGKILL, options['death_signal'])
        self.assertEqual(os.getpid(), options['parent'])
