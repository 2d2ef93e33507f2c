import gc
import itertools
import json
import os
import queue
import select
import signal
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import zope.interface.verify

from gocept.runner.errors import KernelError, WatcherInUse
from gocept.runner.interfaces import IWatcher
from gocept.runner.kernel import Error, Kernel, ProcessOutput, Watcher
from gocept.runner.poller import Poller
from gocept.runner.tests.kernel.fakes import FakeProcess, TestCase
from gocept.runner.tests.kernel.interruption import (
    Interruption,
    allow_forgotten,
)
from gocept.runner.tests.streams import Alarms
from gocept.runner.tests.support import DEADLINE


class WatcherCase(TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.daemon = self.fake()
        self.kernel = Kernel(self.daemon.place, DEADLINE, autostart=False)
        self.addCleanup(self.kernel.close)

    def process(self, name: str = 'p') -> FakeProcess:
        process = self.daemon.processes[name] = FakeProcess(name)
        return process

    def watch(self, *names: str, **keywords: Any) -> Watcher:
        watcher = self.kernel.watch_processes(*names or 'p', **keywords)
        self.addCleanup(watcher.close)
        return watcher

    def change(self, function: Callable[[], Any]) -> None:
        self.daemon.change(function)

    def data(self, watcher: Watcher) -> bytes:
        output = watcher.read()
        assert output is not None
        return b''.join(each.data for each in output[0])  # type: ignore

    def wait(self, watcher: Watcher) -> None:
        self.assertTrue(select.select([watcher], [], [], DEADLINE)[0])


class ReadTests(WatcherCase):

    def test_interface(self) -> None:
        self.process()
        zope.interface.verify.verifyObject(IWatcher, self.watch())

    def test_output_errors_and_the_end(self) -> None:
        process = self.process()
        process.write(b'out\xff\n')
        process.write(b'err', 'err')
        process.exit(-9)
        watcher = self.watch()
        output = watcher.read()
        assert output is not None
        out, err, closed = output
        self.assertEqual(
            [ProcessOutput('p', process.pieces[0].timestamp, b'out\xff\n')],
            out)
        self.assertEqual(b'err', err[0].data)
        self.assertEqual(('p', -9), (closed[0].name, closed[0].data))
        self.assertEqual({'p': -9}, watcher.exit_code)

    def test_the_loop_of_the_manual(self) -> None:
        process = self.process()
        process.write(b'1')
        process.exit()
        seen = []
        with self.kernel.watch_processes('p') as watcher:
            self.assertTrue(watcher)
            while watcher:
                out, err, closed = watcher.read()  # type: ignore
                seen.append([len(out), len(err), len(closed)])
        self.assertEqual([[1, 0, 1], [0, 0, 0]], seen)
        self.assertIsNone(watcher.read())
        self.assertEqual({}, self.daemon.processes)

    def test_acknowledging_the_last_end(self) -> None:
        self.process().exit(None)
        watcher = self.watch()
        watcher.read()
        self.assertTrue(watcher)
        self.assertEqual({'p'}, {*self.kernel.list_processes()})
        watcher.acknowledge()
        self.assertFalse(watcher)
        self.assertTrue(watcher.closed)
        self.assertEqual({}, self.kernel.list_processes())
        self.assertIsNone(watcher.read())
        self.assertEqual({'p': None}, watcher.exit_code)

    def test_the_connection_is_given_back(self) -> None:
        self.process()
        fd = self.kernel.fileno()
        watcher = self.watch()
        self.assertEqual(fd, watcher.fileno())
        self.assertIsNone(self.kernel.fileno())
        watcher.close()
        self.assertEqual(-1, watcher.fileno())
        self.assertEqual(fd, self.kernel.fileno())
        self.assertIsNone(self.kernel.get('a'))

    def test_a_kernel_with_another_connection(self) -> None:
        self.process()
        watcher = self.watch()
        self.kernel.get('a')
        fd = self.kernel.fileno()
        watcher.close()
        self.assertEqual(fd, self.kernel.fileno())

    def test_a_kernel_that_was_closed(self) -> None:
        self.process()
        watcher = self.watch()
        self.kernel.close()
        watcher.close()
        self.assertIsNone(self.kernel.fileno())

    def test_the_end_of_a_watch_after_that_of_a_session(self) -> None:
        process = self.process()
        watcher = self.watch()
        self.kernel.close()
        self.change(process.exit)
        watcher.read()
        with self.assertNoLogs('gocept.runner.kernel'):
            watcher.close()

    def test_output_on_the_way_does_not_disturb(self) -> None:
        process = self.process()
        watcher = self.watch()
        self.change(lambda: process.write(b'1' * 100_000))
        watcher.close()
        self.daemon.values['a'] = '1'
        self.assertEqual('1', self.kernel.get('a'))

    def test_what_was_not_acknowledged_comes_again(self) -> None:
        self.process().write(b'1')
        watcher = self.watch()
        self.assertEqual(b'1', self.data(watcher))
        watcher.close(acknowledge=False)
        self.assertEqual(b'1', self.data(self.watch()))

    def test_close_acknowledges(self) -> None:
        process = self.process()
        process.write(b'1')
        watcher = self.watch()
        watcher.read()
        watcher.close()
        process.write(b'2')
        self.assertEqual(b'2', self.data(self.watch()))

    def test_an_exception_does_not_acknowledge(self) -> None:
        self.process().write(b'1')
        with self.assertRaises(ValueError):
            with self.kernel.watch_processes('p') as watcher:
                watcher.read()
                raise ValueError
        self.assertEqual(b'1', self.data(self.watch()))

    def test_ready_tells_the_truth(self) -> None:
        process = self.process()
        watcher = self.watch()
        self.assertFalse(watcher.ready)
        self.change(lambda: process.write(b'1'))
        self.wait(watcher)
        self.assertTrue(watcher.ready)
        self.assertTrue(watcher.ready)
        self.assertEqual(b'1', self.data(watcher))
        self.assertFalse(watcher.ready)
        self.daemon.die()
        self.assertFalse(watcher.ready)
        self.change(process.exit)
        self.wait(watcher)
        watcher.read()
        self.assertTrue(watcher.ready)  # an acknowledgement is due
        self.assertEqual(([], [], []), watcher.read())
        self.assertFalse(watcher.ready)

    def test_what_is_there_at_once_can_be_selected(self) -> None:
        for count in range(20):
            self.process().write(b'1' * 10)
            watcher = self.watch()
            self.wait(watcher)
            watcher.close()

    def test_several_batches_in_one_read(self) -> None:
        process = self.process()
        watcher = self.watch()
        for _ in range(3):
            self.change(lambda: process.write(b'1'))
        self.assertEqual(b'111', self.data(watcher))

    def test_long_output(self) -> None:
        process = self.process()
        data = os.urandom(5_000_000)
        watcher = self.watch()
        self.change(lambda: process.write(data))
        self.assertEqual(data, self.data(watcher))
        self.assertFalse(watcher.ready)

    def test_several_processes(self) -> None:
        one, two = self.process('a'), self.process('b')
        watcher = self.watch('*')
        self.change(one.exit)
        self.wait(watcher)
        watcher.read()
        watcher.acknowledge()
        self.assertTrue(watcher)
        self.assertEqual({'b'}, {*self.kernel.list_processes()})
        self.change(two.exit)
        watcher.read()
        watcher.acknowledge()
        self.assertFalse(watcher)

    def test_nothing_to_watch(self) -> None:
        with self.assertRaisesRegex(Error, 'Nothing to watch'):
            self.watch('*')
        self.assertIsNone(self.kernel.get('a'))

    def test_make_and_watch(self) -> None:
        watcher = self.kernel.make_process(
            'p', 'true', watch_immediately=True)
        assert isinstance(watcher, Watcher)
        self.change(self.daemon.processes['p'].exit)
        with watcher:
            self.wait(watcher)
            self.assertEqual(0, watcher.read()[2][0].data)  # type: ignore
        self.assertEqual(1, len(self.daemon.requests) - [
            each.op for each in self.daemon.requests].count('unwatch'))

    def test_a_daemon_that_ends_the_watch(self) -> None:
        self.process()
        watcher = self.watch()
        self.daemon.call(lambda: self.daemon.watches[0].connection
                         .finish_watch('Nothing left to watch'))
        self.assertEqual(([], [], []), watcher.read())
        self.assertFalse(watcher)
        self.assertIsNone(self.kernel.get('a'))

    def test_missing(self) -> None:
        process = self.process()
        watcher = self.watch()
        self.change(lambda: (process.write(b'123'), process.write(b'4'),
                             process.pieces.pop(0)))
        self.assertEqual(b'4', self.data(watcher))
        self.assertEqual({'p': 3}, watcher.missing)
        self.change(lambda: process.write(b'5'))
        self.assertEqual(b'5', self.data(watcher))
        self.assertEqual({}, watcher.missing)
        self.change(lambda: (process.write(b'6'), process.pieces.pop(),
                             process.exit()))
        watcher.read()
        if not watcher.exit_code:
            watcher.read()
        self.assertEqual(([], [], []), watcher.read())
        self.assertEqual({}, watcher.missing)

    def test_follow(self) -> None:
        process = self.process()
        process.write(b'1')
        watcher = self.kernel.follow_processes('p')
        self.addCleanup(watcher.close)
        self.assertEqual(b'1', self.data(watcher))
        self.change(process.exit)
        watcher.read()
        self.assertEqual(([], [], []), watcher.read())
        self.assertFalse(watcher)
        self.assertEqual(b'1', self.data(self.watch()))

    def test_records(self) -> None:
        process = self.process()
        process.write(b'1')
        watcher = self.watch()
        self.wait(watcher)
        records = watcher.receive()
        self.assertEqual(
            [('p', process.life, 'out', b'1', 1)],
            [(each.name, each.life, each.kind, each.data, each.offset)
             for each in records])
        self.assertEqual([], watcher.receive())
        self.daemon.die()
        self.assertEqual([], watcher.receive())
        self.change(lambda: process.write(b'2'))
        self.wait(watcher)
        self.assertEqual([b'2'], [each.data for each in watcher.receive()])
        watcher.acknowledge_to({'p': [process.life, 1, False]})
        self.kernel.get('a')
        watcher.close(acknowledge=False)
        self.assertEqual(b'2', self.data(self.watch()))

    def test_what_is_left_open_is_a_warning(self) -> None:
        self.process()
        with self.assertWarnsRegex(ResourceWarning, 'unclosed'):
            self.kernel.watch_processes('p')
            gc.collect()

    def test_a_forked_child_has_no_watcher(self) -> None:
        process = self.process()
        watcher = self.watch()
        pid = os.fork()
        if not pid:
            os._exit(bool(watcher) or watcher.read() is not None)
        self.assertEqual((pid, 0), os.waitpid(pid, 0))
        self.change(lambda: process.write(b'1'))
        self.assertEqual(b'1', self.data(watcher))


class ResumeTests(WatcherCase):

    def test_nothing_is_lost_and_nothing_comes_twice(self) -> None:
        process = self.process()
        watcher = self.watch()
        fd = watcher.fileno()
        seen = b''
        for number in range(20):
            line = b'%d\n' % number
            self.change(lambda line=line: process.write(line))
            if number % 3 == 0:
                self.daemon.die()
            if number % 4 == 0:
                seen += self.data(watcher)
        self.change(process.exit)
        while watcher:
            seen += self.data(watcher)
        self.assertEqual(b''.join(b'%d\n' % each for each in range(20)), seen)
        self.assertNotEqual(fd, watcher.fileno())
        self.assertEqual({}, watcher.missing)

    def test_the_descriptor_stays(self) -> None:
        process = self.process()
        watcher = self.watch()
        fd = watcher.fileno()
        self.daemon.die()
        self.change(lambda: process.write(b'1'))
        self.assertEqual(b'1', self.data(watcher))
        self.assertEqual(fd, watcher.fileno())

    def test_what_was_read_is_still_to_be_acknowledged(self) -> None:
        process = self.process()
        process.write(b'1')
        watcher = self.watch()
        self.assertEqual(b'1', self.data(watcher))
        self.daemon.die()
        self.assertFalse(watcher.ready)
        self.assertEqual(0, process.begin)
        self.change(lambda: process.write(b'2'))
        self.assertEqual(b'2', self.data(watcher))
        watcher.acknowledge()
        watcher.close()
        self.assertEqual(2, process.begin)

    def test_acknowledgements_that_were_lost(self) -> None:
        process = self.process()
        process.write(b'1')
        process.exit()
        watcher = self.watch()
        watcher.read()
        self.daemon.die()
        watcher.acknowledge()
        self.assertFalse(watcher)
        self.assertEqual({}, self.daemon.processes)

    def test_the_acknowledgement_of_an_end_of_several(self) -> None:
        one, two = self.process('a'), self.process('b')
        one.exit()
        watcher = self.watch('a', 'b')
        watcher.read()
        self.daemon.die()
        watcher.acknowledge()  # into the void
        self.change(two.exit)
        output = watcher.read()
        assert output is not None
        self.assertEqual(['b'], [each.name for each in output[2]])
        watcher.acknowledge()
        self.assertFalse(watcher)
        self.assertEqual({}, self.daemon.processes)

    def test_a_process_that_is_gone(self) -> None:
        self.process('a')
        two = self.process('b')
        watcher = self.watch('a', 'b')
        del self.daemon.processes['a']
        self.daemon.die()
        with self.assertLogs('gocept.runner.kernel') as logs:
            self.assertFalse(watcher.ready)
        self.assertIn('does not know a any more', logs.output[0])
        self.change(two.exit)
        watcher.read()
        watcher.acknowledge()
        self.assertFalse(watcher)

    def test_all_are_gone(self) -> None:
        self.process()
        watcher = self.watch()
        self.process()  # another life
        self.daemon.die()
        with self.assertLogs('gocept.runner.kernel'):
            self.assertEqual(([], [], []), watcher.read())
        self.assertFalse(watcher)
        self.assertIsNone(watcher.read())

    def test_the_kernel_is_gone(self) -> None:
        self.process()
        watcher = self.watch()
        self.daemon.close()
        with self.assertRaisesRegex(KernelError, 'no kernel listens'):
            watcher.read()
        self.assertFalse(watcher)

    def test_close_where_the_kernel_is_gone(self) -> None:
        self.process().write(b'1')
        watcher = self.watch()
        watcher.read()
        self.daemon.close()
        with self.assertLogs('gocept.runner.kernel') as logs:
            watcher.close()
        self.assertIn('may come again', logs.output[0])

    def test_missing_is_exact(self) -> None:
        # What was read and not acknowledged may be dropped meanwhile.
        process = self.process()
        for _ in range(4):
            process.write(b'12')
        watcher = self.watch()
        self.assertEqual(8, len(self.data(watcher)))
        self.daemon.die()
        self.change(lambda: (process.write(b'34'), process.write(b'56'),
                             process.pieces.__delitem__(slice(0, 5))))
        self.assertEqual(b'56', self.data(watcher))
        self.assertEqual({'p': 2}, watcher.missing)

    def test_who_has_received_nothing_misses_nothing(self) -> None:
        process = self.process()
        process.write(b'123')
        process.acknowledge(3)
        watcher = self.watch(after={'p': (process.life, 0, False)})
        self.daemon.die()
        self.change(lambda: process.write(b'4'))
        self.assertEqual(b'4', self.data(watcher))
        self.assertEqual({}, watcher.missing)
        self.assertEqual((process.life, 4, False), watcher.position['p'])

    def test_only_what_was_read_is_dropped(self) -> None:
        process = self.process()
        process.write(b'12')
        watcher = self.watch()
        self.data(watcher)
        self.daemon.die()
        self.change(lambda: (process.write(b'34'),
                             process.pieces.__delitem__(slice(0, 1))))
        self.assertEqual(b'34', self.data(watcher))
        self.assertEqual({}, watcher.missing)

    def test_make_and_watch_is_asked_again(self) -> None:
        self.daemon.deaths = ['make-process']
        watcher = self.kernel.make_process(
            'p', 'true', watch_immediately=True)
        assert isinstance(watcher, Watcher)
        self.assertEqual(
            ['make-process', 'make-process', 'watch'],
            [each.op for each in self.daemon.requests])
        self.assertEqual(1, len({
            each.id for each in self.daemon.requests[:2]}))
        self.change(self.daemon.processes['p'].exit)
        with watcher:
            watcher.read()

    def test_an_interrupted_read(self) -> None:
        process = self.process()
        process.write(b'1')
        watcher = self.watch()
        self.assertEqual(b'1', self.data(watcher))

        def interrupt(*_: object) -> None:
            raise ValueError('of a handler')
        previous = signal.signal(signal.SIGUSR1, interrupt)
        self.addCleanup(signal.signal, signal.SIGUSR1, previous)
        begun = threading.Event()
        batch = watcher._transport.batch  # type: ignore[attr-defined]

        def wait() -> Any:
            begun.set()
            return batch()

        def send() -> None:
            begun.wait(DEADLINE)
            signal.pthread_kill(
                threading.main_thread().ident or 0, signal.SIGUSR1)
        thread = threading.Thread(target=send)
        with (Alarms(), mock.patch.object(watcher._transport, 'batch', wait),
              self.assertRaisesRegex(ValueError, 'handler')):
            thread.start()
            watcher.read()
        thread.join()
        self.change(lambda: process.write(b'2'))
        self.assertEqual(b'2', self.data(watcher))

    def test_an_interruption_in_the_middle_of_a_batch(self) -> None:
        process = self.process()
        process.write(b'1')
        watcher = self.watch()
        self.wait(watcher)
        with mock.patch('gocept.runner.kernel.client.frame_transport.decode',
                        side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                watcher.read()
        self.assertEqual(b'1', self.data(watcher))

    def test_an_interruption_with_more_in_the_socket(self) -> None:
        written = b''.join(b'%d\n' % number for number in range(10000))
        self.process().write(written)
        watcher = self.watch()
        self.wait(watcher)
        line: Any = watcher._transport
        receive = line._recv_into
        sizes = [100]

        def interrupted(view: memoryview, *rest: int) -> int:
            if not sizes:
                raise KeyboardInterrupt
            return int(receive(view[:sizes.pop()], *rest))
        with mock.patch.object(line, '_recv_into', interrupted):
            with self.assertRaises(KeyboardInterrupt):
                watcher.read()
        read = b''
        while len(read) < len(written):
            read += self.data(watcher)
        self.assertEqual(written, read)

    def test_an_interruption_before_the_output_is_returned(self) -> None:
        process = self.process()
        process.write(b'1')
        watcher = self.watch()
        self.wait(watcher)
        with mock.patch('gocept.runner.kernel.client.watcher.Reading',
                        side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                watcher.read()
        self.change(lambda: process.write(b'2'))
        read = b''
        while len(read) < 2:
            read += self.data(watcher)
        self.assertEqual(b'12', read)

    def test_an_interruption_anywhere(self) -> None:
        allow_forgotten(self)
        first, last = self.process(), self.process('q')
        watcher = self.watch('p', 'q')
        expected = seen = b''
        for number in itertools.count():
            data = b'%d,' % number
            expected += data
            self.change(lambda data=data: first.write(data))
            with Interruption(number) as interruption:
                seen += self.data(watcher)
            if not interruption.done:
                break
            seen += self.data(watcher)
            self.assertEqual(expected, seen)
        self.assertGreater(number, 40)
        self.change(first.exit)
        self.change(last.exit)
        while watcher:
            seen += self.data(watcher)
        self.assertEqual(expected, seen)

    def test_an_interrupted_request(self) -> None:
        for number in itertools.count():
            with Interruption(number) as interruption:
                self.kernel.set('a', str(number))
            self.kernel.set('b', str(number))
            self.assertEqual(str(number), self.kernel.get('b'))
            if not interruption.done:
                break
        self.assertGreater(number, 5)

    def test_an_interrupted_begin_of_a_watch(self) -> None:
        allow_forgotten(self)
        self.process().write(b'1')
        for number in itertools.count():
            watcher = None
            with Interruption(number) as interruption:
                watcher = self.kernel.watch_processes('p')
            if watcher is not None:
                watcher.close(acknowledge=False)
            with self.kernel.watch_processes('p') as watcher:
                self.assertEqual(b'1', self.data(watcher))
                watcher.close(acknowledge=False)
            if not interruption.done:
                break
        self.assertGreater(number, 5)


class ThreadTests(WatcherCase):

    def test_a_second_thread_is_told(self) -> None:
        process = self.process()
        watcher = self.watch()
        results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        begun = threading.Event()
        batch = watcher._transport.batch  # type: ignore[attr-defined]

        def wait() -> Any:
            begun.set()
            return batch()
        with mock.patch.object(watcher._transport, 'batch', wait):
            thread = threading.Thread(
                target=lambda: results.put(self.data(watcher)))
            thread.start()
            self.assertTrue(begun.wait(DEADLINE))
            for call in (watcher.read, watcher.acknowledge, watcher.close,
                         watcher.receive, lambda: watcher.ready):
                with self.assertRaisesRegex(
                        WatcherInUse, '<Watcher of p> is in use, by another '
                        'thread .*: give each thread a watcher'):
                    call()
            self.change(lambda: process.write(b'1'))
            thread.join()
        self.assertEqual(b'1', results.get(timeout=DEADLINE))
        watcher.acknowledge()
        self.change(lambda: process.write(b'2'))
        self.assertEqual(b'2', self.data(watcher))


class PositionTests(WatcherCase):

    def test_position(self) -> None:
        process = self.process()
        watcher = self.watch()
        self.assertEqual({'p': (process.life, 0, False)}, watcher.position)
        self.change(lambda: process.write(b'123'))
        self.data(watcher)
        self.assertEqual({'p': (process.life, 3, False)}, watcher.position)
        self.change(process.exit)
        watcher.read()
        self.assertEqual({'p': (process.life, 3, True)}, watcher.position)

    def test_after(self) -> None:
        process = self.process()
        process.write(b'123')
        process.write(b'456')
        position = json.loads(json.dumps({'p': (process.life, 4, False)}))
        watcher = self.watch(after=position)
        self.assertEqual(b'56', self.data(watcher))
        self.assertEqual(4, process.begin)
        self.assertEqual({'p': (process.life, 6, False)}, watcher.position)

    def test_a_pair_will_do(self) -> None:
        process = self.process()
        process.write(b'123')
        self.assertEqual(b'3', self.data(self.watch(
            after={'p': (process.life, 2), 'other': ('x', 5)})))

    def test_another_life(self) -> None:
        process = self.process()
        process.write(b'123')
        watcher = self.watch(after={'p': ('another', 2, True)})
        self.assertEqual(b'123', self.data(watcher))
        self.assertEqual({'p': (process.life, 3, False)}, watcher.position)

    def test_after_the_end(self) -> None:
        process = self.process()
        process.write(b'123')
        process.exit()
        watcher = self.watch(after={'p': (process.life, 3, True)})
        self.assertFalse(watcher)
        self.assertIsNone(watcher.read())
        self.assertEqual({}, self.daemon.processes)

    def test_follow_after(self) -> None:
        process = self.process()
        process.write(b'123')
        watcher = self.kernel.follow_processes(
            'p', after={'p': (process.life, 2, False)})
        self.addCleanup(watcher.close)
        self.assertEqual(b'3', self.data(watcher))
        self.assertEqual(0, process.begin)


class PollerTests(WatcherCase):

    def setUp(self) -> None:
        super().setUp()
        self.poller = Poller()
        self.addCleanup(self.poller.close)

    def test_items_and_the_end(self) -> None:
        process = self.process()
        watcher = self.watch()
        self.poller.register(watcher)
        self.assertEqual([], self.poller.poll(0))
        self.change(lambda: process.write(b'1'))
        [(item, source)] = self.poller.poll(DEADLINE)
        self.assertIs(watcher, source)
        self.assertEqual(b'1', item[0][0].data)
        self.change(process.exit)
        [(item, _)] = self.poller.poll(DEADLINE)
        self.assertEqual(0, item[2][0].data)
        self.assertEqual(1, self.daemon.call(lambda: process.begin))
        self.assertEqual([], self.poller.poll(0))
        watcher.acknowledge()
        self.assertFalse(watcher)
        self.assertEqual([], self.poller.poll(0))

    def test_pause(self) -> None:
        process = self.process()
        watcher = self.watch()
        self.poller.register(watcher)
        self.change(lambda: process.write(b'1'))
        self.assertTrue(self.poller.pause(DEADLINE))
        self.assertFalse(self.poller.pause(0))
        self.data(watcher)
        self.change(lambda: process.write(b'2'))
        self.assertTrue(self.poller.pause(DEADLINE))

    def test_a_successor(self) -> None:
        process = self.process()
        watcher = self.watch()
        self.poller.register(watcher)
        for number in range(5):
            self.daemon.die()
            data = b'%d' % number
            self.change(lambda data=data: process.write(data))
            found = []
            while not found:
                found = self.poller.poll(DEADLINE)
            self.assertEqual(data, found[0][0][0][0].data)

    def test_a_watcher_that_is_closed(self) -> None:
        self.process()
        watcher = self.watch()
        self.poller.register(watcher)
        watcher.close()
        self.assertEqual([], self.poller.poll(0))
        self.assertIsNone(self.kernel.get('a'))
        self.assertEqual([], self.poller.poll(0))
