import types
import unittest

from gocept.runner.kernel.daemon.recovery import Recovery
from gocept.runner.tests.kernel.raw import RawKernel


class Processes:
    """Takes over all but one."""

    def __init__(self):
        self.attached = []

    def attach(self, process):
        if process.name == 'broken':
            raise ValueError(process.name)
        self.attached.append(process.name)

    def discard_if_over(self, process):
        pass


class RecoveryTests(unittest.TestCase):

    def setUp(self):
        self.processes = Processes()
        self.recovery = Recovery(self.processes)
        self.ends = []
        self.recovery.on_end = lambda: self.ends.append(None)

    def add(self, *names):
        added = [types.SimpleNamespace(
            name=name, life=name, pid=0, ended=None, sink=None, running=True)
            for name in names]
        for each in added:
            self.recovery.add(each)
        return added

    def collect_all(self):
        turns = 1
        while not self.recovery.collect()[1]:
            self.assertTrue(self.recovery.buffered)
            turns += 1
        self.assertFalse(self.recovery.buffered)
        return turns

    def test_some_at_a_time(self):
        names = [f'{number}' for number in range(25)]
        self.add(*names)
        self.assertEqual(3, self.collect_all())
        self.assertEqual(names, self.processes.attached)
        self.assertEqual([None], self.ends)

    def test_none(self):
        self.assertEqual(1, self.collect_all())
        self.assertEqual([None], self.ends)

    def test_what_is_asked_for_comes_first_and_once(self):
        *_, last = self.add('a', 'b', 'c')
        self.recovery.look_at(last)
        self.recovery.look_at(last)
        self.assertEqual(['c'], self.processes.attached)
        self.recovery.look_at_all()
        self.assertEqual(['c', 'a', 'b'], self.processes.attached)

    def test_one_that_fails_does_not_hinder_the_others(self):
        self.add('a', 'broken', 'c')
        with self.assertLogs('gocept.runner.kernel', 'ERROR') as logs:
            self.collect_all()
        self.assertIn("'broken' could not be taken over", logs.output[0])
        self.assertEqual(['a', 'c'], self.processes.attached)
        self.assertEqual([None], self.ends)


class ManyProcessesTests(unittest.TestCase):

    count = 60

    def setUp(self):
        self.kernel = RawKernel()
        self.addCleanup(self.kernel.close)
        client = self.connect()
        for number in range(self.count):
            client.shell(f'p{number}', f'echo {number}; read x; exit {number}',
                         stdin='pipe')
        self.kernel.kill_daemon()
        self.client = self.connect()

    def connect(self):
        client = self.kernel.connect()
        self.addCleanup(client.close)
        return client

    def test_each_is_there_whoever_is_asked_for_first(self):
        last = f'p{self.count - 1}'
        asked = self.client.do('list-processes', names=[last])
        listed = self.client.do('list-processes')
        self.assertEqual({f'p{number}' for number in range(self.count)},
                         {*listed})
        self.assertEqual(asked[last]['pid'], listed[last]['pid'])

    def test_what_they_write_arrives(self):
        watch = self.connect().watch('*')
        for number in range(self.count):
            self.client.do('close-stdin', name=f'p{number}')
        watch.read_all()
        self.assertEqual({f'p{number}': b'%d\n' % number
                          for number in range(self.count)}, watch.out)
        self.assertEqual({f'p{number}': number
                          for number in range(self.count)}, watch.closed)
