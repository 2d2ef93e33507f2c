import contextlib
import os
import select
import unittest.mock

from gocept.runner.errors import KernelError
from gocept.runner.kernel.daemon import input as module
from gocept.runner.kernel.daemon import state as state_module
from gocept.runner.kernel.daemon.input import HUGE_PAGE, Input
from gocept.runner.kernel.daemon.state import State
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


class InputCase(KillingCase):

    def setUp(self):
        super().setUp()
        self.reader, self.writer = self.pipe()
        os.set_blocking(self.reader, False)
        self.state = State()
        self.addCleanup(lambda: self.state.close())

    def make(self, limit=1 << 20, fd=-1, state=None, **keywords):
        made = Input(state or self.state, 'life', limit, fd, **keywords)
        self.addCleanup(made.release)
        return made

    def read(self):
        pieces = []
        try:
            while piece := os.read(self.reader, 1 << 20):
                pieces.append(piece)
        except BlockingIOError:
            pass
        return b''.join(pieces)


class InputTests(InputCase):

    def test_all_is_sent(self):
        sent = self.make()
        self.assertEqual(0, sent.pending)
        self.assertTrue(sent.send(self.writer))
        self.assertTrue(sent.add(b''))
        self.assertEqual(-1, sent.fd)
        self.assertTrue(sent.add(b'abc'))
        self.assertTrue(sent.add(b'defg'))
        self.assertEqual(7, sent.pending)
        self.assertEqual(b'', self.read())
        self.assertTrue(sent.send(self.writer))
        self.assertEqual(0, sent.pending)
        self.assertEqual(b'abcdefg', self.read())
        self.assertTrue(sent.add(b'h'))
        self.assertTrue(sent.send(self.writer))
        self.assertEqual(b'h', self.read())
        self.assertFalse(os.get_inheritable(sent.fd))

    def test_a_full_pipe(self):
        sent = self.make()
        data = bytes(range(256)) * 2000
        self.assertTrue(sent.add(data))
        received = b''
        calls = 0
        while not sent.send(self.writer):
            calls += 1
            received += self.read()
            self.assertEqual(len(data) - len(received), sent.pending)
        self.assertEqual(data, received + self.read())
        self.assertGreater(calls, 5)

    def test_all_or_nothing(self):
        sent = self.make(10)
        self.assertTrue(sent.add(b'abcdef'))
        self.assertFalse(sent.add(b'ghijk'))
        self.assertEqual(6, sent.pending)
        self.assertTrue(sent.add(b'ghij'))
        self.assertFalse(sent.add(b'k'))
        self.assertTrue(sent.send(self.writer))
        self.assertTrue(sent.add(b'0123456789'))
        self.assertTrue(sent.send(self.writer))
        self.assertEqual(b'abcdefghij0123456789', self.read())
        with self.assertRaisesRegex(KernelError, '11 bytes.*the 10 that'):
            sent.add(b'x' * 11)

    def test_batch_with_the_answer(self):
        sent = self.make()
        with self.state.batch():
            sent.add(b'abc')
            self.state.put('answer', 'session', [1, 'ok'])
            with self.assertRaisesRegex(RuntimeError, 'after the batch'):
                sent.send(self.writer)
        with self.assertRaises(ZeroDivisionError), self.state.batch():
            sent.add(b'defgh')
            raise ZeroDivisionError
        self.assertEqual(3, sent.pending)
        self.assertTrue(sent.add(b'i'))
        self.assertTrue(sent.send(self.writer))
        self.assertEqual(b'abci', self.read())

    def test_the_child_has_closed_its_end(self):
        sent = self.make()
        sent.add(b'abc')
        os.close(self.reader)
        with self.assertRaises(BrokenPipeError):
            sent.send(self.writer)
        sent.close()
        self.assertEqual([], [*self.state.items('input')])
        sent.close()

    def test_what_is_no_pipe(self):
        sink = self.own(os.memfd_create('file'))
        sent = self.make()
        for data in (b'abc', b'defg'):
            sent.add(data)
            self.assertTrue(sent.send(sink))
        self.assertEqual(b'abcdefg', os.pread(sink, 100, 0))

    def test_the_keeper_has_it_first(self):
        events = []
        sent = self.make(on_create=events.append)
        sent.add(b'abc')
        sent.add(b'abc')
        self.assertEqual([sent.fd], events)

        def fail(fd):
            raise BrokenPipeError
        sent = Input(self.state, 'other', on_create=fail)
        with self.assertRaises(BrokenPipeError):
            sent.add(b'abc')
        self.assertEqual((-1, 0), (sent.fd, sent.pending))

    def test_full_memory(self):
        sent = self.make()
        sent.add(b'abc')
        with full_memory(4096):
            with self.assertRaisesRegex(KernelError, 'no memory'):
                sent.add(b'x' * 5000)
        self.assertEqual(3, sent.pending)
        sent.add(b'def')
        self.assertTrue(sent.send(self.writer))
        self.assertEqual(b'abcdef', self.read())


class MemoryTests(InputCase):

    def test_what_was_sent_is_freed(self):
        sent = self.make()
        for _ in range(20):
            data = os.urandom(300_000)
            self.assertTrue(sent.add(data))
            received = b''
            while not sent.send(self.writer):
                received += self.read()
            self.assertLess(blocks(sent.fd), 10_000)
            self.assertEqual(data, received + self.read())

    def test_the_pipe_keeps_what_is_freed_here(self):
        sent = self.make()
        old = os.urandom(60_000)
        with unittest.mock.patch.object(module, 'KEPT', 0):
            sent.add(old)
            self.assertTrue(sent.send(self.writer))
        self.assertEqual(0, blocks(sent.fd))
        new = os.urandom(100_000)
        sent.add(new)
        received = b''
        while not sent.send(self.writer):
            received += self.read()
        self.assertEqual(old + new, received + self.read())

    def test_no_memory_to_say_that_it_is_freed(self):
        sent = self.make()
        data = os.urandom(60_000)
        sent.add(data)
        with unittest.mock.patch.object(module, 'KEPT', 0):
            size = os.fstat(self.state.fd).st_size
            with full_memory(size):
                self.assertTrue(sent.send(self.writer))
            sent.add(b'more')
            self.assertTrue(sent.send(self.writer))
        self.assertEqual(data + b'more', self.read())
        self.assertEqual(0, blocks(sent.fd))

    def test_freed_while_something_is_pending(self):
        sent = self.make()
        data = os.urandom(1 << 20)
        received = count = 0
        while sent._freed < 8 * HUGE_PAGE:
            if sent.add(data[:600_000]):
                count += 600_000
            sent.send(self.writer)
            piece = self.read()
            for start in range(0, len(piece), 600_000):
                offset = (received + start) % 600_000
                expected = (data[:600_000] * 3)[offset:][:len(piece)]
                self.assertEqual(expected, piece)
            received += len(piece)
        self.assertLess(blocks(sent.fd), 7 * HUGE_PAGE)
        self.assertEqual(count, received + sent.pending)


class DeathTests(InputCase):

    def test_at_each_instant(self):
        self.enterContext(unittest.mock.patch.object(module, 'KEPT', 1000))
        instant = 0
        while self._dies_at(instant):
            instant += 1
        self.assertGreater(instant, 100)

    def _dies_at(self, instant):
        state, held = State(), []
        sent = Input(state, 'life', 100_000,
                     on_create=lambda fd: held.append(os.dup(fd)))
        received = bytearray()
        with death_at(instant) as deaths:
            with contextlib.suppress(Death):
                self._work(state, sent, received)
        if deaths:
            predecessor, state = state, State(os.dup(state.fd))
            predecessor.close()
            sent.release()
            sent = Input(state, 'life', 100_000, held.pop() if held else -1)
            self._work(state, sent, received)
        self.assertEqual(b''.join(map(self._data, range(1, 25))), received)
        sent.close()
        state.close()
        for fd in held:
            os.close(fd)
        return bool(deaths)

    def _data(self, number):
        return b'%d,' % number * (number * 37 % 300)

    def _work(self, state, sent, received):
        while True:
            while not sent.send(self.writer):
                received += self.read()
            received += self.read()
            number = (state.get('answer', 'session') or 0) + 1
            if number == 25:
                return
            with state.batch():
                sent.add(self._data(number))
                state.put('answer', 'session', number)

    def test_at_random_instants(self):
        # Nobody would hold another log.
        self.enterContext(unittest.mock.patch.object(
            state_module, 'SMALLEST', 1 << 40))
        made = self.make()
        made._create()
        fd, state = made.fd, self.state
        received = bytearray()
        kills = number = 0
        # On a busy machine, most of them have not done much.
        deadline = Deadline(DEADLINE)
        while kills < 100 or (number <= 100 and not deadline.passed):
            kills += 1
            predecessor, state = state, State(os.dup(state.fd))
            if predecessor is not self.state:
                predecessor.close()
            number = state.get('answer', 'session') or 0
            sent = Input(state, 'life', fd=os.dup(fd))
            victim = Victim(
                lambda report, state=state, sent=sent: self._send(state, sent))
            victim.wait(self.random.uniform(0, 0.01), self.reader, received)
            victim.kill()
            received += self.read()
            sent.release()
        self.addCleanup(state.close)
        state = State(os.dup(state.fd))
        self.addCleanup(state.close)
        sent = self.make(fd=os.dup(fd), state=state)
        while not sent.send(self.writer):
            received += self.read()
        received += self.read()
        number = state.get('answer', 'session')
        self.assertGreater(number, 100)
        self.assertEqual(
            b''.join(self._data(each) for each in range(1, number + 1)),
            received)

    def _send(self, state, sent):
        poll = select.poll()
        poll.register(self.writer, select.POLLOUT)
        number = (state.get('answer', 'session') or 0) + 1
        while True:
            with state.batch():
                if sent.add(self._data(number)):
                    state.put('answer', 'session', number)
                    number += 1
            if not sent.send(self.writer):
                poll.poll()
