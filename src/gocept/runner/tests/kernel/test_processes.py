"""Processes, their standard input, and what their descendants do."""

import fcntl
import os
import signal
import time

from gocept.runner.tests.kernel.raw import (
    KernelCase,
    RawKernel,
    Refused,
    wait_for_end,
)

_MANY = 200000  # bytes; more than a pipe holds


class Input(KernelCase):

    def test_what_is_written_arrives_and_the_end_as_well(self):
        self.client.make('in.1', 'cat', stdin='pipe')
        self.client.do('write', name='in.1', data=b'one\0\xff\n')
        self.client.do('write', name='in.1', data=b'')
        self.client.do('write', name='in.1', data=b'two')
        self.client.do('close-stdin', name='in.1')
        watch = self.connect().watch('in.1').read_all()
        self.assertEqual(b'one\0\xff\ntwo', watch.out['in.1'])

    def test_what_the_child_does_not_read_is_kept(self):
        self.client.shell('in.2', 'read x; cat | wc -c', stdin='pipe',
                          env={'PATH': os.environ['PATH']})
        self.client.do('write', name='in.2', data=b'a' * _MANY + b'\n')
        self.client.do('write', name='in.2', data=b'a' * _MANY)
        self.client.do('close-stdin', name='in.2')
        watch = self.connect().watch('in.2').read_all()
        self.assertEqual(_MANY, int(watch.out['in.2']))

    def test_without_room_a_write_waits_or_fails(self):
        made = self.client.shell('in.3', 'kill -STOP $$; cat | wc -c',
                                 stdin='pipe',
                                 env={'PATH': os.environ['PATH']})
        size = 0
        while True:
            try:
                self.client.do('write', name='in.3', data=b'a' * _MANY,
                               wait=False)
            except Refused as error:
                self.assertRegex(str(error), '^no room')
                break
            size += _MANY
        with self.assertRaisesRegex(Refused, 'write less at once'):
            self.client.do('write', name='in.3', data=b'a' * 5000000)
        others = [self.connect() for _ in range(3)]
        numbers = [other.send('write', {'name': 'in.3'}, b'b' * _MANY)
                   for other in others]
        # The others are served meanwhile.
        self.assertIsNone(self.client.do('ping'))
        os.kill(made['pid'], signal.SIGCONT)
        for other, number in zip(others, numbers, strict=True):
            self.assertIsNone(other.result(number))
        self.client.do('close-stdin', name='in.3')
        watch = self.connect().watch('in.3').read_all()
        self.assertEqual(size + 3 * _MANY, int(watch.out['in.3']))

    def test_errors(self):
        self.client.shell('in.4', 'exec <&-; echo closed; kill -STOP $$',
                          stdin='pipe')
        watch = self.connect().watch('in.4')
        watch.read_until(lambda watch: watch.out)
        with self.assertRaisesRegex(Refused, 'is closed'):
            for _ in range(3):
                self.client.do('write', name='in.4', data=b'x' * _MANY)
        pid = self.client.do('list-processes')['in.4']['pid']
        os.kill(pid, signal.SIGKILL)
        self.client.shell('in.5', 'kill -STOP $$')
        for name, expected in [('in.5', 'without stdin'),
                               ('nobody', 'not found')]:
            for op in ('write', 'close-stdin'):
                with self.assertRaisesRegex(Refused, expected):
                    self.client.do(op, name=name)
        os.kill(self.client.do('list-processes')['in.5']['pid'],
                signal.SIGKILL)


class Listing(KernelCase):

    def test_by_name_and_number(self):
        made = {name: self.client.shell(name, 'read x', stdin='pipe')
                for name in ('list.1', 'list.2', 'list2')}
        found = self.client.do('list-processes', names=['list.*'])
        self.assertEqual({'list.1', 'list.2'}, {*found})
        number = str(made['list2']['pid'])
        self.assertEqual({'list2'}, {*self.client.do(
            'list-processes', names=[number, number])})
        self.assertEqual({}, self.client.do('list-processes', names=['no']))
        for name in made:
            self.client.do('close-stdin', name=name)

    def test_one_that_has_ended_stays(self):
        self.client.shell('stays', 'exit 3')
        while self.client.do('list-processes')['stays']['running']:
            pass
        found = self.client.do('list-processes')['stays']
        self.assertEqual(3, found['status'])
        self.assertGreaterEqual(time.time(), found['ended'])
        self.client.do('remove-processes', names=['stays'])
        self.assertNotIn('stays', self.client.do('list-processes'))
        with self.assertRaisesRegex(Refused, 'not found'):
            self.client.do('remove-processes', names=['stays'])

    def test_the_end_is_known_to_whoever_has_seen_it(self):
        for number in range(20):
            name = f'seen.{number}'
            pid = self.client.shell(name, 'exit 3')['pid']
            wait_for_end(pid)
            self.assertFalse(self.client.do(
                'list-processes', names=[name])[name]['running'])
        self.client.do('remove-processes', names=['seen.*'])


class Descendants(KernelCase):

    def test_stderr_goes_on_without_stdout(self):
        self.client.shell('half', 'exec >&-; echo one >&2; read x; '
                                  'echo two >&2', stdin='pipe')
        watch = self.connect().watch('half')
        watch.read_until(lambda watch: watch.err)
        self.client.do('close-stdin', name='half')
        watch.read_all()
        self.assertEqual(b'one\ntwo\n', watch.err['half'])

    def test_the_end_does_not_wait_for_descendants(self):
        for name in ('go', 'fine'):
            os.mkfifo(os.path.join(self.kernel.directory, name))
        self.client.make(
            'parent', '/bin/sh', '-c',
            'echo parent; (read x; head -c 300000 /dev/zero && echo fine '
            '>"$0/fine") <"$0/go" & exit 2', self.kernel.directory,
            env={'PATH': os.environ['PATH']})
        watch = self.connect().watch('parent').read_all()
        self.assertEqual(b'parent\n', watch.out['parent'])
        self.assertEqual({'parent': 2}, watch.closed)
        self.assertNotIn('parent', self.client.do('list-processes'))
        # The name can be used again, and nobody dies of a closed pipe.
        self.client.make('parent', 'true')
        with open(os.path.join(self.kernel.directory, 'go'), 'w'):
            pass
        with open(os.path.join(self.kernel.directory, 'fine')) as file:
            self.assertEqual('fine\n', file.read())
        self.client.do('remove-processes', names=['parent'])

    def test_orphans_are_reaped(self):
        self.client.shell('orphans', '(sleep 0.01 & echo $!) ; exit 0',
                          env={'PATH': os.environ['PATH']})
        watch = self.connect().watch('orphans').read_all()
        wait_for_end(int(watch.out['orphans']))


class Floods(KernelCase):

    def test_who_fills_a_pipe_gets_a_larger_one(self):
        env = {'PATH': os.environ['PATH']}
        size = 4 * 2 ** 20
        names = {'flood': 2 ** 20, 'small': 2 ** 16, 'quiet': 2 ** 20}
        watch, made = {}, {}
        for name, bufsize in names.items():
            script = ('echo; read x' if name == 'quiet'
                      else f'head -c {size} /dev/zero; read x')
            made[name] = self.client.shell(
                name, script, stdin='pipe', env=env, overflow='block',
                bufsize=bufsize)
        for name in names:
            watch[name] = self.connect().watch(name)
            watch[name].read_until(lambda seen, name=name: len(
                seen.out.get(name, b'')) == (1 if name == 'quiet' else size))
        self.assertEqual(
            {'flood': 262144, 'small': 65536, 'quiet': 65536},
            {name: self.pipe_size(made[name]['pid']) for name in names})
        for name in names:
            self.client.do('close-stdin', name=name)
            watch[name].read_all()

    def pipe_size(self, pid):
        fd = os.open(f'/proc/{pid}/fd/1', os.O_WRONLY | os.O_NONBLOCK)
        try:
            return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
        finally:
            os.close(fd)


class Memory(KernelCase):

    def setUp(self):
        self.kernel = RawKernel(limits={
            'memory': 1000000, 'processes': 4, 'traffic': 3 * 2 ** 20 + 9999})
        self.addCleanup(self.kernel.close)
        self.client = self.connect()

    def fill(self, name, size, **params):
        """Start a process that writes so much, waits, and writes it again.

        Returns when all that fits was taken in.
        """
        made = self.client.shell(
            name, f'head -c {size} /dev/zero; read x; head -c {size} '
                  '/dev/zero', stdin='pipe', bufsize=2_000_000,
            env={'PATH': os.environ['PATH']}, **params)
        self.wait_for(name, size)
        return made

    def wait_for(self, name, end):
        while self.client.do('list-processes', names=[name])[
                name]['end'] < end:
            pass

    def test_what_waits_goes_on_when_there_is_room_again(self):
        self.fill('one', 600_000, overflow='block')
        self.fill('two', 300_000, overflow='block')
        self.client.do('write', name='two', data=b'\n')
        self.wait_for('two', 400_000)  # and no more: the limit is reached
        watch = self.connect().watch('one')
        watch.read_until(lambda seen: len(seen.out.get('one', b'')) == 600_000)
        self.wait_for('two', 600_000)
        self.client.do('remove-processes', names=['*'])
        self.client.do('close-stdin', name='one')

    def test_a_buffer_has_its_size_again_when_there_is_room_again(self):
        self.fill('one', 900_000, overflow='block')
        self.client.shell(
            'two', 'head -c 900000 /dev/zero; read x; head -c 300000 '
            '/dev/zero; read x', stdin='pipe', bufsize=2_000_000,
            env={'PATH': os.environ['PATH']})
        self.wait_for('two', 900_000)
        dropped = self.client.do('list-processes')['two']['dropped']
        self.assertGreater(dropped, 0)
        watch = self.connect().watch('one')
        watch.read_until(lambda seen: len(seen.out.get('one', b'')) == 900_000)
        self.client.do('write', name='two', data=b'\n')
        self.wait_for('two', 1_200_000)
        self.assertEqual(
            dropped, self.client.do('list-processes')['two']['dropped'])
        self.client.do('remove-processes', names=['*'])
        for name in ('one', 'two'):
            self.client.do('close-stdin', name=name)

    def test_writes_that_wait_are_bounded(self):
        for name in ('a', 'b'):  # those that do not wait any more do not count
            made = self.client.shell(name, 'kill -STOP $$', stdin='pipe')
            self.client.do('write', name=name, data=b'a' * 2 ** 20)
            with self.assertRaisesRegex(Refused, 'write less at once'):
                self.client.do('write', name=name, data=b'a' * (2 ** 20 + 1))
            self.client.others.clear()
            for _ in range(3):
                self.client.send('write', {'name': name}, b'a' * 2 ** 20)
                self.client.do('ping')
            with self.assertRaisesRegex(Refused, 'no room: .* wait already'):
                self.client.do('write', name=name, data=b'a' * 2 ** 20)
            os.kill(made['pid'], signal.SIGKILL)
            watch = self.connect().watch(name).read_all()
            self.assertEqual({name: -9}, watch.closed)
            self.client.do('ping')
            said = [content for _, content, _ in self.client.others]
            self.assertEqual([[
                'error', f'the standard input of {name} is closed']] * 3, said)

    def test_all_buffers_together_are_bounded(self):
        for name, overflow in [('a', 'drop'), ('b', 'drop'), ('c', 'block'),
                               ('d', 'block')]:
            self.client.shell(
                name, 'head -c 3000000 /dev/zero; exit 0', overflow=overflow,
                env={'PATH': os.environ['PATH']})
        with self.assertRaisesRegex(Refused, 'limit'):
            self.client.make('e', 'true')
        while self.client.do('list-processes', names=['a'])['a']['running']:
            pass
        self.assertLess(self.client.do('status')['buffered'], 3000000)
        watch = self.connect().watch('*').read_all()
        for name in 'abcd':
            self.assertEqual(3000000, len(watch.out[name])
                             + watch.missing.get(name, 0))
        self.assertEqual(set(), {*watch.missing} & {'c', 'd'})
        self.assertEqual(0, self.client.do('status')['buffered'])
