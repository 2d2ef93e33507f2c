import gc
import pathlib
import shutil
import tempfile
import threading
from unittest import mock

import persistent
import persistent.list
import transaction
import ZODB.config
import ZODB.DemoStorage
import ZODB.FileStorage
from BTrees.LOBTree import LOBTree
from BTrees.OOBTree import OOBTree
from ZODB.DB import DB
from ZODB.POSException import ConflictError
from zope.security.checker import ProxyFactory

from gocept.runner.boot import changes
from gocept.runner.boot.changes import Changes, Listener, Looker, source_of
from gocept.runner.poller import Poller
from gocept.runner.signals import Shutdown
from gocept.runner.tests.cli.test_worker import ZEOServer
from gocept.runner.tests.support import DEADLINE, TestCase, sqlite_conf
from gocept.runner.tests.victims import until

LOGGER = 'gocept.runner.runner'


class Attempt:
    """What `ICurrentSite` is to `Changes`."""

    ended = 0

    def __init__(self, app):
        self.app = app

    def end(self):
        self.ended += 1


class Case(TestCase):
    """A loop's connection, and another one to the same database."""

    interval = 0.01

    def setUp(self):
        super().setUp()
        self.db = self.open()
        self.addCleanup(self.db.close)
        self.connection = self.db.open()
        self.addCleanup(self.connection.close)
        self.addCleanup(transaction.abort)
        self.app = self.connection.root()
        self.app['queue'] = OOBTree()
        self.app['count'] = persistent.list.PersistentList()
        self.app['other'] = persistent.list.PersistentList()
        transaction.commit()
        self.other = self.other_root()
        self.attempt = Attempt(self.app)
        self.shutdown = self.enterContext(Shutdown())
        self.poller = self.enterContext(Poller())
        self.wish = lambda app: app['queue']

    def open(self):
        return DB(None)

    def other_root(self):
        """The root of a connection with its own transactions."""
        self.manager = transaction.TransactionManager()
        connection = self.db.open(self.manager)
        self.addCleanup(connection.close)
        self.addCleanup(self.manager.abort)
        return connection.root()

    def commit(self, change):
        """Let another client commit a change of its root."""
        self.manager.begin()
        change(self.other)
        self.manager.commit()

    def put(self, key=7777):
        self.commit(lambda root: root['queue'].update({key: 1}))

    def begin(self):
        transaction.begin()

    def watching(self):
        """Changes of a loop whose first tick is over."""
        self.changes = self.enterContext(Changes(
            self.app, lambda app: self.wish(app), self.interval,
            self.shutdown))
        self.tick()
        return self.changes

    def tick(self, work=lambda: None):
        self.changes.begin_tick()
        self.begin()
        work()
        transaction.commit()
        self.ask()

    def ask(self):
        self.changes.watch(self.begin, self.attempt)

    def paused(self, seconds=0):
        """Whether a pause lasts so long."""
        self.changes.pause(seconds, self.poller)
        return not self.changes._changed()

    def assertWoken(self):
        """A change ends the pause."""
        self.assertFalse(self.paused(DEADLINE))

    def assertQuiet(self):
        """No change ends a pause, though the storage is asked."""
        self.assertTrue(self.paused(3 * self.interval))


class Scenarios:
    """What holds with every storage."""

    def test_a_change_ends_the_pause(self):
        self.watching()
        self.assertQuiet()
        self.put()
        self.assertWoken()

    def test_a_change_while_it_pauses(self):
        self.watching()
        thread, pause = threading.Thread(target=self.put), self.poller.pause

        def begin_pause(*args):
            if thread.ident is None:
                thread.start()
            return pause(*args)
        with mock.patch.object(self.poller, 'pause', begin_pause):
            self.assertWoken()
        thread.join()

    def test_a_tick_has_seen_the_change(self):
        self.watching()
        self.put()
        self.assertWoken()
        self.tick()
        self.assertIn(7777, self.app['queue'])
        self.assertQuiet()

    def test_another_object_is_not_watched(self):
        self.watching()
        self.commit(lambda root: root['other'].append(1))
        self.assertQuiet()

    def test_an_own_commit(self):
        self.watching()
        for number in range(3):
            self.tick(lambda number=number: self.app['queue'].update(
                {number: 1}))
            self.assertQuiet()

    def test_an_own_commit_of_many(self):
        self.watching()
        for number in range(3):
            self.tick(lambda number=number: self.app['queue'].update(
                dict.fromkeys(range(number * 1000, number * 1000 + 1000))))
            self.assertQuiet()

    def test_several_own_commits_in_a_tick(self):
        def work():
            for number in range(3):
                self.app['queue'].update(dict.fromkeys(
                    range(number * 1000, number * 1000 + 1000)))
                transaction.commit()
        self.watching()
        self.tick(work)
        self.assertQuiet()
        self.put()
        self.assertWoken()

    def test_a_change_between_two_own_commits(self):
        def work():
            self.app['queue'][1] = 1
            transaction.commit()
            self.put(2)
            transaction.begin()
            self.assertIn(2, self.app['queue'])
            self.app['queue'][3] = 1
            transaction.commit()
        self.watching()
        self.tick(work)
        self.assertWoken()
        self.tick()
        self.assertQuiet()

    def test_a_change_between_two_own_commits_of_a_new_object(self):
        def work():
            self.app['new'] = OOBTree()
            transaction.commit()
            self.commit(lambda root: root['new'].update({1: 1}))
            transaction.begin()
            self.app['new'][2] = 2
            transaction.commit()
        self.wish = lambda app: app.get('new')
        self.watching()
        self.tick(work)
        self.assertWoken()
        self.tick()
        self.assertQuiet()

    def test_a_change_that_a_conflict_resolution_has_merged(self):
        def work():
            del self.app['queue'][1]
            self.put(20)
        self.watching()
        self.tick(lambda: self.app['queue'].update(
            dict.fromkeys(range(10), 1)))
        self.assertQuiet()
        self.tick(work)
        self.assertEqual([0, *range(2, 10), 20], [*self.app['queue']])
        self.assertWoken()

    def test_a_change_in_the_tick(self):
        self.watching()
        self.tick(self.put)
        self.assertWoken()

    def test_a_change_in_the_first_tick(self):
        self.changes = self.enterContext(Changes(
            self.app, lambda app: self.wish(app), self.interval,
            self.shutdown))
        self.tick(self.put)
        self.assertWoken()

    def test_a_change_while_it_is_asked_what_to_watch(self):
        def wish(app):
            queue = app['queue']
            queue._p_activate()
            if not done:
                done.append(self.put())
            return queue
        done = [True]
        self.watching()
        self.wish = wish
        done.clear()
        self.tick(lambda: self.app['other'].append(1))
        self.assertWoken()
        self.tick()
        self.assertQuiet()

    def test_a_change_after_that(self):
        self.watching()
        self.tick()
        self.put()
        self.assertWoken()

    def test_a_change_when_a_tick_is_to_begin(self):
        self.watching()
        self.changes.begin_tick()
        self.put()
        self.begin()
        self.ask()
        self.assertWoken()  # once too often is better than never

    def test_buckets_that_others_make(self):
        self.watching()
        for number in range(0, 1000, 200):
            self.commit(lambda root, number=number: root['queue'].update(
                dict.fromkeys(range(number, number + 200))))
            self.assertWoken()
            self.tick()
            self.assertQuiet()

    def test_buckets_of_its_own_that_others_change(self):
        self.watching()
        self.tick(lambda: self.app['queue'].update(
            dict.fromkeys(range(0, 2000, 2))))
        self.assertQuiet()
        for number in range(1, 2000, 399):
            self.put(number)
            self.assertWoken()
            self.tick()
            self.assertQuiet()

    def test_a_tree_that_is_made_and_changed_within_a_tick(self):
        def replace(root):
            root['queue'] = LOBTree({1: 1})

        def work():
            self.commit(replace)
            self.commit(lambda root: root['queue'].update({2: 1}))
        self.watching()
        self.tick(work)
        self.assertWoken()
        self.tick()
        self.assertQuiet()

    def test_an_object_that_is_not_there_yet(self):
        self.wish = lambda app: app.get('new')
        self.watching()
        self.assertQuiet()
        self.tick(lambda: self.app.update(new=OOBTree()))
        self.assertQuiet()
        self.commit(lambda root: root['new'].update({1: 1}))
        self.assertWoken()

    def test_an_object_that_is_gone(self):
        self.wish = lambda app: app.get('queue')
        self.watching()
        self.commit(lambda root: root.pop('queue'))
        self.tick()
        self.assertQuiet()
        self.commit(lambda root: root.update(queue=OOBTree()))
        self.tick()
        self.put()
        self.assertWoken()

    def test_several_objects(self):
        self.wish = lambda app: [app['queue'], None, app['count']]
        self.watching()
        self.commit(lambda root: root['count'].append(1))
        self.assertWoken()
        self.tick()
        self.put()
        self.assertWoken()

    def test_an_undo(self):
        if not self.db.supportsUndo():
            return
        self.watching()
        self.put()
        self.assertWoken()
        self.tick()
        self.manager.begin()
        self.db.undo(self.db.undoLog(0, 1)[0]['id'], self.manager.get())
        self.manager.commit()
        self.assertWoken()
        self.tick()
        self.assertNotIn(7777, self.app['queue'])
        self.assertQuiet()

    def test_a_pack(self):
        self.watching()
        for number in range(3):
            self.put(number)
        self.tick()
        self.db.pack()
        self.tick(lambda: self.app['other'].append(1))
        self.paused()  # a storage may lose what it knows
        self.tick()
        self.put()
        self.assertWoken()

    def test_an_abort_of_its_own(self):
        self.watching()
        self.changes.begin_tick()
        self.begin()
        self.app['queue'][7777] = 1
        transaction.savepoint()
        transaction.abort()
        self.ask()
        self.assertQuiet()

    def test_a_conflict_of_its_own(self):
        self.watching()
        self.changes.begin_tick()
        self.begin()
        self.app['queue'][7777] = 1
        self.put()
        with self.assertRaises(ConflictError):
            transaction.commit()
        transaction.abort()
        self.changes.begin_tick()
        self.begin()
        self.ask()
        self.assertQuiet()

    def test_a_storm(self):
        self.watching()
        for number in range(100):
            self.put(number)
            if not number % 20:
                self.assertWoken()
                self.tick()
        self.assertWoken()
        self.tick()
        self.assertEqual(100, len(self.app['queue']))
        self.assertQuiet()

    def test_nothing_is_left_at_the_storage(self):
        before = {*vars(self.connection._normal_storage)}
        with Changes(self.app, self.wish, self.interval, self.shutdown):
            with Changes(self.app, self.wish, self.interval, self.shutdown):
                pass
            self.put()
        self.assertLessEqual(
            {*vars(self.connection._normal_storage)} - before,
            {'lastTransaction', 'tpc_vote', 'loadSerial'})


class FileStorageTests(Scenarios, Case):

    kind = Listener

    def open(self):
        return DB(str(self.dir / 'Data.fs'))

    def test_a_thread_of_this_process(self):
        self.watching()
        thread = threading.Thread(target=self.put)
        thread.start()
        thread.join()
        self.assertWoken()

    def test_a_pause_without_a_change_is_one_wait(self):
        self.watching()
        with mock.patch.object(self.shutdown, 'rest',
                               wraps=self.shutdown.rest) as rest:
            self.paused(0.01)
        rest.assert_called_once()

    def test_it_is_not_asked_again_if_nothing_has_changed(self):
        asked = mock.Mock(return_value=None)
        self.wish = asked
        self.watching()
        self.tick()
        asked.assert_called_once()
        self.commit(lambda root: root['other'].append(1))
        self.tick()
        self.assertEqual(2, asked.call_count)
        self.tick(lambda: self.app['other'].append(2))
        self.assertEqual(3, asked.call_count)
        self.assertEqual(3, self.attempt.ended)

    def test_more_changes_in_a_tick_than_it_records(self):
        self.enterContext(mock.patch.object(changes, 'MOST_RECORDED', 100))
        self.watching()

        def work():
            self.commit(lambda root: root.update(
                {str(number): persistent.list.PersistentList()
                 for number in range(200)}))
        self.tick(work)
        self.assertWoken()
        self.tick()
        self.assertQuiet()

    def test_what_is_changed_while_it_is_asked_is_not_saved(self):
        def wish(app):
            app['queue'][8888] = 1
            return app['queue']
        self.wish = wish
        self.watching()
        self.assertNotIn(8888, self.app['queue'])

    def test_an_error_is_logged_once(self):
        broken = self.wish = mock.Mock(side_effect=ZeroDivisionError)
        with self.assertLogs(LOGGER) as logs:
            self.watching()
            self.tick()
        self.assertEqual(2, broken.call_count)
        self.assertEqual(1, len(logs.output), logs.output)
        self.assertIn("Error in '<lambda>', which tells what to watch",
                      logs.output[0])
        self.assertIn('ZeroDivisionError', logs.output[0])
        self.assertEqual(2, self.attempt.ended)
        self.wish = lambda app: app['queue']
        self.tick()
        self.put()
        self.assertWoken()

    def test_after_an_error_what_was_watched_still_is(self):
        self.watching()
        self.wish = mock.Mock(side_effect=ZeroDivisionError)
        with self.assertLogs(LOGGER):
            self.tick(lambda: self.app['other'].append(1))
        self.assertQuiet()
        self.put()
        self.assertWoken()

    def test_an_exit(self):
        for error in SystemExit, KeyboardInterrupt:
            self.wish = mock.Mock(side_effect=error)
            with self.assertRaises(error):
                self.watching()
        self.assertEqual(2, self.attempt.ended)

    def test_the_site_is_gone(self):
        self.begin = mock.Mock(side_effect=LookupError('is gone'))
        self.changes = self.enterContext(Changes(
            self.app, self.wish, self.interval, self.shutdown))
        with self.assertLogs(LOGGER) as logs:
            self.ask()
        self.assertIn('is gone', logs.output[0])

    def test_what_cannot_be_watched(self):
        for answer, expected in (
                (lambda app: 3, 'expected a persistent object.*not 3'),
                (lambda app: ['queue'], "not 'queue'"),
                (lambda app: OOBTree(), 'is not stored.*return None'),
                (lambda app: self.other['queue'], 'another connection')):
            self.wish = answer
            with self.subTest(expected), self.assertLogs(LOGGER) as logs:
                self.watching()
            self.assertRegex(logs.output[0], expected)

    def test_an_object_in_a_proxy(self):
        self.wish = lambda app: ProxyFactory(app['queue'])
        self.watching()
        self.put()
        self.assertWoken()

    def test_a_request_to_end(self):
        self.watching()
        self.shutdown.request()
        self.assertTrue(self.paused(DEADLINE))

    def test_a_change_outside_of_a_pause_wakes_nobody_else(self):
        self.watching()
        self.put()
        self.assertFalse(self.shutdown._woken)

    def test_a_site_that_is_not_stored(self):
        self.app = object()
        self.wish = lambda app: None
        self.watching()
        self.assertQuiet()

    def test_a_historical_connection(self):
        self.put()
        connection = self.db.open(
            transaction.TransactionManager(),
            before=self.db.lastTransaction())
        self.addCleanup(connection.close)
        source = source_of(connection, mock.Mock())
        self.addCleanup(source.close)
        self.assertIs(changes.Source, type(source))

    def test_memory_of_a_long_pause(self):
        self.watching()
        self.put()
        source = next(iter(self.changes._sources.values()))
        for _ in range(10):
            self.commit(lambda root: root.update(
                new=persistent.list.PersistentList()))
        self.assertIsNone(source._recorded)
        self.assertEqual(1, len(source._stale))

    def test_no_cycle_keeps_the_connection(self):
        self.watching()
        source = next(iter(self.changes._sources.values()))
        self.changes.__exit__()
        self.assertFalse([each for each in gc.get_referrers(source)
                          if each is vars(self.connection._normal_storage)])


class DemoStorageTests(Case):

    def open(self):
        base = ZODB.FileStorage.FileStorage(str(self.dir / 'Data.fs'))
        return DB(ZODB.DemoStorage.DemoStorage(base=base))

    def test_a_change(self):
        self.watching()
        self.tick(lambda: self.app['queue'].update({1: 1}))
        self.assertQuiet()
        self.put()
        self.assertWoken()


class SeveralDatabasesTests(Case):

    def open(self):
        self.databases = {}
        self.second = DB(str(self.dir / 'second.fs'),
                         databases=self.databases, database_name='second')
        self.addCleanup(self.second.close)
        return DB(None, databases=self.databases, database_name='main')

    def test_an_object_of_another_database(self):
        self.connection.get_connection('second').root()['far'] = OOBTree()
        transaction.commit()
        self.manager.begin()
        root = self.other._p_jar.get_connection('second').root()
        self.wish = lambda app: [
            app['queue'], app._p_jar.get_connection('second').root()['far']]
        self.watching()
        self.assertQuiet()
        self.commit(lambda _: root['far'].update({1: 1}))
        self.assertWoken()
        self.tick()
        self.assertQuiet()
        self.put()
        self.assertWoken()

    def test_a_database_that_the_first_tick_opens(self):
        self.wish = lambda app: (
            app._p_jar.get_connection('second').root())
        self.watching()
        self.assertWoken()  # as it may have changed meanwhile
        self.tick()
        self.assertQuiet()


    def test_one_of_them_is_away(self):
        connections = [
            self.connection, self.connection.get_connection('second')]
        before = [{*vars(each._normal_storage)} for each in connections]
        away = mock.Mock(side_effect=[
            source_of(self.connection, lambda: None), OSError('away')])
        with mock.patch.object(changes, 'source_of', away):
            with self.assertRaisesRegex(OSError, 'away'):
                self.watching()
        for storage, names in zip(
                [each._normal_storage for each in connections], before,
                strict=True):
            self.assertLessEqual({*vars(storage)} - names,
                                 {'lastTransaction', 'tpc_vote', 'loadSerial'})


class ServerLayer:
    """One ZEO server for all tests, which may be lost and come back."""

    @classmethod
    def setUp(cls):
        cls.directory = pathlib.Path(tempfile.mkdtemp())
        cls.server = ZEOServer(cls.directory)

    @classmethod
    def tearDown(cls):
        cls.server.kill()
        shutil.rmtree(cls.directory)


class ZEOTests(Scenarios, Case):

    layer = ServerLayer

    def open(self):
        self.far = self.client()
        self.addCleanup(self.far.close)
        return self.client()

    def client(self):
        return ZODB.config.databaseFromString(self.layer.server.zope_conf(''))

    def other_root(self):
        self.manager = transaction.TransactionManager()
        connection = self.far.open(self.manager)
        self.addCleanup(connection.close)
        self.addCleanup(self.manager.abort)
        return connection.root()

    def commit(self, change):
        # Its client has to know of what the loop has committed.
        until(lambda: self.far.lastTransaction()
              >= self.db.lastTransaction())
        super().commit(change)
        until(lambda: self.db.lastTransaction()
              >= self.far.lastTransaction())

    def test_the_server_is_lost_and_comes_back(self):
        self.watching()
        self.layer.server.kill()
        until(lambda: not self.db.storage.is_connected())
        self.layer.server.start()
        self.assertWoken()
        until(self.db.storage.is_connected)
        self.tick()
        until(self.far.storage.is_connected)
        self.put()
        self.assertWoken()
        self.tick()
        self.assertIn(7777, self.app['queue'])

    def test_the_server_is_away_when_it_is_asked(self):
        self.watching()
        self.layer.server.kill()
        until(lambda: not self.db.storage.is_connected())
        self.connection.cacheMinimize()
        self.db.storage._cache.clear()
        self.changes._fails = True  # so that it is asked
        with self.assertLogs(LOGGER, 'DEBUG') as logs:
            self.ask()
        self.assertIn('ClientDisconnected', logs.output[0])
        self.layer.server.start()
        until(self.db.storage.is_connected)
        self.tick()
        self.assertFalse(self.changes._fails)


class HistoryFreeTests(Scenarios, Case):

    history = 'false'

    def open(self):
        self.far = self.client()
        self.addCleanup(self.far.close)
        return self.client()

    other_root = ZEOTests.other_root

    def client(self):
        return ZODB.config.databaseFromString(
            sqlite_conf(self.dir, self.history))


class RelStorageTests(HistoryFreeTests):

    history = 'true'

    def test_it_is_a_looker(self):
        self.watching()
        self.assertEqual([Looker], [*map(type, self.changes._sources
                                         .values())])

    def test_the_database_is_away_in_a_pause(self):
        self.watching()
        source = next(iter(self.changes._sources.values()))
        waits = []
        with mock.patch.object(source._view, 'poll_invalidations',
                               side_effect=OSError('away')), \
                self.assertLogs(LOGGER, 'WARNING') as logs:
            for _ in range(3):
                waits.append(self.changes._until_look())
                source.look()
        self.assertEqual([self.interval, self.interval, changes.AWAY], waits)
        self.assertEqual(1, len(logs.output))
        self.assertIn("Cannot look for changes in the database ''",
                      logs.output[0])
        self.put()
        with mock.patch.object(changes, 'AWAY', self.interval):
            self.assertWoken()
        self.assertEqual(self.interval, self.changes._until_look())

    def test_the_database_is_lost_in_a_look(self):
        self.watching()
        self.tick(lambda: self.app['queue'].update({1: 1}))
        source = next(iter(self.changes._sources.values()))
        self.put()
        with mock.patch.object(source._view, 'load',
                               side_effect=OSError('away')):
            self.assertWoken()
        self.tick()
        self.assertQuiet()

    def test_it_loses_what_it_knows(self):
        self.watching()
        source = next(iter(self.changes._sources.values()))
        with mock.patch.object(source._view, 'poll_invalidations',
                               return_value=None):
            self.assertWoken()
        self.tick()
        self.assertQuiet()

    def test_no_transaction_stays_open(self):
        self.watching()
        self.tick(lambda: self.app['queue'].update({1: 1}))
        self.put()
        self.assertWoken()
        for source in self.changes._sources.values():
            self.assertFalse(source._view._load_connection.active)
