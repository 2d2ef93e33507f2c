"""Who receives the output of processes."""

import unittest

from gocept.runner.kernel.daemon.watching import Watches
from gocept.runner.tests.kernel.raw import (
    KernelCase,
    RawWatch,
    Refused,
)


class WatchesTests(unittest.TestCase):

    def test_one_that_fails_costs_its_client(self):
        watches, told = Watches(), []

        class Broken:
            def send(self):
                raise ZeroDivisionError

            def give_up(self):
                told.append('closed')

        class Whole:
            def send(self):
                told.append('sent')

        for each in (Broken(), Whole()):
            watches.add(each)
        with self.assertLogs('gocept.runner.kernel', 'ERROR'):
            watches.collect()
        self.assertEqual(['closed', 'sent'], told)


class Watching(KernelCase):

    def test_what_is_no_position_is_refused(self):
        self.client.shell('p1', 'read x', stdin='pipe')
        other = self.connect()
        for position in ('x', ['x', -1, False], [1, 2, 3], []):
            with self.assertRaisesRegex(Refused, 'a position is'):
                other.watch('p1', after={'p1': position})
        self.assertFalse(
            self.client.do('list-processes')['p1']['watched'])
        other.watch('p1', after={'other': 'x'})
        self.kill('p1')

    def kill(self, name):
        """End a process that waits in `read`."""
        self.client.do('close-stdin', name=name)

    def test_output_and_end_come_in_order_and_the_watch_ends(self):
        self.client.shell('a1', 'echo one; echo two >&2; exit 3')
        watch = self.connect().watch('a1').read_all()
        self.assertEqual(b'one\n', watch.out['a1'])
        self.assertEqual(b'two\n', watch.err['a1'])
        self.assertEqual({'a1': 3}, watch.closed)
        self.assertEqual('Nothing left to watch', watch.over)
        self.assertNotIn('a1', self.client.do('list-processes'))

    def test_the_end_by_a_signal_is_negative(self):
        self.client.shell('a2', 'kill -9 $$')
        self.assertEqual({'a2': -9},
                         self.connect().watch('a2').read_all().closed)

    def test_a_process_without_output_is_watched_for_its_end(self):
        self.client.shell('a3', 'exit 5', stdout='null', stderr='null')
        watch = self.connect().watch('a3').read_all()
        self.assertEqual({'a3': 5}, watch.closed)
        self.assertEqual({}, watch.out)

    def test_what_was_not_acknowledged_is_offered_again(self):
        self.client.shell('b1', 'echo one; read x; echo two', stdin='pipe')
        first = self.connect()
        watch = first.watch('b1')
        watch.read()
        self.assertEqual(b'one\n', watch.out['b1'])
        first.close()
        self.kill('b1')
        watch = self.connect().watch('b1').read_all()
        self.assertEqual(b'one\ntwo\n', watch.out['b1'])

    def test_a_second_watcher_follows_and_takes_over(self):
        self.client.shell('c1', 'echo one; read x; echo two', stdin='pipe')
        first = self.connect()
        owner = first.watch('c1')
        owner.read()
        second = self.connect().watch('c1')
        second.read()
        self.assertEqual(b'one\n', second.out['c1'])
        second.acknowledge()
        # It frees nothing: only the first one does.
        self.assertEqual(
            0, self.client.do('list-processes', names=['c1'])['c1']['begin'])
        first.close()
        self.kill('c1')
        second.read_all()
        self.assertEqual(b'one\ntwo\n', second.out['c1'])
        self.assertEqual({}, second.missing)
        self.assertEqual({}, self.client.do('list-processes', names=['c1']))

    def test_a_follower_never_owns(self):
        self.client.shell('d1', 'echo one; exit 1')
        watch = self.connect().watch('d1', follow=True).read_all()
        self.assertEqual(b'one\n', watch.out['d1'])
        self.assertIn('d1', self.client.do('list-processes'))
        self.assertEqual(
            b'one\n', self.connect().watch('d1').read_all().out['d1'])

    def test_what_was_freed_is_missing_for_a_late_follower(self):
        self.client.shell('e1', 'echo one; read x; echo two; read x',
                          stdin='pipe')
        owner = self.connect().watch('e1')
        follower = self.connect().watch('e1', follow=True)
        follower.read_until(lambda watch: watch.out)
        owner.read_until(lambda watch: watch.out)
        late = self.connect().watch('e1', follow=True)
        self.client.do('write', name='e1', data=b'\n')
        late.read_until(lambda watch: watch.out)
        self.assertEqual(b'two\n', late.out['e1'])
        self.assertEqual({}, late.missing)  # before its time

    def test_what_does_not_fit_is_dropped_and_counted(self):
        size = 3000000
        self.client.shell('f1', f'head -c {size} /dev/zero; exit 0',
                          bufsize=100000)
        self.client.do('get', name='x')
        while self.client.do('list-processes')['f1']['running']:
            pass
        watch = self.connect().watch('f1').read_all()
        self.assertEqual(size, len(watch.out['f1']) + watch.missing['f1'])
        self.assertGreaterEqual(watch.missing['f1'], size - 400000)

    def test_a_missing_byte_is_told_once(self):
        self.client.shell(
            'f2', 'head -c 300000 /dev/zero; read x; echo more', stdin='pipe',
            bufsize=70000)
        while self.client.do('list-processes')['f2']['end'] < 300000:
            pass
        first = self.connect()
        watch = first.watch('f2')
        watch.read_until(
            lambda watch: watch.positions['f2'][1:2] == [300000]
            if watch.positions else False)
        missing = watch.missing['f2']
        self.assertEqual(300000, missing + len(watch.out['f2']))
        first.close()
        self.kill('f2')
        watch = self.connect().watch('f2').read_all()
        self.assertEqual(b'more\n', watch.out['f2'])
        self.assertEqual({}, watch.missing)

    def test_a_child_waits_where_it_blocks(self):
        size = 3000000
        self.client.shell('g1', f'head -c {size} /dev/zero; exit 0',
                          bufsize=100000, overflow='block')
        watch = self.connect().watch('g1').read_all()
        self.assertEqual(size, len(watch.out['g1']))
        self.assertEqual({}, watch.missing)

    def test_a_position_resumes(self):
        made = self.client.shell('h1', 'printf 0123456789; exit 0')
        while self.client.do('list-processes')['h1']['running']:
            pass
        watch = self.connect().watch(
            'h1', after={'h1': [made['life'], 4]}).read_all()
        self.assertEqual(b'456789', watch.out['h1'])

    def test_the_position_of_another_life_skips_nothing(self):
        self.client.shell('h2', 'printf 0123456789; exit 0')
        watch = self.connect().watch(
            'h2', after={'h2': ['0' * 16, 4]}).read_all()
        self.assertEqual(b'0123456789', watch.out['h2'])

    def test_a_position_behind_the_end_ends_the_watch(self):
        made = self.client.shell('h3', 'printf 0123456789; exit 0')
        while self.client.do('list-processes')['h3']['running']:
            pass
        watch = self.connect().watch(
            'h3', after={'h3': [made['life'], 10, True]})
        watch.read()
        self.assertEqual('Nothing left to watch', watch.over)
        self.assertNotIn('h3', self.client.do('list-processes'))

    def test_a_part_is_acknowledged(self):
        made = self.client.shell('h4', 'printf 0123456789; read x',
                                 stdin='pipe')
        client = self.connect()
        watch = client.watch('h4')
        watch.read_until(lambda watch: watch.out)
        client.send('acknowledge', {
            'positions': {'h4': [made['life'], 6, False]}}, number=0)
        client.do('unwatch', positions={})
        self.kill('h4')

    def test_unwatch_gives_the_connection_back(self):
        self.client.shell('i1', 'echo one; read x', stdin='pipe')
        client = self.connect()
        watch = client.watch('i1')
        watch.read()
        client.do('unwatch', positions=watch.positions)
        self.assertIsNone(client.do('ping'))
        found = self.client.do('list-processes', names=['i1'])['i1']
        self.assertEqual([4, 4, False], [
            found['begin'], found['end'], found['watched']])
        self.kill('i1')

    def test_a_watcher_of_a_removed_process_learns_of_the_end(self):
        self.client.shell('j1', 'read x; exit 4', stdin='pipe')
        watch = self.connect().watch('j1')
        self.client.do('remove-processes', names=['j1'])
        self.assertTrue(self.client.do('list-processes')['j1']['removed'])
        self.kill('j1')
        watch.read_all()
        self.assertEqual({'j1': 4}, watch.closed)
        self.assertNotIn('j1', self.client.do('list-processes'))

    def test_nothing_to_watch(self):
        with self.assertRaisesRegex(Refused, 'not found'):
            self.client.watch('nobody')
        with self.assertRaisesRegex(Refused, 'Nothing to watch'):
            self.client.watch('nobody*')

    def test_many_at_once(self):
        names = [f'many.{number}' for number in range(20)]
        for name in names:
            self.client.shell(name, 'echo $0; echo $0 >&2', )
        watch = self.connect().watch('many.*').read_all()
        self.assertEqual({*names}, {*watch.closed})
        self.assertEqual({*names}, {*watch.out})

    def test_make_and_watch_at_once(self):
        client = self.connect()
        made = client.shell('k1', 'echo one', watch=True)
        self.assertEqual(16, len(made['life']))
        self.assertEqual(
            b'one\n', RawWatch(client, made).read_all().out['k1'])
