import logging
import os
import threading
import unittest

import persistent
import transaction
import transaction.interfaces
import ZODB
from ZODB.blob import Blob, BlobStorage
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError

from gocept.runner import Exit, transaction_per_item
from gocept.runner.boot.dryrun import dry_run
from gocept.runner.runner import MainLoop
from gocept.runner.tests.cli.test_worker import Joined
from gocept.runner.tests.support import TestCase
from gocept.runner.tests.test_mainloop import LoopCase

LOGGER = 'gocept.runner.transaction'


class Thing(persistent.Persistent):
    pass


class DryRunTests(unittest.TestCase):

    def setUp(self):
        self.db = ZODB.DB(None, databases={})
        self.addCleanup(self.db.close)
        transaction.abort()

    def test_nothing_is_committed_but_counted(self):
        with self.assertLogs(LOGGER, 'INFO') as logs, dry_run():
            connection = self.db.open()
            root = connection.root()
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
        with self.assertLogs(LOGGER, 'INFO') as logs, dry_run():
            connection = self.db.open()
            root = connection.root()
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
        with self.assertLogs(LOGGER, 'INFO') as logs, dry_run():
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

    def test_an_idle_transaction_outside_of_ticks_is_no_news(self):
        with self.assertNoLogs(LOGGER, logging.DEBUG), dry_run():
            transaction.commit()


class WithoutACommitTests(TestCase):
    """What ZODB does at once, without a commit."""

    def setUp(self):
        super().setUp()
        self.db = ZODB.DB(BlobStorage(
            str(self.dir / 'blobs'),
            FileStorage(str(self.dir / 'Data.fs'))), databases={})
        self.addCleanup(self.db.close)

    def test_a_pack(self):
        for number in range(3):
            with self.db.transaction() as connection:
                connection.root()['a'] = number
        size = os.path.getsize(self.dir / 'Data.fs')
        with self.assertLogs(LOGGER, 'INFO') as logs, dry_run():
            self.db.pack(days=0)
        self.assertEqual(size, os.path.getsize(self.dir / 'Data.fs'))
        self.assertEqual(["Dry run: would pack the database 'unnamed'"],
                         [record.getMessage() for record in logs.records])
        self.db.pack()
        self.assertLess(os.path.getsize(self.dir / 'Data.fs'), size)

    def test_a_file_that_a_blob_takes(self):
        path = self.dir / 'in.pdf'
        path.write_bytes(b'precious')
        with dry_run(), self.db.transaction() as connection:
            connection.root()['blob'] = blob = Blob()
            blob.consumeFile(str(path))
            with blob.open() as file:
                self.assertEqual(b'precious', file.read())
        self.assertEqual(b'precious', path.read_bytes())
        with self.db.transaction() as connection:
            self.assertEqual({}, dict(connection.root()))
            connection.root()['blob'] = blob = Blob()
            blob.consumeFile(str(path))
        self.assertFalse(path.exists())


class VerdictTests(LoopCase):
    """Of each tick there is one line."""

    def verdicts(self, *works):
        """The lines that are logged for ticks."""
        works = list(works)
        with self.assertLogs(LOGGER, 'INFO') as logs, dry_run():
            MainLoop(self.app, 0, lambda: (
                works.pop(0)() if works else Exit))()
        return [line.removeprefix(f'INFO:{LOGGER}:Dry run: would commit ')
                for line in logs.output if 'Dry run' in line]

    def change(self):
        self.app.number = 1
        self.app.thing = Thing()

    FOLDER = 'zope.site.folder.Folder'

    THINGS = f'1 {__name__}.Thing, 1 {FOLDER}'

    def test_other_resources(self):
        def work():
            self.change()
            for step in 'commit', 'tpc_finish':
                Joined(step, self.fail)
        self.assertEqual(
            [f'1 {__name__}.Thing, '
             f'2 {Joined.__module__}.Joined, 1 {self.FOLDER}', 'nothing'],
            self.verdicts(work))

    def test_of_each_tick(self):
        self.assertEqual(
            [self.THINGS, 'nothing', self.THINGS, 'nothing'],
            self.verdicts(self.change, int, self.change))

    def test_the_items_are_summed_up(self):
        @transaction_per_item
        def items():
            yield self.change
            yield int
            yield self.change
        self.assertEqual(
            [f'2 {__name__}.Thing, 2 {self.FOLDER}', 'nothing'],
            self.verdicts(items))

    def test_parts_that_the_worker_commits(self):
        def work():
            self.change()
            transaction.commit()
            self.app.number = 2
        self.assertEqual(
            [f'1 {__name__}.Thing, 2 {self.FOLDER}', 'nothing'],
            self.verdicts(work))

    def test_a_tick_that_fails(self):
        def work():
            self.change()
            raise ValueError
        with self.assertLogs('gocept.runner.runner', 'ERROR'):
            self.assertEqual(['nothing', 'nothing'], self.verdicts(work))

    def test_a_tick_that_is_tried_again(self):
        calls = []

        def work():
            calls.append(self.change())
            transaction.commit()
            if len(calls) == 1:
                raise ConflictError
        self.assertEqual([self.THINGS, 'nothing'], self.verdicts(
            work, work))

    def test_a_tick_that_ends_the_loop(self):
        def work():
            self.change()
            raise SystemExit
        self.assertEqual(['nothing'], self.verdicts(work))

    def test_what_follows_the_last_tick(self):
        with self.assertLogs(LOGGER, 'INFO') as logs, dry_run():
            MainLoop(self.app, 0, int, once=True)()
            self.change()
            transaction.commit()
        self.assertEqual(2, len(logs.output))
        self.assertIn(self.THINGS, logs.output[1])
