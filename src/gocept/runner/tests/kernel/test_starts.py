"""How processes are started, and what becomes of it when the daemon dies."""

import errno
import os
import pathlib
import types
import unittest

from gocept.runner.tests.kernel.raw import (
    KernelCase,
    RawKernel,
    Refused,
)

_DYING = os.path.join(os.path.dirname(__file__), 'dying.py')

_FAST = ('before-spawn', 'after-spawn', 'before-pid', 'after-pid',
         'before-end', 'after-end')

_SLOW = ('before-fork', 'after-fork', 'before-pid', 'after-pid',
         'before-gate', 'after-gate', 'before-report', 'after-report',
         'before-end', 'after-end')


class Starts(KernelCase):

    def test_errors_name_what_is_wrong(self):
        for expected, args, params in [
                ('Bad command - no-such: No such file', ['no-such'], {}),
                ('Bad command - no-such: No such file', ['no-such'],
                 {'rlimits': {'core': 0}}),
                ('Bad working_dir - /no/such: No such file', ['true'],
                 {'working_dir': '/no/such'}),
                ('Bad working_dir - /no/such: No such file', ['true'],
                 {'working_dir': '/no/such', 'rlimits': {'core': 0}}),
                ('working_dir is an absolute path', ['true'],
                 {'working_dir': 'here'}),
                ('Bad command - /tmp is a directory', ['/tmp'], {}),
                ('Bad command - /tmp is a directory', ['/tmp'],
                 {'rlimits': {'core': 0}}),
                ('Bad uid nosuch - there is no user', ['true'],
                 {'uid': 'nosuch'}),
                ('there is no resource limit', ['true'],
                 {'rlimits': {'bogus': 1}}),
                ('Socket nosuch not found', ['$(socket.nosuch.port)'], {}),
                ('no "\\)" ends it', ['$(socket.nosuch'], {}),
                ('a placeholder is', ['$(socket.nosuch)'], {}),
                ('needs a command', [], {}),
                ('too long', ['true', 'x' * 3000000], {}),
                ('NUL', ['true', 'a\0b'], {})]:
            with self.subTest(expected=expected):
                with self.assertRaisesRegex(Refused, expected):
                    self.client.make('error', *args, **params)
        self.assertEqual(
            {}, self.client.do('list-processes', names=['error']))

    def test_what_a_child_has(self):
        self.client.shell('has', 'ulimit -c; pwd; echo $A; env | wc -l',
                          working_dir='/tmp', rlimits={'core': 0},
                          env={'A': 'b\nc', 'PATH': '/usr/bin:/bin'})
        watch = self.connect().watch('has').read_all()
        self.assertEqual(b'0\n/tmp\nb c\n', watch.out['has'][:11])

    def test_any_bytes_pass(self):
        self.client.make('bytes', 'printf', '%s|', '', 'a\nb', '\udcff',
                         ' \\', 'ä')
        watch = self.connect().watch('bytes').read_all()
        self.assertEqual('|a\nb|\udcff| \\|ä|'.encode(
            'utf-8', 'surrogateescape'), watch.out['bytes'])

    def test_the_same_parameters_give_what_exists(self):
        made = self.client.shell('same', 'read x', stdin='pipe')
        again = self.client.shell('same', 'read x', stdin='pipe')
        self.assertEqual(made['life'], again['life'])
        for change in ({'stdin': 'null'}, {'env': {'A': '1'}},
                       {'bufsize': 5000}, {'overflow': 'block'},
                       {'working_dir': '/tmp'}, {'rlimits': {'core': 0}},
                       {'stderr': 'stdout'}, {'uid': 54321}, {'gid': 54321}):
            with self.subTest(change=change):
                [name] = change
                with self.assertRaisesRegex(
                        Refused,
                        f'other parameters: .*; it differs in {name}( |;)'):
                    self.client.shell(
                        'same', 'read x', **{'stdin': 'pipe', **change})
        with self.assertRaisesRegex(Refused, 'differs in args;'):
            self.client.shell('same', 'read y', stdin='pipe')
        self.client.do('close-stdin', name='same')

    def test_variables_that_differ_are_named_without_their_values(self):
        def make(**env):
            return self.client.shell('vars', 'read x', stdin='pipe', env=env)

        same = {'PATH': '/usr/bin:/bin', 'SECRET': 'word'}
        made = make(**same, SHLVL='0', OLD='x')
        with self.assertRaises(Refused) as caught:
            make(**same, SHLVL='1', **{'N\nEW': 'y'})
        self.assertIn(r"it differs in env ('N\nEW', OLD, SHLVL); remove",
                      str(caught.exception))
        self.assertNotIn('word', str(caught.exception))
        self.kernel.kill_daemon()
        self.connect()
        with self.assertRaisesRegex(Refused, r'differs in env \(OLD\);'):
            self.connect().shell('vars', 'read x', stdin='pipe',
                                 env={**same, 'SHLVL': '0'})
        with self.assertRaisesRegex(Refused, r'env \(.*, \.\.\.\)'):
            self.connect().shell('vars', 'read x', stdin='pipe',
                                 env={f'A{n}': '' for n in range(50)})
        with self.assertRaisesRegex(Refused, 'differs in env;'):
            self.connect().shell('vars', 'read x', stdin='pipe',
                                 env={f'A{n}': '' for n in range(1000)})
        client = self.connect()
        self.assertEqual(made['life'], client.shell(
            'vars', 'read x', stdin='pipe',
            env={**same, 'SHLVL': '0', 'OLD': 'x'})['life'])
        client.do('close-stdin', name='vars')

    def test_who_removes_all_has_to_say_so(self):
        self.client.shell('many.1', 'read x', stdin='pipe')
        for noun in 'processes', 'sockets':
            with self.assertRaisesRegex(Refused, rf'name the {noun}.*"\*"'):
                self.client.do(f'remove-{noun}', names=[])
        self.assertFalse(self.client.do(
            'list-processes', names=['many.1'])['many.1']['removed'])
        self.client.do('remove-processes', names=['many.*'])
        self.client.do('close-stdin', name='many.1')

    def test_a_name_is_no_pattern(self):
        with self.assertRaisesRegex(Refused, r'the name .x\*.: what ends in'):
            self.client.make('x*', 'true')
        with self.assertRaisesRegex(Refused, r'the name .x\*.: what ends in'):
            self.client.do('make-socket', name='x*')

    def test_who_may_not_be_another_user_is_told_so(self):
        from gocept.runner.kernel.daemon.starts import _step_error
        for given, step, expected in [
                ([0, None], 'group', 'Bad uid 0 - no; the kernel runs as'),
                ([0, None], 'user', 'Bad uid 0 - no; the kernel runs as'),
                ([None, 4], 'group', 'Bad gid 4 - no; the kernel runs as'),
                ([3, 4], 'group', 'Bad gid 4 - no; the kernel runs as'),
                ([3, 4], 'user', 'Bad uid 3 - no; the kernel runs as'),
                ([3, 4], 'rlimit.core', 'Bad rlimit.core - no$')]:
            with self.subTest(given=given, step=step):
                self.assertRegex(_step_error(
                    types.SimpleNamespace(given=given), step,
                    {'errno': errno.EPERM, 'text': 'no'}), expected)

    def test_a_removed_process_that_runs_is_not_made_again(self):
        made = self.client.shell('gone', 'read x', stdin='pipe')
        self.client.do('remove-processes', names=['gone'])
        with self.assertRaisesRegex(
                Refused, f'was removed.*still runs as {made["pid"]}'):
            self.client.shell('gone', 'read x', stdin='pipe')
        self.client.do('close-stdin', name='gone')

    def test_a_user_by_name_or_number_is_the_same(self):
        import pwd
        name = pwd.getpwuid(os.geteuid()).pw_name
        made = self.client.shell('user', 'id -u; read x', stdin='pipe',
                                 uid=name)
        self.assertEqual(os.geteuid(), made['uid'])
        again = self.client.shell('user', 'id -u; read x', stdin='pipe',
                                  uid=os.geteuid())
        self.assertEqual(made['life'], again['life'])
        self.client.do('close-stdin', name='user')

    def test_two_starts_of_the_same_at_once(self):
        others = [self.connect() for _ in range(5)]
        params = {'name': 'once', 'args': ['cat'], 'stdin': 'pipe',
                  'rlimits': {'core': 0}}
        numbers = [each.send('make-process', params) for each in others]
        lives = {each.result(number)['life']
                 for each, number in zip(others, numbers, strict=True)}
        self.assertEqual(1, len(lives))
        self.client.do('close-stdin', name='once')

    def test_numbers_and_ports_of_sockets(self):
        one = self.client.do('make-socket', name='start.one')
        two = self.client.do('make-socket', name='start.two')
        self.client.make(
            'sockets2', '/bin/sh', '-c',
            'echo $0; test -S /proc/self/fd/$1 && echo yes',
            '$(socket.start.one.fileno):$(socket.start.two.port):'
            '$(socket.start.two.fileno)', '$(socket.start.one.fileno)')
        watch = self.connect().watch('sockets2').read_all()
        self.assertEqual(
            f'{one["fileno"]}:{two["port"]}:{two["fileno"]}\nyes\n',
            watch.out['sockets2'].decode())
        self.client.do('remove-sockets', names=['start.*'])

    def test_each_process_has_its_own_socket_with_reuseport(self):
        port = self.client.do(
            'make-socket', name='reuse', reuseport=True)['port']
        script = 'readlink /proc/self/fd/$0; read x'
        for name in ('reuse.1', 'reuse.2'):
            self.client.make(
                name, '/bin/sh', '-c', script, '$(socket.reuse.fileno)',
                stdin='pipe')
        watch = self.connect().watch('reuse.*')
        watch.read_until(lambda watch: len(watch.out) == 2)
        self.assertEqual(2, len({*watch.out.values()}))
        for each in watch.out.values():
            self.assertRegex(each, rb'^socket:\[')
        made = self.client.make('reuse.3', 'echo', '$(socket.reuse.port)')
        watch = self.connect().watch('reuse.3').read_all()
        self.assertEqual(port, int(watch.out['reuse.3']), made)
        for name in ('reuse.1', 'reuse.2'):
            self.client.do('close-stdin', name=name)
        self.client.do('remove-sockets', names=['reuse'])

    @unittest.skipIf(os.geteuid(), 'only root can be another user')
    def test_another_user_can_open_its_streams(self):
        self.client.shell('nobody', 'id -un; echo x > /dev/stdout',
                          uid='nobody', env={'PATH': '/usr/bin:/bin'})
        watch = self.connect().watch('nobody').read_all()
        self.assertEqual(b'nobody\nx\n', watch.out['nobody'])


class Deaths(unittest.TestCase):
    """The daemon is killed at each instant of a start and of an end."""

    def setUp(self):
        self.kernel = RawKernel(script=_DYING)
        self.addCleanup(self.kernel.close)
        self.file = pathlib.Path(self.kernel.directory, 'ran')

    def check(self, instant, **params):
        """Each child runs once, and its status and its output are known."""
        pathlib.Path(self.kernel.directory, instant).touch()
        args = ['/bin/sh', '-c', f'echo {instant} >> {self.file}; echo out; '
                                 'exit 7']
        client = self.kernel.connect()
        request = {'name': instant, 'args': args, **params}
        try:
            made = client.result(client.send('make-process', request))
        except ConnectionError:
            again = self.kernel.connect(client.session)
            made = again.result(again.send('make-process', request, number=1))
            again.close()
        client.close()
        said = b''
        while True:
            with self.kernel.connect() as client:
                try:
                    watch = client.watch(instant)
                except ConnectionError:  # killed at the end
                    continue
                try:
                    watch.read_all()
                except ConnectionError:
                    continue
                finally:
                    said += watch.out.get(instant, b'')
                break
        self.assertEqual({instant: 7}, watch.closed)
        self.assertEqual(made['life'], watch.positions[instant][0])
        if params.get('stdout') != 'null':
            # What was acknowledged just before the death may come twice.
            self.assertEqual({b'out'}, {*said.split()})
        self.assertEqual([instant], self.file.read_text().split())
        self.file.unlink()
        self.assertFalse(
            pathlib.Path(self.kernel.directory, instant).exists())

    def test_of_a_start_at_once(self):
        for instant in _FAST:
            with self.subTest(instant=instant):
                self.check(instant)

    def test_of_a_start_without_pipes(self):
        for instant in _FAST:
            with self.subTest(instant=instant):
                self.check(instant, stdout='null', stderr='null')

    def test_of_a_prepared_start(self):
        for instant in _SLOW:
            with self.subTest(instant=instant):
                self.check(instant, rlimits={'core': 0})


class Hanging(unittest.TestCase):

    def setUp(self):
        self.kernel = RawKernel(script=_DYING)
        self.addCleanup(self.kernel.close)
        self.client = self.kernel.connect()
        self.addCleanup(self.client.close)

    def test_a_directory_that_does_not_answer_holds_nobody_up(self):
        number = self.client.send('make-process', {
            'name': 'hung', 'args': ['true'], 'working_dir': '/hang'})
        with self.kernel.connect() as other:
            self.assertIsNone(other.do('ping'))
            made = other.shell('other', 'exit 0')
            self.assertEqual({}, other.do('list-processes', names=['hung']))
        with self.assertRaisesRegex(
                Refused, 'could not be started within 0.5 s.*/hang'):
            self.client.result(number)
        self.assertEqual({'other'}, {*self.client.do('list-processes')})
        self.client.make('hung', 'true')  # the name is free
        self.client.do('remove-processes', names=['*'])
        self.assertTrue(made['pid'])

    def test_the_daemon_dies_meanwhile(self):
        self.client.send('make-process', {
            'name': 'hung', 'args': ['true'], 'working_dir': '/hang'})
        with self.kernel.connect() as other:
            other.do('ping')
        self.kernel.kill_daemon()
        with self.kernel.connect(self.client.session) as again:
            with self.assertRaisesRegex(Refused, 'could not be started'):
                again.do('make-process', name='hung', args=['true'],
                         working_dir='/hang')
            self.assertEqual({}, again.do('list-processes'))
