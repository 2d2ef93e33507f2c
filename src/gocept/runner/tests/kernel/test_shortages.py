"""A daemon without memory, or without descriptors."""

import contextlib
import os
import resource
import signal
import unittest

from gocept.runner.tests.kernel.raw import RawKernel, Refused, wait_for_end
from gocept.runner.tests.kernels import free_port


class ShortageCase(unittest.TestCase):

    def setUp(self):
        self.kernel = RawKernel()
        self.addCleanup(self.kernel.close)
        self.client = self.connect()
        self.pid = self.client.do('status')['pid']

    def connect(self):
        client = self.kernel.connect()
        self.addCleanup(client.close)
        return client

    @contextlib.contextmanager
    def limited(self, limit, number):
        """A soft limit of the daemon is lowered meanwhile."""
        soft, hard = resource.prlimit(self.pid, limit)
        resource.prlimit(self.pid, limit, (number, hard))
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(self.pid, limit, (soft, hard))

    def full_memory(self):
        """The state cannot grow."""
        where = f'/proc/{self.pid}/fd'
        [size] = [os.stat(f'{where}/{fd}').st_size for fd in os.listdir(where)
                  if 'gocept.runner state' in os.readlink(f'{where}/{fd}')]
        return self.limited(resource.RLIMIT_FSIZE, size)

    def next_daemon(self):
        self.kernel.kill_daemon()
        self.client = self.connect()

    def path(self, name):
        return os.path.join(self.kernel.directory, name)


class MemoryTests(ShortageCase):

    def test_a_socket_that_cannot_be_recorded_is_not_there(self):
        path = self.path('socket')
        port = free_port()
        with self.full_memory():
            for params in ({'port': port}, {'path': path}):
                with self.assertRaisesRegex(Refused, 'no memory'):
                    self.client.do('make-socket', name='s', **params)
        self.assertEqual({}, self.client.do('list-sockets'))
        self.assertFalse(os.path.exists(path))
        made = self.client.do('make-socket', name='s', port=port)
        self.next_daemon()
        self.assertEqual({'s': made}, self.client.do('list-sockets'))

    def test_output_can_be_acknowledged(self):
        write = 'head -c 25000 /dev/zero; read x; '
        self.client.shell('p', 2 * write, stdin='pipe', bufsize=20_000,
                          env={'PATH': os.environ['PATH']})
        for end in 25_000, 50_000:
            while self.client.do('list-processes')['p']['end'] < end:
                pass
            self.client.do('write', name='p', data=b'\n'[:end < 50_000])
        client = self.connect()
        watch = client.watch('p')
        while sum(map(len, watch.out.values())) + sum(
                watch.missing.values()) < 50_000:
            watch.read()
        self.assertIn('p', watch.missing)
        with self.full_memory():
            watch.acknowledge()
            client.do('ping')
            found = self.client.do('list-processes')['p']
            self.assertEqual(0, found['buffered'])
        self.client.do('close-stdin', name='p')

    def test_the_end_of_a_process(self):
        made = self.client.shell('p', 'echo out; read x', stdin='pipe')
        self.client.do('write', name='p', data=b'x' * 100)
        client = self.connect()
        watch = client.watch('p')
        watch.read_until(lambda watch: watch.out)
        with self.full_memory():
            os.kill(made['pid'], signal.SIGKILL)
            watch.read_all()
            self.assertEqual({'p': -9}, watch.closed)
            self.assertEqual({}, self.client.do('list-processes'))
        self.client.do('set', name='a', value='b')
        self.next_daemon()
        self.assertEqual({}, self.client.do('list-processes'))

    def test_a_slow_start_that_cannot_be_recorded(self):
        with self.full_memory():
            with self.assertRaisesRegex(Refused, 'no memory'):
                self.client.shell('p', 'exit 3', rlimits={'core': 0})
        self.assertEqual({}, self.client.do('list-processes'))
        self.client.shell('p', 'exit 3', rlimits={'core': 0})
        watch = self.connect().watch('p').read_all()
        self.assertEqual({'p': 3}, watch.closed)

    def test_a_stop_by_force(self):
        file = self.path('done')
        os.mkfifo(file)
        self.client.do('make-socket', name='s', path=self.path('socket'))
        self.client.shell(
            'p', f'read x; head -c 300000 /dev/zero && echo fine > {file}',
            stdin='pipe', env={'PATH': os.environ['PATH']})
        with self.full_memory():
            self.client.do('stop', force=True)
            wait_for_end(self.kernel.keeper)
            with open(file) as reader:
                self.assertEqual('fine\n', reader.read())
            wait_for_end(self.pid)
        self.assertFalse(os.path.exists(self.path('socket')))


class DescriptorTests(ShortageCase):

    def test_a_socket_without_a_number_is_not_there(self):
        path = self.path('socket')
        self.client.do('make-socket', name='r', reuseport=True)
        with self.limited(resource.RLIMIT_NOFILE, 64):
            with self.assertRaisesRegex(Refused, 'no socket .s.: .*ulimit'):
                self.client.do('make-socket', name='s', path=path)
            with self.assertRaisesRegex(Refused, 'no socket .r.: .*ulimit'):
                self.client.make('p', 'true', '$(socket.r.fileno)')
        self.assertFalse(os.path.exists(path))
        self.assertEqual(
            {}, self.client.do('list-sockets', names=['s']))

    def test_sockets_have_their_numbers_again_where_few_are_left(self):
        kernel = RawKernel(prepare='ulimit -n 300')
        self.addCleanup(kernel.close)
        with kernel.connect() as client:
            for number in range(100):
                client.do('make-socket', name=f's{number}')
            sockets = client.do('list-sockets')
            with self.assertRaisesRegex(Refused, 'Too many open files'):
                for number in range(100):
                    client.shell(f'p{number}', 'read x', stdin='pipe')
            names = {*client.do('list-processes')}
        for _ in range(3):
            kernel.kill_daemon()
            with kernel.connect() as client:
                self.assertEqual(sockets, client.do('list-sockets'))
                self.assertEqual(names, {*client.do('list-processes')})
