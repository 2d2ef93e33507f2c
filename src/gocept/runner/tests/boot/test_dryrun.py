import logging
import threading
import unittest

import persistent
import transaction
import transaction.interfaces
import ZODB

from gocept.runner.boot.dryrun import dry_run

LOGGER = 'gocept.runner.transaction'


class Thing(persistent.Persistent):
    pass


class DryRunTests(unittest.TestCase):

    def setUp(self):
        self.db = ZODB.DB(None, databases={})
        self.addCleanup(self.db.close)
        transaction.abort()

    def test_nothing_is_committed_but_counted(self):
        with dry_run():
            connection = self.db.open()
            root = connection.root()
            with self.assertLogs(LOGGER, 'INFO') as logs:
                root['a'] = Thing()
                root['a'].child = Thing()
                transaction.commit()
            self.assertEqual({}, dict(root))
            connection.close()
        self.assertEqual(
            [f'Dry run: would commit 2 {__name__}.Thing, '
             '1 persistent.mapping.PersistentMapping'],
            [record.getMessage() for record in logs.records])
        with self.db.transaction() as connection:
            self.assertEqual({}, dict(connection.root()))

    def test_whichever_way_it_is_committed(self):
        def by_context():
            with transaction.manager:
                root['a'] = 1

        def by_transaction():
            root['a'] = 1
            transaction.get().commit()

        def by_attempts():
            for attempt in transaction.manager.attempts():
                with attempt:
                    root['a'] = 1

        def by_savepoint():
            root['a'] = Thing()
            transaction.savepoint()
            transaction.begin().commit()
        with dry_run():
            connection = self.db.open()
            root = connection.root()
            for way in (by_context, by_transaction, by_attempts,
                        by_savepoint):
                way()
                self.assertEqual({}, dict(root), way)
            connection.close()

    def test_what_savepoints_have_stored_counts(self):
        with dry_run():
            connection = self.db.open()
            root = connection.root()
            with self.assertLogs(LOGGER, 'INFO') as logs:
                root['a'] = Thing()
                transaction.savepoint()
                root['b'] = 1
                transaction.commit()
            connection.close()
        self.assertIn(f'1 {__name__}.Thing', logs.output[0])

    def test_what_could_not_be_committed_fails(self):
        with dry_run():
            connection = self.db.open()
            connection.root()['a'] = lambda: None
            with self.assertRaises((TypeError, AttributeError)):
                transaction.commit()
            transaction.abort()
            transaction.doom()
            with self.assertRaises(
                    transaction.interfaces.DoomedTransaction):
                transaction.commit()
            transaction.abort()
            connection.close()

    def test_other_managers_and_threads(self):
        def commit():
            with self.db.transaction() as connection:
                connection.root()['a'] = 1
        with dry_run():
            commit()
            thread = threading.Thread(target=commit)
            thread.start()
            thread.join()
        with self.db.transaction() as connection:
            self.assertEqual({}, dict(connection.root()))

    def test_what_hooks_before_the_commit_change(self):
        connection = self.db.open()
        self.addCleanup(connection.close)
        root = connection.root()
        with dry_run(), self.assertLogs(LOGGER, 'INFO') as logs:
            transaction.get().addBeforeCommitHook(
                root.update, (), {'a': Thing()})
            transaction.commit()
        self.assertIn(f'1 {__name__}.Thing', logs.output[0])

    def test_ends(self):
        with self.assertRaises(ZeroDivisionError), dry_run():
            raise ZeroDivisionError
        with self.db.transaction() as connection:
            connection.root()['a'] = 1
        with self.db.transaction() as connection:
            self.assertEqual({'a': 1}, dict(connection.root()))

    def test_an_idle_transaction_is_no_news(self):
        with (dry_run(), self.assertLogs(LOGGER, logging.DEBUG) as logs):
            transaction.commit()
        self.assertEqual(
            [f'DEBUG:{LOGGER}:Dry run: would commit nothing'], logs.output)
