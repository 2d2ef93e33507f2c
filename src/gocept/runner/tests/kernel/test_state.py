import os
import socket
import subprocess
import sys
import unittest.mock

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon import state as module
from gocept.runner.kernel.daemon.state import START, State
from gocept.runner.tests.kernel.deaths import (
    Death,
    KillingCase,
    Victim,
    blocks,
    death_at,
    full_memory,
)
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import Deadline

MEMORY = 400 * 2 ** 20  # bytes of addresses: enough for Python


class StateCase(KillingCase):

    def setUp(self):
        super().setUp()
        self.state = self.make()

    def make(self, fd=-1):
        state = State(fd)
        self.addCleanup(state.close)
        return state

    def successor(self, state=None):
        return self.make(os.dup((state or self.state).fd))

    def tables(self, state, *names):
        return {name: dict(state.items(name)) for name in names}

    def size(self, state=None):
        return os.fstat((state or self.state).fd).st_size


class StateTests(StateCase):

    def test_values(self):
        state = self.state
        self.assertIsNone(state.get('value', 'a'))
        state.put('value', 'a', {'b': [1, 2.5, None, True, 'ü\udc80\n']})
        state.put('value', '', '')
        state.put('socket', 'a', 1)
        self.assertEqual({'b': [1, 2.5, None, True, 'ü\udc80\n']},
                         state.get('value', 'a'))
        self.assertEqual(1, state.get('socket', 'a'))
        state.drop('value', 'a')
        self.assertIsNone(state.get('value', 'a'))
        state.drop('value', 'a')
        state.drop('nothing', 'a')
        self.assertEqual([('', '')], [*state.items('value')])
        self.assertEqual([], [*state.items('nothing')])

    def test_items_are_live_and_in_order(self):
        items = self.state.items('value')
        for key in 'bac':
            self.state.put('value', key, key)
        self.state.put('value', 'a', 'A')
        expected = [('b', 'b'), ('a', 'A'), ('c', 'c')]
        self.assertEqual(expected, [*items])
        self.assertEqual(expected, [*self.successor().items('value')])

    def test_a_successor_has_all(self):
        values = {'b': [1, 2.5, None, True, 'ü\udc80\n', '\0', '€' * 5000]}
        self.state.put('value', '\udcff \n', values)
        self.state.put('value', 'gone', 1)
        self.state.drop('value', 'gone')
        with self.state.batch():
            self.state.put('process', 'x', 1)
            self.state.put('answer', 'x', 2)
            self.state.drop('process', 'x')
        successor = self.successor()
        self.assertEqual(
            {'value': {'\udcff \n': values}, 'process': {},
             'answer': {'x': 2}},
            self.tables(successor, 'value', 'process', 'answer'))
        self.state.close()
        successor.put('value', 'more', 1)
        self.assertEqual(1, self.successor(successor).get('value', 'more'))

    def test_a_successor_with_little_memory(self):
        self.state.put('value', 'a', 'b')
        code = (
            'import os, resource; '
            'from gocept.runner.kernel.daemon.state import State; '
            f'resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY})); '
            f'print(State({self.state.fd}).get("value", "a"))')
        done = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True,
            env={'PYTHONPATH': os.pathsep.join(sys.path)},
            pass_fds=[self.state.fd])
        self.assertEqual(('b\n', ''), (done.stdout, done.stderr))

    def test_batch(self):
        state = self.state
        with state.batch():
            self.assertTrue(state.changing)
            state.put('value', 'a', 1)
            with state.batch():
                state.put('value', 'b', 2)
            self.assertEqual(2, state.get('value', 'b'))
            self.assertEqual({}, self.tables(self.successor(), 'value')[
                'value'])
        self.assertFalse(state.changing)
        self.assertEqual({'a': 1, 'b': 2},
                         dict(self.successor().items('value')))

    def test_batch_undone(self):
        state = self.state
        state.put('value', 'a', 1)
        state.put('value', 'b', 2)
        items = state.items('value')
        with self.assertRaises(ZeroDivisionError), state.batch():
            state.drop('value', 'a')
            state.put('value', 'b', 3)
            state.put('value', 'c', 3)
            raise ZeroDivisionError
        self.assertEqual([('a', 1), ('b', 2)], [*items])
        self.assertFalse(state.changing)
        state.put('value', 'd', 4)
        self.assertEqual([('a', 1), ('b', 2), ('d', 4)], [*items])
        self.assertEqual([*items], [*self.successor().items('value')])

    def test_nothing_together(self):
        size = self.size()
        with self.state.batch():
            pass
        self.assertEqual(size, self.size())

    def test_what_json_cannot_have_changes_nothing(self):
        size = self.size()
        with self.assertRaises(TypeError):
            self.state.put('value', 'a', b'bytes')
        self.assertIsNone(self.state.get('value', 'a'))
        self.assertEqual(size, self.size())

    def test_a_torn_entry_is_ignored(self):
        self.state.put('value', 'a', 'a')
        whole = self.size()
        self.state.put('value', 'b', 'b' * 100)
        size = self.size()
        for end in range(whole, size):
            os.ftruncate(self.state.fd, size)
            copy = self.own(os.memfd_create('copy'))
            os.pwrite(copy, os.pread(self.state.fd, end, 0), 0)
            state = self.make(os.dup(copy))
            self.assertEqual({'a': 'a'}, dict(state.items('value')))
            self.assertEqual(end, self.size(state))  # it was only read
            state.put('value', 'c', 'c')
            self.assertEqual(
                {'a': 'a', 'c': 'c'},
                dict(self.successor(state).items('value')))

    def test_another_version(self):
        os.pwrite(self.state.fd, START.pack(b'grkstate', 99), 0)
        fd = self.own(os.dup(self.state.fd))
        with self.assertRaisesRegex(KernelError, 'version 99.*version 2:'):
            State(fd)
        os.fstat(fd)  # is still ours

    def test_something_else(self):
        fd = self.own(os.memfd_create('other'))
        with self.assertRaisesRegex(KernelError, 'something else'):
            State(fd)

    def test_damaged(self):
        self.state.put('value', 'a', 'abc')
        os.pwrite(self.state.fd, b'X', self.size() - 5)
        fd = self.own(os.dup(self.state.fd))
        with self.assertRaisesRegex(KernelError, 'damaged at byte 16 of'):
            State(fd)

    def test_a_full_memory_changes_nothing(self):
        state = self.state
        state.put('value', 'a', 1)
        before = os.pread(state.fd, 1 << 20, 0)
        with full_memory(self.size() + 10):
            with self.assertRaisesRegex(KernelError, 'no memory'):
                state.put('value', 'a', 2)
            with self.assertRaisesRegex(KernelError, 'no memory'):
                with state.batch():
                    state.put('value', 'a', 2)
                    state.put('value', 'b', 'x' * 10000)
        for each in (state, self.successor()):
            self.assertEqual({'a': 1}, dict(each.items('value')))
        self.assertEqual(before, os.pread(state.fd, 1 << 20, 0)[:len(before)])
        state.put('value', 'a', 3)
        self.assertEqual(3, self.successor().get('value', 'a'))

    def test_a_removal_without_memory_comes_with_the_next_change(self):
        state = self.state
        for name in 'abc':
            state.put('value', name, name)
        with full_memory(self.size() + 10):
            for name in 'ab':
                state.drop('value', name)
            self.assertEqual({'c': 'c'}, dict(state.items('value')))
            with self.assertRaisesRegex(KernelError, 'no memory'):
                with state.batch():
                    state.put('value', 'a', 'x' * 10000)
                    state.drop('value', 'c')
            self.assertEqual({'c': 'c'}, dict(state.items('value')))
            self.assertEqual({*'abc'}, {*self.successor().keys('value')})
        state.put('value', 'a', 'new')
        for each in (state, self.successor()):
            self.assertEqual(
                {'a': 'new', 'c': 'c'}, dict(each.items('value')))
        state.drop('value', 'a')
        self.assertEqual({'c'}, {*self.successor().keys('value')})

    def test_a_removal_without_memory_comes_with_a_new_log(self):
        state = self.state
        for name in 'abc':
            state.put('value', name, name)
        with full_memory(self.size() + 10):
            state.drop('value', 'a')
        with unittest.mock.patch.object(module, 'SMALLEST', 0):
            state._limit = 0
            with unittest.mock.patch.object(module, 'SPREAD', 0):
                state.drop('value', 'b')
        self.assertEqual({'c'}, {*self.successor().keys('value')})
        state.drop('value', 'c')
        self.assertEqual(set(), {*self.successor().keys('value')})

    def test_close_on_exec(self):
        self.assertFalse(os.get_inheritable(self.state.fd))


class CompactionTests(StateCase):

    def setUp(self):
        super().setUp()
        self.enterContext(unittest.mock.patch.object(module, 'SMALLEST', 2000))
        self.state = self.make()
        self.replaced = []
        self.state.on_replace = (
            lambda fd: self.replaced.append(self.own(os.dup(fd))))

    def fill(self, count=1000):
        for number in range(count):
            self.state.put('value', f'key {number % 7}', number)
            self.state.put('socket', f'{number}', number)
            self.state.drop('socket', f'{number}')

    def test_a_log_stays_small(self):
        self.state.put('meta', 'first', 1)
        self.fill()
        self.assertLess(self.size(), 4000)
        self.assertGreater(len(self.replaced), 10)
        expected = {
            'meta': {'first': 1}, 'socket': {},
            'value': {f'key {number % 7}': number
                      for number in range(993, 1000)}}
        for fd in (self.state.fd, self.replaced[-1]):
            state = self.make(os.dup(fd))
            self.assertEqual(expected, self.tables(state, *expected))
            self.assertEqual([*self.state.items('value')],
                             [*state.items('value')])

    def test_within_a_block_nothing_is_replaced(self):
        self.fill()
        before = len(self.replaced)
        with self.assertRaises(ZeroDivisionError), self.state.batch():
            replaced = len(self.replaced)
            self.fill()
            self.assertEqual(replaced, len(self.replaced))
            raise ZeroDivisionError
        self.assertLessEqual(len(self.replaced), before + 1)
        self.assertEqual(999, self.state.get('value', 'key 5'))

    def test_the_keeper_does_not_take_it(self):
        def fail(fd):
            raise BrokenPipeError
        self.state.on_replace = fail
        with self.assertRaises(BrokenPipeError):
            self.fill()
        values = [*self.state.items('value')]
        self.assertEqual(values, [*self.successor().items('value')])
        self.state.on_replace = lambda fd: None
        self.fill()

    def test_no_memory_for_another_log(self):
        with unittest.mock.patch.object(
                os, 'memfd_create', side_effect=OSError(28, 'full')):
            self.fill(100)
        self.assertEqual([], self.replaced)
        self.assertEqual(99, self.state.get('value', 'key 1'))
        self.fill(1000)
        self.assertLess(self.size(), 10000)

    def test_a_new_log_frees_the_memory_of_the_old_one(self):
        self.state.on_replace = lambda fd: None
        for _ in range(100):
            self.state.put('value', 'a', 'x' * 100_000)
        self.assertLess(blocks(self.state.fd), 700_000)


class DeathTests(StateCase):

    def test_at_each_instant(self):
        self.enterContext(unittest.mock.patch.object(module, 'SMALLEST', 500))
        count = 0
        while self._dies_at(count):
            count += 1
        self.assertGreater(count, 50)

    def _dies_at(self, instant):
        state = State()
        held = [os.dup(state.fd)]

        def hold(fd):
            held.append(os.dup(fd))

        state.on_replace = hold
        done = 0
        with death_at(instant) as deaths:
            try:
                for number in range(1, 30):
                    with state.batch():
                        state.put('a', 'x', number)
                        state.put('b', 'x', [number] * 10)
                    done = number
            except Death:
                pass
        state.close()
        successor = State(held.pop())
        a, b = successor.get('a', 'x'), successor.get('b', 'x')
        self.assertEqual(b and b[0], a)
        self.assertIn(a or 0, (done, done + 1))
        successor.put('a', 'x', 100)
        again = self.successor(successor)
        self.assertEqual(100, again.get('a', 'x'))
        again.close()
        successor.close()
        for fd in held:
            os.close(fd)
        return bool(deaths)

    def test_at_random_instants(self):
        self.enterContext(unittest.mock.patch.object(module, 'SMALLEST', 9999))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        ours.setblocking(False)
        fd = os.dup(self.state.fd)
        last = kills = 0
        # On a busy machine, most of them have not done much.
        deadline = Deadline(DEADLINE)
        while kills < 100 or (last <= 100 and not deadline.passed):
            kills += 1
            state = State(os.dup(fd))

            def work(report, state=state):
                state.on_replace = lambda fd: socket.send_fds(
                    theirs, [b'x'], [fd])
                number = state.get('a', 'x') or 0
                while True:
                    number += 1
                    with state.batch():
                        state.put('a', 'x', number)
                        state.put('b', 'x', 'x' * (number % 9000))
                        state.put('c', 'x', [number])
                    report(number)

            victim = Victim(work)
            victim.wait(self.random.uniform(0, 0.005))
            _, reported = victim.kill()
            state.close()
            fd = self._newest(ours, fd)
            state = State(os.dup(fd))
            number = state.get('a', 'x') or 0
            last = max(last, reported)
            self.assertIn(number, (last, last + 1))
            last = number
            if number:
                self.assertEqual([number], state.get('c', 'x'))
                self.assertEqual(number % 9000, len(state.get('b', 'x')))
            state.close()
        os.close(fd)
        self.assertGreater(last, 100)

    def _newest(self, ours, fd):
        while True:
            try:
                _, fds, _, _ = socket.recv_fds(ours, 10, 1)
            except BlockingIOError:
                return fd
            os.close(fd)
            fd, = fds
