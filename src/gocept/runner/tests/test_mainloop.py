import contextlib
import decimal
import fractions
import functools
import logging
import math
import os
import signal
import socket
import threading
from unittest import mock

import persistent
import persistent.mapping
import transaction
import ZODB
import zope.component
import zope.component.event
import zope.component.hooks
import zope.event
import zope.security.management
import zope.site.folder
import zope.site.site
from ZODB.POSException import ConflictError
from zope.authentication.interfaces import (
    IAuthentication,
    PrincipalLookupError,
)
from zope.interface.interfaces import ComponentLookupError
from zope.principalregistry.principalregistry import (
    Principal,
    principalRegistry,
)

import gocept.runner
from gocept.runner import Exit, appmain, errors, once
from gocept.runner.boot.counts import Counts
from gocept.runner.boot.pauses import poller_of_pauses
from gocept.runner.boot.site import finder
from gocept.runner.channel import SocketChannel
from gocept.runner.events import LoopStarted, PauseStarted, TickAborted
from gocept.runner.interfaces import (
    IPoller,
    ITickAborted,
    ITickCommitted,
    ITickUncertain,
)
from gocept.runner.poller import Poller, Timer
from gocept.runner.runner import MainLoop, init
from gocept.runner.tests.boot.test_attempts import DataManager
from gocept.runner.tests.poller.test_server import no_descriptors_left
from gocept.runner.tests.streams import wait_readable
from gocept.runner.tests.support import DEADLINE, SIGNALS, TestCase
from gocept.runner.tests.test_logs import failing_handler
from gocept.runner.tests.victims import until

LOGGER = 'gocept.runner.runner'
LOG = logging.getLogger(LOGGER)


class LoopCase(TestCase):

    def setUp(self):
        super().setUp()
        self.db = ZODB.DB(None)
        self.addCleanup(self.db.close)
        connection = self.db.open()
        self.addCleanup(connection.close)
        self.addCleanup(transaction.abort)
        self.app = zope.site.folder.rootFolder()
        self.app.setSiteManager(zope.site.site.LocalSiteManager(self.app))
        connection.root()['Application'] = self.app
        transaction.commit()
        zope.component.hooks.setHooks()
        patch = mock.patch('gocept.runner.boot.attempts.LONGEST_PAUSE', 0.001)
        patch.start()
        self.addCleanup(patch.stop)

    def loop(self, *results, ticks=0, **kwargs):
        """A loop whose worker returns, raises or calls one after another."""
        self.calls = 0
        remaining = list(results)

        def worker():
            self.calls += 1
            result = remaining.pop(0) if remaining else Exit
            if isinstance(result, type) and issubclass(result, BaseException):
                raise result
            if isinstance(result, BaseException):
                raise result
            return result() if callable(result) else result
        return MainLoop(self.app, ticks, worker, **kwargs)

    def run_logged(self, loop, level=logging.WARNING):
        with self.assertLogs(LOGGER, level) as logs:
            loop()
        return [record.getMessage() for record in logs.records]

    def define_principal(self, name='zope.mgr'):
        zope.component.provideUtility(principalRegistry, IAuthentication)
        principalRegistry.definePrincipal(name, name, '', name, b'')

    def committed(self, name):
        with self.db.transaction() as connection:
            return getattr(connection.root()['Application'], name, None)


class TickTests(LoopCase):

    def test_runs_until_exit_and_commits(self):
        def work():
            self.app.done = True
            return Exit
        loop = self.loop(None, work, None)
        with self.assertPutBack():
            loop()
        self.assertEqual(2, self.calls)
        self.assertTrue(self.committed('done'))
        self.assertFalse(loop.failed)
        self.assertIsNone(loop.ended_by)

    def test_numbers_are_seconds_to_sleep(self):
        messages = self.run_logged(
            self.loop(0.002, 0, decimal.Decimal('0.003'),
                      fractions.Fraction(1, 1000), None, ticks=0.004),
            logging.DEBUG)
        self.assertEqual(
            [f'Sleeping {number} seconds'
             for number in (0.002, 0.003, 0.001, 0.004)], messages)

    def test_any_other_value_is_an_error(self):
        for value in ('3', -1, math.nan, True, object, [], 1j,
                      decimal.Decimal('NaN'), 10 ** 400):
            with self.subTest(value):
                def work(value=value):
                    self.app.done = True
                    return value
                [message] = self.run_logged(self.loop(work))
                self.assertIn("Error in worker 'worker': ValueError: ",
                              message)
                self.assertIn('expected None, a number of seconds', message)
                self.assertIsNone(self.committed('done'))
                self.assertEqual(2, self.calls)

    def test_a_generator(self):
        def items():
            yield int
        [message] = self.run_logged(self.loop(items))
        self.assertIn('(a generator function needs @transaction_per_item)',
                      message)

    def test_the_worker_is_named(self):
        def work(path):
            raise FileNotFoundError(2, 'No such file or directory', path)
        loop = MainLoop(self.app, 0, functools.partial(work, 'new.csv'),
                        once=True)
        self.assertEqual(
            ["Error in worker 'work': FileNotFoundError: [Errno 2] No such "
             "file or directory: 'new.csv'"], self.run_logged(loop))

    def test_a_value_that_cannot_be_printed(self):
        class Value:
            def __repr__(self):
                raise ZeroDivisionError
        [message] = self.run_logged(self.loop(Value()))
        self.assertIn('unprintable: ZeroDivisionError', message)

    def test_an_error_is_logged_aborted_and_the_loop_goes_on(self):
        def work():
            self.app.done = True
            raise ValueError('no good')
        loop = self.loop(work, None, Exit)
        with self.assertLogs(LOGGER, 'ERROR') as logs:
            loop()
        self.assertIn("Error in worker 'worker': ValueError: no good",
                      logs.records[0].getMessage())
        self.assertEqual(ValueError, logs.records[0].exc_info[0])
        self.assertEqual(3, self.calls)
        self.assertIsNone(self.committed('done'))
        self.assertFalse(loop.failed)

    def test_an_error_is_logged_before_the_abort(self):
        order = []

        class Handler(logging.Handler):
            def emit(self, record):
                order.append(record.getMessage())
        handler = Handler()
        logging.getLogger(LOGGER).addHandler(handler)
        self.addCleanup(logging.getLogger(LOGGER).removeHandler, handler)

        def work():
            transaction.get().addAfterAbortHook(order.append, ('abort', ))
            raise ValueError()
        self.loop(work)()
        self.assertEqual(["Error in worker 'worker': ValueError", 'abort'],
                         order)

    def test_after_an_error_it_sleeps_the_default(self):
        messages = self.run_logged(
            self.loop(ValueError, ticks=0.003), logging.DEBUG)
        self.assertEqual('Sleeping 0.003 seconds', messages[-1])

    def test_system_exit_and_keyboard_interrupt_end_the_loop(self):
        for error in (SystemExit(3), KeyboardInterrupt()):
            def work(error=error):
                self.app.done = True
                raise error
            loop = self.loop(work, None)
            with self.assertPutBack():
                loop()
            self.assertEqual(1, self.calls)
            self.assertIs(error, loop.ended_by)
            self.assertIsNone(self.committed('done'))

    def test_a_conflict_is_retried_in_the_same_tick(self):
        with self.assertLogs('gocept.runner.transaction', 'WARNING') as logs:
            loop = self.loop(ConflictError, ConflictError, 0)
            loop()
        self.assertEqual(4, self.calls)
        self.assertEqual(2, len(logs.records))
        self.assertFalse(loop.failed)

    def test_attempts(self):
        with self.assertLogs('gocept.runner.transaction', 'WARNING') as logs:
            loop = self.loop(ConflictError, attempts=1, once=True)
            loop()
        self.assertRegex(logs.records[0].getMessage(),
                         "^Conflict error in worker 'worker': ConflictErr")
        self.assertTrue(loop.failed)
        with self.assertRaisesRegex(ValueError, 'attempts must be at least'):
            self.loop(attempts=0)

    def test_once(self):
        loop = self.loop(3600, None, once=True)
        loop()
        self.assertEqual(1, self.calls)
        self.assertFalse(loop.failed)

    def test_once_that_fails(self):
        loop = self.loop(ValueError, once=True)
        self.run_logged(loop)
        self.assertTrue(loop.failed)

    def test_a_log_handler_that_fails(self):
        def subscriber(event):
            if isinstance(event, TickAborted):
                raise KeyError('subscriber')
        zope.event.subscribers.append(subscriber)
        self.addCleanup(zope.event.subscribers.remove, subscriber)

        @gocept.runner.transaction_per_item
        def items():
            yield lambda: 1 / 0
            yield self.conflict
        with failing_handler() as stderr:
            loop = self.loop(ValueError, items, ConflictError, ConflictError,
                             ConflictError, 0.001, self.reopen, attempts=2)
            loop()
        self.assertEqual(8, self.calls)
        self.assertEqual(1, stderr.getvalue().count('The log failed'))

    def conflict(self):
        raise ConflictError

    def reopen(self):
        signal.raise_signal(signal.SIGUSR2)

    def test_one_transaction_for_a_tick(self):
        logger = f'txn.{threading.get_ident()}'
        # The last one has what subscribers have done after the last tick.
        aborted = ['new transaction', 'abort']
        with self.assertLogs(logger, 'DEBUG') as logs:
            self.loop(None, 0)()
        self.assertEqual(['new transaction', 'commit'] * 3 + aborted,
                         [record.getMessage() for record in logs.records])
        with self.assertLogs(logger, 'DEBUG') as logs, self.assertLogs(LOGGER):
            self.loop(ValueError, once=True)()
        self.assertEqual(aborted * 2,
                         [record.getMessage() for record in logs.records])

    def test_sees_the_changes_of_others_at_the_start_of_a_tick(self):
        seen = []

        def work():
            seen.append(getattr(self.app, 'others', None))
            with self.db.transaction() as connection:
                connection.root()['Application'].others = len(seen)
            seen.append(getattr(self.app, 'others', None))
            return 0
        self.loop(work, work)()
        self.assertEqual([None, None, 1, 1], seen)

    def test_the_cache_is_brought_back_to_its_size(self):
        self.db.setCacheSize(10)
        self.app._p_jar._cache.cache_size = 10
        self.app.things = persistent.mapping.PersistentMapping(
            (number, persistent.mapping.PersistentMapping(x=number))
            for number in range(100))
        transaction.commit()
        sizes = []

        def work():
            cache = self.app._p_jar._cache
            # 10, and what looking up subscribers in the site has loaded.
            sizes.append(cache.cache_non_ghost_count <= 25)
            for thing in self.app.things.values():
                thing['x']
            sizes.append(cache.cache_non_ghost_count > 100)
            return 0
        self.loop(work, work, work)()
        self.assertEqual([True] * 6, sizes)

    def test_so_are_those_of_the_other_databases(self):
        databases = {}
        main = ZODB.DB(None, database_name='', databases=databases)
        other = ZODB.DB(None, database_name='other', databases=databases,
                        cache_size=10)
        self.addCleanup(main.close)
        self.addCleanup(other.close)
        connection = main.open()
        self.addCleanup(connection.close)
        root = connection.get_connection('other').root()
        for number in range(100):
            root[str(number)] = persistent.mapping.PersistentMapping(x=1)
        connection.root()['Application'] = self.app = (
            zope.site.folder.rootFolder())
        self.app.setSiteManager(zope.site.site.LocalSiteManager(self.app))
        transaction.commit()
        sizes = []

        def work():
            sizes.append(root._p_jar._cache.cache_non_ghost_count <= 10)
            for thing in root.values():
                thing['x']
            return 0
        self.loop(work, work, work)()
        self.assertEqual([True] * 3, sizes)


    def test_one_that_is_called_again_begins_anew(self):
        def hear(event):
            if isinstance(event, LoopStarted):
                begins.append((loop.tick, loop.next_tick))
            elif isinstance(event, PauseStarted):
                loop.stop()
        begins = []
        zope.event.subscribers.append(hear)
        self.addCleanup(zope.event.subscribers.remove, hear)
        loop = self.loop(None, None, ticks=3600)
        loop()
        loop()
        self.assertEqual([(0, None)] * 2, begins)


class SiteAndPrincipalTests(LoopCase):

    def test_the_site_is_set_in_each_tick(self):
        sites = []

        def work():
            sites.append(zope.component.hooks.getSite())
            zope.component.hooks.setSite(None)
            return 0
        with self.assertPutBack():
            self.loop(work, work)()
        self.assertEqual([self.app] * 2, sites)

    def test_site_and_interaction_from_before_are_put_back(self):
        self.define_principal()
        zope.component.hooks.setSite(self.app)
        zope.security.management.newInteraction()
        mine = zope.security.management.getInteraction()
        with self.assertPutBack():
            self.loop(principal='zope.mgr')()
        self.assertIs(mine, zope.security.management.getInteraction())

    def test_runs_as_the_principal(self):
        self.define_principal()
        seen = []

        def work():
            [request] = (zope.security.management.getInteraction()
                         .participations)
            seen.append(request)
            return 0
        with self.assertPutBack():
            self.loop(work, work, principal='zope.mgr')()
        self.assertEqual(['zope.mgr'] * 2,
                         [request.principal.id for request in seen])
        self.assertIsNot(seen[0], seen[1])
        from zope.publisher.interfaces import IRequest
        self.assertTrue(IRequest.providedBy(seen[0]))

    def test_without_a_principal_there_is_no_interaction(self):
        seen = []
        self.loop(lambda: seen.append(
            zope.security.management.queryInteraction()))()
        self.assertEqual([None], seen)

    def test_a_retry_has_its_own_interaction(self):
        self.define_principal()
        seen = []

        def work():
            seen.append(zope.security.management.getInteraction())
            if len(seen) == 1:
                raise ConflictError()
            return Exit
        with self.assertLogs('gocept.runner.transaction'):
            self.loop(work, work, principal='zope.mgr')()
        self.assertIsNot(*seen)

    def test_a_worker_that_tampers_with_the_interaction(self):
        self.define_principal()

        def end():
            zope.security.management.endInteraction()

        def begin():
            zope.security.management.newInteraction()
        with self.assertPutBack():
            self.loop(end, None, principal='zope.mgr')()
            self.assertEqual(3, self.calls)
            self.loop(begin, None)()
            self.assertEqual(3, self.calls)

    def test_the_principal_of_a_callable(self):
        self.define_principal('someone')
        seen = []

        def work():
            [request] = (zope.security.management.getInteraction()
                         .participations)
            seen.append(request.principal.id)
        self.loop(work, principal=lambda: 'someone')()
        self.assertEqual(['someone'], seen)

    def test_an_unknown_principal_is_reported_before_the_first_tick(self):
        self.define_principal()
        with self.assertPutBack(), self.assertRaises(PrincipalLookupError):
            self.loop(principal='nobody')()
        self.assertEqual(0, self.calls)

    def test_no_authentication_at_all(self):
        with self.assertPutBack(), self.assertRaises(ComponentLookupError):
            self.loop(principal='zope.mgr')()

    def test_a_principal_that_cannot_be_looked_up_later(self):
        self.define_principal()

        def lose():
            zope.component.getGlobalSiteManager().unregisterUtility(
                principalRegistry, IAuthentication)

        pauses = []

        def pause(seconds, poller):
            pauses.append(seconds)
            if len(pauses) == 2:
                zope.component.provideUtility(
                    principalRegistry, IAuthentication)
        loop = self.loop(lose, principal='zope.mgr', ticks=1)
        with mock.patch.object(loop._shutdown, 'pause', side_effect=pause):
            [message] = self.run_logged(loop)
        self.assertIn("Error in worker 'worker': ComponentLookupError",
                      message)
        self.assertEqual([1, 1], pauses)
        self.assertEqual(2, self.calls)


class CountingPoller(Poller):
    """Pauses for a moment only, however long it is to be.

    `pauses` are the times, and whether something new has ended them.
    """

    def __init__(self):
        super().__init__()
        self.pauses = []

    def pause(self, timeout=None, over=bool):
        ended = super().pause(min(timeout, 0.01), over)
        self.pauses.append((timeout, ended))
        return ended


class PauseTests(LoopCase):
    """Pauses are those of the poller that is registered as a utility."""

    def open(self, poller):
        self.poller = self.enterContext(poller)
        zope.component.provideUtility(self.poller, IPoller)

    def channel(self):
        """One that gives lines, registered; and its other side."""
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        channel = self.enterContext(SocketChannel(ours, buffering='line'))
        self.poller.register(channel)
        return channel, theirs

    def meanwhile(self, call, *args):
        """Have another thread call it as soon as the loop pauses."""
        def run():
            until(lambda: self.poller._descriptors.waiting)
            call(*args)
        thread = threading.Thread(target=run)
        thread.start()
        self.addCleanup(thread.join, DEADLINE)

    def test_a_line_makes_the_next_tick_come(self):
        self.open(Poller())
        channel, peer = self.channel()
        results = []

        def work():
            results.append(self.poller.poll(0))
            if len(results) > 3:
                return Exit
            self.meanwhile(peer.send, b'%d\n' % len(results))
            return None
        self.loop(*[work] * 4, ticks=3600)()
        self.assertEqual([[], [(b'1\n', channel)], [(b'2\n', channel)],
                          [(b'3\n', channel)]], results)

    def test_an_alarm_that_comes_too_late(self):
        def late(signum, frame):
            raise TimeoutError('late alarm')

        def interrupt(thread):
            seen = len(logs.records)
            signal.pthread_kill(thread, signal.SIGALRM)
            until(lambda: len(logs.records) > seen)
            self.poller.wakeup()  # the pause that has begun anew

        def work():
            self.meanwhile(interrupt, threading.get_ident())
        self.open(Poller())
        self.addCleanup(signal.signal, signal.SIGALRM,
                        signal.signal(signal.SIGALRM, late))
        loop = self.loop(work, work, ticks=3600)
        with self.assertLogs(LOGGER, 'ERROR') as logs:
            loop()
        self.assertEqual(3, self.calls)
        self.assertEqual(
            ["Error in the pause after worker 'worker': TimeoutError: late "
             'alarm; is an alarm of it still set?'] * 2,
            [record.getMessage() for record in logs.records])
        self.assertEqual(errors.SUCCESS, loop.status)

    def test_a_poller_that_fails_each_time(self):
        self.open(Poller())
        with (mock.patch.object(self.poller, 'pause', side_effect=OSError),
              self.assertRaises(OSError), self.assertLogs(LOGGER, 'ERROR')):
            self.loop(None, ticks=3600)()

    def test_an_alarm_between_two_attempts(self):
        with (mock.patch('gocept.runner.signals.Shutdown.wait',
                         side_effect=[TimeoutError('late alarm')]),
              self.assertLogs(LOGGER, 'ERROR') as logs):
            self.loop(ConflictError)()
        self.assertEqual(2, self.calls)
        self.assertIn("Error beside worker 'worker': TimeoutError: late",
                      logs.output[0])

    def test_a_second_loop_pauses_with_a_poller_of_its_own(self):
        self.open(Poller())

        def pollers():
            with poller_of_pauses() as poller:
                results.append(poller)
                with poller_of_pauses() as inner:
                    results.append(inner)
        results = []
        with poller_of_pauses() as first:
            thread = threading.Thread(target=pollers)
            thread.start()
            thread.join(DEADLINE)
            self.assertIs(self.poller, first)
            pollers()
        pollers()
        self.assertNotIn(self.poller, results[:2])
        self.assertEqual([self.poller] * 4, results[2:])

    def test_a_thread_that_polls_does_not_end_the_loop(self):
        self.open(Poller())
        polling = threading.Thread(target=self.poller.poll)
        polling.start()
        self.addCleanup(polling.join, DEADLINE)
        self.addCleanup(self.poller.wakeup)
        until(lambda: self.poller._descriptors.waiting)
        with self.assertLogs('gocept.runner.signals', 'WARNING') as logs:
            self.loop(None, None, ticks=0.001)()
        self.assertEqual(3, self.calls)
        self.assertIn('Pausing with another poller', logs.output[0])

    def test_what_a_tick_does_not_fetch_makes_one_tick_come(self):
        self.open(CountingPoller())
        _, peer = self.channel()
        self.loop(lambda: peer.send(b'a line\n') and None,
                  None, None, None, ticks=3600)()
        self.assertEqual([(3600, True)] + [(3600, False)] * 3,
                         self.poller.pauses)

    def test_what_it_fetches_makes_none_come(self):
        self.open(CountingPoller())
        _, peer = self.channel()

        def work():
            peer.send(b'a line\n')
            self.assertEqual(1, len(self.poller.poll(DEADLINE)))
        self.loop(work, work, ticks=3600)()
        self.assertEqual([(3600, False)] * 2, self.poller.pauses)

    def test_what_it_leaves_makes_the_next_one_come(self):
        self.open(CountingPoller())
        channel, peer = self.channel()

        def work():
            peer.send(b'1\n2\n3\n')
            wait_readable(channel)
            self.assertEqual(b'1\n', channel.read())
        self.loop(work, lambda: self.poller.poll(0) and None, None,
                  ticks=3600)()
        self.assertEqual([(3600, True), (3600, False), (3600, False)],
                         self.poller.pauses)

    def test_a_timer_of_the_worker(self):
        self.open(CountingPoller())
        self.loop(lambda: self.poller.register(Timer(0)), None, ticks=3600)()
        self.assertEqual([(3600, True), (3600, False)], self.poller.pauses)

    def test_the_time_is_what_the_worker_says(self):
        self.open(CountingPoller())
        self.loop(7, 0, None, ticks=5)()
        self.assertEqual([(7, False), (5, False)], self.poller.pauses)

    def test_a_stop_ends_it(self):
        self.open(Poller())
        loop = self.loop(lambda: self.meanwhile(loop.stop), ticks=3600)
        loop()
        self.assertEqual(1, self.calls)

    def test_a_signal_ends_it(self):
        self.open(Poller())
        self.run_logged(self.loop(
            lambda: self.meanwhile(os.kill, os.getpid(), signal.SIGTERM),
            ticks=3600), logging.INFO)
        self.assertEqual(1, self.calls)

    def test_other_signals_do_not(self):
        self.open(CountingPoller())
        with mock.patch(
                'gocept.runner.signals.shutdown._reopen_logs') as reopen:
            self.loop(lambda: signal.raise_signal(signal.SIGUSR2), None,
                      ticks=3600)()
        reopen.assert_called_once_with()
        self.assertEqual([(3600, False)] * 2, self.poller.pauses)

    def test_one_of_a_site_is_nobodys(self):
        with CountingPoller() as poller:
            self.app.getSiteManager().registerUtility(poller, IPoller)
            self.loop(0.001)()
            self.assertEqual([], poller.pauses)
        self.assertEqual(2, self.calls)


class BackOffTests(LoopCase):

    def pauses(self, *results, **options):
        """Those between the ticks; a pair of a poller's, which news end."""
        poller = mock.Mock()
        zope.component.provideUtility(poller, IPoller)
        loop = self.loop(*results, **options)
        pauses = []

        def pause(seconds, by):
            self.assertIs(poller, by)
            pauses.append(('news', seconds))

        def wait(seconds, by):
            self.assertIs(poller, by)
            pauses.append(seconds)
        with mock.patch.multiple(loop._shutdown, pause=pause, wait=wait):
            loop()
        return pauses

    def setUp(self):
        super().setUp()
        logging.getLogger(LOGGER).setLevel(logging.CRITICAL)
        self.addCleanup(logging.getLogger(LOGGER).setLevel, logging.NOTSET)

    def test_errors_in_a_row_double_the_pause(self):
        self.assertEqual(
            [('news', 1), 2, 4, 8, 16, 32, 60, 60],
            self.pauses(*[ValueError] * 8, ticks=1))

    def test_the_log_tells_a_longer_pause(self):
        with self.assertLogs(LOGGER, 'INFO') as logs:
            self.pauses(*[ValueError] * 4, ticks=2, max_backoff=4)
        self.assertEqual(
            ['Trying again in 4 s, after 2 errors in a row',
             'Trying again in 4 s, after 3 errors in a row',
             'Trying again in 4 s, after 4 errors in a row'],
            [record.getMessage() for record in logs.records
             if record.levelname == 'INFO'])
        with self.assertLogs(LOGGER, 'INFO') as logs:
            self.pauses(*[ValueError] * 3, ticks=2, max_backoff=0)
        self.assertEqual({'ERROR'}, {each.levelname for each in logs.records})

    def test_up_to_max_backoff(self):
        self.assertEqual(
            [('news', 2), 4, 5, 5],
            self.pauses(*[ValueError] * 4, ticks=2, max_backoff=5))

    def test_without_ticks(self):
        self.assertEqual(
            [0.2, 0.4, 0.8, 1],
            self.pauses(*[ValueError] * 5, ticks=0, max_backoff=1))
        self.assertEqual(
            [('news', 0.05), 0.2, 0.4],
            self.pauses(*[ValueError] * 3, ticks=0.05))

    def test_longer_ticks_stay(self):
        for max_backoff in 60, 0:
            self.assertEqual(
                [('news', 100), 100, 100],
                self.pauses(*[ValueError] * 3, ticks=100,
                            max_backoff=max_backoff))

    def test_never_longer(self):
        self.assertEqual(
            [('news', 1), 1, 1],
            self.pauses(*[ValueError] * 3, ticks=1, max_backoff=0))

    def test_a_success_resets_it(self):
        self.assertEqual(
            [('news', 1), 2, ('news', 3), ('news', 1), 2],
            self.pauses(ValueError, ValueError, 3, ValueError, ValueError,
                        ticks=1))

    def test_a_success_without_a_pause_resets_it(self):
        self.assertEqual(
            [('news', 1), 2, ('news', 1), 2],
            self.pauses(ValueError, ValueError, 0, ValueError, ValueError,
                        ticks=1))

    def test_conflicts_are_errors_too(self):
        with self.assertLogs('gocept.runner.transaction'):
            self.assertEqual(
                [('news', 1), 2],
                self.pauses(ConflictError, ConflictError, ticks=1,
                            attempts=1))

    def test_doomed_is_none(self):
        self.assertEqual(
            [('news', 1)] * 3,
            self.pauses(*[transaction.doom] * 3, ticks=1))

    def test_very_many_errors(self):
        # There is no float for 2 ** 1024.
        pauses = self.pauses(*[ValueError] * 1100, ticks=1)
        self.assertEqual((1100, 60), (len(pauses), pauses[-1]))
        pauses = self.pauses(*[ValueError] * 1100, ticks=1,
                             max_backoff=math.inf)
        self.assertEqual(1100, len(pauses))
        self.assertEqual(sorted(pauses[1:]), pauses[1:])
        self.assertLess(pauses[-1], math.inf)

    def test_each_run_begins_anew(self):
        loop = self.loop(ValueError, ValueError, Exit, ValueError, Exit,
                         ticks=1)
        pauses = []
        with mock.patch.multiple(
                loop._shutdown,
                wait=lambda seconds, by: pauses.append(seconds),
                pause=lambda seconds, by: pauses.append(('news', seconds))):
            loop()
            loop._failures = 7
            loop()
        self.assertEqual([('news', 1), 2, ('news', 1)], pauses)

    def test_a_stop_ends_it(self):
        def fail():
            if self.calls == 2:
                def stop():
                    until(lambda: loop._shutdown._pausing is not None)
                    loop.stop()
                thread = threading.Thread(target=stop)
                thread.start()
                self.addCleanup(thread.join, DEADLINE)
            raise ValueError
        loop = self.loop(fail, fail, ticks=0)
        with mock.patch.object(loop, '_backoff', return_value=3600):
            loop()
        self.assertEqual(2, self.calls)

    def test_it_needs_no_descriptors(self):
        taken = contextlib.ExitStack()
        self.addCleanup(taken.close)

        def take():
            taken.enter_context(no_descriptors_left())
            raise ValueError
        self.loop(take, ValueError, ValueError, taken.close, ticks=0.001,
                  max_backoff=0.002)()
        self.assertEqual(5, self.calls)

    def test_news_do_not_end_it(self):
        with CountingPoller() as poller:
            zope.component.provideUtility(poller, IPoller)

            def fail():
                poller.wakeup()
                if self.calls == 2:
                    thread.start()
                raise ValueError

            def stop():
                until(lambda: len(poller.pauses) > 2)
                loop.stop()
            thread = threading.Thread(target=stop)
            loop = self.loop(*[fail] * 3, ticks=0.001)
            with mock.patch.object(loop, '_backoff', return_value=3600):
                loop()
            thread.join()
            self.assertEqual(2, self.calls)
            self.assertEqual([(0.001, True), (3600, True)], [
                (round(seconds, 3), ended)
                for seconds, ended in poller.pauses[:2]])

    def test_what_is_no_time(self):
        for value in -1, '1', None, math.nan, True:
            with self.subTest(value):
                for make in (lambda: self.loop(max_backoff=value),
                             lambda: appmain(max_backoff=value),
                             lambda: appmain(shutdown_timeout=value),
                             lambda: once(shutdown_timeout=value)):
                    with self.assertRaisesRegex(ValueError, 'seconds >= 0'):
                        make()
                with self.assertRaisesRegex(ValueError, 'seconds >= 0'):
                    with init(None, 'zope.conf', shutdown_timeout=value):
                        self.fail('it was opened')

    def test_what_a_program_hands_on(self):
        for make, max_backoff, timeout in (
                (lambda: appmain(max_backoff=5, shutdown_timeout=7), 5, 7),
                (lambda: once(shutdown_timeout=0), 60, 0),
                (appmain, 60, 30)):
            with mock.patch(
                    'gocept.runner.boot.environment.supervised') as within:
                loops = []
                decorator = make()
                build = decorator.loop

                def loop(*args):
                    loops.append(build(*args))
                    loops[-1].once = True
                    return loops[-1]
                decorator.loop = loop
                decorator(lambda: None)(None, self.zope_conf())
            within.assert_called_once_with(timeout)
            self.assertEqual(max_backoff, loops[0].max_backoff)


class StatusTests(LoopCase):
    """What a program that runs once ends with."""

    def run_once(self, *items, **options):
        """The status of a loop that runs items."""
        @gocept.runner.transaction_per_item(**options)
        def run():
            yield from items
        self.running = MainLoop(self.app, 0, run, once=True)
        with self.assertLogs('gocept.runner', 'INFO') as logs:
            self.running()
        self.logs = logs.output
        return self.running.status

    def conflict(self):
        raise ConflictError

    def test_a_success(self):
        self.loop(once=True)()
        self.assertEqual(0, self.run_once(int, int))
        self.assertEqual(Counts(done=2), self.running.counts)

    def test_an_item_that_fails(self):
        self.assertEqual(1, self.run_once(int, lambda: 1 / 0, int))
        self.assertEqual(Counts(done=2, failed=1), self.running.counts)
        self.assertFalse(self.running.failed)

    def test_an_item_that_is_skipped(self):
        self.assertEqual(1, self.run_once(self.conflict, attempts=2))
        self.assertEqual(Counts(skipped=1), self.running.counts)

    def test_an_item_that_is_none(self):
        self.assertEqual(1, self.run_once('Alice,38', int))
        self.assertEqual(Counts(done=1, failed=1), self.running.counts)
        self.assertIn("Error in item Alice,38 of 'run': TypeError: a str is "
                      'no item; an item is a callable without arguments',
                      self.logs[0])

    def test_failures_that_do_not_matter(self):
        self.assertEqual(0, self.run_once(
            self.conflict, lambda: 1 / 0, on_failure='ignore'))
        self.assertEqual(Counts(failed=1, skipped=1), self.running.counts)

    def test_an_item_that_is_tried_again_with_its_tick(self):
        outcomes = [ZeroDivisionError(), None, None, None]

        def item():
            error = outcomes.pop(0)
            if error is not None:
                raise error

        @gocept.runner.transaction_per_item
        def run():
            yield item
            yield item
            if len(outcomes) == 2:
                raise ConflictError
        loop = MainLoop(self.app, 0, run, once=True)
        with self.assertLogs('gocept.runner', 'INFO'):
            loop()
        self.assertEqual((0, []), (loop.status, outcomes))
        self.assertEqual(Counts(done=3), loop.counts)

    def test_the_counts_of_several_ticks(self):
        @gocept.runner.transaction_per_item
        def run():
            yield int
            if loop.counts.done == 2:
                return Exit
        loop = MainLoop(self.app, 0, run)
        loop()
        self.assertEqual(Counts(done=2), loop.counts)
        loop()
        self.assertEqual(Counts(done=2), loop.counts)

    def signal(self):
        signal.raise_signal(signal.SIGTERM)

    def test_a_signal_between_two_items(self):
        self.assertEqual(143, self.run_once(int, self.signal, int))
        self.assertEqual(Counts(done=2), self.running.counts)
        self.assertIn('2 done, 0 failed, 0 skipped, stopped', self.logs[0])

    def test_a_signal_in_the_last_item(self):
        self.assertEqual(0, self.run_once(int, self.signal))
        self.assertNotIn('stopped', self.logs[0])

    def test_an_exit_in_the_second_phase(self):
        def end():
            DataManager(tpc_finish=SystemExit(0))
        for batch in 1, 2:
            self.assertEqual(errors.PARTLY_COMMITTED,
                             self.run_once(end, batch=batch))
            self.assertEqual(Counts(uncertain=1), self.running.counts)
        loop = self.loop(end)
        self.run_logged(loop)
        self.assertEqual(errors.PARTLY_COMMITTED, loop.status)

    def test_a_signal_in_the_tick(self):
        loop = self.loop(self.signal, once=True)
        loop()
        self.assertEqual(0, loop.status)

    def test_a_signal_that_prevents_another_attempt(self):
        def conflict():
            self.signal()
            raise ConflictError
        loop = self.loop(conflict, once=True)
        with self.assertLogs('gocept.runner', 'INFO'):
            loop()
        self.assertEqual((1, 143), (self.calls, loop.status))

    def test_a_signal_that_prevents_another_attempt_of_an_item(self):
        def conflict():
            self.signal()
            raise ConflictError
        self.assertEqual(143, self.run_once(
            conflict, attempts=3, on_failure='ignore'))

    def test_whether_it_is_running(self):
        seen = []

        def end():
            seen.append(loop.running)
            self.signal()
            seen.append(loop.running)
        loop = self.loop(end, end)
        for _ in range(2):
            messages = self.run_logged(loop, logging.INFO)
            self.assertEqual(['Received signal 15, terminating.'], messages)
        self.assertEqual([True, False] * 2, seen)

    def test_a_signal_before_the_tick(self):
        zope.event.subscribers.append(self.signal_at_start)
        self.addCleanup(zope.event.subscribers.remove, self.signal_at_start)
        loop = self.loop(once=True)
        loop()
        self.assertEqual((0, 143), (self.calls, loop.status))

    def signal_at_start(self, event):
        if isinstance(event, LoopStarted):
            self.signal()

    def test_a_stop_before_the_tick(self):
        loop = self.loop(once=True)
        loop.stop()
        loop()
        self.assertEqual((0, 1), (self.calls, loop.status))
        loop()
        self.assertEqual((1, 0), (self.calls, loop.status))

    def test_a_commit_that_fails_in_its_second_phase(self):
        heard = []
        zope.event.subscribers.append(heard.append)
        self.addCleanup(zope.event.subscribers.remove, heard.append)
        error = transaction.interfaces.TransientError('gone')

        def work():
            self.app.done = True
            DataManager(tpc_finish=error)
        loop = self.loop(work, once=True)
        with self.assertLogs(LOGGER, 'ERROR') as logs:
            loop()
        self.assertIn("in worker 'worker', so it is not known", logs.output[0])
        self.assertEqual((1, 74), (self.calls, loop.status))
        self.assertTrue(loop.failed)
        self.assertTrue(self.committed('done'))
        [event] = [event for event in heard
                   if ITickUncertain.providedBy(event)]
        self.assertEqual((loop, error), (event.loop, event.error))
        self.assertFalse([event for event in heard
                          if ITickCommitted.providedBy(event)
                          or ITickAborted.providedBy(event)])

    def test_an_item_whose_commit_does(self):
        heard = []
        zope.event.subscribers.append(heard.append)
        self.addCleanup(zope.event.subscribers.remove, heard.append)
        error = transaction.interfaces.TransientError('gone')
        calls = []

        def item():
            calls.append(self.app)
            DataManager(tpc_finish=error)
        self.assertEqual(74, self.run_once(
            item, int, attempts=3, on_failure='ignore'))
        self.assertEqual(1, len(calls))
        self.assertEqual(Counts(done=1, uncertain=1), self.running.counts)
        self.assertIn(': 1 done, 0 failed, 0 skipped, 1 uncertain',
                      self.logs[-1])
        [event] = [event for event in heard
                   if ITickUncertain.providedBy(event)]
        self.assertIs(error, event.error)

    def test_an_uncertain_item_is_not_repeated_with_its_tick(self):
        calls = []

        def item():
            calls.append(self.app)
            DataManager(tpc_finish=OSError('gone'))

        @gocept.runner.transaction_per_item
        def run():
            yield item
            raise ConflictError
        loop = MainLoop(self.app, 0, run, once=True)
        with self.assertLogs('gocept.runner', 'INFO') as logs:
            loop()
        self.assertEqual((1, 74), (len(calls), loop.status))
        self.assertIn('RunnerError: an item before this error has an '
                      'uncertain outcome: ConflictError', logs.output[-1])

    def test_the_last_tick_counts(self):
        loop = self.loop(ValueError, Exit)
        self.run_logged(loop)
        self.assertEqual(0, loop.status)


asked: list[str] = []
heard: list[str] = []


class Authentication(persistent.Persistent):
    """Is stored in a site, and notes that it was asked."""

    def __init__(self, name):
        self.name = name

    def getPrincipal(self, principal):
        asked.append(self.name)
        return Principal(principal, '', '', principal, b'')


def hear_in_the_old_one(event):
    heard.append('old')


def hear_in_the_new_one(event):
    heard.append('new')


def equip(site, name, subscriber):
    """Store an authentication and a subscriber in a site."""
    components = site.getSiteManager()
    components.registerUtility(Authentication(name), IAuthentication)
    components.registerHandler(subscriber, [ITickCommitted])


class PlaceTests(LoopCase):
    """The connection and the database of the site."""

    def test_the_connection_of_another_thread(self):
        loop, errors = self.loop(), []

        def run():
            try:
                loop()
            except RuntimeError as error:
                errors.append(error)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        self.assertEqual(0, self.calls)
        self.assertIn('belongs to another thread', str(errors[0]))

    def test_a_connection_with_a_transaction_manager_of_its_own(self):
        for manager, is_refused in [
                (transaction.TransactionManager(), True),
                (transaction.manager, False),
                (transaction.manager.manager, False)]:
            loop = self.loop()
            with contextlib.closing(self.db.open(manager)) as connection:
                loop.app = connection.root()['Application']
                if is_refused:
                    with self.assertRaisesRegex(RuntimeError, 'nothing would'):
                        loop()
                else:
                    loop()
                transaction.abort()

    def test_a_connection_that_is_closed(self):
        loop = self.loop()
        with contextlib.closing(self.db.open()) as connection:
            loop.app = connection.root()['Application']
        with self.assertRaisesRegex(RuntimeError, 'is closed'):
            loop()

    # The site may be replaced by another client of the database.

    def make_site(self, folder, name=None):
        site = zope.site.folder.Folder()
        if name is not None:
            folder[name] = site
        site.setSiteManager(zope.site.site.LocalSiteManager(site))
        return site

    def elsewhere(self, change):
        """Change the root of the database as another client does."""
        with self.db.transaction() as connection:
            change(connection.root())

    def replace(self, *names):
        def change(root):
            folder = root['Application']
            for name in names[:-1]:
                folder = folder[name]
            del folder[names[-1]]
            self.make_site(folder, names[-1])
        self.elsewhere(change)

    def sites_of(self, site, *works, **options):
        """The sites in which the worker was called, and the messages."""
        sites = []

        def worker():
            self.assertIs(zope.component.hooks.getSite().getSiteManager(),
                          zope.component.getSiteManager())
            sites.append(zope.component.hooks.getSite())
            result = works[len(sites) - 1]()
            if result is Exit:  # to change the old one would be a conflict
                sites[-1].number = len(sites)
            return result
        self.tested = MainLoop(site, 0, worker, **options)
        with self.assertLogs(LOGGER, 'INFO') as logs:
            LOG.info('begin')
            self.tested()
        return sites, [record.getMessage() for record in logs.records[1:]]

    def test_a_site_that_is_replaced(self):
        site = self.make_site(self.app, 'shop')
        transaction.commit()
        (first, second), messages = self.sites_of(
            site, lambda: self.replace('shop'), lambda: Exit)
        self.assertIs(site, first)
        self.assertIsNot(site, second)
        self.assertEqual(
            ['The site shop was replaced in the database, so the loop goes on '
             'with the new one'], messages)
        self.assertIs(second, self.tested.app)
        with self.db.transaction() as connection:
            self.assertEqual(
                2, connection.root()['Application']['shop'].number)
        self.assertIsNone(zope.component.hooks.getSite())

    def test_the_folder_of_the_site(self):
        site = self.make_site(self.make_site(self.app, 'shops'), 'shop')
        transaction.commit()

        def change(root):
            shops = root['Application']['shops']
            root['Application']['old'] = self.make_site(root)
            del root['Application']['shops']
            self.make_site(self.make_site(root['Application'], 'shops'),
                           'shop')
            self.assertIn('shop', shops)
        (first, second), messages = self.sites_of(
            site, lambda: self.elsewhere(change), lambda: Exit)
        self.assertIsNot(first, second)
        self.assertEqual(1, len(messages))

    def test_the_root_folder(self):
        def change(root):
            root['Application'] = self.make_site(root)
        (first, second), messages = self.sites_of(
            self.app, lambda: self.elsewhere(change), lambda: Exit)
        self.assertIsNot(first, second)
        self.assertEqual(1, len(messages))

    def test_a_site_that_is_gone_and_comes_back(self):
        site = self.make_site(self.app, 'shop')
        transaction.commit()

        def remove(root):
            del root['Application']['shop']

        def restore(event):
            if isinstance(event, TickAborted):
                errors.append(event.error)
                self.elsewhere(lambda root: self.make_site(
                    root['Application'], 'shop'))
        errors = []
        zope.event.subscribers.append(restore)
        self.addCleanup(zope.event.subscribers.remove, restore)
        (first, second), messages = self.sites_of(
            site, lambda: self.elsewhere(remove), lambda: Exit)
        self.assertIsNot(first, second)
        self.assertEqual(
            ["Error in worker 'worker': LookupError: the site 'shop' is gone: "
             'the database has no object at its place',
             'The site shop was replaced in the database, so the loop goes on '
             'with the new one'], messages)
        self.assertIsInstance(errors[0], LookupError)

    def test_what_was_kept_of_the_old_one(self):
        asked.clear()
        heard.clear()
        site = self.make_site(self.app, 'shop')
        equip(site, 'old', hear_in_the_old_one)
        transaction.commit()

        def change(root):
            del root['Application']['shop']
            equip(self.make_site(root['Application'], 'shop'), 'new',
                  hear_in_the_new_one)
        self.sites_of(site, lambda: self.elsewhere(change), int, lambda: Exit,
                      principal='zope.mgr')
        # Once before the first tick.
        self.assertEqual(['old', 'old', 'new', 'new'], asked)
        # Each tick is told to the site that it has found in the end.
        self.assertEqual(['old', 'new', 'new'], heard)

    def test_a_site_manager_that_is_replaced(self):
        site = self.make_site(self.app, 'shop')
        transaction.commit()
        old = site.getSiteManager()

        def change(root):
            shop = root['Application']['shop']
            shop._sm = zope.site.site.LocalSiteManager(shop)
        self.sites_of(site, lambda: (self.elsewhere(change), 0)[1],
                      lambda: Exit)
        self.assertIsNot(old, site.getSiteManager())

    def test_what_has_no_place(self):
        folder = zope.site.folder.Folder()
        folder.setSiteManager(zope.site.site.LocalSiteManager(folder))
        self.assertIsNone(finder(folder))  # not stored
        self.app.extra = folder
        transaction.commit()
        self.assertIsNone(finder(folder))  # without a name
        folder.__parent__, folder.__name__ = self.app, 'nobody'
        self.assertIsNone(finder(folder))  # and not there
        folder.__parent__ = folder
        self.assertIsNone(finder(folder))
        self.assertEqual((self.app, ), (finder(self.app)(), ))


class SignalTests(LoopCase):

    def test_ends_after_the_tick_in_progress(self):
        for signum in SIGNALS:
            with self.subTest(signum):
                def work(signum=signum):
                    signal.raise_signal(signum)
                    self.app.done = signum
                loop = self.loop(work, None)
                with self.assertPutBack():
                    messages = self.run_logged(loop, logging.INFO)
                self.assertEqual([f'Received signal {signum}, terminating.'],
                                 messages)
                self.assertEqual(1, self.calls)
                self.assertEqual(signum, self.committed('done'))

    def test_a_sleep_ends_at_once(self):
        for signum in SIGNALS:
            with self.subTest(signum):
                loop = self.loop(
                    lambda signum=signum: self.send_later(signum), None,
                    ticks=math.inf)
                self.run_logged(loop, logging.INFO)
                self.assertEqual(1, self.calls)

    def send_later(self, signum):
        timer = threading.Timer(0.01, os.kill, (os.getpid(), signum))
        timer.start()
        self.addCleanup(timer.join)

    def test_zero_seconds_see_signals_too(self):
        self.run_logged(
            self.loop(lambda: signal.raise_signal(signal.SIGTERM) or 0, 0),
            logging.INFO)
        self.assertEqual(1, self.calls)

    def test_the_second_signal_has_the_default_action(self):
        seen = []

        def work():
            signal.raise_signal(signal.SIGHUP)
            seen.extend(signal.getsignal(signum) for signum in SIGNALS)
        self.run_logged(self.loop(work), logging.INFO)
        self.assertEqual([signal.SIG_DFL] * 3, seen)

    def test_sigusr2_reopens_the_logs(self):
        with mock.patch(
                'gocept.runner.signals.shutdown._reopen_logs') as reopen:
            self.loop(lambda: signal.raise_signal(signal.SIGUSR2), None)()
        reopen.assert_called_once_with()
        self.assertEqual(3, self.calls)

    def test_stop_from_another_thread(self):
        timer = threading.Timer(0.01, lambda: loop.stop())
        loop = self.loop(timer.start, ticks=3600)
        loop()
        timer.join()
        self.assertEqual(1, self.calls)

    def test_stop_before_the_start(self):
        loop = self.loop()
        loop.stop()
        loop()
        self.assertEqual(0, self.calls)
        loop()
        self.assertEqual(1, self.calls)

    def test_the_name_of_the_handler(self):
        loop = self.loop(lambda: loop.stopMainLoop(15, None))
        self.assertEqual(['Received signal 15, terminating.'],
                         self.run_logged(loop, logging.INFO))

    def test_outside_the_main_thread(self):
        loop = self.loop()

        def open_and_run():
            with contextlib.closing(self.db.open()) as connection:
                loop.app = connection.root()['Application']
                loop()
                transaction.abort()
        with self.assertLogs('gocept.runner.signals', 'DEBUG') as logs:
            thread = threading.Thread(target=open_and_run)
            thread.start()
            thread.join()
        self.assertEqual(1, self.calls)
        self.assertIn('Not in the main thread', logs.output[0])
