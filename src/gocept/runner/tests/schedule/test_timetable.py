"""Loops that keep a schedule, and what their database says of it."""

import contextlib
import logging
import os
import signal
import threading
import time
from unittest import mock

import transaction
import ZODB.config
import zope.component
from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping
from ZODB.POSException import ConflictError, POSKeyError
from zope.component.hooks import getSite
from zope.site.folder import Folder, rootFolder
from zope.site.site import LocalSiteManager

from gocept.runner import Exit, appmain, errors, transaction_per_item
from gocept.runner.boot.dryrun import dry_run
from gocept.runner.events import PauseStarted, TickAborted, TickCommitted
from gocept.runner.interfaces import IPoller
from gocept.runner.poller import Poller
from gocept.runner.runner import MainLoop
from gocept.runner.schedule.runs import KEY, LastRun
from gocept.runner.testing import TestChannel, run_ticks
from gocept.runner.tests.cli.test_worker import ZEOServer
from gocept.runner.tests.schedule.times import Times
from gocept.runner.tests.support import DEADLINE
from gocept.runner.tests.test_events import subscribing
from gocept.runner.tests.test_mainloop import LoopCase

SOON = 0.02


class ScheduleCase(LoopCase):

    key = 'worker'

    def scheduled(self, times, *results, missed='skip', **kwargs):
        return self.ending(self.keeping(
            self.loop(*results, **{'max_backoff': 0.001, **kwargs}),
            times, missed))

    def keeping(self, loop, times, missed='skip'):
        loop.schedule, loop.missed = times, missed
        return loop

    def ending(self, loop):
        """`loop`, which ends if it awaits what does not come."""
        watchdog = threading.Timer(DEADLINE, loop.stop)
        watchdog.start()
        self.addCleanup(watchdog.join)
        self.addCleanup(watchdog.cancel)
        return loop

    def stop_in_pause(self, loop, number=1):
        """Stop in the pause of this number; returns what was waited for.

        Pauses before another attempt do not count: they may be over before
        they begin.
        """
        pauses = []

        def stop(event):
            if isinstance(event, PauseStarted) and (
                    event.loop.next_tick.clock == 'realtime'):
                pauses.append(event.loop.next_tick)
                if len(pauses) == number:
                    loop.stop()
        subscribing(self, stop)
        return pauses

    def store(self, run, key=None):
        """Commit a last run as another process does."""
        manager = transaction.TransactionManager()
        connection = self.db.open(manager)
        try:
            with manager:
                runs = connection.root().setdefault(KEY, OOBTree())
                runs.setdefault(key or self.key, PersistentMapping())[
                    'run'] = run
        finally:
            connection.close()

    def stored(self, key=None):
        """The last run that is committed; None: there is none."""
        with self.db.transaction() as connection:
            runs = connection.root().get(KEY, {})
            mine = runs.get(key or self.key)
            return None if mine is None else mine['run']

    def quietly(self, loop):
        """Run it; returns what is logged."""
        with self.assertLogs('gocept.runner') as logs:
            logging.getLogger('gocept.runner').info('There has to be one.')
            loop()
        return [record.getMessage() for record in logs.records[1:]]


class RunTests(ScheduleCase):

    def test_the_first_time_is_waited_for(self):
        def work():
            self.assertGreaterEqual(time.time(), times[0])
            self.assertIsNone(self.stored())
            return Exit
        times = Times(SOON)
        loop = self.scheduled(times, work)
        loop()
        self.assertEqual((1, 1, False), (self.calls, loop.tick, loop.failed))
        self.assertEqual(times[0], self.stored())

    def test_nothing_is_stored_while_it_waits(self):
        times = Times(-50)
        loop = self.scheduled(times)
        pauses = self.stop_in_pause(loop)
        loop()
        self.assertEqual((0, None), (self.calls, self.stored()))
        self.assertEqual([('realtime', times[-1])], pauses)

    def test_one_after_another(self):
        times, seen = Times(SOON, 2 * SOON, 3 * SOON), []

        def stop(event):
            if isinstance(event, PauseStarted) and (
                    loop.next_tick.at == times[-1]):
                loop.stop()
        subscribing(self, stop)
        loop = self.scheduled(
            times, *[lambda: seen.append(self.stored())] * 3, missed='once')
        self.quietly(loop)
        self.assertEqual(times[2], self.stored())
        self.assertEqual(len(seen), len({None, *seen}))

    def test_missed_runs(self):
        for missed in 'skip', 'once':
            times = Times(-50, -40)
            self.store(times[0])
            loop = self.scheduled(times, None, missed=missed)
            loop.ticks = 0
            pauses = self.stop_in_pause(loop)
            self.quietly(loop)
            self.assertEqual([('realtime', times[-1])], pauses[-1:])
            self.assertEqual(missed == 'once', self.calls)
            self.assertEqual(times[missed == 'once'], self.stored())

    def test_it_was_done_meanwhile_in_the_pause(self):
        times = Times(1)  # not before it is waited for
        loop = self.scheduled(times)

        def hear(event):
            if isinstance(event, PauseStarted):
                self.store(times[0])
        subscribing(self, hear)
        self.stop_in_pause(loop, 2)
        self.assertIn('done already, elsewhere', self.quietly(loop)[-1])
        self.assertEqual((0, 0), (self.calls, loop.tick))

    def test_the_clock_was_set_back(self):
        times = Times(SOON)
        self.store(times[-1] - 1)
        loop = self.scheduled(times, missed='once')
        pauses = self.stop_in_pause(loop)
        [message] = self.run_logged(loop)
        self.assertIn('in the future: the clock was set back', message)
        self.assertEqual((0, [('realtime', times[-1])]), (self.calls, pauses))

    def test_a_signal_in_the_pause(self):
        loop = self.scheduled(Times())

        def kill(event):
            if isinstance(event, PauseStarted):
                os.kill(os.getpid(), signal.SIGTERM)
        subscribing(self, kill)
        with self.assertPutBack():
            loop()
        self.assertEqual(0, self.calls)

    def test_a_source_does_not_end_the_pause(self):
        poller = Poller()
        self.addCleanup(poller.close)
        zope.component.provideUtility(poller, IPoller)
        channel = TestChannel()
        self.addCleanup(channel.close)
        poller.register(channel)
        seen, times = [], Times(SOON)

        def work():
            self.assertGreaterEqual(time.time(), times[0])
            seen.extend(poller.poll(0))
            return Exit
        channel.put(b'news')
        self.scheduled(times, work)()
        self.assertEqual([(b'news', channel)], seen)

    def test_the_clock_of_the_pause_is_looked_at_again(self):
        # Another time is next, as if the clock was set back.
        times, pauses = Times(), []

        def hear(event):
            if isinstance(event, PauseStarted):
                pauses.append(loop.next_tick.at - time.time())
                if len(pauses) == 2:
                    loop.stop()
                times.change(3600)
                loop._shutdown.wakeup()
        subscribing(self, hear)
        loop = self.scheduled(times)
        loop()
        self.assertGreater(pauses[0], 3600)
        self.assertLessEqual(pauses[1], 3600)

    def test_the_worker_asks_for_another_tick(self):
        times, seen = Times(-50, -40), []

        def work():
            seen.append(self.stored())
            return [0, 0.001, None][self.calls - 1]
        self.store(times[0])
        loop = self.scheduled(times, work, work, work, missed='once')

        def stop(event):
            if isinstance(event, PauseStarted) and loop.tick == 3:
                loop.stop()
        subscribing(self, stop)
        self.quietly(loop)
        self.assertEqual([times[0], times[1], times[1]], seen)
        self.assertEqual(times[1], self.stored())

    def test_a_loop_that_is_called_again(self):
        times = Times(-50, -40)
        self.store(times[0])
        loop = self.scheduled(times, Exit, missed='once')
        self.quietly(loop)
        self.stop_in_pause(loop)
        loop()
        self.assertEqual(1, self.calls)


class StoredTests(ScheduleCase):

    def due(self, *results, times=None, **kwargs):
        """A loop with a run that is due at once."""
        self.times = times or Times(-50, -40)
        self.store(self.times[0])
        return self.scheduled(self.times, *results, missed='once', **kwargs)

    def test_in_the_transaction_of_the_tick(self):
        def work():
            self.app.done = True
        loop = self.due(work)
        self.stop_in_pause(loop)
        self.quietly(loop)
        with self.db.transaction() as connection:
            runs = connection.root()[KEY]
            mine, app = runs['worker'], connection.root()['Application']
            self.assertEqual((True, self.times[1]), (app.done, mine['run']))
            self.assertEqual(mine._p_serial, app._p_serial)
            self.assertEqual((OOBTree, PersistentMapping),
                             (type(runs), type(mine)))

    def test_after_an_error(self):
        def fail():
            self.assertEqual(self.times[0], self.stored())
            self.app.failed = True
            raise ValueError
        loop = self.due(fail, fail, fail, Exit)
        messages = self.quietly(loop)
        self.assertEqual((4, 4), (self.calls, loop.tick))
        self.assertEqual(self.times[1], self.stored())
        self.assertIsNone(self.committed('failed'))
        self.assertIn('will be tried again in 0.001 s, after 3 errors in a '
                      'row', messages[-2] + messages[-1])

    def test_stopped_after_an_error(self):
        loop = self.due(ValueError, ticks=3600)

        def stop(event):
            if isinstance(event, PauseStarted):
                self.assertEqual('monotonic', loop.next_tick.clock)
                loop.stop()
        subscribing(self, stop)
        self.quietly(loop)
        self.assertEqual((1, True), (self.calls, loop.failed))
        self.assertEqual(self.times[0], self.stored())

    def test_an_exit_of_the_worker(self):
        loop = self.due(SystemExit(3))
        self.quietly(loop)
        self.assertEqual(self.times[0], self.stored())

    def test_a_doomed_transaction(self):
        loop = self.due(transaction.doom, Exit)
        self.quietly(loop)
        self.assertEqual((2, self.times[1]), (self.calls, self.stored()))

    def test_a_wrong_value(self):
        loop = self.due('3 seconds', Exit)
        self.quietly(loop)
        self.assertEqual((2, self.times[1]), (self.calls, self.stored()))

    def test_a_conflict(self):
        loop = self.due(ConflictError, Exit)
        self.quietly(loop)
        self.assertEqual((2, 1, 2, self.times[1]),
                         (self.calls, loop.tick, loop.attempt, self.stored()))

    def test_a_worker_that_commits_itself(self):
        def work():
            self.app.half = True
            transaction.commit()
            if self.calls == 1:
                raise ValueError
            return Exit
        self.quietly(self.due(work, work))
        self.assertEqual((2, self.times[1]), (self.calls, self.stored()))

    def test_a_worker_that_aborts(self):
        def work():
            transaction.abort()
            return Exit
        self.quietly(self.due(work))
        self.assertEqual(self.times[1], self.stored())

    def test_explicit_transactions(self):
        def work():
            transaction.commit()
            return Exit
        loop = self.due(work)
        with mock.patch.object(transaction.manager.manager, 'explicit', True):
            self.quietly(loop)
        self.assertEqual(self.times[1], self.stored())

    def test_a_dry_run(self):
        loop = self.due(None)
        pauses = self.stop_in_pause(loop)
        with dry_run():
            self.quietly(loop)
        self.assertEqual((1, self.times[0]), (self.calls, self.stored()))
        self.assertEqual([('realtime', self.times[-1])], pauses)

    def test_a_second_phase_that_fails(self):
        class Failing:
            transaction_manager = transaction.manager

            def abort(self, txn):
                """Nothing is to be done."""

            tpc_begin = commit = tpc_vote = tpc_abort = abort

            def tpc_finish(self, txn):
                raise OSError('no space left')

            def sortKey(self):
                return ' first'

        def work():
            transaction.get().join(Failing())
        loop = self.due(work)
        pauses = self.stop_in_pause(loop)
        messages = self.quietly(loop)
        self.assertEqual((1, errors.PARTLY_COMMITTED),
                         (self.calls, loop.status))
        self.assertEqual(self.times[0], self.stored())
        self.assertEqual([('realtime', self.times[-1])], pauses)
        self.assertIn('not tried again', messages[-1])

    def test_the_database_is_away_at_first(self):
        loop = self.due(None, ticks=3600)

        def stop(event):
            if isinstance(event, PauseStarted):
                self.assertEqual('monotonic', loop.next_tick.clock)
                loop.stop()
        subscribing(self, stop)
        with mock.patch.object(LastRun, 'read', side_effect=POSKeyError):
            [message] = self.quietly(loop)
        self.assertEqual(0, self.calls)
        self.assertIn('Cannot tell which run', message)

    def test_the_database_comes_back(self):
        read, failures = LastRun.read, [POSKeyError, POSKeyError]

        def fail(last):
            if failures:
                raise failures.pop()
            return read(last)
        loop = self.due(Exit)
        with mock.patch.object(LastRun, 'read', fail):
            self.quietly(loop)
        self.assertEqual((1, self.times[1]), (self.calls, self.stored()))


class OnceTests(ScheduleCase):

    def test_it_runs_at_once(self):
        times = Times(-50, -40)
        loop = self.scheduled(times, None, once=True)
        loop()
        self.assertEqual((1, times[1]), (self.calls, self.stored()))
        loop = self.scheduled(times, None, once=True)
        loop()  # though it was done
        self.assertEqual((1, times[1]), (self.calls, self.stored()))

    def test_a_later_run_stays(self):
        times = Times(-50)
        self.store(times[-1])
        self.scheduled(times, None, once=True)()
        self.assertEqual((1, times[-1]), (self.calls, self.stored()))

    def test_no_time_has_come_yet(self):
        self.scheduled(Times(), None, once=True)()
        self.assertEqual((1, None), (self.calls, self.stored()))

    def test_it_fails(self):
        loop = self.scheduled(Times(-50), ValueError, once=True)
        self.quietly(loop)
        self.assertEqual((1, None), (loop.status, self.stored()))

    def test_a_dry_run(self):
        loop = self.scheduled(Times(-50), None, once=True)
        with dry_run():
            loop()
        self.assertEqual((1, None), (self.calls, self.stored()))


class ItemTests(ScheduleCase):

    def due(self, *items, once=False, **options):
        """A loop whose worker calls these one by one."""
        @transaction_per_item(**options)
        def worker():
            self.calls += 1
            for number, item in enumerate(items):
                def call(item=item, number=number):
                    setattr(self.app, f'item{number}', True)
                    item()
                yield call
        self.calls = 0
        self.times = Times(-50, -40)
        self.store(self.times[0])
        return self.ending(self.keeping(
            MainLoop(self.app, 0, worker, max_backoff=0.001, once=once),
            self.times, 'once'))

    def of_items(self, after=lambda: None):
        """A loop that runs once, whose record comes into a conflict."""
        @transaction_per_item
        def worker():
            for number in range(3):
                def item(number=number):
                    self.done.append(number)
                    self.app.item = number
                yield item
            after()
            if len(self.done) == 3:
                # Another worker stores its first run, as this one does.
                self.store(1.0, 'another')
        self.done = []
        loop = MainLoop(self.app, 0, worker, max_backoff=0.001, once=True)
        return self.ending(self.keeping(loop, Times(-50, -40)))

    def test_a_conflict_about_the_record_repeats_no_item(self):
        loop = self.of_items()
        self.quietly(loop)
        self.assertEqual((0, [0, 1, 2]), (loop.status, self.done))
        self.assertEqual((2, loop.schedule[1]), (loop.attempt, self.stored()))

    def test_what_comes_after_the_last_item_is_not_lost_by_a_conflict(self):
        def count():
            self.app.counted = getattr(self.app, 'counted', 0) + 1
        self.quietly(self.of_items(count))
        self.assertEqual([0, 1, 2] * 2, self.done)
        with self.db.transaction() as connection:
            self.assertEqual(
                1, connection.get(self.app._p_oid).counted)

    def test_after_the_last_item(self):
        seen = []
        loop = self.due(*[lambda: seen.append(self.stored())] * 3)
        self.stop_in_pause(loop)
        self.quietly(loop)
        self.assertEqual([self.times[0]] * 3, seen)
        self.assertEqual((1, self.times[1]), (self.calls, self.stored()))
        self.assertTrue(self.committed('item2'))

    def test_without_items(self):
        loop = self.due()
        self.stop_in_pause(loop)
        self.quietly(loop)
        self.assertEqual((1, self.times[1]), (self.calls, self.stored()))

    def test_an_item_that_fails(self):
        remaining = [ValueError, ValueError]

        def fail():
            if remaining:
                raise remaining.pop()
        for batch in 1, 10:
            loop = self.due(lambda: None, fail, batch=batch)
            self.stop_in_pause(loop)
            messages = self.quietly(loop)
            self.assertEqual((3, self.times[1]), (self.calls, self.stored()))
            self.assertIn('after 2 errors in a row', ' '.join(messages))
            remaining[:] = [ValueError] * (4 if batch == 1 else 2)

    def test_a_failure_that_does_not_matter(self):
        def fail():
            raise ValueError
        loop = self.due(fail, on_failure='ignore')
        self.stop_in_pause(loop)
        self.quietly(loop)
        self.assertEqual((1, self.times[1]), (self.calls, self.stored()))

    def test_it_is_cut_short(self):
        loop = self.due(lambda: loop.stop(), lambda: None)
        self.quietly(loop)
        self.assertEqual(self.times[0], self.stored())
        self.assertTrue(self.committed('item0'))
        self.assertIsNone(self.committed('item1'))

    def test_once(self):
        self.quietly(self.due(lambda: None, once=True))
        self.assertEqual(self.times[1], self.stored())

        def fail():
            raise ValueError
        loop = self.due(fail, once=True)
        self.quietly(loop)
        self.assertEqual((self.times[0], errors.WORKER_FAILED),
                         (self.stored(), loop.status))


class MachinesTests(ScheduleCase):

    def test_the_other_one_commits_first(self):
        times, told = Times(-50, -40), []

        def work():
            self.app.mine = True
            self.store(times[1])
        self.store(times[0])
        loop = self.scheduled(times, work, missed='once')
        self.stop_in_pause(loop)
        subscribing(self, told.append)
        messages = self.quietly(loop)
        self.assertEqual((1, False), (self.calls, loop.failed))
        self.assertIsNone(self.committed('mine'))
        [aborted] = [each for each in told if isinstance(each, TickAborted)]
        self.assertIsInstance(aborted.error, errors.AlreadyRun)
        self.assertFalse([each for each in told
                          if isinstance(each, TickCommitted)])
        self.assertIn('was done meanwhile, elsewhere', messages[-1])

    def test_without_a_further_attempt(self):
        times = Times(-50, -40)
        self.store(times[0])
        loop = self.scheduled(times, lambda: self.store(times[1]),
                              missed='once', attempts=1)
        self.stop_in_pause(loop)
        messages = self.quietly(loop)
        self.assertEqual(1, self.calls)
        self.assertIn('done already, elsewhere', messages[-1])

    def test_each_worker_and_site_has_its_own(self):
        times = Times(-50, -40)
        site = self.add_site('news')
        for name, app, key in (('crawl', self.app, 'crawl'),
                               ('mail', self.app, 'mail'),
                               ('crawl', site, 'crawl@news')):
            self.store(times[0], key)
            loop = self.scheduled(times, Exit, missed='once')
            loop.name, loop.app = name, app
            self.quietly(loop)
            self.assertEqual((1, times[1]), (self.calls, self.stored(key)))

    def test_workers_are_in_no_conflict(self):
        times = Times(-50, -40)
        self.store(times[0])
        self.store(times[0], 'other')

        def work():
            self.store(times[1], 'other')
            return Exit
        self.quietly(self.scheduled(times, work, missed='once'))
        self.assertEqual((1, times[1]), (self.calls, self.stored()))

    def add_site(self, name):
        self.app[name] = site = Folder()
        site.setSiteManager(LocalSiteManager(site))
        transaction.commit()
        return site

    def test_two_clients_of_a_server(self):
        server = ZEOServer(self.dir)
        self.addCleanup(server.kill)
        times, calls = Times(-50, -40), []
        barrier, failures = threading.Barrier(2, timeout=DEADLINE), []

        def machine(number):
            try:
                database = ZODB.config.databaseFromString(
                    server.zope_conf(''))
                with contextlib.closing(database):
                    run(number, database)
            except BaseException as error:
                failures.append(error)
                barrier.abort()

        def run(number, database):
            connection = database.open()
            app = connection.root()['Application']

            def work():
                calls.append(number)
                if len(calls) <= 2:
                    barrier.wait()  # both have begun
                app.runs = getattr(app, 'runs', 0) + 1
                return Exit
            loop = self.ending(self.keeping(
                MainLoop(app, 0, work), times, 'once'))
            loop.name = 'worker'
            stop_in_pause(loop)
            loop()
            connection.close()

        def stop_in_pause(loop):
            def stop(event):
                if isinstance(event, PauseStarted) and event.loop is loop:
                    loop.stop()
            subscribing(self, stop)
        with contextlib.closing(ZODB.config.databaseFromString(
                server.zope_conf(''))) as self.db:
            with self.db.transaction() as connection:
                site = connection.root()['Application'] = rootFolder()
                site.setSiteManager(LocalSiteManager(site))
            self.store(times[0])
            threads = [threading.Thread(target=machine, args=[number])
                       for number in range(2)]
            with self.assertLogs('gocept.runner'):
                for each in threads:
                    each.start()
                for each in threads:
                    each.join()
            self.assertEqual([], failures)
            self.assertEqual([0, 1], sorted(calls))
            self.assertEqual((1, times[1]),
                             (self.committed('runs'), self.stored()))


class OtherTests(ScheduleCase):

    def test_a_loop_with_a_call_of_its_own(self):
        class Loop(MainLoop):
            def __call__(self):
                self.begin()
        loop = self.keeping(Loop(self.app, 0, list), Times())
        with self.assertRaisesRegex(errors.UsageError, 'keeps no schedule'):
            loop()

    def test_overrides(self):
        class Loop(MainLoop):
            def begin(self):
                begun.append(1)
                super().begin()

            def commit(self):
                self.app.committed = True
                super().commit()
        begun, times = [], Times(-50, -40)
        self.store(times[0])
        loop = self.ending(self.keeping(
            Loop(self.app, 0, lambda: Exit), times, 'once'))
        loop.name = 'worker'
        self.quietly(loop)
        self.assertEqual(times[1], self.stored())
        self.assertTrue(self.committed('committed'))

    def test_watch(self):
        loop = self.scheduled(Times(), watch=lambda site: site)
        with self.assertRaisesRegex(errors.UsageError, 'watch as well'):
            loop()

    def test_a_site_in_no_database(self):
        loop = self.scheduled(Times())
        loop.app = type(self.app)()
        loop.app.setSiteManager(self.app.getSiteManager())
        with self.assertRaisesRegex(errors.UsageError, 'in no database'):
            loop()

    def test_a_site_without_a_place(self):
        self.app._p_jar.add(site := type(self.app)())
        site.setSiteManager(self.app.getSiteManager())
        transaction.commit()
        loop = self.scheduled(Times(-50), None, once=True)
        loop.app = site
        loop()
        self.assertIsNotNone(self.stored(f'worker@@{site._p_oid.hex()}'))

    def test_ticks_of_a_test(self):
        @appmain(schedule='0 0 29 2 *')
        def worker():
            getSite().ticks = getattr(getSite(), 'ticks', 0) + 1
        run_ticks(worker, self.app, ticks=2)
        self.assertEqual((2, None), (self.app.ticks, self.stored()))

    def test_a_decorator(self):
        @appmain(schedule='*/5 * * * *', timezone='Europe/Berlin', jitter=3,
                 missed='once')
        def worker():
            """Never called."""
        loop = worker.decorator.loop(self.app, worker.worker)
        self.assertEqual('*/5 * * * * (Europe/Berlin)', str(loop.schedule))
        self.assertEqual('once', loop.missed)
        for wrong in ({'schedule': '61 * * * *'},
                      {'schedule': '* * * * *', 'timezone': 'Mars'},
                      {'schedule': '* * * * *', 'jitter': -1},
                      {'timezone': 'UTC'}, {'missed': 'once'}, {'jitter': 1}):
            with self.assertRaises(ValueError):
                appmain(**wrong)
