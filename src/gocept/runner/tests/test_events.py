"""What is told of loops and children, and what subscribers can do."""

import logging
import os
import signal
import subprocess
import threading
import time
import types
import unittest
import warnings
from unittest import mock

import transaction
import zope.component
import zope.component.event
import zope.component.hooks
import zope.event
import zope.interface
import zope.interface.verify
from ZODB.POSException import ConflictError
from zope.authentication.interfaces import PrincipalLookupError

from gocept.runner import Exit, interfaces
from gocept.runner.boot.dryrun import dry_run
from gocept.runner.events import (
    ChildEnded,
    ChildReady,
    ChildStarted,
    ConflictRetried,
    LoopStarted,
    LoopStopped,
    PauseStarted,
    Queue,
    TickAborted,
    TickCommitted,
    TickStarted,
    TickTimedOut,
    TickUncertain,
    hearing,
    hearing_of_ticks,
    notify,
)
from gocept.runner.executor import (
    Executor,
    OutputExecutor,
    ProcessExitedWithError,
    SimpleExecutor,
    exits_zero,
    start_all,
    stop_all,
)
from gocept.runner.executor.checked import ConditionExecutor
from gocept.runner.poller import Poller
from gocept.runner.tests.executors import ExecutorTestCase
from gocept.runner.tests.spawn.test_runner import SpawnTestCase
from gocept.runner.tests.support import (
    DEADLINE,
    SIGNALS,
    Slow,
    TestCase,
    replaced_modules,
)
from gocept.runner.tests.test_mainloop import LoopCase
from gocept.runner.tests.victims import until, victim
from gocept.runner.waits.threads import serving

LOGGER = 'gocept.runner.events'

CONTRACTS = {
    LoopStarted: interfaces.ILoopStarted,
    LoopStopped: interfaces.ILoopStopped,
    TickStarted: interfaces.ITickStarted,
    TickCommitted: interfaces.ITickCommitted,
    TickAborted: interfaces.ITickAborted,
    TickUncertain: interfaces.ITickUncertain,
    ConflictRetried: interfaces.IConflictRetried,
    PauseStarted: interfaces.IPauseStarted,
    TickTimedOut: interfaces.ITickTimedOut,
    ChildStarted: interfaces.IChildStarted,
    ChildReady: interfaces.IChildReady,
    ChildEnded: interfaces.IChildEnded,
}


def subscribing(case, *subscribers):
    """Have these called with each event, as long as the test runs."""
    for subscriber in subscribers:
        zope.event.subscribers.append(subscriber)
        case.addCleanup(zope.event.subscribers.remove, subscriber)


def fail(event):
    """A subscriber of events of ours; there are others, too."""
    if isinstance(event, tuple(CONTRACTS)):
        raise ZeroDivisionError


def ignore(event):
    """A subscriber that does nothing."""


class ContractTests(unittest.TestCase):

    def make(self, kind):
        process = types.SimpleNamespace(name='a name', returncode=3)
        if kind in (TickAborted, TickUncertain, ConflictRetried):
            return kind('loop', KeyError('x'),
                        *[2] * (kind is ConflictRetried))
        if kind is TickTimedOut:
            return kind('loop', 3.5)
        return kind(process if kind in (
            ChildStarted, ChildReady, ChildEnded) else 'loop')

    def test_each_keeps_its_own(self):
        for kind, contract in CONTRACTS.items():
            with self.subTest(kind):
                event = self.make(kind)
                zope.interface.verify.verifyObject(contract, event)
                # What is told to those who subscribe to another one.
                self.assertEqual([contract], [
                    each for each in CONTRACTS.values()
                    if each.providedBy(event)])
                self.assertEqual(
                    (interfaces.IChildEvent.providedBy(event),
                     interfaces.ILoopEvent.providedBy(event)),
                    (kind.__name__.startswith('Child'),
                     not kind.__name__.startswith('Child')))

    def test_what_they_have(self):
        event = self.make(ConflictRetried)
        self.assertEqual(('loop', 2), (event.loop, event.attempt))
        self.assertIsInstance(event.error, KeyError)
        event = self.make(ChildEnded)
        self.assertEqual(('a name', 3), (event.name, event.status))

    def test_they_show_it(self):
        self.assertEqual("<TickStarted: loop='loop'>",
                         repr(self.make(TickStarted)))
        self.assertEqual(
            "<ConflictRetried: loop='loop', error=KeyError('x'), attempt=2>",
            repr(self.make(ConflictRetried)))
        self.assertRegex(repr(self.make(ChildReady)),
                         '^<ChildReady: .*a name.*>$')


class NotifyTests(TestCase):

    def setUp(self):
        super().setUp()
        self.event = TickStarted('loop')
        self.called = []

    def failing(self, event):
        if event is self.event:
            self.called.append('failing')
            raise ZeroDivisionError

    def good(self, event):
        if event is self.event:
            self.called.append('good')

    def notify(self, failures):
        """Tell the event; so many failures are logged."""
        if not failures:
            with self.assertNoLogs(LOGGER):
                notify(self.event)
            return
        with self.assertLogs(LOGGER, 'ERROR') as logs:
            notify(self.event)
        self.assertEqual(failures, len(logs.records))
        for record in logs.records:
            self.assertEqual(f'A subscriber of {self.event!r} failed',
                             record.getMessage())
            self.assertIsNotNone(record.exc_info[0])

    def test_nobody_is_there(self):
        self.notify(0)
        with (mock.patch.object(zope.event, 'subscribers', []),
              replaced_modules({'zope.component.event': None})):
            self.notify(0)

    def test_each_is_called_once(self):
        subscribing(self, self.good)
        zope.component.provideHandler(self.good, [None])
        zope.component.provideHandler(self.good, [interfaces.ITickStarted])
        zope.component.provideHandler(self.good, [TickStarted])
        zope.component.provideHandler(self.good, [interfaces.ILoopEvent])
        zope.component.provideHandler(self.failing, [interfaces.ILoopStarted])
        zope.component.provideHandler(self.failing, [interfaces.IChildEvent])
        self.notify(0)
        self.assertEqual(['good'] * 5, self.called)

    def test_one_that_fails_is_logged_and_the_others_are_called(self):
        subscribing(self, self.failing, self.good)
        self.notify(1)
        self.assertEqual(['failing', 'good'], self.called)

    def test_so_it_is_with_those_of_the_component_architecture(self):
        zope.component.provideHandler(self.failing, [None])
        zope.component.provideHandler(self.good, [interfaces.ILoopEvent])
        zope.component.provideHandler(self.failing, [interfaces.ITickStarted])
        subscribing(self, self.good)
        self.notify(2)
        self.assertEqual(['failing'] * 2 + ['good'] * 2, sorted(self.called))

    def test_those_of_a_site_that_cannot_be_loaded(self):
        broken = mock.Mock()
        broken.adapters.subscriptions.side_effect = ConflictError()
        subscribing(self, self.good)
        with mock.patch('zope.component.getSiteManager',
                        return_value=broken):
            self.notify(1)
        self.assertEqual(['good'], self.called)

    def test_what_ends_the_process_is_not_held_up(self):
        def leave(event):
            raise SystemExit(3)
        subscribing(self, leave)
        self.assertRaises(SystemExit, notify, self.event)


class BlockTests(TestCase):

    def test_in_the_block_only(self):
        heard = []
        with hearing(heard.append):
            notify(1)
        notify(2)
        self.assertEqual([1], heard)

    def test_where_code_has_removed_all_subscribers(self):
        before = list(zope.event.subscribers)
        self.addCleanup(zope.event.subscribers.extend, before)
        with hearing(lambda event: None):
            zope.event.subscribers.clear()
        self.assertEqual([], zope.event.subscribers)


class QueueTests(unittest.TestCase):

    def setUp(self):
        self.queue = Queue()
        self.told = []

    def test_in_the_order_in_which_they_were_put(self):
        for number in range(3):
            self.queue.put(self.told.append, number)
        self.assertEqual([], self.told)
        self.queue.tell()
        self.queue.tell()
        self.assertEqual([0, 1, 2], self.told)

    def test_what_a_call_puts_comes_later(self):
        def call():
            self.queue.put(self.told.append, 'later')
            self.queue.tell()
            self.told.append('now')
        self.queue.put(call)
        self.queue.tell()
        self.assertEqual(['now', 'later'], self.told)

    def test_what_another_thread_puts_comes_later(self):
        def call():
            self.queue.put(self.told.append, 'later')
            thread = threading.Thread(target=self.queue.tell)
            thread.start()
            thread.join(DEADLINE)  # it does not wait
            self.told.append('now')
        self.queue.put(call)
        self.queue.tell()
        self.assertEqual(['now', 'later'], self.told)

    def test_a_call_that_fails_keeps_nothing_from_the_others(self):
        self.queue.put(lambda: 1 / 0)
        self.queue.put(self.told.append, 'told')
        self.assertRaises(ZeroDivisionError, self.queue.tell)
        self.assertEqual(['told'], self.told)

    def test_in_the_background_thread_a_failure_is_logged(self):
        self.queue.put(lambda: 1 / 0)
        self.queue.put(self.told.append, 'told')
        with serving(lambda: True), self.assertLogs(LOGGER, 'ERROR') as logs:
            self.queue.tell()
        self.assertEqual(['told'], self.told)
        self.assertIn('ZeroDivisionError', logs.output[0])


class SettleTests(unittest.TestCase):

    def setUp(self):
        self.queue = Queue()
        self.told = []

    def tell_slowly(self, slow):
        """Have another thread make calls that others can wait for."""
        self.queue.put(slow)
        self.queue.put(self.told.append, 'slow')
        thread = threading.Thread(target=self.queue.tell)
        thread.start()
        self.addCleanup(thread.join, DEADLINE)
        self.addCleanup(slow.go_on)
        slow.wait_entered()

    def test_nothing_was_put(self):
        self.assertTrue(self.queue.settle())

    def test_what_nobody_tells_is_told(self):
        self.queue.put(self.told.append, 'told')
        self.assertTrue(self.queue.settle())
        self.assertEqual(['told'], self.told)

    def test_another_thread_tells(self):
        self.tell_slowly(Slow(self))
        self.queue.put(self.told.append, 'more')
        self.assertTrue(self.queue.settle(DEADLINE))
        self.assertEqual(['slow', 'more'], self.told)

    def test_another_thread_is_in_its_last_call(self):
        slow = Slow(self)

        def call():
            slow()
            self.told.append('slow')
        self.queue.put(call)
        thread = threading.Thread(target=self.queue.tell)
        thread.start()
        self.addCleanup(thread.join, DEADLINE)
        slow.wait_entered()
        self.assertTrue(self.queue.settle(DEADLINE))
        self.assertEqual(['slow'], self.told)

    def test_the_other_thread_needs_a_lock_of_this_one(self):
        lock = threading.Lock()

        def call():
            with lock:
                self.told.append('told')
        self.queue.put(call)
        with lock:
            thread = threading.Thread(target=self.queue.tell)
            thread.start()
            until(lambda: not len(self.queue))
            self.assertFalse(self.queue.settle(0.001))
            self.assertEqual([], self.told)
        thread.join(DEADLINE)
        self.assertEqual(['told'], self.told)

    def test_in_a_call_it_does_not_wait_for_itself(self):
        def call():
            self.queue.put(self.told.append, 'later')
            self.told.append(self.queue.settle(DEADLINE))
        self.queue.put(call)
        self.queue.tell()
        self.assertEqual([True, 'later'], self.told)

    def test_a_signal_handler_raises_meanwhile(self):
        def interrupt(signum, frame):
            raise KeyboardInterrupt

        def is_awaited(lock):
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            return False
        self.addCleanup(signal.signal, signal.SIGALRM,
                        signal.signal(signal.SIGALRM, interrupt))
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, 0)
        slow = Slow(self, is_awaited)
        self.tell_slowly(slow)
        self.queue.put(self.told.append, 'more')
        self.assertRaises(KeyboardInterrupt, self.queue.settle, DEADLINE)
        self.assertEqual([], self.told)
        slow.go_on()
        self.assertTrue(self.queue.settle(DEADLINE))
        self.assertEqual(['slow', 'more'], self.told)

    def test_a_forked_child_waits_for_no_thread_of_its_parent(self):
        self.tell_slowly(Slow(self, lambda lock: False))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            pid = os.fork()
        if not pid:
            try:
                os._exit(self.queue.settle(DEADLINE))
            finally:
                os._exit(3)
        self.assertEqual(1, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


class HearingTests(TestCase):

    def hears(self):
        return hearing_of_ticks(zope.component.getSiteManager())()

    def test_nobody(self):
        self.assertFalse(self.hears())
        zope.component.provideHandler(ignore, [interfaces.ILoopStarted])
        zope.component.provideHandler(ignore, [interfaces.IChildEvent])
        self.assertFalse(self.hears())
        with mock.patch.object(zope.event, 'subscribers', []):
            self.assertFalse(self.hears())

    def test_each_that_may_be_told(self):
        for what in (
                interfaces.ITickStarted, interfaces.ITickCommitted,
                interfaces.ITickAborted, interfaces.IConflictRetried,
                interfaces.ILoopEvent, TickStarted, TickCommitted,
                TickAborted, ConflictRetried, interfaces.IPauseStarted,
                interfaces.ITickTimedOut, zope.interface.Interface, None):
            with self.subTest(what):
                is_heard = hearing_of_ticks(zope.component.getSiteManager())
                zope.component.provideHandler(ignore, [what])
                self.assertTrue(is_heard())
                zope.component.getGlobalSiteManager().unregisterHandler(
                    ignore, [what])
                self.assertFalse(is_heard())

    def test_a_plain_subscriber(self):
        is_heard = hearing_of_ticks(zope.component.getSiteManager())
        subscribing(self, ignore)
        self.assertTrue(is_heard())

    def test_it_cannot_be_known(self):
        broken = mock.Mock()
        broken.adapters.subscriptions.side_effect = ConflictError()
        self.assertTrue(hearing_of_ticks(broken)())


site_events = []


def site_subscriber(event):
    """Of a local site, where it has to be found by its name."""
    site_events.append(event)


class LoopEventsTests(LoopCase):

    def setUp(self):
        super().setUp()
        self.told = []
        subscribing(self, self.hear)

    def hear(self, event):
        if interfaces.ILoopEvent.providedBy(event):
            self.told.append(event)

    def run_loop(self, *results, **options):
        """The loop, when it has ended."""
        loop = self.loop(*results, **options)
        with self.assertLogs('gocept.runner') as self.logs:
            logging.getLogger('gocept.runner').info('There has to be one.')
            loop()
        for event in self.told:
            self.assertIs(loop, event.loop)
        return loop

    def assertTold(self, *expected):
        self.assertEqual(
            [LoopStarted, *expected, LoopStopped], list(map(type, self.told)))

    def test_two_ticks(self):
        self.run_loop(0, Exit)
        self.assertTold(TickStarted, TickCommitted,
                        TickStarted, TickCommitted)

    def test_no_tick(self):
        loop = self.loop()
        loop.stop()
        loop()
        self.assertTold()

    def test_an_error(self):
        error = KeyError('x')
        self.run_loop(error, Exit)
        self.assertTold(TickStarted, TickAborted, TickStarted, TickCommitted)
        self.assertIs(error, self.told[2].error)

    def test_a_value_that_is_none(self):
        self.run_loop('3 seconds')
        self.assertTold(TickStarted, TickAborted, TickStarted, TickCommitted)
        self.assertIsInstance(self.told[2].error, ValueError)

    def test_conflicts(self):
        errors = [ConflictError() for _ in range(5)]
        self.run_loop(*errors, Exit)
        self.assertTold(TickStarted, ConflictRetried, ConflictRetried,
                        TickAborted,
                        TickStarted, ConflictRetried, ConflictRetried,
                        TickCommitted)
        self.assertEqual(
            [(errors[0], 1), (errors[1], 2), (errors[3], 1), (errors[4], 2)],
            [(event.error, event.attempt) for event in self.told
             if isinstance(event, ConflictRetried)])
        self.assertIs(errors[2], self.told[4].error)

    def test_doomed(self):
        self.run_loop(transaction.doom)
        self.assertTold(TickStarted, TickAborted, TickStarted, TickCommitted)
        self.assertIsInstance(self.told[2].error,
                              transaction.interfaces.DoomedTransaction)

    def test_an_exit_of_the_worker(self):
        for error in SystemExit(3), KeyboardInterrupt():
            self.told.clear()
            self.run_loop(error)
            self.assertTold(TickStarted, TickAborted)
            self.assertIs(error, self.told[2].error)

    def test_a_signal(self):
        self.run_loop(lambda: signal.raise_signal(signal.SIGTERM))
        self.assertTold(TickStarted, TickCommitted)

    def test_an_error_of_the_loop_itself(self):
        loop = self.loop(ticks=1)
        loop.worker = lambda: None
        with mock.patch.object(loop._shutdown, 'pause', side_effect=OSError):
            self.assertRaises(OSError, loop)
        self.assertTold(TickStarted, TickCommitted, PauseStarted)

    def test_a_pause(self):
        seen = []

        def look(event):
            if isinstance(event, PauseStarted):
                seen.append((loop.tick, loop.tick_started, loop.next_tick))
        subscribing(self, look)
        loop = self.loop(0.001, Exit)
        before = time.monotonic()
        loop()
        self.assertTold(TickStarted, TickCommitted, PauseStarted,
                        TickStarted, TickCommitted)
        ((tick, started, instant),) = seen
        self.assertEqual((1, None, 'monotonic'),
                         (tick, started, instant.clock))
        self.assertGreaterEqual(instant.at, before + 0.001)

    def test_no_pause_when_a_signal_has_come(self):
        def worker():
            signal.raise_signal(signal.SIGTERM)
            return 3600
        self.run_loop(worker)
        self.assertTold(TickStarted, TickCommitted)

    def test_a_loop_that_cannot_start(self):
        self.define_principal()
        with self.assertRaises(PrincipalLookupError):
            self.loop(principal='nobody')()
        self.assertEqual([], self.told)

    def test_a_dry_run(self):
        def work():
            self.app.done = True
            return Exit
        with dry_run():
            self.run_loop(work)
        self.assertTold(TickStarted, TickCommitted)
        self.assertIsNone(self.committed('done'))

    def test_what_is_there_by_then(self):
        seen = []

        def look(event):
            if interfaces.ILoopEvent.providedBy(event):
                seen.append((
                    zope.component.hooks.getSite() is self.app,
                    signal.SIG_DFL in map(signal.getsignal, SIGNALS),
                    self.committed('done')))
        subscribing(self, look)

        def work():
            self.app.done = True
        self.run_loop(work)
        self.assertEqual([(True, False, None)] * 2
                         + [(True, False, True)] * 4, seen)

    def test_subscribers_that_fail_change_nothing(self):
        subscribing(self, fail)
        zope.component.provideHandler(fail, [None])

        def work():
            self.app.done = self.calls
        loop = self.run_loop(work, work)
        self.assertTold(*[TickStarted, TickCommitted] * 3)
        self.assertEqual(2, self.committed('done'))
        self.assertFalse(loop.failed)
        self.assertEqual(3, self.calls)
        self.assertEqual(2 * len(self.told), sum(
            record.name == LOGGER for record in self.logs.records))

    def test_those_of_the_local_site(self):
        self.addCleanup(site_events.clear)
        self.app.getSiteManager().registerHandler(
            site_subscriber, [interfaces.ILoopEvent])
        transaction.commit()
        notify(TickStarted('somewhere else'))
        self.told.clear()
        self.run_loop(0, KeyError, Exit)
        self.assertTold(TickStarted, TickCommitted, TickStarted, TickAborted,
                        TickStarted, TickCommitted)
        self.assertEqual(self.told, site_events)

    def test_what_they_change_is_not_stored(self):
        def change(event):
            if interfaces.ILoopEvent.providedBy(event):
                self.app.changed = type(event).__name__
        subscribing(self, change)

        def work():
            self.app.done = getattr(self.app, 'changed', 'nothing')
        self.run_loop(ConflictError, work, KeyError, work)
        self.assertTold(TickStarted, ConflictRetried, TickCommitted,
                        TickStarted, TickAborted,
                        TickStarted, TickCommitted,
                        TickStarted, TickCommitted)
        transaction.commit()
        self.assertIsNone(self.committed('changed'))
        self.assertEqual('nothing', self.committed('done'))

    def test_one_that_comes_while_the_loop_runs(self):
        told = []
        zope.event.subscribers.remove(self.hear)
        self.addCleanup(zope.event.subscribers.append, self.hear)
        self.run_loop(0, lambda: subscribing(self, told.append), 0)
        # Of the tick in which it comes it may be told or not.
        self.assertEqual(
            [TickStarted, TickCommitted] * 2 + [LoopStopped],
            list(map(type, told))[-5:])


class ChildEvents:
    """For test cases: what was told of children."""

    def setUp(self):
        super().setUp()
        self.told = []
        subscribing(self, self.hear)

    def hear(self, event):
        if interfaces.IChildEvent.providedBy(event):
            self.assertIs(event.name, event.process.name)
            self.told.append(event)

    def of(self, name):
        """The kinds of the events of a child; its ends with their status."""
        return [event.status if isinstance(event, ChildEnded) else type(event)
                for event in list(self.told) if event.name == name]

    def slow_at(self, kind, *args):
        """A subscriber of one kind of event, before all others."""
        slow = Slow(self, *args)

        def hear(event):
            if isinstance(event, kind):
                slow()
        zope.event.subscribers.insert(0, hear)
        self.addCleanup(zope.event.subscribers.remove, hear)
        return slow

    def wait_ended(self, name, count=1):
        until(lambda: sum(isinstance(event, ChildEnded) for event in self.told
                          if event.name == name) >= count)


class RunnerEventsTests(ChildEvents, SpawnTestCase):

    def test_a_stdio_application(self):
        self.runner.add('cat', 'cat')
        self.runner.start('cat', 'one')
        process = self.process('one')
        self.assertEqual([ChildStarted, ChildReady], self.of('one'))
        self.runner.ensure_running('cat', 'one')
        self.runner.get_channel('one').write_eof()
        self.wait_ended('one')
        self.assertEqual([ChildStarted, ChildReady, 0], self.of('one'))
        self.assertEqual([process] * 3, [event.process for event in self.told])

    def test_two_of_one_application(self):
        self.runner.add('cat', 'cat')
        for alias in 'one', 'two':
            self.runner.start('cat', alias)
            self.assertEqual([ChildStarted, ChildReady], self.of(alias))

    def test_one_that_is_terminated(self):
        self.runner.add('cat', 'cat')
        self.runner.start('cat')
        self.runner.terminate('cat')
        self.assertEqual([ChildStarted, ChildReady, -signal.SIGTERM],
                         self.of('cat'))

    def test_another_thread_tells_the_end(self):
        self.runner.add('cat', 'cat')
        for end in lambda: self.runner.terminate('cat'), self.runner.close:
            self.told.clear()
            self.runner.start('cat')
            slow = self.slow_at(ChildEnded)
            self.process('cat').send_signal(signal.SIGTERM)
            slow.wait_entered()
            end()
            self.assertEqual([ChildStarted, ChildReady, -signal.SIGTERM],
                             self.of('cat'))
            self.assertIn(repr(self.process('cat')), self.log.messages[-1])

    def test_another_thread_tells_what_comes_before_the_end(self):
        self.runner.add('cat', 'cat')
        for end in lambda: self.runner.terminate('cat'), self.runner.close:
            self.told.clear()
            slow = self.slow_at(ChildReady, lambda lock: lock is (
                self.runner._instances['cat']._news._telling))
            start = self.thread(self.runner.start, 'cat')
            slow.wait_entered()
            end()
            self.assertEqual([ChildStarted, ChildReady, -signal.SIGTERM],
                             self.of('cat'))
            self.assertIn(repr(self.process('cat')), self.log.messages[-1])
            start.result()

    def test_a_subscriber_of_the_end_ends_it_once_more(self):
        results = []

        def end(event):
            if isinstance(event, ChildEnded):
                event.process.settle(DEADLINE)
                results.append((event.process.poll(), event.process.wait(0),
                                event.process.terminate()))
                self.runner.terminate(event.name)
                self.runner.close()
        subscribing(self, end)
        self.runner.add('cat', 'cat')
        self.runner.start('cat')
        self.process('cat').send_signal(signal.SIGTERM)
        until(lambda: results)
        self.runner.close()
        self.assertEqual([(-signal.SIGTERM,) * 3], results)
        self.assertEqual([ChildStarted, ChildReady, -signal.SIGTERM],
                         self.of('cat'))

    def test_the_caller_holds_what_a_subscriber_needs(self):
        lock = threading.Lock()
        Slow(self, longest=0.001)  # nobody waits longer
        entered = threading.Event()

        def end(event):
            if isinstance(event, ChildEnded):
                entered.set()
                with lock:
                    pass
        zope.event.subscribers.insert(0, end)
        self.addCleanup(zope.event.subscribers.remove, end)
        self.runner.add('cat', 'cat')
        self.runner.start('cat')
        with lock:
            self.process('cat').send_signal(signal.SIGTERM)
            self.assertTrue(entered.wait(DEADLINE))
            self.runner.terminate('cat')
            self.assertEqual([ChildStarted, ChildReady], self.of('cat'))
        self.wait_ended('cat')

    def test_when_it_is_ready_it_has_a_channel(self):
        channels = []

        def get_channel(event):
            if isinstance(event, ChildReady):
                channels.append(self.runner.get_channel(event.name))
        subscribing(self, get_channel)
        self.runner.add('cat', 'cat')
        self.add_server()
        for name in 'cat', 'server':
            self.runner.start(name)
            self.assertIs(self.runner.get_channel(name), channels.pop())

    def test_a_subscriber_asks_for_the_channel_while_it_is_started(self):
        channels = {}

        def ask(event):
            if interfaces.IChildEvent.providedBy(event):
                self.runner.ensure_running(event.name)
                channels[type(event), event.name] = (
                    self.runner.get_channel(event.name))
        subscribing(self, ask)
        self.runner.add('cat', 'cat')
        self.add_server()
        with self.assertNoLogs(LOGGER):
            for name in 'cat', 'server':
                self.runner.start(name)
        cat = self.runner.get_channel('cat')
        self.assertEqual({
            (ChildStarted, 'cat'): cat, (ChildReady, 'cat'): cat,
            (ChildStarted, 'server'): None,
            (ChildReady, 'server'): self.runner.get_channel('server'),
        }, channels)
        self.assertEqual(1, self.of('cat').count(ChildStarted))

    def test_short_lives_are_told_in_order(self):
        self.runner.add('true', 'true', restart='always', restart_delay=0,
                        restart_limit=20)
        self.runner.start('true')
        self.wait_ended('true', 21)
        self.assertEqual([ChildStarted, ChildReady, 0] * 21, self.of('true'))

    def test_no_lock_is_held_that_another_thread_needs(self):
        answers = []

        def ask(event):
            if interfaces.IChildEvent.providedBy(event):
                call = self.thread(lambda: (
                    self.runner.running('cat'), self.runner.aliases(),
                    self.runner.get_channel('cat'),
                    self.runner.ensure_running('cat')))
                answers.append((type(event), call.result()[0]))
        self.runner.add('cat', 'cat')
        subscribing(self, ask)
        self.runner.start('cat')
        self.assertEqual([(ChildStarted, True), (ChildReady, True)], answers)

    def test_an_application_with_a_socket(self):
        self.add_server()
        self.runner.start('server')
        self.assertEqual([ChildStarted, ChildReady], self.of('server'))
        # To connect again is nothing new.
        pid = self.read_line('server')
        self.runner.get_channel('server').close()
        self.assertEqual(pid, self.read_line('server'))
        self.process('server').send_signal(signal.SIGKILL)
        self.wait_ended('server')
        self.assertEqual([ChildStarted, ChildReady, -signal.SIGKILL],
                         self.of('server'))

    def test_it_is_ready_when_it_listens(self):
        self.add_server(body='''
            say('here')
            wait()
            echo(bind())
            ''')
        start = self.thread(self.runner.start, 'server')
        self.log.wait_for('server: here')
        self.assertEqual([ChildStarted], self.of('server'))
        self.let_go()
        start.result()
        self.assertEqual([ChildStarted, ChildReady], self.of('server'))

    def test_one_that_does_not_listen(self):
        self.add_server(body='sys.exit(3)')
        self.assertRaises(Exception, self.runner.start, 'server')
        self.assertEqual([ChildStarted, 3], self.of('server'))
        self.assertIn('ended with 3', self.log.messages[-1])

    def test_a_program_that_is_not_there(self):
        self.runner.add('none', '/nonexistent/program')
        self.assertRaises(OSError, self.runner.start, 'none')
        self.assertEqual([], self.told)

    def test_restarts(self):
        self.runner.add('sh', 'read x; exit 3', shell=True, restart='always',
                        restart_delay=0, restart_limit=2)
        self.runner.start('sh')
        processes = []
        for count in 1, 2, 3:
            until(lambda: self.of('sh').count(ChildReady) == count)
            processes.append(self.told[-1].process)
            self.runner.get_channel('sh').write(b'\n')
            self.wait_ended('sh', count)
        self.assertEqual([ChildStarted, ChildReady, 3] * 3, self.of('sh'))
        self.assertEqual([each for each in processes for _ in range(3)],
                         [event.process for event in self.told])

    def test_a_restart_of_one_with_a_socket(self):
        self.add_server(restart='on-failure', restart_delay=0)
        self.runner.start('server')
        self.process('server').send_signal(signal.SIGKILL)
        until(lambda: self.of('server').count(ChildStarted) == 2)
        # Who wants its channel connects to it.
        self.read_line('server')
        self.assertEqual([ChildStarted, ChildReady, -signal.SIGKILL,
                          ChildStarted, ChildReady], self.of('server'))

    def test_subscribers_that_fail_change_nothing(self):
        subscribing(self, fail)
        self.runner.add('sh', 'read x; exit 3', shell=True, restart='always',
                        restart_delay=0, restart_limit=1)
        with self.assertLogs(LOGGER, 'ERROR') as logs:
            self.runner.start('sh')
            for count in 1, 2:
                until(lambda: self.of('sh').count(ChildReady) == count)
                self.runner.get_channel('sh').write(b'\n')
                self.wait_ended('sh', count)
            self.log.wait_for('given up')
        self.assertEqual(3, self.runner.status('sh'))
        self.assertEqual(6, len(logs.records))

    def test_a_poller_of_ones_own_tells_the_end(self):
        with Poller() as poller, type(self.runner)(poller=poller) as runner:
            runner.add('true', 'true')
            runner.start('true')
            process = runner.get_process('true')
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            self.assertEqual([ChildStarted, ChildReady], self.of('true'))
            poller.poll(0)
            self.assertEqual([ChildStarted, ChildReady, 0], self.of('true'))

    def test_a_subscriber_wakes_the_poller_of_a_worker(self):
        self.runner.add('cat', 'cat')
        with Poller() as poller:
            def wake(event):
                if isinstance(event, ChildEnded):
                    poller.wakeup()
            subscribing(self, wake)
            self.runner.start('cat')
            self.assertFalse(poller.pause(0))
            self.runner.get_channel('cat').write_eof()
            self.assertTrue(poller.pause(DEADLINE))


class ExecutorEventsTests(ChildEvents, ExecutorTestCase):

    def test_one_that_waits_for_nothing(self):
        with SimpleExecutor('sleep 100', name='it') as executor:
            self.assertEqual([ChildStarted, ChildReady], self.of('it'))
            process = executor.child
            executor.start()
        self.assertEqual([ChildStarted, ChildReady, -signal.SIGTERM],
                         self.of('it'))
        self.assertEqual([process] * 3, [event.process for event in self.told])

    def test_another_thread_tells_the_end(self):
        executor = self.stopping(SimpleExecutor('sleep 100', name='it'))
        for end in executor.stop, executor.kill, lambda: stop_all([executor]):
            self.told.clear()
            executor.start()
            slow = self.slow_at(ChildEnded)
            executor.child.send_signal(signal.SIGTERM)
            slow.wait_entered()
            with self.assertLogs('gocept.runner.executor', 'INFO') as logs:
                child = executor.child
                end()
                self.assertEqual([ChildStarted, ChildReady, -signal.SIGTERM],
                                 self.of('it'))
                self.assertIn(repr(child), logs.output[-1])

    def test_another_thread_tells_what_comes_before_the_end(self):
        executor = self.stopping(SimpleExecutor('sleep 100', name='it'))
        for end, status in ((executor.stop, -signal.SIGTERM),
                            (executor.kill, -signal.SIGKILL)):
            self.told.clear()
            awaited = []
            slow = self.slow_at(ChildReady, awaited.__contains__)
            start = threading.Thread(target=executor.start)
            start.start()
            self.addCleanup(start.join, DEADLINE)
            slow.wait_entered()
            awaited.append(executor._run.news._telling)
            end()
            self.assertEqual([ChildStarted, ChildReady, status],
                             self.of('it'))

    def test_by_default_it_has_the_name_of_its_program(self):
        with SimpleExecutor('sleep 100'):
            self.assertEqual([ChildStarted, ChildReady], self.of('sleep'))

    def test_it_is_ready_when_the_condition_holds(self):
        executor = self.stopping(OutputExecutor(victim('''
            sys.stdin.readline()
            say('ready')
            pause()
            '''), 'ready', name='it'))
        start = threading.Thread(target=executor.start)
        start.start()
        self.addCleanup(start.join, DEADLINE)
        until(lambda: executor.child)
        self.assertEqual([ChildStarted], self.of('it'))
        executor.child.channel.write(b'\n')
        start.join(DEADLINE)
        self.assertEqual([ChildStarted, ChildReady], self.of('it'))

    def test_one_that_fails(self):
        executor = OutputExecutor('exit 4', 'ready', shell=True, name='it')
        self.assertRaises(ProcessExitedWithError, executor.start)
        self.assertEqual([ChildStarted, 4], self.of('it'))

    def test_one_that_cannot_be_started(self):
        executor = SimpleExecutor('/nonexistent/program')
        self.assertRaises(OSError, executor.start)
        self.assertEqual([], self.told)

    def test_one_that_is_stopped_for_a_while(self):
        executor = self.stopping(SimpleExecutor('sleep 100', name='it'))
        executor.start()
        with executor.stopped():
            pass
        self.assertEqual([ChildStarted, ChildReady, -signal.SIGTERM,
                          ChildStarted, ChildReady], self.of('it'))

    def test_one_that_has_ended_by_itself(self):
        executor = self.stopping(SimpleExecutor('cat', name='it').start())
        executor.child.channel.write_eof()
        self.wait_ended('it')
        executor.start()
        self.assertEqual([ChildStarted, ChildReady, 0,
                          ChildStarted, ChildReady], self.of('it'))

    def test_a_second_start_of_one_that_looks_for_itself(self):
        class Mine(Executor):
            def after_start_check(self):
                return True

        with Mine('sleep 100', name='it') as executor:
            executor.start()
            self.assertEqual([ChildStarted, ChildReady], self.of('it'))

    def test_many_threads_start_one(self):
        executor = self.stopping(SimpleExecutor('sleep 100', name='it'))
        both = threading.Barrier(2, timeout=DEADLINE)

        class Meeting(SimpleExecutor):
            """Both threads have seen that it does not run."""
            def _launch(self):
                both.wait()
                return super()._launch()
        executor.__class__ = Meeting
        threads = [threading.Thread(target=executor.start) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        self.assertEqual([ChildStarted, ChildReady], self.of('it'))

    def test_probes_are_nobodys_children(self):
        executor = ConditionExecutor(
            'sleep 100', exits_zero('true'), name='it')
        with executor:
            self.assertEqual([ChildStarted, ChildReady],
                             [type(event) for event in self.told])

    def test_several(self):
        base = OutputExecutor('echo ready; exec sleep 100', 'ready',
                              shell=True, name='base')
        other = OutputExecutor('echo ready; exec sleep 100', 'ready',
                               shell=True, name='other', requires=[base])
        stop_all(start_all([other]))
        for name in 'base', 'other':
            self.assertEqual([ChildStarted, ChildReady, -signal.SIGTERM],
                             self.of(name))
        self.assertEqual(
            ['base', 'base', 'other', 'other'],
            [event.name for event in self.told
             if not isinstance(event, ChildEnded)])

    def test_subscribers_that_fail_change_nothing(self):
        subscribing(self, fail)
        with self.assertLogs(LOGGER, 'ERROR') as logs:
            with SimpleExecutor('cat', stderr=subprocess.PIPE) as executor:
                self.assertTrue(executor.running())
                executor.child.channel.write(b'a line\n')
                self.assertEqual('a line\n', executor.output().readline())
            self.wait_ended('cat')
        self.assertEqual(3, len(logs.records))
