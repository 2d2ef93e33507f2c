"""Workers whose pause ends when something has changed in the database."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from unittest import mock

import transaction
import ZODB.config
from BTrees.LOBTree import LOBTree
from ZODB.POSException import ConflictError
from zope.component.hooks import getSite
from zope.security.management import queryInteraction

from gocept.runner import Exit, appmain, errors, transaction_per_item
from gocept.runner.boot.changes import Changes
from gocept.runner.boot.dryrun import dry_run
from gocept.runner.runner import MainLoop
from gocept.runner.tests.cli.test_worker import ProgramTestCase, ZEOServer
from gocept.runner.tests.support import (
    DEADLINE,
    child_environment,
    sqlite_conf,
)
from gocept.runner.tests.test_mainloop import LOGGER, LoopCase

HOURS = 10000  # a pause that nothing but a change ends


class WatchCase(LoopCase):

    def setUp(self):
        super().setUp()
        self.app.queue = LOBTree()
        transaction.commit()
        self.asked = 0

    def watch(self, site):
        self.asked += 1
        return site.queue

    def watching(self, *results, ticks=HOURS, **kwargs):
        return self.ending(self.loop(
            *results, ticks=ticks, **{'watch': self.watch, **kwargs}))

    def ending(self, loop):
        """`loop`, which ends if nothing ends its pause."""
        watchdog = threading.Timer(DEADLINE, loop.stop)
        watchdog.start()
        self.addCleanup(watchdog.join)
        self.addCleanup(watchdog.cancel)
        return loop

    def put(self, key=1):
        """Commit a change from another thread."""
        def commit():
            with self.db.transaction() as connection:
                connection.root()['Application'].queue[key] = 1
        thread = threading.Thread(target=commit)
        thread.start()
        thread.join()

    def in_pauses(self, *calls):
        """Call something in one pause after another, when it has begun."""
        remaining, rest = list(calls), Changes._rest

        def begin(changes, seconds, poller):
            if remaining:
                remaining.pop(0)()
            return rest(changes, seconds, poller)
        self.enterContext(mock.patch.object(Changes, '_rest', begin))


class LoopTests(WatchCase):

    def test_a_change_in_the_pause(self):
        self.in_pauses(self.put, lambda: self.put(2))
        seen = []

        def work():
            seen.append([*self.app.queue])
            return Exit if self.calls == 3 else None
        self.watching(work, work, work)()
        self.assertEqual([[], [1], [1, 2]], seen)

    def test_a_change_in_the_tick(self):
        self.watching(self.put)()
        self.assertEqual(2, self.calls)

    def test_own_changes(self):
        def work():
            self.app.queue[self.calls] = 1
        loop = self.watching(work, work, work, Exit)
        self.in_pauses(lambda: self.put(10), lambda: self.put(11),
                       loop.stop)
        loop()
        self.assertEqual(3, self.calls)
        self.assertEqual([1, 2, 3, 10, 11], [*self.app.queue])

    def test_a_signal_in_the_pause(self):
        self.in_pauses(lambda: os.kill(os.getpid(), signal.SIGTERM))
        loop = self.watching(None)
        with self.assertPutBack():
            loop()
        self.assertEqual(1, self.calls)

    def test_no_pause(self):
        self.watching(0, 0, ticks=0)()
        self.assertEqual(0, self.asked)

    def test_one_tick(self):
        loop = self.watching(self.put, once=True)
        loop()
        self.assertEqual((1, 0), (self.calls, self.asked))
        self.assertEqual(0, loop.status)

    def test_it_is_asked_with_the_site_and_an_interaction(self):
        def watch(site):
            self.assertIs(self.app, site)
            self.assertIs(self.app, getSite())
            asked.append(queryInteraction().participations[0].principal.id)
        asked = []
        self.define_principal()
        loop = self.watching(0.001, watch=watch, principal='zope.mgr')
        with self.assertNoLogs(LOGGER):
            loop()
        self.assertEqual(['zope.mgr'], asked)
        self.assertIsNone(queryInteraction())

    def test_begin_of_a_subclass(self):
        class Loop(MainLoop):
            begun = 0

            def begin(self):
                Loop.begun += 1
                super().begin()
        self.ending(Loop(self.app, HOURS, self.watching(self.put).worker,
                         watch=self.watch))()
        self.assertEqual((2, 1, 3), (self.calls, self.asked, Loop.begun))

    def test_a_class_of_an_adopter_that_knows_no_watch(self):
        class Loop(MainLoop):
            def __init__(self, app, ticks, worker, principal=None,
                         once=False, **keywords):
                super().__init__(app, ticks, worker, principal, once,
                                 attempts=1, max_backoff=1)

        class program(appmain):
            main_loop = Loop
        loop = program(HOURS, watch=self.watch, watch_interval=7).loop(
            self.app, self.watching(self.put).worker)
        self.ending(loop)()
        self.assertEqual((2, 1), (self.calls, self.asked))
        self.assertEqual(7, loop.watch_interval)

    def pauses_after_errors(self, *results, **kwargs):
        loop, pauses = self.watching(*results, **kwargs), []
        pause, wait = Changes.pause, loop._shutdown.wait

        def pausing(changes, seconds, poller):
            pauses.append(('pause', seconds))
            return pause(changes, 0 if seconds < HOURS / 2 else seconds,
                         poller)

        def waiting(seconds, poller):
            pauses.append(('wait', seconds))
            return wait(0, poller)
        with (mock.patch.object(Changes, 'pause', pausing),
              mock.patch.object(loop._shutdown, 'wait', waiting),
              self.assertLogs(LOGGER)):
            loop()
        return pauses

    def test_errors_of_the_worker(self):
        def fail():
            self.put(self.calls)
            raise ValueError
        # A change ends each of these pauses, but not at once.
        self.assertEqual(
            [('pause', HOURS), ('wait', 2), ('pause', HOURS - 2),
             ('wait', 3), ('pause', HOURS - 3),
             ('wait', 3), ('pause', HOURS - 3)],
            self.pauses_after_errors(*[fail] * 4, max_backoff=3))
        self.assertEqual(5, self.calls)

    def test_errors_of_a_worker_with_short_ticks(self):
        self.assertEqual(
            [('pause', 0.5), ('wait', 1), ('wait', 2)],
            self.pauses_after_errors(*[ValueError] * 3, ticks=0.5))

    def test_a_conflict_that_is_tried_again(self):
        def conflict():
            self.app.queue[1] = 2
            if self.calls == 1:
                self.put()
        loop = self.watching(conflict, conflict)
        self.in_pauses(loop.stop)
        with self.assertLogs('gocept.runner.transaction', 'WARNING'):
            loop()
        self.assertEqual(2, self.calls)

    def test_an_error_of_what_tells_what_to_watch(self):
        loop = self.watching(0.001, 0.001, watch=mock.Mock(
            side_effect=ZeroDivisionError, __name__='wanted'))
        [message] = self.run_logged(loop)
        self.assertIn("Error in 'wanted', which tells what to watch", message)
        self.assertEqual(3, self.calls)
        self.assertFalse(loop.failed)

    def test_an_exit_of_what_tells_what_to_watch(self):
        for error, status in ((SystemExit(3), 3),
                              (KeyboardInterrupt(), errors.INTERRUPTED)):
            loop = self.watching(None, watch=mock.Mock(side_effect=error))
            with self.assertLogs(LOGGER, 'INFO'):
                loop()
            self.assertEqual(1, self.calls)
            self.assertIs(error, loop.ended_by)
            self.assertEqual(status, loop.status)

    def test_a_site_that_is_replaced(self):
        def replace(key):
            with self.db.transaction() as connection:
                root = connection.root()
                old = root['Application']
                new = type(old)()
                new.setSiteManager(old.getSiteManager())
                new.queue = LOBTree({key: 1})
                root['Application'] = new

        def work():
            seen.append([*getSite().queue])
        seen = []
        loop = self.watching(work, work, work, ticks=0.001)
        self.in_pauses(lambda: replace(7), lambda: self.put(8))
        with self.assertLogs(LOGGER, 'WARNING'):
            loop()
        self.assertEqual([[], [7], [7, 8]], seen[:3])

    def test_a_child_that_it_forks_ends(self):
        def watch(site):
            pid = os.fork()
            if pid:
                statuses.append(os.waitpid(pid, 0)[1])
            return site.queue
        statuses = []
        self.watching(0.001, watch=watch)()
        self.assertEqual(([0], 2), (statuses, self.calls))

    def test_items(self):
        @transaction_per_item
        def work():
            self.calls += 1
            if self.calls == 3:
                loop.stop()
            else:
                done.append([])
                yield from map(item, [*self.app.queue])

        def item(key):
            def take():
                done[-1].append(key)
                del self.app.queue[key]
                if key == 2 and not put:
                    put.append(self.put(99))
            return take
        done, put = [], []
        self.app.queue.update(dict.fromkeys(range(5), 1))
        transaction.commit()
        loop = self.ending(MainLoop(self.app, HOURS, work,
                                    watch=self.watch))
        self.calls = 0
        self.in_pauses(lambda: None, self.put)
        loop()
        # The item that was in conflict is left to the next tick.
        self.assertEqual([[0, 1, 2, 3, 4], [2, 99]], done)

    def test_a_dry_run(self):
        def work():
            seen.append([*self.app.queue])
            self.app.queue.clear()

        def put():  # as another process does
            with mock.patch.object(transaction.Transaction, 'commit', commit):
                self.put()
        seen, commit = [], transaction.Transaction.commit
        loop = self.watching(work, work, None)
        self.in_pauses(put, loop.stop)
        with dry_run():
            loop()
        self.assertEqual([[], [1]], seen)
        self.assertEqual([1], [*self.committed('queue')])

    def test_a_loop_that_is_called_again(self):
        loop = self.watching(None, Exit, None, ticks=0.001)
        loop()
        loop()
        self.assertEqual(2, self.asked)


class DecoratorTests(WatchCase):

    def test_what_cannot_be_called(self):
        with self.assertRaisesRegex(TypeError, "cannot be called: 'queue'"):
            appmain(watch='queue')

    def test_an_interval(self):
        for wrong in (0, -1, 'soon'):
            with self.assertRaises(ValueError):
                appmain(watch=self.watch, watch_interval=wrong)
            with self.assertRaises(ValueError):
                MainLoop(self.app, 1, print, watch_interval=wrong)


class ImportTests(LoopCase):

    def test_a_worker_without_it_pays_nothing(self):
        subprocess.run(
            [sys.executable, '-c', 'import sys, gocept.runner.runner, '
             'gocept.runner.cli.worker; '
             'assert "gocept.runner.boot.changes" not in sys.modules'],
            check=True, env=child_environment())


WORKER = '''
    from BTrees.LOBTree import LOBTree

    def queue(site):
        return getattr(site, 'queue', site)

    @gocept.runner.appmain(ticks=10000, watch=queue, watch_interval=0.01)
    def worker():
        site = getSite()
        if not hasattr(site, 'queue'):
            site.queue = LOBTree()
        say(f'seen: {[*site.queue]}')
        for key in [*site.queue]:
            del site.queue[key]
            if key == 9:
                return gocept.runner.Exit
    worker(None, 'zope.conf')
    '''


def put(database, key):
    """Fill the queue, though this client may know the last commit too late."""
    while True:
        with (contextlib.suppress(AttributeError, ConflictError),
              database.transaction() as connection):
            connection.root()['Application'].queue[key] = 1
            return


class ProgramTests(ProgramTestCase):
    """A worker, and another process that fills its queue."""

    level = 2

    def check(self):
        program = self.start(WORKER, conf=None)
        program.wait_for('seen: []')
        database = ZODB.config.databaseFromString(self.conf)
        self.addCleanup(database.close)
        for key in range(10):
            program.wait_for('Sleeping 10000 seconds')
            put(database, key)
            program.wait_for(f'seen: [{key}]')
        self.assertEqual(0, program.end(), program.output)

    def test_zeo(self):
        server = ZEOServer(self.dir)
        self.addCleanup(server.kill)
        self.conf = server.zope_conf('')
        self.write('zope.conf', server.zope_conf())
        self.check()

    def test_relstorage(self):
        (self.dir / 'data').mkdir()
        self.conf = sqlite_conf(self.dir)
        self.write('zope.conf', self.conf + '''
            <eventlog>
              level debug
              <logfile>
                path STDOUT
              </logfile>
            </eventlog>''')
        self.check()
