"""Conflicts in a RelStorage on SQLite."""

import contextlib
from unittest import mock

import transaction
import ZODB.config
from persistent.mapping import PersistentMapping
from ZODB.POSException import ReadConflictError

from gocept.runner.boot.sqlite import forget_aborted
from gocept.runner.runner import init
from gocept.runner.tests.support import TestCase, sqlite_conf

NAMES = 'guard', 'aborted', 'committed'


class ConflictTests(TestCase):

    history = 'true'

    def setUp(self):
        super().setUp()
        self.conf = sqlite_conf(self.dir, self.history)

    def open(self):
        return contextlib.closing(ZODB.config.databaseFromString(self.conf))

    def check(self, connection):
        """Others change what a transaction relies on; then commit another.
        """
        manager, root = connection.transaction_manager, connection.root()
        for name in NAMES:
            root[name] = PersistentMapping(value=0)
        manager.commit()
        manager.begin()
        self.assertEqual([0, 0, 0], [root[name]['value'] for name in NAMES])
        with self.open() as far, far.transaction() as other:
            other.root()['guard']['value'] = 1
        connection.readCurrent(root['guard'])
        root['aborted']['value'] = 1
        self.assertRaises(ReadConflictError, manager.commit)
        manager.abort()
        manager.begin()
        root['committed']['value'] = 1
        manager.commit()
        with self.open() as far, far.transaction() as other:
            self.assertEqual([1, 0, 1], [other.root()[name]['value']
                                         for name in NAMES])

    def test_what_was_aborted_is_not_committed_later(self):
        with self.open() as database:
            forget_aborted(database)
            connection = database.open(transaction.TransactionManager())
            self.check(connection)
            self.check(connection)
            connection.close()

    def test_a_storage_around_another_one(self):
        with self.open() as database:
            storage = mock.Mock(base=database.storage)  # zc.zlibstorage, say
            forget_aborted(mock.Mock(storage=storage))
            connection = database.open(transaction.TransactionManager())
            self.check(connection)
            connection.close()

    def test_in_a_program(self):
        self.write('zope.conf', self.conf + '<eventlog>\n</eventlog>\n')
        with init(None, str(self.dir / 'zope.conf')) as app:
            self.check(app._p_jar)


class HistoryFreeConflictTests(ConflictTests):

    history = 'false'
