"""Who writes the state of a worker, and when."""

import contextlib
import itertools
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import zope.component
import zope.event
import zope.testing.cleanup
from ZODB.POSException import ConflictError

from gocept.runner import errors, events
from gocept.runner.boot.counts import Counts
from gocept.runner.interfaces import IRunner
from gocept.runner.operation import health, recorder, state
from gocept.runner.operation.recorder import Recorder
from gocept.runner.operation.statefile import StateFile
from gocept.runner.tests.support import DEADLINE
from gocept.runner.tests.victims import until
from gocept.runner.waits.instants import Instant


class FakeLoop:
    """What a recorder needs of a loop."""

    def __init__(self) -> None:
        self.tick = self.timed_out = 0
        self.tick_started: float | None = None
        self.next_tick: Instant | None = None
        self.tick_timeout: float | None = None
        self.deadline: float | None = None
        self.schedule = None
        self.counts = Counts()

    def begin_tick(self) -> None:
        self.tick += 1
        self.next_tick, self.tick_started = None, time.monotonic()
        self.send(events.TickStarted)

    def end_tick(self, kind: Any = events.TickCommitted, *args: object,
                 pause: float = 3600) -> None:
        self.send(kind, *args)
        self.tick_started = None
        self.next_tick = Instant('monotonic', time.monotonic() + pause)
        self.send(events.PauseStarted)

    def send(self, kind: Any, *args: object) -> None:
        zope.event.notify(kind(self, *args))


class FakeChild:
    """What events tell of."""

    def __init__(self, name: str, pid: int) -> None:
        self.name, self.pid = name, pid
        self.returncode: int | None = 3


class RecorderTests(unittest.TestCase):

    def setUp(self) -> None:
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)
        self.enterContext(mock.patch.object(recorder, 'INTERVAL', 0.01))
        self.enterContext(mock.patch.dict(
            os.environ, {'XDG_STATE_HOME': str(self.dir / 'home')}))
        self.path = self.dir / 'x.json'
        self.loop = FakeLoop()
        self.writes: list[float] = []
        self.statuses: list[BaseException | None] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[Recorder]:
        """Record the loop, and note when something is written."""
        file = StateFile(str(self.path), 'nightly', 'shop')
        write = file.write

        def note(found: Any) -> bool:
            self.writes.append(time.monotonic())
            return write(found)

        def status(error: BaseException | None) -> int:
            self.statuses.append(error)
            return 7
        file.write = note  # type: ignore[method-assign]
        made = Recorder(self.loop, 'nightly', 'shop',  # type: ignore[arg-type]
                        file)
        with made.running(status):
            yield made

    def read(self) -> Any:
        """The state; {} before the first."""
        try:
            return state.read(str(self.path))
        except state.Missing:
            return {}

    def until(self, condition: Callable[[Any], object]) -> Any:
        """Wait for such a state."""
        def found() -> Any:
            one = self.read()
            return one if one and condition(one) else None
        return until(found)

    def test_who_it_is(self) -> None:
        with self.running():
            found = self.until(lambda found: True)
        self.assertEqual(('nightly', 'shop', os.getpid(), 'starting', 0), (
            found['worker'], found['site'], found['pid'], found['phase'],
            found['tick']))
        self.assertLess(0, found['memory'])

    def test_times_without_an_end(self) -> None:
        self.loop.tick_timeout = float('inf')
        with self.running():
            self.loop.begin_tick()
            self.until(lambda found: found['phase'] == 'tick')
            self.loop.end_tick(pause=float('inf'))
            found = self.until(lambda found: found['phase'] == 'pause')
        self.assertEqual((state.LARGEST, state.LARGEST), (
            found['next_tick']['at'], found['tick_timeout']))

    def test_a_tick_and_a_pause(self) -> None:
        with self.running():
            self.loop.begin_tick()
            found = self.until(lambda found: found['phase'] == 'tick')
            self.assertEqual((1, self.loop.tick_started, None), (
                found['tick'], found['since']['monotonic'],
                found['deadline']))
            self.loop.end_tick()
            found = self.until(lambda found: found['phase'] == 'pause')
        assert self.loop.next_tick is not None
        self.assertEqual(('monotonic', self.loop.next_tick.at), (
            found['next_tick']['clock'], found['next_tick']['at']))
        self.assertEqual(('committed', 1), (
            found['last_tick']['outcome'], found['last_tick']['number']))
        self.assertLess(0, found['last_tick']['duration'])
        self.assertEqual((1, 1), (
            found['counts']['ticks'], found['counts']['commits']))
        self.assertIsNotNone(found['last_success'])

    def test_a_time_of_the_schedule(self) -> None:
        with self.running():
            self.loop.next_tick = Instant('realtime', 5e9)
            self.loop.send(events.PauseStarted)
            found = self.until(lambda found: found['phase'] == 'pause')
        self.assertEqual({'clock': 'realtime', 'at': 5e9, 'realtime': 5e9},
                         found['next_tick'])

    def test_errors(self) -> None:
        with self.running():
            for error in ValueError('x' * 10000), ConflictError():
                self.loop.begin_tick()
                self.loop.send(events.ConflictRetried, ConflictError(), 1)
                self.loop.end_tick(events.TickAborted, error)
            found = self.until(lambda found: found['failures'] == 2)
            self.assertEqual(('aborted', None), (
                found['last_tick']['outcome'], found['last_success']))
            self.loop.begin_tick()
            self.loop.end_tick(events.TickUncertain, ValueError('why'))
            found = self.until(lambda found: found['failures'] == 3)
            self.assertEqual((3, 'ValueError: why'), (
                found['last_error']['tick'], found['last_error']['error']))
            self.loop.begin_tick()
            self.loop.end_tick()
            found = self.until(lambda found: not found['failures'])
        self.assertEqual(
            {'ticks': 4, 'commits': 1, 'aborts': 2, 'uncertain': 1,
             'elsewhere': 0, 'retries': 2, 'conflicts': 3, 'timed_out': 0,
             'items_done': 0, 'items_failed': 0, 'items_skipped': 0,
             'items_uncertain': 0, 'child_starts': 0, 'child_restarts': 0},
            found['counts'])
        self.assertEqual(found['counts'], found['total']['counts'])
        self.assertEqual(4, sum(found['total']['durations']))
        self.assertLess(0, found['total']['seconds'])
        self.assertEqual((4, 3), tuple(
            sum(minute[key] for minute in found['hour'])
            for key in ('ticks', 'failed')))
        self.assertEqual('ValueError: why', found['last_error']['error'])

    def test_an_error_is_cut(self) -> None:
        with self.running():
            self.loop.begin_tick()
            self.loop.end_tick(events.TickAborted, ValueError('x' * 10000))
            found = self.until(lambda found: found['last_error'])
        self.assertEqual(500, len(found['last_error']['error']))

    def test_a_traceback(self) -> None:
        for depth, beginning in (0, 'Traceback (most'), (50, '...\n'):
            error: Exception = ValueError('x' * 50)
            for _ in range(depth):  # a chain, which is long
                cause, error = error, KeyError('y' * 100)
                error.__cause__ = cause
            with self.subTest(depth), self.running():
                self.loop.begin_tick()
                try:
                    raise error
                except Exception as raised:
                    self.loop.end_tick(events.TickAborted, raised)
            text = self.read()['last_error']['traceback']
            self.assertTrue(text.startswith(beginning), text)
            self.assertRegex(text, r'(?s)test_recorder.py", line .*'
                                   r'(ValueError: x+|KeyError: .y+.)\n$')
            self.assertLessEqual(len(text), 6100)

    def test_a_run_that_was_done_elsewhere_is_no_error(self) -> None:
        with self.running():
            self.loop.begin_tick()
            self.loop.end_tick(events.TickAborted, errors.AlreadyRun('x'))
            found = self.until(lambda found: found['last_tick'])
        self.assertEqual(('elsewhere', 1, 0, 0, 0, None), (
            found['last_tick']['outcome'], found['counts']['elsewhere'],
            found['failures'], found['counts']['aborts'],
            found['hour'][0]['failed'], found['last_error']))
        self.assertIsNotNone(found['last_success'])

    def test_the_events_of_another_loop(self) -> None:
        with self.running() as made:
            FakeLoop().begin_tick()
            self.assertEqual(0, made._counts['ticks'])

    def test_items_are_counted_during_a_tick(self) -> None:
        with self.running():
            self.loop.begin_tick()
            self.until(lambda found: found['phase'] == 'tick')
            self.loop.counts.done = 5
            self.until(lambda found: found['counts']['items_done'] == 5)

    def test_a_total_does_not_get_less(self) -> None:
        with self.running():
            self.loop.begin_tick()
            self.loop.counts.failed = 5
            found = self.until(lambda found: found['counts']['items_failed'])
            self.assertEqual(0, found['total']['counts']['items_failed'])
            self.loop.counts.failed = 2  # the tick is repeated
            self.loop.end_tick()
            found = self.until(lambda found: found['last_tick'])
            self.assertEqual(2, found['total']['counts']['items_failed'])
            self.loop.begin_tick()
            self.loop.counts.failed = 3
        self.assertEqual(3, self.read()['total']['counts']['items_failed'])

    def test_programs_before(self) -> None:
        for number in 1, 2, 3:
            self.loop = FakeLoop()
            with self.running():
                self.loop.begin_tick()
                self.loop.end_tick()
            found = self.read()
            self.assertEqual((1, number, number, number), (
                found['counts']['commits'],
                found['total']['counts']['commits'],
                sum(found['total']['durations']),
                sum(minute['ticks'] for minute in found['hour'])))

    def test_another_worker_before(self) -> None:
        for changes in {'worker': 'other'}, {'site': 'other'}:
            with self.subTest(changes):
                self.path.unlink(missing_ok=True)
                self.loop = FakeLoop()
                with self.running():
                    self.loop.begin_tick()
                    self.loop.end_tick()
                state.write(str(self.path), {**self.read(), **changes})
                with self.running():
                    pass
                self.assertEqual(
                    0, self.read()['total']['counts']['commits'])

    def test_the_deadline_of_an_item(self) -> None:
        self.loop.tick_timeout = 60
        with self.running():
            self.loop.deadline = time.monotonic() + 60
            self.loop.begin_tick()
            self.until(lambda found: found['deadline'] == self.loop.deadline)
            self.loop.deadline += 1
            self.until(lambda found: found['deadline'] == self.loop.deadline)

    def test_a_tick_whose_deadline_comes_in_a_moment(self) -> None:
        self.loop.tick_timeout = 60
        with self.running():
            self.loop.begin_tick()
            found = self.until(lambda found: found['phase'] == 'tick')
        # Their difference may be rounded, depending on the uptime.
        self.assertEqual(found['written']['monotonic'] + 60, found['deadline'])

    def test_children(self) -> None:
        web, old = FakeChild('web', 5), FakeChild('old', 6)
        with self.running():
            for event in (events.ChildStarted(web), events.ChildReady(web),
                          events.ChildStarted(old), events.ChildEnded(old)):
                zope.event.notify(event)
            found = self.until(lambda found: len(found['children']) == 2 and (
                found['children'][1]['state'] == 'ended 3'))
            self.assertEqual(
                [{'name': 'web', 'pid': 5, 'state': 'ready'},
                 {'name': 'old', 'pid': 6, 'state': 'ended 3'}],
                found['children'])
            zope.event.notify(events.ChildStarted(FakeChild('old', 7)))
            found = self.until(lambda found: (
                found['children'][-1]['state'] == 'running'))
        self.assertEqual([5, 7], [each['pid'] for each in found['children']])
        self.assertEqual((3, 1), (found['counts']['child_starts'],
                                  found['counts']['child_restarts']))

    def test_children_without_end(self) -> None:
        with self.running() as made:
            made.hear(events.ChildStarted(FakeChild('web', 5)))
            for pid in range(1000, 1300):
                job = FakeChild(f'job {pid}', pid)
                made.hear(events.ChildStarted(job))
                made.hear(events.ChildEnded(job))
            found = self.until(lambda found: found['children'] and (
                found['children'][-1]['state'] == 'ended 3'
                and found['children'][-1]['pid'] == 1299))
        self.assertEqual([5, *range(1201, 1300)],
                         [each['pid'] for each in found['children']])

    def test_children_that_end_at_the_same_time(self) -> None:
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(1e-6)
        children = [FakeChild(f'child {pid}', pid) for pid in range(80)]

        def end(some: list[FakeChild]) -> None:
            for child in some:
                made.hear(events.ChildEnded(child))
        with self.running() as made:
            for child in children:
                made.hear(events.ChildStarted(child))
            threads = [threading.Thread(target=end, args=(children[each::4],))
                       for each in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.until(lambda found: len(found['children']) == 80 and all(
                each['state'] == 'ended 3' for each in found['children']))

    def test_children_that_were_there_before(self) -> None:
        class Runner:
            def aliases(self) -> list[str]:
                return ['web', 'old', 'gone', 'none']

            def get_process(self, alias: str) -> Any:
                if alias == 'none':
                    raise KeyError(alias)
                return processes.get(alias)
        web, old = FakeChild('web', 5), FakeChild('old', 6)
        web.returncode = None
        processes = {'web': web, 'old': old}
        zope.component.provideUtility(Runner(), IRunner)
        self.addCleanup(zope.testing.cleanup.cleanUp)
        with self.running():
            found = self.until(lambda found: found['children'])
        self.assertEqual([{'name': 'web', 'pid': 5, 'state': 'running'}],
                         [each for each in found['children']
                          if each['pid'] == 5])

    def test_no_write_while_nothing_changes(self) -> None:
        with self.running() as made:
            self.loop.begin_tick()
            self.loop.end_tick()
            self.until(lambda found: found['phase'] == 'pause')
            count = len(self.writes)
            for _ in range(5):
                made._call()
                until(lambda: not made._is_called)
            self.assertEqual(count, len(self.writes))

    def test_a_tick_that_is_overdue_is_noted_once(self) -> None:
        self.enterContext(mock.patch.object(recorder, 'NOTICED', 0.02))
        with self.running() as made:
            self.loop.begin_tick()
            self.loop.end_tick(pause=0.01)
            due = self.loop.next_tick
            assert due is not None
            self.until(lambda found: found['phase'] == 'pause' and (
                found['written']['monotonic'] > due.at + 0.02))
            count = len(self.writes)
            for _ in range(5):
                made._call()
                until(lambda: not made._is_called)
            self.assertEqual(count, len(self.writes))

    def test_a_start_that_takes_long_is_noted_if_ticks_have_a_limit(self):
        self.loop.tick_timeout = 0.01
        with self.running():
            first = self.until(lambda found: True)
            self.until(lambda found: found['written'] != first['written'])

    def test_between_two_writes_there_is_a_pause(self) -> None:
        self.enterContext(mock.patch.object(recorder, 'INTERVAL', 0.2))
        with self.running():
            while len(self.writes) < 4:
                self.loop.begin_tick()
                self.loop.end_tick()
        gaps = [later - earlier for earlier, later in itertools.pairwise(
            self.writes[:-1])]  # without the last one, at the end
        self.assertLessEqual(0.2, min(gaps))

    def test_the_end(self) -> None:
        with self.running():
            self.loop.begin_tick()
            self.loop.end_tick()
        found = self.read()
        self.assertEqual(('ended', 7, 1), (
            found['phase'], found['status'], found['counts']['commits']))
        self.assertEqual([None], self.statuses)
        self.assertEqual([], [
            each for each in zope.event.subscribers
            if getattr(each, '__self__', None).__class__ is Recorder])

    def test_an_error_ends_it(self) -> None:
        error = ValueError()
        with self.assertRaises(ValueError), self.running():
            raise error
        self.assertEqual(('ended', 7), (
            self.read()['phase'], self.read()['status']))
        self.assertEqual([error], self.statuses)

    def test_a_disk_that_hangs(self) -> None:
        self.enterContext(mock.patch.object(recorder, '_PATIENCE', 0.05))
        hanging = threading.Event()
        begun = threading.Event()

        def hang(path: str, found: object) -> None:
            begun.set()
            hanging.wait(DEADLINE)
        with mock.patch.object(state, 'write', hang):
            with self.assertLogs('gocept.runner.operation', 'WARNING') as log:
                with self.running() as made:
                    self.assertTrue(begun.wait(DEADLINE))
                    for _ in range(1000):  # nobody waits
                        self.loop.begin_tick()
                        self.loop.end_tick()
            hanging.set()
            self.assertTrue(made._done.wait(DEADLINE))
        self.assertIn('does the disk hang?', log.output[0])

    def test_a_full_disk(self) -> None:
        really, full = state.write, [True]

        def write(path: str, found: Any) -> None:
            if full[0]:
                raise OSError(28, 'No space left on device')
            really(path, found)
        self.enterContext(mock.patch.object(state, 'write', write))
        with self.assertLogs('gocept.runner.operation', 'INFO') as log:
            with self.running():
                until(lambda: len(self.writes) > 5)
                self.assertEqual(1, len(log.output))
                full[0] = False
                self.until(lambda found: found)
        self.assertEqual(2, len(log.output))
        self.assertIn('No space left on device; the worker goes on',
                      log.output[0])
        self.assertIn('is written again', log.output[1])

    def test_no_thread_can_be_started(self) -> None:
        with (self.assertLogs('gocept.runner.operation', 'WARNING') as log,
              mock.patch('threading.Thread.start',
                         side_effect=RuntimeError('too many'))):
            with self.running():
                self.loop.begin_tick()
        self.assertIn('no thread can be started: too many', log.output[0])
        self.assertEqual({}, self.read())

    def test_a_mistake_of_ours(self) -> None:
        with (self.assertLogs('gocept.runner.operation', 'ERROR') as log,
              mock.patch.object(Recorder, '_state', side_effect=KeyError)):
            with self.running():
                self.loop.begin_tick()
        self.assertEqual(1, len(log.output))

    def test_a_fork_has_none(self) -> None:
        with self.running():
            self.until(lambda found: found)
            pid = os.fork()
            if not pid:
                try:
                    self.loop.begin_tick()
                    self.loop.end_tick()
                finally:
                    os._exit(len([
                        each for each in threading.enumerate()
                        if each.name == 'gocept.runner.state']))
            self.assertEqual(0, os.waitpid(pid, 0)[1])
            self.assertEqual(0, self.read()['counts']['ticks'])
        self.assertEqual(os.getpid(), self.read()['pid'])

    def test_the_limits_agree(self) -> None:
        # The note that a tick is overdue is there before somebody is ill.
        self.assertLess(health.NOTICED + 1, health.ALLOWANCE)
        self.assertLess(1, health.SETTLED)
